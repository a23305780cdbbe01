"""Models of any dimensions compute what transformers computes from the same weights."""

from pathlib import Path

import pytest
import torch
from families import MODELS, SEQ, saved, titan_logits, titan_model, tokens, transformers_model

from primus.backends.torchtitan.layout import weights
from primus.backends.torchtitan.models import build_model_spec, limits
from primus.backends.torchtitan.start import load_huggingface
from primus.config.experiment import Model, Moe
from primus.errors import PlanError

TOLERANCE = 1e-5
"""Measured: 2e-6 at most. The contract is 1e-4."""


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    model, twin, text = MODELS[name], transformers_model(MODELS[name]), tokens()
    built = titan_model(model)
    load_huggingface([built], model, saved(twin, tmp_path))
    with torch.no_grad():
        expected = twin(text).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(titan_logits(built, text), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["llama", "qwen3 tied", "llama4_text", "deepseek_v3 groups yarn", "gpt_oss"])
def test_attention_within_documents_is_each_document_alone(name: str, tmp_path: Path) -> None:
    model, twin, text = MODELS[name], transformers_model(MODELS[name]), tokens()
    built = titan_model(model, document_attention="within")
    load_huggingface([built], model, saved(twin, tmp_path))
    border = 50
    positions = torch.cat([torch.arange(border), torch.arange(SEQ - border)]).expand(2, -1)
    with torch.no_grad():
        alone = torch.cat([twin(text[:, :border]).logits, twin(text[:, border:]).logits], dim=1)
    torch.testing.assert_close(titan_logits(built, text, positions), alone, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["llama", "qwen3 yarn", "mixtral", "deepseek_v2 plain", "deepseek_v3 plain"])
def test_both_ways_of_full_attention_agree(name: str, tmp_path: Path) -> None:
    """Causal attention without a mask, and through the block mask that context parallelism needs."""
    model, text = MODELS[name], tokens()
    saved(transformers_model(model), tmp_path)
    logits = []
    for context, kind in ((1, "ScaledDotProductAttention"), (2, "MaskedAttention")):
        built = titan_model(model, context=context)
        assert type(built.layers["0"].attention.inner_attention).__name__ == kind
        load_huggingface([built], model, tmp_path)
        logits.append(titan_logits(built, text))
    torch.testing.assert_close(*logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "name", ["qwen3_moe", "llama4_text", "deepseek_v2 groups yarn", "deepseek_v3 plain", "gpt_oss"]
)
def test_gradients_flow_through_full_precision_experts(name: str, tmp_path: Path) -> None:
    """Same gradients as in transformers, for router, experts and their biases."""
    model, twin, text = MODELS[name], transformers_model(MODELS[name]), tokens(1)
    built = titan_model(model)
    load_huggingface([built], model, saved(twin, tmp_path))
    positions = torch.arange(SEQ).expand(1, -1)
    masked = model.model_type in ("gpt_oss", "llama4_text")
    masks = built.get_attention_masks(positions=positions) if masked else None
    for network, logits in ((built, built(text, positions, masks)), (twin, twin(text).logits)):
        torch.nn.functional.cross_entropy(logits[0, :-1], text[0, 1:]).backward()
        assert all(p.grad is not None for p in network.parameters())
    ours = torch.cat([p.grad.flatten() for p in built.parameters()]).norm()
    theirs = torch.cat([p.grad.flatten() for p in twin.parameters()]).norm()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_every_state_has_a_place_in_the_layout(name: str) -> None:
    """The layout names exactly the tensors of the module, and exactly those of its state dict, with their shapes."""
    model = MODELS[name]
    built = titan_model(model)
    state = {key: tuple(value.shape) for key, value in built.state_dict().items()}
    assert {w.native: w.shape for w in weights(model, fused=False)} == state
    fused = {w.native: w.shape for w in weights(model)}
    parameters = {key: tuple(p.shape) for key, p in built.named_parameters(remove_duplicate=False)}
    assert parameters.items() <= fused.items()
    assert all(key.endswith("expert_bias_E") for key in fused.keys() - parameters.keys())


