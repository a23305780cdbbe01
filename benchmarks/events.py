"""What events cost a training step, a dead sink included, and how long reading a run back takes.

python benchmarks/events.py [--steps 1000000]

CPU seconds. Steps without a sink and with one that never returns are made in turns, 120 blocks of 100 each;
the figures are medians of steps of about a millisecond.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from primus.events.bus import Bus
from primus.events.history import read_run
from primus.events.jsonl import decode, encode, file_of, read_lines
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


def emit_all(directory: Path, count: int) -> tuple[float, int]:
    """CPU seconds for `count` events one after the other, and how many of them are in the file."""
    with Bus(directory, "rank0") as bus:
        began = time.process_time()
        for number in range(count):
            bus.emit(step(number))
        seconds = time.process_time() - began
    return seconds, sum(1 for line in read_lines(file_of(directory, "rank0")) if decode(line))


class Dead:
    """A sink whose server has gone away: the first record never gets through."""

    def handle(self, record: dict[str, Any]) -> None:
        threading.Event().wait()

    def close(self) -> None: ...


def work() -> None:
    sum(range(40_000))


def steps_with(bus: Bus, count: int) -> list[float]:
    times = []
    for number in range(count):
        event = step(number)
        began = time.perf_counter()
        work()
        bus.emit(event)
        times.append(time.perf_counter() - began)
    return times


def dead_sink(root: Path, blocks: int = 120, count: int = 100) -> tuple[float, float, float]:
    """Median seconds of a step without a sink, what a dead one adds, and how far the medians of two buses without one
    lie apart: less cannot be measured. The sink's queue is full after 100 of the blocks."""
    buses = [Bus(root / "one", "rank0"), Bus(root / "dead", "rank0", [("dead", Dead)]), Bus(root / "two", "rank0")]
    times: list[list[float]] = [[], [], []]
    for block in range(blocks):
        for turn in range(3):
            which = (block + turn) % 3
            times[which] += steps_with(buses[which], count)
    for bus in buses:
        bus.close(timeout=0.1)
    one, dead, two = map(statistics.median, times)
    return (one + two) / 2, dead - (one + two) / 2, abs(one - two)


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
        seconds, kept = emit_all(root / "all", steps)
        goal = "20 s" if steps == 1_000_000 else ""
        rows.append((f"{steps:,} events, {steps - kept} lost", f"{seconds:.2f} s", goal))
        alone, added, apart = dead_sink(root)
        rows.append(("step without a sink", f"{alone * 1e6:.1f} us", ""))
        rows.append(("  a dead sink adds", f"{added * 1e6:+.1f} us", ""))
        rows.append(("  two without one differ by", f"{apart * 1e6:.1f} us", ""))
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
