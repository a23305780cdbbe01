"""The snapshots of Megatron's keys are fresh for both versions, whole, and lead to keys that exist."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
from gang import SOURCES
from megatron_next import VERSION, overlay

from primus.backends.megatron import MegatronBackend, generate_schema, native_limits, schema, split
from primus.config.keys import keys

LOOK = """
import json, warnings
warnings.filterwarnings("ignore")
from primus.backends.megatron import generate_schema as generating
from primus.backends.schema_snapshot import fields_of
fields = {section: sorted(fields_of(classes)) for section, classes in generating.sections().items()}
print(json.dumps([generating.text() == generating.snapshot().read_text(encoding="utf-8"), fields]))
"""


@pytest.fixture(scope="module", params=[schema.VERSIONS[3, 11], VERSION])
def looked(request: pytest.FixtureRequest) -> tuple[str, bool, dict[str, list[str]]]:
    """A version, whether its snapshot is what would be written, and the fields of each section in it. In a process of
    its own: looking imports all of Megatron, and makes its patches."""
    first = [] if request.param == version("megatron-core") else [str(overlay())]
    path = os.pathsep.join([*first, str(SOURCES)])
    command = [sys.executable, "-c", LOOK]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    fresh, fields = json.loads(done.stdout.splitlines()[-1])
    return request.param, fresh, fields


def test_the_snapshot_is_fresh(looked: tuple[str, bool, dict[str, list[str]]]) -> None:
    engine, fresh, _ = looked
    assert fresh, f"run `python -m primus.backends.megatron.generate_schema` with megatron-core {engine}"


def test_every_field_is_offered_or_left_out_for_one_reason(looked: tuple[str, bool, dict[str, list[str]]]) -> None:
    for section, fields in looked[2].items():
        allowed, portable = (
            set(generate_schema.names(generate_schema.ALLOWED[section])),
            generate_schema.PORTABLE[section],
        )
        assert allowed | set(portable) <= set(fields)
        for field in fields:
            ways = (field in allowed) + (field in portable) + len(generate_schema.reasons(section, field))
            assert ways == 1, f"{section}.{field} is classed {ways} times"


def test_no_reason_is_left_over() -> None:
    """Every name and pattern stands for a field of one of the versions."""
    fields: dict[str, set[str]] = {section: set() for section in generate_schema.OMITTED}
    for engine in schema.VERSIONS.values():
        text = generate_schema.snapshot().with_name(schema.snapshot_name(engine)).read_text(encoding="utf-8")
        assert json.loads(text)["engine"] == {"megatron-core": engine}
        for key in json.loads(text)["keys"]:
            fields[key.partition(".")[0]].add(key.partition(".")[2])
    for section, reasons in generate_schema.OMITTED.items():
        named = [name for listed in reasons.values() for name in generate_schema.names(listed)]
        assert len(named) == len(set(named))
        assert not fields[section] & set(named)


def test_portable_keys_exist() -> None:
    for fields in generate_schema.PORTABLE.values():
        for field, portable in fields.items():
            assert portable in keys(), f"{field} points at {portable}"


def test_rules_name_keys_that_can_be_set() -> None:
    allowed = {
        f"{section}.{name}"
        for section, listed in generate_schema.ALLOWED.items()
        for name in generate_schema.names(listed)
    }
    needed = {key for need in native_limits.NEEDS for key in need.keys.split()}
    ruled = needed | set(native_limits.ACCELERATOR) | set(native_limits.POSITIVE)
    assert ruled | {f"transformer.{name}" for name in split.KEYS} <= allowed


def test_keys_carry_what_a_reader_needs() -> None:
    found = MegatronBackend().native_schema()
    assert found.engine == {"megatron-core": schema.engine_version()}
    balance = found.keys["transformer.moe_router_load_balancing_type"]
    assert balance.choices == ("aux_loss", "seq_aux_loss", "global_aux_loss")
    assert found.keys["transformer.moe_token_dispatcher_type"].default == "alltoall"
    assert found.keys["transformer.params_dtype"].default == "float32"
    assert found.keys["ddp.use_distributed_optimizer"].portable == "parallel.data_shard"
    assert found.keys["ddp.bucket_size"].type == "int | null"
    described = [key for key in found.keys.values() if key.description]
    assert len(described) > 0.9 * len(found.keys)


def test_the_snapshot_is_that_of_the_version_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "version", lambda _: VERSION)
    assert schema.engine_version() == VERSION
    monkeypatch.setattr(schema, "version", lambda _: "0.15.0")  # has no snapshot: a worker will refuse it
    assert schema.engine_version() == schema.VERSIONS[(3, 11) if sys.version_info < (3, 12) else (3, 12)]
