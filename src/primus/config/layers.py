"""Which layer of a model is of which kind, and the per-layer lists of config.json that say so.

Models are regular: every so many layers one differs. The portable fields say how many; config.json may list every
layer instead, and a list is understood when it is as regular.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from reprlib import repr as shown
from typing import Any, Literal

from primus.config.experiment import Model
from primus.config.families import AGAIN
from primus.errors import Problem

Attention = Literal["full_attention", "sliding_attention", "chunked_attention"]
"""Of a token to all before it, to those of ``sliding_window``, or to those of its own chunk of
``attention_chunk_size``. Hugging Face's words."""


def has_experts(model: Model, layer: int) -> bool:
    """Whether layer `layer`, counted from 0, is a mixture of experts."""
    if not model.num_experts:
        return False
    if model.model_type == "llama4_text":
        return (layer + 1) % (model.interleave_moe_layer_step or 1) == 0
    return layer >= (model.first_k_dense_replace or 0)


def rotates(model: Model, layer: int) -> bool:
    """Whether queries and keys of layer `layer` are rotated by their position. Only Llama 4 has layers without."""
    return _rotates(model.model_type, layer, model.no_rope_layer_interval)


def attention(model: Model, layer: int) -> Attention:
    """What a token of layer `layer` attends to."""
    return _attention(model.model_type, layer, model.no_rope_layer_interval)


def dense_layers(model: Model) -> int:
    """Number of layers with a dense feed-forward; the others are mixtures of experts."""
    layers = model.num_hidden_layers
    if not model.num_experts:
        return layers
    if model.model_type == "llama4_text":
        return layers - layers // (model.interleave_moe_layer_step or 1)
    return min(model.first_k_dense_replace or 0, layers)


def local_layers(model: Model) -> int:
    """Number of layers that do not attend to the whole sequence."""
    layers = model.num_hidden_layers
    if model.model_type == "gpt_oss":
        return (layers + 1) // 2
    if model.model_type == "llama4_text" and model.no_rope_layer_interval:
        return layers - layers // model.no_rope_layer_interval
    return 0


def written(model: Model) -> dict[str, Any]:
    """The per-layer lists of config.json for `model`; none for a family whose class reads none."""
    layers = range(model.num_hidden_layers)
    if model.model_type == "gpt_oss":
        return {"layer_types": [attention(model, layer) for layer in layers]}
    if model.model_type == "llama4_text":
        return {
            "moe_layers": [layer for layer in layers if has_experts(model, layer)],
            "no_rope_layers": [int(rotates(model, layer)) for layer in layers],
        }
    return {}


def read(config: Mapping[str, Any], model_type: str, where: str, problems: list[Problem]) -> dict[str, Any]:
    """The portable fields that per-layer lists in `config` stand for. A list that is irregular, or says otherwise than
    the model can, becomes a problem at `where`."""
    found: dict[str, Any] = {}
    if model_type == "llama4_text":  # empty is as good as absent, but for moe_layers
        if config.get("moe_layers") is not None:
            found["interleave_moe_layer_step"] = _step("moe_layers", config, where, problems)
        if config.get("no_rope_layers"):
            found["no_rope_layer_interval"] = _step("no_rope_layers", config, where, problems)
    types = config.get("layer_types")
    if types is None:
        return found
    if not isinstance(types, list):
        problems.append(Problem(where, f"layer_types must be a list, but is {shown(types)}", AGAIN))
        return found
    interval: Any = None
    if model_type == "llama4_text":
        interval = found.get("no_rope_layer_interval", config.get("no_rope_layer_interval", 4))
        if not isinstance(interval, int) or interval < 1:
            return found  # a problem of its own
    if types != [_attention(model_type, layer, interval) for layer in range(len(types))]:
        refusal = f"these layer_types cannot be honoured for {model_type}"
        problems.append(
            Problem(where, refusal, f"only {_PATTERNS.get(model_type, 'full attention in every layer')} can")
        )
    return found


_PATTERNS = {
    "gpt_oss": "sliding and full attention in turn",
    "llama4_text": "full attention in the layers without rotary positions, chunked in the others,",
}


def _rotates(model_type: str, layer: int, no_rope_interval: int | None) -> bool:
    return model_type != "llama4_text" or not no_rope_interval or (layer + 1) % no_rope_interval != 0


def _attention(model_type: str, layer: int, no_rope_interval: int | None) -> Attention:
    if model_type == "gpt_oss":  # it begins with a window
        return "full_attention" if layer % 2 else "sliding_attention"
    if model_type == "llama4_text" and _rotates(model_type, layer, no_rope_interval):
        return "chunked_attention"
    return "full_attention"


def _step(name: str, config: Mapping[str, Any], where: str, problems: list[Problem]) -> int | None:
    """Every how many layers one is in the list `name`: the last of each group. One more than there are layers when
    none is; None, and a problem, when they are irregular."""
    items, layers = config[name], config.get("num_hidden_layers")
    if not isinstance(items, list) or not all(isinstance(item, int) for item in items):
        problems.append(Problem(where, f"{name} must be a list of numbers, but is {shown(items)}", AGAIN))
        return None
    if not isinstance(layers, int) or layers < 1:
        return None  # a problem of num_hidden_layers
    named = sorted({item for item in items if 0 <= item < layers}) if name == "moe_layers" else _zeros(items[:layers])
    step = named[0] + 1 if named else layers + 1
    regular = all(layer == (number + 1) * step - 1 for number, layer in enumerate(named))
    whole = (len(named) + 1) * step > layers and (name == "moe_layers" or len(items) >= layers)
    if regular and whole:
        return step
    problems.append(
        Problem(where, f"these {name} cannot be honoured", f"only the last of every N of all {layers} layers can")
    )
    return None


def _zeros(flags: Iterable[int]) -> list[int]:
    return [layer for layer, flag in enumerate(flags) if not flag]
