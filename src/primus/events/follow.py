"""Reading a run's events while they are written (Follower) and afterwards (``read_run``, re-exported)."""

from __future__ import annotations

import heapq
import os
import time
from pathlib import Path
from types import TracebackType

from primus.events.history import RunHistory, read_run
from primus.events.jsonl import Record, decode, well_formed

__all__ = ["Follower", "RunHistory", "read_run"]

_BLOCK = 1 << 20
_BLOCKS_PER_POLL = 16
_REOPEN_SECONDS = 1.0
"""NFS may show a file as it was when it was opened: it is opening that asks the server (close-to-open, nfs(5))."""


class Follower:
    """The live tail of one attempt: every record of every writer, once each.

    Files may appear at any time; a line counts once its newline is there. An idle ``poll`` costs one directory
    listing and one ``fstat`` a file, and once a second one ``open``.
    """

    def __init__(self, attempt_directory: Path) -> None:
        self.directory = Path(attempt_directory)
        self.garbled = 0
        """Complete lines that were no records, so far."""
        self._tails: dict[str, _Tail] = {}
        self._opened = time.monotonic()

    def poll(self) -> list[Record]:
        """The records that came since the last call: a writer's in their order, the writers' merged by time. What
        cannot be read now (a file system away for a moment) comes with a later call."""
        try:
            names = sorted(n for n in os.listdir(self.directory) if n.startswith("events-") and n.endswith(".jsonl"))
        except OSError:
            return []
        if time.monotonic() - self._opened > _REOPEN_SECONDS:
            self._opened = time.monotonic()
            for tail in self._tails.values():
                tail.close()
        batches = []
        for name in names:
            tail = self._tails.setdefault(name, _Tail(self.directory / name))
            try:
                lines = tail.lines()
            except OSError:
                tail.close()  # opened again, at the same place, by the next poll
                continue
            records = []
            for line in lines:
                record = decode(line)
                if record is not None and well_formed(record):
                    records.append(record)
                elif line.strip():
                    self.garbled += 1
            batches.append(records)
        return list(heapq.merge(*batches, key=_time)) if len(batches) != 1 else batches[0]

    def close(self) -> None:
        for tail in self._tails.values():
            tail.close()
        self._tails.clear()

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _time(record: Record) -> float:
    time: float = record["time"]
    return time


class _Tail:
    """One growing file, read from where the last call ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._offset = 0
        self._torn = b""

    def lines(self) -> list[bytes]:
        if self._file is None:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        size = os.fstat(self._file).st_size
        if size < self._offset:  # cut off behind our back, e.g. restored from a copy: start again
            self._offset, self._torn = 0, b""
        blocks: list[bytes] = []
        offset = self._offset
        while offset < size and len(blocks) < _BLOCKS_PER_POLL:
            block = os.pread(self._file, _BLOCK, offset)
            if not block:
                break
            offset += len(block)
            blocks.append(block)
        if not blocks:
            return []
        lines = b"".join([self._torn, *blocks]).split(b"\n")
        self._offset, self._torn = offset, lines.pop()  # not before all was read: a block that fails is read again
        return lines

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
