"""Moving a run to another engine: its checkpoint becomes one of that engine, optimizer state included."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from primus.backends import registry
from primus.backends.base import Exchange, Progress
from primus.checkpoints import store
from primus.checkpoints.store import CheckpointInfo
from primus.errors import CheckpointError, UsageError
from primus.plan.plan import Plan


def move(run: Path, info: CheckpointInfo, backend: str, progress: Callable[[str], Progress]) -> Path:
    """Turn the checkpoint `info` of `run` into one of `backend`, and set the original and newer ones aside: nothing is
    deleted. The run's lock must be held. Returns where the original lies now.

    progress: what is done -> what to call with how far it is. Until the new checkpoint is whole the old one stays in
    place. Raises CheckpointError, or UsageError when there is nothing to do or one of the engines cannot.
    """
    source = info.backend or Plan.load(run / "plan.json").experiment.backend
    if source == backend:
        raise UsageError(f"the checkpoint of step {info.step} is {backend}'s already", remedy="train with it")
    folder = info.directory.parent
    between, made = (folder / f".{kind}-{info.step}-{os.getpid()}" for kind in ("exchange", "converted"))
    exporter, importer = _exchange(source), _exchange(backend)
    problems = store.verify(info)
    if problems:
        raise CheckpointError(problems=problems)
    try:
        for directory in (between, made):
            directory.mkdir()
        exporter.export_state(info.directory, between, progress(f"reading {source}'s"))
        importer.import_state(between, made, progress(f"writing {backend}'s"))
        aside = store.set_aside(run, info.step - 1)
        made.rename(info.directory)
        store.sync_directory(folder)
    except OSError as error:
        raise CheckpointError(
            f"cannot be converted: {error.strerror}",
            where=str(error.filename or folder),
            remedy="the conversion needs free space for two copies; the checkpoint is as it was",
        ) from error
    finally:
        for directory in (between, made):
            shutil.rmtree(directory, ignore_errors=True)
    return next(path for path in aside if path.name.startswith(f"step-{info.step}."))


def _exchange(name: str) -> Exchange:
    backend = registry.get(name)
    if not isinstance(backend, Exchange):
        raise UsageError(f"runs of backend '{name}' cannot move to another engine", remedy="export the weights instead")
    return backend
