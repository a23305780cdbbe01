"""The start of training: random weights equal in every layout, and Hugging Face weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from families import MODELS, saved, titan_model, transformers_model
from gang import environment, free_port
from safetensors.torch import load_file, save_file

from primus.backends.torchtitan.models import build_model_spec
from primus.backends.torchtitan.start import load_huggingface, random_start
from primus.errors import CheckpointError
from primus.numerics.init import normal


@pytest.fixture(scope="module")
def gang(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, dict[str, str]]]]:
    """What each of four ranks found, layout by layout."""
    output, port = tmp_path_factory.mktemp("layouts"), free_port()
    for name in {name for name, _ in layouts.LAYOUTS.values()}:
        saved(transformers_model(MODELS[name]), output / name, max_shard_size="50KB")
    variables = {**os.environ, **environment(0, layouts.WORLD)}
    variables["PYTHONPATH"] += f":{Path(layouts.__file__).parent}"
    command = [sys.executable, layouts.__file__, str(output), str(port)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((output / f"rank-{rank}.json").read_text()) for rank in range(layouts.WORLD)]


@pytest.mark.parametrize("kind", ["random", "huggingface"])
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_every_layout_starts_from_the_same_weights(
    layout: str, kind: str, gang: list[dict[str, dict[str, dict[str, str]]]]
) -> None:
    """Bit for bit, for FSDP, tensor, pipeline and expert parallelism and their mixtures."""
    for found in gang:
        compared = int(found[layout][kind].pop("compared"))
        assert compared >= 10
        assert not found[layout][kind]


@pytest.mark.parametrize(
    "name", ["llama", "llama wide heads yarn", "qwen3 yarn", "qwen3_moe", "deepseek_v3 groups yarn"]
)
def test_random_start_is_the_generator_under_hugging_face_names(name: str) -> None:
    """TorchTitan's own adapter, which shares no code with ours, turns the started model into Hugging Face tensors: they
    hold the generator's values in order."""
    model, seed = MODELS[name], 1234
    built = titan_model(model)
    random_start([built], model, seed)
    spec = build_model_spec(model, seq_length=128)
    tensors = spec.state_dict_adapter(spec.model, None).to_hf(built.state_dict())
    assert len(tensors) > 20
    for key, tensor in tensors.items():
        if tensor.ndim == 1:
            assert torch.equal(tensor, torch.full_like(tensor, 0.0 if key.endswith("bias") else 1.0)), key
        else:
            expected = np.float32(model.init_std) * normal(seed, key, 0, tensor.numel())
            assert np.array_equal(tensor.numpy().reshape(-1), expected), key


def test_gpt_oss_starts_with_the_generator_and_zero_biases() -> None:
    model = MODELS["gpt_oss"]
    built = titan_model(model)
    random_start([built], model, 3)
    first = built.layers["0"]
    experts = first.moe.routed_experts.inner_experts
    width, hidden = 2 * model.intermediate_size, model.hidden_size
    name = "model.layers.0.mlp.experts.gate_up_proj"
    expected = normal(3, name, 0, 8 * width * hidden).reshape(8, hidden, width).transpose(0, 2, 1)
    assert np.array_equal(experts.mlp1_weight_EGD.detach().numpy(), np.float32(model.init_std) * expected)
    for zero in (experts.mlp1_bias_EG, experts.mlp2_bias_ED, first.attention.sinks, first.moe.router.gate.bias):
        assert not zero.any()
    assert all(torch.isfinite(p).all() for p in built.parameters())


def test_paired_experts_start_with_the_generator() -> None:
    """Gate and up projections of Llama 4, side by side in one tensor there and row by row in turn here."""
    model = MODELS["llama4_text"]
    built = titan_model(model)
    random_start([built], model, 3)
    width, hidden = model.intermediate_size, model.hidden_size
    drawn = normal(3, "model.layers.1.feed_forward.experts.gate_up_proj", 0, 8 * hidden * 2 * width)
    there = (np.float32(model.init_std) * drawn).reshape(8, hidden, 2, width)
    here = built.layers["1"].moe.routed_experts.inner_experts.w13_EGD.detach().numpy()
    assert np.array_equal(here.reshape(8, width, 2, hidden), there.transpose(0, 3, 2, 1))
    assert all(torch.isfinite(p).all() for p in built.parameters())


def test_seeds_differ() -> None:
    model = MODELS["llama"]
    built = titan_model(model)
    random_start([built], model, 1)
    one = built.lm_head.weight.detach().clone()
    random_start([built], model, 2)
    assert abs(np.corrcoef(one.flatten(), built.lm_head.weight.detach().flatten())[0, 1]) < 0.1
    assert built.lm_head.weight.std().item() == pytest.approx(model.init_std, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_load_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    model = MODELS["llama"]
    twin = transformers_model(model).to(dtype)
    saved(twin, tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    built = titan_model(model)
    load_huggingface([built], model, tmp_path)
    assert torch.equal(built.lm_head.weight, twin.lm_head.weight.float())
    wo = built.layers["2"].attention.wo.weight
    assert torch.equal(wo, twin.model.layers[2].self_attn.o_proj.weight.float())


def spoilt(change: str, path: Path) -> None:
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
    elif change == "shape":
        tensors[name] = tensors[name].T.contiguous()
    elif change == "dtype":
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, path)
    if change == "truncated":
        path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "missing tensors: model.layers.1.mlp.up_proj.weight"),
        ("extra", "no place for: model.layers.0.self_attn.q_proj.bias"),
        ("shape", "model.layers.1.mlp.up_proj.weight is"),
        ("dtype", "stored as F8_E4M3"),
        ("truncated", "no whole safetensors file"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change: str, message: str, tmp_path: Path) -> None:
    """Before a single parameter is touched."""
    model = MODELS["llama"]
    saved(transformers_model(model), tmp_path)
    spoilt(change, tmp_path / "model.safetensors")
    built = titan_model(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_huggingface([built], model, tmp_path)
    assert str(tmp_path) in caught.value.problems[0].where
    assert all(p.isnan().all() for p in built.parameters())


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \*.safetensors"):
        load_huggingface([], MODELS["llama"], tmp_path)


def test_router_bias_is_not_dropped_silently(tmp_path: Path) -> None:
    from families import Moe

    model = MODELS["deepseek_v3 plain"]
    saved(transformers_model(model), tmp_path)
    with pytest.raises(CheckpointError, match="e_score_correction_bias holds a balancing bias"):
        load_huggingface([titan_model(model, moe=Moe(balance="none"))], model, tmp_path)
