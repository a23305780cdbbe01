"""Hugging Face ``config.json`` <-> the portable model fields.

What a key means is what the model class of ``transformers`` makes of it: keys that class does not read are no concern
of ours either. Of those it reads, each is carried (``_CARRIED``), held to the one value we can honour (``_FIXED``), or
without effect on training (``HARMLESS``). Both spellings of rotary embeddings are understood: ``rope_parameters``
(transformers 5) and ``rope_theta`` with ``rope_scaling`` (transformers 4); the latter, which both versions read, is
written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shown  # cut short, also of a giant
from typing import Any

from primus.config.experiment import Model, RopeScaling
from primus.config.scalars import is_text
from primus.errors import ConfigError, Problem
from primus.home import user_path

AGAIN = "fetch or export the model again"

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
}

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_COMMON = (*_SIZES, "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
_REQUIRED = (*_SIZES, "max_position_embeddings")

_CARRIED: dict[str, dict[str, str]] = {
    "llama": {"num_key_value_heads": "num_key_value_heads", "head_dim": "head_dim"},
    "qwen3": {"num_key_value_heads": "num_key_value_heads", "head_dim": "head_dim"},
    "deepseek_v3": {
        "num_key_value_heads": "num_key_value_heads",
        "q_lora_rank": "q_lora_rank",
        "kv_lora_rank": "kv_lora_rank",
        "qk_nope_head_dim": "qk_nope_head_dim",
        "qk_rope_head_dim": "qk_rope_head_dim",
        "v_head_dim": "v_head_dim",
        "n_routed_experts": "num_experts",
        "num_experts_per_tok": "num_experts_per_tok",
        "moe_intermediate_size": "moe_intermediate_size",
        "n_shared_experts": "n_shared_experts",
        "first_k_dense_replace": "first_k_dense_replace",
        "n_group": "n_group",
        "topk_group": "topk_group",
        "routed_scaling_factor": "routed_scaling_factor",
        "norm_topk_prob": "norm_topk_prob",
        "scoring_func": "scoring_func",
    },
    "gpt_oss": {
        "num_key_value_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "num_local_experts": "num_experts",
        "num_experts_per_tok": "num_experts_per_tok",
        "sliding_window": "sliding_window",
        "swiglu_limit": "swiglu_limit",
    },
}
"""Family -> key of config.json -> portable field, beside those with the same name in every family."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "rope_theta": 10000.0},
    "qwen3": {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "num_key_value_heads": 32, "head_dim": 128},
    "deepseek_v3": {
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "n_shared_experts": 1,
        "first_k_dense_replace": 3,
        "n_group": 8,
        "topk_group": 4,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "scoring_func": "sigmoid",
    },
    "gpt_oss": {
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
    },
}
"""Defaults of the model classes of transformers, for keys that a config.json may leave out."""

_DEFAULT_ROPE: dict[str, dict[str, Any]] = {
    "gpt_oss": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    }
}
"""What a family's model class makes of a config.json without any rotary scaling; none for the others."""

_IMPLIED: dict[str, dict[str, Any]] = {"gpt_oss": {"scoring_func": "softmax", "norm_topk_prob": True}}
"""Portable fields that a family fixes without a key of its own."""

_FIXED: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "pretraining_tp": 1,
    },
    "qwen3": {"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0, "use_sliding_window": False},
    "deepseek_v3": {
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rope_interleave": True,
        "pretraining_tp": 1,
        "moe_layer_freq": 1,
        "topk_method": "noaux_tc",
    },
    "gpt_oss": {"hidden_act": "silu", "attention_bias": True, "attention_dropout": 0.0, "swiglu_alpha": 1.702},
}
"""Settings of which we can honour one value only; absent means that value."""

HARMLESS = frozenset(
    {
        *("_name_or_path", "architectures", "dtype", "model_type", "torch_dtype", "transformers_version"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "problem_type"),
        *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "use_cache"),
        *("chunk_size_feed_forward", "initializer_range", "is_encoder_decoder", "router_aux_loss_coef"),
        *("max_window_layers", "num_nextn_predict_layers", "qk_head_dim"),
    }
)
"""Keys the model classes read (or store) that do not change what is trained here."""


