"""From a training checkpoint to a Hugging Face directory.

The other way needs no conversion: ``model.init: DIRECTORY`` starts training from a Hugging Face directory as it is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from primus.checkpoints.integrity import read_manifest, sync_directory, verify
from primus.errors import CheckpointError

Progress = Callable[[int, int], None]
"""(tensors written, tensors in all)."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
READERS = {name: f"primus.backends.{name}.export" for name in ("megatron", "torchtitan")}
"""Backend -> module whose ``saved_model(directory, model)`` reads its checkpoints."""


def export_huggingface(
    checkpoint: Path, output: Path, *, dtype: str = "float32", progress: Progress | None = None
) -> None:
    """Write the model of `checkpoint` (a ``step-N`` directory) as a Hugging Face directory: safetensors of at most
    5 GB a file, ``config.json``, and the files of the tokenizer it was trained with, if they are still there.

    dtype: float32, bfloat16 or float16. Memory: twice the largest tensor at most; the optimizer's state is not read
    but to verify it. `output` appears when it is whole; it must not exist. Raises CheckpointError.
    """
    from primus.checkpoints import safetensors
    from primus.config.experiment import Model
    from primus.config.huggingface import to_config

    if dtype not in safetensors.WRITTEN:
        raise CheckpointError(f"no such dtype: {dtype}", where="--dtype", remedy=" or ".join(safetensors.WRITTEN))
    if output.exists() or output.is_symlink():
        raise CheckpointError("exists already", where=str(output), remedy="choose another output, or remove it")
    try:
        info = read_manifest(checkpoint)
    except FileNotFoundError:
        raise CheckpointError(
            "this is no complete checkpoint", where=str(checkpoint), remedy="`checkpoint list` shows the complete ones"
        ) from None
    problems = verify(info)
    if problems:
        raise CheckpointError(problems=problems)
    plan = _plan(checkpoint)
    model = Model.model_validate(info.model, strict=False)
    backend = info.backend or plan.get("experiment", {}).get("backend", "torchtitan")
    if backend not in READERS:
        raise CheckpointError(f"checkpoints of {backend} cannot be converted", where=str(checkpoint))
    saved = import_module(READERS[backend]).saved_model(checkpoint, model)
    shapes = {source.name: source.shape for source in saved.sources}
    config = to_config(model) | {"torch_dtype": dtype}
    data = plan.get("data", {})
    if data.get("eod_id") is not None:
        config["eos_token_id"] = data["eod_id"]

    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        safetensors.write(
            partial, shapes, _counted(saved.tensors(), len(shapes), progress), dtype, narrow=saved.narrowed
        )
        if progress:
            progress(len(shapes), len(shapes))
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if data.get("tokenizer"):
            _copy_tokenizer(Path(data["tokenizer"]), partial)
        sync_directory(partial)
        partial.rename(output)
        sync_directory(output.parent)
    except OSError as error:
        raise CheckpointError(
            f"cannot be written: {error.strerror}", where=str(output), remedy="check permissions and free space"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _counted(tensors: Iterator[Any], total: int, progress: Progress | None) -> Iterator[Any]:
    for done, tensor in enumerate(tensors):
        if progress:
            progress(done, total)
        yield tensor


def _plan(checkpoint: Path) -> dict[str, Any]:
    """The plan of the run that holds `checkpoint`, as JSON; empty for a checkpoint moved elsewhere."""
    path = checkpoint.resolve().parent.parent / "plan.json"
    if not path.exists():
        return {}
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the run's plan cannot be read: {error}", where=str(path)) from error
    return plan


def _copy_tokenizer(source: Path, target: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
