"""What the loop of all engines decides by itself: which batches are left out, for how long, and what a failing disk
means."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from regression import BATCH, STEPS, Run, plan

import primus
from primus.checkpoints import skipped, store
from primus.errors import AnomalyError, CheckpointError
from primus.events.bus import Bus
from primus.events.history import read_run
from primus.events.types import Event, Notice

SKIP, BACK = ({"resilience__anomaly": policy} for policy in ("skip_step", "rollback"))
NAN = math.nan


def spoilt(*batches: int, value: float = NAN) -> dict[int, float]:
    return {batch * BATCH: value for batch in batches}


def without(tmp_path: Path, *left_out: int) -> dict[int, float]:
    """Losses of the plain computation that passes over some batches."""
    engine = Run(made := plan(tmp_path / f"plain-{len(list(tmp_path.iterdir()))}")).engine
    from primus.numerics.schedule import learning_rate

    losses, batches = {}, (number for number in range(10 * STEPS) if number not in left_out)
    for step, number in zip(range(STEPS), batches, strict=False):
        losses[step + 1], gradient = engine.of_batch(number)
        engine.weights -= learning_rate(step, made.experiment.optimizer, made.decay_steps) * gradient
    return losses


@pytest.mark.parametrize("policy", [SKIP, BACK])
@pytest.mark.parametrize("bad", [(4,), (3, 4, 9), (0,), (2,), (11,)])
def test_the_run_is_the_one_without_the_batches(policy: dict[str, Any], bad: tuple[int, ...], tmp_path: Path) -> None:
    run = Run(plan(tmp_path / "run", **policy), targets=spoilt(*bad))
    if policy is BACK and min(bad) < 3:  # before the first checkpoint
        with pytest.raises(AnomalyError, match="there is no checkpoint to go back to") as caught:
            run.go()
        assert caught.value.retryable
        run = Run(plan(tmp_path / "run", **policy), targets=spoilt(*bad))
    assert run.go().reason == "complete"
    assert run.losses == without(tmp_path, *bad)
    newest = store.complete(tmp_path / "run")[0]
    assert newest.consumed_samples == (STEPS + len([batch for batch in bad if batch < STEPS + len(bad)])) * BATCH


@pytest.mark.parametrize("last", [4, STEPS])
def test_no_validation_is_lost_where_a_run_is_stopped(last: int, tmp_path: Path) -> None:
    whole = Run(plan(tmp_path / "whole", eval__interval=4, data__validation=0.1))
    whole.go()
    expected = {event.step: event.loss for event in whole.of("eval_done")}
    assert list(expected) == [0, 4, 8, STEPS]
    made = plan(tmp_path / "run", eval__interval=4, data__validation=0.1)
    with Bus(tmp_path / "run" / "attempts" / "1", "rank0") as bus:
        first = Run(made, hear=bus.emit, stop=lambda: len(first.losses) >= last - 1)
        assert first.go().reason == ("complete" if last == STEPS else "stopped")
    with Bus(tmp_path / "run" / "attempts" / "2", "rank0") as bus:
        run = Run(made, attempt=2, hear=bus.emit)
        run.go()
    assert {record["step"]: record["loss"] for record in read_run(tmp_path / "run").evals} == expected
    assert len(run.of("eval_done")) == (0 if last == STEPS else 3), "what was validated is not validated again"


def test_an_infinite_loss_is_an_anomaly(tmp_path: Path) -> None:
    run = Run(plan(tmp_path / "run", **SKIP), targets=spoilt(4, value=1e200))
    with np.errstate(over="ignore"):
        run.go()
    assert run.losses == without(tmp_path, 4)


@pytest.mark.parametrize("policy", [SKIP, BACK])
def test_what_was_left_out_stays_out_when_the_run_continues(policy: dict[str, Any], tmp_path: Path) -> None:
    Run(plan(tmp_path / "run", **policy), targets=spoilt(4)).go()
    for step in (6, 9, 12):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{step}")
    again = Run(plan(tmp_path / "run"), attempt=2)  # sound data now, and no policy: the record alone counts
    again.go()
    assert again.losses == {step: loss for step, loss in without(tmp_path, 4).items() if step > 3}
    assert again.notices == ["samples 32 to 39 are left out, as skipped.json says"]


@pytest.mark.parametrize(
    ("policy", "where"), [(SKIP, "at this step"), (BACK, "since the checkpoint of step 3")], ids=["skip", "back"]
)
def test_it_does_not_go_on_for_ever(policy: dict[str, Any], where: str, tmp_path: Path) -> None:
    run = Run(plan(tmp_path / "run", resilience__anomaly_limit=3, **policy), targets=spoilt(*range(4, 200)))
    with pytest.raises(AnomalyError, match=f"the loss is nan.*; 3 batches were left out {where} already") as caught:
        run.go()
    assert not caught.value.retryable
    assert "the checkpoint of step 3 is intact" in str(caught.value)
    assert len(skipped.read(tmp_path / "run")) == 3
    # nor when it is started again
    with pytest.raises(AnomalyError, match="3 batches were left out"):
        Run(plan(tmp_path / "run", resilience__anomaly_limit=3, **policy), targets=spoilt(*range(4, 200))).go()
    assert len(skipped.read(tmp_path / "run")) == 3


def test_batches_far_apart_do_not_add_up(tmp_path: Path) -> None:
    for policy in (SKIP, BACK):
        run = Run(
            plan(tmp_path / policy["resilience__anomaly"], resilience__anomaly_limit=1, **policy),
            targets=spoilt(4, 8, 12),
        )
        assert run.go().reason == "complete"


SPIKES = {"resilience__spike_factor": 3.0, "resilience__spike_window": 4}


def test_a_spike_stops_the_run(tmp_path: Path) -> None:
    run = Run(plan(tmp_path / "run", **SPIKES), targets=spoilt(6, value=100.0))
    with pytest.raises(AnomalyError, match=r"step 7: the loss is \d+.*, more than 3 .* the median of the last 4 steps"):
        run.go()
    assert max(run.losses) == 6


@pytest.mark.parametrize("policy", [SKIP, BACK])
def test_a_spike_is_left_out(policy: dict[str, Any], tmp_path: Path) -> None:
    run = Run(plan(tmp_path / "run", **policy, **SPIKES), targets=spoilt(6, 9, value=100.0))
    run.go()
    assert run.losses == without(tmp_path, 6, 9)


def test_no_spike_without_enough_steps_before_it(tmp_path: Path) -> None:
    run = Run(plan(tmp_path / "run", **SKIP, **SPIKES), targets=spoilt(3, value=100.0))
    run.go()
    assert skipped.read(tmp_path / "run") == []


def test_after_a_rollback_steps_that_are_no_more_are_not_compared_with(tmp_path: Path) -> None:
    run = Run(plan(tmp_path / "run", **BACK, **SPIKES), targets=spoilt(5))
    run.go()
    kept = [step for step, _ in run.loop._anomalies._losses]
    assert kept == [9, 10, 11, 12]


def test_a_record_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    made = plan(tmp_path / "run")
    (tmp_path / "run" / skipped.FILE).write_text("[{")
    with pytest.raises(CheckpointError, match="the record of skipped samples cannot be read"):
        Run(made).go()
    (tmp_path / "run" / skipped.FILE).write_text('[{"first": 1}]')
    with pytest.raises(CheckpointError, match="the record of skipped samples cannot be read"):
        Run(made).go()


def test_a_record_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """The batch is left out all the same, as long as the processes live."""

    def hear(event: Event) -> None:
        if event.kind == "step_done" and not record.exists():
            record.mkdir()

    record = tmp_path / "run" / skipped.FILE
    run = Run(plan(tmp_path / "run", **BACK), targets=spoilt(4), hear=hear)
    run.go()
    assert any("skipped.json cannot be written" in notice for notice in run.notices)
    assert run.losses == without(tmp_path, 4)


def test_a_stop_in_a_step_that_does_not_count_is_heard(tmp_path: Path) -> None:
    run = Run(plan(tmp_path / "run", **SKIP), targets=spoilt(4), stop=lambda: len(run.losses) == 4)
    assert run.go().step == 4
    again = Run(plan(tmp_path / "run", **SKIP), attempt=2)
    again.go()
    assert run.losses | again.losses == without(tmp_path, 4)


def test_history_shows_the_curve_that_counts(tmp_path: Path) -> None:
    """A rollback is one start of the processes, told like any other."""
    run = Run(plan(tmp_path / "run", **BACK), targets=spoilt(4))
    run.go()
    kinds = [(event.kind, getattr(event, "step", None)) for event in run.heard]
    back = kinds.index(("run_started", None), 1)
    assert kinds[back - 1] == ("step_done", 4)
    assert kinds[back + 1 : back + 3] == [("step_done", 4), ("notice", 5)]
    (note,) = run.heard[back].notes
    assert note == (
        "back from step 5: the loss is nan (one figure for all ranks); samples 32 to 39 are left out when training "
        "comes there again"
    )


# storage


def spoil(place: Path) -> None:
    """Put a file where a directory should be made."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()