class NotFetched(ConfigError):
    """`model.init` is a Hub id of which nothing has been fetched yet."""

    def __init__(self, init: str) -> None:
        from primus.data.hub import not_here

        self.init = init
        super().__init__(
            f"the model {init} has not been fetched from the Hub yet, so its architecture is not known{not_here(init)}",
            where="model.init",
            remedy="training fetches it (a dry run does not); or name a directory",
        )


def start_directory(init: str) -> Path | None:
    """The local directory training starts from: `init` itself, or where the Hub id it names was fetched to. None for
    `random` and `native`. Reads no network; raises NotFetched."""
    from primus.data import hub

    if init in ("random", "native"):
        return None
    if not hub.is_hub_id(init):
        return user_path(init).absolute()
    directory = hub.fetched(init, "model")
    if directory is None:
        raise NotFetched(init)
    return directory


def model_fields(init: str) -> dict[str, Any]:
    """The portable model fields that `model.init` stands for; none for `random` and `native`.

    Raises NotFetched, or ConfigError with everything in its config.json that cannot be honoured.
    """
    directory = start_directory(init)
    if directory is None:
        return {}
    path = directory / "config.json"
    remedy = "name a directory with config.json and *.safetensors, a Hub id org/name, random or native"
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"there is no {path}", where="model.init", remedy=remedy) from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be read: {reason}", where="model.init", remedy=remedy) from None
    try:
        config = json.loads(raw.decode("utf-8"))
    except RecursionError:
        raise ConfigError("is nested too deep to be a model's", where=str(path), remedy=AGAIN) from None
    except ValueError as error:
        raise ConfigError(f"is not valid JSON: {error}", where=str(path), remedy=AGAIN) from None
    if not isinstance(config, dict):
        raise ConfigError("must hold a JSON object", where=str(path), remedy=AGAIN)
    return from_config(config, str(path))


