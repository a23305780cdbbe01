"""The same tiny experiment on every engine and layout, and a plain loop: what is run, and how far they may differ.

``tests/parity`` holds them to it; ``make parity`` writes the table of docs/numerics.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import megatron_next
import reference
import torch
from gang import Case, Ran, run_gang
from tiny import DEEPSEEK_V3, LLAMA, MIXTRAL, QWEN3, make

from primus.backends import registry
from primus.runtime.environments import provide

DENSE_BAND = 1e-5
"""Largest difference of a loss, in nats, from the plain loop's."""

SETTINGS: dict[str, Any] = {
    "train__steps": 20,
    "train__seq_length": 256,  # TorchTitan cuts sequences in blocks of 128
    "train__global_batch_size": 4,
    "train__micro_batch_size": 2,
    "optimizer__lr": 2e-3,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3": QWEN3 | {"tie_word_embeddings": False},
    "mixtral": MIXTRAL,
    "deepseek_v3": DEEPSEEK_V3 | {"num_hidden_layers": 4},
}
MIXTURES = ("mixtral", "deepseek_v3")
SEEDS = {"mixtral": 1234, "deepseek_v3": 5}
"""With which no token of the reference is close to another choice of experts."""

HALF_BAND = 5e-3
"""The same in bf16, against the plain loop in fp32. Measured: at most 1.9e-3."""
HALF_LAYOUTS = ("1 process", "data_shard 2")

ENGINES: dict[str, tuple[str, bool]] = {
    "torchtitan 0.3.0": ("torchtitan", False),
    "megatron 0.16.1": ("megatron", False),
    f"megatron {megatron_next.VERSION}": ("megatron", True),
    "maxtext 0.2.5": ("maxtext", False),
}
"""Name -> backend, and whether it runs in the overlay."""

LAYOUTS: dict[str, tuple[int, dict[str, int]]] = {
    "1 process": (1, {}),
    "data_shard 2": (2, {"data_shard": 2}),
    "data_replicate 2": (2, {"data_replicate": 2}),
    "tensor 2": (2, {"tensor": 2}),
    "pipeline 2": (2, {"pipeline": 2}),
    "pipeline 2, 2 virtual": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "context 2": (2, {"context": 2}),
    "expert 2": (2, {"data_shard": 2, "expert": 2}),
    "data_replicate 2 x data_shard 2": (4, {"data_replicate": 2, "data_shard": 2}),
    "tensor 2 x pipeline 2": (4, {"tensor": 2, "pipeline": 2}),
    "tensor 2 x data_shard 2": (4, {"tensor": 2, "data_shard": 2}),
    "context 2 x pipeline 2": (4, {"context": 2, "pipeline": 2}),
    "expert 2 x tensor 2": (4, {"data_shard": 2, "tensor": 2, "expert": 2}),
}

REFUSED = {("maxtext", "mixtral"): {"virtual_pipeline"}, ("maxtext", "deepseek_v3"): {"pipeline"}}
"""(backend, model) -> axes that the backend does not offer for it."""


@dataclass(frozen=True)
class Reference:
    """band: largest difference an engine may have: rounding of fp32 as the plain loop itself shows it, with a margin.
    gap: smallest distance of a chosen expert's score from the best one not chosen; None without experts."""

    losses: dict[int, float]
    norms: dict[int, float]
    band: float
    gap: float | None


def combinations() -> Iterator[tuple[str, str, str]]:
    """(model, engine, layout) of everything that makes sense and that the engine offers."""
    for model in MODELS:
        for engine, (backend, _) in ENGINES.items():
            can = registry.get(backend).capabilities()
            for layout, (_, axes) in LAYOUTS.items():
                asked = axes.keys() - {"virtual_pipeline"}
                offered = MODELS[model]["model_type"] in can.model_types and can.parallel_axes.issuperset(asked)
                if (
                    offered
                    and not REFUSED.get((backend, model), set()) & axes.keys()
                    and ("expert" not in axes or model in MIXTURES)
                ):
                    yield model, engine, layout


