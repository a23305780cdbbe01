"""The generated pages are fresh, complete, and the JSON schema agrees with the loader."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from primus.config import presets, reference
from primus.config.document import parse
from primus.config.keys import keys
from primus.config.source import Source

DOCS = Path(__file__).parents[2] / "docs" / "configuration"


@pytest.mark.parametrize(
    ("name", "text"), [("reference.md", reference.markdown), ("experiment.schema.json", reference.json_schema)]
)
def test_committed_pages_are_fresh(name: str, text: Any) -> None:
    command = f"primus-cli config reference{' --format json-schema' if name.endswith('json') else ''}"
    assert (DOCS / name).read_text(encoding="utf-8") == text(), (
        f"{name} is stale: {command} > docs/configuration/{name}"
    )


def test_the_pages_do_not_depend_on_which_megatron_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from primus.backends.megatron import schema

    before = reference.markdown(), reference.json_schema()
    monkeypatch.setattr(schema, "version", lambda _: schema.VERSIONS[3, 12])
    assert schema.schema().engine == {"megatron-core": schema.VERSIONS[3, 12]}
    assert (reference.markdown(), reference.json_schema()) == before
    assert f"megatron-core {schema.VERSIONS[3, 11]}" in before[0]


def test_every_key_is_described() -> None:
    page = reference.markdown()
    for key in keys().values():
        assert f"`{key.name}`" in page
        assert (key.field.description or "").endswith("."), f"{key.dotted} needs a description that ends in a full stop"


def test_the_page_can_be_split_into_well_formed_tables() -> None:
    for line in reference.markdown().splitlines():
        if line.startswith("|"):
            cells = line.replace("\\|", "").count("|") - 1
            assert cells in (2, 4), line


def test_every_preset_fits_the_json_schema() -> None:
    schema = json.loads(reference.json_schema())
    for path in sorted(presets.root().glob("*/*.yaml")):
        text = path.read_text(encoding="utf-8")
        tree = parse(text, Source("preset", path.stem, str(path)))
        assert tree is not None
        assert list(_misfits(tree.plain(), schema, schema, path.stem)) == []


def test_the_json_schema_refuses_what_check_refuses() -> None:
    schema = json.loads(reference.json_schema())
    for bad in (
        {"optimiser": {}},
        {"train": {"steps": "yes"}},
        {"train": {"steps": 0}},
        {"compile": 1},
        {"precision": "f8"},
    ):
        assert list(_misfits(bad, schema, schema, "")), bad
    for good in ({"train": {"steps": "${N:3}"}}, {"profile": None}, {"extends": ["./mine.yaml", "hardware/cpu"]}):
        assert not list(_misfits(good, schema, schema, "")), good


KINDS: dict[str, Any] = {
    "integer": int, "number": (int, float), "string": str, "boolean": bool, "null": type(None),
    "array": list, "object": dict,
}  # fmt: skip


def _misfits(value: Any, schema: dict[str, Any], root: dict[str, Any], path: str) -> Iterator[str]:
    """The places where `value` breaks `schema`, for the words of JSON schema that ours uses."""
    if "$ref" in schema:
        yield from _misfits(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, path)
        return
    if "anyOf" in schema:
        every = [list(_misfits(value, member, root, path)) for member in schema["anyOf"]]
        if all(every):
            yield f"{path}: fits none of {len(every)}"
        return
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        yield f"{path}: not among the choices"
    kind = schema.get("type")
    if kind and (not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind in ("integer", "number"))):
        yield f"{path}: not {kind}"
    elif isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{path}: does not match"
    elif isinstance(value, int | float) and not _in_range(value, schema):
        yield f"{path}: out of range"
    elif isinstance(value, dict):
        yield from _misfits_of_map(value, schema, root, path)
    elif isinstance(value, list):
        members = schema.get("prefixItems") or [schema.get("items", {})] * len(value)
        for index, (item, member) in enumerate(zip(value, members, strict=True)):
            yield from _misfits(item, member, root, f"{path}[{index}]")


def _in_range(value: float, schema: dict[str, Any]) -> bool:
    low = value > schema.get("exclusiveMinimum", -math.inf) and value >= schema.get("minimum", -math.inf)
    return low and value < schema.get("exclusiveMaximum", math.inf)


def _misfits_of_map(value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], path: str) -> Iterator[str]:
    for key, item in value.items():
        inner = schema.get("properties", {}).get(key, schema.get("additionalProperties", True))
        if inner is False:
            yield f"{path}.{key}: unknown"
        elif isinstance(inner, dict):
            yield from _misfits(item, inner, root, f"{path}.{key}")
