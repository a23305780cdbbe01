"""Contradictions between the experiment and the keys of Megatron's own that it sets, found while planning.

Types and choices of single keys are checked before, against the snapshot. ``false`` and ``null`` ask for nothing, so
they contradict nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from primus.backends.megatron import split
from primus.backends.megatron.split import either
from primus.config.dimensions import expert_width, shared_experts
from primus.config.experiment import Experiment
from primus.config.families import latent_attention
from primus.config.layers import dense_layers
from primus.errors import Problem
from primus.plan.plan import Topology

RECOMPUTABLE = ("core_attn", "mlp", "moe", "shared_experts", "mla_up_proj")
"""Modules that can be recomputed without TransformerEngine."""


IDLE = "so this would do nothing"


class Need(NamedTuple):
    """What must hold for each of `keys` to be honoured, and what to say when it does not."""

    keys: str
    holds: Callable[[Experiment, Topology], bool]
    lack: str
    remedy: str


NEEDS = (
    Need(
        "transformer.batch_p2p_comm transformer.batch_p2p_sync transformer.deallocate_pipeline_outputs "
        + " ".join(f"transformer.{name}" for name in sorted(split.KEYS)),
        lambda experiment, topology: topology.pipeline > 1,
        f"there is one pipeline stage, {IDLE}",
        "parallel.pipeline: 2 or more, or remove it",
    ),
    Need(
        "transformer.overlap_p2p_comm transformer.overlap_p2p_comm_warmup_flush "
        "transformer.microbatch_group_size_per_vp_stage ddp.align_param_gather",
        lambda experiment, topology: experiment.parallel.virtual_pipeline > 1,
        f"it belongs to the interleaved schedule, {IDLE}",
        "parallel.virtual_pipeline: 2 or more, or remove it",
    ),
    Need(
        "transformer.moe_deepep_num_sms transformer.moe_flex_dispatcher_backend transformer.moe_hybridep_num_sms "
        "transformer.moe_permute_fusion transformer.moe_router_bias_update_rate transformer.moe_router_dtype "
        "transformer.moe_router_force_load_balancing transformer.moe_router_load_balancing_type "
        "transformer.moe_shared_expert_overlap transformer.moe_token_dispatcher_type transformer.moe_z_loss_coeff "
        "transformer.expert_tensor_parallel_size",
        lambda experiment, topology: bool(experiment.model.num_experts),
        f"the model has no experts, {IDLE}",
        "remove it",
    ),
    Need(
        "transformer.expert_tensor_parallel_size",
        lambda experiment, topology: topology.expert > 1,
        "without an expert axis experts are cut as every other layer is",
        "parallel.expert: 2 or more, or remove it",
    ),
    Need(
        "transformer.moe_router_load_balancing_type",
        lambda experiment, topology: experiment.moe.balance == "aux_loss",
        f"no auxiliary loss balances the experts, {IDLE}",
        "moe.balance: aux_loss, or remove it",
    ),
    Need(
        "transformer.moe_router_bias_update_rate",
        lambda experiment, topology: experiment.moe.balance == "bias",
        f"no bias balances the experts, {IDLE}",
        "moe.balance: bias, or remove it",
    ),
    Need(
        "transformer.moe_shared_expert_overlap",
        lambda experiment, topology: shared_experts(experiment.model) > 0,
        f"the model has no shared experts, {IDLE}",
        "remove it",
    ),
    Need(
        "transformer.recompute_method transformer.recompute_num_layers",
        lambda experiment, topology: experiment.recompute == "full",
        f"whole layers are not recomputed, {IDLE}",
        "recompute: full, or remove it",
    ),
    Need(
        "transformer.recompute_modules",
        lambda experiment, topology: experiment.recompute == "selective",
        f"modules are not chosen for recomputation, {IDLE}",
        "recompute: selective, or remove it",
    ),
    Need(
        "transformer.clone_scatter_output_in_embedding",
        lambda experiment, topology: topology.tensor > 1,
        f"the embedding's output is not scattered, {IDLE}",
        "parallel.tensor: 2 or more, or remove it",
    ),
    Need(
        "ddp.overlap_grad_reduce ddp.bucket_size",
        lambda experiment, topology: topology.data_parallel * topology.context > 1,
        f"no two ranks have gradients of the same weights, {IDLE}",
        "remove it",
    ),
    Need(
        "ddp.overlap_param_gather ddp.align_param_gather ddp.pad_buckets_for_high_nccl_busbw "
        "ddp.reduce_scatter_with_fp32_accumulation",
        lambda experiment, topology: _distributed(topology),
        "there is no distributed optimizer, which parallel.data_shard or parallel.context brings",
        "parallel.data_shard: 2 or more, or remove it",
    ),
    Need(
        "ddp.grad_reduce_in_fp32 ddp.reduce_scatter_with_fp32_accumulation "
        "transformer.disable_bf16_reduced_precision_matmul",
        lambda experiment, topology: experiment.precision != "fp32",
        f"everything is fp32 already, {IDLE}",
        "precision: bf16, or remove it",
    ),
    Need(
        "transformer.cross_entropy_loss_fusion transformer.activation_func_fp8_input_store",
        lambda experiment, topology: experiment.precision != "fp32",
        "it rounds to less than fp32",
        "precision: bf16, or remove it",
    ),
)

ACCELERATOR = {
    "transformer.apply_rope_fusion": "the kernel is TransformerEngine's",
    "transformer.batch_p2p_comm": "gloo mixes up the messages of a batch",
    "transformer.bias_dropout_fusion": "there it is not compiled, and so the same",
    "transformer.deallocate_pipeline_outputs": "gloo may still read them",
    "transformer.disable_bf16_reduced_precision_matmul": "it is a setting of a GPU's library",
    "transformer.gradient_accumulation_fusion": "the kernel is Apex's",
    "transformer.moe_permute_fusion": "the kernels are TransformerEngine's",
}
"""Keys that a CPU cannot honour when they are true, and why."""

POSITIVE = (
    *("transformer.expert_tensor_parallel_size", "transformer.microbatch_group_size_per_vp_stage"),
    *("transformer.recompute_num_layers", "transformer.moe_deepep_num_sms", "transformer.moe_hybridep_num_sms"),
    *(f"transformer.{name}" for name in split.ENDS),
    *("transformer.mtp_num_layers", "transformer.mtp_loss_scaling_factor"),
    *("transformer.moe_z_loss_coeff", "transformer.moe_router_bias_update_rate", "ddp.bucket_size"),
)


class Asked:
    """The native keys of an experiment, and the values that hold where it does not set them."""

    def __init__(self, experiment: Experiment, topology: Topology, own: dict[str, Any]) -> None:
        self.experiment, self.topology = experiment, topology
        self.cpu = experiment.hardware.device == "cpu"
        self.keys = {f"{section}.{name}": value for section, values in own.items() for name, value in values.items()}
        self.transformer: dict[str, Any] = own.get("transformer", {})
        virtual = experiment.parallel.virtual_pipeline > 1
        self._planned = {
            "ddp.grad_reduce_in_fp32": experiment.precision != "fp32",
            "ddp.overlap_grad_reduce": not self.cpu,
            "ddp.overlap_param_gather": not self.cpu and _distributed(topology),
            "transformer.batch_p2p_comm": not self.cpu and not virtual,
            "transformer.bias_activation_fusion": not self.cpu,
            "transformer.moe_router_dtype": "fp32",
            "transformer.moe_token_dispatcher_type": "alltoall",
            "transformer.moe_flex_dispatcher_backend": "deepep",
            "transformer.overlap_p2p_comm": virtual,
            "transformer.recompute_method": "uniform",
        }

    def __call__(self, key: str) -> Any:
        """The value that holds."""
        return self.keys.get(key, self._planned.get(key))

    def on(self, key: str) -> bool:
        """Whether the experiment itself asks for it."""
        return self.keys.get(key) not in (None, False)


def problems(experiment: Experiment, topology: Topology, own: dict[str, Any]) -> list[Problem]:
    """Every native key of `own` that contradicts the experiment or another one."""
    asked = Asked(experiment, topology, own)
    found = list(_needs(asked))
    refused = {problem.where for problem in found}
    rules = (_device, _layers, _ranges, _recompute, _pipeline, _prediction, _experts, _dispatcher, _gradients, _kernels)
    for problem in (*(problem for rule in rules for problem in rule(asked)), *_split(asked)):
        if problem.where not in refused:
            refused.add(problem.where)
            found.append(problem)
    return found


def _layers(asked: Asked) -> Iterator[Problem]:
    key = "transformer.transformer_impl"
    if asked.cpu and asked(key) == "transformer_engine":
        yield _problem(key, "TransformerEngine needs an accelerator", f"megatron.{key}: local, or remove it")


def _prediction(asked: Asked) -> Iterator[Problem]:
    """Extra layers that predict tokens further ahead; Megatron puts them on the last pipeline stage."""
    key, experiment, topology = "transformer.mtp_num_layers", asked.experiment, asked.topology
    if not asked.on(key):
        if asked.on("transformer.mtp_loss_scaling_factor"):
            message = f"no layer predicts further tokens, {IDLE}"
            yield _problem("transformer.mtp_loss_scaling_factor", message, f"megatron.{key}: 1, or remove it")
        return
    if experiment.model.model_type == "llama4_text":
        yield _problem(key, "llama4_text has no layer that such a one could be like", "remove it")
    if topology.pipeline > 1 and experiment.model.num_hidden_layers % (
        topology.pipeline * experiment.parallel.virtual_pipeline
    ):
        yield _problem(key, "the layers do not divide by the pipeline stages", "another parallel.pipeline")
    if topology.pipeline > 1 and experiment.model.tie_word_embeddings:
        yield _problem(key, "the last stage would hold a tied embedding twice", "model.tie_word_embeddings: false")


def _distributed(topology: Topology) -> bool:
    """Whether the optimizer's state is spread over ranks."""
    return topology.data_shard * topology.context > 1


