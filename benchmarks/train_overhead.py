"""Tokens per CPU-second of `train pretrain` against TorchTitan's own trainer with the same native configuration.

    python benchmarks/train_overhead.py [--steps 60] [--repeats 5] [--config FILE] [key=value ...]

Both sides train the same model on the same device with the same patches, each in a fresh process, in turns. Bare
TorchTitan reads its tokens from memory and logs every tenth step, its default; ours reads the dataset, reports every
step to the run's events, and agrees on stopping. CPU time of all threads, from the end of the fifth step on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from primus.backends import registry
from primus.backends.base import Session
from primus.config.load import load
from primus.events.bus import Bus
from primus.events.types import Event, StepDone
from primus.plan.plan import Plan
from primus.plan.planner import make_plan

EXAMPLE = """
extends: [models/tiny_llama, hardware/cpu]
name: overhead
data: {train: synthetic}
train: {steps: 60, global_batch_size: 4, micro_batch_size: 4, seq_length: 256}
optimizer: {lr: 1.0e-3}
precision: fp32
"""
WARM = 5
"""Steps left out: the first ones allocate."""

Side = Callable[[Plan, Session, Callable[[], None]], None]
"""Trains the plan, and calls the last after every step."""
Sides = dict[str, Side]


def ours(plan: Plan, session: Session, clock: Callable[[], None]) -> None:
    """Of any backend."""

    def emit(event: Event) -> None:
        session.emit(event)
        if isinstance(event, StepDone):
            clock()

    registry.get(plan.experiment.backend).run(plan, replace(session, emit=emit))


def bare(plan: Plan, session: Session, clock: Callable[[], None], save_every: int = 0) -> None:
    """save_every: steps between checkpoints of its own, from the newest of which it continues; 0: none."""
    from primus.backends.torchtitan import patches

    patches.apply(plan.patches)
    import torch
    import torch.distributed as dist
    from torchtitan.components.checkpointer import CheckpointManager
    from torchtitan.components.dataloader import BaseDataLoader
    from torchtitan.components.metrics import MetricsProcessor
    from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
    from torchtitan.trainer import Trainer

    from primus.backends.torchtitan.configure import trainer_config

    train, vocabulary = plan.experiment.train, plan.experiment.model.vocab_size

    class MemoryLoader(BaseDataLoader):
        @dataclass(kw_only=True, slots=True)
        class Config(BaseDataLoader.Config):
            pass

        def __init__(self, config: Config, **_: Any) -> None:
            shape = (64, train.micro_batch_size, train.seq_length + 1)
            self.tokens = torch.randint(vocabulary, shape)
            self.positions = torch.arange(train.seq_length).expand(train.micro_batch_size, -1).contiguous()

        def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
            while True:
                for batch in self.tokens:
                    yield {"input": batch[:, :-1], "positions": self.positions}, batch[:, 1:]

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            pass

    class TimedTrainer(Trainer):
        @dataclass(kw_only=True, slots=True)
        class Config(Trainer.Config):
            pass

        def train_step(self, data_iterator: Any) -> None:
            super().train_step(data_iterator)
            clock()

    config = trainer_config(plan, session)
    shared = ("model_spec", "training", "parallelism", "compile", "comm", "debug", "override", "loss", "tokenizer")
    settings = plan.experiment.optimizer
    trainer = TimedTrainer.Config(
        **{name: getattr(config, name) for name in (*shared, "activation_checkpoint", "validator", "dump_folder")},
        dataloader=MemoryLoader.Config(),
        optimizer=default_adamw(lr=settings.lr, eps=settings.eps, weight_decay=settings.weight_decay),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2),
        metrics=MetricsProcessor.Config(disable_color_printing=True),
        checkpoint=CheckpointManager.Config(enable=save_every > 0, interval=save_every or 500, keep_latest_k=2),
    ).build()
    trainer.train()
    trainer.close()
    dist.destroy_process_group()


SIDES: Sides = {"ours": ours, "bare": bare}


@dataclass(frozen=True)
class Measured:
    """cpu: CPU-seconds of the measured steps. first: seconds from the start of the process to its first step's end."""

    cpu: float
    first: float


