"""Samples as batches: the numerics contract's data side, shared by every backend.

Sample n of training is one window of ``seq_length + 1`` tokens; which one is ``SampleOrder``'s answer. Windows start
at multiples of ``seq_length`` on the contiguous tokens, the held-out part removed first, the tail dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from primus.data.format import bin_path, read_header, validation_start
from primus.data.indexed import IndexedDataset
from primus.data.order import SampleOrder
from primus.data.shares import SLOTS
from primus.data.synthetic import SyntheticReader
from primus.errors import DataError
from primus.plan.plan import Plan, PlannedData, PlannedSource

Int64Array = npt.NDArray[np.int64]
IGNORED = -100
"""Label of a target that does not count in the loss."""


@dataclass(frozen=True)
class Batch:
    """Arrays of int64, shape [count, seq_length].

    labels: the next token at each place, -100 where it is left out of the loss. positions: 0..S-1, or counted from 0
    again at every document start with ``document_attention: within``; then attention may only reach back to the latest
    position 0. Read-only by agreement: the arrays may share memory with each other and with later batches.
    """

    inputs: Int64Array
    labels: Int64Array
    positions: Int64Array


class SampleReader(Protocol):
    """length: samples there are; None when they never end (training)."""

    length: int | None

    def read(self, first: int, count: int) -> Batch:
        """Samples first..first+count-1. Raises DataError for a token id outside the vocabulary, or for a file that has
        become shorter."""
        ...


class Windows:
    """The windows of one source between two token offsets."""

    def __init__(self, source: PlannedSource, start: int, end: int, seq_length: int, vocab_size: int) -> None:
        """start, end: token offsets. Raises DataError when not one window fits."""
        self.dataset = IndexedDataset(source.prefix)
        header = self.dataset.header
        if (header.tokens, header.documents, header.dtype) != (source.tokens, source.documents, source.dtype):
            raise DataError(
                f"changed since planning: {header.tokens} {header.dtype} tokens in {header.documents} documents "
                f"where the plan has {source.tokens} {source.dtype} tokens in {source.documents}",
                where=source.prefix,
                remedy="plan the run again under another name",
            )
        self._start = start
        self._seq_length = seq_length
        self._vocab_size = vocab_size
        self.count = (end - start - 1) // seq_length
        if self.count < 1:
            raise DataError(
                f"its {end - start} tokens are fewer than one window of {seq_length} + 1",
                where=source.prefix,
                remedy="give more text or a smaller train.seq_length",
            )
        tokens = self.dataset.tokens[start:end]
        self._rows = np.lib.stride_tricks.as_strided(
            tokens,
            (self.count, seq_length + 1),
            (seq_length * tokens.itemsize, tokens.itemsize),
            writeable=False,
        )
        limits = np.iinfo(tokens.dtype)
        self._needs_check = limits.max >= vocab_size or limits.min < 0

    def copy_to(self, windows: Int64Array, out: Int64Array) -> None:
        """Tokens of the given windows into `out` [len(windows), seq_length + 1], checked against the vocabulary."""
        self.dataset.check_length()
        out[...] = self._rows[windows]
        if self._needs_check and int(out.view(np.uint64).max()) >= self._vocab_size:
            self._refuse(windows, out)

    def _refuse(self, windows: Int64Array, rows: Int64Array) -> None:
        row, column = np.argwhere((rows < 0) | (rows >= self._vocab_size))[0]
        position = self._start + int(windows[row]) * self._seq_length + int(column)
        raise DataError(
            f"token {position} has id {rows[row, column]}, outside the model's vocabulary of {self._vocab_size}",
            where=str(bin_path(self.dataset.header.prefix)),
            remedy="set model.vocab_size to that of the dataset's tokenizer, or prepare it with the model's own",
        )

    def document_ranges(self, windows: Int64Array) -> tuple[Int64Array, Int64Array]:
        """For each window, numbers [first, last) of the documents that start inside it, after its first token."""
        starts = self._start + windows * self._seq_length
        edges = self.dataset.documents_before(np.concatenate((starts + 1, starts + self._seq_length)))
        return edges[: len(windows)], edges[len(windows) :]

    def mark_documents(self, windows: Int64Array, first: Int64Array, last: Int64Array, marks: Int64Array) -> None:
        """Set marks[row, i] = i where a document starts at input i of a window; marks is [len(windows), seq_length].

        first, last: as ``document_ranges`` gives them.
        """
        counts = last - first
        rows = np.repeat(np.arange(len(windows)), counts)
        if rows.size:
            # first[row], first[row] + 1, ... up to last[row] - 1, for all rows in a line
            numbers = np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts) + first[rows]
            offsets = self.dataset.document_starts(numbers) - (self._start + windows[rows] * self._seq_length)
            marks[rows, offsets] = offsets


@dataclass(frozen=True)
class _Place:
    """Where samples lie, one entry a sample. first, last: documents that start inside; zero unless they matter."""

    owners: npt.NDArray[np.integer]
    windows: Int64Array
    first: Int64Array
    last: Int64Array

    def __getitem__(self, part: slice | npt.NDArray[np.intp]) -> _Place:
        return _Place(self.owners[part], self.windows[part], self.first[part], self.last[part])


class WindowReader:
    """Batches from windows of one or more sources; subclasses say which window a sample is.

    Places are looked up for 4096 samples at a time and the latest kept, so that small batches cost little.
    """

    length: int | None = None

    def __init__(self, sources: Sequence[Windows], data: PlannedData, seq_length: int) -> None:
        self._sources = tuple(sources)
        self._seq_length = seq_length
        self._within = data.document_attention == "within"
        self._masked_id = data.eod_id if data.mask_eod else None
        self._positions = np.empty((0, seq_length), dtype=np.int64)
        self._block = lru_cache(maxsize=4)(self._look_up)

    def locate(self, first: int, count: int) -> tuple[npt.NDArray[np.integer], Int64Array]:
        """Source and window of each of the samples first..first+count-1."""
        raise NotImplementedError

    def read(self, first: int, count: int) -> Batch:
        """Samples first..first+count-1."""
        if first < 0 or count < 1 or (self.length is not None and first + count > self.length):
            raise IndexError(f"samples {first}..{first + count - 1} of {self.length}")
        rows = np.empty((count, self._seq_length + 1), dtype=np.int64)
        marks = np.zeros((count, self._seq_length), dtype=np.int64) if self._within else None
        done = 0
        while done < count:
            block, offset = divmod(first + done, SLOTS)
            place = self._block(block)[offset : offset + count - done]
            taken = slice(done, done + len(place.windows))
            self._fill(place, rows[taken], None if marks is None else marks[taken])
            done = taken.stop
        labels = rows[:, 1:]
        if self._masked_id is not None:
            labels = np.where(labels == self._masked_id, IGNORED, labels)
        return Batch(rows[:, :-1], labels, self._make_positions(count, marks))

    def _look_up(self, block: int) -> _Place:
        start = block * SLOTS
        count = SLOTS if self.length is None else min(SLOTS, self.length - start)
        owners, windows = self.locate(start, count)
        first, last = np.zeros((2, count), dtype=np.int64)
        if self._within:
            for number in np.unique(owners):
                mine = np.flatnonzero(owners == number)
                first[mine], last[mine] = self._sources[number].document_ranges(windows[mine])
        return _Place(owners, windows, first, last)

    def _fill(self, place: _Place, rows: Int64Array, marks: Int64Array | None) -> None:
        if len(self._sources) == 1:
            self._fill_from(self._sources[0], place, rows, marks)
            return
        for number in np.unique(place.owners):
            mine = np.flatnonzero(place.owners == number)
            part = np.empty((len(mine), rows.shape[1]), dtype=np.int64)
            part_marks = None if marks is None else np.zeros((len(mine), marks.shape[1]), dtype=np.int64)
            self._fill_from(self._sources[number], place[mine], part, part_marks)
            rows[mine] = part
            if marks is not None and part_marks is not None:
                marks[mine] = part_marks

    @staticmethod
    def _fill_from(source: Windows, place: _Place, rows: Int64Array, marks: Int64Array | None) -> None:
        source.copy_to(place.windows, rows)
        if marks is not None:
            source.mark_documents(place.windows, place.first, place.last, marks)

    def _make_positions(self, count: int, marks: Int64Array | None) -> Int64Array:
        if count > len(self._positions):
            self._positions = np.tile(np.arange(self._seq_length, dtype=np.int64), (count, 1))
        positions = self._positions[:count]
        if marks is None:
            return positions
        return positions - np.maximum.accumulate(marks, axis=1)


class TrainingReader(WindowReader):
    """Samples without end, in the permuted and mixed order."""

    def __init__(self, sources: Sequence[Windows], data: PlannedData, seq_length: int, seed: int) -> None:
        super().__init__(sources, data, seq_length)
        shares = [source.share for source in data.sources]
        self.order = SampleOrder([source.count for source in sources], shares, data.digest, seed)

    def locate(self, first: int, count: int) -> tuple[npt.NDArray[np.integer], Int64Array]:
        return self.order.locate(first, count)


class OrderedReader(WindowReader):
    """Every window once: source after source, each from start to end."""

    def __init__(self, sources: Sequence[Windows], data: PlannedData, seq_length: int) -> None:
        super().__init__(sources, data, seq_length)
        self._ends = np.cumsum([source.count for source in sources])
        self.length = int(self._ends[-1])

    def locate(self, first: int, count: int) -> tuple[npt.NDArray[np.integer], Int64Array]:
        samples = np.arange(first, first + count, dtype=np.int64)
        owners = np.searchsorted(self._ends, samples, side="right")
        starts = np.concatenate(([0], self._ends[:-1]))
        return owners, samples - starts[owners]


def open_training(plan: Plan) -> SampleReader:
    """The training samples of `plan`. Raises DataError when the data is not what was planned."""
    data, train, vocab_size = plan.data, plan.experiment.train, plan.experiment.model.vocab_size
    if data.kind == "synthetic":
        return SyntheticReader(train.seq_length, vocab_size, train.seed, "train", None)
    sources = [
        Windows(source, 0, _split(source, data.validation_fraction), train.seq_length, vocab_size)
        for source in data.sources
    ]
    return TrainingReader(sources, data, train.seq_length, train.seed)


def open_validation(plan: Plan) -> SampleReader | None:
    """The validation samples of `plan` in plain order, or None when it has none."""
    data, train, vocab_size = plan.data, plan.experiment.train, plan.experiment.model.vocab_size
    if data.validation_sources:
        spans = [(source, 0) for source in data.validation_sources]
    elif data.validation_fraction > 0 and data.kind == "synthetic":
        return SyntheticReader(
            train.seq_length, vocab_size, train.seed, "validation", SyntheticReader.VALIDATION_SAMPLES
        )
    elif data.validation_fraction > 0:
        spans = [(source, _split(source, data.validation_fraction)) for source in data.sources]
    else:
        return None
    sources = [Windows(source, start, source.tokens, train.seq_length, vocab_size) for source, start in spans]
    return OrderedReader(sources, data, train.seq_length)


def _split(source: PlannedSource, fraction: float) -> int:
    return validation_start(read_header(source.prefix), fraction)
