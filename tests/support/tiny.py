"""Tiny experiments and a tiny dataset that a model can learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from primus.config.load import load
from primus.data.indexed import write_index
from primus.plan.plan import Plan
from primus.plan.planner import make_plan

VOCAB = 256

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 176,
    "max_position_embeddings": 512,
    "init_std": 0.06,
}
QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True, "rms_norm_eps": 1.0e-6}
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "scoring_func": "sigmoid",
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}
GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 512,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 16,
    "swiglu_limit": 7.0,
}
QWEN2 = LLAMA | {"model_type": "qwen2", "rms_norm_eps": 1.0e-6}
MIXTRAL = LLAMA | {
    "model_type": "mixtral",
    "intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "scoring_func": "softmax",
    "norm_topk_prob": True,
}
QWEN3_MOE = LLAMA | {
    "model_type": "qwen3_moe",
    "head_dim": 32,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "scoring_func": "softmax",
    "norm_topk_prob": True,
    "rms_norm_eps": 1.0e-6,
}
DEEPSEEK_V2 = DEEPSEEK_V3 | {
    "model_type": "deepseek_v2",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "q_lora_rank": 24,
    "n_shared_experts": 2,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 2.0,
    "init_std": 0.06,
}
LLAMA4 = LLAMA | {  # layers 0 and 2 dense, 1 and 3 with experts; layer 3 without rotary positions
    "model_type": "llama4_text",
    "head_dim": 16,
    "intermediate_size": 32,
    "intermediate_size_mlp": 128,
    "interleave_moe_layer_step": 2,
    "no_rope_layer_interval": 4,
    "attention_chunk_size": 48,
    "use_qk_norm": True,
    "attn_temperature_tuning": True,
    "floor_scale": 16,
    "attn_scale": 0.1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "scoring_func": "sigmoid",
    "norm_topk_prob": False,
}


def make_dataset(prefix: Path, tokens: int = 200_000, documents: int = 400) -> Path:
    """A Markov chain over VOCAB symbols, four successors each: its entropy is about one nat, so loss can fall."""
    generator = np.random.default_rng(0)
    successors = generator.integers(1, VOCAB, size=(VOCAB, 4))
    choices = generator.choice(4, size=tokens, p=[0.6, 0.2, 0.15, 0.05])
    chain = np.empty(tokens, dtype=np.uint16)
    state = 1
    for place, choice in enumerate(choices):
        state = int(successors[state, choice])
        chain[place] = state
    lengths = np.full(documents, tokens // documents, dtype=np.int32)
    chain[np.cumsum(lengths) - 1] = 0  # id 0 ends a document
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_suffix(".bin").write_bytes(chain.tobytes())
    counts = prefix.with_suffix(".lengths")
    counts.write_bytes(lengths.tobytes())
    with prefix.with_suffix(".idx").open("wb") as file:
        write_index(file, "uint16", counts)
    counts.unlink()
    return prefix


def make(
    run_directory: Path, dataset: Path | str, *, nnodes: int = 1, nproc: int = 1, masked: bool = False, **overrides: Any
) -> Plan:
    """The plan of a tiny Llama in fp32; `overrides` are keys with ``__`` for the dot. masked: leave the ends of
    documents out of the loss (what ``data.mask_eod`` does for a dataset whose manifest names its end token)."""
    tree: dict[str, Any] = {
        "name": run_directory.name,
        "hardware": {"name": "cpu", "device": "cpu"},
        "model": LLAMA,
        "data": {"train": str(dataset)},
        "train": {"steps": 10, "global_batch_size": 8, "micro_batch_size": 4, "seq_length": 64, "seed": 1234},
        "optimizer": {"lr": 1.0e-2, "schedule": {"name": "cosine", "warmup_steps": 2}},
        "precision": "fp32",
        "checkpoint": {"async": False},
        "resilience": {"hang_timeout": "2m"},
    }
    for key, value in overrides.items():
        *sections, name = key.split("__")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    run_directory.mkdir(parents=True, exist_ok=True)
    file = run_directory / "experiment.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    plan = make_plan(load(file), nnodes=nnodes, nproc=nproc, run_directory=run_directory)
    data = plan.data.model_copy(update={"mask_eod": True, "eod_id": 0})
    return plan.model_copy(update={"data": data}) if masked else plan
