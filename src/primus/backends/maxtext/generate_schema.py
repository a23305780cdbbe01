"""Writes ``native_schema.json``: the keys of MaxText's own configuration that an experiment may set.

    python -m primus.backends.maxtext.generate_schema

Run it in the jax environment after a change of MaxText's version or of the tables here; a test fails while the snapshot
is stale. Every field of ``MaxTextConfig`` is in exactly one table. A word in them is a field, a pattern (``*`` stands
for any letters), or one of the classes of which MaxText composes its configuration, for all fields that it adds. The
more exact word wins.
"""

from __future__ import annotations

import enum
import inspect
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from primus.backends import schema_snapshot

SNAPSHOT = Path(__file__).with_name("native_schema.json")

KEPT = """
    activations_in_float32 attention debug_sharding float32_logits float32_qk_product jax_cache_dir
    jax_debug_log_modules log_config num_vocab_tiling use_iota_embed vocab_tiling_ag_once

    pipeline_delay_activation_forwarding pipeline_fsdp_ag_once pipeline_fsdp_ag_per_repeat scan_pipeline_iterations
    set_remat_policy_on_pipeline_iterations

    float32_weight_sum sparse_matmul use_custom_sort_vjp use_sliced_mla_proj

    remat_policy attention_out context decoder_layer_input key_proj kv_wa_proj mla_kv mla_q mlpwi_0 mlpwi_1 mlpwo
    moe_mlpwi_0 moe_mlpwi_1 moe_mlpwo moe_x_sorted out_proj query_proj query_wa_proj value_proj

    quantization

    input_data_sharding_logical_axes logical_axis_rules logical_axis_rules_for_eval override_logical_axis_rules
"""
"""Fields that an experiment may set: more than these the code that this backend runs does not read, or they would
change what an experiment promises."""

PORTABLE = {
    "name": "run_name",
    "hardware.device": "hardware",
    "model.model_type": "attention_bias decoder_block mlp_activations use_qk_norm",
    "model.init": "load_parameters_path",
    "model.vocab_size": "vocab_size",
    "model.hidden_size": "base_emb_dim",
    "model.num_hidden_layers": "base_num_decoder_layers",
    "model.num_attention_heads": "base_num_query_heads",
    "model.num_key_value_heads": "base_num_kv_heads",
    "model.head_dim": "head_dim",
    "model.intermediate_size": "base_mlp_dim",
    "model.max_position_embeddings": "max_position_embeddings",
    "model.rms_norm_eps": "normalization_layer_epsilon",
    "model.rope_theta": "rope_max_timescale",
    "model.rope_scaling.rope_type": "rope_type",
    "model.rope_scaling.factor": "rope_factor",
    "model.rope_scaling.original_max_position_embeddings": "original_max_position_embeddings",
    "model.rope_scaling.beta_fast": "beta_fast",
    "model.rope_scaling.beta_slow": "beta_slow",
    "model.rope_scaling.mscale": "mscale",
    "model.tie_word_embeddings": "logits_via_embedding",
    "model.num_experts": "num_experts",
    "model.num_experts_per_tok": "num_experts_per_tok",
    "model.moe_intermediate_size": "base_moe_mlp_dim",
    "model.n_shared_experts": "shared_experts",
    "model.first_k_dense_replace": "first_num_dense_layers",
    "model.n_group": "n_routing_groups",
    "model.topk_group": "topk_routing_group",
    "model.routed_scaling_factor": "routed_scaling_factor",
    "model.scoring_func": "routed_score_func",
    "model.norm_topk_prob": "norm_topk_prob",
    "model.q_lora_rank": "q_lora_rank",
    "model.kv_lora_rank": "kv_lora_rank",
    "model.qk_nope_head_dim": "qk_nope_head_dim",
    "model.qk_rope_head_dim": "qk_rope_head_dim",
    "model.v_head_dim": "v_head_dim",
    "model.sliding_window": "sliding_window_size",
    "model.swiglu_limit": "mlp_activations_limit",
    "model.interleave_moe_layer_step": "interleave_moe_layer_step",
    "model.no_rope_layer_interval": "nope_layer_interval",
    "model.attention_chunk_size": "chunk_attn_window_size",
    "model.attn_temperature_tuning": "temperature_tuning",
    "data.tokenizer": "tokenizer_path",
    "data.document_attention": "packing",
    "data.mask_eod": "eod_mask_loss",
    "train.steps": "steps",
    "train.global_batch_size": "gradient_accumulation_steps",
    "train.micro_batch_size": "num_pipeline_microbatches per_device_batch_size",
    "train.seq_length": "max_target_length",
    "train.seed": "init_weights_seed data_shuffle_seed",
    "optimizer.name": "opt_type",
    "optimizer.lr": "learning_rate",
    "optimizer.min_lr": "learning_rate_final_fraction",
    "optimizer.betas": "adam_b1 adam_b2",
    "optimizer.eps": "adam_eps",
    "optimizer.weight_decay": "adam_weight_decay",
    "optimizer.clip_grad_norm": "gradient_clipping_threshold",
    "optimizer.schedule.name": "lr_schedule_type",
    "optimizer.schedule.warmup_steps": "warmup_steps_fraction",
    "optimizer.schedule.decay_steps": "learning_rate_schedule_steps wsd_decay_steps_fraction",
    "parallel.data_shard": "ici_fsdp_parallelism dcn_fsdp_parallelism",
    "parallel.data_replicate": "ici_data_parallelism dcn_data_parallelism",
    "parallel.tensor": "ici_tensor_parallelism dcn_tensor_parallelism",
    "parallel.pipeline": "ici_pipeline_parallelism dcn_pipeline_parallelism",
    "parallel.virtual_pipeline": "num_layers_per_pipeline_stage num_pipeline_repeats",
    "parallel.context": "ici_context_parallelism dcn_context_parallelism",
    "parallel.expert": "ici_expert_parallelism dcn_expert_parallelism",
    "precision": "dtype logits_dot_in_fp32 matmul_precision",
    "moe.balance": "routed_bias routed_bias_update_rate",
    "moe.aux_loss_coeff": "load_balance_loss_weight",
    "eval.interval": "eval_interval",
    "eval.steps": "eval_steps",
    "profile": "profiler",
    "profile.steps": "profiler_steps skip_first_n_steps_for_profiler",
    "checkpoint.interval": "checkpoint_period",
    "checkpoint.keep": "max_num_checkpoints_to_keep",
    "checkpoint.async": "async_checkpointing",
    "monitor.log_interval": "log_period",
    "monitor.tensorboard": "enable_tensorboard",
}
"""Portable key -> fields that it sets, or would: setting one is an error that points at the portable key."""

