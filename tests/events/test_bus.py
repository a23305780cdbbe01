"""The bus loses nothing and never waits for anybody."""

from __future__ import annotations

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from primus.errors import EnvironmentFault, RunDirectoryError
from primus.events import jsonl
from primus.events.bus import Bus
from primus.events.follow import Follower
from primus.events.mfu import model_flops_utilisation
from primus.events.sinks import BackgroundSink, Sink, SinkContext, open_sinks
from primus.events.types import CheckpointSaved, EvalDone, Event, Notice, RankFailed, RunStarted, StepDone


def step(number: int, **fields: Any) -> StepDone:
    values = {"loss": 1.5, "grad_norm": 0.5, "lr": 1e-3, "tokens": 64, "seconds": 0.1, "memory_bytes": 1 << 20}
    return StepDone(step=number, **(values | fields))


def records(directory: Path) -> list[dict[str, Any]]:
    with Follower(directory) as follower:
        return follower.poll()


def notices(directory: Path) -> list[str]:
    return [record["message"] for record in records(directory) if record["event"] == "notice"]


class Collecting:
    """A sink that keeps what it gets; `delay` seconds a record."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.seen: list[dict[str, Any]] = []
        self.closed = False

    def handle(self, record: dict[str, Any]) -> None:
        time.sleep(self.delay)
        self.seen.append(record)

    def close(self) -> None:
        self.closed = True


def sinks(**named: Sink) -> list[tuple[str, Callable[[], Sink]]]:
    return [(name, lambda sink=sink: sink) for name, sink in named.items()]  # type: ignore[misc]


def test_every_kind_of_event_is_one_line_with_time_writer_and_fields(tmp_path: Path) -> None:
    events: list[Event] = [
        RunStarted(name="r", attempt=1, world_size=1, device="cpu", parameters=3, steps=9, notes=("a", "b")),
        step(1, loss=0.1 + 0.2, auxiliary={"balance": 1e-300}),
        EvalDone(step=1, loss=2.0, tokens=3, seconds=0.25),
        CheckpointSaved(step=1, path="/x", bytes=1, seconds=0.1, blocked_seconds=0.0),
        Notice(message="line one\nline two \u2028 \x00 ü"),
        RankFailed(rank=1, node="n", error="E", traceback="T\nB"),
    ]
    before = time.time()
    with Bus(tmp_path, "rank0") as bus:
        for event in events:
            bus.emit(event)
    lines = (tmp_path / "events-rank0.jsonl").read_bytes().splitlines()
    assert len(lines) == len(events)
    for line, event in zip(lines, events, strict=True):
        record = json.loads(line)
        assert record.pop("writer") == "rank0"
        assert before <= record.pop("time") <= time.time()
        assert record == json.loads(json.dumps(event.to_record()))


def test_values_of_numpy_and_broken_text_do_not_stop_a_run(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    with Bus(tmp_path, "rank0") as bus:
        bus.emit(step(1, loss=numpy.float32(1.5), tokens=numpy.int64(7), grad_norm=numpy.float32("nan")))
        bus.emit(Notice(message="undecodable " + os.fsdecode(b"caf\xe9")))
    first, second = records(tmp_path)
    assert (first["loss"], first["tokens"]) == (1.5, 7)
    assert first["grad_norm"] != first["grad_norm"]
    assert second["message"].startswith("undecodable caf")


def test_threads_do_not_tear_each_others_lines(tmp_path: Path) -> None:
    with Bus(tmp_path, "rank0") as bus:
        threads = [
            threading.Thread(target=lambda t=t: [bus.emit(Notice(message=f"{t} {i} {'x' * 500}")) for i in range(300)])
            for t in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = [message.split()[:2] for message in notices(tmp_path)]
    assert sorted(found) == sorted([str(t), str(i)] for t in range(4) for i in range(300))
    for t in range(4):
        assert [i for thread, i in found if thread == str(t)] == [str(i) for i in range(300)]


def test_what_was_emitted_survives_sigkill(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from primus.events.bus import Bus; from primus.events.types import Notice\n"
        "bus = Bus(Path(sys.argv[1]), 'rank0')\n"
        "for i in range(10**9):\n    bus.emit(Notice(message=str(i))); print(i, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    last = int(child.stdout.read().split("\n")[-2])
    child.wait()
    found = [int(message) for message in notices(tmp_path)]
    assert found[: last + 1] == list(range(last + 1))
    assert len(found) <= last + 2


def test_a_torn_last_line_is_left_behind_by_the_next_writer(tmp_path: Path) -> None:
    with Bus(tmp_path, "rank0") as bus:
        bus.emit(step(1))
    with (tmp_path / "events-rank0.jsonl").open("ab") as stream:
        stream.write(b'{"event":"step_done","ti')
    with Bus(tmp_path, "rank0") as bus:
        bus.emit(step(2))
    assert [record["step"] for record in records(tmp_path)] == [1, 2]


def test_a_place_that_cannot_be_written_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="event file cannot be written") as caught:
        Bus(tmp_path / "file" / "1", "rank0")
    assert "events-rank0.jsonl" in caught.value.problems[0].where


def test_a_disk_that_stays_full_is_an_error_with_a_name(tmp_path: Path, monkeypatch, capfd) -> None:
    (tmp_path / "events-rank0.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr(jsonl, "PENDING_LIMIT", 10_000)
    bus = Bus(tmp_path, "rank0")
    bus.emit(Notice(message="waits"))  # training goes on
    bus.emit(Notice(message="waits too"))
    said = capfd.readouterr().err
    assert said.count("No space left on device") == 1
    with pytest.raises(RunDirectoryError, match="No space left on device") as caught:
        bus.emit(Notice(message="x" * 20_000))
    assert "free space" in caught.value.problems[0].remedy
    with pytest.raises(RunDirectoryError, match="No space left on device"):
        bus.close()


def test_a_disk_that_recovers_gets_every_record_whole(tmp_path: Path) -> None:
    """The limit on file sizes stands in for a full disk: writes stop in the middle of a record, then go on."""
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from primus.events.bus import Bus; from primus.events.types import Notice\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))\n"
        "bus = Bus(Path(sys.argv[1]), 'rank0')\n"
        "for i in range(100): bus.emit(Notice(message=f'{i} ' + 'x' * 100))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "bus.emit(Notice(message='100 done'))\n"
        "bus.close()\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr.count("File too large") == 1
    *messages, last = notices(tmp_path)
    assert [message.split()[0] for message in messages] == [str(i) for i in range(101)]
    assert "could not be written for" in last
    assert "none is lost" in last


def test_sinks_get_every_record_in_order_and_are_closed(tmp_path: Path) -> None:
    sink = Collecting()
    with Bus(tmp_path, "rank0", sinks(mine=sink)) as bus:
        for number in range(500):
            bus.emit(step(number))
    assert [record["step"] for record in sink.seen] == list(range(500))
    assert sink.closed
    assert notices(tmp_path) == []


def test_a_sink_that_raises_is_turned_off_and_the_others_go_on(tmp_path: Path) -> None:
    class Broken(Collecting):
        def handle(self, record: dict[str, Any]) -> None:
            raise ValueError("no such table")

    good = Collecting()
    with Bus(tmp_path, "rank0", sinks(broken=Broken(), good=good)) as bus:
        bus.emit(step(1))
        time.sleep(0.5)
        bus.emit(step(2))
    assert notices(tmp_path) == ["the sink 'broken' failed and is off: ValueError: no such table"]
    assert [record["step"] for record in good.seen] == [1, 2]


def test_a_sink_that_does_not_start_or_close_is_reported(tmp_path: Path) -> None:
    class Unclosable(Collecting):
        def close(self) -> None:
            raise OSError("connection lost")

    def no_start() -> Sink:
        raise ImportError("No module named 'wandb'")

    with Bus(tmp_path, "rank0", [("absent", no_start), *sinks(unclosable=Unclosable())]) as bus:
        bus.emit(step(1))
    assert sorted(notices(tmp_path)) == [
        "the sink 'absent' failed and is off: ImportError: No module named 'wandb'",
        "the sink 'unclosable' failed and is off: OSError: connection lost",
    ]


def test_a_slow_sink_drops_counts_and_never_delays(tmp_path: Path) -> None:
    slow = Collecting(delay=0.002)
    bus = Bus(tmp_path, "rank0")
    bus._sinks.append(BackgroundSink("slow", lambda: slow, bus._notice, size=50))
    began = time.perf_counter()
    for number in range(2000):
        bus.emit(step(number))
    assert time.perf_counter() - began < 1.0
    bus.close()
    missing = 2000 - len(slow.seen)
    assert missing > 1000
    assert notices(tmp_path) == [f"the sink 'slow' was too slow: {missing} records are missing there"]


def test_a_sink_that_hangs_holds_up_the_end_only_for_the_time_allowed(tmp_path: Path) -> None:
    release = threading.Event()

    class Hanging(Collecting):
        def handle(self, record: dict[str, Any]) -> None:
            release.wait(20)
            raise ValueError("too late to tell")

    bus = Bus(tmp_path, "rank0", sinks(hanging=Hanging()))
    bus.emit(step(1))
    began = time.perf_counter()
    bus.close(timeout=0.5)
    assert time.perf_counter() - began < 2.0
    assert "did not finish in 0.5 s" in notices(tmp_path)[0]
    release.set()
    time.sleep(0.1)
    assert len(notices(tmp_path)) == 1


def test_unknown_sinks_are_refused_with_what_there_is(tmp_path: Path) -> None:
    context = SinkContext(tmp_path, 1, {})
    assert [name for name, _ in open_sinks(["tensorboard"], context)] == ["tensorboard"]
    with pytest.raises(EnvironmentFault, match=r"no sink 'wandbb'.*installed: tensorboard"):
        open_sinks(["wandbb"], context)


def test_a_sink_of_another_package_is_found_by_its_entry_point(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "site"
    (package / "my_sink-1.dist-info").mkdir(parents=True)
    (package / "my_sink-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: my-sink\nVersion: 1\n")
    (package / "my_sink-1.dist-info" / "entry_points.txt").write_text("[primus.sinks]\nlines = my_sink:Lines\n")
    (package / "my_sink.py").write_text(
        "class Lines:\n"
        "    def __init__(self, context): self.file = open(context.run_directory / 'lines', 'w')\n"
        "    def handle(self, record): print(record['event'], file=self.file)\n"
        "    def close(self): self.file.close()\n"
    )
    monkeypatch.syspath_prepend(str(package))
    with Bus(tmp_path / "attempts/1", "rank0", open_sinks(["lines"], SinkContext(tmp_path, 1, {}))) as bus:
        bus.emit(step(1))
    assert (tmp_path / "lines").read_text() == "step_done\n"


def test_emit_costs_microseconds(tmp_path: Path) -> None:
    times = []
    with Bus(tmp_path, "rank0", sinks(mine=Collecting())) as bus:
        for number in range(5000):
            event = step(number)
            began = time.perf_counter()
            bus.emit(event)
            times.append(time.perf_counter() - began)
    assert statistics.median(times) < 30e-6


def test_model_flops_utilisation() -> None:
    assert model_flops_utilisation(6e9, 1000, 0.5, 8, 100.0) == pytest.approx(6e9 * 1000 / (0.5 * 8 * 100e12))
    assert model_flops_utilisation(6e9, 1000, 0.5, 8, None) is None
    assert model_flops_utilisation(6e9, 1000, 0.0, 8, 100.0) is None
