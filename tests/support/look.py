"""Reads back, in the ``monitor`` environment and by their own readers, what MLflow and Prometheus were given. JSON on
stdout: ``look.py mlflow URI``, ``look.py scrape URL``."""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.request import Request, urlopen


def mlflow(uri: str) -> list[dict[str, Any]]:
    """Every run: status, tags, parameters, and each metric's history as [step, value, timestamp]."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = []
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            history = {
                key: [[m.step, m.value, m.timestamp] for m in client.get_metric_history(run.info.run_id, key)]
                for key in run.data.metrics
            }
            found.append(
                {
                    "id": run.info.run_id,
                    "experiment": experiment.name,
                    "name": run.info.run_name,
                    "status": run.info.status,
                    "tags": run.data.tags,
                    "params": run.data.params,
                    "metrics": {key: sorted(points) for key, points in history.items()},
                }
            )
    return found


def scrape(url: str) -> dict[str, Any]:
    """Samples by both of Prometheus's text formats, and the kind and help text of every metric."""
    from prometheus_client.openmetrics import parser as openmetrics
    from prometheus_client.parser import text_string_to_metric_families

    def get(accept: str) -> tuple[str, str]:
        with urlopen(Request(url, headers={"Accept": accept}), timeout=10) as answer:
            return answer.headers["Content-Type"], answer.read().decode()

    kind, text = get("text/plain;version=0.0.4")
    open_kind, open_text = get("application/openmetrics-text;version=1.0.0")
    assert open_kind.startswith("application/openmetrics-text"), open_kind
    families = list(text_string_to_metric_families(text))
    by_openmetrics = [
        [sample.name, sample.labels, sample.value]
        for family in openmetrics.text_string_to_metric_families(open_text)
        for sample in family.samples
    ]
    return {
        "content_type": kind,
        "text": text,
        "families": {family.name: [family.type, family.documentation] for family in families},
        "samples": [[s.name, s.labels, s.value] for family in families for s in family.samples],
        "openmetrics": by_openmetrics,
    }


if __name__ == "__main__":
    json.dump({"mlflow": mlflow, "scrape": scrape}[sys.argv[1]](sys.argv[2]), sys.stdout)
