"""Layers, origins, interpolation and overrides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from primus.config import presets
from primus.config.load import Resolved, load
from primus.errors import ConfigError, Problem

Resolve = Callable[..., Resolved]
Problems = Callable[..., tuple[Problem, ...]]
OneProblem = Callable[..., Problem]
Write = Callable[..., str]


@pytest.fixture
def own_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A presets directory with two models, two machines and a recipe."""
    root = tmp_path / "presets"
    for name, text in {
        "models/small": "model: {model_type: llama, vocab_size: 256, hidden_size: 64, num_hidden_layers: 2, "
        "num_attention_heads: 4, intermediate_size: 128, max_position_embeddings: 512}\n",
        "models/long": "extends: models/small\nmodel: {max_position_embeddings: 4096, rope_theta: 5e5}\n",
        "models/other": "model: {model_type: qwen3, vocab_size: 512, hidden_size: 32, num_hidden_layers: 1, "
        "num_attention_heads: 2, intermediate_size: 64, max_position_embeddings: 128}\n",
        "hardware/cpu": "hardware: {name: cpu, device: cpu, memory_gib: 8}\n",
        "hardware/GPU1": "hardware: {name: GPU1, device: rocm, devices_per_node: 8}\n",
        "recipes/base": "optimizer: {lr: 1e-3, weight_decay: 0.2}\ntrain: {seed: 5}\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(presets, "root", lambda: root)
    return root


BARE = "name: q\ndata: {train: stdlib}\ntrain: {steps: 100, global_batch_size: 8, seq_length: 128}\n"


def test_a_whole_experiment(resolve: Resolve, minimal: str) -> None:
    found = resolve()
    assert found.experiment.optimizer.lr == 1e-3
    assert found.experiment.optimizer.betas == (0.9, 0.95)
    assert str(found.origins["optimizer.lr"]) == "e.yaml:13"
    assert str(found.origins["optimizer.betas"]) == "default"
    assert str(found.origins["hardware.device"]) == "e.yaml:2"
    assert found.path == Path("e.yaml")
    assert found.text == minimal


def test_lists_become_tuples_and_integers_floats(resolve: Resolve) -> None:
    found = resolve(
        "profile: {steps: [10, 12], ranks: [0, 3]}\n", "optimizer.betas=[0, 0.5]", "optimizer.lr=1"
    ).experiment
    assert found.profile is not None
    assert found.profile.steps == (10, 12)
    assert found.optimizer.betas == (0.0, 0.5)
    assert type(found.optimizer.lr) is float


def test_async_is_called_async(resolve: Resolve) -> None:
    found = resolve("checkpoint: {async: false}\n")
    assert found.experiment.checkpoint.async_ is False
    assert str(found.origins["checkpoint.async"]) == "e.yaml:14"
    assert resolve("", "checkpoint.async=false").experiment.checkpoint.async_ is False


def test_layers_win_in_order(write: Write, own_presets: Path) -> None:
    name = write(BARE + "extends: [models/long, hardware/cpu, recipes/base]\noptimizer: {lr: 2e-3}\n")
    found = load(name, ["train.seed=7"])
    experiment = found.experiment
    assert experiment.model.max_position_embeddings == 4096  # the preset over the one it extends
    assert experiment.model.vocab_size == 256
    assert experiment.optimizer.lr == 2e-3  # the file over its presets
    assert experiment.optimizer.weight_decay == 0.2
    assert experiment.train.seed == 7  # the command line over all
    assert str(found.origins["model.max_position_embeddings"]) == "preset models/long"
    assert str(found.origins["model.vocab_size"]) == "preset models/small"
    assert str(found.origins["optimizer.lr"]) == "e.yaml:5"
    assert str(found.origins["train.seed"]) == "override"
    assert str(found.origins["parallel.tensor"]) == "default"


def test_presets_of_ones_own_are_relative_to_the_file(write: Write, own_presets: Path) -> None:
    write("extends: ../base.yaml\noptimizer: {weight_decay: 0.3}\n", "team/mine.yaml")
    write("extends: [models/small, hardware/cpu]\noptimizer: {lr: 1e-4}\n", "base.yaml")
    found = load(write(BARE + "extends: ./team/mine.yaml\n"))
    assert found.experiment.optimizer.weight_decay == 0.3
    assert found.experiment.optimizer.lr == 1e-4
    assert str(found.origins["optimizer.lr"]) == "preset team/../base.yaml"


def test_a_preset_of_an_axis_replaces_an_earlier_one(write: Write, own_presets: Path) -> None:
    write("extends: [models/long, hardware/cpu, recipes/base]\n", "base.yaml")
    found = load(write(BARE + "extends: [base.yaml, models/other]\n"), ["extends=hardware/GPU1", "train.seq_length=64"])
    assert found.experiment.model.rope_theta == 10000.0  # not models/long's
    assert found.experiment.hardware.memory_gib is None  # not hardware/cpu's
    assert found.experiment.hardware.devices_per_node == 8


def test_the_files_own_keys_win_over_a_preset_named_on_the_command_line(write: Write, own_presets: Path) -> None:
    text = BARE + "extends: [models/small, hardware/cpu]\nhardware: {memory_gib: 3}\noptimizer: {lr: 1}\n"
    found = load(write(text), ["extends=hardware/GPU1"])
    assert (found.experiment.hardware.name, found.experiment.hardware.memory_gib) == ("GPU1", 3.0)


def test_two_presets_of_an_axis_in_one_list_are_refused(write: Write, own_presets: Path) -> None:
    with pytest.raises(ConfigError, match=r"e\.yaml:4:25: two presets of models: models/small and models/other"):
        load(write(BARE + "extends: [models/small, models/other, hardware/cpu, recipes/base]\n"))


MINE = "mine.yaml", "extends: [models/other]\noptimizer: {lr: 1e-4}\n"


def test_a_preset_inside_a_file_replaces_an_earlier_one_too(write: Write, own_presets: Path) -> None:
    write("extends: [models/long, hardware/cpu]\n", "base.yaml")
    write(MINE[1] + "model: {head_dim: 8}\n", MINE[0])
    model = load(write(BARE + "extends: [base.yaml, mine.yaml]\nmodel: {rms_norm_eps: 1e-3}\n")).experiment.model
    assert (model.model_type, model.rope_theta) == ("qwen3", 10000.0)  # not models/long's
    assert (model.head_dim, model.rms_norm_eps) == (8, 1e-3)  # each file's own keys over its presets
    from_command_line = load(write(BARE + "extends: base.yaml\n"), ["extends=mine.yaml"]).experiment.model
    assert (from_command_line.model_type, from_command_line.rope_theta) == ("qwen3", 10000.0)


def test_a_preset_inside_a_file_is_refused_behind_one_of_the_list(write: Write, own_presets: Path) -> None:
    write(MINE[1], MINE[0])
    with pytest.raises(ConfigError) as caught:
        load(write(BARE + "extends: [models/long, mine.yaml, hardware/cpu]\n"))
    (found,) = caught.value.problems
    assert found.where == "e.yaml:4:24"
    assert found.message == "two presets of models: models/long and models/other (through mine.yaml)"
    assert found.remedy == "leave out models/long, or name it after mine.yaml to have it instead"
    assert load(write(BARE + "extends: [models/other, mine.yaml, hardware/cpu]\n")).experiment.model.vocab_size == 512


def test_the_same_preset_through_two_files_keeps_what_one_of_them_changed(write: Write, own_presets: Path) -> None:
    write("extends: models/small\nmodel: {rope_theta: 7}\n", "a.yaml")
    write("extends: [models/small, hardware/cpu, recipes/base]\n", "b.yaml")
    assert load(write(BARE + "extends: [a.yaml, b.yaml]\n")).experiment.model.rope_theta == 7


def test_a_file_named_on_the_command_line_counts_from_the_current_directory(write: Write, own_presets: Path) -> None:
    write("optimizer: {lr: 3e-4}\n", "ours/mine.yaml")
    name = write(BARE + "extends: [models/small, hardware/cpu]\n", "deep/e.yaml")
    assert load(name, ["extends=ours/mine.yaml"]).experiment.optimizer.lr == 3e-4


@pytest.mark.parametrize("name", ["${NOPE}", "models/${NOPE}", "${NOPE}.yaml"])
def test_a_preset_named_by_an_unset_variable_is_one_mistake(write: Write, own_presets: Path, name: str) -> None:
    text = BARE + "optimizer: {lr: 1}\n"
    for path, overrides in ((write(f"{text}extends: ['{name}', hardware/cpu]\n"), []), (write(text, "o.yaml"), [name])):
        with pytest.raises(ConfigError) as caught:
            load(path, [f'extends=["{given}", hardware/cpu]' for given in overrides], {})
        assert [item.message for item in caught.value.problems] == ["the environment variable 'NOPE' is not set"]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("models/smal", "did you mean models/small"),
        ("small", "did you mean models/small"),
        ("hardware/gpu1", "did you mean hardware/GPU1"),
        ("model/small", "did you mean models/small"),
        ("models/zzz", "known: models/long, models/other, models/small"),
        ("models/../hardware/cpu", "did you mean hardware/cpu"),
        ("nothing.yaml", "check the path"),
        ("bse.yaml", "did you mean base.yaml"),
        ("base", "for your own file write base.yaml"),
    ],
)
def test_unknown_presets(write: Write, own_presets: Path, name: str, remedy: str) -> None:
    write("optimizer: {lr: 1e-3}\n", "base.yaml")
    axes = [axis for axis in ("models/small", "hardware/cpu") if axis[:4] != remedy.removeprefix("did you mean ")[:4]]
    rest = "".join(f"  - {axis}\n" for axis in axes) + "optimizer: {lr: 1}\n"
    with pytest.raises(ConfigError) as caught:
        load(write(BARE + f"extends:\n  - {name}\n{rest}"))
    about = next(item for item in caught.value.problems if name in item.message)
    assert len(caught.value.problems) == 1 or ".." in name, "what the preset would have set is not missed as well"
    assert about.where == "e.yaml:5:5"
    assert remedy in about.remedy


