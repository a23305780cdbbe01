"""TorchTitan's keys: see ``table`` for the words."""

from __future__ import annotations

from primus.config.importing import reasons as r
from primus.config.importing import values as v
from primus.config.importing import values_titan as t
from primus.config.importing.rules import Rule, always, by, choice, native, no, off, on, switch, to, when

_SAVING = (on("checkpoint.enable"), "checkpoint.enable is not set")
_OPERATIONS = (
    lambda others: others.get("activation_checkpoint.mode", "selective") == "selective",
    "the mode is not selective",
)
_BETAS = by("optimizer.betas", v.pair("optimizer.betas", "optimizer.beta1", "optimizer.beta2", (0.9, 0.95)))

TORCHTITAN: dict[str, Rule] = {
    "training.steps": to("train.steps"),
    "training.local_batch_size": to("train.micro_batch_size"),
    "training.global_batch_size": by("train.global_batch_size", t.global_batch),
    "training.seq_len": to("train.seq_length"),
    "training.max_norm": to("optimizer.clip_grad_norm"),
    "training.seed": to("train.seed"),
    "debug.seed": to("train.seed"),
    "training.mock_data": by("data.train: synthetic", v.mock, flag=True),
    "training.dataset": when(
        lambda others: not others.on("training.mock_data"),
        "mock_data is set",
        no("TorchTitan's own text stream: make a token dataset with `data prepare` and set data.train"),
    ),
    "training.dataset_path": no("text: make a token dataset with `data prepare` and set data.train"),
    "training.mixed_precision_param": choice(
        "precision", {"bfloat16": "bf16", "float32": "fp32"}, "precision is fp32, bf16 or fp8"
    ),
    "training.deterministic": native("debug.deterministic", flag=True),
    "model.name": no("the architecture comes from extends: [models/NAME]"),
    "model.flavor": no("the architecture comes from extends: [models/NAME]"),
    "model.converters": by("precision: fp8", t.float8_model),
    "model.hf_assets_path": to("data.tokenizer"),
    "model.tokenizer_path": to("data.tokenizer"),
    "job.dump_folder": no(r.CLUSTER),
    "job.description": no(r.LOGGING),
    "job.print_args": no(r.LOGGING, flag=True),
    "job.print_config": no(r.LOGGING, flag=True),
    # optimizer
    "optimizer.name": always("AdamW", "AdamW"),
    "optimizer.lr": to("optimizer.lr"),
    "optimizer.beta1": _BETAS,
    "optimizer.beta2": _BETAS,
    "optimizer.eps": to("optimizer.eps"),
    "optimizer.weight_decay": to("optimizer.weight_decay"),
    "lr_scheduler.warmup_steps": to("optimizer.schedule.warmup_steps"),
    "lr_scheduler.total_steps": to("optimizer.schedule.decay_steps"),
    "lr_scheduler.decay_ratio": by("optimizer.schedule.stable_steps", t.decay_ratio),
    "lr_scheduler.decay_type": by("optimizer.schedule.name", t.decay_type),
    "lr_scheduler.min_lr_factor": by("optimizer.min_lr", t.factor),
    # how the model is spread
    "parallelism.data_parallel_replicate_degree": to("parallel.data_replicate"),
    "parallelism.data_parallel_shard_degree": by("parallel.data_shard", t.sharding),
    "parallelism.tensor_parallel_degree": to("parallel.tensor"),
    "parallelism.pipeline_parallel_degree": to("parallel.pipeline"),
    "parallelism.context_parallel_degree": to("parallel.context"),
    "parallelism.expert_parallel_degree": to("parallel.expert"),
    "parallelism.expert_tensor_parallel_degree": always(
        1, "experts are not split", "experts are spread whole: parallel.expert"
    ),
    "parallelism.pipeline_parallel_schedule": by("parallel.schedule", t.pipeline_schedule),
    "parallelism.enable_async_tensor_parallel": native("compile.enable_async_tensor_parallel", flag=True),
    "parallelism.fsdp_reshard_after_forward": native("parallelism.fsdp_reshard_after_forward"),
    # memory, speed
    "activation_checkpoint.mode": choice(
        "recompute", {"none": "none", "selective": "selective", "full": "full"}, "recompute is none, selective or full"
    ),
    "activation_checkpoint.selective_ac_option": when(
        *_OPERATIONS, always("op", "operations are chosen", "operations are chosen, not layers")
    ),
    "activation_checkpoint.per_op_sac_force_recompute_mm_shapes_by_fqns": when(
        *_OPERATIONS, native("activation_checkpoint.force_recompute_mm_shapes_by_fqns")
    ),
    "compile.enable": switch("compile"),
    "compile.components": when(on("compile.enable"), "compile.enable is not set", native("compile.components")),
    "quantize.linear.float8.filter_fqns": no("TorchTitan names its layers otherwise now; the output layer stays out"),
    "quantize.linear.float8.recipe_name": native("float8.recipe_name"),
    "quantize.linear.float8.*": no("TorchTitan has given this switch up"),
    "quantize.linear.float8.enable_fsdp_float8_all_gather": off("TorchTitan has given this switch up"),
    "quantize.linear.float8.precompute_float8_dynamic_scale_for_fsdp": off("TorchTitan has given this switch up"),
    "training.gc_freq": native("training.gc_freq"),
    "debug.moe_force_load_balance": native("debug.moe_force_load_balance", flag=True),
    "training.debug_moe_force_load_balance": native("debug.moe_force_load_balance", flag=True),
    "comm.train_timeout_seconds": by("resilience.hang_timeout", v.timeout("resilience.hang_timeout", "s")),
    "comm.init_timeout_seconds": by("resilience.start_timeout", v.timeout("resilience.start_timeout", "s")),
    "primus_turbo.*": off(r.TURBO),
    # checkpoints, evaluation
    "checkpoint.enable": always(
        (True, False), "the last step is always saved, others by checkpoint.interval", flag=True
    ),
    "checkpoint.enable_checkpoint": always(
        (True, False), "the last step is always saved, others by checkpoint.interval", flag=True
    ),
    "checkpoint.interval": when(*_SAVING, to("checkpoint.interval")),
    "checkpoint.keep_latest_k": when(*_SAVING, to("checkpoint.keep")),
    "checkpoint.async_mode": when(
        *_SAVING,
        choice("checkpoint.async", {"disabled": False, "async": True, "async_with_pinned_mem": True}, r.FORMAT),
    ),
    "checkpoint.folder": no("checkpoints lie in the run directory"),
    "checkpoint.last_save_model_only": when(*_SAVING, off(r.WHOLE)),
    "checkpoint.export_dtype": when(*_SAVING, no("`checkpoint convert --dtype` chooses it")),
    "validation.enable": off("TorchTitan's own text stream: set data.validation"),
    "validation.freq": when(on("validation.enable"), "validation.enable is not set", to("eval.interval")),
    "validation.steps": when(on("validation.enable"), "validation.enable is not set", to("eval.steps")),
    # watching
    "metrics.log_freq": to("monitor.log_interval"),
    "metrics.enable_tensorboard": switch("monitor.tensorboard"),
    "metrics.save_tb_folder": no("TensorBoard files lie in the run directory"),
    "metrics.enable_wandb": off(r.WANDB),
    "metrics.disable_color_printing": off(r.LOGGING),
    "profiling.enable_profiling": by("profile", t.trace, flag=True),
    "profiling.save_traces_folder": no("traces lie in the run directory"),
    "profiling.profile_freq": when(
        on("profiling.enable_profiling"), "enable_profiling is off", no("one range of steps: set profile.steps")
    ),
    "profiling.enable_memory_snapshot": native("profiler.enable_memory_snapshot", flag=True),
    "profiling.save_memory_snapshot_folder": no("traces lie in the run directory"),
    "sink_level": no(r.LOGGING),
    "file_sink_level": no(r.LOGGING),
    "stderr_sink_level": no(r.LOGGING),
}
