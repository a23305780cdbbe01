"""Environments that were made and are not whole any more: found without starting anything, and made anew."""

from __future__ import annotations

import sys
from pathlib import Path

import made
import pytest

from primus.errors import EnvironmentFault
from primus.runtime import environments
from primus.runtime.environments import ENVIRONMENTS, installing, integrity, locate
from primus.runtime.environments.pins import Interpreter

TORCH = ENVIRONMENTS["torch"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and nothing around that would serve."""
    for name in ("PRIMUS_PYTHON", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PRIMUS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(environments, "this_interpreter", lambda: Interpreter("/some/python", (3, 12), ()))
    return tmp_path


def test_a_whole_one_serves_also_with_packages_of_the_users_own() -> None:
    assert TORCH.state == "not made"
    made.metadata(made.make("torch"), "my-sink", "1.0")
    assert TORCH.state == "ready"
    assert locate("torch") == environments.Located(TORCH.executable, "made from its lock")


def test_packages_that_are_gone_or_others_are_named_and_stop_a_run() -> None:
    site = made.make("torch")
    pins = TORCH.lock.pins
    next(site.glob("numpy-*")).rename(site / "numpy-1.26.4.dist-info")
    next(site.glob("pyarrow-*")).rmdir()
    next(site.glob("torch-*")).rename(site / f"torch-{pins['torch']}+rocm7.1.dist-info")  # a build of the same version
    assert TORCH.state == "broken"
    with pytest.raises(EnvironmentFault) as refused:
        locate("torch")
    head, *packages = refused.value.problems
    assert head.where == str(TORCH.directory)
    assert "env create torch" in head.remedy
    assert f"PRIMUS_PYTHON={TORCH.executable}" in head.remedy
    assert [str(problem) for problem in packages] == [
        f"numpy: is 1.26.4, its lock has {pins['numpy']}",
        f"pyarrow: is gone, its lock has {pins['pyarrow']}",
    ]


def test_what_cannot_run_is_made_anew_by_whoever_needs_it(home: Path) -> None:
    made.make("torch")
    (TORCH.directory / integrity.STAMP).unlink()
    assert "was never finished" in str(integrity.unusable(TORCH.directory)[0])
    (TORCH.directory / integrity.STAMP).write_text("")
    python = TORCH.directory / "bin" / "python"
    python.unlink()
    python.symlink_to("/opt/python/removed/bin/python3.11")
    assert "is gone: /opt/python/removed/bin/python3.11" in str(integrity.unusable(TORCH.directory)[0])
    newer = home / "real" / "python3.99"
    newer.parent.mkdir()
    newer.write_text("")
    python.unlink()
    python.symlink_to(newer)
    (problem,) = integrity.unusable(TORCH.directory)
    assert f"its Python is 3.99 now, its packages are for 3.{sys.version_info.minor}" in problem.message
    assert TORCH.state == "unusable"
    assert locate("torch") is None


def test_one_that_is_being_made_is_waited_for(home: Path) -> None:
    made.make("torch")
    with installing.exclusive(integrity.lock_file(TORCH.directory), "", sys.stderr):
        assert TORCH.state == "being made"
        assert locate("torch") is None
    assert TORCH.state == "ready"


def test_create_makes_a_broken_one_anew_and_leaves_a_whole_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    anew: list[str] = []

    def install(self: installing.Installation) -> None:
        anew.append(self.lock.name)

    monkeypatch.setattr(installing.Installation, "run", install)
    site = made.make("torch")
    assert environments.create("torch", thorough=True) == TORCH.executable
    assert anew == []
    record = next(site.glob("numpy-*")) / "RECORD"
    record.write_text(
        "numpy/core.py,sha256=x,9\nnumpy/gone.py,,\nnumpy/here.py,,\nnumpy/x.pyc,,\nnumpy-9.dist-info/RECORD,,\n"
    )
    (site / "numpy").mkdir()
    for name in ("core", "here"):
        (site / "numpy" / f"{name}.py").write_text("x = 1")
    environments.create("torch")
    assert anew == []  # a run does not look at every file
    environments.create("torch", thorough=True)
    assert anew == ["torch"]
    assert "numpy: 2 of its 3 files are gone or damaged, numpy/core.py first" in capsys.readouterr().err


class TestJaxPlugins:
    """Fake ones, of another release than the jax beside them; jax is not imported."""

    @pytest.fixture
    def site(self) -> Path:
        return made.make("jax", minor=12)

    @pytest.mark.parametrize("version", ["0.11.1", "0.11.1.post2", "0.11.1+rocm7.1"])
    def test_those_that_fit(self, site: Path, version: str) -> None:
        made.metadata(site, "jax-rocm7-plugin", version)
        assert not integrity.faults("jax", ENVIRONMENTS["jax"].directory)

    def test_another_release(self, site: Path) -> None:
        made.metadata(site, "jax-cuda13-plugin", "0.11.11")
        made.metadata(site, "jax-rocm7-pjrt", "0.10.2")
        assert list(map(str, integrity.faults("jax", ENVIRONMENTS["jax"].directory))) == [
            "jax-cuda13-plugin: is 0.11.11, jax is 0.11.1 (pip install 'jax-cuda13-plugin==0.11.1.*', or remove it)",
            "jax-rocm7-pjrt: is 0.10.2, jax is 0.11.1 (pip install 'jax-rocm7-pjrt==0.11.1.*', or remove it)",
        ]

    def test_an_interpreter_that_was_there_is_held_to_the_same(self, site: Path) -> None:
        made.metadata(site, "jax-rocm7-plugin", "0.10.2")
        found = Interpreter("/image/python", (3, 12), (str(site),))
        wanted = "jax-rocm7-plugin: is 0.10.2, needs ==0.11.1.*"
        assert [problem.where for problem in ENVIRONMENTS["jax"].shortcomings(found)] == ["jax-rocm7-plugin"]
        problems = list(map(str, ENVIRONMENTS["jax-rocm"].shortcomings(found)))
        assert problems == [wanted, "jax-rocm7-pjrt: is not installed, needs jax-rocm7-pjrt==0.11.1.*"]


def test_the_one_for_gpus_serves_the_cpu_too() -> None:
    made.make("jax-rocm", minor=12)
    located = locate("jax")
    assert located is not None
    assert located.origin == "the jax-rocm environment"
