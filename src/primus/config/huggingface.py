"""Hugging Face ``config.json`` <-> the portable model fields.

Which keys a family has, and what becomes of each, is in ``primus.config.families``. Both spellings of rotary embeddings
are understood: ``rope_parameters`` (transformers 5) and ``rope_theta`` with ``rope_scaling`` (transformers 4); the
latter, which both versions read, is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shown  # cut short, also of a giant
from typing import Any

from primus.config import layers
from primus.config.experiment import Model, RopeScaling
from primus.config.families import AGAIN, COMMON, COMPOSITES, FAMILIES, REQUIRED, Family
from primus.config.scalars import is_text
from primus.errors import ConfigError, Problem
from primus.home import user_path


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
    """Portable model fields (all of Model's but `init` and `init_std`) from the contents of a config.json. Of a model
    that also sees they are those of its text part.

    Raises ConfigError, at `where`, with everything that cannot be honoured.
    """
    problems: list[Problem] = []
    config = _text_part(config, where, problems)
    model_type = _known(config.get("model_type"), where)
    family = FAMILIES[model_type]
    config = _without_aliases(config, family, where, problems)
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "quantised") if isinstance(quantization, dict) else quantization
        problems.append(
            Problem(
                where, f"the weights are stored as {shown(method)}", "start from a copy with bf16, fp16 or fp32 weights"
            )
        )
    for key, allowed in family.fixed.items():
        value = config.get(key, allowed)
        if value != allowed and value is not None:
            refusal = f"{key}: {shown(value)} cannot be honoured for {model_type}"
            problems.append(Problem(where, refusal, f"only {json.dumps(allowed)} can"))
    fields: dict[str, Any] = {"model_type": model_type}
    for key, name in ({name: name for name in COMMON} | dict(family.carried)).items():
        value = config.get(key, family.defaults.get(key))
        if value is not None:
            fields[name] = _one_value(key, value, where, problems)
        elif key in REQUIRED:
            problems.append(Problem(where, f"{key} is missing", AGAIN))
    fields |= family.implied
    fields |= layers.read(config, model_type, where, problems)
    if model_type == "llama4_text" and type(fields.get("attn_temperature_tuning")) is int:
        fields["attn_temperature_tuning"] = bool(fields["attn_temperature_tuning"])  # Scout says 4, and means true
    if model_type == "deepseek_v2":
        _limit_groups(config, fields, where, problems)
    theta, scaling = _rope(config, model_type, where, problems)
    fields["rope_theta"] = theta
    if scaling:
        fields["rope_scaling"] = scaling
    if problems:
        raise ConfigError(problems=problems)
    return fields


def to_config(model: Model) -> dict[str, Any]:
    """A config.json for `model`, which transformers 4.55 or newer (llama: any) reads back to the same architecture."""
    family = FAMILIES[model.model_type]
    names = {name: name for name in COMMON} | dict(family.carried)
    config: dict[str, Any] = {"architectures": [family.architecture], "model_type": model.model_type}
    config |= {key: getattr(model, name) for key, name in names.items() if getattr(model, name) is not None}
    config.setdefault("num_key_value_heads", model.num_attention_heads)
    if "head_dim" in names:
        config.setdefault("head_dim", model.hidden_size // model.num_attention_heads)
    config = {**family.unset, **config, **family.fixed, **layers.written(model)}
    if "q_lora_rank" in names:
        config["q_lora_rank"] = model.q_lora_rank or None
    if model.model_type == "deepseek_v2":
        config["topk_method"] = "group_limited_greedy" if (model.n_group or 1) > 1 else "greedy"
    config["rope_theta"] = model.rope_theta
    config["rope_scaling"] = {"rope_type": "default"} if family.rope else None
    if model.rope_scaling:
        config["rope_scaling"] = model.rope_scaling.model_dump(exclude_none=True)
        if model.model_type == "gpt_oss":
            config["rope_scaling"]["truncate"] = False
    config["initializer_range"] = model.init_std
    return dict(sorted(config.items()))


def _known(model_type: object, where: str) -> str:
    if isinstance(model_type, str) and model_type in FAMILIES:
        return model_type
    known = ", ".join((*FAMILIES, *COMPOSITES))
    raise ConfigError(f"model_type {shown(model_type)} is not supported", where=where, remedy=f"supported: {known}")


def _text_part(config: Mapping[str, Any], where: str, problems: list[Problem]) -> Mapping[str, Any]:
    """`config` itself, or the part of a composite model that is a language model."""
    composite = config.get("model_type")
    if not isinstance(composite, str) or composite not in COMPOSITES:
        return config
    text = config.get("text_config")
    if not isinstance(text, dict):
        found = "is missing" if text is None else f"must be a map, but is {shown(text)}"
        raise ConfigError(f"text_config of this {composite} model {found}", where=where, remedy=AGAIN)
    inner = text.get("model_type", COMPOSITES[composite])
    if inner != COMPOSITES[composite]:
        raise ConfigError(
            f"text_config.model_type {shown(inner)} is not supported",
            where=where,
            remedy=f"supported in {composite}: {COMPOSITES[composite]}",
        )
    outside = {key: config[key] for key in ("quantization_config", "tie_word_embeddings") if key in config}
    key = "tie_word_embeddings"
    if key in text and bool(outside.get(key, text[key])) != bool(text[key]):
        problems.append(Problem(where, f"{key} of the model and of its text_config contradict each other", AGAIN))
    return {**outside, **text, "model_type": inner}


def _without_aliases(
    config: Mapping[str, Any], family: Family, where: str, problems: list[Problem]
) -> Mapping[str, Any]:
    """`config` with each key under the name that `family` carries."""
    result = dict(config)
    for alias, key in family.aliases.items():
        value = config.get(alias)
        if value is not None and result.setdefault(key, value) != value:
            problems.append(Problem(where, f"{alias} and {key} are two names of one thing, but differ", AGAIN))
    return result


def _limit_groups(config: Mapping[str, Any], fields: dict[str, Any], where: str, problems: list[Problem]) -> None:
    """DeepSeek-V2 looks at the groups of experts only with one of its two ways to choose."""
    method = config.get("topk_method", "greedy")
    if method == "greedy":
        fields.pop("n_group", None)
        fields.pop("topk_group", None)
    elif method == "group_limited_greedy":
        problems += [
            Problem(where, f"{key} is missing, which {method} needs", AGAIN)
            for key in ("n_group", "topk_group")
            if fields.get(key) is None
        ]
    else:
        refusal = f"topk_method: {shown(method)} cannot be honoured for deepseek_v2"
        problems.append(Problem(where, refusal, "only greedy and group_limited_greedy can"))


def _one_value(key: str, value: Any, where: str, problems: list[Problem]) -> Any:
    """`value` if it is a number, text or a truth value; else None, and a problem. Whether it is the right one of these
    is found out with the experiment's other values."""
    if not isinstance(value, list | dict | str) or (isinstance(value, str) and is_text(value)):
        return value
    problems.append(Problem(where, f"{key} must be a single value, but is {shown(value)}", AGAIN))
    return None


def _rope(
    config: Mapping[str, Any], model_type: str, where: str, problems: list[Problem]
) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling of the rotary embedding, from either spelling."""
    name = next((key for key in ("rope_parameters", "rope_scaling") if config.get(key)), "")
    given = config[name] if name else FAMILIES[model_type].rope
    if not isinstance(given, Mapping):
        problems.append(Problem(where, f"{name} must be a map, but is {shown(given)}", AGAIN))
        given = {}
    given = {key: _one_value(f"{name}.{key}", value, where, problems) for key, value in given.items()}
    theta = given.get("rope_theta", config.get("rope_theta"))
    theta = _one_value(
        "rope_theta", FAMILIES[model_type].defaults["rope_theta"] if theta is None else theta, where, problems
    )
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
        if truncate == (model_type == "gpt_oss"):
            problems.append(Problem(where, f"rope truncate: {shown(truncate)} cannot be honoured for {model_type}"))
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
