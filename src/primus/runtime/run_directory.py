"""The run directory: ``runs/<name>/`` with its attempts, who may write to it, and what was run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from primus.errors import RunDirectoryError
from primus.home import unknown_user, user_path
from primus.plan.plan import Plan
from primus.runtime.lock import RunLock, wait_for_workers


def runs_root(option: Path | None) -> Path:
    """Where runs are kept: ``--runs-dir``, else PRIMUS_RUNS, else ``./runs``. Absolute. Raises RunDirectoryError when
    that is in the home of a user who does not exist: a directory called ``~name`` would be made."""
    chosen = str(option or os.environ.get("PRIMUS_RUNS") or "runs")
    root = user_path(chosen)
    if user := unknown_user(root):
        raise RunDirectoryError(
            f"there is no user {user}",
            where=chosen,
            remedy="correct --runs-dir (or PRIMUS_RUNS); give the absolute path if a directory is called that",
        )
    return root.absolute()


@dataclass(frozen=True)
class Attempt:
    """One start of the processes of a run. ``number`` counts from 1."""

    directory: Path
    number: int

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def plan(self) -> Path:
        return self.directory / "plan.json"

    def lock(self, node: int) -> Path:
        """What the launcher of a node holds."""
        return self.directory / f"node-{node}.lock"

    def claim(self, node: int) -> RunLock:
        """Be the one launcher of a node. Raises RunDirectoryError: another is that, or the directory is unwritable."""
        with _writing(self.directory):
            try:
                return RunLock(self.directory, self.lock(node).name)
            except RunDirectoryError as error:
                raise RunDirectoryError(
                    f"this attempt has a node {node} already: {error.problems[0].message}",
                    where=str(self.directory),
                    remedy="give every node its own --node-rank, and each command once; or end that process",
                ) from error


class RunDirectory:
    """``path`` need not exist; nothing is written before ``claim``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def plan(self) -> Plan | None:
        """The newest plan that was run here; None for a new run. Raises RunDirectoryError when it cannot be read."""
        path = self.path / "plan.json"
        try:
            return Plan.load(path)
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise RunDirectoryError(
                "is a file, not a directory", where=str(self.path), remedy="move it, or use name=OTHER"
            ) from error
        except OSError as error:
            raise RunDirectoryError(
                f"the plan of this run cannot be read: {error.strerror}",
                where=str(path),
                remedy="choose another name (name=OTHER) or another place with --runs-dir DIR (or PRIMUS_RUNS)",
            ) from error
        except ValueError as error:
            raise RunDirectoryError(
                "the plan of this run cannot be read: it is damaged, or of another version of Primus",
                where=str(path),
                remedy="move this file away: the run then continues from its newest checkpoint, without being compared "
                "with what it was; or use another name (name=OTHER)",
            ) from error

    def attempt(self, number: int) -> Attempt:
        return Attempt(self.path / "attempts" / str(number), number)

    def next_attempt(self) -> Attempt:
        attempts = self.attempts()
        return self.attempt(attempts[-1].number + 1 if attempts else 1)

    def attempts(self) -> list[Attempt]:
        """Oldest first."""
        folder = self.path / "attempts"
        try:
            numbers = sorted(int(name) for name in os.listdir(folder) if name.isdecimal())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunDirectoryError(
                f"the attempts cannot be listed: {error.strerror}", where=str(folder), remedy="move it away"
            ) from error
        return [self.attempt(number) for number in numbers]

    @contextmanager
    def claim(self, say: Callable[[str], None], evict: Callable[[], None] = lambda: None) -> Iterator[RunLock]:
        """Hold the run directory, made if need be: nobody else starts a run in it meanwhile, and nobody is still
        writing. evict: ends what an earlier owner may have left. Raises RunDirectoryError: held by another, or
        unwritable."""
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = RunLock(self.path)
        try:
            with _writing(self.path):
                evict()
                wait_for_workers(self.path, say, lock.beat)
            yield lock
        finally:
            lock.release()

    def begin(self, plan: Plan, command: Sequence[str]) -> Attempt:
        """Make the next attempt, with its immutable plan; the plan becomes the run's newest. The lock must be held.

        command: the command line, kept in the attempt for people.
        """
        attempt = self.next_attempt()
        with _writing(self.path):
            attempt.logs.mkdir(parents=True)
            (attempt.directory / "command").write_text(
                _quoted(command) + "\n", encoding="utf-8", errors="surrogateescape"
            )
            text = plan.to_json()
            write_atomically(attempt.plan, text)
            write_atomically(self.path / "experiment.yaml", experiment_text(plan))
            write_atomically(self.path / "plan.json", text)
        return attempt


def experiment_text(plan: Plan) -> str:
    """The resolved experiment as a file that ``train`` takes again, native sections where a person writes them."""
    import yaml

    values = plan.experiment.model_dump(mode="json", by_alias=True, exclude_none=True)
    values |= values.pop("native", {})
    head = "# The experiment as it was resolved: presets, file and command line together.\n"
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, whole, also after a crash of the machine."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write here: {error.strerror}",
            where=str(error.filename or path),
            remedy="choose another place with --runs-dir DIR (or PRIMUS_RUNS)",
        ) from error


def _quoted(command: Sequence[str]) -> str:
    from shlex import join

    return join(command)
