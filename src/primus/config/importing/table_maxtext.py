"""MaxText's keys: see ``table`` for the words.

Only those that become something else are here. Of the others the snapshot of MaxText's own configuration says whether
an experiment may set them, and why not.
"""

from __future__ import annotations

from primus.config.importing import mesh_maxtext as mesh
from primus.config.importing import model_maxtext as a
from primus.config.importing import reasons as r
from primus.config.importing import values as v
from primus.config.importing import values_maxtext as m
from primus.config.importing.rules import Rule, always, by, native, no, off, on, switch, to, when

_BETAS = by("optimizer.betas", v.pair("optimizer.betas", "adam_b1", "adam_b2", (0.9, 0.95)))
_SAVING = (lambda others: m.effective(others, "enable_checkpointing") is True, "enable_checkpointing is off")
_EXPERTS = (a.has_experts, "the model has no experts")
_YARN = (a.yarn, "the rotary embedding is not yarn")
_STAGES = (lambda others: mesh.size(others, "pipeline") != 1, "there is one pipeline stage")
_CUSTOM = (m.custom, "remat_policy is not custom")
_REAL = (lambda others: not m.synthetic(others), "the data are synthetic")
_TEXT = when(*_REAL, no("of MaxText's own readers: make a token dataset with `data prepare` and set data.train"))
_GRAIN = (lambda others: others.get("dataset_type") == "grain", "only for dataset_type grain")
_TRACE = by("profile.steps", m.trace)
_MATMUL = "how experts are multiplied follows from the backend"
_DROPLESS = "no token is dropped: every expert takes all of its"
_WANDB = when(on("enable_wandb"), "enable_wandb is off", no(r.WANDB))


def _axis(target: str, *names: str) -> Rule:
    return by(target, mesh.axis(target, *names))


def _mesh(names: str, rule: Rule) -> dict[str, Rule]:
    return {f"{level}_{name}_parallelism": rule for name in names.split() for level in ("ici", "dcn")}


def _rank(name: str) -> Rule:
    return when(lambda others: others.get("attention_type") == "mla", "attention is not mla", to(f"model.{name}"))


