"""Writes ``native_schema-VERSION.json``: the keys of megatron.core's own configuration that an experiment may set.

    python -m primus.backends.megatron.generate_schema

writes the snapshot of the megatron-core that this Python imports. Run it with each supported version after a change of
the tables here; a test fails while a snapshot is stale. Every field of Megatron's three dataclasses is allowed, set by
a portable key, or in OMITTED with the reason. ALLOWED holds only what the code that this backend runs reads.
"""

from __future__ import annotations

from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

from primus.backends import schema_snapshot
from primus.backends.megatron.schema import snapshot_name

ALLOWED = {
    "transformer": """
        account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split activation_func_fp8_input_store
        apply_rope_fusion batch_p2p_comm batch_p2p_sync bias_activation_fusion bias_dropout_fusion
        clone_scatter_output_in_embedding cross_entropy_fusion_impl cross_entropy_loss_fusion
        deallocate_pipeline_outputs deterministic_mode disable_bf16_reduced_precision_matmul
        expert_tensor_parallel_size gradient_accumulation_fusion microbatch_group_size_per_vp_stage
        moe_deepep_num_sms moe_flex_dispatcher_backend moe_hybridep_num_sms moe_permute_fusion
        moe_router_bias_update_rate moe_router_dtype moe_router_force_load_balancing moe_router_load_balancing_type
        moe_shared_expert_overlap moe_token_dispatcher_type moe_z_loss_coeff num_layers_in_first_pipeline_stage
        num_layers_in_last_pipeline_stage overlap_p2p_comm overlap_p2p_comm_warmup_flush
        mtp_loss_scaling_factor mtp_num_layers pipeline_model_parallel_layout recompute_method recompute_modules
        recompute_num_layers transformer_impl""",
    "ddp": """
        align_param_gather bucket_size check_for_large_grads check_for_nan_in_grad grad_reduce_in_fp32
        overlap_grad_reduce overlap_param_gather pad_buckets_for_high_nccl_busbw
        reduce_scatter_with_fp32_accumulation""",
    "optimizer": "",
}
"""Section -> fields that an experiment may set. What must hold between them is in ``limits``."""

PORTABLE = {
    "transformer": {
        "tensor_model_parallel_size": "parallel.tensor",
        "sequence_parallel": "parallel.tensor",
        "pipeline_model_parallel_size": "parallel.pipeline",
        "virtual_pipeline_model_parallel_size": "parallel.virtual_pipeline",
        "context_parallel_size": "parallel.context",
        "expert_model_parallel_size": "parallel.expert",
        "bf16": "precision",
        "params_dtype": "precision",
        "pipeline_dtype": "precision",
        "recompute_granularity": "recompute",
        "init_method_std": "model.init_std",
        "num_layers": "model.num_hidden_layers",
        "hidden_size": "model.hidden_size",
        "ffn_hidden_size": "model.intermediate_size",
        "num_attention_heads": "model.num_attention_heads",
        "num_query_groups": "model.num_key_value_heads",
        "kv_channels": "model.head_dim",
        "layernorm_epsilon": "model.rms_norm_eps",
        "normalization": "model.model_type",
        "activation_func": "model.model_type",
        "gated_linear_unit": "model.model_type",
        "add_bias_linear": "model.model_type",
        "add_qkv_bias": "model.model_type",
        "qk_layernorm": "model.model_type",
        "qk_l2_norm": "model.use_qk_norm",
        "multi_latent_attention": "model.model_type",
        "rotary_interleaved": "model.model_type",
        "no_rope_freq": "model.no_rope_layer_interval",
        "rotary_base": "model.rope_theta",
        "rope_type": "model.rope_scaling.rope_type",
        "rotary_scaling_factor": "model.rope_scaling.factor",
        "original_max_position_embeddings": "model.rope_scaling.original_max_position_embeddings",
        "beta_fast": "model.rope_scaling.beta_fast",
        "beta_slow": "model.rope_scaling.beta_slow",
        "mscale": "model.rope_scaling.mscale",
        "mscale_all_dim": "model.rope_scaling.mscale_all_dim",
        "q_lora_rank": "model.q_lora_rank",
        "kv_lora_rank": "model.kv_lora_rank",
        "qk_head_dim": "model.qk_nope_head_dim",
        "qk_pos_emb_head_dim": "model.qk_rope_head_dim",
        "v_head_dim": "model.v_head_dim",
        "num_moe_experts": "model.num_experts",
        "moe_router_topk": "model.num_experts_per_tok",
        "moe_ffn_hidden_size": "model.moe_intermediate_size",
        "moe_shared_expert_intermediate_size": "model.n_shared_experts",
        "moe_layer_freq": "model.first_k_dense_replace",
        "moe_router_num_groups": "model.n_group",
        "moe_router_group_topk": "model.topk_group",
        "moe_router_topk_scaling_factor": "model.routed_scaling_factor",
        "moe_router_score_function": "model.scoring_func",
        "moe_router_pre_softmax": "model.norm_topk_prob",
        "moe_apply_probs_on_input": "model.model_type",
        "moe_router_enable_expert_bias": "moe.balance",
        "moe_aux_loss_coeff": "moe.aux_loss_coeff",
    },
    "ddp": {
        "use_distributed_optimizer": "parallel.data_shard",
        "num_distributed_optimizer_instances": "parallel.data_replicate",
    },
    "optimizer": {
        "optimizer": "optimizer.name",
        "lr": "optimizer.lr",
        "min_lr": "optimizer.min_lr",
        "weight_decay": "optimizer.weight_decay",
        "adam_beta1": "optimizer.betas",
        "adam_beta2": "optimizer.betas",
        "adam_eps": "optimizer.eps",
        "clip_grad": "optimizer.clip_grad_norm",
        "bf16": "precision",
        "params_dtype": "precision",
        "use_distributed_optimizer": "parallel.data_shard",
    },
}
"""Section -> field -> portable key that sets it: setting the field is an error that points at the portable key."""

