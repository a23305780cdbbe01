"""What is to be prepared: files found from the arguments, and the shards they are worked off in."""

from __future__ import annotations

import fnmatch
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from primus.config.scalars import is_text
from primus.errors import DataError, Problem, UsageError
from primus.home import user_path

Kind = Literal["text", "jsonl", "parquet", "arrow"]
Codec = Literal["", "gzip", "zstd"]
DocumentUnit = Literal["file", "line", "paragraph"]

SHARD_BYTES = 32 << 20
SUFFIXES: dict[str, Kind] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".txt", ".text", ".md", ".rst"), "text"),
    ".parquet": "parquet",
    ".arrow": "arrow",
}
CODECS: dict[str, Codec] = {".gz": "gzip", ".zst": "zstd"}
SPLIT_NAME = re.compile(r"(?:^|[/_.-])(train|training|test|testing|valid|validation|val|dev|eval)(?=[/_.-])")
TRAIN_SPLITS = frozenset({"train", "training"})
DATASET_CARDS = frozenset({"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"})


@dataclass(frozen=True)
class InputFile:
    """One file to read. source: number of the argument that led to it."""

    path: Path
    kind: Kind
    codec: Codec
    size: int
    modified_ns: int
    source: int


@dataclass(frozen=True)
class Inputs:
    """All files in the order their documents will have. sources: display name of each argument, and the directory its
    files' names are relative to. notes: what a person should know about the choice."""

    files: tuple[InputFile, ...]
    sources: tuple[tuple[str, Path], ...]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files, as stored."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Shard:
    """A piece of work whose result does not depend on who does it, or when.

    start, end: byte range of a file read by lines, or range of row groups of a parquet file; end -1: all of it.
    hashes: whether this shard also hashes its files (the first one of each file does).
    """

    number: int
    kind: Kind
    codec: Codec
    paths: tuple[str, ...]
    size: int
    start: int = 0
    end: int = -1
    hashes: bool = True


@dataclass
class _Search:
    pattern: str | None
    split: str | None
    used: set[str] = field(default_factory=set)
    files: list[InputFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, path: Path, kind: Kind | None, source: int) -> None:
        status = path.stat()
        named, codec = _kind(path)
        self.files.append(InputFile(path, kind or named or "text", codec, status.st_size, status.st_mtime_ns, source))


def is_local(name: str) -> bool:
    """Whether `name` can only be meant as a path though it is written like a Hub id and nothing is there: it ends like
    a data file, or its directory exists. ``org/name@revision`` always means the Hub."""
    kind, codec = _kind(Path(name))
    return "@" not in name and bool(kind or codec or os.path.isdir(os.path.dirname(name)))


def _kind(path: Path) -> tuple[Kind | None, Codec]:
    codec = CODECS.get(path.suffix.lower(), "")
    stem = path.with_suffix("") if codec else path
    return SUFFIXES.get(stem.suffix.lower()), codec


def collect(
    arguments: Sequence[str], *, pattern: str | None, split: str | None, labels: Sequence[str] | None = None
) -> Inputs:
    """Find the files of each argument: a file, a directory of files, or a Hugging Face dataset directory.

    pattern: shell pattern that files of a directory must match; they are then read by suffix, else as text. split: of a
    Hugging Face dataset. labels: names to show and record instead of the arguments. Raises DataError for everything
    that is missing, empty, repeated or ambiguous, all at once, and UsageError for a choice without effect.
    """
    search = _Search(pattern, split)
    problems: list[Problem] = []
    sources = []
    for number, argument in enumerate(arguments):
        path = user_path(argument).absolute()
        sources.append((labels[number] if labels else argument, path if os.path.isdir(path) else path.parent))
        before = len(search.files)
        try:
            _collect_one(search, path, argument, number)
        except DataError as error:
            problems.extend(error.problems)
        except OSError as error:
            problems.append(Problem(printable(str(error.filename or argument)), f"cannot be read: {error.strerror}"))
        problems.extend(_check_files(search.files[before:], single=os.path.isfile(path)))
    problems.extend(_repeated(search.files, [label for label, _ in sources]))
    if problems:
        raise DataError(problems=problems)
    for option, value in (("split", split), ("pattern", pattern)):
        if value is not None and option not in search.used:
            raise UsageError(f"--{option} {value} has no effect on these inputs", remedy="leave it out")
    files = tuple(file for file in search.files if file.size)
    if len(files) < len(search.files):
        search.notes.append(f"{len(search.files) - len(files)} empty files left out")
    if not files:
        raise DataError("there is nothing to prepare: all files are empty", where=", ".join(arguments))
    return Inputs(files, tuple(sources), tuple(search.notes))


