"""A plan's native configuration as TorchTitan's dataclasses. Runs in a worker, after the patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torchtitan.components.loss import BaseLoss, ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.components.validate import Validator
from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
from torchtitan.config.configs import CommConfig, DebugConfig
from torchtitan.config.override import OverrideConfig
from torchtitan.distributed.activation_checkpoint import FullAC, MemoryBudgetAC, SelectiveAC
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.tools.profiler import Profiler

from primus.backends.base import Session
from primus.backends.torchtitan.checkpoint import Checkpoints
from primus.backends.torchtitan.loader import SampleLoader
from primus.backends.torchtitan.models import build_model_spec
from primus.backends.torchtitan.optimizer import NoSchedule, adamw
from primus.backends.torchtitan.trainer import PrimusTrainer
from primus.plan.plan import Plan

RECOMPUTE = {"selective": SelectiveAC.Config, "full": FullAC.Config, "memory_budget": MemoryBudgetAC.Config}


class NoTokenizer(BaseTokenizer):
    """The trainer wants a tokenizer; samples arrive as token ids."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config: Config, *, tokenizer_path: str | None = None) -> None:
        super().__init__()

    def encode(self, *args: Any, **kwargs: Any) -> list[int]:
        raise NotImplementedError

    def decode(self, *args: Any, **kwargs: Any) -> str:
        raise NotImplementedError

    def get_vocab_size(self) -> int:
        raise NotImplementedError


def model_spec(plan: Plan) -> ModelSpec:
    experiment = plan.experiment
    spec: ModelSpec = build_model_spec(
        experiment.model,
        seq_length=experiment.train.seq_length,
        document_attention=plan.data.document_attention,
        precision=experiment.precision,
        moe=experiment.moe,
        context=plan.topology.context,
        device=experiment.hardware.device,
        float8=plan.native["float8"],
    )
    return spec


def _loss(plan: Plan) -> BaseLoss.Config:
    chunks = plan.native["loss"]["num_chunks"]
    loss = CrossEntropyLoss.Config(global_vocab_size=plan.experiment.model.vocab_size)
    return loss if chunks == 1 else ChunkedLossWrapper.Config(num_chunks=chunks, loss_fn=loss)


def trainer_config(plan: Plan, session: Session) -> PrimusTrainer.Config:
    """Everything that ``PrimusTrainer`` is built from."""
    native, experiment = plan.native, plan.experiment
    recompute = dict(native["activation_checkpoint"])
    mode = recompute.pop("mode")
    return PrimusTrainer.Config(
        _plan=plan,
        _session=session,
        model_spec=model_spec(plan),
        dump_folder=str(session.attempt_directory),
        training=TrainingConfig(**native["training"]),
        parallelism=ParallelismConfig(**native["parallelism"]),
        compile=CompileConfig(**native["compile"]),
        comm=CommConfig(**native["comm"]),
        debug=DebugConfig(**native["debug"]),
        override=OverrideConfig(**native["override"]),
        profiler=Profiler.Config(**native["profiler"]),
        activation_checkpoint=None if mode == "none" else RECOMPUTE[mode](**recompute),
        metrics=MetricsProcessor.Config(disable_color_printing=True),
        validator=Validator.Config(enable=False),
        tokenizer=NoTokenizer.Config(),
        dataloader=SampleLoader.Config(_plan=plan),
        loss=_loss(plan),
        optimizer=adamw(experiment.optimizer, native["optimizer"]["implementation"]),
        lr_scheduler=NoSchedule.Config(),
        checkpoint=Checkpoints.Config(enable=True, initial_load_model_only=False, _plan=plan, _session=session),
    )