OMITTED = {
    "transformer": {
        "the loop that this backend runs sets or needs none of these hooks": """
            finalize_model_grads_func grad_scale_func grad_sync_func moe_grad_scale_func no_sync_func param_sync_func
            timers barrier_with_L1_time""",
        "weights start as the numerics contract says": """
            embedding_init_method embedding_init_method_std init_method init_model_with_meta_device
            output_layer_init_method perform_initialization use_cpu_initialization""",
        "the loss is that of the numerics contract": "calculate_per_token_loss",
        "nothing is random in a step: no checkpoint carries the state of a random generator": """
            attention_dropout hidden_dropout moe_input_jitter_eps""",
        "the model's family says it": """
            activation_func_clamp_value apply_residual_connection_post_layernorm attention_output_gate glu_linear_offset
            heterogeneous_block_specs hetereogenous_dist_checkpoint is_hybrid_model layernorm_zero_centered_gamma
            moe_latent_size moe_mlp_glu_interleave_size moe_shared_expert_gate moe_shared_expert_glu_interleave_size
            mrope_section rotary_percent softmax_type use_fused_weighted_squared_relu window_attn_skip_freq
            window_size""",
        "it makes another model": """
            dsa_* experimental_attention_variant experimental_attention_variant_loss_scale_func linear_* mamba_* mup_*
            use_mamba_mem_eff_path use_mup""",
        "attention is this backend's own": """
            apply_query_key_layer_scaling attention_backend attention_softmax_in_fp32 batch_invariant_mode cp_comm_type
            flash_attention_version fused_single_qkv_rope hierarchical_context_parallel_sizes hybrid_context_parallel
            log_max_attention_logit masked_softmax_fusion max_seqlen_per_dp_cp_rank qk_clip* softmax_scale
            *kitchen* mla_down_proj_fusion""",
        "norms are this backend's own": """
            fused_residual_rmsnorm memory_efficient_layer_norm persist_layer_norm""",
        "the router is this backend's own, and drops nothing": """
            moe_enable_routing_replay moe_expert_capacity_factor moe_expert_rank_capacity_factor
            moe_pad_expert_input_to_capacity moe_router_force_biased moe_router_fusion
            moe_router_quantile_balancing_ema moe_token_drop_policy""",
        "its hidden states do not fit the norms and layers that are used": "fp32_residual_connection",
        "precision is fp32 or bf16 throughout": """
            autocast_dtype enable_autocast first_last_layers_bf16 fp16 fp4* fp8* moe_router_padding_for_*
            num_layers_at_end_in_bf16 num_layers_at_start_in_bf16 quant_recipe tp_only_amax_red""",
        "layers are Megatron's local ones: TransformerEngine's are not used yet": """
            disable_parameter_transpose_cache moe_grouped_gemm moe_single_grouped_bias moe_single_grouped_weight
            pipeline_model_parallel_comm_backend symmetric_ar_type tp_comm_*
            use_grouped_gemm_for_dense_mlp use_grouped_gemm_for_shared_expert use_te_activation_func
            use_te_rng_tracker use_transformer_engine_op_fuser""",
        "the schedules run whole microbatches: forward and backward are not taken apart": """
            delay_wgrad_compute ep_overlap_early_attn_memory_release high_priority_a2a_comm_stream
            num_microbatches_with_partial_activation_checkpoints overlap_dispatch_backward_with_experts_wgrad
            overlap_moe_expert_parallel_comm""",
        "all sequences have one length": "variable_seq_lengths",
        "tensor parallelism always splits sequences too, which excludes it": "distribute_saved_activations",
        "it needs a torch that was changed for it": "use_ring_exchange_p2p",
        "steps are not captured as CUDA graphs": "cuda_graph_* enable_cuda_graph external_cuda_graph",
        "for inference": """
            cache_mla_latents flash_decode inference_* mlp_chunks_for_prefill moe_pad_experts_for_cuda_graph_inference
            nccl_all_reduce_for_prefill use_inference_optimized_layers""",
        "activations are not offloaded": """
            activation_offload_fraction cpu_offloading* delay_offload_until_cuda_graph
            delta_offload_bytes_across_pp_ranks fine_grained_* min_offloaded_tensor_size moe_paged_stash*
            offload_modules""",
        "not yet tried": """
            mtp_detach_heads mtp_grad_scale_func mtp_hybrid_override_pattern mtp_standalone
            mtp_use_repeated_layer""",
        "not yet tried with this loop": """
            defer_embedding_wgrad_compute expert_gtp_weight_remat_size expert_tensor_parallel_num_weight_shards
            gtp_weight_remat_size mlp_chunks_for_training moe_flex_dispatcher_num_sms moe_hybridep_num_blocks_*
            moe_hybridep_num_sms_preprocessing moe_hybridep_pad_uneven_dispatch_inputs moe_ncclep_*
            moe_permute_fusion_into_hybridep tensor_parallel_num_weight_shards wgrad_deferral_limit""",
        "what is measured and written is Primus's": "config_logger_dir moe_per_layer_logging test_mode",
        "deprecated, or read nowhere": """
            async_tensor_model_parallel_allreduce moe_enable_deepep moe_extended_tp moe_layer_recompute
            moe_router_topk_limited_devices moe_token_dropping moe_use_legacy_grouped_gemm""",
    },
    "ddp": {
        "the loss is that of the numerics contract": "average_in_collective",
        "weights are sharded by the distributed optimizer, not by Megatron-FSDP": """
            data_parallel_sharding_strategy fsdp_* gradient_reduce_div_fusion keep_fp8_transpose_cache megatron_fsdp_*
            outer_dp_sharding_strategy preserve_fp32_weights suggested_communication_unit_size
            use_custom_fsdp use_megatron_fsdp""",
        "ddp.bucket_size says it": "num_buckets",
        "precision is fp32 or bf16 throughout": "fp4_param_gather fp8_param_gather reuse_grad_buf_for_mxfp8_param_ag",
        "NCCL's user buffers exclude the expandable segments of memory that the plan asks for": """
            disable_symmetric_registration nccl_ub""",
        "the schedules run whole microbatches: forward and backward are not taken apart": "delay_wgrad_compute",
        "not yet tried with this loop": "param_name_patterns_for_fp32_local_accumulation",
    },
    "optimizer": {
        "the optimizer is AdamW, its groups and its schedule those of the numerics contract": """
            adaptive_muon_* apply_wd_to_qk_layernorm decoupled_* lion_* muon_* sgd_momentum soap_*
            use_layer_wise_distributed_optimizer""",
        "moments and master weights are fp32: checkpoints hold them so": """
            exp_avg_dtype exp_avg_sq_dtype main_grads_dtype main_params_dtype store_param_remainders
            use_precision_aware_optimizer""",
        "precision is fp32 or bf16 throughout": """
            fp16 fp8_recipe hysteresis initial_loss_scale loss_scale loss_scale_window min_loss_scale
            reuse_grad_buf_for_mxfp8_param_ag""",
        "the optimizer's state is not offloaded": """
            optimizer_cpu_offload optimizer_offload_fraction overlap_cpu_optimizer_d2h_h2d pin_cpu_grads pin_cpu_params
            use_torch_optimizer_for_cpu_offload""",
        "ddp.overlap_param_gather says it": "overlap_param_gather overlap_param_gather_with_optimizer_step",
        "steps are not captured as CUDA graphs": "optimizer_cuda_graph",
        "gradients are judged by this backend's own loop": "grad_norm_skip_threshold log_num_zeros_in_grad",
        "what is measured and written is Primus's": "barrier_with_L1_time config_logger_dir timers",
    },
}
"""Section -> why fields have no effect here or would break a contract -> their names; ``*`` stands for any letters."""

