"""The place ``slurm``: one job, a launcher of ours on each of its nodes.

Rendering is pure: the same arguments give the same text, byte for byte. Talking to Slurm is in ``slurm_client``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from primus.errors import Problem, UsageError

GRACE_SECONDS = 120
"""How long before its time limit a job is asked to save, unless ``--signal`` says otherwise."""

OURS = {
    "-n": "one launcher runs on each node; it starts the ranks: direct --nproc N behind slurm sets how many",
    "-a": "a run is one job",
    "-W": "use `slurm srun` to stay until the job ends",
    "-D": "the job starts in the directory of this command; change to another one first",
    "--ntasks-per-node": "one launcher runs on each node; direct --nproc N behind slurm sets the ranks",
    "--wrap": "the script is ours; what runs in it comes behind `--`",
    "--test-only": "primus-cli's own --dry-run prints the script, which `sbatch --test-only` takes",
    "--parsable": "it is given already",
    "--open-mode": "the log is appended to, so that a start again keeps what there is",
    "--kill-on-bad-exit": "it is given already",
    "--multi-prog": "what runs comes behind `--`",
    "--het-group": "a run is one job of equal nodes",
}
"""Flags of Slurm that would take apart what is rendered, and what to do instead."""
LONG = {
    "-n": "--ntasks", "-a": "--array", "-W": "--wait", "-D": "--chdir", "-N": "--nodes", "-x": "--exclude",
    "-o": "--output", "-c": "--cpus-per-task", "-s": "--oversubscribe", "-J": "--job-name",
}  # fmt: skip
SHORT = {long: short for short, long in LONG.items()}
SHARED = {"--exclusive", "--oversubscribe", "--cpus-per-task", "--cpus-per-gpu", "--mincpus", "--cores-per-socket"}
"""Whoever gives one of these has said which part of a node is wanted; otherwise it is the whole of it."""
MEMORY = {"--mem", "--mem-per-cpu", "--mem-per-gpu"}

NODES = re.compile(r"(\d+)(?:-(\d+))?")
SIGNAL = re.compile(r"(?:[RB]+:)?\w*(?:@(\d+))?")


@dataclass(frozen=True)
class Flag:
    """One flag of Slurm with what was given behind it, word by word as it was given: ``-p main``, ``--gres=gpu:8``."""

    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its long name: ``-N2``, ``-N 2``, ``--nodes=2`` are one; of an unknown short flag, itself."""
        word = self.words[0]
        name = word.partition("=")[0] if word.startswith("--") else word[:2]
        return LONG.get(name, name)

    @property
    def value(self) -> str:
        """What follows it; empty if nothing does."""
        word, *rest = self.words
        if rest:
            return rest[0]
        return word.partition("=")[2] if word.startswith("--") else word[2:].removeprefix("=")


@dataclass(frozen=True)
class Slurm:
    """The place ``slurm``. mode: ``sbatch`` queues the job, ``srun`` stays with it. nodes: as many are asked for;
    min_nodes: with fewer, down to this, the job may start too. grace: seconds before the time limit at which the run
    saves. flags: further ones, for Slurm alone."""

    mode: Literal["sbatch", "srun"] = "sbatch"
    nodes: int = 1
    min_nodes: int = 0
    grace: int = GRACE_SECONDS
    flags: tuple[Flag, ...] = ()

    @classmethod
    def parse(cls, words: Sequence[str]) -> Slurm:
        """From ``[sbatch|srun] [FLAG ...]``. Raises UsageError with every flag that cannot be honoured."""
        named = words[0] if words and words[0] in ("sbatch", "srun") else ""
        mode: Literal["sbatch", "srun"] = "srun" if named == "srun" else "sbatch"
        words = words[1:] if named else words
        problems: list[Problem] = []
        flags = _grouped(words, problems)
        for flag in flags:
            remedy = OURS.get(SHORT.get(flag.name, flag.name))
            if remedy:
                problems.append(Problem("slurm", f"{flag.words[0]} cannot be passed on", remedy))
            if flag.name == "--export" and mode == "srun":
                remedy = "srun passes this shell's environment on, as primus-cli needs it; leave it out, or use sbatch"
                problems.append(Problem("slurm srun", f"{flag.words[0]} cannot be passed on", remedy))
            if any(set(word) & set("\n\r\0") for word in flag.words):
                problems.append(Problem("slurm", f"{flag.words[0]} has a line break in its value", "leave it out"))
        nodes = [flag for flag in flags if flag.name == "--nodes"][-1:]  # the last counts, as in Slurm
        said = " ".join(nodes[0].words) if nodes else ""
        sizes = NODES.fullmatch(nodes[0].value if nodes else "1")
        if sizes is None or not 0 < int(sizes[1]) <= int(sizes[2] or sizes[1]):
            problems.append(Problem("slurm", f"{said} is not a number of nodes", "e.g. -N 4, or -N 2-4 at least 2"))
        elif mode == "srun" and sizes[2] and sizes[1] != sizes[2]:
            remedy = f"srun -N {sizes[2]}, or sbatch, which plans the run anew for the nodes it gets"
            problems.append(Problem("slurm srun", f"{said}: it takes no range of nodes", remedy))
        if problems or sizes is None:
            raise UsageError(problems=problems)
        signals = [match for flag in flags if flag.name == "--signal" and (match := SIGNAL.fullmatch(flag.value))]
        grace = int(signals[-1][1] or 60) if signals else GRACE_SECONDS
        rest = tuple(flag for flag in flags if flag.name not in ("--nodes", "--signal"))
        return cls(mode, int(sizes[2] or sizes[1]), int(sizes[1]) if sizes[2] else 0, grace, rest)

    @property
    def excluded(self) -> str:
        """The node list of ``--exclude``; empty without one."""
        return ",".join(flag.value for flag in self.flags if flag.name == "--exclude")

    @property
    def output(self) -> str:
        """Where ``--output`` has Slurm write what the job prints; empty for the job's own directory."""
        return next((flag.value for flag in reversed(self.flags) if flag.name == "--output"), "")

    def has(self, *names: str) -> bool:
        return any(flag.name in names for flag in self.flags)


