"""Text to token dataset: exact ids from every kind of input, and the same bytes however the work was cut."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from token_data import TEXT, WORDS, Notes, digest_of, expected, importing, read, run, texts, write_jsonl
from tokenizers import Tokenizer

from primus.data import prepare as preparing
from primus.data.format import bin_path, idx_path
from primus.data.indexed import IndexedDataset
from primus.data.inspect import Inspection
from primus.data.manifest import Manifest, manifest_path
from primus.data.progress import Silent
from primus.data.tokenizer import TokenizerFiles
from primus.data.workspace import partial_directory
from primus.errors import DataError


def test_jsonl_gives_the_reference_ids(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    documents = [*texts(300), "", "   ", "<|endoftext|> in the text", TEXT * 30]
    outcome = run(write_jsonl(tmp_path / "in.jsonl", documents), tmp_path / "out", tokenizer)
    assert read(outcome.prefix) == expected(documents, tokenizer)
    manifest = outcome.manifest
    assert (manifest.documents, manifest.empty_documents, manifest.bad_records) == (303, 1, 0)
    assert manifest.encoder.startswith("gigatoken ")
    assert manifest.dtype == "uint16"
    assert manifest.text_bytes == sum(len(text.encode()) for text in documents)
    assert manifest == Manifest.model_validate_json(manifest_path(outcome.prefix).read_text())
    assert Inspection(Path(outcome.prefix)).verify() == []
    assert not partial_directory(tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.bin", "out.idx", "out.json", "out.tokenizer"]


@pytest.mark.parametrize(("workers", "shard_bytes"), [(1, 97), (1, 1000), (2, 1000), (2, 1 << 20)])
def test_shards_and_workers_do_not_show(
    tmp_path: Path, tokenizer: TokenizerFiles, workers: int, shard_bytes: int
) -> None:
    documents = texts(60)
    source = write_jsonl(tmp_path / "in.jsonl", documents)
    outcome = run(source, tmp_path / "out", tokenizer, workers=workers, shard_bytes=shard_bytes)
    assert read(outcome.prefix) == expected(documents, tokenizer)
    assert outcome.manifest.sources[0].size == source.stat().st_size


def test_every_kind_of_input_gives_the_same_dataset(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    documents = texts(200)
    kinds = {name: tmp_path / name for name in ("jsonl", "gz", "zst", "parquet", "saved", "lines")}
    for path in kinds.values():
        path.mkdir()
    plain = write_jsonl(kinds["jsonl"] / "a.jsonl", documents).read_bytes()
    (kinds["gz"] / "a.jsonl.gz").write_bytes(gzip.compress(plain))
    with pyarrow.output_stream(str(kinds["zst"] / "a.jsonl.zst"), compression="zstd") as stream:
        stream.write(plain)
    table = pyarrow.table({"text": documents, "n": list(range(len(documents)))})
    for number in range(2):
        part = table.slice(100 * number, 100)
        pyarrow.parquet.write_table(part, kinds["parquet"] / f"train-{number}-of-2.parquet", row_group_size=30)
    split = kinds["saved"] / "train"
    split.mkdir()
    (kinds["saved"] / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (split / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    (split / "cache-0123456789abcdef.arrow").write_bytes(b"what `map` left there")
    (split / "dataset_info.json").write_text("{}")
    with pyarrow.ipc.new_stream(str(split / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=70)
    wanted = expected(documents, tokenizer)
    for name in ("jsonl", "gz", "zst", "parquet", "saved"):
        outcome = run(kinds[name], tmp_path / f"out-{name}", tokenizer)
        assert read(outcome.prefix) == wanted, name
    outcome = run(kinds["parquet"] / "train-0-of-2.parquet", tmp_path / "groups", tokenizer, shard_bytes=900)
    assert read(outcome.prefix) == expected(documents[:100], tokenizer)


def test_what_a_real_library_saved_is_read(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    datasets = pytest.importorskip("datasets", reason="not among the test requirements; the layout is tested above")
    documents = texts(50)
    datasets.Dataset.from_dict({"text": documents}).save_to_disk(str(tmp_path / "saved"))
    assert read(run(tmp_path / "saved", tmp_path / "out", tokenizer).prefix) == expected(documents, tokenizer)


@pytest.mark.parametrize(
    ("unit", "wanted"),
    [
        ("file", ["one\ntwo\n\nthree\r\n", "four"]),
        ("line", ["one", "two", "three", "four"]),
        ("paragraph", ["one\ntwo\n", "three\r\n", "four"]),
    ],
)
def test_what_is_a_document_in_text_files(
    tmp_path: Path, tokenizer: TokenizerFiles, unit: str, wanted: list[str]
) -> None:
    folder = tmp_path / "texts ünïcode"
    (folder / "sub dir").mkdir(parents=True)
    (folder / "a b.txt").write_bytes(b"\xef\xbb\xbfone\ntwo\n\nthree\r\n")
    (folder / "sub dir" / "ä'\"🎉.txt").write_bytes(b"four")
    (folder / "zero.txt").write_bytes(b"")
    (folder / ".hidden.txt").write_bytes(b"five")
    outcome = run(folder, tmp_path / "out put", tokenizer, unit=unit)
    assert read(outcome.prefix) == expected(wanted, tokenizer)


def test_patterns_choose_files(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    (tmp_path / "src" / "deep").mkdir(parents=True)
    (tmp_path / "src" / "a.py").write_text("import os")
    (tmp_path / "src" / "deep" / "b.py").write_text("import sys")
    (tmp_path / "src" / "c.txt").write_text("no")
    outcome = run(tmp_path / "src", tmp_path / "out", tokenizer, pattern="*.py")
    assert read(outcome.prefix) == expected(["import os", "import sys"], tokenizer)
    assert outcome.manifest.sources[0].files == 2


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_long_documents_are_encoded_in_pieces_with_the_same_ids(
    tmp_path: Path, tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("primus.data.documents.PIECE", 3000)
    monkeypatch.setattr("primus.data.documents.BLOCK", 1000)
    rng = np.random.default_rng(1)
    long = "".join(rng.choice(list("ab \n\n\t.,é1")) if rng.random() < 0.3 else rng.choice(WORDS) for _ in range(9000))
    unbroken = "x" * 20_000
    for number, text in enumerate([long, unbroken, long + unbroken + long]):
        path = tmp_path / f"{number}.{'txt' if kind == 'text' else 'jsonl'}"
        path.write_text(text) if kind == "text" else write_jsonl(path, [text])
        outcome = run(path, tmp_path / f"out{number}", tokenizer)
        assert read(outcome.prefix) == expected([text], tokenizer)


def test_wide_vocabularies_take_int32(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    directory = tmp_path / "wide"
    directory.mkdir()
    content = json.loads(tokenizer.path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary.update({f"unused {number}": number for number in range(len(vocabulary), 70_000)})
    content["added_tokens"].append({**content["added_tokens"][0], "id": 70_000, "content": "<far>"})
    (directory / "tokenizer.json").write_text(json.dumps(content))
    source = write_jsonl(tmp_path / "in.jsonl", ["a <far> b"])
    outcome = run(source, tmp_path / "out", TokenizerFiles(directory))
    assert outcome.manifest.dtype == "int32"
    assert outcome.manifest.max_id == 70_000
    assert 70_000 in read(outcome.prefix)[0]


def test_the_end_of_document_token_is_a_choice(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ["a", "b"])
    bare = run(source, tmp_path / "bare", tokenizer, eod="none")
    assert read(bare.prefix) == [row[:-1] for row in expected(["a", "b"], tokenizer)]
    assert bare.manifest.eod_id is None
    other = run(source, tmp_path / "other", tokenizer, eod="!")
    assert [row[-1] for row in read(other.prefix)] == [tokenizer.token_id("!")] * 2
    with pytest.raises(DataError, match=r"has no token '<nope>' .its added tokens: <\|endoftext\|>"):
        run(source, tmp_path / "nope", tokenizer, eod="<nope>")
    assert not list(tmp_path.glob("nope*"))


def test_a_tokenizer_the_fast_encoder_refuses_falls_back_and_says_so(tmp_path: Path) -> None:
    from tokenizers import models, pre_tokenizers

    directory = tmp_path / "words"
    directory.mkdir()
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "fox": 2, "</s>": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(directory / "tokenizer.json"))
    notes = Notes()
    source = write_jsonl(tmp_path / "in.jsonl", ["the fox", "a fox"])
    outcome = run(source, tmp_path / "out", TokenizerFiles(directory), report=notes)
    assert read(outcome.prefix) == [[1, 2, 3], [0, 2, 3]]
    assert outcome.manifest.encoder.startswith("tokenizers ")
    assert any("using the slower encoder" in line and "WordLevel" in line for line in notes.lines)


def test_an_encoder_that_differs_somewhere_is_found_out_and_replaced(
    tmp_path: Path, tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fast encoder that errs on one word only, far into the data: all its work is thrown away."""
    from primus.data.encoder import Encoder

    honest = Encoder.encode

    def errs(self: Encoder, text: str) -> object:
        ids = honest(self, text)
        return ids[::-1] if self.name == "gigatoken" and "zebra" in text else ids

    monkeypatch.setattr(Encoder, "encode", errs)
    monkeypatch.setattr(preparing, "CHECKED_BYTES", 200)
    documents = [*texts(40), "a zebra at last"]
    source = write_jsonl(tmp_path / "in.jsonl", documents)
    last_line = len(source.read_bytes().splitlines(keepends=True)[-1])
    notes = Notes()
    outcome = run(source, tmp_path / "out", tokenizer, shard_bytes=source.stat().st_size - last_line, report=notes)
    assert read(outcome.prefix) == expected(documents, tokenizer)
    assert outcome.manifest.encoder.startswith("tokenizers ")
    assert any("gigatoken's ids differ from the reference for 'a zebra" in line for line in notes.lines)


