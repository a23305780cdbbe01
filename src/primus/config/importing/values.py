"""Conversions of Megatron's settings that look at more than one of them. What is said of Megatron are facts about its
argument parser and its training loop."""

from __future__ import annotations

import math
import re
from typing import Any

from primus.config.importing import names
from primus.config.importing.rules import Convert, Drop, Idle, Native, Others, Outcome, Put, Same, numeric, truth

SAMPLES = "counts samples, which are no multiple of the global batch size"
SPLIT = "969,30,1"
"""Megatron's own shares of training, validation and test."""


def pair(target: str, first: str, second: str, defaults: tuple[float, float]) -> Convert:
    """Two settings that are one list here."""

    def convert(value: Any, others: Others) -> Outcome:
        return Put({target: [others.get(first, defaults[0]), others.get(second, defaults[1])]})

    return convert


def run_name(value: Any, others: Others) -> Outcome:
    clean = names.run(str(value))
    return Put({"name": value}, verbatim=True) if clean == value else Put({"name": clean}, "made fit for a directory")


def preset(value: Any, others: Others) -> Outcome:
    """The name of a model there -> our preset."""
    found = names.model(str(value))
    if value == "default":
        return Same("no preset")
    if found.preset is None:
        return Drop(f"there is no preset of '{value}' here", f"the nearest is {found.near}" if found.near else "")
    return Put({"extends": found.preset, **({"precision": "fp8"} if found.fp8 else {})})


# how long


