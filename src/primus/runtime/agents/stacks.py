"""What hangs: every rank keeps the step it has finished and, asked by SIGUSR1, its stack in ``rank-N.stack``; its agent
adds what the kernel says of it in ``rank-N.state``; here the answers are compared."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ANSWER_SECONDS = 1.5
"""How long ranks may take to write their stacks. One that is stopped or stuck in the kernel never does."""
OTHER_NODES_SECONDS = 5.0
"""The same for those of other nodes, whose launchers ask them when they notice the hang themselves."""
_STEP = re.compile(r"finished step +(\d+)")
_FRAME = re.compile(r'  File "([^"]+)", line (\d+) in (.+)')
_WAITING = re.compile(
    r"torch/distributed/|torch/cuda/streams|torch/autograd/|/threading\.py|/selectors\.py"
    r"|/jax/_src/(array|api|dispatch|distributed|pjit)|/jax/experimental/multihost_utils"
)
"""Where a rank stands that only waits for others."""


class StackFile:
    """This rank's ``rank-N.stack``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w", encoding="utf-8")
        self.finished(0)
        os.lseek(self._file.fileno(), 0, os.SEEK_END)
        faulthandler.register(signal.SIGUSR1, self._file, all_threads=True)

    def finished(self, step: int) -> None:
        """Note it; microseconds, no file system waits for it."""
        os.pwrite(self._file.fileno(), f"finished step {step:<12}\n".encode(), 0)

    def remove(self) -> None:
        """This rank ends: it is not asked any more."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Rank:
    """What is known of one. step: the last that it has finished, None when it has said nothing. stack: frames of the
    main thread as (file, line, function), innermost first, empty without an answer. state: the kernel's lines, ``node``
    and ``pid`` among them, empty without an agent's answer."""

    number: int
    step: int | None
    stack: list[tuple[str, str, str]]
    state: dict[str, str]

    @property
    def kernel(self) -> str:
        """``T (stopped)``, ``S (sleeping)``, ...; empty when it is not known."""
        return self.state.get("State", "")

    @property
    def answered(self) -> bool:
        return bool(self.stack) or self.kernel[:1] == "T"

    @property
    def place(self) -> str:
        file, line, function = self.stack[0]
        return f"{'/'.join(Path(file).parts[-2:])}:{line} ({function})"

    @property
    def waits(self) -> bool:
        return any(_WAITING.search(file) for file, _, _ in self.stack[:8])


def ask(logs: Path, own: int) -> list[Rank]:
    """The ranks that are there, once all have answered or the time for it is over. They have been asked. own: how many
    of them this machine has."""
    began = time.monotonic()
    while True:
        ranks = [_read(logs, number) for number in sorted(int(path.stem[5:]) for path in logs.glob("rank-*.stack"))]
        waited = time.monotonic() - began
        if all(rank.answered for rank in ranks) or waited > OTHER_NODES_SECONDS:
            return ranks
        if waited > ANSWER_SECONDS and (len(ranks) <= own or sum(bool(rank.state) for rank in ranks) == len(ranks)):
            return ranks
        time.sleep(0.05)


def keep(logs: Path) -> Path:
    """Move the answers to a directory of their own, since ranks that start again write new ones. Returns it, or `logs`
    where they have to stay."""
    number = 1 + sum(1 for _ in logs.glob("hang-*"))
    folder = logs / f"hang-{number}"
    try:
        folder.mkdir()
    except OSError:  # a full disk, which may be why they hang
        return logs
    for path in [*logs.glob("rank-*.stack"), *logs.glob("rank-*.state")]:
        path.rename(folder / path.name)
    return folder


def behind(ranks: Sequence[Rank]) -> tuple[Rank | None, str]:
    """The rank for which the others wait, as far as it can be told, and a sentence about it."""
    if not ranks:
        return None, "no rank has begun to work"
    for letter, what in (("T", "is stopped"), ("D", "is stuck in the kernel"), ("Z", "has died")):
        if found := [rank for rank in ranks if rank.kernel.startswith(letter)]:
            return found[0], f"{_named(found)} {what} ({_kernel(found[0])})"
    if mute := [rank for rank in ranks if not rank.stack]:
        said = f" ({_kernel(mute[0])})" if mute[0].state else ""
        return mute[0], f"{_named(mute)} did not even answer a signal{said}"
    busy = [rank for rank in ranks if not rank.waits]
    if busy and len(busy) < len(ranks):
        return busy[0], f"{_named(busy)} did not join the others, who wait: {busy[0].place}"
    steps = sorted(rank.step for rank in ranks if rank.step is not None)
    if steps and steps[0] < steps[-1]:
        late = [rank for rank in ranks if rank.step == steps[0]]
        return late[0], f"{_named(late)} finished step {steps[0]:,}, others {steps[-1]:,}: {late[0].place}"
    places = "; ".join(f"rank {rank.number} stands in {rank.place}" for rank in ranks[:4])
    return None if len(ranks) > 1 else ranks[0], places


def _read(logs: Path, number: int) -> Rank:
    text, state = _text(logs / f"rank-{number}.stack"), _text(logs / f"rank-{number}.state")
    step = _STEP.match(text)
    # faulthandler writes the thread that took the signal, the main one, last and calls it current
    _, found, newest = text.rpartition("Current thread")
    frames = [(match[1], match[2], match[3]) for match in _FRAME.finditer(newest)] if found else []
    lines = (line.partition(":") for line in state.splitlines())
    return Rank(
        number,
        (int(step[1]) or None) if step else None,
        frames,
        {name.strip(): value.strip() for name, _, value in lines},
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _kernel(rank: Rank) -> str:
    place = rank.state.get("wchan", "0")
    return ", ".join(
        [
            f"State: {rank.kernel}",
            *([f"in {place}"] if place not in ("", "0") else []),
            f"process {rank.state.get('pid', '?')}",
        ]
    )


def _named(ranks: Sequence[Rank]) -> str:
    return named([rank.number for rank in ranks])


def named(numbers: Sequence[int]) -> str:
    """``rank 3``, ``ranks 0, 1``; of many the first eight."""
    first = ", ".join(map(str, numbers[:8])) + (" ..." if len(numbers) > 8 else "")
    return f"rank {first}" if len(numbers) == 1 else f"ranks {first}"
