"""How a model's router scores its experts."""

from __future__ import annotations

from primus.config.experiment import Model
from primus.config.families import FAMILIES


def scoring(model: Model) -> str:
    """``softmax`` over all experts, or the ``sigmoid`` of each."""
    default = FAMILIES[model.model_type].implied.get("scoring_func", "sigmoid")
    return model.scoring_func or str(default)


def normalized(model: Model) -> bool:
    """Whether the weights of the chosen experts are made to sum to one."""
    default = FAMILIES[model.model_type].implied.get("norm_topk_prob", True)
    return bool(default if model.norm_topk_prob is None else model.norm_topk_prob)
