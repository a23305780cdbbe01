"""Megatron's models started from Hugging Face directories: their logits, gradients and checkpoints, from processes of
their own, so that either version can be looked at and nothing of Megatron comes into the test's process.

As a script it is one rank: ``megatron_models.py SPEC.json``, with RANK and WORLD_SIZE in the environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forks
import torch
from gang import environment
from safetensors.torch import load_file
from tiny import make

from primus.config.experiment import Model
from primus.plan.plan import Plan

STEP = 1
"""Of the checkpoints."""
PATIENCE_SECONDS = 240


@dataclass(frozen=True)
class Look:
    """A model to look at: started as `plan` says and fed `tokens`, int64 [B, T]; positions restart with documents."""

    name: str
    plan: Plan
    tokens: torch.Tensor
    positions: torch.Tensor


@dataclass(frozen=True)
class Seen:
    """loss: mean over all tokens but the last of each sequence, which has no target. logits [B, T, vocabulary], None
    where a rank has a part of a model only. gradients: of the loss, under the native names of whole tensors."""

    loss: float
    norm: float
    logits: torch.Tensor | None
    gradients: dict[str, torch.Tensor]
    checkpoint: Path


def look(
    name: str,
    run: Path,
    source: Path,
    tokens: torch.Tensor,
    *,
    positions: torch.Tensor | None = None,
    nproc: int = 1,
    **overrides: Any,
) -> Look:
    """At the model in the Hugging Face directory `source`. With `positions`, attention is within documents."""
    rows, length = tokens.shape
    options = {
        "backend": "megatron",
        "train__steps": 10,
        "train__global_batch_size": rows,
        "train__micro_batch_size": 1,
        "train__seq_length": length,
        **overrides,
    }
    plan = make(run, "synthetic", nproc=nproc, model={"init": str(source)}, **options)
    if positions is None:
        return Look(name, plan, tokens, torch.arange(length).expand(rows, -1))
    data = plan.data.model_copy(update={"document_attention": "within"})
    return Look(name, plan.model_copy(update={"data": data}), tokens, positions)


def look_at(looks: Sequence[Look], world: int, directory: Path, overlay: Path | None = None) -> dict[str, Seen]:
    """Look at all of them in `world` processes. overlay: a directory of packages that come first."""
    from torch.distributed import TCPStore

    directory.mkdir(parents=True)
    spec, entries, stores = directory / "spec.json", [], []
    for number, one in enumerate(looks):
        stores.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
        torch.save({"tokens": one.tokens, "positions": one.positions}, directory / f"{number}.pt")
        entries.append({"plan": one.plan.to_json(), "port": stores[-1].port})
    spec.write_text(json.dumps(entries), encoding="utf-8")
    ours = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    processes, logs = [], []
    for rank in range(world):
        variables = {**ours, **environment(rank, world, overlay=overlay), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        source = forks.source("megatron", sys.executable, variables, {})
        logs.append(directory / f"rank-{rank}.log")
        processes.append(source.start(Path(__file__), [str(spec)], variables, logs[-1]))
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(forks.POLL_SECONDS)
    finally:
        for process in processes:
            process.kill()
    failed = [log for process, log in zip(processes, logs, strict=True) if process.wait()]
    assert not failed, "\n".join(log.read_text(encoding="utf-8")[-4000:] for log in failed)
    return {one.name: _joined(directory, number, one, world) for number, one in enumerate(looks)}


def _joined(directory: Path, number: int, one: Look, world: int) -> Seen:
    parts = [torch.load(directory / f"{number}-{rank}.pt") for rank in range(world)]
    gradients: dict[str, torch.Tensor] = {}
    for part in parts:
        for name, (shape, pieces) in part["gradients"].items():
            whole = gradients.setdefault(name, torch.full(shape, float("nan")))
            for offsets, values in pieces:
                whole[tuple(slice(a, a + n) for a, n in zip(offsets, values.shape, strict=True))] = values
    topology = one.plan.topology
    logits = None
    if topology.tensor * topology.pipeline == 1:  # every rank has all data here: the batch is one microbatch a rank
        rows = [part["logits"] for part in parts]
        logits = _in_order(rows) if topology.context > 1 else torch.cat(rows)
    loss = sum(part["loss"] for part in parts)
    checkpoint = Path(one.plan.run_directory) / "checkpoints" / f"step-{STEP}"
    return Seen(loss, parts[0]["norm"], logits, gradients, checkpoint)


def _in_order(parts: list[torch.Tensor]) -> torch.Tensor:
    """Of two chunks from either end of the sequence on each context-parallel rank, the whole."""
    halves = [part.chunk(2, dim=1) for part in parts]
    return torch.cat([*(first for first, _ in halves), *(second for _, second in reversed(halves))], dim=1)


def in_huggingface(gradients: dict[str, torch.Tensor], model: Model) -> dict[str, torch.Tensor]:
    """Native tensors under Hugging Face's names."""
    from primus.backends.megatron.layout import weights
    from primus.checkpoints.weights import to_huggingface

    found = {}
    for weight in weights(model):
        if weight.native in gradients:
            parts = to_huggingface(weight, gradients[weight.native].numpy())
            found |= {source.name: torch.from_numpy(part) for source, part in zip(weight.sources, parts, strict=True)}
    return found


