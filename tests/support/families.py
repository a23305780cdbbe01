"""Tiny models of every family that exercise all of its features, and their twins in transformers.

Importing it makes TorchTitan usable on the CPU; import TorchTitan and transformers after it, inside functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from primus.backends.torchtitan import patches
from primus.backends.torchtitan.models import build_model_spec
from primus.config import huggingface
from primus.config.experiment import Model, Moe, RopeScaling

patches.apply(patches.for_device("cpu"))

SEQ = 128
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 112,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-3,  # large enough to show where another one is used
    "init_std": 0.06,
}
LATENT: dict[str, Any] = {"kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 20}
EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 3}
LLAMA3 = RopeScaling(
    rope_type="llama3", factor=8.0, original_max_position_embeddings=64, low_freq_factor=1.0, high_freq_factor=4.0
)


def yarn(**more: float) -> RopeScaling:
    return RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, **more)


MODELS: dict[str, Model] = {
    "llama": Model(model_type="llama", num_key_value_heads=2, **SIZES),
    "llama without groups": Model(model_type="llama", **SIZES),
    "llama llama3 tied": Model(
        model_type="llama", num_key_value_heads=2, rope_scaling=LLAMA3, tie_word_embeddings=True, **SIZES
    ),
    "llama wide heads yarn": Model(
        model_type="llama", num_key_value_heads=1, head_dim=24, rope_scaling=yarn(), rope_theta=5e5, **SIZES
    ),
    "qwen2 tied": Model(model_type="qwen2", num_key_value_heads=2, tie_word_embeddings=True, **SIZES),
    "qwen2 yarn": Model(model_type="qwen2", num_key_value_heads=1, head_dim=24, rope_scaling=yarn(), **SIZES),
    "qwen3 tied": Model(model_type="qwen3", num_key_value_heads=2, head_dim=24, tie_word_embeddings=True, **SIZES),
    "qwen3 yarn": Model(model_type="qwen3", num_key_value_heads=2, head_dim=32, rope_scaling=yarn(), **SIZES),
    "qwen3_moe": Model(
        model_type="qwen3_moe", num_key_value_heads=2, head_dim=24, moe_intermediate_size=48, **EXPERTS, **SIZES
    ),
    "qwen3_moe tied yarn": Model(
        model_type="qwen3_moe",
        num_key_value_heads=4,
        moe_intermediate_size=48,
        norm_topk_prob=False,
        tie_word_embeddings=True,
        rope_scaling=yarn(),
        **EXPERTS,
        **SIZES,
    ),
    "mixtral": Model(model_type="mixtral", num_key_value_heads=2, **EXPERTS, **SIZES),
    "mixtral tied yarn": Model(
        model_type="mixtral",
        num_key_value_heads=2,
        head_dim=24,
        tie_word_embeddings=True,
        rope_scaling=yarn(),
        **EXPERTS,
        **SIZES,
    ),
    "llama4_text": Model(  # layers 0 and 2 dense, layer 1 with experts and without rotation
        model_type="llama4_text",
        num_key_value_heads=2,
        head_dim=24,
        intermediate_size_mlp=80,
        interleave_moe_layer_step=2,
        no_rope_layer_interval=2,
        attention_chunk_size=48,
        use_qk_norm=True,
        attn_temperature_tuning=True,
        floor_scale=16,
        attn_scale=0.4,
        **EXPERTS,
        **SIZES,
    ),
    "llama4_text llama3 tied": Model(  # all layers with experts
        model_type="llama4_text",
        num_key_value_heads=2,
        intermediate_size_mlp=80,
        interleave_moe_layer_step=1,
        no_rope_layer_interval=3,
        attention_chunk_size=256,
        use_qk_norm=False,
        attn_temperature_tuning=False,
        floor_scale=16,
        attn_scale=0.4,
        tie_word_embeddings=True,
        rope_scaling=LLAMA3,
        **EXPERTS,
        **SIZES,
    ),
    "deepseek_v2 groups yarn": Model(
        model_type="deepseek_v2",
        moe_intermediate_size=48,
        n_shared_experts=2,
        first_k_dense_replace=1,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=4.0,
        q_lora_rank=32,
        rope_scaling=yarn(mscale=0.7, mscale_all_dim=1.0),
        **LATENT,
        **EXPERTS,
        **SIZES,
    ),
    "deepseek_v2 plain": Model(
        model_type="deepseek_v2", moe_intermediate_size=48, n_shared_experts=1, **LATENT, **EXPERTS, **SIZES
    ),
    "deepseek_v3 groups yarn": Model(
        model_type="deepseek_v3",
        moe_intermediate_size=48,
        n_shared_experts=2,
        first_k_dense_replace=1,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        norm_topk_prob=True,
        q_lora_rank=32,
        rope_scaling=yarn(mscale=0.7, mscale_all_dim=1.0),
        **LATENT,
        **EXPERTS,
        **SIZES,
    ),
    "deepseek_v3 plain": Model(
        model_type="deepseek_v3",
        moe_intermediate_size=48,
        n_shared_experts=1,
        norm_topk_prob=False,
        **LATENT,
        **EXPERTS,
        **SIZES,
    ),
    "gpt_oss": Model(
        model_type="gpt_oss",
        num_key_value_heads=2,
        head_dim=24,
        sliding_window=16,
        swiglu_limit=0.5,
        rope_scaling=yarn(beta_fast=32.0, beta_slow=1.0),
        **EXPERTS,
        **SIZES,
    ),
}


def transformers_model(model: Model) -> Any:
    """The same architecture in transformers, as our config.json describes it; every weight of one dimension moved off
    its start, so that one mistaken for another shows."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**huggingface.to_config(model))
    twin = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if parameter.ndim == 1 or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in twin.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(0.1 * torch.randn_like(buffer))
    return twin


def titan_model(model: Model, **options: Any) -> Any:
    """TorchTitan's model of it on the CPU, every parameter NaN until something fills it."""
    from torchtitan.config.override import OverrideConfig, apply_overrides

    from primus.backends.torchtitan.attention import OVERRIDE

    options = {"seq_length": SEQ, "precision": "fp32"} | options
    spec = build_model_spec(model, **options)
    if hasattr(spec.model.first_attention.inner_attention, "block_size"):
        apply_overrides(OverrideConfig(imports=[OVERRIDE]), spec.model)
    built = spec.model.build()
    built.init_states()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.fill_(float("nan"))
    return built.eval()


def titan_logits(built: Any, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    """tokens [B, SEQ] -> logits [B, SEQ, vocabulary], as the trainer calls the model."""
    if positions is None:
        positions = torch.arange(tokens.shape[1]).expand(tokens.shape[0], -1)
    masks = None
    if hasattr(built.config.first_attention.inner_attention, "block_size"):
        masks = built.get_attention_masks(positions=positions)
    with torch.no_grad():
        logits: torch.Tensor = built(tokens, positions=positions, attention_masks=masks)
    return logits


def saved(twin: Any, directory: Path, **options: Any) -> Path:
    twin.save_pretrained(directory, **options)
    return directory


def tokens(rows: int = 2) -> torch.Tensor:
    return torch.randint(0, SIZES["vocab_size"], (rows, SEQ), generator=torch.Generator().manual_seed(1))


__all__ = ["MODELS", "SEQ", "Moe", "saved", "titan_logits", "titan_model", "tokens", "transformers_model"]
