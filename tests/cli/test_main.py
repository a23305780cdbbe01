"""The command line as a whole: splitting, help, mistakes, exit codes, and what it does not import."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT, Cli

from primus.cli.main import PLACES, VERBS, Segment, _crash_file, split
from primus.errors import UsageError

HEAVY = ("torch", "numpy", "jax", "transformers", "torchtitan", "datasets", "pandas", "pyarrow", "tokenizers")


@pytest.mark.parametrize(
    ("words", "places", "command"),
    [
        ("train pretrain --config F", [], "train pretrain --config F"),
        ("direct -- env list", [("direct", "")], "env list"),
        ("direct --nproc 2 -- train x", [("direct", "--nproc 2")], "train x"),
        ("direct --nproc 2 --env A=b -- train a=1 -- b", [("direct", "--nproc 2 --env A=b")], "train a=1 -- b"),
        ("train direct -- x", [], "train direct -- x"),
        ("direct -- direct -- env list", [("direct", ""), ("direct", "")], "env list"),
        ("", [], ""),
    ],
)
def test_places_come_first_and_the_command_is_kept_verbatim(
    words: str, places: list[tuple[str, str]], command: str
) -> None:
    expected = tuple(Segment(place, tuple(flags.split())) for place, flags in places)
    assert split(words.split()) == (expected, tuple(command.split()))


def test_a_place_without_a_command_says_what_is_missing() -> None:
    with pytest.raises(UsageError, match="'direct' needs a command after its flags"):
        split(["direct", "--nproc", "2", "train", "pretrain"])


def test_help_lists_every_verb_and_place(cli: Cli) -> None:
    for words in ([], ["--help"], ["-h"]):
        done = cli(*words)
        assert done.returncode == 0
        assert done.stderr == ""
        for name in (*VERBS, *PLACES):
            assert f"\n  {name} " in done.stdout
        assert max(len(line) for line in done.stdout.splitlines()) <= 80


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_there_and_has_help(cli: Cli, verb: str) -> None:
    done = cli(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert f"Usage: primus-cli {verb}" in done.stdout


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("trian pretrain", "did you mean 'train'?"),
        ("dircet -- env list", "did you mean 'direct'?"),
        ("direct -- evn list", "did you mean 'env'?"),
        ("xyzzy", "there are train, data, config"),
        ("env lst", "Did you mean 'list'?"),
        ("--nonsense", "--nonsense"),
        ("train pretrain --confg x", "--config"),
        ("train pretrain", "--config"),
        ("train pretrain --config x.yaml steps", "'steps' is not KEY=VALUE"),
        ("train pretrain --config x.yaml --json", "use it together with --dry-run"),
        ("direct", "needs a command after its flags"),
        ("direct --nproc 2 --", "'direct' needs a command after its flags"),
        ("direct --nproc 0 -- env list", "--nproc"),
        ("direct --nproc 2 -- env list", "`--nproc 2` would change nothing"),
        ("direct --nproc two -- train pretrain --config x.yaml", "--nproc"),
        ("direct --rdzv here -- train pretrain --config x.yaml", "--rdzv here is not HOST:PORT"),
        ("direct --env 1A -- train pretrain --config x.yaml", "--env 1A is not NAME=VALUE"),
        ("direct --nnodes 2 -- train pretrain --config x.yaml", "several nodes need a meeting point"),
        ("direct --nnodes 2 --node-rank 2 --rdzv a:1 -- train pretrain --config x.yaml", "--node-rank 2 is not one of"),
        ("direct -- direct -- train pretrain --config x.yaml", "places cannot be nested like this: direct > direct"),
        ("train pretrain --config nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2_and_a_hint(cli: Cli, words: str, hint: str) -> None:
    done = cli(*words.split())
    assert done.returncode == 2, done.stdout + done.stderr
    assert hint in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_help_of_a_place(cli: Cli) -> None:
    done = cli("direct", "--help")
    assert done.returncode == 0
    assert "--node-rank" in done.stdout


def test_an_unforeseen_exception_is_one_short_screen(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import primus.runtime.environments as e\n"
        "def boom(*a): raise ZeroDivisionError('one of ours')\n"
        "e.locate = boom\n"
    )
    done = cli("env", "list", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "ZeroDivisionError: one of ours" in done.stderr
    assert "Traceback" not in done.stderr
    (crash,) = (tmp_path / "primus" / "crashes").iterdir()
    assert str(crash) in done.stderr
    assert "Traceback" in crash.read_text()
    debug = cli("--debug", "env", "list", PYTHONPATH=str(tmp_path))
    assert "Traceback" in debug.stderr


def test_a_crash_file_takes_arguments_that_are_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIMUS_HOME", str(tmp_path))
    path = _crash_file("primus-cli data prepare \udcff")
    assert path is not None
    assert path.read_text() == "primus-cli data prepare \\udcff"


def test_a_reader_that_leaves_early_is_no_error(cli: Cli) -> None:
    line = f"'{ROOT / 'primus-cli'}' config reference | head -n 1"
    done = subprocess.run(["bash", "-c", line], env=cli.env, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1


def test_ctrl_c_is_exit_code_130(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\nimport primus.runtime.environments as e\n"
        "e.locate = lambda name: os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = cli("env", "list", PYTHONPATH=str(tmp_path))
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.strip() == "primus-cli: interrupted"


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["config", "check", "trial.yaml"],
        ["config", "show", "trial.yaml"],
        ["env", "list"],
        ["train", "pretrain", "--config", "trial.yaml", "--dry-run"],
        ["train", "pretrain", "--config", "trial.yaml", "backend=torchtitan", "--dry-run", "--json"],
        ["direct", "--nproc", "2", "--", "train", "pretrain", "--config", "trial.yaml", "--dry-run"],
    ],
    ids=" ".join,
)
def test_what_runs_on_the_launching_side_imports_no_heavy_library(cli: Cli, trial: Path, words: list[str]) -> None:
    """Also through plugins and lazy imports: what was imported when the process ended counts."""
    code = (
        "import atexit, json, sys\n"
        f"found = lambda: json.dumps([name for name in {HEAVY!r} if name in sys.modules])\n"
        "atexit.register(lambda: print('IMPORTED', found(), file=sys.stderr))\n"
        "from primus.cli.main import main\nmain()\n"
    )
    env = cli.environment(PYTHONPATH=f"{ROOT / 'src'}{os.pathsep}{cli.env['PYTHONPATH']}")
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *words],
        env=env,
        cwd=trial.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.rpartition("IMPORTED ")[2]) == []
    assert not (trial.parent / "runs").exists()