class Blocked:
    """A file where the run's checkpoints should be. It goes when a notice says that a save failed so many times."""

    def __init__(self, run: Path, failures: int) -> None:
        self.place, self.left = run / "checkpoints", failures
        self.place.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, event: Event) -> None:
        if event.kind == "step_done" and event.step == 2:  # type: ignore[attr-defined]
            self.place.touch()
        if isinstance(event, Notice) and "trying again" in event.message:
            self.left -= 1
            if not self.left:
                self.place.unlink()


@pytest.mark.parametrize("background", [True, False])
def test_a_save_that_failed_is_tried_again(background: bool, tmp_path: Path) -> None:
    made = plan(tmp_path / "run", checkpoint__async=background, checkpoint__interval=3)
    run = Run(made, hear=Blocked(tmp_path / "run", 2))
    run.go()
    assert run.losses == without(tmp_path)
    assert [event.step for event in run.of("checkpoint_saved")] == [3, 6, 9, 12]
    assert [notice.partition(": ")[0] for notice in run.notices] == ["the checkpoint of step 3 cannot be written"] * 2
    assert "trying again in 1 s" in run.notices[0]
    assert "trying again in 2 s" in run.notices[1]


@pytest.mark.parametrize("background", [True, False])
def test_a_save_that_fails_for_good_keeps_the_last_one_and_training_goes_on(background: bool, tmp_path: Path) -> None:
    def hear(event: Event) -> None:
        if event.kind == "step_done" and event.step == 5:  # type: ignore[attr-defined]
            spoil(tmp_path / "run" / "checkpoints" / "step-6")

    run = Run(plan(tmp_path / "run", checkpoint__async=background, checkpoint__retries=1), hear=hear)
    run.go()
    assert run.losses == without(tmp_path)
    assert [event.step for event in run.of("checkpoint_saved")] == [3, 9, 12]
    assert run.notices[-1].startswith("the checkpoint of step 6 was not saved: ")
    assert run.notices[-1].endswith("; the last complete one is kept")


