"""The process beside a run that forwards its events: ``python -m primus.runtime.monitor ATTEMPT_DIRECTORY``.

Node 0's launcher starts it in the ``monitor`` environment and holds the other end of its standard input. When that
closes, because the run has ended or the launcher is dead, it delivers what is left within a time and leaves. What did
not arrive becomes a notice of the run.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from primus.errors import PrimusError
from primus.events.bus import Bus
from primus.events.jsonl import decode, file_of, read_lines, well_formed
from primus.events.monitor import WRITER
from primus.events.monitor.forwarder import Forwarder, Receiver
from primus.events.monitor.mlflow import MLflowTracker
from primus.events.monitor.prometheus import PrometheusExporter
from primus.events.monitor.redact import redacted
from primus.events.monitor.tracker import Tracker
from primus.events.monitor.wandb import WandbTracker
from primus.events.types import Notice
from primus.plan.plan import Plan

UNREMEMBERED_SECONDS = 0.5
"""What a receiver gets after the run that nobody asks any more then."""
NICENESS = 10
TAIL_BYTES = 1 << 16


def receivers(plan: Plan, attempt: int, *, late: bool) -> list[Receiver]:
    """Those the experiment asks for; late: the run is over, so only those that remember."""
    monitor = plan.experiment.monitor
    found: list[Receiver] = []
    if monitor.prometheus is not None and not late:
        found.append(PrometheusExporter(plan, attempt))
    trackers: list[Tracker] = []
    if monitor.mlflow is not None:
        trackers.append(MLflowTracker(plan, attempt))
    if monitor.wandb is not None:
        trackers.append(WandbTracker(plan, attempt))
    return [*found, *(tracker for tracker in trackers if tracker.mark.behind or not late)]


def follow(attempt: Path, *, patience: float, late: bool) -> None:
    """Forward the attempt's events until the launcher is done, and what is left for `patience` seconds more."""
    plan = Plan.load(attempt / "plan.json")
    run_directory = Path(plan.run_directory)
    with Bus(attempt, WRITER) as bus, _alone(run_directory / "monitor"):

        def notice(text: str) -> None:
            with suppress(PrimusError):  # the disk takes nothing: the ranks say so
                bus.emit(Notice(message=redacted(text)))

        number = int(attempt.name)
        forwarders = [
            Forwarder(receiver, run_directory, number, notice) for receiver in receivers(plan, number, late=late)
        ]
        for forwarder in forwarders:
            if isinstance(forwarder.receiver, Tracker):
                forwarder.receiver.owe()
            forwarder.start()
        while os.read(sys.stdin.fileno(), 1024):
            pass
        ended = time.monotonic()
        for forwarder in forwarders:
            forwarder.end()
        for forwarder in forwarders:
            remembers = isinstance(forwarder.receiver, Tracker)
            if not forwarder.finished(ended + (patience if remembers else UNREMEMBERED_SECONDS)):
                notice(f"{forwarder.receiver.title}: {_missing(forwarder, attempt, patience)}")


def _missing(forwarder: Forwarder, attempt: Path, patience: float) -> str:
    """What a receiver did not get, and how it gets it."""
    newest, receiver = _newest_step(attempt), forwarder.receiver
    why = forwarder.trouble or f"it did not finish in {patience:g} s"
    if isinstance(receiver, WandbTracker) and receiver.mark.step >= newest > 0 and (sending := receiver.sending):
        receiver.settle()  # all of it is in its files
        return f"not everything was sent ({why}); send the rest: {sending}"
    if not isinstance(receiver, Tracker):
        return why
    reached = receiver.mark.step
    what = f"steps {reached + 1:,} to {newest:,}" if newest > reached else "the end of the run"
    return f"{what} did not arrive ({why}); they are sent when the same command is run again"


def _newest_step(attempt: Path) -> int:
    """The last step in the attempt's event files; 0 if there is none."""
    step = 0
    with suppress(OSError):
        for line in read_lines(file_of(attempt, "rank0"), tail=TAIL_BYTES):
            record = decode(line)
            if record is not None and record["event"] == "step_done" and well_formed(record):
                step = record["step"]
    return step


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Wait for the monitor of an attempt whose launcher was killed, which goes on for some seconds."""
    directory.mkdir(exist_ok=True)
    with (directory / "lock").open("w") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    # Whoever ends the whole job (Ctrl-C, Slurm) sends these to all of its processes; the run then still saves and ends.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="primus.runtime.monitor")
    parser.add_argument("attempt", type=Path)
    parser.add_argument("--patience", type=float, required=True)
    parser.add_argument("--late", action="store_true")
    given = parser.parse_args()
    with suppress(OSError):
        os.nice(NICENESS)
        Path("/proc/self/autogroup").write_text(f"{NICENESS}", encoding="ascii")  # by which Linux weighs sessions
    follow(given.attempt, patience=given.patience, late=given.late)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads that still wait for a server, and handlers that would wait for it again, end here


if __name__ == "__main__":
    main()
