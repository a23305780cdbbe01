"""Every backend passes the suite that ships for them: ours, and one that another package brings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import megatron_next
import pytest
from command_line import unmeasured

from primus.backends import registry
from primus.events.follow import RunHistory
from primus.plan.plan import Plan
from primus.testing.conformance import Conformance

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of packages with the example backend in it, as pip installs it."""
    source = tmp_path_factory.mktemp("source") / "plugin_backend"
    shutil.copytree(ROOT / "examples" / "plugin_backend", source)
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    return target


def test_a_backend_of_another_package_conforms(site: Path) -> None:
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    tests = ROOT / "examples" / "plugin_backend" / "tests"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tests), str(tests)]
    done = subprocess.run(
        command, env=unmeasured({**os.environ, "PYTHONPATH": path}), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


class TestMegatron(Conformance):
    """The version that is installed; the newer one runs this class again, in a process of its own."""

    backend = "megatron"

    def test_it_is_the_version_that_is_meant(self) -> None:
        wanted = os.environ.get("MEGATRON_VERSION", "0.16.1")
        assert registry.get("megatron").native_schema().engine["megatron-core"] == wanted


def test_the_newer_megatron_conforms() -> None:
    path = os.pathsep.join([str(megatron_next.overlay()), *filter(None, sys.path)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "TestMegatron"]
    environment = unmeasured({**os.environ, "PYTHONPATH": path, "MEGATRON_VERSION": megatron_next.VERSION})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


class TestMaxText(Conformance):
    """Its workers run in the jax environment; planning does not."""

    backend = "maxtext"


class TestTorchTitan(Conformance):
    backend = "torchtitan"

    def test_another_backend_computes_the_same(
        self, unbroken: tuple[Plan, RunHistory], site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Same file, another engine: start, order of samples, schedule and maths are equal up to rounding."""
        monkeypatch.syspath_prepend(str(site))
        history = self.complete(self.plan(tmp_path, backend="plain_torch"), 1)
        ours, theirs = unbroken[1].steps, history.steps
        assert list(theirs.loss) == pytest.approx(list(ours.loss), abs=1e-5)
        assert list(theirs.grad_norm) == pytest.approx(list(ours.grad_norm), rel=1e-4)
        theirs_evals = {record["step"]: record["loss"] for record in history.evals}
        ours_evals = {record["step"]: record["loss"] for record in unbroken[1].evals if record["step"] in theirs_evals}
        assert theirs_evals == pytest.approx(ours_evals, abs=1e-5)
