"""The wheel: builds from the checkout, installs, and works far away from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from command_line import ROOT, TRIAL, clean_environment


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git tracks, so that nothing lying about in the checkout gets in."""
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    source.mkdir()
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    copied = ["tar", "--null", "--ignore-failed-read", "-cf", "-", "-T", "-"]
    archive = subprocess.run(copied, cwd=ROOT, input=listed.stdout, capture_output=True, check=True)
    subprocess.run(["tar", "-xf", "-", "-C", str(source)], input=archive.stdout, check=True)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(source),
    ]
    subprocess.run(build, check=True)
    (made,) = out.glob("primus_lm-*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; its dependencies are those of the interpreter that runs the tests."""
    root = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    install = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--python",
        str(root / "bin" / "python"),
        "install",
        "--no-deps",
        str(wheel),
    ]
    subprocess.run(install, check=True)
    (site,) = root.glob("lib/python3*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return root


def call(environment: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**clean_environment(cwd), "PATH": f"{environment / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run(["primus-cli", *arguments], env=env, cwd=cwd, capture_output=True, text=True, check=False)


def test_every_tracked_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z", "src"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {name.removeprefix("src/") for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    tracked -= {name for name in tracked if (ROOT / "src" / name).is_symlink()}
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert tracked - packed == set()
    assert {
        f"primus/runtime/environments/requirements/{name}.lock" for name in ("launcher", "torch", "monitor", "dev")
    } <= packed


def test_it_runs_outside_the_checkout(environment: Path, tmp_path: Path) -> None:
    version = call(environment, tmp_path, "--version")
    assert version.stdout == "primus-cli 0.1.0\n", version.stderr

    (tmp_path / "trial.yaml").write_text(TRIAL.format(name="trial").replace("backend: counting\n", ""))
    dry = call(environment, tmp_path, "train", "pretrain", "--config", "trial.yaml", "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    report = json.loads(dry.stdout)
    assert report["plan"]["engine"]["torchtitan"] == "0.3.0"
    (command,) = report["commands"]
    assert str(ROOT) not in " ".join(command)

    check = call(environment, tmp_path, "env", "check", "torch", "--json")
    assert check.returncode == 0, check.stdout + check.stderr


def test_a_rank_imports_the_installed_package(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "trial.yaml").write_text(TRIAL.format(name="trial").replace("backend: counting\n", ""))
    small = ["model.num_hidden_layers=1", "train.steps=1", "train.seq_length=32", "monitor.tensorboard=false"]
    done = call(environment, tmp_path, "train", "pretrain", "--config", "trial.yaml", *small)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "trial" / "checkpoints" / "step-1" / "manifest.json").exists()
