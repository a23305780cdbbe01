"""Moving a run to another engine when something is in the way: refused before anything is written, or interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from command_line import Cli, environment_of, processes_with, wait_for
from gang import SOURCES
from safetensors.torch import load_file
from tiny import GPT_OSS, LLAMA, LLAMA4, MIXTRAL, QWEN3, make

from primus.backends.exchange import PARTS, Layout
from primus.backends.megatron import export as megatron
from primus.backends.pytorch.exchange import name_of
from primus.backends.torchtitan import export as torchtitan
from primus.checkpoints import store
from primus.checkpoints.store import CheckpointInfo
from primus.config.experiment import Model
from primus.errors import CheckpointError, PlanError
from primus.runtime.exchange.exchanges import Exchanges
from primus.runtime.exchange.moving import move, settle
from primus.runtime.processes import PARENT
from primus.runtime.run_directory import RunDirectory, experiment_text

LAYOUTS: dict[str, Callable[[Model], Layout]] = {"megatron": megatron.layout, "torchtitan": torchtitan.layout}
STEP = 3


def saved(run: Path, backend: str, step: int = STEP, **overrides: Any) -> CheckpointInfo:
    """A checkpoint of random numbers, and the plan of the run it is in."""
    plan = make(run, "synthetic", backend=backend, **overrides)
    (run / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    layout = LAYOUTS[backend](plan.experiment.model)
    state = {name_of(part, weight.native): torch.rand(weight.shape) for part in PARTS for weight in layout.of(part)}
    directory = store.begin(run, step)
    dcp.save(state, storage_writer=dcp.FileSystemWriter(directory), no_dist=True)
    model = plan.experiment.model.model_dump(mode="json")
    store.seal(directory, step=step, consumed_samples=8 * step, model=model, backend=backend)
    return store.complete(run)[0]


def there(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def quiet(_: str) -> Any:
    return lambda done, total: None


REFUSED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "model.model_type": ("torchtitan", "megatron", {"model": GPT_OSS}),
    "model.num_experts_per_tok": ("torchtitan", "megatron", {"model": LLAMA4}),
    "precision": ("torchtitan", "megatron", {"precision": "fp8", "torchtitan__float8__emulate": True}),
    "moe.balance": ("megatron", "torchtitan", {"model": MIXTRAL, "moe__balance": "aux_loss"}),
}


@pytest.mark.parametrize("key", REFUSED)
def test_where_a_run_could_not_go_on_it_is_not_moved(exchanges: Exchanges, key: str, tmp_path: Path) -> None:
    backend, to, overrides = REFUSED[key]
    info = saved(tmp_path / "run", backend, **overrides)
    with pytest.raises(PlanError) as caught:
        move(exchanges, tmp_path / "run", info, to, quiet)
    assert [problem.where for problem in caught.value.problems] == [key]
    assert there(tmp_path / "run") == ["step-3"]


def test_without_its_plan_a_checkpoint_still_says_what_model_it_is(exchanges: Exchanges, tmp_path: Path) -> None:
    info = saved(tmp_path / "run", "torchtitan", model=GPT_OSS)
    (tmp_path / "run" / "plan.json").unlink()
    with pytest.raises(PlanError, match="megatron has no model_type 'gpt_oss'"):
        move(exchanges, tmp_path / "run", info, "megatron", quiet)
    assert there(tmp_path / "run") == ["step-3"]


def test_a_layout_that_does_not_fit_is_no_reason(exchanges: Exchanges, tmp_path: Path) -> None:
    """The next command may name another."""
    run = tmp_path / "run"
    info = saved(run, "torchtitan", model=LLAMA | {"vocab_size": 255}, nproc=2, parallel__tensor=2)
    assert move(exchanges, run, info, "megatron", quiet).name == "step-3.aside-1"
    assert store.complete(run)[0].backend == "megatron"


def test_by_way_of_every_engine_nothing_changes(
    exchanges: Exchanges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit, also where an array is cut into chunks of some layers, or its keys lie in several nodes."""
    run = tmp_path / "run"
    info = saved(run, "torchtitan", model=QWEN3 | {"tie_word_embeddings": False, "num_hidden_layers": 4})
    places = []
    for number, backend in enumerate(("maxtext", "megatron", "maxtext", "torchtitan")):
        move(exchanges, run, info, backend, quiet)
        info = store.complete(run)[0]
        assert not store.verify(info)
        places.append(tmp_path / f"between-{number}")
        places[-1].mkdir()
        exchanges.export_state(backend, info.directory, places[-1], lambda done, total: None)
    for part in PARTS:
        first, *others = (load_file(place / part / "model.safetensors") for place in places)
        for other in others:
            assert first.keys() == other.keys()
            assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("moment", ["writing", "placing", "killed"])
