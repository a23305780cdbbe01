"""``report.html``: one run on one page, in one file that needs no network."""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from operator import truediv
from pathlib import Path
from typing import Any

from primus.checkpoints import store
from primus.errors import PrimusError
from primus.events import attempts, goodput, units
from primus.events.chart import Chart, Series, finite, smooth, svg
from primus.events.history import RunHistory, read_run
from primus.events.page import CHART_STYLE, moment, page, replace_file, split, table

_STANDALONE_STYLE = (
    "svg { --ink: #1d2125; --soft: #667078; --rule: #e2e5e7; --raw: #b9cbe6; --line: #1c5fb8; --points: #c8500b;"
    " --card: #fff; background: #fff; }\n" + CHART_STYLE
)


def write_report(run_directory: Path, *, history: RunHistory | None = None, output: Path | None = None) -> Path:
    """Write the report of a run, by default to its ``report.html``; an older one is replaced at once, not in pieces.
    Raises RunDirectoryError when it cannot be written."""
    history = history or read_run(run_directory)
    path = output or Path(run_directory) / "report.html"
    replace_file(path, render(history))
    return path


def write_loss_svg(history: RunHistory, output: Path) -> Path:
    """Write the loss curve alone, as an SVG file."""
    replace_file(output, svg(charts(history)[0], style=_STANDALONE_STYLE) + "\n")
    return output


