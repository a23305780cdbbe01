"""The launching process while a run trains: it shows the events, keeps the lock alive, passes on a wish to stop, and
notices a hang. It imports no engine; what it knows comes from the event files and the agent's exit status."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from primus.backends import registry
from primus.errors import LaunchError, PrimusError
from primus.events.bus import Bus
from primus.events.follow import Follower
from primus.events.monitor import WRITER
from primus.events.sinks.console import Console
from primus.events.types import AttemptStarted, Event, Notice, RankFailed, RunEnded
from primus.launch.direct import Command
from primus.plan.plan import Plan
from primus.runtime.agents import stacks
from primus.runtime.agents.agent import tail
from primus.runtime.agents.agent_process import AgentProcess
from primus.runtime.environments.pins import variables_for
from primus.runtime.monitoring import Monitoring
from primus.runtime.patience import Patience
from primus.runtime.processes import STOPPED, kernel_state, node_name, sentence
from primus.runtime.run_directory import Attempt

POLL_SECONDS = 0.1
STOPPED_SECONDS = 5.0
"""How long an agent may be stopped (SIGSTOP) before it is let go on: meanwhile nobody watches its ranks."""

OTHER_NODE_SECONDS = 5.0
"""After another node's launcher has given up, how long the ranks of this one may take to notice by themselves."""

UNSTARTED_SECONDS = 10.0
"""How long ranks that were asked to stop before they began to train may take."""

Failure = dict[str, Any]
"""A ``rank_failed`` record."""


@dataclass
class Outcome:
    """How an attempt ended. failures: what ranks, or the agent for them, reported since the last (re)start."""

    reason: Literal["complete", "stopped", "failed"] = "failed"
    step: int = 0
    failures: list[Failure] = field(default_factory=list)
    signal: int = 0
    verdict: str = ""
    """Why the agent starts nothing again, when it says so."""
    elsewhere: bool = False
    """Whether no rank of this node failed: its agent died, or was ended because another node had given up."""
    agent: str = ""
    """When the agent itself failed: how it ended and its last words."""