def _problem(key: str, message: str, remedy: str) -> Problem:
    return Problem(f"megatron.{key}", message, remedy)


def _needs(asked: Asked) -> Iterator[Problem]:
    said = set()
    for need in NEEDS:
        for key in need.keys.split():
            if asked.on(key) and key not in said and not need.holds(asked.experiment, asked.topology):
                said.add(key)
                yield _problem(key, need.lack, need.remedy)


def _device(asked: Asked) -> Iterator[Problem]:
    if not asked.cpu:
        return
    for key, why in ACCELERATOR.items():
        if asked.on(key):
            yield _problem(key, f"not on a CPU: {why}", "remove it")
    for key, value in (
        ("transformer.moe_token_dispatcher_type", "flex"),
        ("transformer.cross_entropy_fusion_impl", "te"),
    ):
        if asked.keys.get(key) == value:
            yield _problem(key, f"{value} needs a library that runs on GPUs only", "remove it")


def _ranges(asked: Asked) -> Iterator[Problem]:
    for key in POSITIVE:
        value = asked.keys.get(key)
        if value is not None and value <= 0:
            yield _problem(key, f"{value} is not above 0", "a positive number, or remove it")


def _recompute(asked: Asked) -> Iterator[Problem]:
    key, model = "transformer.recompute_modules", asked.experiment.model
    modules = asked.keys.get(key)
    if modules is not None:
        missing = {
            "mla_up_proj": not latent_attention(model.model_type),
            "mlp": not dense_layers(model),
            "moe": not model.num_experts,
            "shared_experts": not shared_experts(model) or not model.num_experts,
        }
        wrong = [str(module) for module in modules if module not in RECOMPUTABLE]
        absent = [module for module in modules if module not in wrong and missing.get(module)]
        if not modules:
            yield _problem(key, "no module is named", "recompute: none")
        elif wrong:
            why = "cannot be recomputed, or only with TransformerEngine's layers"
            yield _problem(key, f"{', '.join(wrong)} {why}", f"of {', '.join(RECOMPUTABLE)}")
        elif absent:
            yield _problem(key, f"this model has no {', '.join(absent)}", "remove it")
        elif "shared_experts" in modules and asked.on("transformer.moe_shared_expert_overlap"):
            other = "megatron.transformer.moe_shared_expert_overlap"
            yield _problem(key, f"shared_experts cannot be recomputed while {other} interleaves them", "one of them")


