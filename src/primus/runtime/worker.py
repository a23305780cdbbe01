"""The process of one rank: ``python -m primus.runtime.worker ATTEMPT_DIRECTORY`` under the agent's variables.

It reads the attempt's ``plan.json`` and nothing else of the experiment. Its output goes to ``logs/rank-N.log`` from the
first line on. SIGTERM and SIGINT ask it to stop: the backend saves at a step boundary and returns.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from primus.backends import registry
from primus.backends.base import Result, Session
from primus.errors import AnomalyError, EnvironmentFault, PrimusError, RunDirectoryError, TrainingError
from primus.events.bus import Bus
from primus.events.sinks import Sink, SinkContext, open_sinks
from primus.events.types import Event, RankFailed, RunEnded, StepDone
from primus.plan.plan import Plan
from primus.runtime.agents.stacks import StackFile
from primus.runtime.environments.pins import this_interpreter
from primus.runtime.environments.ranks import engine_mismatches
from primus.runtime.lock import hold_as_worker
from primus.runtime.processes import FINAL, GROUP, RETRYABLE, die_with_parent, node_name

STOPPING = (signal.SIGTERM, signal.SIGINT)
"""Signals that ask a rank to stop."""


@dataclass(frozen=True)
class Identity:
    rank: int
    local_rank: int
    world_size: int
    group: int = 0
    """The replica group whose ranks these numbers count."""

    @property
    def number(self) -> int:
        """Of this rank in the whole run."""
        return self.group * self.world_size + self.rank

    @classmethod
    def from_environment(cls) -> Identity:
        rank, local, world = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
        return cls(rank, local, world, int(os.environ.get(GROUP, "0")))


class StopFlag:
    """Set by a signal, read at step boundaries."""

    def __init__(self) -> None:
        self.requested = False
        for number in STOPPING:
            signal.signal(number, self._set)

    def _set(self, *_: object) -> None:
        self.requested = True

    def __call__(self) -> bool:
        return self.requested


def main() -> None:
    stop = StopFlag()
    die_with_parent()
    identity = Identity.from_environment()
    attempt = Path(sys.argv[1])
    redirect_output(attempt / "logs" / f"rank-{identity.number}.log")
    faulthandler.enable(sys.stderr)
    stack = StackFile(attempt / "logs" / f"rank-{identity.number}.stack")
    try:
        code = work(attempt, identity, stop, stack.finished)
    except BaseException:  # noqa: BLE001 - not even its failure could be reported; the agent speaks for it
        traceback.print_exc()
        code = 1
    stack.remove()
    for number in STOPPING:  # there is nothing left to stop
        signal.signal(number, signal.SIG_IGN)
    if code == 0:
        atexit._run_exitfuncs()  # what engines and plugins wish done; a failed rank's may wait for others for ever
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads and communicators of an engine hang in their destructors after a failure; and Python, as it
    # ends, unwinds threads that come back to it from C++, which ends a process that has done everything with SIGABRT.
    os._exit(code)


def redirect_output(path: Path) -> None:
    """Append this process's stdout and stderr, C libraries' included, to `path`."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def work(attempt: Path, identity: Identity, stop: StopFlag, finished: Callable[[int], None] = lambda _: None) -> int:
    """Run the attempt's plan in this process. Returns the exit code; a failure has become an event by then."""
    plan = Plan.load(attempt / "plan.json")
    held = hold_as_worker(Path(plan.run_directory))
    # the first ranks of all groups write one story: whichever speaks for the run goes on where another has stopped
    writer = f"rank{identity.number if identity.rank else 0}"
    try:
        sinks = sinks_of(plan, attempt) if identity.rank == 0 else []
    except PrimusError as error:
        with Bus(attempt, writer) as bus:
            return report(error, identity, None, bus)
    code = 0
    try:
        with Bus(attempt, writer, sinks) as bus:
            emitter = Emitter(bus, finished)
            try:
                run(plan, attempt, identity, stop, emitter)
            except BaseException as error:  # noqa: BLE001 - whatever ends a rank is reported, then it leaves
                code = report(error, identity, emitter.step, bus)
    except RunDirectoryError as error:  # the last events could not be written
        sys.stderr.write(f"{error}\n")
        code = code or FINAL
    if code:
        return code
    if held is not None:
        os.close(held)
    return 0