def test_circles_are_refused(write: Write, own_presets: Path) -> None:
    write("extends: b.yaml\n", "a.yaml")
    write("extends: a.yaml\n", "b.yaml")
    with pytest.raises(ConfigError, match=r"b\.yaml:1:10: `extends` goes in a circle: a\.yaml -> b\.yaml -> a\.yaml"):
        load(write(BARE + "extends: a.yaml\n"))
    with pytest.raises(ConfigError, match=r"circle: e\.yaml -> e\.yaml"):
        load(write(BARE + "extends: e.yaml\n"))


def test_one_preset_by_two_routes_is_no_circle(write: Write, own_presets: Path) -> None:
    write("extends: c.yaml\n", "a.yaml")
    write("extends: c.yaml\ntrain: {seed: 3}\n", "b.yaml")
    write("extends: [models/small, hardware/cpu]\noptimizer: {lr: 1e-4}\n", "c.yaml")
    assert load(write(BARE + "extends: [a.yaml, b.yaml]\n")).experiment.train.seed == 3


@pytest.mark.parametrize("value", ["3", "[1]", "{a: b}", "[[models/small]]", "[models/small, null]", "true"])
def test_extends_takes_names(write: Write, own_presets: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="`extends` takes the names of presets"):
        load(write(BARE + f"extends: {value}\n"))


