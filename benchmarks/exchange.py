"""A Llama of 1.24 billion parameters to Hugging Face and back, and from engine to engine, against copying the files.

    python benchmarks/exchange.py [--directory DIR] [--repeats 3] [--layers 16] [--only start,export,move] [--cold]

Every piece of work runs in a fresh process, in turns with copying the safetensors it reads or writes (shutil.copyfile
and fsync, in the same directory). Both begin with their source in the page cache, or with --cold without it, and end
with everything on the disk. Memory is the largest resident set less what was there after the imports (of a start: and
its parameters); files that are mapped count. DIR (default: a temporary directory) needs 45 GB for all 16 layers; the
moves take 12 bytes a parameter three times, everything else 12 GB together.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primus.backends import registry
from primus.backends.exchange import PARTS
from primus.backends.torchtitan.layout import weights
from primus.checkpoints.integrity import seal
from primus.checkpoints.weights import Weight
from primus.config.experiment import Model
from primus.config.load import load
from primus.runtime.environments import provide

ENGINES = ("megatron", "torchtitan", "maxtext")
PRESET = """
extends: [models/llama3.2_1B, hardware/cpu]
name: exchange
data: {train: synthetic}
train: {steps: 1, global_batch_size: 1, seq_length: 128}
optimizer: {lr: 1.0e-3}
"""


@dataclass(frozen=True)
class Done:
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    """Beyond what was resident before."""


def measured(work: Callable[[], None]) -> Done:
    """Run `work` and bring to the disk what it has written."""
    resident = int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
    began, used = time.perf_counter(), time.process_time()
    work()
    seconds, used = time.perf_counter() - began, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Done(seconds, used, max(0, peak - resident))


# What a fresh process does


def model_of(layers: int) -> Model:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "exchange.yaml"
        file.write_text(PRESET, encoding="utf-8")
        return load(file, [f"model.num_hidden_layers={layers}"]).experiment.model


def make(model: Model, engine: str, directory: Path, *, moments: bool) -> None:
    """A checkpoint of random values, as `engine` would save it on one rank."""
    directory.mkdir(parents=True)
    tensors = [
        (part, weight)
        for part in (PARTS if moments else ("weights",))
        for weight in import_module(f"primus.backends.{engine}.export").layout(model).of(part)
    ]
    digests = (make_orbax if engine == "maxtext" else make_torch)(tensors, directory)
    fields = model.model_dump(mode="json")
    seal(directory, step=1, consumed_samples=1, model=fields, backend=engine, digests=digests)


def random_values(part: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    values = np.resize(np.random.default_rng(0).standard_normal(1 << 20, np.float32), shape)
    return np.square(values, out=values) if part == "exp_avg_sq" else values


def make_torch(tensors: Sequence[tuple[str, Weight]], directory: Path) -> dict[str, str]:
    import torch
    from torch.distributed.checkpoint.state_dict_saver import save

    from primus.backends.pytorch.exchange import name_of
    from primus.backends.pytorch.pieces import Made
    from primus.backends.pytorch.storage import HashingWriter

    def made(part: str, weight: Weight) -> torch.Tensor:
        return Made(weight.shape, lambda: torch.from_numpy(random_values(part, weight.shape)))

    writer = HashingWriter(directory)
    state = {name_of(part, weight.native): made(part, weight) for part, weight in tensors}
    save(state, storage_writer=writer, no_dist=True)
    return writer.digests


def make_orbax(tensors: Sequence[tuple[str, Weight]], directory: Path) -> dict[str, str]:
    from primus.backends.maxtext.saved import Writer

    writer = Writer(directory)
    for part, weight in tensors:
        writer.write(part, weight, lambda slab, _, part=part: random_values(part, slab.shape))  # type: ignore[misc]
    writer.finish()
    return {}


def exchange(engine: str) -> Any:
    """The engine's adapter, its libraries imported."""
    import_module(f"primus.backends.{engine}.export")
    return registry.get(engine)


def export(engine: str, checkpoint: Path, output: Path, dtype: str) -> Done:
    adapter = exchange(engine)
    output.mkdir()
    return measured(lambda: adapter.export_weights(checkpoint, output, dtype, lambda done, total: None))


def start(model: Model, engine: str, directory: Path) -> Done:
    import torch

    from primus.backends.pytorch.shards import Shard
    from primus.backends.pytorch.start import load_huggingface

    described = import_module(f"primus.backends.{engine}.layout").weights(model)
    once = [weight for weight in described if weight.native != "lm_head.weight" or not model.tie_word_embeddings]
    parameters = [
        Shard(w.native, torch.full(w.shape, float("nan")), w.shape, [np.arange(size) for size in w.shape]) for w in once
    ]
    done = measured(lambda: load_huggingface(parameters, described, model, directory))
    assert all(torch.isfinite(shard.local.view(-1)[-1]) for shard in parameters)
    return done


def move_out(engine: str, checkpoint: Path, directory: Path) -> Done:
    adapter = exchange(engine)
    directory.mkdir()
    return measured(lambda: adapter.export_state(checkpoint, directory, lambda done, total: None))


def move_in(engine: str, directory: Path, checkpoint: Path) -> Done:
    adapter = exchange(engine)
    checkpoint.mkdir()
    return measured(lambda: adapter.import_state(directory, checkpoint, lambda done, total: None))


def copy(source: Path, target: Path) -> Done:
    def work() -> None:
        for file in tensors_of(source):
            copied = target / file.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copied)
            with copied.open("rb") as stream:
                os.fsync(stream.fileno())

    return measured(work)


