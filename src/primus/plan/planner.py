"""Turning a resolved experiment and the size of the machine into a Plan."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from primus.backends import registry
from primus.backends.base import Backend, Extended, NativeConfig, environment_on
from primus.config import huggingface, model_size
from primus.config.experiment import Experiment, Workflow
from primus.config.keys import keys
from primus.config.secrets import is_secret
from primus.errors import DataError, EnvironmentFault, PlanError, Problem
from primus.plan import checks, topology
from primus.plan.finding import Finding
from primus.plan.plan import Patch, Plan, PlannedData, Topology

if TYPE_CHECKING:
    from primus.config.load import Resolved
    from primus.config.source import Origin

Translation = tuple[NativeConfig, dict[str, str], tuple[Patch, ...]]
AXES = ("data_shard", "data_replicate", "tensor", "pipeline", "context", "expert")


def make_plan(
    resolved: Resolved | _Planned,
    *,
    workflow: Workflow = "pretrain",
    nnodes: int = 1,
    nproc: int | None = None,
    run_directory: Path,
) -> Plan:
    """Plan `resolved` on `nnodes` nodes with `nproc` processes each (None: one a device of the hardware, else 1).

    Reads dataset manifests and nothing else. Raises PlanError with everything that is wrong at once, or DataError when
    the data alone is at fault.
    """
    experiment = resolved.experiment
    backend = registry.get(experiment.backend)
    arranged, findings = topology.resolve(experiment, nnodes=nnodes, nproc=nproc)
    findings += checks.check(experiment, arranged)
    findings += beyond(experiment, arranged, backend, workflow)
    findings += _secrets(experiment)
    data: PlannedData | None = None
    of_data: list[Problem] = []
    try:
        data = _plan_data(experiment)
    except DataError as error:
        of_data = [_placed(problem, resolved) for problem in error.problems]
        if not findings:
            raise DataError(problems=of_data) from error
    experiment = _with_local_start(experiment)
    translated: Translation | None = None
    of_engine: list[Problem] = []
    if arranged is not None and data is not None:
        try:
            translated = backend.plan(experiment, arranged, data)
        except PlanError as error:
            of_engine = list(error.problems)
    refined = {problem.where for problem in of_engine}
    findings = [finding for finding in findings if not (finding.general and finding.key in refined)]
    said = {finding.key for finding in findings}
    problems = [finding.problem(resolved.problem) for finding in findings] + of_data
    problems += [_placed(problem, resolved) for problem in of_engine if problem.where not in said]
    if arranged is None or data is None or translated is None or problems:
        raise PlanError(problems=problems)
    native, backend_env, patches = translated
    parameters, flops = backend.added_size(experiment) if isinstance(backend, Extended) else (0, 0.0)
    return Plan(
        workflow=workflow,
        experiment=experiment,
        topology=arranged,
        data=data,
        run_directory=os.path.abspath(run_directory),
        environment=_environment(experiment, backend),
        engine=dict(sorted(backend.native_schema().engine.items())),
        native=native,
        env=dict(sorted({**backend_env, **experiment.env}.items())),
        patches=patches,
        parameters=model_size.measure(experiment.model).total + parameters,
        flops_per_token=model_size.flops_per_token(experiment.model, experiment.train.seq_length) + flops,
        decay_steps=experiment.optimizer.schedule.decay_steps or experiment.train.steps,
        origins={key: str(origin) for key, origin in sorted(resolved.origins.items())},
    )


def replan(plan: Plan, *, nnodes: int) -> Plan:
    """`plan` on another number of nodes, as a job gets them that may start with fewer: the same run, its samples in the
    same order. Raises PlanError when it cannot be split over them."""
    again = make_plan(
        _Planned(plan.experiment),
        workflow=plan.workflow,
        nnodes=nnodes,
        nproc=plan.topology.nproc_per_node,
        run_directory=Path(plan.run_directory),
    )
    return again.model_copy(update={"origins": plan.origins, "decay_steps": plan.decay_steps})


@dataclass(frozen=True)
class _Planned:
    """The experiment of a plan where ``make_plan`` takes a file's; there is no line to point at."""

    experiment: Experiment
    origins: dict[str, Origin] = field(default_factory=dict)

    @staticmethod
    def problem(key: str, message: str, remedy: str = "") -> Problem:
        return Problem(key, message, remedy)


