"""Two runs beside each other: their curves, and how far they lie apart as text, charts and a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from primus.events import units
from primus.events.chart import BUCKETS, Chart, Series, Style, finite, smooth, thin
from primus.events.history import RunHistory
from primus.events.page import page, replace_file, table
from primus.numerics.compare import Comparison, Curve, Pairs, chosen

STEP_COLUMNS = ("step", "loss A", "loss B", "difference", "grad norm", "lr", "")
EVAL_COLUMNS = ("step", "validation A", "validation B", "difference", "")
LEGEND = "difference: B - A, nats a token; grad norm: relative to the larger; lr: B - A"
MOST_STRETCHES = 4


class Table(NamedTuple):
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Drawing(NamedTuple):
    """|difference| for a logarithmic axis: of the training steps over x, and of the evaluations. floor: stands for 0,
    None where nothing is 0; level: the band, None where it is 0 itself and so has no place."""

    x: Sequence[int]
    y: Sequence[float]
    points: Sequence[tuple[int, float]]
    floor: float | None
    level: float | None


def curve(history: RunHistory) -> Curve:
    """What is compared of a run; attempts are joined."""
    steps = history.steps
    evals = {record["step"]: (record["loss"], record["tokens"]) for record in history.evals}
    return Curve(steps.step, steps.loss, steps.grad_norm, steps.lr, evals)


def drawing(comparison: Comparison) -> Drawing:
    """What can be drawn of the differences; those that are not finite cannot."""
    band, parts = comparison.band, (comparison.training, comparison.evaluation)
    reach = [[(step, abs(d)) for step, d in zip(p.step, p.difference, strict=True) if math.isfinite(d)] for p in parts]
    every = [value for part in reach for _, value in part]
    positive = [value for value in every if value > 0]
    floor = None
    if len(positive) < len(every):  # the power of ten below the smallest value: there the zeros are drawn
        floor = 10.0 ** (math.ceil(math.log10(min([*positive, *([band] if band > 0 else [])], default=1e-9))) - 1)
    training, evaluation = ([(step, value or floor or 0.0) for step, value in part] for part in reach)
    return Drawing(
        [step for step, _ in training], [value for _, value in training], evaluation, floor, band if band > 0 else None
    )


def charts(a: RunHistory, b: RunHistory, comparison: Comparison) -> tuple[Chart, Chart]:
    """Both losses, and |difference| on a logarithmic axis with the band. Of long runs what is drawn is the mean loss
    and the largest difference of every few steps, over a faint line of all differences."""
    x, y, points, floor, level = drawing(comparison)
    losses = (_losses("A", a, "line"), _losses("B", b, "second"))
    differences = [Series.of("training", x, y, "line")]
    if len(x) > 2 * BUCKETS:
        length = math.ceil(len(x) / (BUCKETS // 3))
        tops = [max(range(start, min(start + length, len(x))), key=y.__getitem__) for start in range(0, len(x), length)]
        largest = Series(f"largest of {length:,} steps", [x[top] for top in tops], [y[top] for top in tops], "line")
        differences = [replace(differences[0], style="raw"), largest]
    if points:
        differences.append(Series.of("validation", [p[0] for p in points], [p[1] for p in points], "points"))
    training = comparison.training
    top = 2 * max([*y, *(value for _, value in points), level or 1.0])
    if broken := [training.step[index] for index in training.not_finite()]:
        differences.append(Series("not finite", *thin(broken, [top] * len(broken), BUCKETS // 6), "broken"))
    every = [*a.steps.step, *b.steps.step, *(step for step, _ in points)]

    def text(value: float) -> str:
        return "0" if value == floor else "" if value == top else f"{value:.2e}"

    return (
        Chart("Training loss", "nats a token", losses, exact, steps=(min(every), max(every))),
        Chart(
            "|Difference|", "of the losses, nats a token, logarithmic", tuple(differences), text,
            log=True, floor=floor, level=None if level is None else (level, f"band {level:g}"),
            steps=(min(every), max(every)), empty="no difference is finite",
        ),
    )  # fmt: skip


def _losses(label: str, history: RunHistory, style: Style) -> Series:
    x, y = finite(history.steps.step, history.steps.loss)
    if len(x) <= 2 * BUCKETS:
        return Series(label, x, y, style)
    span = len(x) // BUCKETS * 2 + 1
    return Series(f"{label}, mean of {span:,} steps", *smooth(x, y, span), style)


def step_rows(comparison: Comparison) -> list[list[str]]:
    """The chosen training steps, as STEP_COLUMNS name them."""
    return [
        [*_cells(comparison.training, index), small(comparison.grad_norm[index]), small(comparison.lr[index]), mark]
        for index, mark in _marked(comparison.training, comparison.band)
    ]


def eval_rows(comparison: Comparison) -> list[list[str]]:
    """The chosen evaluations, as EVAL_COLUMNS name them."""
    pairs = comparison.evaluation
    return [[*_cells(pairs, index), mark] for index, mark in _marked(pairs, comparison.band)]


def _marked(pairs: Pairs, band: float) -> list[tuple[int, str]]:
    worst = pairs.worst() if pairs.largest() > 0 else None
    beyond = set(pairs.beyond(band))
    return [
        (index, ", ".join([*(["beyond"] if index in beyond else []), *(["largest"] if index == worst else [])]))
        for index in chosen(pairs, band)
    ]


def _cells(pairs: Pairs, index: int) -> list[str]:
    return [
        f"{pairs.step[index]:,}", exact(pairs.a[index]), exact(pairs.b[index]), small(pairs.difference[index])
    ]  # fmt: skip


def exact(loss: float) -> str:
    """A loss with the digits that a comparison needs."""
    return f"{loss:.6f}" if not math.isfinite(loss) or abs(loss) < 1e4 else f"{loss:.6e}"


def small(difference: float) -> str:
    """``+2.4e-07``; ``0`` is exactly 0."""
    return f"{difference:+.1e}" if difference and math.isfinite(difference) else "0" if not difference else "not finite"


def summary(comparison: Comparison, band_from: str) -> dict[str, str]:
    """The figures of a comparison, as label -> text with units. band_from: who says so."""
    training, evaluation = comparison.training, comparison.evaluation
    found = {"steps compared": f"{len(training):,} ({_stretch(training.step[0], training.step[-1])})"}
    for label, only in (("only in A", comparison.only_a), ("only in B", comparison.only_b)):
        if only:
            shown = ", ".join(_stretch(*stretch) for stretch in only[:MOST_STRETCHES])
            number = sum(last - first + 1 for first, last in only)
            found[label] = f"{units.plural(number, 'step')}: {shown}{', ...' if len(only) > MOST_STRETCHES else ''}"
    found["largest |difference|"] = _largest(training)
    if evaluation:
        found["at an evaluation"] = f"{_largest(evaluation)}, {len(evaluation):,} compared"
    if comparison.incomparable:
        found["not compared"] = f"{units.plural(len(comparison.incomparable), 'evaluation')} on other amounts of text"
    if broken := training.not_finite():
        found["not finite"] = f"{units.plural(len(broken), 'step')}, the first {training.step[broken[0]]:,}"
    rate = max(range(len(training)), key=lambda index: abs(comparison.lr[index]))
    if comparison.lr[rate]:
        found["learning rate"] = f"differs by up to {small(abs(comparison.lr[rate])).lstrip('+')}"
    first = comparison.first_beyond
    found["band"] = f"{comparison.band:g} nats a token, {band_from}"
    found["first beyond the band"] = "none" if first is None else f"step {first:,}"
    return found


def _largest(pairs: Pairs) -> str:
    index = pairs.worst()
    if index is None:
        return "none"
    if pairs.largest() == 0:
        return "0 everywhere"
    return f"{small(abs(pairs.difference[index])).lstrip('+')} at step {pairs.step[index]:,}"


def _stretch(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def counted(comparison: Comparison) -> str:
    """``60 steps and 4 evaluations``; of those beyond the band, ``3 of 60 steps``."""
    parts = []
    for pairs, noun in ((comparison.training, "step"), (comparison.evaluation, "evaluation")):
        beyond = len(pairs.beyond(comparison.band))
        if comparison.within and pairs:
            parts.append(units.plural(len(pairs), noun))
        elif beyond:
            parts.append(f"{beyond:,} of {units.plural(len(pairs), noun)}")
    return " and ".join(parts)


def verdict(comparison: Comparison, same: bool) -> str:
    """One sentence. same: whether the plans mean the same experiment."""
    band, number = f"{comparison.band:g} nats a token", counted(comparison)
    if comparison.within:
        text = f"equal within {band} in {number}"
        return text if same else f"{text}, though the plans mean different experiments"
    text = f"not equal: {number} beyond {band}"
    return text if same else f"{text}, of plans that mean different experiments"


def write_comparison(
    path: Path,
    a: RunHistory,
    b: RunHistory,
    comparison: Comparison,
    *,
    names: tuple[str, str],
    same: bool,
    facts: Mapping[str, str],
    tables: Sequence[Table],
) -> None:
    """Write the page of a comparison. facts: label -> text; tables: what differs between the plans, what matters
    first. Raises RunDirectoryError when it cannot be written."""
    steps = Table(f"Steps ({LEGEND})", STEP_COLUMNS, step_rows(comparison))
    evaluations = Table("Evaluations", EVAL_COLUMNS, eval_rows(comparison))
    text = page(
        title=f"{names[0]} and {names[1]}: comparison",
        heading=f"{names[0]} and {names[1]}",
        tone="failed" if not comparison.within else "complete" if same else "stopped",
        status="equal within the band" if comparison.within else "not equal",
        note=f"{counted(comparison)}{'' if comparison.within else ' beyond the band'}"
        + ("" if same else "; the plans mean different experiments"),
        facts=facts,
        charts=charts(a, b, comparison),
        sections=[table(*one) for one in (*tables, steps, evaluations)],
        source=f"Made from the event files of {a.directory} (A) and {b.directory} (B).",
    )
    replace_file(path, text)
