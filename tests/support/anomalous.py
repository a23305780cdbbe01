"""A run that meets a NaN by itself: one token of the vocabulary has an embedding that is not a number, as one that was
added to a tokenizer and never initialised, and it occurs in one training batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import reference
import torch
from tiny import make, make_dataset
from transformers import AutoModelForCausalLM

from primus.data.order import SampleOrder
from primus.data.shares import SLOTS
from primus.plan.plan import Plan

RARE = 255
"""The token."""
BATCH, SEQ = 8, 64
TOKENS = 20_000
STEPS = 8
BAD = 4
"""Number, from 0, of the only global batch of the first ``STEPS + 4`` that has the token in it: step 5 would be made of
it."""
OPTIONS: dict[str, Any] = {
    "train__steps": STEPS,
    "optimizer__lr": 2e-3,
    "optimizer__schedule__decay_steps": STEPS,
    "checkpoint__interval": 3,
    "train__micro_batch_size": 2,
}


def dataset(prefix: Path, windows: tuple[int, ...] = (0,), tokens: int = TOKENS) -> Path:
    """The chain of ``tiny`` with the token in `windows` alone."""
    make_dataset(prefix, tokens=tokens, documents=40)
    path = prefix.with_suffix(".bin")
    chain = np.fromfile(path, np.uint16)
    chain[chain == RARE] = RARE - 1
    chain[[window * SEQ + 10 for window in windows]] = RARE
    path.write_bytes(chain.tobytes())
    return prefix


def save_start(plan: Plan, directory: Path) -> None:
    """Weights of the plan's random start, but for the token's embedding."""
    start = reference.random_model(plan)
    with torch.no_grad():
        start.get_input_embeddings().weight[RARE] = torch.nan  # type: ignore[operator, union-attr]
    start.save_pretrained(directory)


class Anomalous:
    """Plans and the plain loop's losses of such runs, in `root`."""

    def __init__(self, root: Path, model: dict[str, Any], **options: Any) -> None:
        self.root, self._options = root, OPTIONS | options
        self.data = dataset(root / "data" / "chain")
        plan = make(root / "start", self.data, model=model, **self._options)
        self.seed = _seed(plan.data.digest)
        save_start(plan, root / "weights")

    def plan(self, name: str, **options: Any) -> Plan:
        start = {"init": str(self.root / "weights")}
        return make(self.root / name, self.data, train__seed=self.seed, model=start, **self._options | options)

    def expected(self) -> reference.Trained:
        """Of the plain loop, which leaves the batch out."""
        model = AutoModelForCausalLM.from_pretrained(
            self.root / "weights", dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
        )
        balanced = "moe__balance" in self._options
        return reference.train(self.plan("reference"), model=model.train(), balanced=balanced, left_out=[BAD])


def _seed(digest: str) -> int:
    """The first seed that puts window 0 into batch ``BAD``."""
    windows = (TOKENS - 1) // SEQ
    for seed in range(10_000):
        _, places = SampleOrder([windows], [SLOTS], digest, seed).locate(0, (STEPS + 4) * BATCH)
        if list(np.flatnonzero(places == 0) // BATCH) == [BAD]:
            return seed
    raise AssertionError("no seed does")
