"""Input that is not what it should be: named with its place, left out when asked, nothing half-made left behind."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from token_data import digest_of, expected, read, run, texts, write_jsonl

from primus.data.format import bin_path, idx_path
from primus.data.inputs import collect
from primus.data.tokenizer import TokenizerFiles
from primus.data.workspace import partial_directory
from primus.errors import DataError, UsageError


def refusal(path: Path, output: Path, tokenizer: TokenizerFiles, **options: object) -> list[str]:
    """The problems of preparing `path`; there must be no dataset afterwards."""
    with pytest.raises(DataError) as raised:
        run(path, output, tokenizer, **options)
    assert not bin_path(output).exists()
    assert not idx_path(output).exists()
    return [str(problem) for problem in raised.value.problems]


BAD_LINES = [
    (b'{"text": "unfinished', "is not valid JSON"),
    (b'{"text": "a" "b"}', "is not valid JSON"),
    (b'{"text": "\xff\xfe"}', "is not valid JSON"),
    (b'{"text": "\\ud800"}', "is not valid JSON"),
    (b'{"other": "a", "more": 1}', "has no field 'text', only other, more (choose one with --field)"),
    (b"{}", "has no field 'text', only none"),
    (b'{"text": 5}', "field 'text' holds int, not text"),
    (b'{"text": null}', "field 'text' holds NoneType, not text"),
    (b'{"text": ["a"]}', "field 'text' holds list, not text"),
    (b'["a"]', "is not a JSON object but list"),
    (b'"a"', "is not a JSON object but str"),
    (b"\x00\x01\x02", "is not valid JSON"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
@pytest.mark.parametrize("shard_bytes", [30, 1 << 20])
def test_bad_json_lines_are_named_and_can_be_left_out(
    tmp_path: Path, tokenizer: TokenizerFiles, line: bytes, message: str, shard_bytes: int
) -> None:
    source = tmp_path / "in put.jsonl"
    good = [json.dumps({"text": text}).encode() for text in ("one", "two", "three")]
    source.write_bytes(b"\n".join([good[0], b"", good[1], line, b"   ", good[2]]))
    found = refusal(source, tmp_path / "out", tokenizer, shard_bytes=shard_bytes)
    assert found[0].startswith(f"{source}:4: {message}")
    assert found[-1] == "a bad record (mend the input, or leave such records out with --skip-bad)"
    outcome = run(source, tmp_path / "out", tokenizer, skip_bad=True, shard_bytes=shard_bytes)
    assert read(outcome.prefix) == expected(["one", "two", "three"], tokenizer)
    assert outcome.manifest.bad_records == 1


def test_several_bad_lines_come_together_but_not_thousands(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join('{"text": "a"}\n{"txt": "b"}\n' for _ in range(3)))
    found = refusal(source, tmp_path / "out", tokenizer)
    assert [line.partition(": ")[0] for line in found[:3]] == [f"{source}:{number}" for number in (2, 4, 6)]
    assert found[3].startswith("3 bad records (")
    source.write_text('{"txt": "b"}\n' * 5000)
    found = refusal(source, tmp_path / "out", tokenizer)
    assert len(found) == 11
    assert found[-1].startswith("10 bad records, and there may be more")


def test_a_json_array_over_many_lines_is_recognised(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = tmp_path / "in.json"
    source.write_text(json.dumps([{"text": "a"}, {"text": "b"}], indent=1))
    found = refusal(source, tmp_path / "out", tokenizer)
    assert "is a JSON array over several lines, not JSON Lines (write one object a line)" in found[0]


def test_overlong_lines_are_refused_or_left_out(
    tmp_path: Path, tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("primus.data.documents.MAX_LINE", 1 << 20)
    source = write_jsonl(tmp_path / "in.jsonl", ["a", "b" * (3 << 20), "c"])
    assert f"{source}:2: is longer than 1 MiB" in refusal(source, tmp_path / "out", tokenizer)[0]
    outcome = run(source, tmp_path / "out", tokenizer, skip_bad=True)
    assert read(outcome.prefix) == expected(["a", "c"], tokenizer)


@pytest.mark.parametrize("unit", ["file", "line", "paragraph"])
def test_text_that_is_not_utf8(tmp_path: Path, tokenizer: TokenizerFiles, unit: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"good\n")
    (folder / "b.txt").write_bytes(b"fine\nbad \xe9t\xe9\n")
    found = refusal(folder, tmp_path / "out", tokenizer, unit=unit)
    where = f"{folder}/b.txt" if unit == "file" else f"{folder}/b.txt:2"
    place = "offset 9" if unit == "file" else "column 5"
    assert found[0].startswith(f"{where}: is not UTF-8: byte 0xe9 at {place}")
    outcome = run(folder, tmp_path / "out", tokenizer, unit=unit, skip_bad=True)
    kept = {"file": ["good\n"], "line": ["good", "fine"], "paragraph": ["good\n", "fine\n"]}[unit]
    assert read(outcome.prefix) == expected(kept, tokenizer)
    assert outcome.manifest.bad_records == 1


def test_invalid_utf8_across_blocks_and_at_the_end(
    tmp_path: Path, tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("primus.data.documents.BLOCK", 4)
    for content, offset, byte in ((b"abc\xe2\x82", 3, 0xE2), (b"abc\xe2\x28\xa1", 3, 0xE2), (b"abcdefg\xff", 7, 0xFF)):
        source = tmp_path / "in.txt"
        source.write_bytes(content)
        found = refusal(source, tmp_path / "out", tokenizer)
        assert f"is not UTF-8: byte {byte:#04x} at offset {offset}" in found[0]
    source.write_bytes("aäöü€🎉z".encode())
    assert read(run(source, tmp_path / "out", tokenizer).prefix) == expected(["aäöü€🎉z"], tokenizer)


def test_utf16_is_guessed(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = tmp_path / "in.txt"
    source.write_bytes("text".encode("utf-16"))
    assert "it looks like UTF-16" in refusal(source, tmp_path / "out", tokenizer)[0]


def test_parquet_columns_that_do_not_fit(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a", None, "c"], "n": [1, 2, 3]}), source)
    found = refusal(source, tmp_path / "out", tokenizer)
    assert found == [f"{source}: has no column 'text' (choose one with --field: body, n)"]
    found = refusal(source, tmp_path / "out", tokenizer, field="n")
    assert found == [f"{source}: column 'n' holds int64, not text (choose one with --field: body)"]
    found = refusal(source, tmp_path / "out", tokenizer, field="body")
    assert found[0] == f"{source}: row 1: column 'body' holds no text"
    outcome = run(source, tmp_path / "out", tokenizer, field="body", skip_bad=True)
    assert read(outcome.prefix) == expected(["a", "c"], tokenizer)


def test_parquet_text_that_is_not_utf8(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = tmp_path / "in.parquet"
    raw = pyarrow.array([b"good", b"bad \xe9", b"fine"], pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())  # as a careless writer does
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), source)
    found = refusal(source, tmp_path / "out", tokenizer)
    assert found[0] == f"{source}: row 1: column 'text' is not UTF-8: byte 0xe9 at offset 4"
    outcome = run(source, tmp_path / "out", tokenizer, skip_bad=True)
    assert read(outcome.prefix) == expected(["good", "fine"], tokenizer)
    assert outcome.manifest.bad_records == 1


def test_columns_of_the_same_name_and_of_many_names(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(pyarrow.table([["a"], ["b"]], names=["text", "text"]), source)
    assert "has 2 columns named 'text'" in refusal(source, tmp_path / "out", tokenizer)[0]
    names = [f"column{number}" for number in range(20)]
    pyarrow.parquet.write_table(pyarrow.table([["a"]] * 20, names=names), source)
    assert "column7 and 12 more" in refusal(source, tmp_path / "out", tokenizer)[0]
    lines = tmp_path / "in.jsonl"
    lines.write_text(json.dumps(dict.fromkeys(names, "")))
    assert "column7 and 12 more (choose" in refusal(lines, tmp_path / "out", tokenizer)[0]


def test_a_saved_dataset_must_be_whole(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "dataset_info.json").write_text("{}")
    state = folder / "state.json"
    for content in ("", "{}", "[]", '{"_data_files": [{}]}', '{"_data_files": 3}'):
        state.write_text(content)
        assert "does not list the dataset's files" in refusal(folder, tmp_path / "out", tokenizer)[0]
    state.write_text(json.dumps({"_data_files": [{"filename": name} for name in ("a.arrow", "b.arrow")]}))
    (folder / "a.arrow").touch()
    assert refusal(folder, tmp_path / "out", tokenizer) == [
        f"{folder}/a.arrow: is listed in state.json but empty (copy or save the dataset again)",
        f"{folder}/b.arrow: is listed in state.json but missing (copy or save the dataset again)",
    ]


def test_an_arrow_stream_cut_between_messages_or_continued(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = tmp_path / "in.arrow"
    table = pyarrow.table({"text": texts(20)})
    with pyarrow.ipc.new_stream(str(source), table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    whole = source.read_bytes()
    source.write_bytes(whole[:-8])
    assert "is cut short: its end is missing" in refusal(source, tmp_path / "out", tokenizer)[0]
    source.write_bytes(whole * 2)
    assert "holds more after its end" in refusal(source, tmp_path / "out", tokenizer)[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"PAR1 no parquet", "is not a readable parquet file"),
        ("a.arrow", b"no arrow at all", "is not a readable Arrow stream file"),
        ("a.jsonl.gz", b"no gzip at all", "is not a readable gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "abc"}\n' * 1000, mtime=0)[:-20], "is not a readable gzip file"),
        ("a.jsonl.zst", b"no zstd at all", "is not a readable zstd file"),
    ],
)
def test_files_that_are_not_what_their_name_says(
    tmp_path: Path, tokenizer: TokenizerFiles, name: str, content: bytes, message: str
) -> None:
    source = tmp_path / name
    source.write_bytes(content)
    assert refusal(source, tmp_path / "out", tokenizer)[0].startswith(f"{source}: {message}")


def test_inputs_that_hold_nothing(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    empty, blank, folder = tmp_path / "empty.txt", tmp_path / "blank.jsonl", tmp_path / "folder"
    empty.touch()
    folder.mkdir()
    assert refusal(empty, tmp_path / "out", tokenizer) == [f"{empty}: is empty (leave it out)"]
    assert "does not exist" in refusal(tmp_path / "gone.txt", tmp_path / "out", tokenizer)[0]
    assert "holds no file of a known kind" in refusal(folder, tmp_path / "out", tokenizer)[0]
    assert "holds no file that matches '*.py'" in refusal(folder, tmp_path / "out", tokenizer, pattern="*.py")[0]
    (folder / "a.txt").touch()
    assert "all files are empty" in refusal(folder, tmp_path / "out", tokenizer)[0]
    write_jsonl(blank, ["", ""])
    assert "there is no text in the inputs: every document is empty" in refusal(blank, tmp_path / "out", tokenizer)[0]


def test_names_that_are_no_files(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    pipe, output = tmp_path / "pipe", tmp_path / "out"
    os.mkfifo(pipe)
    assert "is not a regular file (write it to a file first)" in refusal(pipe, output, tokenizer)[0]
    for name in ("~nosuch/x.jsonl", "x" * 300, "a\0b", ""):
        with pytest.raises(DataError, match="does not exist"):
            collect([name], pattern=None, split=None)
    source = write_jsonl(tmp_path / "in.jsonl", ["a"])
    for name in ("x" * 250, "a\0b"):
        assert "is no name that a file can have" in refusal(source, tmp_path / name, tokenizer)[0]


def test_files_of_a_directory_that_cannot_be_reached(
    tmp_path: Path, tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", ["a"])
    (folder / "b.jsonl").symlink_to("gone")
    found = refusal(folder, tmp_path / "out", tokenizer)
    assert found == [f"{folder}/b.jsonl: cannot be read: No such file or directory"]

    def forbidden(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.scandir", forbidden)  # root may read everything
    assert refusal(folder, tmp_path / "out", tokenizer) == [f"{folder}: cannot be read: Permission denied"]


def test_names_that_are_not_utf8_are_refused_before_work(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ["a"])
    folder = tmp_path / "folder"
    folder.mkdir()
    odd = write_jsonl(folder / os.fsdecode(b"caf\xe9.jsonl"), ["a"])
    for path in (odd, folder):
        found = refusal(path, tmp_path / "out", tokenizer)
        assert found == [f"{folder}/caf\\udce9.jsonl: the name is not UTF-8 text (rename it)"]
    found = refusal(source, tmp_path / os.fsdecode(b"caf\xe9"), tokenizer)
    assert "the name is not UTF-8 text" in found[0]
    assert not list(tmp_path.glob("*.partial"))


def test_the_same_input_twice(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ["a"])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link.jsonl").symlink_to(source)
    for second in (source, tmp_path / "folder" / ".." / "in.jsonl", tmp_path / "folder"):
        with pytest.raises(DataError, match=rf"{second}: repeats .*, which '{source}' gave already"):
            run([source, second], tmp_path / "out", tokenizer)


def test_choices_without_effect(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ["a"])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")
    for path, choice in ((source, "pattern"), (source, "split"), (tmp_path / "folder", "split")):
        asked = {"pattern": None, "split": None, choice: "train"}
        with pytest.raises(UsageError, match=f"--{choice} train has no effect on these inputs"):
            collect([str(path)], **asked)


def test_mixed_directories_are_a_question(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", ["a"])
    pyarrow.parquet.write_table(pyarrow.table({"text": ["b"]}), folder / "b.parquet")
    found = refusal(folder, tmp_path / "out", tokenizer)
    assert found == [f"{folder}: mixes jsonl and parquet files (choose with --pattern, e.g. '*.parquet')"]


def test_splits_are_told_apart(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    folder = tmp_path / "in"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("a card")
    for split in ("train", "test"):
        write_jsonl(folder / "data" / f"{split}-00000-of-00001.jsonl", [split])
    assert read(run(folder, tmp_path / "a", tokenizer).prefix) == expected(["train"], tokenizer)
    assert read(run(folder, tmp_path / "b", tokenizer, split="test").prefix) == expected(["test"], tokenizer)
    found = refusal(folder, tmp_path / "c", tokenizer, split="dev")
    assert found == [f"{folder}: has no files of split 'dev' (splits: test, train)"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_leaves_no_half_dataset_and_work_goes_on_later(
    tmp_path: Path, small_disk: Path, tokenizer: TokenizerFiles, workers: int
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(4000))
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 250_000)
    found = refusal(source, small_disk / "out", tokenizer, shard_bytes=50_000, workers=workers)
    assert "the disk is full; no half dataset was left behind, finished work is kept (free some space" in found[0]
    assert list(partial_directory(small_disk / "out").glob("shard-*.json"))
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    run(source, small_disk / "out", tokenizer, shard_bytes=50_000, workers=workers)
    whole = run(source, tmp_path / "whole", tokenizer, shard_bytes=50_000)
    assert digest_of(small_disk / "out") == digest_of(whole.prefix)


def test_a_place_that_cannot_be_written(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ["a"])
    (tmp_path / "file").touch()
    found = refusal(source, tmp_path / "file" / "sub" / "out", tokenizer)
    assert "cannot be made: Not a directory" in found[0]
    found = refusal(source, Path("/proc/out"), tokenizer)
    assert "cannot be written" in found[0]
