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
from pathlib import Path
from typing import Any

import numpy as np

from primus.config.experiment import Model
from primus.config.load import load

ENGINES = ("megatron", "torchtitan")
OTHER = dict(zip(ENGINES, reversed(ENGINES), strict=True))
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
    import torch
    from torch.distributed.checkpoint.state_dict_saver import save

    from primus.backends.pytorch.exchange import _name_of
    from primus.backends.pytorch.pieces import Made
    from primus.backends.pytorch.storage import HashingWriter
    from primus.checkpoints.integrity import seal

    random = torch.randn(1 << 20)
    state: dict[str, Any] = {}
    for part in ("weights", "exp_avg", "exp_avg_sq") if moments else ("weights",):
        for weight in layout(engine)(model).of(part):

            def values(shape: tuple[int, ...] = weight.shape, squares: bool = part == "exp_avg_sq") -> torch.Tensor:
                tensor = torch.empty(shape)
                for block in tensor.view(-1).split(random.numel()):
                    block.copy_(random[: block.numel()])
                return tensor.square_() if squares else tensor

            state[_name_of(part, weight.native)] = Made(weight.shape, values)
    directory.mkdir(parents=True)
    writer = HashingWriter(directory)
    save(state, storage_writer=writer, no_dist=True)
    fields = model.model_dump(mode="json")
    seal(directory, step=1, consumed_samples=1, model=fields, backend=engine, digests=writer.digests)


def layout(engine: str) -> Any:
    from importlib import import_module

    return import_module(f"primus.backends.{engine}.export").layout


def export(checkpoint: Path, output: Path, dtype: str) -> Done:
    import torch.distributed.checkpoint  # noqa: F401

    from primus.backends.megatron import export as _megatron  # noqa: F401
    from primus.backends.torchtitan import export as _torchtitan  # noqa: F401
    from primus.checkpoints.convert import export_huggingface

    return measured(lambda: export_huggingface(checkpoint, output, dtype=dtype))


def start(model: Model, engine: str, directory: Path) -> Done:
    from importlib import import_module

    import torch

    from primus.backends.pytorch.shards import Shard
    from primus.backends.pytorch.start import load_huggingface

    weights = import_module(f"primus.backends.{engine}.layout").weights(model)
    once = [weight for weight in weights if weight.native != "lm_head.weight" or not model.tie_word_embeddings]
    parameters = [
        Shard(w.native, torch.full(w.shape, float("nan")), w.shape, [np.arange(size) for size in w.shape]) for w in once
    ]
    done = measured(lambda: load_huggingface(parameters, weights, model, directory))
    assert all(torch.isfinite(shard.local.view(-1)[-1]) for shard in parameters)
    return done


def move_out(engine: str, checkpoint: Path, directory: Path) -> Done:
    from primus.backends.pytorch.exchange import export_state

    directory.mkdir()
    of = layout(engine)
    return measured(lambda: export_state(of, checkpoint, directory, lambda done, total: None))


def move_in(engine: str, directory: Path, checkpoint: Path) -> Done:
    from primus.backends.pytorch.exchange import import_state

    checkpoint.mkdir()
    of = layout(engine)
    return measured(lambda: import_state(of, engine, directory, checkpoint, lambda done, total: None))


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
        case "export", [checkpoint, output, dtype]:
            return export(Path(checkpoint), Path(output), dtype)
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
        self.largest = 4 * max(w.rows * w.columns for w in layout("torchtitan")(model_of(self.layers)).weights)
        print(
            f"{'':44}{'GB':>6}{'GB/s':>7}{'copy':>7}{'ratio':>14}{'CPU s':>8}{'copy':>7}{'memory MB':>11}"
            f"   (goals: 0.5, {2 * self.largest / 1e6 + 500:,.0f} MB)",
            flush=True,
        )

    def run(self, *work: object, source: Path | None = None) -> Done:
        """`work` in a fresh process. source: what it reads."""
        os.sync()
        if source is not None:
            self._prepare(source)
        command = [sys.executable, __file__, "--work", *map(str, work)]
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
        self.run("make", self.layers, engine, checkpoint, "weights")
        for dtype in ("float32", "bfloat16"):

            def export(dtype: str = dtype) -> Done:
                shutil.rmtree(output, ignore_errors=True)
                return self.run("export", checkpoint, output, dtype, source=checkpoint)

            if "export" in kinds:
                self.row(f"{engine} to Hugging Face, {dtype}", export, lambda: output)
            else:
                export()
            if "start" in kinds:
                self.row(
                    f"start of {engine}, {dtype}",
                    lambda: self.run("start", self.layers, engine, output, source=output),
                    lambda: output,
                )
        shutil.rmtree(checkpoint)
        shutil.rmtree(output)

    def move(self, engine: str) -> None:
        other = OTHER[engine]
        checkpoint, between, made = self.root / engine / "step-1", self.root / "between", self.root / other / "step-1"
        self.run("make", self.layers, engine, checkpoint, "moments")
        made.parent.mkdir(exist_ok=True)

        def out() -> Done:
            shutil.rmtree(between, ignore_errors=True)
            return self.run("out", engine, checkpoint, between, source=checkpoint)

        def into() -> Done:
            shutil.rmtree(made, ignore_errors=True)
            return self.run("in", other, between, made, source=between)

        self.row(f"move, out of {engine}", out, lambda: between)
        shutil.rmtree(checkpoint)
        self.row(f"move, into {other}", into, lambda: between)
        shutil.rmtree(between)
        shutil.rmtree(made)


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
