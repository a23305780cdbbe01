"""Two runs on one page: figures, rows, charts, and what a logarithmic axis has no place for."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from primus.errors import RunDirectoryError
from primus.events.bus import Bus
from primus.events.chart import BUCKETS, Chart, Series, log_ticks, svg
from primus.events.comparison import (
    charts,
    curve,
    drawing,
    eval_rows,
    small,
    step_rows,
    summary,
    verdict,
    write_comparison,
)
from primus.events.history import RunHistory, read_run
from primus.events.terminal_chart import LEVEL, POINT, draw
from primus.events.types import EvalDone, RunStarted, StepDone
from primus.numerics.compare import Comparison, compare

SVG = "{http://www.w3.org/2000/svg}"


def history(path: Path, losses: list[float], evals: dict[int, float] | None = None) -> RunHistory:
    with Bus(path / "attempts" / "1", "rank0") as bus:
        bus.emit(RunStarted(name=path.name, attempt=1, world_size=1, device="cpu", parameters=1, steps=len(losses)))
        for step, loss in enumerate(losses, 1):
            bus.emit(StepDone(step=step, loss=loss, grad_norm=1, lr=1e-3, tokens=64, seconds=0.1, memory_bytes=1))
        for step, loss in (evals or {}).items():
            bus.emit(EvalDone(step=step, loss=loss, tokens=64, seconds=0.1))
    return read_run(path)


def both(
    tmp_path: Path, a: list[float], b: list[float], band: float, evals: Sequence[dict[int, float]] = ({}, {})
) -> Comparison:
    left, right = (history(tmp_path / name, losses, e) for name, losses, e in zip("ab", (a, b), evals, strict=True))
    return compare(curve(left), curve(right), band)


def test_figures_and_rows(tmp_path: Path) -> None:
    found = both(tmp_path, [4.0, 3.0, 2.0], [4.0, 3.5, 2.0, 1.0], 0.1, ({3: 2.5}, {3: 2.75}))
    assert step_rows(found) == [
        ["1", "4.000000", "4.000000", "0", "0", "0", ""],
        ["2", "3.000000", "3.500000", "+5.0e-01", "0", "0", "beyond, largest"],
        ["3", "2.000000", "2.000000", "0", "0", "0", ""],
    ]
    assert eval_rows(found) == [["3", "2.500000", "2.750000", "+2.5e-01", "beyond, largest"]]
    assert summary(found, "from --band") == {
        "steps compared": "3 (1 to 3)",
        "only in B": "1 step: 4",
        "largest |difference|": "5.0e-01 at step 2",
        "at an evaluation": "2.5e-01 at step 3, 1 compared",
        "band": "0.1 nats a token, from --band",
        "first beyond the band": "step 2",
    }
    assert verdict(found, True) == "not equal: 1 of 3 steps and 1 of 1 evaluation beyond 0.1 nats a token"
    assert "different experiments" in verdict(found, False)


def test_what_is_not_finite_is_said(tmp_path: Path) -> None:
    found = both(tmp_path, [4.0, math.nan, 2.0], [4.0, math.nan, math.inf], 1.0)
    assert summary(found, "")["not finite"] == "2 steps, the first 2"
    assert summary(found, "")["largest |difference|"] == "not finite at step 2"
    assert step_rows(found)[1] == ["2", "nan", "nan", "not finite", "0", "0", "beyond, largest"]
    assert not found.within


def test_many_stretches_are_cut_short(tmp_path: Path) -> None:
    found = both(tmp_path, [1.0] * 12, [1.0] * 12, 0.0)
    assert "only in A" not in summary(found, "")
    found = replace(found, only_a=[(n, n) for n in range(20, 40, 2)])
    assert summary(found, "")["only in A"] == "10 steps: 20, 22, 24, 26, ..."


def test_zeros_stand_below_the_smallest_difference(tmp_path: Path) -> None:
    found = drawing(both(tmp_path, [1.0, 1.0, 1.0], [1.0, 1.25, 1.5], 0.3))
    assert found.floor == 0.1
    assert list(found.y) == [0.1, 0.25, 0.5]
    assert found.level == 0.3
    none = drawing(both(tmp_path / "2", [1.0], [1.5], 0.0))
    assert (none.floor, none.level) == (None, None)
    equal = drawing(both(tmp_path / "3", [1.0], [1.0], 1e-5))
    assert equal.floor is not None
    assert 0 < equal.floor < 1e-5
    assert drawing(both(tmp_path / "4", [1.0], [1.0], 0.0)).floor is not None
    assert drawing(both(tmp_path / "5", [math.nan], [1.0], 0.1)).y == []


@pytest.mark.parametrize(
    ("a", "b", "band"),
    [
        ([5.0, 4.0, 3.0], [5.0, 4.00001, 3.0], 1e-5),
        ([5.0], [5.0], 0.0),
        ([math.nan, math.inf], [1.0, 1.0], 1e-5),
        ([1e-300, 1e300], [1.0, 1.0], 1e-5),
        ([float(n % 7) for n in range(5000)], [float(n % 11) for n in range(5000)], 1e-5),
    ],
)
def test_the_page_is_whole_whatever_the_runs_hold(tmp_path: Path, a: list[float], b: list[float], band: float) -> None:
    left, right = history(tmp_path / "a<b>", a, {1: 2.0}), history(tmp_path / "b", b, {1: 2.5})
    found = compare(curve(left), curve(right), band)
    page = tmp_path / "page.html"
    write_comparison(page, left, right, found, names=("a<b>", "b"), same=True, facts={"A": "a<b>"}, tables=[])
    text = page.read_text(encoding="utf-8")
    assert "<h1>a&lt;b&gt; and b</h1>" in text
    assert ("equal within the band</span>" in text) == found.within
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")  # no network
    drawn = [ElementTree.fromstring(svg(chart)) for chart in charts(left, right, found)]
    for root in drawn:
        for number in re.findall(r"-?[\d.]+(?:e[-+]\d+)?", " ".join(p.get("d", "") for p in root.iter(f"{SVG}path"))):
            assert -1 <= float(number) <= 721
        assert sum(len(p.get("d", "").split("L")) for p in root.iter(f"{SVG}path")) <= 5 * BUCKETS
        assert "optimizer step" in [element.text for element in root.iter(f"{SVG}text")]
    names = [element.text for element in drawn[1].iter(f"{SVG}text")]
    assert (f"band {band:g}" in names) == (band > 0)
    assert "nats a token" in ElementTree.tostring(drawn[1], encoding="unicode")


def test_a_long_run_shows_the_largest_of_every_few_steps(tmp_path: Path) -> None:
    losses = [1.0] * 3000
    other = [1.0 + 1e-6 * (1 + step % 10) for step in range(3000)]
    other[1234] = 1.5
    left, right = history(tmp_path / "a", losses), history(tmp_path / "b", other)
    loss, difference = charts(left, right, compare(curve(left), curve(right), 1e-5))
    assert [(series.label, series.style) for series in difference.series] == [
        ("training", "raw"),
        ("largest of 15 steps", "line"),
    ]
    assert max(difference.series[1].y) == 0.5
    assert sorted(difference.series[1].y)[-2] < 2e-5
    assert [series.label for series in loss.series] == ["A, mean of 11 steps", "B, mean of 11 steps"]


def test_steps_that_are_not_finite_are_marked_above_all_others(tmp_path: Path) -> None:
    left, right = history(tmp_path / "a", [1.0, 2.0, 3.0]), history(tmp_path / "b", [1.0, math.nan, 3.5, 4.0])
    loss, difference = charts(left, right, compare(curve(left), curve(right), 0.1))
    mark = difference.series[-1]
    assert (mark.label, mark.style, list(mark.x), list(mark.y)) == ("not finite", "broken", [2], [1.0])
    assert difference.text(1.0) == ""
    assert loss.steps == difference.steps == (1, 4)  # both charts span the same steps


def test_a_learning_rate_that_differs_is_told(tmp_path: Path) -> None:
    left, right = history(tmp_path / "a", [1.0, 2.0]), history(tmp_path / "b", [1.0, 2.0])
    right.steps.lr[1] = 1.5e-3
    found = compare(curve(left), curve(right), 0.0)
    assert summary(found, "")["learning rate"] == "differs by up to 5.0e-04"
    assert found.within


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    one = history(tmp_path / "a", [1.0])
    found = compare(curve(one), curve(one), 0.0)
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        write_comparison(
            tmp_path / "no" / "page.html", one, one, found, names=("a", "a"), same=True, facts={}, tables=[]
        )


def test_small_numbers_read_as_differences() -> None:
    assert [small(value) for value in (0.0, -0.0, 2.4e-7, -3.0, math.nan, math.inf)] == [
        "0", "0", "+2.4e-07", "-3.0e+00", "not finite", "not finite",
    ]  # fmt: skip


def test_marks_of_a_logarithmic_axis() -> None:
    assert log_ticks(-1, 1) == pytest.approx([0.1, 0.2, 0.5, 1, 2, 5, 10])
    assert log_ticks(-6.5, -1.5) == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    assert len(log_ticks(-300, 2)) <= 13


def test_a_level_is_marked_in_both_kinds_of_chart() -> None:
    chart = Chart(
        "d", "", (Series("d", [1, 2], [1e-7, 1e-6], "second"),), str, log=True, floor=1e-7, level=(1e-5, "band")
    )
    root = ElementTree.fromstring(svg(chart))
    (level,) = [line for line in root.iter(f"{SVG}line") if line.get("class") == "level"]
    (path,) = [p for p in root.iter(f"{SVG}path") if len(p.get("d", "").split("L")) == 2]
    assert path.get("class") == "second"
    assert float(level.get("y1", "0")) < min(float(y) for y in re.findall(r" ([\d.]+)", path.get("d", "")))
    assert {"0", "1e-06", "1e-05", "band"} <= {text.text for text in root.iter(f"{SVG}text")}

    lines = draw([1, 2, 3], [1e-7, 1e-6, 1e-6], [(2, 1e-6)], width=60, height=12, log=True, floor=1e-7, level=1e-5)
    assert lines[0].strip().startswith("1e-05┤")
    assert LEVEL * 20 in lines[0]
    assert any(line.strip().startswith("0┤") for line in lines)
    assert sum(POINT in line for line in lines) == 1
    assert max(map(len, lines)) <= 60
    plain = draw([1, 2], [1.0, 10.0], width=60, height=12, log=True, level=5.0, ascii_only=True)
    assert all(line.isascii() for line in plain)
    assert any("-" * 20 in line for line in plain[:-2])
    assert draw([], [], width=60, height=12, log=True, level=1.0) == []
