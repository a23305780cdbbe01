"""A run that changes its engine on the way, twice, ten steps each, and one curve."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gang import Case, Ran, run_gang
from safetensors.torch import load_file
from tiny import DEEPSEEK_V3, LLAMA, LLAMA4, MIXTRAL, QWEN3, make, make_dataset
from transformers import AutoModelForCausalLM

from primus.backends import registry
from primus.checkpoints import store
from primus.data.reader import open_validation
from primus.errors import CheckpointError, UsageError
from primus.plan.plan import Plan
from primus.runtime.environments import provide
from primus.runtime.exchange.exchanges import Exchanges
from primus.runtime.exchange.exporting import export_huggingface
from primus.runtime.exchange.moving import move

TOLERANCE = 1e-5
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3-tied": QWEN3,
    "mixtral": MIXTRAL,
    "deepseek_v3": DEEPSEEK_V3,
    "llama4_text": LLAMA4 | {"num_experts_per_tok": 1},
}
ENGINES = ("torchtitan", "megatron", "torchtitan")
ALL = ("torchtitan", "maxtext", "megatron")
ROUTES = dict.fromkeys(MODELS, ENGINES) | dict.fromkeys(("llama", "mixtral", "deepseek_v3"), ALL)
MORE: dict[str, dict[str, Any]] = {
    "llama": {"data__validation": 0.05, "eval__interval": 100, "eval__steps": 2},
}


def options(name: str, steps: int, backend: str) -> dict[str, Any]:
    # the balancing bias moves too: its updates in the two engines differ by the same amount for all experts
    return {
        "model": MODELS[name],
        "backend": backend,
        "train__steps": steps,
        "optimizer__lr": 2e-3,
        "optimizer__schedule__decay_steps": 30,
        "train__micro_batch_size": 2,
        **MORE.get(name, {}),
        # arrays of which each device saves a part
        **({"nproc": 2, "parallel__data_shard": 2} if (name, backend) == ("llama", "maxtext") else {}),
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
def parts(exchanges: Exchanges, root: Path, dataset: Path) -> dict[str, list[Ran]]:
    """Three parts of each run, in one run directory, which is moved between them."""
    found: dict[str, list[Ran]] = {name: [] for name in MODELS}
    for number in range(3):
        cases: dict[str, list[Case]] = {}
        for name, route in ROUTES.items():
            run, backend = root / f"moving-{name}", route[number]
            if number:
                (info, *_) = store.complete(run)
                move(exchanges, run, info, backend, quiet)
            plan = make(run, dataset, **options(name, 10 * (number + 1), backend))
            (run / "plan.json").write_text(plan.to_json(), encoding="utf-8")
            environment = registry.get(backend).environment
            cases.setdefault(environment, []).append(Case(name, plan, attempt=number + 1))
        for environment, some in cases.items():
            python = sys.executable if environment == "torch" else provide(environment)
            ran = run_gang(some, 1, root / f"gang-{number}-{environment}", python=python)
            for name in ran:
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
    assert [info.backend for info in store.complete(root / "moving-llama")] == ["megatron", "megatron", "maxtext"]
    assert all(not store.verify(info) for info in store.complete(root / "moving-llama"))


def test_what_maxtext_trained_is_exported(
    exchanges: Exchanges, parts: dict[str, list[Ran]], root: Path, tmp_path: Path
) -> None:
    """transformers finds the validation loss that MaxText found, and both of its checkpoints hold the same."""
    run, (_, part, _) = root / "moving-llama", parts["llama"]
    own, moved = run / "checkpoints" / "step-20.aside-1", run / "checkpoints" / "step-20"
    for checkpoint, name in ((own, "own"), (moved, "moved")):
        export_huggingface(exchanges, checkpoint, tmp_path / name, progress=lambda *_: None)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "moved"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    plan = Plan.load(run / "plan.json")
    samples = open_validation(plan)
    assert samples is not None
    batch = samples.read(0, 2 * plan.experiment.train.global_batch_size)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "own")(torch.from_numpy(batch.inputs)).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.labels).flatten())
    assert loss.item() == pytest.approx(part.of("eval_done")[-1]["loss"], abs=TOLERANCE, rel=0)


def test_moving_to_the_same_engine_or_to_none(exchanges: Exchanges, parts: dict[str, list[Ran]], root: Path) -> None:
    run = root / "moving-llama"
    (info, *_) = store.complete(run)
    with pytest.raises(UsageError, match="is megatron's already"):
        move(exchanges, run, info, "megatron", quiet)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("name", "files", "to"), [("qwen3-tied", "*.distcp", "megatron"), ("llama", "state/**/d/*", "torchtitan")]
)
def test_a_damaged_checkpoint_is_not_moved(name: str, files: str, to: str, exchanges: Exchanges, root: Path) -> None:
    run = root / f"moving-{name}"
    info = store.complete(run)[-1 if name == "llama" else 0]
    file = max(info.directory.glob(files), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    with pytest.raises(CheckpointError, match=file.name):
        move(exchanges, run, info, to, quiet)
    with pytest.raises(CheckpointError, match=file.name):
        export_huggingface(exchanges, info.directory, root / "out", progress=lambda *_: None)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before
