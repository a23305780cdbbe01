"""Turning a resolved experiment and the size of the machine into a Plan."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primus.backends import registry
from primus.backends.base import Backend
from primus.config.experiment import Experiment, Workflow
from primus.errors import DataError, PlanError, Problem
from primus.plan import model_size, topology
from primus.plan.checks import experiment_problems
from primus.plan.plan import Plan, PlannedData
from primus.plan.topology import Where

if TYPE_CHECKING:
    from primus.config.load import Resolved

AXES = ("data_shard", "data_replicate", "tensor", "pipeline", "context", "expert")


def make_plan(
    resolved: Resolved,
    *,
    workflow: Workflow = "pretrain",
    nnodes: int = 1,
    nproc: int | None = None,
    run_directory: Path,
) -> Plan:
    """Plan `resolved` on `nnodes` nodes with `nproc` processes each (None: one a device of the hardware preset, else 1).

    Reads dataset manifests and nothing else. Raises PlanError with everything that is wrong at once, or DataError when
    the data alone is at fault.
    """
    experiment = resolved.experiment
    where = _places(resolved)
    backend = registry.get(experiment.backend)
    arranged, problems = topology.resolve(experiment, nnodes=nnodes, nproc=nproc, where=where)
    problems += experiment_problems(experiment, arranged, where)
    problems += _capability_problems(experiment, backend, workflow, where)
    problems += _secret_problems(experiment, where)
    data = _plan_data(experiment, problems)
    if arranged is None or data is None or problems:
        raise PlanError(problems=problems)
    native, backend_env, patches = backend.plan(experiment, arranged, data)
    return Plan(
        workflow=workflow,
        experiment=experiment,
        topology=arranged,
        data=data,
        run_directory=os.path.abspath(run_directory),
        environment=backend.environment,
        engine=dict(sorted(backend.native_schema().engine.items())),
        native=native,
        env=dict(sorted({**backend_env, **experiment.env}.items())),
        patches=patches,
        parameters=model_size.measure(experiment.model).total,
        flops_per_token=model_size.flops_per_token(experiment.model, experiment.train.seq_length),
        decay_steps=experiment.optimizer.schedule.decay_steps or experiment.train.steps,
        origins={key: str(origin) for key, origin in sorted(resolved.origins.items())},
    )


def _plan_data(experiment: Experiment, problems: list[Problem]) -> PlannedData | None:
    from primus.data.planning import plan_data

    try:
        return plan_data(
            experiment.data, seq_length=experiment.train.seq_length, vocab_size=experiment.model.vocab_size
        )
    except DataError as error:
        if not problems:
            raise
        problems.extend(error.problems)
        return None


def _places(resolved: Resolved) -> Where:
    """Where a key was set; the key itself where nobody set it."""
    places = {key: str(origin) for key, origin in resolved.origins.items()}

    def where(key: str) -> str:
        place = places.get(key, "default")
        return key if place == "default" else place

    return where


def _capability_problems(experiment: Experiment, backend: Backend, workflow: str, where: Where) -> list[Problem]:
    can = backend.capabilities()
    problems = []
    if workflow not in can.workflows:
        problems.append(Problem("command line", f"{backend.name} has no workflow '{workflow}'", _offer(can.workflows)))
    if experiment.model.model_type not in can.model_types:
        problems.append(
            Problem(
                where("model.model_type"),
                f"{backend.name} does not know model_type '{experiment.model.model_type}'",
                _offer(can.model_types),
            )
        )
    for axis in AXES:
        size = getattr(experiment.parallel, axis)
        if size not in (1, "auto") and axis not in can.parallel_axes:
            problems.append(
                Problem(
                    where(f"parallel.{axis}"),
                    f"parallel.{axis}: {size}, but {backend.name} has no such axis",
                    f"parallel.{axis}: 1; {_offer(can.parallel_axes)}",
                )
            )
    device = experiment.hardware.device
    if device not in can.precisions:
        problems.append(
            Problem(where("hardware.device"), f"{backend.name} does not run on {device}", _offer(can.precisions))
        )
    elif experiment.precision not in can.precisions[device]:
        problems.append(
            Problem(
                where("precision"),
                f"{backend.name} has no {experiment.precision} on {device} ({experiment.hardware.name})",
                _offer(can.precisions[device]),
            )
        )
    for rule, reason in sorted(can.unsupported.items()):
        key, _, value = rule.partition("=")
        actual = _get(experiment, key)
        if (str(actual) == value) if value else actual != _default(key):
            problems.append(Problem(where(key), f"{key}: {actual} cannot be honoured by {backend.name}: {reason}"))
    return problems


def _offer(choices: Any) -> str:
    return "it has: " + ", ".join(sorted(choices))


def _get(experiment: Experiment, key: str) -> Any:
    value: Any = experiment
    for name in key.split("."):
        value = getattr(value, "async_" if name == "async" else name, None)
    return value


def _default(key: str) -> Any:
    """Default of the schema for a dotted key; None where the key has none."""
    section: Any = Experiment
    *parents, last = key.split(".")
    for name in parents:
        section = section.model_fields[name].annotation
    return section.model_fields["async_" if last == "async" else last].get_default(call_default_factory=True)


SECRET_WORDS = {"TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIALS", "KEY"}


def _secret_problems(experiment: Experiment, where: Where) -> list[Problem]:
    """A plan is a file that many can read: what looks like a secret must not get into it."""
    return [
        Problem(
            where(f"env.{name}"),
            f"env.{name} looks like a secret; it would be written to plan.json and to reports",
            f"export {name} where the processes start and remove it from the experiment",
        )
        for name in sorted(experiment.env)
        if SECRET_WORDS & set(name.upper().split("_")[-1:]) or "SECRET" in name.upper().split("_")
    ]
