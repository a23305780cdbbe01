"""A backend from outside, found by entry point: it counts steps and saves the count. What a run does around its engine
(starting, stopping, failing, continuing) is tried with it in seconds; engines themselves are tried elsewhere.

Environment variables of the ranks: COUNTING_STEP_SECONDS, COUNTING_SAVE_SECONDS; COUNTING_COUPLED, with which every
rank waits at every step for all others, for ever if one is gone, as in a collective; and COUNTING_FAULT, as
``KIND:RANK:STEP``, which happens once a run directory unless KIND ends in ``!``. COUNTING_LATE_SECONDS: ranks of
``counting_torchrun`` make torch's process group, rank 0 that much after the others.
"""

from __future__ import annotations

import atexit
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Literal

from primus.backends.base import Capabilities, NativeConfig, NativeSchema, Result, Session
from primus.checkpoints import store
from primus.config.experiment import Experiment
from primus.errors import AnomalyError, DataError
from primus.events.types import CheckpointSaved, RunStarted, StepDone
from primus.plan.plan import Patch, Plan, PlannedData, Topology


class CountingBackend:
    name = "counting"
    environment = "launcher"
    processes: Literal["torchrun", "plain"] = "plain"

    def capabilities(self) -> Capabilities:
        return Capabilities(
            workflows=frozenset({"pretrain"}),
            model_types=frozenset({"llama"}),
            parallel_axes=frozenset({"data_shard", "data_replicate"}),
            precisions={"cpu": frozenset({"fp32"})},
        )

    def native_schema(self) -> NativeSchema:
        return NativeSchema(engine={}, keys={})

    def plan(
        self, experiment: Experiment, topology: Topology, data: PlannedData
    ) -> tuple[NativeConfig, dict[str, str], tuple[Patch, ...]]:
        return {"steps": experiment.train.steps}, {}, ()

    def run(self, plan: Plan, session: Session) -> Result:
        newest, _ = store.newest_intact(session.run_directory)
        step = newest.step if newest else 0
        _meet(session)
        if session.rank == 0:
            session.emit(_started(plan, session, newest.step if newest else None))
        interval = plan.experiment.checkpoint.interval or plan.native["steps"]
        while step < plan.native["steps"]:
            if (early := _fault(session, step + 1)) is not None:
                return Result(early, step)
            time.sleep(float(os.environ.get("COUNTING_STEP_SECONDS", "0.01")))
            step += 1
            stopping = _together(session, step) if os.environ.get("COUNTING_COUPLED") else session.stop_requested()
            session.finished(step)
            if session.rank == 0:
                session.emit(_done(step))
            if session.rank == 0 and (stopping or step % interval == 0 or step == plan.native["steps"]):
                session.emit(_save(plan, session.run_directory, step))
            if stopping:
                return Result("stopped", step)
        return Result("complete", step)


class CountingOnTorchrun(CountingBackend):
    name = "counting_torchrun"
    environment = "torch"
    processes: Literal["torchrun", "plain"] = "torchrun"

    def run(self, plan: Plan, session: Session) -> Result:
        if late := os.environ.get("COUNTING_LATE_SECONDS"):
            import torch.distributed as dist

            time.sleep(0.0 if session.rank else float(late))
            dist.init_process_group("gloo", timeout=timedelta(seconds=20))
        return super().run(plan, session)


def _meet(session: Session) -> None:
    """Wait until every rank of this start has called it as often."""
    start = f"met-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    files = [session.attempt_directory / f"{start}-{rank}" for rank in range(session.world_size)]
    with files[session.rank].open("a") as mine:
        mine.write(".")
    while not all(path.exists() and path.stat().st_size >= files[session.rank].stat().st_size for path in files):
        time.sleep(0.002)


def _together(session: Session, step: int) -> bool:
    """Make a step with all ranks. Returns whether any was asked to stop, the same in all of them."""
    mark = session.attempt_directory / f"stop-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    if session.stop_requested() and not mark.exists():
        fresh = mark.with_name(f"{mark.name}-{session.rank}")
        fresh.write_text(str(step))
        fresh.replace(mark)
    _meet(session)
    return mark.exists() and int(mark.read_text()) <= step


def _started(plan: Plan, session: Session, resumed: int | None) -> RunStarted:
    return RunStarted(
        name=plan.experiment.name,
        attempt=session.attempt,
        world_size=session.world_size,
        device="cpu",
        parameters=1,
        steps=plan.native["steps"],
        resumed_from=resumed,
    )


def _done(step: int) -> StepDone:
    return StepDone(step=step, loss=1 / step, grad_norm=1.0, lr=1e-3, tokens=1, seconds=0.01, memory_bytes=1)


def _save(plan: Plan, run_directory: Path, step: int) -> CheckpointSaved:
    began = time.monotonic()
    directory = store.begin(run_directory, step)
    (directory / "count").write_text(str(step))
    time.sleep(float(os.environ.get("COUNTING_SAVE_SECONDS", "0")))
    store.seal(directory, step=step, consumed_samples=step, model=plan.experiment.model.model_dump(mode="json"))
    took = time.monotonic() - began
    return CheckpointSaved(step=step, path=str(directory), bytes=1, seconds=took, blocked_seconds=took)


class _Fragile:
    """Ends its process with SIGABRT when Python takes itself apart, as threads of an engine may."""

    def __del__(self, abort: Callable[[], None] = os.abort) -> None:
        abort()


_fragile: list[_Fragile] = []


def _stopped_late(directory: Path) -> None:
    """When everything is done, somebody wants the process to stop."""
    os.kill(os.getpid(), signal.SIGINT)
    (directory / "stopped-late").touch()


def _fault(session: Session, step: int) -> Literal["complete", "stopped"] | None:
    """Let it happen. Returns what the engine shall say, if it is one that gives up in silence."""
    kind, _, where = os.environ.get("COUNTING_FAULT", "").partition(":")
    if where != f"{session.rank}:{step}":
        return None
    mark = session.run_directory / "fault-happened"
    if not kind.endswith("!") and mark.exists():
        return None
    mark.touch()
    kind = kind.rstrip("!")
    if kind == "raise":
        raise OSError("the network went away")
    if kind == "nan":
        raise AnomalyError("the loss is NaN", where=f"step {step}", remedy="lower optimizer.lr")
    if kind == "data":
        raise DataError("the dataset is truncated", where="data.bin", remedy="prepare it again")
    if kind == "exit":
        os._exit(3)
    if kind in ("complete", "stopped"):
        return kind  # type: ignore[return-value]
    if kind == "memory":
        held = [b"x" * (1 << 26) for _ in range(32)]  # 2 GiB
        return None if held else "stopped"
    if kind == "hang":
        time.sleep(3600)
    if kind == "late":
        _fragile.append(_Fragile())
        atexit.register(_stopped_late, session.run_directory)
        return None
    os.kill(os.getpid(), signal.Signals[kind])
    time.sleep(60)
    return None
