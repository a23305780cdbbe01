"""What TorchTitan's models cannot do, known without importing them."""

from __future__ import annotations

from typing import Literal

from primus.config.experiment import Model, Moe
from primus.errors import Problem

MOE_FIELDS = (
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "n_shared_experts",
    "first_k_dense_replace",
    "n_group",
    "topk_group",
    "routed_scaling_factor",
    "scoring_func",
    "norm_topk_prob",
)
MLA_FIELDS = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
GPT_OSS_FIELDS = ("sliding_window", "swiglu_limit")

FOREIGN = {
    "llama": (*MOE_FIELDS, *MLA_FIELDS, *GPT_OSS_FIELDS),
    "qwen3": (*MOE_FIELDS, *MLA_FIELDS, *GPT_OSS_FIELDS),
    "deepseek_v3": GPT_OSS_FIELDS,
    "gpt_oss": (
        "n_shared_experts",
        "first_k_dense_replace",
        "n_group",
        "topk_group",
        "routed_scaling_factor",
        *MLA_FIELDS,
    ),
}
"""Fields that mean nothing to a family: set, they would be ignored."""

NEEDED: dict[str, tuple[str, ...]] = {
    "llama": (),
    "qwen3": (),
    "deepseek_v3": (
        "num_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "n_shared_experts",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
    ),
    "gpt_oss": ("num_experts", "num_experts_per_tok", "head_dim", "sliding_window"),
}

ROPE_TYPES = {
    "llama": ("llama3", "yarn"),
    "qwen3": ("yarn",),
    "deepseek_v3": ("llama3", "yarn"),
    "gpt_oss": ("yarn",),
}
MIXTURES = ("deepseek_v3", "gpt_oss")


def attention_backend(
    model: Model,
    document_attention: Literal["full", "within"],
    context: int = 1,
    device: Literal["cpu", "cuda", "rocm"] = "cpu",
) -> Literal["sdpa", "flex"]:
    """``sdpa``: plain causal attention, no mask to build. ``flex``: a block mask from the positions (on a CPU replaced
    by masked attention).

    gpt_oss needs a mask for its windows and the log-sum-exp for its sinks; context parallelism is written for the
    mask; and the fused kernels behind ``sdpa`` want values as wide as keys, which multi-head latent attention does
    not have, so that on a GPU it would fall back to a quadratic score matrix.
    """
    if document_attention == "within" or context > 1 or model.model_type == "gpt_oss":
        return "flex"
    if model.model_type == "deepseek_v3" and device != "cpu":
        return "flex"
    return "sdpa"


def problems(
    model: Model,
    *,
    moe: Moe | None = None,
    seq_length: int | None = None,
    tensor: int = 1,
    pipeline: int = 1,
    expert: int = 1,
) -> list[Problem]:
    """Every reason why TorchTitan cannot train this model in this layout, each with the key's name."""
    family = model.model_type
    found = [
        Problem(f"model.{name}", f"model.{name} means nothing to {family}", "remove it")
        for name in FOREIGN[family]
        if getattr(model, name) is not None
    ]
    found += [
        Problem(f"model.{name}", f"{family} needs model.{name}")
        for name in NEEDED[family]
        if getattr(model, name) is None
    ]
    if found:
        return found
    found += _attention(model, tensor)
    found += _rope(model)
    if seq_length is not None and seq_length > model.max_position_embeddings:
        found.append(
            Problem(
                "train.seq_length",
                f"{seq_length} tokens exceed model.max_position_embeddings={model.max_position_embeddings}",
                f"at most {model.max_position_embeddings}",
            )
        )
    if model.tie_word_embeddings and pipeline > 1:
        found.append(
            Problem(
                "parallel.pipeline",
                "TorchTitan cannot split a model with tied embeddings into pipeline stages",
                "set parallel.pipeline=1 or model.tie_word_embeddings=false",
            )
        )
    if model.tie_word_embeddings and family in MIXTURES:
        found.append(
            Problem(
                "model.tie_word_embeddings", f"TorchTitan's {family} does not tie its embeddings", "set it to false"
            )
        )
    if family in MIXTURES:
        found += _mixture(model, moe or Moe(), expert)
    elif expert > 1:
        found.append(Problem("parallel.expert", f"{family} has no experts to spread", "set parallel.expert=1"))
    return found


