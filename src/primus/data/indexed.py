"""Token datasets in memory maps: reading documents and windows, writing the index."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from primus.data.format import (
    DTYPE_CODES,
    HEADER,
    MAGIC,
    VERSION,
    Dtype,
    Header,
    bin_path,
    damaged_document,
    idx_path,
    read_header,
)
from primus.errors import DataError

CHUNK = 1 << 20
CODES = {name: code for code, name in DTYPE_CODES.items()}


class IndexedDataset:
    """A dataset opened read-only. Opening costs a few page reads, whatever its size.

    tokens: all tokens back to back, in the file's dtype. Raises DataError as ``read_header`` does.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.header: Header = read_header(prefix)
        header = self.header
        with bin_path(prefix).open("rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.tokens: npt.NDArray[np.integer] = np.frombuffer(self._mapped, f"<{_code(header.dtype)}")
        # np.asarray strips the memmap class, whose slicing costs ten times a plain array's
        raw = np.asarray(np.memmap(idx_path(prefix), dtype=np.uint8, mode="r"))
        self.lengths: npt.NDArray[np.int32] = np.frombuffer(raw, "<i4", header.sequences, header.lengths_offset)
        self._pointers: npt.NDArray[np.int64] = np.frombuffer(raw, "<i8", header.sequences, header.pointers_offset)
        self._documents: npt.NDArray[np.int64] = np.frombuffer(
            raw, "<i8", header.documents + 1, header.documents_offset
        )

    def __len__(self) -> int:
        """Number of documents."""
        return self.header.documents

    def check_length(self) -> None:
        """Raise DataError when the file of tokens is shorter than it was: reading what is gone ends a process."""
        there, planned = self._mapped.size(), self.header.tokens * self.header.item_size
        if there < planned:
            raise DataError(
                f"became shorter while it was read: {there:,} of {planned:,} bytes are left",
                where=str(bin_path(self.header.prefix)),
                remedy="copy or prepare it again, then run again: the run continues from its newest checkpoint",
            )

    def document_starts(self, documents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Token offset of each given document's first token; ``len(self)`` gives the end of the last one.

        Raises DataError when the index points outside the dataset.
        """
        sequences = self._documents[documents]
        wrong = np.flatnonzero((sequences < 0) | (sequences > self.header.sequences))
        if wrong.size:
            entry, sequence = int(documents.flat[wrong[0]]), int(sequences.flat[wrong[0]])
            raise damaged_document(self.header, entry, f"begins at sequence {sequence} of {self.header.sequences}")
        starts = np.full(sequences.shape, self.header.tokens, dtype=np.int64)
        inside = sequences < self.header.sequences
        starts[inside] = self._pointers[sequences[inside]] // self.header.item_size
        wrong = np.flatnonzero((starts < 0) | (starts > self.header.tokens))
        if wrong.size:
            entry, start = int(documents.flat[wrong[0]]), int(starts.flat[wrong[0]])
            raise damaged_document(self.header, entry, f"begins at token {start} of {self.header.tokens}")
        return starts

    def document(self, index: int) -> npt.NDArray[np.integer]:
        """Tokens of one document, a view into the file."""
        start, end = self.document_starts(np.array([index, index + 1]))
        return self.tokens[start:end]

    def documents_before(self, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """For each token offset, how many documents start before it.

        A binary search for all offsets at once. ``np.searchsorted`` would first copy the whole index, because the
        format leaves its 64-bit entries unaligned.
        """
        low = np.zeros(offsets.shape, dtype=np.int64)
        high = np.full(offsets.shape, len(self), dtype=np.int64)
        for _ in range(len(self).bit_length()):
            middle = (low + high) // 2
            before = (self.document_starts(middle) < offsets) & (low < high)
            low = np.where(before, middle + 1, low)
            high = np.where(before, high, middle)
        return low

    def first_gap(self) -> int | None:
        """The first sequence that does not begin where the one before it ends; None when all do, as they must."""
        expected = 0
        for first in range(0, self.header.sequences, CHUNK):
            pointers = self._pointers[first : first + CHUNK]
            sizes = self.lengths[first : first + CHUNK].astype(np.int64) * self.header.item_size
            starts = expected + np.concatenate(([0], np.cumsum(sizes)))
            wrong = np.flatnonzero(pointers != starts[:-1])
            if wrong.size:
                return first + int(wrong[0])
            expected = int(starts[-1])
        return None

    def first_misplaced_document(self) -> int | None:
        """The first document whose sequences begin before the last one's, or outside the dataset; None when none do."""
        before = 0
        for first in range(0, len(self) + 1, CHUNK):
            entries = self._documents[first : first + CHUNK]
            previous = np.concatenate(([before], entries[:-1]))
            wrong = np.flatnonzero((entries < previous) | (entries > self.header.sequences))
            if wrong.size:
                return first + int(wrong[0])
            before = int(entries[-1])
        return None

    def summed_lengths(self) -> int:
        """Tokens of all sequences together."""
        return int(self.lengths.sum(dtype=np.int64))


def _code(dtype: Dtype) -> str:
    return np.dtype(dtype).str[1:]


def write_index(file: BinaryIO, dtype: Dtype, lengths: Path) -> None:
    """Write the index of a dataset with one sequence a document.

    lengths: file of little-endian int32, the tokens of each document. Runs in constant memory.
    """
    documents = lengths.stat().st_size // 4
    file.write(HEADER.pack(MAGIC, VERSION, CODES[dtype], documents, documents + 1))
    for chunk in _lengths(lengths):
        file.write(chunk.tobytes())
    item_size, offset = np.dtype(dtype).itemsize, 0
    for chunk in _lengths(lengths):
        ends = offset + np.cumsum(chunk, dtype=np.int64) * item_size
        file.write((ends - chunk.astype(np.int64) * item_size).astype("<i8").tobytes())
        offset = int(ends[-1])
    for first in range(0, documents + 1, CHUNK):
        file.write(np.arange(first, min(first + CHUNK, documents + 1), dtype="<i8").tobytes())


def _lengths(path: Path) -> Iterator[npt.NDArray[np.int32]]:
    with path.open("rb") as file:
        while block := file.read(4 * CHUNK):
            yield np.frombuffer(block, "<i4")


def sync(file: BinaryIO) -> None:
    """Push what was written to the disk itself."""
    file.flush()
    os.fsync(file.fileno())
