"""Tokens a second one process reads: permute, locate, copy, check ids; from the page cache.

Goals: 150 million tokens a CPU-second at windows of 257, 500 million at 2049; opening 10^10 tokens within 50 ms;
constant memory.
"""

from __future__ import annotations

import struct
import tempfile
import time
from pathlib import Path

import numpy as np

from primus.config.experiment import Data
from primus.data.format import HEADER, MAGIC, VERSION
from primus.data.indexed import IndexedDataset, write_index
from primus.data.planning import plan_data
from primus.data.reader import TrainingReader, Windows

TOKENS = 150_000_000
READ = 60_000_000
VOCAB = 50_000


def make_dataset(directory: Path) -> Path:
    """Random tokens in documents of 1 to 4000 tokens, warm in the page cache."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 4000, TOKENS // 2000).astype("<i4")
    prefix = directory / "tokens"
    random.integers(0, VOCAB, int(lengths.sum()), dtype=np.uint16).tofile(f"{prefix}.bin")
    lengths.tofile(directory / "lengths")
    with Path(f"{prefix}.idx").open("wb") as index:
        write_index(index, "uint16", directory / "lengths")
    return prefix


def make_sparse(directory: Path) -> Path:
    """10^10 tokens in ten documents, without data on the disk."""
    prefix, documents, each = directory / "sparse", 10, 10**9
    with Path(f"{prefix}.bin").open("wb") as tokens:
        tokens.truncate(2 * documents * each)
    index = HEADER.pack(MAGIC, VERSION, 8, documents, documents + 1)
    index += struct.pack(f"<{documents}i", *[each] * documents)
    index += struct.pack(f"<{documents}q", *[2 * each * n for n in range(documents)])
    index += struct.pack(f"<{documents + 1}q", *range(documents + 1))
    Path(f"{prefix}.idx").write_bytes(index)
    return prefix


def open_reader(prefix: Path, window: int, attention: str) -> TrainingReader:
    data = Data.model_validate({"train": str(prefix), "document_attention": attention})
    planned = plan_data(data, seq_length=window - 1, vocab_size=VOCAB)
    source = planned.sources[0]
    return TrainingReader([Windows(source, 0, source.tokens, window - 1, VOCAB)], planned, window - 1, seed=1)


def speed(reader: TrainingReader, window: int, batch: int) -> float:
    """Million tokens a CPU-second, the median of five runs over fresh samples."""
    rounds, first, rates = max(1, READ // 5 // (batch * window)), 0, []
    for _ in range(6):
        started = time.process_time()
        for _ in range(rounds):
            reader.read(first, batch)
            first += batch
        rates.append(rounds * batch * window / (time.process_time() - started) / 1e6)
    return sorted(rates[1:])[2]


def anonymous_memory() -> int:
    """KiB of memory that is this process's own, not the page cache's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        prefix = make_dataset(directory)
        print(f"{'window':>6} {'attention':>9}   million tokens a CPU-second, by samples a read")
        print(f"{'':>16}  {'1':>7} {'8':>7} {'64':>7} {'256':>7}")
        for attention in ("full", "within"):
            for window in (257, 2049, 8193):
                reader = open_reader(prefix, window, attention)
                rates = [speed(reader, window, batch) for batch in (1, 8, 64, 256)]
                print(f"{window:>6} {attention:>9}  " + " ".join(f"{rate:>7.0f}" for rate in rates))
        reader = open_reader(prefix, 257, "full")
        reader.read(0, 256)
        before = anonymous_memory()
        for first in range(0, 200_000, 256):
            reader.read(first, 256)
        print(f"own memory after 200,000 further samples: {anonymous_memory() - before:+d} KiB")
        sparse = make_sparse(directory)
        started = time.perf_counter()
        IndexedDataset(sparse)
        opened = time.perf_counter() - started
        started = time.perf_counter()
        reader = open_reader(sparse, 2049, "full")
        reader.read(0, 1)
        first = time.perf_counter() - started
        print(
            f"10^10 tokens: opened in {opened * 1e3:.1f} ms; planned, opened and a sample read in {first * 1e3:.1f} ms"
        )


if __name__ == "__main__":
    main()
