"""What makes a checkpoint whole: its manifest, and the proof that every file is still what was written.

``manifest.json`` is written last, after every other file has reached the disk, so a directory without one is a save
that never finished. It names each file with its size and xxh3_128 digest, and carries a digest of itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from primus.errors import CheckpointError, Problem

MANIFEST = "manifest.json"
FORMAT = 1
_TEMPORARY = ".manifest-"
_CHUNK = 8 << 20
_DIGEST_LENGTH = 32


@dataclass(frozen=True)
class CheckpointFile:
    """path: relative to the checkpoint, with forward slashes; size in bytes; digest: xxh3_128 in hex."""

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class CheckpointInfo:
    """One complete checkpoint. model: the architecture fields it was saved with; saved: Unix seconds; backend: whose
    checkpoint it is, "" where older versions of Primus did not write it."""

    directory: Path
    step: int
    consumed_samples: int
    model: dict[str, Any]
    files: tuple[CheckpointFile, ...]
    saved: float
    backend: str = ""

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    def file(self, path: str) -> CheckpointFile:
        """The entry of `path`; raises CheckpointError when the manifest does not name it."""
        for file in self.files:
            if file.path == path:
                return file
        raise CheckpointError(f"the checkpoint holds no file '{path}'", where=str(self.directory / MANIFEST))


def hash_file(path: Path) -> str:
    """xxh3_128 of a file's content, in hex. Raises OSError."""
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def content_files(directory: Path) -> Iterator[Path]:
    """Every file below `directory`, sorted, without the manifest and a torn manifest's remains."""
    for root, folders, names in os.walk(directory):
        folders.sort()
        for name in sorted(names):
            top = Path(root) == directory
            if not (top and (name == MANIFEST or name.startswith(_TEMPORARY))):
                yield Path(root) / name


def seal(
    directory: Path,
    *,
    step: int,
    consumed_samples: int,
    model: Mapping[str, Any],
    backend: str = "",
    digests: Mapping[str, str] | None = None,
) -> CheckpointInfo:
    """Make the files in `directory` a complete, visible checkpoint.

    digests: relative path -> xxh3_128 hex of files whose writer hashed them already; the others are read and hashed.
    Returns only after files, folders and manifest are on the disk. Raises CheckpointError (nothing to seal, or a
    digest of a file that is not there) and OSError (disk full): the checkpoint then stays invisible.
    """
    directory = Path(directory)
    known = dict(digests or {})
    paths = {path.relative_to(directory).as_posix(): path for path in content_files(directory)}
    if not paths:
        raise CheckpointError("a checkpoint without files cannot be sealed", where=str(directory))
    absent = [name for name in known if name not in paths]
    if absent:
        raise CheckpointError(f"digests of files that do not exist: {', '.join(absent)}", where=str(directory))
    linked = [name for name, path in paths.items() if path.is_symlink()]
    if linked:
        raise CheckpointError(f"a checkpoint cannot hold links: {', '.join(linked)}", where=str(directory))

    def finish(item: tuple[str, Path]) -> CheckpointFile:
        name, path = item
        digest = known.get(name) or hash_file(path)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            return CheckpointFile(name, os.fstat(stream.fileno()).st_size, digest)

    with ThreadPoolExecutor(max_workers=min(8, len(paths))) as pool:
        files = tuple(pool.map(finish, paths.items()))
    for folder in sorted({path.parent for path in paths.values()} - {directory}):
        sync_directory(folder)
    body = {
        "format": FORMAT,
        "step": step,
        "consumed_samples": consumed_samples,
        "model": dict(model),
        "backend": backend,
        "files": [{"path": file.path, "size": file.size, "xxh3_128": file.digest} for file in files],
    }
    _write_manifest(directory, body)
    sync_directory(directory.parent)
    return read_manifest(directory)


def _write_manifest(directory: Path, body: dict[str, Any]) -> None:
    text = json.dumps(body | {"manifest_xxh3_128": _body_digest(body)}, indent=1) + "\n"
    temporary = directory / f"{_TEMPORARY}{os.getpid()}"
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        sync_directory(directory)
        temporary.rename(directory / MANIFEST)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable, as fsync of a file makes its content."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _body_digest(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())


def read_manifest(directory: Path) -> CheckpointInfo:
    """The checkpoint in `directory`. Raises FileNotFoundError when it has no manifest (an unfinished save) and
    CheckpointError when the manifest is damaged, of another format, or belongs to another step."""
    path = directory / MANIFEST
    try:
        saved = path.stat().st_mtime
        body = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the manifest cannot be read: {error}", where=str(path)) from error
    if not isinstance(body, dict):
        raise CheckpointError("the manifest is not a JSON object", where=str(path))
    if body.get("format") != FORMAT:
        raise CheckpointError(
            f"the manifest has format {body.get('format')!r}, this version reads {FORMAT}",
            where=str(path),
            remedy="use the version of Primus that wrote it",
        )
    digest = body.pop("manifest_xxh3_128", None)
    if digest != _body_digest(body):
        raise CheckpointError("the manifest was altered: its own digest does not match", where=str(path))
    try:
        info = CheckpointInfo(
            directory=directory,
            step=int(body["step"]),
            consumed_samples=int(body["consumed_samples"]),
            model=dict(body["model"]),
            files=tuple(CheckpointFile(_inside(f["path"]), int(f["size"]), str(f["xxh3_128"])) for f in body["files"]),
            saved=saved,
            backend=str(body.get("backend", "")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the manifest lacks or garbles {error}", where=str(path)) from error
    return info


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise ValueError(f"a path outside the checkpoint: {path}")
    return path


def check_sizes(info: CheckpointInfo) -> list[Problem]:
    """Files that are missing or have another size than was written. Cheap: no content is read."""
    problems = []
    for file in info.files:
        path = info.directory / file.path
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            problems.append(_damage(path, "the file is missing"))
        except OSError as error:
            problems.append(_damage(path, f"the file cannot be read: {error.strerror}"))
        else:
            if size < file.size:
                problems.append(_damage(path, f"the file is truncated: {size:,} of {file.size:,} bytes"))
            elif size > file.size:
                problems.append(_damage(path, f"the file has {size:,} bytes, {file.size:,} were written"))
    return problems


def verify(info: CheckpointInfo) -> list[Problem]:
    """Read and hash every file. Names the missing, the truncated, the altered, and files nobody wrote."""
    problems = check_sizes(info)
    damaged = {problem.where for problem in problems}

    def check(file: CheckpointFile) -> Problem | None:
        path = info.directory / file.path
        if str(path) in damaged:
            return None
        try:
            digest = hash_file(path)
        except OSError as error:
            return _damage(path, f"the file cannot be read: {error.strerror}")
        if digest == file.digest:
            return None
        return _damage(path, f"the content was altered: xxh3_128 is {digest}, {file.digest} was written")

    with ThreadPoolExecutor(max_workers=8) as pool:
        problems.extend(problem for problem in pool.map(check, info.files) if problem)
    named = {file.path for file in info.files}
    for path in content_files(info.directory):
        if path.relative_to(info.directory).as_posix() not in named:
            problems.append(Problem(str(path), "the file is not part of the checkpoint", "remove it"))
    return problems


def _damage(path: Path, message: str) -> Problem:
    return Problem(str(path), message, "use an older checkpoint, or restore this one from a copy")
