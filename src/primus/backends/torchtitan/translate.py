"""From an experiment to TorchTitan's own configuration. Pure: neither torch nor torchtitan is imported here.

The native configuration has one entry for each of TorchTitan's configuration sections and names only what differs from
TorchTitan's defaults; ``configure.py`` turns it into TorchTitan's dataclasses inside a worker.
"""

from __future__ import annotations

import math
from typing import Any

from primus.backends.base import NativeConfig
from primus.backends.pytorch.stages import stage_sizes
from primus.backends.torchtitan.models import limits
from primus.config.dimensions import expert_width
from primus.config.experiment import Experiment
from primus.config.nearest import nearest_multiples
from primus.config.units import collective_seconds, first_collective_seconds
from primus.errors import PlanError, Problem
from primus.plan.plan import PlannedData, Topology

SCHEDULES = {"1f1b": "1F1B", "interleaved_1f1b": "Interleaved1F1B", "gpipe": "GPipe"}
BLOCK = 128
"""Tokens of one block of a FlexAttention mask, which context parallelism cannot cut."""
ROW_BYTES = 16
"""What the length of every row of a grouped matrix product is a multiple of."""
CHUNKS = 8
"""Parts in which a GPU computes the loss of a sequence: the logits of a batch can take more memory than the model."""
NOT_FP8 = ["lm_head", "router.gate"]
"""Layers that stay in bf16: the logits and the choice of experts need its precision."""
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp8": "bfloat16"}


