"""The optimizer steps of a run, as columns."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter, lt
from typing import Any

from primus.events.jsonl import Record


class Steps:
    """The optimizer steps of a run as columns, ascending and unique in ``step``. Units as in ``StepDone``; ``mfu`` is
    NaN where it is unknown. Columns because a million steps as objects would take a gigabyte."""

    COLUMNS = ("step", "time", "loss", "grad_norm", "lr", "tokens", "seconds", "memory_bytes", "mfu")

    def __init__(self) -> None:
        self.step = array("q")
        self.tokens = array("q")
        self.memory_bytes = array("q")
        self.time, self.loss, self.grad_norm, self.lr, self.seconds, self.mfu = (array("d") for _ in range(6))
        self.auxiliary: dict[int, dict[str, float]] = {}
        """step -> further losses, only for the steps that reported some."""

    def __len__(self) -> int:
        return len(self.step)

    def columns(self) -> list[array[Any]]:
        return [getattr(self, name) for name in self.COLUMNS]

    def row(self, index: int) -> dict[str, float | None]:
        """One step as a dict, with None for an unknown mfu."""
        values = {name: column[index] for name, column in zip(self.COLUMNS, self.columns(), strict=True)}
        return values | {"mfu": None if self.mfu[index] != self.mfu[index] else self.mfu[index]}

    def cut(self, step: int) -> None:
        """Forget `step` and everything after it."""
        self._delete(slice(bisect_left(self.step, step), None))

    def drop(self, step: int) -> None:
        """Forget `step` and everything before it."""
        self._delete(slice(bisect_right(self.step, step)))

    def _delete(self, rows: slice) -> None:
        if self.auxiliary:
            for step in self.step[rows]:
                self.auxiliary.pop(step, None)
        for column in self.columns():
            del column[rows]

    def extend(self, records: Sequence[Record]) -> None:
        """Add records; of one step the later wins. Raises KeyError, TypeError or OverflowError on malformed ones,
        before anything is added."""
        columns = list(zip(*map(_row, records), strict=True))
        if not columns:
            return
        columns[-1] = tuple(_NAN if mfu is None else mfu for mfu in columns[-1])
        new = [array(column.typecode, values) for column, values in zip(self.columns(), columns, strict=True)]
        auxiliary = {r["step"]: r["auxiliary"] for r in records if r.get("auxiliary")}
        self._add(new)
        self.auxiliary |= auxiliary

    def append(self, later: Steps) -> None:
        """Add all steps of `later`, which win."""
        self._add(later.columns())
        self.auxiliary |= later.auxiliary

    def _add(self, new: list[array[Any]]) -> None:
        if not new[0]:
            return
        steps = new[0]
        if all(map(lt, steps, steps[1:])) and (not self.step or self.step[-1] < steps[0]):
            for column, values in zip(self.columns(), new, strict=True):
                column.extend(values)
            return
        for row in zip(*new, strict=True):
            index = bisect_left(self.step, row[0])
            known = index < len(self.step) and self.step[index] == row[0]
            for column, value in zip(self.columns(), row, strict=True):
                column[index : index + known] = array(column.typecode, [value])


_row = itemgetter(*Steps.COLUMNS)
_NAN = float("nan")