def _environment(experiment: Experiment, backend: Backend) -> str:
    special = backend.capabilities().fault_tolerance.get(experiment.resilience.fault_tolerance)
    return special or environment_on(backend, experiment.hardware.device)


def _plan_data(experiment: Experiment) -> PlannedData:
    from primus.data.planning import plan_data

    train, model = experiment.train, experiment.model
    return plan_data(experiment.data, seq_length=train.seq_length, vocab_size=model.vocab_size)


def _placed(problem: Problem, resolved: Resolved | _Planned) -> Problem:
    """`problem` at the line that sets the key it names, if it names one."""
    key = problem.where.partition("[")[0]
    if key not in resolved.origins or problem.excerpt:
        return problem
    named = key in problem.message
    message = problem.message if named else f"{problem.where}: {problem.message}"
    return resolved.problem(key, message, problem.remedy)


def _with_local_start(experiment: Experiment) -> Experiment:
    """`model.init` as the absolute directory that every rank reads."""
    directory = huggingface.start_directory(experiment.model.init)
    if directory is None:
        return experiment
    model = experiment.model.model_copy(update={"init": str(directory)})
    return experiment.model_copy(update={"model": model})


def beyond(experiment: Experiment, arranged: Topology | None, backend: Backend, workflow: str) -> Iterator[Finding]:
    """What this backend cannot do."""
    can, name = backend.capabilities(), backend.name
    if workflow not in can.workflows:
        yield Finding("backend", f"{name} has no workflow '{workflow}'", _offer(can.workflows))
    family = experiment.model.model_type
    if family not in can.model_types:
        yield Finding("model.model_type", f"{name} has no model_type '{family}'", _offer(can.model_types))
    for axis in AXES:
        size = getattr(arranged or experiment.parallel, axis)
        if size not in (1, "auto") and axis not in can.parallel_axes:
            yield Finding(f"parallel.{axis}", f"{name} cannot split along '{axis}' ({size})", _offer(can.parallel_axes))
    device, precision = experiment.hardware.device, experiment.precision
    if device not in can.precisions:
        yield Finding("hardware.device", f"{name} does not run on {device}", _offer(can.precisions))
    elif precision not in can.precisions[device]:
        kind = device if device == experiment.hardware.name else f"{device} ({experiment.hardware.name})"
        yield Finding("precision", f"{name} has no {precision} on {kind}", _offer(can.precisions[device]))
    policy = experiment.resilience.anomaly
    if policy not in {"stop", *can.anomaly}:
        yield Finding("resilience.anomaly", f"{name} cannot {policy}", _offer({"stop", *can.anomaly}))
    if experiment.resilience.spike_factor is not None and not can.anomaly:
        yield Finding(
            "resilience.spike_factor", f"{name} does not look for spikes", "leave resilience.spike_factor out"
        )
    tolerance = experiment.resilience.fault_tolerance
    if tolerance not in {"restart", *can.fault_tolerance}:
        yield Finding(
            "resilience.fault_tolerance",
            f"resilience.fault_tolerance: {name} has no '{tolerance}'",
            _offer({"restart", *can.fault_tolerance}),
        )
    for rule, reason in sorted(can.unsupported.items()):
        key, _, value = rule.partition("=")
        if key not in keys():
            raise EnvironmentFault(
                f"backend '{name}' refuses '{rule}', but there is no such key",
                remedy="use a version made for this Primus",
            )
        actual, default = _value(experiment, key), keys()[key].field.get_default(call_default_factory=True)
        if (_spelt(actual) == value) if value else actual != default:
            remedy = "choose another value" if actual == default else f"{key}: {_spelt(default)}"
            yield Finding(key, f"{key}: {_spelt(actual)} cannot be honoured by {name}: {reason}", remedy)


def _offer(choices: Iterable[str]) -> str:
    return "it has " + ", ".join(sorted(choices))


def _spelt(value: object) -> str:
    """As YAML spells it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _value(experiment: Experiment, key: str) -> object:
    value: object = experiment
    for name in key.split("."):
        value = getattr(value, "async_" if name == "async" else name, None)
    return value


def _secrets(experiment: Experiment) -> Iterator[Finding]:
    """A plan is a file that many can read: what looks like a secret must not get into it."""
    for name, value in sorted(experiment.env.items()):
        if is_secret(name, value):
            yield Finding(
                f"env.{name}",
                f"env.{name} looks like a secret; plan.json and reports would show it",
                f"remove it and export {name} where the processes start",
            )
