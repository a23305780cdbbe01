"""Writing the files of a distributed checkpoint: hashed on the way, on the disk when done, as torch reads them."""

from __future__ import annotations

import errno
import fcntl
import io
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch.distributed.checkpoint.filesystem import DEFAULT_SUFFIX, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

METADATA = ".metadata"
THREADS = 2
"""Files, and threads that write them, of one rank. Two hide each other's fsync; more gained nothing on a local disk."""

DIRECT = getattr(os, "O_DIRECT", 0)
BLOCK = 4096
"""Bytes of which a multiple is written past the page cache, at a multiple of it."""
BUFFER = 4 << 20

ALIGNMENT = 64
"""Of tensors in a file, as torch.save aligns them in its own: so that readers may map them."""


class HashedFile(io.RawIOBase):
    """A new file that hashes what is written to it.

    Content goes to the disk past the page cache (O_DIRECT) where the file system has that: copying it into the cache
    takes many times the processor time, from whatever trains meanwhile.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = _open(path)
        self._digest = xxhash.xxh3_128()
        self._buffer = memoryview(mmap.mmap(-1, BUFFER))  # its address is aligned as O_DIRECT asks
        self._filled = 0
        self.size = 0
        self.failure: OSError | None = None
        """Why a write failed: torch.save itself reports only that something did."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._digest.update(view)
        done = 0
        while done < len(view):
            part = view[done : done + BUFFER - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            done += len(part)
            if self._filled == BUFFER:
                self._flush(BUFFER)
        self.size += done
        return done

    def tell(self) -> int:
        return self.size

    def finish(self) -> str:
        """Bring the content to the disk and return its xxh3_128 in hex."""
        self._flush(-(-self._filled // BLOCK) * BLOCK)
        os.ftruncate(self._file, self.size)
        os.fsync(self._file)
        return self._digest.hexdigest()

    def _flush(self, count: int) -> None:
        """Write the first `count` bytes of the buffer, a multiple of BLOCK."""
        done = 0
        try:
            while done < count:
                try:
                    done += os.write(self._file, self._buffer[done:count])
                except OSError as error:
                    if error.errno != errno.EINVAL or not _make_cached(self._file):
                        raise
                if done % BLOCK:  # it stopped short, as before a full disk: the rest is no longer aligned
                    _make_cached(self._file)
        except OSError as error:
            self.failure = error
            raise
        self._filled = 0

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        super().close()


def _open(path: Path) -> int:
    """A new file to write, past the page cache if it can be."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags | DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o666)


def _make_cached(file: int) -> bool:
    """Write through the page cache from now on. Returns whether that is a change."""
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETFL, flags & ~DIRECT)
    return bool(flags & DIRECT)


class HashingWriter(FileSystemWriter):
    """torch's checkpoint writer with two differences: ``digests`` collects the xxh3_128 of each file this rank wrote,
    and a failing thread fails the save (torch's own threads lose the error, and with it the tensors)."""

    def __init__(self, path: Path, threads: int = THREADS) -> None:
        super().__init__(path, thread_count=threads)
        self.digests: dict[str, str] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        buckets = _balanced(plan.items, self.thread_count)
        names = [f"{plan.storage_data.prefix}{number}{DEFAULT_SUFFIX}" for number in range(len(buckets))]
        results: list[WriteResult] = []
        with ThreadPoolExecutor(max_workers=self.thread_count) as pool:
            jobs = [pool.submit(self._write_file, *job, planner) for job in zip(names, buckets, strict=True)]
            for job in jobs:
                results += job.result()
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def _write_file(self, name: str, items: list[WriteItem], planner: SavePlanner) -> list[WriteResult]:
        # A CRC-32 of every tensor would take five times as long as our hash of the same bytes. Of this thread only.
        torch.serialization.set_crc32_options(False)
        results = []
        with HashedFile(Path(self.path) / name) as file:
            for item in items:
                file.write(bytes(-file.size % ALIGNMENT))
                start = file.size
                data = planner.resolve_data(item)
                try:
                    if isinstance(data, torch.Tensor):
                        torch.save(_alone(data), file)  # type: ignore[arg-type]
                    else:
                        file.write(data.getbuffer())
                except RuntimeError:
                    if file.failure is not None:
                        raise file.failure from None
                    raise
                length = file.size - start
                results.append(WriteResult(item.index, length, _StorageInfo(name, start, length)))
            self.digests[name] = file.finish()
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        self.digests[METADATA] = xxhash.xxh3_128_hexdigest((Path(self.path) / METADATA).read_bytes())


def _balanced(items: list[WriteItem], count: int) -> list[list[WriteItem]]:
    """`items` in at most `count` lists of about equal bytes; deterministic."""
    buckets: list[list[WriteItem]] = [[] for _ in range(count)]
    sizes = [0] * count
    for item in sorted(items, key=_bytes, reverse=True):
        smallest = sizes.index(min(sizes))
        buckets[smallest].append(item)
        sizes[smallest] += max(1, _bytes(item))
    return [bucket for bucket in buckets if bucket]


def _bytes(item: WriteItem) -> int:
    if item.type == WriteItemType.BYTE_IO or item.tensor_data is None:
        return 0
    return int(item.tensor_data.size.numel() * item.tensor_data.properties.dtype.itemsize)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` on the CPU, in a storage that holds nothing else: torch.save writes whole storages."""
    tensor = tensor.detach().cpu()
    if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
        tensor = tensor.clone()
    return tensor
