"""Moving a run to another engine: its checkpoint becomes one of that engine, optimizer state included."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from primus.backends import registry
from primus.backends.base import Backend, Progress
from primus.checkpoints import integrity, store
from primus.checkpoints.store import CheckpointInfo
from primus.config.experiment import Model
from primus.errors import CheckpointError, PlanError, Problem, UsageError
from primus.plan.diff import CHANGEABLE
from primus.plan.plan import Plan
from primus.plan.planner import beyond
from primus.runtime.exchange.exchanges import Exchanges
from primus.runtime.run_directory import RunDirectory

LEFT = re.compile(r"\.(exchange|converted)-(\d+)-\d+")
"""What a conversion works in, of a step, by a process."""
LEARNT = ("model", "moe", "data", "precision", "optimizer")
"""Sections that say what is learnt: what an engine refuses there it refuses in every layout."""


def move(
    exchanges: Exchanges, run: Path, info: CheckpointInfo, backend: str, progress: Callable[[str], Progress]
) -> Path:
    """Turn the checkpoint `info` of `run` into one of `backend`, and set the original and newer ones aside: nothing is
    deleted. The run's lock must be held. Returns where the original lies now.

    progress: what is done -> what to call with how far it is. Until the new checkpoint is whole the old one stays in
    place. Before anything is written it raises UsageError when there is nothing to do or one of the engines cannot,
    PlanError when the other engine could not go on with this run, CheckpointError when the checkpoint is damaged.
    """
    plan = RunDirectory(run).plan()
    source = info.backend or (plan.experiment.backend if plan else "torchtitan")
    if source == backend:
        raise UsageError(f"the checkpoint of step {info.step} is {backend}'s already", remedy="train with it")
    folder = info.directory.parent
    between, made = (folder / f".{kind}-{info.step}-{os.getpid()}" for kind in ("exchange", "converted"))
    problems = _refused(registry.get(backend), info, plan)
    if problems:
        raise PlanError(problems=problems)
    for engine in (source, backend):
        exchanges.start(engine)
    problems = store.verify(info)
    if problems:
        raise CheckpointError(problems=problems)
    try:
        for directory in (between, made):
            directory.mkdir()
        exchanges.export_state(source, info.directory, between, progress(f"reading {source}'s"))
        exchanges.import_state(backend, between, made, progress(f"writing {backend}'s"))
        return _put_in_place(run, info, made)
    except OSError as error:
        raise CheckpointError(
            f"cannot be converted: {error.strerror}",
            where=str(error.filename or folder),
            remedy="the conversion needs free space for two copies; the checkpoint is as it was",
        ) from error
    finally:
        for directory in (between, made):
            shutil.rmtree(directory, ignore_errors=True)


def settle(run: Path) -> None:
    """Clear away what a conversion that was killed left in `run`, whose lock must be held. One that was killed while it
    put its checkpoint in place is finished: the original is aside already."""
    folder = Path(run) / "checkpoints"
    for directory in sorted(folder.glob(".*")):
        match = LEFT.fullmatch(directory.name)
        if not match:
            continue
        place = store.directory_of(run, int(match[2]))
        if match[1] == "converted" and (directory / integrity.MANIFEST).exists() and not place.exists():
            directory.rename(place)
        else:
            shutil.rmtree(directory, ignore_errors=True)


def _put_in_place(run: Path, info: CheckpointInfo, made: Path) -> Path:
    aside = store.set_aside(run, info.step - 1)
    try:
        made.rename(info.directory)
        store.sync_directory(info.directory.parent)
    except BaseException:
        if not info.directory.exists():
            for path in aside:
                path.rename(path.with_name(path.name.partition(".")[0]))
        raise
    return next(path for path in aside if path.name.startswith(f"step-{info.step}."))


def _refused(engine: Backend, info: CheckpointInfo, plan: Plan | None) -> list[Problem]:
    """What would keep `engine` from going on with the run, whatever its layout."""
    if plan is None:
        family = Model.model_validate(info.model, strict=False).model_type
        missing = f"{engine.name} has no model_type '{family}'"
        return [] if family in engine.capabilities().model_types else [Problem("model.model_type", missing)]
    experiment = plan.experiment.model_copy(update={"backend": engine.name, "native": {}})
    found = [
        Problem(key, message, remedy) for key, message, remedy, _ in beyond(experiment, None, engine, plan.workflow)
    ]
    if not found:
        try:
            engine.plan(experiment, plan.topology, plan.data)
        except PlanError as error:
            found = list(error.problems)
    return [
        replace(problem, remedy="this run cannot move there; `checkpoint convert --output` writes its weights")
        for problem in found
        if problem.where.partition(".")[0] in LEARNT and problem.where not in CHANGEABLE
    ]
