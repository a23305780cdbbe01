"""From an experiment file to a plan: pure, complete, and refusing everything that cannot run at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import primus
from primus.config.huggingface import NotFetched
from primus.config.load import Resolved
from primus.errors import DataError, PlanError, PrimusError
from primus.plan.fewer import fewest_nodes, waits_for_all
from primus.plan.plan import Plan
from primus.plan.planner import make_plan

MIXTURE = {"model": "tiny_deepseek_v3", "precision": "fp32"}


def refused(plan: Callable[..., Plan], *overrides: str, **keywords: Any) -> list[str]:
    with pytest.raises(PlanError) as caught:
        plan(*overrides, **keywords)
    assert all(problem.remedy for problem in caught.value.problems), caught.value
    return [str(problem) for problem in caught.value.problems]


def test_a_plan_holds_what_was_asked(plan: Callable[..., Plan], tmp_path: Path) -> None:
    made = plan("env.NCCL_DEBUG=WARN", "parallel.tensor=2", nproc=4)
    assert made.experiment.model.hidden_size == 128
    assert (made.topology.tensor, made.topology.data_shard) == (2, 2)
    assert made.env == {"NCCL_DEBUG": "WARN", "OMP_WAIT_POLICY": "PASSIVE"}
    assert made.run_directory == str(tmp_path / "runs" / "trial")
    assert made.parameters == 1_787_008
    assert made.environment == "torch"
    assert made.engine["torchtitan"] == "0.3.0"
    assert made.native["training"]["steps"] == 100
    assert made.origins["parallel.tensor"] == "override"
    assert made.origins["model.hidden_size"] == "preset models/tiny_llama"
    assert made.origins["train.seed"] == "default"
    assert made.origins["train.steps"].endswith("trial.yaml:4")


def test_decay_steps_default_to_the_steps(plan: Callable[..., Plan]) -> None:
    assert plan().decay_steps == 100
    assert plan("optimizer.schedule.decay_steps=70").decay_steps == 70


def test_planning_twice_gives_the_same_bytes(plan: Callable[..., Plan]) -> None:
    assert plan("env.B=2", "env.A=1").to_json() == plan("env.B=2", "env.A=1").to_json()
    # nor does it matter in which process
    assert plan("env.A=1", "env.B=2").env == plan("env.B=2", "env.A=1").env


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lr=st.floats(1e-9, 10, allow_nan=False),
    seed=st.integers(0, 2**63 - 1),
    micro=st.sampled_from([1, 2, 4]),
    tensor=st.sampled_from([1, 2]),
    nnodes=st.integers(1, 4),
    text=st.text(st.characters(categories=["L", "N", "P", "S", "Zs"], exclude_characters="$"), max_size=20),
)
def test_json_round_trip(resolve: Callable[..., Resolved], tmp_path: Path, **drawn: Any) -> None:
    resolved = resolve(
        f"optimizer.lr={drawn['lr']!r}",
        f"train.seed={drawn['seed']}",
        f"train.micro_batch_size={drawn['micro']}",
        f"train.global_batch_size={drawn['micro'] * drawn['nnodes'] * 4}",
        f"parallel.tensor={drawn['tensor']}",
        f"env.NOTE={json.dumps(drawn['text'], ensure_ascii=False)}",
    )
    made = make_plan(resolved, nnodes=drawn["nnodes"], nproc=4, run_directory=tmp_path)
    again = Plan.from_json(made.to_json())
    assert again == made
    assert again.to_json() == made.to_json()
    assert again.env["NOTE"] == drawn["text"]


def test_a_plan_is_frozen(plan: Callable[..., Plan]) -> None:
    made = plan()
    with pytest.raises(ValidationError, match="frozen"):
        made.decay_steps = 3  # type: ignore[misc]


def test_a_plan_with_an_unknown_key_is_refused(plan: Callable[..., Plan]) -> None:
    document = json.loads(plan().to_json())
    document["extra"] = 1
    with pytest.raises(ValidationError, match="extra"):
        Plan.from_json(json.dumps(document))


def test_planning_imports_no_heavy_library(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(
        "extends: [models/tiny_llama, hardware/cpu]\nname: t\ndata: {train: synthetic}\nprecision: fp32\n"
        "train: {steps: 1, global_batch_size: 1, seq_length: 64}\noptimizer: {lr: 0.1}\n"
    )
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from primus.config.load import load\nfrom primus.plan.planner import make_plan\n"
        "from primus.plan.render import render\n"
        "print(len(render(make_plan(load(sys.argv[1]), run_directory=Path('r')))))\n"
        "heavy = {'torch', 'numpy', 'jax', 'transformers', 'torchtitan', 'tokenizers', 'pyarrow', 'safetensors'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "t.yaml")],
        env={**os.environ, "PYTHONPATH": str(Path(primus.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    size, heavy = done.stdout.splitlines()
    assert int(size) > 1000
    assert heavy == "[]"
    assert list(tmp_path.iterdir()) == [tmp_path / "t.yaml"], "planning wrote something"


# what cannot run


@pytest.mark.parametrize(
    ("overrides", "keywords", "expected"),
    [
        (["train.seq_length=4096"], {}, "train.seq_length: 4096 is longer than the model allows"),
        (["parallel.tensor=4"], {"nproc": 4}, "parallel.tensor: 4 does not divide 2 key/value heads"),
        (
            ["parallel.tensor=3", "train.seq_length=510"],
            {"nproc": 3},
            "parallel.tensor: 3 does not divide 4 query heads",
        ),
        (["parallel.expert=2"], {"nproc": 2}, "parallel.expert: 2, but this llama has no experts"),
        (["parallel.pipeline=5"], {"nproc": 5}, "pipeline 5 stages for 4 layers"),
        (["parallel.pipeline=2", "parallel.virtual_pipeline=3"], {"nproc": 2}, "= 6 stages for 4 layers"),
        (["profile.steps=[1, 2]", "profile.ranks=[0, 4]"], {"nproc": 4}, "there is no rank 4; the last is 3"),
        (["train.seq_length=511", "parallel.tensor=2"], {"nproc": 2}, "train.seq_length: 511"),
        (
            ["backend=maxtext", "resilience.anomaly=skip_step", "resilience.spike_factor=3"],
            {},
            "MaxText's compiled step has updated by the time a spike can be seen",
        ),
        (["precision=fp8"], {}, "cpu has no fp8 arithmetic"),
        ([], {"workflow": "rl"}, "torchtitan has no workflow 'rl'"),
        (["env.HF_TOKEN=abc"], {}, "env.HF_TOKEN looks like a secret"),
        (["env.AWS_SECRET_ACCESS=abc"], {}, "env.AWS_SECRET_ACCESS looks like a secret"),
        (["env.STORE=https://me:pw@host/x"], {}, "env.STORE looks like a secret"),
        (["parallel.expert=3", "train.global_batch_size=9"], {**MIXTURE, "nproc": 3}, "does not divide 8 experts"),
        (["moe.balance=aux_loss"], MIXTURE, "moe.balance: aux_loss cannot be honoured by torchtitan"),
        (["model.num_key_value_heads=2"], MIXTURE, "latent attention has one for each of 4 query heads"),
        (["model.num_experts_per_tok=5"], MIXTURE, "topk_group 1 of 2 groups hold 4 experts"),
        (["model.topk_group=null"], MIXTURE, "go together"),
        (["model.n_group=2"], {"model": "tiny_gpt_oss"}, "a gpt_oss model has no such thing"),
        (["model.scoring_func=sigmoid"], {"model": "tiny_gpt_oss"}, "gpt_oss routes by a softmax"),
    ],
)
def test_what_cannot_run_is_refused(
    plan: Callable[..., Plan], overrides: list[str], keywords: dict[str, Any], expected: str
) -> None:
    assert any(expected in line for line in refused(plan, *overrides, **keywords))


def test_all_problems_come_at_once_and_point_at_their_lines(plan: Callable[..., Plan]) -> None:
    with pytest.raises(PlanError) as caught:
        plan("parallel.tensor=3", "env.HF_TOKEN=x", "data.train=/nowhere/at_all", nproc=2)
    said = "\n".join(str(problem) for problem in caught.value.problems)
    for part in ("tensor 3 does not divide 2 processes", "HF_TOKEN", "/nowhere/at_all"):
        assert part in said
    assert "HF_TOKEN=x" not in said
    with pytest.raises(PlanError) as caught:
        plan(nproc=3)
    problem = caught.value.problems[0]
    assert problem.where.rpartition("/")[2].startswith("trial.yaml:4:")
    assert problem.excerpt.startswith("train: {steps")


def test_bad_data_alone_is_a_data_error(plan: Callable[..., Plan]) -> None:
    with pytest.raises(DataError, match="nowhere"):
        plan("data.train=/nowhere/at_all")


def test_words_that_only_contain_token_are_no_secrets(plan: Callable[..., Plan]) -> None:
    assert plan("env.TOKENIZERS_PARALLELISM=false").env["TOKENIZERS_PARALLELISM"] == "false"


def test_an_unknown_backend_is_named_with_the_known(plan: Callable[..., Plan]) -> None:
    with pytest.raises(PrimusError, match="torchtitan"):
        plan("backend=torchtiten")


def test_bf16_on_every_device_and_fp8_on_accelerators(plan: Callable[..., Plan]) -> None:
    for hardware in ("MI300X", "MI355X", "H100"):
        for precision in ("bf16", "fp8"):
            made = plan(hardware=hardware, precision=precision)
            assert made.topology.nproc_per_node == 8


# where training starts from


def write_model(directory: Path, **changes: object) -> Path:
    directory.mkdir(parents=True)
    config = {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
    (directory / "config.json").write_text(json.dumps({**config, **changes}))
    return directory


def start_from(init: str, directory: Path, model: str = "") -> Plan:
    from primus.config.load import load

    file = directory / "start.yaml"
    extends = f"[hardware/cpu{', models/' + model if model else ''}]"
    file.write_text(
        f"extends: {extends}\nname: t\nmodel: {{init: {init}}}\ndata: {{train: synthetic}}\nprecision: fp32\n"
        "train: {steps: 1, global_batch_size: 1, seq_length: 64}\noptimizer: {lr: 0.1}\n"
    )
    return make_plan(load(file), run_directory=directory / "run")


def test_a_model_directory_alone_fills_the_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    made = start_from("./weights", tmp_path)
    assert made.experiment.model.hidden_size == 64
    assert made.experiment.model.init == str(tmp_path / "weights"), "every rank needs the absolute path"
    assert made.origins["model.hidden_size"].startswith("model")


def test_a_preset_that_contradicts_the_weights_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "weights")
    with pytest.raises(PrimusError, match="hidden_size"):
        start_from(str(tmp_path / "weights"), tmp_path, model="tiny_llama")


def test_a_fetched_hub_model_is_planned_with_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIMUS_HOME", str(tmp_path / "home"))
    hub, commit = tmp_path / "home" / "hub", "a" * 40
    root = hub / "models--org--name"
    write_model(root / "snapshots" / commit)
    note = hub / "fetched" / "model--org--name" / "main"
    note.parent.mkdir(parents=True)
    note.write_text(commit)
    assert start_from("org/name", tmp_path).experiment.model.init == str(root / "snapshots" / commit)


def test_a_hub_model_that_was_not_fetched_is_named(
    plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIMUS_HOME", str(tmp_path / "home"))
    with pytest.raises(NotFetched, match="org/name@v2") as caught:
        plan("model.init=org/name@v2")
    assert caught.value.init == "org/name@v2"


# capabilities of another backend


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backend `narrow` is installed, as an outside package would be."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "support" / "plugins"))


@pytest.mark.usefixtures("narrow")
def test_each_limit_of_a_backend_is_named(plan: Callable[..., Plan]) -> None:
    lines = refused(
        plan,
        *("backend=narrow", "compile=true", "recompute=full", "checkpoint.async=false", "parallel.tensor=2"),
        *("resilience.anomaly=skip_step", "resilience.spike_factor=3"),
        nproc=2,
        precision="bf16",
    )
    said = "\n".join(lines)
    assert "narrow has no model_type 'llama' (it has qwen3)" in said
    assert "narrow cannot split along 'tensor' (2) (it has data_replicate)" in said
    assert "narrow does not run on cpu (it has cuda)" in said
    assert "compile: true cannot be honoured by narrow: it has no compiler (compile: false)" in said
    assert "recompute: full cannot be honoured by narrow: it keeps everything (recompute: none)" in said
    assert "checkpoint.async: false cannot be honoured" in said
    assert "narrow cannot skip_step (it has stop)" in said
    assert "narrow does not look for spikes" in said
    assert "mask_eod" not in said
    assert len(lines) == 8


@pytest.mark.parametrize("backend", ["megatron", "maxtext"])
def test_replica_groups_are_torchtitans(plan: Callable[..., Plan], backend: str) -> None:
    torchft = ("resilience.fault_tolerance=torchft", "parallel.data_replicate=2")
    lines = refused(plan, f"backend={backend}", *torchft, nproc=2)
    assert any(f"{backend} has no 'torchft' (it has restart)" in line for line in lines), lines
    assert plan(*torchft, nproc=2).environment == "torchft"
    assert plan(nproc=2).environment == "torch"


@pytest.mark.usefixtures("narrow")
def test_an_axis_that_auto_would_use_counts_as_used(plan: Callable[..., Plan]) -> None:
    lines = refused(plan, "backend=narrow", model="tiny_qwen3", hardware="H100", precision="bf16", nproc=2)
    assert len(lines) == 1
    assert "narrow cannot split along 'data_shard' (2)" in lines[0]


@pytest.mark.usefixtures("narrow")
def test_the_experiments_variables_win_over_the_backends(plan: Callable[..., Plan]) -> None:
    made = plan(
        "backend=narrow",
        "env.BOTH=experiment",
        "parallel.data_shard=1",
        model="tiny_qwen3",
        hardware="H100",
        precision="bf16",
        nproc=1,
    )
    assert made.env == {"BOTH": "experiment", "FROM_BACKEND": "1"}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (("2", 0, 4), 2),
        (("null", 2, 4), 2),
        (("2", 2, 4), 2),
        (("4", 0, 4), 0),
        (("null", 0, 4), 0),
        (("3", 0, 1), 0),
        (("2", 4, 4), "resilience.min_nodes: 2, but slurm -N 4-4 says 4"),
        (("3", 0, 4), "resilience.min_nodes: 3, but the run cannot be split over 3 nodes: train.*2 or 4 instead"),
        (("null", 3, 4), "slurm -N 3-4: the run cannot be split over 3 nodes.*2 or 4 instead of 3"),
        (("8", 0, 4), "resilience.min_nodes: 8, but the run asks for 4 nodes.*4 at most"),
    ],
)
def test_how_few_nodes_will_do(
    resolve: Callable[..., Resolved], tmp_path: Path, sizes: tuple[str, int, int], expected: int | str
) -> None:
    """By the key, by ``-N MIN-MAX`` and of so many nodes."""
    fewest, asked, nodes = sizes
    resolved = resolve(f"resilience.min_nodes={fewest}")

    def found() -> int:
        return fewest_nodes(resolved, make_plan(resolved, nnodes=nodes, run_directory=tmp_path), asked)

    if isinstance(expected, int):
        assert found() == expected
    else:
        with pytest.raises(PlanError, match=f"(?s){expected}"):
            found()


def test_layouts_of_a_fixed_size_are_named_when_fewer_nodes_cannot_hold_them(
    resolve: Callable[..., Resolved], tmp_path: Path
) -> None:
    resolved = resolve("resilience.min_nodes=2", "parallel.data_shard=4")
    plan = make_plan(resolved, nnodes=4, run_directory=tmp_path)
    with pytest.raises(PlanError, match=r"(?s)data_shard 4, but there are 2 proc.*4 instead of 2, or parallel\.data"):
        fewest_nodes(resolved, plan)
    assert "kubernetes waits for all 4 nodes; other" in waits_for_all(plan, "kubernetes", "other")