class Emitter:
    """Passes events on and remembers the last step, for the failure report. note: told of it, too."""

    def __init__(self, bus: Bus, note: Callable[[int], None]) -> None:
        self.bus, self.note = bus, note
        self.step: int | None = None

    def finished(self, step: int) -> None:
        self.step = step
        self.note(step)

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone) and event.step != self.step:  # an engine with a loop of its own
            self.finished(event.step)
        self.bus.emit(event)


def run(plan: Plan, attempt: Path, identity: Identity, stop: StopFlag, emitter: Emitter) -> None:
    if mismatches := engine_mismatches(this_interpreter(), plan.engine):
        raise EnvironmentFault(problems=mismatches)
    session = Session(
        rank=identity.rank,
        local_rank=identity.local_rank,
        world_size=identity.world_size,
        group=identity.group,
        run_directory=Path(plan.run_directory),
        attempt_directory=attempt,
        attempt=int(attempt.name),
        emit=emitter,
        stop_requested=stop,
        finished=emitter.finished,
    )
    result = registry.get(plan.experiment.backend).run(plan, session)
    shared = session.world_size > 1 or plan.topology.replica_groups > 1  # another rank may have been asked
    check(result, plan, asked=stop.requested or shared)
    if identity.rank == 0:
        emitter(RunEnded(reason=result.reason, step=result.step))


def check(result: Result, plan: Plan, *, asked: bool) -> None:
    """Whatever an engine returns: success is the last step reached, and only who was asked stops before."""
    steps = plan.experiment.train.steps
    if result.step < steps and not (asked and result.reason == "stopped"):
        raise TrainingError(
            f"training ended after step {result.step:,} of {steps:,} though nobody had asked it to stop",
            where=plan.experiment.backend,
            remedy="read the log: the engine may have said why it gave up",
        )


def sinks_of(plan: Plan, attempt: Path) -> list[tuple[str, Callable[[], Sink]]]:
    monitor = plan.experiment.monitor
    names = [*(["tensorboard"] if monitor.tensorboard else []), *monitor.sinks]
    context = SinkContext(
        Path(plan.run_directory), int(attempt.name), plan.experiment.model_dump(mode="json", by_alias=True)
    )
    return open_sinks(names, context)


def report(error: BaseException, identity: Identity, step: int | None, bus: Bus) -> int:
    """Say what ended this rank, in its log and as an event. Returns the exit code."""
    text = "".join(traceback.format_exception(error))
    sys.stderr.write(text)
    again = retryable(error)
    bus.emit(
        RankFailed(
            rank=identity.number,
            node=node_name(),
            error=describe(error),
            traceback=text,
            step=step,
            remedy=error.problems[0].remedy if isinstance(error, PrimusError) else "",
            retryable=again,
            cause="anomaly" if isinstance(error, AnomalyError) else "error",
        )
    )
    return RETRYABLE if again else FINAL


def describe(error: BaseException) -> str:
    """``ValueError: text``; an error of ours is its own words."""
    if isinstance(error, PrimusError):
        return "; ".join(f"{problem.where}: {problem.message}".removeprefix(": ") for problem in error.problems)
    return f"{type(error).__name__}: {error}"


def retryable(error: BaseException) -> bool:
    """Whether starting again may end otherwise. Errors raised on purpose say so; a plain bug would only repeat."""
    if isinstance(error, TrainingError):
        return error.retryable
    if isinstance(error, PrimusError | ImportError | SyntaxError | NotImplementedError | AssertionError | SystemExit):
        return False
    return not isinstance(error, TypeError | AttributeError | NameError | LookupError)


if __name__ == "__main__":
    main()
