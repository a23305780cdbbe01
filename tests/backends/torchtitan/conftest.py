"""Every test here runs TorchTitan itself, on the CPU. Runs of tiny models are made once for all tests: each gang starts
its processes once and runs its cases in order."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gang import Case, Ran, run_gang
from tiny import DEEPSEEK_V3, LLAMA, make, make_dataset

from primus.backends.torchtitan import patches

patches.apply(patches.for_device("cpu"))  # some tests here use TorchTitan in this process

Make = Callable[..., Case]

CPLUSPLUS = shutil.which("c++") or shutil.which("g++")

COMMON: dict[str, Any] = {
    "train__steps": 8,
    "optimizer__schedule__decay_steps": 8,
    "data__validation": 0.05,
    "eval__interval": 4,
    "eval__steps": 2,
}


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torchtitan")


@pytest.fixture(scope="session")
def dataset(root: Path) -> Path:
    return make_dataset(root / "data" / "chain")


@pytest.fixture(scope="session")
def case(root: Path, dataset: Path) -> Make:
    """Makes a Case of 8 steps with a validation split; ``after`` names a run whose checkpoints it starts with."""

    def make_case(
        name: str, *, nproc: int = 1, after: str = "", before: tuple[tuple[str, ...], ...] = (), **given: Any
    ) -> Case:
        options = {key: given.pop(key) for key in ("stop", "attempt", "file_limit") if key in given}
        copied = (("copy", str(root / name), str(root / after)),) if after else ()
        damaged = tuple((action, str(root / name / "checkpoints" / path)) for action, path in before)
        plan = make(root / name, dataset, nproc=nproc, **{**COMMON, **given})
        return Case(name, plan, before=copied + damaged, **options)

    return make_case


@pytest.fixture(scope="session")
def one(root: Path, case: Make) -> dict[str, Ran]:
    """One process."""
    interval = {"checkpoint__interval": 2, "checkpoint__async": True}
    cases = [
        case("whole", checkpoint__interval=3, checkpoint__keep=2),
        case("half", train__steps=4),
        case("resumed", after="half"),
        case("background", **interval),
        case("background-resumed", after="background", before=(("remove", "step-8"),), **interval),
        case("flipped", after="background", before=(("remove", "step-8"), ("flip", "step-6/__0_1.distcp")), **interval),
        case(
            "cut",
            after="background",
            before=(("remove", "step-8"), ("halve", "step-6/manifest.json"), ("flip", "step-4/.metadata")),
            **interval,
        ),
        case(
            "flipped-stopped",
            after="background",
            before=(("remove", "step-8"), ("flip", "step-6/__0_1.distcp")),
            stop=(0, 1),
            checkpoint__keep=1,
            **interval,
        ),
        case("hopeless", after="half", before=(("halve", "step-4/__0_0.distcp"),)),
        case("other-model", after="half", model=LLAMA | {"num_hidden_layers": 2, "rope_theta": 5.0e5}),
        case("never", after="half", checkpoint__resume="never", train__steps=2),
        case("complete", after="half", train__steps=4),
        case(
            "full-disk",
            after="half",
            file_limit=200_000,
            checkpoint__interval=6,
            checkpoint__async=True,
            checkpoint__retries=0,
        ),
        case("exploding", optimizer__lr=1.0e30, optimizer__schedule__warmup_steps=0, checkpoint__interval=1),
        case("stopped", stop=(0, 3)),
        case("stopped-resumed", after="stopped"),
        case("profiled", profile__steps=[2, 3], train__steps=3),
        case("bf16", precision="bf16"),
        case("fp8", precision="fp8", torchtitan__float8__emulate=True),
        case("compiled", compile=True, torchtitan__compile__backend="aot_eager", train__steps=3),
        *([case("inductor", compile=True, train__steps=3)] if CPLUSPLUS else []),
        case("native-start", model=LLAMA | {"init": "native"}, train__steps=2),
        case("documents", data__document_attention="within"),
        case("deepseek", model=DEEPSEEK_V3),
        case("deepseek-half", model=DEEPSEEK_V3, train__steps=4),
        case("deepseek-resumed", after="deepseek-half", model=DEEPSEEK_V3),
    ]
    return run_gang(cases, 1, root / "gang-1", measured=True)


@pytest.fixture(scope="session")
def two(root: Path, case: Make, one: dict[str, Ran]) -> dict[str, Ran]:
    """Two processes."""
    shard, tensor, pipeline = ({f"parallel__{axis}": 2} for axis in ("data_shard", "tensor", "pipeline"))
    interval = {"checkpoint__interval": 2, "checkpoint__async": True}
    cases = [
        case("shard", nproc=2, **shard),
        case("tensor", nproc=2, **tensor),
        case("pipeline", nproc=2, **pipeline),
        case("tensor-chunked", nproc=2, torchtitan__loss__num_chunks=4, train__steps=4, **tensor),
        case("shard-background", nproc=2, **shard, **interval),
        case("shard-resumed", nproc=2, after="shard-background", before=(("remove", "step-8"),), **shard, **interval),
        case(
            "shard-flipped",
            nproc=2,
            after="shard-background",
            before=(("remove", "step-8"), ("flip", "step-6/__1_0.distcp")),
            **shard,
            **interval,
        ),
        case("shard-stopped", nproc=2, stop=(1, 3), **shard),
        case(
            "shard-full-disk",
            nproc=2,
            file_limit=100_000,
            checkpoint__interval=4,
            checkpoint__retries=1,
            train__steps=6,
            **shard,
        ),
        case("to-shard", nproc=2, after="half", **shard),
        case("to-tensor", nproc=2, after="half", **tensor),
        case("to-pipeline", nproc=2, after="half", **pipeline),
        case("pipeline-half", nproc=2, train__steps=4, **pipeline),
        case("pipeline-to-tensor", nproc=2, after="pipeline-half", **tensor),
        case("exploding-pipeline", nproc=2, optimizer__lr=1.0e30, optimizer__schedule__warmup_steps=0, **pipeline),
        case("experts", nproc=2, model=DEEPSEEK_V3, parallel__data_shard=2, parallel__expert=2),
        case("shard-bf16", nproc=2, precision="bf16", **shard),
        case("shard-fp8", nproc=2, precision="fp8", torchtitan__float8__emulate=True, **shard),
    ]
    return run_gang(cases, 2, root / "gang-2", measured=True)


@pytest.fixture(scope="session")
def four(root: Path, case: Make, two: dict[str, Ran]) -> dict[str, Ran]:
    """Four processes: two replicas of two shards each."""
    layout = {"parallel__data_replicate": 2, "parallel__data_shard": 2, "train__micro_batch_size": 2}
    cases = [
        case("hybrid", nproc=4, train__steps=3, **layout),
        case("shard-to-hybrid", nproc=4, after="shard-background", before=(("remove", "step-8"),), **layout),
    ]
    return run_gang(cases, 4, root / "gang-4")