def tested() -> Iterator[tuple[str, str, str]]:
    """Those that every run of the tests can afford; ``make parity`` runs all. On one process all; of the others half,
    in which any model meets any layout, and both of them any engine; of four processes Llama's, on the engines of the
    lock. MaxText, which compiles each for ten seconds, runs Llama on two devices."""
    places = [{name: place for place, name in enumerate(names)} for names in (MODELS, ENGINES, LAYOUTS)]
    for key in combinations():
        model, engine, layout = key
        world, (backend, newer) = LAYOUTS[layout][0], ENGINES[engine]
        if backend == "maxtext" or (world == 4 and newer):
            chosen = world == 2 and model == "llama"
        elif world == 2 or model == "llama":
            chosen = sum(place[name] for place, name in zip(places, key, strict=True)) % 2 == 0
        else:
            chosen = (model, layout) == ("deepseek_v3", "expert 2 x tensor 2")
        if chosen or world == 1:
            yield key


@cache
def plain_loop(model: str, root: Path, dataset: Path) -> Reference:
    """The reference, in fp32, and for mixtures in fp64 too."""
    plan = make(root / f"reference-{model}", dataset, model=MODELS[model], **_settings(model))
    trained = reference.train(plan)
    if model not in MIXTURES:
        return Reference(trained.losses, trained.norms, DENSE_BAND, None)
    exact = reference.train(plan, torch.float64)
    noise = max(abs(trained.losses[step] - exact.losses[step]) for step in trained.losses)
    return Reference(trained.losses, trained.norms, max(DENSE_BAND, 4 * noise), exact.gap)


def run(
    wanted: Sequence[tuple[str, str, str]], root: Path, dataset: Path, *, precision: str = "fp32"
) -> dict[tuple[str, str, str], Ran]:
    """Train all of `wanted`, each engine and number of processes in one gang. Where a process holds all devices of a
    node, a layout's processes are devices."""
    results: dict[tuple[str, str, str], Ran] = {}
    for engine, (backend, newer) in ENGINES.items():
        for world in (1, 2, 4):
            chosen = [key for key in wanted if key[1] == engine and LAYOUTS[key[2]][0] == world]
            if not chosen:
                continue
            cases = {key: _case(key, backend, root, dataset, precision) for key in chosen}
            processes = "1 process" if world == 1 else f"{world} processes"
            sys.stderr.write(f"{engine}, {precision}: {len(cases)} runs on {processes}\n")
            directory = root / f"gang {engine} {world}"
            found = registry.get(backend)
            ran = run_gang(
                list(cases.values()),
                1 if found.processes == "per_node" else world,
                directory,
                overlay=megatron_next.overlay() if newer else None,
                python=provide("jax") if found.environment == "jax" else sys.executable,
            )
            results |= {key: ran[case.name] for key, case in cases.items()}
    return results


def run_half(root: Path, dataset: Path, layouts: Sequence[str] = HALF_LAYOUTS) -> dict[tuple[str, str, str], Ran]:
    """Every engine and model in bf16, in a few layouts."""
    wanted = [key for key in combinations() if key[2] in layouts]
    return run(wanted, root / "bf16", dataset, precision="bf16")


def _case(key: tuple[str, str, str], backend: str, root: Path, dataset: Path, precision: str) -> Case:
    model, engine, layout = key
    nproc, axes = LAYOUTS[layout]
    name = " ".join((model, engine, layout)).replace(" ", "-").replace(",", "")
    options = _settings(model) | {f"parallel__{axis}": size for axis, size in axes.items()} | {"precision": precision}
    if axes.get("data_replicate", 1) * axes.get("data_shard", 1) == 4:
        options["train__micro_batch_size"] = 1
    plan = make(root / name, dataset, nproc=nproc, model=MODELS[model], backend=backend, **options)
    return Case(name, plan)


def _settings(model: str) -> dict[str, Any]:
    mixture = {"train__seed": SEEDS[model], "moe__balance": "none"} if model in MIXTURES else {}
    return SETTINGS | mixture


def difference(ran: Ran, expected: Reference) -> float:
    """Largest difference of the losses of all steps, in nats."""
    losses = ran.ended().losses
    assert losses.keys() == expected.losses.keys()
    return max(abs(losses[step] - expected.losses[step]) for step in losses)