def measure(run: Side, plan_file: Path) -> Measured:
    """In this process, which began at BENCHMARK_BEGAN."""
    plan = Plan.load(plan_file)
    times: list[float] = []
    first: list[float] = []

    def clock() -> None:
        if not first:
            first.append(time.time() - float(os.environ["BENCHMARK_BEGAN"]))
        times.append(time.process_time())

    attempt = plan_file.parent
    with Bus(attempt, "rank0") as bus:
        session = Session(0, 0, 1, Path(plan.run_directory), attempt, 1, bus.emit, lambda: False)
        run(plan, session, clock)
    assert len(times) == plan.experiment.train.steps
    return Measured(times[-1] - times[WARM - 1], first[0])


def in_process(side: str, plan: Plan, directory: Path, python: str) -> Measured:
    """`measure` in a fresh process of the script that was started, on one thread unless OMP_NUM_THREADS says more."""
    attempt = directory / "attempts" / "1"
    attempt.mkdir(parents=True)
    file = attempt / "plan.json"
    file.write_text(plan.model_copy(update={"run_directory": str(directory)}).to_json(), encoding="utf-8")
    extra = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command = [python, sys.argv[0], "--side", side, "--plan", str(file)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **plan.env, **extra, "BENCHMARK_BEGAN": str(time.time())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def compare(
    description: str | None, sides: Sides, example: str, python: str = sys.executable, first_goal: float | None = None
) -> None:
    """The command line of a benchmark that compares the `sides`, ``ours`` and ``bare``, on one experiment. python: runs
    them. first_goal: seconds that the first step of ours may come later."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="an experiment for one process; default: a tiny Llama")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", choices=sorted(sides), help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="key=value")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(asdict(measure(sides[arguments.side], arguments.plan))))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        written = root / "overhead.yaml"
        written.write_text(example, encoding="utf-8")
        overrides = [f"train.steps={arguments.steps}", "model.init=native", *arguments.overrides]
        plan = make_plan(load(arguments.config or written, overrides), nproc=1, run_directory=root / "run")
        tokens = plan.experiment.train.global_batch_size * plan.experiment.train.seq_length * (arguments.steps - WARM)
        runs: dict[str, list[Measured]] = {"bare": [], "ours": []}
        for repeat in range(arguments.repeats):
            for side in sorted(runs, reverse=bool(repeat % 2)):
                run = in_process(side, plan, root / f"{side}-{repeat}", python)
                runs[side].append(run)
                said = f"{tokens / run.cpu:,.0f} tokens/CPU-s, first step after {run.first:.1f} s"
                print(f"{repeat + 1}/{arguments.repeats} {side}: {said}", flush=True)
    rates = {side: statistics.median(tokens / run.cpu for run in of) for side, of in runs.items()}
    firsts = {side: statistics.median(run.first for run in of) for side, of in runs.items()}
    pairs = list(zip(runs["ours"], runs["bare"], strict=True))
    ratio = statistics.median(bare.cpu / ours.cpu for ours, bare in pairs)
    later = statistics.median(ours.first - bare.first for ours, bare in pairs)
    print(f"\n{'medians':10}{'tokens/CPU-s':>14}{'ratio':>10}{'first step, s':>16}{'later':>10}")
    print(f"{'bare':10}{rates['bare']:>14,.0f}{1:>10.3f}{firsts['bare']:>16.1f}{0:>10.1f}")
    print(f"{'ours':10}{rates['ours']:>14,.0f}{ratio:>10.3f}{firsts['ours']:>16.1f}{later:>10.1f}")
    print(f"{'goal':24}{0.97:>10.3f}{'' if first_goal is None else f'{first_goal:>26.1f}'}")


if __name__ == "__main__":
    compare(__doc__, SIDES, EXAMPLE)
