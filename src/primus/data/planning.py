"""From the ``data`` section to what the plan carries: which files, how many tokens, which shares, which digest.

Runs on the launching machine: no numpy, no torch, nothing read but manifests and headers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import xxhash

from primus.config.experiment import Data, DataSource
from primus.data import stdlib
from primus.data.format import Header, bin_path, read_header, validation_start
from primus.data.manifest import Manifest, check_manifest, manifest_path, read_manifest, sampled_digest
from primus.data.shares import mixture_shares
from primus.data.tokenizer import TokenizerFiles, find_tokenizer
from primus.errors import DataError, Problem
from primus.home import user_path
from primus.plan.plan import PlannedData, PlannedSource

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class _Found:
    """One dataset that was looked up: its header and, if Primus made it, its manifest."""

    def __init__(self, path: str, key: str) -> None:
        self.key = key
        if path == "stdlib":
            if not stdlib.is_prepared():
                raise DataError(
                    "the embedded corpus has not been prepared yet on this machine",
                    where=key,
                    remedy=stdlib.PREPARE_COMMAND,
                )
            path = str(stdlib.prefix())
        if path == "synthetic":
            raise DataError(
                "synthetic tokens cannot be part of a mixture", where=key, remedy="use `train: synthetic` alone"
            )
        self.prefix = str(user_path(path).absolute())
        self.header: Header = read_header(self.prefix)
        self.manifest: Manifest | None = read_manifest(self.prefix)
        if self.manifest:
            check_manifest(self.manifest, self.header)

    def is_same(self, other: _Found) -> bool:
        """Whether both are one dataset: by content where manifests name it, else by place."""
        if self.manifest and other.manifest:
            return self.manifest.digest == other.manifest.digest
        return os.path.realpath(bin_path(self.prefix)) == os.path.realpath(bin_path(other.prefix))

    def planned(self, share: int) -> PlannedSource:
        return PlannedSource(
            prefix=self.prefix,
            digest=self.manifest.digest if self.manifest else sampled_digest(self.header),
            share=share,
            tokens=self.header.tokens,
            documents=self.header.documents,
            dtype=self.header.dtype,
        )


class _Problems:
    """Collects what goes wrong so that all of it is reported at once."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def attempt(
        self, action: Callable[Arguments, Result], *args: Arguments.args, **named: Arguments.kwargs
    ) -> Result | None:
        try:
            return action(*args, **named)
        except DataError as error:
            self.found.extend(error.problems)
            return None

    def add(self, where: str, message: str, remedy: str = "") -> None:
        self.found.append(Problem(where, message, remedy))

    def raise_any(self) -> None:
        if self.found:
            raise DataError(problems=self.found)


def plan_data(data: Data, *, seq_length: int, vocab_size: int) -> PlannedData:
    """Look every dataset of `data` up and check that it can feed this model.

    seq_length: tokens a sample; vocab_size: rows of the model's embedding. Relative paths count from the current
    directory. Raises DataError with every problem found: missing, truncated or foreign files, ids beyond the
    vocabulary, another tokenizer, fewer tokens than one window, one dataset used twice.
    """
    problems = _Problems()
    if data.train == "synthetic":
        train: list[_Found] = []
        weights: list[float] = []
    else:
        entries = [data.train] if isinstance(data.train, str) else data.train
        if not entries:
            raise DataError("names no dataset", where="data.train", remedy="give a prefix, `stdlib` or `synthetic`")
        named = [entry if isinstance(entry, DataSource) else DataSource(path=entry, weight=1.0) for entry in entries]
        keys = ["data.train"] if len(named) == 1 else [f"data.train[{number}]" for number in range(len(named))]
        looked_up = [problems.attempt(_Found, entry.path, key) for entry, key in zip(named, keys, strict=True)]
        train = [found for found in looked_up if found]
        weights = [entry.weight for entry in named]
    validation_path = data.validation if isinstance(data.validation, str) else None
    fraction = 0.0 if isinstance(data.validation, str) else float(data.validation or 0.0)
    validation = problems.attempt(_Found, validation_path, "data.validation") if validation_path else None
    every = [*train, *([validation] if validation else [])]

    _check_repeated(train, validation, problems)
    tokenizer = _check_tokenizer(data, every, problems)
    eod_id = _end_of_document(every, tokenizer, problems) if data.mask_eod else _common_eod(every, tokenizer)
    for found in train:
        _check_size(found, fraction, seq_length, vocab_size, problems)
    if validation:
        _check_size(validation, 0.0, seq_length, vocab_size, problems)
    if data.train == "synthetic" and data.document_attention == "within":
        problems.add("data.document_attention", "synthetic tokens have no documents", "use `full`")
    shares = (problems.attempt(mixture_shares, weights) or ()) if weights else ()
    problems.raise_any()

    sources = tuple(found.planned(share) for found, share in zip(train, shares, strict=True))
    return PlannedData(
        kind="indexed" if sources else "synthetic",
        sources=sources,
        validation_fraction=fraction,
        validation_sources=(validation.planned(4096),) if validation else (),
        document_attention=data.document_attention,
        mask_eod=data.mask_eod,
        eod_id=eod_id,
        tokenizer=str(tokenizer.directory) if tokenizer else None,
        tokenizer_hash=tokenizer.hash if tokenizer else None,
        digest=_order_digest(sources, fraction),
    )