def _split(asked: Asked) -> Iterator[Problem]:
    """Which layers lie on which stage, and the units in which they are recomputed."""
    wrong = list(split.problems(asked.experiment, asked.topology, asked.transformer)) if _piped(asked) else []
    yield from wrong
    key = "transformer.recompute_num_layers"
    unit = asked.keys.get(key)
    if wrong or not unit or unit < 1:
        return
    sizes = sorted(set(split.layers_of_stages(asked.experiment, asked.topology, asked.transformer)) - {0})
    if asked("transformer.recompute_method") == "block":
        if unit > sizes[-1]:
            yield _problem(key, f"a stage has {sizes[-1]} layers, not {unit}", f"{sizes[-1]} at most")
    elif any(size % unit for size in sizes):
        fitting = [other for other in range(1, sizes[0] + 1) if not any(size % other for size in sizes)]
        yield _problem(key, f"stages of {either(sizes)} layers do not make whole units of {unit}", either(fitting))


def _piped(asked: Asked) -> bool:
    return asked.topology.pipeline > 1


def _pipeline(asked: Asked) -> Iterator[Problem]:
    batch, overlap = "transformer.batch_p2p_comm", "transformer.overlap_p2p_comm"
    if not _piped(asked):
        return
    if asked(batch) and asked(overlap):
        key, other = (batch, overlap) if asked.on(batch) else (overlap, batch)
        yield _problem(key, f"messages are batched or overlap: megatron.{other} is true", f"megatron.{other}: false")
    flush = "transformer.overlap_p2p_comm_warmup_flush"
    if asked.on(flush) and not asked(overlap):
        yield _problem(flush, f"megatron.{overlap} is false", "set that too")
    if asked.on("transformer.batch_p2p_sync") and not asked(batch):
        yield _problem("transformer.batch_p2p_sync", f"megatron.{batch} is false, {IDLE}", "remove it")
    key = "transformer.microbatch_group_size_per_vp_stage"
    group, ranks, microbatches = asked.keys.get(key), asked.topology.pipeline, asked.topology.microbatches
    if group and not (ranks <= group <= microbatches and whole_rounds(microbatches, group, ranks)):
        fitting = [size for size in range(ranks, microbatches + 1) if whole_rounds(microbatches, size, ranks)]
        yield _problem(
            key,
            f"{microbatches} microbatches over {ranks} ranks are not rounds of {group}",
            f"{either(fitting[:4])}" if fitting else "remove it",
        )


