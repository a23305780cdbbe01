"""Experiments and plans to try things on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from primus.config.load import Resolved, load
from primus.plan.plan import Plan
from primus.plan.planner import make_plan

BASE = """\
extends: [models/{model}, hardware/{hardware}]
name: trial
data: {{train: synthetic}}
train: {{steps: 100, global_batch_size: 8, seq_length: 512}}
optimizer: {{lr: 1e-3}}
precision: {precision}
"""

Planner: TypeAlias = Callable[..., Plan]


@pytest.fixture
def resolve(tmp_path: Path) -> Callable[..., Resolved]:
    """``resolve("key=value", ..., model=, hardware=, precision=)``: the trial experiment with overrides."""

    def _resolve(
        *overrides: str, model: str = "tiny_llama", hardware: str = "cpu", precision: str = "fp32"
    ) -> Resolved:
        path = tmp_path / "trial.yaml"
        path.write_text(BASE.format(model=model, hardware=hardware, precision=precision))
        return load(path, overrides, {})

    return _resolve


@pytest.fixture
def plan(resolve: Callable[..., Resolved], tmp_path: Path) -> Planner:
    """``plan("key=value", ..., nnodes=, nproc=, workflow=, model=, ...)``: the trial experiment, planned."""

    def _plan(*overrides: str, nnodes: int = 1, nproc: int | None = None, **rest: Any) -> Plan:
        workflow = rest.pop("workflow", "pretrain")
        directory = rest.pop("run_directory", tmp_path / "runs" / "trial")
        resolved = resolve(*overrides, **rest)
        return make_plan(resolved, workflow=workflow, nnodes=nnodes, nproc=nproc, run_directory=directory)

    return _plan