def test_a_mistake_in_a_preset_is_placed_in_the_preset(write: Write, own_presets: Path) -> None:
    (own_presets / "recipes/base.yaml").write_text("optimizer:\n  lrr: 3\n")
    with pytest.raises(ConfigError) as caught:
        load(write(BARE + "extends: [models/small, hardware/cpu, recipes/base]\n"))
    assert caught.value.problems[0].where.endswith("recipes/base.yaml:2:3")
    assert caught.value.problems[0].excerpt == "  lrr: 3"


def test_missing_hardware_lists_what_there_is(write: Write, own_presets: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(BARE + "extends: [models/small, recipes/base]\n"))
    assert "hardware is missing" in str(caught.value)
    assert "there are GPU1, cpu" in str(caught.value)


def test_null_goes_back_to_the_default(resolve: Resolve) -> None:
    text = "parallel: {tensor: 2}\nmonitor:\nenv: {A: x, B: null}\n"
    found = resolve(text, "parallel.tensor=null", "profile=null").experiment
    assert found.parallel.tensor == 1
    assert found.monitor.tensorboard is True
    assert found.env == {"A": "x"}
    assert resolve(text, "parallel=null").experiment.parallel.tensor == 1


def test_a_section_may_be_set_as_a_whole(resolve: Resolve) -> None:
    found = resolve("", "parallel={tensor: 2, context: 3}", 'env={A: "1", B: 2}').experiment
    assert (found.parallel.tensor, found.parallel.context) == (2, 3)
    assert found.env == {"A": "1", "B": "2"}


