"""Starting, watching and ending the process that forwards a run's events (``runtime/monitor.py``): node 0's launcher.

It is not awaited before the end of the run, and when it dies training goes on.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from primus.errors import EnvironmentFault, PrimusError
from primus.events.bus import Bus
from primus.events.follow import Follower
from primus.events.monitor import WRITER
from primus.events.monitor.tracker import Mark, mark_file
from primus.events.monitor.wandb import has_key
from primus.events.types import Notice
from primus.plan.plan import Plan
from primus.runtime.environments import MONITOR, get, import_path, locate, provide
from primus.runtime.environments.pins import variables_for
from primus.runtime.processes import sentence
from primus.runtime.run_directory import Attempt, RunDirectory

PATIENCE_SECONDS = 10.0
"""How long after the run it may deliver what is left."""
LATE_PATIENCE_SECONDS = 600.0
"""The same when nothing else is to be done."""
REPORT_SECONDS = 3.0
"""On top of either, to say what did not arrive."""
HURRIED_SECONDS = 1.0
"""What it has in any case."""
POLL_SECONDS = 0.1


def prepare(plan: Plan) -> str:
    """The interpreter of the ``monitor`` environment, made when there is none; empty when the experiment asks for no
    monitoring. Raises EnvironmentFault when what it asks for cannot be had."""
    monitor = plan.experiment.monitor
    if not monitor.forwards:
        return ""
    if monitor.wandb is not None and monitor.wandb.mode == "online" and not has_key():
        raise EnvironmentFault(
            "there is no key for W&B, which mode online needs",
            where="monitor.wandb.mode",
            remedy="set WANDB_API_KEY, or run `wandb login`; with mode offline the run is written to files",
        )
    return provide(MONITOR)


def rehearse(plan: Plan) -> str:
    """What ``prepare`` would do first, in words; empty when nothing."""
    if not plan.experiment.monitor.forwards or locate(MONITOR):
        return ""
    return get(MONITOR).to_come


class Monitoring:
    """The process of one attempt, or none where `python` is empty. late: the run is over, only trackers that lack
    something are served."""

    def __init__(self, python: str, attempt: Attempt, *, late: bool = False) -> None:
        self.attempt = attempt
        self.log = attempt.logs / "monitor.log"
        self.patience = LATE_PATIENCE_SECONDS if late else PATIENCE_SECONDS
        self._process: subprocess.Popen[bytes] | None = None
        if python:
            self._start(python, ["--late"] if late else [])

    def _start(self, python: str, options: list[str]) -> None:
        module = ["-P", "-m", "primus.runtime.monitor", str(self.attempt.directory)]
        try:
            with self.log.open("ab") as file:
                self._process = subprocess.Popen(
                    [python, *module, "--patience", f"{self.patience:g}", *options],
                    # without what the user has on PYTHONPATH: it is meant for the ranks
                    env={**variables_for(python), "PYTHONPATH": import_path()["PYTHONPATH"].split(os.pathsep)[0]},
                    stdin=subprocess.PIPE,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
        except OSError as error:
            self._notice(f"monitoring could not be started: {error.strerror}")

    def check(self) -> None:
        """Say so, once, when it has died."""
        process = self._process
        if process is not None and (code := process.poll()) is not None:
            self._process = None
            self._notice(f"{sentence('monitoring', code)}; training goes on without it; its last words: {self.log}")

    def finish(
        self,
        hurry: Callable[[], bool] = lambda: False,
        beat: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """No more events come: wait until it has delivered what is left, or said what it could not, or `hurry`; beat
        is called meanwhile. say: takes a line for whoever waits."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        with suppress(OSError):  # it is dead
            process.stdin.close()
        began, said = time.monotonic(), False
        while process.poll() is None and (passed := time.monotonic() - began) < self.patience + REPORT_SECONDS:
            if passed > HURRIED_SECONDS and hurry():
                break
            if passed > HURRIED_SECONDS and not said:
                say(f"monitoring delivers the last figures, for {self.patience:g} s at most")
                said = True
            beat()
            time.sleep(POLL_SECONDS)
        if process.poll() is None:
            process.kill()
            process.wait()
            self._notice("monitoring was ended before it had delivered everything")
        elif process.returncode:
            self.check()
        self._process = None

    def close(self) -> None:
        """End it at once, if it is still there."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _notice(self, text: str) -> None:
        """In the process's stead, which does not run."""
        with suppress(OSError, PrimusError), Bus(self.attempt.directory, WRITER) as bus:
            bus.emit(Notice(message=text))


def send_rest(directory: RunDirectory, say: Callable[[str], None]) -> None:
    """Give trackers what they lack of a run that is complete; says what comes of it."""
    attempts = directory.attempts()
    if not attempts:  # it was trained elsewhere
        return
    attempt = attempts[-1]
    plan = Plan.load(attempt.plan)
    monitor = plan.experiment.monitor
    names = [name for name in ("mlflow", "wandb") if getattr(monitor, name) is not None]
    if not any(Mark.load(mark_file(Path(plan.run_directory), name)).behind for name in names):
        return
    say("sending what did not arrive while the run went on")
    with Follower(attempt.directory) as follower:
        follower.poll()
        monitoring = Monitoring(provide(MONITOR), attempt, late=True)

        def show() -> None:
            for record in follower.poll():
                if record["event"] == "notice":
                    say(record["message"])

        try:
            monitoring.finish(beat=show)
        finally:
            monitoring.close()
        show()
