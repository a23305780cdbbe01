"""From an experiment to Megatron's own configuration. Pure: neither torch nor Megatron is imported here.

The native configuration has a part for each of Megatron's dataclasses and names only what differs from their defaults:
``transformer`` (TransformerConfig), ``ddp`` (DistributedDataParallelConfig), ``optimizer`` (OptimizerConfig).
"""

from __future__ import annotations

from typing import Any

from primus.backends.base import NativeConfig
from primus.backends.megatron import limits
from primus.backends.megatron.split import stages
from primus.config import model_size
from primus.config.dimensions import dense_width, expert_width, head_dim, key_value_heads, shared_experts
from primus.config.experiment import Experiment, Model, Moe
from primus.config.families import latent_attention
from primus.config.layers import has_experts, rotates
from primus.config.routing import scoring
from primus.errors import PlanError
from primus.plan.plan import PlannedData, Topology

AUX_LOSS = 1e-3
"""Weight of the auxiliary loss when the experiment names none, as in Qwen3's and Mixtral's configurations."""


def native_config(experiment: Experiment, topology: Topology, data: PlannedData) -> NativeConfig:
    """Megatron's configuration for `experiment`. Raises PlanError naming everything that cannot be honoured."""
    own = experiment.native.get("megatron", {})
    problems = limits.problems(experiment, topology, data, own)
    if problems:
        raise PlanError(problems=problems)
    native: NativeConfig = {
        "transformer": _transformer(experiment, topology),
        "ddp": _ddp(experiment, topology),
        "optimizer": _optimizer(experiment, topology),
    }
    if limits.SPLITS & set(own.get("transformer", {})):
        native["transformer"].pop("pipeline_model_parallel_layout", None)  # the experiment says how layers are split
    for section, values in own.items():
        native[section] |= values
    return native


def prediction_size(experiment: Experiment) -> tuple[int, float]:
    """What ``mtp_num_layers`` adds to the portable model: parameters, and training FLOPs a token.

    Each of them is a layer like the last of the decoder, a matrix that joins the state with the next token's embedding,
    and three norms (arXiv:2412.19437, section 2.2). Embedding and output projection are the model's own: they are not
    counted again, but the projection computes once more. FLOPs are counted as in ``primus.config.model_size``.
    """
    ahead = experiment.native.get("megatron", {}).get("transformer", {}).get("mtp_num_layers") or 0
    if not ahead:
        return 0, 0.0
    model, length = experiment.model, experiment.train.seq_length
    layers, hidden = model.num_hidden_layers, model.hidden_size
    deeper = model.model_copy(update={"num_hidden_layers": layers + 1})
    if model.num_experts and not has_experts(model, layers - 1):  # the one more is dense too
        deeper = deeper.model_copy(update={"first_k_dense_replace": layers + 1})
    joining = 2 * hidden * hidden + 3 * hidden
    parameters = model_size.measure(deeper).total - model_size.measure(model).total + joining
    flops = model_size.flops_per_token(deeper, length) - model_size.flops_per_token(model, length)
    return ahead * parameters, ahead * (flops + 6.0 * (joining + model.vocab_size * hidden))


def _transformer(experiment: Experiment, topology: Topology) -> dict[str, Any]:
    cpu = experiment.hardware.device == "cpu"
    virtual = experiment.parallel.virtual_pipeline
    settings: dict[str, Any] = {
        **architecture(experiment.model, experiment.moe),
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "init_method_std": experiment.model.init_std,
        "bf16": experiment.precision != "fp32",
        # whose layers: on an accelerator TransformerEngine's, where it is installed
        "transformer_impl": "local" if cpu else "auto",
        # parallel axes
        "tensor_model_parallel_size": topology.tensor,
        "sequence_parallel": topology.tensor > 1,
        "pipeline_model_parallel_size": topology.pipeline,
        "context_parallel_size": topology.context,
        "expert_model_parallel_size": topology.expert,
        # experts are spread over the expert axis, or cut like every other layer
        "expert_tensor_parallel_size": 1 if topology.expert > 1 else topology.tensor,
        # the loss is divided by the targets of the global batch, whichever rank and microbatch they are in
        "calculate_per_token_loss": True,
        # fused kernels that come with TransformerEngine or Apex, or are written for a GPU
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "bias_activation_fusion": not cpu,
        "bias_dropout_fusion": not cpu,
        "batch_p2p_comm": not cpu and virtual == 1,
        "overlap_p2p_comm": virtual > 1,
        "deallocate_pipeline_outputs": not cpu,
    }
    if virtual > 1:
        settings["virtual_pipeline_model_parallel_size"] = virtual
    if topology.pipeline > 1 and experiment.model.num_hidden_layers % (topology.pipeline * virtual):
        settings["pipeline_model_parallel_layout"] = stages(
            experiment.model.num_hidden_layers, topology.pipeline * virtual
        )
    if experiment.recompute == "full":
        settings |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    elif experiment.recompute == "selective":
        settings["recompute_granularity"] = "selective"
    return settings