def test_env_takes_numbers_as_written(resolve: Resolve) -> None:
    assert resolve("env: {A: 1, B: 1e-5, C: true, D: 010, E.F: x}\n").experiment.env == {
        **{"A": "1", "B": "1e-5", "C": "true", "D": "010", "E.F": "x"}
    }


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optimizer.lr=3e-4", "optimizer.lr", 3e-4),
        ("parallel.data_shard=auto", "parallel.data_shard", "auto"),
        ("parallel.data_shard=8", "parallel.data_shard", 8),
        ("train.steps=1_000", "train.steps", 1000),
        ("data.train=[a, {path: b, weight: 2}]", "data.train", ["a", {"path": "b", "weight": 2.0}]),
        ("data.train=s3://x/y?a=b#c: d", "data.train", "s3://x/y?a=b#c: d"),
        ("data.train='7'", "data.train", "7"),
        ("data.train=@x", "data.train", "@x"),
        ("data.train= spaced ", "data.train", "spaced"),
        ("optimizer.schedule.name=linear", "optimizer.schedule.name", "linear"),
        ("env.NCCL_DEBUG=INFO", "env.NCCL_DEBUG", "INFO"),
        ("env.X=", None, "has no value"),
        ("optimizer.lr", None, "there is no '='"),
        ("=3", None, "'' is not a dotted key"),
        ("optimizer..lr=3", None, "is not a dotted key"),
        ("--optimizer.lr=3", None, "does not begin with '-'"),
        ("+optimizer.lr=3", None, "does not begin with '+'"),
        ("data.train[0]=x", None, "is not a dotted key"),
        ("data.train=[a", None, "is not closed"),
        ("train.steps=99999999999999999999", None, "64 bits"),
    ],
)
def test_overrides(resolve: Resolve, problem: OneProblem, override: str, key: str | None, value: object) -> None:
    if key is None:
        found = problem("", override)
        assert str(value) in found.message
        assert found.excerpt == override
        return
    from primus.config.show import values

    resolved = resolve("", override)
    assert values(resolved)[key] == value
    assert str(resolved.origins[key]) == "override"


def test_the_last_of_two_overrides_wins_and_errors_point_into_them(resolve: Resolve, problem: OneProblem) -> None:
    assert resolve("", "train.steps=3", "train.steps=4").experiment.train.steps == 4
    found = problem("", "optimizer.lrr=3")
    assert (found.where, found.excerpt, found.column) == ("override", "optimizer.lrr=3", 11)
    assert found.remedy == "did you mean lr?"
    assert problem("", "optimizer.lr=[1, x]").column == 14
    assert problem("", "data.train=[a, 3]").column == 16


def test_interpolation(resolve: Resolve) -> None:
    text = "env:\n  A: pre-${X}-post\n  B: ${X}\n  C: $${X}\n  D: ${U:}\n  E: 'a$b{c}'\n  F: ${Y:1}${Y:2}\n"
    found = resolve(text, "train.seed=${SEED:9}", X="7").experiment
    assert found.env == {"A": "pre-7-post", "B": "7", "C": "${X}", "E": "a$b{c}", "F": "12"}
    assert found.train.seed == 9


def test_a_whole_interpolation_is_typed(resolve: Resolve) -> None:
    overrides = ["train.steps=${N}", 'optimizer.betas=["${B:0.8}", 0.9]', "compile=${C:true}", "name=${J}"]
    found = resolve("", *overrides, "profile={steps: ['${A:1}', 2]}", N="200", J="12345").experiment
    assert found.train.steps == 200
    assert found.optimizer.betas == (0.8, 0.9)
    assert found.compile is True
    assert found.name == "12345"  # text is wanted, so the number stays text
    assert found.profile is not None
    assert found.profile.steps == (1, 2)


def test_an_empty_variable_counts_as_unset(resolve: Resolve, problem: OneProblem) -> None:
    assert resolve("", "train.seed=${S:3}", S="").experiment.train.seed == 3
    assert "'S' is empty" in problem("", "train.seed=${S}", S="").message


@pytest.mark.parametrize(
    ("text", "said", "remedy"),
    [
        ("${NOPE}", "'NOPE' is not set", "${NOPE:default}"),
        ("${NOPE:-3}", "':-' is the shell's way", "${NOPE:3}"),
        ("${1X}", "'1X' is not the name of a variable", "${NAME}"),
        ("${}", "'' is not the name of a variable", "${NAME}"),
        ("${A", "'${' is not closed", "$${"),
        ("${A:${B}}", "'${' is not closed", "$${"),
        ("${HF_TOKEN}", "looks like a secret", "leave it out"),
    ],
)
def test_interpolation_that_cannot_be_done(problem: OneProblem, text: str, said: str, remedy: str) -> None:
    found = problem(f"env: {{V: '{text}'}}\n", HF_TOKEN="hunter2")
    assert said in found.message
    assert remedy in found.remedy
    assert found.where == "e.yaml:14:10"
    assert "hunter2" not in str(found)


