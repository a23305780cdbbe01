"""Tokens per CPU-second of Megatron's `train pretrain` against a bare loop over megatron.core.

    python benchmarks/megatron_overhead.py [--steps 60] [--repeats 5] [--config FILE] [key=value ...]

Both sides train a Llama of the same dimensions and native configuration with the same patches, each in a fresh process,
in turns. The bare loop has Megatron's own model, attention, norms, rotary embedding, clipping and schedule, its tokens
and mask are made beforehand, and it looks at the loss every tenth step; ours reads the dataset, looks at loss and norm
before each update, and reports every step to the run's events. CPU time of all threads, from the end of the fifth step
on; one thread unless OMP_NUM_THREADS says more.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

from train_overhead import EXAMPLE, compare, ours

from primus.backends.base import Session
from primus.plan.plan import Plan


def bare(plan: Plan, session: Session, clock: Callable[[], None]) -> None:
    from primus.backends.megatron import patches

    warnings.filterwarnings("ignore", message=".*(Transformer Engine|Apex).*")
    patches.apply(plan.patches)
    import torch
    import torch.nn.functional as F
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer.transformer_config import TransformerConfig

    from primus.backends.megatron.platform import Platform, disconnect

    train, dimensions, settings = plan.experiment.train, plan.experiment.model, plan.experiment.optimizer
    platform = Platform.of(plan, session)
    platform.connect(plan, 60.0)
    config = TransformerConfig(
        **plan.native["transformer"],
        activation_func=F.silu,
        params_dtype=torch.float32,
        finalize_model_grads_func=finalize_model_grads,
    )
    with platform.building(), torch.device(platform.device):
        built = GPTModel(
            config,
            get_gpt_layer_local_spec(normalization="RMSNorm"),
            vocab_size=dimensions.vocab_size,
            max_sequence_length=train.seq_length,
            position_embedding_type="rope",
            rotary_base=int(dimensions.rope_theta),
            share_embeddings_and_output_weights=dimensions.tie_word_embeddings,
        )
        model = DistributedDataParallel(config, DistributedDataParallelConfig(**plan.native["ddp"]), built)
        adam = plan.native["optimizer"] | {"clip_grad": settings.clip_grad_norm, "min_lr": 0.0}
        optimizer = get_megatron_optimizer(
            OptimizerConfig(**adam, params_dtype=torch.float32), [model], use_gloo_process_groups=False
        )
    config.grad_scale_func = optimizer.scale_loss
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=0.0,
        lr_warmup_steps=2,
        lr_decay_steps=train.steps,
        lr_decay_style="cosine",
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=train.steps,
        wd_incr_style="constant",
    )
    micro, length = train.micro_batch_size, train.seq_length
    microbatches = train.global_batch_size // (micro or train.global_batch_size)
    tokens = torch.randint(dimensions.vocab_size, (64, train.global_batch_size // microbatches, length + 1))
    inputs, labels = tokens[..., :-1].contiguous(), tokens[..., 1:].contiguous()
    positions, loss_mask = torch.arange(length).expand_as(inputs[0]).contiguous(), torch.ones(inputs[0].shape)
    attention_mask = torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)

    def loss_of(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        total, count = (losses.float() * loss_mask).sum(), loss_mask.sum().int()
        return total, count, {"lm loss": torch.stack([total.detach(), count.float()])}

    def forward_step(iterator: Iterator[tuple[torch.Tensor, torch.Tensor]], model: Any) -> tuple[torch.Tensor, Any]:
        inputs, labels = next(iterator)
        return model(inputs, positions, attention_mask, labels=labels), loss_of

    forward_backward, data = get_forward_backward_func(), cycle(zip(inputs, labels, strict=True))
    for step in range(train.steps):
        model.zero_grad_buffer()
        optimizer.zero_grad()
        reported = forward_backward(
            forward_step_func=forward_step,
            data_iterator=data,
            model=model,
            num_microbatches=microbatches,
            seq_length=length,
            micro_batch_size=inputs.shape[1],
            forward_only=False,
        )
        with platform.building():  # its clipping asks each gradient whether it is a GPU's
            updated, norm, _ = optimizer.step()
        assert updated
        scheduler.step(increment=1)
        if step % 10 == 0:
            total, count = torch.stack([each["lm loss"] for each in reported]).sum(0).tolist()
            print(f"step {step + 1}: loss {total / count:.4f}, norm {norm:.3f}", file=sys.stderr)
        clock()
    disconnect()


if __name__ == "__main__":
    compare(__doc__, {"ours": ours, "bare": bare}, EXAMPLE + "backend: megatron\n")
