"""MaxText trains what the plain loop trains, on one device and on two, and goes on exactly where it was."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import reference
from gang import Case, Ran, run_gang
from tiny import QWEN2, QWEN3, make, make_dataset

from primus.checkpoints import store
from primus.plan.plan import Plan
from primus.runtime.environments import provide

TOLERANCE = 1e-5
"""Nats, in fp32: rounding of other kernels, summed over ten steps."""
UNTIED: dict[str, Any] = {"model": QWEN3 | {"tie_word_embeddings": False}}

SLOW = {"optimizer__lr": 2e-3}
"""At a high rate rounding grows from step to step."""

VALIDATION = {"data__validation": 0.05, "eval__interval": 5, "eval__steps": 2}
ONE: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"model": QWEN2},
    "qwen3": UNTIED,
    "accumulated": {"train__micro_batch_size": 2, **VALIDATION},
    "masked": {"masked": True},
    "validated": {"train__micro_batch_size": 8, **VALIDATION},
    "saved": {"checkpoint__interval": 5},
    "profiled": {"profile__steps": [3, 4]},
}
WITHIN = {"data__document_attention": "within", "train__seq_length": 128}
TWO: dict[str, dict[str, Any]] = {
    "shard": {"parallel__data_shard": 2},
    "tensor": {"parallel__tensor": 2, **UNTIED},
}


@pytest.fixture(scope="module")
def python() -> str:
    """Of MaxText's environment, which is made if it is not there."""
    return provide("jax")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("maxtext")


@pytest.fixture(scope="module")
def dataset(root: Path) -> Path:
    return make_dataset(root / "data" / "chain")


def plan_of(root: Path, name: str, dataset: Path, **options: Any) -> Plan:
    return make(root / name, dataset, backend="maxtext", **SLOW | options)


@pytest.fixture(scope="module")
def one(python: str, root: Path, dataset: Path) -> dict[str, Ran]:
    cases = [Case(name, plan_of(root, name, dataset, **options)) for name, options in ONE.items()]
    stopped = plan_of(root, "broken", dataset, checkpoint__interval=5)
    cases.append(Case("within", plan_of(root, "within", dataset, **WITHIN)))
    diverging = plan_of(root, "diverging", dataset, checkpoint__interval=1, optimizer__lr=1e30)
    elsewhere = plan_of(root, "elsewhere", dataset, hardware={"name": "H100", "device": "cuda"}, precision="bf16")
    full = Case(
        "full", plan_of(root, "full", dataset, checkpoint__interval=5, checkpoint__retries=0), file_limit=100_000
    )
    cases += [Case("diverging", diverging), Case("elsewhere", elsewhere), full]
    cases += [Case("broken", stopped, stop=(0, 7)), Case("resumed", stopped, attempt=2)]
    return run_gang(cases, 1, root / "one", python=python)


@pytest.fixture(scope="module")
def two(python: str, root: Path, dataset: Path, one: dict[str, Ran]) -> dict[str, Ran]:
    options = {"train__micro_batch_size": 2}
    cases = [Case(name, plan_of(root, name, dataset, nproc=2, **options, **more)) for name, more in TWO.items()]
    wider = plan_of(root, "wider", dataset, nproc=2, parallel__data_shard=2, train__micro_batch_size=2)
    copied = ("copy", str(root / "wider"), str(root / "stopped-at-five"))
    (root / "stopped-at-five").mkdir()
    (root / "stopped-at-five" / "checkpoints").mkdir()
    (root / "saved" / "checkpoints" / "step-5").rename(root / "stopped-at-five" / "checkpoints" / "step-5")
    cases.append(Case("wider", wider, before=(copied,)))
    return run_gang(cases, 1, root / "two", python=python)


def assert_same(found: dict[int, float], expected: dict[int, float]) -> None:
    assert found.keys() == expected.keys()
    assert max(abs(found[step] - expected[step]) for step in found) < TOLERANCE


