"""Rendering the place ``slurm``: pure, so scripts are compared with ones kept in the repository, and hostile names and
values are read back by a shell and, in the last test, by sbatch itself."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from command_line import Cli
from hypothesis import given, settings
from hypothesis import strategies as st
from slurm_cluster import Cluster

from primus.errors import UsageError
from primus.launch.slurm import Inner, Slurm, attached, directive, script

GOLDEN = Path(__file__).parent / "golden"
INNER = Inner("llama", "/env/bin/python", Path("/runs/llama/jobs/3"), {"PYTHONPATH": "/checkout/src"})
HOSTILE = Inner("a-run", "/o'k/python", Path('/a "b" %j/$(id)/`x`/ü#'), {"PYTHONPATH": "a'b\n$HOME", "PRIMUS_HOME": ""})
WORDS = st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("name", "words", "inner", "excluded"),
    [
        ("slurm_two_nodes", "-N 2", INNER, ()),
        (
            "slurm_many_flags",
            "sbatch -N 16 -p mi300x -A team --time=12:00:00 --gpus-per-node=8 --switches=1@10:00 -x n[7-8] --signal=@9",
            INNER,
            ("n12",),
        ),
        ("slurm_elastic_shared", "-N 2-4 --nodelist n[1-4] -c 16 --comment='it is; $(mine)' --no-requeue", INNER, ()),
        ("slurm_hostile", "-N1", HOSTILE, ()),
        ("slurm_attached", "srun -N 2 -p debug --exclude=n1", INNER, ("n4",)),
    ],
)
def test_golden(name: str, words: str, inner: Inner, excluded: tuple[str, ...]) -> None:
    place = Slurm.parse(shlex.split(words))
    text = (
        script(place, inner, excluded)
        if place.mode == "sbatch"
        else shlex.join(attached(place, inner, excluded)) + "\n"
    )
    assert text == (GOLDEN / f"{name}.sh").read_text()


@settings(deadline=None, max_examples=50)
@given(WORDS, st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30))
def test_a_shell_runs_what_was_meant(path: str, value: str) -> None:
    """However directories and variables are called, the script runs our program with our words, and nothing else."""
    inner = Inner("run", "printf", Path("/") / path.replace("\\", "/"), {"ODD": value})
    text = script(Slurm(), inner)
    shown = text.replace("exec printf", "printf '%s\\0' \"$ODD\"", 1)
    words = subprocess.run(["bash", "-c", shown], capture_output=True, check=True).stdout.decode().split("\0")[:-1]
    assert words[:5] == [value, "-P", "-m", "primus.runtime.slurm.batch", str(inner.job)]
    assert words[-2:] == ["primus.runtime.node", str(inner.job)]


@settings(deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=4))
def test_a_directive_is_one_line_that_reads_as_it_was_given(words: list[str]) -> None:
    line = directive(words)
    assert not re.search(r"[\n\r\0]", line)
    assert shlex.split(line) == words


def test_line_breaks_are_refused_where_no_line_can_hold_them() -> None:
    with pytest.raises(UsageError, match="line break"):
        Slurm.parse(["--comment=a\nb"])
    with pytest.raises(UsageError, match="line break"):
        script(Slurm(), Inner("run", "python", Path("/a\nb"), {}))
    with pytest.raises(UsageError, match="backslash"):
        script(Slurm(), Inner("run", "python", Path("/a\\b"), {}))


@pytest.mark.parametrize("words", [["-N", "4"], ["-N2", "-N4"], ["--nodes=4"], ["--nodes", "4"], ["sbatch", "-N", "4"]])
def test_nodes_are_read_in_every_spelling(words: list[str]) -> None:
    assert Slurm.parse(words) == Slurm(nodes=4)


def test_what_was_given_is_kept_word_by_word() -> None:
    words = ["-p", "main", "--gres=gpu:8", "-t1:00", "--exclusive", "--mail-user", "a@b"]
    assert [word for flag in Slurm.parse(words).flags for word in flag.words] == words


def test_what_would_take_the_job_apart_is_refused_all_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        Slurm.parse(
            ["srun", "-N", "2", "-N3", "--ntasks=4", "-a", "0-3", "--wrap", "x", "stray", "--export=NONE", "-N", "0"]
        )
    said = str(caught.value)
    with pytest.raises(UsageError, match="slurm srun: -N2-4: it takes no range of nodes"):
        Slurm.parse(["srun", "-N2-4"])
    for word in ("--ntasks=4", "-a", "--wrap", "'stray'", "-N 0", "--export=NONE"):
        assert word in said


@pytest.mark.parametrize(("flag", "grace"), [("--signal=B:TERM@300", 300), ("--signal=@90", 90), ("--signal=USR1", 60)])
def test_the_time_of_a_signal_is_the_grace_period(flag: str, grace: int) -> None:
    place = Slurm.parse([flag])
    assert place.grace == grace
    assert f"#SBATCH --signal=B:USR1@{grace}\n" in script(place, INNER)


def test_sbatch_reads_hostile_directives_as_they_were_meant(cluster: Cluster, cli: Cli, tmp_path: Path) -> None:
    """One job an array of oddities: its comment comes back as it was given."""
    for word in ("a 'b' \"c\" \\ d", "$(touch x) `id` ${HOME}", "#SBATCH -p x; & | < > é \t %j", '\\\\"\'"\\'):
        text = f"#!/bin/bash\n#SBATCH --hold\n#SBATCH {directive(('--comment=' + word,))}\n#SBATCH --job-name=x\ntrue\n"
        (tmp_path / "script.sh").write_text(text)
        job = cluster.run("sbatch", "--parsable", str(tmp_path / "script.sh")).strip()
        assert cluster.run("squeue", "-h", "-j", job, "-o", "%k|%j") == f"{word}|x\n"
        cluster.run("scancel", job)
