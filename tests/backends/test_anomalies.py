"""A batch that makes a NaN is left out, by every engine and in every layout, and the run goes on as the plain loop that
never saw it."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import Any

import pytest
import reference
from anomalous import BAD, BATCH, STEPS, Anomalous
from gang import Case, Ran, run_gang
from tiny import DEEPSEEK_V3, LLAMA

from primus.checkpoints import skipped, store
from primus.runtime.environments import provide
from primus.runtime.exchange.exchanges import Exchanges
from primus.runtime.exchange.moving import move

TOLERANCE = 1e-5
SKIP, BACK = ({"resilience__anomaly": policy} for policy in ("skip_step", "rollback"))
SHARD = {"parallel__data_shard": 2}
OVERLAPPED = SHARD | {"megatron__ddp__overlap_grad_reduce": True, "megatron__ddp__overlap_param_gather": True}
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "titan-skip": ("torchtitan", 1, SKIP),
    "titan-back": ("torchtitan", 1, BACK),
    "titan-shard-skip": ("torchtitan", 2, SKIP | SHARD),
    "titan-pipeline-back": ("torchtitan", 2, BACK | {"parallel__pipeline": 2}),
    "megatron-skip": ("megatron", 1, SKIP),
    "megatron-tensor-back": ("megatron", 2, BACK | {"parallel__tensor": 2}),
    "megatron-overlapped-skip": ("megatron", 2, SKIP | OVERLAPPED),
    "megatron-overlapped-back": ("megatron", 2, BACK | OVERLAPPED),
    "maxtext-skip": ("maxtext", 1, SKIP),
    "maxtext-back": ("maxtext", 1, BACK),
}
"""Name -> engine, processes, options."""
CONTINUED: dict[str, dict[str, Any]] = {
    "titan-back": {"nproc": 2, **SHARD},
    "megatron-tensor-back": {"nproc": 2, **SHARD},
    "maxtext-back": {"nproc": 1},
}
"""Runs that another one continues, and how. Their disk is full when they save first."""
FULL: dict[str, Any] = {"file_limit": 100_000, "relieved": True}
BALANCED: dict[str, tuple[str, dict[str, Any]]] = {
    "titan-balanced-skip": ("torchtitan", SKIP),
    "megatron-balanced-skip": ("megatron", SKIP),
    "megatron-balanced-back": ("megatron", BACK),
}
"""Engines whose experts' biases move with what was made of a batch."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Anomalous:
    return Anomalous(tmp_path_factory.mktemp("anomalous"), LLAMA)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Anomalous:
    return Anomalous(tmp_path_factory.mktemp("mixture"), DEEPSEEK_V3, moe__balance="bias")


@pytest.fixture(scope="module")
def expected(llama: Anomalous) -> reference.Trained:
    return llama.expected()


@pytest.fixture(scope="module")
def ran(llama: Anomalous, mixture: Anomalous, exchanges: Exchanges) -> dict[str, Ran]:
    found: dict[str, Ran] = {}
    for engine in ("torchtitan", "megatron", "maxtext"):
        for world in (1, 2):
            cases = [
                Case(
                    name, llama.plan(name, backend=engine, nproc=world, **options), **FULL if name in CONTINUED else {}
                )
                for name, (of, processes, options) in CASES.items()
                if (of, processes) == (engine, world)
            ]
            cases += [
                _continued(llama, name, backend=engine, **options)
                for name, options in CONTINUED.items()
                if CASES[name][0] == engine and options["nproc"] == world
            ]
            if world == 1:
                cases += [
                    Case(name, mixture.plan(name, backend=engine, **options))
                    for name, (of, options) in BALANCED.items()
                    if of == engine
                ]
            if (engine, world) == ("megatron", 1):
                cases.append(_moved(llama, exchanges))
            python = {"python": provide("jax")} if engine == "maxtext" else {}
            if cases:
                found |= run_gang(cases, world, llama.root / f"gang-{engine}-{world}", **python)
    return found


def _continued(llama: Anomalous, source: str, **options: Any) -> Case:
    """From the checkpoint before the batch, the only whole one, by a run that would stop at the batch."""
    name = f"{source}-continued"
    folder = llama.root / name / "checkpoints"
    before = (
        ("copy", str(llama.root / name), str(llama.root / source)),
        ("lose", str(folder / "step-8")),
        ("empty", str(folder / "step-7")),
        ("halve", str(folder / "step-6" / "manifest.json")),
    )
    return Case(name, llama.plan(name, **options), before=before)


