"""Metrics for a Prometheus server: ``http://HOST:PORT/metrics`` while the run goes on.

All of the present attempt, labelled ``run`` and ``attempt``; counters begin at 0 with each attempt. Seconds, bytes,
nats a token; names as Prometheus wants them.
"""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from primus.events.jsonl import Record
from primus.plan.plan import Plan

PORTS = 10
"""Ports tried from the wanted one on."""
STEP_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
STATES = ("starting", "training", "complete", "stopped", "failed")


class Metrics:
    """The metrics of one attempt in a registry of their own."""

    def __init__(self, plan: Plan, attempt: int) -> None:
        from prometheus_client import CollectorRegistry

        self.registry = CollectorRegistry()
        self._own = {"run": plan.experiment.name, "attempt": str(attempt)}
        self._restarted = False
        self._step: int | None = None
        self._make()
        self._run.info(
            {
                "backend": plan.experiment.backend,
                "device": plan.experiment.hardware.name,
                "world_size": str(plan.topology.world_size),
                "parameters": str(plan.parameters),
                "precision": plan.experiment.precision,
            }
        )
        self._state.state("starting")
        self._target.set(plan.experiment.train.steps)

    def _make(self) -> None:
        from prometheus_client import Counter, Enum, Gauge, Histogram, Info, Summary

        self._run = self._new(Info, "primus_run", "What is trained, and on what.")
        self._state = self._new(Enum, "primus_run_state", "1 for the state the attempt is in.", states=list(STATES))
        self._target = self._new(Gauge, "primus_target_steps", "Optimizer steps the run is to make.")
        self._gauges: dict[str, Any] = {
            name: self._new(Gauge, f"primus_{name}", text, child=False)
            for name, text in (
                ("step", "Last finished optimizer step."),
                ("loss", "Mean negative log-likelihood of the last step, in nats a token."),
                ("validation_loss", "The same on the validation split, when it was last evaluated."),
                ("learning_rate", "Learning rate of the last step."),
                ("gradient_norm", "Global gradient norm of the last step, before clipping."),
                ("tokens_per_second", "Tokens of the last step over its time, all ranks together."),
                ("mfu_ratio", "Model FLOPs utilisation of the last step, of 1; absent where the peak is unknown."),
                ("memory_bytes", "Peak memory of the fullest device."),
                ("start_timestamp_seconds", "When the processes began to train, Unix time."),
                ("last_step_timestamp_seconds", "When the last step was finished, Unix time."),
                ("checkpoint_step", "Step of the newest checkpoint saved."),
                ("checkpoint_bytes", "Size of the newest checkpoint saved."),
                ("checkpoint_timestamp_seconds", "When the newest checkpoint was complete, Unix time."),
            )
        }
        self._auxiliary = self._new(
            Gauge, "primus_auxiliary_loss", "Further losses of the last step.", ("name",), child=False
        )
        self._steps = self._new(Counter, "primus_steps", "Optimizer steps made, repeated ones included.")
        self._tokens = self._new(Counter, "primus_tokens", "Tokens trained on, repeated ones included.")
        self._seconds = self._new(Histogram, "primus_step_seconds", "Time of an optimizer step.", buckets=STEP_BUCKETS)
        self._saving = self._new(Summary, "primus_checkpoint_seconds", "Time from a checkpoint's start to its end.")
        text = "Where the time of training went: steps, repeated ones included, evaluation, standing still to save."
        self._time = self._new(Counter, "primus_time_seconds", text, ("part",), child=False)
        for part in ("training", "validation", "checkpoint"):
            self._time.labels(**self._own, part=part)
        self._restarts = self._new(
            Counter, "primus_restarts", "Times training began again from a checkpoint within the attempt."
        )
        self._lost = self._new(Counter, "primus_lost_steps", "Finished steps that a restart had to make again.")
        self._failures = self._new(Counter, "primus_rank_failures", "Ranks that failed.", ("node",), child=False)
        self._notices = self._new(Counter, "primus_notices", "Notices for people to read.")

    def _new(
        self, kind: Any, name: str, text: str, labels: Sequence[str] = (), *, child: bool = True, **more: Any
    ) -> Any:
        """A metric; child: the one of this attempt, there at once, else nothing shows before it has a value."""
        metric = kind(name, text, (*self._own, *labels), registry=self.registry, **more)
        return metric.labels(**self._own) if child else metric

    def take(self, record: Record) -> None:
        kind, when = record["event"], record["time"]
        if kind == "step_done":
            self._step_done(record)
        elif kind == "eval_done":
            self._set(validation_loss=record["loss"])
            self._spent("validation", record["seconds"])
        elif kind == "checkpoint_saved":
            self._saving.observe(max(0.0, record["seconds"]))
            self._spent("checkpoint", record["blocked_seconds"])
            self._set(
                checkpoint_step=record["step"], checkpoint_bytes=record["bytes"], checkpoint_timestamp_seconds=when
            )
        elif kind == "run_started":
            self._started(record)
        elif kind in ("attempt_started", "ranks_started"):
            self._failures.labels(**self._own, node=record["node"])  # 0, else the first failure would be no increase
        elif kind == "rank_failed":
            self._failures.labels(**self._own, node=record["node"]).inc()
        elif kind == "notice":
            self._notices.inc()
        elif kind == "run_ended" and record["reason"] in STATES:
            self._state.state(record["reason"])

    def _step_done(self, record: Record) -> None:
        seconds, tokens = max(0.0, record["seconds"]), max(0, record["tokens"])
        self._step = record["step"]
        self._steps.inc()
        self._tokens.inc(tokens)
        self._seconds.observe(seconds)
        self._spent("training", seconds)
        self._set(
            step=record["step"],
            loss=record["loss"],
            learning_rate=record["lr"],
            gradient_norm=record["grad_norm"],
            memory_bytes=record["memory_bytes"],
            last_step_timestamp_seconds=record["time"],
        )
        if seconds:
            self._set(tokens_per_second=tokens / seconds)
        if record.get("mfu") is not None:
            self._set(mfu_ratio=record["mfu"])
        for name, value in (record.get("auxiliary") or {}).items():
            if isinstance(value, int | float):
                self._auxiliary.labels(**self._own, name=name).set(value)

    def _started(self, record: Record) -> None:
        self._state.state("training")
        self._set(start_timestamp_seconds=record["time"])
        if self._restarted:
            self._restarts.inc()
            if self._step is not None:
                self._lost.inc(max(0, self._step - (record.get("resumed_from") or 0)))
        self._restarted = True

    def _spent(self, part: str, seconds: float) -> None:
        self._time.labels(**self._own, part=part).inc(max(0.0, seconds))

    def _set(self, **values: float) -> None:
        for name, value in values.items():
            self._gauges[name].labels(**self._own).set(value)