def test_a_tokenizer_trained_on_the_spot(tmp_path: Path) -> None:
    documents = texts(200)
    source = write_jsonl(tmp_path / "in.jsonl", documents)
    outcome = run(source, tmp_path / "out", None, bpe_vocab=350)
    trained = TokenizerFiles(tmp_path / "out.tokenizer")
    assert outcome.manifest.tokenizer.vocab_size == 350
    assert outcome.manifest.tokenizer.hash == trained.hash
    assert read(outcome.prefix) == expected(documents, trained)
    named = run(source, tmp_path / "named", None, bpe_vocab=350, eod="</s>")
    assert (named.manifest.eod_token, named.manifest.eod_id) == ("</s>", 0)
    again = run(source, tmp_path / "again", None, bpe_vocab=350)
    assert digest_of(again.prefix) == digest_of(outcome.prefix)
    assert again.manifest.digest == outcome.manifest.digest


def test_the_same_request_again_finds_it_done_and_another_is_refused(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(20))
    first = run(source, tmp_path / "out", tokenizer)
    before = bin_path(first.prefix).stat().st_mtime_ns
    again = run(source, tmp_path / "out", tokenizer)
    assert again.already
    assert again.manifest == first.manifest
    assert bin_path(first.prefix).stat().st_mtime_ns == before
    assert not partial_directory(tmp_path / "out").exists()
    with pytest.raises(DataError, match="exists already and was made from other inputs or with other options"):
        run(source, tmp_path / "out", tokenizer, eod="none")
    replaced = run(source, tmp_path / "out", tokenizer, eod="none", overwrite=True)
    assert replaced.manifest.eod_id is None
    assert Inspection(tmp_path / "out").verify() == []


