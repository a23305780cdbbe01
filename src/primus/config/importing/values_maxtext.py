"""Conversions of MaxText's settings that look at more than one of them. What is said of MaxText are facts about its
``base.yml`` and its derived values, as of 0.2.5."""

from __future__ import annotations

from typing import Any

from primus.config.importing import values
from primus.config.importing.rules import Convert, Drop, Idle, Native, Others, Outcome, Put, Same, numeric, truth

DEFAULTS: dict[str, Any] = {
    "steps": 150_001,
    "per_device_batch_size": 12,
    "max_target_length": 2048,
    "gradient_accumulation_steps": 1,
    "learning_rate": 3e-5,
    "learning_rate_final_fraction": 0.1,
    "warmup_steps_fraction": 0.1,
    "learning_rate_schedule_steps": -1,
    "wsd_decay_steps_fraction": 0.1,
    "lr_schedule_type": "cosine",
    "enable_checkpointing": True,
    "checkpoint_period": 10_000,
    "log_period": 100,
    "profiler": "",
    "skip_first_n_steps_for_profiler": 1,
    "profiler_steps": 5,
    "attention": "autoselected",
    "capacity_factor": -1,
    "load_balance_loss_weight": 0,
    "weight_dtype": "float32",
    "dataset_type": "synthetic",
}
"""What holds where a file says nothing."""
PRESET: dict[str, Any] = {
    "steps": 1000,
    "enable_checkpointing": False,
    "log_period": 10,
    "profiler": "xplane",
    "skip_first_n_steps_for_profiler": 3,
    "profiler_steps": 1,
    "attention": "cudnn_flash_te",
    "capacity_factor": 1.25,
    "load_balance_loss_weight": 0.01,
    "weight_dtype": "bfloat16",
}
"""Where the presets below an experiment of the reference system say otherwise."""


def effective(others: Others, name: str) -> Any:
    """The value of `name`, or what holds without it."""
    return others.get(name, (DEFAULTS if others.plain else DEFAULTS | PRESET).get(name))


# how long, how fast


def steps(value: Any, others: Others) -> Outcome:
    if value == -1:
        length = effective(others, "learning_rate_schedule_steps")
        return Put({"train.steps": length}, "as long as the schedule")
    return Put({"train.steps": value}, verbatim=True)


def schedule_steps(others: Others) -> int | None:
    """Steps until the learning rate is at its end."""
    found = [effective(others, name) for name in ("learning_rate_schedule_steps", "steps")]
    return next((int(number) for number in found if numeric(number) and number > 0), None)


def decay_steps(value: Any, others: Others) -> Outcome:
    return Same("as long as the run") if value == -1 else Put({"optimizer.schedule.decay_steps": value}, verbatim=True)


def warmup(value: Any, others: Others) -> Outcome:
    length = schedule_steps(others)
    if length is None or not numeric(value):
        return Drop("no share of a number of steps", "set optimizer.schedule.warmup_steps")
    return Put({"optimizer.schedule.warmup_steps": int(length * value)}, f"{value:g} of {length} steps")


def final_fraction(value: Any, others: Others) -> Outcome:
    rate = effective(others, "learning_rate")
    if not (numeric(value) and numeric(rate)):
        return Drop("no share of a rate", "set optimizer.min_lr")
    return Put({"optimizer.min_lr": float(f"{value * rate:.10g}")}, f"{value:g} x {rate:g}")


def wsd_fraction(value: Any, others: Others) -> Outcome:
    length, share = schedule_steps(others), effective(others, "warmup_steps_fraction")
    if str(effective(others, "lr_schedule_type")).lower() != "wsd":
        return Idle("only wsd has it")
    if length is None or not (numeric(value) and numeric(share)):
        return Drop("no share of a number of steps", "set optimizer.schedule.stable_steps")
    stable = length - int(length * share) - int(length * value)
    return Put({"optimizer.schedule.stable_steps": stable}, f"what the decay over {value:g} of {length} steps leaves")


# numbers and memory


FP8 = ("fp8_full", "fp8", "nanoo_fp8", "fp8_gpu", "fp8_nanoo")


def quantization(value: Any, others: Others) -> Outcome:
    if value == "":
        return Same("off")
    if value == "int8":
        return Native("quantization", value)
    if str(value) in FP8:
        return Put({"precision": "fp8"}, "" if value == FP8[0] else "scales are of present values, not of a history")
    return Drop("precision is fp32, bf16 or fp8, or else int8")


