"""Reading a run back: attempts joined, whatever the files went through."""

from __future__ import annotations

import json
import math
import os
import random
import time
from pathlib import Path

import pytest

from primus.errors import RunDirectoryError
from primus.events.follow import Follower, read_run
from primus.events.jsonl import Record, encode


def step(number: int, loss: float = 1.0, **fields: object) -> Record:
    return {
        "event": "step_done",
        "time": 1000.0 + number,
        "writer": "rank0",
        "step": number,
        "loss": loss,
        "grad_norm": 0.5,
        "lr": 1e-3,
        "tokens": 64,
        "seconds": 0.1,
        "memory_bytes": 1 << 20,
        "mfu": None,
        "auxiliary": None,
        **fields,
    }


def started(at: float, resumed_from: int | None = None, **fields: object) -> Record:
    return {
        "event": "run_started",
        "time": at,
        "writer": "rank0",
        "name": "r",
        "attempt": 1,
        "world_size": 2,
        "device": "cpu",
        "parameters": 10,
        "steps": 20,
        "resumed_from": resumed_from,
        "notes": [],
        **fields,
    }


def evaluated(number: int, loss: float) -> Record:
    return {
        "event": "eval_done",
        "time": 1000.5 + number,
        "writer": "rank0",
        "step": number,
        "loss": loss,
        "tokens": 1,
        "seconds": 0.1,
    }


def ended(at: float, reason: str, number: int, writer: str = "rank0") -> Record:
    return {"event": "run_ended", "time": at, "writer": writer, "reason": reason, "step": number}


def failed(at: float) -> Record:
    return {
        "event": "rank_failed",
        "time": at,
        "writer": "rank1",
        "rank": 1,
        "node": "n",
        "error": "E",
        "traceback": "T",
        "step": None,
        "remedy": "",
        "retryable": True,
    }


def write(run: Path, attempt: int, records: list[Record | bytes], writer: str = "rank0") -> Path:
    path = run / "attempts" / str(attempt) / f"events-{writer}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        for record in records:
            stream.write(record if isinstance(record, bytes) else encode(record))
    return path


def losses(run: Path) -> dict[int, float]:
    history = read_run(run)
    return dict(zip(history.steps.step, history.steps.loss, strict=True))


def test_an_empty_run_directory_is_an_unknown_run(tmp_path: Path) -> None:
    history = read_run(tmp_path)
    assert (history.status, len(history.steps), history.attempts, history.plan) == ("unknown", 0, [], None)


def test_one_attempt_is_read_with_full_precision(tmp_path: Path) -> None:
    values = [random.Random(1).random() * 10**e for e in range(-5, 5)]
    write(tmp_path, 1, [started(1000), *(step(i + 1, v, mfu=0.25 if i else None) for i, v in enumerate(values))])
    write(tmp_path, 1, [evaluated(10, 3.5), ended(1011, "complete", 10)])
    history = read_run(tmp_path)
    assert list(history.steps.loss) == values
    assert history.steps.row(0)["mfu"] is None
    assert history.steps.row(9)["mfu"] == 0.25
    assert history.status == "complete"
    assert [(e["step"], e["loss"]) for e in history.evals] == [(10, 3.5)]
    assert history.seconds == pytest.approx(11.0)
    assert (history.tokens, history.garbled) == (640, 0)


def test_a_resumed_attempt_replaces_what_lies_beyond_its_resume_point(tmp_path: Path) -> None:
    write(tmp_path, 1, [started(1000), *(step(i, 1.0) for i in range(1, 13)), evaluated(5, 1.0), evaluated(10, 1.0)])
    write(tmp_path, 2, [started(2000, 8), *(step(i, 2.0) for i in range(9, 11)), evaluated(10, 2.0)])
    history = read_run(tmp_path)
    assert losses(tmp_path) == {**dict.fromkeys(range(1, 9), 1.0), 9: 2.0, 10: 2.0}
    assert [(e["step"], e["loss"], e["attempt"]) for e in history.evals] == [(5, 1.0, 1), (10, 2.0, 2)]
    assert [(a.number, a.first_step, a.last_step, a.resumed_from) for a in history.attempts] == [
        (1, 1, 12, None),
        (2, 9, 10, 8),
    ]


