"""Where a process reports: each event goes to its JSONL file at once, and to the sinks in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from primus.events.jsonl import JsonlWriter, Record, file_of
from primus.events.sinks import BackgroundSink, Sink
from primus.events.types import Event, Notice


class Bus:
    """Events of one process.

    writer: unique in the attempt, e.g. ``rank0`` or ``launcher``; names the file. sinks: from ``open_sinks``. ``emit``
    may be called from any thread, not from a signal handler. The JSONL record is in the kernel when ``emit`` returns,
    so it outlives SIGKILL; sinks never hold up the caller. Raises RunDirectoryError as described at JsonlWriter.
    """

    def __init__(
        self, attempt_directory: Path, writer: str, sinks: Sequence[tuple[str, Callable[[], Sink]]] = ()
    ) -> None:
        self.writer = writer
        self._lock = threading.Lock()
        self._file = JsonlWriter(file_of(attempt_directory, writer))
        self._closed = False
        self._sinks = [BackgroundSink(name, factory, self._notice) for name, factory in sinks]

    def emit(self, event: Event) -> None:
        record: Record = {"event": event.kind, "time": time.time(), "writer": self.writer, **event.__dict__}
        with self._lock:
            unwritable = self._file.write(record)
        for sink in self._sinks:
            sink.put(record)
        if unwritable is not None:
            self._notice(
                f"the event file could not be written for {unwritable:.0f} s; its records were kept, none is lost"
            )

    def _notice(self, message: str) -> None:
        notice = Notice(message=message)
        with self._lock:
            if not self._closed:  # a sink that outlived its time may still complain
                self._file.write({"event": notice.kind, "time": time.time(), "writer": self.writer, **notice.__dict__})

    def close(self, timeout: float = 10.0) -> None:
        """Let the sinks finish (at most `timeout` seconds each), report what they dropped, make the file durable.
        Raises RunDirectoryError when records could not be written."""
        for sink in self._sinks:
            sink.close(timeout)
        self._sinks.clear()
        with self._lock:
            self._closed = True
            self._file.close()

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
