"""config.json of Hugging Face against transformers itself, in both of its spellings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from primus.config import families, huggingface
from primus.config.experiment import Model
from primus.errors import ConfigError

PRESETS = Path(huggingface.__file__).parents[1] / "presets" / "models"
FAMILIES = {
    "llama": "LlamaConfig",
    "qwen3": "Qwen3Config",
    "deepseek_v3": "DeepseekV3Config",
    "gpt_oss": "GptOssConfig",
    "qwen2": "Qwen2Config",
    "qwen3_moe": "Qwen3MoeConfig",
    "mixtral": "MixtralConfig",
    "llama4_text": "Llama4TextConfig",
    "deepseek_v2": "DeepseekV2Config",
}


def preset(name: str) -> Model:
    text = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    parent = text.get("extends")
    fields = preset(parent.removeprefix("models/")).model_dump(exclude_unset=True) if parent else {}
    return Model.model_validate({**fields, **text["model"]} if "model" in text else fields)


def names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def same_architecture(left: Model, right: Model) -> None:
    """Equal once what may be left to its default is filled in."""

    def filled(model: Model) -> dict[str, Any]:
        fields = model.model_dump(exclude={"init", "init_std"})
        fields["num_key_value_heads"] = model.num_key_value_heads or model.num_attention_heads
        if not families.latent_attention(model.model_type):
            fields["head_dim"] = model.head_dim or model.hidden_size // model.num_attention_heads
        elif (model.n_group or 1) == 1:
            fields |= {"n_group": 1, "topk_group": 1}
        fields["q_lora_rank"] = fields["q_lora_rank"] or 0
        return fields

    assert filled(left) == filled(right)


@pytest.mark.parametrize("name", names())
def test_a_preset_survives_the_way_out_and_back(name: str) -> None:
    model = preset(name)
    config = json.loads(json.dumps(huggingface.to_config(model)))
    same_architecture(Model.model_validate(huggingface.from_config(config)), model)


@pytest.mark.parametrize("name", [name for name in names() if "671B" not in name])
def test_transformers_reads_what_is_written_and_is_read_back(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = preset(name)
    (tmp_path / "config.json").write_text(json.dumps(huggingface.to_config(model)))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(theirs).__name__ == FAMILIES[model.model_type]
    assert theirs.rope_parameters["rope_theta"] == model.rope_theta
    assert theirs.rope_parameters["rope_type"] == (model.rope_scaling.rope_type if model.rope_scaling else "default")
    assert theirs.hidden_size == model.hidden_size
    theirs.save_pretrained(tmp_path / "again")
    back = huggingface.model_fields(str(tmp_path / "again"))
    if model.model_type == "deepseek_v3":  # transformers knows one score function and does not write it
        back["scoring_func"] = model.scoring_func
    same_architecture(Model.model_validate(back), model)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_the_model_class_is_accounted_for(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, FAMILIES[family])()
    known = {
        *families.COMMON,
        *families.FAMILIES[family].carried,
        *families.FAMILIES[family].fixed,
        *families.FAMILIES[family].aliases,
        *families.HARMLESS,
        *("rope_parameters", "rope_scaling", "rope_theta", "layer_types", "sliding_window"),
        *{"llama4_text": ("moe_layers", "no_rope_layers"), "deepseek_v2": ("topk_method",)}.get(family, ()),
    }
    derived = {"head_dim"} if families.latent_attention(family) else set()  # transformers sets it to qk_rope_head_dim
    assert set(config.to_dict()) - known - derived == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_other_names_of_a_key_are_those_of_the_model_class(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    ours = families.FAMILIES[family]
    both = {**ours.aliases, **{key: alias for alias, key in ours.aliases.items()}}
    for alias, key in getattr(transformers, FAMILIES[family]).attribute_map.items():
        if key in families.HARMLESS:
            continue
        assert both[alias] == key
    assert set(ours.aliases.values()) <= set(ours.carried)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_class_is_the_one_that_transformers_builds(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, FAMILIES[family])
    mapping = transformers.AutoModelForCausalLM._model_mapping
    assert families.FAMILIES[family].architecture == mapping[config].__name__


def test_every_family_is_a_model_type_of_the_schema() -> None:
    named = get_args(Model.model_fields["model_type"].annotation)
    assert set(families.FAMILIES) == set(FAMILIES) == set(named)
    assert all(field in Model.model_fields for family in families.FAMILIES.values() for field in family.fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_the_model_class(family: str) -> None:
    """A config.json that leaves keys out means what transformers makes of it."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, FAMILIES[family])()
    sizes = {key: getattr(config, key) for key in families.REQUIRED}
    terse = huggingface.from_config({"model_type": family, **sizes})
    full = huggingface.from_config(config.to_dict())
    same_architecture(Model.model_validate(terse), Model.model_validate(full))


LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"pretraining_tp": 2}, "pretraining_tp"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.2}}, "attention_factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "part of each head"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": "fp8"}, "the weights are stored as 'fp8'"),
        ({"rope_scaling": "x"}, "rope_scaling must be a map, but is 'x'"),
        ({"rope_parameters": 5}, "rope_parameters must be a map, but is 5"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_parameters.rope_type must be a single value"),
        ({"head_dim": "\ud800"}, "head_dim must be a single value"),
        ({"rope_theta": {"a": 1}}, "rope_theta must be a single value"),
        ({"layer_types": 5}, "layer_types must be a list, but is 5"),
        ({"hidden_size": [[[[[[[[[[]]]]]]]]]]}, "hidden_size must be a single value"),
        ({"model_type": ["llama"]}, "model_type ['llama'] is not supported"),
        ({"model_type": "qwen3", "use_sliding_window": True}, "use_sliding_window"),
        ({"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"model_type": "gpt_oss", "layer_types": ["full_attention", "full_attention"]}, "layer_types"),
        ({"model_type": "gpt_oss", "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "truncate"),
        ({"model_type": "deepseek_v3", "rope_interleave": False}, "rope_interleave"),
        ({"model_type": "gemma2"}, "gemma2"),
        ({"model_type": None}, "model_type"),
        ({"hidden_size": None}, "hidden_size is missing"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        huggingface.from_config({**LLAMA, **change}, "somewhere/config.json")
    assert named in str(caught.value)
    assert all(problem.where == "somewhere/config.json" for problem in caught.value.problems)


def test_everything_wrong_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        huggingface.from_config({**LLAMA, "mlp_bias": True, "hidden_act": "relu", "vocab_size": None})
    assert len(caught.value.problems) == 3


def test_both_spellings_of_rotary_scaling_mean_the_same() -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_type": "llama3",
    }
    old = huggingface.from_config({**LLAMA, "rope_theta": 5e5, "rope_scaling": scaling})
    new = huggingface.from_config({**LLAMA, "rope_parameters": {**scaling, "rope_theta": 5e5}})
    older = huggingface.from_config(
        {
            **LLAMA,
            "rope_theta": 5e5,
            "rope_scaling": {"type": "llama3", **{k: v for k, v in scaling.items() if k != "rope_type"}},
        }
    )
    assert old == new == older
    assert Model.model_validate(old).rope_scaling is not None


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=12), st.integers() | st.text(max_size=5) | st.none(), max_size=5))
def test_keys_that_no_model_class_reads_change_nothing(extra: dict[str, Any]) -> None:
    unknown = {f"x_{key}": value for key, value in extra.items()}
    assert huggingface.from_config({**unknown, **LLAMA}) == huggingface.from_config(LLAMA)


def test_random_and_native_starts_have_no_fields() -> None:
    assert huggingface.model_fields("random") == {}
    assert huggingface.model_fields("native") == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '"llama"', "[" * 100_000])
def test_a_broken_config_names_the_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        huggingface.model_fields(str(tmp_path))


@pytest.mark.parametrize("name", ["~nosuch/x", "a\0b", "x" * 300, "./" + "x" * 5000])
def test_a_name_that_is_no_directory_is_a_problem(name: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no |cannot be read") as caught:
        huggingface.model_fields(name)
    assert [problem.where for problem in caught.value.problems] == ["model.init"]


def test_a_directory_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        huggingface.model_fields(str(tmp_path))


def test_a_hub_id_that_was_never_fetched_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIMUS_HOME", str(tmp_path))
    with pytest.raises(huggingface.NotFetched, match="org/name@v1") as caught:
        huggingface.model_fields("org/name@v1")
    assert caught.value.init == "org/name@v1"


def test_a_fetched_hub_id_is_read_from_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIMUS_HOME", str(tmp_path))
    commit = "0" * 40
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(huggingface.NotFetched):  # files that nobody noted as whole: a fetch that was broken off
        huggingface.model_fields("org/name")
    note = tmp_path / "hub" / "fetched" / "model--org--name" / "main"
    note.parent.mkdir(parents=True)
    note.write_text(commit)
    assert huggingface.model_fields("org/name")["hidden_size"] == 32
    assert huggingface.start_directory("org/name") == snapshot
