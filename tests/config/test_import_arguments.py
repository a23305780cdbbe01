"""Megatron's arguments in shell scripts, lines and YAML maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from primus.config.importing import inputs
from primus.config.importing.arguments import settings
from primus.config.importing.convert import Import, convert
from primus.config.importing.rules import Rule, lookup
from primus.config.importing.table_megatron import MEGATRON
from primus.config.load import load
from primus.config.source import Source, split_lines
from primus.errors import ConfigError

SCRIPT = """\
#!/bin/bash
# A small Llama
export CUDA_DEVICE_MAX_CONNECTIONS=1
GPUS=8
TP=${TP:-2}
DATA=/data/web_text_document
MODEL_ARGS="
    --num-layers 4 \\
    --hidden-size 256 --ffn-hidden-size 512
    --num-attention-heads 8   # heads
    --swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear
    --untie-embeddings-and-output-weights --hidden-dropout 0 --attention-dropout 0.0
    --vocab-size 32000 --max-position-embeddings 1024
"
TRAIN=(
  --train-iters 1000 --lr 3e-4 --min-lr=3.0e-5 --lr-decay-style cosine
  --global-batch-size 256 --micro-batch-size 2 --seq-length 1024 --bf16
  --data-path 0.25 "$DATA" 0.75 '/data/my code' --split 99,1,0
)
torchrun --nproc_per_node $GPUS pretrain_gpt.py $MODEL_ARGS "${TRAIN[@]}" \\
    --tensor-model-parallel-size $TP --save $CKPT 2>&1 | tee log.txt
