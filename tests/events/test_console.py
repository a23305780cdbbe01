"""What a person sees while a run trains."""

from __future__ import annotations

import io
import os
import pty
import re
import time
from types import SimpleNamespace
from typing import Any

import pytest

from primus.events import units
from primus.events.sinks.console import MESSAGE_LIMIT, Console


def plan(steps: int = 100, log_interval: int = 10, name: str = "tiny") -> Any:
    """The three values a console reads of a plan."""
    monitor, train = SimpleNamespace(log_interval=log_interval), SimpleNamespace(steps=steps)
    return SimpleNamespace(experiment=SimpleNamespace(name=name, monitor=monitor, train=train))


def record(event: str, **fields: Any) -> dict[str, Any]:
    return {"event": event, "time": 1000.0, "writer": "rank0", **fields}


def step(number: int, **fields: Any) -> dict[str, Any]:
    values = {
        "loss": 2.5,
        "grad_norm": 0.75,
        "lr": 3e-4,
        "tokens": 1000,
        "seconds": 0.5,
        "memory_bytes": 3 << 30,
        "mfu": None,
    }
    return record("step_done", step=number, auxiliary=None, **(values | fields))


def started(resumed_from: int | None = None, **fields: Any) -> dict[str, Any]:
    values = {"attempt": 1, "world_size": 2, "device": "cpu", "parameters": 1_050_000, "steps": 100, "notes": []}
    return record("run_started", name="tiny", resumed_from=resumed_from, **(values | fields))


def shown(*records: dict[str, Any], interactive: bool = False, **options: Any) -> str:
    out = io.StringIO()
    console = Console(plan(**options), file=out, interactive=interactive)
    for each in records:
        console.handle(each)
    console.close()
    return out.getvalue()


def test_plain_lines_come_at_the_interval_and_at_both_ends() -> None:
    text = shown(started(), *(step(n) for n in range(1, 36)), steps=35)
    assert re.findall(r"^step (\d+)/35", text, re.MULTILINE) == ["1", "10", "20", "30", "35"]
    line = next(line for line in text.splitlines() if line.startswith("step 20/"))
    assert line == "step 20/35  loss 2.5000  lr 3.00e-04  2,000 tokens/s  memory 3.00 GiB  grad norm 0.750  7.50 s left"


def test_a_run_that_stops_between_intervals_shows_its_last_step() -> None:
    text = shown(started(), *(step(n) for n in range(1, 8)), record("run_ended", reason="stopped", step=7))
    assert "step 7/100" in text
    assert text.rstrip().endswith("stopped at step 7")


def test_every_other_event_has_its_line() -> None:
    text = shown(
        started(40, attempt=3, notes=["step 50 is damaged; step 40 is used"]),
        step(41, mfu=0.382),
        record("eval_done", step=50, loss=3.25, tokens=9, seconds=1.5),
        record("checkpoint_saved", step=50, path="/x", bytes=12 << 20, seconds=0.4, blocked_seconds=0.05),
        record("notice", message="profile written", step=12),
        record("rank_failed", rank=1, node="n7", error="RuntimeError: lost", traceback="", step=51),
        record("from_a_newer_version", step=3),
        step(60, mfu=0.382),
        record("run_ended", reason="failed", step=60),
        record("run_ended", reason="failed", step=60),
    )
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in text.splitlines()]
    assert lines == [
        "attempt 3 continues after step 40: 2 devices (cpu), 1.05 M parameters",
        "step 50 is damaged; step 40 is used",
        "step 50: validation loss 3.2500 in 1.50 s",
        "step 50: checkpoint of 12.0 MiB saved in 0.40 s, paused 0.05 s",
        "step 12: profile written",
        "rank 1 on n7 failed at step 51: RuntimeError: lost",
        "step 60/100  loss 2.5000  validation 3.2500  lr 3.00e-04  2,000 tokens/s  memory 3.00 GiB  MFU 38.2 %"
        "  grad norm 0.750  51.0 s left",
        "failed at step 60",
    ]


def test_one_process_from_the_start() -> None:
    assert "attempt 1 starts from step 0: 1 device (cpu)" in shown(started(world_size=1))


def test_what_a_resumed_attempt_repeats_is_no_longer_shown() -> None:
    text = shown(
        started(),
        step(20),
        record("eval_done", step=20, loss=9.0, tokens=1, seconds=0.1),
        started(10, attempt=2),
        step(20),
    )
    assert text.rstrip().splitlines()[-1].startswith("step 20/100  loss 2.5000  lr")


def test_the_first_step_says_nothing_of_the_speed() -> None:
    text = shown(started(), step(1, seconds=60.0), *(step(n) for n in range(2, 11)))
    assert "2,000 tokens/s" in text.splitlines()[-1]


