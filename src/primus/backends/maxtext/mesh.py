"""An experiment's parallel axes as MaxText's mesh of devices, and what does not fit it."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd, prod
from typing import Any

from primus.config.dimensions import expert_width, head_dim, key_value_heads
from primus.config.experiment import Experiment, Model
from primus.config.families import latent_attention
from primus.config.nearest import nearest_divisors, nearest_multiples
from primus.errors import Problem
from primus.plan.plan import Topology


def native(experiment: Experiment, topology: Topology) -> dict[str, Any]:
    """The mesh and the batch on it, as MaxText's keys.

    MaxText tells devices within a slice (``ici``) from those between slices (``dcn``), as TPU pods have them; elsewhere
    all devices of all nodes are one slice. Experts have an axis of their own, over which all other weights and the
    batch lie like over fsdp: our data_shard is the two.
    """
    stages = topology.pipeline
    found = {
        "num_slices": 1,
        "ici_data_parallelism": topology.data_replicate,
        "ici_pipeline_parallelism": stages,
        "ici_fsdp_parallelism": topology.data_shard // topology.expert,
        "ici_expert_parallelism": topology.expert,
        "ici_context_parallelism": topology.context,
        "ici_tensor_parallelism": topology.tensor,
        "dcn_data_parallelism": 1,
        # attention computes the whole square of a sequence, so no order of tokens would spread it better
        "context_parallel_load_balance": False,
        "per_device_batch_size": device_samples(topology),
        "gradient_accumulation_steps": topology.microbatches if stages == 1 else 1,
    }
    if tokens_cannot_be_sent(experiment, topology):
        found["sparse_matmul"] = False
    if stages > 1:
        repeats = experiment.parallel.virtual_pipeline
        layers = experiment.model.num_hidden_layers // (stages * repeats)
        found |= {
            "num_pipeline_microbatches": topology.microbatches,
            "num_pipeline_repeats": repeats,
            "num_layers_per_pipeline_stage": layers,
            "scan_layers_per_stage": layers > 1,
        }
    return found


def tokens_cannot_be_sent(experiment: Experiment, topology: Topology) -> bool:
    """Whether every expert has to compute all tokens of its devices: MaxText sends tokens to the experts they chose by
    ``ragged-all-to-all``, which XLA does not have on CPUs."""
    return topology.expert > 1 and experiment.hardware.device == "cpu"


def device_samples(topology: Topology) -> float:
    """Samples of a device in one pass, in which MaxText counts; a part of one where devices share it. The microbatches
    of a pipeline follow each other through its stages in one pass."""
    at_once = topology.microbatches if topology.pipeline > 1 else 1
    return topology.micro_batch_size * topology.data_parallel * at_once / topology.world_size


def problems(experiment: Experiment, topology: Topology) -> Iterator[Problem]:
    """What MaxText cannot lay out as asked. What no engine can is found before."""
    found = [*_cuts(experiment.model, topology), *(_pipeline(experiment, topology) if topology.pipeline > 1 else ())]
    yield from found
    yield from _expert(experiment, topology)
    if topology.nproc_per_node % topology.tensor:
        message = f"{topology.tensor} does not divide the {topology.nproc_per_node} devices of a node"
        yield Problem("parallel.tensor", message, "a divisor of --nproc")
    samples, world = device_samples(topology), topology.world_size
    exact = int(samples * world) == round(samples * world) and samples * experiment.train.seq_length % 1 == 0
    if not exact and not found:
        message = f"MaxText keeps samples of a device as a decimal fraction, and {samples:g} is not exact"
        unit = world // topology.data_parallel
        yield Problem("train.micro_batch_size", message, f"train.micro_batch_size: a multiple of {unit}")
    kernel = experiment.native.get("maxtext", {}).get("attention", "dot_product")
    if topology.context > 1 and kernel != "dot_product" and experiment.hardware.device != "cpu":
        message = f"MaxText's {kernel} attention on GPUs does not split a sequence over devices"
        yield Problem("maxtext.attention", message, "dot_product, or parallel.context: 1")


def _cuts(model: Model, topology: Topology) -> Iterator[Problem]:
    """MaxText cuts a weight into equal parts or not at all; dense feed-forwards are looked at for any engine."""
    ranks = {"q_lora_rank": model.q_lora_rank, "kv_lora_rank": model.kv_lora_rank}
    sharded = {"hidden_size": model.hidden_size} | {name: rank for name, rank in ranks.items() if rank}
    cut = sharded | {"vocab_size": model.vocab_size}
    if model.model_type.startswith("qwen3"):
        cut["head_dim"] = head_dim(model)
    if model.num_experts:
        cut["the width of experts"] = expert_width(model)
    axes = {"data_shard": topology.data_shard, "context": topology.context}
    shards = prod(axes.values())
    for what, size in sharded.items():
        if size % shards:
            whole = gcd(*sharded.values())
            axis = max(axes, key=lambda axis: (whole % (shards // axes[axis]) == 0, axes[axis]))
            others = shards // axes[axis]
            fitting = nearest_divisors(axes[axis], whole // others) if whole % others == 0 else [1]
            yield Problem(
                f"parallel.{axis}",
                f"{_product(axes)} does not divide {what} {size}, over which weights are sharded",
                f"parallel.{axis}: {_either(fitting)}; data_replicate takes any number of devices",
            )
            break
    for what, size in cut.items():
        if size % topology.tensor:
            whole = gcd(*cut.values(), model.num_attention_heads, key_value_heads(model))
            message = f"{topology.tensor} does not divide {what} {size}"
            yield Problem(
                "parallel.tensor", message, f"parallel.tensor: {_either(nearest_divisors(topology.tensor, whole))}"
            )
            break


def _expert(experiment: Experiment, topology: Topology) -> Iterator[Problem]:
    """Experts are spread over devices that hold other samples; each has a whole number of them."""
    expert, shards, own = topology.expert, topology.data_shard, experiment.native.get("maxtext", {})
    if shards % expert:
        fitting = nearest_divisors(expert, gcd(shards, experiment.model.num_experts or 1))
        message = f"{expert} does not divide data_shard {shards}; MaxText spreads experts over no other devices"
        yield Problem("parallel.expert", message, f"parallel.expert: {_either(fitting)}, or a larger data_shard")
    elif topology.tensor > 1 and topology.nproc_per_node % (topology.tensor * expert):
        # experts vary fastest in the mesh, so the devices of a tensor lie that far apart
        sizes = _product({"tensor": topology.tensor, "expert": expert})
        message = f"{sizes} does not divide the {topology.nproc_per_node} devices of a node"
        fitting = nearest_divisors(expert, gcd(shards, topology.nproc_per_node // topology.tensor))
        yield Problem("parallel.expert", message, f"parallel.expert: {_either(fitting)}; any with tensor 1")
    if own.get("sparse_matmul") and tokens_cannot_be_sent(experiment, topology):
        message = "XLA cannot send tokens to experts on CPUs; with parallel.expert each computes all of them"
        yield Problem("maxtext.sparse_matmul", message, "false, or remove it")


def _pipeline(experiment: Experiment, topology: Topology) -> Iterator[Problem]:
    """The stages hold equally many layers; all microbatches go forward through them, in rounds, then all go back."""
    layers, parallel = experiment.model.num_hidden_layers, experiment.parallel
    sizes = {"pipeline": topology.pipeline, "virtual_pipeline": parallel.virtual_pipeline}
    if layers % prod(sizes.values()):
        fitting = nearest_divisors(topology.pipeline, layers // parallel.virtual_pipeline or 1)
        fitting = [size for size in fitting if not layers % (size * parallel.virtual_pipeline)]
        yield Problem(
            "parallel.pipeline",
            f"{_product(sizes)} stages do not share {layers} layers evenly",
            f"parallel.pipeline: {_either(fitting)}" if fitting else "parallel.virtual_pipeline: 1",
        )
    if topology.microbatches % topology.pipeline:
        each = topology.micro_batch_size * topology.data_parallel
        fitting = nearest_multiples(topology.microbatches * each, topology.pipeline * each)
        yield Problem(
            "train.global_batch_size",
            f"microbatches go through the stages in rounds of {topology.pipeline}, and {topology.microbatches} are not "
            "whole rounds",
            f"train.global_batch_size: {_either(fitting)}; or another train.micro_batch_size",
        )
    if parallel.schedule in ("1f1b", "interleaved_1f1b"):
        yield Problem(
            "parallel.schedule",
            f"{parallel.schedule}, but MaxText runs all microbatches forward before the first goes back",
            "gpipe, or remove it" if parallel.virtual_pipeline == 1 else "remove it",
        )
    if experiment.model.num_experts:
        yield from _staged_experts(experiment, topology)


def _staged_experts(experiment: Experiment, topology: Topology) -> Iterator[Problem]:
    family, own = experiment.model.model_type, experiment.native.get("maxtext", {})
    if latent_attention(family):
        message = f"stages of the two kinds of layers that {family} has are not mapped to MaxText"
        yield Problem("parallel.pipeline", message, "parallel.pipeline: 1")
        return
    if experiment.parallel.virtual_pipeline > 1:
        message = "MaxText's pipelines hold experts only without virtual stages"
        yield Problem("parallel.virtual_pipeline", message, "parallel.virtual_pipeline: 1")
    if experiment.moe.balance != "none":
        message = "MaxText's pipelines hold no biases of experts"
        if experiment.moe.balance == "aux_loss":
            message = "MaxText's pipelines count auxiliary losses of idle stages too"
        yield Problem("moe.balance", message, "moe.balance: none, or parallel.pipeline: 1")
    sparse = own.get("sparse_matmul", not tokens_cannot_be_sent(experiment, topology))
    if topology.expert > 1 and sparse:
        message = "MaxText used to refuse sending tokens to experts in a pipeline, and it could not be tried"
        yield Problem("parallel.expert", message, "parallel.expert: 1, or maxtext.sparse_matmul: false")


def _either(values: list[int]) -> str:
    return " or ".join(map(str, values))


def _product(sizes: dict[str, int]) -> str:
    """Axes and their sizes, without those of size 1."""
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