def tensors_of(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.safetensors"))


def perform(work: Sequence[str]) -> Done | None:
    """The `work` of a fresh process."""
    kind, *rest = work
    match kind, rest:
        case "make", [layers, engine, directory, moments]:
            make(model_of(int(layers)), engine, Path(directory), moments=moments == "moments")
            return None
        case "export", [engine, checkpoint, output, dtype]:
            return export(engine, Path(checkpoint), Path(output), dtype)
        case "start", [layers, engine, directory]:
            return start(model_of(int(layers)), engine, Path(directory))
        case "out", [engine, checkpoint, directory]:
            return move_out(engine, Path(checkpoint), Path(directory))
        case "in", [engine, directory, checkpoint]:
            return move_in(engine, Path(directory), Path(checkpoint))
        case "copy", [source, target]:
            return copy(Path(source), Path(target))
    raise SystemExit(f"unknown work: {work}")


# The table


class Benchmark:
    def __init__(self, root: Path, arguments: argparse.Namespace) -> None:
        self.root, self.repeats, self.cold, self.layers = root, arguments.repeats, arguments.cold, arguments.layers
        self.largest = 4 * max(w.rows * w.columns for w in weights(model_of(self.layers), fused=False))
        print(
            f"{'':44}{'GB':>6}{'GB/s':>7}{'copy':>7}{'ratio':>14}{'CPU s':>8}{'copy':>7}{'memory MB':>11}"
            f"   (goals: 0.5, {2 * self.largest / 1e6 + 500:,.0f} MB)",
            flush=True,
        )

    def run(self, *work: object, source: Path | None = None, engine: str = "torchtitan") -> Done:
        """`work` in a fresh process of the environment of `engine`. source: what it reads."""
        os.sync()
        if source is not None:
            self._prepare(source)
        python = sys.executable if engine != "maxtext" else provide("jax")
        command = [python, __file__, "--work", *map(str, work)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])
        return Done(**json.loads(done.stdout)) if done.stdout.strip() else Done(0, 0, 0)

    def _prepare(self, source: Path) -> None:
        """Bring the files of `source` into the page cache, or out of it."""
        buffer = bytearray(8 << 20)
        for path in filter(Path.is_file, source.rglob("*")):
            with path.open("rb", buffering=0) as file:
                if self.cold:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while not self.cold and file.readinto(buffer):
                    pass

    def row(self, title: str, work: Callable[[], Done], safetensors: Callable[[], Path]) -> None:
        """A line of the table. safetensors: where the files lie that are copied for comparison."""
        done, copies = [], []
        for _ in range(self.repeats):
            done.append(work())
            copies.append(self.run("copy", safetensors(), self.root / "copy", source=safetensors()))
            shutil.rmtree(self.root / "copy")
        size = sum(file.stat().st_size for file in tensors_of(safetensors()))
        ratios = [theirs.seconds / ours.seconds for ours, theirs in zip(done, copies, strict=True)]
        seconds, copied = (statistics.median(each.seconds for each in side) for side in (done, copies))
        cpu, copied_cpu = (statistics.median(each.cpu_seconds for each in side) for side in (done, copies))
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(
            f"{title:44}{size / 1e9:>6.2f}{size / seconds / 1e9:>7.2f}{size / copied / 1e9:>7.2f}{spread:>18}"
            f"{cpu:>6.1f}{copied_cpu:>7.1f}{max(each.peak_bytes for each in done) / 1e6:>9,.0f}",
            flush=True,
        )

    def huggingface(self, engine: str, kinds: Sequence[str]) -> None:
        checkpoint, output = self.root / engine / "checkpoints" / "step-1", self.root / "huggingface"
        self.run("make", self.layers, engine, checkpoint, "weights", engine=engine)
        for dtype in ("float32", "bfloat16"):

            def export(dtype: str = dtype) -> Done:
                shutil.rmtree(output, ignore_errors=True)
                return self.run("export", engine, checkpoint, output, dtype, source=checkpoint, engine=engine)

            if "export" in kinds:
                self.row(f"{engine} to Hugging Face, {dtype}", export, lambda: output)
            else:
                export()
            if "start" in kinds and engine != "maxtext":  # its start needs its devices: each makes its own part
                self.row(
                    f"start of {engine}, {dtype}",
                    lambda: self.run("start", self.layers, engine, output, source=output),
                    lambda: output,
                )
        shutil.rmtree(checkpoint)
        shutil.rmtree(output)

    def move(self, engine: str) -> None:
        checkpoint, between = self.root / engine / "step-1", self.root / "between"
        self.run("make", self.layers, engine, checkpoint, "moments", engine=engine)

        def out() -> Done:
            shutil.rmtree(between, ignore_errors=True)
            return self.run("out", engine, checkpoint, between, source=checkpoint, engine=engine)

        def into() -> Done:
            shutil.rmtree(checkpoint, ignore_errors=True)
            return self.run("in", engine, between, checkpoint, source=between, engine=engine)

        self.row(f"move, out of {engine}", out, lambda: between)
        self.row(f"move, into {engine}", into, lambda: between)
        shutil.rmtree(between)
        shutil.rmtree(checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--only", default="export,start,move")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--cold", action="store_true", help="begin with the source out of the page cache")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        done = perform(arguments.work)
        print("" if done is None else json.dumps(vars(done)))
        return
    kinds, engines = arguments.only.split(","), arguments.engines.split(",")
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        benchmark = Benchmark(Path(folder), arguments)
        for engine in engines:
            if {"export", "start"} & set(kinds):
                benchmark.huggingface(engine, kinds)
            if "move" in kinds:
                benchmark.move(engine)


if __name__ == "__main__":
    main()
