"""Whose layers: Megatron's own, or TransformerEngine's, which no machine of these tests has."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import make

from primus.backends.megatron import patches
from primus.errors import EnvironmentFault, PlanError

patches.apply(patches.for_device("cpu"))

GPU = {"name": "H100", "device": "cuda", "memory_gib": 80.0}


def test_a_cpu_cannot_have_transformer_engine(tmp_path: Path) -> None:
    key = "megatron__transformer__transformer_impl"
    with pytest.raises(PlanError, match=r"transformer_impl: TransformerEngine needs an accelerator"):
        make(tmp_path / "run", "synthetic", backend="megatron", **{key: "transformer_engine"})


@pytest.mark.parametrize(("wanted", "found"), [({}, "local"), ({"transformer_impl": "local"}, "local")])
def test_layers_are_megatrons_where_there_is_nothing_else(tmp_path: Path, wanted: dict[str, str], found: str) -> None:
    from primus.backends.megatron.model import _implementation

    options = {f"megatron__transformer__{name}": value for name, value in wanted.items()}
    assert _implementation(make(tmp_path / "run", "synthetic", backend="megatron", hardware=GPU, **options)) == found


def test_transformer_engine_is_asked_for_but_missing(tmp_path: Path) -> None:
    from primus.backends.megatron.model import _implementation

    options = {"megatron__transformer__transformer_impl": "transformer_engine"}
    plan = make(tmp_path / "run", "synthetic", backend="megatron", hardware=GPU, **options)
    with pytest.raises(EnvironmentFault, match="asked for, but it is not installed"):
        _implementation(plan)


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
        ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
        ("self_attention.linear_kv_up_proj.layer_norm_weight", "self_attention.kv_layernorm.weight"),
        ("mlp.experts.linear_fc1.weight3", "mlp.experts.local_experts.3.linear_fc1.weight"),
        ("self_attention.linear_proj.weight", "self_attention.linear_proj.weight"),
    ],
)
@pytest.mark.parametrize("layer", ["transformer_layer", "mtp_model_layer"])
def test_names_do_not_depend_on_whose_layers_they_are(name: str, whole: str, layer: str) -> None:
    from primus.backends.megatron.shards import _whole_name

    assert _whole_name(f"mtp.layers.0.{layer}.{name}", None) == f"mtp.layers.0.layer.{whole}"