OMITTED = {
    "no token is dropped, whatever the load": "capacity_factor",
    "the router computes in fp32": "float32_gate_logits quantize_router_proj",
    "scales are of the largest value along what a product sums, whatever the devices": """
        *_quantization_calibration_method quantization_local_shard_count""",
    "Qwix quantizes, which keeps no state; MaxText is giving the other way up": """
        constant_bound_config quant_cfg_path replicate_quant_scale use_qwix_quantization""",
    "MaxText derives it from the others": "DerivedValues global_parameter_scale",
    "the portable keys say each dimension, as in extends: [models/NAME]": """
        base_config model_name override_model_config use_m3_model""",
    "weights are described, and start, as the numerics contract says": """
        dense_init_scale fused_mlp fused_qkv padded_base_moe_mlp_dim param_scan_axis prefuse_moe_weights scan_layers
        trainable_parameters_mask""",
    "the loss is that of the numerics contract": """
        block_diffusion_* cast_logits_to_fp32 LogitsAndLoss moe_use_megatron_seq_aux_loss MTP training_objective
        quantize_mtp use_tunix_gradient_accumulation""",
    "the optimizer and its schedule are those of the numerics contract": """
        AdamW DilocoParams Muon Optimizer qk_clip_threshold use_qk_clip""",
    "weights, gradients and moments are fp32: checkpoints hold them so": """
        grad_dtype mu_dtype unquantized_modules weight_block_size weight_dtype""",
    "precision keeps the logits' product in fp32": "logits_proj_quant_calibration_method quantize_logits_proj",
    "nothing is random in a step": "dropout_rate enable_dropout use_random_routing",
    "the model's family says it": "Attention ModelArchitecture PositionalEmbedding Rope YarnRope mlp_bias",
    "it makes another model, or is read in one only": """
        AttentionIndexer CompressedAttention DeepSeekMoE Engram ManifoldConstrainedHyperConnections MoBa
        Qwen3Next engram first_num_hash_layers fuse_expert_scales inhomogeneous_layer_cycle_interval
        mla_qk_head_chunk_size moe_expert_input_dim weight_sparsity_* indexer_cutoff_threshold csa_* force_q_layout
        merge_gating_gmm router_topk_matmul_vjp use_gather_mosaic_kernel use_manual_quantization""",
    "nothing under this name is computed in the layers that are used": "kv_proj mlpwi moe_routing_maps qkv_proj",
    "for images, video and sound": """
        AudioEncoder MultimodalGeneral VisionProjector VisionTower dtype_mm remat_policy_for_vit""",
    "samples come from the shared reader": """
        DatasetGeneral GrainDataset HfDataset MMapDataset OlmoGrainDataset TfdsDataset Tokenizer enable_data_shuffling
        data_sharding train_interleave_cycle_length train_shard_in_read""",
    "checkpoints are written by Primus": "Checkpointing EmergencyCheckpointing OrbaxStorage",
    "processes are joined, watched and started anew by Primus": """
        ElasticTraining enable_single_controller jax_distributed_initialization_timeout num_slices
        skip_jax_distributed_system subslice_shape""",
    "the mesh is planned": """
        DcnParallelism IciParallelism HardwareAndMesh dense_fsdp_use_two_stage_all_gather
        moe_fsdp_use_two_stage_all_gather use_2d_fsdp_sharding""",
    "attention as it is offered gathers keys and values, in their order": """
        context_parallel_* context_sharding ulysses_context_sharding""",
    "it would change how layers are kept": "pipeline_parallel_layers scan_layers_per_stage",
    "the code that this backend runs does not read it": "PipelineParallelism",
    "its weights would be bf16 while gradients accumulate; parallel.data_shard shards moments": """
        shard_optimizer_over_data""",
    "tokens reach their experts by one way, and none is dropped": "MoEGeneral check_vma",
    "its step does not say the gradient's norm": "optimizer_memory_host_offload",
    "its step does not run on a CPU, and was not tried elsewhere": "parameter_memory_host_offload",
    "the loop is Primus's own": """
        AOT DevelopmentAndDebugging TrainingLoop compile_xla_flags internal_compile* sharding_tolerance
        remove_size_one_mesh_axis_from_type shardy""",
    "what is measured and written is Primus's": """
        GcpMonitoring Goodput ManagedMLDiagnostics Metrics Profiling RunInfo Tensorboard""",
    "XLA_FLAGS in env says it": "HloDump",
    "for TPUs": """
        SplashAttention use_*_splash allow_split_physical_axes optimize_mesh_for_tpu_v6e MoEKernels ragged_gather_*
        ragged_sort_* moe_pin_sparse_core_* moe_*_sparse_core_id""",
    "it needs TransformerEngine, which the environment lacks": "te_*",
    "for inference": """
        Decoding InferenceBenchmark InferenceGeneral InferenceLayout InferenceServer MlaAttention PrefixCaching VLLM
        kv_quant_* quantize_kvcache ragged_block_size sharding_strategy use_ragged_attention""",
    "for training after pre-training": "Distillation FineTuning dpo lora",
}
"""Why fields have no effect here or would break a contract -> their names."""

