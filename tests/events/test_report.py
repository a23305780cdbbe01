"""The report: one file, no network, nothing lost and nothing executed."""

from __future__ import annotations

import json
import math
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primus.checkpoints import store
from primus.errors import RunDirectoryError
from primus.events.chart import BUCKETS, Chart, Series, finite, smooth, svg, thin, ticks
from primus.events.history import RunHistory, read_run
from primus.events.jsonl import encode
from primus.events.report import charts, facts, render, write_loss_svg, write_report
from primus.events.terminal_chart import POINT, draw

HOSTILE = "<script>alert(1)</script> & \"quoted\" '$name' ${data}"


class Page(HTMLParser):
    """Tags in order, with a check that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def make_run(run: Path, steps: int = 50, **odd: Any) -> Path:
    run.mkdir(parents=True)
    with (run / "events").open("wb"):
        pass
    folder = run / "attempts" / "1"
    folder.mkdir(parents=True)
    base = {"writer": "rank0", "time": 1000.0}
    lines = [
        {
            "event": "run_started",
            "name": run.name,
            "attempt": 1,
            "world_size": 2,
            "device": "MI300X",
            "parameters": 5,
            "steps": steps,
            "resumed_from": None,
            "notes": [],
        },
        *(
            {
                "event": "step_done",
                "step": n,
                "loss": 9.0 / n,
                "grad_norm": 1.0,
                "lr": 1e-3,
                "tokens": 4096,
                "seconds": 0.25,
                "memory_bytes": 5 << 30,
                "mfu": 0.4,
                "auxiliary": None,
                **odd,
            }
            for n in range(1, steps + 1)
        ),
        {"event": "eval_done", "step": steps, "loss": 0.75, "tokens": 10, "seconds": 0.5},
        {
            "event": "checkpoint_saved",
            "step": steps,
            "path": "x",
            "bytes": 3 << 20,
            "seconds": 1.5,
            "blocked_seconds": 0.25,
        },
        {"event": "notice", "message": HOSTILE, "step": 3},
        {
            "event": "rank_failed",
            "rank": 1,
            "node": "n",
            "error": HOSTILE,
            "traceback": HOSTILE * 3,
            "step": 2,
            "remedy": HOSTILE,
        },
    ]
    (folder / "events-rank0.jsonl").write_bytes(b"".join(encode(base | line) for line in lines))
    experiment = {
        "name": run.name,
        "backend": "torchtitan",
        "precision": "bf16",
        "model": {"hidden_size": 64, "q_lora_rank": None},
        "train": {"steps": steps},
        "optimizer": {"lr": 0.001},
        "env": {"NOTE": HOSTILE},
    }
    plan = {
        "experiment": experiment,
        "parameters": 1_052_416,
        "engine": {"torchtitan": "0.3.0"},
        "environment": "torch",
    }
    (run / "plan.json").write_text(json.dumps(plan))
    return run


def test_the_page_is_whole_needs_no_network_and_runs_nothing_of_the_data(tmp_path: Path) -> None:
    run = make_run(tmp_path / "hostile")
    path = write_report(run)
    assert path == run / "report.html"
    text = path.read_text()
    page = Page(text)
    assert page.tags.count("script") == 2
    assert page.links == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(1)") >= 4
    assert page.tags.count("svg") == 4
    for expected in (
        "MI300X",
        "1.05 M",
        "torchtitan 0.3.0",
        "0.7500 at step 50",
        "16.4 k tokens/s",
        "40.0 %",
        "hidden_size: 64",
        "nats a token",
        "optimizer step",
        "failed",
    ):
        assert expected in text, expected
    assert "q_lora_rank" not in text
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text).group(1))  # type: ignore[union-attr]
    assert [series["label"] for series in data[0]] == ["training", "mean of 9 steps", "validation"]
    assert data[0][0]["x"] == list(range(1, 51))


def test_a_run_name_is_only_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / '<img src=x onerror="alert(1)">')
    text = write_report(run).read_text()
    assert "img" not in Page(text).tags


def test_a_run_that_has_not_begun_has_a_page(tmp_path: Path) -> None:
    text = render(read_run(tmp_path))
    assert text.count("no data yet") == 4
    assert Page(text).tags.count("svg") == 4


@pytest.mark.parametrize(
    "odd", [{"loss": math.nan}, {"grad_norm": math.inf}, {"seconds": 0.0}, {"lr": 0.0}, {"tokens": 0}, {"mfu": None}]
)
def test_odd_figures_leave_gaps_not_crashes(tmp_path: Path, odd: dict[str, Any]) -> None:
    text = write_report(make_run(tmp_path / "odd", **odd)).read_text()
    Page(text)
    assert not re.search(r'd="[^"]*(nan|inf)', text)


def test_one_step_is_a_dot(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path / "one", steps=1)).read_text()
    assert text.count('class="dot line"') == 4


def test_checkpoints_show_what_is_on_the_disk_now(tmp_path: Path) -> None:
    run = make_run(tmp_path / "saved")
    directory = store.begin(run, 60)
    (directory / "w").write_bytes(b"x" * 2048)
    store.seal(directory, step=60, consumed_samples=1, model={})
    text = write_report(run).read_text()
    assert "<td>50</td>" in text
    assert "<td>removed</td><td>3.00 MiB</td><td>1.50 s</td><td>0.25 s</td>" in text
    assert "<td>complete</td><td>2.00 KiB</td>" in text


def test_long_tables_are_cut_and_say_so(tmp_path: Path) -> None:
    history = RunHistory(tmp_path / "r")
    history.notices = [{"time": 1.0, "attempt": 1, "step": n, "message": "m" * 5000} for n in range(1000)]
    text = render(history)
    assert "The newest 200 of 1,000" in text
    assert len(text) < 1_000_000


def test_an_unwritable_place_is_named_and_the_old_report_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    with pytest.raises(RunDirectoryError, match="report cannot be written"):
        write_report(run, output=tmp_path / "no" / "such" / "report.html")
    (run / "report.html").mkdir()
    with pytest.raises(RunDirectoryError, match="report cannot be written"):
        write_report(run)
    assert list(run.glob(".report*")) == []


def test_a_long_run_makes_a_small_page_quickly(tmp_path: Path) -> None:
    history = RunHistory(tmp_path / "long")
    steps, count = history.steps, 300_000
    for name, value in zip(steps.COLUMNS, [0, 1.0, 2.0, 1.0, 1e-3, 4096, 0.5, 1 << 30, math.nan], strict=True):
        column = getattr(steps, name)
        column.extend(range(1, count + 1) if name == "step" else [value] * count)
    steps.loss[123_456] = 77.0
    began = time.process_time()
    text = render(history)
    assert time.process_time() - began < 3
    assert len(text) < 2_000_000
    assert any(77.0 in series.y for series in charts(history)[0].series)
    assert "77.0000" in text


def test_the_loss_alone_is_a_standalone_svg(tmp_path: Path) -> None:
    from xml.etree import ElementTree

    path = write_loss_svg(read_run(make_run(tmp_path / "r")), tmp_path / "loss.svg")
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "stroke" in path.read_text()


def test_facts_of_several_attempts(tmp_path: Path) -> None:
    found = facts(read_run(make_run(tmp_path / "r")))
    assert found["devices"] == "2 x MI300X"
    assert found["tokens trained on"] == "205 k"
    assert found["peak memory"] == "5.00 GiB a device"


VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5000)


@settings(max_examples=50, deadline=None)
@given(VALUES, st.integers(1, 50))
def test_thinning_keeps_extremes_and_order(values: list[float], buckets: int) -> None:
    x, y = thin(range(len(values)), values, buckets)
    assert (min(y), max(y)) == (min(values), max(values))
    assert list(x) == sorted(set(x))
    assert all(values[int(a)] == b for a, b in zip(x, y, strict=True))
    assert len(y) <= max(2 * buckets, 2)


@settings(max_examples=50, deadline=None)
@given(VALUES, st.integers(1, 99))
def test_smoothing_is_the_mean_around_each_place(values: list[float], span: int) -> None:
    x, y = smooth(range(len(values)), values, span | 1)
    assert (x[0], x[-1]) == (0, len(values) - 1)
    assert len(x) <= 2 * BUCKETS + 2 or len(values) < 4 * BUCKETS
    for place, value in list(zip(x, y, strict=True))[::37]:
        half = min((span | 1) // 2, int(place), len(values) - 1 - int(place))
        window = values[int(place) - half : int(place) + half + 1]
        assert value == pytest.approx(sum(window) / len(window), abs=1e-3)


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    high = low + width
    found = ticks(low, high)
    assert len(found) <= 13
    assert found == sorted(found)
    slack = 1e-6 * max(abs(low), abs(high), width)
    assert all(low - slack <= value <= high + slack for value in found)


def test_values_that_are_not_finite_leave_a_curve() -> None:
    x, y = finite([1, 2, 3, 4], [1.0, math.nan, math.inf, 4.0])
    assert (list(x), list(y)) == ([1, 4], [1.0, 4.0])
    assert list(finite([1, 2], [1e308, 1e308])[1]) == [1e308, 1e308]


def test_a_logarithmic_axis_leaves_out_what_has_no_logarithm() -> None:
    chart = Chart("norm", "", (Series("n", [1, 2, 3, 4], [0.0, 1.0, 10.0, 1000.0], "line"),), str, log=True)
    text = svg(chart)
    assert len(re.search(r'class="line" d="M([^"]*)"', text).group(1).split("L")) == 3  # type: ignore[union-attr]
    assert ">100<" in text
    svg(Chart("norm", "", (Series("n", [1], [0.0], "line"),), str, log=True))


@pytest.mark.parametrize(("width", "height"), [(20, 6), (80, 20), (140, 24)])
def test_the_terminal_chart_fits_and_falls(width: int, height: int) -> None:
    lines = draw(range(1, 1001), [10 / n for n in range(1, 1001)], [(500, 5.0)], width=width, height=height)
    assert len(lines) == height
    assert max(map(len, lines)) <= width
    assert sum(line.count(POINT) for line in lines) == 1
    assert "step 1,000" in lines[-1]
    plain = draw([1, 2], [1.0, 2.0], width=width, height=height, ascii_only=True)
    assert "".join(plain).isascii()


def test_the_terminal_chart_of_nothing_one_value_and_a_flat_line() -> None:
    assert draw([], [], width=80, height=20) == []
    assert draw([1], [math.nan], width=80, height=20) == []
    assert len(draw([5], [2.0], width=80, height=20)) == 20
    assert len(draw([1, 2, 3], [2.0, 2.0, 2.0], width=80, height=20)) == 20


@pytest.mark.parametrize(
    "plan", ["[]", "{", '{"experiment": []}', '{"experiment": 3, "engine": 4, "parameters": "x"}', '{"env": null}']
)
def test_a_damaged_plan_leaves_the_rest_of_the_page(tmp_path: Path, plan: str) -> None:
    run = make_run(tmp_path / "r")
    (run / "plan.json").write_text(plan)
    assert Page(write_report(run).read_text()).tags.count("svg") == 4
