"""The checkpoints of a run: ``checkpoints/step-N/``, each visible only once complete. Needs no engine.

Writer: ``directory = begin(run, step)``, write files into it, ``seal(directory, ...)``, ``prune(run, keep)``.
Reader: ``newest_intact(run)``; whoever loads a file compares ``hash_file`` with ``info.file(path).digest``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from primus.checkpoints.integrity import (
    MANIFEST,
    CheckpointFile,
    CheckpointInfo,
    check_sizes,
    content_files,
    hash_file,
    read_manifest,
    seal,
    sync_directory,
    verify,
)
from primus.errors import CheckpointError, Problem

__all__ = [
    "MANIFEST",
    "CheckpointFile",
    "CheckpointInfo",
    "Entry",
    "begin",
    "bytes_in",
    "compare_backend",
    "compare_model",
    "complete",
    "directory_of",
    "entries",
    "hash_file",
    "newest_intact",
    "prunable",
    "prune",
    "read_manifest",
    "seal",
    "set_aside",
    "sync_directory",
    "verify",
]

_STEP = re.compile(r"step-(0|[1-9][0-9]*)")
_NOT_ARCHITECTURE = frozenset({"init", "init_std", "max_position_embeddings"})
"""Model fields that may differ between a checkpoint and the experiment that continues it: they shape no tensor."""


@dataclass(frozen=True)
class Entry:
    """One ``step-N`` directory. state: ``complete`` (manifest read, sizes right), ``damaged`` (``problems`` says how)
    or ``partial`` (no manifest: being written, or left by a killed save). info is None without a readable manifest."""

    directory: Path
    step: int
    state: Literal["complete", "damaged", "partial"]
    info: CheckpointInfo | None = None
    problems: tuple[Problem, ...] = ()


def directory_of(run_directory: Path, step: int) -> Path:
    return Path(run_directory) / "checkpoints" / f"step-{step}"


def begin(run_directory: Path, step: int) -> Path:
    """An empty directory for the checkpoint of `step`. What an earlier attempt left there is removed, its manifest
    first. Raises CheckpointError when the directory cannot be made."""
    directory = directory_of(run_directory, step)
    try:
        _remove(directory)
        directory.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint directory cannot be made: {error.strerror}",
            where=str(directory),
            remedy="check permissions, free space, and what is in its place",
        ) from error
    return directory


def entries(run_directory: Path) -> list[Entry]:
    """Every ``step-N`` directory of the run, newest first; anything else there is ignored. File sizes are checked."""
    folder = Path(run_directory) / "checkpoints"
    try:
        directories = [path for path in folder.iterdir() if _STEP.fullmatch(path.name)]
    except FileNotFoundError:
        if folder.is_symlink():  # not a new run: a file system is away
            remedy = "mount what it leads to; to begin anew, remove the link"
            raise CheckpointError("this link leads nowhere", where=str(folder), remedy=remedy) from None
        return []
    except OSError as error:
        raise CheckpointError(f"the checkpoints cannot be listed: {error.strerror}", where=str(folder)) from error
    found = (_entry(path) for path in directories if path.is_dir() and not path.is_symlink())
    return sorted((entry for entry in found if entry), key=lambda entry: -entry.step)


def _entry(directory: Path) -> Entry | None:
    step = int(directory.name.removeprefix("step-"))
    try:
        info = read_manifest(directory)
    except FileNotFoundError:
        return Entry(directory, step, "partial") if directory.is_dir() else None
    except CheckpointError as error:
        return Entry(directory, step, "damaged", None, error.problems)
    problems = check_sizes(info)
    if info.step != step:
        where = str(directory / MANIFEST)
        problems.insert(0, Problem(where, f"the manifest is of step {info.step}, the directory of step {step}"))
    if not problems:
        return Entry(directory, step, "complete", info)
    if not (directory / MANIFEST).exists():  # pruned while we looked
        return Entry(directory, step, "partial") if directory.is_dir() else None
    return Entry(directory, step, "damaged", info, tuple(problems))


def bytes_in(directory: Path) -> int:
    """Bytes in the files of a directory, as far as they can be seen now."""
    total = 0
    for path in content_files(directory):
        with suppress(OSError):
            total += path.stat().st_size
    return total


def complete(run_directory: Path) -> list[CheckpointInfo]:
    """The complete checkpoints whose files all have the right size, newest first."""
    return [entry.info for entry in entries(run_directory) if entry.state == "complete" and entry.info]


def newest_intact(run_directory: Path) -> tuple[CheckpointInfo | None, list[Problem]]:
    """The newest complete checkpoint with the right sizes, and what is wrong with damaged newer ones."""
    problems: list[Problem] = []
    for entry in entries(run_directory):
        if entry.state == "complete":
            return entry.info, problems
        problems.extend(entry.problems)
    return None, problems


def prunable(run_directory: Path, keep: int) -> list[Path]:
    """What ``prune`` would remove: every directory older than the `keep` newest complete checkpoints, and unfinished
    saves older than the newest one. Newer unfinished saves may still be being written; newer damaged ones are left
    for a person to look at."""
    if keep < 1:
        raise CheckpointError(f"keep is {keep}: at least the newest checkpoint is kept", remedy="use 1 or more")
    found = entries(run_directory)
    kept = [entry.step for entry in found if entry.state == "complete"][:keep]
    if not kept:
        return []
    oldest, newest = kept[-1], kept[0]
    return [e.directory for e in found if e.step < oldest or (e.state == "partial" and e.step < newest)]


def prune(run_directory: Path, keep: int) -> list[Path]:
    """Remove all but the `keep` newest complete checkpoints; returns the directories removed. Safe to kill at any
    moment and to run beside a training process: the manifest goes first, so what remains is invisible."""
    removed = []
    for directory in prunable(run_directory, keep):
        try:
            _remove(directory)
        except OSError as error:
            raise CheckpointError(f"a checkpoint cannot be removed: {error.strerror}", where=str(directory)) from error
        removed.append(directory)
    return removed


def set_aside(run_directory: Path, after: int) -> list[Path]:
    """Rename every checkpoint newer than step `after`, so that none is resumed from: for a run that starts again at
    `after` and will come by those steps on another way. Unfinished saves stay: nobody resumes from them. Nothing is
    deleted. Returns the new paths."""
    moved = []
    for entry in entries(run_directory):
        if entry.step <= after or entry.state == "partial":
            continue
        number = 1
        while (target := entry.directory.with_name(f"{entry.directory.name}.aside-{number}")).exists():
            number += 1
        try:
            entry.directory.rename(target)
        except OSError as error:
            where = str(entry.directory)
            raise CheckpointError(f"an old checkpoint cannot be set aside: {error.strerror}", where=where) from error
        moved.append(target)
    if moved:
        sync_directory(moved[0].parent)
    return moved


def _remove(directory: Path) -> None:
    if directory.is_symlink():
        directory.unlink()  # no checkpoint, and what it leads to is somebody's
    if not directory.exists():
        return
    manifest = directory / MANIFEST
    try:
        if manifest.is_file():
            manifest.unlink(missing_ok=True)
            sync_directory(directory)
        shutil.rmtree(directory)
    except FileNotFoundError:  # another process prunes the same directory
        shutil.rmtree(directory, ignore_errors=True)


def compare_backend(info: CheckpointInfo, backend: str) -> list[Problem]:
    """A Problem when the checkpoint is another backend's."""
    if info.backend in ("", backend):
        return []
    run = info.directory.parent.parent.name
    remedy = f"`primus-cli checkpoint convert {run} --to {backend}` makes it one, optimizer state included"
    return [Problem(str(info.directory), f"this is a checkpoint of {info.backend}, not of {backend}", remedy)]


def compare_model(info: CheckpointInfo, model: Mapping[str, Any]) -> list[Problem]:
    """One Problem for each architecture field in which the checkpoint and `model` (Hugging Face names) differ. An
    absent field counts as None."""
    return [
        Problem(
            f"model.{field}",
            f"the checkpoint {info.directory} has {info.model.get(field)!r}, the experiment says {model.get(field)!r}",
            "train this model under another `name`, or restore the field",
        )
        for field in sorted({*info.model, *model} - _NOT_ARCHITECTURE)
        if info.model.get(field) != model.get(field)
    ]
