"""From an experiment to MaxText's own configuration. Pure: neither jax nor MaxText is imported here."""

from __future__ import annotations

from collections.abc import Iterator

from primus.backends.base import NativeConfig
from primus.backends.maxtext import mesh, quantization
from primus.backends.maxtext.architecture import architecture, model_problems
from primus.backends.maxtext.own_keys import own_key_problems
from primus.config.experiment import Experiment
from primus.errors import PlanError, Problem
from primus.plan.plan import PlannedData, Topology

REMATERIALIZED = (
    *("attention_out", "context", "decoder_layer_input", "key_proj", "kv_wa_proj", "mla_kv", "mla_q", "mlpwi_0"),
    *("mlpwi_1", "mlpwo", "moe_mlpwi_0", "moe_mlpwi_1", "moe_mlpwo", "moe_x_sorted", "out_proj", "query_proj"),
    *("query_wa_proj", "value_proj"),
)
"""MaxText's keys that say of one kind of activation whether it is kept."""
REMAT = {"none": "minimal", "selective": "save_qkv_proj", "full": "full"}


def native_config(experiment: Experiment, topology: Topology, data: PlannedData) -> NativeConfig:
    """MaxText's configuration for `experiment`. Raises PlanError naming everything that cannot be honoured."""
    problems = [
        *_problems(experiment, topology),
        *model_problems(experiment, topology, data),
        *own_key_problems(experiment, topology),
    ]
    if problems:
        raise PlanError(problems=problems)
    train = experiment.train
    half = experiment.precision != "fp32"
    native: NativeConfig = {
        **architecture(experiment.model, experiment.moe),
        **mesh.native(experiment, topology),
        **quantization.native(experiment),
        "max_target_length": train.seq_length,
        "steps": train.steps,
        "dtype": "bfloat16" if half else "float32",
        "weight_dtype": "float32",
        "grad_dtype": "float32",
        "mu_dtype": "float32",
        "matmul_precision": "default" if half else "highest",
        "logits_dot_in_fp32": half,
        "remat_policy": REMAT[experiment.recompute],
        "opt_type": "adamw",
        "learning_rate": experiment.optimizer.lr,
        "adam_b1": experiment.optimizer.betas[0],
        "adam_b2": experiment.optimizer.betas[1],
        "adam_eps": experiment.optimizer.eps,
        "adam_eps_root": 0.0,
        "adam_weight_decay": experiment.optimizer.weight_decay,
        "adamw_mask": ["scale$", "bias$"],
        "gradient_clipping_threshold": experiment.optimizer.clip_grad_norm or 0.0,
        "init_weights_seed": train.seed,
        "hardware": "cpu" if experiment.hardware.device == "cpu" else "gpu",
        "attention": "dot_product",
        "scan_layers": True,
        "param_scan_axis": 0,
        "enable_dropout": False,
        "packing": data.document_attention == "within",
        "sharding_tolerance": 1.0,
        "skip_jax_distributed_system": True,
        "dataset_type": "synthetic",  # samples come from the shared reader
        "enable_checkpointing": False,  # checkpoints are written by the loop
        "enable_goodput_recording": False,
        "monitor_goodput": False,
        "enable_tensorboard": False,
    }
    return native | experiment.native.get("maxtext", {})


def _problems(experiment: Experiment, topology: Topology) -> Iterator[Problem]:
    if experiment.profile and max(experiment.profile.ranks) >= topology.nnodes:
        there = "is one" if topology.nnodes == 1 else f"are {topology.nnodes}"
        message = f"a trace is of a node with all its devices, and there {there}"
        yield Problem("profile.ranks", message, "0" if topology.nnodes == 1 else f"0 to {topology.nnodes - 1}")
    if experiment.resilience.anomaly == "skip_step" and experiment.resilience.spike_factor is not None:
        message = (
            "MaxText's compiled step has updated by the time a spike can be seen; only NaN and infinity are skipped"
        )
        yield Problem("resilience.spike_factor", message, "resilience.anomaly: rollback, or leave spike_factor out")
    own = experiment.native.get("maxtext", {})
    if own.get("attention") == "flash" and experiment.hardware.device == "cpu":
        yield Problem("maxtext.attention", "flash attention needs an accelerator", "dot_product, or remove it")
    if "remat_policy" in own and experiment.recompute != "none":
        yield Problem("maxtext.remat_policy", "recompute says the same more coarsely", "recompute: none, or remove it")
    fine = [f"maxtext.{key}" for key in REMATERIALIZED if key in own]
    if fine and own.get("remat_policy") != "custom":
        yield Problem(fine[0], "it counts with a policy of one's own only", "maxtext.remat_policy: custom")
    yield from mesh.problems(experiment, topology)
    yield from quantization.problems(experiment, topology)
