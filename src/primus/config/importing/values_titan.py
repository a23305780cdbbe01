"""Conversions of TorchTitan's settings that look at more than one of them. What is said of TorchTitan are facts about
its job configuration."""

from __future__ import annotations

from typing import Any

from primus.config.importing.rules import Drop, Idle, Others, Outcome, Put, Same, numeric, truth


def factor(value: Any, others: Others) -> Outcome:
    rate = others.get("optimizer.lr", 8e-4)
    if not (numeric(value) and numeric(rate)):
        return Drop("not a factor of a rate", "set optimizer.min_lr")
    return Put({"optimizer.min_lr": float(f"{value * rate:.10g}")}, f"{value:g} x {rate:g}")


def decay_ratio(value: Any, others: Others) -> Outcome:
    """TorchTitan: warm-up, a flat part, then a decay over this share of all steps."""
    steps, warmup = others.number("training.steps"), others.get("lr_scheduler.warmup_steps", 200)
    if steps is None or not (numeric(value) and numeric(warmup)):
        return Drop("a share of steps that the file does not count")
    flat = int(steps - warmup - round(steps * value))
    if flat <= 0:
        return Same("no flat part is left")
    if others.get("lr_scheduler.decay_type", "linear") != "linear":
        return Drop(f"a flat part ({flat} steps) before the decay exists with a linear one only (schedule wsd)")
    return Put({"optimizer.schedule.name": "wsd", "optimizer.schedule.stable_steps": flat})


def decay_type(value: Any, others: Others) -> Outcome:
    if value == "linear" and isinstance(decay := others.get("lr_scheduler.decay_ratio"), int | float):
        shape = decay_ratio(decay, others)
        if isinstance(shape, Put):
            return Put({"optimizer.schedule.name": "wsd"}, "linear, after a flat part")
    if value in ("linear", "cosine"):
        return Put({"optimizer.schedule.name": value})
    return Drop(f"no such decay: {value}", "optimizer.schedule.name is cosine, linear, constant or wsd")


def sharding(value: Any, others: Others) -> Outcome:
    if value == -1:
        return Put({"parallel.data_shard": "auto"}, "-1: all ranks that are left")
    return Put({"parallel.data_shard": value}, verbatim=True)


def global_batch(value: Any, others: Others) -> Outcome:
    if value == -1:
        return Drop("micro batch size times the data-parallel ranks, of which the file does not say how many")
    return Put({"train.global_batch_size": value}, verbatim=True)


def pipeline_schedule(value: Any, others: Others) -> Outcome:
    if others.get("parallelism.pipeline_parallel_degree", 1) == 1:
        return Idle("there is one pipeline stage")
    known = {"1f1b": "1f1b", "gpipe": "gpipe", "interleaved1f1b": "interleaved_1f1b"}
    name = known.get(str(value).lower())
    if name is None:
        return Drop(f"no such schedule: {value}", f"parallel.schedule is one of {', '.join(known.values())}")
    chunks = {"parallel.virtual_pipeline": 2} if name == "interleaved_1f1b" else {}
    return Put({"parallel.schedule": name, **chunks}, "two chunks a rank, as there" if chunks else "")


def trace(value: Any, others: Others) -> Outcome:
    if truth(value):
        return Drop("traces every profile_freq steps; here one range of steps", "set profile.steps")
    return Same("no trace without `profile`")


def float8_model(value: Any, others: Others) -> Outcome:
    names = value if isinstance(value, list) else [value]
    if any("float8" in str(name) for name in names):
        return Put({"precision": "fp8"}, "the format follows the hardware")
    return Drop("conversions of the model are the engine's") if names else Same("none")
