"""Forwarding a run's events to Prometheus, MLflow and W&B, in a process beside the run.

It follows the event files, which are the source of truth and so are its queue: whatever a receiver does, or does not,
no rank waits for it and nothing is lost here. ``forwarder`` drives a ``Receiver``: one a thread, tried again until it
takes what it is given. ``prometheus`` shows the present attempt; ``mlflow`` and ``wandb`` are trackers, which keep one
curve over all attempts and remember in ``runs/<name>/monitor/`` what they have.

Nothing here imports the receivers' own packages before the process needs them.
"""

from __future__ import annotations

WRITER = "monitor"
"""Writer of the notices of that process."""