def test_an_input_is_never_overwritten(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = write_jsonl(tmp_path / "mine.json", texts(5))
    content = source.read_bytes()
    with pytest.raises(DataError, match=r"mine\.json: is an input and would be overwritten"):
        run(source, tmp_path / "mine", tokenizer, overwrite=True)
    other = write_jsonl(tmp_path / "other.jsonl", texts(5))
    with pytest.raises(DataError, match=r"mine\.json: is not (valid JSON|the manifest)"):
        run(other, tmp_path / "mine", tokenizer, overwrite=True)
    assert source.read_bytes() == content


@pytest.mark.parametrize("name", ["bin", "idx", "tokenizer", "partial"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_primus_did_not_make_is_refused_before_work(
    tmp_path: Path, tokenizer: TokenizerFiles, name: str, overwrite: bool
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(5))
    place, folder = tmp_path / f"out.{name}", tmp_path / f"dir.{name}"
    place.write_text("mine")
    folder.mkdir()
    (folder / "tokenizer.model").write_text("mine")
    (folder / "job.json").write_text("{}")
    for path in (place, folder):
        with pytest.raises(DataError, match=r"choose another --output") as raised:
            run(source, path.with_suffix(""), tokenizer, overwrite=overwrite)
        assert [problem.where for problem in raised.value.problems] == [str(path)]
    assert place.read_text() == (folder / "tokenizer.model").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir() if path != source) == [folder.name, place.name]


def test_a_tokenizer_directory_with_files_of_the_user_is_kept(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(5))
    own = TokenizerFiles(tmp_path / "out.tokenizer")
    shutil.copytree(tokenizer.directory, own.directory)
    with pytest.raises(DataError, match=r"exists, and no out\.json beside it says that Primus made it"):
        run(source, tmp_path / "out", own)
    shutil.rmtree(own.directory)
    run(source, tmp_path / "out", tokenizer)
    assert run(source, tmp_path / "out", own, eod="none", overwrite=True).manifest.eod_id is None
    (own.directory / "README.md").write_text("mine")
    with pytest.raises(DataError, match=r"holds files that Primus did not put there \(README\.md\)"):
        run(source, tmp_path / "out", tokenizer, overwrite=True)
    assert (own.directory / "README.md").exists()


def test_a_file_that_appears_during_the_work_is_kept(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(5))
    mine = bin_path(tmp_path / "out")

    class Appears(Silent):
        def advance(self, size: int) -> None:
            mine.write_text("mine")

    with pytest.raises(DataError, match="says that Primus made it"):
        run(source, tmp_path / "out", tokenizer, report=Appears())
    assert mine.read_text() == "mine"
    mine.unlink()
    run(source, tmp_path / "out", tokenizer)


def test_a_file_put_beside_unfinished_work_is_kept(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    work = partial_directory(tmp_path / "out")
    work.mkdir()
    (work / "job.json").write_text('"another"')
    (work / "shard-000000.bin").touch()
    (work / "mine.txt").touch()
    run(write_jsonl(tmp_path / "in.jsonl", texts(5)), tmp_path / "out", tokenizer)
    assert sorted(path.name for path in work.iterdir()) == ["lock", "mine.txt"]


CHILD = """
import sys
from pathlib import Path
if __name__ == "__main__":  # what stands outside is imported by every worker too
    sys.path.insert(0, {tests!r})
    from token_data import run
    from primus.data.tokenizer import TokenizerFiles
    run(Path(sys.argv[1]), Path(sys.argv[2]), TokenizerFiles(Path(sys.argv[3])), workers=2, shard_bytes=20_000)
"""


def start_child(tmp_path: Path, source: Path, output: Path, tokenizer: TokenizerFiles) -> subprocess.Popen[bytes]:
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(tests=str(Path(__file__).parents[1] / "support")))
    command = [sys.executable, str(script), str(source), str(output), str(tokenizer.directory)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, env=importing())


def test_killed_anywhere_and_run_again_the_bytes_are_the_same(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(3_000))
    whole = run(source, tmp_path / "whole", tokenizer, shard_bytes=20_000)
    output = tmp_path / "out"
    work = partial_directory(output)
    kills = 0
    for wanted in (3, 30):
        child = start_child(tmp_path, source, output, tokenizer)
        while child.poll() is None and len(list(work.glob("shard-*.json"))) < wanted:
            time.sleep(0.002)
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.wait()
        if not idx_path(output).exists():
            assert not bin_path(output).exists()
            assert not manifest_path(output).exists()
    assert kills >= 1
    notes = Notes()
    outcome = run(source, output, tokenizer, shard_bytes=20_000, report=notes)
    assert digest_of(output) == digest_of(whole.prefix)
    assert outcome.manifest.digest == whole.manifest.digest
    assert outcome.manifest.sources == whole.manifest.sources
    assert outcome.manifest.documents == 3_000
    assert not work.exists()
    assert outcome.already or "going on with the unfinished work of an earlier call" in notes.lines


@pytest.mark.parametrize("moved", [1, 2, 3])
def test_killed_between_the_final_names(
    tmp_path: Path, tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """Every place at which naming the files can stop."""
    source = write_jsonl(tmp_path / "in.jsonl", texts(50))
    whole = run(source, tmp_path / "whole", tokenizer)
    calls, replace = 0, Path.replace

    def dies(self: Path, target: Path) -> Path:
        nonlocal calls
        if target.name.startswith("out."):
            calls += 1
            if calls > moved:
                raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", tokenizer)
    monkeypatch.undo()
    assert not idx_path(tmp_path / "out").exists()
    with pytest.raises(DataError, match="was made from other inputs or with other options"):
        run(source, tmp_path / "out", tokenizer, eod="none")
    run(source, tmp_path / "out", tokenizer)
    assert digest_of(tmp_path / "out") == digest_of(whole.prefix)
    assert Inspection(tmp_path / "out").verify() == []
    assert not partial_directory(tmp_path / "out").exists()


def stop_at(source: Path, output: Path, tokenizer: TokenizerFiles, *, shards: int) -> None:
    """Interrupt a preparation as soon as so many finished shards wait to be merged."""

    class Stops(Silent):
        def advance(self, size: int) -> None:
            if len(list(partial_directory(output).glob("shard-*.json"))) >= shards:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, output, tokenizer, shard_bytes=5000, report=Stops())


def test_lost_shards_or_tokens_are_made_again(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    """What a crash of the machine can do to files that were written but never reached the disk."""
    source = write_jsonl(tmp_path / "in.jsonl", texts(400))
    whole = run(source, tmp_path / "whole", tokenizer, shard_bytes=5000)
    output = tmp_path / "out"

    stop_at(source, output, tokenizer, shards=5)
    tokens = partial_directory(output) / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:100])
    run(source, output, tokenizer, shard_bytes=5000)
    assert digest_of(output) == digest_of(whole.prefix)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'"x"'])
