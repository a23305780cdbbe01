"""Environments: what counts as having what is needed, which interpreter is chosen, what is refused."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from primus.errors import EnvironmentFault
from primus.runtime import environments, installing, pins
from primus.runtime.environments import ENVIRONMENTS, check_backend, engine_mismatches, import_path, locate
from primus.runtime.pins import Interpreter, Lock, Requirement, read_lock, read_requirements, shortcomings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., Interpreter]:
    """``site(torch="2.13.0+cpu", ...)``: an interpreter with these distributions, as metadata tells."""

    def make(version: tuple[int, int] = (3, 11), **packages: str) -> Interpreter:
        directory = tmp_path / f"venv{len(list(tmp_path.iterdir()))}" / "lib" / "python3.11" / "site-packages"
        directory.mkdir(parents=True)
        for name, number in packages.items():
            info = directory / f"{name}-{number}.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {number}\n"
            )
        return Interpreter("/some/python", version, (str(directory),))

    return make


def everything(name: str = "torch") -> dict[str, str]:
    """The locked version of each direct requirement."""
    lock = read_lock(name)
    return {need.name.replace("-", "_"): lock.pins[need.name] for need in read_requirements(name)}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_locks_meet_their_requirements_and_carry_the_hash_of_their_content(name: str) -> None:
    from hashlib import sha256

    lock = read_lock(name)
    first, _, rest = lock.path.read_text().partition("\n")
    assert first == f"# {sha256(rest.encode()).hexdigest()[:12]}"
    for need in read_requirements(name):
        assert need.met_by(lock.pins[need.name]), need
    assert not [pin for pin in lock.pins.values() if "+" in pin]


def test_the_locks_agree_on_every_version() -> None:
    dev = read_lock("dev").pins
    for name in ("torch", "launcher"):
        pinned = read_lock(name).pins
        assert {package: dev[package] for package in pinned} == pinned


def test_the_torch_environment_holds_what_the_package_asks_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for python, newer in (((3, 11), False), ((3, 12), True)):
        torch = {str(need) for need in read_requirements("torch", python)}
        declared = [*project["dependencies"], *extras["torchtitan"], extras["megatron"][newer].partition(";")[0]]
        assert {item.replace("_", "-") for item in declared} == torch


@pytest.mark.parametrize(
    ("requirement", "found", "met"),
    [
        (Requirement("a", "==", "2.13.0"), "2.13.0+rocm7.1", True),
        (Requirement("a", "==", "2.13.0"), "2.13.1", False),
        (Requirement("a", ">=", "2.9"), "2.13.0", True),
        (Requirement("a", ">=", "2.13"), "2.9.1", False),
        (Requirement("a", ">=", "14"), "14", True),
        (Requirement("a"), "0.0.1", True),
    ],
)
def test_versions(requirement: Requirement, found: str, met: bool) -> None:
    assert requirement.met_by(found) is met


def test_every_shortcoming_is_listed(site: Callable[..., Interpreter]) -> None:
    have = everything() | {"torch": "2.9.1+rocm6.4", "click": "7.0"}
    del have["torchtitan"]
    problems = shortcomings(site(version=(3, 10), **have), read_requirements("torch"), (3, 11))
    assert [str(problem) for problem in problems] == [
        "python: is 3.10, needs 3.11 or newer",
        "click: is 7.0, needs >=8.2",
        "torch: is 2.9.1+rocm6.4, needs ==2.13.0",
        "torchtitan: is not installed, needs torchtitan==0.3.0",
    ]
    assert shortcomings(site(**everything() | {"torch": "2.13.0+rocm7.1"}), read_requirements("torch"), (3, 11)) == []


def test_the_plan_is_compared_with_what_is_installed(site: Callable[..., Interpreter]) -> None:
    interpreter = site(torchtitan="0.3.0", torch="2.13.0+cpu")
    assert engine_mismatches(interpreter, {"torchtitan": "0.3.0", "torch": "2.13.0"}) == []
    (problem,) = engine_mismatches(interpreter, {"torchtitan": "0.4.0"})
    assert str(problem) == "torchtitan: is 0.3.0, the plan was made for 0.4.0"


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, site: Callable[..., Interpreter]) -> None:
    """An interpreter with no packages, no active environment, no python3 on PATH, an empty home."""
    for name in ("PRIMUS_PYTHON", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PRIMUS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))
    empty = site()
    monkeypatch.setattr(environments, "this_interpreter", lambda: empty)


@pytest.mark.usefixtures("nothing_here")
class TestLocate:
    def test_nothing(self) -> None:
        assert locate("torch") is None

    def test_the_chosen_interpreter_serves_or_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PRIMUS_PYTHON", sys.executable)
        located = locate("torch")
        assert located is not None
        assert located.origin == "PRIMUS_PYTHON"
        monkeypatch.setattr(environments, "probe", lambda path: Interpreter(path, (3, 11), ("/nowhere",)))
        with pytest.raises(EnvironmentFault, match="torchtitan: is not installed") as refused:
            locate("torch")
        assert "unset PRIMUS_PYTHON" in refused.value.problems[0].remedy

    def test_an_active_environment(self, monkeypatch: pytest.MonkeyPatch, site: Callable[..., Interpreter]) -> None:
        active = Path(site(**everything()).path[0]).parents[2]
        (active / "bin").mkdir()
        (active / "bin" / "python").symlink_to(sys.executable)
        monkeypatch.setenv("VIRTUAL_ENV", str(active))
        located = locate("torch")
        assert located is not None
        assert located == environments.Located(str(active / "bin" / "python"), "active virtual environment")
        assert locate("dev") is None

    def test_the_one_made_from_the_lock(self) -> None:
        directory = ENVIRONMENTS["torch"].directory
        (directory / "bin").mkdir(parents=True)
        (directory / "bin" / "python").symlink_to(sys.executable)
        assert locate("torch") is None
        (directory / "complete").write_text("")
        located = locate("torch")
        assert located is not None
        assert located.origin == "made from its lock"
        (directory / "bin" / "python").unlink()
        (directory / "bin" / "python").symlink_to("/an/interpreter/that/was/removed")
        assert locate("torch") is None

    def test_an_image_that_brings_its_own(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, site: Callable[..., Interpreter]
    ) -> None:
        (tmp_path / "python3").symlink_to(sys.executable)
        brought = site(**everything() | {"torch": "2.13.0+rocm7.1"})
        monkeypatch.setattr(environments, "probe", lambda path: brought)
        located = locate("torch")
        assert located is not None
        assert located.origin == "python3 on PATH"

    def test_an_image_with_another_rocm_torch_is_not_covered_up(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, site: Callable[..., Interpreter]
    ) -> None:
        (tmp_path / "python3").symlink_to(sys.executable)
        brought = site(**everything() | {"torch": "2.9.1+rocm6.4"})
        monkeypatch.setattr(environments, "probe", lambda path: brought)
        with pytest.raises(EnvironmentFault, match=r"torch: is 2\.9\.1\+rocm6\.4, needs ==2\.13\.0") as refused:
            locate("torch")
        assert "env create torch" in refused.value.problems[0].remedy

    def test_a_cpu_torch_of_another_version_is_passed_over(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, site: Callable[..., Interpreter]
    ) -> None:
        (tmp_path / "python3").symlink_to(sys.executable)
        brought = site(**everything() | {"torch": "2.9.1"})
        monkeypatch.setattr(environments, "probe", lambda path: brought)
        assert locate("torch") is None


def test_a_rocm_build_without_a_local_version_is_recognized(site: Callable[..., Interpreter]) -> None:
    """AMD's images version their torch ``2.13.0a0+git...``; the build says so inside."""
    interpreter = site(torch="2.9.0a0+git1234")
    package = Path(interpreter.path[0]) / "torch"
    package.mkdir()
    (package / "version.py").write_text("cuda: Optional[str] = None\nhip: Optional[str] = '7.1.25424'\n")
    assert environments._is_rocm(interpreter)
    (package / "version.py").write_text("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n")
    assert not environments._is_rocm(interpreter)


