"""Text to a token dataset: the whole job, from inputs to the files under their final names.

Unfinished work lives in ``PREFIX.partial/``: finished shards, the tokens merged from them so far, and ``state.json``,
which says how far that got. Killed at any moment, the same command goes on from there, and the result is the same to
the last byte. The final names appear at the very end, the index last: a reader sees a whole dataset or none.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from primus.config.scalars import is_text
from primus.data.encoder import Encoder, Reference, choose_encoder, load_reference
from primus.data.format import bin_path, idx_path
from primus.data.indexed import sync, write_index
from primus.data.inputs import SHARD_BYTES, DocumentUnit, Inputs, Shard, make_shards, printable
from primus.data.manifest import (
    FileFacts,
    Manifest,
    SourceFacts,
    TokenizerFacts,
    content_digest,
    manifest_path,
    read_manifest,
)
from primus.data.merge import Merger
from primus.data.pool import encode_shards
from primus.data.progress import Reporter
from primus.data.shards import Job, Sample, ShardResult, hash_file, output_error
from primus.data.tokenizer import COMPANIONS, TokenizerFiles
from primus.data.train_bpe import END_OF_TEXT, SAMPLE_BYTES, sample_texts, train_bpe
from primus.data.workspace import (
    READY,
    SLOW,
    begin,
    check_places,
    exclusive,
    forget_shards,
    is_ready,
    partial_directory,
    publish,
    read_json,
    tokenizer_directory,
    write_json,
)
from primus.errors import DataError

CHECKED_BYTES = 128 << 10
"""Text from all over the inputs on which the encoders are compared before work begins."""
UINT16_IDS = 65536
LONGEST_NAME = 255
"""Bytes of a file name on all usual file systems."""


@dataclass(frozen=True)
class Request:
    """What to prepare. output: prefix. tokenizer: directory, or None to train one of `bpe_vocab` entries.
    eod: token text, ``none``, or None for the tokenizer's own. workers: processes. shard_bytes: at most lost."""

    inputs: Inputs
    output: Path
    tokenizer: TokenizerFiles | None
    bpe_vocab: int | None = None
    field: str = "text"
    unit: DocumentUnit = "file"
    eod: str | None = None
    skip_bad: bool = False
    workers: int = 1
    overwrite: bool = False
    shard_bytes: int = SHARD_BYTES

    def options(self) -> dict[str, Any]:
        """The options that decide the result; recorded in the manifest."""
        return {"field": self.field, "document": self.unit, "skip_bad": self.skip_bad, "train_bpe": self.bpe_vocab}


@dataclass(frozen=True)
class Outcome:
    """already: the dataset was there before, made by the same request."""

    prefix: str
    manifest: Manifest
    already: bool


class _EncodersDiffer(Exception):
    """The fast encoder gave other ids than the reference somewhere in the data."""


def prepare(request: Request, report: Reporter) -> Outcome:
    """Make the dataset, or go on making it. Raises DataError; what is finished by then is kept for the next try."""
    output = request.output
    _check_names(request)
    if request.tokenizer:
        _settle_eod(request, request.tokenizer)  # a wrong one should leave no traces
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot be made: {error.strerror}", where=str(output.parent), remedy="choose another --output"
        ) from error
    try:
        with exclusive(output) as directory:
            return _prepare_locked(request, directory, report)
    except OSError as error:
        raise output_error(error, output.parent) from error


def _prepare_locked(request: Request, directory: Path, report: Reporter) -> Outcome:
    output = request.output
    fingerprint = _fingerprint(request)
    _check_inputs(request, directory)
    check_places(directory, output)
    if is_ready(directory):
        publish(directory, output)  # also another job's: some of its files may have their final names already
    if finished := _finished(request, fingerprint):
        return Outcome(str(output), finished, already=True)
    if begin(directory, fingerprint):
        report.note("going on with the unfinished work of an earlier call")
    shards = make_shards(request.inputs, request.unit, request.shard_bytes)
    tokenizer = _settle_tokenizer(request, shards, directory, report)
    reference = load_reference(tokenizer.path)
    eod_token, eod_id = _settle_eod(request, tokenizer)
    encoder, reason = _choose_encoder(request, shards, tokenizer, reference)
    vocab_size = tokenizer.facts.vocab_size
    while True:
        if reason:
            report.note(f"using the slower encoder `tokenizers`: {reason}")
        job = Job(
            directory=str(directory),
            encoder=encoder.name,
            field=request.field,
            unit=request.unit,
            eod_id=eod_id,
            dtype="uint16" if vocab_size <= UINT16_IDS else "int32",
            skip_bad=request.skip_bad,
        )
        try:
            work = _encode_and_merge(shards, job, request, _Encoders(encoder, reference), report)
            break
        except _EncodersDiffer as difference:
            encoder, reason = Encoder("tokenizers", tokenizer.path), str(difference)
            forget_shards(directory)
            write_json(directory / SLOW, reason)
    facts = TokenizerFacts(
        hash=tokenizer.hash,
        file_hash=tokenizer.file_hash,
        vocab_size=vocab_size,
        directory=tokenizer_directory(output).name,
        origin=request.tokenizer.name if request.tokenizer else "trained on this text",
    )
    manifest = _describe(request, job, work, facts, eod_token)
    write_json(directory / "manifest", manifest.model_dump(), indent=1)
    check_places(directory, output)  # the work took a while
    write_json(directory / READY, fingerprint)
    publish(directory, output)
    return Outcome(str(output), manifest, already=False)


