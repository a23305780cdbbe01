"""Frequencies of rotary embeddings are those of transformers."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import DEEPSEEK_V3, LLAMA
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from primus.config.experiment import Model
from primus.numerics.rotary import frequencies

WINDOW = {"factor": 8.0, "original_max_position_embeddings": 64}
SCALINGS: dict[str, dict[str, Any]] = {
    "llama3": {"rope_type": "llama3", **WINDOW, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "llama3, one bound": {"rope_type": "llama3", **WINDOW, "low_freq_factor": 2.0, "high_freq_factor": 2.0001},
    "yarn": {"rope_type": "yarn", **WINDOW},
    "yarn, a window of one token": {"rope_type": "yarn", **WINDOW, "original_max_position_embeddings": 1},
    "yarn, DeepSeek's": {"rope_type": "yarn", **WINDOW, "mscale": 0.7, "mscale_all_dim": 0.9, "beta_fast": 24.0},
}


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("width", [16, 64, 128])
def test_scaled_frequencies_are_those_of_transformers(name: str, width: int) -> None:
    scaling = SCALINGS[name]
    config = LlamaConfig(
        hidden_size=width, num_attention_heads=1, head_dim=width, max_position_embeddings=512,
        rope_parameters={"rope_theta": 10000.0, **scaling},
    )  # fmt: skip
    expected, magnitude = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu")
    found, factor = frequencies(Model.model_validate(LLAMA | {"rope_scaling": scaling}), width)
    assert found == pytest.approx(expected.numpy(), rel=1e-6)
    assert factor == pytest.approx(magnitude, rel=1e-6)


def test_without_scaling_the_last_pair_turns_slowest() -> None:
    found, factor = frequencies(Model.model_validate(DEEPSEEK_V3), 16)
    assert factor == 1.0
    assert found[0] == 1.0
    assert found == pytest.approx([10000.0 ** (-pair / 8) for pair in range(8)], rel=1e-6)
