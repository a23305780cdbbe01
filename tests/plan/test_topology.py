"""Sizes of axes and batch: what fits, what does not, and that each refusal offers a way out that is legal."""

from __future__ import annotations

import re
from math import prod
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from primus.config.experiment import Experiment
from primus.config.nearest import nearest_divisors, nearest_multiples
from primus.plan import topology


def experiment(
    parallel: dict[str, Any] | None = None, devices: int | None = None, batch: int = 8, micro: int = 1
) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "t",
            "hardware": {"name": "x", "device": "cpu", "devices_per_node": devices},
            "model": {
                "model_type": "llama",
                "vocab_size": 8,
                "hidden_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "intermediate_size": 8,
                "max_position_embeddings": 8,
            },
            "data": {"train": "synthetic"},
            "train": {"steps": 1, "global_batch_size": batch, "micro_batch_size": micro, "seq_length": 8},
            "optimizer": {"lr": 0.1},
            "parallel": parallel or {},
        }
    )


def resolve(value: Experiment, nnodes: int = 1, nproc: int | None = None) -> Any:
    return topology.resolve(value, nnodes=nnodes, nproc=nproc)


def only(findings: list[Any]) -> Any:
    assert len(findings) == 1, findings
    return findings[0]


def test_auto_is_what_the_other_axes_leave() -> None:
    found, findings = resolve(experiment({"tensor": 2, "pipeline": 2, "data_replicate": 2}), nnodes=2, nproc=8)
    assert findings == []
    assert (found.data_shard, found.world_size, found.data_parallel, found.microbatches) == (2, 16, 4, 2)


def test_processes_a_node_come_from_the_hardware() -> None:
    assert resolve(experiment(devices=8))[0].nproc_per_node == 8
    assert resolve(experiment(devices=8), nproc=4)[0].nproc_per_node == 4
    assert resolve(experiment())[0].nproc_per_node == 1


def test_more_processes_than_devices() -> None:
    _, findings = resolve(experiment(devices=8, batch=9), nproc=9)
    assert only(findings) == (
        "--nproc",
        "--nproc 9, but a node of x has 8 devices",
        "--nproc 8 at most",
        False,
    )


@pytest.mark.parametrize(
    ("nnodes", "nproc", "options"), [(0, 1, ["--nnodes"]), (1, 0, ["--nproc"]), (-1, -1, ["--nnodes", "--nproc"])]
)
def test_nothing_to_start(nnodes: int, nproc: int, options: list[str]) -> None:
    found, findings = resolve(experiment(), nnodes, nproc)
    assert found is None
    assert [finding.key for finding in findings] == options


def test_axes_that_do_not_divide_the_world() -> None:
    found, findings = resolve(experiment({"tensor": 3}), nproc=8)
    assert found is None
    assert only(findings)[:3] == (
        "parallel.tensor",
        "parallel: tensor 3 does not divide 8 processes (1 node x 8)",
        "parallel.tensor: 2 or 4, or start 6 or 9 processes",
    )


def test_axes_larger_than_the_world() -> None:
    _, findings = resolve(experiment({"tensor": 4, "pipeline": 4}), nproc=8)
    finding = only(findings)
    assert "tensor 4 x pipeline 4 = 16 does not divide 8 processes" in finding.message
    assert finding.remedy == "parallel.tensor: 2, or parallel.pipeline: 2, or start 16 processes"


def test_explicit_data_shard_must_match() -> None:
    _, findings = resolve(experiment({"data_shard": 4, "tensor": 2}), nproc=6)
    assert only(findings)[:3] == (
        "parallel.data_shard",
        "parallel: data_shard 4 x tensor 2 = 8, but there are 6 processes (1 node x 6)",
        "parallel.data_shard: 3 (or auto), or start 8 processes",
    )


def test_batch_that_does_not_divide() -> None:
    _, findings = resolve(experiment(batch=10, micro=2), nproc=4)
    assert only(findings)[:3] == (
        "train.global_batch_size",
        "train.global_batch_size: 10 does not divide by 4 x 2 = 8 (data-parallel ranks x micro batch)",
        "nearest: 8 or 16",
    )


def test_a_smaller_micro_batch_is_offered_where_it_helps() -> None:
    _, findings = resolve(experiment(batch=12, micro=2), nproc=4)
    assert only(findings).remedy == "nearest: 8 or 16; or train.micro_batch_size: 1 or 3"


def test_batch_smaller_than_one_pass() -> None:
    _, findings = resolve(experiment(batch=3, micro=4))
    assert only(findings).remedy == "nearest: 4; or train.micro_batch_size: 3"


