"""Which differences between two plans make two experiments of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from primus.plan.plan import Plan
from primus.plan.sameness import Sameness, sameness


def keys(found: Sameness) -> tuple[list[str], list[str], list[str]]:
    matters, native, free = ([one.key for one in part] for part in (found.matters, found.native, found.free))
    return matters, native, free


def test_a_plan_is_the_same_as_itself(plan: Callable[..., Plan]) -> None:
    found = sameness(plan(), plan())
    assert found.same
    assert keys(found) == ([], [], [])
    assert found.remarks == []


def test_native_keys_that_only_say_how_to_compute_are_free(plan: Callable[..., Plan]) -> None:
    how, what = (
        "megatron.transformer.bias_activation_fusion=true",
        "megatron.transformer.cross_entropy_loss_fusion=true",
    )
    found = sameness(plan("backend=megatron", "precision=bf16"), plan("backend=megatron", "precision=bf16", how, what))
    assert keys(found) == (
        [],
        ["megatron.transformer.cross_entropy_loss_fusion"],
        ["megatron.transformer.bias_activation_fusion"],
    )


@pytest.mark.parametrize(
    ("overrides", "keywords"),
    [
        (["train.micro_batch_size=2"], {}),
        (["recompute=full"], {}),
        (["compile=true"], {}),
        (["parallel.tensor=2", "parallel.data_shard=2"], {"nproc": 4}),
        ([], {"nnodes": 2, "nproc": 2}),
        (["hardware.memory_gib=64.0"], {}),
        (["env.NCCL_DEBUG=INFO"], {}),
        (["checkpoint.interval=7", "monitor.log_interval=1"], {}),
        (["name=other"], {}),
        (["train.steps=200", "optimizer.schedule.decay_steps=100"], {}),
    ],
)
def test_engine_layout_length_and_place_are_free(
    plan: Callable[..., Plan], overrides: list[str], keywords: dict[str, Any]
) -> None:
    found = sameness(plan(), plan(*overrides, **keywords))
    assert found.same
    assert found.native == []
    assert bool(found.free) == (overrides != ["name=other"])


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["train.seed=7"], "train.seed"),
        (["train.global_batch_size=16"], "train.global_batch_size"),
        (["train.seq_length=256"], "train.seq_length"),
        (["optimizer.lr=2e-3"], "optimizer.lr"),
        (["optimizer.betas=[0.9, 0.99]"], "optimizer.betas"),
        (["optimizer.schedule.warmup_steps=5"], "optimizer.schedule.warmup_steps"),
        (["optimizer.schedule.decay_steps=50"], "optimizer.schedule.decay_steps"),
        (["train.steps=200"], "optimizer.schedule.decay_steps"),
        (["precision=bf16"], "precision"),
        (["model.init_std=0.01"], "model.init_std"),
        (["model.init=native"], "model.init"),
        (["model.num_hidden_layers=2"], "model.num_hidden_layers"),
    ],
)
def test_what_changes_the_maths_matters(plan: Callable[..., Plan], overrides: list[str], key: str) -> None:
    found = sameness(plan(), plan(*overrides))
    assert not found.same
    assert [one.key for one in found.matters] == [key]


def test_decay_steps_are_the_resolved_ones(plan: Callable[..., Plan]) -> None:
    longer = plan("train.steps=200").model_copy(update={"decay_steps": 100})  # a run of 100 steps that was extended
    assert sameness(plan(), longer).same
    assert sameness(plan(), plan("optimizer.schedule.decay_steps=100")).same
    (found,) = sameness(plan(), plan("train.steps=200")).matters
    assert (found.old, found.new) == (100, 200)
    constant = "optimizer.schedule.name=constant"
    assert sameness(plan(constant), plan(constant, "train.steps=200")).same


def test_data_is_compared_by_what_it_holds(plan: Callable[..., Plan]) -> None:
    one = plan()
    moved = one.model_copy(update={"experiment": one.experiment.model_copy(update={"data": _renamed(one)})})
    assert keys(sameness(one, moved)) == ([], [], ["data.train"])
    other = one.model_copy(update={"data": one.data.model_copy(update={"digest": "0" * 32})})
    assert keys(sameness(one, other))[0] == ["content.digest"]
    masked = one.model_copy(update={"data": one.data.model_copy(update={"mask_eod": True, "eod_id": 3})})
    assert keys(sameness(one, masked))[0] == ["content.end of document"]


def _renamed(plan: Plan) -> Any:
    return plan.experiment.data.model_copy(update={"train": "elsewhere/data"})


def test_the_engines_own_keys_are_set_apart(plan: Callable[..., Plan]) -> None:
    found = sameness(plan(), plan("torchtitan.debug.deterministic=true"))
    assert found.same
    assert keys(found) == ([], ["torchtitan.debug.deterministic"], [])


def test_another_engine_is_free_and_its_limits_are_named(plan: Callable[..., Plan]) -> None:
    def with_engine(plan: Plan, name: str) -> Plan:
        experiment = plan.experiment.model_copy(update={"backend": name})
        return plan.model_copy(update={"experiment": experiment, "engine": {name: "1.0"}})

    one, other = plan(), with_engine(plan(), "other")
    assert keys(sameness(one, other))[0] == []
    assert {"backend", "engine.other", "engine.torchtitan"} <= set(keys(sameness(one, other))[2])
    assert sameness(one, other).remarks == []
    native = plan("model.init=native")
    assert sameness(native, native).remarks == []
    assert "start from different weights" in sameness(native, with_engine(native, "other")).remarks[0]
