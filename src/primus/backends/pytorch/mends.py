"""Declared changes to an engine's code: how one is described, made, and verified.

A plan lists the patches of its device; ``apply`` makes them before the engine is imported and verifies every one. A
patch whose reason is absent on this machine (a newer torch, an installed triton) is left out; one whose target is
missing is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from primus.errors import EnvironmentFault
from primus.plan.plan import Patch

EVERY = frozenset({"cpu", "cuda", "rocm"})
CPU = frozenset({"cpu"})


@dataclass(frozen=True)
class Mend:
    """A patch and how to make it. `needed` decides on this machine; `apply` makes it; `holds` verifies it."""

    patch: Patch
    devices: frozenset[str]
    needed: Callable[[], bool]
    apply: Callable[[], None]
    holds: Callable[[], bool]


def for_device(mends: Sequence[Mend], device: str) -> tuple[Patch, ...]:
    """The patches a plan for `device` (cpu, cuda, rocm) lists."""
    return tuple(mend.patch for mend in mends if device in mend.devices)


def apply(known: Sequence[Mend], patches: Sequence[Patch], *, environment: str = "torch") -> None:
    """Make the `patches` of a plan, all of them `known`, in this process; EnvironmentFault for one that fails."""
    mends = {mend.patch: mend for mend in known}
    for patch in patches:
        mend = mends.get(patch)
        if mend is None:
            raise EnvironmentFault(
                "this version of Primus has no such patch",
                where=patch.target,
                remedy="plan the run again with this version",
            )
        if not mend.needed():
            continue
        try:
            mend.apply()
            holds = mend.holds()
        except (ImportError, AttributeError) as error:
            raise EnvironmentFault(
                f"the patch for {patch.versions} does not apply: {error}",
                where=patch.target,
                remedy=f"use the locked environment: `primus-cli env create {environment}`",
            ) from error
        if not holds:
            raise EnvironmentFault("the patch was made but has no effect", where=patch.target)
