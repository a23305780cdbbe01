"""``primus-cli data``: prepare token datasets, fetch from the Hub, look into datasets."""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from primus.cli.main import Invocation
from primus.errors import DataError, Problem, UsageError
from primus.home import unknown_user, user_path

if TYPE_CHECKING:
    from primus.data.inputs import DocumentUnit, Inputs
    from primus.data.prepare import Outcome
    from primus.data.progress import Screen
    from primus.data.tokenizer import TokenizerFiles

FIELD, DOCUMENT = "text", "file"
TEXT_OPTIONS = ("output", "tokenizer", "field", "split", "pattern", "eod")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(help="Prepare token datasets and look into them.")
def command() -> None:
    pass


@command.command(
    help="Turn text into a token dataset (PREFIX.bin, PREFIX.idx). INPUT is a text, JSON Lines (also .gz, .zst), "
    "parquet or Arrow file, a directory of them, a Hugging Face dataset directory, or a Hub id org/name[@revision]. "
    "Killed and run again, it goes on where it stopped."
)
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("-o", "--output", metavar="PREFIX", help="Where the dataset goes.")
@click.option("--tokenizer", metavar="DIR|ID", help="Directory with tokenizer.json, or a Hub id.")
@click.option("--train-bpe", type=int, metavar="VOCAB", help="Train a byte-level BPE of this size on the text instead.")
@click.option("--field", default=FIELD, show_default=True, help="Field or column that holds the text.")
@click.option(
    "--document",
    type=click.Choice(["file", "line", "paragraph"]),
    default=DOCUMENT,
    show_default=True,
    help="What is one document in text files.",
)
@click.option("--split", metavar="NAME", help="Split of a Hugging Face dataset. Default: train.")
@click.option("--pattern", metavar="GLOB", help="Take the files of directories that match, e.g. '*.py'.")
@click.option("--eod", metavar="TOKEN", help="Token that ends documents, or `none`. Default: the tokenizer's own.")
@click.option("--skip-bad", is_flag=True, help="Leave out records without usable text, and count them.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes. Default: one a core.")
@click.option("--overwrite", is_flag=True, help="Replace the dataset that is there.")
@click.option("--stdlib", is_flag=True, help="Prepare the embedded corpus: Python's standard library.")
@click.option("--library", metavar="VERSION=DIR", hidden=True)
@JSON
@click.pass_obj
def prepare(invocation: Invocation, /, **options: Any) -> int:
    asked = PrepareOptions(**options)
    asked.check()
    from primus.runtime.environments import ensure

    argv = list(invocation.argv)
    if asked.stdlib and not asked.library:
        # another interpreter may do the work, but the corpus is this one's library
        from primus.data import stdlib

        library = stdlib.this_library()
        asked = replace(asked, library=library)
        argv += ["--library", library]
    ensure("torch", argv)
    from primus.data.progress import Screen

    started = time.monotonic()
    with Screen() as screen:
        outcome = _prepare_stdlib(asked, screen) if asked.stdlib else _prepare_inputs(asked, screen)
    _show_outcome(outcome, time.monotonic() - started, asked)
    return 0


