"""Samples of the shared order as tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from primus.data.reader import IGNORED, SampleReader, open_validation
from primus.plan.plan import Plan

Microbatch = tuple[dict[str, torch.Tensor], torch.Tensor]
"""({"input", "positions"}, labels), each int64 [samples, seq_length]."""


class TrainingSamples:
    """Microbatches of one data-parallel rank: of each global batch, positions [r*G/dp, (r+1)*G/dp) in order."""

    def __init__(self, reader: SampleReader, batch: int, micro: int, *, dp_rank: int, dp_size: int) -> None:
        self.reader = reader
        self.dp_rank = dp_rank
        self._batch, self._dp_size, self._micro = batch, dp_size, micro
        self.take(0, 1)

    def take(self, part: int, parts: int) -> None:
        """From now on, make part `part` of `parts` of each global batch with these ranks."""
        self._first, self._share = share(
            self._batch, self._micro, dp_rank=self.dp_rank, dp_size=self._dp_size, part=part, parts=parts
        )

    def step(self, consumed: int) -> Iterator[Microbatch]:
        """This rank's microbatches of the global batch after `consumed` samples."""
        for offset in range(0, self._share, self._micro):
            yield microbatch(self.reader, consumed + self._first + offset, self._micro)


def share(batch: int, micro: int, *, dp_rank: int, dp_size: int, part: int, parts: int) -> tuple[int, int]:
    """First position in a global batch, and number of samples, of a data-parallel rank, one of `dp_size` that make part
    `part` of `parts` of it. Parts are as equal as whole rounds of microbatches allow; with equal ones, this is the cut
    among ``parts * dp_size`` ranks."""
    rounds = batch // (micro * dp_size)
    first, last = part * rounds // parts, (part + 1) * rounds // parts
    size = (last - first) * micro
    return first * micro * dp_size + dp_rank * size, size


class ValidationSamples:
    """The validation split in plain order, cut like training batches. What is left of the last one is filled up with
    samples whose every label is masked, so that all ranks make the same number of passes."""

    def __init__(self, reader: SampleReader, plan: Plan, dp_rank: int, micro: int) -> None:
        assert reader.length is not None
        train, topology = plan.experiment.train, plan.topology
        self.reader = reader
        self.batches = min(plan.experiment.eval.steps, -(-reader.length // train.global_batch_size))
        self._length = reader.length
        self._batch, self._micro = train.global_batch_size, micro
        self._dp_rank, self._dp_size = dp_rank, topology.data_parallel // topology.replica_groups
        self.take(0, 1)

    def take(self, part: int, parts: int) -> None:
        """From now on, go through part `part` of `parts` of each global batch with these ranks."""
        self._first, self._share = share(
            self._batch, self._micro, dp_rank=self._dp_rank, dp_size=self._dp_size, part=part, parts=parts
        )

    @classmethod
    def open(cls, plan: Plan, dp_rank: int, micro: int) -> ValidationSamples | None:
        """None when the experiment has no validation split."""
        reader = open_validation(plan)
        return None if reader is None else cls(reader, plan, dp_rank, micro)

    def step(self, index: int) -> Iterator[Microbatch]:
        """This rank's microbatches of global batch `index`."""
        start = index * self._batch + self._first
        for first in range(start, start + self._share, self._micro):
            there = max(0, min(self._micro, self._length - first))
            if there == self._micro:
                yield microbatch(self.reader, first, self._micro)
                continue
            inputs, labels = microbatch(self.reader, max(0, self._length - self._micro), min(self._micro, self._length))
            yield _padded(inputs, labels, there, self._micro)


def microbatch(reader: SampleReader, first: int, count: int) -> Microbatch:
    batch = reader.read(first, count)
    inputs = {"input": torch.from_numpy(batch.inputs), "positions": torch.from_numpy(batch.positions)}
    return inputs, torch.from_numpy(batch.labels)


def _padded(inputs: dict[str, torch.Tensor], labels: torch.Tensor, there: int, count: int) -> Microbatch:
    """The last `there` of the given samples, then copies of the last one without a target, `count` in all."""
    rows = torch.arange(len(labels) - there, len(labels) - there + count).clamp(max=len(labels) - 1)
    labels = labels[rows]
    labels[there:] = IGNORED
    return {name: tensor[rows] for name, tensor in inputs.items()}, labels
