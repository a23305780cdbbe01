"""``primus-cli checkpoint``: what a run has saved, whether it is whole, and making room."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from primus.checkpoints import store
from primus.cli.main import run as primus_cli
from primus.errors import CheckpointError, UsageError


@pytest.fixture
def run(tmp_path: Path, monkeypatch) -> Path:
    """Steps 10, 20, 30; an unfinished save of step 15."""
    monkeypatch.setenv("PRIMUS_RUNS", str(tmp_path))
    run = tmp_path / "tiny"
    for step in (10, 20, 30):
        directory = store.begin(run, step)
        (directory / "weights").write_bytes(b"w" * 5000)
        store.seal(directory, step=step, consumed_samples=step * 8, model={})
    store.begin(run, 15)
    return run


def test_list_is_newest_first_with_states(run: Path, capsys) -> None:
    os.truncate(run / "checkpoints/step-20/weights", 3)
    assert primus_cli(["checkpoint", "list", "tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["30", "complete"],
        ["20", "damaged"],
        ["15", "partial"],
        ["10", "complete"],
    ]
    assert "truncated: 3 of 5,000 bytes" in "".join(lines[5:])
    assert primus_cli(["checkpoint", "list", "tiny", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["step"], row["state"], row["bytes"], len(row["problems"])) for row in rows] == [
        (30, "complete", 5000, 0),
        (20, "damaged", 5000, 1),
        (15, "partial", None, 0),
        (10, "complete", 5000, 0),
    ]


def test_verify_reads_every_byte(run: Path, capsys) -> None:
    assert primus_cli(["checkpoint", "verify", "tiny"]) == 0
    assert "step 30: intact  4.88 KiB" in capsys.readouterr().out
    with (run / "checkpoints/step-20/weights").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"X")
    (run / "checkpoints/step-10/manifest.json").write_text("{")
    assert primus_cli(["checkpoint", "verify", "tiny"]) == 1
    out = capsys.readouterr().out
    assert "content was altered" in out
    assert "manifest cannot be read" in out
    assert primus_cli(["checkpoint", "verify", "tiny", "--step", "30"]) == 0
    capsys.readouterr()
    assert primus_cli(["checkpoint", "verify", "tiny", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in rows] == ["intact", "damaged", "partial", "damaged"]


def test_prune_tells_first_and_keeps_the_newest(run: Path, capsys) -> None:
    assert primus_cli(["checkpoint", "prune", "tiny", "--keep", "1", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["removed"]
    assert [Path(path).name for path in told] == ["step-20", "step-15", "step-10"]
    assert len(store.entries(run)) == 4
    assert primus_cli(["checkpoint", "prune", "tiny", "--keep", "1"]) == 0
    assert capsys.readouterr().out.count("removed") == 3
    assert [entry.step for entry in store.entries(run)] == [30]
    assert primus_cli(["checkpoint", "prune", "tiny", "--keep", "1"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_what_is_not_there_is_named(run: Path, capsys) -> None:
    with pytest.raises(UsageError, match=r"no checkpoint of step 11.*it has 30, 20, 15, 10"):
        primus_cli(["checkpoint", "verify", "tiny", "--step", "11"])
    with pytest.raises(UsageError, match="did you mean 'tiny'"):
        primus_cli(["checkpoint", "list", "tinny"])
    with pytest.raises(CheckpointError, match="never finished"):
        primus_cli(["checkpoint", "convert", "tiny", "--step", "15", "--output", "x"])
    for step in (10, 20, 30):
        os.truncate(run / f"checkpoints/step-{step}/weights", 3)
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        primus_cli(["checkpoint", "convert", "tiny", "--output", "x"])
    assert capsys.readouterr().err.count("skipped") == 3
    (run.parent / "new" / "attempts").mkdir(parents=True)
    assert primus_cli(["checkpoint", "list", "new"]) == 0
    assert "no checkpoints" in capsys.readouterr().out