def _fingerprint(request: Request) -> str:
    """Hash of everything that decides the result. A change discards unfinished work."""
    facts = {
        "files": [
            [str(file.path), file.kind, file.codec, file.size, file.modified_ns] for file in request.inputs.files
        ],
        "options": request.options(),
        "eod": request.eod,
        "shard_bytes": request.shard_bytes,
        "tokenizer": request.tokenizer.hash if request.tokenizer else None,
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode(errors="surrogateescape"))


def _check_names(request: Request) -> None:
    """Raise DataError for names that would fail only when the work is done."""
    output = request.output
    for name in (str(output), request.tokenizer.name if request.tokenizer else ""):
        if not is_text(name):
            raise DataError("the name is not UTF-8 text", where=printable(name), remedy="rename it, or choose another")
    if len(os.fsencode(tokenizer_directory(output).name)) > LONGEST_NAME or "\0" in str(output):
        raise DataError(
            "is no name that a file can have: too long, or with a zero byte",
            where=printable(str(output)),
            remedy="choose a shorter --output",
        )


def _check_inputs(request: Request, directory: Path) -> None:
    """Raise DataError when an input is among the files to be written."""
    output = request.output
    places = {
        *(bin_path(output), idx_path(output), manifest_path(output)),
        *(tokenizer_directory(output), directory),
    }
    for file in request.inputs.files:
        if places & {file.path, *file.path.parents}:
            raise DataError(
                "is an input and would be overwritten", where=str(file.path), remedy="choose another --output"
            )


def _finished(request: Request, fingerprint: str) -> Manifest | None:
    """The manifest when the dataset is there and made by this very request. Raises DataError when another one is."""
    index = idx_path(request.output)
    if not index.exists() or request.overwrite:
        return None
    manifest = read_manifest(request.output)
    if manifest and manifest.options.get("fingerprint") == fingerprint:
        return manifest
    raise DataError(
        "exists already and was made from other inputs or with other options",
        where=str(index),
        remedy="choose another --output, or replace it with --overwrite",
    )


def _choose_encoder(
    request: Request, shards: Sequence[Shard], tokenizer: TokenizerFiles, reference: Reference
) -> tuple[Encoder, str]:
    """The encoder and, if it is the slow one, why. What the data showed in an earlier call stays decided."""
    slow = partial_directory(request.output) / SLOW
    if isinstance(reason := read_json(slow), str):
        return Encoder("tokenizers", tokenizer.path), reason
    texts = sample_texts(shards, request.field, request.unit, CHECKED_BYTES, skip_bad=True)
    return choose_encoder(tokenizer.path, reference, list(texts))


def _settle_tokenizer(request: Request, shards: Sequence[Shard], directory: Path, report: Reporter) -> TokenizerFiles:
    """The tokenizer, put into the work directory: a copy of the one asked for, or one trained there (once)."""
    target = directory / "tokenizer"
    trained = TokenizerFiles(target)
    if (source := request.tokenizer) is not None:
        target.mkdir(exist_ok=True)
        for name in (*COMPANIONS, source.path.name):
            if (source.directory / name).is_file():
                shutil.copyfile(source.directory / name, target / name)
        return source
    if trained.path.is_file():
        return trained
    assert request.bpe_vocab is not None, "a request has a tokenizer or a vocabulary size"
    size = min(SAMPLE_BYTES, request.inputs.size)
    report.note(f"training a byte-level BPE of {request.bpe_vocab} entries on {size / 1e6:.0f} MB of the text")
    texts = sample_texts(shards, request.field, request.unit, SAMPLE_BYTES, skip_bad=request.skip_bad)
    eod = END_OF_TEXT if request.eod in {None, "none"} else str(request.eod)
    reached = train_bpe(texts, request.bpe_vocab, target, eod)
    if reached < request.bpe_vocab:
        report.note(f"the text has pairs for {reached} entries only")
    return trained