@dataclass(frozen=True)
class PrepareOptions:
    inputs: tuple[str, ...]
    output: str | None
    tokenizer: str | None
    train_bpe: int | None
    field: str
    document: DocumentUnit
    split: str | None
    pattern: str | None
    eod: str | None
    skip_bad: bool
    workers: int | None
    overwrite: bool
    stdlib: bool
    library: str | None
    as_json: bool

    def check(self) -> None:
        """Raise UsageError for what cannot go together or is missing."""
        self._check_texts()
        if self.stdlib:
            own = [self.inputs, self.output, self.tokenizer, self.train_bpe, self.split, self.pattern, self.eod]
            if any([*own, self.workers]) or self.skip_bad or (self.field, self.document) != (FIELD, DOCUMENT):
                raise UsageError("--stdlib has its own inputs, place and tokenizer", remedy="give it alone")
            return
        if not self.inputs:
            raise UsageError("there is nothing to prepare", remedy="give files, directories or a Hub id; or --stdlib")
        if self.output is None:
            raise UsageError(
                "where the dataset goes is not given", remedy="add --output PREFIX, e.g. --output data/mine"
            )
        if (self.tokenizer is None) == (self.train_bpe is None):
            both = "two tokenizers are asked for" if self.tokenizer else "no tokenizer is given"
            raise UsageError(both, remedy="give either --tokenizer DIR|ID or --train-bpe VOCAB")
        if self.train_bpe is not None:
            from primus.data.train_bpe import check_vocabulary

            check_vocabulary(self.train_bpe)

    def _check_texts(self) -> None:
        from primus.config.scalars import is_text
        from primus.data.inputs import printable

        texts = [(f"--{name}", getattr(self, name)) for name in TEXT_OPTIONS]
        problems = []
        for name, text in [*texts, *(("an input", text) for text in self.inputs)]:
            if text == "":
                problems.append(Problem("", f"{name} is empty", "give a value, or leave it out"))
            elif text is not None and not is_text(text):
                problems.append(Problem("", f"{name} {printable(text)} is not UTF-8 text", "rename it"))
        if problems:
            raise UsageError(problems=problems)

    @property
    def prefix(self) -> Path:
        """Where the dataset goes. Raises UsageError when that cannot be a prefix."""
        assert self.output is not None, "checked"
        path = user_path(self.output)
        if user := unknown_user(path):
            raise UsageError(
                f"--output {self.output}: there is no user {user}", remedy=f"./{self.output} if you mean it"
            )
        if os.path.isdir(path) or path.name.endswith((".bin", ".idx")):
            what, instead = ("directory", path / "mine") if os.path.isdir(path) else ("file name", path.with_suffix(""))
            raise UsageError(f"--output {path} is a {what}, not a prefix", remedy=f"e.g. --output {instead}")
        return path.absolute()

    @property
    def processes(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))


def _prepare_stdlib(asked: PrepareOptions, screen: Screen) -> Outcome:
    from primus.data.stdlib import prepare_stdlib

    version, _, root = str(asked.library).partition("=")
    return prepare_stdlib(screen, root=Path(root), python_version=version, overwrite=asked.overwrite)


def _prepare_inputs(asked: PrepareOptions, screen: Screen) -> Outcome:
    from primus.data import prepare as preparing

    output = asked.prefix
    tokenizer = _tokenizer(asked.tokenizer, screen) if asked.tokenizer else None
    inputs = _inputs(asked, screen)
    kinds = {file.kind for file in inputs.files}
    if asked.document != DOCUMENT and "text" not in kinds:
        raise UsageError("--document has no effect: no input is a text file", remedy="leave it out")
    if asked.field != FIELD and kinds == {"text"}:
        raise UsageError("--field has no effect: all inputs are text files", remedy="leave it out")
    for note in inputs.notes:
        screen.note(note)
    request = preparing.Request(
        inputs=inputs,
        output=output,
        tokenizer=tokenizer,
        bpe_vocab=asked.train_bpe,
        field=asked.field,
        unit=asked.document,
        eod=asked.eod,
        skip_bad=asked.skip_bad,
        workers=asked.processes,
        overwrite=asked.overwrite,
    )
    return preparing.prepare(request, screen)


def _tokenizer(name: str, screen: Screen) -> TokenizerFiles:
    from primus.data.hub import fetch_tokenizer, is_hub_id
    from primus.data.tokenizer import TokenizerFiles, find_tokenizer

    if not is_hub_id(name):
        return find_tokenizer(name, "--tokenizer")
    screen.note(f"fetching the tokenizer of {name}")
    directory = fetch_tokenizer(name)
    return TokenizerFiles(directory, f"{name.partition('@')[0]}@{directory.name}")


def _inputs(asked: PrepareOptions, screen: Screen) -> Inputs:
    """Files of all arguments; Hub datasets are fetched first, only the files that will be read."""
    from primus.data.hub import fetch_dataset, is_hub_id
    from primus.data.inputs import choose_hub_files, collect, is_local

    places, labels = [], []
    for name in asked.inputs:
        if not is_local(name) and is_hub_id(name):
            screen.note(f"fetching the dataset {name}")
            directory = fetch_dataset(name, partial(choose_hub_files, name, pattern=asked.pattern, split=asked.split))
            places.append(str(directory))
            labels.append(f"{name.partition('@')[0]}@{directory.name}")
        else:
            places.append(name)
            labels.append(name)
    return collect(places, pattern=asked.pattern, split=asked.split, labels=labels)


