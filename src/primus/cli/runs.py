"""What the verbs about runs share: finding a run by its name, and asking whether it is being written."""

from __future__ import annotations

import difflib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import click

from primus.errors import RunDirectoryError, UsageError
from primus.home import user_path

RUNS_DIR = click.option(
    "--runs-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where run directories are kept. Default: PRIMUS_RUNS, else ./runs.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def root_of(option: Path | None) -> Path:
    from primus.runtime.run_directory import runs_root

    return runs_root(option)


def all_runs(root: Path) -> list[Path]:
    """The run directories below `root`, by name; other entries are ignored. No `root` is no runs."""
    try:
        return sorted(path for path in root.iterdir() if _is_run(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunDirectoryError(
            f"the runs cannot be listed: {error.strerror}",
            where=str(root),
            remedy="name the place with --runs-dir DIR (or PRIMUS_RUNS)",
        ) from error


def _is_run(path: Path) -> bool:
    # not Path.exists, which raises for a name that is too long
    return any(os.path.exists(path / name) for name in ("plan.json", "attempts", "checkpoints", "jobs"))


def find_run(name: str, option: Path | None) -> Path:
    """The directory of the run called `name`, or at the path `name`. Raises UsageError, with the nearest name."""
    root = root_of(option)
    direct = user_path(name)
    for path in [root / name] if direct.name == name and name not in (".", "..") else [direct.absolute()]:
        if _is_run(path):
            return path
    names = [path.name for path in all_runs(root)]
    if not names:
        raise UsageError(
            f"there is no run '{name}': {root} holds no runs", remedy="start one, or name the place with --runs-dir DIR"
        )
    close = difflib.get_close_matches(name, names, n=1)
    remedy = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(names[:10])}"
    raise UsageError(f"there is no run '{name}' in {root}", remedy=remedy)


def is_alive(run: Path) -> bool:
    """Whether some process holds the run's lock now. On another machine's word: its heartbeat."""
    from primus.runtime.lock import STALE_SECONDS, read_owner
    from primus.runtime.processes import alive

    lock = run / "lock"
    owner = read_owner(lock)
    if owner is None:
        return False
    if owner.host == socket.gethostname():
        return alive(owner.pid)
    try:
        return time.time() - lock.stat().st_mtime < STALE_SECONDS
    except OSError:
        return False


def print_json(value: Any) -> None:
    """Strict JSON: numbers that are not finite become null."""
    click.echo(json.dumps(_strict(value), indent=2, ensure_ascii=False))


def _strict(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return None
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list | tuple) else value


def table(columns: list[str], rows: list[list[str]]) -> None:
    """Aligned columns; long last cells are left to the terminal to wrap."""
    widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(len(columns))]
    for row in [columns, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
