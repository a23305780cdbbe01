"""The pages are true of the code: links, command lines, whole experiments, published counts and vectors."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from primus.cli import places
from primus.cli.main import root, split
from primus.config import model_size
from primus.config.keys import keys
from primus.config.load import load
from primus.config.presets import available
from primus.plan.planner import make_plan
from primus.runtime.environments.pins import normalized, read_requirements

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("README.md")])
WHOLE = "<!-- whole experiment -->"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block. whole: marked as a complete experiment."""

    page: Path
    line: int
    language: str
    text: str
    whole: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            before = text[: match.start()]
            whole = before.rstrip().endswith(WHOLE)
            yield Block(page, before.count("\n") + 2, match[1], match[2], whole)


BLOCKS = list(blocks())


class Line(NamedTuple):
    where: str
    words: tuple[str, ...]


def command_lines() -> Iterator[Line]:
    """Every ``primus-cli ...`` of the bash and console blocks, without comments."""
    for block in BLOCKS:
        if block.language not in ("bash", "sh", "console"):
            continue
        joined = block.text.replace("\\\n", "  ")
        for number, line in enumerate(joined.splitlines()):
            text = line.removeprefix("$ ").strip()
            if re.match(r"(\./)?primus-cli\s", text):
                yield Line(
                    f"{block.page.relative_to(ROOT)}:{block.line + number}", tuple(shlex.split(text, comments=True)[1:])
                )


LINES = list(command_lines())
TRAINING = [
    line for line in LINES if "pretrain" in line.words and any("examples/quickstart.yaml" in w for w in line.words)
]


def parsed(words: tuple[str, ...]) -> dict[str, Any]:
    """The parameters of the command at the end of the line. Raises click.ClickException, as the command line would."""
    segments, command = split(words)
    for segment in segments:
        place = importlib.import_module(f"primus.cli.places.{segment.place}").command
        place.make_context(segment.place, list(segment.arguments))
    context = root.make_context("primus-cli", list(command))
    here: click.Command = root
    while isinstance(here, click.Group):
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        if not rest:
            return {}
        name, found, arguments = here.resolve_command(context, rest)
        assert found is not None, rest
        context = found.make_context(name, arguments, parent=context)
        here = found
    return context.params


def test_there_is_something_to_check() -> None:
    assert len(LINES) > 40
    assert len(TRAINING) > 5
    assert sum(block.whole for block in BLOCKS) >= 2


@pytest.fixture(scope="module")
def checks() -> Any:
    """``docs/check.py``, the checks behind ``make docs``."""
    spec = importlib.util.spec_from_file_location("docs_check", ROOT / "docs" / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_and_anchors_lead_somewhere(checks: Any) -> None:
    assert list(checks.broken_links()) == []


def test_the_seeds_paths_exist(checks: Any) -> None:
    for name in ("README.md", "quickstart.md", "cli/PRIMUS-CLI-GUIDE.md", "cli/CLI-ARCHITECTURE.md"):
        assert (ROOT / "docs" / name).is_file()
    assert "supported-models" in checks.anchors(ROOT / "docs/backends/overview.md")


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.where)
def test_documented_command_lines_parse(line: Line) -> None:
    try:
        given = parsed(line.words)
    except click.exceptions.Exit:  # --help and --version
        return
    for override in given.get("overrides") or ():
        assert "=" in override, override
        key = override.partition("=")[0]
        assert key in keys() or key == "extends", f"{key} is no key"


@pytest.mark.parametrize("line", TRAINING, ids=lambda line: line.where)
def test_documented_trainings_of_the_quickstart_plan(line: Line, tmp_path: Path) -> None:
    """As typed, but for the data, whose preparation takes longer."""
    given = parsed(line.words)
    segments, _ = split(line.words)
    place = places.places_of(segments).direct
    overrides = (*given["overrides"], "data.train=synthetic")
    resolved = load(ROOT / given["config"], overrides, {})
    make_plan(resolved, nnodes=place.nnodes, nproc=place.nproc, run_directory=tmp_path)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.whole], ids=str)