class Interrupts:
    """Counts the signals that ask to stop; the first asks, the second insists. A closed terminal never insists: its
    SIGHUP comes twice, from the shell and from the kernel."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.count = 0
        self.first = 0

    def __enter__(self) -> Interrupts:
        # What was ignored on purpose stays so: nohup means that a closed terminal is no reason to stop.
        wanted = [number for number in self.NUMBERS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._take) for number in wanted}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self.count:
            return
        self.count += 1
        self.first = self.first or number


class Supervisor:
    """Runs the agent's command of one attempt to its end. monitor: interpreter of the process that forwards its events,
    empty for none."""

    def __init__(
        self, plan: Plan, attempt: Attempt, beat: Callable[[], None], node: int = 0, monitor: str = ""
    ) -> None:
        self.plan, self.attempt, self.beat, self.node = plan, attempt, beat, node
        self.monitor = monitor
        self.outcome = Outcome()
        self.patience = Patience(plan)
        self.ended = ""
        self.training = False
        self.earlier: list[Failure] = []
        """What ended the starts before this one, until training has begun again."""
        self.other_failed = 0.0
        self.other_stopped = False
        self.asked_unheard = False
        self._looked = self._stopped_since = time.monotonic()

    def run(self, command: Command, environment: Mapping[str, str], interrupts: Interrupts) -> Outcome:
        """Start the agent, follow the run, return how it ended. Raises LaunchError when it cannot be started."""
        log = self.attempt.logs / f"agent-{self.node}.log"
        self._emit(AttemptStarted(node=node_name(), node_rank=self.node, nodes=self.plan.topology.nnodes))
        agent = self._start(command, environment, log)
        console = Console(self.plan)
        monitoring = Monitoring(self.monitor, self.attempt)
        try:
            with Follower(self.attempt.directory) as follower:
                self._watch(agent, follower, console, interrupts, monitoring)
                self._conclude(agent.returncode, log, interrupts)
                monitoring.finish(lambda: interrupts.count > 1, self.beat, partial(_say, console))
                for record in follower.poll():
                    console.handle(record)
        finally:
            console.close()
            monitoring.close()
            if agent.poll() is None:
                agent.kill()
            agent.wait()
        return self.outcome

    def _start(self, command: Command, environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        try:
            with log.open("ab") as file:
                return AgentProcess(command, environment, file)
        except OSError as error:
            raise LaunchError(
                f"the processes cannot be started: {error.strerror}",
                where=str(error.filename or log),
                remedy="primus-cli env check",
            ) from error

    def _watch(
        self,
        agent: subprocess.Popen[bytes],
        follower: Follower,
        console: Console,
        interrupts: Interrupts,
        monitoring: Monitoring,
    ) -> None:
        asked = 0
        heard = since = time.monotonic()
        while True:
            code = agent.poll()  # before the events, so that none is missed
            records = follower.poll()
            for record in records:
                self._take(record)
                console.handle(record)
            now = time.monotonic()
            if any(record["writer"] != WRITER for record in records):
                heard = now
            if code is not None:  # ranks of other nodes may go on writing
                return
            self.beat()
            monitoring.check()
            if (wanted := interrupts.count or int(self.other_stopped)) > asked:
                asked, since = wanted, now
                self._stop(agent, asked, console)
            if asked and not self.training and now - since > UNSTARTED_SECONDS:
                agent.kill()  # it still imports, or waits for other nodes: there is nothing to save
            if self.other_failed and now - self.other_failed > OTHER_NODE_SECONDS:
                self.outcome.elsewhere = True
                agent.kill()
            self._let_go_on(agent, now)
            if now - heard > self.patience.limit:
                if self.ended or self.asked_unheard:
                    agent.kill()  # it is done, but some rank does not leave
                elif not self.attempt.logs.is_dir():
                    self.asked_unheard = True
                    agent.send_signal(signal.SIGTERM)  # deleted or moved: they train on, and can save
                else:
                    self._end_hang(agent, now - heard)
                heard = time.monotonic()
            time.sleep(POLL_SECONDS)

    def _take(self, record: dict[str, Any]) -> None:
        kind = record["event"]
        if kind == "run_started":
            self.training = True
            self.earlier.clear()
            self.outcome.failures.clear()  # what a peer of an ended start said late
        elif kind == "step_done":
            self.outcome.step = record["step"]
            self.patience.step(record)
        elif kind == "ranks_started" and record["restart"]:
            self.earlier += self.outcome.failures
            self.outcome.failures.clear()
            self.outcome.verdict = ""
            self.patience.started()
            self.training = self.plan.topology.replica_groups > 1  # of which the others train on
        elif kind == "notice" and record["writer"].startswith("node"):  # what the agent decided
            self.outcome.verdict = record["message"]
        elif kind == "rank_failed":
            self.outcome.failures.append(record)
        elif kind == "run_ended" and record["writer"].startswith("launcher"):
            if record["reason"] == "failed":  # another node's: our own record is written after the watch
                self.other_failed = time.monotonic()
            elif record["reason"] == "stopped":  # its ranks may not come to a start that this node waits in
                self.other_stopped = True
        elif kind == "run_ended":
            self.ended = record["reason"]
            self.outcome.step = record["step"]

    def _stop(self, agent: subprocess.Popen[bytes], asked: int, console: Console) -> None:
        self.patience.stopping = True
        if asked == 1:
            notice = "stopping: the step is finished and a checkpoint saved; Ctrl-C again ends it at once, without one"
            if not self.training:
                notice = "stopping; training has not begun"
            _say(console, notice)
            agent.send_signal(signal.SIGTERM)
        else:
            agent.kill()  # its ranks go with it

    def _let_go_on(self, agent: subprocess.Popen[bytes], now: float) -> None:
        """An agent that somebody stopped does not see its ranks fail, nor that they are done."""
        if now - self._looked < 1.0:
            return
        self._looked = now
        if not kernel_state(agent.pid).startswith("T"):
            self._stopped_since = now
        elif now - self._stopped_since > STOPPED_SECONDS:
            agent.send_signal(signal.SIGCONT)
            self._stopped_since = now
            self._emit(Notice(message=f"the agent of node {self.node} had been stopped (SIGSTOP); it goes on now"))

    def _end_hang(self, agent: subprocess.Popen[bytes], silence: float) -> None:
        """Nothing was heard for too long: keep every rank's stack, say which one is behind, then end them all."""
        agent.send_signal(signal.SIGUSR1)
        ranks = stacks.ask(self.attempt.logs, self.plan.topology.nproc_per_node)
        rank, words = stacks.behind(ranks)
        if self.node == 0:
            folder = stacks.keep(self.attempt.logs)
            number = rank.number if rank else 0
            self._emit(
                RankFailed(
                    rank=number,
                    node=(rank and rank.state.get("node")) or node_name(),
                    error=f"the run hangs: no step for {silence:.0f} s ({self.patience}); {words}",
                    traceback=tail(folder / f"rank-{number}.stack"),
                    step=self.outcome.step or None,
                    cause="hang",
                    remedy=f"read every rank's stack in {folder}; raise {self.patience.key} if it may take so long",
                )
            )
        agent.send_signal(signal.SIGUSR2)

    def _is_here(self, failure: Failure) -> bool:
        return bool(failure["rank"] // registry.ranks_per_node(self.plan) == self.node)

    def _emit(self, event: Event) -> None:
        try:
            with Bus(self.attempt.directory, f"launcher{self.node}") as bus:
                bus.emit(event)
        except (OSError, PrimusError) as error:  # a full disk, most likely what ended the ranks too
            self.outcome.agent += f"\n{error}"

    def _conclude(self, code: int, log: Path, interrupts: Interrupts) -> None:
        outcome = self.outcome
        outcome.signal = interrupts.first
        outcome.failures = outcome.failures or self.earlier
        outcome.elsewhere |= not any(self._is_here(failure) for failure in outcome.failures)
        if self.plan.topology.replica_groups > 1 and code == 0:
            outcome.failures.clear()  # of groups without which the others have gone on
        if self.ended == "complete" and not outcome.failures:
            outcome.reason = "complete"
        elif (interrupts.count and (code == 0 or interrupts.count > 1 or not outcome.failures)) or (
            self.other_stopped and not self.training
        ):
            outcome.reason = "stopped"
        elif self.ended == "stopped" and not outcome.failures:
            outcome.reason = "stopped"  # on another node, or by a signal to the ranks themselves
        elif code == STOPPED:
            outcome.reason = "stopped"  # by a signal to the agent, between two starts
        elif code == 0 and self.node:
            outcome.reason = "complete"
        elif not self.attempt.logs.is_dir():
            outcome.agent = f"{self.attempt.directory} was deleted or moved, so that the ranks were not heard any more"
        elif not outcome.failures:
            outcome.agent = f"{sentence('the agent', code)}\n{tail(log)}".strip()
        if outcome.reason != self.ended and self.attempt.logs.is_dir():
            self._emit(RunEnded(reason=outcome.reason, step=outcome.step))


def _say(console: Console, message: str) -> None:
    """Show a notice that is not worth keeping."""
    console.handle({"event": "notice", "time": time.time(), "message": message, "step": None})


def environment(python: str) -> dict[str, str]:
    """What ranks of `python` inherit from the shell, less what would confuse a rendezvous of our own or that Python."""
    foreign = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
    return {
        name: value
        for name, value in variables_for(python).items()
        if name not in foreign and not name.startswith("TORCHELASTIC_")
    }
