"""Files of other systems, imported as `config import` does, and what became of their keys."""

from __future__ import annotations

from pathlib import Path

from primus.backends import registry
from primus.backends.base import NativeSchema
from primus.config.importing.convert import Import
from primus.config.load import Resolved, load
from primus.errors import PrimusError

HEAD = """\
exp_name: ${RUN_NAME:mine}
modules:
  pre_trainer:
    framework: FRAMEWORK
    model: llama2_7B.yaml
    overrides:
"""
MEGATRON_FILE = """\
      train_iters: 50
      global_batch_size: 256
      micro_batch_size: 4
      seq_length: 4096
      lr: 1e-5
      mock_data: true
"""
TITAN_FILE = """\
      training: {steps: 50, local_batch_size: 4, global_batch_size: 64, seq_len: 4096, mock_data: true}
      lr_scheduler: {warmup_steps: 10}
"""
MAXTEXT_FILE = """\
      run_name: llama2_7b_training
      steps: 50
      dataset_type: synthetic
      max_target_length: 4096
      per_device_batch_size: 4
      dcn_data_parallelism: -1
"""


def schema(backend: str) -> NativeSchema | None:
    try:
        return registry.get(backend).native_schema()
    except PrimusError:
        return None


def accepted(result: Import, **environment: str) -> Resolved:
    """The experiment, as `config check` reads it."""
    assert [str(problem) for problem in result.missing] == []
    Path("ours.yaml").write_text(result.text)
    return load("ours.yaml", environment=environment)


def reason(result: Import, key: str) -> str:
    [found] = [item for item in result.left if item.setting.name == key]
    return f"{found.reason} ({found.hint})" if found.hint else found.reason


def fate(result: Import, key: str) -> tuple[tuple[str, ...], str]:
    [found] = [item for item in result.carried if item.setting.name == key]
    return found.to, found.note
