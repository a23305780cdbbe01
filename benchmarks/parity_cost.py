"""What equal numbers on every engine cost a step: exact gradient norm, shared sample order, shared schedule.

    python benchmarks/parity_cost.py [--steps 100] [--config FILE] [key=value ...]

One process trains a tiny Llama with Megatron's trainer, and takes turns from step to step: with the exact norm, and
with torch's own over the same gradients. Beside it, the parts alone, in CPU-seconds: each against what does the same
work without the promise (torch's norm, reading the same windows one after the other, a constant).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from primus.backends.base import Session
from primus.config.load import load
from primus.data.reader import open_training
from primus.events.types import Event, StepDone
from primus.numerics.schedule import learning_rate
from primus.plan.plan import Plan
from primus.plan.planner import make_plan

EXAMPLE = """
extends: [models/tiny_llama, hardware/cpu]
name: parity
backend: megatron
data: {train: synthetic}
train: {steps: 100, global_batch_size: 4, micro_batch_size: 4, seq_length: 256}
optimizer: {lr: 1.0e-3}
precision: fp32
"""
WARM = 6


def steps(plan: Plan) -> dict[str, list[float]]:
    """CPU-seconds of every step with each of the two norms, which take turns."""
    import torch

    from primus.backends.megatron import MegatronBackend
    from primus.backends.pytorch import norms

    exact, turn, times = norms.squared_norm, 0, [time.process_time()]

    def theirs(gradients: Any, device: torch.device) -> torch.Tensor:
        return torch.nn.utils.get_total_norm(list(gradients)).double().square()

    def in_turns(gradients: Any, device: torch.device) -> torch.Tensor:
        return (exact if turn % 2 == 0 else theirs)(gradients, device)

    def emit(event: Event) -> None:
        nonlocal turn
        if isinstance(event, StepDone):
            times.append(time.process_time())
            turn += 1

    from primus.backends.megatron import patches

    patches.apply(plan.patches)
    from primus.backends.megatron import optimizer

    optimizer.squared_norm = in_turns
    directory = Path(plan.run_directory)
    attempt = directory / "attempts" / "1"
    attempt.mkdir(parents=True)
    MegatronBackend().run(plan, Session(0, 0, 1, directory, attempt, 1, emit, lambda: False))
    taken = [after - before for before, after in pairwise(times)][WARM:]
    return {"exact": taken[::2], "torch's": taken[1::2]}


def cpu_seconds(work: Callable[[], object], calls: int = 20) -> float:
    """Of one call, the median."""
    taken = []
    for _ in range(calls):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def parts(plan: Plan) -> list[tuple[str, float, float]]:
    """(what, ours, without the promise), CPU-seconds a step."""
    import torch

    from primus.backends.pytorch.norms import squared_norm

    found = []
    cpu = torch.device("cpu")
    for count, size in ((40, 25_000), (40, 1_000_000)):
        gradients = [torch.randn(size) for _ in range(count)]
        ours, theirs = (
            cpu_seconds(lambda g=gradients: squared_norm(g, cpu)),  # type: ignore[misc]
            cpu_seconds(lambda g=gradients: torch.nn.utils.get_total_norm(g)),  # type: ignore[misc]
        )
        found.append((f"norm of {count * size / 1e6:.0f} M gradients", ours, theirs))
    reader, batch = open_training(plan), plan.experiment.train.global_batch_size
    tokens = torch.randint(4096, (4096, batch, plan.experiment.train.seq_length + 1)).numpy()
    step = iter(range(10**9))
    read = cpu_seconds(lambda: reader.read(next(step) * batch, batch), 200)
    plain = cpu_seconds(lambda: (tokens[(i := next(step) % 4096)][:, :-1].copy(), tokens[i][:, 1:].copy()), 200)
    found.append((f"{batch} samples in the shared order", read, plain))
    settings = plan.experiment.optimizer
    found.append(("learning rate", cpu_seconds(lambda: learning_rate(next(step), settings, 1000), 200), 0.0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="an experiment of Megatron's for one process")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("overrides", nargs="*", help="key=value")
    arguments = parser.parse_args()
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        written = root / "parity.yaml"
        written.write_text(EXAMPLE, encoding="utf-8")
        overrides = [f"train.steps={arguments.steps}", "model.init=native", *arguments.overrides]
        plan = make_plan(load(arguments.config or written, overrides), nproc=1, run_directory=root / "run")
        sides = steps(plan)
        table = parts(plan)
    middle = {side: statistics.median(values) for side, values in sides.items()}
    lowest, highest = statistics.quantiles(sides["torch's"], n=4)[::2]
    print(f"{plan.parameters:,} parameters, CPU-milliseconds a step (median)")
    print(f"{'':36}{'ours':>10}{'without':>10}{'of a step':>11}")
    ours, theirs = middle["exact"], middle["torch's"]
    print(f"{'a whole step, either norm':36}{1e3 * ours:>10.2f}{1e3 * theirs:>10.2f}{(ours - theirs) / theirs:>11.2%}")
    print(f"{'  middle half of the steps':36}{'':>10}{1e3 * lowest:>6.2f}-{1e3 * highest:.2f}")
    for name, mine, other in table:
        share = f"{(mine - other) / theirs:.2%}" if "40 M" not in name else "-"
        print(f"{name:36}{1e3 * mine:>10.3f}{1e3 * other:>10.3f}{share:>11}")


if __name__ == "__main__":
    main()
