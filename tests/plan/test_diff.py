"""What may change when a run continues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from primus.backends import registry
from primus.backends.megatron import schema
from primus.errors import RunDirectoryError
from primus.plan.diff import CHANGEABLE_NATIVE, check_continue, differences
from primus.plan.plan import Plan, PlannedData, PlannedSource


def keys(old: Plan, new: Plan) -> list[str]:
    return [difference.key for difference in differences(old, new)]


def test_nothing_differs_between_a_plan_and_itself(plan: Callable[..., Plan]) -> None:
    assert differences(plan(), plan()) == []
    assert check_continue(plan(), plan()) == plan()


def test_a_difference_reads_as_one(plan: Callable[..., Plan]) -> None:
    found = differences(plan(), plan("optimizer.lr=2e-3"))
    assert [str(difference) for difference in found] == ["optimizer.lr: 0.001 -> 0.002"]


@pytest.mark.parametrize(
    ("overrides", "keywords"),
    [
        (["train.steps=200"], {}),
        (["train.micro_batch_size=2"], {}),
        (["checkpoint.interval=7", "checkpoint.keep=2", "checkpoint.async=false"], {}),
        (["monitor.log_interval=1", "monitor.tensorboard=false"], {}),
        (["resilience.max_restarts=2", "resilience.hang_timeout=20m"], {}),
        (["env.NCCL_DEBUG=INFO"], {}),
        (["profile.steps=[3, 4]"], {}),
        (["recompute=full"], {}),
        (["compile=true"], {}),
        (["parallel.tensor=2", "parallel.data_shard=2"], {"nproc": 4}),
        (["parallel.pipeline=2", "parallel.virtual_pipeline=2"], {"nproc": 2}),
        ([], {"nnodes": 2, "nproc": 2}),
        (["hardware.memory_gib=64.0"], {}),
    ],
)
def test_how_and_how_long_may_change(plan: Callable[..., Plan], overrides: list[str], keywords: dict[str, Any]) -> None:
    old, new = plan(), plan(*overrides, **keywords)
    assert differences(old, new)
    assert check_continue(old, new) == new.model_copy(update={"decay_steps": old.decay_steps})


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["optimizer.lr=2e-3"], "optimizer.lr"),
        (["optimizer.weight_decay=0.0"], "optimizer.weight_decay"),
        (["optimizer.schedule.name=linear"], "optimizer.schedule.name"),
        (["optimizer.schedule.decay_steps=50"], "optimizer.schedule.decay_steps"),
        (["train.global_batch_size=16"], "train.global_batch_size"),
        (["train.seq_length=256"], "train.seq_length"),
        (["train.seed=1"], "train.seed"),
        (["model.hidden_size=256"], "model.hidden_size"),
        (["model.init=native"], "model.init"),
        (["precision=bf16"], "precision"),
    ],
)
def test_what_is_learnt_may_not_change(plan: Callable[..., Plan], overrides: list[str], key: str) -> None:
    old, new = plan(), plan(*overrides)
    with pytest.raises(RunDirectoryError) as caught:
        check_continue(old, new)
    problem = caught.value.problems[0]
    assert len(caught.value.problems) == 1
    assert key in problem.message
    assert problem.where == old.run_directory
    assert "name=" in problem.remedy


def test_evaluation_may_change_and_the_split_may_not(plan: Callable[..., Plan]) -> None:
    old = plan("data.validation=0.01")
    assert check_continue(old, plan("data.validation=0.01", "eval.interval=3", "eval.steps=5"))
    with pytest.raises(RunDirectoryError, match="of the data differs"):
        check_continue(old, plan("data.validation=0.02"))


def test_the_name_may_change(plan: Callable[..., Plan]) -> None:
    """It is the name of the directory, which somebody may have moved."""
    assert differences(plan(), plan("name=other")) == []


def test_every_change_that_is_refused_is_listed(plan: Callable[..., Plan]) -> None:
    with pytest.raises(RunDirectoryError) as caught:
        check_continue(plan(), plan("optimizer.lr=2e-3", "train.seed=3", "train.steps=7"))
    said = [str(problem) for problem in caught.value.problems]
    assert len(said) == 2
    assert any("optimizer.lr is 0.001 in this run and 0.002 now (override)" in line for line in said)


def test_decay_steps_stay_those_of_the_first_plan(plan: Callable[..., Plan]) -> None:
    first = plan()
    longer = check_continue(first, plan("train.steps=500"))
    assert (longer.experiment.train.steps, longer.decay_steps) == (500, 100)
    still = check_continue(longer, plan("train.steps=900"))
    assert still.decay_steps == 100
    spelt = check_continue(first, plan("train.steps=500", "optimizer.schedule.decay_steps=100"))
    assert spelt.decay_steps == 100


def with_data(plan: Plan, **changes: Any) -> Plan:
    source = PlannedSource(prefix="/data/a", digest="d1", share=4096, tokens=10, documents=1, dtype="uint16")
    source = source.model_copy(update={key: value for key, value in changes.items() if key in ("prefix", "digest")})
    data = PlannedData(
        kind="indexed",
        sources=(source,),
        tokenizer_hash=changes.get("tokenizer", "t1"),
        digest=changes.get("digest", "d1"),
        validation_sources=(source,) if changes.get("validation") else (),
    )
    section = plan.experiment.data.model_copy(update={"train": source.prefix})
    return plan.model_copy(update={"data": data, "experiment": plan.experiment.model_copy(update={"data": section})})


def test_data_may_move_but_not_change(plan: Callable[..., Plan]) -> None:
    old = with_data(plan())
    assert keys(old, with_data(plan(), prefix="/elsewhere/a")) == ["data.train"]
    assert check_continue(old, with_data(plan(), prefix="/elsewhere/a"))
    for change in ({"digest": "d2"}, {"tokenizer": "t2"}, {"validation": True}):
        with pytest.raises(RunDirectoryError, match="of the data differs"):
            check_continue(old, with_data(plan(), **change))


def with_backend(plan: Plan, name: str) -> Plan:
    return plan.model_copy(update={"experiment": plan.experiment.model_copy(update={"backend": name})})


def test_another_backend_is_offered_a_conversion(plan: Callable[..., Plan]) -> None:
    with pytest.raises(RunDirectoryError, match="checkpoint convert") as caught:
        check_continue(plan(), with_backend(plan(), "megatron"))
    assert len(caught.value.problems) == 1


def with_native(plan: Plan, backend: str, **sections: Any) -> Plan:
    update = {"native": {backend: sections}}
    return plan.model_copy(update={"experiment": plan.experiment.model_copy(update=update)})


def test_native_keys_of_the_backend_count_and_those_of_others_do_not(plan: Callable[..., Plan]) -> None:
    assert differences(plan(), with_native(plan(), "other", x=1)) == []
    changed = with_native(plan(), "torchtitan", comm={"x": 1})
    assert keys(plan(), changed) == ["torchtitan.comm.x"]
    with pytest.raises(RunDirectoryError, match=r"torchtitan\.comm\.x"):
        check_continue(plan(), changed)


LEARNT = {
    *("ddp.grad_reduce_in_fp32", "ddp.reduce_scatter_with_fp32_accumulation"),
    *("transformer.activation_func_fp8_input_store", "transformer.disable_bf16_reduced_precision_matmul"),
    *("transformer.cross_entropy_loss_fusion", "transformer.cross_entropy_fusion_impl"),  # rounds gradients to bf16
    *("transformer.moe_router_dtype", "transformer.moe_router_bias_update_rate"),
    *("transformer.moe_router_load_balancing_type", "transformer.moe_z_loss_coeff"),
    *("transformer.moe_router_force_load_balancing", "transformer.mtp_num_layers"),
    "transformer.mtp_loss_scaling_factor",
}
"""Megatron's own keys that may not change: a precision, or another loss."""


