"""``primus-cli config``, as typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from primus.cli.config import command
from primus.errors import PrimusError

EXPERIMENT = """\
name: tiny
extends: [models/tiny_llama, hardware/cpu]
data: {train: stdlib}
train: {steps: 100, global_batch_size: 8, seq_length: 128}
optimizer:
  lr: 1e-3  # peak
"""


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("e.yaml").write_text(EXPERIMENT)
    Path("f.yaml").write_text(EXPERIMENT.replace("1e-3", "2e-3").replace("name: tiny", "name: other"))
    Path("bad.yaml").write_text(EXPERIMENT.replace("lr:", "lrr:").replace("100", "yes"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, standalone_mode=False)


def typed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The real program in a process of its own."""
    code = "import sys; from primus.cli.main import main; sys.argv[0] = 'primus-cli'; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_show_prints_every_value_with_its_origin() -> None:
    shown = run("show", "e.yaml", "train.seed=7").output
    lines = {line.split("#")[0].strip(): line.split("#")[1].strip() for line in shown.splitlines() if "#" in line}
    assert lines["lr: 0.001"] == "e.yaml:6"
    assert lines["seed: 7"] == "override"
    assert lines["device: cpu"] == "preset hardware/cpu"
    assert lines["backend: torchtitan"] == "default"
    columns = {
        line.index("# ") for line in shown.splitlines() if "# " in line and len(line.split(" # ")[0].rstrip()) <= 60
    }
    assert len(columns) == 1, "the comments stand in one column"


def test_show_prints_a_file_that_resolves_to_the_same() -> None:
    Path("shown.yaml").write_text(run("show", "e.yaml").output)
    assert run("diff", "e.yaml", "shown.yaml").output == "e.yaml and shown.yaml resolve to the same values\n"
    Path("all.yaml").write_text(run("show", "--all", "e.yaml").output)
    assert run("diff", "e.yaml", "all.yaml").output == "e.yaml and all.yaml resolve to the same values\n"


def test_show_json() -> None:
    found = json.loads(run("show", "--json", "--config", "e.yaml", "checkpoint.async=false").output)
    assert found["experiment"]["checkpoint"]["async"] is False
    assert found["origins"]["checkpoint.async"] == "override"
    assert found["experiment"]["optimizer"]["betas"] == [0.9, 0.95]


def test_why_tells_the_whole_story() -> None:
    shown = run(
        "show", "--why", "optimizer.lr", "e.yaml", "extends=recipes/pretrain", "optimizer.lr=5e-4", "train.steps=200"
    ).output
    lines = shown.splitlines()
    assert lines[0] == "optimizer.lr: 0.0005"
    assert lines[1] == "  from override"
    assert lines[2] == "  instead of 0.001 from e.yaml:6"
    assert lines[3].startswith("  instead of 0.0003 from preset recipes/pretrain (")
    assert "a number above 0" in lines[-1]


def test_why_of_a_section_and_as_json() -> None:
    shown = run("show", "--why", "train", "e.yaml").output
    assert "train.steps: 100\n  from e.yaml:4\n" in shown
    assert "train.seed: 1234\n  from default\n" in shown
    found = json.loads(run("show", "--json", "--why", "train.steps", "e.yaml").output)
    assert found == [{"key": "train.steps", "value": 100, "layers": [{"value": 100, "origin": "e.yaml:4"}]}]


def test_why_of_an_unknown_key() -> None:
    assert "did you mean optimizer.lr?" in str(run("show", "--why", "lr", "e.yaml").exception)
    assert "did you mean train.seed?" in str(run("show", "--why", "train.sed", "e.yaml").exception)


def test_diff() -> None:
    shown = run("diff", "e.yaml", "f.yaml").output.splitlines()
    assert shown == [
        "name: tiny -> other  # e.yaml:1 -> f.yaml:1",
        "optimizer.lr: 0.001 -> 0.002  # e.yaml:6 -> f.yaml:6",
    ]
    assert run("diff", "e.yaml", "f.yaml", "optimizer.lr=1", "name=x").output.startswith("e.yaml and f.yaml resolve")
    Path("g.yaml").write_text(f"{EXPERIMENT}env: {{A: x}}\n")
    assert json.loads(run("diff", "--json", "e.yaml", "g.yaml").output) == [
        {"key": "env", "a": {}},
        {"key": "env.A", "b": "x"},
    ]


def test_check_says_ok_or_everything_that_is_wrong() -> None:
    good = typed("config", "check", "e.yaml", "f.yaml")
    assert (good.returncode, good.stderr) == (0, "")
    assert [line.split(":")[0] for line in good.stdout.splitlines()] == ["e.yaml", "f.yaml"]
    mixed = typed("config", "check", "e.yaml", "bad.yaml", "missing.yaml")
    assert mixed.returncode == 2
    assert mixed.stdout.startswith("e.yaml: ok")
    assert mixed.stderr == (
        "error: 2 problems\n\n"
        "1. bad.yaml:4:16\n"
        "   4 | train: {steps: yes, global_batch_size: 8, seq_length: 128}\n"
        "     |                ^^^\n"
        "   train.steps must be a whole number of at least 1, but is the text 'yes'\n\n"
        "2. bad.yaml:6:3\n"
        "   6 |   lrr: 1e-3  # peak\n"
        "     |   ^^^\n"
        "   unknown key 'lrr' in optimizer\n"
        "   > did you mean lr?\n"
        "error: missing.yaml\n"
        "  there is no file missing.yaml\n"
        "  > check the path\n"
        "2 of 3 files have problems\n"
    )


def test_check_json() -> None:
    result = run("check", "--json", "e.yaml", "bad.yaml")
    assert result.return_value == 2
    good, bad = json.loads(result.output)
    assert good == {"file": "e.yaml", "ok": True, "problems": []}
    assert [item["where"] for item in bad["problems"]] == ["bad.yaml:4:16", "bad.yaml:6:3"]


@pytest.mark.parametrize(
    "arguments",
    [("check",), ("show",), ("show", "e.yaml", "f.yaml"), ("show", "bad.yaml"), ("diff", "e.yaml", "nope.yaml")],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    error = run(*arguments).exception
    assert isinstance(error, PrimusError)
    assert error.exit_code == 2


def test_a_wrong_file_ends_without_a_traceback() -> None:
    found = typed("config", "show", "nope.yaml")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "error: nope.yaml\n  there is no file nope.yaml\n  > check the path\n"


def test_a_file_with_an_equals_sign_in_its_name() -> None:
    Path("lr=3.yaml").write_text(EXPERIMENT)
    assert run("check", "lr=3.yaml", "train.steps=5").return_value == 0


def test_reference_prints_both_forms() -> None:
    assert run("reference").output.startswith("<!-- Generated")
    assert json.loads(run("reference", "--format", "json-schema").output)["title"] == "Primus experiment"


def test_heavy_libraries_stay_out() -> None:
    code = (
        "import sys; from primus.cli.main import run; "
        "run(['config', 'show', 'e.yaml']); run(['config', 'reference']); "
        "print([name for name in ('torch', 'jax', 'numpy', 'transformers') if name in sys.modules], file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert found.stderr.strip() == "[]"
