"""Samples that a run leaves out: ``skipped.json`` in the run directory.

It is no part of a checkpoint: whoever continues the run, from an older checkpoint, in another layout or with another
engine, reads it and passes over the same samples.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from primus.checkpoints.integrity import sync_directory
from primus.errors import CheckpointError

FILE = "skipped.json"


@dataclass(frozen=True)
class Skipped:
    """Samples [first, first + count) of the sample order, one global batch. step: which that batch would have made;
    returned_to: step of the checkpoint that training went back to, None where it did not go back."""

    first: int
    count: int
    step: int
    policy: Literal["skip_step", "rollback"]
    reason: str
    attempt: int
    returned_to: int | None = None


def read(run_directory: Path) -> list[Skipped]:
    """In the order in which they were added. Raises CheckpointError when the file cannot be read."""
    path = Path(run_directory) / FILE
    try:
        entries = json.loads(path.read_bytes())
        if not isinstance(entries, list):
            raise ValueError("it is no list")
        found = [Skipped(**entry) for entry in entries]
        if any(type(value) is not int for one in found for value in (one.first, one.count, one.step, one.attempt)):
            raise ValueError("a sample, step or attempt in it is no whole number")
        return found
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"the record of skipped samples cannot be read: {error}",
            where=str(path),
            remedy="mend it; without it the run would train on samples that it has left out",
        ) from error


def write(run_directory: Path, entries: Iterable[Skipped]) -> None:
    """Replace the file, all of it or nothing, and bring it to the disk. Raises OSError."""
    path = Path(run_directory) / FILE
    temporary = path.with_name(f".{FILE}-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps([asdict(entry) for entry in entries], indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def passed_over(consumed: int, batch: int, entries: Iterable[Skipped]) -> int:
    """How many of the samples after the first `consumed` come before the next batch of `batch` samples none of which is
    left out."""
    entries, start = list(entries), consumed
    while any(entry.first < start + batch and start < entry.first + entry.count for entry in entries):
        start += batch
    return start - consumed