def test_python_is_imported_from_where_this_package_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"/mine{os.pathsep}{ROOT / 'src'}")
    assert import_path() == {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}/mine"}


def test_an_installed_package_is_shared_without_its_neighbours(tmp_path: Path) -> None:
    """From a wheel, another environment gets `primus` and not the launcher's other packages."""
    site = tmp_path / "venv" / "site-packages"
    site.mkdir(parents=True)
    subprocess.run(["cp", "-rL", str(ROOT / "src" / "primus"), str(site / "primus")], check=True)
    (site / "neighbour.py").write_text("")
    code = "import json; from primus.runtime.environments import import_path; print(import_path()['PYTHONPATH'])"
    env = {**os.environ, "PYTHONPATH": str(site), "PRIMUS_HOME": str(tmp_path / "home")}
    answer = subprocess.run([sys.executable, "-P", "-c", code], env=env, capture_output=True, text=True, check=True)
    shared = Path(answer.stdout.strip().split(os.pathsep)[0])
    assert [path.name for path in shared.iterdir()] == ["primus"]
    assert (shared / "primus").resolve() == (site / "primus").resolve()


def test_a_plugin_that_the_ranks_would_miss_is_refused(
    monkeypatch: pytest.MonkeyPatch, site: Callable[..., Interpreter]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "support" / "plugins"))
    ranks = site(**everything())
    monkeypatch.setattr(environments, "probe", lambda path: ranks)
    check_backend("torchtitan", "/another/python")
    check_backend("counting", sys.executable)
    with pytest.raises(EnvironmentFault, match="but not in /another/python, in which the ranks run"):
        check_backend("counting", "/another/python")
    ranks = site(counting="1.0")
    check_backend("counting", "/another/python")


