"""``./primus-cli``: finds or makes the environment of the command line, from anywhere, once; says what is missing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT, clean_environment, processes_with, wait_for

SCRIPT = ROOT / "primus-cli"
SHELL = "/bin/sh"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the launcher environment was made by the first call."""
    home = tmp_path_factory.mktemp("a home")
    first = call(home, "--version")
    assert first.returncode == 0, first.stderr
    assert "Making the launcher environment, once: 12 packages" in first.stderr
    assert "The launcher environment is ready" in first.stderr
    assert first.stdout == "primus-cli 0.1.0\n"
    return home


def call(home: Path, *arguments: str, script: Path = SCRIPT, **more: str) -> subprocess.CompletedProcess[str]:
    env = {**clean_environment(home), **more}
    return subprocess.run(
        [str(script), *arguments], env=env, cwd=home, capture_output=True, text=True, check=False, timeout=300
    )


def environment(home: Path) -> Path:
    (found,) = [path for path in (home / "primus" / "envs").iterdir() if path.is_dir()]
    return found


def test_the_second_call_makes_nothing(home: Path) -> None:
    again = call(home, "--version")
    assert (again.returncode, again.stdout, again.stderr) == (0, "primus-cli 0.1.0\n", "")


def test_through_links_and_paths_with_spaces(home: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "my checkout"
    checkout.mkdir()
    for name in ("primus-cli", "src", "requirements"):
        (checkout / name).symlink_to(ROOT / name)
    (checkout / "primus-cli").unlink()
    shutil.copy(SCRIPT, checkout / "primus-cli")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "first").symlink_to("../my checkout/primus-cli")
    (tmp_path / "bin" / "p").symlink_to("first")
    direct = call(home, "--version", script=tmp_path / "bin" / "p")
    assert direct.stdout == "primus-cli 0.1.0\n", direct.stderr
    on_path = subprocess.run(
        ["p", "--version"],
        env={**clean_environment(home), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert on_path.stdout == "primus-cli 0.1.0\n", on_path.stderr


def test_files_in_the_current_directory_are_not_imported(home: Path) -> None:
    (home / "click.py").write_text("raise SystemExit('imported')")
    assert call(home, "--version").returncode == 0
    (home / "click.py").unlink()


def test_pythonpath_of_the_user_stays(home: Path) -> None:
    done = call(home, "env", "list", "--json", PYTHONPATH="/somewhere")
    assert done.returncode == 0


def test_pythonhome_of_another_python_is_left_behind(home: Path) -> None:
    assert call(home, "--version", PYTHONHOME="/nowhere").stdout == "primus-cli 0.1.0\n"


def test_two_first_calls_make_it_once(tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            [str(SCRIPT), "--version"],
            env=clean_environment(tmp_path),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("is ready" in err for _, err in said) == 1
    assert sum("another process is making" in err for _, err in said) == 1


def test_a_killed_first_call_leaves_nothing_broken(tmp_path: Path) -> None:
    first = subprocess.Popen(
        [str(SCRIPT), "--version"],
        env=clean_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_for(lambda: list(tmp_path.glob("primus/envs/*/lib/python3*/site-packages/pip/__init__.py")), 120)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not list(tmp_path.glob("primus/envs/*/complete"))
    again = call(tmp_path, "--version")
    assert again.stdout == "primus-cli 0.1.0\n", again.stderr
    assert not processes_with(f"{tmp_path}/primus/envs")


def test_an_active_environment_that_has_everything_is_used_as_it_is(tmp_path: Path) -> None:
    root = Path(sys.prefix)
    done = call(tmp_path, "env", "list", VIRTUAL_ENV=str(root))
    assert done.returncode == 0, done.stderr
    assert str(root) in done.stdout
    assert not (tmp_path / "primus").exists()


def test_an_active_environment_that_lacks_something_is_left_alone(home: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    before = sorted(tmp_path.rglob("*"))
    done = call(home, "env", "list", "--json", VIRTUAL_ENV=str(tmp_path / "venv"))
    assert str(environment(home)) in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The message of a call that could not start: one line, on stderr, exit code 1."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith(("Making", " "))]
    assert line.startswith("primus-cli: ")
    return line


def test_no_python_on_path(tmp_path: Path) -> None:
    done = subprocess.run(
        [SHELL, str(SCRIPT), "--version"],
        env={"HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no Python 3.11 or newer on PATH: install one, or set PRIMUS_PYTHON" in one_line(done)


def fake_python(directory: Path, body: str) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / "python3"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_a_python_that_is_too_old(tmp_path: Path) -> None:
    old = fake_python(tmp_path / "bin", "exit 1")
    on_path = subprocess.run(
        [SHELL, str(SCRIPT)],
        env={"HOME": str(tmp_path), "PATH": str(old.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no Python 3.11 or newer on PATH" in one_line(on_path)
    assert "is older than Python 3.11: name a newer one" in one_line(call(tmp_path, PRIMUS_PYTHON=str(old)))


def test_a_chosen_python_that_is_not_there(tmp_path: Path) -> None:
    assert "PRIMUS_PYTHON=/nowhere/python is not a program" in one_line(call(tmp_path, PRIMUS_PYTHON="/nowhere/python"))


def test_a_chosen_python_that_lacks_packages(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    line = one_line(call(tmp_path, PRIMUS_PYTHON=str(tmp_path / "venv" / "bin" / "python")))
    assert "No module named 'click'" in line
    assert "install requirements/launcher.lock into it, or unset PRIMUS_PYTHON" in line


def test_the_made_environment_lacks_packages(home: Path) -> None:
    (click,) = environment(home).glob("lib/python3*/site-packages/click")
    aside = click.rename(click.with_name("aside"))
    line = one_line(call(home, "--version"))
    aside.rename(click)
    assert f"remove {environment(home)}, and the next call makes it anew" in line


def test_no_home(tmp_path: Path) -> None:
    env = {name: value for name, value in clean_environment(tmp_path).items() if name not in ("HOME", "PRIMUS_HOME")}
    done = subprocess.run([str(SCRIPT), "--version"], env=env, capture_output=True, text=True, check=False)
    assert "HOME is not set: set PRIMUS_HOME to a writable directory" in one_line(done)


def test_no_venv_module(tmp_path: Path) -> None:
    """A Python whose ensurepip was left out, as Debian packages it."""
    wrapper = fake_python(
        tmp_path / "bin",
        'case "$*" in *"-m venv"*)\n'
        "    echo The virtual environment was not created successfully because ensurepip is not\n"
        "    echo available.  On Debian/Ubuntu systems, you need to install the python3-venv; exit 1;; esac\n"
        f'exec {sys.executable} "$@"',
    )
    # sys.executable of the wrapped interpreter is what makes environments, so the wrapper has to be what it sees
    code = (
        "import sys; sys.executable = sys.argv.pop(1); "
        "sys.path.insert(0, 'src'); from primus.runtime.environments.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(wrapper), "launcher"],
        cwd=ROOT,
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        "this Python comes without its venv module (install it (on Debian and Ubuntu: apt install python3-venv)"
        in one_line(done)
    )


def test_no_network(tmp_path: Path) -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "PIP_CONFIG_FILE": os.devnull}
    done = call(tmp_path, "--version", PIP_FIND_LINKS="", PIP_EXTRA_INDEX_URL="", **nowhere)
    line = one_line(done)
    assert "the package index cannot be reached" in line
    assert "PIP_INDEX_URL" in line
    assert not [path for path in (tmp_path / "primus" / "envs").iterdir() if path.is_dir()]


def test_an_index_without_the_package(tmp_path: Path) -> None:
    empty = tmp_path / "index"
    empty.mkdir()
    alone = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(empty), "PIP_CONFIG_FILE": os.devnull}
    assert "the package index has no such version for this Python and machine" in one_line(call(tmp_path, **alone))


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = one_line(call(tmp_path, "--version", PRIMUS_HOME=str(tmp_path / "file")))
    assert "the launcher environment cannot be made" in line
    assert "PRIMUS_HOME" in line


def small_disk(tmp_path: Path) -> bool:
    """Whether this machine lets us mount a file system of our own to fill."""
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0


def test_a_full_disk(tmp_path: Path) -> None:
    if not small_disk(tmp_path):
        pytest.skip("mounting a small file system needs user namespaces, which are off here")
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size=8m none '{disk}' && exec '{SCRIPT}' --version"],
        env={**clean_environment(tmp_path), "PRIMUS_HOME": str(disk)},
        capture_output=True,
        text=True,
        check=False,
    )
    line = one_line(done)
    assert "the disk is full (free some space, or set PRIMUS_HOME to a larger disk" in line
