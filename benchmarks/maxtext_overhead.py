"""Tokens per CPU-second and time to the first step of MaxText's `train pretrain`, against MaxText's own train loop.

    python benchmarks/maxtext_overhead.py [--steps 60] [--repeats 5] [--config FILE] [key=value ...]

Both sides train the same model with the same native configuration, each in a fresh process of the jax environment, in
turns. The bare side is MaxText's ``train_loop`` on its synthetic batches, its INFO lines off; ours reads the dataset,
looks at loss and norm of every step, and reports it to the run's events. CPU time of all threads, from the end of the
fifth step on. Both keep compiled programs where runs do, so later runs find them; with maxtext.jax_cache_dir=DIRECTORY,
an empty one, the first run of each compiles.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train_overhead import EXAMPLE, compare, ours

from primus.backends.base import Session
from primus.home import primus_home
from primus.plan.plan import Plan
from primus.runtime.environments import provide


def bare(plan: Plan, session: Session, clock: Callable[[], None]) -> None:
    import jax
    from maxtext.configs import pyconfig
    from maxtext.trainers.pre_train import train

    logging.disable(logging.INFO)
    base = Path(pyconfig.__file__).with_name("base.yml")
    names = {
        "run_name": "bare",
        "base_output_directory": plan.run_directory,
        "jax_cache_dir": str(primus_home() / "jax"),
    }
    iteration = train.training_loop_iteration

    def timed(*arguments: Any) -> Any:
        metrics = jax.block_until_ready(iteration(*arguments))
        clock()
        return metrics

    train.training_loop_iteration = timed
    train.run(pyconfig.initialize(["bare", str(base)], **names | plan.native), None)


if __name__ == "__main__":
    compare(__doc__, {"ours": ours, "bare": bare}, EXAMPLE + "backend: maxtext\n", provide("jax"), first_goal=2.0)
