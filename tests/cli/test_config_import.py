"""``primus-cli config import``, as typed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from primus.cli.config import command
from primus.config.load import load
from primus.errors import PrimusError

THERE = """\
work_group: amd
modules:
  pre_trainer:
    framework: torchtitan
    model: llama3.1_8B.yaml
    overrides:
      training: {steps: 50, local_batch_size: 4, seq_len: 8192, mock_data: true}
      lr_scheduler: {warmup_steps: 10}
      metrics: {enable_wandb: false}
      training_steps: 3
"""


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.yaml").write_text(THERE)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, ["import", *arguments], standalone_mode=False)


def typed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The real program in a process of its own."""
    code = "import sys; from primus.cli.main import main; sys.argv[0] = 'primus-cli'; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", code, "config", "import", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_the_experiment_goes_to_stdout_and_the_report_to_stderr() -> None:
    found = typed("there.yaml", "--hardware", "MI300X")
    assert found.returncode == 0
    Path("ours.yaml").write_text(found.stdout)
    assert load("ours.yaml").experiment.train.global_batch_size == 32
    lines = found.stderr.splitlines()
    assert lines[0] == "there.yaml: an experiment for torchtitan, 10 keys"
    assert "  there.yaml:7  training.steps             train.steps" in lines
    assert "not carried: 2" in lines
    assert "  unknown key (did you mean training.steps?)" in lines
    assert "    there.yaml:10  training_steps: 3" in lines
    assert "nothing to carry: 1" in lines
    assert lines[-1] == "the experiment went to stdout, accepted by `config check`"


def test_a_file_is_written_once() -> None:
    assert run("there.yaml", "--hardware", "MI300X", "-o", "ours.yaml").exit_code == 0
    before = Path("ours.yaml").read_text()
    again = run("there.yaml", "-o", "ours.yaml").exception
    assert isinstance(again, PrimusError)
    assert (str(again), again.exit_code) == (
        "ours.yaml exists (choose another --output, or replace it with --overwrite)",
        2,
    )
    assert Path("ours.yaml").read_text() == before
    assert run("there.yaml", "--hardware", "H100", "-o", "ours.yaml", "--overwrite").exit_code == 0
    assert "hardware/H100" in Path("ours.yaml").read_text()
    itself = run("there.yaml", "-o", "there.yaml", "--overwrite").exception
    assert "is the file that is imported" in str(itself)
    assert "cannot be written" in str(run("there.yaml", "-o", "nowhere/ours.yaml").exception)


def test_what_is_needed_is_said() -> None:
    found = run("there.yaml", "-o", "ours.yaml")
    assert found.exit_code == 0
    assert "still needed, before `config check` accepts the file: 2" in found.stderr
    assert "the file names no hardware (give --hardware NAME: " in found.stderr
    assert found.stderr.splitlines()[-1] == "ours.yaml written"


def test_json() -> None:
    report = json.loads(run("there.yaml", "--hardware", "MI300X", "--json").stdout)
    assert (report["framework"], report["accepted"], report["output"]) == ("torchtitan", True, None)
    assert {"key": "training.steps", "where": "there.yaml:7:18", "to": ["train.steps"], "note": ""} in report["carried"]
    assert {item["key"]: item["hint"] for item in report["not_carried"]} == {
        "work_group": "",
        "training_steps": "did you mean training.steps?",
    }
    assert report["experiment"].startswith("# Imported from there.yaml")
    assert len(report["carried"]) + len(report["not_carried"]) == 10
    written = json.loads(run("there.yaml", "--json", "-o", "ours.yaml").stdout)
    assert (written["experiment"], written["output"], written["accepted"]) == (None, "ours.yaml", False)
    assert written["missing"][-1]["message"] == "the file names no hardware"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nope.yaml"], "there is no file nope.yaml"),
        (["ours.yaml"], "an experiment of this system already"),
        (["there.yaml", "--hardware", "MI300"], "did you mean MI300X?"),
        (["broken.yaml"], "broken.yaml:1:8: the list that begins here is not closed"),
    ],
)
def test_wrong_input_exits_with_2(arguments: list[str], expected: str) -> None:
    Path("ours.yaml").write_text("extends: models/llama2_7B\n")
    Path("broken.yaml").write_text("model: [1\n")
    error = run(*arguments).exception
    assert isinstance(error, PrimusError)
    assert error.exit_code == 2
    assert expected in str(error)


def test_control_characters_do_not_reach_the_terminal() -> None:
    Path("there.yaml").write_text(f'{THERE}      "odd\\e[31m": 1\n')
    found = run("there.yaml")
    assert "\x1b" not in found.stdout + found.stderr


def test_the_page_shows_what_the_command_does() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration" / "import.md").read_text()
    there, ours, report = re.findall(r"<!-- recorded: .*? -->\n```\w*\n(.*?)```", page, re.DOTALL)
    Path("MI300X").mkdir()
    Path("MI300X/llama2_7B-pretrain.yaml").write_text(there)
    found = run("MI300X/llama2_7B-pretrain.yaml", "--output", "llama2_7B.yaml")
    assert Path("llama2_7B.yaml").read_text() == ours
    assert found.stderr == report


def test_heavy_libraries_stay_out() -> None:
    code = (
        "import sys; from primus.cli.main import run; run(['config', 'import', 'there.yaml']); "
        "print([name for name in ('torch', 'jax', 'numpy', 'transformers') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