def _moved(llama: Anomalous, exchanges: Exchanges) -> Case:
    """TorchTitan's run before the batch, moved to another engine."""
    run = llama.root / "moved"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copytree(llama.root / "titan-back" / "checkpoints" / "step-3", run / "checkpoints" / "step-3")
    shutil.copy(llama.root / "titan-back" / skipped.FILE, run)
    (info,) = store.complete(run)
    move(exchanges, run, info, "megatron", lambda _: lambda done, total: None)
    return Case("moved", llama.plan("moved", backend="megatron"))


@pytest.mark.parametrize("name", CASES)
def test_the_curve_is_that_of_a_run_without_the_batch(
    name: str, ran: dict[str, Ran], expected: reference.Trained
) -> None:
    found = ran[name].ended()
    assert list(found.losses) == list(range(1, STEPS + 1))
    assert found.losses == pytest.approx(expected.losses, abs=TOLERANCE, rel=0)
    assert found.norms == pytest.approx(expected.norms, rel=1e-4)


def test_biases_of_experts_are_those_of_a_run_without_the_batch(ran: dict[str, Ran], mixture: Anomalous) -> None:
    expected = mixture.expected().losses
    for name in BALANCED:
        assert ran[name].ended().losses == pytest.approx(expected, abs=TOLERANCE, rel=0), name


def test_both_ways_are_bitwise_the_same(ran: dict[str, Ran]) -> None:
    for engine in ("titan", "maxtext"):
        assert ran[f"{engine}-skip"].losses == ran[f"{engine}-back"].losses


@pytest.mark.parametrize("name", CASES)
def test_what_was_left_out_is_said_and_counted(name: str, ran: dict[str, Ran], llama: Anomalous) -> None:
    policy = CASES[name][2]["resilience__anomaly"]
    (entry,) = skipped.read(llama.root / name)
    assert "nan" in entry.reason
    assert asdict(entry) | {"reason": ""} == {
        "first": BAD * BATCH,
        "count": BATCH,
        "step": BAD + 1,
        "policy": policy,
        "reason": "",
        "attempt": 1,
        "returned_to": 3 if policy == "rollback" else None,
    }
    starts, notices = ran[name].of("run_started"), [event["message"] for event in ran[name].of("notice")]
    if policy == "rollback":
        assert [start["resumed_from"] for start in starts] == [None, 3]
        assert starts[1]["notes"][0].startswith("back from step 5: the loss is nan")
        assert notices[-1] == "samples 32 to 39 are left out, as skipped.json says"
        assert len(notices) == 1 + (name in CONTINUED)
    else:
        assert len(starts) == 1
        assert notices == [f"{entry.reason}; samples 32 to 39 are left out, nothing was updated with them"]
    consumed = {info.step: info.consumed_samples for info in store.complete(llama.root / name)}
    assert consumed == {3: 24, 6: 56, 8: 72}


@pytest.mark.parametrize("name", CONTINUED)
def test_a_save_on_a_full_disk_is_made_when_there_is_room(name: str, ran: dict[str, Ran]) -> None:
    first = ran[name].of("notice")[0]
    assert first["step"] == 3
    assert first["message"] == (
        "the checkpoint of step 3 cannot be written: rank 0: File too large; trying again in 1 s"
    )
    assert [event["step"] for event in ran[name].of("checkpoint_saved")] == [3, 6, 8]


@pytest.mark.parametrize("name", CONTINUED)
def test_a_run_that_continues_leaves_out_the_same(name: str, ran: dict[str, Ran], expected: reference.Trained) -> None:
    """It passes over checkpoints that are not whole."""
    found = ran[f"{name}-continued"].ended()
    assert [start["resumed_from"] for start in found.of("run_started")] == [3]
    assert found.losses == pytest.approx({step: expected.losses[step] for step in range(4, 9)}, abs=TOLERANCE, rel=0)
    *damage, aside, last = [event["message"] for event in found.of("notice")]
    assert [message.partition(" is damaged")[0] for message in damage] == [
        f"the checkpoint of step {step}" for step in (8, 6)
    ]
    assert "the file is missing" in damage[0]
    assert "manifest" in damage[1]
    assert "set aside" in aside
    assert last == "samples 32 to 39 are left out, as skipped.json says"


def test_another_engine_that_goes_on_leaves_out_the_same(ran: dict[str, Ran], expected: reference.Trained) -> None:
    found = ran["moved"].ended()
    assert [start["resumed_from"] for start in found.of("run_started")] == [3]
    assert found.losses == pytest.approx({step: expected.losses[step] for step in range(4, 9)}, abs=TOLERANCE, rel=0)