def test_interpolation_in_presets_and_extends(write: Write, own_presets: Path) -> None:
    (own_presets / "recipes/base.yaml").write_text("optimizer: {lr: '${LR:1e-3}'}\n")
    name = write(BARE + "extends: ['models/${M:small}', hardware/cpu, recipes/base]\n")
    found = load(name, environment={"LR": "5e-4", "M": "other"}).experiment
    assert (found.optimizer.lr, found.model.model_type) == (5e-4, "qwen3")


def test_a_wrong_value_from_the_environment_says_so(problem: OneProblem) -> None:
    found = problem("", "train.steps=${N}", N="many")
    assert "is the text 'many' (from the environment)" in found.message


def test_problems_point_at_the_line_that_sets_a_key(resolve: Resolve) -> None:
    found = resolve("", "parallel.tensor=3")
    assert found.problem("train.steps", "x").where == "e.yaml:12:9"
    assert found.problem("parallel.tensor", "x").excerpt == "parallel.tensor=3"
    assert found.problem("train.seed", "x").where == "e.yaml:12:1"  # not set: its section
    assert found.problem("moe.balance", "x").where == "e.yaml"  # nor that: the file


def test_json_round_trip(resolve: Resolve) -> None:
    experiment = resolve("checkpoint: {async: false}\nenv: {A: 'ü'}\n").experiment
    assert type(experiment).model_validate_json(experiment.model_dump_json(by_alias=True)) == experiment


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A Hugging Face directory, as far as its config.json."""
    config = {
        **{
            "model_type": "llama",
            "vocab_size": 320,
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
        },
        **{"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5},
    }
    directory = tmp_path / "weights"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_weights_fill_the_model(write: Write, own_presets: Path, weights: Path) -> None:
    text = f"{BARE}extends: [hardware/cpu, recipes/base]\nmodel: {{init: weights, max_position_embeddings: 2048}}\n"
    found = load(write(text))
    assert (found.experiment.model.hidden_size, found.experiment.model.num_key_value_heads) == (48, 2)
    assert found.experiment.model.max_position_embeddings == 2048  # a longer context is the user's to choose
    assert str(found.origins["model.hidden_size"]) == "model weights/config.json"
    assert str(found.origins["model.max_position_embeddings"]) == "e.yaml:5"
    assert load(write(BARE + "extends: [hardware/cpu, recipes/base]\n"), ["model.init=weights"]).experiment == (
        load(write(BARE + "extends: [hardware/cpu, recipes/base]\nmodel: {init: weights}\n")).experiment
    )


def test_an_architecture_that_is_not_the_weights_own_is_refused(write: Write, own_presets: Path, weights: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(
            write(BARE + "extends: [models/small, hardware/cpu, recipes/base]\nmodel: {init: weights, vocab_size: 7}\n")
        )
    said = {item.where.rpartition("/")[2]: item.message for item in caught.value.problems}
    assert said["e.yaml:5:36"] == "model.vocab_size is 7, but weights has 320"
    assert "model.hidden_size is 64, but weights has 48" in said.values()  # set by models/small


def test_a_wrong_value_of_the_weights_is_placed_in_their_config(write: Write, own_presets: Path, weights: Path) -> None:
    config = json.loads((weights / "config.json").read_text())
    (weights / "config.json").write_text(json.dumps({**config, "hidden_size": "48"}))
    with pytest.raises(ConfigError, match="hidden_size must be a whole number") as caught:
        load(write(f"{BARE}extends: [hardware/cpu, recipes/base]\nmodel: {{init: weights}}\n"))
    assert [problem.where for problem in caught.value.problems] == ["weights/config.json"]


def test_weights_that_are_not_there_are_placed(write: Write, own_presets: Path) -> None:
    for init in ("nowhere", "./nowhere", "org/nothing"):
        with pytest.raises(ConfigError) as caught:
            load(write(f"{BARE}extends: [hardware/cpu, recipes/base]\nmodel: {{init: {init}}}\n"))
        assert caught.value.problems[0].where == "e.yaml:5:15", init


def test_loading_stays_light(write: Write, minimal: str) -> None:
    """What every start of the program pays for."""
    code = (
        f"import sys; from primus.config.load import load; load({write(minimal)!r}); "
        "print(*({'torch', 'numpy', 'rich', 'click', 'difflib', 'primus.plan.plan'} & sys.modules.keys()))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert found.stdout.strip() == ""
