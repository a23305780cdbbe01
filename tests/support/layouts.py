"""Ranks that start models in many layouts and compare every parameter with a start in one process.

``layouts.py OUTPUT PORT`` reads the weights in OUTPUT/MODEL and writes OUTPUT/rank-R.json.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

WORLD = 4
SEED = 7
LAYOUTS: dict[str, tuple[str, dict[str, int]]] = {
    "llama sharded": ("llama", {"data_parallel_shard": 4}),
    "llama sharded and tensor": ("llama", {"data_parallel_shard": 2, "tensor_parallel": 2}),
    "llama replicated and tensor": ("llama", {"data_parallel_replicate": 2, "tensor_parallel": 2}),
    "llama pipeline and sharded": ("llama", {"pipeline_parallel": 2, "data_parallel_shard": 2}),
    "llama pipeline and tensor": ("llama without groups", {"pipeline_parallel": 2, "tensor_parallel": 2}),
    "llama tied, sharded and tensor": ("llama llama3 tied", {"data_parallel_shard": 2, "tensor_parallel": 2}),
    "llama context": ("llama wide heads yarn", {"context_parallel": 2, "data_parallel_shard": 2}),
    "qwen3 sharded and tensor": ("qwen3 tied", {"data_parallel_shard": 2, "tensor_parallel": 2}),
    "qwen2 sharded and tensor": ("qwen2 tied", {"data_parallel_shard": 2, "tensor_parallel": 2}),
    "qwen2 pipeline and sharded": ("qwen2 yarn", {"pipeline_parallel": 2, "data_parallel_shard": 2}),
    "qwen3_moe expert and sharded": ("qwen3_moe", {"data_parallel_shard": 4, "expert_parallel": 2}),
    "qwen3_moe tied, sharded and tensor": ("qwen3_moe tied yarn", {"data_parallel_shard": 2, "tensor_parallel": 2}),
    "mixtral tensor and expert": (
        "mixtral",
        {"data_parallel_shard": 2, "tensor_parallel": 2, "expert_parallel": 2},
    ),
    "mixtral pipeline and tensor": ("mixtral", {"pipeline_parallel": 2, "tensor_parallel": 2}),
    "llama4 expert and sharded": ("llama4_text", {"data_parallel_shard": 4, "expert_parallel": 2}),
    "llama4 sharded and tensor": ("llama4_text", {"data_parallel_shard": 2, "tensor_parallel": 2}),
    "deepseek_v2 expert": ("deepseek_v2 groups yarn", {"data_parallel_shard": 4, "expert_parallel": 4}),
    "deepseek_v2 sharded and tensor": ("deepseek_v2 groups yarn", {"data_parallel_shard": 2, "tensor_parallel": 2}),
    "deepseek expert": ("deepseek_v3 groups yarn", {"data_parallel_shard": 4, "expert_parallel": 4}),
    "deepseek expert and sharded": ("deepseek_v3 groups yarn", {"data_parallel_shard": 4, "expert_parallel": 2}),
    "deepseek tensor": ("deepseek_v3 plain", {"data_parallel_shard": 2, "tensor_parallel": 2}),
    "deepseek tensor and expert": (
        "deepseek_v3 plain",
        {"data_parallel_shard": 2, "tensor_parallel": 2, "expert_parallel": 2},
    ),
    "gpt_oss expert and sharded": ("gpt_oss", {"data_parallel_shard": 4, "expert_parallel": 2}),
    "gpt_oss sharded and tensor": ("gpt_oss", {"data_parallel_shard": 2, "tensor_parallel": 2}),
}


def parallelized(model: Any, degrees: dict[str, int]) -> list[Any]:
    """This rank's parts of the model, spread by TorchTitan and left uninitialised."""
    import torch
    from families import SEQ
    from torchtitan.config.configs import CompileConfig, ParallelismConfig, TrainingConfig
    from torchtitan.distributed import ParallelDims
    from torchtitan.distributed.activation_checkpoint import FullAC
    from torchtitan.trainer import Trainer

    from primus.backends.torchtitan.models import build_model_spec

    names = ("data_parallel_shard", "data_parallel_replicate", "tensor_parallel", "pipeline_parallel")
    names += ("context_parallel", "expert_parallel")
    parallelism = ParallelismConfig(
        spmd_backend="partial_dtensor",
        pipeline_parallel_schedule="1F1B",
        **{f"{name}_degree": degrees.get(name, 1) for name in names},
    )
    spec = build_model_spec(model, seq_length=SEQ, precision="fp32", context=degrees.get("context_parallel", 1))
    training = TrainingConfig(
        seq_len=SEQ, local_batch_size=4, mixed_precision_param="float32", disable_cuda_graphs=True
    )
    config = Trainer.Config(model_spec=spec, parallelism=parallelism, training=training)
    spec.model.update_from_config(config=config)
    dims = ParallelDims.from_config(parallelism, WORLD)
    with torch.device("meta"):
        built = spec.model.build()
    # Recomputation wraps the layers, and so changes the names of their parameters.
    shared = {
        "parallel_dims": dims,
        "training": training,
        "parallelism": parallelism,
        "compile_config": CompileConfig(),
        "ac_config": FullAC.Config(),
        "dump_folder": "",
    }
    parts = [built]
    if dims.pp_enabled:
        parts = spec.pipelining_fn(
            built,
            **shared,
            device=torch.device("cpu"),
            model_config=spec.model,
            parallelize_fn=spec.parallelize_fn,
            loss_fn=lambda *_: None,
        )[1]
    else:
        parts = [spec.parallelize_fn(built, **shared)]
    for part in parts:
        part.to_empty(device="cpu")
        with torch.no_grad():
            part.init_weights()
            for parameter in part.parameters():
                parameter.fill_(float("nan"))
    return parts


