"""Small real datasets, tokenizers and plans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from token_data import TEXT, Make, MakePlan, write_by_hand

from primus.config.experiment import Data, Experiment, Hardware, Model, Optimizer, Train
from primus.data.planning import plan_data
from primus.data.tokenizer import TokenizerFiles
from primus.data.train_bpe import train_bpe
from primus.plan.plan import Plan, Topology


@pytest.fixture
def make_dataset(tmp_path: Path) -> Make:
    """``make_dataset(name, documents, dtype)``: documents are lists of tokens; returns the prefix."""

    def make(name: str, documents: Sequence[Sequence[int]], dtype: str = "uint16") -> Path:
        return write_by_hand(tmp_path / name, [[document] for document in documents], dtype)

    return make


@pytest.fixture
def make_plan() -> MakePlan:
    """``make_plan(data=..., seq_length=..., vocab_size=..., seed=...)``: a plan with real planned data."""

    def make(data: Data, seq_length: int = 8, vocab_size: int = 1000, seed: int = 1) -> Plan:
        model = Model(
            model_type="llama",
            vocab_size=vocab_size,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            max_position_embeddings=65536,
        )
        experiment = Experiment(
            name="trial",
            hardware=Hardware(name="cpu", device="cpu"),
            model=model,
            data=data,
            train=Train(steps=1, global_batch_size=1, seq_length=seq_length, seed=seed),
            optimizer=Optimizer(lr=1e-3),
        )
        one = {"data_replicate": 1, "data_shard": 1, "tensor": 1, "pipeline": 1, "context": 1, "expert": 1}
        return Plan(
            workflow="pretrain",
            experiment=experiment,
            topology=Topology(nnodes=1, nproc_per_node=1, micro_batch_size=1, microbatches=1, **one),
            data=plan_data(data, seq_length=seq_length, vocab_size=vocab_size),
            run_directory="/nowhere",
            environment="torch",
            engine={},
            native={},
            env={},
            parameters=1,
            flops_per_token=1.0,
            decay_steps=1,
            origins={},
        )

    return make


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFiles:
    """A byte-level BPE of a few hundred entries."""
    directory = tmp_path_factory.mktemp("tokenizer")
    assert train_bpe([TEXT] * 3, 350, directory) == 350
    return TokenizerFiles(directory)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIMUS_HOME", str(tmp_path / "home"))
