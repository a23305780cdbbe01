"""The directory of unfinished work beside a dataset: locked, recognised, cleared."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from primus.data.format import bin_path, idx_path
from primus.data.indexed import sync
from primus.data.manifest import manifest_path
from primus.errors import DataError


def partial_directory(output: Path) -> Path:
    """Where unfinished work for `output` lives."""
    return Path(f"{output}.partial")


@contextmanager
def exclusive(output: Path) -> Iterator[Path]:
    """The work directory, locked for this process. The lock goes with the process, however that ends."""
    directory = partial_directory(output)
    while True:
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
        yield directory
        if directory.is_dir() and {path.name for path in directory.iterdir()} == {"lock"}:
            shutil.rmtree(directory)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def begin(directory: Path, fingerprint: str) -> bool:
    """Make the directory fit for the job with this fingerprint: the work of another job is discarded, and so is what
    a killed process left half-written. Returns whether there is work to go on with."""
    path = directory / "job.json"
    if path.is_file() and json.loads(path.read_bytes()) == fingerprint:
        for entry in directory.glob("shard-*.*.*"):
            entry.unlink(missing_ok=True)
        return any(directory.glob("shard-*.json"))
    for entry in directory.iterdir():
        if entry.name != "lock":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    write_json(path, fingerprint)
    return False


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


def is_ready(directory: Path, fingerprint: str) -> bool:
    """Whether the directory holds the finished dataset of the job with this fingerprint, about to be published."""
    path = directory / "ready"
    return path.is_file() and json.loads(path.read_bytes()) == fingerprint


def publish(directory: Path, output: Path) -> None:
    """Give the finished files their names and remove the directory. Can be repeated if it was interrupted.

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
    shutil.rmtree(directory)


def forget_shards(directory: Path) -> None:
    for path in directory.iterdir():
        if path.name.startswith(("shard-", "tokens.bin", "lengths", "state.json")):
            path.unlink()
