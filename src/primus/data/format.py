"""The token dataset on disk: Megatron's indexed format, read with the standard library alone.

``PREFIX.bin`` holds the tokens back to back, little-endian. ``PREFIX.idx`` describes them::

    9 bytes   magic "MMIDIDX\\0\\0"
    u64       version, 1
    u8        dtype code of a token
    u64       number of sequences S
    u64       length of the document index, D + 1 for D documents
    i32[S]    tokens in each sequence
    i64[S]    byte offset of each sequence in PREFIX.bin
    i64[D+1]  first sequence of each document, then S

A document is one or more sequences. Planning needs nothing but the header and a few entries, so numpy stays out.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from primus.errors import DataError

Dtype = Literal["uint8", "int8", "int16", "int32", "int64", "uint16"]

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES: dict[int, Dtype] = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
ITEM_SIZES: dict[Dtype, int] = {"uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8, "uint16": 2}
FLOAT_CODES = {6: "float64", 7: "float32"}
_I32 = struct.Struct("<i")
_I64 = struct.Struct("<q")


def bin_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.idx")


@dataclass(frozen=True)
class Header:
    """What the index says about a dataset. tokens: in PREFIX.bin; documents, sequences: counts."""

    prefix: str
    dtype: Dtype
    sequences: int
    documents: int
    tokens: int

    @property
    def item_size(self) -> int:
        """Bytes a token."""
        return ITEM_SIZES[self.dtype]

    @property
    def lengths_offset(self) -> int:
        return HEADER.size

    @property
    def pointers_offset(self) -> int:
        return HEADER.size + 4 * self.sequences

    @property
    def documents_offset(self) -> int:
        return HEADER.size + 12 * self.sequences

    @property
    def index_bytes(self) -> int:
        return self.documents_offset + 8 * (self.documents + 1)


def read_header(prefix: str | Path) -> Header:
    """Read and check the index of `prefix` against the sizes of both files, in constant time.

    Raises DataError for missing, empty, truncated or foreign files.
    """
    prefix = str(prefix)
    index, tokens = idx_path(prefix), bin_path(prefix)
    sizes = {}
    for path in (index, tokens):
        try:
            sizes[path] = path.stat().st_size
        except (OSError, ValueError) as error:
            raise _missing(prefix, path, error) from error
        if not path.is_file():
            raise DataError("is not a file", where=str(path))
        if sizes[path] == 0:
            raise DataError("is empty", where=str(path), remedy="prepare the dataset again")
    try:
        with index.open("rb") as file:
            return _check(
                prefix, file.read(HEADER.size), sizes[index], sizes[tokens], lambda at, n: _pread(file, at, n)
            )
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(index)) from error


def _check(prefix: str, head: bytes, index_size: int, token_size: int, read: Callable[[int, int], bytes]) -> Header:
    where = str(idx_path(prefix))
    if len(head) < HEADER.size:
        raise DataError(f"is only {len(head)} bytes long, shorter than its header", where=where, remedy="copy it again")
    magic, version, code, sequences, index_entries = HEADER.unpack(head)
    if magic != MAGIC:
        raise DataError(
            f"does not begin with {MAGIC!r} but with {magic!r}: it is not a token dataset's index",
            where=where,
            remedy="make one with `primus-cli data prepare`",
        )
    if version != VERSION:
        raise DataError(f"has format version {version}; version {VERSION} is known", where=where)
    if code not in DTYPE_CODES:
        held = FLOAT_CODES.get(code, f"dtype code {code}")
        raise DataError(f"holds {held}, which is not a token type", where=where)
    if sequences == 0 or index_entries < 2:
        raise DataError(
            "holds no documents", where=where, remedy="prepare the dataset again from text that is not empty"
        )
    header = Header(prefix, DTYPE_CODES[code], sequences, index_entries - 1, 0)
    if index_size != header.index_bytes:
        extra = index_size - header.index_bytes
        if extra == sequences:
            raise DataError("belongs to a multimodal dataset, which holds more than text", where=where)
        kind = "truncated" if extra < 0 else "damaged"
        raise DataError(
            f"is {kind}: {index_size} bytes long where {sequences} sequences and {index_entries - 1} documents "
            f"take {header.index_bytes}",
            where=where,
            remedy="copy or prepare it again",
        )
    first_document = _I64.unpack(read(header.documents_offset, 8))[0]
    last_document = _I64.unpack(read(header.index_bytes - 8, 8))[0]
    if (first_document, last_document) != (0, sequences):
        raise DataError(
            f"is damaged: its documents run from sequence {first_document} to {last_document} of {sequences}",
            where=where,
        )
    length = _I32.unpack(read(header.pointers_offset - 4, 4))[0]
    pointer = _I64.unpack(read(header.documents_offset - 8, 8))[0]
    expected = pointer + length * header.item_size
    if token_size != expected:
        kind = "truncated" if token_size < expected else "longer than its index"
        raise DataError(
            f"is {kind}: {token_size} bytes where the index ends at {expected} ({header.dtype}, {sequences} sequences)",
            where=str(bin_path(prefix)),
            remedy="copy or prepare the dataset again",
        )
    return Header(prefix, header.dtype, sequences, header.documents, expected // header.item_size)


def _pread(file: object, offset: int, size: int) -> bytes:
    stream = cast("mmap.mmap", file)
    stream.seek(offset)
    data = stream.read(size)
    if len(data) != size:
        raise OSError(0, "ends early")
    return data


def _missing(prefix: str, path: Path, error: OSError | ValueError) -> DataError:
    if isinstance(error, FileNotFoundError):
        if path.suffix == ".idx" and Path(prefix).suffix in {".bin", ".idx"} and os.path.exists(prefix):
            stem = prefix.removesuffix(Path(prefix).suffix)
            return DataError("names one file of a dataset", where=prefix, remedy=f"give its prefix: {stem}")
        if os.path.isfile(prefix):
            return DataError(
                "is a file, not the prefix of a prepared dataset",
                where=prefix,
                remedy=f"prepare it first: primus-cli data prepare {prefix} --output PREFIX",
            )
        return DataError(
            "does not exist",
            where=str(path),
            remedy="give the prefix of PREFIX.bin and PREFIX.idx, or make them with `primus-cli data prepare`",
        )
    cause = error.strerror if isinstance(error, OSError) else str(error)
    return DataError(f"cannot be read: {cause}", where=str(path), remedy="check the path of the dataset")


def first_document_from(header: Header, token: int) -> int | None:
    """Token offset at which the first document at or after `token` starts; None when none starts there.

    A binary search in the index: about log2(documents) page reads, whatever the dataset's size. Raises DataError when
    it meets an entry that points outside the dataset.
    """
    size = header.tokens * header.item_size
    with idx_path(header.prefix).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as index:

        def start(document: int) -> int:
            sequence = int(_I64.unpack_from(index, header.documents_offset + 8 * document)[0])
            if not 0 <= sequence <= header.sequences:
                raise damaged_document(header, document, f"begins at sequence {sequence} of {header.sequences}")
            if sequence == header.sequences:  # documents without sequences at the end
                return header.tokens
            pointer = int(_I64.unpack_from(index, header.pointers_offset + 8 * sequence)[0])
            if not 0 <= pointer <= size:
                raise damaged_document(header, document, f"begins at byte {pointer} of {size}")
            return pointer // header.item_size

        low, high = 0, header.documents
        while low < high:
            middle = (low + high) // 2
            if start(middle) < token:
                low = middle + 1
            else:
                high = middle
        return start(low) if low < header.documents else None


def damaged_document(header: Header, document: int, what: str) -> DataError:
    """The error for a document whose entry in the index cannot be true."""
    return DataError(
        f"is damaged: document {document} {what}",
        where=str(idx_path(header.prefix)),
        remedy="copy or prepare the dataset again",
    )


def validation_start(header: Header, fraction: float) -> int:
    """First token of the held-out part: the first document start in the last `fraction` of the tokens, so that the
    part never exceeds the fraction and begins with a whole document. Equals ``header.tokens`` for fraction 0.

    Raises DataError when no document starts there.
    """
    if fraction <= 0:
        return header.tokens
    wanted = header.tokens - int(header.tokens * fraction)
    start = first_document_from(header, wanted) if wanted < header.tokens else None
    if start is None or start == 0 or start >= header.tokens:
        raise DataError(
            f"no document starts in the last {fraction:g} of its {header.tokens} tokens ({header.documents} documents)",
            where=header.prefix,
            remedy="give a larger data.validation, a dataset of its own, or prepare the text with smaller documents",
        )
    return start