def compare(parts: list[Any], reference: dict[str, Any]) -> dict[str, str]:
    """Parameters that are not bit for bit those of `reference`, and how many were compared."""
    import torch
    from torch.distributed.tensor import DTensor

    from primus.backends.torchtitan.shards import named_tensors

    wrong, compared = {}, 0
    for name, tensor in named_tensors(parts):
        if name not in reference:
            continue
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        compared += 1
        if not torch.equal(whole, reference[name]):
            wrong[name] = f"{tuple(whole.shape)} differs in {int((whole != reference[name]).sum())} places"
    wrong["compared"] = str(compared)
    return wrong


def rank_main(rank: int, port: int, output: Path) -> None:
    import torch.distributed as dist
    from families import MODELS, titan_model
    from torchtitan.distributed.utils import set_spmd_backend

    from primus.backends.torchtitan.shards import named_tensors
    from primus.backends.torchtitan.start import load_huggingface, random_start

    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, timedelta(seconds=120), rank=rank, world_size=WORLD)
    set_spmd_backend("partial_dtensor")
    results: dict[str, dict[str, dict[str, str]]] = {}
    for layout, (name, degrees) in LAYOUTS.items():
        model = MODELS[name]
        parts, alone = parallelized(model, degrees), [titan_model(model)]
        results[layout] = {}
        for kind, start in (
            ("random", lambda p, m=model: random_start(p, m, SEED)),
            ("huggingface", lambda p, m=model, d=output / name: load_huggingface(p, m, d)),
        ):
            start(alone)
            start(parts)
            results[layout][kind] = compare(parts, dict(named_tensors(alone)))
    (output / f"rank-{rank}.json").write_text(json.dumps(results), encoding="utf-8")
    dist.destroy_process_group()


def main(output: Path, port: int) -> int:
    """The ranks are forked after the imports, which take longer than the work."""
    import families  # noqa: F401
    import torchtitan.trainer  # noqa: F401

    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=rank_main, args=(rank, port, output)) for rank in range(WORLD)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return max(abs(process.exitcode or 0) for process in ranks)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
