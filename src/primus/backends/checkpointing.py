"""Saving and resuming: the checkpoints of a run, in the background when asked to, whatever engine writes their files.

A save is collective. Every rank writes its own files; when all are on the disk, rank 0 seals the directory, and only
then does the checkpoint exist. In the background, the tensors are first copied aside; where that copy overlaps the next
forward and backward pass it must end before the next optimizer step (``maybe_wait_for_staging``).
"""

from __future__ import annotations

import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread, get_native_id
from typing import TypeVar

from primus.backends.base import Session
from primus.checkpoints import store
from primus.checkpoints.store import CheckpointFile, CheckpointInfo
from primus.config.units import least_seconds
from primus.errors import CheckpointError, PrimusError, Problem, TrainingError
from primus.events.types import CheckpointSaved, Notice
from primus.plan.plan import Plan

T = TypeVar("T")

NICE = 19
"""Priority of the thread that saves, the lowest there is: it yields to those that train."""

LONGEST_PAUSE = 60.0
"""Seconds between two tries of a save, and between two words about one that is waited for."""

Write = Callable[[Path], dict[str, str]]
"""Writes this rank's files into a directory, together with all ranks, and brings them to the disk. Returns the
xxh3_128 of those it hashed on the way, by path in the directory."""

Stage = Callable[[], Write]
"""Puts this rank's state aside, if it may change. When it returns, it may; what it returns may be called several
times."""


@dataclass(frozen=True)
class Outcome:
    """How a save ended, the same on every rank. With a message it failed, and what was there before still is."""

    step: int
    bytes: int
    seconds: float
    message: str = ""