def _collect_one(search: _Search, path: Path, argument: str, source: int) -> None:
    if not is_text(str(path)):
        raise DataError("the name is not UTF-8 text", where=printable(argument), remedy="rename it")
    if not argument or not os.path.exists(path):
        raise DataError(
            "does not exist",
            where=argument or "''",
            remedy="give a file, a directory, or a Hub id: org/name, or org/name@main if there is a directory org here",
        )
    if path.is_dir():
        _collect_directory(search, path, source)
    elif path.is_file():
        search.add(path, None, source)
    else:
        raise DataError("is not a regular file", where=argument, remedy="write it to a file first")


def printable(text: str) -> str:
    """`text` with what UTF-8 cannot express escaped."""
    return text.encode(errors="backslashreplace").decode()


def _check_files(files: Sequence[InputFile], *, single: bool) -> Iterator[Problem]:
    for file in files:
        if not is_text(str(file.path)):
            yield Problem(printable(str(file.path)), "the name is not UTF-8 text", "rename it")
        if single and not file.size:
            yield Problem(str(file.path), "is empty", "leave it out")


def _repeated(files: Sequence[InputFile], labels: Sequence[str]) -> list[Problem]:
    """Arguments that lead to a file another one led to already. Links within one directory are its own matter."""
    first: dict[str, int] = {}
    found: dict[int, Problem] = {}
    for file in files:
        source = first.setdefault(os.path.realpath(file.path), file.source)
        if source != file.source and file.source not in found:
            message = printable(f"repeats {file.path.name}, which '{labels[source]}' gave already")
            found[file.source] = Problem(printable(labels[file.source]), message, "give each file once")
    return list(found.values())


def _collect_directory(search: _Search, root: Path, source: int) -> None:
    if (root / "dataset_dict.json").is_file():
        search.used.add("split")
        splits = sorted(path.name for path in root.iterdir() if path.is_dir())
        chosen = search.split or ("train" if "train" in splits else None)
        if chosen not in splits:
            asked = f"has no split '{chosen}'" if chosen else "has no split 'train'"
            raise DataError(asked, where=str(root), remedy=f"choose one with --split: {', '.join(splits)}")
        search.notes.append(f"split '{chosen}' of {root.name}")
        root = root / chosen
    if (root / "state.json").is_file() and (root / "dataset_info.json").is_file():
        for path in _saved_files(root):
            search.add(path, "arrow", source)
        return
    _collect_plain(search, root, source)