def test_an_attempt_that_died_before_its_first_step_still_moves_the_end_back(tmp_path: Path) -> None:
    write(tmp_path, 1, [started(1000), *(step(i) for i in range(1, 6))])
    write(tmp_path, 2, [started(2000, 3)])
    assert list(read_run(tmp_path).steps.step) == [1, 2, 3]
    write(tmp_path, 3, [started(3000, None)])
    assert list(read_run(tmp_path).steps.step) == []


def test_attempts_without_any_record_and_out_of_order_numbers(tmp_path: Path) -> None:
    write(tmp_path, 10, [started(3000, 2), step(3, 10.0)])
    write(tmp_path, 2, [started(1000), *(step(i, 2.0) for i in range(1, 5))])
    (tmp_path / "attempts" / "7").mkdir()
    (tmp_path / "attempts" / "notes").mkdir()
    (tmp_path / "attempts" / "²").mkdir()
    history = read_run(tmp_path)
    assert [attempt.number for attempt in history.attempts] == [2, 7, 10]
    assert losses(tmp_path) == {1: 2.0, 2: 2.0, 3: 10.0}


def test_an_attempt_whose_start_was_lost_wins_from_its_first_step(tmp_path: Path) -> None:
    write(tmp_path, 1, [started(1000), *(step(i, 1.0) for i in range(1, 9)), evaluated(2, 1.0), evaluated(6, 1.0)])
    write(tmp_path, 2, [b"\x00\x00garbage\n", step(5, 2.0), step(6, 2.0), evaluated(6, 2.0)])
    history = read_run(tmp_path)
    assert losses(tmp_path) == {**dict.fromkeys(range(1, 5), 1.0), 5: 2.0, 6: 2.0}
    assert [(e["step"], e["loss"]) for e in history.evals] == [(2, 1.0), (6, 2.0)]
    assert history.garbled == 1


def test_processes_restarted_within_an_attempt(tmp_path: Path) -> None:
    first = [started(1000), *(step(i, 1.0) for i in range(1, 8)), evaluated(6, 1.0)]
    second = [started(2000, 4), *(step(i, 2.0, time=2000.0 + i) for i in range(5, 7)), ended(2010, "complete", 6)]
    write(tmp_path, 1, [*first, *second])
    write(tmp_path, 1, [failed(1500)], writer="rank1")
    history = read_run(tmp_path)
    assert losses(tmp_path) == {**dict.fromkeys(range(1, 5), 1.0), 5: 2.0, 6: 2.0}
    assert history.evals == []
    assert len(history.failures) == 1
    assert (history.status, history.attempts[0].restarts, history.attempts[0].resumed_from) == ("complete", 1, 4)


@pytest.mark.parametrize(
    ("records", "status"),
    [
        ([ended(1500, "complete", 3)], "complete"),
        ([ended(1500, "stopped", 3)], "stopped"),
        ([failed(1400), ended(1500, "failed", 3, "launcher")], "failed"),
        ([ended(1500, "complete", 3), failed(1501)], "failed"),
        ([ended(1500, "stopped", 3), ended(1502, "failed", 3, "launcher")], "failed"),
        ([ended(1500, "banana", 3)], "unknown"),
        ([], "unknown"),
    ],
)
def test_the_status_is_the_worst_of_what_the_last_attempt_said(tmp_path: Path, records, status: str) -> None:
    write(tmp_path, 1, [started(500), ended(900, "complete", 2)])
    path = write(tmp_path, 2, [started(1000, 2), step(3), *records])
    os.utime(path, (time.time() - 3600,) * 2)
    os.utime(tmp_path / "attempts/1/events-rank0.jsonl", (time.time() - 3600,) * 2)
    assert read_run(tmp_path).status == status
    assert read_run(tmp_path, alive=True).status == ("running" if status == "unknown" else status)


def test_a_run_whose_launcher_mends_a_failure_is_running(tmp_path: Path) -> None:
    path = write(tmp_path, 1, [started(1000), step(3), failed(1400)])
    os.utime(path, (time.time() - 3600,) * 2)
    assert read_run(tmp_path).status == "failed"
    assert read_run(tmp_path, alive=True).status == "running"


