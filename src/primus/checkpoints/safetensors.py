"""Reading and writing safetensors directories tensor by tensor, in constant memory. Needs numpy only.

The format (github.com/huggingface/safetensors, README): 8 bytes of little-endian header length, a JSON header with
dtype, shape and byte range of every tensor, then the bytes. A model in several files has
``model.safetensors.index.json``, which names the file of each tensor.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from primus.errors import CheckpointError, Problem

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FILE_BYTES = 5_000_000_000
"""Most bytes of tensors in one file, as Hugging Face's tools split by default."""
HEADER_LIMIT = 100_000_000
BLOCK = 1 << 18
"""Elements converted at a time: they stay in the processor's cache, and in memory that is used again."""
WRITERS = 2
"""Threads that convert and write: one hides the other's conversion. More gained nothing, a file is written by one."""
AGAIN = "fetch the model again"

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
WRITTEN = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: `offset` in bytes from the file's start."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def flat(self) -> NDArray[Any]:
        """Its elements, row-major, mapped from the file, which what is written to them does not change; bfloat16 as
        uint16."""
        count = math.prod(self.shape)
        if not count:
            return np.empty(0, DTYPES[self.dtype])
        return np.memmap(self.path, DTYPES[self.dtype], mode="c", offset=self.offset, shape=(count,))


def narrowed(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """float32 `values` in the stored form of `dtype`; bfloat16 rounds to nearest, ties to even, as torch does."""
    if dtype != "BF16":
        with np.errstate(over="ignore"):  # beyond float16's range is infinite, as in torch
            return values.astype(DTYPES[dtype], copy=False)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    rounded[np.isnan(values)] = 0x7FC0
    return rounded.astype(np.uint16)


def entries(directory: Path) -> dict[str, Entry]:
    """Every tensor of a safetensors directory. Reads the headers and checks that each file is as long as its header
    says. Raises CheckpointError that names the file."""
    found: dict[str, Entry] = {}
    problems: list[Problem] = []
    for path in _files(directory):
        try:
            found |= _header(path)
        except FileNotFoundError:
            problems.append(Problem(str(path), f"{INDEX} names this file, but it is missing", AGAIN))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            problems.append(Problem(str(path), f"this is no whole safetensors file: {reason}", AGAIN))
    if problems:
        raise CheckpointError(problems=problems)
    return found


def _files(directory: Path) -> list[Path]:
    index = directory / INDEX
    try:
        if index.exists():
            return [
                directory / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
            ]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"the index is damaged: {error!r}", where=str(index), remedy=AGAIN) from error
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            "there are no *.safetensors files here",
            where=str(directory),
            remedy="name a directory with safetensors weights",
        )
    return files


def _header(path: Path) -> dict[str, Entry]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise ValueError(f"{size} bytes are too few for its header")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    start = 8 + length
    found, end = {}, start
    for name, fields in header.items():
        first, last = fields["data_offsets"]
        found[name] = Entry(path, fields["dtype"], tuple(fields["shape"]), start + first)
        end = max(end, start + last)
    if end != size:
        raise ValueError(f"it is {size} bytes long, but its header describes {end}")
    return found


def write(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, NDArray[np.float32]]],
    dtype: str,
    file_bytes: int = FILE_BYTES,
    *,
    narrow: Callable[[NDArray[np.float32], str], NDArray[Any]] = narrowed,
) -> None:
    """Write `tensors` in the order of `shapes`, each converted to `dtype` (float32, bfloat16, float16), into as many
    files as `file_bytes` asks for, with the index when there are several. They are on the disk when this returns.
    narrow: does what ``narrowed`` does."""
    stored = WRITTEN[dtype]
    sizes = {name: math.prod(shape) * DTYPES[stored].itemsize for name, shape in shapes.items()}
    groups = list(_groups(sizes, file_bytes))
    total = len(groups)
    names = [SINGLE] if total == 1 else [f"model-{n:05}-of-{total:05}.safetensors" for n in range(1, total + 1)]
    source = iter(tensors)

    def convert(block: NDArray[np.float32]) -> NDArray[Any]:
        return block if stored == "F32" else narrow(block, stored)

    for file_name, group in zip(names, groups, strict=True):
        with ThreadPoolExecutor(WRITERS) as pool, (directory / file_name).open("xb", buffering=0) as file:
            header = _header_of({name: shapes[name] for name in group}, sizes, stored)
            _write_at(file, header, 0)
            place = len(header)
            for name in group:
                given, values = next(source)
                if given != name or values.size * DTYPES[stored].itemsize != sizes[name]:
                    raise ValueError(f"expected {name} of shape {shapes[name]}, got {given} of shape {values.shape}")
                _write_values(pool, file, place, values, convert)
                place += sizes[name]
            os.fsync(file.fileno())
    if total > 1:
        weight_map = {name: file_name for file_name, group in zip(names, groups, strict=True) for name in group}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_values(
    pool: ThreadPoolExecutor,
    file: BinaryIO,
    place: int,
    values: NDArray[np.float32],
    convert: Callable[[NDArray[np.float32]], NDArray[Any]],
) -> None:
    flat = values.reshape(-1)

    def write_block(start: int) -> None:
        data = convert(flat[start : start + BLOCK])
        _write_at(file, data.data.cast("B"), place + start * data.itemsize)

    for _ in pool.map(write_block, range(0, flat.size, BLOCK)):
        pass


def _write_at(file: BinaryIO, data: bytes | memoryview, place: int) -> None:
    done = 0
    while done < len(data):  # a write may stop short
        done += os.pwrite(file.fileno(), data[done:], place + done)


def _groups(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    group: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if group and filled + size > limit:
            yield group
            group, filled = [], 0
        group.append(name)
        filled += size
    yield group


def _header_of(shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], stored: str) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        header[name] = {"dtype": stored, "shape": list(shape), "data_offsets": [offset, offset + sizes[name]]}
        offset += sizes[name]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned to 8 bytes
    return len(text).to_bytes(8, "little") + text