def test_nan_and_odd_figures_are_printed_as_they_are() -> None:
    text = shown(started(), step(10, loss=float("nan"), grad_norm=float("inf"), seconds=0.0), step(20, seconds=-1.0))
    assert "loss nan" in text
    assert "grad norm inf" in text


def test_hostile_messages_are_tamed() -> None:
    text = shown(
        record(
            "notice", message="a\x1b[31mred\x1b]0;title\x07 [bold]not markup[/bold]\rgone " + "x" * 100_000, step=None
        )
    )
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]not markup[/bold]" in text
    assert "more characters in the event files" in text
    assert len(text) < MESSAGE_LIMIT + 200


def test_a_notice_that_keeps_coming_is_shown_ever_more_rarely() -> None:
    text = shown(*(record("notice", message="slow disk", step=None) for _ in range(1000)))
    assert [line[9:] for line in text.splitlines()] == [
        "slow disk",
        "slow disk (10 times)",
        "slow disk (100 times)",
        "slow disk (1,000 times)",
    ]


def test_output_that_goes_away_or_cannot_take_a_letter_does_not_end_the_run() -> None:
    read, write = os.pipe()
    os.close(read)
    gone = os.fdopen(write, "w")
    console = Console(plan(), file=gone, interactive=False)
    for number in range(1, 50):
        console.handle(step(number))
    console.close()
    with pytest.raises(BrokenPipeError):
        gone.close()
    raw = io.BytesIO()
    console = Console(plan(), file=io.TextIOWrapper(raw, encoding="ascii", write_through=True), interactive=False)
    console.handle(record("notice", message="Zürich → ready", step=None))
    assert raw.getvalue().endswith(b"Z\\xfcrich \\u2192 ready\n")


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_the_bar_fits_the_terminal(width: int, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    text = shown(
        started(),
        *(step(n, mfu=0.4) for n in range(1, 70)),
        interactive=True,
        name="a-rather-long-name-for-a-run-of-ours",
    )
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n")
    assert max(len(line) for line in plain.splitlines()) <= width
    if width >= 60:
        assert "step 69/100   69 %  15.5 s left" in plain
        assert "loss 2.5000" in plain


def test_many_steps_a_second_do_not_flood_a_terminal(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    began = time.perf_counter()
    text = shown(started(), *(step(n, seconds=0.0005) for n in range(1, 20_001)), interactive=True, steps=20_000)
    seconds = time.perf_counter() - began
    assert seconds < 5
    assert len(text) < 2000 * (6 * seconds + 4)
    assert "100 %  done" in text


def test_a_real_terminal_gets_a_bar_and_a_dumb_one_plain_lines(monkeypatch) -> None:
    for term, bar in (("xterm-256color", True), ("dumb", False)):
        monkeypatch.setenv("TERM", term)
        parent, child = pty.openpty()
        with os.fdopen(child, "w") as file:
            console = Console(plan(), file=file)
            console.handle(started())
            console.handle(step(10))
            console.close()
            text = ""
            while "step 10/100" not in text or (bar and "memory" not in text):  # a terminal hands it over in portions
                text += os.read(parent, 1 << 16).decode()
        os.close(parent)
        assert ("━" in text) == bar
        assert ("\x1b[" in text) == bar
        assert "step 10/100" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.count(0), "0"),
        (units.count(1234), "1,234"),
        (units.count(9999.6), "10,000"),
        (units.count(12_345), "12.3 k"),
        (units.count(8_030_261_248), "8.03 B"),
        (units.count(999_960), "1.00 M"),
        (units.count(1.8e12), "1.80 T"),
        (units.count(float("nan")), "nan"),
        (units.size(0), "0 bytes"),
        (units.size(1023), "1023 bytes"),
        (units.size(1536), "1.50 KiB"),
        (units.size(2**30 - 1), "1.00 GiB"),
        (units.duration(0.004), "0.00 s"),
        (units.duration(59.99), "1:00 min"),
        (units.duration(3599.7), "1:00:00 h"),
        (units.duration(90_061), "1 d 01:01 h"),
        (units.duration(-1), "?"),
        (units.duration(float("inf")), "?"),
        (units.rate(1, 0), "? tokens/s"),
        (units.norm(0.0), "0.00"),
        (units.norm(1234.0), "1.2e+03"),
        (units.norm(1e-9), "1.0e-09"),
        (units.percent(0.3816), "38.2 %"),
        (units.plural(1, "line"), "1 line"),
        (units.plural(1200, "line"), "1,200 lines"),
    ],
)
def test_numbers_carry_units(text: str, expected: str) -> None:
    assert text == expected