@pytest.mark.parametrize("version", schema.VERSIONS.values())
def test_every_key_of_megatron_is_one_or_the_other(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a key that is taken up has to be thought about."""
    monkeypatch.setattr(schema, "engine_version", lambda: version)
    own = {key for key, about in registry.get("megatron").native_schema().keys.items() if not about.portable}
    changeable = {key.removeprefix("megatron.") for key in CHANGEABLE_NATIVE if key.startswith("megatron.")}
    assert changeable | LEARNT == own
    assert not changeable & LEARNT


def test_every_key_of_maxtext_is_one_or_the_other(plan: Callable[..., Plan]) -> None:
    own = {key for key, about in registry.get("maxtext").native_schema().keys.items() if not about.portable}
    changeable = {key.removeprefix("maxtext.") for key in CHANGEABLE_NATIVE if key.startswith("maxtext.")}
    precisions = {"activations_in_float32", "quantization", *(key for key in own if key.startswith("float32_"))}
    assert changeable | precisions == own
    assert not changeable & precisions
    old, new = (
        with_native(plan("backend=maxtext"), "maxtext", **keys)
        for keys in ({"remat_policy": "custom", "context": "device"}, {"remat_policy": "full", "attention": "flash"})
    )
    assert check_continue(old, new) == new
    with pytest.raises(RunDirectoryError, match=r"maxtext\.float32_logits"):
        check_continue(old, with_native(new, "maxtext", float32_logits=True))


def test_how_megatron_computes_may_change(plan: Callable[..., Plan]) -> None:
    old = with_native(plan("backend=megatron"), "megatron", ddp={"bucket_size": 1000})
    new = with_native(
        plan("backend=megatron"), "megatron", transformer={"recompute_num_layers": 2, "bias_activation_fusion": True}
    )
    assert len(keys(old, new)) == 3
    assert check_continue(old, new) == new
    assert check_continue(new, old) == old


def test_what_megatron_learns_may_not_change(plan: Callable[..., Plan]) -> None:
    old = with_native(plan("backend=megatron"), "megatron", transformer={"mtp_loss_scaling_factor": 0.1})
    new = with_native(
        plan("backend=megatron"),
        "megatron",
        transformer={"mtp_loss_scaling_factor": 0.3, "mtp_num_layers": 1},
        ddp={"overlap_grad_reduce": True},
    )
    with pytest.raises(RunDirectoryError) as caught:
        check_continue(old, new)
    scale, layers = sorted(caught.value.problems, key=lambda problem: problem.message)
    assert scale.message == "megatron.transformer.mtp_loss_scaling_factor is 0.1 in this run and 0.3 now"
    assert scale.remedy.startswith("continue with megatron.transformer.mtp_loss_scaling_factor=0.1, or")
    assert layers.message == "megatron.transformer.mtp_num_layers is not set in this run and 1 now"
    assert layers.remedy.startswith("continue without megatron.transformer.mtp_num_layers, or")