class Waiting(io.StringIO):
    pass


def test_the_second_of_two_installations_waits_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on, made = threading.Event(), threading.Event(), []

    def make(self: installing.Installation) -> None:
        began.set()
        go_on.wait(10)
        made.append(self.directory)
        (self.directory / "bin").mkdir(parents=True)
        (self.directory / "bin" / "python").write_text("")
        (self.directory / "complete").write_text("")

    monkeypatch.setattr(installing.Installation, "_make", make)
    lock, out = Lock(tmp_path / "a.lock", "0", {}), Waiting()
    threads = [
        threading.Thread(target=installing.install, args=(lock, tmp_path / "envs/a", "a", out)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    began.wait(10)
    while "another process is making" not in out.getvalue():
        pass
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert made == [tmp_path / "envs/a"]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_one_line_on_a_terminal_and_a_line_now_and_then_elsewhere(terminal: bool) -> None:
    out = io.StringIO()
    out.isatty = lambda: terminal  # type: ignore[method-assign]
    progress = installing.Progress(out, 3)
    progress.start()
    seen = []
    for line in (
        "Collecting click==8.5.1 (from -r x (line 3))",
        "  Downloading click-8.5.1-py3-none-any.whl (108 kB)",
        "Collecting torch==2.13.0",
        "Progress 52428800 of 209715200",
        "Collecting typing_extensions>=4",
        "WARNING: Retrying (Retry(total=4)) after connection broken",
        "Installing collected packages: a, b",
    ):
        progress.take(line)
        seen.append(progress.line().removesuffix("  0 s").strip())
    time.sleep(0.5)
    progress.close("ready")
    assert seen == [
        "1/3  click",
        "1/3  click  108 kB",
        "2/3  torch",
        "2/3  torch  52 of 210 MB",
        "3/3  typing_extensions",
        "3/3  the package index does not answer, retrying",
        "3/3  unpacking",
    ]
    text = out.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("ready\n")
    assert ("3/3  unpacking" in text) is terminal


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("/usr/bin/python3: No module named venv", "without its venv module"),
        (
            "NewConnectionError(...): Failed to establish a new connection: Name or service not known",
            "cannot be reached",
        ),
        (
            "ERROR: No matching distribution found for torch==2.13.0",
            "no such version for this Python and machine (torch==2.13.0)",
        ),
        ("ssl.SSLError: CERTIFICATE_VERIFY_FAILED", "certificate is not trusted"),
        ("something\nnever seen\n\n", "never seen"),
    ],
)
def test_what_pip_says_becomes_a_cause_and_a_remedy(said: str, cause: str) -> None:
    fault = installing.fault("torch", Path("/h/envs/torch-1"), said, Path("/h/envs/torch-1.log"))
    assert cause in str(fault)
    assert "/h/envs/torch-1.log" in str(fault)


def test_a_chosen_interpreter_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot be used as a Python interpreter"):
        pins.probe(str(tmp_path))