@pytest.mark.parametrize("name", ONE)
def test_one_device_trains_what_the_plain_loop_does(name: str, one: dict[str, Ran], root: Path, dataset: Path) -> None:
    options = ONE[name]
    expected = reference.train(plan_of(root, f"reference-{name}", dataset, **options))
    ran = one[name].ended()
    assert_same(ran.losses, expected.losses)
    assert_same(ran.norms, expected.norms)


@pytest.mark.parametrize("name", TWO)
def test_two_devices_train_what_the_plain_loop_does(name: str, two: dict[str, Ran], root: Path, dataset: Path) -> None:
    model = {key: value for key, value in TWO[name].items() if key == "model"}
    expected = reference.train(plan_of(root, f"reference-{name}", dataset, **model))
    assert_same(two[name].ended().losses, expected.losses)


def test_attention_within_documents_is_that_of_another_engine(one: dict[str, Ran], root: Path, dataset: Path) -> None:
    other = Case("titan", make(root / "titan", dataset, backend="torchtitan", **SLOW, **WITHIN))
    expected = run_gang([other], 1, root / "other")["titan"].ended()
    assert_same(one["within"].ended().losses, expected.losses)


def test_a_stopped_run_goes_on_as_if_it_never_had(one: dict[str, Ran]) -> None:
    first, then = one["broken"].ended(), one["resumed"].ended()
    assert first.result == {"reason": "stopped", "step": 7}
    assert {**first.losses, **then.losses} == one["saved"].ended().losses
    assert min(then.losses) == 8


def test_it_goes_on_on_another_number_of_devices(one: dict[str, Ran], two: dict[str, Ran]) -> None:
    whole = one["saved"].ended().losses
    assert_same(two["wider"].ended().losses, {step: loss for step, loss in whole.items() if step > 5})


def test_validation_is_the_mean_over_the_split(one: dict[str, Ran]) -> None:
    found = one["validated"].ended().of("eval_done")
    assert [event["step"] for event in found] == [0, 5, 10]
    assert found[-1]["loss"] < found[0]["loss"]
    in_parts = one["accumulated"].ended().of("eval_done")
    assert [event["tokens"] for event in in_parts] == [event["tokens"] for event in found] == [2 * 8 * 64] * 3
    assert [event["loss"] for event in in_parts] == pytest.approx([event["loss"] for event in found], abs=TOLERANCE)


def test_a_trace_is_written(one: dict[str, Ran], root: Path) -> None:
    (notice,) = one["profiled"].ended().of("notice")
    (path,) = (root / "profiled" / "attempts" / "1" / "profile").iterdir()
    assert path.name == "rank-0-steps-3-4.json.gz"
    assert str(path) in notice["message"]
    names = {event.get("name", "") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}
    assert any("train_step" in name for name in names)


def test_a_loss_that_is_not_finite_ends_the_run(one: dict[str, Ran], root: Path) -> None:
    """Its step is not saved, though MaxText has made it."""
    (error,) = one["diverging"].errors
    assert "AnomalyError" in error
    assert "what it made is not saved" in error
    failed = max(one["diverging"].losses) + 1
    assert f"step {failed}: " in error
    assert max(info.step for info in store.complete(root / "diverging")) < failed


def test_devices_that_are_not_the_planned_ones_are_refused(one: dict[str, Ran]) -> None:
    """JAX itself would go on on the CPU."""
    (error,) = one["elsewhere"].errors
    assert "the plan is for H100 (cuda), but JAX runs on cpu here" in error


def test_a_full_disk_is_said_and_leaves_nothing(one: dict[str, Ran], root: Path) -> None:
    (error,) = one["full"].errors
    assert "the checkpoint of step 10 was not saved: rank 0: File too large (free the space" in error
    first, last = (event["message"] for event in one["full"].of("notice"))
    assert first == "the checkpoint of step 5 was not saved: rank 0: File too large; the last complete one is kept"
    assert "step 10" in last
    assert list(one["full"].losses) == list(range(1, 11)), "training went on"
    assert not list((root / "full" / "checkpoints").iterdir())
