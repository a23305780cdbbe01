"""TensorBoard's own reader sees one curve over all attempts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from primus.events.bus import Bus
from primus.events.sinks import SinkContext, open_sinks
from primus.events.types import EvalDone, RunStarted, StepDone

pytest.importorskip("tensorboard", reason="the tensorboard package is not in this environment")


def attempt(run: Path, number: int, *, first: int, last: int, resumed_from: int | None, loss: float) -> None:
    sinks = open_sinks(["tensorboard"], SinkContext(run, number, {}))
    with Bus(run / "attempts" / str(number), "rank0", sinks) as bus:
        bus.emit(
            RunStarted(
                name="r", attempt=number, world_size=1, device="cpu", parameters=1, steps=9, resumed_from=resumed_from
            )
        )
        for step in range(first, last + 1):
            bus.emit(
                StepDone(
                    step=step, loss=loss, grad_norm=0.5, lr=1e-3, tokens=100, seconds=0.5, memory_bytes=1 << 30,
                    mfu=0.25, auxiliary={"balance": 0.125},
                )
            )  # fmt: skip
        bus.emit(EvalDone(step=last, loss=loss + 1, tokens=1, seconds=0.1))


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_a_resumed_attempt_takes_the_place_of_what_it_repeats(tmp_path: Path) -> None:
    attempt(tmp_path, 1, first=1, last=8, resumed_from=None, loss=4.0)
    attempt(tmp_path, 2, first=6, last=9, resumed_from=5, loss=2.0)
    attempt(tmp_path, 10, first=8, last=9, resumed_from=7, loss=1.0)
    assert scalars(tmp_path, "train/loss") == [*((s, 4.0) for s in range(1, 6)), (6, 2.0), (7, 2.0), (8, 1.0), (9, 1.0)]
    assert scalars(tmp_path, "validation/loss") == [(9, 2.0)]
    assert scalars(tmp_path, "performance/tokens_per_second")[0] == (1, 200.0)
    assert scalars(tmp_path, "performance/memory_gib")[0] == (1, 1.0)
    assert scalars(tmp_path, "performance/model_flops_utilisation")[0] == (1, 0.25)
    assert scalars(tmp_path, "train/balance")[-1] == (9, 0.125)


def test_a_run_that_begins_again_from_nothing_keeps_one_curve(tmp_path: Path) -> None:
    attempt(tmp_path, 1, first=0, last=3, resumed_from=None, loss=4.0)
    attempt(tmp_path, 2, first=1, last=2, resumed_from=None, loss=2.0)
    assert scalars(tmp_path, "train/loss") == [(1, 2.0), (2, 2.0)]


def test_neither_tensorflow_nor_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from primus.events.sinks import SinkContext\n"
        "from primus.events.sinks.tensorboard import TensorBoardSink\n"
        "sink = TensorBoardSink(SinkContext(Path(sys.argv[1]), 1, {})); sink.close()\n"
        "print(sorted({'tensorflow', 'torch', 'numpy.fft'} & sys.modules.keys() - {'numpy.fft'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
