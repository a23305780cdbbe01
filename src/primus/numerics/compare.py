"""Two runs step by step: how far their losses lie apart, and whether that is within a band."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """What one run reported: columns over its optimizer steps, which ascend and are unique. Losses in nats a token.
    evals: step -> loss and number of tokens of the evaluation after it."""

    step: Sequence[int]
    loss: Sequence[float]
    grad_norm: Sequence[float]
    lr: Sequence[float]
    evals: Mapping[int, tuple[float, int]]


class Pairs:
    """The losses of A and B at the steps that both have. ``difference`` is B - A; it is finite only where both are,
    so a NaN or an infinity on either side, or on both, is never within any band."""

    def __init__(self, step: Iterable[int], a: Iterable[float], b: Iterable[float]) -> None:
        self.step, self.a, self.b = array("q", step), array("d", a), array("d", b)
        self.difference = array("d", (right - left for left, right in zip(self.a, self.b, strict=True)))

    def __len__(self) -> int:
        return len(self.step)

    def worst(self) -> int | None:
        """Index of the largest |difference|, the first of equal ones; not finite is larger than any number."""
        return max(range(len(self)), key=lambda index: _reach(self.difference[index]), default=None)

    def largest(self) -> float:
        """The largest |difference|, in nats a token; 0 without any pair, infinity where one is not finite."""
        worst = self.worst()
        return 0.0 if worst is None else _reach(self.difference[worst])

    def beyond(self, band: float) -> list[int]:
        """Indices of the differences that are not within the band."""
        return [index for index, value in enumerate(self.difference) if not abs(value) <= band]

    def not_finite(self) -> list[int]:
        return [index for index, value in enumerate(self.difference) if not math.isfinite(value)]


@dataclass(frozen=True)
class Comparison:
    """A against B. ``grad_norm``: (B - A) / max(A, B) at each step of ``training``; ``lr``: B - A. ``only_a`` and
    ``only_b``: first and last of each stretch of steps that only one has. ``incomparable``: steps at which both were
    evaluated, but on different numbers of tokens."""

    band: float
    training: Pairs
    evaluation: Pairs
    grad_norm: array[float]
    lr: array[float]
    only_a: list[tuple[int, int]]
    only_b: list[tuple[int, int]]
    incomparable: list[int]

    @property
    def within(self) -> bool:
        """Whether every loss, of training and of evaluation, is within the band; False when there is none."""
        return len(self.training) > 0 and not any(part.beyond(self.band) for part in (self.training, self.evaluation))

    @property
    def first_beyond(self) -> int | None:
        """The first step whose training or evaluation loss is not within the band."""
        parts = (self.training, self.evaluation)
        return min((part.step[found[0]] for part in parts if (found := part.beyond(self.band))), default=None)


def compare(a: Curve, b: Curve, band: float) -> Comparison:
    """Compare the steps that both runs have. band: largest |difference| of losses that counts as equal, nats a token,
    inclusive."""
    place = {step: index for index, step in enumerate(b.step)}
    shared = [(index, place[step]) for index, step in enumerate(a.step) if step in place]
    evaluated = sorted(a.evals.keys() & b.evals.keys())
    alike = [step for step in evaluated if a.evals[step][1] == b.evals[step][1]]
    return Comparison(
        band=band,
        training=Pairs([a.step[i] for i, _ in shared], [a.loss[i] for i, _ in shared], [b.loss[j] for _, j in shared]),
        evaluation=Pairs(alike, [a.evals[step][0] for step in alike], [b.evals[step][0] for step in alike]),
        grad_norm=array("d", [relative(a.grad_norm[i], b.grad_norm[j]) for i, j in shared]),
        lr=array("d", [b.lr[j] - a.lr[i] for i, j in shared]),
        only_a=stretches(step for step in a.step if step not in place),
        only_b=stretches(sorted(place.keys() - set(a.step))),
        incomparable=[step for step in evaluated if step not in set(alike)],
    )


def relative(a: float, b: float) -> float:
    """(b - a) / max(|a|, |b|): 0 for equals, NaN where either is not finite."""
    scale = max(abs(a), abs(b))
    return (b - a) / scale if scale else 0.0


def stretches(steps: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending steps as first and last of each stretch without a gap."""
    found: list[tuple[int, int]] = []
    for step in steps:
        if found and step == found[-1][1] + 1:
            found[-1] = (found[-1][0], step)
        else:
            found.append((step, step))
    return found


def chosen(pairs: Pairs, band: float, about: int = 12) -> list[int]:
    """Indices of the pairs worth a line: the first, the last, the worst, the first beyond the band with the one before
    it, and some in between, evenly; all when there are no more than `about`."""
    if len(pairs) <= about:
        return list(range(len(pairs)))
    picked = {0, len(pairs) - 1}
    if (worst := pairs.worst()) is not None:
        picked.add(worst)
    if found := pairs.beyond(band):
        picked |= {found[0], max(0, found[0] - 1)}
    between = about - len(picked) + 1
    picked |= {round(part * (len(pairs) - 1) / between) for part in range(1, between)}
    return sorted(picked)


def _reach(difference: float) -> float:
    return abs(difference) if math.isfinite(difference) else math.inf