def in_steps(target: str) -> Convert:
    def convert(value: Any, others: Others) -> Outcome:
        batch = others.number("global_batch_size")
        if not numeric(value) or batch is None or value % batch:
            return Drop(SAMPLES)
        return Put({target: int(value // batch)}, f"{value} samples in batches of {batch:g}")

    return convert


def megatron_steps(others: Others) -> int | None:
    """The steps of the decay: ``lr_decay_iters``, else all."""
    steps = others.number("lr_decay_iters", "train_iters")
    return None if steps is None else int(steps)


def warmup_fraction(value: Any, others: Others) -> Outcome:
    steps = megatron_steps(others)
    if steps is None or not numeric(value):
        return Drop("a fraction of steps that the file does not count")
    return Put({"optimizer.schedule.warmup_steps": int(value * steps)}, f"{value:g} of {steps} steps")


def stable_steps(value: Any, others: Others) -> Outcome:
    steps = megatron_steps(others)
    if str(others.get("lr_decay_style")).lower() != "wsd":
        return Idle("only WSD has it")
    if steps is None or not numeric(value):
        return Drop("counts back from a step that the file does not name")
    stable = steps - int(value) - int(others.number("lr_warmup_iters", default=0) or 0)
    return Put({"optimizer.schedule.stable_steps": stable}, f"what {value} steps of decay leave")


def decays(others: Others) -> bool:
    return str(others.get("lr_decay_style", "linear")).lower() != "constant"


# numbers and memory


def bf16(value: Any, others: Others) -> Outcome:
    if others.get("fp8") not in (None, False):
        return Same("bf16 lies beneath fp8")
    return Put({"precision": "bf16" if truth(value) else "fp32"})


def fp8(value: Any, others: Others) -> Outcome:
    if truth(value) is False:
        return Same("off")
    return Put({"precision": "fp8"}, "megatron does not train in fp8 yet, torchtitan does")


def recompute(value: Any, others: Others) -> Outcome:
    word = str(value).lower()
    if word == "full" and others.get("recompute_method") == "block" and others.get("recompute_num_layers") == 0:
        return Put({"recompute": "none"}, "of no layer")
    return Put({"recompute": word if word in ("full", "selective") else value})


def recompute_selective(value: Any, others: Others) -> Outcome:
    return Put({"recompute": "selective"}) if truth(value) else Same("off")


def recompute_part(name: str) -> Convert:
    """Which layers full recomputation is for."""

    def convert(value: Any, others: Others) -> Outcome:
        if others.get("recompute_granularity") != "full":
            return Idle("recompute_granularity is not full")
        if others.get("recompute_method") == "block" and others.get("recompute_num_layers") == 0:
            return Same("no layer is recomputed")
        if others.get("recompute_method") == "uniform" and others.get("recompute_num_layers", 1) == 1:
            return Same("`recompute: full` is of every layer")
        return Native(f"transformer.{name}", value, "`recompute: full` is of every layer")

    return convert


# data


def mock(value: Any, others: Others) -> Outcome:
    return Put({"data.train": "synthetic"}) if truth(value) else Same("data.train names the data")


def blend(value: Any, others: Others) -> Outcome:
    """A prefix, prefixes, or weight and prefix in turns; as text or as a list."""
    if others.on("mock_data"):
        return Idle("mock_data is set")
    items = value if isinstance(value, list) else str(value).split()
    items = [_number(item) for item in items]
    if len(items) == 1 and isinstance(items[0], str):
        return Put({"data.train": items[0]}, verbatim=True)
    weights, paths = items[::2], items[1::2]
    if (
        paths
        and len(weights) == len(paths)
        and all(map(numeric, weights))
        and all(isinstance(path, str) for path in paths)
    ):
        sources = [{"path": path, "weight": weight} for weight, path in zip(weights, paths, strict=True)]
        return Put({"data.train": sources if len(sources) > 1 else paths[0]})
    if items and all(isinstance(item, str) for item in items):
        return Put({"data.train": items})
    return Drop("neither prefixes, nor weight and prefix in turns")


def _number(item: Any) -> Any:
    try:
        return float(item) if isinstance(item, str) else item
    except ValueError:
        return item


def validation_path(value: Any, others: Others) -> Outcome:
    if others.on("mock_data"):
        return Idle("mock_data is set")
    if not evaluated(others):
        return Idle("eval_iters is 0")
    items = value if isinstance(value, list) else str(value).split()
    if len(items) != 1:
        return Drop("data.validation takes one dataset")
    return Put({"data.validation": items[0]}, verbatim=True)


def evaluated(others: Others) -> bool:
    """Whether Megatron would evaluate on data of the file's."""
    named = "valid_data_path" in others or ("data_path" in others and bool(share(others.get("split", SPLIT))))
    return named and not others.on("mock_data") and others.get("eval_iters") != 0


def share(split: Any) -> float | None:
    """The validation share of Megatron's ``split``, e.g. 0.05 of ``949,50,1``; None when it is no such text."""
    parts = re.split(r"[,/ ]+", str(split).strip())
    try:
        weights = [float(part) for part in parts]
    except ValueError:
        return None
    total = sum(weights)
    return round(weights[1] / total, 6) if len(weights) > 1 and 0 < total < math.inf else 0.0


def split(value: Any, others: Others) -> Outcome:
    if others.on("mock_data") or "data_path" not in others:
        return Idle("only data_path is split")
    part = share(value)
    if part is None:
        return Drop("not shares of training, validation and test")
    if not part or not evaluated(others):
        return Same("no part is held out")
    return Put({"data.validation": part}, "the test share is training data here")


def eval_steps(value: Any, others: Others) -> Outcome:
    if value == 0:
        return Same("no evaluation without data.validation")
    return Put({"eval.steps": value}, verbatim=True) if evaluated(others) else Idle("no validation data is named")


def tokenizer(value: Any, others: Others) -> Outcome:
    if others.on("mock_data"):
        return Idle("synthetic tokens need none")
    if str(value).endswith((".model", ".vocab")):
        return Drop(
            "not a Hugging Face tokenizer", "set data.tokenizer to a directory with tokenizer.json, or a Hub id"
        )
    return Put({"data.tokenizer": value}, verbatim=True)


def tokenizer_type(value: Any, others: Others) -> Outcome:
    if others.on("mock_data"):
        return Idle("synthetic tokens need none")
    if str(value) in ("HuggingFaceTokenizer", "Llama3Tokenizer"):
        return Same("tokenizers are Hugging Face's")
    return Drop("tokenizers are Hugging Face's", "set data.tokenizer to a directory with tokenizer.json, or a Hub id")


def within_documents(other: str) -> Convert:
    """Megatron restarts attention and positions by two switches, we by one key."""

    def convert(value: Any, others: Others) -> Outcome:
        if not truth(value):
            return Same("`document_attention: full`") if not others.on(other) else Drop(f"here it goes with {other}")
        if not others.on(other):
            return Drop(f"`document_attention: within` restarts positions and attention: {other} is not set")
        return Put({"data.document_attention": "within"})

    return convert


# layout


def virtual(value: Any, others: Others) -> Outcome:
    if (
        not others.number("pipeline_model_parallel_size", default=1)
        or others.get("pipeline_model_parallel_size", 1) == 1
    ):
        return Idle("there is one pipeline stage")
    return Put({"parallel.virtual_pipeline": value}, verbatim=True)


def virtual_from_layers(value: Any, others: Others) -> Outcome:
    layers, stages = others.number("num_layers"), others.number("pipeline_model_parallel_size", default=1)
    if stages == 1:
        return Idle("there is one pipeline stage")
    if layers is None or stages is None or not numeric(value) or value <= 0 or layers % (stages * value):
        return Drop("the number of layers is not known here", "set parallel.virtual_pipeline")
    return Put({"parallel.virtual_pipeline": int(layers // (stages * value))}, f"{layers:g} layers, {value} a chunk")


def sequence_parallel(value: Any, others: Others) -> Outcome:
    if others.get("tensor_model_parallel_size", 1) == 1:
        return Idle("there is one tensor-parallel rank")
    return Same("parallel.tensor brings it") if truth(value) else Drop("parallel.tensor always brings it")


def distributed_optimizer(value: Any, others: Others) -> Outcome:
    if truth(value):
        return Same("`data_shard: auto` shards it over all data-parallel ranks")
    if others.on("use_torch_fsdp2") or others.on("use_megatron_fsdp"):
        return Idle("FSDP shards it")
    return Drop("`data_shard: auto` shards the optimizer", "set parallel.data_replicate to have replicas")


def timeout(key: str, unit: str) -> Convert:
    """A number of minutes or seconds as a duration."""
    return lambda value, others: Put({key: f"{value}{unit}"})


# experts


def experts(others: Others) -> bool:
    """Whether the model may have experts: the file says so, or leaves it to a preset."""
    return bool(others.preset) or "num_experts" in others


_BALANCE = "transformer.moe_router_load_balancing_type"
_OTHER_LOSSES = ("seq_aux_loss", "global_aux_loss")


def balance(value: Any, others: Others) -> Outcome:
    if value == "none":
        return Put({"moe.balance": "bias" if others.on("moe_router_enable_expert_bias") else "none"})
    if value == "aux_loss":
        return Put({"moe.balance": "aux_loss"})
    if value in _OTHER_LOSSES:
        return Put({"moe.balance": "aux_loss", f"megatron.{_BALANCE}": value})
    return Drop(f"no such balancing: {value}", "moe.balance is aux_loss, bias or none")


def balance_weight(value: Any, others: Others) -> Outcome:
    if others.get("moe_router_load_balancing_type", "aux_loss") not in ("aux_loss", *_OTHER_LOSSES):
        return Idle("moe_router_load_balancing_type has no loss")
    return Put({"moe.balance": "aux_loss", "moe.aux_loss_coeff": value})


def expert_bias(value: Any, others: Others) -> Outcome:
    if not truth(value):
        return Same("off unless `moe.balance: bias`")
    if others.get("moe_router_load_balancing_type", "aux_loss") != "none":
        return Drop("here a bias or an auxiliary loss balances the experts, not both")
    return Put({"moe.balance": "bias"})


def shared_experts(value: Any, others: Others) -> Outcome:
    width = others.number("moe_ffn_hidden_size")
    if not numeric(value) or width is None or value % width:
        return Drop("no multiple of a moe_ffn_hidden_size of this file", "set model.n_shared_experts")
    return Put({"model.n_shared_experts": int(value // width)}, f"{value} / {width:g}")


_LEADING = re.compile(r"\(?\[0\]\s*\*\s*(\d{1,4})\s*\+\s*\[1\]\s*\*\s*\d+\)?\Z")


def dense_layers(value: Any, others: Others) -> Outcome:
    """Megatron's pattern of dense (0) and expert (1) layers, of which we know leading dense ones."""
    if value == 1:
        return (
            Put({"model.first_k_dense_replace": 0}) if "num_experts" in others else Same("every layer, or the preset's")
        )
    pattern = value
    if isinstance(value, str) and (found := _LEADING.match(value.strip())):
        pattern = [0] * int(found[1]) + [1]
    if isinstance(pattern, list) and all(item in (0, 1) for item in pattern) and pattern == sorted(pattern):
        return Put({"model.first_k_dense_replace": pattern.count(0)})
    return Drop("only leading layers can be dense", "set model.first_k_dense_replace")


# architecture


def window(value: Any, others: Others) -> Outcome:
    if isinstance(value, list) and len(value) == 2 and value[1] == 0:
        return Put({"model.sliding_window": value[0]})
    return Drop("not a window of tokens before the query", "set model.sliding_window")


def window_layers(value: Any, others: Others) -> Outcome:
    alternate = isinstance(value, list) and len(value) > 1 and all(item == (i + 1) % 2 for i, item in enumerate(value))
    if value == 2 or alternate:
        return Same("every second layer has the window")
    return Drop("which layers have the window is the model family's")


def rope_scaling(value: Any, others: Others) -> Outcome:
    """Megatron's switch is Llama 3.1's scaling with fixed bounds."""
    if not truth(value):
        return Same("off, as here without model.rope_scaling")
    bounds = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    scaling = {"rope_type": "llama3", "factor": others.get("rope_scaling_factor", 8.0), **bounds}
    return Put({f"model.rope_scaling.{name}": item for name, item in scaling.items()})


# tracing


def traced(value: Any, others: Others) -> Outcome:
    """Megatron's first and last count completed steps, ours count from one."""
    if not others.on("profile"):
        return Same("no trace without `profile`") if truth(value) is False else Idle("profile is off")
    first, last = others.get("profile_step_start", 10), others.get("profile_step_end", 12)
    if not (numeric(first) and numeric(last)):
        return Drop("not numbers of steps", "set profile.steps")
    return Put({"profile.steps": [first + 1, last]}, "ours count from 1")


def traced_ranks(value: Any, others: Others) -> Outcome:
    if not others.on("profile"):
        return Idle("profile is off")
    return Put({"profile.ranks": value if isinstance(value, list) else [value]})
