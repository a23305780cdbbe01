"""Sinks: where events go besides the JSONL file.

A sink is any object with two methods::

    class MySink:
        def handle(self, record: dict[str, Any]) -> None: ...   # one event: {"event": kind, "time": ..., fields}
        def close(self) -> None: ...                            # flush; called once, after the last record

The kinds and fields of records are those of ``primus.events.types``. A package offers a sink by an entry point in group
``primus.sinks`` whose value is a factory, ``factory(context: SinkContext) -> Sink``; ``monitor.sinks: [NAME]`` turns it
on. Sinks run in the worker process of rank 0, each (import and factory included) on a thread of its own behind a
bounded queue: a slow sink loses records (counted, reported when the run ends) but never delays a step. A sink that
raises is turned off with a Notice. After a resume, steps that an earlier attempt had already reported come again; the
``run_started`` record's ``resumed_from`` says after which step.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol

from primus.errors import EnvironmentFault, Problem

GROUP = "primus.sinks"
BUILT_IN = {"tensorboard": "primus.events.sinks.tensorboard:TensorBoardSink"}
QUEUE_RECORDS = 10_000
POLL_SECONDS = 0.2


class Sink(Protocol):
    def handle(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class SinkContext:
    """What a sink may want to know. experiment: the resolved experiment as plain JSON values."""

    run_directory: Path
    attempt: int
    experiment: dict[str, Any]

    @property
    def name(self) -> str:
        return self.run_directory.name


def open_sinks(names: Sequence[str], context: SinkContext) -> list[tuple[str, Callable[[], Sink]]]:
    """What a Bus needs to start the sinks called `names`. Raises EnvironmentFault for one that is not installed."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    points |= {name: EntryPoint(name, value, GROUP) for name, value in BUILT_IN.items()}
    problems = [
        Problem(
            "monitor.sinks", f"there is no sink '{name}' in this environment", f"installed: {', '.join(sorted(points))}"
        )
        for name in names
        if name not in points
    ]
    if problems:
        raise EnvironmentFault(problems=problems)
    return [(name, partial(_make, points[name], context)) for name in names]


def _make(point: EntryPoint, context: SinkContext) -> Sink:
    sink: Sink = point.load()(context)
    return sink


class BackgroundSink:
    """Runs one sink on its own thread. notice: takes the one line a person should read.

    The thread looks for records a few times a second rather than being woken by each: ``put`` then costs an append.
    """

    def __init__(
        self, name: str, factory: Callable[[], Sink], notice: Callable[[str], None], size: int = QUEUE_RECORDS
    ) -> None:
        self.name = name
        self.dropped = 0
        self._factory = factory
        self._notice = notice
        self._size = size
        self._waiting: deque[dict[str, Any]] = deque()
        self._failed = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"sink-{name}", daemon=True)
        self._thread.start()

    def put(self, record: dict[str, Any]) -> None:
        """Never waits: beyond `size` waiting records it drops this one and counts it."""
        if self._failed:
            return
        if len(self._waiting) < self._size:
            self._waiting.append(record)
        else:
            self.dropped += 1

    def _work(self) -> None:
        try:
            sink = self._factory()
            last = False
            while not last:
                last = self._closing.wait(POLL_SECONDS)  # read before draining: nothing is put after closing
                while self._waiting:
                    sink.handle(self._waiting.popleft())
            sink.close()
        except Exception as error:  # noqa: BLE001 - a plugin's fault must not end the training
            self._failed = True
            self._waiting.clear()
            self._notice(f"the sink '{self.name}' failed and is off: {type(error).__name__}: {error}")

    def close(self, timeout: float) -> None:
        """Wait until the sink has taken everything, at most `timeout` seconds; report what it did not get."""
        self._closing.set()
        self._thread.join(timeout)
        missing = self.dropped + len(self._waiting)
        if self._thread.is_alive():
            self._failed = True
            self._notice(f"the sink '{self.name}' did not finish in {timeout:g} s; {missing} records are missing there")
        elif self.dropped:
            self._notice(f"the sink '{self.name}' was too slow: {missing} records are missing there")