class PrometheusExporter:
    """Serves the metrics. ``prometheus-<name>.json`` beside the run directories tells a Prometheus server where, in the
    format of its ``file_sd_configs``, as long as they are served. Not in the run directory: it takes ``*`` in the last
    part of a path only."""

    title = "Prometheus"

    def __init__(self, plan: Plan, attempt: int) -> None:
        assert plan.experiment.monitor.prometheus is not None
        self.config = plan.experiment.monitor.prometheus
        self.first_attempt = attempt
        self._plan = plan
        self._target = Path(plan.run_directory).with_name(f"prometheus-{plan.experiment.name}.json")
        self._metrics: Metrics | None = None

    def open(self) -> str:
        from prometheus_client import disable_created_metrics

        disable_created_metrics()
        metrics = Metrics(self._plan, self.first_attempt)
        port = self._serve(metrics)
        self._metrics = metrics
        host = self.config.host
        everywhere = host in ("0.0.0.0", "::")
        target = f"{socket.gethostname() if everywhere else f'[{host}]' if ':' in host else host}:{port}"
        with suppress(OSError):  # only a convenience; a disk that takes nothing is said elsewhere
            self._target.write_text(json.dumps([{"targets": [target]}]) + "\n", encoding="utf-8")
        taken = f" (port {self.config.port} is taken)" if port != self.config.port else ""
        return f"metrics at http://{target}/metrics{taken}"

    def _serve(self, metrics: Metrics) -> int:
        """Listen on the first port that is free. Raises OSError."""
        from prometheus_client import start_http_server

        first = self.config.port
        last = min(first + PORTS, 65536) - 1
        for port in range(first, last + 1):
            try:
                start_http_server(port, addr=self.config.host, registry=metrics.registry)
                return port
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise OSError(
                        error.errno, f"cannot listen on {self.config.host} port {port}: {error.strerror}"
                    ) from error
        raise OSError(errno.EADDRINUSE, f"every port from {first} to {last} is taken on {self.config.host}")

    def take(self, records: Sequence[Record]) -> None:
        assert self._metrics is not None
        for record in records:
            self._metrics.take(record)

    def close(self) -> None:
        self._target.unlink(missing_ok=True)
