"""Saving and continuing: bit by bit in the same layout, on one curve through others, in either version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import megatron_next
import pytest
from gang import Case, Ran, run_gang
from tiny import DEEPSEEK_V3, LLAMA, QWEN3, make, make_dataset

TOLERANCE = 1e-5
STEPS = 20
OPTIONS: dict[str, Any] = {
    "backend": "megatron",
    "optimizer__lr": 2e-3,
    "optimizer__schedule__decay_steps": STEPS,
    "checkpoint__interval": 5,
    "train__micro_batch_size": 2,
}
TENSOR = {"parallel__tensor": 2}
PIPELINE = {"parallel__pipeline": 2}
VIRTUAL = {"parallel__pipeline": 2, "parallel__virtual_pipeline": 2}
DISTRIBUTED = {"parallel__data_shard": 2}
REPLICATED = {"parallel__data_replicate": 2}
CONTEXT = {"parallel__context": 2}
EXPERT = {"parallel__data_shard": 2, "parallel__expert": 2}
OVERLAPPED = DISTRIBUTED | {"megatron__ddp__overlap_grad_reduce": True, "megatron__ddp__overlap_param_gather": True}

CHAINS: dict[str, tuple[dict[str, Any], list[tuple[int, dict[str, Any]]]]] = {
    "llama": (LLAMA, [(2, TENSOR), (2, PIPELINE), (1, {}), (2, DISTRIBUTED)]),
    "qwen3-tied": (QWEN3, [(2, PIPELINE), (2, REPLICATED), (2, VIRTUAL), (2, CONTEXT)]),
    "deepseek_v3": (DEEPSEEK_V3, [(2, EXPERT), (2, TENSOR), (1, {}), (2, PIPELINE)]),
    "bf16": (LLAMA, [(2, DISTRIBUTED), (1, {}), (2, TENSOR), (2, DISTRIBUTED)]),
}
"""Name -> model, and four layouts that train five steps each in one run directory."""


def options(name: str, model: dict[str, Any], **more: Any) -> dict[str, Any]:
    mixture = {"moe__balance": "none"} if "num_experts" in model else {}
    precision = {"precision": "bf16"} if name == "bf16" else {}
    return {**OPTIONS, "model": model, **mixture, **precision, **more}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("megatron-checkpoints")


@pytest.fixture(scope="module")
def dataset(root: Path) -> Path:
    return make_dataset(root / "data" / "chain")


@pytest.fixture(scope="module", params=["0.16.1", megatron_next.VERSION])
def overlay(request: pytest.FixtureRequest) -> Path | None:
    return megatron_next.overlay() if request.param == megatron_next.VERSION else None


@pytest.fixture(scope="module")
def whole(root: Path, dataset: Path, overlay: Path | None) -> dict[str, Ran]:
    """Every chain's model in one process without a break, and runs that continue it."""
    place = root / ("newer" if overlay else "older")
    cases = [
        Case(name, make(place / f"whole-{name}", dataset, **options(name, model, train__steps=STEPS)))
        for name, (model, _) in CHAINS.items()
    ]
    source = str(place / "whole-llama")
    for name, before in {
        "resumed": (("copy", "{run}", source), ("remove", "{run}/checkpoints/step-20")),
        "damaged": (
            ("copy", "{run}", source),
            ("remove", "{run}/checkpoints/step-20"),
            ("flip", "{run}/checkpoints/step-15/__0_0.distcp"),
        ),
    }.items():
        run = place / name
        actions = tuple(tuple(part.format(run=run) for part in action) for action in before)
        cases.append(Case(name, make(run, dataset, **options(name, LLAMA, train__steps=STEPS)), before=actions))
    background = options("background", LLAMA, train__steps=STEPS, **{"checkpoint__async": True})
    cases.append(Case("background", make(place / "background", dataset, **background)))
    return run_gang(cases, 1, place / "whole", overlay=overlay)


@pytest.fixture(scope="module")
def chained(root: Path, dataset: Path, overlay: Path | None) -> dict[str, list[Ran]]:
    """Each chain's parts. Every second one runs in the other version of Megatron."""
    place = root / ("newer" if overlay else "older")
    other = None if overlay else megatron_next.overlay()
    parts: dict[str, list[Ran]] = {name: [] for name in CHAINS}
    for number in range(4):
        for world in (1, 2):
            cases = [
                Case(name, _part(place / f"chain-{name}", dataset, name, number), attempt=number + 1)
                for name, (_, layouts) in CHAINS.items()
                if layouts[number][0] == world
            ]
            if cases:
                ran = run_gang(cases, world, place / f"part {number} {world}", overlay=other if number % 2 else overlay)
                for case in cases:
                    parts[case.name].append(ran[case.name])
    return parts


def _part(directory: Path, dataset: Path, name: str, number: int) -> Any:
    model, layouts = CHAINS[name]
    nproc, layout = layouts[number]
    return make(directory, dataset, nproc=nproc, **options(name, model, train__steps=5 * (number + 1), **layout))


def resumed_from(ran: Ran) -> Iterator[int | None]:
    for started in ran.of("run_started"):
        yield started["resumed_from"]


@pytest.mark.parametrize("name", CHAINS)
def test_four_layouts_and_two_versions_make_one_curve(
    whole: dict[str, Ran], chained: dict[str, list[Ran]], name: str
) -> None:
    expected = whole[name].ended().losses
    tolerance = 0.02 if name == "bf16" else TOLERANCE
    for number, part in enumerate(chained[name]):
        losses = part.ended().losses
        assert list(resumed_from(part)) == [5 * number or None]
        assert losses == pytest.approx({step: expected[step] for step in losses}, abs=tolerance, rel=0)
        assert list(losses) == list(range(5 * number + 1, 5 * number + 6))


@pytest.mark.parametrize(("name", "step"), [("resumed", 15), ("damaged", 10)])
def test_the_same_layout_continues_bit_by_bit(whole: dict[str, Ran], name: str, step: int) -> None:
    unbroken, continued = whole["llama"].ended(), whole[name].ended()
    assert list(resumed_from(continued)) == [step]
    assert continued.losses == {number: loss for number, loss in unbroken.losses.items() if number > step}
    assert continued.norms == {number: norm for number, norm in unbroken.norms.items() if number > step}


def test_saving_in_the_background_does_not_touch_training(whole: dict[str, Ran]) -> None:
    assert whole["background"].ended().losses == whole["llama"].ended().losses


def test_overlap_changes_nothing(root: Path, dataset: Path, overlay: Path | None, whole: dict[str, Ran]) -> None:
    """Gradients are reduced and weights gathered while others are still computed."""
    place = root / ("newer" if overlay else "older")
    plan = make(
        place / "overlapped", dataset, nproc=2, **options("overlapped", LLAMA, train__steps=STEPS, **OVERLAPPED)
    )
    (ran,) = run_gang([Case("overlapped", plan)], 2, place / "overlap", overlay=overlay).values()
    assert ran.ended().losses == pytest.approx(whole["llama"].ended().losses, abs=TOLERANCE, rel=0)
