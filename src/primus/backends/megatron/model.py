"""Megatron's GPT model of exactly the portable dimensions, this rank's chunks of it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
    get_gpt_mtp_block_spec,
)
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.post_training.modelopt.layers import Linear
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from megatron.core.transformer.multi_token_prediction import MTPLossAutoScaler, roll_tensor
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from primus.backends.megatron import compat
from primus.backends.megatron.attention import CoreAttention
from primus.backends.megatron.norm import LATENT_EPS, LatentNorm, Norm
from primus.backends.megatron.rotary import Rotary
from primus.backends.megatron.router import Router
from primus.config.dimensions import head_dim
from primus.config.experiment import Model
from primus.config.families import latent_attention
from primus.config.layers import has_experts
from primus.errors import EnvironmentFault
from primus.numerics.rotary import frequencies
from primus.plan.plan import Plan


@dataclass
class Config(TransformerConfig):  # type: ignore[misc]
    """model: the portable one. tokens_per_step: of the global batch. softmax_factor: on the scale of attention scores,
    which is where yarn's magnitude goes when it is the same for a whole head."""

    model: Model | None = None
    tokens_per_step: int = 1
    softmax_factor: float = 1.0


@dataclass
class LatentConfig(MLATransformerConfig):  # type: ignore[misc]
    """With multi-head latent attention."""

    model: Model | None = None
    tokens_per_step: int = 1
    softmax_factor: float = 1.0
    own_attention: bool = True


def transformer_config(plan: Plan) -> Any:
    """Megatron's configuration for `plan`, with what JSON cannot say."""
    model, settings = plan.experiment.model, dict(plan.native["transformer"])
    dtype = torch.float32 if plan.experiment.precision == "fp32" else torch.bfloat16
    if model.init != "native":
        settings["init_method"] = settings["output_layer_init_method"] = _leave
    settings |= {"activation_func": F.silu, "params_dtype": dtype, "pipeline_dtype": dtype, "model": model}
    settings["tokens_per_step"] = plan.experiment.train.global_batch_size * plan.experiment.train.seq_length
    settings["transformer_impl"] = implementation = _implementation(plan)
    if latent_attention(model.model_type):
        config = LatentConfig(**settings)
    else:
        config = Config(**settings, softmax_factor=frequencies(model, head_dim(model))[1] ** 2)
    plain = model.model_type != "llama4_text" and plan.data.document_attention == "full" and config.softmax_factor == 1
    config.own_attention = implementation == "local" or not plain
    # Megatron ties the balancing bias to one score function; our router balances any
    config.moe_router_enable_expert_bias = bool(model.num_experts) and plan.experiment.moe.balance == "bias"
    return config


def _leave(weight: torch.Tensor) -> torch.Tensor:
    """The values come from the random start, an import or a checkpoint."""
    return weight


def build(plan: Plan, config: Any, device: torch.device) -> list[Any]:
    """This rank's chunks of the model: one, or one for each virtual pipeline stage."""
    chunks = plan.experiment.parallel.virtual_pipeline
    return [_chunk(plan, config, device, stage if chunks > 1 else None) for stage in range(chunks)]


def _chunk(plan: Plan, config: Any, device: torch.device, stage: int | None) -> Any:
    model = plan.experiment.model
    options = {} if stage is None else {"ignore_virtual": False, "vp_stage": stage}
    block = _block(model, config, stage)
    kind = Predicting if config.mtp_num_layers else GPTModel
    with torch.device(device):
        built = kind(
            config,
            block,
            vocab_size=model.vocab_size,
            max_sequence_length=plan.experiment.train.seq_length,
            pre_process=mpu.is_pipeline_first_stage(**options),
            post_process=mpu.is_pipeline_last_stage(**options),
            position_embedding_type="rope",
            rotary_base=int(model.rope_theta),
            share_embeddings_and_output_weights=model.tie_word_embeddings,
            mtp_block_spec=_prediction(config, block, stage),
            vp_stage=stage,
        )
    _rotate(built, model, device)
    if not config.bf16:
        return built
    half = Float16Module(config, built)
    for module in half.modules():
        if isinstance(module, Router):
            # or it does so at the first batch, and what was loaded into it is lost
            module._maintain_float32_expert_bias()
    return half


def _rotate(built: Any, model: Model, device: torch.device) -> None:
    """Put our rotary embedding where Megatron has its own: in the model, or in each layer with latent attention."""
    group = mpu.get_context_parallel_group()
    if not latent_attention(model.model_type):
        inverse, _ = frequencies(model, head_dim(model))
        paired = model.model_type == "llama4_text"
        built.rotary_pos_emb = Rotary(torch.from_numpy(inverse).to(device), group=group, paired=paired)
        return
    inverse, magnitude = frequencies(model, model.qk_rope_head_dim or 0)
    wanted = magnitude if model.rope_scaling and model.rope_scaling.rope_type == "yarn" else None
    for module in built.modules():
        if isinstance(module, LatentAttention):
            module.rotary_pos_emb = Rotary(torch.from_numpy(inverse).to(device), group=group, magnitude=wanted)


def _block(model: Model, config: Any, stage: int | None) -> TransformerBlockSubmodules:
    """The layers of one chunk: dense ones and mixtures where the model has them."""
    offset, count = (
        get_transformer_layer_offset(config, vp_stage=stage),
        get_num_layers_to_build(config, vp_stage=stage),
    )
    mixtures = [has_experts(model, layer) for layer in range(offset, offset + count)]
    kinds = {mixture: _layer(config, mixture=mixture) for mixture in set(mixtures)}
    layers = [kinds[mixture] for mixture in mixtures]
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=_final_norm(config))


def _final_norm(config: Any) -> type:
    if config.transformer_impl == "local":
        return Norm
    from megatron.core.extensions.transformer_engine import TENorm

    found: type = TENorm
    return found


def _prediction(config: Any, block: TransformerBlockSubmodules, stage: int | None) -> Any:
    """Layers that predict tokens further ahead, on the last stage, each like the last of the decoder; None without."""
    if not config.mtp_num_layers or not block.layer_specs:
        return None
    spec = get_gpt_mtp_block_spec(
        config, block, use_transformer_engine=config.transformer_impl != "local", vp_stage=stage
    )
    for layer in spec.layer_specs if spec and config.transformer_impl == "local" else ():
        for name in ("enorm", "hnorm", "layer_norm"):
            setattr(layer.submodules, name, Norm)
    return spec


class Predicting(GPTModel):  # type: ignore[misc]
    """With layers that predict tokens further ahead.

    What each of them adds to the loss is a sum over targets that is divided, with the main loss, by the unmasked
    targets of the global batch: the same whatever a microbatch is, and in both versions. 0.19.2 would multiply it by
    targets of the main loss over targets of this one, microbatch by microbatch and context-parallel rank by rank.
    """

    def _postprocess(
        self,
        *,
        hidden_states: torch.Tensor,
        labels: torch.Tensor | None,
        loss_mask: torch.Tensor | None,
        mtp_in_postprocess: bool,
        extra_block_kwargs: dict[str, Any] | None,
        **given: Any,
    ) -> torch.Tensor:
        """hidden_states [S, B, H], labels [B, S], loss_mask [B, S] -> losses of the next token [B, S], or without
        labels its logits [B, S, vocabulary]; on a stage that is not the last, hidden states."""
        if mtp_in_postprocess:
            same = ("input_ids", "position_ids", "attention_mask", "rotary_pos_emb", "rotary_pos_cos", "rotary_pos_sin")
            hidden_states = self.mtp(
                hidden_states=hidden_states,
                embedding=self.embedding,
                **{name: given[name] for name in same},
                **(extra_block_kwargs or {}),
            )
        if not self.post_process:
            return hidden_states
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        hidden_states, *further = hidden_states.chunk(1 + self.config.mtp_num_layers)
        if labels is not None:
            hidden_states = self._attach(hidden_states, further, labels, loss_mask, weight)
        logits: torch.Tensor = self.output_layer(hidden_states, weight=weight)[0]
        if labels is None:
            return logits.transpose(0, 1).contiguous()
        loss: torch.Tensor = self.compute_language_model_loss(labels, logits)
        return loss

    def _attach(
        self,
        hidden_states: torch.Tensor,
        further: list[torch.Tensor],
        labels: torch.Tensor,
        loss_mask: torch.Tensor | None,
        weight: torch.Tensor | None,
    ) -> torch.Tensor:
        """`hidden_states` [S, B, H], whose backward also is that of the losses of `further`, each [S, B, H]."""
        targets, mask = labels, torch.ones_like(labels) if loss_mask is None else loss_mask
        scale = self.config.mtp_loss_scaling_factor / self.config.mtp_num_layers
        group = mpu.get_context_parallel_group()
        for ahead in further:
            targets, _ = roll_tensor(targets, cp_group=group)
            mask, _ = roll_tensor(mask, cp_group=group)  # the last of a sequence has no target
            losses = self.compute_language_model_loss(targets, self.output_layer(ahead, weight=weight)[0])
            hidden_states = MTPLossAutoScaler.apply(hidden_states, scale * mask * losses)
        return hidden_states