def from_config(config: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """Portable model fields (all of Model's but `init` and `init_std`) from the contents of a config.json.

    Raises ConfigError, at `where`, with everything that cannot be honoured.
    """
    problems: list[Problem] = []
    family = config.get("model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ConfigError(f"model_type {shown(family)} is not supported", where=where, remedy=f"supported: {known}")
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "quantised") if isinstance(quantization, dict) else quantization
        problems.append(
            Problem(
                where, f"the weights are stored as {shown(method)}", "start from a copy with bf16, fp16 or fp32 weights"
            )
        )
    for key, allowed in _FIXED[family].items():
        value = config.get(key, allowed)
        if value != allowed and value is not None:
            refusal = f"{key}: {shown(value)} cannot be honoured for {family}"
            problems.append(Problem(where, refusal, f"only {allowed!r} can"))
    _check_layer_types(config, family, where, problems)
    defaults = _DEFAULTS[family]
    fields: dict[str, Any] = {"model_type": family}
    for key, field in ({name: name for name in _COMMON} | _CARRIED[family]).items():
        value = config.get(key, defaults.get(key))
        if value is not None:
            fields[field] = _one_value(key, value, where, problems)
        elif key in _REQUIRED:
            problems.append(Problem(where, f"{key} is missing", AGAIN))
    fields |= _IMPLIED.get(family, {})
    theta, scaling = _rope(config, family, where, problems)
    fields["rope_theta"] = theta
    if scaling:
        fields["rope_scaling"] = scaling
    if problems:
        raise ConfigError(problems=problems)
    return fields


def to_config(model: Model) -> dict[str, Any]:
    """A config.json for `model`, which transformers 4.55 or newer (llama: any) reads back to the same architecture."""
    family = model.model_type
    names = {name: name for name in _COMMON} | _CARRIED[family]
    config: dict[str, Any] = {"architectures": [ARCHITECTURES[family]], "model_type": family}
    config |= {key: getattr(model, field) for key, field in names.items() if getattr(model, field) is not None}
    config.setdefault("num_key_value_heads", model.num_attention_heads)
    if "head_dim" in names:
        config.setdefault("head_dim", model.hidden_size // model.num_attention_heads)
    if family == "deepseek_v3":
        config["q_lora_rank"] = model.q_lora_rank or None
        # what an unset field means here, not in transformers
        unset = {"first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0}
        config = {**unset, "norm_topk_prob": True, "scoring_func": "sigmoid", **config}
    config |= _FIXED[family]
    config["rope_theta"] = model.rope_theta
    config["rope_scaling"] = {"rope_type": "default"} if family in _DEFAULT_ROPE else None
    if model.rope_scaling:
        config["rope_scaling"] = model.rope_scaling.model_dump(exclude_none=True)
        if family == "gpt_oss":
            config["rope_scaling"]["truncate"] = False
    if family == "gpt_oss":
        layers = range(model.num_hidden_layers)
        config["layer_types"] = ["full_attention" if layer % 2 else "sliding_attention" for layer in layers]
    config["initializer_range"] = model.init_std
    return dict(sorted(config.items()))


def _one_value(key: str, value: Any, where: str, problems: list[Problem]) -> Any:
    """`value` if it is a number, text or a truth value; else None, and a problem. Whether it is the right one of these
    is found out with the experiment's other values."""
    if not isinstance(value, list | dict | str) or (isinstance(value, str) and is_text(value)):
        return value
    problems.append(Problem(where, f"{key} must be a single value, but is {shown(value)}", AGAIN))
    return None


def _check_layer_types(config: Mapping[str, Any], family: str, where: str, problems: list[Problem]) -> None:
    types = config.get("layer_types")
    if types is None:
        return
    if not isinstance(types, list):
        problems.append(Problem(where, f"layer_types must be a list, but is {shown(types)}", AGAIN))
        return
    alternating = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(len(types))]
    expected = alternating if family == "gpt_oss" else ["full_attention"] * len(types)
    if types != expected:
        pattern = "sliding and full attention in turn" if family == "gpt_oss" else "full attention in every layer"
        problems.append(Problem(where, f"these layer_types cannot be honoured for {family}", f"only {pattern} can"))


def _rope(
    config: Mapping[str, Any], family: str, where: str, problems: list[Problem]
) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling of the rotary embedding, from either spelling."""
    name = next((key for key in ("rope_parameters", "rope_scaling") if config.get(key)), "")
    given = config[name] if name else _DEFAULT_ROPE.get(family, {})
    if not isinstance(given, dict):
        problems.append(Problem(where, f"{name} must be a map, but is {shown(given)}", AGAIN))
        given = {}
    given = {key: _one_value(f"{name}.{key}", value, where, problems) for key, value in given.items()}
    theta = given.get("rope_theta", config.get("rope_theta"))
    theta = _one_value("rope_theta", _DEFAULTS[family]["rope_theta"] if theta is None else theta, where, problems)
    kind = given.get("rope_type", given.get("type", "default"))
    rest = {key: value for key, value in given.items() if key not in ("rope_type", "type", "rope_theta")}
    if rest.pop("partial_rotary_factor", 1.0) != 1.0 or config.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append(Problem(where, "rotary embedding of a part of each head cannot be honoured"))
    if kind == "default":
        return theta, None
    if kind not in ("llama3", "yarn"):
        problems.append(
            Problem(where, f"rope_type {shown(kind)} cannot be honoured", "supported: default, llama3, yarn")
        )
        return theta, None
    truncate = rest.pop("truncate", True)
    if kind == "yarn":
        rest.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
        rest = {key: value for key, value in rest.items() if value is not None}
        if truncate == (family == "gpt_oss"):
            problems.append(Problem(where, f"rope truncate: {shown(truncate)} cannot be honoured for {family}"))
    known = RopeScaling.model_fields
    for key in sorted(set(rest) - set(known)):
        refusal = f"{key} of the rotary scaling cannot be honoured"
        problems.append(Problem(where, refusal, "remove it if it has its default"))
    needed: tuple[str, ...] = ("factor", "original_max_position_embeddings")
    needed += ("low_freq_factor", "high_freq_factor") if kind == "llama3" else ()
    for key in needed:
        if rest.get(key) is None:
            problems.append(Problem(where, f"{key} of the rotary scaling is missing"))
    return theta, {"rope_type": kind, **{key: rest[key] for key in known if key in rest}}
