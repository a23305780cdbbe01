"""Hugging Face directories that training starts from, through the layouts of both engines: what does not fit is said
all at once, before anything changes; of a model that also sees the language part is taken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from families import MODELS, saved, transformers_model
from safetensors.torch import load_file, save_file

from primus.backends.megatron import layout as megatron
from primus.backends.pytorch.shards import Shard
from primus.backends.pytorch.start import load_huggingface
from primus.backends.torchtitan import layout as torchtitan
from primus.checkpoints.weights import Weight
from primus.config import huggingface
from primus.config.experiment import Model
from primus.errors import CheckpointError

LAYOUTS = {"megatron": megatron.weights, "torchtitan": torchtitan.weights}
ENGINES = pytest.mark.parametrize("engine", LAYOUTS)


def empty(weights: list[Weight]) -> list[Shard]:
    """Every tensor whole and NaN."""
    return [
        Shard(
            weight.native,
            torch.full(weight.shape, float("nan")),
            weight.shape,
            [np.arange(size, dtype=np.int64) for size in weight.shape],
        )
        for weight in weights
    ]


def loaded(engine: str, model: Model, directory: Path) -> dict[str, torch.Tensor]:
    weights = LAYOUTS[engine](model)
    shards = empty(weights)
    load_huggingface(shards, weights, model, directory)
    return {shard.name: shard.local for shard in shards}


@ENGINES
@pytest.mark.parametrize("name", ["qwen2 tied", "qwen3_moe", "llama4_text", "deepseek_v2 groups yarn"])
def test_everything_that_does_not_fit_is_listed_at_once(engine: str, name: str, tmp_path: Path) -> None:
    model, layer = MODELS[name], "model.layers.1"
    path = saved(transformers_model(model), tmp_path) / "model.safetensors"
    tensors = load_file(path)
    out, up = (f"{layer}.self_attn.o_proj.weight", f"{layer}.post_attention_layernorm.weight")
    del tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.sinks"] = torch.zeros(4)
    tensors[out] = tensors[out][:, :-1].contiguous()
    tensors[up] = tensors[up].to(torch.int32)
    save_file(tensors, path)
    weights = LAYOUTS[engine](model)
    shards = empty(weights)
    with pytest.raises(CheckpointError) as caught:
        load_huggingface(shards, weights, model, tmp_path)
    said = [problem.message for problem in caught.value.problems]
    assert "missing tensors: model.norm.weight" in said
    assert "tensors that the model has no place for: model.layers.0.self_attn.sinks" in said
    assert any(message.startswith(f"{out} is ") for message in said)
    assert f"{up} is stored as I32" in said
    assert len(said) == 4
    assert all(shard.local.isnan().all() for shard in shards)


@ENGINES
def test_another_model_does_not_fill_the_screen(engine: str, tmp_path: Path) -> None:
    """Weights of a narrower model: each of some thirty tensors is wrong."""
    model = MODELS["llama"]
    saved(transformers_model(model.model_copy(update={"hidden_size": 32, "head_dim": 16})), tmp_path)
    with pytest.raises(CheckpointError) as caught:
        loaded(engine, model, tmp_path)
    said = [problem.message for problem in caught.value.problems]
    assert len(said) == 6
    assert said[-1] == "25 more tensors do not fit either"


def composite(directory: Path, model: Model) -> dict[str, torch.Tensor]:
    """Save a Llama 4 that also sees, around `model`; the tensors of its language part alone."""
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    sight = {
        **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
        **{"image_size": 28, "patch_size": 14, "vision_output_dim": 32},
        **{"projector_input_dim": 32, "projector_output_dim": 32},
    }
    torch.manual_seed(0)
    config = Llama4Config(text_config=huggingface.to_config(model), vision_config=sight)
    Llama4ForConditionalGeneration(config).save_pretrained(directory)
    tensors = load_file(directory / "model.safetensors")
    assert any(name.startswith("vision_model.") for name in tensors)
    assert "multi_modal_projector.linear_1.weight" in tensors
    prefix = "language_model."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@ENGINES
def test_the_language_part_of_a_llama_4_that_sees(engine: str, tmp_path: Path) -> None:
    model, whole, alone = MODELS["llama4_text"], tmp_path / "whole", tmp_path / "alone"
    text = composite(whole, model)
    alone.mkdir()
    save_file(text, alone / "model.safetensors")
    fields = huggingface.model_fields(str(whole))
    assert fields["model_type"] == "llama4_text"
    model = Model.model_validate(model.model_dump() | fields, strict=False)
    found, expected = (loaded(engine, model, directory) for directory in (whole, alone))
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@ENGINES
def test_only_what_belongs_to_sight_is_left_out(engine: str, tmp_path: Path) -> None:
    model = MODELS["llama4_text"]
    composite(tmp_path, model)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["language_model.model.layers.9.self_attn.q_proj.weight"] = torch.zeros(4, 4)
    tensors["audio_model.weight"] = torch.zeros(2)
    del tensors["language_model.model.norm.weight"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        loaded(engine, model, tmp_path)
    said = [problem.message for problem in caught.value.problems]
    assert "missing tensors: model.norm.weight" in said
    extra = "audio_model.weight, model.layers.9.self_attn.q_proj.weight"
    assert f"tensors that the model has no place for: {extra}" in said


def test_other_families_know_no_such_names(tmp_path: Path) -> None:
    """A prefix is part of a name wherever it has no meaning."""
    model = MODELS["llama"]
    path = saved(transformers_model(model), tmp_path) / "model.safetensors"
    save_file({f"language_model.{name}": tensor for name, tensor in load_file(path).items()}, path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    with pytest.raises(CheckpointError, match=r"missing tensors: lm_head\.weight"):
        loaded("torchtitan", model, tmp_path)