class LatentAttention(MLASelfAttention):  # type: ignore[misc]
    """Multi-head latent attention of exactly the specified parts. From 0.18 Megatron chooses among them, and knows no
    model that norms its compressed keys but does not compress its queries."""

    def _resolve_qk_norm_config(self, submodules: Any) -> dict[str, Any]:
        names = ("linear_q_proj", "linear_q_up_proj", "linear_kv_up_proj", "q_layernorm", "kv_layernorm")
        return {name: getattr(submodules, name) for name in names}


def _layer(config: Any, *, mixture: bool) -> Any:
    """Megatron's specification of a layer, with our router in it, and our norms and attention."""
    options = {
        "num_experts": config.num_moe_experts if mixture else None,
        "qk_layernorm": config.qk_layernorm,
        "multi_latent_attention": config.multi_latent_attention,
    }
    if config.transformer_impl == "transformer_engine":
        spec = get_gpt_layer_with_transformer_engine_spec(**options, moe_grouped_gemm=mixture)
    else:
        spec = get_gpt_layer_local_spec(**options, moe_grouped_gemm=False, normalization=config.normalization)
        _own_parts(config, spec.submodules)
    parts = spec.submodules
    if config.own_attention:
        parts.self_attention.submodules.core_attention = CoreAttention
    if mixture:
        compat.mixture_submodules(parts.mlp).router = Router
    return spec


def _own_parts(config: Any, parts: Any) -> None:
    """What Megatron's own parts cannot do without TransformerEngine."""
    parts.input_layernorm = parts.pre_mlp_layernorm = Norm
    attention = parts.self_attention.submodules
    inner = LatentNorm if config.multi_latent_attention else Norm
    for name in ("q_layernorm", "k_layernorm", "kv_layernorm"):
        if getattr(attention, name, IdentityOp) is not IdentityOp:
            setattr(attention, name, inner)
    if not config.multi_latent_attention:
        return
    if config.q_lora_rank is None:
        attention.q_layernorm = IdentityOp  # there is nothing compressed to norm
    parts.self_attention.module = LatentAttention
    # every rank needs whole latents: cut by rank, the rotated key would get the gradient of its own heads only
    for name in ("linear_q_down_proj", "linear_kv_down_proj"):
        setattr(attention, name, Linear)


def _implementation(plan: Plan) -> str:
    """Whose layers: Megatron's ``local`` ones or TransformerEngine's, where the plan leaves it open those that are
    there. Raises EnvironmentFault when TransformerEngine is asked for but missing."""
    wanted: str = plan.native["transformer"]["transformer_impl"]
    there = importlib.util.find_spec("transformer_engine") is not None
    if wanted == "transformer_engine" and not there:
        raise EnvironmentFault(
            "TransformerEngine is asked for, but it is not installed",
            where="megatron.transformer.transformer_impl",
            remedy="install it, or remove the key: Megatron's own layers need nothing else",
        )
    if wanted == "auto":
        latent = latent_attention(plan.experiment.model.model_type)
        fits = not latent or plan.experiment.model.rms_norm_eps == LATENT_EPS  # TransformerEngine knows one epsilon
        return "transformer_engine" if there and fits else "local"
    return wanted