TYPES = {"logical_axis_rules": "list", "logical_axis_rules_for_eval": "list"}
"""Where MaxText leaves the type open."""

CHOICES = {
    "attention": "dot_product flash autoselected",
    "quantization": "int8 fp8_full",
    "remat_policy": """
        custom full minimal minimal_flash minimal_offloaded minimal_with_context
        minimal_with_context_and_quantization minimal_with_quantization none qkv_proj_offloaded save_dot_except_mlp
        save_dot_except_mlpwi save_dot_with_context_except_mlp save_out_proj save_qkv_proj""",
}
"""Where MaxText leaves the values open, or fewer are allowed than it takes: cuDNN's attention does not see where a
document ends when samples do not come from MaxText's own readers; other kinds of quantization keep state, are for
inference, need a library that the environment lacks, or leave gradients in formats that are too coarse."""

RULES = "logical_axis_rules"
"""Its choices are the dimensions that MaxText has rules for."""

OUR_DEFAULTS = {
    "attention": "dot_product",
    "constant_bound_config": [],
    "logical_axis_rules": [],
    "remat_policy": "minimal",
}
"""Where this backend itself starts from another value than MaxText, or MaxText writes its value otherwise."""

OUR_WORDS = {
    "attention": "Kernel that computes attention; flash only on GPUs.",
    "float32_weight_sum": "Add what a token's experts give in fp32, in every precision.",
    "kv_wa_proj": "Remat policy for the projection of keys and values into their latent.",
    "mla_kv": "Remat policy for the normed latent of keys and values.",
    "mla_q": "Remat policy for the normed latent of queries.",
    "logical_axis_rules": "Mesh axes that a named dimension is split over, in place of MaxText's rule for that name.",
    "override_logical_axis_rules": "No rule holds but those in logical_axis_rules.",
    "quantization": "What factors of the layers' products are rounded to; on GPUs precision: fp8 says fp8_full.",
    "query_wa_proj": "Remat policy for the projection of queries into their latent.",
    "remat_policy": "What the backward pass computes anew, more finely than recompute; custom: as the single keys say.",
    "sparse_matmul": "An expert computes the tokens that chose it; false: all tokens, and the others count zero.",
    "use_custom_sort_vjp": "The backward pass of the sorting of tokens by experts is a sorting too.",
    "use_iota_embed": "Look embeddings up by a product with one-hot rows.",
    "use_sliced_mla_proj": "Latent attention multiplies by the parts of a matrix, instead of parting the product.",
}
"""Where MaxText's first sentence does not say what a reader needs."""


