"""What every backend has to do, as a class of pytest tests. A backend's package subclasses it::

    from primus.testing.conformance import Conformance

    class TestMyBackend(Conformance):
        backend = "my_backend"
        experiment = {"precision": "bf16"}      # laid over the tiny experiment, where the backend needs it

and runs pytest. Plans are made there, and real worker processes are started, of the same interpreter if it holds the
engine and otherwise in the backend's own environment; nothing is mocked. A Llama of a few thousand weights trains for
eight steps a few times over.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
import yaml

from primus.backends import registry
from primus.backends.base import Backend, Processes
from primus.checkpoints import store
from primus.config.load import load
from primus.errors import ConfigError, PlanError, PrimusError
from primus.events.follow import Follower, RunHistory, read_run
from primus.events.jsonl import Record
from primus.numerics.schedule import learning_rate
from primus.plan.plan import Plan
from primus.plan.planner import AXES, make_plan
from primus.testing.processes import Fault, log_of, run_attempt

STEPS = 8
HEAVY = ("torch", "jax", "transformers", "tensorflow", "numpy")
TINY: dict[str, Any] = {
    "name": "conformance",
    "hardware": {"name": "cpu", "device": "cpu"},
    "model": {
        "model_type": "llama", "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 64, "max_position_embeddings": 64, "init_std": 0.05,
    },
    "data": {"train": "synthetic", "validation": 0.1},
    "train": {"steps": STEPS, "global_batch_size": 4, "micro_batch_size": 2, "seq_length": 32},
    "optimizer": {"lr": 0.01, "min_lr": 0.001, "schedule": {"name": "cosine", "warmup_steps": 3}},
    "precision": "fp32",
    "eval": {"interval": 4, "steps": 2},
    "checkpoint": {"interval": 2, "async": False},
    "monitor": {"tensorboard": False},
    "env": {"OMP_NUM_THREADS": "1"},
}  # fmt: skip


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, section by section."""
    result = copy.deepcopy(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


class Conformance:
    """Subclass it and set ``backend``.

    experiment: laid over TINY. refused: dotted key -> sections laid over the experiment that the backend must refuse,
    naming the key; what its Capabilities lack is tried in any case. nproc: worker processes. tolerance: largest
    difference of a resumed run's losses from the unbroken one's; 0 demands equal bits, which is what the numerics
    contract asks for at the same layout.
    """

    backend: ClassVar[str]
    experiment: ClassVar[dict[str, Any]] = {}
    refused: ClassVar[dict[str, dict[str, Any]]] = {}
    nproc: ClassVar[int] = 1
    tolerance: ClassVar[float] = 0.0

    # planning

    @classmethod
    def file(cls, directory: Path, **changes: Any) -> Path:
        """The experiment, with further sections laid over it, as a file in `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        tree = merged(merged(TINY | {"backend": cls.backend}, cls.experiment), changes)
        path = directory / "experiment.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    @classmethod
    def plan(cls, directory: Path, *, nproc: int | None = None, **changes: Any) -> Plan:
        resolved = load(cls.file(directory, **changes))
        return make_plan(resolved, nproc=nproc or cls.nproc, run_directory=directory / "run")

    def test_it_is_found_by_name_and_keeps_the_protocol(self) -> None:
        assert self.backend in registry.names()
        backend = registry.get(self.backend)
        assert isinstance(backend, Backend)
        assert backend.name == self.backend
        assert backend.processes in get_args(Processes)
        assert backend.environment

    def test_planning_is_pure_and_the_plan_survives_json(self, tmp_path: Path) -> None:
        first, second = self.plan(tmp_path), self.plan(tmp_path)
        assert first == second
        assert Plan.from_json(first.to_json()) == first
        assert json.loads(json.dumps(first.native)) == first.native, (
            "the native configuration must be plain JSON values"
        )
        assert [path.name for path in tmp_path.rglob("*")] == ["experiment.yaml"], "planning wrote files"
        for patch in first.patches:
            assert all((patch.target, patch.versions, patch.reason, patch.removal)), patch

    def test_planning_imports_nothing_heavy(self, tmp_path: Path) -> None:
        code = (
            "import sys; sys.path[:0] = sys.argv[3].split('\\n')\n"
            "from pathlib import Path; from primus.config.load import load; from primus.plan.planner import make_plan\n"
            "make_plan(load(Path(sys.argv[1])), nproc=int(sys.argv[2]), run_directory=Path('run'))\n"
            f"print([name for name in {HEAVY!r} if name in sys.modules])"
        )
        arguments = [str(self.file(tmp_path)), str(self.nproc), "\n".join(filter(None, sys.path))]
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "[]"

    def test_an_unknown_native_key_is_refused_with_its_place(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no_such_key") as caught:
            load(self.file(tmp_path, **{self.backend: {"no_such_key": 1}}))
        assert "experiment.yaml" in str(caught.value)

    def test_what_it_cannot_do_is_refused_before_anything_starts(self, tmp_path: Path) -> None:
        can = registry.get(self.backend).capabilities()
        device = merged(TINY, self.experiment)["hardware"]["device"]
        cases: list[tuple[str, dict[str, Any], int]] = []
        for axis in AXES:
            if axis not in can.parallel_axes:
                cases.append((f"parallel.{axis}", {"parallel": {axis: 2}}, 2))
        for precision in {"fp32", "bf16", "fp8"} - can.precisions[device]:
            cases.append(("precision", {"precision": precision}, self.nproc))
        for rule in can.unsupported:
            key, _, value = rule.partition("=")
            if value:
                *sections, name = key.split(".")
                change: dict[str, Any] = {name: yaml.safe_load(value)}
                for section in reversed(sections):
                    change = {section: change}
                cases.append((key, change, self.nproc))
        cases += [(key, change, self.nproc) for key, change in self.refused.items()]
        for number, (key, change, nproc) in enumerate(cases):
            with pytest.raises(PrimusError) as caught:
                self.plan(tmp_path / str(number), nproc=nproc, **change)
            assert isinstance(caught.value, PlanError | ConfigError), caught.value
            said = [f"{problem} {problem.excerpt}" for problem in caught.value.problems]
            assert any(key.rpartition(".")[2] in text for text in said), f"{key} is not named in: {said}"

    # running

    @staticmethod
    def complete(plan: Plan, attempt: int) -> RunHistory:
        """Run an attempt that must end well."""
        codes = run_attempt(plan, attempt)
        assert set(codes) == {0}, log_of(plan, attempt)
        return read_run(Path(plan.run_directory), alive=False)

    @staticmethod
    def records(plan: Plan, attempt: int) -> list[Record]:
        with Follower(Path(plan.run_directory) / "attempts" / str(attempt)) as follower:
            return follower.poll()

    @pytest.fixture(scope="class")
    @classmethod
    def unbroken(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, RunHistory]:
        """A run from the first step to the last."""
        plan = cls.plan(tmp_path_factory.mktemp("unbroken"))
        return plan, cls.complete(plan, 1)

    def test_the_events_tell_the_run_in_order(self, unbroken: tuple[Plan, RunHistory]) -> None:
        plan, history = unbroken
        records = self.records(plan, 1)
        kinds = [record["event"] for record in records]
        assert kinds.count("run_started") == 1
        assert kinds.index("run_started") < kinds.index("step_done")
        assert kinds[-1] == "run_ended"
        assert (records[-1]["reason"], records[-1]["step"]) == ("complete", STEPS)
        assert [r["step"] for r in records if r["event"] == "step_done"] == list(range(1, STEPS + 1))
        started = records[kinds.index("run_started")]
        assert (started["resumed_from"], started["world_size"], started["steps"]) == (None, self.nproc, STEPS)
        assert history.status == "complete"

    def test_each_step_reports_what_it_did(self, unbroken: tuple[Plan, RunHistory]) -> None:
        plan, history = unbroken
        experiment, steps = plan.experiment, history.steps
        tokens = experiment.train.global_batch_size * experiment.train.seq_length
        assert set(steps.tokens) == {tokens}
        assert all(math.isfinite(value) for value in [*steps.loss, *steps.grad_norm])
        assert all(seconds > 0 for seconds in steps.seconds)
        assert all(memory > 0 for memory in steps.memory_bytes)
        schedule = [learning_rate(step, experiment.optimizer, plan.decay_steps) for step in range(STEPS)]
        assert list(steps.lr) == pytest.approx(schedule, rel=1e-6)

    def test_it_starts_at_the_loss_of_guessing(self, unbroken: tuple[Plan, RunHistory]) -> None:
        plan, history = unbroken
        assert history.steps.loss[0] == pytest.approx(math.log(plan.experiment.model.vocab_size), abs=0.5)

    def test_it_evaluates_at_the_interval(self, unbroken: tuple[Plan, RunHistory]) -> None:
        plan, history = unbroken
        interval = plan.experiment.eval.interval
        assert {r["step"] for r in history.evals} >= set(range(interval, STEPS + 1, interval))
        assert all(math.isfinite(r["loss"]) for r in history.evals)

    def test_every_checkpoint_it_reports_is_whole(self, unbroken: tuple[Plan, RunHistory]) -> None:
        plan, history = unbroken
        infos = {info.step: info for info in store.complete(Path(plan.run_directory))}
        assert set(infos) == {r["step"] for r in history.checkpoints} == set(range(2, STEPS + 1, 2))
        for step, info in infos.items():
            assert store.verify(info) == []
            assert info.consumed_samples == step * plan.experiment.train.global_batch_size
            assert store.compare_model(info, plan.experiment.model.model_dump(mode="json")) == []

    def test_killed_and_with_its_newest_checkpoint_damaged_it_repeats_the_run(
        self, unbroken: tuple[Plan, RunHistory], tmp_path: Path
    ) -> None:
        plan = self.plan(tmp_path)
        run = Path(plan.run_directory)
        codes = run_attempt(plan, 1, Fault(signal.SIGKILL, 5))
        assert codes[0] == -signal.SIGKILL
        newest, _ = store.newest_intact(run)
        assert newest is not None, "no checkpoint was complete when step 5 had been reported"
        assert newest.step == 4
        largest = max(newest.files, key=lambda file: file.size)
        with (newest.directory / largest.path).open("r+b") as stream:
            stream.truncate(largest.size // 2)
        history = self.complete(plan, 2)
        assert history.attempts[-1].resumed_from == 2
        told = [str(record) for record in self.records(plan, 2) if record["event"] in ("notice", "run_started")]
        assert any("step-4" in text or "step 4" in text for text in told), (
            "the damaged checkpoint was skipped in silence"
        )
        self.assert_same(history, unbroken[1])

    def test_asked_to_stop_it_saves_and_goes_on_from_there(
        self, unbroken: tuple[Plan, RunHistory], tmp_path: Path
    ) -> None:
        plan = self.plan(tmp_path)
        codes = run_attempt(plan, 1, Fault(signal.SIGTERM, 3))
        assert set(codes) == {0}, log_of(plan, 1)
        end = next(record for record in self.records(plan, 1) if record["event"] == "run_ended")
        assert end["reason"] == "stopped"
        assert end["step"] in (3, 4), "it must stop at the end of the step, or of the next one"
        newest, _ = store.newest_intact(Path(plan.run_directory))
        assert newest is not None
        assert newest.step == end["step"]
        history = self.complete(plan, 2)
        assert history.attempts[-1].resumed_from == end["step"]
        # A run that was asked to stop may leave out the evaluation of its last step.
        self.assert_same(history, unbroken[1], without_evaluation=end["step"])

    def test_told_never_to_resume_it_starts_over_and_keeps_the_old_line_apart(
        self, unbroken: tuple[Plan, RunHistory], tmp_path: Path
    ) -> None:
        plan = self.plan(tmp_path, checkpoint={"resume": "never"})
        shutil.copytree(Path(unbroken[0].run_directory) / "checkpoints", Path(plan.run_directory) / "checkpoints")
        assert set(run_attempt(plan, 1, Fault(signal.SIGTERM, 1))) == {0}, log_of(plan, 1)
        history = read_run(Path(plan.run_directory), alive=False)
        assert history.attempts[0].resumed_from is None
        assert history.steps.loss[0] == unbroken[1].steps.loss[0]
        newest, _ = store.newest_intact(Path(plan.run_directory))
        assert newest is not None
        assert newest.step in (1, 2), "the next start would resume from the line that was given up"

    def assert_same(self, history: RunHistory, unbroken: RunHistory, *, without_evaluation: int | None = None) -> None:
        assert history.status == "complete"
        assert list(history.steps.step) == list(unbroken.steps.step)
        for name in ("loss", "grad_norm", "lr"):
            mine, theirs = getattr(history.steps, name), getattr(unbroken.steps, name)
            if self.tolerance:
                assert list(mine) == pytest.approx(list(theirs), abs=self.tolerance), name
            else:
                assert list(mine) == list(theirs), name
        ours, theirs = (
            {r["step"]: r["loss"] for r in each.evals if r["step"] not in (0, without_evaluation)}
            for each in (history, unbroken)
        )
        assert ours == (pytest.approx(theirs, abs=self.tolerance) if self.tolerance else theirs)
