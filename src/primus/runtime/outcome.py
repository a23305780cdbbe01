"""What the records of an attempt tell the launcher of a node while it runs, and how the attempt has ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from primus.backends import registry
from primus.plan.plan import Plan
from primus.runtime.agents.agent import tail
from primus.runtime.patience import Patience
from primus.runtime.processes import STOPPED, sentence
from primus.runtime.run_directory import Attempt

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
    """Whether no rank of this node failed by itself: its agent died, or was ended because another node had given up or
    because it could not end a hang."""
    agent: str = ""
    """When the agent itself failed: how it ended and its last words."""


class Story:
    """Of one attempt, as node `node` hears it. Records of other nodes may come late, or not at all."""

    def __init__(self, plan: Plan, node: int) -> None:
        self.plan, self.node = plan, node
        self.outcome = Outcome()
        self.patience = Patience(plan)
        self.ended = ""
        """How, as rank 0 says."""
        self.training = False
        self.earlier: list[Failure] = []
        """What ended the starts before this one, until training has begun again."""
        self.hang_ended = False
        """The ranks were ended for a hang, and none has been started since."""
        self.other_failed = False
        self.other_stopped = False
        self._starts: dict[str, int] = {}
        """The newest start of each replica group; of all ranks under the name "" where they are not in groups."""

    def take(self, record: dict[str, Any]) -> None:
        kind = record["event"]
        if kind == "run_started":
            self.training = True
            self.earlier.clear()
            self.outcome.failures.clear()  # what a peer of an ended start said late
        elif kind == "step_done":
            self.training, self.hang_ended = True, False
            self.outcome.step = record["step"]
            self.patience.step(record)
        elif kind == "ranks_started" and self._begins(record):
            self.hang_ended = False
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
                self.other_failed = True
            elif record["reason"] == "stopped":  # its ranks may not come to a start that this node waits in
                self.other_stopped = True
        elif kind == "run_ended":
            self.ended = record["reason"]
            self.outcome.step = record["step"]

    def _begins(self, record: dict[str, Any]) -> bool:
        """Whether ranks are started again, for the first word of that. Every node says so, and one of them may be heard
        when training has long begun."""
        group = record["writer"].partition("-")[2]
        if record["restart"] <= self._starts.get(group, 0):
            return False
        self._starts[group] = record["restart"]
        return True

    def conclude(self, code: int, asked: int, attempt: Attempt, log: Path) -> Outcome:
        """Decide how it ended. code: the agent's exit status; asked: how often this launcher was asked to stop; log:
        the agent's."""
        outcome = self.outcome
        own = bool(outcome.failures)
        outcome.failures = outcome.failures or self.earlier
        outcome.elsewhere |= not any(self._is_here(failure) for failure in outcome.failures)
        if self.plan.topology.replica_groups > 1 and code == 0:
            outcome.failures.clear()  # of groups without which the others have gone on
        if self.ended == "complete" and (code == 0 or not outcome.failures):
            outcome.reason = "complete"  # whatever a rank of an ended start said late
        elif (asked and (code == 0 or asked > 1 or not own)) or (
            self.other_stopped and (code == 0 or not self.training)
        ):
            outcome.reason = "stopped"
        elif self.ended == "stopped" and (code == 0 or not own):
            outcome.reason = "stopped"  # on another node, or by a signal to the ranks themselves
        elif code == STOPPED:
            outcome.reason = "stopped"  # by a signal to the agent, between two starts
        elif not attempt.logs.is_dir():
            outcome.agent = f"{attempt.directory} was deleted or moved, so that the ranks were not heard any more"
        elif code == 0 and self.node and not (own or self.other_failed):
            outcome.reason = "complete"  # as far as this node knows
        elif not outcome.failures:
            outcome.agent = f"{sentence('the agent', code)}\n{tail(log)}".strip()
        return outcome

    def _is_here(self, failure: Failure) -> bool:
        return bool(failure["rank"] // registry.ranks_per_node(self.plan) == self.node)
