"""Traces of chosen steps on chosen ranks."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from primus.backends.base import Session
from primus.events.types import Notice
from primus.plan.plan import Plan


class Profiling:
    """One trace a rank, `profile/rank-R-steps-A-B.json.gz` in the attempt's directory; open it in Perfetto or chrome://tracing."""

    def __init__(self, plan: Plan, session: Session) -> None:
        settings = plan.experiment.profile
        chosen = settings is not None and session.rank in settings.ranks
        self._steps = settings.steps if settings is not None and chosen else None
        self._session = session
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        if self._steps is None or step != self._steps[0]:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, record_shapes=True)
        self._profile.start()

    def after(self, step: int) -> None:
        if self._profile is None or self._steps is None or step != self._steps[1]:
            return
        self._profile.stop()
        first, last = self._steps
        path = self._session.attempt_directory / "profile" / f"rank-{self._session.rank}-steps-{first}-{last}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(path))
        self._profile = None
        self._session.emit(
            Notice(message=f"profile of steps {first} to {last} on rank {self._session.rank}: {path}", step=step)
        )