def dtype(value: Any, others: Others) -> Outcome:
    word = {"bfloat16": "bf16", "float32": "fp32"}.get(str(value))
    if others.get("quantization") in FP8:
        return Same("bf16 lies beneath fp8") if word == "bf16" else Drop("bf16 lies beneath fp8")
    return Put({"precision": word}) if word else Drop("precision is fp32, bf16 or fp8")


def remat(value: Any, others: Others) -> Outcome:
    ours = {"full": "full", "save_qkv_proj": "selective", "minimal": "none"}.get(str(value))
    return Put({"recompute": ours}) if ours else Native("remat_policy", value)


def own(key: str, otherwise: str) -> Convert:
    """A key of MaxText's own if its schema offers it."""
    return lambda value, others: Native(key, value, otherwise)


def custom(others: Others) -> bool:
    return bool(others.get("remat_policy") == "custom")


def attention(value: Any, others: Others) -> Outcome:
    if str(value).startswith("cudnn"):
        return Drop("cuDNN's attention does not see where documents end", "maxtext.attention: flash, or without it")
    return Native("attention", value)


# data


def synthetic(others: Others) -> bool:
    return bool(effective(others, "dataset_type") == "synthetic")


def mapped(others: Others) -> bool:
    """Whether the data are Megatron's token files, as ours are."""
    return bool(others.get("dataset_type") == "grain" and others.get("grain_file_type") == "mmap")


def dataset(value: Any, others: Others) -> Outcome:
    if value == "synthetic":
        return Put({"data.train": "synthetic"})
    if mapped(others):
        return Same("a prefix of token files, as every dataset here")
    return Drop("MaxText's own readers: make a token dataset with `data prepare` and set data.train")


def token_files(target: str) -> Convert:
    """One prefix, or ``prefix,weight;prefix,weight``."""

    def convert(value: Any, others: Others) -> Outcome:
        if value == "" or others.get("dataset_type") != "grain":
            return Idle("empty" if value == "" else "only for dataset_type grain")
        if not mapped(others):
            return Drop(f"no token files: make a token dataset with `data prepare` and set {target}")
        if ";" not in str(value):
            return Put({target: value}, verbatim=True)
        pairs = [part.rpartition(",")[::2] for part in str(value).split(";")]
        try:
            sources = [{"path": path.strip(), "weight": float(weight)} for path, weight in pairs]
        except ValueError:
            return Drop("no prefix and weight in turns")
        return Put({target: sources}) if target == "data.train" else Drop(f"{target} takes one dataset")

    return convert


def restarts(value: Any, others: Others) -> Outcome:
    """Whether documents see each other."""
    if synthetic(others):
        return Idle("synthetic tokens have no documents")
    return Put({"data.document_attention": "within" if truth(value) else "full"})


def packing(value: Any, others: Others) -> Outcome:
    return Idle("of texts, not of token files") if mapped(others) else restarts(value, others)


# others


def empty(otherwise: str) -> Convert:
    """Nothing, or 0, agrees."""
    return lambda value, others: Same("empty") if value in ("", 0) else Drop(otherwise)


def base(value: Any, others: Others) -> Outcome:
    """The file that this one changes."""
    if from_defaults(others):
        return Same("MaxText's defaults")
    return Drop("a file that this one starts from", "import it as well: what it sets is not known here")


def from_defaults(others: Others) -> bool:
    """Whether what the file does not say is MaxText's default."""
    return str(others.get("base_config", "base.yml")).rpartition("/")[2] == "base.yml"


def run_name(value: Any, others: Others) -> Outcome:
    if not others.plain:
        return Drop("exp_name names the run")
    return values.run_name(value, others) if value else Idle("empty")


def traced(others: Others) -> bool:
    return effective(others, "profiler") not in ("", None)


def trace(value: Any, others: Others) -> Outcome:
    """MaxText counts steps from 0 and traces so many after the skipped ones; ours count from 1."""
    skipped, count = effective(others, "skip_first_n_steps_for_profiler"), effective(others, "profiler_steps")
    if not traced(others):
        return Same("no trace without `profile`") if value == "" else Idle("there is no profiler")
    if not (numeric(skipped) and numeric(count)):
        return Drop("no numbers of steps", "set profile.steps")
    return Put({"profile.steps": [int(skipped) + 1, int(skipped + count)]}, "ours count from 1")


def evaluation(target: str) -> Convert:
    def convert(value: Any, others: Others) -> Outcome:
        if value == -1 or effective(others, "eval_interval") in (-1, None):
            return Same("no evaluation without data.validation")
        return Put({target: value}, verbatim=True)

    return convert
