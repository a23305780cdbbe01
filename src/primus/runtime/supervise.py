"""The launching process while a run trains: it shows the events, keeps the lock alive, passes on a wish to stop, and
notices a hang. It imports no engine; what it knows comes from the event files and the agent's exit status."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

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
from primus.runtime.outcome import Outcome, Story
from primus.runtime.patience import Clock
from primus.runtime.processes import kernel_state, node_name
from primus.runtime.run_directory import Attempt

POLL_SECONDS = 0.1
STOPPED_SECONDS = 5.0
"""How long an agent may be stopped (SIGSTOP) before it is let go on: meanwhile nobody watches its ranks."""

OTHER_NODE_SECONDS = 5.0
"""After another node's launcher has given up, how long the ranks of this one may take to notice by themselves."""

UNSTARTED_SECONDS = 10.0
"""How long ranks that were asked to stop before they began to train may take."""

MENDED_SECONDS = 90.0
"""After a hang was ended, how long its ranks may at least take to be started again: the nodes meet in a directory that
a shared file system may remember for a minute, and a process that the kernel holds is waited for."""

LAST_WORD_SECONDS = 20.0
"""On other nodes than the first, how long after the end of their ranks rank 0 may take to say how the run ended."""
ASKED_WORD_SECONDS = 2.0
"""The same where this node was asked to stop: whoever asked waits, and the answer hardly depends on it."""


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
        self.story = Story(plan, node)
        self.clock = Clock()
        self.asked_unheard = False
        self._looked = self._stopped_since = self.clock.now

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
                if self.node and agent.returncode == 0:
                    self._hear_the_end(follower, console, interrupts)
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
        return self.story.outcome

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
        story, asked, other_failed = self.story, 0, 0.0
        heard = since = self.clock.now
        while True:
            now = self.clock.look()
            code = agent.poll()  # before the events, so that none is missed
            records = follower.poll()
            for record in records:
                story.take(record)
                console.handle(record)
            if any(record["writer"] != WRITER for record in records):
                heard = now
            if code is not None:  # ranks of other nodes may go on writing
                return
            self.beat()
            monitoring.check()
            if (wanted := interrupts.count or int(story.other_stopped)) > asked:
                asked, since = wanted, now
                self._stop(agent, asked, console)
            if asked and not story.training and now - since > UNSTARTED_SECONDS:
                agent.kill()  # it still imports, or waits for other nodes: there is nothing to save
            if story.other_failed:
                other_failed = other_failed or now
            if other_failed and now - other_failed > OTHER_NODE_SECONDS:
                story.outcome.elsewhere = True
                agent.kill()
            self._let_go_on(agent, now)
            limit = story.patience.limit
            if now - heard > (max(limit, MENDED_SECONDS) if story.hang_ended else limit):
                self._end_silence(agent, now - heard)
                heard = now
            time.sleep(POLL_SECONDS)

    def _stop(self, agent: subprocess.Popen[bytes], asked: int, console: Console) -> None:
        self.story.patience.stopping = True
        if asked == 1:
            notice = "stopping: the step is finished and a checkpoint saved; Ctrl-C again ends it at once, without one"
            if not self.story.training:
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

    def _end_silence(self, agent: subprocess.Popen[bytes], silence: float) -> None:
        """Nothing was heard for too long."""
        if self.story.ended or self.asked_unheard:
            agent.kill()  # it is done, but some rank does not leave
        elif not self.attempt.logs.is_dir():
            self.asked_unheard = True
            agent.send_signal(signal.SIGTERM)  # deleted or moved: they train on, and can save
        elif self.story.hang_ended:
            self._give_up(agent)
        else:
            self._end_hang(agent, silence)

    def _end_hang(self, agent: subprocess.Popen[bytes], silence: float) -> None:
        """Keep every rank's stack, say which one is behind, then end them all."""
        story = self.story
        agent.send_signal(signal.SIGUSR1)
        ranks = stacks.ask(self.attempt.logs, registry.ranks_per_node(self.plan))
        rank, words = stacks.behind(ranks)
        if self.node == 0:
            folder = stacks.keep(self.attempt.logs)
            number = rank.number if rank else 0
            self._emit(
                RankFailed(
                    rank=number,
                    node=(rank and rank.state.get("node")) or node_name(),
                    error=f"the run hangs: no step for {silence:.0f} s ({story.patience}); {words}",
                    traceback=tail(folder / f"rank-{number}.stack"),
                    step=story.outcome.step or None,
                    cause="hang",
                    remedy=f"read every rank's stack in {folder}; raise {story.patience.key} if it may take so long",
                )
            )
        story.hang_ended = True
        agent.send_signal(signal.SIGUSR2)

    def _give_up(self, agent: subprocess.Popen[bytes]) -> None:
        """The ranks that hang were not started again: the kernel does not let them go, or the agent hangs itself."""
        self.story.outcome.elsewhere = True  # it is this machine, or another node
        self._emit(Notice(message=f"the processes could not be started again: the agent of node {self.node} is killed"))
        agent.kill()

    def _emit(self, event: Event) -> None:
        try:
            with Bus(self.attempt.directory, f"launcher{self.node}") as bus:
                bus.emit(event)
        except (OSError, PrimusError) as error:  # a full disk, most likely what ended the ranks too
            self.story.outcome.agent += f"\n{error}"

    def _hear_the_end(self, follower: Follower, console: Console, interrupts: Interrupts) -> None:
        """The ranks of this node are done. How the run ended is rank 0's to say, on another node: its word may come
        after they have left."""
        patience = ASKED_WORD_SECONDS if interrupts.count else LAST_WORD_SECONDS
        story, until = self.story, time.monotonic() + patience
        while not (story.ended or story.other_failed or story.other_stopped or interrupts.count > 1):
            if time.monotonic() > until or not self.attempt.logs.is_dir():
                return
            time.sleep(POLL_SECONDS)
            with suppress(LaunchError):  # node 0 has left: it may have said so
                self.beat()
            for record in follower.poll():
                story.take(record)
                console.handle(record)

    def _conclude(self, code: int, log: Path, interrupts: Interrupts) -> None:
        outcome = self.story.conclude(code, interrupts.count, self.attempt, log)
        outcome.signal = interrupts.first
        # that it is complete is rank 0's to say
        if outcome.reason not in (self.story.ended, "complete") and self.attempt.logs.is_dir():
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