def _grouped(words: Sequence[str], problems: list[Problem]) -> list[Flag]:
    flags: list[list[str]] = []
    for word in words:
        if word.startswith("-") and word != "-":
            flags.append([word])
        elif flags and len(flags[-1]) == 1 and "=" not in flags[-1][0]:
            flags[-1].append(word)
        else:
            problems.append(
                Problem(
                    "slurm", f"'{word}' is not a flag of Slurm", "flags look like -p NAME, --time=1:00:00; -- ends them"
                )
            )
    return [Flag(tuple(flag)) for flag in flags]


@dataclass(frozen=True)
class Inner:
    """What runs in the job. python: the launcher's interpreter. job: the job's directory (``runs/NAME/jobs/K``).
    variables: what that Python needs from the environment, whatever ``--export`` says."""

    name: str
    python: str
    job: Path
    variables: Mapping[str, str]

    def module(self, name: str, *more: str) -> tuple[str, ...]:
        return (self.python, "-P", "-m", f"primus.runtime.{name}", str(self.job), *more)


def script(place: Slurm, inner: Inner, excluded: Sequence[str] = ()) -> str:
    """The batch script. excluded: nodes that the run has learnt to avoid. Raises UsageError for a path that no
    ``#SBATCH`` line can hold."""
    lines = ["#!/bin/bash", *(f"#SBATCH {directive(words)}" for words in _resources(place, inner, excluded))]
    if not place.has("--output"):
        lines.append(f"#SBATCH {directive(('--output=' + _literal(inner.job / 'job.log'),))}")
    lines += ["#SBATCH --open-mode=append", f"#SBATCH --signal=B:USR1@{place.grace}"]
    if not place.has("--no-requeue"):
        lines.append("#SBATCH --requeue")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(inner.variables.items())]
    lines.append(f"exec {shlex.join(inner.module('slurm.batch'))} \\\n  {shlex.join(step(inner))}")
    return "\n".join(lines) + "\n"


def attached(place: Slurm, inner: Inner, excluded: Sequence[str] = ()) -> tuple[str, ...]:
    """The ``srun`` that asks for nodes and runs there, in the foreground."""
    _, *rest = step(inner)
    asked = (word for words in _resources(place, inner, excluded) for word in words)
    return ("srun", *asked, *rest)


def step(inner: Inner) -> tuple[str, ...]:
    """The job step: a launcher on each node. The first that fails ends the others; an interrupt goes to all at once;
    the ranks find their cores by themselves."""
    return ("srun", "--disable-status", "--kill-on-bad-exit=1", "--ntasks-per-node=1", "--cpu-bind=none",
            *inner.module("node"))  # fmt: skip


def _resources(place: Slurm, inner: Inner, excluded: Sequence[str]) -> list[tuple[str, ...]]:
    """What is asked of Slurm, one flag an entry: ours, then the user's as they were given."""
    flags: list[tuple[str, ...]] = [] if place.has("--job-name") else [(f"--job-name={inner.name}",)]
    if 0 < place.min_nodes < place.nodes:
        # without tasks a node, from which Slurm counts the fewest nodes' tasks, and then gives no more nodes than tasks
        flags.append((f"--nodes={place.min_nodes}-{place.nodes}",))
    else:
        flags += [(f"--nodes={place.nodes}",), ("--ntasks-per-node=1",)]
    if not place.has(*SHARED):
        flags.append(("--exclusive",))
        if not place.has(*MEMORY):
            flags.append(("--mem=0",))
    flags += [flag.words for flag in place.flags if flag.name != "--exclude"]
    if avoided := ",".join(filter(None, [place.excluded, *excluded])):
        flags.append((f"--exclude={avoided}",))
    return flags


def directive(words: Sequence[str]) -> str:
    """`words` as sbatch reads them from its comment lines: much like a shell, but with nothing to expand. Raises
    UsageError for what no line can hold."""
    if any(set(word) & set("\n\r\0") for word in words):
        raise UsageError(f"{words[0]!r} has a line break in it, which a batch script cannot hold", remedy="rename it")
    return " ".join(word if re.fullmatch(r"[\w@%+=:,./-]+", word, re.ASCII) else _quoted(word) for word in words)


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _literal(path: Path) -> str:
    """A path that Slurm shall not take for a pattern."""
    if "\\" in str(path):
        raise UsageError(
            "Slurm cannot write a log below a directory with a backslash in its name",
            where=str(path),
            remedy="choose another place with --runs-dir DIR (or PRIMUS_RUNS)",
        )
    return str(path).replace("%", "%%")