def of_transformers(twin: Any, loss: torch.Tensor, directory: Path) -> dict[str, torch.Tensor]:
    """Gradients of `loss` under the names by which transformers saves the parameters of `twin`, which are lost."""
    loss.backward()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    twin.save_pretrained(directory)
    return dict(load_file(directory / "model.safetensors"))


def main(spec: Path) -> None:
    from primus.backends.megatron import patches

    entries, rank = json.loads(spec.read_text(encoding="utf-8")), os.environ["RANK"]
    patches.apply(patches.for_device("cpu"))
    failures = []
    for number, entry in enumerate(entries):
        os.environ["MASTER_PORT"] = str(entry["port"])
        plan = Plan.from_json(entry["plan"])
        try:
            answer = _answer(plan, torch.load(spec.parent / f"{number}.pt"))
        except Exception:
            if os.environ["WORLD_SIZE"] != "1":
                raise
            failures.append(f"{plan.experiment.name}: {traceback.format_exc()}")
            torch.distributed.destroy_process_group()
            continue
        torch.save(answer, spec.parent / f"{number}-{rank}.pt")
    if failures:
        sys.exit("\n".join(failures))


def _answer(plan: Plan, given: dict[str, torch.Tensor]) -> dict[str, Any]:
    from megatron.core import parallel_state as mpu

    from primus.backends.base import Session
    from primus.backends.megatron.attention import on_this_rank, within_documents
    from primus.backends.megatron.platform import Platform, disconnect
    from primus.backends.megatron.trainer import Trainer
    from primus.data.reader import IGNORED

    rank, world, run = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), Path(plan.run_directory)
    session = Session(rank, rank, world, run, run / "attempts" / "1", 1, lambda event: None, lambda: False)
    platform = Platform.of(plan, session)
    platform.connect(plan, 60)
    trainer = Trainer(plan, session, platform)
    assert trainer.checkpoints.resume() is None
    trainer.start()
    if world == 1:  # before a step moves the balancing bias
        trainer.checkpoints.save_step(STEP, len(given["tokens"]), wait=True)
        trainer.checkpoints.shut_down()
    tokens, positions = given["tokens"], given["positions"]
    labels = torch.cat([tokens[:, 1:], torch.full((len(tokens), 1), IGNORED)], dim=1)
    share = len(tokens) // plan.topology.data_parallel
    first = mpu.get_data_parallel_rank() * share
    rows = range(first, first + share)
    answer: dict[str, Any] = {"logits": None}
    if plan.topology.tensor * plan.topology.pipeline == 1:
        mine, at = tokens[first : first + share], positions[first : first + share]
        mask = within_documents(at) if plan.data.document_attention == "within" else None
        here = [on_this_rank(tensor, plan.topology.context, mpu.get_context_parallel_rank()) for tensor in (mine, at)]
        with torch.no_grad():
            answer["logits"] = trainer.chunks[0](*here, mask)
    microbatches = [({"input": tokens[n : n + 1], "positions": positions[n : n + 1]}, labels[n : n + 1]) for n in rows]
    count = int((labels != IGNORED).sum())
    trainer.optimizer.zero_grad()
    trainer.config.grad_scale_func = lambda loss: loss / count
    answer["loss"] = float(trainer.forward_backward(microbatches)) / count
    if not (mpu.is_pipeline_last_stage() and mpu.get_tensor_model_parallel_rank() == 0):
        answer["loss"] = 0.0
    answer["norm"] = trainer.optimizer.gradient_norm()
    gradients: dict[str, Any] = {}
    for held in trainer.optimizer._held:
        if held.main.grad is not None:
            _, pieces = gradients.setdefault(held.shard.name, (held.shard.shape, []))
            pieces += [(piece.offsets, piece.tensor.clone()) for piece in held.pieces(held.main.grad)]
    answer["gradients"] = gradients
    disconnect()
    return answer


if __name__ == "__main__":
    main(Path(sys.argv[1]))