def _settle_eod(request: Request, tokenizer: TokenizerFiles) -> tuple[str | None, int | None]:
    if request.eod == "none":
        return None, None
    token = request.eod or tokenizer.eod_token()
    origin = str(tokenizer.path)
    if token is None:
        raise DataError(
            "names no end-of-sequence token", where=origin, remedy="name one with --eod TOKEN, or use --eod none"
        )
    eod_id = tokenizer.token_id(token)
    if eod_id is None:
        known = ", ".join(list(tokenizer.facts.added)[:8])
        raise DataError(
            f"has no token '{token}'", where=origin, remedy=f"its added tokens: {known or 'none'}; or use --eod none"
        )
    return token, eod_id


@dataclass(frozen=True)
class _Encoders:
    chosen: Encoder
    reference: Reference


@dataclass(frozen=True)
class _Work:
    """All shards encoded and merged. index: the new .idx file; encoder: package and version."""

    results: list[ShardResult]
    index: Path
    tokens: FileFacts
    encoder: str


def _encode_and_merge(
    shards: Sequence[Shard], job: Job, request: Request, encoders: _Encoders, report: Reporter
) -> _Work:
    directory = Path(job.directory)
    with Merger(directory, np.dtype(job.dtype).itemsize) as merger:
        results = {shard.number: merger.finished(shard.number) for shard in shards}
        missing = [shard for shard in shards if results[shard.number] is None]
        report.begin("encoding", request.inputs.size)
        report.advance(request.inputs.size - sum(shard.size for shard in missing))
        merger.take(results)
        for done in encode_shards(missing, job, request.workers, encoders.chosen, report.advance):
            _check(done.samples, encoders.reference, job)
            results[done.result.number] = done.result
            report.advance(shards[done.result.number].size - done.result.text_bytes)
            merger.take(results)
        tokens = merger.facts(len(shards))
    report.end()
    finished = [result for result in results.values() if result]
    if not sum(result.documents for result in finished):
        raise DataError(
            "there is no text in the inputs: every document is empty",
            where=", ".join(name for name, _ in request.inputs.sources),
        )
    index = directory / "index"
    with index.open("wb") as file:
        write_index(file, job.dtype, merger.lengths)
        sync(file)
    return _Work(finished, index, tokens, encoders.chosen.label)


def _check(samples: Sequence[Sample], reference: Reference, job: Job) -> None:
    if job.encoder == "tokenizers":
        return
    for sample in samples:
        if reference.differs(sample.text, sample.ids):
            raise _EncodersDiffer(f"gigatoken's ids differ from the reference for {sample.text[:60]!r}")


def _describe(request: Request, job: Job, work: _Work, tokenizer: TokenizerFacts, eod_token: str | None) -> Manifest:
    idx = FileFacts(size=work.index.stat().st_size, xxh3=hash_file(work.index))
    results = work.results
    return Manifest(
        digest=content_digest(job.dtype, work.tokens.xxh3, idx.xxh3),
        dtype=job.dtype,
        tokens=sum(result.tokens for result in results),
        documents=sum(result.documents for result in results),
        max_id=max(result.max_id for result in results),
        eod_id=job.eod_id,
        eod_token=eod_token,
        bin=work.tokens,
        idx=idx,
        tokenizer=tokenizer,
        encoder=work.encoder,
        empty_documents=sum(result.empty for result in results),
        bad_records=sum(result.bad for result in results),
        text_bytes=sum(result.text_bytes for result in results),
        options={**request.options(), "fingerprint": _fingerprint(request)},
        sources=_source_facts(request.inputs, results),
    )


def _source_facts(inputs: Inputs, results: Sequence[ShardResult]) -> tuple[SourceFacts, ...]:
    """One entry an argument: the file's own hash, or for a directory the hash of all its names, sizes and hashes."""
    hashes = {path: digest for result in results for path, digest in result.hashes.items()}
    facts = []
    for number, (label, root) in enumerate(inputs.sources):
        files = [file for file in inputs.files if file.source == number]
        if len(files) == 1:
            digest = hashes[str(files[0].path)]
        else:
            lines = [
                f"{file.path.relative_to(root).as_posix()} {file.size} {hashes[str(file.path)]}\n" for file in files
            ]
            digest = xxhash.xxh3_128_hexdigest("".join(lines).encode(errors="surrogateescape"))
        facts.append(SourceFacts(path=label, files=len(files), size=sum(file.size for file in files), xxh3=digest))
    return tuple(facts)
