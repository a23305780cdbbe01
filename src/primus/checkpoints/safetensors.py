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
FLUSHED_BYTES = 1 << 28
"""Bytes after which what is written is sent on to the disk."""
HEADER_LIMIT = 100_000_000
BLOCK = 1 << 18
"""Elements converted at a time: they stay in the processor's cache, and in memory that is used again."""
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

    with ThreadPoolExecutor(1) as pool:
        for file_name, group in zip(names, groups, strict=True):
            with (directory / file_name).open("xb") as file:
                file.write(_header_of({name: shapes[name] for name in group}, sizes, stored))
                _write_out(file, _ahead(pool, convert, _blocks(source, {name: shapes[name] for name in group})))
    if total > 1:
        weight_map = {name: file_name for file_name, group in zip(names, groups, strict=True) for name in group}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _blocks(
    source: Iterator[tuple[str, NDArray[np.float32]]], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[NDArray[np.float32]]:
    """The next tensors of `source`, which are those of `shapes`, cut into blocks."""
    for name, shape in shapes.items():
        given, values = next(source)
        if given != name or values.size != math.prod(shape):
            raise ValueError(f"expected {name} of shape {shape}, got {given} of shape {values.shape}")
        flat = values.reshape(-1)
        for start in range(0, flat.size, BLOCK):
            yield flat[start : start + BLOCK]


def _ahead(
    pool: ThreadPoolExecutor,
    convert: Callable[[NDArray[np.float32]], NDArray[Any]],
    blocks: Iterable[NDArray[np.float32]],
) -> Iterator[NDArray[Any]]:
    """`blocks`, each converted by `pool` while the one before it is in use."""
    converted = None
    for block in blocks:
        following = pool.submit(convert, block)
        if converted is not None:
            yield converted.result()
        converted = following
    if converted is not None:
        yield converted.result()


def _write_out(file: BinaryIO, blocks: Iterable[NDArray[Any]]) -> None:
    """Write `blocks` and bring them to the disk, most of them while others are being written."""
    flushed, written = None, 0
    with ThreadPoolExecutor(1) as pool:
        for block in blocks:
            file.write(block.data)
            written += block.nbytes
            if written >= FLUSHED_BYTES and (flushed is None or flushed.done()):
                if flushed is not None:
                    flushed.result()
                flushed, written = pool.submit(os.fdatasync, file.fileno()), 0
        if flushed is not None:
            flushed.result()
    file.flush()
    os.fsync(file.fileno())


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