def whole_rounds(microbatches: int, group: int, ranks: int) -> bool:
    """Whether the interleaved schedule can take `microbatches` in rounds of `group`: the last may be smaller, but still
    has one for each rank."""
    return microbatches % group == 0 or microbatches % group >= ranks


def _experts(asked: Asked) -> Iterator[Problem]:
    key, topology, model = "transformer.expert_tensor_parallel_size", asked.topology, asked.experiment.model
    cut = asked.keys.get(key)
    if not cut or cut < 1 or not model.num_experts:
        return
    pool = topology.data_shard * topology.context * topology.tensor
    if pool % (topology.expert * cut):
        fitting = [size for size in range(1, pool + 1) if pool % (topology.expert * size) == 0]
        ranks = f"parallel.expert {topology.expert} x {cut}"
        message = f"{ranks} does not divide the {pool} ranks of data_shard, context and tensor"
        yield _problem(key, message, either(fitting[:4]))
    elif expert_width(model) % cut:
        yield _problem(key, f"experts of width {expert_width(model)} cannot be cut in {cut}", "a divisor of the width")
    elif asked.cpu and cut > 1 and asked("transformer.moe_token_dispatcher_type") != "allgather":
        yield _problem(
            key,
            "gloo cannot gather the different numbers of tokens that reach experts",
            "megatron.transformer.moe_token_dispatcher_type: allgather, or remove it",
        )


