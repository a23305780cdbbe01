"""``primus-cli env``: what is there, what is missing, which backend trains where."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import made
import pytest
from command_line import Cli

from primus.cli.main import run as primus_cli
from primus.runtime import environments
from primus.runtime.environments import ENVIRONMENTS
from primus.runtime.environments.pins import Interpreter, read_lock


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without environments on a machine with nothing else."""
    for name in ("PRIMUS_PYTHON", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PRIMUS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(environments, "this_interpreter", lambda: Interpreter("/some/python", (3, 11), ()))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    primus_cli(["env", "list", "--json"])
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_each_environment_with_the_backends_that_train_in_it(
    bare: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "support" / "plugins"))
    rows = listed(capsys)
    assert rows.keys() == ENVIRONMENTS.keys()
    assert {row["state"] for row in rows.values()} == {"not made"}
    assert rows["torch"]["backends"].keys() >= {"megatron", "torchtitan"}
    for name, device in (("jax", "cpu"), ("jax-rocm", "rocm"), ("jax-cuda", "cuda")):
        assert rows[name]["backends"] == {"maxtext": [device]}
    assert "counting" in rows["launcher"]["backends"]  # a plugin that needs no engine
    assert rows["dev"]["backends"] == {}


def test_a_plugin_whose_environment_there_is_not(
    bare: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from primus.backends.torchtitan import TorchTitanBackend

    monkeypatch.setattr(TorchTitanBackend, "environment", "tensor")
    assert primus_cli(["env", "list"]) == 0
    out = capsys.readouterr().out
    assert "problem: backend 'torchtitan': trains in an environment 'tensor', which there is not" in out


def test_what_is_broken_says_what_to_do(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = made.make("jax", minor=12)
    next(site.glob("flax-*")).rmdir()
    made.metadata(site, "jax-rocm7-plugin", "0.10.2")
    assert primus_cli(["env", "list"]) == 0
    out = capsys.readouterr().out
    assert "jax          broken    maxtext on cpu" in out
    assert max(len(line) for line in out.splitlines() if "/" not in line) <= 80, "paths are as long as they are"
    assert primus_cli(["env", "check", "jax"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "NOT OK Python 3.12" in out
    assert "flax missing >=0.12.12" in out
    assert f"- flax: is gone, its lock has {read_lock('jax').pins['flax']}" in out
    assert "env create jax" in out
    assert "jax's plugins: jax-rocm7-plugin 0.10.2" in out
    assert primus_cli(["env", "check", "--json"]) == 1
    (report,) = json.loads(capsys.readouterr().out)
    assert (report["state"], report["ok"]) == ("broken", False)
    assert report["plugins"] == {"jax-rocm7-plugin": "0.10.2"}


def test_a_list_stays_short(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = made.make("torch")
    for info in sorted(site.iterdir())[:6]:
        info.rmdir()
    assert primus_cli(["env", "list"]) == 0
    out = capsys.readouterr().out
    assert out.count("is gone, its lock has") == 3
    assert "- and 3 more: primus-cli env check torch" in out


def test_what_is_not_there_is_no_failure_unless_asked_for(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert primus_cli(["env", "check"]) == 0
    assert primus_cli(["env", "check", "jax"]) == 1
    assert "env create jax" in capsys.readouterr().out
    made.make("torch")
    (ENVIRONMENTS["torch"].directory / "complete").unlink()
    assert primus_cli(["env", "check"]) == 1
    assert "was never finished (the next command that needs it makes it anew)" in capsys.readouterr().out


def test_engines_say_which_devices_they_see(capsys: pytest.CaptureFixture[str], cli: Cli) -> None:
    """Real ones; the process that asks imports neither."""
    import torch

    jax = environments.provide("jax")
    build = "rocm" if torch.version.hip else "cuda" if torch.version.cuda else "cpu"
    for name, python, expected in (("torch", sys.executable, build), ("jax", jax, "cpu")):
        done = cli("env", "check", name, "--devices", "--json", PRIMUS_PYTHON=python, PYTHONPATH="")
        (report,) = json.loads(done.stdout)
        assert done.returncode == 0, report["problems"]
        assert report["devices"]["engine"] == name
        assert report["devices"]["build"] == expected
        assert len(report["devices"]["devices"]) == (torch.cuda.device_count() if name == "torch" else 0)