def test_whole_experiments_load(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(block.text, encoding="utf-8")
    load(file, (), {})


def rows(page: str, heading: str) -> Iterator[list[str]]:
    """Cells of every table row below `heading`, up to the next heading of that level."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    level = heading.partition(" ")[0]
    part = re.split(rf"^{level} ", text.partition(f"{heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    for line in part.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


PRESETS = {
    row[0].strip("`"): row for row in rows("backends/overview.md", "## Supported models") if "`models/" in row[0]
}


def test_every_preset_is_in_the_overview() -> None:
    assert set(PRESETS) == set(available("models"))


@pytest.mark.parametrize("name", PRESETS)
def test_the_overviews_figures_are_the_planners(name: str, tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(
        f"extends: [{name}, hardware/cpu]\nname: t\ndata: {{train: synthetic}}\n"
        "train: {steps: 1, global_batch_size: 1, seq_length: 128}\noptimizer: {lr: 0.1}\n"
    )
    model = load(file).experiment.model
    size = model_size.measure(model)
    active = "all" if size.active == size.total else f"{size.active:,}"
    facts = [
        f"{size.total:,}",
        active,
        f"{model.num_hidden_layers}",
        f"{model.hidden_size:,}",
        f"{model.max_position_embeddings:,}",
    ]
    assert PRESETS[name][1:] == facts


def test_every_verb_is_in_the_guide() -> None:
    guide = (ROOT / "docs/cli/PRIMUS-CLI-GUIDE.md").read_text(encoding="utf-8")
    context = click.Context(root)
    for verb in root.list_commands(context):
        group = root.get_command(context, verb)
        assert isinstance(group, click.Group)
        section = re.split(r"^## ", guide, flags=re.MULTILINE)
        own = "".join(part for part in section if part.startswith(verb))
        assert own, f"no section for {verb}"
        for name, command in group.commands.items():
            assert name in own, f"{verb} {name} is not described"
            for parameter in command.params:
                if isinstance(parameter, click.Option) and not parameter.hidden:
                    told = own if parameter.opts[0] not in ("--runs-dir", "--json") else guide
                    assert any(option in told for option in parameter.opts), f"{verb} {name} {parameter.opts}"


def test_published_vectors_of_the_sample_order() -> None:
    np = pytest.importorskip("numpy")
    from primus.data.order import Permutation

    page = ROOT / "docs/sample-order.md"
    (code,) = [block.text for block in BLOCKS if block.page == page and block.language == "python"]
    published: dict[str, Any] = {}
    exec(code, published)
    vectors = [row for row in rows("sample-order.md", "## Test vectors") if row[0].isdigit()]
    assert len(vectors) >= 6
    for size, key, indices, images in vectors:
        name = b"" if key == "(empty)" else key.strip("`").encode()
        wanted, given = [int(n) for n in images.split(",")], [int(n) for n in indices.split(",")]
        assert Permutation(int(size), name).apply(np.array(given)).tolist() == wanted
        assert [published["permute"](int(size), name, index) for index in given] == wanted


def test_troubleshooting_quotes_what_the_program_says() -> None:
    """Every message in a column "it says" is in the sources, "..." standing for what is filled in."""
    sources = [*(ROOT / "src").rglob("*.py"), ROOT / "primus-cli"]
    said = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    said = re.sub(r'"\s*\n\s*f?"', "", said)  # a text over several lines of source
    quoted = 0
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    for part in page.split("\n## "):
        lines = part.partition("| it says")[2].splitlines()
        for message in re.findall(r"`([^`]*)`", "\n".join(line.split(" | ")[0] for line in lines)):
            for piece in message.split("..."):
                words = piece.strip(" '\":,;=").removeprefix("torchtitan: ")
                assert words in said, f"{message!r}: nothing says {words!r}"
                quoted += len(words) > 8
    assert quoted > 40


def test_every_dependency_has_its_reason() -> None:
    page = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    told = {normalized(name) for name in re.findall(r"`([A-Za-z0-9._-]+)`", page)}
    for environment in ("launcher", "torch", "monitor", "dev"):
        missing = {need.name for need in read_requirements(environment)} - told
        assert not missing, f"{environment}: {sorted(missing)}"


def test_pages_keep_to_plain_text() -> None:
    """No emoji, which some terminals and readers garble, and no machine's own paths."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search("[\U0001f000-\U0001faff\u2600-\u27bf]", text), page
        assert not re.search(r"(?<![\w.])/(?:work|root)/", text), page
