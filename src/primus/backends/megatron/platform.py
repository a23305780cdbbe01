"""The device that training runs on: its collectives, random state and what it is called. One for CPU, CUDA and ROCm."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from primus.backends.base import Session
from primus.backends.megatron import compat, cpu
from primus.plan.plan import Plan


@dataclass(frozen=True)
class Platform:
    kind: str
    device: torch.device

    @classmethod
    def of(cls, plan: Plan, session: Session) -> Platform:
        """This process's device. ROCm builds of torch call it cuda too."""
        kind = plan.experiment.hardware.device
        if kind == "cpu":
            # compiling a handful of small functions costs more than it ever gains, and needs a C++ compiler
            torch.compiler.set_stance("force_eager")
            return cls(kind, torch.device("cpu"))
        index = session.local_rank if torch.cuda.device_count() > 1 else 0
        torch.cuda.set_device(index)
        return cls(kind, torch.device("cuda", index))

    def connect(self, plan: Plan, timeout: float) -> None:
        """Join the other ranks and lay out the parallel groups. timeout: seconds a collective may take."""
        topology = plan.topology
        limit = timedelta(seconds=timeout)
        if self.kind == "cpu":
            dist.init_process_group("gloo", timeout=limit)
        else:
            dist.init_process_group("nccl", timeout=limit, device_id=self.device)
        virtual = plan.experiment.parallel.virtual_pipeline
        mpu.initialize_model_parallel(
            **compat.known_arguments(
                mpu.initialize_model_parallel,
                tensor_model_parallel_size=topology.tensor,
                pipeline_model_parallel_size=topology.pipeline,
                virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
                context_parallel_size=topology.context,
                expert_model_parallel_size=topology.expert,
                expert_tensor_parallel_size=plan.native["transformer"]["expert_tensor_parallel_size"],
                num_distributed_optimizer_instances=plan.native["ddp"]["num_distributed_optimizer_instances"],
                distributed_timeout_minutes=limit.total_seconds() / 60,
                create_gloo_process_groups=False,
            )
        )
        model_parallel_cuda_manual_seed(plan.experiment.train.seed)

    def building(self) -> AbstractContextManager[None]:
        """Model and optimizer are built inside it."""
        return cpu.tensors_of_a_gpu() if self.kind == "cpu" else nullcontext()


def disconnect() -> None:
    """Leave the parallel groups."""
    mpu.destroy_model_parallel()
    dist.destroy_process_group()


def shorten_timeouts(seconds: float) -> None:
    """From now on a collective may take `seconds`, in every group."""
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)
