"""Wrong experiments: every mistake is named, with its place, in plain words, all at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from primus.config.load import load
from primus.config.units import seconds
from primus.errors import ConfigError, Problem

Problems = Callable[..., tuple[Problem, ...]]
OneProblem = Callable[..., Problem]


@pytest.mark.parametrize(
    ("override", "message", "remedy"),
    [
        ("train.steps=yes", "train.steps must be a whole number of at least 1, but is the text 'yes'", ""),
        ("train.steps='8'", "but is the text '8'", "remove the quotes"),
        ("train.steps=0", "train.steps must be a whole number of at least 1, but is 0", ""),
        ("train.steps=1.5", "but is 1.5", ""),
        ("train.steps=1e3", "but is 1e3", "write 1000"),
        ("train.steps=true", "but is true", ""),
        ("train.steps=[1]", "but is a list of 1", ""),
        ("train.steps={a: 1}", "but is a map", ""),
        ("train.steps=1,000", "but is the text '1,000'", "write the digits without commas"),
        ("optimizer.lr=0", "optimizer.lr must be a number above 0, but is 0", ""),
        ("train.steps=010", "but is the text '010'", "write 10"),
        ("train.steps=010,000", "but is the text '010,000'", "write the digits without commas"),
        ("optimizer.lr=.nan", "optimizer.lr must be a number above 0, but is .nan, which is not finite", ""),
        ("optimizer.lr=.inf", "but is .inf, which is not finite", ""),
        ("optimizer.lr=1e999", "but is 1e999, which is not finite", ""),
        ("optimizer.lr=1e-999", "but is 1e-999, which is so small that it becomes 0", ""),
        ("optimizer.lr=0.0e5", "optimizer.lr must be a number above 0, but is 0.0e5", ""),
        ("optimizer.lr='1e-5'", "but is the text '1e-5'", "remove the quotes"),
        ("optimizer.betas=[0.9]", "optimizer.betas must be a list of 2, each a number of at least 0 and below 1", ""),
        ("optimizer.betas=[0.9, 0.9, 0.9]", "but is a list of 3", ""),
        ("optimizer.betas=[0.9, 1]", "optimizer.betas[1] must be a number of at least 0 and below 1, but is 1", ""),
        ("optimizer.schedule.name=cosin", "must be one of cosine, linear, constant, wsd", "did you mean cosine?"),
        ("optimizer.name=sgd", "optimizer.name must be 'adamw', but is the text 'sgd'", ""),
        ("compile=yes", "compile must be true or false, but is the text 'yes'", "write true"),
        ("compile=off", "", "write false"),
        ("compile='true'", "", "remove the quotes"),
        ("compile=1", "but is 1", ""),
        ("parallel.data_shard=Auto", "or 'auto', but is the text 'Auto'", "did you mean auto?"),
        ("parallel.data_shard=0", "parallel.data_shard must be a whole number of at least 1, or 'auto', but is 0", ""),
        ("hardware.device=gpu", "hardware.device must be one of cpu, cuda, rocm", ""),
        ("hardware.peak_tflops={fp4: 3}", "hardware.peak_tflops.fp4 must be one of fp32, bf16, fp8", ""),
        ("hardware.peak_tflops={fp8: fast}", "hardware.peak_tflops.fp8 must be a number above 0", ""),
        ("precision=bfloat16", "precision must be one of fp32, bf16, fp8", "did you mean bf16?"),
        (
            "data.train=3",
            "data.train must be text, or a list of at least one, each text, or a map of path, weight, but is 3",
            "",
        ),
        ("data.train=[]", "but is an empty list", ""),
        ("data.train=''", "data.train must be text, or a list", ""),
        ("data.train=[3]", "data.train[0] must be text, or a map of path, weight, but is 3", ""),
        ("data.train=[{path: 3}]", "data.train[0].path must be text, but is 3", "put it in quotes"),
        ("data.train=[{path: x, weight: 0}]", "data.train[0].weight must be a number above 0, but is 0", ""),
        ("data.train=[{pth: x}]", "unknown key 'pth' in data.train[0]", "did you mean path?"),
        ("data.train=[{weight: 2}]", "data.train[0] lacks path", "add it to data.train[0]"),
        ("data.train=[{path: x, w3: 2}]", "unknown key 'w3' in data.train[0]", "known here: path, weight"),
        ("data.train=[null]", "data.train[0] must be text, or a map of path, weight, but is null", ""),
        ("data.validation=1.5", "data.validation must be a number of at least 0 and below 1, or text, but is 1.5", ""),
        ("name=7", "name must be letters, digits", ""),
        ("name=a/b", "but is the text 'a/b'", ""),
        ("name=../x", "but is the text '../x'", ""),
        ("backend=7", "backend must be text, but is 7", "put it in quotes"),
        ("resilience.hang_timeout=10", "hang_timeout must be a duration with its unit, such as 90s or 10m, or", ""),
        ("resilience.hang_timeout=soon", "of the usual step, such as 20x, but is the text 'soon'", ""),
        ("resilience.hang_timeout=1x", "a multiple of the usual step, such as 20x, but is the text '1x'", ""),
        ("resilience.restart_window=60", "restart_window must be a duration with its unit", ""),
        ("env={A: [1]}", "env.A must be text, but is a list of 1", ""),
        ("env=3", "env must be a map, but is 3", ""),
        ("model=3", "model must be a map of model_type, vocab_size", ""),
        ("model.rope_scaling=null2", "model.rope_scaling must be a map of rope_type", ""),
        ("optimizer.schedule.x.y=1", "unknown key 'x' in optimizer.schedule", "known here: name, warmup_steps"),
        ("optimizer.lr.x=1", "optimizer.lr must be a number above 0, but is a map", ""),
        ("native.torchtitan.x=1", "'native' is not a section", "name the section after the backend"),
    ],
)
def test_wrong_values_in_plain_words(problem: OneProblem, override: str, message: str, remedy: str) -> None:
    found = problem("", override)
    assert message in found.message
    assert remedy == found.remedy or (remedy and remedy in found.remedy)
    assert (found.where, found.excerpt) == ("override", override)
    assert 1 <= found.column <= len(override)


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        # a slip of the keyboard
        ("optimizer.lrr=1", "did you mean lr?"),
        ("optimizer.weight-decay=1", "did you mean weight_decay?"),
        ("train.Steps=1", "did you mean steps?"),
        ("optimiser.lr=1", "did you mean optimizer?"),
        ("train.micro_batchsize=1", "did you mean micro_batch_size?"),
        ("extend=models/x", "did you mean extends?"),
        ("torchtitn.x=1", "did you mean torchtitan?"),
        # in the wrong section
        ("lr=1", "it belongs elsewhere: optimizer.lr"),
        ("optimizer.global_batch_size=8", "it belongs elsewhere: train.global_batch_size"),
        ("warmup_steps=8", "it belongs elsewhere: optimizer.schedule.warmup_steps"),
        ("train.tensor=8", "it belongs elsewhere: parallel.tensor"),
        ("interval=8", "it belongs elsewhere: eval.interval or checkpoint.interval"),
        # another system's name
        ("train_iters=1", "here it is called train.steps"),
        ("parallel.tensor_model_parallel_size=2", "here it is called parallel.tensor"),
        ("train.learning_rate=1", "here it is called optimizer.lr"),
        ("optimizer.adam_beta1=0.9", "here it is called optimizer.betas, a list of both"),
        ("clip_grad=1", "here it is called optimizer.clip_grad_norm"),
        ("mock_data=true", "here it is called data.train, with the value synthetic"),
        ("sequence_parallel=true", "leave it out: parallel.tensor brings sequence parallelism with it"),
        ("save_interval=1", "here it is called checkpoint.interval"),
        # something else
        ("train.zzz=1", "known here: steps, global_batch_size, micro_batch_size, seq_length, seed"),
    ],
)
def test_unknown_keys_are_led_home(problem: OneProblem, override: str, remedy: str) -> None:
    found = problem("", override)
    assert "unknown key" in found.message
    assert found.remedy == remedy


def test_every_foreign_name_leads_to_a_key_that_exists() -> None:
    from primus.config.foreign import FOREIGN
    from primus.config.keys import keys
    from primus.config.suggest import unknown_key

    own_names = {key.name for key in keys().values()}
    for name, said in FOREIGN.items():
        assert name == name.lower(), "looked up in lower case"
        assert name not in own_names, f"{name} is a key of ours, so the entry is never read"
        remedy = unknown_key("resilience", name)
        assert remedy in (said, f"here it is called {said}") or remedy.startswith("did you mean")
        for word in said.replace(",", " ").replace(";", " ").split():
            section = word.partition(".")[0]
            if "." in word.strip(".") and section in keys():
                assert word.strip(".:()") in keys(), f"{name}: {word}"


def test_a_dotted_key_in_a_file(problem: OneProblem) -> None:
    found = problem("optimizer.lr: 3\n")
    assert found.remedy == "dots are for the command line; in a file write optimizer: {lr: ...}"


def test_everything_at_once_in_the_order_of_the_file(write: Callable[..., str], minimal: str) -> None:
    text = minimal.replace("name: tiny", "nmae: tiny").replace("steps: 100", "steps: many").replace("lr: 1e-3", "x: 1")
    with pytest.raises(ConfigError) as caught:
        load(write(text), ["train.seed=-1", "bad"])
    places = [item.where for item in caught.value.problems]
    assert places == ["e.yaml:1:1", "e.yaml:12:16", "e.yaml:13:1", "e.yaml:13:13", "override", "override"]


def test_a_misspelt_required_key_is_one_mistake_not_two(write: Callable[..., str], minimal: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(minimal.replace("vocab_size", "vocab_sise")))
    assert [item.message for item in caught.value.problems] == ["unknown key 'vocab_sise' in model"]


def test_missing_sections_are_explained(write: Callable[..., str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write("name: q\ntrain:\nmodel: {model_type: llama}\n"))
    said = {item.message: item for item in caught.value.problems}
    train = next(item for message, item in said.items() if message.startswith("train is empty"))
    assert train.where == "e.yaml:2:1"
    assert train.remedy == "add train: {steps: ..., global_batch_size: ..., seq_length: ...}"
    hardware = next(item for message, item in said.items() if message.startswith("hardware is missing"))
    assert "MI300X" in hardware.remedy
    assert any(message.startswith("model lacks vocab_size, hidden_size") for message in said)
    assert any(message.startswith("optimizer is missing: ") for message in said)


def test_errors_are_of_the_kind_that_exits_with_2() -> None:
    assert ConfigError("x").exit_code == 2


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("250ms", 0.25), ("2d", 172800), ("1.5h", 5400)]
)
def test_durations(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "10", "m", "10 m", "-1s", "1w", "1h-30m", "0s", "400d", "1e3s", "10M", "١s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        seconds(text)
