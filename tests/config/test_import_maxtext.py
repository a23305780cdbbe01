"""MaxText's files and arguments become ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from imported import accepted, fate, reason, schema

from primus.config.importing import assumed_maxtext, names
from primus.config.importing.convert import Import, convert
from primus.config.importing.model_maxtext import architecture
from primus.errors import ConfigError
from primus.plan.planner import make_plan
from primus.runtime.environments import provide

SCRIPT = """\
#!/bin/bash
export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true
  --xla_gpu_graph_level=0"
export M_ADAM_B2=0.98
BS=${BS:-3}
steps=7
ARGS=(
  ici_tensor_parallelism=2 learning_rate=2e-4  # more
  mlp_activations=['silu','linear']
)
MORE="hardware=gpu gradient_accumulation_steps=4"
python3 -m maxtext.trainers.pre_train.$KIND $PWD/configs/base.yml model_name=llama3.1-8b \\
    per_device_batch_size=$BS steps=1000 max_target_length=2048 "${ARGS[@]}" $MORE dataset_type=grain \\
    grain_file_type=mmap grain_train_files='data/web,3;data/code,1' max_num_checkpoints_to_keep=None stepps=4 > log
"""


@pytest.fixture
def plain(write: Callable[..., str]) -> Callable[..., Import]:
    """``plain(text, name)``: MaxText's own file, for eight devices a node."""

    def _plain(text: str, name: str = "mine.yml", **environment: str) -> Import:
        return convert(Path(write(text, name)), environment, schema, "H100")

    return _plain


def test_an_experiment_of_the_reference_system(maxtext: Callable[..., Import]) -> None:
    result = maxtext(
        "base_output_directory: ./output",
        'profiler: ""',
        "enable_checkpointing: false",
        "async_checkpointing: false",
        "ici_fsdp_parallelism: 8",
        "ici_data_parallelism: 1",
        "ici_tensor_sequence_parallelism: -1",
        "remat_policy: minimal_flash",
        "attention: cudnn_flash_te",
        "shardy: false",
        "kv_quant_dtype: int8",
    )
    experiment = accepted(result).experiment
    assert (experiment.name, experiment.backend, experiment.hardware.name) == ("mine", "maxtext", "MI300X")
    train, optimizer = experiment.train, experiment.optimizer
    assert (train.steps, train.micro_batch_size, train.global_batch_size, train.seq_length) == (50, 4, 32, 4096)
    assert (optimizer.lr, optimizer.min_lr, optimizer.schedule.warmup_steps) == (3e-5, 3e-6, 5)
    assert (experiment.parallel.data_shard, experiment.parallel.tensor) == (8, 1)
    assert (experiment.recompute, experiment.native) == ("none", {"maxtext": {"remat_policy": "minimal_flash"}})
    assert experiment.checkpoint.interval is None
    assert fate(result, "async_checkpointing")[1] == "without effect there: enable_checkpointing is off"
    assert fate(result, "kv_quant_dtype")[1] == "always so here: the engine's default"
    assert "set parallel.data_replicate: N" in fate(result, "dcn_data_parallelism")[1]
    assert reason(result, "run_name") == "exp_name names the run"
    assert "documents end" in reason(result, "attention")
    assert reason(result, "shardy") == "the loop is Primus's own"
    assert any("bfloat16 there by its presets" in line for line in result.differences)


