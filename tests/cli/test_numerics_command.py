"""``primus-cli numerics compare``: runs made by hand through the real writer, and by a real engine."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from command_line import TRIAL
from gang import Case, run_gang
from tiny import make, make_dataset

from primus.cli.main import run as primus_cli
from primus.config.load import load
from primus.errors import RunDirectoryError, UsageError
from primus.events.bus import Bus
from primus.events.jsonl import JsonlWriter, file_of
from primus.events.types import EvalDone, RunEnded, RunStarted, StepDone
from primus.plan.plan import Plan
from primus.plan.planner import make_plan
from primus.runtime.lock import RunLock

LOSSES = (5.0, 4.5, 4.0, 3.5, 3.0)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRIMUS_RUNS", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def make_run(root: Path, name: str, *overrides: str, nproc: int = 1, attempts: Sequence[dict[int, float]] = ()) -> Path:
    """A run of five steps, or of what each attempt reported."""
    run = root / name
    run.mkdir(parents=True)
    file = root / f"{name}.yaml"
    file.write_text(TRIAL.format(name=name).replace("backend: counting", "backend: torchtitan"))
    plan = make_plan(load(file, overrides, {}), nproc=nproc, run_directory=run)
    (run / "plan.json").write_text(plan.to_json())
    resumed: int | None = None
    for number, losses in enumerate(attempts or [dict(enumerate(LOSSES, 1))], 1):
        if number > 1:
            resumed = min(losses) - 1
        with Bus(run / "attempts" / str(number), "rank0") as bus:
            start = RunStarted(name=name, attempt=number, world_size=1, device="cpu", parameters=1, steps=5)
            bus.emit(RunStarted(**{**vars(start), "resumed_from": resumed}))
            for step, loss in losses.items():
                bus.emit(StepDone(step=step, loss=loss, grad_norm=1, lr=1e-3, tokens=512, seconds=1, memory_bytes=1))
            if losses:
                bus.emit(EvalDone(step=max(losses), loss=losses[max(losses)], tokens=64, seconds=0.1))
            bus.emit(RunEnded(reason="complete", step=max(losses, default=0)))
    return run


def compare(*arguments: str | Path) -> int:
    return primus_cli(["numerics", "compare", *map(str, arguments)])


def test_equal_runs_end_with_0_and_say_what_differs_and_may(root: Path, capsys: Any) -> None:
    make_run(root, "one")
    make_run(root, "two", "parallel.data_shard=2", nproc=2)
    assert compare("one", "two") == 0
    out = capsys.readouterr().out
    assert "The plans mean the same experiment." in out
    assert "  parallel.data_shard      auto  2" in out
    assert "verdict                equal within 1e-05 nats a token in 5 steps and 1" in out
    assert "|difference| of the losses" not in out  # no terminal
    assert max(map(len, out.splitlines())) <= 80


def test_another_experiment_is_named_first_and_does_not_stop(root: Path, capsys: Any) -> None:
    make_run(root, "one")
    make_run(root, "two", "train.seed=7", attempts=[dict(enumerate((5.0, 4.5, 4.25, 3.5, 3.0), 1))])
    assert compare("one", "two") == 1
    out = capsys.readouterr().out
    assert out.index("do not mean the same experiment") < out.index("train.seed") < out.index("STEP")
    assert "first beyond the band  step 3" in out
    assert "not equal: 1 of 5 steps beyond 1e-05" in " ".join(out.split())
    assert compare("one", "two", "--band", "0.25") == 0
    assert "though the plans mean different experiments" in " ".join(capsys.readouterr().out.split())


def test_json_holds_every_step_and_stays_json(root: Path, capsys: Any) -> None:
    make_run(root, "one")
    make_run(root, "two", attempts=[{2: 4.5, 3: math.nan, 4: math.inf, 5: 3.0, 6: 2.5}])
    assert compare("one", "two", "--json") == 1
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [row["step"] for row in found["steps"]] == [2, 3, 4, 5]
    assert found["steps"][1]["difference"] is None
    assert (found["not_finite"], found["first_beyond"], found["within"]) == ([3, 4], 3, False)
    assert (found["only_a"], found["only_b"]) == ([[1, 1]], [[6, 6]])
    assert found["same_experiment"]
    assert found["differences"] == {"matters": [], "native": [], "may_differ": []}
    assert found["a"]["name"] == "one"
    assert found["evaluations"] == []


def test_attempts_are_joined_and_the_newest_record_counts(root: Path, capsys: Any) -> None:
    whole = dict(enumerate(LOSSES, 1))
    make_run(root, "one")
    make_run(root, "two", attempts=[{**whole, 4: 9.0, 5: 9.0}, {4: 3.5, 5: 3.0}])
    assert compare("one", "two", "--band", "0") == 0
    assert "5 (1 to 5)" in capsys.readouterr().out


def test_a_run_that_is_still_written_is_compared_so_far(root: Path, capsys: Any) -> None:
    make_run(root, "one")
    run = make_run(root, "two", attempts=[{1: 5.0, 2: 4.5}])
    events = next((run / "attempts" / "1").glob("events-*"))
    lines = events.read_bytes().splitlines(keepends=True)
    events.write_bytes(b"".join(line for line in lines if b"run_ended" not in line) + b'{"event":"step_done","st')
    lock = RunLock(run)
    assert compare("one", "two") == 0
    lock.release()
    out = capsys.readouterr().out
    assert "running, steps 1 to 2" in out
    assert "only in A              3 steps: 3 to 5" in out


def test_the_chart_is_drawn_on_a_terminal(root: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(root, "one")
    make_run(root, "two")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert compare("one", "two") == 0
    out = click.unstyle(capsys.readouterr().out)
    assert "|difference| of the losses, nats a token" in out
    assert "band 1e-05" in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_page(root: Path, capsys: Any) -> None:
    make_run(root, "one")
    make_run(root, "two", "optimizer.lr=2e-3")
    page = root / "compare.html"
    assert compare("one", "two", "--output", page) == 0
    assert capsys.readouterr().out.endswith(f"{page}\n")
    text = page.read_text()
    assert text.count("<svg") == 2
    assert "different experiments: optimizer.lr" in text
    assert compare("one", "two", "--output", page, "--json") == 0
    json.loads(capsys.readouterr().out)
    with pytest.raises(UsageError, match=r"cannot write '\.png'"):
        compare("one", "two", "--output", "compare.png")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        compare("one", "two", "--output", root / "no" / "compare.html")


def test_runs_may_be_named_by_their_paths(root: Path, capsys: Any) -> None:
    make_run(root / "x", "one")
    make_run(root / "y", "one")
    assert compare(root / "x" / "one", root / "y" / "one") == 0
    assert f"A  {root}/x/one" in capsys.readouterr().out


def test_what_cannot_be_compared_is_wrong_usage(root: Path) -> None:
    run = make_run(root, "one")
    with pytest.raises(UsageError, match="there is no run 'two'"):
        compare("one", "two")
    with pytest.raises(UsageError, match="are the same run"):
        compare("one", "one")
    os.symlink(run, root / "link")
    with pytest.raises(UsageError, match="are the same run"):
        compare("one", root / "link")
    make_run(root, "silent", attempts=[{}])
    with pytest.raises(UsageError, match="run 'silent' has reported no step yet"):
        compare("one", "silent")
    make_run(root, "later", attempts=[{9: 1.0}])
    with pytest.raises(UsageError, match=r"no step in common \(A has 1 to 5 and B 9 to 9\)"):
        compare("one", "later")
    damaged = make_run(root, "damaged")
    (damaged / "plan.json").write_text("{")
    with pytest.raises(UsageError, match="plan of run 'damaged' cannot be read: it is damaged"):
        compare("damaged", "one")
    (damaged / "plan.json").unlink()
    with pytest.raises(UsageError, match="plan of run 'damaged' cannot be read: No such file"):
        compare("one", "damaged")
    for band in ("nan", "inf", "-1"):
        with pytest.raises(UsageError, match="is no band"):
            compare("one", "later", f"--band={band}")


def test_a_band_must_be_said_where_none_was_measured(root: Path) -> None:
    for name in ("one", "two"):
        make_run(root, name, "precision=bf16")
    make_run(root, "three")
    with pytest.raises(UsageError, match=r"no general band .*bf16.*--band 2e-2"):
        compare("one", "two")
    with pytest.raises(UsageError, match=r"no general band .*differ in precision"):
        compare("one", "three")
    assert compare("one", "two", "--band", "2e-2") == 0


def test_a_mixture_of_experts_has_no_general_band(root: Path) -> None:
    for name in ("one", "two"):
        run = make_run(root, name)
        plan = json.loads((run / "plan.json").read_text())
        plan["experiment"]["model"]["num_experts"] = 4
        (run / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UsageError, match="near a tie"):
        compare("one", "two")
    assert compare("one", "two", "--band", "1e-5") == 0


def test_a_real_engine_repeats_itself_and_not_another_seed(
    root: Path, tmp_path_factory: pytest.TempPathFactory, capsys: Any
) -> None:
    """Three TorchTitan runs: one experiment twice, accumulated the second time, and another seed."""
    dataset = make_dataset(tmp_path_factory.mktemp("data") / "chain")
    plans: dict[str, Plan] = {
        name: make(
            root / name, dataset, train__steps=6, data__validation=0.05, eval={"interval": 3, "steps": 1}, **more
        )
        for name, more in {
            "one": {},
            "accumulated": {"train__micro_batch_size": 2},
            "reseeded": {"train__seed": 7},
        }.items()
    }
    ran = run_gang([Case(name, plan) for name, plan in plans.items()], 1, tmp_path_factory.mktemp("gang"))
    for name, plan in plans.items():
        (root / name / "plan.json").write_text(plan.to_json())
        writer = JsonlWriter(file_of(root / name / "attempts" / "1", "rank0"))
        for number, event in enumerate(ran[name].ended().events):
            writer.write({**event, "time": float(number), "writer": "rank0"})
        writer.close()
    assert compare("one", "accumulated") == 0
    out = capsys.readouterr().out
    assert "The plans mean the same experiment." in out
    assert "train.micro_batch_size" in out
    assert "6 (1 to 6)" in out
    assert "VALIDATION A" in out
    assert compare("one", "reseeded") == 1
    out = capsys.readouterr().out
    assert out.index("do not mean the same experiment") < out.index("train.seed") < out.index("beyond")