def _attention(model: Model, tensor: int) -> list[Problem]:
    found: list[Problem] = []
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads or model.num_attention_heads
    if model.model_type == "deepseek_v3":
        if kv_heads != heads:
            found.append(
                Problem(
                    "model.num_key_value_heads",
                    f"multi-head latent attention has as many key/value as query heads ({heads}), not {kv_heads}",
                    "remove it",
                )
            )
    elif heads % kv_heads:
        found.append(
            Problem("model.num_key_value_heads", f"{heads} query heads do not divide among {kv_heads} key/value heads")
        )
    if model.model_type != "deepseek_v3":
        if model.head_dim is None and model.hidden_size % heads:
            found.append(
                Problem(
                    "model.num_attention_heads",
                    f"hidden_size={model.hidden_size} does not divide by {heads} heads",
                    "set model.head_dim, or other numbers",
                )
            )
        elif (model.head_dim or model.hidden_size // heads) % 2:
            found.append(Problem("model.head_dim", "rotary embedding needs an even head_dim"))
    elif (model.qk_rope_head_dim or 0) % 2:
        found.append(Problem("model.qk_rope_head_dim", "rotary embedding needs an even width"))
    for name, number in {"num_attention_heads": heads, "num_key_value_heads": kv_heads}.items():
        if number % tensor:
            found.append(
                Problem("parallel.tensor", f"{tensor} tensor-parallel ranks do not divide model.{name}={number}")
            )
    return found


def _rope(model: Model) -> list[Problem]:
    scaling, family = model.rope_scaling, model.model_type
    if scaling is None:
        return []
    found: list[Problem] = []
    here = "model.rope_scaling"
    if scaling.rope_type not in ROPE_TYPES[family]:
        legal = " or ".join(ROPE_TYPES[family])
        return [
            Problem(f"{here}.rope_type", f"TorchTitan's {family} cannot scale by {scaling.rope_type}", f"use {legal}")
        ]
    llama3, yarn = ("low_freq_factor", "high_freq_factor"), ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    foreign = yarn if scaling.rope_type == "llama3" else llama3
    found += [
        Problem(f"{here}.{name}", f"{name} means nothing to {scaling.rope_type}", "remove it")
        for name in foreign
        if getattr(scaling, name) is not None
    ]
    if scaling.rope_type == "llama3":
        found += [
            Problem(f"{here}.{name}", f"llama3 needs {name}") for name in llama3 if getattr(scaling, name) is None
        ]
    if family == "gpt_oss":
        found += [
            Problem(f"{here}.{name}", f"TorchTitan's gpt_oss derives {name} from factor", "remove it")
            for name in ("mscale", "mscale_all_dim")
            if getattr(scaling, name) is not None
        ]
    return found


def _mixture(model: Model, moe: Moe, expert: int) -> list[Problem]:
    found: list[Problem] = []
    count = model.num_experts or 0
    if moe.balance == "aux_loss":
        found.append(Problem("moe.balance", "TorchTitan has no auxiliary balance loss", "use bias or none"))
    if moe.aux_loss_coeff is not None:
        found.append(Problem("moe.aux_loss_coeff", "TorchTitan has no auxiliary balance loss", "remove it"))
    if (model.num_experts_per_tok or 0) > count:
        found.append(Problem("model.num_experts_per_tok", f"there are only {count} experts to choose from"))
    if count % expert:
        found.append(
            Problem("parallel.expert", f"{expert} expert-parallel ranks do not divide model.num_experts={count}")
        )
    if model.model_type == "gpt_oss":
        return found + _gpt_oss(model)
    if model.n_shared_experts == 0:
        found.append(
            Problem("model.n_shared_experts", "TorchTitan's deepseek_v3 has at least one shared expert", "set it to 1")
        )
    if (model.first_k_dense_replace or 0) > model.num_hidden_layers:
        found.append(
            Problem(
                "model.first_k_dense_replace", f"more than the model's {model.num_hidden_layers} layers", "lower it"
            )
        )
    return found + _groups(model)


def _groups(model: Model) -> list[Problem]:
    found: list[Problem] = []
    count, groups = model.num_experts or 0, model.n_group or 1
    if groups > 1:
        if model.topk_group is None:
            found.append(Problem("model.topk_group", "model.n_group needs model.topk_group"))
        elif model.topk_group > groups:
            found.append(Problem("model.topk_group", f"{model.topk_group} of {groups} groups cannot be chosen"))
        elif (model.num_experts_per_tok or 0) > model.topk_group * (count // groups):
            found.append(Problem("model.topk_group", "these groups hold fewer experts than model.num_experts_per_tok"))
        if count % groups or count // groups < 2:
            found.append(Problem("model.n_group", f"{count} experts do not make {groups} groups of at least two"))
    elif model.topk_group not in (None, 1):
        found.append(Problem("model.topk_group", "there is one group of experts", "set model.n_group, or remove it"))
    return found


def _gpt_oss(model: Model) -> list[Problem]:
    found: list[Problem] = []
    if model.moe_intermediate_size not in (None, model.intermediate_size):
        found.append(
            Problem("model.moe_intermediate_size", "gpt_oss's experts are model.intermediate_size wide", "remove it")
        )
    if model.scoring_func == "sigmoid":
        found.append(Problem("model.scoring_func", "gpt_oss routes by softmax", "remove it"))
    if model.norm_topk_prob is False:
        found.append(Problem("model.norm_topk_prob", "gpt_oss normalises the chosen scores", "remove it"))
    return found
