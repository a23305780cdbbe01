"""What differs between two plans, and whether one may continue the run of the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from primus.errors import Problem, RunDirectoryError
from primus.plan.plan import Plan

CHANGEABLE = frozenset(
    {
        *("train.steps", "train.micro_batch_size", "recompute", "compile", "moe.dispatcher"),
        *("parallel", "hardware", "env", "eval", "profile", "checkpoint", "monitor", "resilience"),
    }
)
"""Keys and sections that may change when a run continues: they alter how fast or how long it trains and what is
shown, not what is learnt at a step."""

_MAXTEXT = """
    attention sparse_matmul use_custom_sort_vjp use_iota_embed use_sliced_mla_proj num_vocab_tiling vocab_tiling_ag_once

    remat_policy attention_out context decoder_layer_input key_proj kv_wa_proj mla_kv mla_q mlpwi_0 mlpwi_1 mlpwo
    moe_mlpwi_0 moe_mlpwi_1 moe_mlpwo moe_x_sorted out_proj query_proj query_wa_proj value_proj

    input_data_sharding_logical_axes logical_axis_rules logical_axis_rules_for_eval override_logical_axis_rules

    pipeline_delay_activation_forwarding pipeline_fsdp_ag_once pipeline_fsdp_ag_per_repeat scan_pipeline_iterations
    set_remat_policy_on_pipeline_iterations

    debug_sharding jax_cache_dir jax_debug_log_modules log_config
"""
CHANGEABLE_NATIVE = frozenset(
    {
        *(f"maxtext.{key}" for key in _MAXTEXT.split()),
        "megatron.ddp.align_param_gather",
        "megatron.ddp.bucket_size",
        "megatron.ddp.check_for_large_grads",
        "megatron.ddp.check_for_nan_in_grad",
        "megatron.ddp.overlap_grad_reduce",
        "megatron.ddp.overlap_param_gather",
        "megatron.ddp.pad_buckets_for_high_nccl_busbw",
        "megatron.transformer.account_for_embedding_in_pipeline_split",
        "megatron.transformer.account_for_loss_in_pipeline_split",
        "megatron.transformer.apply_rope_fusion",
        "megatron.transformer.batch_p2p_comm",
        "megatron.transformer.batch_p2p_sync",
        "megatron.transformer.bias_activation_fusion",
        "megatron.transformer.bias_dropout_fusion",
        "megatron.transformer.clone_scatter_output_in_embedding",
        "megatron.transformer.deallocate_pipeline_outputs",
        "megatron.transformer.deterministic_mode",
        "megatron.transformer.expert_tensor_parallel_size",
        "megatron.transformer.gradient_accumulation_fusion",
        "megatron.transformer.microbatch_group_size_per_vp_stage",
        "megatron.transformer.moe_deepep_num_sms",
        "megatron.transformer.moe_flex_dispatcher_backend",
        "megatron.transformer.moe_hybridep_num_sms",
        "megatron.transformer.moe_permute_fusion",
        "megatron.transformer.moe_shared_expert_overlap",
        "megatron.transformer.moe_token_dispatcher_type",
        "megatron.transformer.num_layers_in_first_pipeline_stage",
        "megatron.transformer.num_layers_in_last_pipeline_stage",
        "megatron.transformer.overlap_p2p_comm",
        "megatron.transformer.overlap_p2p_comm_warmup_flush",
        "megatron.transformer.pipeline_model_parallel_layout",
        "megatron.transformer.recompute_method",
        "megatron.transformer.recompute_modules",
        "megatron.transformer.recompute_num_layers",
        "megatron.transformer.transformer_impl",
    }
)
"""Keys of engines' own sections that may change too. They say where and when something is computed, kept or sent, or by
which kernel: like ``compile`` and ``parallel``, that rounds otherwise at most. A key that sets a precision or a loss is
not among them."""

COMPARED_BY_CONTENT = frozenset({"data.train", "data.validation", "data.tokenizer"})
"""Keys that name files: those may have moved, as long as what they hold is the same."""


class Difference(NamedTuple):
    """A dotted key with its value in the first plan and in the second; a missing one is None."""

    key: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.key}: {shown(self.old)} -> {shown(self.new)}"


def differences(old: Plan, new: Plan) -> list[Difference]:
    """Every key of the experiment, every size of the topology and every fact about the data that differs."""
    left, right = _facts(old), _facts(new)
    keys = {**left, **right}
    return [Difference(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


def check_continue(old: Plan, new: Plan, *, converted_to: str = "") -> Plan:
    """`new` as the continuation of the run that `old` planned: with the learning rate's `decay_steps` of `old`.

    converted_to: the backend that the run's newest checkpoint is of, where it is known. Raises RunDirectoryError when
    anything differs that changes what is learnt.
    """
    if old.workflow != new.workflow:
        raise RunDirectoryError(
            f"this run is a {old.workflow}, not a {new.workflow}",
            where=old.run_directory,
            remedy="start another: name=NAME",
        )
    current = converted_to or old.experiment.backend
    if current != new.experiment.backend:
        raise RunDirectoryError(
            f"this run was trained with {current}, not with {new.experiment.backend}",
            where=old.run_directory,
            remedy=f"continue with backend={current}; or move it: primus-cli checkpoint convert "
            f"{new.experiment.name} --to {new.experiment.backend}, and the same command again",
        )
    moved = {"backend", old.experiment.backend, new.experiment.backend} if current != old.experiment.backend else set()
    refused = [
        difference
        for difference in differences(old, new)
        if not _may_change(difference, old) and difference.key.partition(".")[0] not in moved
    ]
    if refused:
        raise RunDirectoryError(problems=[_refusal(difference, old, new) for difference in refused])
    return new.model_copy(update={"decay_steps": old.decay_steps})


def shown(value: object) -> str:
    """A value as YAML and the command line spell it, shortened."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _may_change(difference: Difference, old: Plan) -> bool:
    key = difference.key
    parts = key.split(".")
    if key in CHANGEABLE_NATIVE or any(".".join(parts[:length]) in CHANGEABLE for length in range(1, len(parts) + 1)):
        return True
    if key == "optimizer.schedule.decay_steps":
        return difference.new in (None, old.decay_steps)
    # the topology follows from parallel, hardware and place; names of files are compared by what they hold
    return parts[0] == "topology" or key in COMPARED_BY_CONTENT