def test_replica_groups_train_on_beside_one_that_starts_again(tmp_path: Path) -> None:
    def begun(at: float, node: int, restart: int) -> Record:
        where = {"node": "here", "node_rank": node, "first_rank": node, "last_rank": node, "restart": restart}
        return {"event": "ranks_started", "time": at, "writer": f"node{node}", **where}

    write(tmp_path, 1, [started(1000), *(step(number) for number in range(1, 60))])
    write(tmp_path, 1, [begun(990, 0, 0)], "node0")
    write(tmp_path, 1, [begun(991, 1, 0), failed(1020), begun(1021, 1, 1)], "node1")
    history = read_run(tmp_path, alive=False)
    assert (history.status, history.attempts[-1].starts[0].end) == ("unknown", None)


def test_a_file_system_that_is_away_in_the_middle_of_a_file_costs_no_record(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, 1, [started(1000), *(step(number) for number in range(1, 12_001))])
    read, calls = os.pread, []

    def away_once(*arguments: int) -> bytes:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return read(*arguments)

    monkeypatch.setattr(os, "pread", away_once)
    with Follower(tmp_path / "attempts" / "1") as follower:
        assert follower.poll() == []
        assert [record.get("step", 0) for record in follower.poll()] == list(range(12_001))
        assert follower.garbled == 0


def test_a_run_without_an_end_runs_while_its_files_grow(tmp_path: Path) -> None:
    write(tmp_path, 1, [started(1000), step(1)])
    assert read_run(tmp_path).status == "running"
    assert read_run(tmp_path, alive=False).status == "unknown"


def test_nan_and_infinity_survive_the_trip(tmp_path: Path) -> None:
    write(
        tmp_path,
        1,
        [started(1000), step(1, 2.0), step(2, math.nan), step(3, -math.inf, auxiliary={"balance": math.inf})],
    )
    assert '"loss":"NaN"' in (tmp_path / "attempts/1/events-rank0.jsonl").read_text()
    history = read_run(tmp_path)
    assert history.steps.loss[0] == 2.0
    assert math.isnan(history.steps.loss[1])
    assert history.steps.loss[2] == -math.inf
    assert history.steps.auxiliary == {3: {"balance": math.inf}}


GARBAGE = [
    b"\n",
    b"{\n",
    b"[]\n",
    b"null\n",
    b"17\n",
    b'{"event": 3}\n',
    b'{"event":"step_done"}\n',
    b"\xff\xfe\xfd\n",
    b'{"event":"step_done","time":1,"step":"4","loss":1}\n',
    b'{"event":"eval_done","time":2.0,"step":3}\n',
    b'{"event":"step_done","time":1.0,"writer":"x","step":null,"loss":1.0}\n',
    b'{"event":"from_the_future","time":1.0}\n',
    encode(step(4, 1.0) | {"step": 2**80}),
    encode(step(4, 1.0) | {"mfu": "high"}),
    encode(started(4.0) | {"resumed_from": "two"}),
    encode(step(4, 1.0) | {"memory_bytes": 1.5}),
    b"\x00" * 4096 + b"\n",
    b'{"event":"step_done",' * 3 + b"\n",
    b'{"event":"run_started","time":1.0}\n',
    b'{"event":"notice","time":null,"message":"m"}\n',
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_between_records_costs_nothing_but_itself(tmp_path: Path, garbage: bytes) -> None:
    write(tmp_path, 1, [started(1000), step(1), garbage, step(2), garbage, step(3), b'{"event":"step_done","time":1'])
    history = read_run(tmp_path)
    assert list(history.steps.step) == [1, 2, 3]
    assert history.status == "running"
    known = garbage in (b"\n",) or b"from_the_future" in garbage
    assert history.garbled == (0 if known else 2)
    with Follower(tmp_path / "attempts" / "1") as follower:
        seen = [r["step"] for r in follower.poll() if r["event"] == "step_done" and r["step"] < 2**40]
    assert [number for number in seen if number != 4] == [1, 2, 3]


def test_repeated_and_unordered_steps_keep_the_latest(tmp_path: Path) -> None:
    numbers = [1, 2, 3, 2, 5, 4, 5, 1]
    write(tmp_path, 1, [started(1000), *(step(n, float(i)) for i, n in enumerate(numbers))])
    assert losses(tmp_path) == {1: 7.0, 2: 3.0, 3: 2.0, 4: 5.0, 5: 6.0}


def test_clock_jumps_change_no_order_of_steps_and_no_sign_of_durations(tmp_path: Path) -> None:
    write(tmp_path, 1, [started(5000), step(1, time=9e9), step(2, time=-50.0), step(3, time=7.0)])
    history = read_run(tmp_path)
    assert list(history.steps.step) == [1, 2, 3]
    assert history.seconds >= 0
    assert history.attempts[0].seconds >= 0


def test_a_plan_that_is_no_plan(tmp_path: Path) -> None:
    for text in ("", "[]", "{", '{"experiment": 3}', '{"experiment": {"train": {"steps": "many"}}}'):
        (tmp_path / "plan.json").write_text(text)
        assert read_run(tmp_path).total_steps is None
    (tmp_path / "plan.json").write_text(json.dumps({"experiment": {"train": {"steps": 7}}}))
    assert read_run(tmp_path).total_steps == 7


def test_an_unreadable_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "attempts").write_text("a file")
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        read_run(tmp_path)


