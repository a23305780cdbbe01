"""Files of checkpoints go past the page cache, and are what was written: on any file system, in any portions."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import resource
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from primus.backends.pytorch import storage
from primus.backends.pytorch.storage import BLOCK, BUFFER, HashedFile
from primus.checkpoints.store import hash_file

SIZES = (0, 1, 63, BLOCK - 1, BLOCK, BLOCK + 1, BUFFER - 1, BUFFER, BUFFER + BLOCK, 2 * BUFFER + 12_345)


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.parametrize("size", SIZES)
def test_a_file_is_what_was_written(place: Path, size: int) -> None:
    generator = random.Random(size)
    content = generator.randbytes(size)
    with HashedFile(place / "file") as file:
        done = 0
        while done < size:
            count = generator.choice([1, 64, 1000, BLOCK, 3 * BLOCK, BUFFER])
            done += file.write(content[done : done + count])
            assert file.tell() == done
        digest = file.finish()
    assert (place / "file").read_bytes() == content
    assert digest == xxhash.xxh3_128_hexdigest(content) == hash_file(place / "file")


def test_a_file_system_that_gives_it_up_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that opens a file past the cache, but wants another alignment when it comes to writing."""
    written = os.write

    def picky(descriptor: int, data: memoryview) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & storage.DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return written(descriptor, data[: len(data) // 2 + 1])  # and that takes less than it is given

    monkeypatch.setattr(storage.os, "write", picky)
    content = random.Random(1).randbytes(BUFFER + 777)
    with HashedFile(tmp_path / "file") as file:
        file.write(content)
        file.finish()
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == content


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """A limit that is no multiple of a block, as the last room on a disk may be."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BUFFER + 1001, limits[1]))
    try:
        with HashedFile(tmp_path / "file") as file:
            with pytest.raises(OSError, match="File too large"):
                file.write(bytes(3 * BUFFER))
            assert file.failure is not None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