@pytest.mark.parametrize(
    ("lines", "key", "expected"),
    [
        (["remat_policy: full"], "recompute", "full"),
        (["remat_policy: minimal"], "recompute", "none"),
        (["remat_policy: save_qkv_proj"], "recompute", "selective"),
        ([], "recompute", "full"),
        (["quantization: nanoo_fp8", "dtype: bfloat16"], "precision", "fp8"),
        (["quantization: int8", "dtype: float32"], "precision", "fp32"),
        (["quantization: int8"], "native", {"maxtext": {"quantization": "int8"}}),
        (["dtype: float32"], "precision", "fp32"),
        (["learning_rate: 1e-3", "cosine_learning_rate_final_fraction: 0.2"], "optimizer.min_lr", 2e-4),
        (["learning_rate_schedule_steps: 200"], "optimizer.schedule.decay_steps", 200),
        (["learning_rate_schedule_steps: 200"], "optimizer.schedule.warmup_steps", 20),
        (["steps: -1", "learning_rate_schedule_steps: 70"], "train.steps", 70),
        (["lr_schedule_type: wsd", "wsd_decay_steps_fraction: 0.2"], "optimizer.schedule.stable_steps", 35),
        (["adam_b2: 0.98"], "optimizer.betas", (0.9, 0.98)),
        (["gradient_accumulation_steps: 3"], "train.global_batch_size", 96),
        (["ici_tensor_parallelism: 2", "ici_fsdp_parallelism: 4"], "train.micro_batch_size", 8),
        (["ici_context_parallelism: 4", "per_device_batch_size: 0.25"], "train.micro_batch_size", 1),
        (["ici_context_parallelism: 4", "per_device_batch_size: 0.25"], "train.global_batch_size", 2),
        (["dcn_data_parallelism: 4"], "train.global_batch_size", 128),
        (["dcn_data_parallelism: 4"], "parallel.data_replicate", 4),
        (["ici_data_parallelism: -1", "ici_fsdp_parallelism: 2"], "parallel.data_replicate", 4),
        (["dcn_fsdp_parallelism: -1"], "parallel.data_shard", "auto"),
        (["ici_fsdp_parallelism: 4", "ici_fsdp_transpose_parallelism: 2"], "parallel.data_shard", 8),
        (["ici_pipeline_parallelism: 4"], "train.micro_batch_size", 4),
        (["ici_pipeline_parallelism: 4", "num_pipeline_microbatches: 8"], "train.micro_batch_size", 2),
        (["ici_pipeline_parallelism: 4"], "parallel.virtual_pipeline", 8),
        (["profiler: xplane", "skip_first_n_steps_for_profiler: 3", "profiler_steps: 2"], "profile.steps", (4, 5)),
        (["enable_checkpointing: true"], "checkpoint.interval", 10000),
        (["enable_checkpointing: true", "max_num_checkpoints_to_keep: 3"], "checkpoint.keep", 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_conversions(maxtext: Callable[..., Import], lines: list[str], key: str, expected: Any) -> None:
    value: Any = accepted(maxtext(*lines)).experiment
    for part in key.split("."):
        value = getattr(value, part)
    assert value == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("capacity_factor: 1.25", "without effect there: the model has no experts"),
        ("weight_dtype: bfloat16", "moments and master weights are fp32"),
        ("mu_dtype: bfloat16", "moments and master weights are fp32"),
        ("quantization: int4", "precision is fp32, bf16 or fp8, or else int8"),
        ("opt_type: adam_pax", "AdamW"),
        ("attention: flesh", "must be one of dot_product, flash"),
        ("remat_policy: most", "must be one of custom, full"),
        ("dataset_type: c4_mlperf", "make a token dataset with `data prepare`"),
        ("ici_autoregressive_parallelism: 2", "no such axis here"),
        ("enable_rampup_batch_size: true", "the batch size is constant"),
        ("load_parameters_path: gs://x/items", "set model.init"),
        ("optimizer_memory_host_offload: true", "gradient's norm"),
        ("per_device_batch_size: 0.5", "no whole sequences"),
        ("scan_layers: false", "layers are scanned"),
        ("pure_nnx_decoder: false", "given this switch up"),
        ("learning_rat: 1", "did you mean learning_rate?"),
    ],
)
def test_what_is_not_carried_has_its_reason(maxtext: Callable[..., Import], line: str, expected: str) -> None:
    name = line.partition(":")[0]
    result = maxtext(line)
    found = [f"{item.reason} ({item.hint})" for item in result.left if item.setting.name == name]
    found += [item.note for item in result.carried if item.setting.name == name]
    assert expected in found[0]


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("llama3.3-70b", "llama3.3_70B"),
        ("deepseek2-16b", "deepseek_v2_lite"),
        ("llama3-405b", "llama3.1_405B"),
        ("qwen3-14b-base", "qwen3_14B"),
        ("gpt-oss-20b", "gpt_oss_20B"),
        ("gemma4-26b", None),
        ("kimi-k2-1t", None),
    ],
)
def test_names_of_maxtext_s_models(plain: Callable[..., Import], name: str, preset: str | None) -> None:
    result = plain(f"model_name: {name}\nsteps: 3\n")
    if preset:
        assert f"models/{preset}]" in result.text
    else:
        assert f"no preset of '{name}'" in reason(result, "model_name")
    assert any("llama3.3" in line for line in result.differences) is (name == "llama3.3-70b")


