"""Forwarding: in order, tried again until taken, one receiver's troubles no other's; what a mark lets through."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from command_line import wait_for
from told import begin, ended, evaluated, planned, saved, started, step, tell

from primus.events.jsonl import Record
from primus.events.monitor import WRITER, forwarder
from primus.events.monitor.forwarder import Forwarder, Off, Refused
from primus.events.monitor.redact import redacted
from primus.events.monitor.tracker import Mark, Tracker, parameters
from primus.events.monitor.wandb import WandbTracker
from primus.runtime.monitor import _missing
from primus.runtime.run_directory import Attempt


class Listener:
    """Takes what it is given, unless `fault` raises."""

    title = "Listener"

    def __init__(self, fault: Callable[[], None] = lambda: None, first_attempt: int = 1) -> None:
        self.fault = fault
        self.first_attempt = first_attempt
        self.taken: list[Record] = []
        self.closed = 0

    def open(self) -> str:
        return "listens"

    def take(self, records: Sequence[Record]) -> None:
        self.fault()
        self.taken += records

    def close(self) -> None:
        self.closed += 1

    @property
    def steps(self) -> list[tuple[int, int]]:
        return [(record["attempt"], record["step"]) for record in self.taken if record["event"] == "step_done"]


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return begin(planned(tmp_path))


def forward(attempt: Attempt, receiver: Listener) -> tuple[Forwarder, list[str]]:
    told: list[str] = []
    made = Forwarder(receiver, attempt.directory.parents[1], attempt.number, told.append)
    made.start()
    return made, told


def test_every_attempt_in_order_without_our_own_notices(attempt: Attempt, tmp_path: Path) -> None:
    tell(attempt, started(1), *(step(n) for n in range(1, 1201)))
    second = begin(planned(tmp_path))
    tell(second, started(2, 600), step(601))
    tell(second, step(9), writer=WRITER)
    listener = Listener()
    made, told = forward(second, listener)
    wait_for(lambda: len(listener.steps) == 1201)
    tell(second, step(602), ended("complete", 602))
    made.end()
    assert made.finished(time.monotonic() + 10)
    assert listener.steps == [*((1, n) for n in range(1, 1201)), (2, 601), (2, 602)]
    assert listener.closed == 1
    assert told == ["Listener: listens"]


def test_what_fails_comes_again_and_people_are_told_once(attempt: Attempt) -> None:
    faults = [OSError("no route to host")] * 3

    def fail() -> None:
        if faults:
            raise faults.pop()

    listener = Listener(fail)
    tell(attempt, started(1), step(1))
    made, told = forward(attempt, listener)
    wait_for(lambda: len(told) == 2)
    made.end()
    assert made.finished(time.monotonic() + 20)
    assert listener.steps == [(1, 1)]
    assert told[1:] == [
        "Listener: OSError: no route to host; training goes on, and this is tried again until the run ends",
        "Listener: gets on again; nothing is missing",
    ]


def test_nothing_is_missing_is_not_said_of_what_was_refused(attempt: Attempt) -> None:
    faults: list[Exception] = [Refused("that name is not allowed"), OSError("away"), OSError("away")]

    def fail() -> None:
        raise faults.pop()

    tell(attempt, started(1))
    made, told = forward(attempt, Listener(fail))
    made.end()
    assert made.finished(time.monotonic() + 20)
    assert told[2:] == ["Listener: that name is not allowed", "Listener: gets on again"]


def test_one_that_never_answers_is_not_awaited(attempt: Attempt) -> None:
    never = threading.Event()
    tell(attempt, started(1), step(1))
    made, _ = forward(attempt, Listener(never.wait))  # type: ignore[arg-type]
    made.end()
    began = time.monotonic()
    assert not made.finished(began + 0.2)
    assert time.monotonic() - began < 2
    never.set()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Refused("that name is not allowed"), "that name is not allowed"),
        (Off("off, as somebody says"), "off, as somebody says"),
        (ImportError("no module"), "failed and is off: ImportError: no module"),
    ],
)
def test_what_trying_again_cannot_mend(attempt: Attempt, error: Exception, words: str) -> None:
    def fail() -> None:
        raise error

    tell(attempt, started(1), step(1))
    made, told = forward(attempt, Listener(fail))
    made.end()
    assert made.finished(time.monotonic() + 10)
    assert told[1:] == [f"Listener: {words}"]


def test_a_mark_lets_each_step_through_once() -> None:
    mark = Mark()

    def new(attempt: int, when: float, event: str, number: int = 0) -> bool:
        return mark.advance({"event": event, "attempt": attempt, "time": when, "step": number})

    assert new(1, 1.0, "run_started")
    assert new(1, 2.0, "eval_done", 0)
    assert [new(1, 3.0 + n, "step_done", n) for n in (1, 2, 3)] == [True] * 3
    assert new(1, 7.0, "eval_done", 3)
    assert not new(1, 1e6, "ranks_started")  # another node's, whose clock is days ahead
    assert [new(1, 7.0, "checkpoint_saved", 3) for _ in range(2)] == [True, False]
    assert [new(1, 8.0, "run_started") for _ in range(2)] == [True, False]
    assert new(2, 5.0, "run_started")  # the clock went back, the attempt did not
    assert [new(2, 6.0 + n, "step_done", n) for n in (3, 4)] == [False, True]
    assert not new(2, 11.0, "eval_done", 3)
    assert (mark.attempt, mark.step, mark.evaluation, mark.checkpoint) == (2, 4, 3, 3)


def test_wandb_that_never_came_up_has_no_files_to_send(attempt: Attempt, tmp_path: Path) -> None:
    """And the run is no further than an earlier attempt had sent."""
    tell(attempt, started(1), step(1))
    tracker = WandbTracker(planned(tmp_path, "monitor.wandb={}"), 1)
    tracker.path.parent.mkdir()
    tracker.mark.step = 8
    unmade = Forwarder(tracker, attempt.directory.parents[1], 1, print)
    assert _missing(unmade, attempt.directory, 5.0).startswith("the end of the run did not arrive (it did not finish")


class Told(Tracker):
    title, name = "Told", "told"

    def open(self) -> str:
        self.begin("here", self.mark.id or "one")
        self.sent: list[int] = []
        self.endings: list[str | None] = []
        return "open"

    def deliver(self, records: Sequence[Record]) -> None:
        steps = [record["step"] for record in records if record["event"] == "step_done"]
        if steps == [1, 2, 3]:
            raise OSError("away")
        self.sent += steps

    def finish(self, ending: str | None) -> None:
        self.endings.append(ending)


def record(attempt: int, event: object) -> Record:
    return {**event.to_record(), "attempt": attempt, "time": 1.0, "writer": "rank0"}  # type: ignore[attr-defined]


def test_a_tracker_remembers_what_it_has(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    (Path(plan.run_directory) / "monitor").mkdir(parents=True)
    tracker = Told(plan, 1)
    tracker.open()
    with pytest.raises(OSError, match="away"):
        tracker.take([record(1, step(n)) for n in (1, 2, 3)])
    assert Told(plan, 2).mark == Mark("one", "here", behind=True)  # nothing counts before it is delivered
    tracker.take(
        [record(1, step(1)), record(1, step(2)), record(1, ended("failed", 2)), record(1, ended("stopped", 2))]
    )
    tracker.close()
    assert tracker.endings == ["failed"]
    again = Told(plan, 2)
    assert (again.mark.step, again.mark.behind) == (2, False)
    again.open()
    again.take([record(2, started(2, 1)), record(2, step(2)), record(2, step(3)), record(1, ended("failed", 2))])
    assert again.sent == [3]
    again.close()
    assert again.endings == [None]
    again.path.write_text('{"id": 3}')
    assert Told(plan, 3).mark == Mark()
    again.path.write_text('{"id": "one", "time": 3}')  # as an older version wrote it
    assert Told(plan, 3).mark == Mark("one", time=3)
    again.path.write_text("[")
    assert Told(plan, 3).mark == Mark()


def test_parameters_are_flat_and_of_one_engine(tmp_path: Path) -> None:
    found = parameters(planned(tmp_path, "torchtitan.comm.trace_buf_size=7"))
    assert found["torchtitan.comm.trace_buf_size"] == "7"
    assert found["optimizer.betas"] == "[0.9, 0.95]"
    assert found["parallel.data_shard"] == "auto"
    assert not any(key.startswith(("native", "megatron")) for key in found)


def test_secrets_are_struck_out_of_what_others_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "abcdef0123")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pass")  # too short to be looked for in any text
    assert redacted("401 for key abcdef0123 at https://me:secret@host/x, pass on") == (
        "401 for key *** at https://***@host/x, pass on"
    )


def test_an_errors_text_fits_a_line() -> None:
    assert forwarder.described(OSError("a\n  b")) == "OSError: a b"
    assert forwarder.described(KeyError()) == "KeyError"
    assert len(forwarder.described(OSError("x" * 9999))) < 320


def test_events_of_the_future_pass(attempt: Attempt) -> None:
    """Kinds that this version does not know, and lines that are no records."""
    tell(attempt, started(1), step(1), saved(1), evaluated(1, 2.0))
    with (attempt.directory / "events-rank0.jsonl").open("a") as file:
        file.write(
            '{"event": "to_come", "time": 1.0, "writer": "rank0"}\nno record\n{"event": "step_done", "time": 1}\n'
        )
    listener = Listener()
    made, told = forward(attempt, listener)
    made.end()
    assert made.finished(time.monotonic() + 10)
    assert [record["event"] for record in listener.taken][-1] == "to_come"
    assert told == ["Listener: listens"]
