"""Writes the table of docs/numerics.md: ``make parity``. Trains everything that ``test_engines.py`` holds to a band."""

from __future__ import annotations

import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import parity
import transformers
from gang import Ran
from tiny import make_dataset

PAGE = Path(__file__).parents[2] / "docs" / "numerics.md"
BEGIN, END = "<!-- parity: begin -->", "<!-- parity: end -->"
NOT_OFFERED = "–"
"""Where an engine's backend refuses the model or the layout."""


def main() -> int:
    began = time.monotonic()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        dataset = make_dataset(root / "data" / "chain")
        lines = [*exact(root, dataset), "", *half(root, dataset)]
    minutes = (time.monotonic() - began) / 60
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    intro = f"Made by `make parity` on {date.today():%Y-%m-%d}, on CPUs (gloo).\n"
    PAGE.write_text("\n".join([head + BEGIN, intro, *lines, END + tail]), encoding="utf-8")
    sys.stderr.write(f"{PAGE.name}: written after {minutes:.0f} minutes\n")
    return 0


def exact(root: Path, dataset: Path) -> list[str]:
    """fp32: the largest difference from the plain loop, for each engine and layout."""
    wanted = list(parity.combinations())
    ran = parity.run(wanted, root, dataset)
    rows = []
    for model in parity.MODELS:
        expected = parity.plain_loop(model, root, dataset)
        for layout in parity.LAYOUTS:
            found = _differences(model, layout, ran, expected)
            if set(found) != {NOT_OFFERED}:
                rows.append([model, layout, f"{expected.band:.0e}", *found])
    title = "Largest difference of a loss from the plain loop's, in nats, over 20 steps in fp32:"
    return [title, "", *_table(["model", "layout", "band", *parity.ENGINES], rows)]


def half(root: Path, dataset: Path) -> list[str]:
    """bf16: the same, for each engine alone and on two data-parallel ranks."""
    ran = parity.run_half(root, dataset)
    rows = []
    for model in parity.MODELS:
        expected = parity.plain_loop(model, root, dataset)
        for layout in parity.HALF_LAYOUTS:
            found = _differences(model, layout, ran, expected)
            rows.append([model, layout, f"{parity.HALF_BAND:.0e}", *found])
    title = "The same in bf16, still against the plain loop in fp32:"
    return [title, "", *_table(["model", "layout", "band", *parity.ENGINES], rows)]


def _differences(
    model: str, layout: str, ran: dict[tuple[str, str, str], Ran], expected: parity.Reference
) -> list[str]:
    """A cell for each engine."""
    keys = [(model, engine, layout) for engine in parity.ENGINES]
    return [f"{parity.difference(ran[key], expected):.1e}" if key in ran else NOT_OFFERED for key in keys]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


if __name__ == "__main__":
    sys.exit(main())