def _order_digest(sources: tuple[PlannedSource, ...], fraction: float) -> str:
    """What the sample order is keyed by: contents, shares and split of the training data; not where it lies."""
    facts = {"sources": [[source.digest, source.share] for source in sources], "validation": fraction}
    return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())


def _check_repeated(train: list[_Found], validation: _Found | None, problems: _Problems) -> None:
    for number, found in enumerate(train):
        first = next((other for other in train[:number] if found.is_same(other)), None)
        if first:
            problems.add(
                found.key,
                f"the same dataset as {first.key}",
                f"give {first.key} a weight instead, and leave this one out",
            )
    trained = next((found for found in train if validation and validation.is_same(found)), None)
    if validation and trained:
        problems.add(
            validation.key,
            f"the same dataset as {trained.key}, but what a run is validated on must never be trained on",
            "give a fraction of the training data to hold out, such as 0.01, or another dataset",
        )


def _check_size(found: _Found, fraction: float, seq_length: int, vocab_size: int, problems: _Problems) -> None:
    header, manifest = found.header, found.manifest
    split = problems.attempt(validation_start, header, fraction)
    if split is not None:
        parts = [(split, "training")] if fraction == 0 else [(split, "training"), (header.tokens - split, "validation")]
        for tokens, part in parts:
            if tokens < seq_length + 1:
                held_out = f" after data.validation={fraction:g} is held out" if fraction else ""
                problems.add(
                    header.prefix,
                    f"has {tokens} tokens for {part}{held_out}, "
                    f"fewer than one window of train.seq_length + 1 = {seq_length + 1}",
                    "give more text or a smaller train.seq_length",
                )
    if manifest and manifest.max_id >= vocab_size:
        problems.add(
            header.prefix,
            f"holds token id {manifest.max_id}, outside the model's vocabulary of {vocab_size} "
            f"(its tokenizer has {manifest.tokenizer.vocab_size})",
            f"set model.vocab_size to at least {manifest.max_id + 1}, or prepare the text with the model's tokenizer",
        )


def _check_tokenizer(data: Data, every: list[_Found], problems: _Problems) -> TokenizerFiles | None:
    """The tokenizer of the plan: the one asked for, else the first dataset's own. All that made datasets must agree."""
    made = [(found.prefix, found.manifest.tokenizer) for found in every if found.manifest]
    chosen: TokenizerFiles | None = None
    if data.tokenizer is not None:
        chosen = problems.attempt(find_tokenizer, data.tokenizer, "data.tokenizer")
    elif made:
        prefix, facts = made[0]
        directory = manifest_path(prefix).parent / facts.directory
        if (directory / "tokenizer.json").is_file():
            chosen = TokenizerFiles(directory, known=(facts.file_hash, facts.hash))
    reference = chosen.hash if chosen else (made[0][1].hash if made else None)
    name = str(chosen.directory) if chosen and data.tokenizer is not None else (made[0][0] if made else "")
    for prefix, facts in made:
        same = chosen.matches(facts.file_hash, facts.hash) if chosen else facts.hash == reference
        if not same:
            problems.add(
                prefix,
                f"was made with another tokenizer ({facts.origin}, {facts.vocab_size} ids) than {name}",
                "prepare the text again with that tokenizer, or name the dataset's own in data.tokenizer",
            )
    return chosen


def _common_eod(every: list[_Found], tokenizer: TokenizerFiles | None) -> int | None:
    ids = {found.manifest.eod_id for found in every if found.manifest}
    if len(ids) == 1:
        return ids.pop()
    return tokenizer.eod_id() if tokenizer and not ids else None


def _end_of_document(every: list[_Found], tokenizer: TokenizerFiles | None, problems: _Problems) -> int | None:
    eod_id = _common_eod(every, tokenizer)
    if eod_id is None:
        ids = sorted({str(found.manifest.eod_id) for found in every if found.manifest})
        problems.add(
            "data.mask_eod",
            f"the datasets end documents differently (ids {', '.join(ids)})"
            if len(ids) > 1
            else "no end-of-document token is known for these datasets",
            "prepare them alike with `--eod TOKEN`, or name their tokenizer in data.tokenizer",
        )
    return eod_id
