"""Experiments of the reference system become ours, and every key is accounted for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from imported import HEAD, MAXTEXT_FILE, MEGATRON_FILE, TITAN_FILE, accepted, fate, reason, schema

from primus.config.importing.convert import Import, convert
from primus.config.importing.rules import lookup
from primus.config.importing.table import ENVIRONMENT, LAUNCHING, TABLES
from primus.config.presets import available
from primus.errors import ConfigError

KEYS = [line.split() for line in (Path(__file__).parent / "import_keys.txt").read_text().splitlines()]
"""Every key of the reference system's example files."""


# every key has its row


@pytest.mark.parametrize(("backend", "key"), KEYS, ids=lambda word: word)
def test_every_key_of_the_reference_files_is_known(backend: str, key: str) -> None:
    engine = schema(backend)
    known = lookup(TABLES[backend], key) or ENVIRONMENT.get(key) or (key.isupper() and key)
    assert known or (engine and key in engine.keys.keys() | engine.omitted), f"{key} has no row"


def test_rows_name_keys_of_ours_that_exist() -> None:
    from primus.config.keys import keys

    for table in (*TABLES.values(), LAUNCHING):
        for name, rule in table.items():
            word = rule.text.partition(" ")[0].rstrip(":")
            if "." in word and rule.text == word and not word.startswith(("transformer.", "ddp.")):
                assert word in keys(), f"{name} -> {word}"


# megatron


def test_the_whole_of_a_megatron_file(megatron: Callable[..., Import]) -> None:
    result = megatron(
        "min_lr: 1.0e-6",
        "lr_warmup_iters: 2",
        "lr_decay_iters: null",
        "lr_decay_style: cosine",
        "adam_beta1: 0.9",
        "adam_beta2: 0.98",
        "weight_decay: 0.01",
        "clip_grad: 0.5",
        "tensor_model_parallel_size: 2",
        "init_method_std: 0.008",
        "norm_epsilon: 1.0e-6",
        "recompute_granularity: full",
        "eod_mask_loss: true",
        "save_interval: 20",
        "fp8: hybrid",
    )
    experiment = accepted(result).experiment
    assert (experiment.name, experiment.backend, experiment.hardware.name) == ("mine", "megatron", "MI300X")
    assert experiment.model.hidden_size == 4096
    assert (experiment.model.init_std, experiment.model.rms_norm_eps) == (0.008, 1e-6)
    assert experiment.optimizer.betas == (0.9, 0.98)
    assert (experiment.optimizer.clip_grad_norm, experiment.optimizer.weight_decay) == (0.5, 0.01)
    assert (experiment.optimizer.schedule.warmup_steps, experiment.optimizer.schedule.name) == (2, "cosine")
    assert (experiment.parallel.tensor, experiment.recompute, experiment.precision) == (2, "full", "fp8")
    assert (experiment.data.train, experiment.data.mask_eod) == ("synthetic", True)
    assert experiment.checkpoint.interval == 20
    assert result.left == []


@pytest.mark.parametrize(
    ("backend", "file"), [("megatron", MEGATRON_FILE), ("maxtext", MAXTEXT_FILE), ("torchtitan", "")]
)
def test_every_key_is_in_exactly_one_list(take: Callable[..., Import], backend: str, file: str) -> None:
    lines = [f"      {key}: 1\n" for engine, key in KEYS if engine == backend and f" {key}:" not in file]
    result = take(HEAD.replace("FRAMEWORK", backend) + file + "".join(lines))
    found = [item.setting.label for item in (*result.carried, *result.left)]
    assert len(found) == len(set(found)) == len(lines) + len(file.splitlines()) + 3
    assert not [item for item in result.left if item.reason.startswith("unknown")]


def test_a_reference_to_the_environment_stays_where_the_value_does(megatron: Callable[..., Import]) -> None:
    result = megatron("tensor_model_parallel_size: ${TP:2}", "adam_beta2: ${BETA:0.98}", TP="4")
    assert 'tensor: "${TP:2}"' in result.text
    assert 'name: "${RUN_NAME:mine}"' in result.text
    assert "${BETA:0.98} is this now" in result.text
    experiment = accepted(result, TP="8").experiment
    assert (experiment.parallel.tensor, experiment.optimizer.betas[1]) == (8, 0.98)


def test_a_variable_without_value_is_reported(megatron: Callable[..., Import]) -> None:
    assert "'NOWHERE' is not set" in reason(megatron("seed: ${NOWHERE}"), "seed")