def test_presets_are_the_models_that_maxtext_knows_by_these_names() -> None:
    """In all dimensions, but for those that an imported file sets."""
    [configs] = Path(provide("jax")).parents[1].glob("lib/python3*/site-packages/maxtext/configs")
    base = yaml.safe_load((configs / "base.yml").read_text())
    same = {
        "hidden_size": "base_emb_dim",
        "num_hidden_layers": "base_num_decoder_layers",
        "num_attention_heads": "base_num_query_heads",
        "num_key_value_heads": "base_num_kv_heads",
        "head_dim": "head_dim",
        "vocab_size": "vocab_size",
        "rms_norm_eps": "normalization_layer_epsilon",
        "rope_theta": "rope_max_timescale",
        "num_experts": "num_experts",
        "moe_intermediate_size": "base_moe_mlp_dim",
        "n_shared_experts": "shared_experts",
        "kv_lora_rank": "kv_lora_rank",
    }
    compared = 0
    for path in sorted((configs / "models").glob("*.yml")):
        form = path.stem.replace("-", "_")
        if names.model(path.stem).preset is None:
            continue
        theirs = base | yaml.safe_load(path.read_text())
        ours = architecture(path.stem)
        set_ = {key.removeprefix("model."): value for key, value in assumed_maxtext.MODELS.get(form, {}).items()}
        for key, name in same.items():
            if key in ours:
                assert float(set_.get(key, ours[key])) == float(theirs[name]), (path.stem, key)
        compared += 1
    assert compared > 25


def test_a_model_that_is_spelled_out(plain: Callable[..., Import]) -> None:
    result = plain(
        "decoder_block: mixtral\nbase_emb_dim: 256\nbase_num_query_heads: 4\nbase_num_kv_heads: 2\nhead_dim: 64\n"
        "base_mlp_dim: 512\nglobal_parameter_scale: 4\nnum_experts: 8\nnum_experts_per_tok: 2\nbase_moe_mlp_dim: 512\n"
        "rope_type: llama3.1\nper_device_batch_size: 1\nuse_qk_norm: true\nload_balance_loss_weight: 0.02\nsteps: 9\n"
    )
    model = accepted(result).experiment.model
    assert (model.model_type, model.hidden_size, model.num_attention_heads, model.intermediate_size) == (
        *("mixtral", 512, 8, 1024),
    )
    assert (model.num_hidden_layers, model.vocab_size, model.max_position_embeddings) == (16, 32000, 2048)
    assert model.rope_scaling is not None
    assert model.rope_scaling.factor == 8.0
    assert accepted(result).experiment.moe.balance == "aux_loss"
    assert "model.model_type" in reason(result, "use_qk_norm")
    assert reason(result, "global_parameter_scale") == "the dimensions are carried, scaled"


TOLD: dict[str, Any] = {
    "steps": 40,
    "max_target_length": 512,
    "per_device_batch_size": 2,
    "gradient_accumulation_steps": 3,
    "ici_tensor_parallelism": 2,
    "ici_fsdp_parallelism": 4,
    "learning_rate": 2e-4,
    "adam_b1": 0.8,
    "adam_b2": 0.97,
    "adam_eps": 1e-7,
    "adam_weight_decay": 0.2,
    "gradient_clipping_threshold": 0.5,
    "init_weights_seed": 7,
    "dtype": "float32",
    "remat_policy": "save_qkv_proj",
    "base_emb_dim": 64,
    "base_num_query_heads": 4,
    "base_num_kv_heads": 2,
    "base_mlp_dim": 96,
    "base_num_decoder_layers": 3,
    "head_dim": 16,
    "vocab_size": 320,
    "rope_max_timescale": 50000,
    "decoder_block": "qwen3",
    "use_qk_norm": True,
    "num_vocab_tiling": 2,
    "dataset_type": "synthetic",
}


STAGES = {"ici_pipeline_parallelism": 2, "num_pipeline_repeats": 1, "num_layers_per_pipeline_stage": 2}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"ici_tensor_parallelism": 1, "ici_context_parallelism": 2},
        {"ici_fsdp_parallelism": 2, "ici_data_parallelism": 2},
        STAGES | {"ici_tensor_parallelism": 1, "base_num_decoder_layers": 4, "gradient_accumulation_steps": 1},
    ],
    ids=["tensor", "context", "data", "pipeline"],
)
def test_the_engine_is_told_what_the_file_said(
    plain: Callable[..., Import], tmp_path: Path, more: dict[str, int]
) -> None:
    told = TOLD | more
    plan = make_plan(accepted(plain(yaml.safe_dump(told))), nnodes=1, run_directory=tmp_path)
    assert plan.topology.world_size == 8
    assert {key: plan.native[key] for key in told} == told


