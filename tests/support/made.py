"""An environment as it looks once it is made, without installing anything: its Python, its stamp, the names of its
packages' metadata."""

from __future__ import annotations

import sys
from pathlib import Path

from primus.runtime.environments import ENVIRONMENTS
from primus.runtime.environments.integrity import STAMP
from primus.runtime.environments.pins import read_lock


def make(name: str, minor: int = sys.version_info.minor) -> Path:
    """Environment `name` of the present PRIMUS_HOME, as if made of Python 3.`minor`. Returns its site-packages."""
    directory = ENVIRONMENTS[name].directory
    python = directory.with_name("base") / f"python3.{minor}"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text("")
    site = directory / "lib" / f"python3.{minor}" / "site-packages"
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "python").symlink_to(python)
    for package, version in read_lock(name, (3, minor)).pins.items():
        metadata(site, package, version)
    (directory / STAMP).write_text("")
    return site


def metadata(site: Path, package: str, version: str, tag: str = "") -> Path:
    """What pip leaves of a package beside its files. tag: of its wheel, e.g. ``cp311-cp311-any``."""
    info = site / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    if tag:
        (info / "WHEEL").write_text(f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
    return info