def test_the_last_save_is_tried_several_times_before_it_is_an_error(tmp_path: Path) -> None:
    def hear(event: Event) -> None:
        if event.kind == "step_done" and event.step == 11:  # type: ignore[attr-defined]
            spoil(tmp_path / "run" / "checkpoints" / "step-12")

    run = Run(plan(tmp_path / "run", checkpoint__retries=2), hear=hear)
    began = time.monotonic()
    with pytest.raises(CheckpointError, match="the checkpoint of step 12 was not saved"):
        run.go()
    assert 3.0 < time.monotonic() - began < 6.0
    assert len(run.notices) == 3
    assert [info.step for info in store.complete(tmp_path / "run")] == [9, 6, 3]


def test_a_directory_that_is_deleted_under_the_run_is_made_again(tmp_path: Path) -> None:
    def hear(event: Event) -> None:
        if event.kind == "step_done" and event.step == 8:  # type: ignore[attr-defined]
            shutil.rmtree(tmp_path / "run")

    run = Run(plan(tmp_path / "run", checkpoint__async=False), hear=hear)
    assert run.go().reason == "complete"
    assert [info.step for info in store.complete(tmp_path / "run")] == [12, 9]


def test_saves_slower_than_their_interval_wait_for_each_other(tmp_path: Path) -> None:
    run = Run(plan(tmp_path / "run", checkpoint__interval=2))
    run.engine.checkpoints.piece_seconds = 0.2
    run.go()
    saved = run.of("checkpoint_saved")
    assert [event.step for event in saved] == [2, 4, 6, 8, 10, 12]
    assert run.engine.checkpoints.most_writing == 1
    assert all(event.blocked_seconds > 0.1 for event in saved[1:-1])


