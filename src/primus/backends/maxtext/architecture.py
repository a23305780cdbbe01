"""A model's dimensions in MaxText's words. Pure: neither jax nor MaxText is imported here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.backends.maxtext.mesh import tokens_cannot_be_sent
from primus.config.dimensions import expert_width, head_dim, key_value_heads, shared_experts
from primus.config.experiment import Experiment, Model, Moe
from primus.config.families import latent_attention
from primus.config.layers import dense_layers
from primus.errors import Problem
from primus.plan.plan import PlannedData, Topology

BLOCKS = {
    "llama": "qwen2",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
    "mixtral": "qwen3_moe",
    "deepseek_v2": "deepseek",
    "deepseek_v3": "deepseek",
}
"""Family -> which of MaxText's decoder layers computes it. MaxText's own llama2 and mixtral fold the scale of the
scores into the query projection, which then learns at another pace; its qwen2 without biases is exactly Llama, its
qwen3_moe without norms of queries and keys exactly Mixtral."""

LATENT_KEYS = ("kv_wa_proj", "mla_kv", "use_sliced_mla_proj")
QUERY_KEYS = ("mla_q", "query_wa_proj")
"""MaxText's keys that only latent attention reads, and only such whose queries pass through a latent too."""
SPARSE_KEYS = ("moe_x_sorted", "use_custom_sort_vjp")
EXPERT_KEYS = ("float32_weight_sum", "moe_mlpwi_0", "moe_mlpwi_1", "moe_mlpwo", "sparse_matmul", *SPARSE_KEYS)
"""MaxText's keys that only mixtures read, and only with ``sparse_matmul``."""

AUX_LOSS = 1e-3
"""Weight of the auxiliary loss where an experiment does not say it, as on Megatron."""


def architecture(model: Model, moe: Moe) -> dict[str, Any]:
    """MaxText's fields of `model`, its routing included."""
    fields = {
        "decoder_block": BLOCKS[model.model_type],
        "base_emb_dim": model.hidden_size,
        "base_num_query_heads": model.num_attention_heads,
        "base_num_kv_heads": key_value_heads(model),
        "head_dim": head_dim(model),
        "base_mlp_dim": model.intermediate_size,
        "base_num_decoder_layers": model.num_hidden_layers,
        "vocab_size": model.vocab_size,
        "mlp_activations": ["silu", "linear"],
        "normalization_layer_epsilon": model.rms_norm_eps,
        "rope_type": "default",
        "rope_max_timescale": int(model.rope_theta),
        "attention_bias": model.model_type == "qwen2",
        "use_qk_norm": model.model_type in ("qwen3", "qwen3_moe"),
        "logits_via_embedding": model.tie_word_embeddings,
        "normalize_embedding_logits": False,
    }
    if latent_attention(model.model_type):
        fields |= _latent(model)
    if model.num_experts:
        fields |= _mixture(model, moe)
    return fields


def _latent(model: Model) -> dict[str, Any]:
    """Multi-head latent attention. MaxText sharpens its scores by yarn's factor where the longest sequence is longer
    than the original window; so it is told just that, which nothing else reads: the angles are ours."""
    scaling = model.rope_scaling
    sharpened = scaling is not None and scaling.factor > 1 and bool(scaling.mscale_all_dim)
    return {
        "attention_type": "mla",
        "q_lora_rank": model.q_lora_rank or 0,
        "kv_lora_rank": model.kv_lora_rank,
        "qk_nope_head_dim": model.qk_nope_head_dim,
        "qk_rope_head_dim": model.qk_rope_head_dim,
        "v_head_dim": model.v_head_dim,
        "original_max_position_embeddings": 1,
        "max_position_embeddings": 2 if sharpened else 1,
        "rope_factor": scaling.factor if scaling and sharpened else 1.0,
        "mscale": scaling.mscale_all_dim if scaling and sharpened else 1.0,
    }


