"""``primus-cli run``: finding runs, and saying what there is when there is no such run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from primus.checkpoints import skipped
from primus.checkpoints.skipped import Skipped
from primus.cli import runs
from primus.cli.main import run as primus_cli
from primus.cli.run_show import print_run
from primus.errors import RunDirectoryError, UsageError
from primus.events.bus import Bus
from primus.events.history import RunHistory
from primus.events.types import EvalDone, Notice, RankFailed, RanksStarted, RunEnded, RunStarted, StepDone
from primus.runtime.lock import RunLock
from primus.runtime.run_directory import RunDirectory, runs_root


def make_run(root: Path, name: str, steps: int = 20, reason: str | None = "complete") -> Path:
    run = root / name
    with Bus(run / "attempts" / "1", "rank0") as bus:
        bus.emit(RunStarted(name=name, attempt=1, world_size=1, device="cpu", parameters=1000, steps=steps))
        for step in range(1, steps + 1):
            bus.emit(
                StepDone(step=step, loss=9.0 / step, grad_norm=1, lr=1e-3, tokens=64, seconds=0.1, memory_bytes=1024)
            )
        bus.emit(EvalDone(step=steps, loss=0.5, tokens=64, seconds=0.1))
        bus.emit(Notice(message="a note"))
        if reason == "failed":
            bus.emit(RankFailed(rank=0, node="n", error="ValueError: no", traceback="T", remedy="do this"))
        if reason:
            bus.emit(RunEnded(reason=reason, step=steps))
    (run / "plan.json").write_text(json.dumps({"experiment": {"train": {"steps": steps}}, "parameters": 1000}))
    logs = run / "attempts" / "1" / "logs"
    logs.mkdir()
    (logs / "rank-0.log").write_bytes(b"first\nsecond\n\xff third\n")
    (logs / "rank-2.log").write_text("two")
    return run


@pytest.fixture
def root(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("PRIMUS_RUNS", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def test_list_shows_each_run_and_nothing_else(root: Path, capsys) -> None:
    make_run(root, "done")
    make_run(root, "broke", reason="failed")
    (root / "stray").mkdir()
    (root / "file").write_text("")
    assert primus_cli(["run", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "STATUS", "STEP", "LOSS", "VALIDATION", "LAST", "EVENT"]
    assert [line.split()[:5] for line in lines[1:]] == [
        ["broke", "failed", "20/20", "0.4500", "0.5000"],
        ["done", "complete", "20/20", "0.4500", "0.5000"],
    ]
    assert primus_cli(["run", "list", "--json"]) == 0
    assert [(r["name"], r["status"], r["step"]) for r in json.loads(capsys.readouterr().out)] == [
        ("broke", "failed", 20),
        ("done", "complete", 20),
    ]


def test_list_without_runs_and_with_one_that_cannot_be_read(root: Path, capsys) -> None:
    assert primus_cli(["run", "list", "--runs-dir", str(root / "none")]) == 0
    assert "no runs in" in capsys.readouterr().out
    make_run(root, "good")
    (root / "bad").mkdir()
    (root / "bad" / "attempts").write_text("not a directory")
    assert primus_cli(["run", "list"]) == 1
    captured = capsys.readouterr()
    assert "good" in captured.out
    assert "bad" in captured.err
    assert primus_cli(["run", "list", "--json"]) == 1
    assert {r["status"] for r in json.loads(capsys.readouterr().out)} == {"complete", "unreadable"}


def test_show_says_how_it_went_and_what_to_read_next(root: Path, capsys) -> None:
    make_run(root, "broke", reason="failed")
    assert primus_cli(["run", "show", "broke"]) == 0
    out = capsys.readouterr().out
    for expected in (
        "failed, step 20 of 20",
        "0.4500 nats/token",
        "1 to 20",
        "notice: a note",
        "rank 0 on n failed: ValueError: no",
        "do this",
        "primus-cli run logs broke --rank 0 --attempt 1",
    ):
        assert expected in out, expected
    assert primus_cli(["run", "show", "broke", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["last_step"]["mfu"] is None
    assert shown["failures"][0]["error"] == "ValueError: no"


def test_show_says_what_training_leaves_out(root: Path, capsys) -> None:
    run = make_run(root, "spoilt")
    entries = [Skipped(first, 8, step, "skip_step", "the loss is nan", 1) for first, step in ((32, 5), (80, 10))]
    skipped.write(run, entries)
    assert primus_cli(["run", "show", "spoilt"]) == 0
    assert "16 samples, the last for step 10: the loss is nan" in capsys.readouterr().out
    assert primus_cli(["run", "show", "spoilt", "--json"]) == 0
    assert [entry["first"] for entry in json.loads(capsys.readouterr().out)["skipped"]] == [32, 80]
    odd = json.dumps([{**asdict(entries[0]), "count": "eight"}])
    for damaged in ("{}", odd):
        (run / skipped.FILE).write_text(damaged)
        assert primus_cli(["run", "show", "spoilt"]) == 0
        shown = capsys.readouterr().out
        assert "unknown: the record of skipped samples cannot be read" in shown
        assert "last training loss" in shown
        assert primus_cli(["run", "show", "spoilt", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["skipped"] is None
    (run / "checkpoints").symlink_to(root / "unmounted")
    assert primus_cli(["run", "show", "spoilt"]) == 0
    assert re.search("checkpoints +unknown: ", capsys.readouterr().out)


def test_json_stays_json_when_a_loss_is_not_a_number(root: Path, capsys) -> None:
    with Bus(root / "nan" / "attempts" / "1", "rank0") as bus:
        bus.emit(StepDone(step=1, loss=float("nan"), grad_norm=float("inf"), lr=0, tokens=1, seconds=1, memory_bytes=1))
    for command in (["run", "list", "--json"], ["run", "show", "nan", "--json"]):
        assert primus_cli(command) == 0
        shown = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        assert (shown[0] if isinstance(shown, list) else shown)["loss"] is None


@pytest.mark.parametrize("command", [["show"], ["plot"], ["logs"]])
def test_an_unknown_run_is_named_with_the_nearest(root: Path, command: list[str]) -> None:
    with pytest.raises(UsageError, match="holds no runs"):
        primus_cli(["run", *command, "quickstart"])
    make_run(root, "quickstart")
    with pytest.raises(UsageError, match="did you mean 'quickstart'"):
        primus_cli(["run", *command, "quikstart"])
    with pytest.raises(UsageError, match="there are quickstart"):
        primus_cli(["run", *command, ".."])


def test_a_run_may_be_named_by_its_path(root: Path, capsys, monkeypatch) -> None:
    run = make_run(root / "elsewhere", "quickstart")
    assert primus_cli(["run", "show", str(run)]) == 0
    monkeypatch.chdir(root)
    assert primus_cli(["run", "show", "elsewhere/quickstart"]) == 0
    assert capsys.readouterr().out.count("complete, step 20 of 20") == 2


def test_plot_draws_and_writes_the_report_or_the_curve(root: Path, capsys) -> None:
    run = make_run(root, "quickstart")
    assert primus_cli(["run", "plot", "quickstart"]) == 0
    out = capsys.readouterr().out
    assert "training loss" in out
    assert "step 20" in out
    assert (run / "report.html").exists()
    assert primus_cli(["run", "plot", "quickstart", "--output", str(root / "loss.svg")]) == 0
    assert (root / "loss.svg").read_text().startswith("<svg")
    with pytest.raises(UsageError, match=r"cannot write '\.png'"):
        primus_cli(["run", "plot", "quickstart", "--output", "loss.png"])
    with pytest.raises(RunDirectoryError, match="report cannot be written"):
        primus_cli(["run", "plot", "quickstart", "--output", str(root / "no" / "r.html")])


def test_logs_are_printed_as_they_are(root: Path, capfdbinary) -> None:
    make_run(root, "quickstart")
    assert primus_cli(["run", "logs", "quickstart"]) == 0
    assert capfdbinary.readouterr().out == b"first\nsecond\n\xff third\n"
    assert primus_cli(["run", "logs", "quickstart", "--lines", "2"]) == 0
    assert capfdbinary.readouterr().out == b"second\n\xff third\n"
    assert primus_cli(["run", "logs", "quickstart", "--rank", "2", "--attempt", "1", "--follow"]) == 0
    assert capfdbinary.readouterr().out == b"two"


def test_logs_that_are_not_there_are_named(root: Path) -> None:
    make_run(root, "quickstart")
    with pytest.raises(UsageError, match=r"no log of rank 1.*it has ranks 0 to 2"):
        primus_cli(["run", "logs", "quickstart", "--rank", "1"])
    with pytest.raises(UsageError, match=r"no attempt 7.*it has 1"):
        primus_cli(["run", "logs", "quickstart", "--attempt", "7"])
    (root / "empty" / "attempts").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no attempts yet"):
        primus_cli(["run", "logs", "empty"])


def test_following_a_log_ends_with_the_run(root: Path) -> None:
    run = make_run(root, "quickstart", reason=None)
    lock = RunLock(run)
    command = [sys.executable, "-m", "primus.cli", "run", "logs", "quickstart", "--follow"]
    reader = subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"first\n"
    with (run / "attempts/1/logs/rank-0.log").open("ab") as log:
        log.write(b"fourth\n")
        log.flush()
        time.sleep(1)
        log.write(b"last\n")
    lock.release()
    assert reader.stdout.read().endswith(b"third\nfourth\nlast\n")
    assert reader.wait(20) == 0


def test_a_run_is_running_while_its_lock_is_held(root: Path, capsys) -> None:
    run = make_run(root, "quickstart", reason=None)
    assert not runs.is_alive(run)
    lock = RunLock(run)
    assert primus_cli(["run", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["status"] == "running"
    lock.release()
    for damaged in ({"pid": "x"}, {"pid": -1}, {"pid": 10**30}, {"host": None}):
        (run / "lock").write_text(json.dumps({**asdict(lock.owner), **damaged}))
        assert primus_cli(["run", "list", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["status"] == "unknown"


@pytest.mark.parametrize("name", ["~nosuchuser/x", "~nosuchuser", "n" * 300])
def test_names_that_no_file_system_takes_are_no_runs(root: Path, name: str) -> None:
    make_run(root, "quickstart")
    with pytest.raises(UsageError, match="there is no run"):
        primus_cli(["run", "show", name])
    if "~" in name:
        with pytest.raises(RunDirectoryError, match=r"there is no user ~nosuchuser \(correct --runs-dir"):
            primus_cli(["run", "list", "--runs-dir", name])
        return
    with pytest.raises(RunDirectoryError, match="the runs cannot be listed: File name too long"):
        primus_cli(["run", "list", "--runs-dir", name])
    with pytest.raises(RunDirectoryError, match="plan of this run cannot be read: File name too long"):
        RunDirectory(runs_root(Path(name)) / "x").plan()


def test_a_file_in_the_place_of_the_attempts_is_named(root: Path) -> None:
    (root / "odd").mkdir(parents=True)
    (root / "odd" / "attempts").touch()
    with pytest.raises(RunDirectoryError, match="the attempts cannot be listed: Not a directory"):
        RunDirectory(root / "odd").next_attempt()


def test_show_names_what_ended_the_newest_start(root: Path, capsys) -> None:
    attempt = root / "twice" / "attempts" / "1"
    for restart, error in enumerate(("killed by SIGKILL", "the loss is NaN")):
        with Bus(attempt, "node0") as bus:
            bus.emit(RanksStarted(node="n", node_rank=0, first_rank=0, last_rank=0, restart=restart))
            bus.emit(RankFailed(rank=0, node="n", error=error, traceback=""))
    with Bus(attempt, "launcher0") as bus:
        bus.emit(RunEnded(reason="failed", step=0))
    assert primus_cli(["run", "show", "twice"]) == 0
    assert "rank 0 on n failed: the loss is NaN\n" in capsys.readouterr().out


def test_show_names_the_newest_checkpoints_and_counts_the_others(root: Path, capsys) -> None:
    print_run(RunHistory(root), {}, [f"{step} (complete)" for step in range(2000, 0, -1)])
    assert "checkpoints  2000 (complete), 1999 (complete), " in (out := capsys.readouterr().out)
    assert "1996 (complete), and 1,995 older\n" in out