REFUSED = {
    "model.num_experts": MODELS["llama"].model_copy(update={"num_experts": 4}),
    "model.rope_scaling.rope_type": MODELS["qwen3 tied"].model_copy(
        update={"rope_scaling": MODELS["llama llama3 tied"].rope_scaling}
    ),
    "model.sliding_window": MODELS["gpt_oss"].model_copy(update={"sliding_window": None}),
    "model.rope_scaling.mscale": MODELS["gpt_oss"].model_copy(
        update={"rope_scaling": MODELS["deepseek_v3 groups yarn"].rope_scaling}
    ),
    "model.n_shared_experts": MODELS["deepseek_v3 plain"].model_copy(update={"n_shared_experts": None}),
    "model.n_group": MODELS["deepseek_v3 plain"].model_copy(update={"n_group": 8, "topk_group": 4}),
    "model.tie_word_embeddings": MODELS["deepseek_v3 plain"].model_copy(update={"tie_word_embeddings": True}),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_cannot_be_built_is_refused_by_name(key: str) -> None:
    with pytest.raises(PlanError) as caught:
        build_model_spec(REFUSED[key], seq_length=SEQ)
    assert key in [problem.where for problem in caught.value.problems]


@pytest.mark.parametrize("name", ["llama4_text", "llama4_text llama3 tied"])
def test_chunks_that_hold_the_sequence_need_no_mask_of_their_own(name: str) -> None:
    built = titan_model(MODELS[name])
    masks = built.get_attention_masks(positions=torch.arange(SEQ).expand(2, -1))
    size = MODELS[name].attention_chunk_size or 0
    assert (masks["chunked_attention"] is masks["full_attention"]) is (size >= SEQ)


def test_layouts_and_balances_that_cannot_be_honoured() -> None:
    tied: Model = MODELS["llama llama3 tied"]
    assert [p.where for p in limits.problems(tied, pipeline=2)] == ["parallel.pipeline"]
    assert not limits.problems(tied)
    found = limits.problems(MODELS["gpt_oss"], moe=Moe(balance="aux_loss"))
    assert [p.where for p in found] == ["moe.balance"]


def test_balance_none_builds_no_router_bias() -> None:
    for balance, expected in (("bias", True), ("none", False)):
        spec = build_model_spec(MODELS["deepseek_v3 plain"], seq_length=SEQ, moe=Moe(balance=balance))
        names = [name for name, _ in spec.model.build().named_buffers()]
        assert any(name.endswith("expert_bias_E") for name in names) is expected
        assert (spec.post_optimizer_build_fn is not None) is expected


@pytest.mark.parametrize(
    "name", ["llama llama3 tied", "qwen2 yarn", "qwen3 yarn", "llama4_text", "deepseek_v3 groups yarn", "gpt_oss"]
)
def test_the_native_start_is_complete_and_shrinks_with_depth(name: str) -> None:
    model = MODELS[name].model_copy(update={"init": "native"})
    built = build_model_spec(model, seq_length=SEQ).model.build()
    for parameter in built.parameters():
        parameter.data.fill_(float("nan"))
    torch.manual_seed(0)
    built.init_states()
    assert all(parameter.isfinite().all() for parameter in built.parameters())
    first, last = (built.layers[layer].attention.wo.weight.std().item() for layer in ("0", "2"))
    assert first / last == pytest.approx(3**0.5, rel=0.1)
    assert first == pytest.approx(model.init_std / 2**0.5, rel=0.1)


@pytest.mark.parametrize("name", ["mixtral", "llama4_text llama3 tied", "deepseek_v3 plain", "gpt_oss"])
def test_only_fp32_keeps_experts_out_of_bf16(name: str) -> None:
    for precision, expected in (("fp32", True), ("bf16", False)):
        config = build_model_spec(MODELS[name], seq_length=SEQ, precision=precision).model
        kind = type(config.layers[-1].moe.routed_experts.inner_experts).__qualname__
        assert kind.startswith("FullPrecision") is expected
