"""Finding a newer Python than the one that runs: what is only a name is passed over."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from primus.errors import EnvironmentFault
from primus.runtime import environments
from primus.runtime.environments import interpreters
from primus.runtime.environments.interpreters import find


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without another Python: `tmp_path`/bin is all of PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "base"))
    for name in ("PYENV_ROOT", "UV_PYTHON_INSTALL_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_this_python_serves_if_it_is_new_enough(bare: Path) -> None:
    assert find(sys.version_info[:2]) == sys.executable


def test_a_shim_that_starts_nothing_is_passed_over(bare: Path) -> None:
    later = sys.version_info.minor + 1
    script(bare / "bin" / f"python3.{later}", "echo no such version >&2; exit 127")
    assert find((3, later)) is None
    answer = f'[[3, {later}], [], "/found"]'
    script(bare / ".pyenv" / "versions" / f"3.{later}.1" / "bin" / "python3", f"echo '{answer}'")
    assert find((3, later)) == "/found"


@pytest.mark.parametrize("keeper", ["base/../3.{}.4", ".local/share/uv/python/cpython-3.{}.4-linux-x86_64-gnu"])
def test_they_are_found_where_they_are_kept(keeper: str, bare: Path) -> None:
    later = sys.version_info.minor + 1
    (bare / "base").mkdir()
    script(bare / keeper.format(later) / "bin" / "python3", f"echo '[[3, {later}], [], \"/kept\"]'")
    assert find((3, later)) == "/kept"


def test_an_environment_without_its_python_says_how_to_get_one(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreters, "NEWEST", 12)
    monkeypatch.setattr(interpreters.sys, "version_info", (3, 11, 0, "final", 0))
    monkeypatch.setenv("PRIMUS_HOME", str(bare / "home"))
    with pytest.raises(EnvironmentFault, match=r"needs Python 3\.12 or newer, and none was found") as caught:
        environments.create("jax")
    assert "uv python install 3.12" in caught.value.problems[0].remedy
