"""Which of several failures of one start is where the trouble began."""

from __future__ import annotations

import re
from collections.abc import Sequence

from primus.events.jsonl import Record

# What a rank says when another one went away: true, but not where the trouble began.
SECONDARY = re.compile(
    r"Connection closed by peer|Connection reset by peer|Broken pipe|remote process exited|NCCL watchdog"
    r"|ncclRemoteError|socketProgress|DistNetworkError|Timed out waiting|recvValue failed|sendBytes failed"
    r"|Connection was likely closed"
)


def root(failures: Sequence[Record]) -> Record:
    """Where the trouble began: the earliest report that is not only the echo of another rank's end. failures:
    ``rank_failed`` records, at least one."""
    ordered = sorted(failures, key=lambda failure: failure["time"])
    return next((failure for failure in ordered if not SECONDARY.search(failure["error"])), ordered[0])
