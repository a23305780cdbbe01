"""Writes ``native_schema.json``: the keys of TorchTitan's own configuration that an experiment may set.

    python -m primus.backends.torchtitan.generate_schema

Run after a change of TorchTitan's version or of the tables here; a test fails while the snapshot is stale. Every
field of the listed dataclasses is either in the snapshot or in OMITTED with the reason.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from primus.backends import schema_snapshot
from primus.backends.torchtitan.translate import NOT_FP8

SNAPSHOT = Path(__file__).with_name("native_schema.json")

PORTABLE = {
    "training.local_batch_size": "train.micro_batch_size",
    "training.global_batch_size": "train.global_batch_size",
    "training.seq_len": "train.seq_length",
    "training.max_norm": "optimizer.clip_grad_norm",
    "training.steps": "train.steps",
    "training.dtype": "precision",
    "training.mixed_precision_param": "precision",
    "parallelism.data_parallel_replicate_degree": "parallel.data_replicate",
    "parallelism.data_parallel_shard_degree": "parallel.data_shard",
    "parallelism.tensor_parallel_degree": "parallel.tensor",
    "parallelism.pipeline_parallel_degree": "parallel.pipeline",
    "parallelism.pipeline_parallel_schedule": "parallel.schedule",
    "parallelism.pipeline_parallel_microbatch_size": "train.micro_batch_size",
    "parallelism.pipeline_parallel_layers_per_stage": "parallel.virtual_pipeline",
    "parallelism.context_parallel_degree": "parallel.context",
    "parallelism.expert_parallel_degree": "parallel.expert",
    "compile.enable": "compile",
    "comm.init_timeout_seconds": "resilience.start_timeout",
    "comm.train_timeout_seconds": "resilience.hang_timeout",
    "debug.seed": "train.seed",
    "checkpoint.interval": "checkpoint.interval",
    "checkpoint.initial_load_path": "model.init",
    "checkpoint.initial_load_in_hf": "model.init",
    "checkpoint.keep_latest_k": "checkpoint.keep",
    "checkpoint.async_mode": "checkpoint.async",
    "metrics.log_freq": "monitor.log_interval",
    "metrics.enable_tensorboard": "monitor.tensorboard",
    "lr_scheduler.warmup_steps": "optimizer.schedule.warmup_steps",
    "lr_scheduler.total_steps": "optimizer.schedule.decay_steps",
    "lr_scheduler.decay_ratio": "optimizer.schedule.stable_steps",
    "lr_scheduler.decay_type": "optimizer.schedule.name",
    "lr_scheduler.min_lr_factor": "optimizer.min_lr",
    "validator.freq": "eval.interval",
    "validator.steps": "eval.steps",
    "profiler.enable_profiling": "profile",
    "profiler.profiler_active": "profile.steps",
    "profiler.profile_freq": "profile.steps",
}
"""Native key -> portable key that sets it: setting both is an error that points at the portable one."""

OUR_DEFAULTS = {
    "training.disable_cuda_graphs": True,
    "parallelism.spmd_backend": "partial_dtensor",
    "float8.filter_fqns": NOT_FP8,
}
"""Where the backend itself starts from another value than TorchTitan."""

_OURS = "the run directory and its manifest are Primus's"
_STAGES = "stages are planned whole, in parallelism.module_fqns_per_model_part"
OMITTED = {
    "parallelism.pipeline_parallel_first_stage_less_layers": _STAGES,
    "parallelism.pipeline_parallel_last_stage_less_layers": _STAGES,
    "parallelism.pipeline_parallel_schedule_csv": "the schedules are the portable ones",
    "comm.mode": "processes are real",
    "comm.save_traces_folder": _OURS,
    "comm.save_traces_file_prefix": _OURS,
    "debug.batch_invariant": "TorchTitan refuses it in pre-training",
    "debug.save_config_file": "plan.json holds the configuration",
    "debug.enable_structured_logging": "events.jsonl holds what happened",
    **{
        f"checkpoint.{name}": _OURS
        for name in (
            "enable",
            "folder",
            "initial_load_model_only",
            "initial_load_in_hf_quantized",
            "last_save_model_only",
            "last_save_in_hf",
            "export_dtype",
            "load_step",
            "exclude_from_loading",
            "enable_first_step_checkpoint",
            "create_seed_checkpoint",
            "load_only",
        )
    },
    **{
        f"metrics.{name}": "events are Primus's"
        for name in ("disable_color_printing", "save_tb_folder", "save_for_all_ranks", "enable_wandb")
    },
    "validator.enable": "a validation split switches it on",
    "validator.dataloader": "samples come from the shared reader",
    **{
        f"profiler.{name}": "steps and ranks are the portable profile's"
        for name in (
            "save_traces_folder",
            "profiler_repeat",
            "profiler_skip_first",
            "profiler_skip_first_wait",
            "profiler_warmup",
            "trace_post_processor",
        )
    },
    "profiler.save_memory_snapshot_folder": _OURS,
    "activation_checkpoint.visualize_memory_budget_pareto": "writes outside the run directory",
    "optimizer.param_groups": "the decay groups are part of the numerics contract",
    "optimizer.optimizer_factory_kwargs_by_name": "the optimizer is part of the numerics contract",
    "loss.loss_fn": "the loss is part of the numerics contract",
    "float8.model_compile_enabled": "set from compile",
}
"""Fields that have no effect here or would break a contract, and why."""


def sections() -> dict[str, list[type]]:
    """Section name -> the dataclasses whose fields it takes."""
    from primus.backends.torchtitan import patches

    patches.apply(patches.for_device("cpu"))
    from torchtitan.components.checkpointer import CheckpointManager
    from torchtitan.components.loss import ChunkedLossWrapper
    from torchtitan.components.metrics import MetricsProcessor
    from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer
    from torchtitan.components.quantization.float8 import Float8LinearConverter
    from torchtitan.components.validate import Validator
    from torchtitan.config.configs import CommConfig, CompileConfig, DebugConfig, ParallelismConfig, TrainingConfig
    from torchtitan.config.override import OverrideConfig
    from torchtitan.distributed.activation_checkpoint import FullAC, MemoryBudgetAC, SelectiveAC
    from torchtitan.tools.profiler import Profiler

    return {
        "training": [TrainingConfig],
        "parallelism": [ParallelismConfig],
        "compile": [CompileConfig],
        "comm": [CommConfig],
        "debug": [DebugConfig],
        "checkpoint": [CheckpointManager.Config],
        "activation_checkpoint": [SelectiveAC.Config, FullAC.Config, MemoryBudgetAC.Config],
        "profiler": [Profiler.Config],
        "metrics": [MetricsProcessor.Config],
        "optimizer": [OptimizersContainer.Config],
        "lr_scheduler": [LRSchedulersContainer.Config],
        "validator": [Validator.Config],
        "loss": [ChunkedLossWrapper.Config],
        "float8": [Float8LinearConverter.Config],
        "override": [OverrideConfig],
    }


def text() -> str:
    changes = schema_snapshot.Changes(PORTABLE, defaults=OUR_DEFAULTS)
    return schema_snapshot.text(
        {"torchtitan": version("torchtitan")},
        "names, types, defaults and first sentences of the descriptions: TorchTitan (BSD-3-Clause)",
        schema_snapshot.native_keys(sections(), lambda key: key not in OMITTED, changes),
    )


if __name__ == "__main__":
    SNAPSHOT.write_text(text(), encoding="utf-8")
