"""MaxText's mesh of devices, and the batches that follow from it: the ranks along our axes and the sequences of each.

Its axes have a size within a node (``ici``) and one over nodes (``dcn``); the sizes of all multiply to the devices.
"""

from __future__ import annotations

from math import prod
from typing import Any

from primus.config.importing.model_maxtext import architecture
from primus.config.importing.rules import Convert, Drop, Idle, Others, Outcome, Put, Same, numeric
from primus.config.importing.values_maxtext import effective

AXES = (
    *("data", "fsdp", "fsdp_transpose", "tensor", "tensor_transpose", "tensor_sequence", "context", "expert"),
    *("pipeline", "sequence", "context_usp_ulysses", "context_autoregressive", "autoregressive", "diloco"),
)
LEFT = "-1 is what the other axes leave of a node's devices"


def one_node(others: Others, axis: str) -> int:
    """Devices of a node along `axis`, 0 when that is unknown."""
    sizes = {name: others.get(f"ici_{name}_parallelism", -1 if name == "fsdp" else 1) for name in AXES}
    size = sizes.pop(axis)
    if size == -1:
        rest = prod(int(other) if numeric(other) and other > 0 else 0 for other in sizes.values())
        return others.devices // rest if rest and others.devices and others.devices % rest == 0 else 0
    return int(size) if numeric(size) and size > 0 else 0


def across(others: Others, axis: str) -> int:
    """Nodes along `axis`. -1, which only the data axis should have: all that there are, for one node one."""
    size = others.get(f"dcn_{axis}_parallelism", 1)
    return int(size) if numeric(size) and size > 0 else 1


def size(others: Others, *names: str) -> int | None:
    """Devices along several axes that are one here; None when it is unknown."""
    return prod(one_node(others, name) * across(others, name) for name in names) or None


def axis(target: str, *names: str) -> Convert:
    """Axes that are one here; sizes of one are not written."""

    def convert(value: Any, others: Others) -> Outcome:
        found = size(others, *names)
        if found is None:
            return Drop(LEFT, f"give --hardware NAME, or set {target}")
        return Same("1, as without it") if found == 1 else Put({target: found}, LEFT if value == -1 else "")

    return convert


def replicas(value: Any, others: Others) -> Outcome:
    found = size(others, "data")
    if value == -1 and others.get("dcn_data_parallelism") == -1 and found == 1:
        return Same("on one node; with N nodes set parallel.data_replicate: N, and the global batch N times")
    return axis("parallel.data_replicate", "data")(value, others)


def shards(value: Any, others: Others) -> Outcome:
    """Its fsdp axes, and the axis of the experts, over which all other weights lie like over fsdp."""
    if -1 in (others.get("ici_fsdp_parallelism", -1), others.get("dcn_fsdp_parallelism")):
        return Put({"parallel.data_shard": "auto"}, "-1: all that the other axes leave")
    found = size(others, "fsdp", "fsdp_transpose", "expert")
    if found is None:
        return Drop(LEFT, "give --hardware NAME, or set parallel.data_shard")
    return Put({"parallel.data_shard": found}, "with the axis of the experts" if size(others, "expert") != 1 else "")


def experts(value: Any, others: Others) -> Outcome:
    found = axis("parallel.expert", "expert")(value, others)
    sharded = shards(value, others)
    if isinstance(found, Put) and isinstance(sharded, Put):
        return found._replace(values=found.values | sharded.values)
    return found


def sizes_of_batches(others: Others) -> dict[str, int] | Drop:
    """MaxText counts the sequences of a forward pass a device, whatever the device is for."""
    each, accumulated = effective(others, "per_device_batch_size"), effective(others, "gradient_accumulation_steps")
    shared = size(others, "tensor", "tensor_sequence", "context", "pipeline")
    if shared is None:
        return Drop(LEFT, "give --hardware NAME, or set train.micro_batch_size")
    stages = size(others, "pipeline") or 1
    pieces = others.number("num_pipeline_microbatches", default=stages) if stages > 1 else 1
    if not (numeric(each) and numeric(accumulated)):
        return Drop("no number of sequences")
    micro = each * shared / (pieces or 1)
    if micro < 1 or micro != int(micro):
        return Drop(f"{each:g} a device are no whole sequences a rank", "set train.micro_batch_size")
    found = {"train.micro_batch_size": int(micro)}
    if others.devices:
        nodes = prod(across(others, name) for name in AXES)
        found["train.global_batch_size"] = int(each * others.devices * nodes * accumulated)
    return found


def batch(value: Any, others: Others) -> Outcome:
    found = sizes_of_batches(others)
    if isinstance(found, Drop):
        return found
    nodes = prod(across(others, name) for name in AXES)
    place = f"{nodes} nodes" if nodes > 1 else "one node"
    return Put(dict(found), f"{value:g} a device, of {place}" if others.devices else f"{value:g} a device")


def accumulation(value: Any, others: Others) -> Outcome:
    found = sizes_of_batches(others)
    if value == 1:
        return Same("one micro batch a step")
    if isinstance(found, Drop):
        return found
    if "train.global_batch_size" not in found:
        return Drop("there the global batch follows from the devices", "give --hardware NAME")
    return Put({"train.global_batch_size": found["train.global_batch_size"]}, f"of {value} micro batches")


def repeats(value: Any, others: Others) -> Outcome:
    if size(others, "pipeline") == 1:
        return Idle("there is one pipeline stage")
    if value == -1:
        return Same("as many as give chunks of num_layers_per_pipeline_stage")
    return Put({"parallel.virtual_pipeline": value}, verbatim=True)


def layers(value: Any, others: Others) -> Outcome:
    if size(others, "pipeline") == 1:
        return Idle("there is one pipeline stage")
    found = chunks(others)
    if found is None:
        return Drop("the number of layers is not known here", "set parallel.virtual_pipeline")
    return Put({"parallel.virtual_pipeline": found}, f"{value} layers a chunk")


def chunks(others: Others) -> int | None:
    """Chunks of the model a pipeline stage, where the file does not count them."""
    layers = others.get("base_num_decoder_layers", architecture(others.preset).get("num_hidden_layers"))
    each, stages = others.get("num_layers_per_pipeline_stage", 1), size(others, "pipeline")
    if not (isinstance(layers, int) and isinstance(each, int) and stages and each > 0):
        return None
    return None if layers % (each * stages) else layers // (each * stages)