def test_experts_are_an_axis_of_their_own(maxtext: Callable[..., Import], tmp_path: Path) -> None:
    lines = (
        "ici_fsdp_parallelism: 1",
        "ici_expert_parallelism: -1",
        "sparse_matmul: false",
        "per_device_batch_size: 1",
    )
    text = maxtext(*lines).input.path
    text.write_text(text.read_text().replace("llama2_7B", "mixtral_8x7B"))
    result = convert(text, {}, schema)
    parallel = accepted(result).experiment.parallel
    assert (parallel.expert, parallel.data_shard) == (8, 8)
    native = make_plan(accepted(result), nnodes=1, run_directory=tmp_path).native
    assert (native["ici_expert_parallelism"], native["ici_fsdp_parallelism"]) == (8, 1)
    assert accepted(result).experiment.moe.balance == "aux_loss", "its model preset says so"


def test_a_script(plain: Callable[..., Import]) -> None:
    result = plain(SCRIPT, "run.sh")
    experiment = accepted(result).experiment
    assert (experiment.name, experiment.backend, experiment.precision) == ("run", "maxtext", "bf16")
    assert experiment.model.hidden_size == 4096
    train = experiment.train
    assert (train.steps, train.micro_batch_size, train.global_batch_size) == (1000, 6, 96)
    assert (experiment.optimizer.betas, experiment.optimizer.lr) == ((0.9, 0.98), 2e-4)
    assert [(item.path, item.weight) for item in experiment.data.train] == [  # type: ignore[union-attr]
        *(("data/web", 3.0), ("data/code", 1.0)),
    ]
    assert experiment.data.document_attention == "within"
    assert experiment.env == {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=true --xla_gpu_graph_level=0"}
    assert experiment.native == {"maxtext": {"attention": "autoselected"}}
    assert {item.setting.name: item.setting.where for item in result.left} == {"stepps": "run.sh:14"}


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("steps=10 learning_rate=1e-3\n", "args.txt", 2),
        ("steps=10 learning_rate=1e-3\n", "args.yaml", 2),
        ("run_name=a\nsteps=10 \\\n  learning_rate=1e-3\n", "args", 3),
        ("python3 train.py configs/base.yml steps=10 learning_rate=1e-3 --seed 3\n", "line", 3),
        ("python3 train.py my/own.yml steps=10 run_name=$NOWHERE\n", "line", 3),
        ("steps: 10\nlearning_rate: 1e-3\nvocab_size: 100\n", "m.yml", 3),
        ("steps: 10\nmax_target_length: ${LENGTH:64}\n", "m.txt", 2),
    ],
)
def test_kinds(plain: Callable[..., Import], text: str, name: str, count: int) -> None:
    result = plain(text, name)
    assert result.input.framework == "maxtext"
    assert [len(result.input.settings), "steps: 10" in result.text] == [count, True]
    if "own.yml" in text:
        assert reason(result, "base_config").startswith("a file that this one starts from")
        assert [(item.target, item.value) for item in result.assumed] == [("name", "line"), ("backend", "maxtext")]
    if "LENGTH" in text:
        assert 'seq_length: "${LENGTH:64}"' in result.text


def test_without_hardware_the_batch_is_unknown(write: Callable[..., str]) -> None:
    result = convert(Path(write("steps: 3\nici_expert_parallelism: -1\nmodel_name: mixtral-8x7b\n")), {}, schema)
    assert "give --hardware NAME" in reason(result, "ici_expert_parallelism")
    assert any("global_batch_size" in item.message for item in result.missing)


@pytest.mark.parametrize(
    "text",
    [
        "steps: 1e999\nper_device_batch_size: .nan\nlearning_rate: tex\nwarmup_steps_fraction: [1]\nmodel_name: {a: b}",
        "steps: true\nper_device_batch_size: -3\nici_fsdp_parallelism: 0\nici_tensor_parallelism: many\n",
        "steps: 3\nglobal_parameter_scale: 3\nbase_emb_dim: wide\nprofiler: 3\nprofiler_steps: x\ndecoder_block: 7\n",
        "steps: 0\nnum_experts: -2\nlr_schedule_type: wsd\nwsd_decay_steps_fraction: 7\nrope_type: 1",
        "steps: 9223372036854775807\nper_device_batch_size: 1e308\ngradient_accumulation_steps: 1e308\n",
        "steps: [1, 2]\nmax_target_length: {a: 1}\ndtype: [float32]\nquantization: true\nremat_policy: null\n",
        "steps=\nlearning_rate='\n",
    ],
)
def test_nonsense_is_listed_and_never_a_traceback(plain: Callable[..., Import], text: str) -> None:
    try:
        result = plain(text)
    except ConfigError:
        return
    assert len(result.carried) + len(result.left) == len(result.input.settings)