@pytest.mark.parametrize("name", ["job.json", "ready", "state.json", "shard-000001.json", "slow-encoder.json"])
def test_damaged_notes_about_unfinished_work_do_not_block(
    tmp_path: Path, tokenizer: TokenizerFiles, name: str, content: bytes
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(60))
    output = tmp_path / "out"
    whole = run(source, tmp_path / "whole", tokenizer, shard_bytes=5000)

    stop_at(source, output, tokenizer, shards=3)
    (partial_directory(output) / name).write_bytes(content)
    run(source, output, tokenizer, shard_bytes=5000)
    assert digest_of(output) == digest_of(whole.prefix)


@pytest.mark.parametrize("kind", ["bin", "lengths"])
def test_a_shard_cut_short_is_encoded_again(tmp_path: Path, tokenizer: TokenizerFiles, kind: str) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(60))
    output = tmp_path / "out"
    whole = run(source, tmp_path / "whole", tokenizer, shard_bytes=5000)

    stop_at(source, output, tokenizer, shards=1)
    (partial_directory(output) / "state.json").unlink(missing_ok=True)
    (partial_directory(output) / f"shard-000000.{kind}").write_bytes(b"")
    run(source, output, tokenizer, shard_bytes=5000)
    assert digest_of(output) == digest_of(whole.prefix)


