"""Attempts, the starts within them, and goodput: what the event files say, summed up truly."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primus.events import goodput
from primus.events.attempts import rows
from primus.events.follow import RunHistory, read_run
from primus.events.goodput import PARTS, Goodput
from primus.events.jobs import starts_of
from primus.events.jsonl import Record, encode

STEP = 0.5
"""Seconds of a usual step."""


@dataclass
class Simulated:
    """A run that knows what it spent its time on. Its clock may be set back: that takes no time."""

    run: Path
    nodes: int = 1
    now: float = 1000.0
    back: float = 0.0
    spent: Goodput = field(default_factory=Goodput)
    trained: dict[int, float] = field(default_factory=dict)
    attempt: int = 0
    restart: int = 0
    step: int = 0
    counts: bool = True

    def write(self, writer: str, kind: str, **fields: Any) -> None:
        folder = self.run / "attempts" / str(self.attempt)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"events-{writer}.jsonl").open("ab") as stream:
            stream.write(encode({"event": kind, "time": self.now - self.back, "writer": writer, **fields}))

    def spend(self, part: str, seconds: float) -> None:
        self.now += seconds
        setattr(self.spent, part, getattr(self.spent, part) + seconds)

    def launch(self, seconds: float = 1.0) -> None:
        self.attempt, self.restart = self.attempt + 1, -1
        for node in range(self.nodes):
            self.write(f"launcher{node}", "attempt_started", node=f"n{node}", node_rank=node, nodes=self.nodes)
        self.spend("start_up", seconds)

    def start_ranks(self) -> None:
        self.restart += 1
        for node in range(self.nodes):
            where = {"node": f"n{node}", "node_rank": node, "first_rank": 2 * node, "last_rank": 2 * node + 1}
            self.write(f"node{node}", "ranks_started", restart=self.restart, **where)

    def start_run(self, resumed_from: int | None, seconds: float = 2.0, notes: tuple[str, ...] = ()) -> None:
        self.spend("start_up", seconds)
        said = {"name": "r", "attempt": self.attempt, "device": "cpu", "parameters": 1, "steps": 99, "notes": notes}
        self.write("rank0", "run_started", world_size=2 * self.nodes, resumed_from=resumed_from, **said)
        self.step = resumed_from or 0
        for step in [step for step in self.trained if step > self.step]:
            self.spent.useful -= (took := self.trained.pop(step))
            self.spent.lost += took

    def train(self, steps: int, compile_seconds: float = 0.0) -> None:
        for index in range(steps):
            self.step += 1
            self.spend("start_up", compiling := compile_seconds if index == 0 else 0.0)
            self.spend("useful", STEP)
            self.trained[self.step] = STEP
            figures = {"loss": 1.0, "grad_norm": 1.0, "lr": 0.1, "tokens": 8, "memory_bytes": 9}
            self.write("rank0", "step_done", step=self.step, seconds=STEP + compiling, mfu=None, **figures)

    def validate(self, seconds: float) -> None:
        self.spend("validation", seconds)
        self.write("rank0", "eval_done", step=self.step, loss=1.0, tokens=8, seconds=seconds)

    def save(self, blocked: float) -> None:
        self.spend("checkpoint", blocked)
        figures = {"path": "p", "bytes": 1, "seconds": blocked + 1, "blocked_seconds": blocked}
        self.write("rank0", "checkpoint_saved", step=self.step, **figures)

    def fail(self, seconds: float, cause: str = "died", rank: int = 0, writer: str = "node0") -> None:
        self.spend("lost", seconds)
        self.write(writer, "rank_failed", rank=rank, node="n", error="E", traceback="T", cause=cause)

    def end(self, reason: str) -> None:
        self.write("rank0", "run_ended", reason=reason, step=self.step)

    def check(self) -> RunHistory:
        history = read_run(self.run)
        assert history.goodput is not None
        for part in PARTS:
            assert getattr(history.goodput, part) == pytest.approx(getattr(self.spent, part), abs=1e-5), part
        assert list(history.steps.step) == sorted(self.trained)
        return history


SECONDS = st.sampled_from([0.25, 3.0, 100.0])
PHASE = st.fixed_dictionaries(
    {
        "steps": st.sampled_from([0, 2, 3, 7]),
        "compile": st.one_of(st.just(0.0), SECONDS),
        "pauses": st.lists(st.tuples(st.sampled_from(["validate", "save"]), SECONDS, st.integers(2, 4)), max_size=4),
        "end": st.sampled_from(["died", "hang", "error", "stopped", "killed", "anomaly"]),
        "seconds": SECONDS,
        "wait": SECONDS,
        "back_to": st.floats(0, 1),
        "clock": st.sampled_from([0.0, 0.0, 0.0, 5000.0]),
    }
)


def go_through(run: Simulated, phase: dict[str, Any], before: str, resumed: int | None) -> str:
    """One start. before: how the one before it ended; resumed: where it begins. Returns how this one ends."""
    if before in ("", "stopped", "killed"):
        run.back += phase["clock"] if before else 0.0
        run.launch()
    if before != "anomaly":
        run.start_ranks()
    run.start_run(resumed)
    if before == "anomaly":  # back to a checkpoint: loading it is no start of processes
        run.spent.start_up, run.spent.lost = run.spent.start_up - 2.0, run.spent.lost + 2.0
    if not phase["steps"]:  # all it did was starting up
        run.spend("start_up", phase["seconds"])
        run.fail(0.0)
        return "died"
    run.train(phase["steps"], phase["compile"])
    for kind, seconds, steps in phase["pauses"]:
        getattr(run, kind)(seconds)
        run.train(steps)
    end: str = phase["end"]
    if end == "stopped":
        run.end("stopped")
    elif end not in ("killed", "anomaly"):
        run.fail(phase["seconds"], end)
    return end


@settings(max_examples=60, deadline=None)
@given(st.lists(PHASE, min_size=1, max_size=6), st.integers(1, 3))
def test_the_parts_are_what_a_run_spent_its_time_on(phases: list[dict[str, Any]], nodes: int) -> None:
    """Whatever happens to it, and however often."""
    with tempfile.TemporaryDirectory() as folder:
        run = Simulated(Path(folder), nodes)
        ends: list[str] = []
        for phase in phases:
            if ends and ends[-1] != "anomaly":
                run.spend("waiting", phase["wait"])
            resumed = int(phase["back_to"] * run.step) or None
            ends.append(go_through(run, phase, ends[-1] if ends else "", resumed))
        if run.back:  # how long it waited while the clock was set back cannot be known
            history = read_run(run.run)
            assert history.goodput is not None
            run.spent.waiting = history.goodput.waiting
        history = run.check()
        assert history.goodput is not None
        first, last = history.attempts[0].started, history.attempts[-1].last_record
        if not run.back and first is not None and last is not None:
            assert history.goodput.total == pytest.approx(last - first, abs=1e-5)
        told = [start.end for attempt in history.attempts for start in attempt.starts]
        unheard = [None if end == "killed" else end for end in ends]
        assert told == [*unheard[:-1], None if ends[-1] == "anomaly" else unheard[-1]]  # which nobody has told yet
        starts = [start for attempt in history.attempts for start in attempt.starts]
        assert sum(start.steps - start.lost_steps for start in starts) == len(history.steps)


NUMBERS = st.one_of(st.integers(-5, 30), st.floats(), st.sampled_from([1e308, -1e308, 1e20, 2**70]))
KINDS = ["attempt_started", "ranks_started", "run_started", "step_done", "eval_done", "checkpoint_saved", "rank_failed"]
FIELDS = {
    **dict.fromkeys(["node_rank", "nodes", "first_rank", "last_rank", "restart", "step", "world_size"], 1),
    **dict.fromkeys(["attempt", "parameters", "steps", "tokens", "memory_bytes", "bytes", "rank"], 1),
    **dict.fromkeys(["node", "name", "device", "path", "error", "traceback", "reason"], "complete"),
    **dict.fromkeys(["loss", "grad_norm", "lr", "mfu"], 1.0),
}
TIMED = ["time", "seconds", "blocked_seconds"]
ODD = st.builds(
    lambda kind, writer, times, counts: {
        "event": kind, **FIELDS, **dict(zip(TIMED, times, strict=True)), "writer": writer,
        **{key: value for key, value in counts.items() if value is not None},
    },
    st.sampled_from([*KINDS, "step_done", "step_done", "run_ended"]),
    st.sampled_from(["rank0", "rank1", "node0", "node1", "launcher0", "launcher7", "x", 3, None]),
    st.tuples(NUMBERS, NUMBERS, NUMBERS),
    st.fixed_dictionaries({"step": st.integers(-2, 9), "resumed_from": st.one_of(st.none(), st.integers(-9, 9)),
                           "node_rank": st.integers(-1, 2), "restart": st.integers(-1, 3)}),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["rank0", "node0", "node1", "odd"]), ODD), max_size=25))
def test_whatever_the_files_hold_no_part_is_negative_and_no_step_is_counted_twice(
    records: list[tuple[int, str, Record]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        for attempt, writer, record in records:
            path = run / "attempts" / str(attempt) / f"events-{writer}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as stream:
                stream.write(encode(record))
        history = read_run(run, alive=True)
        starts = [start for attempt in history.attempts for start in attempt.starts]
        for parts in [history.goodput, *(start.goodput for start in starts)]:
            assert parts is not None
            values = [getattr(parts, part) for part in PARTS]
            assert all(value >= 0 and math.isfinite(value) for value in values), parts
            assert parts.total == pytest.approx(sum(values))
        assert sum(start.steps - start.lost_steps for start in starts) == len(history.steps)
        assert all(0 <= start.lost_steps <= start.steps for start in starts)
        assert list(history.steps.step) == sorted(set(history.steps.step))
        assert len(rows(history.attempts, running=True)) >= len(history.attempts)
        goodput.lines(history.goodput)


def test_a_story_with_every_end_reads_as_it_went(tmp_path: Path) -> None:
    run = Simulated(tmp_path, nodes=2)
    run.launch()
    run.start_ranks()
    run.start_run(None)
    run.validate(1.0)
    run.train(6, compile_seconds=4.0)
    run.save(0.5)
    run.train(3)
    run.fail(0.2, rank=3, writer="node1")
    run.spend("waiting", 1.5)
    run.start_ranks()
    run.start_run(6)
    run.train(4)
    run.fail(30.0, "hang", rank=1)
    run.spend("waiting", 0.5)
    run.start_ranks()
    run.start_run(6)
    run.train(2)
    run.spend("waiting", 60.0)
    run.launch()
    run.spend("waiting", 5.0)
    run.launch()
    run.start_ranks()
    run.start_run(6)
    run.train(4)
    run.save(2.0)
    run.end("complete")
    run.spent.waiting -= 5.0  # of an attempt that ended unheard nobody knows until when it ran
    run.spent.waiting += 5.0 + 1.0
    run.spent.start_up -= 1.0
    history = run.check()
    assert history.status == "complete"
    told = [[r.number, r.nodes, r.ranks, r.steps, r.lost, r.ended] for r in rows(history.attempts, running=False)]
    assert told == [
        ["1", "n0, n1", "4", "1 to 9", "3", "rank died: rank 3 on n: E"],
        ["1.1", "n0, n1", "4", "7 to 10", "4", "hang: rank 1 on n: E"],
        ["1.2", "n0, n1", "4", "7 to 8", "2", "no end reported"],
        ["2", "n0, n1", "-", "-", "-", "no end reported"],
        ["3", "n0, n1", "4", "7 to 10", "-", "complete"],
    ]


def test_a_return_to_a_checkpoint_by_the_same_processes_is_a_start_of_its_own(tmp_path: Path) -> None:
    run = Simulated(tmp_path)
    run.launch()
    run.start_ranks()
    run.start_run(None)
    run.train(7)
    run.spend("lost", 1.0)
    run.start_run(4, seconds=0.0, notes=("back from step 8: the loss is nan",))
    run.train(6)
    run.end("complete")
    first, second = run.check().attempts[0].starts
    assert (first.end, first.failure, first.lost_steps) == ("anomaly", "back from step 8: the loss is nan", 3)
    assert (second.restart, second.nodes, second.end) == (0, ["n0"], "complete")


@pytest.mark.parametrize("apart", [-90.0, 90.0])
def test_a_failure_on_a_node_whose_clock_differs_belongs_to_the_right_start(tmp_path: Path, apart: float) -> None:
    run = Simulated(tmp_path, nodes=2)
    run.launch()
    for end in ("died", "hang", "error"):
        run.start_ranks()
        run.start_run(None if end == "died" else run.step)
        run.train(4)
        run.fail(1.0, end, rank=2, writer="node1")
    path = tmp_path / "attempts/1/events-node1.jsonl"
    moved = []
    for line in path.read_bytes().splitlines():
        head, _, rest = line.partition(b'"time":')
        stamp, _, rest = rest.partition(b",")
        moved.append(head + b'"time":' + repr(float(stamp) + apart).encode() + b"," + rest)
    path.write_bytes(b"\n".join(moved) + b"\n")
    (attempt,) = read_run(tmp_path).attempts
    assert [(start.end, start.nodes) for start in attempt.starts] == [
        (end, ["n0", "n1"]) for end in ("died", "hang", "error")
    ]


def test_a_save_that_holds_up_a_step_takes_its_time_out_of_the_step(tmp_path: Path) -> None:
    run = Simulated(tmp_path)
    run.launch()
    run.start_ranks()
    run.start_run(None)
    run.train(4)
    run.save(0.125)
    run.train(4)
    run.end("complete")
    path = tmp_path / "attempts/1/events-rank0.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"blocked_seconds":0.125', b'"blocked_seconds":0.375'))
    run.spent.checkpoint += 0.25
    run.spent.useful -= 0.25
    run.check()


def test_attempts_without_events_and_with_empty_files_are_listed(tmp_path: Path) -> None:
    run = Simulated(tmp_path)
    run.launch()
    run.attempt += 1
    (tmp_path / "attempts/2").mkdir()
    (tmp_path / "attempts/3").mkdir()
    (tmp_path / "attempts/3/events-rank0.jsonl").touch()
    (tmp_path / "attempts/3/events-node0.jsonl").write_bytes(b'{"event":"ranks_sta')
    history = read_run(tmp_path, alive=False)
    assert [r.ended for r in rows(history.attempts, running=False)] == ["no end reported", "no event", "no event"]
    assert history.goodput == Goodput()
    assert goodput.lines(history.goodput) == []


def test_what_a_batch_system_knows_is_told(tmp_path: Path) -> None:
    """How long the run was queued, and ends that nobody in the job could report."""
    job = tmp_path / "jobs" / "1"
    job.mkdir(parents=True)
    (job / "job.json").write_text("{}")
    os.utime(job / "job.json", (900.0, 900.0))
    run = Simulated(tmp_path, nodes=2)
    run.spend("waiting", 20.0)
    run.spent.waiting += 1000.0 - 900.0
    noted: list[dict[str, Any]] = []

    def one(resumed: int | None, event: str, reason: str, end: str = "", failure: str = "") -> None:
        noted.append({"time": run.now, "event": "started", "nodes": ["n0", "n1"], "start": run.attempt})
        run.launch()
        run.start_ranks()
        run.start_run(resumed)
        run.train(4)
        if failure:
            run.write("rank0", "rank_failed", rank=0, node="n0", error=failure, traceback="T", cause="error")
        if end:
            run.end(end)
        if event:
            noted.append({"time": run.now, "event": event, "reason": reason})
        run.spend("waiting", 10.0)

    one(None, "again", "n1: it does not answer", failure="Connection closed by peer")
    noted.append({"time": run.now, "event": "excluded", "node": "n1", "reason": "it does not answer"})
    one(4, "again", "the time limit was near", end="stopped")
    one(8, "again", "the launchers were killed (srun: 137)")
    one(12, "", "")
    one(16, "done", "complete", end="complete")
    run.spent.waiting -= 10.0
    lines = [json.dumps(record) for record in noted]
    (job / "record.jsonl").write_text(
        "\n".join(["{}", "17", '{"time": 1, "event": []}', *lines, '{"time": "x"']) + "\n"
    )
    history = run.check()
    assert [r.ended for r in rows(history.attempts, running=False)] == [
        "node failed: n1: it does not answer",
        "stopped: the time limit was near",
        "job ended: the launchers were killed (srun: 137)",
        "job ended: queued again by the batch system",
        "complete",
    ]


def test_two_processes_that_write_the_same_file_and_a_torn_line_between(tmp_path: Path) -> None:
    """A straggler of an ended start goes on for a while: its steps before the new start's point are of no account."""
    run = Simulated(tmp_path)
    run.launch()
    run.start_ranks()
    run.start_run(None)
    run.train(8)
    run.start_ranks()
    run.start_run(6)
    path = tmp_path / "attempts/1/events-rank0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    late = [line for line in lines if b'"step":5,' in line or b'"step":6,' in line]
    path.write_bytes(b"".join([*lines, *late, late[0][:50], b"\n"]))
    run.train(4)
    run.end("complete")
    history = read_run(tmp_path)
    assert list(history.steps.step) == list(range(1, 11))
    assert [(start.steps, start.lost_steps) for start in history.attempts[0].starts] == [(8, 2), (4, 0)]
    assert history.garbled == 1


