"""The names under which figures of a run are plotted, the same wherever they are sent as curves."""

from __future__ import annotations

from primus.events.jsonl import Record

_STEP = {
    "train/loss": "loss",
    "train/learning_rate": "lr",
    "train/gradient_norm": "grad_norm",
    "performance/model_flops_utilisation": "mfu",
    "performance/seconds_per_step": "seconds",
}


def scalars(record: Record) -> dict[str, float]:
    """Name -> value of what a ``step_done`` or ``eval_done`` record reports; empty for others. Units as in
    ``primus.events.types``, memory in GiB; a figure that is not known is left out."""
    if record["event"] == "eval_done":
        return {"validation/loss": record["loss"]}
    if record["event"] != "step_done":
        return {}
    values = {name: record.get(key) for name, key in _STEP.items()}
    if record["seconds"] > 0:
        values["performance/tokens_per_second"] = record["tokens"] / record["seconds"]
    values["performance/memory_gib"] = record["memory_bytes"] / 2**30
    values |= {f"train/{name}": value for name, value in (record.get("auxiliary") or {}).items()}
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