@pytest.mark.parametrize(
    ("lines", "key", "expected"),
    [
        (["lr_decay_style: constant", "min_lr: 1e-6"], "optimizer.min_lr", 0.0),
        (
            ["lr_decay_style: WSD", "lr_warmup_iters: 5", "lr_wsd_decay_iters: 10"],
            "optimizer.schedule.stable_steps",
            35,
        ),
        (["lr_warmup_fraction: 0.1"], "optimizer.schedule.warmup_steps", 5),
        (["lr_decay_samples: 25600"], "optimizer.schedule.decay_steps", 100),
        (["profile: true", "profile_step_start: 6", "profile_step_end: 7"], "profile.steps", (7, 7)),
        (["profile: true", "profile_ranks: [0, 1]"], "profile.ranks", [0, 1]),
        (["recompute_granularity: full", "recompute_method: block", "recompute_num_layers: 0"], "recompute", "none"),
        (
            ["pipeline_model_parallel_size: 4", "num_virtual_stages_per_pipeline_rank: 2"],
            "parallel.virtual_pipeline",
            2,
        ),
        (["disable_tensorboard: true"], "monitor.tensorboard", False),
        (["async_save: false"], "checkpoint.async_", False),
        (["reset_position_ids: true", "reset_attention_mask: true"], "data.document_attention", "full"),
        (["bf16: true"], "precision", "bf16"),
        (["bf16: false"], "precision", "fp32"),
        (["distributed_timeout_minutes: 30"], "resilience.hang_timeout", "30m"),
        (["use_rope_scaling: true", "rope_scaling_factor: 32.0"], "model.rope_scaling.factor", 32.0),
        (["GPU_MAX_HW_QUEUES: 4"], "env", {"GPU_MAX_HW_QUEUES": "4"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_conversions(megatron: Callable[..., Import], lines: list[str], key: str, expected: Any) -> None:
    value: Any = accepted(megatron(*lines)).experiment
    for part in key.split("."):
        value = getattr(value, part)
    # synthetic tokens have no documents: the planner refuses `within` there, the loader does not
    assert value == ("within" if key == "data.document_attention" else expected)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ("data/web", "data/web"),
        ("[data/web]", "data/web"),
        ("0.3 data/web 0.7 data/code", [("data/web", 0.3), ("data/code", 0.7)]),
        ("[3, data/web, '1', data/code]", [("data/web", 3.0), ("data/code", 1.0)]),
        ("[data/web, data/code]", ["data/web", "data/code"]),
    ],
)
def test_data_paths(megatron: Callable[..., Import], paths: str, expected: Any) -> None:
    text = megatron(f"train_data_path: {paths}").text
    assert "train: synthetic" in text, "mock_data wins, as there"
    Path("x").mkdir()
    file = HEAD.replace("FRAMEWORK", "megatron") + MEGATRON_FILE.replace("mock_data: true", f"train_data_path: {paths}")
    Path("MI300X/real.yaml").write_text(file)
    train = accepted(convert(Path("MI300X/real.yaml"), {}, schema)).experiment.data.train
    assert [item if isinstance(item, str) else (item.path, item.weight) for item in train] == list(expected)


def test_a_split_becomes_the_held_out_fraction(take: Callable[..., Import]) -> None:
    needed = MEGATRON_FILE.replace("mock_data: true", "data_path: data/web")
    experiment = accepted(take(HEAD.replace("FRAMEWORK", "megatron") + needed + "      split: 949,50,1\n")).experiment
    assert (experiment.data.validation, experiment.eval.interval, experiment.eval.steps) == (0.05, 1000, 100)
    none = take(HEAD.replace("FRAMEWORK", "megatron") + needed + "      eval_iters: 0\n      split: 949,50,1\n")
    assert accepted(none).experiment.data.validation is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("enable_primus_turbo: true", "primus_turbo comes later"),
        ("use_turbo_something_new: true", "primus_turbo comes later"),
        ("wandb_project: x", "Weights & Biases"),
        ("stderr_sink_level: DEBUG", "logging only"),
        ("no_load_optim: true", "the whole state"),
        ("stage: sft", "fine-tuning comes later"),
        ("lora: {enabled: true}", "fine-tuning comes later"),
        ("fp4: e2m1", "fp4 is not here"),
        ("lr_decay_style: inverse-square-root", "no such schedule"),
        ("trian_iters: 5", "unknown key (did you mean train_iters?)"),
        ("micro_batch_sizes: 5", "unknown key (did you mean micro_batch_size?)"),
        ("num_experts: zero", "model.num_experts must be a whole number"),
        ("moe_aux_loss_coeff: 0.01", "has no meaning: the model has no experts"),
        ("lr_warmup_iters: 200", "leave nothing of train.steps, 50, for the decay"),
        ("RANK: 3", "a variable of the scripts around it"),
    ],
)
def test_what_is_not_carried_has_its_reason_and_place(
    megatron: Callable[..., Import], line: str, expected: str
) -> None:
    result = megatron(line)
    name = line.partition(":")[0]
    [left] = [item for item in result.left if item.setting.name.startswith(name)]
    assert expected in f"{left.reason} ({left.hint})"
    assert left.setting.where == "there.yaml:13"
    assert f"13: {name}" in result.text
    accepted(result)