def test_thousands_of_restarts_are_read_quickly(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one = Simulated(Path(folder))
        one.launch()
        one.start_ranks()
        one.start_run(None)
        one.train(60)
        one.validate(0.1)
        one.save(0.1)
        one.fail(0.1)
        texts = {path.name: path.read_bytes() for path in (Path(folder) / "attempts/1").iterdir()}
    target = tmp_path / "attempts/1"
    target.mkdir(parents=True)
    for name, text in texts.items():
        with (target / name).open("wb") as stream:
            for restart in range(1 if "launcher" in name else 3000):
                text_now = text.replace(b'"restart":0', f'"restart":{restart}'.encode())
                for line in text_now.splitlines(keepends=True):
                    head, _, rest = line.partition(b'"time":')
                    stamp, _, rest = rest.partition(b",")
                    stream.write(head + f'"time":{float(stamp) + 100 * restart}'.encode() + b"," + rest)
    began = time.process_time()
    history = read_run(tmp_path)
    shown = rows(history.attempts, running=False)
    assert time.process_time() - began < 4
    assert len(shown) == 3000
    assert history.goodput is not None
    assert history.goodput.lost == pytest.approx(3000 * 0.1 + 2999 * 60 * STEP)


def test_a_record_of_a_job_that_lacks_something_still_tells_of_its_starts() -> None:
    noted = [
        {"event": "started", "time": 1.0},
        {"event": "done", "time": 2.0, "reason": "complete"},
        {"event": "started", "time": 3.0, "nodes": ["n1"], "step": 7},
        {"event": "started", "time": 4.0, "nodes": "n1", "step": "7"},
        {"event": "failed", "time": 5.0},
        {"event": "started", "time": 6.0, "step": 9},
    ]
    told = [(start.end, start.nodes, start.step, start.ended) for start in starts_of(noted)]
    assert told == [
        ("complete", (), 0, 2.0),
        ("queued again by the batch system", ("n1",), 7, 4.0),
        ("failed", (), 0, 5.0),
        ("", (), 9, None),
    ]
