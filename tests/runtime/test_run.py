"""A run from the outside: it completes, continues, stops, fails, hangs; nobody is left behind. The engine counts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import ROOT, TRIAL, Cli, environment_of, processes_with, wait_for

from primus.checkpoints import store
from primus.errors import RunDirectoryError
from primus.events.follow import read_run
from primus.plan.plan import Plan
from primus.runtime import worker
from primus.runtime.processes import FINAL
from primus.runtime.run_directory import Attempt
from primus.runtime.supervise import Interrupts, Supervisor


def train(*more: str) -> list[str]:
    return ["train", "pretrain", "--config", "trial.yaml", *more]


def run_of(trial: Path) -> Path:
    return trial.parent / "runs" / "trial"


def newest(trial: Path) -> int:
    info, problems = store.newest_intact(run_of(trial))
    assert not problems
    return info.step if info else 0


def started(trial: Path, attempt: int = 1) -> bool:
    events = run_of(trial) / "attempts" / str(attempt) / "events-rank0.jsonl"
    return events.exists() and "step_done" in events.read_text()


def test_completes_says_so_and_continues_when_more_steps_are_asked_for(cli: Cli, trial: Path) -> None:
    first = cli(*train())
    assert first.returncode == 0, first.stderr
    assert "complete: 5 steps" in first.stdout
    assert (run_of(trial) / "report.html").stat().st_size > 1000
    assert Plan.load(run_of(trial) / "plan.json") == Plan.load(run_of(trial) / "attempts/1/plan.json")

    again = cli(*train())
    assert again.returncode == 0
    assert "trial is complete: 5 of 5 steps" in again.stdout
    assert not (run_of(trial) / "attempts" / "2").exists()

    more = cli(*train("train.steps=8"))
    assert more.returncode == 0
    assert newest(trial) == 8
    history = read_run(run_of(trial))
    assert list(history.steps.step) == list(range(1, 9))
    assert Plan.load(run_of(trial) / "plan.json").decay_steps == 5  # of the first plan


def test_the_resolved_experiment_is_kept_and_runs_again(cli: Cli, trial: Path) -> None:
    cli(*train("train.steps=2", "counting={}"))
    copy = run_of(trial) / "experiment.yaml"
    again = cli("train", "pretrain", "--config", copy, "name=copy")
    assert again.returncode == 0, again.stderr
    old, new = (Plan.load(trial.parent / "runs" / name / "plan.json") for name in ("trial", "copy"))
    assert new.experiment == old.experiment.model_copy(update={"name": "copy"})


def test_another_experiment_in_the_same_directory_is_refused(cli: Cli, trial: Path) -> None:
    assert cli(*train()).returncode == 0
    refused = cli(*train("optimizer.lr=0.5", "train.steps=9"))
    assert refused.returncode == 1
    assert "optimizer.lr is 0.001 in this run and 0.5 now" in refused.stderr
    assert "name=NAME" in refused.stderr
    assert newest(trial) == 5


def test_resume_never_does_not_train_over_checkpoints(cli: Cli, trial: Path) -> None:
    assert cli(*train()).returncode == 0
    refused = cli(*train("checkpoint.resume=never", "train.steps=9"))
    assert refused.returncode == 1
    assert "checkpoint.resume=never would train over them" in refused.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_leaves_with_the_command_that_continues(
    cli: Cli, trial: Path, number: signal.Signals, code: int
) -> None:
    process = cli.start(*train("train.steps=100000"), COUNTING_SAVE_SECONDS="1")
    wait_for(lambda: started(trial))
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    step = newest(trial)
    assert step > 0
    assert f"stopped after step {step:,}" in out
    assert f"continue  {ROOT}/primus-cli train pretrain --config trial.yaml train.steps=100000" in out
    assert read_run(run_of(trial)).status == "stopped"


def test_a_closed_terminal_hangs_up_twice_and_the_run_still_saves(cli: Cli, trial: Path) -> None:
    process = cli.start(*train("train.steps=100000"), COUNTING_SAVE_SECONDS="1")
    wait_for(lambda: started(trial))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 129, err
    assert newest(trial) > 0


def test_starting_over_is_legal_when_nothing_can_be_continued(cli: Cli, trial: Path) -> None:
    assert cli(*train()).returncode == 0
    for info in store.complete(run_of(trial)):
        path = info.directory / info.files[0].path
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    again = cli(*train("train.steps=7", "checkpoint.resume=never"))
    assert again.returncode == 0, again.stderr
    assert newest(trial) == 7


def test_events_that_cannot_be_written_leave_the_exit_code(
    cli: Cli, trial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*train()).returncode == 0

    def full(bus: object, *_: object) -> None:
        raise RunDirectoryError("the event file cannot be written: No space left on device")

    monkeypatch.setattr(worker.Bus, "close", full)
    monkeypatch.setattr(worker, "run", lambda *_: None)
    attempt = run_of(trial) / "attempts" / "1"
    identity = worker.Identity(0, 0, 1)
    assert worker.work(attempt, identity, lambda: False) == FINAL  # type: ignore[arg-type]


def test_a_late_failure_of_a_restarted_rank_does_not_fail_the_run(tmp_path: Path) -> None:
    none = SimpleNamespace(interval=None, steps=5)
    resilience = SimpleNamespace(hang_timeout="1m", start_timeout=None)
    experiment = SimpleNamespace(
        resilience=resilience, train=none, checkpoint=none, eval=none, data=SimpleNamespace(validation=None)
    )
    plan: Any = SimpleNamespace(experiment=experiment, topology=SimpleNamespace(replica_groups=1))
    watcher = Supervisor(plan, Attempt(tmp_path, 1), lambda: None)
    failed = {"event": "rank_failed", "writer": "rank1", "rank": 1, "error": "Connection closed by peer"}
    for record in (
        {"event": "ranks_started", "writer": "node0", "restart": 1},
        failed,
        {"event": "run_started", "writer": "rank0"},
        {"event": "run_ended", "writer": "rank0", "reason": "complete", "step": 5},
    ):
        watcher.story.take(record)
    watcher._conclude(0, tmp_path / "log", Interrupts())
    assert watcher.story.outcome.reason == "complete"


def test_a_signal_that_was_ignored_on_purpose_stays_ignored(cli: Cli, trial: Path) -> None:
    line = f"trap '' HUP; exec '{ROOT}/primus-cli' {' '.join(train('train.steps=300'))}"
    process = subprocess.Popen(["sh", "-c", line], cwd=trial.parent, env=cli.env, stdout=subprocess.DEVNULL)
    cli.started.append(process)
    wait_for(lambda: started(trial))
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 0
    assert newest(trial) == 300


def test_ranks_that_stop_by_themselves_are_no_success(cli: Cli, trial: Path) -> None:
    process = cli.start(*train("train.steps=100000"))
    wait_for(lambda: started(trial))
    for pid in processes_with(f"primus.runtime.worker {run_of(trial)}"):
        os.kill(pid, signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 143, err
    assert "stopped after step" in out


def test_a_second_signal_ends_at_once_and_leaves_no_half_checkpoint(cli: Cli, trial: Path) -> None:
    process = cli.start(*train("train.steps=100000"), COUNTING_SAVE_SECONDS="60")
    wait_for(lambda: started(trial))
    process.send_signal(signal.SIGINT)
    wait_for(lambda: list((run_of(trial) / "checkpoints").glob("step-*")))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "stopped after step" in out
    assert newest(trial) == 0
    wait_for(lambda: not processes_with(str(trial.parent)), 60)


def test_a_signal_before_the_ranks_are_there_ends_it(cli: Cli, trial: Path) -> None:
    process = cli.start(*train("train.steps=100000"))
    wait_for(lambda: processes_with(str(run_of(trial))))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    wait_for(lambda: not processes_with(str(run_of(trial))), 60)


def test_an_exception_in_a_rank_shows_where_it_began(cli: Cli, trial: Path) -> None:
    done = cli("direct", "--nproc", "2", "--", *train(), COUNTING_FAULT="raise:1:3")
    assert done.returncode == 1
    screen = done.stderr
    assert re.search(r"rank 1 on \S+ failed after step 2: OSError: the network went away", screen)
    assert 'raise OSError("the network went away")' in screen
    assert str(run_of(trial) / "attempts/1/logs/rank-1.log") in screen
    assert f"continue      {ROOT}/primus-cli direct --nproc 2 -- train pretrain --config trial.yaml" in screen
    assert len(screen.splitlines()) <= 30
    assert "OSError" in (run_of(trial) / "attempts/1/logs/rank-1.log").read_text()
    assert read_run(run_of(trial)).status == "failed"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("SIGSEGV", "killed by SIGSEGV"),
        ("SIGKILL", "killed by SIGKILL"),
        ("exit", "exited with code 3"),
    ],
)
def test_a_rank_that_dies_without_a_word_is_named(cli: Cli, trial: Path, fault: str, words: str) -> None:
    done = cli("direct", "--nproc", "2", "--", *train(), COUNTING_FAULT=f"{fault}:1:2")
    assert done.returncode == 1
    assert re.search(rf"rank 1 on \S+ failed: {words}", done.stderr), done.stderr
    again = cli("direct", "--nproc", "2", "--", *train())
    assert again.returncode == 0


def test_a_crash_in_native_code_shows_its_stack(cli: Cli, trial: Path) -> None:
    done = cli(*train(), COUNTING_FAULT="SIGSEGV:0:2")
    assert "Fatal Python error: Segmentation fault" in done.stderr
    assert "counting/__init__.py" in done.stderr


def test_the_files_say_who_ran_where_and_why_each_start_ended(cli: Cli, trial: Path) -> None:
    more = train("resilience.max_restarts=2", "resilience.hang_timeout=2s", "checkpoint.interval=1")
    env = {"SLURMD_NODENAME": "n7", "COUNTING_FAULT": "SIGKILL:1:3"}
    assert cli("direct", "--nproc", "2", "--", *more, **env).returncode == 0
    folder = run_of(trial) / "attempts" / "1"
    (began,) = [json.loads(line) for line in (folder / "events-launcher0.jsonl").read_text().splitlines()]
    assert (began["event"], began["node"], began["node_rank"], began["nodes"]) == ("attempt_started", "n7", 0, 1)
    told = [json.loads(line) for line in (folder / "events-node0.jsonl").read_text().splitlines()]
    starts = [record for record in told if record["event"] == "ranks_started"]
    assert [(r["node"], r["first_rank"], r["last_rank"], r["restart"]) for r in starts] == [
        ("n7", 0, 1, 0),
        ("n7", 0, 1, 1),
    ]
    assert next((r["node"], r["rank"], r["cause"]) for r in told if r["event"] == "rank_failed") == ("n7", 1, "died")


def test_a_restart_mends_what_it_can(cli: Cli, trial: Path) -> None:
    done = cli(*train("resilience.max_restarts=1", "checkpoint.interval=1"), COUNTING_FAULT="raise:0:3")
    assert done.returncode == 0, done.stderr
    history = read_run(run_of(trial))
    assert list(history.steps.step) == [1, 2, 3, 4, 5]
    assert "the network went away" in (run_of(trial) / "attempts/1/logs/rank-0.log").read_text()
    assert not (run_of(trial) / "attempts" / "2").exists()


def test_ranks_that_start_again_do_not_look_for_each_other_where_they_were(cli: Cli, trial: Path) -> None:
    """The one that comes first must wait for the others, not take what they had said in the first start."""
    more = train("backend=counting_torchrun", "resilience.max_restarts=1", "checkpoint.interval=1")
    env = {"COUNTING_FAULT": "SIGKILL:1:3", "COUNTING_LATE_SECONDS": "3"}
    done = cli("direct", "--nproc", "2", "--", *more, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(read_run(run_of(trial)).steps.step) == [1, 2, 3, 4, 5]


def test_what_happens_when_all_is_done_is_no_failure(cli: Cli, trial: Path) -> None:
    """A stop, and an engine that crashes while Python ends; what it wished done at the end is done."""
    done = cli(*train(), COUNTING_FAULT="late:0:3")
    assert done.returncode == 0, done.stderr
    assert read_run(run_of(trial)).status == "complete"
    assert (run_of(trial) / "stopped-late").exists()


def test_restarts_run_out(cli: Cli, trial: Path) -> None:
    done = cli(*train("resilience.max_restarts=2", "checkpoint.interval=1"), COUNTING_FAULT="raise!:0:3")
    assert done.returncode == 1
    log = (run_of(trial) / "attempts/1/logs/rank-0.log").read_text()
    assert log.count("OSError: the network went away") == 3


@pytest.mark.parametrize(
    ("fault", "remedy", "cause"),
    [("nan", "lower optimizer.lr", "anomaly"), ("data", "prepare it again", "error")],
)
def test_a_failure_that_would_come_back_is_not_retried(
    cli: Cli, trial: Path, fault: str, remedy: str, cause: str
) -> None:
    done = cli(*train("resilience.max_restarts=5"), COUNTING_FAULT=f"{fault}!:0:3")
    assert done.returncode == 1
    assert remedy in done.stderr
    assert [failure["cause"] for failure in read_run(run_of(trial)).failures] == [cause]
    log = (run_of(trial) / "attempts/1/logs/rank-0.log").read_text()
    assert log.count("Traceback") == 1


@pytest.mark.parametrize("word", ["complete", "stopped"])
def test_an_engine_that_gives_up_in_silence_has_failed(cli: Cli, trial: Path, word: str) -> None:
    done = cli(*train(), COUNTING_FAULT=f"{word}:0:4")
    assert done.returncode == 1, done.stdout
    assert "training ended after step 3 of 5 though nobody had asked it to stop" in " ".join(done.stderr.split())
    assert read_run(run_of(trial)).status == "failed"


def test_a_killed_launcher_leaves_nobody_and_the_next_run_continues(cli: Cli, trial: Path) -> None:
    process = cli.start("direct", "--nproc", "2", "--", *train("train.steps=100000", "checkpoint.interval=5"))
    wait_for(lambda: newest(trial) > 0)
    process.kill()
    process.communicate()
    again = cli("direct", "--nproc", "2", "--", *train(f"train.steps={newest(trial) + 10}", "checkpoint.interval=5"))
    assert again.returncode == 0, again.stderr
    assert not processes_with(str(run_of(trial)))
    steps = read_run(run_of(trial)).steps
    assert list(steps.step) == list(range(1, steps.step[-1] + 1))


def test_a_killed_agent_takes_its_ranks_along(cli: Cli, trial: Path) -> None:
    process = cli.start("direct", "--nproc", "2", "--", *train("train.steps=100000"))
    wait_for(lambda: started(trial))
    (agent,) = processes_with("primus.runtime.agents.agent " + str(run_of(trial)))
    os.kill(agent, signal.SIGKILL)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "the agent was killed by SIGKILL" in err
    wait_for(lambda: not processes_with(str(run_of(trial))), 60)


def test_of_two_runs_at_once_exactly_one_has_the_directory(cli: Cli, trial: Path) -> None:
    both = [cli.start(*train("train.steps=300")) for _ in range(2)]
    ended = [process.communicate(timeout=60) for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes == [0, 1]
    (refused,) = [err for process, (_, err) in zip(both, ended, strict=True) if process.returncode]
    assert re.search(r"process \d+ on \S+, since .* is running here", refused)
    assert list(read_run(run_of(trial)).steps.step) == list(range(1, 301))


def test_a_run_directory_that_cannot_be_written_is_one_clear_error(cli: Cli, trial: Path) -> None:
    (trial.parent / "occupied").write_text("a file")
    done = cli(*train("--runs-dir", "occupied"))
    assert done.returncode == 1
    assert "cannot write here" in done.stderr
    assert "--runs-dir" in done.stderr
    assert "Traceback" not in done.stderr


def on_a_mount(cli: Cli, options: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line with ``disk`` mounted as a file system of its own, in a name space of its own."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs user namespaces, which are off here")
    (cli.home / "disk").mkdir()
    line = f"mount -t tmpfs -o {options} none disk && exec '{ROOT}/primus-cli' {' '.join(words)}"
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", line], cwd=cli.home, env=cli.env, capture_output=True, text=True, check=False
    )


def test_a_read_only_disk(cli: Cli, trial: Path) -> None:
    done = on_a_mount(cli, "ro", *train("--runs-dir", "disk"))
    assert done.returncode == 1
    assert "cannot write here: Read-only file system" in done.stderr
    assert "choose another place with --runs-dir DIR" in done.stderr


@pytest.mark.parametrize("size", ["8k", "64k", "200k"])
def test_a_disk_that_fills_up(cli: Cli, trial: Path, size: str) -> None:
    """Before the attempt is made, while it is made, and in the middle of training."""
    more = ("--runs-dir", "disk", "train.steps=5000", "checkpoint.interval=50", "monitor.tensorboard=false")
    done = on_a_mount(
        cli,
        f"size={size}",
        *train(*more),
    )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert re.search(r"free (some )?space|choose another place", done.stderr)
    assert "fault in Primus" not in done.stderr


def test_odd_places_work(cli: Cli, tmp_path: Path) -> None:
    odd = tmp_path / 'it\'s a "place" ü $HOME'
    odd.mkdir()
    (odd / "trial.yaml").write_text(TRIAL.format(name="a.b-c_1"))
    done = cli(*train(), cwd=odd)
    assert done.returncode == 0, done.stderr
    assert (odd / "runs" / "a.b-c_1" / "report.html").exists()


def test_events_of_all_writers_are_json_lines(cli: Cli, trial: Path) -> None:
    cli("direct", "--nproc", "2", "--", *train(), COUNTING_FAULT="exit:1:2")
    files = list((run_of(trial) / "attempts/1").glob("events-*.jsonl"))
    assert {"events-rank0.jsonl", "events-rank1.jsonl", "events-node0.jsonl"} <= {file.name for file in files}
    kinds = [json.loads(line)["event"] for file in files for line in file.read_text().splitlines()]
    assert "rank_failed" in kinds
    assert "run_ended" in kinds


def test_output_into_a_closed_pipe_does_not_end_the_run(cli: Cli, trial: Path) -> None:
    process = cli.start(*train("train.steps=200"))
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    process.stderr.read()
    process.wait(timeout=60)
    assert newest(trial) == 200


def test_the_ranks_environment(cli: Cli, trial: Path) -> None:
    process = cli.start(
        "direct", "--nproc", "2", "--env", "FLAVOUR=a b", "--", *train("train.steps=100000", "env.KIND=x")
    )
    wait_for(lambda: started(trial))
    pids = processes_with("primus.runtime.worker " + str(run_of(trial)))
    seen = [environment_of(pid) for pid in pids]
    assert sorted(env["RANK"] for env in seen) == ["0", "1"]
    assert {env["FLAVOUR"] for env in seen} == {"a b"}
    assert {env["KIND"] for env in seen} == {"x"}
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)


def test_sources_of_the_lock_file_name_the_owner_while_it_runs(cli: Cli, trial: Path) -> None:
    process = cli.start(*train("train.steps=100000"))
    wait_for(lambda: started(trial))
    owner = json.loads((run_of(trial) / "lock").read_text())
    assert owner["attempt"] == 1
    refused: subprocess.CompletedProcess[str] = cli(*train("train.steps=100000"))
    assert f"process {owner['pid']} on {owner['host']}" in refused.stderr
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert (run_of(trial) / "lock").read_text() == ""
