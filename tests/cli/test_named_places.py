"""``primus-cli @NAME``: places that a file names, of a project and of a user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Cli

from primus.cli.main import run
from primus.cli.places.named import blaming, expand, load, rows
from primus.errors import ConfigError, PrimusError, UsageError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a user's home elsewhere."""
    directory = tmp_path / "project"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setenv("PRIMUS_HOME", str(tmp_path / "primus"))
    (tmp_path / "primus").mkdir()
    return directory


def write(directory: Path, text: str) -> None:
    (directory / "places.yaml").write_text(text, encoding="utf-8")


def test_a_name_is_what_would_be_typed(project: Path) -> None:
    write(project, "pool: kubernetes --image i --env 'A=b c' -- direct --nproc 2\ntwo: direct --nproc 2\n")
    pool = ("kubernetes", "--image", "i", "--env", "A=b c")
    assert expand(["@pool", "--", "train", "x"])[0] == (*pool, "--", "direct", "--nproc", "2", "--", "train", "x")
    more = expand(["@pool", "-N", "4", "--", "train"])[0]
    assert more == (*pool, "-N", "4", "--", "direct", "--nproc", "2", "--", "train")
    inner = ["kubernetes", "--image", "i", "--", "@two", "--", "train", "a=@x"]
    assert expand(inner)[0] == ("kubernetes", "--image", "i", "--", "direct", "--nproc", "2", "--", "train", "a=@x")
    assert expand(["train", "@pool", "--"])[0] == ("train", "@pool", "--")
    assert expand(["@pool", "--help"])[0] == (*pool, "--help")


def test_the_projects_goes_before_the_users(project: Path) -> None:
    write(project.parent / "primus", "a: direct --nproc 1\nb: direct\n")
    write(project, "a: direct --nproc 2\n")
    assert {name: named.text for name, named in load().items()} == {"a": "direct --nproc 2", "b": "direct"}
    assert rows() == [("@a", "direct --nproc 2"), ("@b", "direct")]


def refusal(*words: str) -> str:
    with pytest.raises(PrimusError) as caught:
        run(words)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_name_that_there_is_not(project: Path) -> None:
    said = refusal("@pool", "--", "run", "list")
    assert "there is no named place '@pool': there is no places.yaml" in said
    assert str(project.parent / "primus" / "places.yaml") in said
    write(project, "mi300-pool: direct\n")
    assert "did you mean '@mi300-pool'?" in refusal("@mi300_pol", "--", "run", "list")
    assert "there are @mi300-pool" in refusal("@", "--", "run", "list")
    write(project, "# none\n")
    assert load() == {}


def test_everything_wrong_in_the_files_is_said_at_once_with_its_place(project: Path) -> None:
    lines = ["a: kubernets -N 2", "b: [1]", "c: direct --", 'd: "direct \'x"', "e f: direct", "g: ''", "h: 3"]
    write(project, "\n".join(lines))
    write(project.parent / "primus", "- direct\n")
    said = refusal("@a", "--", "run", "list")
    for expected in (
        "places.yaml:1:4: 'kubernets' is not a place (did you mean 'kubernetes'?)",
        "places.yaml:2:4: a place is written as on the command line",
        "places.yaml:3:4: nothing stands behind its '--'",
        "places.yaml:4:4: the words cannot be told apart: no closing quotation",
        "places.yaml:5:1: 'e f' is not a name",
        "places.yaml:6:4: it stands for nothing",
        "places.yaml:7:4: a place is written as on the command line",
        "primus/places.yaml:1:1: a file of places is a map",
    ):
        assert expected in said
    assert rows()[0][0] == "places.yaml"
    write(project, "a: direct\na: direct\n")
    with pytest.raises(ConfigError, match=r"places.yaml:2:1: 'a' is set twice"):
        load()


def test_what_is_wrong_with_a_definition_is_found_there_and_what_is_typed_here(project: Path) -> None:
    write(project, "\nwrong: kubernetes --image i --user 1 --memory 64GB\nworse: direct --nprocs 2\n")
    said = refusal("@wrong", "--cpu", "many", "--", "train", "pretrain", "--config", "x")
    assert "places.yaml:2:8: --memory 64GB is not a quantity" in said
    assert "\n--cpu many: is not a quantity" in f"\n{said}"
    assert "places.yaml:3:8: No such option '--nprocs'" in refusal("@worse", "--", "train", "pretrain", "--config", "x")
    with pytest.raises(UsageError, match=r"^mine$"), blaming(()):
        raise UsageError("mine")


def test_they_run_and_are_listed(cli: Cli, trial: Path) -> None:
    write(trial.parent, "two: direct --nproc 2\n")
    assert "Named places (places.yaml):\n  @two  direct --nproc 2\n" in cli("--help").stdout
    done = cli("@two", "--", "train", "pretrain", "--config", "trial.yaml", "--dry-run", "--json")
    assert json.loads(done.stdout)["plan"]["topology"]["nproc_per_node"] == 2
    assert "Usage: primus-cli direct" in cli("@two", "--help").stdout
    done = cli("@two", "--", "train", "pretrain", "--config", "trial.yaml")
    assert done.returncode == 0, done.stderr
    assert "primus-cli @two -- train" in (trial.parent / "runs/trial/attempts/1/command").read_text()