def test_values_that_agree_count_as_carried(megatron: Callable[..., Import]) -> None:
    result = megatron("enable_primus_turbo: false", "swiglu: true", "load: null", "fp8: null", "optimizer: adam")
    assert fate(result, "enable_primus_turbo") == ((), "always so here: off")
    assert fate(result, "swiglu")[1].startswith("always so here")
    assert fate(result, "load") == ((), "without effect there: null")
    assert result.left == []


def test_two_keys_for_one_of_ours(megatron: Callable[..., Import]) -> None:
    agree = megatron("norm_epsilon: 1e-6", "layernorm_epsilon: 1e-6")
    assert agree.left == []
    assert "13, 14: norm_epsilon, layernorm_epsilon" in agree.text
    differ = megatron("norm_epsilon: 1e-6", "layernorm_epsilon: 1e-5")
    assert reason(differ, "norm_epsilon") == "line 14 sets model.rms_norm_eps otherwise, which counts"
    assert accepted(differ).experiment.model.rms_norm_eps == 1e-5


# torchtitan


def test_a_torchtitan_file(titan: Callable[..., Import]) -> None:
    result = titan(
        "optimizer: {name: AdamW, lr: 2.2e-4, eps: 1e-8}",
        "activation_checkpoint: {mode: full, selective_ac_option: op}",
        "parallelism: {data_parallel_shard_degree: -1, context_parallel_degree: 2, expert_tensor_parallel_degree: 1}",
        "metrics: {log_freq: 1, enable_wandb: false}",
        "checkpoint: {enable: false, interval: 500, async_mode: disabled}",
        "primus_turbo: {enable_primus_turbo: true}",
    )
    experiment = accepted(result).experiment
    assert (experiment.train.steps, experiment.train.micro_batch_size, experiment.train.global_batch_size) == (
        50,
        4,
        64,
    )
    assert (experiment.optimizer.lr, experiment.optimizer.betas) == (2.2e-4, (0.9, 0.95))
    assert experiment.optimizer.schedule.name == "linear", "TorchTitan's default"
    assert (experiment.recompute, experiment.parallel.context, experiment.parallel.data_shard) == ("full", 2, "auto")
    assert experiment.monitor.log_interval == 1
    assert experiment.checkpoint.interval is None
    assert fate(result, "checkpoint.interval") == ((), "without effect there: checkpoint.enable is not set")
    assert reason(result, "primus_turbo.enable_primus_turbo").endswith("comes later")


@pytest.mark.parametrize(
    ("scheduler", "name", "stable", "left"),
    [
        ("decay_type: cosine, min_lr_factor: 0.1", "cosine", None, 0),
        ("decay_type: linear, decay_ratio: 0.6", "wsd", 10, 0),
        ("decay_type: cosine, decay_ratio: 0.6", "cosine", None, 1),
        ("decay_type: linear, decay_ratio: 0.8", "linear", None, 0),
        ("decay_type: sqrt", "cosine", None, 1),
    ],
)
def test_torchtitan_schedules(
    titan: Callable[..., Import], scheduler: str, name: str, stable: int | None, left: int
) -> None:
    result = titan().input.path.read_text().replace("warmup_steps: 10", f"warmup_steps: 10, {scheduler}")
    Path("MI300X/schedule.yaml").write_text(result)
    found = convert(Path("MI300X/schedule.yaml"), {}, schema)
    schedule = accepted(found).experiment.optimizer.schedule
    assert (schedule.name, schedule.stable_steps, len(found.left)) == (name, stable, left)


def test_the_global_batch_follows_from_a_node(titan: Callable[..., Import]) -> None:
    titan("parallelism: {tensor_parallel_degree: 2}")
    text = Path("MI300X/there.yaml").read_text().replace(" global_batch_size: 64,", "")
    Path("MI300X/there.yaml").write_text(text)
    assert accepted(convert(Path("MI300X/there.yaml"), {}, schema)).experiment.train.global_batch_size == 16
    Path("here.yaml").write_text(text)
    found = convert(Path("here.yaml"), {}, schema)
    assert any("global_batch_size" in problem.message and "--hardware" in problem.remedy for problem in found.missing)
    assert accepted(convert(Path("here.yaml"), {}, schema, "MI300X")).experiment.train.global_batch_size == 16


