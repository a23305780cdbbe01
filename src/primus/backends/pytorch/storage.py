"""Writing the files of a distributed checkpoint: hashed on the way, on the disk when done, as torch reads them."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

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

ALIGNMENT = 64
"""Of tensors in a file, as torch.save aligns them in its own: so that readers may map them."""


class HashedFile(io.RawIOBase):
    """A new file that hashes what is written to it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file: BinaryIO = path.open("wb", buffering=0)
        self._digest = xxhash.xxh3_128()
        self.size = 0
        self.failure: OSError | None = None
        """Why a write failed: torch.save itself reports only that something did."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._digest.update(view)
        done = 0
        try:
            while done < len(view):  # an unbuffered write may stop short
                done += self._file.write(view[done:]) or 0
        except OSError as error:
            self.failure = error
            raise
        self.size += done
        return done

    def tell(self) -> int:
        return self.size

    def finish(self) -> str:
        """Bring the content to the disk and return its xxh3_128 in hex."""
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def close(self) -> None:
        self._file.close()
        super().close()


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
