"""Nanoseconds an index of the sample order takes, in batches of 65,536: the permutation alone, and with mixtures.

Goal: at most 60 ns an index of the permutation, for any size up to 10^12.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from primus.data.order import Permutation, SampleOrder
from primus.data.shares import SLOTS, mixture_shares

BATCH = 65_536
REPEATS = 12


def nanoseconds(work: Callable[[], object], indices: int) -> float:
    """CPU time an index, the median of several runs."""
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return sorted(times)[len(times) // 2] / indices * 1e9


def main() -> None:
    random = np.random.default_rng(0)
    print(f"{'size':>16}  {'ns an index':>11}")
    for size in (10**4, 10**6, 2 * 10**6 + 1, 10**8, 10**9 + 7, 10**10 + 19, 10**12 - 11, 10**12):
        permutation = Permutation(size, b"benchmark")
        indices = random.integers(0, size, BATCH)
        print(f"{size:>16,}  {nanoseconds(lambda p=permutation, i=indices: p.apply(i), BATCH):>11.1f}")  # type: ignore[misc]
    print(f"\n{'sources, in order':>16}  {'ns a sample':>11}")
    for sizes in ([10**9], [10**9, 10**6], [10**9] * 16):
        order = SampleOrder(sizes, mixture_shares([1.0] * len(sizes)), "benchmark", 1)
        blocks = iter(range(10**6))
        work = lambda o=order, b=blocks: o.locate(next(b) * SLOTS * 8, SLOTS * 8)  # noqa: E731
        print(f"{len(sizes):>16}  {nanoseconds(work, SLOTS * 8):>11.1f}")


if __name__ == "__main__":
    main()