class RunCheckpoints(ABC):
    """The checkpoints of a run, of which an engine's subclass says what is saved and how it is restored."""

    def __init__(self, plan: Plan, session: Session) -> None:
        self.plan, self.session = plan, session
        self.saved_step: int | None = None
        """Step of the newest checkpoint that is complete or being written."""
        self.complete_step: int | None = None
        """Step of the newest checkpoint that is complete."""
        self.saves = True
        """False: another replica group saves for all."""
        self._settings = plan.experiment.checkpoint
        self._architecture = plan.experiment.model.model_dump(mode="json")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=_yield_to_training)
        self._staged: Future[None] | None = None
        self._pending: Future[Outcome] | None = None
        self._blocked = 0.0
        self._ready = False
        self._hurry = Event()
        """Somebody waits for the save: it makes no pauses."""
        self._patience = min(LONGEST_PAUSE, least_seconds(plan.experiment.resilience.hang_timeout) / 4)

    @abstractmethod
    def _prepare(self, *, background: bool) -> Stage:
        """What saves the state as it is now. background: it runs in another thread, while training goes on."""

    def _make_room(self) -> None:  # noqa: B027 - not every engine has something to prepare
        """Prepare for the first save in the background: called after the first step."""

    @abstractmethod
    def _read(self, info: CheckpointInfo) -> None:
        """Put the state of the checkpoint `info`, which is intact, in place. Raises CheckpointError."""

    @abstractmethod
    def _gather(self, value: T) -> list[T]:
        """`value` of every rank, in rank order. Called in the thread that saves, too."""

    @abstractmethod
    def _from_first_rank(self, value: T) -> T:
        """`value` of rank 0."""

    def _share(self, files: Sequence[CheckpointFile]) -> list[CheckpointFile]:
        """Those of `files` that this rank looks through before they are loaded: each is one rank's."""
        return list(files[self.session.rank :: self.session.world_size])

    # saving

    def due(self, step: int) -> bool:
        interval = self._settings.interval
        return self.saves and interval is not None and step % interval == 0

    def save_step(self, step: int, consumed_samples: int, *, wait: bool) -> None:
        """Save the state after `step` steps. wait: return when the checkpoint is complete, and raise CheckpointError if
        it cannot be made; otherwise a failure is reported as a Notice and training goes on. Waits for an earlier save
        in any case, so that there is never more than one copy of the state."""
        began = time.perf_counter()
        self.finish()
        stage = self._prepare(background=self._settings.async_ and not wait)
        self._hurry.clear()
        if self._settings.async_ and not wait:
            self._staged = Future()
            self._pending = self._thread.submit(self._write, stage, self._staged, step, consumed_samples)
            self.saved_step = step
            self._blocked = time.perf_counter() - began
            return
        with self._telling(step):
            outcome = self._write(stage, Future(), step, consumed_samples)
        self._blocked = time.perf_counter() - began
        self._report(outcome)
        if wait and outcome.message:
            raise CheckpointError(
                f"the checkpoint of step {step} was not saved: {outcome.message}",
                where=str(store.directory_of(self.session.run_directory, step)),
                remedy="free the space or fix the directory and run the same command again: "
                "it continues from the last complete checkpoint",
            )

    def maybe_wait_for_staging(self) -> None:
        """Called before each optimizer step: the tensors may change from here on."""
        if self._staged is None:
            return
        began = time.perf_counter()
        self._staged.result()
        self._staged = None
        self._blocked += time.perf_counter() - began

    def poll(self) -> None:
        """Report a background save that has ended; call it after every step."""
        if not self._ready and self._settings.async_ and self._settings.interval is not None:
            self._make_room()
            self._ready = True
        if self._pending is not None and self._pending.done():
            self.finish()

    def finish(self) -> None:
        """Wait until no save is under way, and report how the last one ended. One that failed is tried again without a
        pause now."""
        if self._pending is not None:
            assert self.saved_step is not None
            self.maybe_wait_for_staging()
            self._hurry.set()
            with self._telling(self.saved_step):
                outcome = self._pending.result()
            self._pending = None
            self._report(outcome)

    @contextmanager
    def _telling(self, step: int) -> Iterator[None]:
        """While training waits for the checkpoint of `step` and its files grow, say so now and then: a slow disk is no
        hang."""
        began, over = time.perf_counter(), Event()

        def tell() -> None:
            before = 0
            while not over.wait(self._patience):
                written = store.bytes_in(store.directory_of(self.session.run_directory, step))
                if written > before:
                    waited = time.perf_counter() - began
                    self._notice(
                        f"training waits for a checkpoint since {waited:.0f} s: {written:,} bytes so far", step
                    )
                before = written

        Thread(target=tell, name="checkpoint-progress", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _report(self, outcome: Outcome) -> None:
        if outcome.message:
            self.saved_step = None
        else:
            self.saved_step = self.complete_step = outcome.step
        if outcome.message:
            failed = f"the checkpoint of step {outcome.step} was not saved: {outcome.message}"
            self._notice(f"{failed}; the last complete one is kept", outcome.step)
        if self.session.rank != 0 or outcome.message:
            return
        directory = store.directory_of(self.session.run_directory, outcome.step)
        self.session.emit(
            CheckpointSaved(
                step=outcome.step,
                path=str(directory),
                bytes=outcome.bytes,
                seconds=outcome.seconds,
                blocked_seconds=self._blocked,
            )
        )

    def _write(self, stage: Stage, staged: Future[None], step: int, consumed_samples: int) -> Outcome:
        """Write and seal on all ranks, if need be several times, all ranks together."""
        began = time.perf_counter()
        try:
            write = stage()
        except BaseException as error:
            staged.set_exception(error)
            raise
        staged.set_result(None)
        for failures in range(self._settings.retries + 1):
            size, message = self._try_to_write(write, step, consumed_samples)
            if not message:
                self._prune(step)
                break
            if failures < self._settings.retries:
                pause = min(2.0**failures, LONGEST_PAUSE)
                self._notice(
                    f"the checkpoint of step {step} cannot be written: {message}; trying again in {pause:.0f} s", step
                )
                self._hurry.wait(pause)
        return Outcome(step, size, time.perf_counter() - began, message)

    def _try_to_write(self, write: Write, step: int, consumed_samples: int) -> tuple[int, str]:
        """The bytes written, or why it failed, on whatever rank. Nothing visible remains of a save that failed."""
        directory = store.directory_of(self.session.run_directory, step)
        try:
            self.on_first_rank(lambda: store.begin(self.session.run_directory, step))
            digests = self._everywhere(lambda: write(directory))
            return self.on_first_rank(lambda: self._seal(step, consumed_samples, digests)), ""
        except PrimusError as error:
            if self.session.rank == 0:
                shutil.rmtree(directory, ignore_errors=True)
            return 0, cause(error)
        except RuntimeError as error:
            raise TrainingError(
                f"the ranks lost each other while they saved the checkpoint of step {step}: {error}", retryable=True
            ) from error

    def _prune(self, step: int) -> None:
        """What cannot be removed is no reason to doubt what has just been saved."""
        if self.session.rank != 0 or self._settings.keep is None:
            return
        try:
            store.prune(self.session.run_directory, self._settings.keep)
        except CheckpointError as error:
            self._notice(f"old checkpoints stay for now: {error}", step)

    def _seal(self, step: int, consumed_samples: int, digests: list[dict[str, str]]) -> int:
        return store.seal(
            store.directory_of(self.session.run_directory, step),
            step=step,
            consumed_samples=consumed_samples,
            model=self._architecture,
            backend=self.plan.experiment.backend,
            digests={name: digest for part in digests for name, digest in part.items()},
        ).bytes

    # resuming

    def resume(self) -> CheckpointInfo | None:
        """Load the newest checkpoint whose every byte is as written, or return None when the run has none.

        Damaged ones are skipped with a Notice. Raises CheckpointError when all are damaged, or when the checkpoint is
        of another model.
        """
        if self._settings.resume == "never" and self.on_first_rank(self._start_over):
            return None
        problems: list[Problem] = []
        for entry in self.on_first_rank(lambda: store.entries(self.session.run_directory)):
            if entry.state == "partial":
                continue
            found = list(entry.problems)
            if entry.info is not None and not found:
                found = self._damage(entry.info)
            if found:
                problems += found
                reasons = "; ".join(map(str, found[:3]))
                self._notice(f"the checkpoint of step {entry.step} is damaged and skipped: {reasons}")
                continue
            assert entry.info is not None
            different = store.compare_model(entry.info, self._architecture)
            different += store.compare_backend(entry.info, self.plan.experiment.backend)
            if different:
                raise CheckpointError(problems=different)
            if problems:
                # they would count as the newest when old ones are removed, and be tried first by the next start
                self.on_first_rank(lambda step=entry.step: self._set_aside("damaged", step))  # type: ignore[misc]
            self._read(entry.info)
            self.saved_step = self.complete_step = entry.info.step
            return entry.info
        if problems:
            raise CheckpointError(
                problems=[
                    *problems,
                    Problem(
                        str(self.session.run_directory / "checkpoints"),
                        "no checkpoint of this run is intact",
                        "restore one from a copy, or start over with checkpoint.resume=never",
                    ),
                ]
            )
        return None

    def _start_over(self) -> bool:
        """On rank 0: set aside what earlier attempts saved. Once an attempt: when its ranks are started again, they
        continue with what they have saved themselves."""
        mark = self.session.attempt_directory / "started-over"
        if mark.exists():
            return False
        self._set_aside("checkpoint.resume is never", -1)
        mark.touch()
        return True

    def _set_aside(self, reason: str, after: int) -> None:
        moved = store.set_aside(self.session.run_directory, after)
        if moved:
            names = ", ".join(path.name for path in moved)
            self._notice(f"{reason}: checkpoints are set aside as {names}")

    def _damage(self, info: CheckpointInfo) -> list[Problem]:
        """Hash every file once, each on one rank, and return what any rank found."""

        def check(file: store.CheckpointFile) -> Problem | None:
            path = info.directory / file.path
            try:
                intact = store.hash_file(path) == file.digest
            except OSError as error:
                return Problem(str(path), f"the file cannot be read: {error.strerror}")
            return None if intact else Problem(str(path), "the content is not what was written")

        with ThreadPoolExecutor(max_workers=4) as pool:
            found = [problem for problem in pool.map(check, self._share(info.files)) if problem]
        return [problem for part in self._gather(found) for problem in part]

    def _notice(self, message: str, step: int | None = None) -> None:
        if self.session.rank == 0:
            self.session.emit(Notice(message=message, step=step))

    # agreeing

    def on_first_rank(self, action: Callable[[], T]) -> T:
        """Result of `action`, run on rank 0 only. Its error is every rank's error."""
        result, error = _tried(action) if self.session.rank == 0 else (None, None)
        result, error = self._from_first_rank((result, error))
        if error is not None:
            raise CheckpointError(error)
        return result  # type: ignore[return-value]

    def _everywhere(self, action: Callable[[], T]) -> list[T]:
        """Results of `action` on all ranks. An error of one is every rank's error."""
        results = self._gather(_tried(action))
        for rank, (_, error) in enumerate(results):
            if error is not None:
                raise CheckpointError(error if error.startswith("rank ") else f"rank {rank}: {error}")
        return [result for result, _ in results]  # type: ignore[misc]

    def abandon(self) -> None:
        """After a failure: wait for nothing, since other ranks may be gone."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def shut_down(self) -> None:
        self.finish()
        self._thread.shutdown()


def _yield_to_training() -> None:
    """Give this thread, and those it starts, the lowest priority: on Linux each thread has its own."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, get_native_id(), NICE)


def _tried(action: Callable[[], T]) -> tuple[T | None, str | None]:
    """The result of `action`, or why there is none."""
    try:
        return action(), None
    except (PrimusError, OSError) as error:
        return None, cause(error)


def cause(error: BaseException) -> str:
    """One line for a person."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
