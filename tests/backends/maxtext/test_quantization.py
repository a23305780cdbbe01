"""Products of eight-bit factors train near fp32 and go on exactly; what does not fit is said while planning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import reference
from gang import Case, Ran, run_gang
from tiny import QWEN3_MOE, make, make_dataset

from primus.errors import PlanError
from primus.runtime.environments import provide

BANDS = {"int8": (1e-4, 5e-3), "fp8": (2e-4, 2e-2)}
"""Nats that the losses of ten steps are away from fp32's: so far at least somewhere, else nothing was rounded to eight
bits, and so far at most everywhere."""
COMMON: dict[str, Any] = {
    "backend": "maxtext",
    "optimizer__lr": 2e-3,
    "env": {"XLA_FLAGS": "--xla_backend_optimization_level=1"},
}
INT8 = {"precision": "fp32", "maxtext__quantization": "int8", "nproc": 2, "parallel__data_shard": 2}
FP8 = {"precision": "bf16", "maxtext__quantization": "fp8_full"}
ROCM = {"name": "MI355X", "device": "rocm"}
EXPERTS = {"model": QWEN3_MOE, "moe__balance": "none"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantization")


@pytest.fixture(scope="module")
def dataset(root: Path) -> Path:
    return make_dataset(root / "data" / "chain")


@pytest.fixture(scope="module")
def ran(root: Path, dataset: Path) -> dict[str, Ran]:
    stopped = make(root / "stopped", dataset, **COMMON | FP8)
    cases = [
        Case("int8", make(root / "int8", dataset, **COMMON | INT8 | {"train__micro_batch_size": 2})),
        Case("fp8", make(root / "fp8", dataset, **COMMON | FP8)),
        Case("stopped", stopped, stop=(0, 6)),
        Case("resumed", stopped, attempt=2),
    ]
    return run_gang(cases, 1, root / "gang", python=provide("jax"))


@pytest.mark.parametrize("kind", BANDS)
def test_it_trains_near_fp32(kind: str, ran: dict[str, Ran], root: Path, dataset: Path) -> None:
    expected = reference.train(make(root / f"plain-{kind}", dataset, **COMMON)).losses
    least, most = BANDS[kind]
    assert ran[kind].ended().losses.keys() == expected.keys()
    assert least < max(abs(loss - expected[step]) for step, loss in ran[kind].losses.items()) < most


def test_a_run_goes_on_where_it_was(ran: dict[str, Ran]) -> None:
    first, then = ran["stopped"].ended(), ran["resumed"].ended()
    assert min(then.losses) == 7
    assert {**first.losses, **then.losses} == ran["fp8"].ended().losses


def test_precision_fp8_is_what_was_run(root: Path, dataset: Path) -> None:
    on_cpu = make(root / "on-cpu", dataset, **COMMON | FP8).native
    planned = make(root / "planned", dataset, **COMMON, precision="fp8", hardware=ROCM).native
    assert {key: value for key, value in planned.items() if value != on_cpu[key]} == {"hardware": "gpu"}


@pytest.mark.parametrize(
    ("options", "where", "message"),
    [
        ({"precision": "fp8", "hardware": {"name": "MI300X", "device": "rocm"}}, "precision", "other formats of fp8"),
        (
            {"precision": "fp8", "hardware": {"name": "A100", "device": "cuda", "peak_tflops": {"bf16": 312}}},
            "precision",
            "no fp8 arithmetic",
        ),
        (FP8 | {"hardware": ROCM}, "maxtext.quantization", "precision: fp8 says it"),
        (INT8 | {"precision": "fp8", "hardware": ROCM}, "maxtext.quantization", "and this int8"),
        (INT8 | EXPERTS, "maxtext.quantization", "leaves the experts"),
        (FP8 | EXPERTS | {"nproc": 2, "parallel__expert": 2}, "parallel.expert", "have not been verified"),
        (FP8 | EXPERTS | {"maxtext__sparse_matmul": False}, "maxtext.sparse_matmul", "ragged groups only"),
        (FP8 | {"maxtext__use_sliced_mla_proj": True}, "maxtext.use_sliced_mla_proj", "parts of a matrix"),
        (
            FP8
            | {"nproc": 2, "parallel__pipeline": 2, "parallel__virtual_pipeline": 2}
            | {"maxtext__pipeline_fsdp_ag_per_repeat": True},
            "maxtext.pipeline_fsdp_ag_per_repeat",
            "do not quantize",
        ),
    ],
)
def test_refused(options: dict[str, Any], where: str, message: str, tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(PlanError) as caught:
        make(tmp_path, dataset, **COMMON | options)
    told = [problem.message.partition(f"{where}: ")[2] for problem in caught.value.problems]
    assert [text for text in told if message in text]
