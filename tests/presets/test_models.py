"""Every model preset against its exact parameter count, and the counting against the engines themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from primus.config import layers, model_size
from primus.config.experiment import Experiment, Model
from primus.config.huggingface import to_config
from primus.config.load import load
from primus.config.presets import available

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
    "qwen2.5_0.5B": 494_032_768,
    "qwen2.5_1.5B": 1_543_714_304,
    "qwen2.5_3B": 3_085_938_688,
    "qwen2.5_7B": 7_615_616_512,
    "qwen2.5_14B": 14_770_033_664,
    "qwen2.5_32B": 32_763_876_352,
    "qwen2.5_72B": 72_706_203_648,
    "qwen3_30B_A3B": 30_532_122_624,
    "qwen3_235B_A22B": 235_093_634_560,
    "mixtral_8x7B": 46_702_792_704,
    "mixtral_8x22B": 140_620_634_112,
    "deepseek_v2": 235_741_434_880,
    "deepseek_v2_lite": 15_706_484_224,
    # likewise, less what sees: see test_llama4_without_its_eyes
    "llama4_scout_17B_16E": 107_769_861_120,
    "llama4_maverick_17B_128E": 400_711_848_960,
    # ours: counted by transformers, as all of these are below
    "tiny_llama": 1_787_008,
    "tiny_qwen3": 2_558_144,
    "tiny_deepseek_v3": 2_048_448,
    "tiny_gpt_oss": 2_837_168,
    "tiny_qwen2": 1_263_744,
    "tiny_qwen3_moe": 2_233_984,
    "tiny_mixtral": 2_823_296,
    "tiny_llama4": 2_329_728,
    "tiny_deepseek_v2": 2_122_176,
}
ACTIVE = {
    "deepseek_v3_671B": (37e9, 0.5e9),
    "gpt_oss_120B": (5.13e9, 0.01e9),
    "gpt_oss_20B": (3.61e9, 0.01e9),
    "deepseek_v2": (21e9, 0.5e9),
    "deepseek_v2_lite": (2.4e9, 0.1e9),
}
"""Active parameters without the embedding, as DeepSeek's reports and the GPT-OSS model card round them."""

ACTIVE_IN_ALL = {
    "mixtral_8x7B": (12.9e9, 0.05e9),
    "mixtral_8x22B": (39e9, 0.5e9),
    "llama4_scout_17B_16E": (17e9, 0.5e9),
    "llama4_maverick_17B_128E": (17e9, 0.5e9),
    "qwen3_30B_A3B": (3.3e9, 0.1e9),
    "qwen3_235B_A22B": (22e9, 0.5e9),
}
"""Active parameters with the embedding, as the papers of Mixtral and Qwen3 and Llama 4's model cards round them."""

SEEING = 871_932_416
"""Parameters of Llama 4's vision encoder, adapter and projector, which the published checkpoints hold as well."""

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


@pytest.mark.parametrize("name", ACTIVE_IN_ALL)
def test_active_parameters_with_the_embedding(name: str, tmp_path: Path) -> None:
    published, rounding = ACTIVE_IN_ALL[name]
    assert model_size.measure(preset(name, tmp_path)).active == pytest.approx(published, abs=rounding)


@pytest.mark.parametrize("name", PARAMETERS)
def test_transformers_counts_the_same(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    (tmp_path / "config.json").write_text(json.dumps(to_config(preset(name, tmp_path))))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]
    assert network.get_input_embeddings().weight.numel() == model_size.measure(preset(name, tmp_path)).embedding


