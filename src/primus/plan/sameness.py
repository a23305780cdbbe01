"""Whether two plans mean the same experiment, whatever engine, machine or layout each was made for."""

from __future__ import annotations

from dataclasses import dataclass

from primus.plan.diff import CHANGEABLE, CHANGEABLE_NATIVE, COMPARED_BY_CONTENT, Difference, differences
from primus.plan.plan import Plan

FREE = CHANGEABLE | CHANGEABLE_NATIVE | {"backend", "topology", "engine"}
"""What may differ and still be the same maths: how fast and how long, where and on which engine."""


@dataclass(frozen=True)
class Sameness:
    """What differs between two plans. ``matters``: changes what is learnt at a step. ``native``: keys of the engines'
    own sections of which Primus cannot tell. ``free``: does not matter. ``remarks``: sentences on what else keeps
    equal plans from equal numbers."""

    matters: list[Difference]
    native: list[Difference]
    free: list[Difference]
    remarks: list[str]

    @property
    def same(self) -> bool:
        return not self.matters


def sameness(a: Plan, b: Plan) -> Sameness:
    """Compare what the plans of two runs mean."""
    found = [
        difference for difference in differences(a, b) if difference.key != "optimizer.schedule.decay_steps"
    ] + _resolved(a, b)
    engines = {a.experiment.backend, b.experiment.backend}
    parts: dict[str, list[Difference]] = {"matters": [], "native": [], "free": []}
    for difference in found:
        native = difference.key.partition(".")[0] in engines
        parts["free" if _is_free(difference.key) else "native" if native else "matters"].append(difference)
    return Sameness(**parts, remarks=_remarks(a, b))


def _is_free(key: str) -> bool:
    words = key.split(".")
    return key in COMPARED_BY_CONTENT or any(".".join(words[:n]) in FREE for n in range(1, len(words) + 1))


def _resolved(a: Plan, b: Plan) -> list[Difference]:
    """What the plans hold beside the experiment and decides the maths, or the versions of what computes it."""
    pairs: dict[str, tuple[object, object]] = {
        "workflow": (a.workflow, b.workflow),
        # Left unset it is the first plan's train.steps, so two lengths are two learning rates; a constant one has none.
        "optimizer.schedule.decay_steps": (_decay_steps(a), _decay_steps(b)),
        "content.end of document": (_masked_id(a), _masked_id(b)),
    }
    packages = sorted({*a.engine, *b.engine})
    pairs |= {f"engine.{name}": (a.engine.get(name), b.engine.get(name)) for name in packages}
    return [Difference(key, old, new) for key, (old, new) in pairs.items() if old != new]


def _decay_steps(plan: Plan) -> int | None:
    return None if plan.experiment.optimizer.schedule.name == "constant" else plan.decay_steps


def _masked_id(plan: Plan) -> int | None:
    return plan.data.eod_id if plan.data.mask_eod else None


def _remarks(a: Plan, b: Plan) -> list[str]:
    """From the known inequalities of ``docs/numerics.md``."""
    remarks = []
    two_engines = a.experiment.backend != b.experiment.backend
    if two_engines and "native" in (a.experiment.model.init, b.experiment.model.init):
        remarks.append("model.init is native: two engines then start from different weights")
    if (
        two_engines
        and a.experiment.model.num_experts
        and "bias" in (a.experiment.moe.balance, b.experiment.moe.balance)
    ):
        remarks.append("moe.balance is bias: each engine updates the balancing bias in its own way")
    return remarks