def _saved_files(root: Path) -> list[Path]:
    """The data files of a Hugging Face dataset directory. Other Arrow files there are caches of the library."""
    state = root / "state.json"
    try:
        names = [Path(entry["filename"]).name for entry in json.loads(state.read_bytes())["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            "does not list the dataset's files (`_data_files`)",
            where=str(state),
            remedy="copy or save the dataset again",
        ) from error
    problems = [
        Problem(
            str(path),
            "is listed in state.json but " + ("empty" if path.is_file() else "missing"),
            "copy or save the dataset again",
        )
        for path in (root / name for name in names)
        if not path.is_file() or not path.stat().st_size
    ]
    if problems:
        raise DataError(problems=problems)
    return [root / name for name in names]


def _collect_plain(search: _Search, root: Path, source: int) -> None:
    every = [path.relative_to(root).as_posix() for path in _walk(root)]
    for name in _choose(search, str(root), every):
        search.add(root / name, None, source)


def choose_hub_files(where: str, names: Sequence[str], *, pattern: str | None, split: str | None) -> list[str]:
    """Which files of a Hub dataset to fetch: those that ``collect`` will want. Raises DataError when there are none."""
    return _choose(_Search(pattern, split), where, sorted(name for name in names if not name.startswith(".")))


def _choose(search: _Search, where: str, names: Sequence[str]) -> list[str]:
    """The files to read among a directory's: by pattern, else by suffix, data before prose, and one split."""
    if search.pattern is not None:
        search.used.add("pattern")
        chosen = [name for name in names if _matches(name, search.pattern)]
        if not chosen:
            raise DataError(f"holds no file that matches '{search.pattern}'", where=where)
        return chosen
    kinds = {name: _kind(Path(name))[0] for name in names if Path(name).name not in DATASET_CARDS}
    known = [name for name, kind in kinds.items() if kind]
    if not known:
        raise DataError(
            f"holds no file of a known kind ({', '.join(SUFFIXES)}, also with {' or '.join(CODECS)})",
            where=where,
            remedy="choose files by name, e.g. --pattern '*.py'; they are read as text",
        )
    structured = [name for name in known if kinds[name] != "text"]
    if not structured:
        return known
    found = sorted({str(kinds[name]) for name in structured})
    if len(found) > 1:
        raise DataError(
            f"mixes {' and '.join(found)} files", where=where, remedy="choose with --pattern, e.g. '*.parquet'"
        )
    if len(structured) < len(known):
        search.notes.append(f"{len(known) - len(structured)} text files beside the {found[0]} files left out")
    return _one_split(search, where, structured)


def _one_split(search: _Search, where: str, names: list[str]) -> list[str]:
    """The files of one split, where the names tell splits apart as the Hub's convention has it."""

    def split_of(name: str) -> str | None:
        found = SPLIT_NAME.findall(f"/{name.lower()}")
        return found[-1] if found else None

    splits = {split_of(name) for name in names}
    if search.split is not None:
        search.used.add("split")
        chosen = [name for name in names if split_of(name) == search.split]
        if not chosen:
            known = ", ".join(sorted(filter(None, splits))) or "none can be told from the file names"
            raise DataError(f"has no files of split '{search.split}'", where=where, remedy=f"splits: {known}")
        return chosen
    if splits & TRAIN_SPLITS and splits - TRAIN_SPLITS:
        others = ", ".join(sorted(name or "other files" for name in splits - TRAIN_SPLITS))
        search.notes.append(f"split 'train' of {where}; left out: {others}")
        return [name for name in names if split_of(name) in TRAIN_SPLITS]
    return names


def _walk(root: Path) -> Iterable[Path]:
    """Regular files, and links that lead nowhere, to be noticed. Raises OSError for an unreadable directory."""

    def refuse(error: OSError) -> None:
        raise error

    for directory, names, files in os.walk(root, onerror=refuse):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            path = Path(directory, name)
            if not name.startswith(".") and (os.path.isfile(path) or not os.path.exists(path)):
                yield path


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name.rpartition("/")[2], pattern) or fnmatch.fnmatchcase(name, pattern)


def make_shards(inputs: Inputs, unit: DocumentUnit, size: int = SHARD_BYTES) -> list[Shard]:
    """Cut the inputs into shards of about `size` bytes: big files of lines by byte ranges, small texts together."""
    shards: list[Shard] = []
    group: list[InputFile] = []

    def close_group() -> None:
        if group:
            paths = tuple(str(file.path) for file in group)
            shards.append(Shard(len(shards), "text", "", paths, sum(file.size for file in group)))
            group.clear()

    for file in inputs.files:
        by_lines = file.kind == "jsonl" or (file.kind == "text" and unit == "line")
        if file.kind == "text" and not file.codec and (file.size < size or not by_lines):
            if sum(member.size for member in group) + file.size > size:
                close_group()
            group.append(file)
            continue
        close_group()
        if by_lines and not file.codec:
            ranges = [(start, min(start + size, file.size)) for start in range(0, file.size, size)]
            sizes = [end - start for start, end in ranges]
        elif file.kind == "parquet" and file.size > 2 * size:
            ranges = _row_group_ranges(file, size)
            sizes = [file.size // len(ranges)] * len(ranges)
        else:
            ranges, sizes = [(0, -1)], [file.size]
        for (start, end), weight in zip(ranges, sizes, strict=True):
            shards.append(Shard(len(shards), file.kind, file.codec, (str(file.path),), weight, start, end, start == 0))
    close_group()
    return shards


def _row_group_ranges(file: InputFile, size: int) -> list[tuple[int, int]]:
    from primus.data.columns import row_groups

    count = row_groups(file.path)
    wanted = max(1, min(count, file.size // size))
    edges = [number * count // wanted for number in range(wanted + 1)]
    return list(itertools.pairwise(edges))
