"""The failure screen: what it takes for the root, what it shows of a traceback, which cause it suspects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from primus.runtime.failure import CAUSES, root, screen
from primus.runtime.outcome import Outcome

LOGS = Path("/runs/a/attempts/1/logs")
AGAIN = "primus-cli train pretrain --config a.yaml"


def failure(rank: int, time: float, error: str, traceback: str = "", **more: Any) -> dict[str, Any]:
    return {"rank": rank, "time": time, "node": "n1", "error": error, "traceback": traceback, "step": None, **more}


def shown(outcome: Outcome, width: int = 100) -> str:
    text = screen(outcome, LOGS, "primus-cli run logs a", AGAIN, width)
    assert max(len(line) for line in text.splitlines() if not line.startswith(("log", "continue"))) <= max(60, width)
    return text


def test_the_root_is_the_earliest_that_is_not_an_echo() -> None:
    echo = "DistBackendError: Connection closed by peer [127.0.0.1]:4711"
    failures = [
        failure(0, 1.0, echo),
        failure(3, 3.0, "ValueError: later"),
        failure(2, 2.0, "killed by SIGKILL from outside"),
    ]
    assert root(failures)["rank"] == 2
    assert root([failure(0, 2.0, echo), failure(1, 1.0, echo)])["rank"] == 1


@pytest.mark.parametrize("width", [60, 80, 120, 300])
def test_long_things_are_shortened(width: int) -> None:
    frames = "".join(
        f'  File "/very/long/path/{"x" * 40}/torch/nn/m{n}.py", line {n}, in forward\n    y = f(x)\n    ^^^^^\n'
        for n in range(30)
    )
    text = shown(
        Outcome(
            failures=[
                failure(
                    7, 1.0, "ValueError: " + "why " * 60, f"Traceback (most recent call last):\n{frames}ValueError: why"
                )
            ]
        ),
        width,
    )
    assert len(text.splitlines()) <= 30
    assert '/torch/nn/m29.py", line 29, in forward' in text
    assert "^^^" not in text
    assert "lines above are in the log" in text


def test_what_an_engine_says_is_shown_to_its_end() -> None:
    said = (
        "docker: Error response from daemon: " + "runc create failed: " * 12 + "no such file\n\nRun 'docker --help' for"
    )
    text = shown(Outcome(agent=f"the agent exited with code 125\n{said}"), 80)
    assert "no such file" in text
    assert "--help" not in text
    assert max(map(len, text.splitlines()[:-4])) <= 80


def test_an_engine_that_died_is_not_one_that_refused() -> None:
    said = 'level=error msg="error waiting for container: unexpected EOF"'  # docker 20.10, dockerd killed by SIGKILL
    text = shown(Outcome(agent=f"the agent exited with code 125\n{said}"))
    assert "start the engine again" in text
    assert "refused" not in text


def test_our_own_outermost_frames_are_left_out() -> None:
    traceback = (
        "Traceback (most recent call last):\n"
        '  File "/x/primus/runtime/worker.py", line 98, in work\n    run(plan)\n    ^^^\n'
        '  File "/x/engine.py", line 1, in run\n    raise KeyError(1)\nKeyError: 1\n'
    )
    text = shown(Outcome(failures=[failure(0, 1.0, "KeyError: 1", traceback)]))
    assert "worker.py" not in text
    assert "/x/engine.py" in text


def test_an_error_of_ours_needs_no_traceback() -> None:
    text = shown(
        Outcome(failures=[failure(0, 1.0, "step 7: the loss is NaN", "Traceback ...", remedy="lower optimizer.lr")])
    )
    assert "Traceback" not in text
    assert "what to do    lower optimizer.lr" in text
    assert "likely cause" not in text


def test_the_other_ranks_are_counted() -> None:
    failures = [failure(rank, float(rank), "OSError: x") for rank in range(12)]
    assert "then 11 more: ranks 1, 2, 3, 4, 5, 6, 7, 8 ..." in shown(Outcome(failures=failures))


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("killed by SIGKILL by the kernel: out of memory", "the machine ran out of memory"),
        ("OutOfMemoryError: HIP out of memory. Tried to allocate 2 GiB", "out of memory on the device"),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", "out of memory"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("DistNetworkError: The server socket has failed to listen: EADDRINUSE, Address already in use", "the port"),
        ("ModuleNotFoundError: No module named 'triton'", "a package is missing"),
        ("killed by SIGSEGV", "native code crashed"),
        ("killed by SIGKILL from outside", "someone or something killed it"),
        ("PermissionError: [Errno 13] Permission denied: '/data'", "a file or directory cannot"),
    ],
)
def test_likely_causes(said: str, cause: str) -> None:
    text = " ".join(shown(Outcome(failures=[failure(0, 1.0, said)])).split())
    assert f"likely cause {cause}" in text
    assert "what to do" in text


def test_an_unknown_failure_suspects_nothing() -> None:
    assert "likely cause" not in shown(Outcome(failures=[failure(0, 1.0, "ValueError: strange")]))


def test_every_cause_has_a_remedy() -> None:
    assert all(cause.cause and cause.remedy for cause in CAUSES)


def test_an_agent_that_failed_shows_its_last_words() -> None:
    text = shown(Outcome(agent="the agent exited with code 1\nTraceback\nImportError: no torch"))
    assert "the processes failed without a report: the agent exited with code 1" in text
    assert "ImportError: no torch" in text
    assert "primus-cli env check" in text