def charts(history: RunHistory) -> tuple[Chart, ...]:
    """Loss, throughput, learning rate and gradient norm over the steps."""
    steps = history.steps
    span = max(9, len(steps) // 60 | 1)
    throughput = array("d", map(truediv, steps.tokens, [seconds or math.nan for seconds in steps.seconds]))
    validation = Series.of(
        "validation", [e["step"] for e in history.evals], [e["loss"] for e in history.evals], "points"
    )

    def raw_and_smooth(label: str, values: array[float]) -> tuple[Series, ...]:
        if len(values) <= 2 * span:
            return (Series.of(label, steps.step, values, "line"),)
        x, y = finite(steps.step, values)
        return Series.of(label, x, y, "raw"), Series(f"mean of {span:,} steps", *smooth(x, y, span), "line")

    learning_rate = Series.of("learning rate", steps.step, steps.lr, "line")
    losses = (*raw_and_smooth("training", steps.loss), *([validation] if history.evals else []))
    norms = raw_and_smooth("gradient norm", steps.grad_norm)
    return (
        Chart("Loss", "nats a token", losses, units.loss),
        Chart("Throughput", "tokens a second", raw_and_smooth("all devices", throughput), _speed, from_zero=True),
        Chart("Learning rate", "", (learning_rate,), units.learning_rate, from_zero=True),
        Chart("Gradient norm", "before clipping", norms, units.norm, log=_spread(steps.grad_norm) > 30),
    )


def _speed(tokens_per_second: float) -> str:
    return f"{units.count(tokens_per_second)} tokens/s"


def _spread(values: Sequence[float]) -> float:
    """How far the highest value lies above the typical one."""
    some = sorted(v for v in values[:: max(1, len(values) // 1000)] if math.isfinite(v) and v > 0)
    highest = max(finite(values, values)[1], default=0.0)
    return highest / some[len(some) // 2] if some else 1.0


def render(history: RunHistory) -> str:
    """The page as text."""
    total = history.total_steps
    last = history.steps.step[-1] if history.steps else 0
    return page(
        title=f"{history.name}: training report",
        heading=history.name,
        tone=history.status,
        status=history.status,
        note=f"step {last:,} of {total:,}" if total else f"step {last:,}",
        facts=facts(history),
        charts=charts(history),
        sections=_sections(history),
        source=f"Made from the event files of {history.directory}.",
    )


def facts(history: RunHistory) -> dict[str, str]:
    """The figures that sum a run up, as label -> text with units."""
    plan, steps = history.plan or {}, history.steps
    experiment = plan.get("experiment")
    found: dict[str, str] = {}
    if steps:
        found["last training loss"] = f"{units.loss(steps.loss[-1])} nats/token"
    if history.evals:
        best = min(history.evals, key=lambda e: e["loss"] if math.isfinite(e["loss"]) else math.inf)
        found["best validation loss"] = f"{units.loss(best['loss'])} at step {best['step']:,}"
        found["last validation loss"] = f"{units.loss(history.evals[-1]['loss'])} at step {history.evals[-1]['step']:,}"
    if isinstance(plan.get("parameters"), int | float):
        found["parameters"] = units.count(plan["parameters"])
    if steps:
        found["tokens trained on"] = units.count(history.tokens)
    found["duration"] = units.duration(history.seconds)
    spent = history.goodput
    if steps and spent is not None and spent.fraction is not None:
        found["goodput"] = f"{units.percent(spent.fraction)} of {units.duration(spent.total)}"
    if steps:
        every = slice(None, None, max(1, len(steps) // 50_000))  # medians of a sample are as good
        median = statistics.median
        found["median speed"] = units.rate(median(steps.tokens[every]), median(steps.seconds[every]))
        found["peak memory"] = f"{units.size(max(steps.memory_bytes))} a device"
        known = [value for value in steps.mfu[every] if math.isfinite(value)]
        if known:
            found["median MFU"] = units.percent(median(known))
    started = next((attempt for attempt in reversed(history.attempts) if attempt.device), None)
    if started:
        found["devices"] = f"{started.world_size} x {started.device}"
    for key in ("backend", "precision"):
        if isinstance(experiment, dict) and experiment.get(key):
            found[key] = str(experiment[key])
    engine = plan.get("engine")
    if isinstance(engine, Mapping):
        found["engine"] = ", ".join(f"{name} {version}" for name, version in engine.items())
    return found


def _sections(history: RunHistory) -> Iterable[str]:
    for failure in history.failures[-5:]:
        step = "" if failure.get("step") is None else f" at step {failure['step']:,}"
        who = f"attempt {failure['attempt']}: rank {failure['rank']} on {failure['node']}"
        title = f"{who} failed{step}: {failure['error']}"
        remedy = f"<p>{escape(failure['remedy'])}</p>" if failure.get("remedy") else ""
        yield (
            f'<details><summary class="failed">{escape(title[:500])}</summary>{remedy}'
            f"<pre>{escape(failure['traceback'][-20_000:])}</pre></details>"
        )
    yield from _time(history)
    yield table(
        "Checkpoints", ("step", "saved", "on disk", "size", "time to save", "training paused"), _checkpoints(history)
    )
    rows = [
        (f"{e['step']:,}", units.loss(e["loss"]), units.count(e["tokens"]), units.duration(e["seconds"]))
        for e in history.evals
    ]
    yield table("Validation", ("step", "loss (nats/token)", "tokens", "duration"), rows)
    rows = [
        (moment(n["time"]), str(n["attempt"]), "" if n.get("step") is None else f"{n['step']:,}", n["message"][:2000])
        for n in history.notices
    ]
    yield table("Notices", ("time", "attempt", "step", "notice"), rows)
    plan = history.plan or {}
    if plan.get("experiment"):
        import yaml

        text = yaml.safe_dump(_known(plan["experiment"]), sort_keys=False, allow_unicode=True, width=110)
        yield f"<details><summary>Resolved experiment</summary><pre>{escape(text)}</pre></details>"
        rest = {
            key: plan[key]
            for key in ("environment", "engine", "topology", "env", "patches", "data", "native")
            if plan.get(key)
        }
        text = yaml.safe_dump(rest, sort_keys=False, allow_unicode=True, width=110)
        yield f"<details><summary>Environment and plan</summary><pre>{escape(text)}</pre></details>"


def _time(history: RunHistory) -> Iterable[str]:
    """The attempts with the starts within them, and where their time went."""
    starts = attempts.rows(history.attempts, running=history.status == "running")
    columns = ("start", "began", "nodes", "ranks", "resumed from", "steps", "lost", "duration", "useful", "ended")
    rows = [
        (
            r.number, moment(r.began), r.nodes, r.ranks, r.resumed_from, r.steps, r.lost, r.duration, r.useful,
            r.ended[:500],
        )
        for r in starts
    ]  # fmt: skip
    yield table("Attempts", columns, rows)
    parts = history.goodput
    if parts is not None and parts.total:
        lines = [(name, getattr(parts, name) / parts.total, cells) for name, *cells in goodput.lines(parts)]
        yield split("Where the time went", lines)


def _checkpoints(history: RunHistory) -> list[tuple[str, ...]]:
    """What the events tell of each checkpoint, joined with what is on the disk now."""
    try:
        on_disk = {entry.step: entry for entry in store.entries(history.directory)}
    except PrimusError:
        on_disk = {}
    saved = {record["step"]: record for record in history.checkpoints}
    rows: list[tuple[str, ...]] = []
    for step in sorted({*on_disk, *saved}):
        record, entry = saved.get(step), on_disk.get(step)
        when = record["time"] if record else entry.info.saved if entry and entry.info else None
        size = record["bytes"] if record else entry.info.bytes if entry and entry.info else None
        times = [units.duration(record[key]) for key in ("seconds", "blocked_seconds")] if record else ["", ""]
        state, bytes_ = entry.state if entry else "removed", "" if size is None else units.size(size)
        rows.append((f"{step:,}", moment(when), state, bytes_, *times))
    return rows


def _known(value: Any) -> Any:
    """Without the fields that were left unset."""
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items() if item is not None}
    return [_known(item) for item in value] if isinstance(value, list) else value