def _dispatcher(asked: Asked) -> Iterator[Problem]:
    key, moe = "transformer.moe_token_dispatcher_type", asked.experiment.moe
    kind = asked(key)
    if moe.dispatcher not in ("auto", kind):
        yield _problem(key, f"it is {kind}, but moe.dispatcher is {moe.dispatcher}", "moe.dispatcher: auto")
    if kind == "flex":
        cut = asked.keys.get("transformer.expert_tensor_parallel_size") or 1
        if asked.topology.expert * cut == 1:
            yield _problem(key, "flex needs experts on more than one rank", "parallel.expert: 2 or more")
        if asked("transformer.moe_router_dtype") != "fp32":
            yield _problem("transformer.moe_router_dtype", "flex carries weights of experts in fp32", "fp32")
    backend = asked("transformer.moe_flex_dispatcher_backend")
    for name, wanted in (
        ("moe_flex_dispatcher_backend", backend),
        ("moe_deepep_num_sms", "deepep"),
        ("moe_hybridep_num_sms", "hybridep"),
    ):
        if asked.on(f"transformer.{name}") and (kind != "flex" or backend != wanted):
            remedy = f"megatron.{key}: flex"
            remedy += "" if wanted == backend else f" and megatron.transformer.moe_flex_dispatcher_backend: {wanted}"
            message = f"tokens travel by {backend if kind == 'flex' else kind}, {IDLE}"
            yield _problem(f"transformer.{name}", message, f"{remedy}, or remove it")
    overlap = "transformer.moe_shared_expert_overlap"
    if asked.on(overlap) and kind != "alltoall":
        yield _problem(
            overlap, f"shared experts overlap with alltoall only, not with {kind}", f"megatron.{key}: alltoall"
        )


def _gradients(asked: Asked) -> Iterator[Problem]:
    reduce, gather = "ddp.overlap_grad_reduce", "ddp.overlap_param_gather"
    if asked(gather) and not asked(reduce):
        key, remedy = (
            (gather, f"megatron.{reduce}: true") if asked.on(gather) else (reduce, f"megatron.{gather}: false")
        )
        yield _problem(key, f"megatron.{gather} needs megatron.{reduce}", remedy)
    if asked.on("ddp.bucket_size") and not asked(reduce):
        yield _problem(
            "ddp.bucket_size", f"megatron.{reduce} is false: there is one bucket", f"megatron.{reduce}: true"
        )
    if asked.on("ddp.align_param_gather") and not asked(gather):
        yield _problem("ddp.align_param_gather", f"megatron.{gather} is false", f"megatron.{gather}: true")
    scatter, wide = "ddp.reduce_scatter_with_fp32_accumulation", "ddp.grad_reduce_in_fp32"
    if asked.on(scatter) and asked(wide):
        yield _problem(scatter, "gradients travel in fp32 already", f"megatron.{wide}: false")
    elif asked.on(scatter) and asked.topology.data_replicate > 1:
        yield _problem(scatter, "replicas of the shards cannot be reduced so", "parallel.data_replicate: 1")


def _kernels(asked: Asked) -> Iterator[Problem]:
    loss, which = "transformer.cross_entropy_loss_fusion", "transformer.cross_entropy_fusion_impl"
    if asked.on(which) and not asked(loss):
        yield _problem(which, f"megatron.{loss} is false, {IDLE}", f"megatron.{loss}: true")
    stored, fused = "transformer.activation_func_fp8_input_store", "transformer.bias_activation_fusion"
    if asked.on(stored) and not asked(fused):
        yield _problem(stored, f"megatron.{fused} is false, {IDLE}", f"megatron.{fused}: true")
    family = asked.experiment.model.model_type
    if asked.on("transformer.apply_rope_fusion") and latent_attention(family):
        key = "transformer.apply_rope_fusion"
        yield _problem(key, f"the rotated part of {family}'s heads has no such kernel", "remove it")
