"""From a training checkpoint to a Hugging Face directory.

The other way needs no conversion: ``model.init: DIRECTORY`` starts training from a Hugging Face directory as it is.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from primus.backends.base import Progress
from primus.checkpoints.integrity import read_manifest, sync_directory, verify
from primus.config.experiment import Model
from primus.config.huggingface import to_config
from primus.errors import CheckpointError
from primus.runtime.exchange.exchanges import Exchanges

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def export_huggingface(
    exchanges: Exchanges, checkpoint: Path, output: Path, *, dtype: str = "float32", progress: Progress
) -> None:
    """Write the model of `checkpoint` (a ``step-N`` directory) as a Hugging Face directory: safetensors of at most
    5 GB a file, ``config.json``, and the files of the tokenizer it was trained with, if they are still there.

    dtype: float32, bfloat16 or float16. Memory: twice the largest tensor at most; the optimizer's state is not read
    but to verify it. `output` appears when it is whole; it must not exist. Raises CheckpointError.
    """
    if output.exists() or output.is_symlink():
        raise CheckpointError("exists already", where=str(output), remedy="choose another output, or remove it")
    try:
        info = read_manifest(checkpoint)
    except FileNotFoundError:
        raise CheckpointError(
            "this is no complete checkpoint", where=str(checkpoint), remedy="`checkpoint list` shows the complete ones"
        ) from None
    plan = _plan(checkpoint)
    backend = info.backend or plan.get("experiment", {}).get("backend", "torchtitan")
    exchanges.start(backend)
    problems = verify(info)
    if problems:
        raise CheckpointError(problems=problems)
    config = to_config(Model.model_validate(info.model, strict=False)) | {"torch_dtype": dtype}
    data = plan.get("data", {})
    if data.get("eod_id") is not None:
        config["eos_token_id"] = data["eod_id"]

    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        exchanges.export_weights(backend, checkpoint, partial, dtype, progress)
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
