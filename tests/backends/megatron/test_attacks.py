"""Runs at the edge of what is possible, and beyond: they train, or say what is wrong and leave nothing half done."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import MODELS, saved, transformers_model
from gang import Case, Ran, run_gang
from safetensors.torch import load_file, save_file
from tiny import DEEPSEEK_V3, LLAMA, MIXTRAL, make, make_dataset

from primus.checkpoints import store
from primus.errors import PlanError

PLAIN: dict[str, Any] = {"backend": "megatron", "train__steps": 3, "optimizer__lr": 2e-3}
STEADY: dict[str, Any] = {"optimizer__schedule": {"name": "constant", "warmup_steps": 0}}
HALF: dict[str, Any] = {"precision": "bf16", "moe__balance": "bias", "model": DEEPSEEK_V3}

WORK: dict[str, tuple[int, dict[str, Any]]] = {
    "one step": (1, {"train__steps": 1, **STEADY}),
    "one token": (1, {"train__seq_length": 1, "data__validation": 0.1, "eval__steps": 2}),
    "one sequence": (1, {"train__global_batch_size": 1, "train__micro_batch_size": 1}),
    "balanced, again": (1, {**HALF, "recompute": "full", "profile__steps": [1, 2]}),
    "auxiliary, again": (1, {"model": MIXTRAL, "moe__balance": "aux_loss", "recompute": "selective"}),
    "pipeline, again": (2, {"parallel__pipeline": 2, "recompute": "full", "data__validation": 0.1, "eval__steps": 2}),
    "interleaved, again": (
        2,
        {
            **{"parallel__pipeline": 2, "parallel__virtual_pipeline": 2, "train__micro_batch_size": 1},
            **{"recompute": "selective", "model": MIXTRAL, "moe__balance": "none"},
        },
    ),
}
FAIL: dict[str, tuple[dict[str, Any], str]] = {
    "diverged": ({"optimizer__lr": 1e30, "train__steps": 20, **STEADY}, r"step \d+: the loss is .*nan|not finite|inf"),
    "full": ({"checkpoint__retries": 0}, "the checkpoint of step 3 was not saved: .*File too large"),
    "spoilt": ({}, "missing tensors: model.norm.weight"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attacks")


@pytest.fixture(scope="module")
def ran(root: Path) -> dict[str, Ran]:
    dataset = make_dataset(root / "data" / "chain")
    spoilt = saved(transformers_model(MODELS["llama"]), root / "spoilt-weights")
    tensors = load_file(spoilt / "model.safetensors")
    tensors["model.layers.0.self_attn.sinks"] = torch.zeros(4)
    del tensors["model.norm.weight"]
    save_file(tensors, spoilt / "model.safetensors")

    def case(name: str, nproc: int = 1, **options: Any) -> Case:
        limit = 1 << 18 if name == "full" else None
        run = name.replace(" ", "-").replace(",", "")
        text = "synthetic" if name == "spoilt" else dataset
        return Case(run, make(root / run, text, nproc=nproc, **PLAIN | options), file_limit=limit)

    failing = [
        case(name, **options | ({"model": {"init": str(spoilt)}} if name == "spoilt" else {}))
        for name, (options, _) in FAIL.items()
    ]
    found: dict[str, Ran] = {}
    for world in (1, 2):
        cases = {name: case(name, world, **options) for name, (size, options) in WORK.items() if size == world}
        gang = run_gang([*cases.values(), *(failing if world == 1 else [])], world, root / f"gang-{world}")
        found |= gang | {name: gang[one.name] for name, one in cases.items()}
    return found


@pytest.mark.parametrize("name", WORK)
def test_what_is_at_the_edge_trains(name: str, ran: dict[str, Ran]) -> None:
    steps = WORK[name][1].get("train__steps", 3)
    losses = ran[name].ended().losses
    assert list(losses) == list(range(1, steps + 1))
    assert all(4.5 < loss < 7 for loss in losses.values())
    assert len(ran[name].of("eval_done")) == (2 if "data__validation" in WORK[name][1] else 0)


@pytest.mark.parametrize("name", FAIL)
def test_what_cannot_go_on_says_why(name: str, ran: dict[str, Ran], root: Path) -> None:
    (error,) = ran[name].errors
    assert re.search(FAIL[name][1], error), error
    assert not store.complete(root / name)


def test_everything_wrong_with_weights_is_said_at_once(ran: dict[str, Ran]) -> None:
    (error,) = ran["spoilt"].errors
    assert "no place for: model.layers.0.self_attn.sinks" in error
    assert "CheckpointError" in error


@pytest.mark.parametrize("change", [{"vocab_size": 255}, {"num_attention_heads": 3, "num_key_value_heads": 3}])
def test_sizes_that_no_layout_of_two_can_cut(change: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"parallel\.tensor"):
        make(tmp_path, "synthetic", nproc=2, model=LLAMA | {"head_dim": 16} | change, parallel__tensor=2, **PLAIN)
