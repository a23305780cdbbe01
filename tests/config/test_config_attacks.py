"""Hostile and careless input: each ends quickly in an error that names the place, or does what was meant."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from primus.config.load import Resolved, load
from primus.config.report import render
from primus.errors import ConfigError, PrimusError, Problem

Resolve = Callable[..., Resolved]
OneProblem = Callable[..., Problem]
Write = Callable[..., str]


@pytest.fixture(autouse=True)
def _quickly() -> object:
    """Each ends within seconds of processor time, whatever the size of the attack."""
    start = time.process_time()
    yield
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "override",
    ["name=\udcff", 'data.train="\udcff"', "env.A=\udcff", "data.train=[\udcff]", "\udcff=1", "env={'\udcff': a}"],
)
def test_bytes_that_are_no_text(problem: OneProblem, override: str) -> None:
    found = problem("", override)
    assert "UTF-8" in found.message
    render(ConfigError(problems=[found])).encode()


def test_bytes_that_are_no_text_from_the_environment(problem: OneProblem) -> None:
    assert "UTF-8" in problem("env: {A: 'x${V}'}\n", V="\udcff").message


def test_a_long_chain_of_presets(write: Write, minimal: str) -> None:
    for number in range(300):
        write(f"extends: p{number + 1}.yaml\n", f"p{number}.yaml")
    with pytest.raises(ConfigError, match="more than 20 presets deep"):
        load(write(minimal + "extends: p0.yaml\n"))


def test_presets_that_multiply(write: Write, minimal: str) -> None:
    for number in range(19):
        write(f"extends: [p{number + 1}.yaml, p{number + 1}.yaml]\n", f"p{number}.yaml")
    write("train: {seed: 3}\n", "p19.yaml")
    assert load(write(minimal + "extends: p0.yaml\n")).experiment.train.seed == 3


def test_names_that_are_no_paths(write: Write, minimal: str) -> None:
    for name in ("'a\\0b.yaml'", '"a\\0b.yaml"', "x" * 5000 + ".yaml", "models/" + "x" * 5000, "models/", "/", "''"):
        with pytest.raises(ConfigError):
            load(write(f"{minimal}extends: {name}\n"))


def test_a_link_to_itself(write: Write, tmp_path: Path, minimal: str) -> None:
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    for path in ("loop.yaml", write(minimal + "extends: loop.yaml\n")):
        with pytest.raises(ConfigError, match=r"loop\.yaml cannot be read"):
            load(path)


def test_endless_and_huge_files(write: Write) -> None:
    with pytest.raises(ConfigError, match="/dev/zero is larger than"):
        load("/dev/zero")
    with pytest.raises(ConfigError, match="is larger than 4 MB"):
        load(write(b"a: " + b"x" * 5_000_000))


def test_a_pipe_is_a_file(minimal: str) -> None:
    reader, writer = os.pipe()
    os.write(writer, minimal.encode())
    os.close(writer)
    assert load(f"/dev/fd/{reader}").experiment.name == "tiny"
    os.close(reader)


def test_many_wrong_keys_and_one_giant(write: Write, minimal: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(minimal + "".join(f"optimizerx{number}: 1\n" for number in range(3000)) + "k" * 900 + ": 1\n"))
    assert len(caught.value.problems) == 3001
    shown = render(caught.value)
    assert shown.startswith("error: 3001 problems")
    assert shown.endswith("... and 2951 more\n")


def test_installed_backends_are_looked_up_once_for_all_guesses(
    problems: Callable[..., tuple[Problem, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from primus.backends import registry

    calls: list[int] = []
    installed = registry.names()

    def names() -> list[str]:
        calls.append(1)
        return installed

    monkeypatch.setattr(registry, "names", names)
    assert len(problems("".join(f"optimizerx{number}: 1\n" for number in range(50)))) == 50
    assert len(calls) <= 2  # once to tell a backend's section from a mistake, once to guess what was meant


def test_deep_overrides(problem: OneProblem) -> None:
    assert "levels deep" in problem("", ".".join("a" * 5000) + "=1").message
    assert "levels deep" in problem("", "env.A=" + "[" * 5000).message


def test_numbers_that_are_none(problem: OneProblem) -> None:
    for value in (".nan", ".inf", "-.inf", "1e400"):
        assert "finite" in problem("", f"torchtitan.training.gc_freq={value}").message
    assert "must be a whole number" in problem("", "train.steps=1e400").message
    assert "64 bits" in problem("", "train.seed=" + "9" * 4000).message


def test_names_from_inside_the_machine(problem: OneProblem) -> None:
    for key in ("__class__", "model_config", "model_fields", "__dict__.x", "model.__init__"):
        assert "unknown key" in problem("", f"{key}=1").message
    assert problem("", "checkpoint.async_=1").remedy == "did you mean async?"


@pytest.mark.parametrize("text", ["? [a]\n: b\n", "!!set {a}\n", "a: !!binary aGk=\n", "a: !!timestamp 2024-01-01\n"])
def test_yaml_that_is_not_for_people(write: Write, text: str) -> None:
    with pytest.raises(ConfigError, match=r"^e\.yaml:1:"):
        load(write(text))


def test_directives_and_document_ends_are_harmless(write: Write, minimal: str) -> None:
    assert load(write(f"%YAML 1.2\n---\n{minimal}...\n")).experiment.name == "tiny"


def test_a_preset_named_where_a_map_belongs(problem: OneProblem, write: Write, minimal: str) -> None:
    assert problem("", "hardware=MI300X").remedy == "for a preset write extends: [hardware/MI300X]"
    assert problem("", "hardware=mi300x").remedy == "for a preset write extends: [hardware/MI300X]"
    assert problem("", "model=llama3.1_8B").remedy == "for a preset write extends: [models/llama3.1_8B]"


def test_a_home_directory_is_understood(
    write: Write, minimal: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write("train: {seed: 8}\n", "home/mine.yaml")
    assert load(write(minimal + "extends: ~/mine.yaml\n")).experiment.train.seed == 8


def test_sections_set_to_nothing(problem: OneProblem) -> None:
    assert problem("", "model=null").message.startswith("model is empty")
    assert problem("", "model=null").where == "override"
    assert problem("", "train.steps=null").message == "train lacks steps"


def test_nothing_but_a_problem_ever_comes_out(write: Write, minimal: str) -> None:
    """Every line of a valid file replaced in turn by things that hurt."""
    lines = minimal.splitlines()
    for index in range(len(lines)):
        for bad in (
            "[",
            "{",
            "}",
            ":",
            "- a",
            "\t",
            "&",
            "*",
            "!",
            "|",
            ">",
            "'",
            '"',
            "%",
            "@",
            "`",
            "a: b: c",
            "<<: 1",
            "? ",
            "#",
        ):
            text = "\n".join([*lines[:index], bad, *lines[index + 1 :]])
            with pytest.raises(PrimusError) as caught:
                load(write(text))
            assert caught.value.exit_code == 2
            assert all(item.message for item in caught.value.problems)