def test_llama4_without_its_eyes() -> None:
    """The published checkpoints of Llama 4, less the transformers modules of their vision_config."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    vision = {
        "hidden_size": 1408,
        "image_size": 336,
        "intermediate_size": 5632,
        "num_attention_heads": 16,
        "num_hidden_layers": 34,
        "patch_size": 14,
        "projector_input_dim": 4096,
        "projector_output_dim": 4096,
        "vision_output_dim": 4096,
    }
    text = {"num_hidden_layers": 1, "num_local_experts": 1}
    config = transformers.Llama4Config(vision_config=vision, text_config=text)
    with torch.device("meta"):
        network = transformers.AutoModelForImageTextToText.from_config(config)
        reading = transformers.AutoModelForCausalLM.from_config(config.text_config)
    count = [sum(parameter.numel() for parameter in module.parameters()) for module in (network, reading)]
    assert count[0] - count[1] == SEEING
    assert PARAMETERS["llama4_scout_17B_16E"] + SEEING == 108_641_793_536
    assert PARAMETERS["llama4_maverick_17B_128E"] + SEEING == 401_583_781_376


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


TINY = ["tiny_llama", "tiny_qwen3", "tiny_deepseek_v3", "tiny_gpt_oss"]


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


def test_flops_of_chunks_by_hand(tmp_path: Path) -> None:
    """Llama 4: in three of four layers a token counts its chunk, which for the last of a sequence may be shorter."""
    model = preset("tiny_llama4", tmp_path)
    size = model_size.measure(model)
    per_key = 12 * model.num_attention_heads * (model.head_dim or 0)
    expected = 6 * (size.active - size.embedding) + per_key * (160 + 3 * (64 * 64 + 64 * 64 + 32 * 32) / 160)
    assert model_size.flops_per_token(model, 160) == pytest.approx(expected)
    short = 6 * (size.active - size.embedding) + per_key * 4 * 32
    assert model_size.flops_per_token(model, 32) == short


def test_flops_of_latent_attention_are_those_of_the_same_shape(tmp_path: Path) -> None:
    """DeepSeek-V2-Lite and the same shape on DeepSeek-V3: neither width nor count differs."""
    second, third = (preset(name, tmp_path) for name in ("deepseek_v2_lite", "deepseek_v3_16B"))
    assert model_size.flops_per_token(second, 4096) == model_size.flops_per_token(third, 4096)


@pytest.mark.parametrize("name", PARAMETERS)
def test_layers_are_counted_as_they_are_told_apart(name: str, tmp_path: Path) -> None:
    model = preset(name, tmp_path)
    every = range(model.num_hidden_layers)
    assert layers.dense_layers(model) == sum(not layers.has_experts(model, layer) for layer in every)
    assert layers.local_layers(model) == sum(layers.attention(model, layer) != "full_attention" for layer in every)


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
    assert layers.dense_layers(dense) == model.num_hidden_layers


PUBLISHED = {"deepseek_v2": 0.707, "deepseek_v2_lite": 0.707, "deepseek_v3_16B": 0.707, "deepseek_v3_671B": 1.0}
"""``mscale`` and ``mscale_all_dim`` of the published config.json of each. DeepSeek-V2.5, no preset, has 1.0."""

SCALES = {0.707: 0.1147213867929261, 1.0: 0.1352337788608801}
"""Either -> the scale of attention scores that implementations of these models write down:
``(0.1 * mscale_all_dim * ln(40) + 1) ** 2 / sqrt(192)``."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_deepseeks_rotary_scaling_is_the_published_one(name: str, tmp_path: Path) -> None:
    """In transformers, whose logits the engines' models have: the scores grow by `mscale_all_dim` whatever the
    dimension, and those of rotated dimensions by the square of its ratio to `mscale`, which is 1."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model, published = preset(name, tmp_path), PUBLISHED[name]
    scaling = model.rope_scaling
    assert scaling is not None
    assert (scaling.mscale, scaling.mscale_all_dim) == (published, published)
    (tmp_path / "config.json").write_text(json.dumps(to_config(model) | {"num_hidden_layers": 1}))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(config)
    assert network.model.layers[0].self_attn.scaling == pytest.approx(SCALES[published], rel=1e-12)
    assert network.model.rotary_emb.attention_scaling == 1.0
