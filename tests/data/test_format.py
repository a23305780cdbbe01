"""Megatron's indexed format: every dtype, sequences and documents, and files that are not what they should be."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_data import run, texts, write_by_hand, write_jsonl

from primus.data.format import bin_path, first_document_from, idx_path, read_header, validation_start
from primus.data.indexed import IndexedDataset, write_index
from primus.data.inspect import Inspection
from primus.data.tokenizer import TokenizerFiles
from primus.errors import DataError

DOCUMENTS = [[[5, 6, 7]], [[1], [2, 3]], [[9, 8, 7, 6]]]
Prefix = Path


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64", "uint16"])
def test_reads_every_token_dtype(tmp_path: Path, dtype: str) -> None:
    dataset = IndexedDataset(write_by_hand(tmp_path / "d", DOCUMENTS, dtype))
    assert dataset.header.dtype == dtype
    assert dataset.tokens.dtype == np.dtype(dtype)
    assert dataset.tokens.tolist() == [5, 6, 7, 1, 2, 3, 9, 8, 7, 6]


def test_a_document_is_one_or_more_sequences(tmp_path: Path) -> None:
    dataset = IndexedDataset(write_by_hand(tmp_path / "d", DOCUMENTS))
    assert (dataset.header.documents, dataset.header.sequences, dataset.header.tokens) == (3, 4, 10)
    assert [dataset.document(number).tolist() for number in range(3)] == [[5, 6, 7], [1, 2, 3], [9, 8, 7, 6]]
    assert dataset.lengths.tolist() == [3, 1, 2, 4]


def test_large_ids_survive(tmp_path: Path) -> None:
    dataset = IndexedDataset(write_by_hand(tmp_path / "d", [[[65535, 0, 40000]]], "uint16"))
    assert dataset.tokens.tolist() == [65535, 0, 40000]


def test_writer_makes_the_same_bytes(tmp_path: Path) -> None:
    documents = [[[1, 2, 3]], [[4]], [[5, 6]]]
    prefix = write_by_hand(tmp_path / "d", documents, "int32")
    lengths = tmp_path / "lengths"
    lengths.write_bytes(np.array([3, 1, 2], dtype="<i4").tobytes())
    with (tmp_path / "index").open("wb") as file:
        write_index(file, "int32", lengths)
    assert (tmp_path / "index").read_bytes() == idx_path(prefix).read_bytes()


def test_writer_goes_over_its_chunks_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("primus.data.indexed.CHUNK", 3)
    sizes = [2, 1, 4, 1, 1, 3, 2]
    documents = [[list(range(size))] for size in sizes]
    prefix = write_by_hand(tmp_path / "d", documents)
    lengths = tmp_path / "lengths"
    lengths.write_bytes(np.array(sizes, dtype="<i4").tobytes())
    with (tmp_path / "index").open("wb") as file:
        write_index(file, "uint16", lengths)
    assert (tmp_path / "index").read_bytes() == idx_path(prefix).read_bytes()
    assert IndexedDataset(prefix).first_gap() is None


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=12), st.integers(0, 60))
def test_document_searches_agree_with_a_scan(
    tmp_path_factory: pytest.TempPathFactory, shape: list[list[int]], token: int
) -> None:
    """Zero-length sequences and documents are legal in the format."""
    if not sum(map(sum, shape)):
        return
    documents = [[list(range(size)) for size in sizes] for sizes in shape]
    prefix = write_by_hand(tmp_path_factory.mktemp("d") / "d", documents)
    starts = np.cumsum([0, *(sum(sizes) for sizes in shape)])[:-1]
    later = [int(start) for start in starts if start >= token]
    header = read_header(prefix)
    assert first_document_from(header, token) == (later[0] if later else None)
    dataset = IndexedDataset(prefix)
    offsets = np.arange(header.tokens + 2)
    assert dataset.documents_before(offsets).tolist() == [int((starts < offset).sum()) for offset in offsets]


def test_validation_begins_at_a_document_and_never_exceeds_the_fraction(tmp_path: Path) -> None:
    prefix = write_by_hand(tmp_path / "d", [[[0] * 40], [[0] * 30], [[0] * 20], [[0] * 10]])
    header = read_header(prefix)
    assert validation_start(header, 0.0) == 100
    assert validation_start(header, 0.10) == 90
    assert validation_start(header, 0.29) == 90
    assert validation_start(header, 0.30) == 70
    with pytest.raises(DataError, match=r"no document starts in the last 0.05 of its 100 tokens \(4 documents\)"):
        validation_start(header, 0.05)


def damage(path: Path, change: str) -> None:
    content = path.read_bytes()
    changed = {
        "truncated": content[:-3],
        "longer": content + b"xx",
        "empty": b"",
        "short": content[:20],
        "foreign": b"PK\x03\x04" + content[4:],
        "version": content[:9] + b"\x07" + content[10:],
        "float": content[:17] + b"\x07" + content[18:],
        "code": content[:17] + b"\x63" + content[18:],
        "count": content[:18] + b"\xff" + content[19:],
        "none": content[:18] + b"\0" * 8 + content[26:],
        "documents": content[:-8] + b"\x02" + b"\0" * 7,
        "modes": content + b"\0" * 4,
    }
    path.write_bytes(changed[change])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("bin", "truncated", "d.bin: is truncated: 17 bytes where the index ends at 20"),
        ("bin", "longer", "d.bin: is longer than its index: 22 bytes where the index ends at 20"),
        ("bin", "empty", "d.bin: is empty"),
        ("idx", "empty", "d.idx: is empty"),
        ("idx", "short", "d.idx: is only 20 bytes long, shorter than its header"),
        ("idx", "truncated", "d.idx: is truncated: 111 bytes long where 4 sequences and 3 documents take 114"),
        ("idx", "longer", "d.idx: is damaged: 116 bytes long"),
        ("idx", "foreign", "d.idx: does not begin with b'MMIDIDX\\x00\\x00' but with b'PK\\x03\\x04IDX\\x00\\x00"),
        ("idx", "version", "d.idx: has format version 7; version 1 is known"),
        ("idx", "float", "d.idx: holds float32, which is not a token type"),
        ("idx", "code", "d.idx: holds dtype code 99, which is not a token type"),
        ("idx", "count", "d.idx: is truncated: 114 bytes long where 255 sequences"),
        ("idx", "none", "d.idx: holds no documents"),
        ("idx", "documents", "d.idx: is damaged: its documents run from sequence 0 to 2 of 4"),
        ("idx", "modes", "d.idx: belongs to a multimodal dataset"),
    ],
)
def test_damaged_files_are_named_with_their_numbers(tmp_path: Path, file: str, change: str, message: str) -> None:
    prefix = write_by_hand(tmp_path / "d", DOCUMENTS)
    damage(bin_path(prefix) if file == "bin" else idx_path(prefix), change)
    with pytest.raises(DataError) as raised:
        read_header(prefix)
    assert str(raised.value).startswith(f"{tmp_path}/{message}")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "does not exist"),
        ("d.bin", "names one file of a dataset .give its prefix: .*/d."),
        ("d.idx", "names one file of a dataset .give its prefix: .*/d."),
        ("text.jsonl", "is a file, not the prefix of a prepared dataset .prepare it first"),
    ],
)
def test_paths_that_are_no_prefix(tmp_path: Path, path: str, message: str) -> None:
    write_by_hand(tmp_path / "d", DOCUMENTS)
    (tmp_path / "text.jsonl").write_text("{}")
    with pytest.raises(DataError, match=message):
        read_header(tmp_path / path)


def test_missing_half(tmp_path: Path) -> None:
    prefix = write_by_hand(tmp_path / "d", DOCUMENTS)
    bin_path(prefix).unlink()
    with pytest.raises(DataError, match=r"d\.bin: does not exist"):
        read_header(prefix)


def set_document(prefix: Path, document: int, sequence: int) -> None:
    """Overwrite an entry of the document index."""
    content = bytearray(idx_path(prefix).read_bytes())
    struct.pack_into("<q", content, read_header(prefix).documents_offset + 8 * document, sequence)
    idx_path(prefix).write_bytes(content)


@pytest.mark.parametrize("sequence", [10**9, 2**62, -1, -5 * 10**9])
def test_a_document_outside_the_dataset_is_named_wherever_it_is_met(tmp_path: Path, sequence: int) -> None:
    prefix = write_by_hand(tmp_path / "d", [[[1] * 10]] * 10)
    set_document(prefix, 5, sequence)
    says = re.escape(f"d.idx: is damaged: document 5 begins at sequence {sequence} of 10 (copy or prepare")
    with pytest.raises(DataError, match=says):
        validation_start(read_header(prefix), 0.5)
    with pytest.raises(DataError, match=says):
        IndexedDataset(prefix).document_starts(np.arange(8))
    with pytest.raises(DataError, match=says):
        Inspection(prefix).lengths()
    with pytest.raises(DataError, match=r"document [56] begins before the one before it, or outside"):
        Inspection(prefix).verify()


def test_a_sequence_outside_the_dataset_is_named(tmp_path: Path) -> None:
    prefix = write_by_hand(tmp_path / "d", [[[1] * 10]] * 10)
    content = bytearray(idx_path(prefix).read_bytes())
    struct.pack_into("<q", content, read_header(prefix).pointers_offset + 8 * 5, -8)
    idx_path(prefix).write_bytes(content)
    with pytest.raises(DataError, match="document 5 begins at byte -8 of 200"):
        validation_start(read_header(prefix), 0.5)
    with pytest.raises(DataError, match="document 5 begins at token -4 of 100"):
        IndexedDataset(prefix).document(4)


def test_documents_out_of_order_are_found_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("primus.data.indexed.CHUNK", 3)
    prefix = write_by_hand(tmp_path / "d", [[[1] * 10]] * 10)
    assert IndexedDataset(prefix).first_misplaced_document() is None
    assert Inspection(prefix).verify() == []
    set_document(prefix, 2, 7)
    assert IndexedDataset(prefix).first_misplaced_document() == 3
    with pytest.raises(DataError, match="document 2 ends before it begins"):
        Inspection(prefix).lengths()


def test_verify_reports_a_bad_hash_together_with_a_bad_index(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    made = run(write_jsonl(tmp_path / "in.jsonl", texts(20)), tmp_path / "out", tokenizer)
    prefix = Path(made.prefix)
    set_document(prefix, 7, -5 * 10**9)
    with pytest.raises(DataError) as raised:
        Inspection(prefix).verify()
    assert [problem.message for problem in raised.value.problems] == [
        "its content is not what was written",
        "is damaged: document 7 begins before the one before it, or outside the dataset",
    ]


@pytest.mark.parametrize("name", ["~nosuchuser/d", "n" * 300, "with\0nul"])
def test_names_no_file_system_takes(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"does not exist|cannot be read: (File name too long|embedded null byte)"):
        read_header(tmp_path / name)


def test_gaps_between_sequences_are_found(tmp_path: Path) -> None:
    prefix = write_by_hand(tmp_path / "d", DOCUMENTS)
    content = bytearray(idx_path(prefix).read_bytes())
    content[34 + 4 * 4 + 8] += 2  # pointer of the second sequence
    idx_path(prefix).write_bytes(content)
    assert IndexedDataset(prefix).first_gap() == 1