MAXTEXT: dict[str, Rule] = {
    "base_config": by("extends", m.base),
    "run_name": by("name", m.run_name),
    "base_output_directory": no(r.CLUSTER),
    "hardware": always(("gpu", "gpu_multiprocess"), "the hardware is a preset", "the hardware is a preset: --hardware"),
    # how long, in which batches
    "steps": by("train.steps", m.steps),
    "max_target_length": to("train.seq_length"),
    "per_device_batch_size": by("train.micro_batch_size", mesh.batch),
    "gradient_accumulation_steps": by("train.global_batch_size", mesh.accumulation),
    "enable_rampup_batch_size": off("the batch size is constant"),
    "init_weights_seed": to("train.seed"),
    "data_shuffle_seed": always(0, "train.seed orders the samples", "train.seed orders the samples, too"),
    # optimizer
    "opt_type": always("adamw", "AdamW"),
    "learning_rate": to("optimizer.lr"),
    "learning_rate_final_fraction": by("optimizer.min_lr", m.final_fraction),
    "cosine_learning_rate_final_fraction": by("optimizer.min_lr", m.final_fraction),
    "warmup_steps_fraction": by("optimizer.schedule.warmup_steps", m.warmup),
    "learning_rate_schedule_steps": by("optimizer.schedule.decay_steps", m.decay_steps),
    "lr_schedule_type": to("optimizer.schedule.name"),
    "wsd_decay_steps_fraction": by("optimizer.schedule.stable_steps", m.wsd_fraction),
    "wsd_decay_style": when(
        lambda others: others.get("lr_schedule_type") == "wsd",
        "only wsd has it",
        always("linear", "wsd decays linearly"),
    ),
    "adam_b1": _BETAS,
    "adam_b2": _BETAS,
    "adam_eps": to("optimizer.eps"),
    "adam_eps_root": always(0, "nothing is added inside the square root"),
    "adam_weight_decay": to("optimizer.weight_decay"),
    "adamw_mask": no("weights with two or more dimensions decay, norms and biases do not"),
    "gradient_clipping_threshold": to("optimizer.clip_grad_norm"),
    "mu_dtype": always(("float32", ""), r.STATE),
    "grad_dtype": always("float32", r.STATE),
    "weight_dtype": always("float32", r.STATE),
    # how the model is spread
    **_mesh("data", by("parallel.data_replicate", mesh.replicas)),
    **_mesh("fsdp fsdp_transpose", by("parallel.data_shard", mesh.shards)),
    **_mesh("tensor tensor_sequence", _axis("parallel.tensor", "tensor", "tensor_sequence")),
    **_mesh("context", _axis("parallel.context", "context")),
    **_mesh("pipeline", _axis("parallel.pipeline", "pipeline")),
    **_mesh("expert", by("parallel.expert", mesh.experts)),
    **_mesh(
        "tensor_transpose sequence context_usp_ulysses context_autoregressive autoregressive diloco",
        always(1, "1, as without it", "no such axis here: parallel names those that there are"),
    ),
    "num_pipeline_repeats": by("parallel.virtual_pipeline", mesh.repeats),
    "num_layers_per_pipeline_stage": by("parallel.virtual_pipeline", mesh.layers),
    **{
        name: when(*_STAGES, native(name))
        for name in (
            *("pipeline_delay_activation_forwarding", "pipeline_fsdp_ag_once", "pipeline_fsdp_ag_per_repeat"),
            *("scan_pipeline_iterations", "set_remat_policy_on_pipeline_iterations"),
        )
    },
    "num_pipeline_microbatches": when(
        *_STAGES,
        no("the global batch follows from it, and from that the number of microbatches"),
    ),
    # arithmetic and memory
    "dtype": by("precision", m.dtype),
    "quantization": by("precision: fp8", m.quantization),
    "matmul_precision": always("default", "follows from precision"),
    "logits_dot_in_fp32": always(True, "the logits are computed in fp32"),
    "remat_policy": by("recompute", m.remat),
    **{
        name: when(*_CUSTOM, native(name))
        for name in (
            *("decoder_layer_input", "query_proj", "key_proj", "value_proj", "context", "attention_out", "out_proj"),
            *("mlpwi_0", "mlpwi_1", "mlpwo", "kv_wa_proj", "query_wa_proj", "mla_kv", "mla_q", "moe_x_sorted"),
            *("moe_mlpwi_0", "moe_mlpwi_1", "moe_mlpwo"),
        )
    },
    "attention": by("native attention", m.attention),
    "scan_layers": always(True, "layers are scanned: checkpoints describe them so"),
    "param_scan_axis": always((0, 1), "where layers are stacked is the backend's own matter"),
    "pure_nnx_decoder": no("MaxText has given this switch up"),
    # data
    "dataset_type": by("data.train", m.dataset),
    "grain_file_type": when(*_GRAIN, always("mmap", "token files, as every dataset here", "no token files")),
    "grain_train_files": by("data.train", m.token_files("data.train")),
    "grain_eval_files": by("data.validation", m.token_files("data.validation")),
    "eod_mask_loss": switch("data.mask_eod"),
    "reset_attention_mask": by("data.document_attention", m.restarts),
    "packing": by("data.document_attention", m.packing),
    "tokenizer_path": when(*_REAL, by("data.tokenizer", v.tokenizer)),
    "tokenizer_type": when(*_REAL, always("huggingface", "tokenizers are Hugging Face's")),
    "hf_access_token": when(*_REAL, no("the token of the Hub is read from HF_TOKEN")),
    "dataset_path": _TEXT,
    "dataset_name": _TEXT,
    "eval_dataset_name": _TEXT,
    "hf_*": _TEXT,
    # model
    "model_name": by("extends: models/NAME", v.preset),
    "override_model_config": always((True, False), "what the file says beside a preset counts"),
    "decoder_block": by("model.model_type", a.block),
    "global_parameter_scale": always(1, "the dimensions are what they are", "the dimensions are carried, scaled"),
    "base_emb_dim": by("model.hidden_size", a.scaled("model.hidden_size", 1)),
    "base_num_query_heads": by("model.num_attention_heads", a.scaled("model.num_attention_heads")),
    "base_num_kv_heads": by("model.num_key_value_heads", a.scaled("model.num_key_value_heads")),
    "base_mlp_dim": by("model.intermediate_size", a.scaled("model.intermediate_size")),
    "base_num_decoder_layers": by("model.num_hidden_layers", a.scaled("model.num_hidden_layers", 0)),
    "base_moe_mlp_dim": when(*_EXPERTS, by("model.moe_intermediate_size", a.scaled("model.moe_intermediate_size"))),
    "head_dim": to("model.head_dim"),
    "vocab_size": to("model.vocab_size"),
    "normalization_layer_epsilon": to("model.rms_norm_eps"),
    "logits_via_embedding": switch("model.tie_word_embeddings"),
    "normalize_embedding_logits": when(
        on("logits_via_embedding"), "embeddings are not tied", off("the logits of a tied embedding are not scaled")
    ),
    "mlp_activations": always((["silu", "linear"],), "feed-forward layers are SwiGLU"),
    "dropout_rate": always(0, "there is no dropout"),
    "enable_dropout": always((True, False), "there is no dropout, and dropout_rate says the same"),
    "attention_bias": by(r.BY_FAMILY, a.of_family("qwen2", "gpt_oss")),
    "use_qk_norm": by(r.BY_FAMILY, a.of_family("qwen3", "qwen3_moe")),
    "attention_sink": by(r.BY_FAMILY, a.of_family("gpt_oss")),
    "attention_type": always(("global", "mla"), r.BY_FAMILY),
    "sliding_window_size": by("model.sliding_window", a.positive("model.sliding_window")),
    "chunk_attn_window_size": by("model.attention_chunk_size", a.positive("model.attention_chunk_size")),
    "nope_layer_interval": by("model.no_rope_layer_interval", a.positive("model.no_rope_layer_interval")),
    "temperature_tuning": by("model.attn_temperature_tuning", a.positive("model.attn_temperature_tuning")),
    "interleave_moe_layer_step": when(*_EXPERTS, to("model.interleave_moe_layer_step")),
    "mlp_activations_limit": by("model.swiglu_limit", a.positive("model.swiglu_limit")),
    "q_lora_rank": _rank("q_lora_rank"),
    "kv_lora_rank": _rank("kv_lora_rank"),
    "qk_nope_head_dim": _rank("qk_nope_head_dim"),
    "qk_rope_head_dim": _rank("qk_rope_head_dim"),
    "v_head_dim": _rank("v_head_dim"),
    "rope_max_timescale": to("model.rope_theta"),
    "rope_type": by("model.rope_scaling", a.rope),
    "rope_use_scale": always(True, "rope_type says it"),
    "rope_factor": when(*_YARN, to("model.rope_scaling.factor")),
    "original_max_position_embeddings": when(*_YARN, to("model.rope_scaling.original_max_position_embeddings")),
    "beta_fast": when(*_YARN, to("model.rope_scaling.beta_fast")),
    "beta_slow": when(*_YARN, to("model.rope_scaling.beta_slow")),
    "mscale": when(*_YARN, to("model.rope_scaling.mscale")),
    "max_position_embeddings": to("model.max_position_embeddings"),
    # experts
    "num_experts": when(*_EXPERTS, to("model.num_experts")),
    "num_experts_per_tok": when(*_EXPERTS, to("model.num_experts_per_tok")),
    "shared_experts": when(*_EXPERTS, to("model.n_shared_experts")),
    "first_num_dense_layers": when(*_EXPERTS, to("model.first_k_dense_replace")),
    "n_routing_groups": by("model.n_group", a.positive("model.n_group")),
    "topk_routing_group": by("model.topk_group", a.positive("model.topk_group")),
    "routed_scaling_factor": when(*_EXPERTS, to("model.routed_scaling_factor")),
    "routed_score_func": by("model.scoring_func", a.positive("model.scoring_func")),
    "norm_topk_prob": when(*_EXPERTS, to("model.norm_topk_prob")),
    "routed_bias": when(
        *_EXPERTS, by("moe.balance", lambda value, others: a.balance(others.get("load_balance_loss_weight", 0), others))
    ),
    "load_balance_loss_weight": when(*_EXPERTS, by("moe.aux_loss_coeff", a.balance)),
    "capacity_factor": when(*_EXPERTS, by(f"{_DROPLESS}, or native", m.own("capacity_factor", _DROPLESS))),
    "megablox": when(*_EXPERTS, by(f"{_MATMUL}, or native", m.own("megablox", _MATMUL))),
    "sparse_matmul": when(*_EXPERTS, by(f"{_MATMUL}, or native", m.own("sparse_matmul", _MATMUL))),
    # checkpoints, evaluation
    "enable_checkpointing": always((True, False), "the last step is always saved, others by checkpoint.interval"),
    "checkpoint_period": when(*_SAVING, to("checkpoint.interval")),
    "max_num_checkpoints_to_keep": when(*_SAVING, to("checkpoint.keep")),
    "max_to_keep": when(*_SAVING, to("checkpoint.keep")),
    "async_checkpointing": when(*_SAVING, switch("checkpoint.async")),
    "load_parameters_path": by("model.init", m.empty(r.FOREIGN)),
    "load_full_state_path": by("model.init", m.empty(r.FOREIGN)),
    "eval_interval": by("eval.interval", m.evaluation("eval.interval")),
    "eval_steps": by("eval.steps", m.evaluation("eval.steps")),
    "eval_per_device_batch_size": by("eval", m.empty("evaluation has the batches of training")),
    # watching
    "log_period": to("monitor.log_interval"),
    "enable_tensorboard": switch("monitor.tensorboard"),
    "enable_wandb": off(r.WANDB),
    "wandb_project_name": _WANDB,
    "wandb_run_name": _WANDB,
    "profiler": _TRACE,
    "skip_first_n_steps_for_profiler": _TRACE,
    "profiler_steps": _TRACE,
    "upload_all_profiler_results": when(m.traced, "there is no profiler", no("set profile.ranks")),
    "sink_level": no(r.LOGGING),
    "file_sink_level": no(r.LOGGING),
    "stderr_sink_level": no(r.LOGGING),
}