"""


def read(text: str, **environment: str) -> list[tuple[str, Any, str]]:
    def rule(name: str) -> Rule | None:
        found = lookup(MEGATRON, name)
        return found[0] if found else None

    source = Source("file", "run.sh", "run.sh", split_lines(text))
    return [(item.name, item.node.plain(), item.problem) for item in settings(text, source, environment, rule)]


@pytest.fixture
def take(write: Callable[..., str]) -> Callable[..., Import]:
    def _take(text: str, name: str = "run.sh", **environment: str) -> Import:
        return convert(Path(write(text, name)), environment, lambda backend: None, "MI300X")

    return _take


def test_a_script(take: Callable[..., Import]) -> None:
    result = take(SCRIPT)
    assert result.missing == []
    Path("ours.yaml").write_text(result.text)
    experiment = load("ours.yaml", environment={}).experiment
    assert (experiment.name, experiment.model.model_type, experiment.model.num_hidden_layers) == ("run", "llama", 4)
    assert experiment.model.tie_word_embeddings is False
    assert (experiment.optimizer.betas, experiment.optimizer.weight_decay) == ((0.9, 0.999), 0.01)
    assert (experiment.parallel.tensor, experiment.precision, experiment.data.validation) == (2, "bf16", 0.01)
    assert [(item.path, item.weight) for item in experiment.data.train] == [  # type: ignore[union-attr]
        ("/data/web_text_document", 0.25),
        ("/data/my code", 0.75),
    ]
    assert experiment.env == {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    assert {item.setting.label: item.reason for item in result.left} == {
        "--nproc_per_node": "the launcher's: give --nproc, --nnodes, --node-rank and --rdzv to `primus-cli direct`",
        "--save": "checkpoints lie in the run directory",
    }
    assert result.differences == []


def test_places_are_those_in_the_script(take: Callable[..., Import]) -> None:
    places = {item.setting.label: item.setting.key.where for item in take(SCRIPT).carried}
    assert places["--num-layers"] == "run.sh:8:5"
    assert places["--ffn-hidden-size"] == "run.sh:9:23"
    assert places["--lr"] == "run.sh:16:22"
    assert places["--tensor-model-parallel-size"] == "run.sh:21:5"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--lr 1e-4 --bf16", [("lr", 1e-4, ""), ("bf16", True, "")]),
        ("--lr=1e-4\n", [("lr", 1e-4, "")]),
        ("--lr \\\n 3 # --seed 4\n--seed 5", [("lr", 3, ""), ("seed", 5, "")]),
        ("--lr \\\r\n 3\r\n--seed 5\r\n", [("lr", 3, ""), ("seed", 5, "")]),
        ("--lr '1e-4' --save \"a b\"", [("lr", 1e-4, ""), ("save", "a b", "")]),
        ("--lr -1 --seed", [("lr", -1, ""), ("seed", True, "no value follows")]),
        ("X=3\n--lr $X --seed ${X}0", [("lr", 3, ""), ("seed", 30, "")]),
        ("--lr ${Y:-4} --seed ${HERE:-4}", [("lr", 4, ""), ("seed", 9, "")]),
        ('--lr ${Y:-"3"} --seed "${Y:-\'4\'}"', [("lr", 3, ""), ("seed", 4, "")]),
        ("--lr ${Y:-${Z:-${HERE}}} --seed 1", [("lr", 9, ""), ("seed", 1, "")]),
        ("A='--lr 3'\nB=$A\nrun $B --seed 4", [("lr", 3, ""), ("seed", 4, "")]),
        ("A=--bf16\nrun $A --seed $((3 + 4))", [("bf16", True, ""), ("seed", None, "$((3 + 4)) has no value here")]),
        ("--lr $(rate) --seed $Y", [("lr", None, "$(rate) has no value here"), ("seed", None, "$Y has no value here")]),
        ("--lr `rate 3`", [("lr", None, "`rate 3` has no value here")]),
        ('A="--lr 3"\nrun $A --seed 4', [("lr", 3, ""), ("seed", 4, "")]),
        ("A=(--lr 3 # three\n --seed 4)\nrun ${A[@]}", [("lr", 3, ""), ("seed", 4, "")]),
        ("D='0.5 a 0.5 b'\nrun --data-path $D", [("data_path", [0.5, "a", 0.5, "b"], "")]),
        ("run --lr 3 > log; echo --seed", [("lr", 3, ""), ("seed", True, "no value follows")]),
        ("run --lr 3 2>&1 | tee log", [("lr", 3, "")]),
        ('bash -c "run --lr 3 --seed 4"', [("lr", 3, ""), ("seed", 4, "")]),
        ("NCCL_DEBUG=INFO run --lr 3", [("NCCL_DEBUG", "INFO", ""), ("lr", 3, "")]),
        ("export A=1 B='x y'\n", [("A", 1, ""), ("B", "x y", "")]),
        ("run $EXTRA --bf16", [("$EXTRA", None, "$EXTRA has no value here"), ("bf16", True, "")]),
        ("cd $DIR\nrun --bf16 $EXTRA", [("bf16", True, ""), ("$EXTRA", None, "$EXTRA has no value here")]),
        ("torchrun --nnodes 2 pretrain.py --lr 3", [("nnodes", 2, ""), ("lr", 3, "")]),
        ("--recompute-modules a b --seed 1", [("recompute_modules", ["a", "b"], ""), ("seed", 1, "")]),
        ("--bf16 false --no-bf16", [("bf16", False, ""), ("no_bf16", True, "")]),
    ],
)
def test_words(text: str, expected: list[tuple[str, Any, str]]) -> None:
    assert read(text, HERE="9") == expected


def test_an_open_quote_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"run.sh:1:6: the quoted text is not closed"):
        read("--lr '3 --seed 4")


def test_denied_switches(take: Callable[..., Import]) -> None:
    result = take("--lr 1e-4 --no-load-optim --no-bf16 --no-mmap-bin-files --no-such-thing")
    assert "precision: fp32" in result.text
    reasons = {item.setting.label: item.reason for item in result.left}
    assert reasons["--no-load-optim"] == "checkpoints always hold and restore the whole state"
    assert reasons["--no-mmap-bin-files"] == "datasets are memory-mapped"
    assert reasons["--no-such-thing"] == "unknown flag"


def test_an_unknown_flag_has_a_suggestion(take: Callable[..., Import]) -> None:
    [left] = take("--lr 1e-4 --num-layer 3").left
    assert (left.reason, left.hint) == ("unknown flag", "did you mean --num-layers?")


def test_the_last_of_two_counts(take: Callable[..., Import]) -> None:
    result = take("--lr 1e-4\n--lr 2e-4")
    assert "lr: 0.0002" in result.text
    assert [item.reason for item in result.left] == ["given again in line 2, and the last one counts"]


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ("--swiglu --normalization RMSNorm", "llama"),
        ("--swiglu --normalization RMSNorm --qk-layernorm", "qwen3"),
        ("--swiglu --multi-latent-attention", "deepseek_v3"),
    ],
)
def test_the_family_follows_from_the_architecture(take: Callable[..., Import], arguments: str, kind: str) -> None:
    assert f"model_type: {kind}" in take(f"--hidden-size 64 --num-layers 2 {arguments}").text


@pytest.mark.parametrize(("arguments", "why"), [("--swiglu", "LayerNorm"), ("--normalization RMSNorm", "not SwiGLU")])
def test_what_no_family_here_is_like(take: Callable[..., Import], arguments: str, why: str) -> None:
    missing = take(f"--hidden-size 64 --num-layers 2 {arguments}").missing
    assert any("model.model_type cannot be told" in problem.message and why in problem.message for problem in missing)


def test_defaults_of_megatron_s_are_written_out(take: Callable[..., Import]) -> None:
    result = take("--hidden-size 768 --swiglu --data-path d --lr 1e-4")
    values = {item.target: item.value for item in result.assumed}
    assert values["precision"] == "fp32"
    assert values["optimizer.schedule.name"] == "linear"
    assert values["model.intermediate_size"] == 2048
    assert values["model.tie_word_embeddings"] is True
    assert values["data.validation"] == 0.03
    assert any("hidden_dropout" in line for line in result.differences)


@pytest.mark.parametrize(
    ("text", "name", "kind"),
    [
        (SCRIPT, "run.sh", "arguments"),
        ("#!/bin/sh\nrun --lr 3\n", "run", "arguments"),
        ("--num-layers 2\n--lr 3\n", "args.txt", "arguments"),
        ("--num-layers 2 --lr 3\n", "args.yaml", "arguments"),
        ("num_layers: 2\nlr: 3\n", "args.txt", "map"),
        ("lr: 3\n# see --num-layers 2\n", "args", "map"),
        ("MODEL_ARGS:\n  --num-layers: 2\n  --lr: 3\nENV_VARS: {NCCL_ALGO: Tree}\n", "m.yaml", "map"),
        ("training: {steps: 3}\noptimizer: {lr: 1e-3}\n", "titan.yaml", "map"),
    ],
)
def test_kinds(write: Callable[..., str], text: str, name: str, kind: str) -> None:
    found = inputs.read(Path(write(text, name)), {})
    assert found.kind == kind
    assert any(item.name in ("lr", "optimizer.lr") for item in found.settings)


def test_a_script_without_megatron(take: Callable[..., Import]) -> None:
    with pytest.raises(ConfigError, match="holds no argument of Megatron or MaxText"):
        take("#!/bin/sh\nls --color\n")
