"""The snapshot of MaxText's keys is fresh, whole, and leads to keys that exist."""

from __future__ import annotations

import json
import os
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
from gang import SOURCES
from tiny import LLAMA

from primus.backends.maxtext import MaxTextBackend, generate_schema
from primus.config.keys import keys
from primus.config.load import load
from primus.errors import ConfigError, Problem
from primus.runtime.environments import provide

LOOK = """
import json
from primus.backends.maxtext import generate_schema as generating
fields = {name: group for name, (group, _) in generating.fields().items()}
print(json.dumps([generating.text() == generating.SNAPSHOT.read_text(encoding="utf-8"), fields]))
"""

EXPERIMENT = {
    "name": "tiny",
    "backend": "maxtext",
    "hardware": {"name": "cpu", "device": "cpu"},
    "model": LLAMA,
    "data": {"train": "synthetic"},
    "train": {"steps": 2, "global_batch_size": 2, "seq_length": 16},
    "optimizer": {"lr": 1.0e-3},
}


@pytest.fixture(scope="module")
def looked() -> tuple[bool, dict[str, str]]:
    """Whether the snapshot is what would be written, and every field of MaxText's configuration with its class."""
    env = {**os.environ, "PYTHONPATH": str(SOURCES), "DECOUPLE_GCLOUD": "TRUE", "JAX_PLATFORMS": "cpu"}
    command = [provide("jax"), "-c", LOOK]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    fresh, fields = json.loads(done.stdout.splitlines()[-1])
    return fresh, fields


def test_the_snapshot_is_fresh(looked: tuple[bool, dict[str, str]]) -> None:
    assert looked[0], "run `python -m primus.backends.maxtext.generate_schema` in the jax environment"


def test_every_field_is_kept_portable_or_left_out_for_one_reason(looked: tuple[bool, dict[str, str]]) -> None:
    wrong = {
        name: found for name, group in looked[1].items() if len(found := generate_schema.verdicts(name, group)) != 1
    }
    assert not wrong


def test_no_word_is_left_over(looked: tuple[bool, dict[str, str]]) -> None:
    """Every word of the tables stands for a field, a class of fields, or fields of a pattern, and stands there once."""
    fields = looked[1]
    words = [word for _, word in generate_schema.words()]
    assert len(words) == len(set(words))
    assert not [
        word for word in words if word not in fields.values() and not any(fnmatch(name, word) for name in fields)
    ]


def test_portable_keys_exist() -> None:
    assert not generate_schema.PORTABLE.keys() - keys().keys()
    for name, key in MaxTextBackend().native_schema().keys.items():
        assert key.portable is None or key.portable in keys(), f"{name} points at {key.portable}"


def test_nothing_is_both_kept_and_left_out() -> None:
    omitted = {word for listed in generate_schema.OMITTED.values() for word in listed.split()}
    assert not omitted & MaxTextBackend().native_schema().keys.keys()


def test_keys_carry_what_a_reader_needs() -> None:
    found = MaxTextBackend().native_schema()
    assert found.engine == {"maxtext": "0.2.5", "jax": "0.11.1"}
    assert found.keys["steps"].portable == "train.steps"
    assert found.keys["base_emb_dim"].portable == "model.hidden_size"
    assert found.keys["attention"].choices == ("dot_product", "flash", "autoselected")
    assert found.keys["attention"].default == "dot_product"
    assert found.keys["context"].choices == ("remat", "device", "offload")
    assert found.keys["jax_cache_dir"].type == "str | null"
    assert all(key.description for key in found.keys.values())


@pytest.mark.parametrize(
    ("given", "what", "remedy"),
    [
        ("maxtext.remat_polici=full", "unknown key 'remat_polici' in maxtext", "did you mean remat_policy?"),
        ("maxtext.foo=3", "unknown key 'foo' in maxtext", "known here: activations_in_float32, attention"),
        ("maxtext.enable_goodput_recording=true", "cannot be set: what is measured and written is Primus's", "remove"),
        ("maxtext.attention=flesh", "maxtext.attention must be one of dot_product, flash", "did you mean flash?"),
        ("maxtext.num_vocab_tiling=two", "maxtext.num_vocab_tiling must be a whole number", ""),
        ("maxtext.learning_rate=1e-3", "is set by the portable key optimizer.lr", "set optimizer.lr and remove this"),
    ],
)
def test_wrong_keys_are_refused(tmp_path: Path, given: str, what: str, remedy: str) -> None:
    problem = _refused(tmp_path, given)
    assert what in problem.message
    assert remedy in problem.remedy


def test_a_key_that_is_kept_reaches_the_experiment(tmp_path: Path) -> None:
    assert load(_file(tmp_path), overrides=["maxtext.context=device"]).experiment.native == {
        "maxtext": {"context": "device"}
    }


def _refused(directory: Path, given: str) -> Problem:
    with pytest.raises(ConfigError) as caught:
        load(_file(directory), overrides=[given])
    (problem,) = caught.value.problems
    return problem


def _file(directory: Path) -> Path:
    path = directory / "experiment.yaml"
    path.write_text(json.dumps(EXPERIMENT), encoding="utf-8")
    return path