def native_config(experiment: Experiment, topology: Topology, data: PlannedData) -> NativeConfig:
    """TorchTitan's configuration for `experiment`. Raises PlanError naming everything that cannot be honoured."""
    own = experiment.native.get("torchtitan", {})
    problems = refusals(experiment, topology, data, own)
    if problems:
        raise PlanError(problems=problems)
    cpu = experiment.hardware.device == "cpu"
    resilience = experiment.resilience
    timeout = round(collective_seconds(resilience.hang_timeout))
    starting = round(first_collective_seconds(resilience.start_timeout, resilience.hang_timeout))
    local_batch = topology.micro_batch_size * (topology.microbatches if topology.pipeline > 1 else 1)
    native: NativeConfig = {
        "training": {
            "local_batch_size": local_batch,
            "global_batch_size": experiment.train.global_batch_size,
            "seq_len": experiment.train.seq_length,
            "steps": experiment.train.steps,
            "max_norm": experiment.optimizer.clip_grad_norm,
            "mixed_precision_param": DTYPES[experiment.precision],
            # TorchTitan's default captures forward and backward; host work in a step (masks, experts) forbids it
            "disable_cuda_graphs": True,
        },
        "parallelism": {
            # of the axis, each group holds its own part
            "data_parallel_replicate_degree": topology.data_replicate // topology.replica_groups,
            "data_parallel_shard_degree": topology.data_shard,
            "tensor_parallel_degree": topology.tensor,
            "pipeline_parallel_degree": topology.pipeline,
            "context_parallel_degree": topology.context,
            "expert_parallel_degree": topology.expert,
            # "spmd_types", TorchTitan's default, needs a nightly torch
            "spmd_backend": "partial_dtensor",
        },
        "compile": {"enable": experiment.compile},
        "comm": {"train_timeout_seconds": timeout, "init_timeout_seconds": starting},
        "debug": {"seed": experiment.train.seed, "enable_structured_logging": False},
        "activation_checkpoint": {"mode": experiment.recompute},
        "optimizer": {"implementation": "fused"},
        "override": {"imports": []},
        "profiler": {},
        "float8": {"filter_fqns": NOT_FP8} if experiment.precision == "fp8" else {},
        "loss": {"num_chunks": 1 if cpu else math.gcd(CHUNKS, experiment.train.seq_length // topology.context)},
    }
    if topology.pipeline > 1:
        native["parallelism"] |= {
            "pipeline_parallel_schedule": SCHEDULES[schedule(experiment)],
            "pipeline_parallel_microbatch_size": topology.micro_batch_size,
            "module_fqns_per_model_part": stages(
                experiment.model.num_hidden_layers, topology.pipeline * experiment.parallel.virtual_pipeline
            ),
        }
    if cpu:
        native["comm"]["trace_buf_size"] = 0  # the flight recorder is NCCL's
        if _attention(experiment, topology, data) == "flex":
            native["override"]["imports"] = ["primus.backends.torchtitan.attention.masked_attention"]
    for section, values in own.items():
        if section == "override":
            native["override"]["imports"] += values.get("imports", [])
        elif section == "activation_checkpoint" and "memory_budget" in values:
            native[section] = {"mode": "memory_budget", **values}
        else:
            native[section] |= values
    if native["float8"] and experiment.model.model_type == "gpt_oss":
        # its output projection shares its bias among tensor-parallel ranks, which the fp8 layer does not
        native["float8"]["filter_fqns"] = [*native["float8"]["filter_fqns"], "attention.wo"]
    return native


def schedule(experiment: Experiment) -> str:
    default = "interleaved_1f1b" if experiment.parallel.virtual_pipeline > 1 else "1f1b"
    return experiment.parallel.schedule or default


def stages(layers: int, count: int) -> list[list[str]]:
    """Names of the modules on each of `count` pipeline stages, in order."""
    parts, first = [], 0
    for size in stage_sizes(layers, count):
        parts.append([f"layers.{layer}" for layer in range(first, first + size)])
        first += size
    return [["tok_embeddings", *parts[0]], *parts[1:-1], [*parts[-1], "norm", "lm_head"]]


def refusals(experiment: Experiment, topology: Topology, data: PlannedData, own: dict[str, Any]) -> list[Problem]:
    """Everything in `experiment` that TorchTitan cannot do as asked. What any engine would refuse is found before."""
    model = experiment.model
    problems = limits.problems(model, moe=experiment.moe, pipeline=topology.pipeline)
    problems += _precision(experiment, own.get("float8", {}))
    if model.num_experts:
        problems += _experts(experiment, topology)
    problems += _sequence(experiment, topology, data)
    if topology.pipeline > 1 or experiment.parallel.virtual_pipeline > 1 or experiment.parallel.schedule:
        problems += _pipeline(experiment, topology)
    problems += _native(experiment, own)
    if topology.replica_groups > 1:
        problems += _replica_groups(experiment, topology)
    return problems


def _replica_groups(experiment: Experiment, topology: Topology) -> list[Problem]:
    """What groups cannot do that divide each batch anew, and of which each keeps its own buffers."""
    key, remedy = "resilience.fault_tolerance", "or resilience.fault_tolerance: restart"
    problems = []
    if topology.pipeline > 1:
        message = "groups share the microbatches of one that is gone, and a pipeline takes the same number always"
        problems.append(Problem("parallel.pipeline", f"{key}: torchft: {message}", f"parallel.pipeline: 1, {remedy}"))
    resilience = experiment.resilience
    if resilience.anomaly != "stop" or resilience.spike_factor is not None:
        where = "resilience.anomaly" if resilience.anomaly != "stop" else "resilience.spike_factor"
        message = "a group that has just joined does not know the losses before, and would judge otherwise"
        problems.append(Problem(where, f"{key}: torchft: {message}", f"anomaly: stop without spike_factor, {remedy}"))
    if experiment.model.num_experts and experiment.moe.balance == "bias":
        message = "the biases that balance the experts would come apart from group to group"
        problems.append(Problem("moe.balance", f"{key}: torchft: {message}", f"moe.balance: none, {remedy}"))
    return problems


def _attention(experiment: Experiment, topology: Topology, data: PlannedData) -> str:
    return limits.attention_backend(
        experiment.model, data.document_attention, topology.context, experiment.hardware.device
    )


def _precision(experiment: Experiment, float8: dict[str, Any]) -> list[Problem]:
    hardware, emulate = experiment.hardware, "torchtitan.float8.emulate"
    if experiment.precision != "fp8":
        return (
            [Problem("torchtitan.float8", f"the precision is {experiment.precision}", "precision: fp8")]
            if float8
            else []
        )
    if float8.get("emulate"):
        problems = []
        if experiment.compile:
            problems.append(Problem(emulate, "emulated fp8 cannot be compiled", "compile: false"))
        if "recipe_name" in float8:
            message = "emulated fp8 scales whole tensors, whatever the recipe"
            problems.append(Problem("torchtitan.float8.recipe_name", message, "remove it"))
        return problems
    if hardware.device == "cpu" or (hardware.peak_tflops and "fp8" not in hardware.peak_tflops):
        remedy = f"bf16; fp8 needs MI300X, H100 or newer; {emulate}: true rounds to fp8 and computes in bf16, slowly"
        return [Problem("precision", f"{hardware.name} has no fp8 arithmetic", remedy)]
    return []


def _experts(experiment: Experiment, topology: Topology) -> list[Problem]:
    """What the grouped matrix products ask for, with which torch computes all experts of a layer at once."""
    problems = []
    if experiment.compile and experiment.precision == "fp32":
        message = "torch compiles the grouped products of experts in bf16 only, and the precision is fp32"
        problems.append(Problem("compile", message, "compile: false, or precision: bf16"))
    model = experiment.model
    cut = topology.tensor if topology.expert == 1 else 1
    unit = ROW_BYTES // (4 if experiment.precision == "fp32" else 2)
    width = "moe_intermediate_size" if model.moe_intermediate_size else "intermediate_size"
    for name, size, ranks in ((width, expert_width(model), cut), ("hidden_size", model.hidden_size, 1)):
        if size % (unit * ranks):
            reason = f"{unit} x parallel.tensor {ranks}" if ranks > 1 else f"{unit}"
            fitting = [str(other) for other in nearest_multiples(size, unit * ranks)]
            message = f"{size} does not divide by {reason}: grouped products want rows of {ROW_BYTES} bytes"
            problems.append(Problem(f"model.{name}", message, f"model.{name}: {' or '.join(fitting)}"))
    return problems


def _sequence(experiment: Experiment, topology: Topology, data: PlannedData) -> list[Problem]:
    length, context, tensor = experiment.train.seq_length, topology.context, topology.tensor
    unit, reason = 1, ""
    if context > 1:
        unit, reason = 2 * context * tensor, f"2 x context {context}"
        if _attention(experiment, topology, data) == "flex":
            blocks = BLOCK * context
            unit = blocks if blocks % unit == 0 else blocks * tensor
            reason = f"{BLOCK} x context {context}"
        reason += f" x tensor {tensor}" if tensor > 1 else ""
    elif tensor > 1:
        unit, reason = tensor, f"parallel.tensor {tensor}, over which sequence parallelism cuts each sequence"
    if length % unit == 0:
        return []
    longest = experiment.model.max_position_embeddings
    fitting = [str(other) for other in (length // unit * unit, -(-length // unit) * unit) if 0 < other <= longest]
    remedy = f"train.seq_length: {' or '.join(fitting)}" if fitting else "fewer ranks on these axes"
    return [Problem("train.seq_length", f"{length} tokens do not divide by {unit} ({reason})", remedy)]


def _pipeline(experiment: Experiment, topology: Topology) -> list[Problem]:
    ranks, virtual, microbatches = topology.pipeline, experiment.parallel.virtual_pipeline, topology.microbatches
    name, layers = schedule(experiment), experiment.model.num_hidden_layers
    problems = []
    if ranks == 1:
        keys = "parallel.virtual_pipeline" if virtual > 1 else "parallel.schedule"
        return [
            Problem(
                keys,
                f"there is one pipeline stage, so {keys} would do nothing",
                "parallel.pipeline: 2 or more, or remove it",
            )
        ]
    if virtual > 1 and name != "interleaved_1f1b":
        problems.append(
            Problem(
                "parallel.schedule",
                f"{name} runs one stage a rank, not {virtual}",
                "parallel.schedule: interleaved_1f1b",
            )
        )
    if virtual == 1 and name == "interleaved_1f1b":
        problems.append(
            Problem(
                "parallel.virtual_pipeline",
                "interleaved_1f1b needs two or more stages a rank",
                "parallel.virtual_pipeline: 2",
            )
        )
    if ranks * virtual > layers:
        problems.append(Problem("parallel.pipeline", f"{ranks} x {virtual} stages for {layers} layers", "fewer stages"))
    least = ranks * topology.micro_batch_size * topology.data_parallel
    batch = f"train.global_batch_size: {least} or more, or a smaller micro batch"
    if name == "1f1b" and microbatches < ranks:
        problems.append(
            Problem("parallel.pipeline", f"1f1b needs at least {ranks} microbatches a step, not {microbatches}", batch)
        )
    rounds = max(1, microbatches // ranks)
    if name == "interleaved_1f1b" and microbatches % rounds:
        message = f"interleaved_1f1b works in rounds of {ranks} microbatches, and {microbatches} are not whole rounds"
        problems.append(Problem("parallel.schedule", message, batch))
    return problems


def _native(experiment: Experiment, own: dict[str, Any]) -> list[Problem]:
    problems = []
    recompute = own.get("activation_checkpoint", {})
    if "memory_budget" in recompute and not (experiment.compile and experiment.recompute == "none"):
        problems.append(
            Problem(
                "torchtitan.activation_checkpoint.memory_budget",
                "the compiler chooses what to recompute, which needs compile and excludes another policy",
                "compile: true and recompute: none",
            )
        )
    elif recompute and experiment.recompute == "none" and "memory_budget" not in recompute:
        problems.append(
            Problem(
                "torchtitan.activation_checkpoint",
                "nothing is recomputed, so these keys would do nothing",
                "recompute: selective",
            )
        )
    if own.get("training", {}).get("enable_cpu_offload") and experiment.hardware.device == "cpu":
        key = "torchtitan.training.enable_cpu_offload"
        problems.append(Problem(key, "the parameters are on the CPU already", "remove it"))
    chunks = own.get("loss", {}).get("num_chunks", 1)
    local = experiment.train.seq_length // experiment.parallel.context
    if chunks < 1 or local % chunks:
        key, remedy = "torchtitan.loss.num_chunks", f"{math.gcd(max(1, chunks), local)}"
        problems.append(Problem(key, f"{local} tokens of a sequence a rank do not make {chunks} equal chunks", remedy))
    return problems
