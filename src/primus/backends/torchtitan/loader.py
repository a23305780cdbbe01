"""TorchTitan's data loader over the shared samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.tokenizer import BaseTokenizer

from primus.backends.pytorch.samples import Microbatch, TrainingSamples
from primus.data.reader import open_training
from primus.plan.plan import Plan


class SampleLoader(TrainingSamples, BaseDataLoader):
    """TorchTitan builds it from its Config and hands it the mesh's sizes."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        _plan: Plan | None = None

    def __init__(
        self,
        config: Config,
        *,
        dp_world_size: int,
        dp_rank: int,
        seq_len: int,
        local_batch_size: int,
        tokenizer: BaseTokenizer | None = None,
        snapshot_every_n_steps: int | None = None,
    ) -> None:
        assert config._plan is not None
        batch = config._plan.experiment.train.global_batch_size
        super().__init__(open_training(config._plan), batch, local_batch_size, dp_rank=dp_rank, dp_size=dp_world_size)

    def __iter__(self) -> Iterator[Microbatch]:
        raise NotImplementedError("the loop asks for one step after another")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass
