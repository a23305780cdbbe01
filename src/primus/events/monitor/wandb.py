"""Weights & Biases: one run for the whole run, online or as files that ``wandb sync`` sends later."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from primus.config.experiment import Wandb
from primus.events.jsonl import Record
from primus.events.monitor.forwarder import Off, described
from primus.events.monitor.tracker import Ending, Tracker, facts, settings
from primus.events.scalars import scalars
from primus.plan.plan import Plan

START_SECONDS = 30.0
"""How long W&B may take to answer at the start, before the run is written to files."""

Mode = Literal["online", "offline"]

_EXIT_CODES = {"complete": 0, "stopped": 143, "failed": 1, None: 1}


def chosen(config: Wandb) -> tuple[Mode, str]:
    """Online or offline, and why if that was nobody's choice. Raises Off where the environment turns W&B off."""
    if config.mode is not None:
        return config.mode, ""
    asked = os.environ.get("WANDB_MODE", "")
    if asked == "disabled":
        raise Off("off, as WANDB_MODE=disabled says")
    if asked in ("offline", "dryrun"):
        return "offline", f" (WANDB_MODE={asked})"
    return ("online", "") if has_key() else ("offline", " (no key: WANDB_API_KEY is not set, nobody is logged in)")


def has_key() -> bool:
    """Whether there is a key for the W&B server, so far as can be told without asking it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        return netrc(os.environ.get("NETRC")).authenticators(server()) is not None
    except (OSError, NetrcParseError):
        return False


def server() -> str:
    """Host of the W&B server."""
    return urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""


class WandbTracker(Tracker):
    title = "W&B"
    name = "wandb"

    def __init__(self, plan: Plan, attempt: int) -> None:
        super().__init__(plan, attempt)
        assert plan.experiment.monitor.wandb is not None
        self.config = plan.experiment.monitor.wandb
        self.project = self.config.project or os.environ.get("WANDB_PROJECT") or "primus"
        self.entity = self.config.entity or os.environ.get("WANDB_ENTITY")
        self._run: Any = None
        self._step = 0

    def open(self) -> str:
        mode, why = chosen(self.config)
        where = "/".join((server(), self.entity or "", self.project))
        identity = self.mark.id if self.mark.where == where else ""
        identity = identity or secrets.token_hex(8)
        self._step = self.mark.step if identity == self.mark.id else 0
        try:
            self._run = self._init(identity, mode)
        except _away() as error:
            if mode == "offline":
                raise
            import wandb

            wandb.teardown()  # what still waits for the server has taken the run's id
            mode, why = "offline", f": {described(error)}"
            self._run = self._init(identity, mode)
        self.begin(where, identity)
        if mode == "online":
            return f"run {identity} at {self._run.url}"
        return f"offline{why}; send it afterwards: {self.sending}"

    def _init(self, identity: str, mode: Mode) -> Any:
        import wandb

        return wandb.init(
            project=self.project,
            entity=self.entity,
            id=identity,
            name=self.plan.experiment.name,
            dir=str(self.run_directory / "monitor"),
            mode=mode,
            resume="allow" if mode == "online" else None,
            config={**settings(self.plan), **facts(self.plan)},
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                init_timeout=START_SECONDS,
                login_timeout=START_SECONDS,
                silent=True,
                x_save_requirements=False,
            ),
        )

    @property
    def sending(self) -> str:
        """The command that sends what lies in files; empty before there are any."""
        if self._run is None:
            return ""
        directory = Path(self._run.settings.sync_dir)
        return f"{Path(sys.executable).with_name('wandb')} sync {directory}"

    def deliver(self, records: Sequence[Record]) -> None:
        for record in records:
            values = figures(record)
            if not values:
                continue
            # W&B takes no step behind the last one: a checkpoint may be complete when training is further already.
            self._step = max(self._step, record.get("step") or 0)
            self._run.log({**values, "_timestamp": record["time"]}, step=self._step)

    def finish(self, ending: Ending | None) -> None:
        self._run.summary["status"] = ending or "unknown"
        self._run.finish(exit_code=_EXIT_CODES[ending])


def figures(record: Record) -> dict[str, float]:
    if record["event"] == "checkpoint_saved":
        return {
            "checkpoint/step": record["step"],
            "checkpoint/seconds": record["seconds"],
            "checkpoint/blocked_seconds": record["blocked_seconds"],
            "checkpoint/gib": record["bytes"] / 2**30,
        }
    if record["event"] == "run_started":
        return {"attempt": record["attempt"]}
    return scalars(record)


def _away() -> tuple[type[Exception], ...]:
    """What W&B raises when its server cannot be reached or does not let us in."""
    from wandb.errors import Error

    return (Error, TimeoutError)
