"""Encoding one shard into files, in a worker process."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import xxhash

from primus.data.documents import BadRecords, read_shard
from primus.data.encoder import Encoder, EncoderName
from primus.data.indexed import sync
from primus.data.inputs import DocumentUnit, Shard
from primus.data.workspace import read_json
from primus.errors import DataError

FLUSH = 1 << 20
"""Tokens written at a time."""
STRETCH = 1 << 20
"""Bytes of text between two reports, and two samples for the reference encoder."""
SAMPLES = 32
SAMPLE_CHARACTERS = 800
MAX_DOCUMENT = 2**31 - 1
"""The index counts a document's tokens in 32 bits."""


@dataclass(frozen=True)
class Job:
    """What every worker needs to know. directory: of the unfinished work; eod_id None: documents are not ended."""

    directory: str
    encoder: EncoderName
    field: str
    unit: DocumentUnit
    eod_id: int | None
    dtype: Literal["uint16", "int32"]
    skip_bad: bool

    @property
    def tokenizer(self) -> Path:
        return Path(self.directory, "tokenizer", "tokenizer.json")


@dataclass(frozen=True)
class ShardResult:
    """Facts of an encoded shard, kept beside its tokens. hashes: xxh3-128 of the input files it was to hash."""

    number: int
    documents: int
    tokens: int
    max_id: int
    empty: int
    bad: int
    text_bytes: int
    hashes: dict[str, str]


@dataclass(frozen=True)
class Sample:
    """A stretch of text and the ids it was given, for the reference to check."""

    text: str
    ids: npt.NDArray[np.uint32]


def shard_path(directory: str | Path, number: int, kind: str) -> Path:
    """kind: ``bin`` (tokens), ``lengths`` (int32 a document) or ``json`` (facts, written last)."""
    return Path(directory, f"shard-{number:06d}.{kind}")


def read_result(directory: str | Path, number: int) -> ShardResult | None:
    """The facts of a finished shard, None if it is not finished."""
    try:
        return ShardResult(**read_json(shard_path(directory, number, "json")))
    except TypeError:  # not there, or damaged
        return None


class _Output:
    """The shard's two growing files; ids are gathered and written a million at a time."""

    def __init__(self, tokens: BinaryIO, lengths: BinaryIO, job: Job) -> None:
        self._tokens, self._lengths = tokens, lengths
        self._dtype = np.dtype(job.dtype).newbyteorder("<")
        self._end = np.array([] if job.eod_id is None else [job.eod_id], dtype=np.uint32)
        self._pending: list[npt.NDArray[np.uint32]] = []
        self._pending_tokens = 0
        self._document_lengths: list[int] = []
        self._open_length = 0
        self.documents = self.tokens = self.empty = 0
        self.max_id = -1

    def add(self, ids: npt.NDArray[np.uint32], last: bool) -> None:
        self._open_length += ids.size
        self._pending.append(ids)
        self._pending_tokens += ids.size
        if last and self._open_length == 0:
            self.empty += 1
        elif last:
            self._pending.append(self._end)
            length = self._open_length + self._end.size
            if length > MAX_DOCUMENT:
                raise DataError(f"a document has {length} tokens; the format holds at most {MAX_DOCUMENT}")
            self._document_lengths.append(length)
            self._open_length = 0
        if self._pending_tokens >= FLUSH:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            block = np.concatenate(self._pending, dtype=self._dtype, casting="unsafe")
            if block.size:
                self.max_id = max(self.max_id, int(block.max()))
            self._tokens.write(block.data)
            self.tokens += block.size
        self._lengths.write(np.array(self._document_lengths, dtype="<i4").data)
        self.documents += len(self._document_lengths)
        self._pending, self._pending_tokens, self._document_lengths = [], 0, []


def encode_shard(
    shard: Shard, job: Job, encoder: Encoder, progress: Callable[[int], None]
) -> tuple[ShardResult, list[Sample]]:
    """Encode all documents of `shard` into the job's directory; the result file appears last, so that a shard is
    there complete or not at all. progress: told the text bytes encoded since the last call.

    Raises DataError for unreadable or bad input and for a full disk.
    """
    bad = BadRecords(job.skip_bad)
    temporary = {kind: shard_path(job.directory, shard.number, f"{kind}.{os.getpid()}") for kind in ("bin", "lengths")}
    samples: list[Sample] = []
    text_bytes = reported = 0
    try:
        with temporary["bin"].open("wb") as tokens, temporary["lengths"].open("wb") as lengths:
            output = _Output(tokens, lengths, job)
            for text, last in read_shard(shard, job.field, job.unit, bad, encoder.separable):
                output.add(encoder.encode(text), last)
                text_bytes += len(text) if text.isascii() else len(text.encode())
                if text_bytes - reported >= STRETCH or not samples:
                    progress(text_bytes - reported)
                    reported = text_bytes
                    if len(samples) < SAMPLES:
                        stretch = text[:SAMPLE_CHARACTERS]
                        samples.append(Sample(stretch, encoder.encode(stretch)))
            output.flush()
            sync(tokens)
            sync(lengths)
        progress(text_bytes - reported)
        bad.raise_any()
        hashes = {path: hash_file(Path(path)) for path in shard.paths} if shard.hashes else {}
        result = ShardResult(
            shard.number, output.documents, output.tokens, output.max_id, output.empty, bad.count, text_bytes, hashes
        )
        for kind, path in temporary.items():
            path.replace(shard_path(job.directory, shard.number, kind))
        facts = shard_path(job.directory, shard.number, f"json.{os.getpid()}")
        with facts.open("wb") as file:
            file.write(json.dumps(asdict(result)).encode())
            sync(file)
        facts.replace(shard_path(job.directory, shard.number, "json"))
    except OSError as error:
        raise output_error(error, job.directory) from error
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    return result, samples


def output_error(error: OSError, directory: str | Path) -> DataError:
    """What to say when writing fails."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DataError(
            "the disk is full; no half dataset was left behind, finished work is kept",
            where=str(directory),
            remedy="free some space and run the same command again: it goes on where it stopped",
        )
    return DataError(f"cannot be written: {error.strerror or error}", where=str(error.filename or directory))


def hash_file(path: Path) -> str:
    """xxh3-128 of a file's bytes."""
    state = xxhash.xxh3_128()
    buffer = memoryview(bytearray(STRETCH))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            state.update(buffer[:size])
    return state.hexdigest()