def test_changed_inputs_discard_unfinished_work(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(400))
    output = tmp_path / "out"

    stop_at(source, output, tokenizer, shards=1)
    documents = texts(100, seed=9)
    write_jsonl(source, documents)
    run(source, output, tokenizer, shard_bytes=5000)
    assert read(output) == expected(documents, tokenizer)


def test_two_at_once_to_the_same_place_is_refused(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(3_000))
    output = tmp_path / "out"
    child = start_child(tmp_path, source, output, tokenizer)
    try:
        while not list(partial_directory(output).glob("shard-*.json")):
            assert child.poll() is None
            time.sleep(0.002)
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(DataError, match=rf"is being prepared by another process \(pid {child.pid} on "):
            run(source, output, tokenizer)
        os.kill(child.pid, signal.SIGCONT)
        assert child.wait(timeout=60) == 0
    finally:
        child.kill()
        child.wait()
    assert IndexedDataset(output).header.documents == 3_000


def test_a_worker_that_dies_is_reported_and_its_work_done_again(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(3000))
    output = tmp_path / "out"

    class KillsOne(Silent):
        def advance(self, size: int) -> None:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            if size > 0 and workers:
                os.kill(int(workers[0]), signal.SIGKILL)

    with pytest.raises(DataError, match=r"an encoding process ended early \(killed by SIGKILL\)"):
        run(source, output, tokenizer, workers=2, shard_bytes=5000, report=KillsOne())
    assert not idx_path(output).exists()
    run(source, output, tokenizer, workers=2, shard_bytes=5000)
    assert IndexedDataset(output).header.documents == 3000
