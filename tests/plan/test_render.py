"""The dry-run screen."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

from primus.plan.plan import Plan, PlannedData, PlannedSource
from primus.plan.render import as_json, quantity, render

COMMAND = [
    *("/opt/venv/bin/python", "-m", "torch.distributed.run", "--nproc-per-node", "8", "--rdzv-backend", "c10d"),
    *("-m", "primus.runtime.worker", "/data/my runs/$HOME/attempts/1"),
]


def unshell(screen: str) -> list[str]:
    """The command of a screen, as a shell reads it."""
    script = "printf '%s\\0' " + screen.partition("\nCommand\n")[2].strip()
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, env={"HOME": "/wrong"})
    return done.stdout.split("\0")[:-1]


def test_everything_of_note_is_on_the_screen(plan: Callable[..., Plan]) -> None:
    screen = render(plan("env.NCCL_DEBUG=WARN", "parallel.tensor=2", nproc=4), [COMMAND])
    for part in (
        "trial: pretrain with torchtitan 0.3.0. Nothing was started.",
        "1,787,008 parameters, 10.7 MFLOP a token",
        "1 node x 4 devices (cpu)",
        "data_shard 2, tensor 2",
        "8 sequences x 512 tokens = 4,096 tokens a step",
        "2 data-parallel ranks x micro batch 1 x 4 microbatches",
        "100 steps, 409,600 tokens",
        "NCCL_DEBUG=WARN",
        "training.steps = 100",
        "synthetic tokens",
    ):
        assert part in screen


def test_the_command_can_be_pasted(plan: Callable[..., Plan]) -> None:
    for width in (20, 40, 80, 200):
        assert unshell(render(plan(), [COMMAND], width=width)) == COMMAND


def test_a_mixture_of_experts_says_so(plan: Callable[..., Plan]) -> None:
    screen = render(plan(model="tiny_deepseek_v3"))
    assert "8 experts (2 a token)" in screen
    assert "2,048,448 parameters, 1,606,080 active" in screen


def test_a_pipeline_names_its_schedule(plan: Callable[..., Plan]) -> None:
    overrides = ("parallel.pipeline=2", "parallel.virtual_pipeline=2")
    assert "pipeline 2, schedule interleaved_1f1b, 2 chunks a rank" in render(plan(*overrides, nproc=2))


@pytest.mark.parametrize("fraction", [0.01, 0.005, 0.1, 0.125])
def test_data_sources_and_validation(plan: Callable[..., Plan], fraction: float) -> None:
    def source(name: str, share: int) -> PlannedSource:
        return PlannedSource(
            prefix=f"/data/{name}", digest=name, share=share, tokens=10**6, documents=7, dtype="uint16"
        )

    data = PlannedData(
        kind="indexed",
        sources=(source("a", 3072), source("b", 1024)),
        validation_fraction=fraction,
        tokenizer="/tok",
        digest="x",
        mask_eod=True,
    )
    screen = render(plan().model_copy(update={"data": data}))
    assert "/data/a: 1,000,000 tokens in 7 documents, 3072/4096 of the samples" in screen
    assert f"validation: the last {fraction * 100:g} %" in screen
    assert "ends masked" in screen
    alone = data.model_copy(update={"sources": (source("a", 4096),), "validation_fraction": 0.0})
    assert "0.41 epochs" in render(plan().model_copy(update={"data": alone}))


def test_lines_fit_eighty_columns(plan: Callable[..., Plan]) -> None:
    screen = render(plan("env.NCCL_DEBUG=WARN", hardware="MI300X", precision="bf16"), [COMMAND], width=80)
    long = [line for line in screen.splitlines() if len(line) > 80 and "/" not in line]
    assert long == []


def test_json_holds_the_plan_and_the_commands(plan: Callable[..., Plan]) -> None:
    made = plan()
    document = json.loads(as_json(made, [COMMAND]))
    assert Plan.model_validate_json(json.dumps(document["plan"])) == made
    assert document["commands"] == [COMMAND]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 "), (999.0, "999 "), (27.1e6, "27.1 M"), (5.15e10, "51.5 G"), (2e21, "2 Z"), (1e27, "1e+03 Y")],
)
def test_quantities(value: float, text: str) -> None:
    assert quantity(value) == text