def _refusal(difference: Difference, old: Plan, new: Plan) -> Problem:
    key = difference.key
    origin = new.origins.get(key, "")
    place = f" ({origin})" if origin not in ("", "default") else ""
    message = f"{key} is {shown(difference.old)} in this run and {shown(difference.new)} now{place}"
    remedy = f"continue with {key}={shown(difference.old)}, or start another run: name=NAME"
    if key.partition(".")[0] == new.experiment.backend and None in (difference.old, difference.new):
        # a native section holds only what is set; the engine's own value applies where nothing is
        was, now = ("not set" if value is None else shown(value) for value in (difference.old, difference.new))
        message = f"{key} is {was} in this run and {now} now{place}"
        if difference.old is None:
            remedy = f"continue without {key}, or start another run: name=NAME"
    if key.startswith("content."):
        name = key.removeprefix("content.")
        message = f"{name} of the data differs: {shown(difference.old)} in this run and {shown(difference.new)} now"
        remedy = "continue with the same data, or start another run: name=NAME"
    return Problem(old.run_directory, message, remedy)


def _facts(plan: Plan) -> dict[str, Any]:
    """Dotted key -> value of all that may differ between two plans of one run."""
    experiment = plan.experiment.model_dump(mode="json", by_alias=True)
    # sections of other backends are not used, and a changed name is a changed directory
    experiment["native"] = experiment["native"].get(plan.experiment.backend, {})
    experiment[plan.experiment.backend] = experiment.pop("native")
    del experiment["name"]
    data = plan.data
    content = {
        "digest": data.digest,
        "validation": [(source.digest, source.share) for source in data.validation_sources],
        "tokenizer": data.tokenizer_hash,
    }
    topology = plan.topology.model_dump()
    return dict(_flat({**experiment, "topology": topology, "content": content}, ""))


def _flat(value: object, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif value != {}:
        yield prefix, value
