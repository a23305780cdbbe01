"""Text columns of parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from primus.errors import DataError

BUFFER = 1 << 20
"""Bytes of a column chunk read at a time; without it a row group is read whole."""
ROWS = 256
"""Rows decoded at a time."""
MOST_NAMES = 8
END = b"\xff\xff\xff\xff\0\0\0\0"
"""What Arrow's stream writer writes when it is closed."""


def some(names: Sequence[str]) -> str:
    """The first few of many names, for an error message."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def row_groups(path: Path) -> int:
    """Number of row groups of a parquet file. Raises DataError when it is not one."""
    import pyarrow
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(path).num_row_groups)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise _unreadable(path, "parquet", error) from error


def parquet_texts(path: Path, field: str, start: int, end: int) -> Iterator[tuple[int, Any]]:
    """(row number within the range, value) of one column; start, end: row groups, end -1 for all. In place of a
    value that is not UTF-8 comes the UnicodeDecodeError."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
            _check_field(path, file.schema_arrow, field)
            groups = range(start, file.num_row_groups if end < 0 else end)
            batches = file.iter_batches(batch_size=ROWS, row_groups=list(groups), columns=[field], use_threads=False)
            yield from _values(batches, field)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, "parquet", error) from error


def arrow_texts(path: Path, field: str) -> Iterator[tuple[int, Any]]:
    """(row number, value) of one column of an Arrow stream file, as ``datasets`` saves them."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as stream:
            _check_field(path, stream.schema, field)
            if source.size() < len(END) or source.read_at(len(END), source.size() - len(END)) != END:
                # cut between two messages it would read like a shorter file
                raise DataError("is cut short: its end is missing", where=str(path), remedy="copy or write it again")
            yield from _values(stream, field)
            if source.tell() != source.size():
                raise DataError("holds more after its end", where=str(path), remedy="give one Arrow stream a file")
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, "Arrow stream", error) from error


def _values(batches: Any, field: str) -> Iterator[tuple[int, Any]]:
    row = 0
    for batch in batches:
        column = batch.column(batch.schema.get_field_index(field))
        for start in range(0, len(column), ROWS):
            part = column.slice(start, ROWS)
            try:
                values = part.to_pylist()
            except UnicodeDecodeError:
                values = [_value(scalar) for scalar in part]
            for value in values:
                yield row, value
                row += 1


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error


def _check_field(path: Path, schema: Any, field: str) -> None:
    import pyarrow

    if field not in schema.names:
        raise DataError(
            f"has no column '{field}'", where=str(path), remedy=f"choose one with --field: {some(schema.names)}"
        )
    if (count := schema.names.count(field)) > 1:
        raise DataError(
            f"has {count} columns named '{field}'", where=str(path), remedy="write it again with one, or rename them"
        )
    kind = schema.field(field).type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    texts = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view)
    if not any(is_text(kind) for is_text in texts):
        names = [entry.name for entry in schema if any(is_text(entry.type) for is_text in texts)]
        raise DataError(
            f"column '{field}' holds {kind}, not text",
            where=str(path),
            remedy=f"choose one with --field: {some(names)}" if names else "it has no text column",
        )


def _unreadable(path: Path, kind: str, error: Exception) -> DataError:
    return DataError(
        f"is not a readable {kind} file: {str(error).splitlines()[0]}",
        where=str(path),
        remedy="fetch or write it again",
    )