def test_a_slow_disk_is_no_hang(tmp_path: Path) -> None:
    """While files grow something is said, oftener than a hang is looked for; while they do not, nothing."""
    run = Run(plan(tmp_path / "run", checkpoint__interval=12, resilience__hang_timeout="1s"))
    run.engine.checkpoints.pieces, run.engine.checkpoints.piece_seconds = 4, 0.4
    run.go()
    told = [notice for notice in run.notices if notice.startswith("training waits for a checkpoint since")]
    assert len(told) >= 2
    still = Run(plan(tmp_path / "still", checkpoint__interval=12, resilience__hang_timeout="1s"))
    still.engine.checkpoints.piece_seconds = 1.2
    still.go()
    assert still.notices == []
    assert np.isfinite(still.losses[12])


ON_A_DISK = """
import json, os, subprocess, sys
from pathlib import Path
from regression import Run, plan

def remount(how):
    subprocess.run(["mount", "-o", f"remount,{how}", "disk"], check=True)

def hear(event):
    if event.kind == "step_done" and event.step == 5:
        free = os.statvfs("disk")
        filler.write_bytes(bytes(free.f_bavail * free.f_frsize))
    if event.kind == "step_done" and event.step == 8:
        remount("ro")
    if event.kind == "notice" and "No space left" in event.message:
        filler.unlink()
    if event.kind == "notice" and "Read-only" in event.message:
        remount("rw")

filler = Path("disk/filler")
run = Run(plan(Path("disk/run").absolute(), checkpoint__keep=1), size=20_000, hear=hear)
run.go()
saved = [event.step for event in run.of("checkpoint_saved")]
print(json.dumps({"losses": list(run.losses), "notices": run.notices, "saved": saved}))
"""


def test_a_real_disk_that_is_full_then_read_only(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs user namespaces, which are off here")
    (tmp_path / "disk").mkdir()
    (tmp_path / "run.py").write_text(ON_A_DISK)
    line = f"mount -t tmpfs -o size=600k none disk && exec '{sys.executable}' run.py"
    path = os.pathsep.join([str(Path(__file__).parents[1] / "support"), str(Path(primus.__file__).parents[1])])
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", line],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["losses"] == list(range(1, STEPS + 1))
    assert told["saved"] == [3, 6, 9, 12]
    full, read_only = told["notices"]
    assert full.startswith("the checkpoint of step 6 cannot be written: rank 0: No space left on device; trying again")
    assert read_only.startswith("the checkpoint of step 9 cannot be written: ")
    assert "the checkpoint directory cannot be made: Read-only file system" in read_only