# models


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("llama3.1_8B.yaml", "llama3.1_8B"),
        ("LLaMA2-7b", "llama2_7B"),
        ("${PRIMUS_MODEL:qwen3_8B}.yaml", "qwen3_8B"),
        ("deepseek_v3_671b.yaml", "deepseek_v3_671B"),
        ("${PRIMUS_MODEL:deepseek_v3}.yaml", "deepseek_v3_671B"),
        ("gpt_oss_20b-fp8.yaml", "gpt_oss_20B"),
        ("mixtral_8x7B_v0.1.yaml", "mixtral_8x7B"),
        ("mixtral_8x22B_v0.1.yaml", "mixtral_8x22B"),
        ("qwen2.5_7B.yaml", "qwen2.5_7B"),
        ("deepseek_v2_lite.yaml", "deepseek_v2_lite"),
        ("llama4_17Bx16E.yaml", "llama4_scout_17B_16E"),
        ("${PRIMUS_MODEL:llama4_17B128E}.yaml", "llama4_maverick_17B_128E"),
    ],
)
def test_model_names(take: Callable[..., Import], name: str, preset: str) -> None:
    if f"models/{preset}" not in available("models"):
        pytest.skip(f"models/{preset} is not there yet")
    text = (HEAD.replace("FRAMEWORK", "torchtitan") + TITAN_FILE).replace("llama2_7B.yaml", name)
    result = take(text)
    assert f"extends: [models/{preset}, hardware/MI300X]" in result.text
    assert accepted(result).experiment.precision == ("fp8" if "fp8" in name else "bf16")


def test_an_unknown_model_names_the_nearest(take: Callable[..., Import]) -> None:
    text = (HEAD.replace("FRAMEWORK", "megatron") + MEGATRON_FILE).replace("llama2_7B", "llama2_7")
    result = take(text)
    assert reason(result, "model") == "there is no preset of 'llama2_7.yaml' here (the nearest is models/llama2_7B)"
    assert any("model" in problem.message for problem in result.missing)


# the shape of the file


def test_anchors(take: Callable[..., Import]) -> None:
    text = "shared: &shared {lr: 3e-4, seed: 7}\nmore: &more 5\nodd: 1\n" + HEAD.replace("FRAMEWORK", "megatron")
    result = take(
        text + "      <<: *shared\n      save_interval: *more\n" + MEGATRON_FILE.replace("      lr: 1e-5\n", "")
    )
    experiment = accepted(result).experiment
    assert (experiment.optimizer.lr, experiment.train.seed, experiment.checkpoint.interval) == (3e-4, 7, 5)
    assert fate(result, "shared") == ((), "an anchor, used below")
    assert fate(result, "more") == ((), "an anchor, used below")
    assert reason(result, "odd") == "unknown key"


def test_other_modules_are_listed(take: Callable[..., Import]) -> None:
    text = HEAD.replace("FRAMEWORK", "megatron") + MEGATRON_FILE + "  sft_trainer:\n    overrides: {lr: 1}\n"
    assert reason(take(text), "sft_trainer.overrides.lr") == "another module: only pre_trainer is imported"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("# nothing\n", "nothing but comments"),
        (
            "modules:\n  pre_trainer: {framework: maxtxt}\n",
            "there.yaml:2:28: unknown framework 'maxtxt' (did you mean maxtext",
        ),
        ("modules:\n  pre_trainer: {framework: megatorn}\n", "did you mean megatron?"),
        ("modules:\n  pre_trainer: {model: x}\n", "names no framework"),
        ("modules:\n  post_trainer: {framework: megatron}\n", "only pre_trainer can be imported yet"),
        ("modules: 3\n", "there.yaml:1:1: modules must be a map"),
        ("modules:\n  pre_trainer: {framework: megatron, overrides: 3}\n", "overrides must be a map"),
        ("modules: {a: [1\n", "there.yaml:1:14: the list that begins here is not closed"),
        ("a: 1\na: 2\n", "there.yaml:2:1: 'a' is set twice"),
        ("- 1\n", "must hold `key: value` lines"),
        ("foo: 1\n", "nothing here is known"),
        ("extends: models/llama2_7B\n", "an experiment of this system already"),
        ("name: x\ntrain: {steps: 1}\n", "an experiment of this system already"),
        ("optimizer: {lr: 1}\n", "an experiment of this system already"),
    ],
)
def test_bad_input(take: Callable[..., Import], text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        take(text)
    assert expected in str(caught.value)


def test_secrets_are_not_shown(megatron: Callable[..., Import]) -> None:
    assert "hf_1234" not in megatron("hf_access_token: hf_1234").text


def test_text_from_outside_cannot_end_a_comment(megatron: Callable[..., Import]) -> None:
    result = megatron('"odd\\nkey": 1', 'lr_decay_style: "a\\nb: c"')
    accepted(result)
    assert all(line.startswith("#") for line in result.text.split("# Not carried")[1].splitlines()[1:])
