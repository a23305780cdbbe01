"""``--matrix PAGE``: every fault in every place on every engine, and the dated table of what came of it in PAGE."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from fault_runs import Matrix
from faults import CASES, COMBINATIONS, FAULTS, some
from tiny import make_dataset

BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", metavar="PAGE", help="run every combination, and write the table of PAGE")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = CASES if metafunc.config.getoption("--matrix", None) else some()
        metafunc.parametrize("case", cases, ids=str)


@pytest.fixture(scope="session")
def matrix(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    found = Matrix(make_dataset(tmp_path_factory.mktemp("data") / "chain"))
    yield found
    if page := request.config.getoption("--matrix", None):
        write(Path(page), found.cells)


def write(page: Path, cells: dict[str, str]) -> None:
    head = ["fault", *(f"{place}, {engine}" for place, engine in COMBINATIONS)]
    rows = [[fault.name] for fault in FAULTS]
    for row in rows:
        row += [cells.get(f"{row[0]}, {place}, {engine}", "–") for place, engine in COMBINATIONS]
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    intro = f"Made by `make matrix` on {date.today():%Y-%m-%d}, on CPUs (gloo), two processes.\n"
    page.write_text("\n".join([before + BEGIN, intro, *lines, END + after]), encoding="utf-8")
