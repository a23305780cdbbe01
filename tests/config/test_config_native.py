"""The engine's own keys, against a schema of a small engine and against TorchTitan's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from primus.backends import registry
from primus.backends.base import NativeKey, NativeSchema
from primus.config.load import Resolved
from primus.errors import EnvironmentFault, Problem

Resolve = Callable[..., Resolved]
OneProblem = Callable[..., Problem]
Problems = Callable[..., tuple[Problem, ...]]

SCHEMA = NativeSchema(
    {"engine": "1.2"},
    {
        "steps": NativeKey("int", portable="train.steps"),
        "comm.timeout": NativeKey("int", 300, description="Seconds."),
        "comm.trace.folder": NativeKey("str | null"),
        "comm.mode": NativeKey("str", "fast", choices=("fast", "safe")),
        "scale": NativeKey("float"),
        "names": NativeKey("list"),
        "deep": NativeKey("dict"),
        "odd": NativeKey("SomeEngineType"),
    },
)


class Engine:
    name = "engine"

    def native_schema(self) -> NativeSchema:
        return SCHEMA


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend called `engine`, known to the registry."""
    monkeypatch.setitem(registry.BUILT_IN, "engine", f"{__name__}:Engine")
    monkeypatch.setattr(registry, "get", lambda name: Engine())


@pytest.mark.usefixtures("engine")
def test_native_keys_land_in_native_with_origins(resolve: Resolve) -> None:
    text = "engine:\n  comm: {timeout: 5, trace: {folder: null}}\n  deep: {any: {x: [1]}}\n"
    found = resolve(text, "engine.scale=2", "engine.names=[a]", "engine.odd=x")
    assert found.experiment.native == {
        "engine": {
            "comm": {"timeout": 5, "trace": {"folder": None}},
            "deep": {"any": {"x": [1]}},
            **{"scale": 2, "names": ["a"], "odd": "x"},
        }
    }
    assert str(found.origins["engine.comm.timeout"]) == "e.yaml:15"
    assert str(found.origins["engine.scale"]) == "override"


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("override", "message", "remedy"),
    [
        ("engine.steps=5", "engine.steps is set by the portable key train.steps", "set train.steps and remove this"),
        ("engine.comm.timeot=5", "unknown key 'timeot' in engine.comm (engine 1.2)", "did you mean timeout?"),
        ("engine.timeout=5", "unknown key 'timeout' in engine (engine 1.2)", "it belongs elsewhere: comm.timeout"),
        ("engine.lr=5", "unknown key 'lr' in engine", "it is a portable key: optimizer.lr, outside this section"),
        ("engine.comn.x=5", "unknown key 'comn' in engine", "did you mean comm?"),
        ("engine.zzz=5", "unknown key 'zzz' in engine", "known here: comm, deep, names, odd, scale"),
        ("engine.comm.timeout=soon", "engine.comm.timeout must be a whole number, but is 'soon'", "Seconds."),
        ("engine.comm.timeout=true", "must be a whole number, but is 'true'", "Seconds."),
        ("engine.comm.trace.folder=3", "must be text, or null, but is '3'", ""),
        ("engine.comm.mode=fats", "must be one of fast, safe, but is 'fats'", "did you mean fast?"),
        ("engine.comm=3", "engine.comm is a section of keys, not '3'", ""),
        ("engine.scale=[1]", "engine.scale must be a number, but is a list", ""),
        ("engine=3", "engine must be a map of the engine's own keys", ""),
    ],
)
def test_native_mistakes(problem: OneProblem, override: str, message: str, remedy: str) -> None:
    found = problem("", override)
    assert message in found.message
    assert found.remedy == remedy
    assert found.excerpt == override


@pytest.mark.usefixtures("engine")
def test_native_and_portable_mistakes_come_together(problems: Problems) -> None:
    found = problems("engine: {steps: 1, x: 2}\noptimiser: 3\n")
    assert [item.where for item in found] == ["e.yaml:14:10", "e.yaml:14:20", "e.yaml:15:1"]


def test_an_empty_native_section_is_nothing(resolve: Resolve) -> None:
    assert resolve("torchtitan: {}\n").experiment.native == {}
    assert resolve("torchtitan:\n").experiment.native == {}


def test_a_backend_that_cannot_be_imported_is_no_crash(problem: OneProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "broken", "primus.no_such_module:Backend")
    assert "cannot be imported" in problem("broken: {x: 1}\n").message
    with pytest.raises(EnvironmentFault):
        registry.get("broken")


def test_torchtitans_own_keys(resolve: Resolve, problem: OneProblem) -> None:
    found = resolve("torchtitan: {training: {gc_freq: 50}}\n").experiment
    assert found.native == {"torchtitan": {"training": {"gc_freq": 50}}}
    assert "set by the portable key train.steps" in problem("torchtitan: {training: {steps: 5}}\n").message
    assert problem("torchtitan: {training: {gc_freqs: 5}}\n").remedy == "did you mean gc_freq?"


def test_every_portable_key_that_torchtitan_names_exists() -> None:
    from primus.config.keys import keys

    named = {key.portable for key in registry.get("torchtitan").native_schema().keys.values() if key.portable}
    assert named
    assert {name.partition(",")[0].split(" ")[0] for name in named} <= keys().keys()
