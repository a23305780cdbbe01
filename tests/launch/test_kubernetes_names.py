"""Names, quantities and YAML for Kubernetes, from whatever people write."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from system import need

from primus.launch.kubernetes_names import (
    LONGEST_NAME,
    is_key,
    is_label_value,
    is_subdomain,
    object_name,
    quantity_fault,
)
from primus.launch.kubernetes_yaml import manifest

RUNS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True) | st.text(min_size=1, max_size=200)
CONTAINABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
TRAPS = [
    "",
    "1e3",
    "0o17",
    "017",
    "0x1F",
    "1_000",
    "y",
    "N",
    "yes",
    "Off",
    "true",
    "null",
    "~",
    "=",
    "<<",
    ".inf",
    ".NaN",
]
TRAPS += [
    "12:30:45",
    "2024-01-01",
    "- a",
    "a: b",
    "a #b",
    "#",
    "'",
    '"',
    "\\",
    "\\n",
    "%",
    "@x",
    "`",
    "*a",
    "&a",
    "!!int 3",
]
TRAPS += [
    "|",
    ">",
    "\t",
    " a",
    "a ",
    "a\n",
    "\na",
    "a\n\n b\n",
    "\x85",
    "\u2028",
    "\ufeff",
    "\x7f",
    "é",
    "😀",
    "{a: b}",
    "[",
    "---",
]


@given(RUNS)
def test_a_name_fits_every_object_made_of_it(run: str) -> None:
    name = object_name(run)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)  # RFC 1035, the stricter one
    assert len(name) <= LONGEST_NAME
    assert len(f"{name}-node-0-99999-abcde") <= 63
    assert is_subdomain(name)
    assert is_label_value(name)


def test_runs_do_not_share_a_name() -> None:
    runs = ["a", "A", "a.", "a-", "a_", "a--b", "a-b", "a.b", "1", "run-1", "é", "x" * 43, "x" * 44, "x" * 128, ""]
    assert len({object_name(run) for run in runs}) == len(runs)
    assert object_name("a-b") == "a-b"
    assert re.fullmatch(r"llama3-1-8b-[0-9a-f]{6}", object_name("llama3.1_8B"))


@given(st.dictionaries(CONTAINABLE, CONTAINABLE | st.sampled_from(TRAPS), max_size=5))
def test_text_stays_text(values: dict[str, str]) -> None:
    assert list(yaml.safe_load_all(manifest([values, {"list": list(values.values())}]))) == [
        values,
        {"list": list(values.values())},
    ]


@given(
    st.recursive(
        st.integers() | st.booleans() | CONTAINABLE,
        lambda inner: st.lists(inner) | st.dictionaries(CONTAINABLE, inner),
        max_leaves=8,
    )
)
def test_any_document_comes_back(document: Any) -> None:
    assert yaml.safe_load(manifest([{"spec": document}])) == {"spec": document}


def kubectl_reads(text: str, directory: Path) -> list[dict[str, Any]]:
    """`text` as kubectl's own parser reads it, which is the one a cluster has."""
    need(["kubernetes-client"], ["kubectl"])
    file = directory / "manifest.yaml"
    file.write_text(text, encoding="utf-8")
    words = ["kubectl", "label", "--local", "--dry-run=client", "-o", "json", "-f", str(file), "read=yes"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    decoder, found, rest = json.JSONDecoder(), [], done.stdout.strip()
    while rest:
        document, end = decoder.raw_decode(rest)
        found.append(document)
        rest = rest[end:].strip()
    return found


@settings(max_examples=5, deadline=None)
@given(values=st.lists(CONTAINABLE | st.text("yYnNoO01eExX_.:-+~ $", max_size=6), min_size=50, max_size=100))
def test_kubectl_reads_what_was_meant(values: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    data = {f"key-{number}": value for number, value in enumerate([*values, *TRAPS])}
    made = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": "x"}, "spec": data}
    (read,) = kubectl_reads(manifest([made]), tmp_path_factory.mktemp("manifest"))
    assert read["spec"] == data


@pytest.mark.parametrize("text", ["1", "0.5", "500m", ".5", "64Gi", "1e3", "12E", "1k"])
def test_quantities(text: str) -> None:
    assert not quantity_fault(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("64GB", "did you mean 64Gi?"),
        ("64gb", "did you mean 64Gi?"),
        ("64g", "did you mean 64Gi?"),
        ("512MiB", "did you mean 512Mi?"),
        ("512m", "a fraction of a byte; did you mean 512Mi?"),
        ("0", "is nothing"),
        ("0.0Gi", "is nothing"),
        ("-1", "is not a quantity, such as 64Gi"),
        ("much", "is not a quantity"),
        ("", "is not a quantity"),
        ("1 Gi", "did you mean 1Gi?"),
        ("1..5", "is not a quantity, such as 64Gi"),
        ("１Gi", "is not a quantity"),
    ],
)
def test_what_is_no_amount_of_memory(text: str, fault: str) -> None:
    assert fault in quantity_fault(text, memory=True)


def test_counts_are_whole() -> None:
    assert not quantity_fault("8", whole=True)
    assert quantity_fault("0.5", whole=True) == "is not a whole number"
    assert quantity_fault("1k", whole=True) == "is not a whole number"


@pytest.mark.parametrize("key", ["a", "amd.com/gpu", "cloud.provider.com/topology-rack", "A_b.c"])
def test_keys(key: str) -> None:
    assert is_key(key)


@pytest.mark.parametrize("key", ["", "/a", "a/", "A.com/x", "a/b/c", "-a", "a b", "x" * 64, "é"])
def test_what_is_no_key(key: str) -> None:
    assert not is_key(key)