def test_experts_share_the_ranks_of_data_context_and_tensor() -> None:
    found, findings = resolve(experiment({"expert": 4, "tensor": 2, "context": 2}), nproc=4)
    assert (found.expert, findings) == (4, [])
    found, findings = resolve(experiment({"expert": 4, "data_replicate": 2}), nproc=4)
    assert only(findings).key == "parallel.expert"
    assert "data_shard 2 x context 1 x tensor 1 = 2" in only(findings).message
    assert only(findings).remedy == "parallel.expert: 2"


def test_everything_wrong_is_found_at_once() -> None:
    _, findings = resolve(experiment({"expert": 3}, devices=2, batch=5), nproc=4)
    assert [finding.key for finding in findings] == ["--nproc", "train.global_batch_size", "parallel.expert"]


axis = st.integers(1, 12)


axes = st.fixed_dictionaries(dict.fromkeys(("data_replicate", "context", "tensor", "pipeline"), axis))
machines = st.tuples(st.integers(1, 6), st.integers(1, 12))
batches = st.tuples(st.integers(1, 64), st.integers(1, 8))


@settings(deadline=None)
@given(machines, axes, batches)
@example((1, 7), {"data_replicate": 1, "context": 1, "tensor": 7, "pipeline": 1}, (7, 1))
def test_what_resolves_adds_up_and_what_does_not_says_how(
    machine: tuple[int, int], sizes: dict[str, int], batch_sizes: tuple[int, int]
) -> None:
    (nnodes, nproc), (batch, micro) = machine, batch_sizes
    found, findings = resolve(experiment(sizes, batch=batch, micro=micro), nnodes, nproc)
    world = nnodes * nproc
    if found is None:
        assert world % prod(sizes.values())
        for axis_name, choice in re.findall(r"parallel\.(\w+): (\d+)", only(findings).remedy):
            again, _ = resolve(experiment({**sizes, axis_name: int(choice)}, batch=batch, micro=micro), nnodes, nproc)
            assert again is not None, only(findings)
        for choice in re.findall(r"start (\d+)", only(findings).remedy):
            assert int(choice) % prod(sizes.values()) == 0
        return
    assert found.data_replicate * found.data_shard * found.context * found.tensor * found.pipeline == world
    if findings:
        assert batch % (found.data_parallel * micro)
        for choice in re.findall(r"\d+", only(findings).remedy.partition(";")[0]):
            assert resolve(experiment(sizes, batch=int(choice), micro=micro), nnodes, nproc)[1] == []
        for choice in re.findall(r"micro_batch_size: (\d+)(?: or (\d+))?", only(findings).remedy):
            for size in filter(None, choice):
                assert resolve(experiment(sizes, batch=batch, micro=int(size)), nnodes, nproc)[1] == []
    else:
        assert found.data_parallel * micro * found.microbatches == batch


@pytest.mark.parametrize("size", [10**6, 10**9 + 7, 2**61 - 1, 10**30])
def test_absurd_sizes_are_refused_quickly(size: int) -> None:
    for parallel in ({"tensor": size}, {"data_shard": size}, {"expert": size}, {"tensor": size, "pipeline": size}):
        _, findings = resolve(experiment(parallel, batch=size, micro=3), nnodes=size - 1, nproc=1)
        assert findings
        assert all(finding.remedy for finding in findings)


@settings(deadline=None)
@given(st.integers(1, 10**15), st.integers(1, 10**15))
@example(2**61 - 1, 2**61 - 2)
def test_divisors_divide(value: int, total: int) -> None:
    found = nearest_divisors(value, total)
    assert found
    assert all(total % divisor == 0 for divisor in found)


@settings(deadline=None)
@given(st.integers(1, 10**9), st.integers(1, 10**6))
def test_multiples_surround(value: int, unit: int) -> None:
    found = nearest_multiples(value, unit)
    assert all(multiple % unit == 0 and abs(multiple - value) <= unit for multiple in found)
    assert max(found) > value


def test_replica_groups_are_the_data_replicate_axis() -> None:
    value = experiment({"data_replicate": 2})
    torchft = value.model_copy(
        update={"resilience": value.resilience.model_copy(update={"fault_tolerance": "torchft"})}
    )
    found, findings = resolve(torchft, nproc=4)
    assert findings == []
    assert (found.replica_groups, found.group_size) == (2, 2)
    assert resolve(value, nproc=4)[0].group_size == 4
    assert "on one node, and there are 2" in only(resolve(torchft, nnodes=2, nproc=2)[1]).message
    one = torchft.model_copy(update={"parallel": value.parallel.model_copy(update={"data_replicate": 1})})
    finding = only(resolve(one, nproc=4)[1])
    assert (finding.key, finding.remedy[:24]) == ("resilience.fault_tolerance", "parallel.data_replicate:")
