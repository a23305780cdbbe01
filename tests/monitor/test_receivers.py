"""A run of two attempts arrives at MLflow, W&B and Prometheus's parsers as one curve without doubles."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import ROOT, processes_with, wait_for
from told import (
    begin,
    ended,
    evaluated,
    free_port,
    look,
    monitored,
    notices,
    planned,
    saved,
    started,
    step,
    tell,
    wandb_records,
)

from primus.events.bus import Bus
from primus.events.history import read_run
from primus.events.monitor import WRITER
from primus.events.types import Notice, RankFailed
from primus.runtime.run_directory import Attempt

NAMES = re.compile(r"\bprimus_[a-z_]+(?=\{)")
KEY = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "a-token-that-nobody-may-see"


@dataclass
class Story:
    """Attempt 1 makes steps 1 to 8 and is killed, its ranks having started again once; attempt 2 goes on from 5, with
    another number of steps, and is complete."""

    run: Path
    first: Attempt
    second: Attempt
    scraped: dict[str, Any]
    mlflow: list[dict[str, Any]]
    python: str

    def wandb(self, attempt: int) -> list[dict[str, Any]]:
        (file,) = sorted((self.run / "monitor" / "wandb").glob("offline-run-*"))[attempt - 1].glob("run-*.wandb")
        return wandb_records(self.python, file)


@pytest.fixture(scope="module")
def story(python: str, tmp_path_factory: pytest.TempPathFactory) -> Story:
    directory = tmp_path_factory.mktemp("story")
    port = free_port()
    chosen = [f"monitor.prometheus.port={port}", "monitor.mlflow={}", "monitor.wandb.project=tests"]
    secrets = {"WANDB_API_KEY": KEY, "MLFLOW_TRACKING_TOKEN": TOKEN}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in secrets.items():
            patch.setenv(name, value)
        patch.setenv("WANDB_MODE", "offline")
        first = begin(planned(directory, *chosen))
        with monitored(python, first, ready=3):
            tell(first, started(1), evaluated(0, 9.0), *(step(n, 10.0 - n) for n in range(1, 5)), saved(3))
            failed = RankFailed(rank=0, node="n1", error="it died", traceback="", step=4)
            tell(first, failed, writer="node0")
            tell(first, started(1, 3), *(step(n, 20.0 - n) for n in range(4, 9)), evaluated(8, 8.0), saved(5))
            scraped = wait_for_step(python, port, 8)
        second = begin(planned(directory, *chosen, "train.steps=12"))
        with monitored(python, second, ready=3) as monitoring:
            (pid,) = processes_with(str(second.directory))
            arguments = Path(f"/proc/{pid}/cmdline").read_text()
            tell(second, started(2, 5), *(step(n, 30.0 - n) for n in range(6, 10)), step(10, float("nan")))
            tell(second, evaluated(8, 7.0), evaluated(10, 6.0), saved(10), ended("complete", 10))
            assert monitoring.log.exists()
        assert not any(value in arguments for value in secrets.values())
    run = directory / "runs" / "trial"
    found = look(python, "mlflow", f"sqlite:///{directory / 'runs' / 'mlflow.db'}")
    return Story(run, first, second, scraped, found, python)


def wait_for_step(python: str, port: int, number: int) -> dict[str, Any]:
    from urllib.request import urlopen

    def there() -> bool:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return f'\nprimus_step{{attempt="1",run="trial"}} {number}.0' in answer.read().decode()

    wait_for(there, 120, what=f"step {number} in the metrics")
    scraped: dict[str, Any] = look(python, "scrape", f"http://127.0.0.1:{port}/metrics")
    return scraped


def value(scraped: dict[str, Any], metric: str, /, **labels: str) -> float:
    own = {"run": "trial", "attempt": "1", **labels}
    (found,) = [value for sample, given, value in scraped["samples"] if sample == metric and given == own]
    return float(found)


def test_prometheus_parses_what_is_exported(story: Story) -> None:
    scraped = story.scraped
    assert scraped["content_type"].startswith("text/plain; version=0.0.4")
    for name, expected in {
        "primus_step": 8, "primus_steps_total": 9, "primus_target_steps": 9, "primus_loss": 12,
        "primus_validation_loss": 8,
        "primus_learning_rate": 1e-3, "primus_gradient_norm": 0.5, "primus_tokens_total": 9 * 512,
        "primus_tokens_per_second": 2048, "primus_mfu_ratio": 0.4, "primus_memory_bytes": 1 << 30,
        "primus_step_seconds_count": 9, "primus_step_seconds_sum": 2.25, "primus_checkpoint_seconds_count": 2,
        "primus_checkpoint_bytes": 3 << 30, "primus_checkpoint_step": 5, "primus_restarts_total": 1,
        "primus_lost_steps_total": 1,
    }.items():  # fmt: skip
        assert value(scraped, name) == pytest.approx(expected), name
    assert value(scraped, "primus_step_seconds_bucket", le="0.2") == 0
    assert value(scraped, "primus_step_seconds_bucket", le="0.5") == 9
    assert value(scraped, "primus_time_seconds_total", part="validation") == 1.0
    assert value(scraped, "primus_rank_failures_total", node="n1") == 1
    assert value(scraped, "primus_auxiliary_loss", name="balance") == 0.125
    assert value(scraped, "primus_run_state", primus_run_state="training") == 1
    assert value(scraped, "primus_last_step_timestamp_seconds") > 1.7e9


def test_metrics_are_named_and_described_as_prometheus_asks(story: Story) -> None:
    for name, (kind, text) in story.scraped["families"].items():
        assert name.startswith("primus_")
        assert text.endswith("."), name
        assert kind in ("gauge", "counter", "histogram", "summary"), name
        assert name.endswith("_total") == (kind == "counter") or kind == "counter", name  # the parser takes it off
        assert "_created" not in name
    for sample, _, _ in story.scraped["samples"]:
        family = sample.removesuffix("_total")
        assert sample.endswith("_total") == (story.scraped["families"].get(family, [""])[0] == "counter"), sample
    ours = {(name, tuple(sorted(labels.items()))) for name, labels, _ in story.scraped["samples"]}
    assert ours == {(name, tuple(sorted(labels.items()))) for name, labels, _ in story.scraped["openmetrics"]}


def test_the_dashboard_asks_for_metrics_that_there_are(story: Story) -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "primus.json").read_text(encoding="utf-8"))
    exported = {sample for sample, _, _ in story.scraped["samples"]}
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    asked = {name for panel in panels for target in panel["targets"] for name in NAMES.findall(target["expr"])}
    assert asked <= exported
    unasked = {re.sub("_(total|bucket|sum|count)$", "", name) for name in exported - asked}
    assert unasked <= {re.sub("_(total|bucket|sum|count)$", "", name) for name in asked}, "each metric has its panel"


def test_the_dashboard_is_what_grafana_takes() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "primus.json").read_text(encoding="utf-8"))
    assert dashboard["schemaVersion"] == 42, "Grafana 12 and 13"
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert 'run=~"$run"' in target["expr"], panel["title"]
            assert target["expr"].count("(") == target["expr"].count(")")


def test_mlflow_has_one_run_and_each_step_once(story: Story) -> None:
    (run,) = story.mlflow
    assert (run["experiment"], run["name"], run["status"]) == ("primus", "trial", "FINISHED")
    loss = [[number, shown] for number, shown, _ in run["metrics"]["train/loss"]]
    # of a step that came again the first report stays: trackers only append
    expected = [*([n, 10.0 - n] for n in range(1, 5)), *([n, 20.0 - n] for n in range(5, 9)), [9, 21.0]]
    assert [point for point in loss if point[0] < 10] == expected
    assert [number for number, _ in loss] == list(range(1, 11))
    assert loss[-1][1] != loss[-1][1]  # NaN
    assert [[s, v] for s, v, _ in run["metrics"]["validation/loss"]] == [[0, 9.0], [8, 8.0], [10, 6.0]]
    assert [s for s, _, _ in run["metrics"]["checkpoint/seconds"]] == [3, 5, 10]
    assert [[s, v] for s, v, _ in run["metrics"]["attempt"]] == [[0, 1.0], [3, 1.0], [5, 2.0]]
    lines = (story.first.directory / "events-rank0.jsonl").read_text().splitlines()
    told = next(json.loads(line) for line in lines if '"step_done"' in line)
    assert run["metrics"]["train/loss"][0][2] == round(1000 * told["time"])


def test_mlflow_knows_the_experiment_and_what_changed_of_it(story: Story) -> None:
    (run,) = story.mlflow
    assert run["params"]["optimizer.lr"] == "0.001"
    assert run["params"]["optimizer.betas"] == "[0.9, 0.95]"
    assert run["params"]["train.steps"] == "9"
    assert run["tags"]["primus.attempt.2.train.steps"] == "12"
    assert run["tags"]["primus.backend"] == "torchtitan"


def test_wandb_reads_back_one_run_without_doubles(story: Story) -> None:
    told: dict[str, list[list[float]]] = {"train/loss": [], "validation/loss": [], "checkpoint/step": []}
    names = set()
    for attempt, (code, status) in {1: (1, "unknown"), 2: (0, "complete")}.items():
        records = story.wandb(attempt)
        (run,) = [record["run"] for record in records if record["type"] == "run"]
        names.add(run["run_id"])
        config = run["config"]["update"]
        assert (run["project"], run["display_name"], config["optimizer"]["lr"]) == ("tests", "trial", 0.001)
        for record in records:
            if record["type"] == "history":
                row = record["history"]["item"]
                for key in told.keys() & row.keys():
                    told[key].append([row["_step"], row[key]])
        (end,) = [record["exit"] for record in records if record["type"] == "exit"]
        assert end.get("exit_code", 0) == code
        assert status in json.dumps([record for record in records if record["type"] == "summary"])
    assert len(names) == 1
    expected = [*([n, 10.0 - n] for n in range(1, 5)), *([n, 20.0 - n] for n in range(5, 9)), [9, 21.0]]
    assert told["train/loss"][:-1] == expected
    assert told["train/loss"][-1][0] == 10  # NaN
    assert told["validation/loss"] == [[0, 9.0], [8, 8.0], [10, 6.0]]
    # a checkpoint that is complete late comes at the step that training has reached
    assert told["checkpoint/step"] == [[4, 3], [8, 5], [10, 10]]


def test_no_secret_is_written_anywhere(story: Story) -> None:
    for path in story.run.parent.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert KEY.encode() not in content, path
            assert TOKEN.encode() not in content, path


def test_what_the_monitor_says_late_is_no_part_of_the_run(story: Story) -> None:
    told = Notice(message="late")
    before = read_run(story.run).attempts[-1]
    with Bus(story.second.directory, WRITER) as bus:
        time.sleep(0.1)
        bus.emit(told)
    after = read_run(story.run)
    assert after.notices[-1]["message"] == "late"
    assert (after.attempts[-1].last_record, after.attempts[-1].seconds) == (before.last_record, before.seconds)


def test_people_are_told_where_to_look(story: Story) -> None:
    told = "\n".join(notices(story.first))
    assert "Prometheus: metrics at http://127.0.0.1:" in told
    assert f"in experiment 'primus' of sqlite:///{story.run.parent / 'mlflow.db'}" in told
    assert "W&B: offline (WANDB_MODE=offline); send it afterwards: " in told
    assert not story.run.with_name("prometheus-trial.json").exists()
    assert os.listdir(story.run / "monitor").count("mlflow.json") == 1


AWAY = """
import socket, sys
from pathlib import Path
from primus.events.monitor import wandb
from primus.plan.plan import Plan
wandb.START_SECONDS = 2.0
plan = Plan.load(Path(sys.argv[1]))
Path(plan.run_directory, "monitor").mkdir()
tracker = wandb.WandbTracker(plan, 1)
print(tracker.open())
tracker.close()
"""


def test_wandb_that_does_not_answer_is_written_to_files(python: str, tmp_path: Path) -> None:
    attempt = begin(planned(tmp_path, "monitor.wandb={}"))
    with socket.socket() as swallowing:
        swallowing.bind(("127.0.0.1", 0))
        swallowing.listen(8)
        there = f"http://127.0.0.1:{swallowing.getsockname()[1]}"
        env = {**os.environ, "WANDB_BASE_URL": there, "WANDB_API_KEY": KEY, "PYTHONPATH": str(ROOT / "src")}
        command = [python, "-P", "-c", AWAY, str(attempt.plan)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("offline: ")
    (file,) = attempt.directory.parents[1].glob("monitor/wandb/offline-run-*/run-*.wandb")
    assert [record["type"] for record in wandb_records(python, file)].count("exit") == 1


INTERRUPTED = """
import json, sys
from pathlib import Path
from primus.events.monitor.mlflow import MLflowTracker
from primus.plan.plan import Plan
plan = Plan.load(Path(sys.argv[1]))
Path(plan.run_directory, "monitor").mkdir()
tracker = MLflowTracker(plan, 1)
given = {**{f"key{n}": "1" for n in range(250)}, "a//b": "no name for MLflow"}
tracker._parameters = lambda: given
log = tracker._log

def cut(*arguments, **more):
    log(*arguments, **more)
    tracker._log = log
    raise ConnectionError("after the first hundred")

tracker._log = cut
try:
    tracker.open()
except ConnectionError:
    line = tracker.open()
runs = [run for e in tracker._client.search_experiments() for run in tracker._client.search_runs([e.experiment_id])]
print(json.dumps([line, tracker.mark.id, [[r.info.run_id, sorted(r.data.params), sorted(r.data.tags)] for r in runs]]))
"""


def test_mlflow_that_fails_and_refuses_while_it_opens_makes_one_run(python: str, tmp_path: Path) -> None:
    attempt = begin(planned(tmp_path, f"monitor.mlflow.uri={tmp_path.as_uri()}/store"))
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [python, "-P", "-c", INTERRUPTED, str(attempt.plan)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    line, identity, ((found, parameters, tags),) = json.loads(done.stdout)
    assert found == identity
    assert "; some parameters were refused: Invalid" in line
    assert parameters == sorted(f"key{n}" for n in range(200))  # the last portion holds the one that is refused
    assert not [tag for tag in tags if tag.startswith("primus.attempt")]
