"""What events cost a training step, and how long reading a run back takes.

python benchmarks/events.py [--steps 1000000]
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from primus.events.bus import Bus
from primus.events.history import read_run
from primus.events.jsonl import encode, file_of
from primus.events.report import write_report
from primus.events.sinks import Sink, SinkContext, open_sinks
from primus.events.types import StepDone


def step(number: int) -> StepDone:
    loss = 2 + 8 / math.sqrt(number + 1)
    return StepDone(
        step=number,
        loss=loss,
        grad_norm=loss / 7,
        lr=3e-4 / (number + 1),
        tokens=4096,
        seconds=0.1234567,
        memory_bytes=1 << 33,
    )


def emit(directory: Path, sinks: list[tuple[str, Callable[[], Sink]]]) -> float:
    """Median seconds of one emit, at 2000 steps a second."""
    times = []
    with Bus(directory, "rank0", sinks) as bus:
        for number in range(4000):
            event = step(number)
            began = time.perf_counter()
            bus.emit(event)
            times.append(time.perf_counter() - began)
            time.sleep(0.0005)
    return statistics.median(times)


def write_run(run: Path, steps: int) -> Path:
    path = file_of(run / "attempts" / "1", "rank0")
    path.parent.mkdir(parents=True)
    with path.open("wb") as stream:
        for number in range(1, steps + 1):
            stream.write(
                encode({"event": "step_done", "time": 1e9 + number, "writer": "rank0", **step(number).__dict__})
            )
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        alone = emit(root / "a", [])
        board = emit(root / "b", open_sinks(["tensorboard"], SinkContext(root, 1, {})))
        rows = [
            ("emit, JSONL", f"{alone * 1e6:.1f} us", "30 us"),
            ("emit, with TensorBoard", f"{board * 1e6:.1f} us", "30 us"),
        ]
        for count in sorted({100_000, steps}):
            run = write_run(root / f"run{count}", count)
            began = time.process_time()
            history = read_run(run)
            read = time.process_time() - began
            page = write_report(run, history=history)
            both = time.process_time() - began
            rows.append((f"read {count:,} steps", f"{read:.2f} s", "1.5 s" if count == 100_000 else ""))
            size = f"{page.stat().st_size / 1e6:.2f} MB"
            rows.append(
                (f"read and report {count:,} steps", f"{both:.2f} s, {size}", "5 s, 2 MB" if count == 1_000_000 else "")
            )
    for name, value, goal in [("", "CPU time", "at most"), *rows]:
        print(f"{name:<32} {value:>18} {goal:>10}")


if __name__ == "__main__":
    main()
