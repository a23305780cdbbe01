"""Reading the documents of a shard, piece by piece, so that no input is too large."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from primus.data.columns import arrow_texts, parquet_texts, some
from primus.data.inputs import DocumentUnit, Shard
from primus.errors import DataError, Problem

Piece = tuple[str, bool]
"""(text, whether the document ends here)."""
Separable = Callable[[str, str], bool]
"""Whether encoding two neighbouring stretches of text apart gives the same ids as encoding them together."""

PIECE = 1 << 20
"""Characters; longer documents are encoded in pieces of about this length."""
BLOCK = 256 << 10
MAX_LINE = 16 << 20
"""Bytes; a longer line or JSON record is refused, because it has to be held in memory whole, several times over."""
CONTEXT = 256
MAX_LISTED = 10
BOUNDARY = re.compile(r"(?<=\S\n)(?=\w)|(?<=\S)(?= \w)")
"""Before a line or word that follows visible text: where nearly every pre-tokenizer parts anyway."""


@dataclass
class BadRecords:
    """Records that hold no usable text: with ``skip`` counted and left out, else listed and refused."""

    skip: bool
    count: int = 0
    listed: list[Problem] = field(default_factory=list)

    def add(self, where: Callable[[], str], message: str, remedy: str = "") -> None:
        """Note one. Raises DataError at the tenth that is not to be skipped: nobody reads more."""
        self.count += 1
        if not self.skip:
            self.listed.append(Problem(where(), message, remedy))
            if self.count == MAX_LISTED:
                self.raise_any()

    def raise_any(self) -> None:
        """Raise DataError with all that was noted, unless bad records are to be skipped."""
        if self.listed:
            count = f"{self.count} bad records" if self.count > 1 else "a bad record"
            more = ", and there may be more" if self.count == MAX_LISTED else ""
            advice = Problem("", f"{count}{more}", "mend the input, or leave such records out with --skip-bad")
            raise DataError(problems=[*self.listed, advice])


def open_input(path: Path, codec: str) -> BinaryIO:
    """The file's bytes, decompressed."""
    if codec == "gzip":
        return cast("BinaryIO", gzip.open(path, "rb"))
    if codec == "zstd":
        import pyarrow

        return cast("BinaryIO", io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), BLOCK))
    return path.open("rb", buffering=BLOCK)


def read_shard(
    shard: Shard, field_name: str, unit: DocumentUnit, bad: BadRecords, separable: Separable
) -> Iterator[Piece]:
    """All documents of `shard` in order, as pieces. Raises DataError for files that cannot be read."""
    for name in shard.paths:
        path = Path(name)
        try:
            if shard.kind == "jsonl":
                whole = _json_texts(_lines(path, shard, bad), field_name, bad)
            elif shard.kind == "text":
                yield from _text_documents(path, shard, unit, bad, separable)
                continue
            else:
                rows = (
                    parquet_texts(path, field_name, shard.start, shard.end)
                    if shard.kind == "parquet"
                    else arrow_texts(path, field_name)
                )
                whole = _column_texts(path, rows, shard, field_name, bad)
            for text in whole:
                if len(text) <= PIECE:
                    yield text, True
                else:
                    yield from _ended(split_text(_slices(text), separable))
        except (EOFError, zlib.error, OSError) as error:
            kind = f"is not a readable {shard.codec} file: " if shard.codec else "cannot be read: "
            cause = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise DataError(f"{kind}{cause}", where=name, remedy="fetch or write it again") from error


Line = tuple[bytes, Callable[[], str]]
"""(content, function that tells ``file:line``, which takes counting lines)."""


def _lines(path: Path, shard: Shard, bad: BadRecords, *, blank: bool = False) -> Iterator[Line]:
    """Lines that begin in the shard's byte range; blank ones only when asked for."""
    with open_input(path, shard.codec) as file:
        position = 0
        if shard.start:
            # a line that begins exactly at `start` is ours: look at the byte before it
            file.seek(shard.start - 1)
            position = shard.start - 1 + _skip_line(file)
        while shard.end < 0 or position < shard.end:
            line = file.readline(MAX_LINE + 1)
            if not line:
                break
            start, length = position, len(line)
            position += length

            def where(start: int = start) -> str:
                return f"{path}:{_line_number(path, shard.codec, start)}"

            if length > MAX_LINE:
                position += _skip_line(file)
                bad.add(where, f"is longer than {MAX_LINE >> 20} MiB", "split such documents")
                continue
            if start == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            if blank or not line.isspace():
                yield line, where


def _skip_line(file: BinaryIO) -> int:
    """Read up to the end of the line; returns the bytes read."""
    skipped = 0
    while part := file.readline(BLOCK):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _line_number(path: Path, codec: str, offset: int) -> int:
    number, left = 1, offset
    with open_input(path, codec) as file:
        while left and (block := file.read(min(left, BLOCK))):
            number += block.count(b"\n")
            left -= len(block)
    return number


