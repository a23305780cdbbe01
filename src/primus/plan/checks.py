"""What must hold between the keys of an experiment and the sizes of the machine, whatever engine runs it.

Contradictions within the experiment alone are found earlier, by ``primus.config.checks``.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from primus.config.dimensions import dense_width, key_value_heads
from primus.config.experiment import Experiment, Model
from primus.config.families import EXPERT_FIELDS, FAMILIES, having, latent_attention
from primus.config.layers import dense_layers
from primus.config.nearest import nearest_divisors, nearest_multiples
from primus.plan.finding import Finding, count, either, product
from primus.plan.plan import Topology


def check(experiment: Experiment, topology: Topology | None) -> list[Finding]:
    """Everything that cannot hold. `topology` is None when the axes do not fit the machine."""
    return [
        *_family(experiment.model),
        *_sequence(experiment),
        *_sharding(experiment),
        *_pipeline(experiment),
        *_profile(experiment, topology),
        *_nodes(experiment, topology),
    ]


def _family(model: Model) -> Iterator[Finding]:
    """What a family has and fixes of a mixture of experts, and the arithmetic of routing in groups."""
    name, family = model.model_type, FAMILIES[model.model_type]
    heads, kv_heads = model.num_attention_heads, key_value_heads(model)
    if not family.mixture and model.num_experts:
        yield Finding(
            "model.num_experts",
            f"model.num_experts: a {name} model has no such thing",
            f"remove it, or take a family with experts: {', '.join(having('num_experts'))}",
        )
        return
    if family.mixture and not model.num_experts:
        yield Finding("model.num_experts", f"a {name} model has experts", "set model.num_experts")
    for field in EXPERT_FIELDS:
        given, fixed = getattr(model, field), family.implied.get(field)
        if given is not None and field not in family.fields:
            yield Finding(f"model.{field}", f"model.{field}: a {name} model has no such thing", "remove it")
        elif given is not None and fixed is not None and given != fixed:
            routing = field in ("scoring_func", "norm_topk_prob")
            reason = f"{name} routes by {family.routing}" if routing else f"a {name} model always has {fixed}"
            yield Finding(
                f"model.{field}", f"model.{field}: {_spelt(given)}, but {reason}", f"model.{field}: {_spelt(fixed)}"
            )
    if latent_attention(name) and kv_heads != heads:
        yield Finding(
            "model.num_key_value_heads",
            f"model.num_key_value_heads: {kv_heads}, but latent attention has one for each of {heads} query heads",
            f"model.num_key_value_heads: {heads}",
        )
    experts, chosen, groups, kept = model.num_experts, model.num_experts_per_tok, model.n_group, model.topk_group
    if experts and (groups is None) != (kept is None):
        yield Finding("model.n_group", "model.n_group and model.topk_group go together", "set both or neither")
    elif experts and chosen and groups and kept and chosen > (reach := kept * (experts // groups)):
        yield Finding(
            "model.num_experts_per_tok",
            f"model.num_experts_per_tok: {chosen}, but topk_group {kept} of {groups} groups hold {reach} experts",
            f"model.num_experts_per_tok: {reach} at most, or a larger model.topk_group",
        )


def _spelt(value: object) -> str:
    """As YAML spells it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sequence(experiment: Experiment) -> Iterator[Finding]:
    length, longest = experiment.train.seq_length, experiment.model.max_position_embeddings
    if length > longest:
        yield Finding(
            "train.seq_length",
            f"train.seq_length: {length} is longer than the model allows (max_position_embeddings {longest})",
            f"train.seq_length: {longest} at most",
        )
    split = experiment.parallel.context * experiment.parallel.tensor
    if length % split:
        axes = product({"context": experiment.parallel.context, "tensor": experiment.parallel.tensor})
        fitting = [other for other in nearest_multiples(length, split) if other <= longest] or nearest_multiples(
            longest, split
        )[:1]
        yield Finding(
            "train.seq_length",
            f"train.seq_length: {length} does not divide by {axes}, which split the sequence",
            f"train.seq_length: {either(fitting)}",
            general=True,
        )


def _sharding(experiment: Experiment) -> Iterator[Finding]:
    model, parallel = experiment.model, experiment.parallel
    heads, kv_heads = model.num_attention_heads, key_value_heads(model)
    split = {"query heads": heads}
    if not latent_attention(model.model_type):  # latent attention has no heads of keys and values to share out
        split["key/value heads"] = kv_heads
    if dense_layers(model):
        split["intermediate_size_mlp" if model.intermediate_size_mlp else "intermediate_size"] = dense_width(model)
    smallest = min(split.values())
    for what, size in split.items():
        if size % parallel.tensor:
            options = [
                t for t in nearest_divisors(parallel.tensor, smallest) if all(s % t == 0 for s in split.values())
            ]
            yield Finding(
                "parallel.tensor",
                f"parallel.tensor: {parallel.tensor} does not divide {size} {what}",
                f"parallel.tensor: {either(options or [1])}",
            )
            break
    expert = parallel.expert
    if expert > 1 and not model.num_experts:
        yield Finding(
            "parallel.expert",
            f"parallel.expert: {expert}, but this {model.model_type} has no experts",
            "parallel.expert: 1",
        )
    elif model.num_experts and model.num_experts % expert:
        yield Finding(
            "parallel.expert",
            f"parallel.expert: {expert} does not divide {model.num_experts} experts",
            f"parallel.expert: {either(nearest_divisors(expert, model.num_experts))}",
        )


def _pipeline(experiment: Experiment) -> Iterator[Finding]:
    """Every stage holds a layer. What schedules ask of the microbatches differs from engine to engine."""
    layers, sizes = experiment.model.num_hidden_layers, {}
    for axis in ("pipeline", "virtual_pipeline"):
        sizes[axis] = getattr(experiment.parallel, axis)
    if prod(sizes.values()) > layers:
        yield Finding(
            "parallel.pipeline",
            f"parallel: {product(sizes)} stages for {count(layers, 'layer')}",
            f"{count(layers, 'stage')} at most",
        )


def _profile(experiment: Experiment, topology: Topology | None) -> Iterator[Finding]:
    for rank in experiment.profile.ranks if experiment.profile and topology else ():
        if topology and rank >= topology.world_size:
            last = topology.world_size - 1
            yield Finding(
                "profile.ranks", f"profile.ranks: there is no rank {rank}; the last is {last}", f"0 to {last}"
            )


def _nodes(experiment: Experiment, topology: Topology | None) -> Iterator[Finding]:
    """On one node, as an experiment is first tried, there is nothing to do without."""
    fewest = experiment.resilience.min_nodes or 1
    if topology and 1 < topology.nnodes < fewest:
        yield Finding(
            "resilience.min_nodes",
            f"resilience.min_nodes: {fewest}, but the run asks for {count(topology.nnodes, 'node')}",
            f"resilience.min_nodes: {topology.nnodes} at most, or ask for more nodes",
        )
