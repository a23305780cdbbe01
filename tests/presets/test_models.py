"""Every model preset against its exact parameter count, and the counting against the engines themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from primus.config.experiment import Experiment, Model
from primus.config.huggingface import to_config
from primus.config.load import load
from primus.config.presets import available
from primus.plan import model_size

PARAMETERS = {
    # from the published checkpoints (what their safetensors index sums up to, in elements)
    "llama2_7B": 6_738_415_616,
    "llama2_13B": 13_015_864_320,
    "llama2_70B": 68_976_648_192,
    "llama3_8B": 8_030_261_248,
    "llama3_70B": 70_553_706_496,
    "llama3.1_8B": 8_030_261_248,
    "llama3.1_70B": 70_553_706_496,
    "llama3.1_405B": 405_853_388_800,
    "llama3.2_1B": 1_235_814_400,
    "llama3.2_3B": 3_212_749_824,
    "llama3.3_70B": 70_553_706_496,
    "qwen3_0.6B": 596_049_920,
    "qwen3_1.7B": 1_720_574_976,
    "qwen3_4B": 4_022_468_096,
    "qwen3_8B": 8_190_735_360,
    "qwen3_14B": 14_768_307_200,
    "qwen3_32B": 32_762_123_264,
    "deepseek_v3_16B": 15_706_484_224,
    "deepseek_v3_671B": 671_026_404_352,
    "gpt_oss_20B": 20_914_757_184,
    "gpt_oss_120B": 116_829_156_672,
    # ours: counted by transformers, as all of these are below
    "tiny_llama": 1_787_008,
    "tiny_qwen3": 2_558_144,
    "tiny_deepseek_v3": 2_048_448,
    "tiny_gpt_oss": 2_837_168,
}
ACTIVE = {"deepseek_v3_671B": (37e9, 0.5e9), "gpt_oss_120B": (5.13e9, 0.01e9), "gpt_oss_20B": (3.61e9, 0.01e9)}
"""Active parameters without the embedding, as DeepSeek-V3's report and the GPT-OSS model card round them."""

FLAVOURS = {
    "llama3_8B": ("llama3", "8B"),
    "llama3.1_405B": ("llama3", "405B"),
    "qwen3_0.6B": ("qwen3", "0.6B"),
    "qwen3_32B": ("qwen3", "32B"),
    "deepseek_v3_16B": ("deepseek_v3", "16B"),
    "deepseek_v3_671B": ("deepseek_v3", "671B"),
    "gpt_oss_20B": ("gpt_oss", "20b"),
    "gpt_oss_120B": ("gpt_oss", "120b"),
}
"""Preset -> TorchTitan's model and flavour."""


def experiment(name: str, directory: Path, hardware: str = "cpu") -> Experiment:
    file = directory / "experiment.yaml"
    file.write_text(
        f"extends: [models/{name}, hardware/{hardware}]\nname: t\ndata: {{train: synthetic}}\n"
        "train: {steps: 1, global_batch_size: 1, seq_length: 128}\noptimizer: {lr: 0.1}\n"
    )
    return load(file).experiment


def preset(name: str, directory: Path) -> Model:
    return experiment(name, directory).model


def names() -> list[str]:
    return [name.removeprefix("models/") for name in available("models")]


def test_every_preset_has_its_count_here() -> None:
    assert set(names()) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name: str, tmp_path: Path) -> None:
    assert model_size.measure(preset(name, tmp_path)).total == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_count_in_the_presets_comment(name: str) -> None:
    text = (Path(model_size.__file__).parents[1] / "presets" / "models" / f"{name}.yaml").read_text()
    if not name.startswith("tiny"):
        assert f"{PARAMETERS[name]:,}" in text


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters(name: str, tmp_path: Path) -> None:
    published, rounding = ACTIVE[name]
    size = model_size.measure(preset(name, tmp_path))
    assert size.active - size.embedding == pytest.approx(published, abs=rounding)


@pytest.mark.parametrize("name", PARAMETERS)
def test_transformers_counts_the_same(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    (tmp_path / "config.json").write_text(json.dumps(to_config(preset(name, tmp_path))))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


@pytest.fixture(scope="module")
def titan() -> Any:
    """TorchTitan, mended so that it imports on a CPU."""
    pytest.importorskip("torchtitan")
    from primus.backends.torchtitan import patches

    patches.apply(patches.for_device("cpu"))
    from importlib import import_module

    return lambda model: import_module(f"torchtitan.models.{model}")


@pytest.mark.parametrize("name", FLAVOURS)
def test_torchtitan_counts_the_same(name: str, titan: Any, tmp_path: Path) -> None:
    """Its stock flavour on the meta device: parameters exactly, FLOPs exactly but for sliding windows."""
    import torch

    model, length = preset(name, tmp_path), 4096
    family, flavour = FLAVOURS[name]
    module = titan(family)
    keywords = {"moe_comm_backend": "standard"} if model.num_experts else {}
    config = getattr(module, f"{family.replace('_', '')}_configs")[flavour](
        attn_backend="varlen" if family == "gpt_oss" else "flex", **keywords
    )
    with torch.device("meta"):
        network = config.build()
    parameters, flops = config.get_nparams_and_flops(network, length)
    assert parameters == PARAMETERS[name]
    expected = model_size.flops_per_token(model.model_copy(update={"sliding_window": None}), length)
    assert flops == expected
    if model.sliding_window:
        windowed = model.num_hidden_layers / 2
        saved = 12 * model.num_attention_heads * (model.head_dim or 0) * windowed * (length - model.sliding_window)
        assert model_size.flops_per_token(model, length) == expected - saved


TINY = [name for name in PARAMETERS if name.startswith("tiny")]


@pytest.mark.parametrize("name", [*TINY, "llama3.2_1B", "deepseek_v3_16B", "gpt_oss_20B", "qwen3_4B"])
def test_the_model_that_trains_has_the_planned_count(name: str, titan: Any, tmp_path: Path) -> None:
    import torch

    from primus.backends.torchtitan.models import build_model_spec

    model = preset(name, tmp_path)
    spec = build_model_spec(model, seq_length=128)
    with torch.device("meta"):
        network = spec.model.build()
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


def test_flops_by_hand(tmp_path: Path) -> None:
    """Llama 2 7B: 6N + 12LHQT, as PaLM's appendix B writes it, with N without the embedding."""
    by_hand = 6 * (6_738_415_616 - 32000 * 4096) + 12 * 32 * 32 * 128 * 4096
    assert model_size.flops_per_token(preset("llama2_7B", tmp_path), 4096) == by_hand


def test_tied_embeddings_count_once_and_work_once(tmp_path: Path) -> None:
    tied = preset("tiny_qwen3", tmp_path)
    free = tied.model_copy(update={"tie_word_embeddings": False})
    table = tied.vocab_size * tied.hidden_size
    assert model_size.measure(free).total - model_size.measure(tied).total == table
    assert model_size.flops_per_token(free, 64) == model_size.flops_per_token(tied, 64)


def test_a_deepseek_without_experts_is_dense(tmp_path: Path) -> None:
    model = preset("tiny_deepseek_v3", tmp_path)
    dense = model.model_copy(update={"first_k_dense_replace": model.num_hidden_layers})
    size = model_size.measure(dense)
    assert size.total == size.active
    assert model_size.dense_layers(dense) == model.num_hidden_layers
