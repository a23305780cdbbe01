"""The router's auxiliary losses: the same weight in every layout and version, whatever targets are masked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import megatron_next
import pytest
from gang import Case, Ran, run_gang
from megatron_plans import own
from tiny import DEEPSEEK_V3, make, make_dataset

VERSIONS = ("0.16.1", megatron_next.VERSION)
BASE: dict[str, Any] = {"backend": "megatron", "model": DEEPSEEK_V3, "optimizer__lr": 2e-3, "train__steps": 5}
BALANCED = BASE | {"moe__balance": "aux_loss"}
KIND = "transformer__moe_router_load_balancing_type"
LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "aux": (BALANCED | {"moe__aux_loss_coeff": 1.0}, {}),
    "sequence": (BALANCED | {"moe__aux_loss_coeff": 1.0}, {KIND: "seq_aux_loss"}),
    "global": (BALANCED | {"moe__aux_loss_coeff": 1.0}, {KIND: "global_aux_loss"}),
    "z": (BASE | {"moe__balance": "none"}, {"transformer__moe_z_loss_coeff": 0.1}),
}
"""Experiment and native keys. The coefficients are large, so that a wrong weight shows."""
LAYOUTS = ("parallel__tensor", "parallel__context", "parallel__data_shard", "parallel__pipeline")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Ran]]:
    return {version: _run(version, tmp_path_factory.mktemp("balance")) for version in VERSIONS}


def _run(version: str, root: Path) -> dict[str, Ran]:
    overlay = megatron_next.overlay() if version == megatron_next.VERSION else None
    dataset = make_dataset(root / "data" / "chain", documents=20_000)  # one target in ten ends a document
    one: list[Case] = []
    two: list[Case] = []
    for loss, (settings, keys) in LOSSES.items():
        options = settings | own(**keys)
        one.append(_case(root, dataset, loss, options))
        two += [_case(root, dataset, f"{loss}-{axis}", options | {axis: 2}, nproc=2) for axis in LAYOUTS]
        if loss in ("sequence", "z"):  # of the others a microbatch is a part of the definition
            one.append(_case(root, dataset, f"{loss}-small", options | {"train__micro_batch_size": 2}))
        if loss == "global":  # it looks at all ranks and at the microbatches so far
            one.append(_case(root, dataset, "global-large", options | {"train__micro_batch_size": 8}))
        still = options | {"optimizer__lr": 1e-12, "train__steps": 3} | _alone(loss)
        one += [_case(root, dataset, f"{loss}-{name}", still, masked=name == "masked") for name in ("whole", "masked")]
    return run_gang(one, 1, root / "one", overlay=overlay) | run_gang(two, 2, root / "two", overlay=overlay)


def _alone(loss: str) -> dict[str, Any]:
    """A coefficient beside which the main loss has no gradient to speak of."""
    return own(transformer__moe_z_loss_coeff=1e5) if loss == "z" else {"moe__aux_loss_coeff": 1e6}


def _case(root: Path, dataset: Path, name: str, options: dict[str, Any], **rest: Any) -> Case:
    return Case(name, make(root / name, dataset, **options, **rest))


@pytest.fixture(params=VERSIONS)
def ran(request: pytest.FixtureRequest, runs: dict[str, dict[str, Ran]]) -> dict[str, Ran]:
    return runs[request.param]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_is_the_same_in_every_layout(ran: dict[str, Ran], loss: str, layout: str) -> None:
    same = "global-large" if (loss, layout) == ("global", "parallel__data_shard") else loss
    one, two = ran[same].ended(), ran[f"{loss}-{layout}"].ended()
    assert two.norms == pytest.approx(one.norms, rel=2e-4)
    assert two.losses == pytest.approx(one.losses, abs=1e-5, rel=0)


@pytest.mark.parametrize("loss", ["sequence", "z"])
def test_a_mean_of_sequences_or_tokens_knows_no_microbatches(ran: dict[str, Ran], loss: str) -> None:
    assert ran[f"{loss}-small"].ended().norms == pytest.approx(ran[loss].ended().norms, rel=2e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_masked_targets_do_not_change_its_weight(ran: dict[str, Ran], loss: str) -> None:
    whole, masked = ran[f"{loss}-whole"].ended(), ran[f"{loss}-masked"].ended()
    assert masked.losses[1] != whole.losses[1]
    assert masked.norms == pytest.approx(whole.norms, rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_both_versions_train_the_same(runs: dict[str, dict[str, Ran]], loss: str) -> None:
    old, new = (runs[version][loss].ended() for version in VERSIONS)
    assert new.norms == pytest.approx(old.norms, rel=1e-5)
    assert new.losses == pytest.approx(old.losses, abs=1e-6, rel=0)
