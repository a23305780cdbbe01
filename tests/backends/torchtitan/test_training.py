"""What a run measures and reports, on one process and on several."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
from gang import Ran

TOLERANCE = 1e-5


def test_every_step_is_reported(one: dict[str, Ran]) -> None:
    whole = one["whole"].ended()
    done = whole.of("step_done")
    assert [event["step"] for event in done] == list(range(1, 9))
    assert all(event["tokens"] == 8 * 64 for event in done)
    assert all(event["seconds"] > 0 and event["memory_bytes"] > 100e6 for event in done)
    assert all(event["mfu"] is None for event in done), "no peak is known of a CPU"
    assert done[0]["lr"] < done[1]["lr"], "warm-up"
    assert done[-1]["lr"] < done[2]["lr"], "decay"
    (started,) = whole.of("run_started")
    assert started["world_size"] == 1
    assert started["steps"] == 8
    assert started["notes"][0].startswith("5 declared patches of TorchTitan apply")


def test_loss_starts_at_that_of_chance_and_falls(one: dict[str, Ran]) -> None:
    evaluations = one["whole"].of("eval_done")
    assert [event["step"] for event in evaluations] == [0, 4, 8]
    assert evaluations[0]["loss"] == pytest.approx(math.log(256), abs=0.25)
    assert evaluations[-1]["loss"] < evaluations[0]["loss"] - 0.2
    assert all(event["tokens"] == 2 * 8 * 64 for event in evaluations)


@pytest.mark.parametrize("name", ["shard", "tensor", "tensor-chunked", "pipeline"])
def test_evaluation_is_the_same_in_every_layout(one: dict[str, Ran], two: dict[str, Ran], name: str) -> None:
    expected = {event["step"]: event["loss"] for event in one["whole"].of("eval_done")}
    found = two[name].ended().of("eval_done")
    expected = {step: expected[step] for step in expected if step <= max(two[name].losses)}
    assert {event["step"]: event["loss"] for event in found} == pytest.approx(expected, abs=TOLERANCE, rel=0)
    assert all(event["tokens"] == 2 * 8 * 64 for event in found)


def test_replicas_of_shards(one: dict[str, Ran], four: dict[str, Ran]) -> None:
    ran = four["hybrid"].ended()
    assert ran.losses == pytest.approx({step: one["whole"].losses[step] for step in (1, 2, 3)}, abs=TOLERANCE, rel=0)
    assert ran.of("run_started")[0]["world_size"] == 4


def test_experts_in_parallel(one: dict[str, Ran], two: dict[str, Ran]) -> None:
    assert two["experts"].ended().losses == pytest.approx(one["deepseek"].ended().losses, abs=TOLERANCE, rel=0)


@pytest.mark.parametrize("name", ["bf16", "shard-bf16"])
def test_bf16_is_honoured(one: dict[str, Ran], two: dict[str, Ran], name: str) -> None:
    full = one["whole"].losses
    half = {**one, **two}[name].ended().losses
    assert half != full
    assert half == pytest.approx(full, abs=0.05, rel=0)


@pytest.mark.parametrize("name", ["fp8", "shard-fp8"])
def test_emulated_fp8_is_honoured(one: dict[str, Ran], two: dict[str, Ran], name: str) -> None:
    eighth = {**one, **two}[name].ended().losses
    assert eighth != one["bf16"].losses
    assert eighth == pytest.approx(one["whole"].losses, abs=0.1, rel=0)


@pytest.mark.parametrize("name", ["compiled", "inductor"])
def test_compiled_layers_compute_the_same(one: dict[str, Ran], name: str) -> None:
    if name not in one:
        pytest.skip("inductor needs a C++ compiler, and there is none")
    full = one["whole"].losses
    assert one[name].ended().losses == pytest.approx({step: full[step] for step in (1, 2, 3)}, abs=TOLERANCE, rel=0)


def test_the_native_start_differs(one: dict[str, Ran]) -> None:
    assert one["native-start"].ended().losses[1] != one["whole"].losses[1]


def test_attention_within_documents_differs(one: dict[str, Ran]) -> None:
    within, full = one["documents"].ended().losses, one["whole"].losses
    assert within == pytest.approx(full, abs=0.05)
    assert within != full


def test_chosen_steps_are_traced(root: Path, one: dict[str, Ran]) -> None:
    (notice,) = one["profiled"].ended().of("notice")
    path = root / "profiled/attempts/1/profile/rank-0-steps-2-3.json.gz"
    assert str(path) in notice["message"]
    with gzip.open(path) as file:
        names = {event.get("name", "") for event in json.load(file)["traceEvents"]}
    assert "aten::mm" in names or "aten::linear" in names
