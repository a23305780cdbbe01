"""Queueing a Slurm job again: when, at once, and without the nodes it must avoid.

Slurm lets a job that was queued again wait for two minutes, for its old credentials to expire. A start time that is
set while the job still ends is kept instead, if it has not passed when the last process is gone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from primus.errors import LaunchError
from primus.launch import slurm_client
from primus.runtime.processes import RETRYABLE
from primus.runtime.run_directory import write_atomically

AGAIN_SECONDS = 10
"""From queueing again to the next start: the old start's processes, and an epilog, have to be gone by then."""
EXCLUDED_SECONDS = 24 * 3600.0
"""How long a node that failed is avoided: by then somebody will have looked, or the fault was not the node's."""
FRUITLESS = 3
"""Starts after which no checkpoint is newer than before: one more would not help."""


@dataclass(frozen=True)
class Excluded:
    """A node that the run avoids. since, until: Unix seconds."""

    node: str
    reason: str
    since: float
    until: float


def excluded(run: Path, now: float | None = None) -> list[Excluded]:
    """The nodes that the run avoids now."""
    try:
        entries = json.loads((run / "excluded.json").read_text(encoding="utf-8"))
        found = [Excluded(node, **facts) for node, facts in entries.items()]
    except (OSError, ValueError, TypeError, AttributeError):
        return []
    now = time.time() if now is None else now
    return [entry for entry in found if entry.until > now]


def exclude(run: Path, nodes: Mapping[str, str], usable: Set[str], needed: int) -> bool:
    """Avoid `nodes`, name -> reason, from now on and for EXCLUDED_SECONDS, if `needed` of the `usable` are left besides
    all that the run avoids. Returns whether they are."""
    now = time.time()
    kept = {entry.node: entry for entry in excluded(run, now)}
    kept |= {node: Excluded(node, reason, now, now + EXCLUDED_SECONDS) for node, reason in nodes.items()}
    if len(usable - kept.keys()) < needed:
        return False
    entries = {
        entry.node: {"reason": entry.reason, "since": entry.since, "until": entry.until} for entry in kept.values()
    }
    write_atomically(run / "excluded.json", json.dumps(entries, indent=2) + "\n")
    return True


def hasten(job: str, starts: int, avoided: str = "", seconds: int = AGAIN_SECONDS) -> bool:
    """If the job has been queued again since its `starts`-th start, have it begin in `seconds`, without the node list
    `avoided`. Returns whether it has been. Must not raise: whoever calls it is being ended."""
    try:
        found = slurm_client.job(job)
        if found is None or found.restarts <= starts:
            return False
        fields = {"StartTime": f"now+{seconds}"}
        if avoided:
            fields["ExcNodeList"] = ",".join(filter(None, [found.excluded, avoided]))
        slurm_client.update(job, **fields)
    except LaunchError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known when a start's processes have gone. codes: node rank -> exit code of those that came to an end by
    themselves. broken: an end that was not the ranks' own doing. asked: why we asked the run to stop, else empty.
    lost: nodes that do not answer -> reason. state, restarted, preempted: what Slurm says of the job."""

    codes: Mapping[int, int]
    broken: bool = False
    asked: str = ""
    lost: Mapping[str, str]
    state: str = ""
    restarted: bool = False
    preempted: bool = False
    status: int = 0
    """Of srun."""


@dataclass(frozen=True)
class Decision:
    """what: the job is ``done``, has ``failed``, was ``stopped`` by a person, is to be queued ``again``, or ``left``:
    Slurm has queued it again by itself."""

    what: Literal["done", "failed", "stopped", "again", "left"]
    reason: str


def decide(facts: Facts) -> Decision:
    """What becomes of the job now. A run that failed by its own doing is not started again: the ranks' agent has tried
    what a restart can mend. What was not its doing is: a lost node, a time limit, making way for others."""
    first = facts.codes.get(0)
    own = [code for code in facts.codes.values() if 0 < code < 128 and code != RETRYABLE]
    rules = (
        (first == 0, Decision("done", "complete")),
        (facts.state == "CANCELLED", Decision("stopped", "cancelled, or out of time")),
        (facts.restarted, Decision("left", "preempted" if facts.preempted else "Slurm took its nodes")),
        (bool(facts.lost), Decision("again", "; ".join(f"{node}: {why}" for node, why in facts.lost.items()))),
        (bool(facts.asked), Decision("again", facts.asked)),
        (facts.preempted, Decision("again", "preempted")),
        (bool(own), Decision("failed", "the run failed; its screen above says why")),
        (facts.broken, Decision("again", "the processes around the ranks died")),
        (first is not None and first > 128, Decision("stopped", f"by signal {(first or 128) - 128}")),
        (facts.status > 128, Decision("again", f"the launchers were killed (srun: {facts.status})")),
    )
    failed = Decision("failed", f"the job step ended with {facts.status}; the log says why")
    return next((decision for holds, decision in rules if holds), failed)
