"""Worker processes for encoding: each has a pipe of its own, so that the death of either side is noticed at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from primus.data.encoder import Encoder
from primus.data.inputs import Shard
from primus.data.shards import Job, Sample, ShardResult, encode_shard
from primus.errors import DataError, Problem

SHARDS_A_PROCESS = 64
"""A worker is replaced after this many shards (2 GiB of text), so that no library's cache grows without bound."""
REPORT_SECONDS = 0.2


@dataclass(frozen=True)
class Done:
    """A shard was encoded."""

    result: ShardResult
    samples: list[Sample]


@dataclass(frozen=True)
class Failed:
    """A shard could not be encoded."""

    problems: tuple[Problem, ...]


def encode_shards(
    shards: Sequence[Shard], job: Job, workers: int, encoder: Encoder, progress: Callable[[int], None]
) -> Iterator[Done]:
    """Encode `shards` on `workers` processes and yield each as it is done, in any order.

    One worker, or a single shard, runs in this process, with `encoder`; other processes load their own. progress: told
    the text bytes encoded since the last call. Raises DataError with a shard's problems, or when a worker dies. On any
    way out the workers are gone.
    """
    workers = min(workers, len(shards))
    if workers <= 1:
        for shard in shards:
            yield Done(*encode_shard(shard, job, encoder, progress))
        return
    pool = _Pool(job)
    waiting = iter(shards)
    try:
        for shard in islice(waiting, workers):
            pool.start(shard)
        while pool.busy:
            for connection in wait(list(pool.busy)):
                message = pool.receive(connection)  # type: ignore[arg-type]
                if isinstance(message, int):
                    progress(message)
                    continue
                if isinstance(message, Failed):
                    raise DataError(problems=message.problems)
                pool.next(connection, next(waiting, None))  # type: ignore[arg-type]
                yield message
    finally:
        pool.stop()


class _Pool:
    def __init__(self, job: Job) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._job = job
        self.busy: dict[Connection, SpawnProcess] = {}
        self._done: dict[Connection, int] = {}

    def start(self, shard: Shard) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._job, os.getpid()), daemon=True)
        # Ctrl-C reaches the whole process group, but the parent decides what it means: children inherit the mask
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()
        self.busy[ours] = process
        self._done[ours] = 0
        ours.send(shard)

    def receive(self, connection: Connection) -> int | Done | Failed:
        try:
            message: int | Done | Failed = connection.recv()
        except (EOFError, ConnectionError):
            raise self._died(connection) from None
        return message

    def next(self, connection: Connection, shard: Shard | None) -> None:
        """Give the worker its next shard, or end it when there is none or when it has done its share."""
        self._done[connection] += 1
        if shard is not None and self._done[connection] < SHARDS_A_PROCESS:
            try:
                connection.send(shard)
            except ConnectionError:
                raise self._died(connection) from None
            return
        process = self.busy.pop(connection)
        connection.close()
        process.join()
        if shard is not None:
            self.start(shard)

    def _died(self, connection: Connection) -> DataError:
        process = self.busy.pop(connection)
        process.join()
        return DataError(
            f"an encoding process ended early ({_how_it_ended(process.exitcode)})",
            remedy="if memory ran out, use fewer --workers; the same command goes on where it stopped",
        )

    def stop(self) -> None:
        for connection, process in self.busy.items():
            process.terminate()
            process.join()
            connection.close()
        self.busy.clear()


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _work(connection: Connection, job: Job, parent: int) -> None:
    """A worker's life: shards in, results out, until the other side closes the pipe."""
    encoder: Encoder | None = None
    pending, last = 0, time.monotonic()

    def progress(size: int) -> None:
        nonlocal pending, last
        if os.getppid() != parent:
            # killed without a word: nobody waits for the rest, and the next run may already be at work
            os._exit(1)
        pending += size
        if time.monotonic() - last >= REPORT_SECONDS:
            connection.send(pending)
            pending, last = 0, time.monotonic()

    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            shard: Shard = connection.recv()
            try:
                encoder = encoder or Encoder(job.encoder, job.tokenizer)
                result = Done(*encode_shard(shard, job, encoder, progress))
            except DataError as error:
                connection.send(Failed(error.problems))
            else:
                connection.send(pending)
                pending = 0
                connection.send(result)