def fields() -> dict[str, tuple[str, Any]]:
    """Field of MaxText's configuration -> the class that adds it, and pydantic's view of it."""
    from maxtext.configs.types import MaxTextConfig

    classes: dict[str, str] = {}
    for cls in reversed(MaxTextConfig.__mro__):
        for name in inspect.get_annotations(cls):
            classes.setdefault(name, cls.__name__)
    return {name: (classes[name], field) for name, field in sorted(MaxTextConfig.model_fields.items())}


def words() -> Iterator[tuple[str, str]]:
    """(what becomes of the fields, word that stands for them): "kept", a portable key, or a reason."""
    for verdict, listed in [("kept", KEPT), *PORTABLE.items(), *OMITTED.items()]:
        yield from ((verdict, word) for word in listed.split())


def verdicts(name: str, group: str) -> list[str]:
    """What becomes of field `name`, which class `group` adds; one verdict unless the tables are wrong."""
    listed = list(words())
    exact = [verdict for verdict, word in listed if word == name]
    patterns = [verdict for verdict, word in listed if {"*", "?"} & {*word} and fnmatch(name, word)]
    return exact or patterns or [verdict for verdict, word in listed if word == group]


def keys() -> dict[str, dict[str, Any]]:
    """Key -> NativeKey as JSON, of every field that is not left out."""
    found = {}
    for name, (verdict, field, default) in judged().items():
        if verdict not in OMITTED:
            found[name] = _key(name, field, default) | ({"portable": verdict} if verdict in PORTABLE else {})
    return found


def omitted() -> dict[str, dict[str, Any]]:
    """Reason -> key -> MaxText's default, of every field that is left out."""
    found: dict[str, dict[str, Any]] = {reason: {} for reason in OMITTED}
    for name, (verdict, _, default) in judged().items():
        if verdict in OMITTED:
            found[verdict][name] = default
    return found


@cache
def judged() -> dict[str, tuple[str, Any, Any]]:
    """Field -> what becomes of it, pydantic's view of it, and MaxText's default."""
    import yaml
    from maxtext.configs import types
    from pydantic import BaseModel

    base = yaml.safe_load(Path(types.__file__).with_name("base.yml").read_text(encoding="utf-8"))
    found = {}
    for name, (group, field) in fields().items():
        (verdict,) = verdicts(name, group)
        default = base.get(name, field.get_default(call_default_factory=True))
        if isinstance(default, BaseModel):
            default = default.model_dump(mode="json")
        default = default.value if isinstance(default, enum.Enum) else default
        found[name] = (verdict, field, None if default == "None" else default)
    return found


def _key(name: str, field: Any, default: Any) -> dict[str, Any]:
    allowed = (
        list(dict.fromkeys(rule[0] for rule in judged()[name][2]))
        if name == RULES
        else CHOICES[name].split()
        if name in CHOICES
        else list(_choices(field.annotation))
    )
    more = {"choices": allowed, "description": OUR_WORDS.get(name) or _shortened(field.description or "")}
    return {
        "type": TYPES.get(name) or _type(field.annotation),
        "default": OUR_DEFAULTS.get(name, default),
        **{word: value for word, value in more.items() if value},
    }


def _type(hint: Any) -> str:
    found = ["str" if _enumerates(part) else schema_snapshot.type_name(part) for part in schema_snapshot.parts(hint)]
    return " | ".join(sorted(dict.fromkeys(found), key="null".__eq__))


def _choices(hint: Any) -> Iterator[Any]:
    for part in schema_snapshot.parts(hint):
        if _enumerates(part):
            yield from (member.value for member in part)
        elif get_origin(part) is Literal:
            yield from get_args(part)


def _enumerates(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _shortened(description: str) -> str:
    """The first sentence, without what it says in brackets or after a colon, a semicolon or a dash."""
    sentence = re.split(r"(?<!e\.g)(?<!i\.e)(?<!vs)\.(?:\s|$)", " ".join(description.split()))[0]
    sentence = re.split(r"[:;] | - | -- ", re.sub(r"\s*\([^()]*\)", "", sentence))[0]
    return f"{sentence}." if sentence else ""


def text() -> str:
    return schema_snapshot.text(
        {"maxtext": version("maxtext"), "jax": version("jax")},
        "names, types, defaults and shortened descriptions: MaxText (Apache-2.0)",
        keys(),
        omitted(),
    )


if __name__ == "__main__":
    os.environ |= {"DECOUPLE_GCLOUD": "TRUE", "JAX_PLATFORMS": "cpu"}
    SNAPSHOT.write_text(text(), encoding="utf-8")
