"""The screen of ``--dry-run``: what would run, where, with what, and by which command."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from primus.config import dimensions, model_size
from primus.config.experiment import Model
from primus.plan.finding import count
from primus.plan.plan import Plan, PlannedSource

LABEL = 13
"""Columns of the labels on the left."""


def render(plan: Plan, commands: Sequence[Sequence[str]] = (), *, script: str = "", width: int = 80) -> str:
    """`plan` for people, at most `width` columns wide where words allow it. commands: each command line that would be
    run, as an argument list. script: the file that a batch system would be handed, shown as it is."""
    engine = " ".join(f"{name} {version}" for name, version in plan.engine.items()) or plan.experiment.backend
    out = [f"{plan.experiment.name}: {plan.workflow} with {engine}. Nothing was started.", ""]
    for label, lines in _summary(plan):
        for number, line in enumerate(lines):
            out += _wrapped(line, width, label if number == 0 else "")
    if plan.env:
        out += ["", "Environment variables of every process"]
        out += [f"  {name}={shlex.quote(value)}" for name, value in plan.env.items()]
    if plan.patches:
        out += ["", f"Changes to the engine's code: {len(plan.patches)}"]
        for patch in plan.patches:
            out.append(f"  {patch.target}")
            out += textwrap.wrap(patch.reason, width, initial_indent="    ", subsequent_indent="    ")
    out += ["", f"Configuration of {plan.experiment.backend}"]
    for key, value in _flat(plan.native):
        out += textwrap.wrap(
            f"{key} = {json.dumps(value)}",
            width,
            initial_indent="  ",
            subsequent_indent="      ",
            break_long_words=False,
        )
    if commands:
        out += ["", "Command" if len(commands) == 1 else "Commands"]
        for command in commands:
            out += _shell(command, width)
    if script:
        out += ["", "Batch script", script.rstrip("\n")]
    return "\n".join(out) + "\n"


def as_json(plan: Plan, commands: Sequence[Sequence[str]] = (), *, script: str = "") -> str:
    """The plan, the commands and the batch script, if there is one, for programs."""
    document: dict[str, Any] = {
        "plan": plan.model_dump(mode="json", by_alias=True),
        "commands": [list(command) for command in commands],
    }
    if script:
        document["script"] = script
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _summary(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    experiment, topology = plan.experiment, plan.topology
    train, hardware = experiment.train, experiment.hardware
    yield "Model", _model(plan)
    machine = f"{count(topology.nnodes, 'node')} x {count(topology.nproc_per_node, 'device')} ({hardware.name})"
    memory = f", {hardware.memory_gib:g} GiB each" if hardware.memory_gib else ""
    yield "Machine", [machine + memory]
    yield "Parallel", [_parallel(plan)]
    tokens = train.global_batch_size * train.seq_length
    yield (
        "Batch",
        [
            f"{count(train.global_batch_size, 'sequence')} x {train.seq_length:,} tokens = {tokens:,} tokens a step",
            f"{count(topology.data_parallel, 'data-parallel rank')} x micro batch {topology.micro_batch_size} x "
            f"{count(topology.microbatches, 'microbatch')}",
        ],
    )
    total = tokens * train.steps
    yield (
        "Training",
        [
            f"{count(train.steps, 'step')}, {total:,} tokens, {quantity(plan.flops_per_token * total)}FLOP",
            f"{experiment.precision}, recompute {experiment.recompute}" + (", compiled" if experiment.compile else ""),
        ],
    )
    yield "Optimizer", _optimizer(plan)
    yield "Data", _data(plan, total)
    yield "Checkpoints", [_checkpoints(plan)]
    if plan.data.validation_fraction or plan.data.validation_sources:
        every = f"every {count(experiment.eval.interval, 'step')} on {count(experiment.eval.steps, 'global batch')}"
        yield "Evaluation", [every]
    if experiment.profile:
        first, last = experiment.profile.steps
        yield "Profile", [f"steps {first} to {last} of ranks {', '.join(map(str, experiment.profile.ranks))}"]
    yield "Run", [plan.run_directory]
    yield "Environment", [plan.environment]


def _model(plan: Plan) -> list[str]:
    model = plan.experiment.model
    size = model_size.measure(model)
    heads, kv_heads = model.num_attention_heads, dimensions.key_value_heads(model)
    shape = f"{model.model_type}, {count(model.num_hidden_layers, 'layer')} of width {model.hidden_size}, {heads} heads"
    if kv_heads != heads:
        shape += f" ({kv_heads} for keys and values)"
    if model.num_experts:
        shape += f", {model.num_experts} experts ({model.num_experts_per_tok} a token)"
    parameters = f"{plan.parameters:,} parameters"
    if size.active != size.total:
        parameters += f", {size.active:,} active"
    return [
        f"{shape}, vocabulary {model.vocab_size:,}",
        f"{parameters}, {quantity(plan.flops_per_token)}FLOP a token",
        _start(model),
    ]


def _start(model: Model) -> str:
    if model.init == "random":
        return f"random start, std {model.init_std:g}"
    if model.init == "native":
        return "the engine's own random start"
    return f"start from {model.init}"


def _parallel(plan: Plan) -> str:
    topology, parallel = plan.topology, plan.experiment.parallel
    axes = ("data_replicate", "data_shard", "context", "tensor", "pipeline", "expert")
    sizes = [f"{axis} {getattr(topology, axis)}" for axis in axes if getattr(topology, axis) > 1]
    if topology.pipeline > 1:
        schedule = parallel.schedule or ("interleaved_1f1b" if parallel.virtual_pipeline > 1 else "1f1b")
        chunks = f", {parallel.virtual_pipeline} chunks a rank" if parallel.virtual_pipeline > 1 else ""
        sizes.append(f"schedule {schedule}{chunks}")
    return ", ".join(sizes) or "none"


def _optimizer(plan: Plan) -> list[str]:
    optimizer = plan.experiment.optimizer
    schedule = optimizer.schedule
    rate = f"{optimizer.name}, lr {optimizer.lr:g}"
    if schedule.name != "constant":
        rate += f" to {optimizer.min_lr:g} ({schedule.name}, at step {plan.decay_steps:,})"
    rate += f", {count(schedule.warmup_steps, 'warm-up step')}"
    betas = ", ".join(f"{beta:g}" for beta in optimizer.betas)
    clip = f"clip {optimizer.clip_grad_norm:g}" if optimizer.clip_grad_norm else "no clipping"
    return [rate, f"betas {betas}, eps {optimizer.eps:g}, weight decay {optimizer.weight_decay:g}, {clip}"]


def _data(plan: Plan, tokens: int) -> list[str]:
    data = plan.data
    if data.kind == "synthetic":
        return ["synthetic tokens"]
    lines = [_source(source) for source in data.sources]
    available = sum(source.tokens for source in data.sources) * (1 - data.validation_fraction)
    if len(data.sources) == 1 and available:
        lines[0] += f", {tokens / available:.3g} epochs"
    if data.validation_fraction:
        lines.append(f"validation: the last {data.validation_fraction:.3%}".rstrip("0%").rstrip(".") + " %")
    lines += [f"validation: {_source(source)}" for source in data.validation_sources]
    if data.tokenizer:
        lines.append(f"tokenizer {data.tokenizer}")
    lines.append(f"documents: {data.document_attention} attention" + (", ends masked" if data.mask_eod else ""))
    return lines


def _source(source: PlannedSource) -> str:
    share = "" if source.share == 4096 else f", {source.share}/4096 of the samples"
    return f"{source.prefix}: {source.tokens:,} tokens in {count(source.documents, 'document')}{share}"


def _checkpoints(plan: Plan) -> str:
    checkpoint = plan.experiment.checkpoint
    every = f"every {count(checkpoint.interval, 'step')}" if checkpoint.interval else "at the end and on a stop"
    keep = f", the newest {checkpoint.keep} kept" if checkpoint.keep else ""
    way = "in the background" if checkpoint.async_ else "while training waits"
    return f"{every}{keep}, written {way}; resume {checkpoint.resume}"


def quantity(value: float) -> str:
    """Three digits and an SI prefix: ``27.1 M``."""
    for power, prefix in ((24, "Y"), (21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:.3g} "


def _wrapped(line: str, width: int, label: str) -> list[str]:
    return textwrap.wrap(
        line,
        max(width, LABEL + 20),
        initial_indent=label.ljust(LABEL),
        subsequent_indent=" " * (LABEL + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in sorted(tree.items()):
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif value != {}:
            yield f"{prefix}{key}", value


def _shell(command: Sequence[str], width: int) -> list[str]:
    """`command` as it can be pasted into a shell, continued with backslashes."""
    lines, line = [], "  "
    for number, word in enumerate(shlex.quote(word) for word in command):
        if number and len(line) + 1 + len(word) > width - 2:
            lines.append(f"{line} \\")
            line = "     "
        line += word if line == "  " else f" {word}"
    return [*lines, line]