def test_what_interrupts_it_leaves_the_run_as_it_was(
    moment: str, exchanges: Exchanges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person; a full disk at the end; the process of the engine killed, as for want of memory."""
    run, rename = tmp_path / "run", Path.rename
    info = saved(run, "megatron")
    saved(run, "megatron", 5)

    def interrupt(*_: Any) -> None:
        if moment == "writing":
            raise KeyboardInterrupt
        os.kill(exchanges.pids[-1], signal.SIGKILL)

    def placing(path: Path, target: Path) -> Path:
        if path.name.startswith(".converted"):
            raise OSError(28, os.strerror(28))
        return rename(path, target)

    def progress(title: str) -> Any:
        return interrupt if moment != "placing" and title.startswith("writing") else quiet(title)

    if moment == "placing":
        monkeypatch.setattr(Path, "rename", placing)
    with pytest.raises(KeyboardInterrupt if moment == "writing" else CheckpointError) as caught:
        move(exchanges, run, info, "torchtitan", progress)
    assert moment != "killed" or "was ended by SIGKILL" in str(caught.value)
    assert there(run) == ["step-3", "step-5"]
    assert [found.backend for found in store.complete(run)] == ["megatron"] * 2


KILLED = """
import os, signal, sys
from pathlib import Path
from primus.checkpoints import store
from primus.runtime.exchange.exchanges import Exchanges
from primus.runtime.exchange.moving import move

def progress(title):
    def at(done, total):
        if title.startswith("writing") and done == 5:
            os.kill(os.getpid(), signal.SIGKILL)
    return at

run = Path(sys.argv[1])
print(os.getpid(), flush=True)
with Exchanges() as exchanges:
    move(exchanges, run, store.complete(run)[0], "torchtitan", progress)
"""


def parent(pid: int) -> str:
    """Who started process `pid`, as that process was told; empty if it is gone."""
    try:
        return environment_of(pid).get(PARENT, "")
    except OSError:
        return ""


def test_killed_in_the_middle_it_can_be_asked_for_again(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    saved(run, "megatron")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(run)],
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        stdout=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    mine = str(int(done.stdout))
    wait_for(
        lambda: mine not in map(parent, processes_with("primus.runtime.exchange.exchanges")),
        what="the end of its process",
    )
    left = there(run)
    assert len(left) == 3  # the original, and two directories of the conversion, which nobody takes for a checkpoint
    assert [(info.step, info.backend) for info in store.complete(run)] == [(STEP, "megatron")]
    again = cli("checkpoint", "convert", "run", "--to", "torchtitan")
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("step 3 is torchtitan's now; the original is step-3.aside-1")
    assert not again.stderr
    assert there(run) == ["step-3", "step-3.aside-1"]


def test_killed_while_it_puts_its_checkpoint_in_place_it_is_finished(exchanges: Exchanges, tmp_path: Path) -> None:
    run = tmp_path / "run"
    info = saved(run, "megatron")
    move(exchanges, run, info, "torchtitan", quiet)
    folder = run / "checkpoints"
    (folder / "step-3").rename(folder / ".converted-3-99")
    (folder / ".exchange-3-99" / "weights").mkdir(parents=True)
    (folder / ".converted-2-7").mkdir()
    (folder / ".mine").mkdir()
    assert not store.complete(run)
    settle(run)
    assert there(run) == [".mine", "step-3", "step-3.aside-1"]
    assert [found.backend for found in store.complete(run)] == ["torchtitan"]
    assert not store.verify(store.complete(run)[0])


def test_training_finishes_what_was_killed_before_it_looks_for_checkpoints(
    exchanges: Exchanges, cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "run"
    older, newest = saved(run, "megatron", 2), saved(run, "megatron", train__steps=STEP)
    move(exchanges, run, newest, "torchtitan", quiet)
    (run / "checkpoints" / "step-3").rename(run / "checkpoints" / ".converted-3-99")
    assert [info.step for info in store.complete(run)] == [older.step]
    plan = RunDirectory(run).plan()
    assert plan is not None
    (tmp_path / "run.yaml").write_text(experiment_text(plan), encoding="utf-8")
    done = cli("train", "pretrain", "--config", "run.yaml", "--backend", "torchtitan")
    assert done.returncode == 0, done.stderr
    assert "run is complete: 3 of 3 steps" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("empty", "--to", "torchtitan"), "run 'empty' has no intact checkpoint"),
        (("empty", "--to", "megatrn"), "did you mean 'megatron'?"),
        (("absent", "--to", "megatron"), "there is no run 'absent'"),
    ],
)
def test_nothing_to_move(arguments: tuple[str, ...], message: str, cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "empty"
    plan = make(run, "synthetic", backend="megatron")
    (run / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    done = cli("checkpoint", "convert", *arguments)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
