"""Pins requirements/*.in into *.lock: ``make lock``, with the pip and the indexes the user has configured.

A lock lists the whole closure as ``name==version``, without hashes and without local versions (``+cpu``, ``+rocm``):
which build of torch is installed is the choice of whoever installs it. Its first line carries a hash of the rest,
which names the environments made from it, so that finding one needs no hashing.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

from primus.runtime.environments.interpreters import find

HERE = Path(__file__).resolve().parent
# From the largest to the smallest, each constrained by the one before: a package has one version in all of them.
ORDER = ("dev", "torchft", "torch", "launcher")
BESIDE = ("monitor",)
"""Beside an engine, in a process of its own: they share the launcher's versions and no engine's."""
JAX = ("jax", "jax-rocm", "jax-cuda")
# Builds that plain Linux wheels of torch drag in; another build has none or others.
BUILD_SPECIFIC = re.compile(r"^(nvidia-|cuda-|triton$|pytorch-triton|pip$)")


def resolve(name: str, constraints: Path | None, python: str = sys.executable) -> list[str]:
    command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    command += ["-r", str(HERE / f"{name}.in")]
    if constraints:
        command += ["-c", str(constraints)]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    pins = set()
    for item in report["install"]:
        metadata = item["metadata"]
        package = re.sub(r"[-_.]+", "-", metadata["name"]).lower()
        if not BUILD_SPECIFIC.match(package):
            pins.add(f"{package}=={metadata['version'].partition('+')[0]}")
    for line in marked(name):  # pip knows only the Python that runs it
        pins.discard(line.partition(";")[0].strip())
        pins.add(line)
    return sorted(pins)


def marked(name: str) -> list[str]:
    """The requirements of `name` and of the files it includes that hold for some Pythons only."""
    found = []
    for line in (HERE / f"{name}.in").read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            found += marked(Path(line[3:].strip()).stem)
        elif ";" in line:
            found.append(line.strip())
    return found


def write(name: str, pins: list[str]) -> Path:
    body = f"# Made by `make lock` from {name}.in; do not edit.\n" + "".join(f"{pin}\n" for pin in pins)
    path = HERE / f"{name}.lock"
    path.write_text(f"# {hashlib.sha256(body.encode()).hexdigest()[:12]}\n{body}", encoding="utf-8")
    return path


def main() -> None:
    constraints: Path | None = None
    for name in ORDER:
        pins = resolve(name, constraints)
        constraints = write(name, pins)
        sys.stderr.write(f"{constraints.name}: {len(pins)} packages\n")
    for name in BESIDE:
        pins = resolve(name, constraints)
        sys.stderr.write(f"{write(name, pins).name}: {len(pins)} packages\n")
    python = find((3, 12))
    if python is None:
        raise SystemExit("jax.lock: no Python 3.12 or newer was found")
    for name in JAX:  # shares the launcher's versions, and none of torch's
        pins = resolve(name, constraints, python)
        constraints = write(name, pins)
        sys.stderr.write(f"{constraints.name}: {len(pins)} packages\n")


if __name__ == "__main__":
    main()