def _show_outcome(outcome: Outcome, seconds: float, asked: PrepareOptions) -> None:
    manifest = outcome.manifest
    if asked.as_json:
        click.echo(
            json.dumps({"prefix": outcome.prefix, "already": outcome.already, **manifest.model_dump()}, indent=2)
        )
        return
    if outcome.already:
        click.echo(f"already prepared: {outcome.prefix}")
    else:
        speed = f"{manifest.text_bytes / 1e6 / max(seconds, 1e-9):.1f} MB/s" if manifest.text_bytes > 1e6 else ""
        click.echo(f"prepared {outcome.prefix} in {seconds:.1f} s {speed}".rstrip())
    left_out = [
        f"{count} {what} left out"
        for count, what in ((manifest.empty_documents, "empty documents"), (manifest.bad_records, "bad records"))
        if count
    ]
    facts = f"{manifest.documents:,} documents, {manifest.tokens:,} tokens ({manifest.dtype}, {manifest.encoder})"
    click.echo("  " + ", ".join([facts, *left_out]))
    train = "stdlib" if asked.stdlib else outcome.prefix
    click.echo(f"  in an experiment file:  data: {{train: {train}}}")
    click.echo(f"  model.vocab_size:       at least {manifest.tokenizer.vocab_size}")
    click.echo(f"  look into it:           primus-cli data inspect {shlex.quote(outcome.prefix)}")


@command.command(help="Fetch a model, tokenizer or dataset from the Hugging Face Hub; prints its directory.")
@click.argument("hub_id", metavar="ORG/NAME[@REVISION]")
@click.option("--tokenizer", "what", flag_value="tokenizer", help="Only the tokenizer.")
@click.option("--model", "what", flag_value="model", default=True, help="Weights, config.json and tokenizer. Default.")
@click.option("--dataset", "what", flag_value="dataset", help="A dataset's files of text.")
@click.option("--split", metavar="NAME", help="With --dataset: the split to fetch. Default: train.")
@click.pass_obj
def fetch(invocation: Invocation, hub_id: str, what: str, split: str | None) -> int:
    from primus.runtime.environments import ensure

    ensure("torch", invocation.argv)
    from primus.data import hub
    from primus.data.inputs import choose_hub_files

    if what == "dataset":
        directory = hub.fetch_dataset(hub_id, partial(choose_hub_files, hub_id, pattern=None, split=split))
    else:
        directory = hub.fetch_model(hub_id) if what == "model" else hub.fetch_tokenizer(hub_id)
    click.echo(str(directory))
    return 0


@command.command(help="Show what is in the token dataset PREFIX: counts, document lengths, origin, decoded samples.")
@click.argument("prefix", type=click.Path(path_type=Path))
@click.option("--samples", type=click.IntRange(min=0), default=2, show_default=True, metavar="N", help="Samples shown.")
@click.option(
    "--seq-length",
    type=click.IntRange(min=1),
    metavar="S",
    help="Show training windows of S + 1 tokens.",
)
@click.option("--tokenizer", metavar="DIR|ID", help="Tokenizer to decode with. Default: the dataset's own.")
@click.option("--verify", is_flag=True, help="Read everything and check it: hashes, index, id range.")
@JSON
@click.pass_obj
def inspect(
    invocation: Invocation,
    /,
    *,
    prefix: Path,
    samples: int,
    seq_length: int | None,
    tokenizer: str | None,
    verify: bool,
    as_json: bool,
) -> int:
    from primus.runtime.environments import ensure

    ensure("torch", invocation.argv)
    from rich.console import Console

    from primus.cli import data_inspect
    from primus.data import stdlib
    from primus.data.inspect import Inspection
    from primus.data.tokenizer import find_tokenizer

    if str(prefix) == "stdlib":
        prefix = stdlib.prefix()
    inspection = Inspection(prefix, find_tokenizer(tokenizer, "--tokenizer") if tokenizer else None)
    if seq_length and inspection.header.tokens <= seq_length:
        raise UsageError(
            f"the dataset has {inspection.header.tokens} tokens, fewer than one window of {seq_length} + 1",
            remedy="give a smaller --seq-length",
        )
    problems = inspection.verify() if verify else None
    excerpts = inspection.excerpts(samples, seq_length)
    if as_json:
        facts = data_inspect.as_json(inspection, inspection.lengths(), excerpts, problems)
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        data_inspect.show(Console(highlight=False), inspection, inspection.lengths(), excerpts, problems)
    if problems:
        raise DataError(problems=problems)
    return 0
