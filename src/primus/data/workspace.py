"""The directory of unfinished work beside a dataset: locked, recognised, cleared."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from primus.data.format import bin_path, idx_path
from primus.data.indexed import sync
from primus.data.manifest import manifest_path, read_manifest
from primus.data.tokenizer import COMPANIONS
from primus.errors import DataError, Problem

JOB = "job.json"
SLOW = "slow-encoder.json"
READY = "ready"
SHARDS = ("shard-*.bin*", "shard-*.lengths*", "shard-*.json*", "tokens.bin", "lengths.i32", "state.json")
OTHERS = (SLOW, "tokenizer", "manifest", "index")
"""With job, lock and ready mark, all that unfinished work consists of; nothing else is deleted."""
ELSEWHERE = "move it away, or choose another --output"


def partial_directory(output: Path) -> Path:
    """Where unfinished work for `output` lives."""
    return Path(f"{output}.partial")


@contextmanager
def exclusive(output: Path) -> Iterator[Path]:
    """The work directory, locked for this process. The lock goes with the process, however that ends."""
    directory = partial_directory(output)
    while True:
        _check_directory(directory)
        directory.mkdir(exist_ok=True)
        try:
            lock = (directory / "lock").open("a+")
        except FileNotFoundError:
            continue  # finished and removed by another process in between
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise DataError(
                f"is being prepared by another process ({owner})",
                where=str(output),
                remedy="wait for it, or choose another --output",
            ) from None
        # the winner of a race may hold a lock on a file that was removed meanwhile
        if _same_file(lock.fileno(), directory / "lock"):
            break
        lock.close()
    with lock:
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {os.uname().nodename}\n")
        lock.flush()
        try:
            yield directory
        finally:
            if directory.is_dir() and {path.name for path in directory.iterdir()} == {"lock"}:
                shutil.rmtree(directory)


def _check_directory(directory: Path) -> None:
    """Raise DataError when something else than unfinished work is at its place."""
    if not os.path.lexists(directory):
        return
    if not directory.is_dir():
        raise DataError("is in the way: unfinished work would go there", where=str(directory), remedy=ELSEWHERE)
    names = set()
    with suppress(FileNotFoundError):  # finished and removed by another process in between
        names = {path.name for path in directory.iterdir()}
    # the job is the first thing written there and the last one removed
    ours = names & {JOB, f"{JOB}.new"} and isinstance(read_json(directory / JOB), str | None)
    if names - {"lock"} and not ours:
        raise DataError(
            f"holds files that Primus did not put there ({', '.join(sorted(names - {'lock'})[:3])}); "
            "unfinished work would go there",
            where=str(directory),
            remedy=ELSEWHERE,
        )


def check_places(directory: Path, output: Path) -> None:
    """Raise DataError for everything under the final names that Primus did not make: it is never replaced.

    Ours is what a manifest stands beside, and what an interrupted ``publish`` has moved already.
    """
    described = read_manifest(output) is not None
    publishing = is_ready(directory)
    problems: list[Problem] = []
    places = {"tokens.bin": bin_path(output), "index": idx_path(output), "tokenizer": tokenizer_directory(output)}
    for part, path in places.items():
        if not os.path.lexists(path):
            continue
        if not described and not (publishing and not (directory / part).exists()):
            message = f"exists, and no {manifest_path(output).name} beside it says that Primus made it"
        elif path.is_dir() != (part == "tokenizer"):
            message = (
                "is a directory, not a dataset's file" if path.is_dir() else "is a file, not a tokenizer's directory"
            )
        elif part == "tokenizer" and (
            others := {entry.name for entry in path.iterdir()} - {"tokenizer.json", *COMPANIONS}
        ):
            message = f"holds files that Primus did not put there ({', '.join(sorted(others)[:3])})"
        else:
            continue
        problems.append(Problem(str(path), message, ELSEWHERE))
    if problems:
        raise DataError(problems=problems)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def begin(directory: Path, fingerprint: str) -> bool:
    """Make the directory fit for the job with this fingerprint: the work of another job is discarded, and so is what
    a killed process left half-written. Returns whether there is work to go on with."""
    path = directory / JOB
    if read_json(path) == fingerprint:
        for entry in directory.glob("shard-*.*.*"):
            entry.unlink(missing_ok=True)
        return any(directory.glob("shard-*.json"))
    _remove(directory, *SHARDS, *OTHERS, READY)
    write_json(path, fingerprint)
    return False


def _remove(directory: Path, *patterns: str) -> None:
    for entry in list(directory.iterdir()):
        if any(fnmatchcase(entry.name.removesuffix(".new"), pattern) for pattern in patterns):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def read_json(path: Path) -> Any:
    """What ``write_json`` wrote; None when the file is missing or damaged: that piece of work is done again."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def write_json(path: Path, content: object, indent: int | None = None) -> None:
    """Write `content` so that `path` holds the old or the new content, whole, whatever happens."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(json.dumps(content, indent=indent, ensure_ascii=False).encode() + b"\n")
        sync(file)
    temporary.replace(path)


def tokenizer_directory(output: Path) -> Path:
    """Where the tokenizer is kept beside the dataset."""
    return Path(f"{output}.tokenizer")


def is_ready(directory: Path) -> bool:
    """Whether the directory holds a finished dataset that is being published."""
    job = read_json(directory / JOB)
    return isinstance(job, str) and read_json(directory / READY) == job


def publish(directory: Path, output: Path) -> None:
    """Give the finished files their names and clear the directory. Can be repeated if it was interrupted.

    The old index goes first and the new one comes last: in between there is no dataset, never a mixed one.
    """
    if (directory / "tokens.bin").exists():
        idx_path(output).unlink(missing_ok=True)
        (directory / "tokens.bin").replace(bin_path(output))
    if (directory / "tokenizer").exists():
        if tokenizer_directory(output).exists():
            shutil.rmtree(tokenizer_directory(output))
        (directory / "tokenizer").replace(tokenizer_directory(output))
    for name, final in (("manifest", manifest_path(output)), ("index", idx_path(output))):
        if (directory / name).exists():
            (directory / name).replace(final)
    for names in ((*SHARDS, *OTHERS), (READY,), (JOB,)):
        _remove(directory, *names)


def forget_shards(directory: Path) -> None:
    _remove(directory, *SHARDS)
