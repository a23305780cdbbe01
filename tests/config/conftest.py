"""Small experiments in files of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from imported import HEAD, MAXTEXT_FILE, MEGATRON_FILE, TITAN_FILE, schema

from primus.config.importing.convert import Import, convert
from primus.config.load import Resolved, load
from primus.errors import ConfigError, Problem

EXPERIMENT = """\
name: tiny
hardware: {name: cpu, device: cpu}
model:
  model_type: llama
  vocab_size: 256
  hidden_size: 64
  num_hidden_layers: 2
  num_attention_heads: 4
  intermediate_size: 128
  max_position_embeddings: 512
data: {train: stdlib}
train: {steps: 100, global_batch_size: 8, seq_length: 128}
optimizer: {lr: 1e-3}
"""


@pytest.fixture
def minimal() -> str:
    """The keys that every experiment needs."""
    return EXPERIMENT


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``write(text, name)`` writes a file and returns its name; the test runs in that directory."""
    monkeypatch.chdir(tmp_path)

    def _write(text: str | bytes, name: str = "e.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return _write


@pytest.fixture
def resolve(write: Callable[..., str]) -> Callable[..., Resolved]:
    """``resolve(text, *overrides, **environment)``: `text` after the keys every experiment needs."""

    def _resolve(text: str = "", *overrides: str, **environment: str) -> Resolved:
        return load(write(EXPERIMENT + text), overrides, environment)

    return _resolve


@pytest.fixture
def problems(resolve: Callable[..., Resolved]) -> Callable[..., tuple[Problem, ...]]:
    """``problems(text, *overrides)``: what is wrong with that experiment."""

    def _problems(text: str = "", *overrides: str, **environment: str) -> tuple[Problem, ...]:
        with pytest.raises(ConfigError) as caught:
            resolve(text, *overrides, **environment)
        return caught.value.problems

    return _problems


@pytest.fixture
def problem(problems: Callable[..., tuple[Problem, ...]]) -> Callable[..., Problem]:
    """The one thing that is wrong."""

    def _problem(text: str = "", *overrides: str, **environment: str) -> Problem:
        found = problems(text, *overrides, **environment)
        assert len(found) == 1, [str(item) for item in found]
        return found[0]

    return _problem


@pytest.fixture
def take(write: Callable[..., str]) -> Callable[..., Import]:
    """``take(text, name)`` imports a file with that text."""

    def _take(text: str, name: str = "MI300X/there.yaml", **environment: str) -> Import:
        return convert(Path(write(text, name)), environment, schema)

    return _take


@pytest.fixture
def megatron(take: Callable[..., Import]) -> Callable[..., Import]:
    """``megatron("key: value", ...)``: these overrides, after those that every run needs."""
    return lambda *lines, **environment: take(
        HEAD.replace("FRAMEWORK", "megatron") + MEGATRON_FILE + "".join(f"      {line}\n" for line in lines),
        **environment,
    )


@pytest.fixture
def titan(take: Callable[..., Import]) -> Callable[..., Import]:
    return lambda *lines, **environment: take(
        HEAD.replace("FRAMEWORK", "torchtitan") + TITAN_FILE + "".join(f"      {line}\n" for line in lines),
        **environment,
    )


@pytest.fixture
def maxtext(take: Callable[..., Import]) -> Callable[..., Import]:
    """As `megatron`; a line takes the place of one of the same key."""

    def _maxtext(*lines: str, **environment: str) -> Import:
        given = tuple(f"{line.partition(':')[0]}:" for line in lines)
        rest = [line for line in MAXTEXT_FILE.splitlines() if not line.strip().startswith(given or ("-",))]
        whole = "\n".join([*rest, *(f"      {line}" for line in lines), ""])
        return take(HEAD.replace("FRAMEWORK", "maxtext") + whole, **environment)

    return _maxtext