def architecture(model: Model, balance: Moe) -> dict[str, Any]:
    """The model's dimensions in Megatron's words."""
    settings = {
        "num_layers": model.num_hidden_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "ffn_hidden_size": dense_width(model),
        "normalization": "RMSNorm",
        "layernorm_epsilon": model.rms_norm_eps,
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "qk_layernorm": model.model_type in ("qwen3", "qwen3_moe") or latent_attention(model.model_type),
    }
    if latent_attention(model.model_type):
        settings |= _latent(model)
    else:
        settings |= {
            "num_query_groups": key_value_heads(model),
            "kv_channels": head_dim(model),
            "add_qkv_bias": model.model_type == "qwen2",
        }
    if model.model_type == "llama4_text":
        # neighbouring elements turn together, and some layers do not turn at all
        settings["rotary_interleaved"] = True
        settings["no_rope_freq"] = [int(not rotates(model, layer)) for layer in range(model.num_hidden_layers)]
    if model.num_experts:
        settings |= _mixture(model, balance)
    return settings


def _latent(model: Model) -> dict[str, Any]:
    scaling = model.rope_scaling
    yarn = scaling is not None and scaling.rope_type == "yarn"
    return {
        "q_lora_rank": model.q_lora_rank or None,
        "kv_lora_rank": model.kv_lora_rank,
        "qk_head_dim": model.qk_nope_head_dim,
        "qk_pos_emb_head_dim": model.qk_rope_head_dim,
        "v_head_dim": model.v_head_dim,
        "rope_type": "yarn" if yarn else "rope",
        # of these Megatron makes the scale of the scores, whatever the type
        "rotary_scaling_factor": scaling.factor if scaling and yarn else 1.0,
        "mscale_all_dim": (scaling.mscale_all_dim if scaling and yarn else None) or 0.0,
    }


def _mixture(model: Model, moe: Moe) -> dict[str, Any]:
    shared = shared_experts(model)
    settings: dict[str, Any] = {
        "num_moe_experts": model.num_experts,
        "moe_router_topk": model.num_experts_per_tok,
        "moe_ffn_hidden_size": expert_width(model),
        "moe_router_dtype": "fp32",
        "moe_router_score_function": scoring(model),  # of auxiliary losses; the choice is our router's
        "moe_router_pre_softmax": True,  # asked for with one expert a token; our router does as the family does
        "moe_router_load_balancing_type": "none",
        "moe_token_dispatcher_type": "alltoall",
        # Llama 4 weighs what goes into an expert, the others what comes out
        "moe_apply_probs_on_input": model.model_type == "llama4_text",
        # which layers are mixtures is said layer by layer
        "moe_layer_freq": [int(has_experts(model, layer)) for layer in range(model.num_hidden_layers)],
    }
    if shared:
        settings["moe_shared_expert_intermediate_size"] = shared * expert_width(model)
    if moe.balance == "aux_loss":
        settings["moe_router_load_balancing_type"] = "aux_loss"
        settings["moe_aux_loss_coeff"] = AUX_LOSS if moe.aux_loss_coeff is None else moe.aux_loss_coeff
    return settings


def _ddp(experiment: Experiment, topology: Topology) -> dict[str, Any]:
    distributed = topology.data_shard * topology.context > 1
    overlap = experiment.hardware.device != "cpu"
    return {
        "use_distributed_optimizer": distributed,
        "num_distributed_optimizer_instances": topology.data_replicate if distributed else 1,
        "grad_reduce_in_fp32": experiment.precision != "fp32",
        "overlap_grad_reduce": overlap,
        "overlap_param_gather": overlap and distributed,
    }


def _optimizer(experiment: Experiment, topology: Topology) -> dict[str, Any]:
    settings = experiment.optimizer
    return {
        "optimizer": "adam",
        "lr": settings.lr,
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.betas[0],
        "adam_beta2": settings.betas[1],
        "adam_eps": settings.eps,
        "clip_grad": 0.0,  # the loop looks at the norm before it clips
        "use_distributed_optimizer": topology.data_shard * topology.context > 1,
    }
