"""MLflow: one run of a tracking server, or of a SQLite file, for the whole run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from primus.events.jsonl import Record
from primus.events.monitor.forwarder import Refused
from primus.events.monitor.tracker import Ending, Tracker, facts, parameters
from primus.events.scalars import scalars
from primus.plan.plan import Plan

REQUEST_METRICS, REQUEST_OTHERS = 1000, 100
"""What MLflow takes in one request: metrics; parameters or tags."""
PARAMETER_LENGTH, NAME_LENGTH = 6000, 250

# Our own tries take the place of MLflow's, which go on for minutes; nobody is told that a run was made.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
_STATUS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED", None: "FAILED"}


class MLflowTracker(Tracker):
    """A metric's timestamp is the event's own, so that the same figure sent twice is one to MLflow."""

    title = "MLflow"
    name = "mlflow"

    def __init__(self, plan: Plan, attempt: int) -> None:
        super().__init__(plan, attempt)
        assert plan.experiment.monitor.mlflow is not None
        self.config = plan.experiment.monitor.mlflow
        self.experiment = self.config.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "primus"
        self._client: Any = None

    def open(self) -> str:
        uri = self._uri()
        for variable, value in _SETTINGS.items():
            os.environ.setdefault(variable, value)
        if urlsplit(uri).scheme == "file":
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # being asked for it is being allowed
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        where = f"{without_secrets(uri)} {self.experiment}"
        known = self._continue(self.mark.id) if self.mark.id and self.mark.where == where else None
        # The run is noted before anything more can fail, so that the next try continues it.
        self.begin(where, self._create() if known is None else self.mark.id)
        refusal = self._describe(known or {})
        return f"run {self.mark.id} in experiment '{self.experiment}' of {without_secrets(uri)}{refusal}"

    def _uri(self) -> str:
        beside = self.run_directory.parent / "mlflow.db"
        return self.config.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{beside}"

    def _continue(self, identity: str) -> dict[str, str] | None:
        """Set the run going again; its parameters, or None when it is gone."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(identity)
            if run.info.lifecycle_stage != "active":
                return None
            self._client.update_run(identity, status="RUNNING")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        known: dict[str, str] = run.data.params
        return known

    def _create(self) -> str:
        run = self._client.create_run(
            self._experiment(),
            run_name=self.plan.experiment.name,
            tags={**facts(self.plan), "mlflow.source.name": "primus", "mlflow.source.type": "JOB"},
        )
        return str(run.info.run_id)

    def _describe(self, known: dict[str, str]) -> str:
        """Give the run the parameters it lacks, and what differs from a `known` one as a tag, since a parameter cannot
        be changed. Returns what to say of a refusal."""
        missing, changed = {}, {}
        for key, value in self._parameters().items():
            if key not in known:
                missing[key] = value
            elif known[key] != value:
                changed[f"primus.attempt.{self.attempt}.{key}"] = value
        refusal = ""
        for params, tags in (
            *((dict(part), None) for part in _portions(missing.items(), REQUEST_OTHERS)),
            *((None, dict(part)) for part in _portions(changed.items(), REQUEST_OTHERS)),
        ):
            try:
                self._log(self.mark.id, params=params, tags=tags)
            except Refused as error:
                refusal = f"; {error}"
        return refusal

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self.experiment
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self._client.get_experiment_by_name(name)  # another run was faster
        if found is None or found.lifecycle_stage != "active":
            raise RuntimeError(
                f"the experiment '{name}' is deleted there: restore it, or set monitor.mlflow.experiment"
            )
        return str(found.experiment_id)

    def _parameters(self) -> dict[str, str]:
        return {permitted(key): value[:PARAMETER_LENGTH] for key, value in parameters(self.plan).items()}

    def deliver(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric

        metrics = (
            Metric(permitted(key), value, round(1000 * record["time"]), step)
            for record in records
            for key, value, step in figures(record)
        )
        for part in _portions(metrics, REQUEST_METRICS):
            self._log(self.mark.id, metrics=part)

    def _log(self, identity: str, *, metrics: Sequence[Any] = (), params: Any = None, tags: Any = None) -> None:
        from mlflow.entities import Param, RunTag
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_batch(
                identity,
                metrics=metrics,
                params=[Param(key, value) for key, value in (params or {}).items()],
                tags=[RunTag(key, value) for key, value in (tags or {}).items()],
                synchronous=True,
            )
        except MlflowException as error:
            if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                what = "figures" if metrics else "parameters"
                raise Refused(f"some {what} were refused: {error.message}") from error
            raise

    def finish(self, ending: Ending | None) -> None:
        self._client.set_terminated(self.mark.id, _STATUS[ending])


def figures(record: Record) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of all that a record holds."""
    if record["event"] == "checkpoint_saved":
        yield "checkpoint/seconds", record["seconds"], record["step"]
        yield "checkpoint/blocked_seconds", record["blocked_seconds"], record["step"]
        yield "checkpoint/gib", record["bytes"] / 2**30, record["step"]
    elif record["event"] == "run_started":
        yield "attempt", record["attempt"], record.get("resumed_from") or 0
    else:
        for key, value in scalars(record).items():
            yield key, value, record["step"]


def permitted(text: str) -> str:
    """What MLflow takes as a name."""
    return re.sub(r"[^\w\-. /:]", "_", text, flags=re.ASCII)[:NAME_LENGTH]


def without_secrets(uri: str) -> str:
    """`uri` without user and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def _portions(items: Any, size: int) -> Iterator[list[Any]]:
    remaining = iter(items)
    while part := list(islice(remaining, size)):
        yield part
