"""``PREFIX.json``: what a prepared dataset was made from and by, and what it must still weigh."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from primus.data.format import Header, bin_path, idx_path
from primus.errors import DataError

FORMAT = "primus-dataset-1"
SAMPLE_BYTES = 4096
SAMPLES = 16
AGAIN = "move the files of this dataset away and prepare it again"


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileFacts(Part):
    """Size in bytes and xxh3-128 of one of the dataset's files."""

    size: int
    xxh3: str


class SourceFacts(Part):
    """One argument. path: as given or, for a Hub dataset, ``org/name@commit``; xxh3: of the file, or over the names,
    sizes and hashes of all its files."""

    path: str
    files: int
    size: int
    xxh3: str


class TokenizerFacts(Part):
    """hash: xxh3-128 over the canonical content of tokenizer.json, see ``tokenizer.content_hash``; file_hash: over its
    bytes; vocab_size: largest id + 1, added tokens included; directory: beside the dataset, relative to it."""

    hash: str
    file_hash: str
    vocab_size: int
    directory: str
    origin: str


class Manifest(Part):
    """The facts of a prepared dataset. ``digest`` names its content: what the sample order is keyed by."""

    format: Literal["primus-dataset-1"] = "primus-dataset-1"
    digest: str
    dtype: Literal["uint16", "int32"]
    tokens: int
    documents: int
    max_id: int = Field(description="Largest token id in the dataset.")
    eod_id: int | None = Field(description="Token that ends every document; None when none was added.")
    eod_token: str | None
    bin: FileFacts
    idx: FileFacts
    tokenizer: TokenizerFacts
    encoder: str = Field(description="Package and version that made the ids.")
    empty_documents: int = Field(description="Documents without text, left out.")
    bad_records: int = Field(description="Records left out with --skip-bad.")
    text_bytes: int = Field(description="UTF-8 bytes of text that were encoded.")
    options: dict[str, Any] = Field(default_factory=dict)
    sources: tuple[SourceFacts, ...]


def manifest_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.json")


def read_manifest(prefix: str | Path) -> Manifest | None:
    """The manifest of `prefix`, None when it has none (made elsewhere). Raises DataError when it is broken."""
    path = manifest_path(prefix)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from error
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"is not valid JSON: {error}", where=str(path), remedy=AGAIN) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise DataError(
            f"is not the manifest of a dataset: format is {found!r}, not {FORMAT!r}",
            where=str(path),
            remedy="move that file away if it is something else, or prepare the dataset again",
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"is damaged at '{place}': {first['msg']}", where=str(path), remedy=AGAIN) from error


def check_manifest(manifest: Manifest, header: Header) -> None:
    """Raise DataError when the files beside `manifest` are not the ones it describes (by counts and sizes)."""
    found = {
        "dtype": (header.dtype, manifest.dtype),
        "tokens": (header.tokens, manifest.tokens),
        "documents": (header.documents, manifest.documents),
        f"bytes in {bin_path(header.prefix).name}": (bin_path(header.prefix).stat().st_size, manifest.bin.size),
        f"bytes in {idx_path(header.prefix).name}": (idx_path(header.prefix).stat().st_size, manifest.idx.size),
    }
    for what, (actual, promised) in found.items():
        if actual != promised:
            raise DataError(
                f"describes another dataset: {what} is {promised} there and {actual} in the files",
                where=str(manifest_path(header.prefix)),
                remedy="prepare the dataset again, or remove the manifest if the files come from elsewhere",
            )


def content_digest(dtype: str, bin_hash: str, idx_hash: str) -> str:
    """Digest of a prepared dataset: its content alone, not where or from what it was made."""
    return xxhash.xxh3_128_hexdigest(f"primus-dataset|{dtype}|{bin_hash}|{idx_hash}".encode())


def sampled_digest(header: Header) -> str:
    """Digest of a dataset without a manifest: header facts, file sizes and 16 evenly spaced blocks of 4 KiB of each
    file. Cheap at any size; two datasets that differ only outside those blocks would share an order, which is harmless.
    """
    state = xxhash.xxh3_128(f"sampled|{header.dtype}|{header.sequences}|{header.documents}|{header.tokens}".encode())
    for path in (idx_path(header.prefix), bin_path(header.prefix)):
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            state.update(str(size).encode())
            for number in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1))
                state.update(file.read(SAMPLE_BYTES))
    return state.hexdigest()
