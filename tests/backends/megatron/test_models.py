"""Megatron's models compute what transformers computes from the same weights, in both versions, and give them back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import megatron_next
import pytest
import torch
from families import MODELS, SEQ, saved, tokens, transformers_model
from megatron_models import Look, Seen, in_huggingface, look, look_at, of_transformers
from safetensors.torch import load_file

from primus.config.experiment import Model
from primus.runtime.exchange.exchanges import Exchanges
from primus.runtime.exchange.exporting import export_huggingface

TOLERANCE = 1e-5
"""Measured, in either version: logits 3e-6, gradients 6e-6 of the largest in a tensor. The contract is 1e-4."""
BORDER = 50
"""Where the second document begins."""


def _single(model: Model) -> Model:
    return model.model_copy(update={"num_experts_per_tok": 1})


FAMILIES: dict[str, Model] = {
    name: _single(model) if model.model_type == "llama4_text" else model
    for name, model in MODELS.items()
    if model.model_type != "gpt_oss"
}
DOCUMENTS = ("llama", "qwen3 yarn", "qwen3_moe", "deepseek_v3 groups yarn")
WITHIN = " in documents"
SPLITS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "tensor": (
        ("qwen2 tied", "qwen3_moe", "llama4_text", "deepseek_v2 plain", "deepseek_v3 groups yarn"),
        {"parallel__tensor": 2},
    ),
    "pipeline": (("qwen2 tied", "llama4_text", "deepseek_v2 groups yarn"), {"parallel__pipeline": 2}),
    "expert": (
        ("qwen3_moe", "llama4_text", "deepseek_v2 groups yarn"),
        {"parallel__data_shard": 2, "parallel__expert": 2},
    ),
    # the chunks of Llama 4's attention, 48, end within those of the ranks, 32
    "context": (
        ("qwen2 yarn", "llama4_text", "deepseek_v2 plain", f"llama{WITHIN}", f"deepseek_v3 groups yarn{WITHIN}"),
        {"parallel__context": 2},
    ),
}
"""Layout -> families that are cut so, and its keys."""


@dataclass(frozen=True)
class Expected:
    """What transformers makes of a model, of whole sequences or of each document by itself."""

    source: Path
    logits: torch.Tensor
    loss: float
    gradients: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Expected]:
    root, text = tmp_path_factory.mktemp("twins"), tokens()
    found = {}
    for name, model in FAMILIES.items():
        source = saved(transformers_model(model), root / name)
        for documents in (False, True) if name in DOCUMENTS else (False,):
            twin = transformers_model(model)
            parts = (text[:, :BORDER], text[:, BORDER:]) if documents else (text,)
            logits = torch.cat([twin(part).logits for part in parts], dim=1)
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten())
            key = name + WITHIN if documents else name
            gradients = of_transformers(twin, loss, root / f"{key} gradients")
            found[key] = Expected(source, logits.detach(), loss.item(), gradients)
    return found


@pytest.fixture(scope="module", params=["0.16.1", megatron_next.VERSION])
def seen(
    request: pytest.FixtureRequest, expected: dict[str, Expected], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Seen]:
    """Every family as it is, and cut in each way that is asked for."""
    root, text = tmp_path_factory.mktemp("megatron"), tokens()
    overlay = megatron_next.overlay() if request.param == megatron_next.VERSION else None
    restart = torch.cat([torch.arange(BORDER), torch.arange(SEQ - BORDER)]).expand(2, -1)

    def one(name: str, nproc: int = 1, split: str = "", **options: Any) -> Look:
        title, at = f"{name} {split}".strip(), restart if name.endswith(WITHIN) else None
        source = expected[name].source
        return look(title, root / title.replace(" ", "-"), source, text, nproc=nproc, positions=at, **options)

    alone = [one(name) for name in expected]
    pairs = [one(name, 2, split, **options) for split, (names, options) in SPLITS.items() for name in names]
    return look_at(alone, 1, root / "one", overlay) | look_at(pairs, 2, root / "two", overlay)


EVERY = (*FAMILIES, *(f"{name}{WITHIN}" for name in DOCUMENTS))
CUT = tuple((name, split) for split, (names, _) in SPLITS.items() for name in names)


@pytest.mark.parametrize("name", EVERY)
def test_logits_equal_those_of_transformers(name: str, expected: dict[str, Expected], seen: dict[str, Seen]) -> None:
    """Of whole sequences, and of documents each by itself."""
    assert expected[name].logits.std() > 0.1
    torch.testing.assert_close(seen[name].logits, expected[name].logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "split"), [*((name, "") for name in EVERY), *CUT])
def test_loss_and_every_gradient_are_those_of_transformers(
    name: str, split: str, expected: dict[str, Expected], seen: dict[str, Seen]
) -> None:
    """Whatever the cut; of every tensor that transformers trains."""
    there, here = expected[name], seen[f"{name} {split}".strip()]
    assert here.loss == pytest.approx(there.loss, abs=TOLERANCE)
    gradients = in_huggingface(here.gradients, FAMILIES[name.removesuffix(WITHIN)])
    assert gradients.keys() == {key for key in there.gradients if not key.endswith("_correction_bias")}
    for key, gradient in gradients.items():
        wanted = there.gradients[key]
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=TOLERANCE * float(wanted.abs().max()), msg=key)
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
    assert here.norm == pytest.approx(norm, rel=TOLERANCE)
    if here.logits is not None:
        torch.testing.assert_close(here.logits, there.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_exports_what_the_engine_has(
    name: str, expected: dict[str, Expected], seen: dict[str, Seen], exchanges: Exchanges, tmp_path: Path
) -> None:
    """Bit by bit the tensors that training started from; which transformers loads whole and computes the same with."""
    from transformers import AutoModelForCausalLM

    output = tmp_path / "exported"
    export_huggingface(exchanges, seen[name].checkpoint, output, progress=lambda done, total: None)
    stored, original = (load_file(place / "model.safetensors") for place in (output, expected[name].source))
    assert stored.keys() == original.keys()
    assert all(torch.equal(stored[key], original[key]) for key in stored)
    twin, loading = AutoModelForCausalLM.from_pretrained(output, attn_implementation="eager", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        torch.testing.assert_close(twin(tokens()).logits, seen[name].logits, rtol=0, atol=TOLERANCE)