TYPES = {
    "transformer.moe_router_dtype": "str",
    "transformer.moe_router_load_balancing_type": "str",
    "transformer.pipeline_model_parallel_layout": "list",
    "transformer.recompute_method": "str",
    "transformer.recompute_modules": "list",
    "transformer.recompute_num_layers": "int",
}
"""Where fewer types are allowed than Megatron takes."""

CHOICES = {
    "transformer.transformer_impl": ("auto", "local", "transformer_engine"),
    "transformer.moe_flex_dispatcher_backend": ("deepep", "hybridep"),
    "transformer.moe_router_load_balancing_type": ("aux_loss", "seq_aux_loss", "global_aux_loss"),
}
"""Where fewer values are allowed than Megatron takes."""

OUR_DEFAULTS = {
    "transformer.moe_router_dtype": "fp32",
    "transformer.moe_token_dispatcher_type": "alltoall",
    "transformer.recompute_method": "uniform",
    "transformer.recompute_modules": ["core_attn"],
    "transformer.recompute_num_layers": 1,
    "transformer.transformer_impl": "auto",
}
"""Where this backend itself starts from another value than Megatron, whatever the device."""


def names(listed: str) -> list[str]:
    return listed.split()


def reasons(section: str, field: str) -> list[str]:
    """Why `field` is left out; empty when it is not."""
    return [
        reason for reason, listed in OMITTED[section].items() if any(fnmatch(field, name) for name in names(listed))
    ]


def sections() -> dict[str, list[type]]:
    """Section -> the dataclasses whose fields it takes, the more general last."""
    from primus.backends.megatron import patches

    patches.apply(patches.for_device("cpu"))
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

    return {
        "transformer": [MLATransformerConfig, TransformerConfig],
        "ddp": [DistributedDataParallelConfig],
        "optimizer": [OptimizerConfig],
    }


def text() -> str:
    portable = {f"{section}.{name}": key for section, fields in PORTABLE.items() for name, key in fields.items()}
    allowed = {f"{section}.{name}" for section, listed in ALLOWED.items() for name in names(listed)}
    changes = schema_snapshot.Changes(portable, types=TYPES, choices=CHOICES, defaults=OUR_DEFAULTS)
    return schema_snapshot.text(
        {"megatron-core": version("megatron-core")},
        "names, types, defaults and first sentences of the descriptions: megatron-core (BSD-3-Clause)",
        schema_snapshot.native_keys(sections(), lambda key: key in allowed or key in portable, changes),
    )


def snapshot() -> Path:
    """Where the snapshot of the imported version belongs."""
    return Path(__file__).with_name(snapshot_name(version("megatron-core")))


if __name__ == "__main__":
    snapshot().write_text(text(), encoding="utf-8")