def test_a_hundred_thousand_steps_are_read_quickly(tmp_path: Path) -> None:
    write(tmp_path, 1, [started(1000), *(step(i, 1 / i) for i in range(1, 100_001))])
    began = time.process_time()
    history = read_run(tmp_path)
    assert time.process_time() - began < 1.5
    assert len(history.steps) == 100_000


def test_follower_sees_every_record_once_while_files_grow(tmp_path: Path) -> None:
    directory = tmp_path / "attempts" / "1"
    with Follower(directory) as follower:
        assert follower.poll() == []
        path = write(tmp_path, 1, [step(1)])
        assert [record["step"] for record in follower.poll()] == [1]
        assert follower.poll() == []
        line = encode(step(2))
        write(tmp_path, 1, [line[:40]])
        assert follower.poll() == []
        write(tmp_path, 1, [line[40:], step(3)])
        assert [record["step"] for record in follower.poll()] == [2, 3]
        write(tmp_path, 1, [failed(1003.5)], writer="rank1")
        write(tmp_path, 1, [step(4)])
        assert [record["event"] for record in follower.poll()] == ["rank_failed", "step_done"]
        write(tmp_path, 1, [b"garbage\n", b"\n"])
        assert follower.poll() == []
        assert follower.garbled == 1
        path.write_bytes(encode(step(9)))  # replaced by something shorter
        assert [record["step"] for record in follower.poll()] == [9]


def test_follower_keeps_a_writers_order_when_its_clock_jumps_back(tmp_path: Path) -> None:
    write(tmp_path, 1, [step(1, time=100.0), step(2, time=50.0), step(3, time=60.0)])
    write(tmp_path, 1, [step(7, time=55.0)], writer="rank1")
    with Follower(tmp_path / "attempts" / "1") as follower:
        order = [record["step"] for record in follower.poll()]
    assert sorted(order) == [1, 2, 3, 7]
    assert [number for number in order if number != 7] == [1, 2, 3]


def test_follower_catches_up_in_bounded_portions(tmp_path: Path) -> None:
    write(
        tmp_path, 1, [{"event": "notice", "time": float(i), "writer": "w", "message": "x" * 60_000} for i in range(600)]
    )
    seen: list[float] = []
    polls = 0
    with Follower(tmp_path / "attempts" / "1") as follower:
        while records := follower.poll():
            seen += [record["time"] for record in records]
            polls += 1
    assert seen == [float(i) for i in range(600)]
    assert polls > 1


def test_follower_outlives_files_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path, 1, [step(1)])
    broken = tmp_path / "attempts" / "1" / "events-rank1.jsonl"
    broken.mkdir()
    with Follower(tmp_path / "attempts" / "1") as follower:
        assert [record["step"] for record in follower.poll()] == [1]
        broken.rmdir()
        write(tmp_path, 1, [failed(1003.0)], writer="rank1")
        assert [record["event"] for record in follower.poll()] == ["rank_failed"]
