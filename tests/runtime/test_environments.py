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

import made
import pytest

from primus.errors import EnvironmentFault, Problem
from primus.runtime import environments
from primus.runtime.environments import ENVIRONMENTS, import_path, installing, locate, pins, ranks
from primus.runtime.environments.pins import Interpreter, Lock, Requirement, read_lock, read_requirements, shortcomings
from primus.runtime.environments.ranks import check_backend, check_import_path, engine_mismatches

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
    beside = read_lock("monitor").pins
    assert {package: beside[package] for package in read_lock("launcher").pins} == read_lock("launcher").pins
    jax = read_lock("jax").pins
    for variant, kind in (("jax-rocm", "rocm7"), ("jax-cuda", "cuda13")):
        plugins = {f"jax-{kind}-{part}": jax["jax"] for part in ("plugin", "pjrt")}
        assert read_lock(variant).pins == jax | plugins


def test_the_torch_environment_holds_what_the_package_asks_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for python, newer in (((3, 11), False), ((3, 12), True)):
        torch = {str(need) for need in read_requirements("torch", python)}
        declared = [*project["dependencies"], *extras["torchtitan"], extras["megatron"][newer].partition(";")[0]]
        assert {item.replace("_", "-") for item in declared} == torch


def test_the_jax_environment_holds_what_the_package_asks_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {*project["dependencies"], *project["optional-dependencies"]["maxtext"]}
    assert {item.replace("_", "-") for item in declared} == {str(need) for need in read_requirements("jax", (3, 12))}


@pytest.mark.parametrize(
    ("requirement", "found", "met"),
    [
        (Requirement("a", "==", "2.13.0"), "2.13.0+rocm7.1", True),
        (Requirement("a", "==", "2.13.0"), "2.13.1", False),
        (Requirement("a", ">=", "2.9"), "2.13.0", True),
        (Requirement("a", ">=", "2.13"), "2.9.1", False),
        (Requirement("a", ">=", "14"), "14", True),
        (Requirement("a"), "0.0.1", True),
        (Requirement("a", "==", "0.11.1.*"), "0.11.1.post1", True),
        (Requirement("a", "==", "0.11.1.*"), "0.11.1", True),
        (Requirement("a", "==", "0.11.1.*"), "0.11.10", False),
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

    def test_an_interpreter_chosen_for_another_engine_need_not_serve(
        self, monkeypatch: pytest.MonkeyPatch, site: Callable[..., Interpreter]
    ) -> None:
        monkeypatch.setenv("PRIMUS_PYTHON", "/image/python")
        chosen = site(version=(3, 12), jax="0.11.1")
        monkeypatch.setattr(environments, "probe", lambda path: chosen)
        assert locate("torch") is None
        with pytest.raises(EnvironmentFault, match="maxtext: is not installed"):
            locate("jax")

    def test_one_beside_the_ranks_need_not_be_served_by_what_was_chosen_for_them(
        self, monkeypatch: pytest.MonkeyPatch, site: Callable[..., Interpreter]
    ) -> None:
        monkeypatch.setenv("PRIMUS_PYTHON", "/image/python")
        chosen = site()
        monkeypatch.setattr(environments, "probe", lambda path: chosen)
        assert locate("monitor") is None
        whole = site(**everything("monitor"))
        monkeypatch.setattr(environments, "probe", lambda path: whole)
        located = locate("monitor")
        assert located is not None
        assert located.origin == "PRIMUS_PYTHON"

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


def test_what_describes_another_python_stays_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {"PYTHONHOME": "/usr", "VIRTUAL_ENV": str(tmp_path), "CONDA_PREFIX": "/conda", "CONDA_DEFAULT_ENV": "base"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert not given.keys() & pins.variables_for("/another/python").keys()
    assert "VIRTUAL_ENV" in pins.variables_for(str(tmp_path / "bin" / "python"))
    assert "PYTHONHOME" in pins.variables_for(sys.executable)


def test_packages_on_pythonpath_that_hide_the_environments_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, site: Callable[..., Interpreter]
) -> None:
    users, own = tmp_path / "users", site(version=(3, 12), **everything("jax")).path
    made.metadata(users, "numpy", "1.26.4")
    made.metadata(users, "xxhash", "9.0", tag="cp311-cp311-linux")
    made.metadata(users, "pyyaml", "9.0", tag="cp312-cp312-linux")
    made.metadata(users, "rich", "99.0", tag="py3-none-any")
    monkeypatch.setattr(ranks, "probe", lambda *_: Interpreter("/ranks/python", (3, 12), (str(users), *own)))
    check_import_path("jax", "/ranks/python", "/ours")
    with pytest.raises(EnvironmentFault) as refused:
        check_import_path("jax", "/ranks/python", f"/ours{os.pathsep}{users}")
    assert refused.value.problems == (
        Problem("PYTHONPATH", "what it adds does not fit /ranks/python, in which the ranks run", "unset PYTHONPATH"),
        Problem("numpy", "is 1.26.4, needs >=2"),
        Problem(str(users), "has packages that are compiled for another Python than 3.12: xxhash"),
    )


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
    theirs = site(**everything())
    monkeypatch.setattr(ranks, "probe", lambda path: theirs)
    check_backend("torchtitan", "/another/python")
    check_backend("counting", sys.executable)
    with pytest.raises(EnvironmentFault, match="but not in /another/python, in which the ranks run"):
        check_backend("counting", "/another/python")
    theirs = site(counting="1.0")
    check_backend("counting", "/another/python")


class Waiting(io.StringIO):
    pass


def test_the_second_of_two_installations_waits_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on, done = threading.Event(), threading.Event(), []

    def make(self: installing.Installation) -> None:
        began.set()
        go_on.wait(10)
        done.append(self.directory)

    monkeypatch.setattr(installing.Installation, "_make", make)
    lock, out = Lock(tmp_path / "a.lock", "0", {}), Waiting()

    def faults() -> list[Problem]:
        return [] if done else [Problem("a", "is not there")]

    threads = [
        threading.Thread(target=installing.install, args=(lock, tmp_path / "envs/a", "a", out, faults))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    began.wait(10)
    while "another process is making" not in out.getvalue():
        pass
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert done == [tmp_path / "envs/a"]


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
