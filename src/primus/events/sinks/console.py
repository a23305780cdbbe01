"""What a person sees while a run trains: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, TextIO

from primus.events import units

if TYPE_CHECKING:
    from primus.events.sinks.progress import Progress
    from primus.plan.plan import Plan

MESSAGE_LIMIT = 2000
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HALF_LIFE = 10.0
"""Seconds after which a step counts half in the smoothed speed."""


class Meter:
    """The latest figures of a run, speed smoothed. Fed with records, read by whatever shows them."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.step = 0
        self.record: dict[str, Any] = {}
        self.eval: dict[str, Any] = {}
        self.ended: str | None = None
        self._reset()

    def _reset(self) -> None:
        self._steps = self._tokens = self._seconds = 0.0
        self._seen = 0
        self._step_seconds = self._other_seconds = 0.0

    def start(self, resumed_from: int | None) -> None:
        """A new attempt begins; figures of steps it will repeat are dropped."""
        self._reset()
        self.ended = None
        self.step = resumed_from or 0
        self.record = {}
        if self.eval and self.eval["step"] > self.step:
            self.eval = {}

    def add(self, record: dict[str, Any]) -> None:
        kind = record["event"]
        if kind == "step_done":
            self.record, self.step = record, record["step"]
            seconds = record["seconds"]
            self._seen += 1
            if self._seen == 2:  # the first step also compiled and allocated: it says nothing of the speed
                self._steps = self._tokens = self._seconds = 0.0
            decay = 0.5 ** (max(0.0, seconds) / _HALF_LIFE)
            self._steps = decay * self._steps + 1
            self._tokens = decay * self._tokens + record["tokens"]
            self._seconds = decay * self._seconds + seconds
            self._step_seconds += seconds
        elif kind == "eval_done":
            self.eval = record
            self._other_seconds += record["seconds"] if self._seen else 0.0  # the one before the first step comes once
        elif kind == "checkpoint_saved":
            self._other_seconds += record["blocked_seconds"]
        elif kind == "run_ended" and self.ended != "failed":
            self.ended = record["reason"]

    @property
    def speed(self) -> str:
        return units.rate(self._tokens, self._seconds)

    @property
    def remaining(self) -> float | None:
        """Seconds to the last step, pauses for evaluation and saving included at their share so far."""
        if not self._steps or self._step_seconds <= 0:
            return None
        pauses = 1 + self._other_seconds / self._step_seconds
        return max(0, self.total - self.step) * self._seconds / self._steps * pauses

    def figures(self) -> list[str]:
        """The current figures, most important first."""
        record = self.record
        if not record:
            return []
        parts = [f"loss {units.loss(record['loss'])}"]
        if self.eval:
            parts.append(f"validation {units.loss(self.eval['loss'])}")
        parts += [f"lr {units.learning_rate(record['lr'])}", self.speed, f"memory {units.size(record['memory_bytes'])}"]
        if record.get("mfu") is not None:
            parts.append(f"MFU {units.percent(record['mfu'])}")
        return [*parts, f"grad norm {units.norm(record['grad_norm'])}"]


class Console:
    """Shows one run. ``handle`` takes every record of the attempt's writers; ``close`` leaves the last state on screen.

    interactive: whether to draw a bar; default: when `file` is a terminal that can. Output that goes away (a closed
    pipe) silences the console, never the run.
    """

    def __init__(self, plan: Plan, *, file: TextIO | None = None, interactive: bool | None = None) -> None:
        self._file = file or sys.stdout
        self._interval = plan.experiment.monitor.log_interval
        self._meter = Meter(plan.experiment.train.steps)
        self._printed_step = 0
        self._repeats: Counter[str] = Counter()
        self._gone = False
        self._progress: Progress | None = None
        if interactive is not False:
            from primus.events.sinks.progress import Progress

            self._progress = Progress.on(self._file, plan.experiment.name, self._meter, force=interactive is True)

    def handle(self, record: dict[str, Any]) -> None:
        """Take one record. Cheap: on a terminal, drawing happens a few times a second on another thread."""
        kind = record["event"]
        if kind == "step_done":
            self._meter.add(record)
            step = record["step"]
            if self._progress is None and (step % self._interval == 0 or step in (1, self._meter.total)):
                self._print_step()
        elif kind == "run_started":
            self._started(record)
        else:
            line = self._line(record)
            self._meter.add(record)
            if self._progress is None and kind == "run_ended" and self._meter.step != self._printed_step:
                self._print_step()
            if line:
                self._say(record["time"], line, kind)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def _started(self, record: dict[str, Any]) -> None:
        self._meter.start(record.get("resumed_from"))
        self._printed_step = self._meter.step
        resumed = record.get("resumed_from")
        begins = f"continues after step {resumed:,}" if resumed is not None else "starts from step 0"
        devices = f"{units.plural(record['world_size'], 'device')} ({record['device']})"
        line = f"attempt {record['attempt']} {begins}: {devices}, {units.count(record['parameters'])} parameters"
        self._say(record["time"], line, "run_started")
        for note in record.get("notes") or ():
            self._say(record["time"], str(note), "notice")

    def _line(self, record: dict[str, Any]) -> str:
        kind, step = record["event"], record.get("step")
        if kind == "eval_done":
            return f"step {step:,}: validation loss {units.loss(record['loss'])} in {units.duration(record['seconds'])}"
        if kind == "checkpoint_saved":
            took, blocked = units.duration(record["seconds"]), units.duration(record["blocked_seconds"])
            return f"step {step:,}: checkpoint of {units.size(record['bytes'])} saved in {took}, paused {blocked}"
        if kind == "notice":
            return self._notice(record)
        if kind == "rank_failed":
            where = f"rank {record['rank']} on {record['node']}"
            return f"{where} failed{'' if step is None else f' at step {step:,}'}: {record['error']}"
        if kind == "run_ended" and self._meter.ended is None:  # every rank may say it; once is enough
            return f"{record['reason']} at step {step:,}"
        return ""

    def _notice(self, record: dict[str, Any]) -> str:
        """The notice's text; one that keeps coming is shown the 1st, 10th, 100th, ... time."""
        message = record["message"]
        if len(self._repeats) > 1000:
            self._repeats.clear()
        self._repeats[message] += 1
        times = self._repeats[message]
        if not re.fullmatch("10*", str(times)):
            return ""
        step = "" if record.get("step") is None else f"step {record['step']:,}: "
        return f"{step}{message}{f' ({times:,} times)' if times > 1 else ''}"

    def _print_step(self) -> None:
        meter = self._meter
        self._printed_step = meter.step
        left = meter.remaining
        ending = "" if left is None or meter.step >= meter.total else f"  {units.duration(left)} left"
        self._write(f"step {meter.step:,}/{meter.total:,}  {'  '.join(meter.figures())}{ending}")

    def _say(self, when: float, line: str, kind: str) -> None:
        text = _CONTROL.sub("", line.replace("\r", "\n")).strip()
        if len(text) > MESSAGE_LIMIT:
            text = f"{text[:MESSAGE_LIMIT]} ... ({len(text) - MESSAGE_LIMIT:,} more characters in the event files)"
        clock = _clock(when)
        if self._progress is not None:
            self._progress.say(clock, text, kind)
        else:
            self._write(f"{clock} {text}")

    def _write(self, line: str) -> None:
        if self._gone:
            return
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        try:
            self._file.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            self._file.flush()
        except (OSError, ValueError):
            self._gone = True


def _clock(when: float) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(when))
    except (OverflowError, ValueError, OSError):
        return "--:--:--"
