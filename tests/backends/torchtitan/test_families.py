"""Every family of models trained in every layout: the losses of a few steps are those of one process.

Some in single axes are compared with a plain loop in ``tests/parity``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import parity
import pytest
from gang import Case, Ran, run_gang
from tiny import DEEPSEEK_V2, DEEPSEEK_V3, GPT_OSS, LLAMA, LLAMA4, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE, make

from primus.config.families import FAMILIES

TOLERANCE = 1e-5

MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": QWEN2,
    "qwen3": QWEN3 | {"tie_word_embeddings": False},
    "qwen3_moe": QWEN3_MOE,
    "mixtral": MIXTRAL,
    "llama4_text": LLAMA4,
    "deepseek_v2": DEEPSEEK_V2 | {"num_hidden_layers": 4},
    "deepseek_v3": DEEPSEEK_V3 | {"num_hidden_layers": 4},
    "gpt_oss": GPT_OSS,
}
TWO: dict[str, dict[str, Any]] = {
    "data_shard": {"parallel__data_shard": 2},
    "data_replicate": {"parallel__data_replicate": 2},
    "tensor": {"parallel__tensor": 2},
    "tensor-singly": {"parallel__tensor": 2, "train__micro_batch_size": 1},  # a gather that is a view
    "pipeline": {"parallel__pipeline": 2},
    "gpipe": {"parallel__pipeline": 2, "parallel__schedule": "gpipe"},
    "interleaved": {"parallel__pipeline": 2, "parallel__virtual_pipeline": 2, "train__micro_batch_size": 2},
    "context": {"parallel__context": 2, "train__micro_batch_size": 2},
    "expert": {"parallel__data_shard": 2, "parallel__expert": 2},
    "tensor-expert": {"parallel__tensor": 2, "parallel__expert": 2},
}
FOUR: dict[str, dict[str, Any]] = {
    "shard-tensor": {"parallel__data_shard": 2, "parallel__tensor": 2},
    "pipeline-shard": {"parallel__pipeline": 2, "parallel__data_shard": 2, "train__micro_batch_size": 2},
    "replicate-shard-expert": {
        "parallel__data_replicate": 2,
        "parallel__data_shard": 2,
        "parallel__expert": 2,
        "train__micro_batch_size": 2,
    },
    "pipeline-tensor": {"parallel__pipeline": 2, "parallel__tensor": 2},
    "context-shard": {"parallel__context": 2, "parallel__data_shard": 2, "train__micro_batch_size": 2},
}
CHOSEN: dict[str, tuple[str, ...]] = {
    "llama": ("tensor-singly", "gpipe", "shard-tensor", "pipeline-shard"),
    "qwen3": ("tensor-singly", "pipeline-tensor", "context-shard"),
    "qwen2": ("tensor", "interleaved"),
    "qwen3_moe": ("tensor", "tensor-singly", "expert"),
    "mixtral": ("tensor-singly",),
    "llama4_text": ("tensor", "tensor-singly", "interleaved", "context", "expert", "shard-tensor"),
    "deepseek_v2": ("tensor", "tensor-singly", "tensor-expert"),
}
"""Families that share their layers with others, and the layouts that meet what is their own, or that the others leave.
The rest of Mixtral is in ``tests/parity``. With PRIMUS_ALL_LAYOUTS=1 all run in all: nine minutes."""
BY_PARITY = ("data_shard", "data_replicate", "tensor", "pipeline", "interleaved", "context", "expert")


def pairs(layouts: dict[str, dict[str, Any]]) -> Iterator[str]:
    """``family layout`` of everything that makes sense and is not proven elsewhere."""
    for family in MODELS:
        for layout in layouts:
            senseless = "expert" in layout and not FAMILIES[family].mixture
            elsewhere = family in parity.MODELS and layout in BY_PARITY
            chosen = layout in CHOSEN.get(family, layouts) or os.environ.get("PRIMUS_ALL_LAYOUTS") == "1"
            if chosen and not senseless and not elsewhere:
                yield f"{family} {layout}"


@pytest.fixture(scope="module")
def ran(root: Path, dataset: Path) -> dict[str, Ran]:
    """All cases; those named after a family alone are the one-process runs they are compared with."""

    def case(name: str, nproc: int, layout: dict[str, Any]) -> Case:
        family = name.split(maxsplit=1)[0]
        options = {"train__steps": 3, "train__seq_length": 256, "optimizer__schedule__decay_steps": 8}
        directory = root / "families" / name.replace(" ", "-")
        return Case(name, make(directory, dataset, nproc=nproc, model=MODELS[family], **{**options, **layout}))

    families = dict.fromkeys(name.split()[0] for name in (*pairs(TWO), *pairs(FOUR)))
    results = run_gang([case(family, 1, {}) for family in families], 1, root / "families-1")
    for nproc, layouts in ((2, TWO), (4, FOUR)):
        cases = [case(name, nproc, layouts[name.split()[1]]) for name in pairs(layouts)]
        results |= run_gang(cases, nproc, root / f"families-{nproc}")
    return results


@pytest.mark.parametrize("name", [*pairs(TWO), *pairs(FOUR)])
def test_losses_equal_those_of_one_process(ran: dict[str, Ran], name: str) -> None:
    alone = ran[name.split(maxsplit=1)[0]].ended()
    found = ran[name].ended()
    assert found.losses == pytest.approx(alone.losses, abs=TOLERANCE, rel=0)
    assert found.norms == pytest.approx(alone.norms, rel=1e-4)
    assert alone.losses[3] < alone.losses[1], "it learns, so that equal losses mean something"
