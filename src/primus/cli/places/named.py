"""Named places: ``primus-cli @NAME [FLAGS] -- COMMAND``, where a ``places.yaml`` says what NAME stands for, as it would
be typed::

    mi300-pool: slurm --partition mi300 --time 2-0 -- direct --nproc 4

There is one file for a project, in the current directory, and one for a user, in ``PRIMUS_HOME``; the project's goes
first.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click

from primus.cli.main import PLACES, split
from primus.config.source import Mark
from primus.errors import Problem, UsageError
from primus.home import primus_home

FILE = "places.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Named(NamedTuple):
    """What a name stands for, and where that is written."""

    words: tuple[str, ...]
    mark: Mark

    @property
    def text(self) -> str:
        return shlex.join(self.words)


def files() -> list[Path]:
    """Those that are there, the one that goes first first."""
    return [path for path in (Path(FILE), primus_home() / FILE) if path.is_file()]


def load() -> dict[str, Named]:
    """Every named place by its name. Raises UsageError or ConfigError with everything that is wrong in the files."""
    found: dict[str, Named] = {}
    problems: list[Problem] = []
    for path in files():
        for name, named in _read(path, problems):
            found.setdefault(name, named)
    if problems:
        raise UsageError(problems=problems)
    return found


def _read(path: Path, problems: list[Problem]) -> Iterator[tuple[str, Named]]:
    from primus.config.document import parse
    from primus.config.presets import read_text
    from primus.config.source import Source, split_lines

    text = read_text(path, str(path))
    root = parse(text, Source("file", str(path), str(path), split_lines(text)))
    if root is None:
        return
    if not isinstance(root.value, dict):
        problems.append(root.mark.problem("a file of places is a map", "write `NAME: PLACE [FLAGS]`"))
        return
    for name, entry in root.value.items():
        text, mark = entry.node.text, entry.node.mark
        if not NAME.fullmatch(name):
            problems.append(entry.key.problem(f"'{name}' is not a name", "letters, digits, '.', '_' and '-'"))
        elif not isinstance(entry.node.value, str):
            problems.append(mark.problem("a place is written as on the command line", f"e.g. {name}: slurm -p main"))
        elif fault := _fault(text):
            problems.append(mark.problem(*fault))
        else:
            yield name, Named(tuple(shlex.split(text)), mark)


def _fault(text: str) -> tuple[str, str] | None:
    """What is wrong with what a name stands for, and the remedy."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        return f"the words cannot be told apart: {str(error).lower()}", "quote as in a shell"
    for number, segment in enumerate(_segments(words)):
        if not segment:
            return ("nothing stands behind its '--'" if number else "it stands for nothing"), "e.g. direct --nproc 2"
        if segment[0] not in PLACES:
            from primus.config.suggest import closest

            close = closest(segment[0], PLACES)
            remedy = f"did you mean '{close}'?" if close else f"there are {', '.join(PLACES)}"
            return f"'{segment[0]}' is not a place", remedy
    return None


def _segments(words: Sequence[str]) -> list[list[str]]:
    segments: list[list[str]] = [[]]
    for word in words:
        if word == "--":
            segments.append([])
        else:
            segments[-1].append(word)
    return segments


def expand(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[Named, ...]]:
    """`words` with what each named place stands for in its place, and those places. Flags behind a name go to the
    outermost place that it stands for. Raises UsageError for a name that there is not."""
    out: list[str] = []
    used: list[Named] = []
    rest = list(words)
    while rest and (rest[0].startswith("@") or rest[0] in PLACES):
        cut = rest.index("--") if "--" in rest else len(rest)
        segment, rest = rest[:cut], rest[cut:]
        if segment[0].startswith("@"):
            used.append(named := _find(segment[0][1:]))
            outer, *inner = _segments(named.words)
            outer += segment[1:]
            if not rest and {"-h", "--help"} & set(segment):
                inner = []  # the help of the outermost
            segment = [*outer, *(word for each in inner for word in ("--", *each))]
        out += segment + rest[:1]
        rest = rest[1:]
    return (*out, *rest), tuple(used)


def _find(name: str) -> Named:
    found = load()
    if name in found:
        return found[name]
    if not found:
        remedy = f"write {primus_home() / FILE}, a line a place: {name or 'NAME'}: slurm --partition main"
        raise UsageError(f"there is no named place '@{name}': there is no {FILE}", remedy=remedy)
    from primus.config.suggest import closest

    close = closest(name, found)
    remedy = f"did you mean '@{close}'?" if close else f"there are {', '.join(f'@{each}' for each in found)}"
    raise UsageError(f"there is no named place '@{name}' in {' or '.join(map(str, files()))}", remedy=remedy)


@contextmanager
def blaming(used: Sequence[Named]) -> Iterator[None]:
    """Point at the file for what is wrong there, not on the command line: what is wrong with a definition alone too."""
    try:
        yield
    except (UsageError, click.ClickException) as error:
        ours = {problem: named.mark for named in used for problem in _wrong_alone(named)}
        problems = _problems(error)
        if not ours.keys() & set(problems):
            raise
        raise UsageError(problems=[_placed(each, ours.get(each)) for each in problems]) from error


def _wrong_alone(named: Named) -> tuple[Problem, ...]:
    from primus.cli.places import parse

    try:
        parse(split((*named.words, "--"))[0])
    except (UsageError, click.ClickException) as error:
        return _problems(error)
    return ()


def _problems(error: UsageError | click.ClickException) -> tuple[Problem, ...]:
    return error.problems if isinstance(error, UsageError) else (Problem("", error.format_message()),)


def _placed(problem: Problem, mark: Mark | None) -> Problem:
    if mark is None:
        return problem
    return mark.problem(f"{problem.where} {problem.message}".strip(), problem.remedy)


def rows() -> list[tuple[str, str]]:
    """For ``--help``: a row a place, or why there is none."""
    from primus.errors import PrimusError

    try:
        return [(f"@{name}", named.text) for name, named in load().items()]
    except PrimusError as error:
        return [(FILE, str(error.problems[0]))]
