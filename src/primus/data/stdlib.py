"""The embedded corpus: the Python standard library's own sources, docstrings and all, as text.

Nothing is downloaded and nothing shipped: the files are those of the running interpreter.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from primus.data.format import bin_path, idx_path
from primus.data.manifest import manifest_path, read_manifest
from primus.home import primus_home

if TYPE_CHECKING:
    from primus.data.prepare import Outcome
    from primus.data.progress import Reporter

VOCAB_SIZE = 4096
PREPARE_COMMAND = "primus-cli data prepare --stdlib"
EXCLUDED = frozenset(
    {
        # tests and teaching material
        *("test", "tests", "idle_test", "idlelib", "turtledemo", "lib2to3"),
        # not the library's own text: other packages, tables, build output
        *("site-packages", "dist-packages", "_bundled", "encodings", "__pycache__"),
    }
)


def prefix(python_version: str | None = None) -> Path:
    """Where the embedded corpus is, or will be, for this Python version (default: the running one)."""
    return primus_home() / "datasets" / f"stdlib-{python_version or platform.python_version()}-{VOCAB_SIZE}"


def is_prepared() -> bool:
    """Whether the embedded corpus is there. A dataset appears complete or not at all, so existence is enough."""
    return all(path.is_file() for path in (bin_path(prefix()), idx_path(prefix()), manifest_path(prefix())))


def library_root() -> Path:
    """Directory of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def prepare_arguments() -> list[str]:
    """Arguments after ``primus-cli`` that prepare what ``prefix()`` names, whichever interpreter runs them."""
    return ["data", "prepare", "--stdlib", "--library", this_library()]


def this_library() -> str:
    """The running interpreter's library as ``VERSION=DIRECTORY``."""
    return f"{platform.python_version()}={library_root()}"


def source_files(root: Path) -> list[Path]:
    """The corpus' files under `root`: regular ``.py`` files, in an order that mixes topics.

    Sorted by the hash of the relative path, so that the end of the dataset, held out for validation, is a fair sample
    rather than the packages from x to z.
    """
    files = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        generated = relative.name.startswith("_sysconfigdata")
        if not (EXCLUDED & set(relative.parts) or generated or path.is_symlink()) and path.stat().st_size:
            files.append((hashlib.sha256(relative.as_posix().encode()).digest(), path))
    return [path for _, path in sorted(files)]


def prepare_stdlib(report: Reporter, *, root: Path, python_version: str, overwrite: bool = False) -> Outcome:
    """Prepare the embedded corpus from the library at `root`. Needs numpy and the tokenizer packages."""
    from primus.data.inputs import InputFile, Inputs
    from primus.data.prepare import Outcome, Request, prepare

    output = prefix(python_version)
    manifest = read_manifest(output)
    if manifest and idx_path(output).is_file() and not overwrite:
        # whoever else touched the library's files meanwhile: it is this Python version's corpus
        return Outcome(str(output), manifest, already=True)
    files = []
    for path in source_files(root):
        status = path.stat()
        files.append(InputFile(path, "text", "", status.st_size, status.st_mtime_ns, 0))
    inputs = Inputs(tuple(files), ((f"standard library of Python {python_version}", root),))
    request = Request(inputs, output, tokenizer=None, bpe_vocab=VOCAB_SIZE, skip_bad=True, overwrite=overwrite)
    return prepare(request, report)
