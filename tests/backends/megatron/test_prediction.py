"""Layers that predict tokens further ahead, with weights of their own: one curve in every layout and version."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import megatron_next
import pytest
from gang import Case, Ran, environment, free_port, run_gang
from tiny import DEEPSEEK_V3, QWEN3, make, make_dataset

from primus.backends.megatron import MegatronBackend
from primus.backends.megatron.translate import prediction_size
from primus.config.model_size import flops_per_token
from primus.errors import CheckpointError

TOLERANCE = 1e-5
OPTIONS: dict[str, Any] = {
    "backend": "megatron",
    "model": DEEPSEEK_V3,
    "moe__balance": "none",
    "optimizer__lr": 2e-3,
    "train__micro_batch_size": 2,
    "megatron__transformer__mtp_num_layers": 1,
}
TIED: dict[str, Any] = {key: value for key, value in OPTIONS.items() if key != "moe__balance"} | {"model": QWEN3}
AHEAD: dict[str, Any] = OPTIONS | {"megatron__transformer__mtp_num_layers": 2}
"""Two layers, and targets that are left out of the loss: then no two microbatches have as many."""
ONE: dict[str, dict[str, Any]] = {
    "alone": OPTIONS,
    "without": {key: value for key, value in OPTIONS.items() if "mtp" not in key},
    "tied": TIED,
    "resumed": OPTIONS | {"checkpoint__interval": 5},
    "masked": AHEAD | {"masked": True},
    "masked-small": AHEAD | {"masked": True, "train__micro_batch_size": 1},
}
TWO: dict[str, dict[str, Any]] = {
    "tensor": OPTIONS | {"parallel__tensor": 2},
    "pipeline": OPTIONS | {"parallel__pipeline": 2},
    "shard": OPTIONS | {"parallel__data_shard": 2, "parallel__expert": 2},
    "context": OPTIONS | {"parallel__context": 2},
    "tied-tensor": TIED | {"parallel__tensor": 2},
    "masked-context": AHEAD | {"masked": True, "parallel__context": 2},
    "masked-shard": AHEAD | {"masked": True, "parallel__data_shard": 2},
}
VERSIONS = ("0.16.1", megatron_next.VERSION)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Ran]]:
    """Of both versions."""
    return {version: _run(version, tmp_path_factory.mktemp("prediction")) for version in VERSIONS}


def _run(version: str, root: Path) -> dict[str, Ran]:
    overlay = megatron_next.overlay() if version == megatron_next.VERSION else None
    dataset = make_dataset(root / "data" / "chain")
    cases = [Case(name, make(root / name, dataset, **options)) for name, options in ONE.items()]
    again = Case(
        "again",
        make(root / "again", dataset, **ONE["resumed"]),
        before=(
            ("copy", str(root / "again"), str(root / "resumed")),
            ("remove", str(root / "again/checkpoints/step-10")),
        ),
    )
    results = run_gang([*cases, again], 1, root / "one", overlay=overlay)
    cases = [Case(name, make(root / name, dataset, nproc=2, **options)) for name, options in TWO.items()]
    return results | run_gang(cases, 2, root / "two", overlay=overlay)


@pytest.fixture(params=VERSIONS)
def ran(request: pytest.FixtureRequest, runs: dict[str, dict[str, Ran]]) -> dict[str, Ran]:
    return runs[request.param]


@pytest.mark.parametrize("name", [*TWO, "masked-small"])
def test_losses_equal_those_of_one_process(ran: dict[str, Ran], name: str) -> None:
    expected = ran[next((kind for kind in ("tied", "masked") if kind in name), "alone")].ended()
    assert ran[name].ended().losses == pytest.approx(expected.losses, abs=TOLERANCE, rel=0)
    assert ran[name].norms == pytest.approx(expected.norms, rel=1e-4)


@pytest.mark.parametrize("name", ["alone", "tied", "masked"])
def test_both_versions_train_the_same(runs: dict[str, dict[str, Ran]], name: str) -> None:
    """Left to itself, 0.19.2 weighs these losses by 64 / 63 more for the layer of `alone`."""
    old, new = (runs[version][name].ended() for version in VERSIONS)
    assert new.losses == pytest.approx(old.losses, abs=TOLERANCE / 10, rel=0)
    assert new.norms == pytest.approx(old.norms, rel=1e-5)


def test_the_loss_is_that_of_the_next_token_and_the_model_learns_from_both(ran: dict[str, Ran]) -> None:
    alone, without = ran["alone"].ended(), ran["without"].ended()
    assert alone.losses[1] == without.losses[1]
    assert alone.norms[1] > without.norms[1]
    assert alone.losses[10] != without.losses[10]


def test_a_run_continues_bit_by_bit(ran: dict[str, Ran]) -> None:
    assert ran["again"].ended().losses == {step: loss for step, loss in ran["alone"].ended().losses.items() if step > 5}


def test_they_cannot_move_to_an_engine_without(ran: dict[str, Ran], tmp_path: Path) -> None:
    saved = Path(ran["alone"].of("checkpoint_saved")[-1]["path"])
    with pytest.raises(CheckpointError, match=r"mtp\.layers\.0.* no place in another engine"):
        MegatronBackend().export_state(saved, tmp_path, lambda done, total: None)
    assert not list(tmp_path.iterdir())


COUNT = """
import sys
from pathlib import Path
from primus.backends.base import Session
from primus.backends.megatron import patches
from primus.plan.plan import Plan

