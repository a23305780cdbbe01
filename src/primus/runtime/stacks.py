"""Which ranks hang: every rank is asked for its stack (SIGUSR1), and the answers are compared."""

from __future__ import annotations

import re
import time
from pathlib import Path

ANSWER_SECONDS = 3.0
_FRAME = re.compile(r'  File "([^"]+)", line (\d+) in (.+)')
_WAITING = re.compile(r"torch/distributed/|torch/cuda/streams|torch/autograd/|/threading\.py|/selectors\.py")
"""Where a rank stands that only waits for others."""


def silent_ranks(logs: Path) -> str:
    """A sentence that names the ranks which hang, as far as their stacks tell.

    Asked are the ranks that have a stack file, which a rank removes when it ends. One that does not answer (stopped,
    or stuck in the kernel) comes first; then one that is not waiting in a collective while others are.
    """
    expected = sorted(int(path.stem.split("-")[1]) for path in logs.glob("rank-*.stack"))
    until = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < until:
        time.sleep(0.2)
        if all(_main_thread(logs / f"rank-{rank}.stack") for rank in expected):
            break
    frames = {rank: _main_thread(logs / f"rank-{rank}.stack") for rank in expected}
    mute = [rank for rank, stack in frames.items() if not stack]
    if mute:
        return f"{_named(mute)} did not even answer a signal"
    busy = [rank for rank, stack in frames.items() if not any(_WAITING.search(file) for file, _, _ in stack[:6])]
    if busy and len(busy) < len(frames):
        return f"{_named(busy)} did not join the others, who wait: {_place(frames[busy[0]])}"
    return "; ".join(f"rank {rank} stands in {_place(stack)}" for rank, stack in list(frames.items())[:4])


def _main_thread(path: Path) -> list[tuple[str, str, str]]:
    """Frames of the main thread in the newest dump, innermost first: (file, line, function)."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    # faulthandler writes the thread that took the signal, the main one, last and calls it current
    newest = text.rpartition("Current thread")[2]
    return [(match[1], match[2], match[3]) for match in _FRAME.finditer(newest)]


def _place(stack: list[tuple[str, str, str]]) -> str:
    file, line, function = stack[0]
    return f"{'/'.join(Path(file).parts[-2:])}:{line} ({function})"


def _named(ranks: list[int]) -> str:
    return (
        ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks[:8])) + (" ..." if len(ranks) > 8 else "")
    )
