"""Layers that predict tokens further ahead: the same training in every layout, with weights of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import megatron_next
import pytest
from gang import Case, Ran, run_gang
from tiny import DEEPSEEK_V3, QWEN3, make, make_dataset

from primus.backends.megatron import MegatronBackend
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
TWO: dict[str, dict[str, Any]] = {
    "tensor": OPTIONS | {"parallel__tensor": 2},
    "pipeline": OPTIONS | {"parallel__pipeline": 2},
    "shard": OPTIONS | {"parallel__data_shard": 2, "parallel__expert": 2},
    "tied-tensor": TIED | {"parallel__tensor": 2},
}


@pytest.fixture(scope="module", params=["0.16.1", megatron_next.VERSION])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    overlay = megatron_next.overlay() if request.param == megatron_next.VERSION else None
    root = tmp_path_factory.mktemp("prediction")
    dataset = make_dataset(root / "data" / "chain")
    without = {key: value for key, value in OPTIONS.items() if "mtp" not in key}
    one = {"alone": OPTIONS, "without": without, "tied": TIED, "resumed": OPTIONS | {"checkpoint__interval": 5}}
    cases = [Case(name, make(root / name, dataset, **options)) for name, options in one.items()]
    again = Case(
        "again",
        make(root / "again", dataset, **one["resumed"]),
        before=(
            ("copy", str(root / "again"), str(root / "resumed")),
            ("remove", str(root / "again/checkpoints/step-10")),
        ),
    )
    results = run_gang([*cases, again], 1, root / "one", overlay=overlay)
    cases = [Case(name, make(root / name, dataset, nproc=2, **options)) for name, options in TWO.items()]
    return results | run_gang(cases, 2, root / "two", overlay=overlay)


@pytest.mark.parametrize("name", TWO)
def test_losses_equal_those_of_one_process(ran: dict[str, Ran], name: str) -> None:
    expected = ran["tied" if "tied" in name else "alone"].ended()
    assert ran[name].ended().losses == pytest.approx(expected.losses, abs=TOLERANCE, rel=0)
    assert ran[name].norms == pytest.approx(expected.norms, rel=1e-4)


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