def _mixture(model: Model, moe: Moe) -> dict[str, Any]:
    """The choice of experts and the losses that train it are our router's. Every expert computes the tokens that chose
    it, however many: ``sparse_matmul`` without a kernel for TPUs is a product of ragged groups."""
    fields: dict[str, Any] = {
        "num_experts": model.num_experts,
        "num_experts_per_tok": model.num_experts_per_tok,
        "base_moe_mlp_dim": expert_width(model),
        "sparse_matmul": True,
        "megablox": False,
        "use_tokamax_gmm": False,
        "capacity_factor": -1.0,
        "float32_gate_logits": True,
        "float32_weight_sum": True,
    }
    if not dense_layers(model):
        fields["base_mlp_dim"] = expert_width(model)  # MaxText wants them equal where there is no dense layer
    if latent_attention(model.model_type):
        fields |= {
            "first_num_dense_layers": dense_layers(model),
            "shared_experts": shared_experts(model),
            "routed_scaling_factor": model.routed_scaling_factor or 1.0,
        }
    if moe.balance == "aux_loss":
        fields |= {
            "load_balance_loss_weight": AUX_LOSS if moe.aux_loss_coeff is None else moe.aux_loss_coeff,
            # the two that make it sum the layers' losses and hand over scores in fp32, whatever the score is
            "moe_use_megatron_seq_aux_loss": True,
            "routed_score_func": "sigmoid",
        }
    elif moe.balance == "bias":
        fields["routed_bias"] = True
    return fields


def model_problems(experiment: Experiment, topology: Topology, data: PlannedData) -> Iterator[Problem]:
    """What MaxText cannot compute of the model and its balancing."""
    model, moe = experiment.model, experiment.moe
    if model.model_type not in BLOCKS:
        yield Problem("model.model_type", f"MaxText's {model.model_type} is not Hugging Face's", "another backend")
        return
    if model.rope_theta != int(model.rope_theta) and not (model.rope_scaling or latent_attention(model.model_type)):
        yield Problem("model.rope_theta", "MaxText takes a whole number", f"model.rope_theta: {int(model.rope_theta)}")
    yield from _idle(
        model, experiment.native.get("maxtext", {}), sparse=not tokens_cannot_be_sent(experiment, topology)
    )
    if not model.num_experts:
        return
    if model.num_experts == 1:
        yield Problem("model.num_experts", "MaxText takes one expert for none", "model.num_experts: 2 or more")
    if latent_attention(model.model_type) and not shared_experts(model):
        yield Problem(
            "model.n_shared_experts", "MaxText's DeepSeek layers have shared experts", "1 or more, or another backend"
        )
    if moe.balance == "aux_loss" and experiment.train.micro_batch_size > 1:
        message = "MaxText's auxiliary loss is that of a sequence, not of a micro batch"
        yield Problem("moe.balance", message, "train.micro_batch_size: 1, or moe.balance: none")
    elif moe.balance == "aux_loss" and topology.microbatches > 1 and data.mask_eod:
        message = "MaxText weighs the auxiliary losses of micro batches by their unmasked targets"
        yield Problem("moe.balance", message, "data.mask_eod: false, a larger world, or moe.balance: none")


def _idle(model: Model, own: dict[str, Any], *, sparse: bool) -> Iterator[Problem]:
    """Keys of MaxText's own that nothing would read. sparse: what ``sparse_matmul`` is unless they say it."""
    latent = latent_attention(model.model_type)
    idle: dict[str, tuple[str, ...]] = {}
    if not model.num_experts:
        idle["the model has no experts"] = EXPERT_KEYS
    elif not own.get("sparse_matmul", sparse):
        idle["every expert computes all tokens with sparse_matmul: false"] = SPARSE_KEYS
    if not latent:
        idle["the model has no latent attention"] = (*LATENT_KEYS, *QUERY_KEYS)
    elif not model.q_lora_rank:
        idle["queries pass through no latent without model.q_lora_rank"] = QUERY_KEYS
    for reason, keys in idle.items():
        yield from (Problem(f"maxtext.{key}", reason, "remove it") for key in keys if key in own)