patches.apply(patches.for_device("cpu"))
from primus.backends.megatron import model as models
from primus.backends.megatron.platform import Platform, disconnect

for file in sys.argv[1:]:
    plan = Plan.load(Path(file))
    run = Path(plan.run_directory)
    session = Session(0, 0, 1, run, run, 1, lambda event: None, lambda: False)
    platform = Platform.of(plan, session)
    platform.connect(plan, 60)
    chunks = models.build(plan, models.transformer_config(plan), platform.device)
    print("built", sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters()))
    disconnect()
"""
SIZES: dict[str, dict[str, Any]] = {
    "one": OPTIONS,
    "two": AHEAD,
    "tied": TIED,
    "none": {key: value for key, value in OPTIONS.items() if "mtp" not in key},
    "like a dense one": OPTIONS | {"model": DEEPSEEK_V3 | {"first_k_dense_replace": 2, "q_lora_rank": 24}},
}


@pytest.mark.parametrize("version", VERSIONS)
def test_parameters_are_those_of_the_built_model(version: str, tmp_path: Path) -> None:
    plans = [make(tmp_path / name.replace(" ", "-"), "synthetic", **options) for name, options in SIZES.items()]
    files = [Path(plan.run_directory) / "plan.json" for plan in plans]
    for plan, file in zip(plans, files, strict=True):
        file.write_text(plan.to_json(), encoding="utf-8")
    overlay = megatron_next.overlay() if version == megatron_next.VERSION else None
    # it is alone: no other process looks for this port
    variables = {**os.environ, **environment(0, 1, overlay=overlay), "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-c", COUNT, *map(str, files)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    built = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("built")]
    counted = [plan.parameters for plan in plans]
    assert dict(zip(SIZES, counted, strict=True)) == dict(zip(SIZES, built, strict=True))


def test_operations_are_those_of_its_matrices_and_its_attention(tmp_path: Path) -> None:
    """Qwen3, by hand: attention, feed-forward, norms, the joining matrix, and the output projection once more."""
    plan = make(tmp_path / "run", "synthetic", **TIED)
    attention = 2 * 64 * 4 * 32 + 2 * 64 * 2 * 32 + 2 * 32
    parameters = attention + 3 * 64 * 176 + 2 * 64 + 2 * 64 * 64 + 3 * 64
    assert prediction_size(plan.experiment) == (
        parameters,
        6 * (parameters + 256 * 64) + 6 * 4 * (32 + 32) * 64,
    )
    assert plan.flops_per_token == flops_per_token(plan.experiment.model, 64) + prediction_size(plan.experiment)[1]
