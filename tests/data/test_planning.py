"""What the plan carries of the data, and every problem with it at once."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from token_data import TEXT, Make, importing

from primus.config.experiment import Data, DataSource
from primus.data.format import bin_path
from primus.data.inputs import collect
from primus.data.manifest import manifest_path
from primus.data.planning import plan_data
from primus.data.prepare import Request, prepare
from primus.data.progress import Silent
from primus.data.tokenizer import TokenizerFiles
from primus.data.train_bpe import train_bpe
from primus.errors import DataError


def prepared(
    tmp_path: Path, name: str, tokenizer: TokenizerFiles, text: str = TEXT * 20, eod: str | None = None
) -> Path:
    source = tmp_path / f"{name}.txt"
    source.write_text(text)
    inputs = collect([str(source)], pattern=None, split=None)
    request = Request(inputs, tmp_path / name, tokenizer, unit="line", eod=eod)
    return Path(prepare(request, Silent()).prefix)


def problems(data: Data, seq_length: int = 8, vocab_size: int = 1000) -> list[str]:
    with pytest.raises(DataError) as raised:
        plan_data(data, seq_length=seq_length, vocab_size=vocab_size)
    return [str(problem) for problem in raised.value.problems]


def test_a_prepared_dataset_is_planned_with_its_own_tokenizer(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    prefix = prepared(tmp_path, "a", tokenizer)
    planned = plan_data(Data(train=str(prefix), validation=0.1), seq_length=8, vocab_size=350)
    manifest = json.loads(manifest_path(prefix).read_text())
    source = planned.sources[0]
    assert (source.prefix, source.share, source.digest) == (str(prefix), 4096, manifest["digest"])
    assert (source.tokens, source.documents, source.dtype) == (manifest["tokens"], 80, "uint16")
    assert planned.tokenizer == f"{prefix}.tokenizer"
    assert planned.tokenizer_hash == tokenizer.hash
    assert planned.eod_id == tokenizer.token_id("<|endoftext|>")


def test_order_digest_follows_content_shares_and_split_but_not_places(
    tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    a = prepared(tmp_path, "a", tokenizer)
    (tmp_path / "sub").mkdir()
    b = prepared(tmp_path / "sub", "b", tokenizer)
    c = prepared(tmp_path, "c", tokenizer, TEXT * 21)

    def digest(data: Data) -> str:
        return plan_data(data, seq_length=8, vocab_size=350).digest

    base = digest(Data(train=str(a)))
    assert digest(Data(train=str(b))) == base
    assert digest(Data(train=str(a), mask_eod=True, document_attention="within")) == base
    different = [
        Data(train=str(c)),
        Data(train=str(a), validation=0.1),
        Data(train=[str(a), str(c)]),
        Data(train=[str(a), DataSource(path=str(c), weight=2.0)]),
    ]
    assert len({base, *map(digest, different)}) == 5


def test_a_dataset_made_elsewhere_needs_no_manifest(make_dataset: Make) -> None:
    one = plan_data(Data(train=str(make_dataset("d", [[1, 2, 3] * 20]))), seq_length=8, vocab_size=10)
    assert (one.tokenizer, one.eod_id) == (None, None)
    other = plan_data(Data(train=str(make_dataset("d", [[1, 2, 4] * 20]))), seq_length=8, vocab_size=10)
    assert one.sources[0].digest != other.sources[0].digest


def test_every_problem_is_reported_at_once(tmp_path: Path, make_dataset: Make, tokenizer: TokenizerFiles) -> None:
    good, short = prepared(tmp_path, "good", tokenizer), make_dataset("short", [[1, 2, 3]])
    torn = make_dataset("torn", [[1] * 50])
    bin_path(torn).write_bytes(b"\1" * 60)
    found = problems(Data(train=[str(good), str(short), str(torn), "gone", "synthetic"]), vocab_size=300)
    assert len(found) == 5
    assert any("torn.bin: is truncated: 60 bytes where the index ends at 100" in problem for problem in found)
    assert any("gone.idx: does not exist" in problem for problem in found)
    assert any("synthetic tokens cannot be part of a mixture" in problem for problem in found)
    assert any(
        "short: has 3 tokens for training, fewer than one window of train.seq_length + 1 = 9" in problem
        for problem in found
    )
    assert any(re.search(r"holds token id 3\d\d, outside the model's vocabulary of 300", line) for line in found)


@pytest.mark.parametrize("name", ["~nosuchuser/x", "n" * 300, "with\0nul"])
def test_names_that_no_file_system_takes(name: str) -> None:
    (found,) = problems(Data(train=name, validation=0.1))
    assert re.search(r"does not exist|cannot be read: (File name too long|embedded null byte)", found)


def test_too_little_is_left_for_a_part(make_dataset: Make) -> None:
    prefix = make_dataset("d", [[1] * 10] * 10)
    assert problems(Data(train=str(prefix), validation=0.1), seq_length=12) == [
        f"{prefix}: has 10 tokens for validation after data.validation=0.1 is held out, fewer than one window of "
        "train.seq_length + 1 = 13 (give more text or a smaller train.seq_length)"
    ]
    assert "has 10 tokens for training" in problems(Data(train=str(prefix), validation=0.9), seq_length=12)[0]
    assert "no document starts in the last 0.01" in problems(Data(train=str(prefix), validation=0.01))[0]


def test_another_tokenizer_is_refused(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    train_bpe([TEXT[::-1]], 300, tmp_path / "other")
    other = TokenizerFiles(tmp_path / "other")
    a, b = prepared(tmp_path, "a", tokenizer), prepared(tmp_path, "b", other)
    assert "b: was made with another tokenizer" in problems(Data(train=[str(a), str(b)]))[0]
    found = problems(Data(train=str(a), tokenizer=str(other.directory)))
    assert found[0].startswith(f"{a}: was made with another tokenizer ({tokenizer.directory}, 350 ids)")
    assert "b: was made with another tokenizer" in problems(Data(train=str(a), validation=str(b)))[0]


def test_the_same_tokenizer_written_differently_is_the_same(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    """Indentation, key order, and merges as pairs instead of strings change nothing."""
    prefix = prepared(tmp_path, "a", tokenizer)
    content = json.loads(tokenizer.path.read_text())
    merges = content["model"]["merges"]
    content["model"]["merges"] = [" ".join(pair) if isinstance(pair, list) else pair.split(" ") for pair in merges]
    content["truncation"] = {"max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "tokenizer.json").write_text(json.dumps(content, indent=4, sort_keys=True))
    planned = plan_data(Data(train=str(prefix), tokenizer=str(copy)), seq_length=8, vocab_size=350)
    assert planned.tokenizer == str(copy)
    assert planned.tokenizer_hash == tokenizer.hash
    content["model"]["merges"].pop()
    (copy / "tokenizer.json").write_text(json.dumps(content))
    assert "was made with another tokenizer" in problems(Data(train=str(prefix), tokenizer=str(copy)))[0]


def test_a_dataset_is_used_once(tmp_path: Path, make_dataset: Make, tokenizer: TokenizerFiles) -> None:
    """By content where there are manifests, whatever the place; else by place."""
    (tmp_path / "sub").mkdir()
    a, copy = prepared(tmp_path, "a", tokenizer), prepared(tmp_path / "sub", "a", tokenizer)
    other = prepared(tmp_path, "other", tokenizer, TEXT * 30)
    assert problems(Data(train=[str(a), str(other), str(copy), str(a)])) == [
        f"data.train[{number}]: the same dataset as data.train[0] (give data.train[0] a weight instead, "
        "and leave this one out)"
        for number in (2, 3)
    ]
    assert problems(Data(train=[str(other), str(a)], validation=str(copy))) == [
        "data.validation: the same dataset as data.train[1], but what a run is validated on must never be trained on "
        "(give a fraction of the training data to hold out, such as 0.01, or another dataset)"
    ]
    foreign = make_dataset("d", [[1] * 50])
    (tmp_path / "link").symlink_to(tmp_path)
    assert len(problems(Data(train=str(foreign), validation=str(tmp_path / "link" / "d")))) == 1
    make_dataset("e", [[1] * 50])
    planned = plan_data(Data(train=str(foreign), validation=str(tmp_path / "e")), seq_length=8, vocab_size=10)
    assert len(planned.validation_sources) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "'empty' has no tokenizer.json"),
        ("nowhere", "'nowhere' is neither a directory nor a Hub id"),
        ("org/name@v1", "the tokenizer of 'org/name@v1' has not been fetched from the Hub yet (there is no file or"),
        ("empty/tok", "'empty/tok' is neither a directory nor a Hub id ('empty' is a directory here and has no such"),
        ("broken", "broken/tokenizer.json: is not valid JSON"),
        ("list", "list/tokenizer.json: is not a tokenizer.json: it has no `model`"),
    ],
)
def test_tokenizers_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: TokenizerFiles, name: str, message: str
) -> None:
    prefix = prepared(tmp_path, "a", tokenizer)
    monkeypatch.chdir(tmp_path)
    for directory, content in (("empty", None), ("broken", "{"), ("list", "[]")):
        Path(directory).mkdir()
        if content:
            Path(directory, "tokenizer.json").write_text(content)
    assert message in problems(Data(train=str(prefix), tokenizer=name))[0]


def test_masking_needs_a_known_end_of_document(tmp_path: Path, make_dataset: Make, tokenizer: TokenizerFiles) -> None:
    foreign = make_dataset("d", [[1] * 50])
    assert "no end-of-document token is known" in problems(Data(train=str(foreign), mask_eod=True))[0]
    named = Data(train=str(foreign), mask_eod=True, tokenizer=str(tokenizer.directory))
    assert plan_data(named, seq_length=8, vocab_size=350).eod_id == tokenizer.eod_id()
    a, b = prepared(tmp_path, "a", tokenizer), prepared(tmp_path, "b", tokenizer, eod="none")
    assert "end documents differently" in problems(Data(train=[str(a), str(b)], mask_eod=True))[0]


def test_a_manifest_must_describe_its_files(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    a, b = prepared(tmp_path, "a", tokenizer), prepared(tmp_path, "b", tokenizer, TEXT * 30)
    shutil.copy(manifest_path(b), manifest_path(a))
    assert "a.json: describes another dataset: tokens is" in problems(Data(train=str(a)))[0]
    manifest_path(a).write_text('{"name": "something else"}')
    assert "is not the manifest of a dataset: format is None" in problems(Data(train=str(a)))[0]
    manifest_path(a).write_text("{")
    assert "a.json: is not valid JSON" in problems(Data(train=str(a)))[0]
    damaged = json.loads(manifest_path(b).read_text())
    damaged["tokens"] = "many"
    manifest_path(a).write_text(json.dumps(damaged))
    assert "a.json: is damaged at 'tokens'" in problems(Data(train=str(a)))[0]


def test_the_embedded_corpus_says_how_it_is_prepared() -> None:
    found = problems(Data(train="stdlib"))
    assert found == [
        "data.train: the embedded corpus has not been prepared yet on this machine (primus-cli data prepare --stdlib)"
    ]


def test_synthetic_has_no_sources_and_no_documents() -> None:
    planned = plan_data(Data(train="synthetic", validation=0.1), seq_length=8, vocab_size=10)
    assert (planned.kind, planned.sources, planned.validation_fraction) == ("synthetic", (), 0.1)
    assert "no documents" in problems(Data(train="synthetic", document_attention="within"))[0]


def test_planning_needs_no_heavy_package(make_dataset: Make) -> None:
    """numpy, torch and the tokenizer libraries are not in the launcher environment."""
    prefix = make_dataset("d", [[1] * 50])
    code = f"""
import sys
from primus.config.experiment import Data
from primus.data.planning import plan_data
from primus.data import hub, stdlib
plan_data(Data(train={str(prefix)!r}), seq_length=8, vocab_size=10)
heavy = {{"numpy", "torch", "tokenizers", "gigatoken", "pyarrow", "orjson", "huggingface_hub"}}
print(*heavy & sys.modules.keys())
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=importing())
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "\n", "")