def _json_texts(lines: Iterable[Line], name: str, bad: BadRecords) -> Iterator[str]:
    import orjson

    for line, where in lines:
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if line.lstrip().startswith(b"["):
                bad.add(where, "is a JSON array over several lines, not JSON Lines", "write one object a line")
                return
            bad.add(where, f"is not valid JSON: {error.msg} (column {error.colno})")
            continue
        text = record.get(name) if isinstance(record, dict) else None
        if isinstance(text, str):
            yield text
        elif not isinstance(record, dict):
            bad.add(where, f"is not a JSON object but {type(record).__name__}")
        elif name not in record:
            bad.add(where, f"has no field '{name}', only {some(list(record)) or 'none'}", "choose one with --field")
        else:
            bad.add(where, f"field '{name}' holds {type(text).__name__}, not text")


def _column_texts(
    path: Path, rows: Iterable[tuple[int, object]], shard: Shard, name: str, bad: BadRecords
) -> Iterator[str]:
    place = f"{path}" if shard.end < 0 else f"{path}: row groups {shard.start}..{shard.end - 1}"
    for row, text in rows:
        if isinstance(text, str):
            yield text
            continue
        message = f"column '{name}' holds no text"
        if isinstance(text, UnicodeDecodeError):
            message = f"column '{name}' is not UTF-8: byte {text.object[text.start]:#04x} at offset {text.start}"
        bad.add(lambda row=row: f"{place}: row {row}", message)  # type: ignore[misc]


def _text_documents(
    path: Path, shard: Shard, unit: DocumentUnit, bad: BadRecords, separable: Separable
) -> Iterator[Piece]:
    if unit == "file":
        # to be left out, a file must be known to be bad before its first piece is used
        if not bad.skip or all(_decoded(path, shard.codec, bad)):
            yield from _ended(split_text(filter(None, _decoded(path, shard.codec, bad)), separable))
        return
    paragraph: list[str] = []
    for line, where in _lines(path, shard, bad, blank=unit == "paragraph"):
        try:
            text_line = line.decode()
        except UnicodeDecodeError as error:
            bad.add(where, f"is not UTF-8: byte {error.object[error.start]:#04x} at column {error.start + 1}")
            continue
        if unit == "line":
            yield text_line.rstrip("\r\n"), True
        elif not text_line.isspace():
            paragraph.append(text_line)
        elif paragraph:
            yield "".join(paragraph), True
            paragraph.clear()
    if paragraph:
        yield "".join(paragraph), True


def _decoded(path: Path, codec: str, bad: BadRecords) -> Iterator[str | None]:
    """The file's text in blocks, without a byte order mark. Invalid UTF-8 is a bad record; None then ends the text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with open_input(path, codec) as file:
        block = b" "
        while block:
            block = file.read(BLOCK)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                at, value = offset - pending + error.start, error.object[error.start]
                hint = "it looks like UTF-16, convert it" if at < 2 and value in {0xFE, 0xFF} else "convert it"
                bad.add(lambda: str(path), f"is not UTF-8: byte {value:#04x} at offset {at}", hint)
                yield None
                return
            if offset == 0:
                text = text.removeprefix("\ufeff")
            offset += len(block)
            if text:
                yield text


def _slices(text: str) -> Iterator[str]:
    return (text[start : start + BLOCK] for start in range(0, len(text), BLOCK))


def _ended(pieces: Iterable[str]) -> Iterator[Piece]:
    """Mark the last piece of a document. An empty document is one empty piece."""
    held: str | None = None
    for piece in pieces:
        if held is not None:
            yield held, False
        held = piece
    yield held or "", True


def split_text(blocks: Iterable[str], separable: Separable) -> Iterator[str]:
    """Regroup a long text into pieces of about PIECE characters that can be encoded apart.

    Each cut is tried: it must lie between two words and the text around it must give the same ids in two parts as in
    one. Where no such place is found, the piece grows; a tokenizer that sees all text as one word gets it whole.
    """
    buffer: list[str] = []
    length, wanted = 0, PIECE
    for block in blocks:
        buffer.append(block)
        length += len(block)
        if length < wanted:
            continue
        text = "".join(buffer)
        cut = _find_cut(text, separable)
        if cut:
            yield text[:cut]
            text, wanted = text[cut:], PIECE
        else:
            wanted = 2 * length
        buffer, length = [text], len(text)
    if length:
        yield "".join(buffer)


def _find_cut(text: str, separable: Separable) -> int:
    """The last place in the final 64 KiB, but not too near the end, where `text` may be cut; 0 if there is none."""
    start = max(0, len(text) - (64 << 10))
    places = [match.start() for match in BOUNDARY.finditer(text, start, len(text) - CONTEXT)]
    for cut in places[:-65:-1]:
        if cut and separable(text[max(0, cut - CONTEXT) : cut], text[cut : cut + CONTEXT]):
            return cut
    return 0
