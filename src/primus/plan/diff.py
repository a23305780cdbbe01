"""What differs between two plans, and whether one may continue the run of the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from primus.errors import Problem, RunDirectoryError
from primus.plan.plan import Plan

CHANGEABLE = frozenset(
    {
        *("train.steps", "train.micro_batch_size", "recompute", "compile", "moe.dispatcher"),
        *("parallel", "hardware", "env", "eval", "profile", "checkpoint", "monitor", "resilience"),
    }
)
"""Keys and sections that may change when a run continues: they alter how fast or how long it trains and what is
shown, not what is learnt at a step."""

COMPARED_BY_CONTENT = frozenset({"data.train", "data.validation", "data.tokenizer"})
"""Keys that name files: those may have moved, as long as what they hold is the same."""


class Difference(NamedTuple):
    """A dotted key with its value in the first plan and in the second; a missing one is None."""

    key: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.key}: {shown(self.old)} -> {shown(self.new)}"


def differences(old: Plan, new: Plan) -> list[Difference]:
    """Every key of the experiment, every size of the topology and every fact about the data that differs."""
    left, right = _facts(old), _facts(new)
    keys = {**left, **right}
    return [Difference(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


def check_continue(old: Plan, new: Plan, *, converted_to: str = "") -> Plan:
    """`new` as the continuation of the run that `old` planned: with the learning rate's `decay_steps` of `old`.

    converted_to: the backend that the run's newest checkpoint is of, where it is known. Raises RunDirectoryError when
    anything differs that changes what is learnt.
    """
    if old.workflow != new.workflow:
        raise RunDirectoryError(
            f"this run is a {old.workflow}, not a {new.workflow}",
            where=old.run_directory,
            remedy="start another: name=NAME",
        )
    current = converted_to or old.experiment.backend
    if current != new.experiment.backend:
        raise RunDirectoryError(
            f"this run was trained with {current}, not with {new.experiment.backend}",
            where=old.run_directory,
            remedy=f"continue with backend={current}; or move it: primus-cli checkpoint convert "
            f"{new.experiment.name} --to {new.experiment.backend}, and the same command again",
        )
    moved = {"backend", old.experiment.backend, new.experiment.backend} if current != old.experiment.backend else set()
    refused = [
        difference
        for difference in differences(old, new)
        if not _may_change(difference, old) and difference.key.partition(".")[0] not in moved
    ]
    if refused:
        raise RunDirectoryError(problems=[_refusal(difference, old, new) for difference in refused])
    return new.model_copy(update={"decay_steps": old.decay_steps})


def shown(value: object) -> str:
    """A value as YAML and the command line spell it, shortened."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _may_change(difference: Difference, old: Plan) -> bool:
    key = difference.key
    parts = key.split(".")
    if any(".".join(parts[:length]) in CHANGEABLE for length in range(1, len(parts) + 1)):
        return True
    if key == "optimizer.schedule.decay_steps":
        return difference.new in (None, old.decay_steps)
    # the topology follows from parallel, hardware and place; names of files are compared by what they hold
    return parts[0] == "topology" or key in COMPARED_BY_CONTENT


def _refusal(difference: Difference, old: Plan, new: Plan) -> Problem:
    key = difference.key
    origin = new.origins.get(key, "")
    place = f" ({origin})" if origin not in ("", "default") else ""
    message = f"{key} is {shown(difference.old)} in this run and {shown(difference.new)} now{place}"
    remedy = f"continue with {key}={shown(difference.old)}, or start another run: name=NAME"
    if key.startswith("content."):
        name = key.removeprefix("content.")
        message = f"{name} of the data differs: {shown(difference.old)} in this run and {shown(difference.new)} now"
        remedy = "continue with the same data, or start another run: name=NAME"
    return Problem(old.run_directory, message, remedy)


def _facts(plan: Plan) -> dict[str, Any]:
    """Dotted key -> value of all that may differ between two plans of one run."""
    experiment = plan.experiment.model_dump(mode="json", by_alias=True)
    # sections of other backends are not used, and a changed name is a changed directory
    experiment["native"] = experiment["native"].get(plan.experiment.backend, {})
    experiment[plan.experiment.backend] = experiment.pop("native")
    del experiment["name"]
    data = plan.data
    content = {
        "digest": data.digest,
        "validation": [(source.digest, source.share) for source in data.validation_sources],
        "tokenizer": data.tokenizer_hash,
    }
    topology = plan.topology.model_dump()
    return dict(_flat({**experiment, "topology": topology, "content": content}, ""))


def _flat(value: object, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif value != {}:
        yield prefix, value
