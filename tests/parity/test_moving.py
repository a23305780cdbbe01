"""A run that changes its engine on the way: TorchTitan, Megatron, TorchTitan, ten steps each, and one curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gang import Case, Ran, run_gang
from tiny import DEEPSEEK_V3, LLAMA, LLAMA4, MIXTRAL, QWEN3, make, make_dataset

from primus.checkpoints import store
from primus.errors import CheckpointError, UsageError
from primus.runtime.moving import move

TOLERANCE = 1e-5
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3-tied": QWEN3,
    "mixtral": MIXTRAL,
    "deepseek_v3": DEEPSEEK_V3,
    "llama4_text": LLAMA4 | {"num_experts_per_tok": 1},
}
ENGINES = ("torchtitan", "megatron", "torchtitan")


def options(name: str, steps: int, backend: str) -> dict[str, Any]:
    # the balancing bias moves too: its updates in the two engines differ by the same amount for all experts
    return {
        "model": MODELS[name],
        "backend": backend,
        "train__steps": steps,
        "optimizer__lr": 2e-3,
        "optimizer__schedule__decay_steps": 30,
        "train__micro_batch_size": 2,
    }


def quiet(_: str) -> Any:
    return lambda done, total: None


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moving")


@pytest.fixture(scope="module")
def dataset(root: Path) -> Path:
    return make_dataset(root / "data" / "chain")


@pytest.fixture(scope="module")
def unbroken(root: Path, dataset: Path) -> dict[str, Ran]:
    cases = [Case(name, make(root / f"whole-{name}", dataset, **options(name, 30, "torchtitan"))) for name in MODELS]
    return run_gang(cases, 1, root / "gang-whole")


@pytest.fixture(scope="module")
def parts(root: Path, dataset: Path) -> dict[str, list[Ran]]:
    """Three parts of each run, in one run directory, which is moved between them."""
    found: dict[str, list[Ran]] = {name: [] for name in MODELS}
    for number, backend in enumerate(ENGINES):
        cases = []
        for name in MODELS:
            run = root / f"moving-{name}"
            if number:
                (info, *_) = store.complete(run)
                move(run, info, backend, quiet)
            plan = make(run, dataset, **options(name, 10 * (number + 1), backend))
            (run / "plan.json").write_text(plan.to_json(), encoding="utf-8")
            cases.append(Case(name, plan, attempt=number + 1))
        ran = run_gang(cases, 1, root / f"gang-{number}")
        for name in MODELS:
            found[name].append(ran[name])
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_curve_is_that_of_the_unbroken_run(
    parts: dict[str, list[Ran]], unbroken: dict[str, Ran], name: str
) -> None:
    expected = unbroken[name].ended()
    for number, part in enumerate(parts[name]):
        losses = part.ended().losses
        assert list(losses) == list(range(10 * number + 1, 10 * number + 11))
        assert losses == pytest.approx({step: expected.losses[step] for step in losses}, abs=TOLERANCE, rel=0)
    assert expected.losses[30] < expected.losses[1] - 0.3, "it learns, so that equal losses mean something"


def test_the_original_is_kept(parts: dict[str, list[Ran]], root: Path) -> None:
    checkpoints = root / "moving-llama" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "step-10", "step-10.aside-1", "step-20", "step-20.aside-1", "step-30",
    ]  # fmt: skip
    assert [info.backend for info in store.complete(root / "moving-llama")] == ["torchtitan", "torchtitan", "megatron"]
    assert all(not store.verify(info) for info in store.complete(root / "moving-llama"))


def test_moving_to_the_same_engine_or_to_none(parts: dict[str, list[Ran]], root: Path) -> None:
    run = root / "moving-llama"
    (info, *_) = store.complete(run)
    with pytest.raises(UsageError, match="is torchtitan's already"):
        move(run, info, "torchtitan", quiet)


def test_a_damaged_checkpoint_is_not_moved(parts: dict[str, list[Ran]], root: Path) -> None:
    run = root / "moving-qwen3-tied"
    (info, *_) = store.complete(run)
    file = next(info.directory.glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    with pytest.raises(CheckpointError, match=file.name):
        move(run, info, "megatron", quiet)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before
