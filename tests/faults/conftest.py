"""``--matrix PAGE``: every fault in every place on every engine, and the dated table of what came of it in PAGE, also
when something fails or Ctrl-C ends it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from datetime import date
from pathlib import Path

import pytest
from command_line import Cli, unmeasured
from fault_runs import Matrix, make_source
from faults import CASES, COMBINATIONS, FAULTS, Case, some

BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", metavar="PAGE", help="run every combination, and write the table of PAGE")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", _chosen(metafunc.config), ids=str)


def _chosen(config: pytest.Config) -> list[Case]:
    return CASES if config.getoption("--matrix", None) else some()


@pytest.fixture(scope="session")
def cases(request: pytest.FixtureRequest) -> list[Case]:
    return _chosen(request.config)


@pytest.fixture
def cli(cli: Cli) -> Cli:
    cli.env = unmeasured(cli.env)
    return cli


@pytest.fixture(scope="session")
def matrix(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    found = Matrix(tmp_path_factory.mktemp("source"))
    make_source(found.source)
    yield found
    if page := request.config.getoption("--matrix", None):
        write(Path(page), found.cells)


@pytest.fixture(autouse=True)
def told(request: pytest.FixtureRequest, case: Case, cases: list[Case], matrix: Matrix) -> Iterator[None]:
    """Two lines a case, as it begins and as it ends."""
    began = time.monotonic()
    _say(request.config, f"{cases.index(case) + 1:2}/{len(cases)} {case}")
    yield
    came = matrix.cells.get(str(case), "not run").replace("*", "")
    _say(request.config, f"      {came} ({time.monotonic() - began:.0f} s)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    found = getattr(item, "funcargs", {})
    if report.failed and "matrix" in found:
        found["matrix"].cells.setdefault(str(found["case"]), "**failed**")
    return report


def _say(config: pytest.Config, line: str) -> None:
    if config.getoption("--matrix", None):
        with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            config.pluginmanager.getplugin("terminalreporter").write_line(line)


def pytest_report_teststatus(report: pytest.TestReport, config: pytest.Config) -> tuple[str, str, str] | None:
    """No letters between these lines."""
    return (report.outcome, "", "") if config.getoption("--matrix", None) and report.when == "call" else None


def write(page: Path, cells: dict[str, str]) -> None:
    head = ["fault", *(f"{place}, {engine}" for place, engine in COMBINATIONS)]
    rows = [[fault.name] for fault in FAULTS]
    for row in rows:
        for place, engine in COMBINATIONS:
            case = f"{row[0]}, {place}, {engine}"
            row.append(cells.get(case, "not run" if case in map(str, CASES) else "–"))
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    intro = f"Made by `make matrix` on {date.today():%Y-%m-%d}, on CPUs (gloo), two processes.\n"
    page.write_text("\n".join([before + BEGIN, intro, *lines, END + after]), encoding="utf-8")
