"""The event files: ``attempts/K/events-<writer>.jsonl``, one JSON object a line, the source of truth of a run.

A record holds ``event`` (the kind), ``time`` (Unix seconds), ``writer``, then the event's own fields. Floats keep all
their digits. JSON has no NaN or infinity: they are the strings "NaN", "Infinity", "-Infinity", in fields that are
floats, and ``decode`` turns them back. A process killed in the middle of a write leaves a torn last line; readers skip
it, and the next writer of the same file starts on a new line.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from primus.errors import RunDirectoryError
from primus.events.types import EVENTS

Record = dict[str, Any]

PATTERN = "events-*.jsonl"
PENDING_LIMIT = 8 << 20
"""Bytes of records kept in memory while the disk takes none; beyond it the run stops."""

_NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_FLOAT_FIELDS = frozenset(f.name for cls in EVENTS.values() for f in fields(cls) if str(f.type).startswith("float"))


def encode(record: Record) -> bytes:
    """One line, newline included. Values that are no JSON (NumPy scalars, paths) become their plain equivalent."""
    try:
        return to_json(record, inf_nan_mode="strings", fallback=_plain) + b"\n"
    except ValueError:  # lone surrogates, e.g. from an undecodable file name in a traceback
        return to_json(_encodable(record), inf_nan_mode="strings", fallback=_plain) + b"\n"


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    return value


def _plain(value: Any) -> Any:
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)


def decode(line: bytes) -> Record | None:
    """The record of a line; None when it is torn or no record at all."""
    try:
        record = from_json(line, allow_inf_nan=True)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        return None
    if b'"NaN"' in line or b'Infinity"' in line:
        for key in _FLOAT_FIELDS & record.keys():
            record[key] = _finite_or_not(record[key])
        if isinstance(record.get("auxiliary"), dict):
            record["auxiliary"] = {key: _finite_or_not(value) for key, value in record["auxiliary"].items()}
    return record


_FOREVER = 1e11
"""Unix seconds of no record."""
_CHECKS: dict[str, type | tuple[type, ...]] = {"int": int, "float": (int, float), "str": str}
_FIELDS = {
    kind: [
        (f.name, _CHECKS[name], f.default is MISSING) for f in fields(cls) if (name := f.type.split(" ")[0]) in _CHECKS
    ]
    for kind, cls in EVENTS.items()
}


def well_formed(record: Record) -> bool:
    """Whether a record of a known kind has its required fields, and all in their types (unknown kinds pass): what a
    reader asks before it trusts a line that anyone could have written."""
    time = record.get("time")
    if not isinstance(time, int | float) or not abs(time) < _FOREVER:
        return False
    for name, kind, required in _FIELDS.get(record["event"], ()):
        value = record.get(name)
        if not isinstance(value, kind) and (required or value is not None):
            return False
    return True


def _finite_or_not(value: Any) -> Any:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def file_of(attempt_directory: Path, writer: str) -> Path:
    return Path(attempt_directory) / f"events-{writer}.jsonl"


def read_lines(path: Path, *, tail: int | None = None, chunk: int = 4 << 20) -> Iterator[bytes]:
    """The complete lines of a file, without their newlines; a torn last line is left out. Raises OSError.

    tail: only the lines that lie wholly in so many last bytes.
    """
    rest = b""
    with path.open("rb") as stream:
        if tail is not None and os.fstat(stream.fileno()).st_size > tail:
            stream.seek(-tail - 1, os.SEEK_END)
            stream.readline()
        while block := stream.read(chunk):
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            yield from lines


class JsonlWriter:
    """Appends records, each with one write, so that what was written survives the process.

    When the disk takes no more (full, quota, a file system away), records wait in memory and are tried again with the
    next one; a line on stderr says so. Beyond PENDING_LIMIT, or at ``close``, RunDirectoryError: nothing is dropped in
    silence. Not safe for threads; the Bus holds a lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending = bytearray()
        self._failing_since: float | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":
                self._pending += b"\n"
        except OSError as error:
            raise self._error(error) from error

    def write(self, record: Record) -> float | None:
        """Append. Returns how many seconds the file had been unwritable when this call mended that, else None."""
        self._pending += encode(record)
        try:
            self._flush()
        except OSError as error:
            if len(self._pending) > PENDING_LIMIT:
                raise self._error(error) from error
            if self._failing_since is None:
                self._failing_since = time.monotonic()
                print(f"primus: {self._error(error)}; events wait in memory", file=sys.stderr, flush=True)  # noqa: T201
            return None
        if self._failing_since is None:
            return None
        seconds, self._failing_since = time.monotonic() - self._failing_since, None
        return seconds

    def _flush(self) -> None:
        while self._pending:
            del self._pending[: os.write(self._file, self._pending)]

    def close(self) -> None:
        if self._file < 0:
            return
        try:
            self._flush()
            os.fsync(self._file)
        except OSError as error:
            raise self._error(error) from error
        finally:
            os.close(self._file)
            self._file = -1

    def _error(self, error: OSError) -> RunDirectoryError:
        return RunDirectoryError(
            f"the event file cannot be written: {error.strerror}",
            where=str(self.path),
            remedy="free space or mend permissions, then run the same command again to continue",
        )
