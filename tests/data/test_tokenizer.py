"""Tokenizers that are named wrongly, or whose file is damaged or foreign."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from token_data import TEXT, run, texts, write_jsonl

from primus.cli import data_inspect
from primus.data.inspect import Inspection
from primus.data.tokenizer import TokenizerFiles, find_tokenizer
from primus.data.train_bpe import train_bpe
from primus.errors import DataError


@pytest.mark.parametrize("name", ["~nosuchuser/x", "n" * 300, "org/" + "n" * 300, "with\0nul", "tk/" + "n" * 300])
def test_names_that_no_file_system_takes(name: str) -> None:
    with pytest.raises(DataError, match=r"is neither a directory nor a Hub id|has not been fetched"):
        find_tokenizer(name, "data.tokenizer")


def test_a_tokenizer_json_that_is_a_directory_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "tk" / "tokenizer.json").mkdir(parents=True)
    with pytest.raises(DataError, match=r"tk' has a tokenizer\.json that is not a file"):
        find_tokenizer(str(tmp_path / "tk"), "--tokenizer")
    (tmp_path / "tk" / "tokenizer.json").rename(tmp_path / "tk" / "tokenizer.model")
    with pytest.raises(DataError, match=r"tk' has no tokenizer\.json \(it has tokenizer\.model\)"):
        find_tokenizer(str(tmp_path / "tk"), "--tokenizer")


def change(content: dict[str, Any], part: str, value: Any) -> None:
    (content if part == "added_tokens" else content["model"])[part] = value


@pytest.mark.parametrize(
    ("part", "value", "cause"),
    [
        ("added_tokens", 5, "'int' object is not iterable"),
        ("added_tokens", [5], "'int' object is not subscriptable"),
        ("added_tokens", [{"content": "x"}], "it lacks 'id'"),
        ("added_tokens", [{"content": "x", "id": "abc"}], "the id of token 'x' is 'abc', not a number"),
        ("added_tokens", {"x": 1}, "string indices must be integers"),
        ("vocab", 5, "`vocab` is neither a map nor a list"),
        ("vocab", "abc", "`vocab` is neither a map nor a list"),
        ("vocab", [5], "cannot unpack non-iterable int object"),
        ("vocab", [["a"]], "not enough values to unpack"),
        ("vocab", {"a": "x"}, "the id of token 'a' is 'x', not a number"),
        ("vocab", {"a": 1, "b": "x"}, ""),
        ("vocab", {"\ud800": 1}, "surrogates not allowed"),
        ("merges", 5, "'int' object is not iterable"),
        ("merges", [5], "can only join an iterable"),
        ("merges", [[1, 2]], "expected str instance, int found"),
    ],
)
def test_a_foreign_or_damaged_file_is_refused(
    tmp_path: Path, tokenizer: TokenizerFiles, part: str, value: Any, cause: str
) -> None:
    content = json.loads(tokenizer.path.read_bytes())
    change(content, part, value)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"tokenizer\.json: is not a tokenizer\.json that can be read: .*\(fetch or"
    ) as e:
        TokenizerFiles(tmp_path).eod_token()
    assert cause in str(e.value)


def test_a_file_nested_too_deeply_is_refused(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    (tmp_path / "tokenizer.json").write_text(deep)
    with pytest.raises(DataError, match=r"is not a tokenizer\.json that can be read: maximum recursion depth"):
        TokenizerFiles(tmp_path).token_id("a")
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(deep)
    with pytest.raises(DataError, match=r"tokenizer_config\.json: cannot be read: maximum recursion depth"):
        TokenizerFiles(tmp_path).eod_token()


def test_a_unigram_vocabulary_is_a_list(tmp_path: Path) -> None:
    model = {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.5], ["b", -2.5]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": None}))
    facts = TokenizerFiles(tmp_path).facts
    assert (facts.vocabulary, facts.vocab_size) == ({"<unk>": 0, "a": 1, "b": 2}, 3)


def test_decoding_with_another_tokenizer_is_said(tmp_path: Path, tokenizer: TokenizerFiles) -> None:
    made = run(write_jsonl(tmp_path / "in.jsonl", texts(20)), tmp_path / "out", tokenizer)
    train_bpe([TEXT[::-1]], 300, tmp_path / "other")
    own, prefix = Inspection(Path(made.prefix)), Path(made.prefix)
    other = Inspection(prefix, TokenizerFiles(tmp_path / "other"))
    again = Inspection(prefix, TokenizerFiles(tokenizer.directory))
    for inspection, warned in ((own, False), (again, False), (other, True)):
        console = Console(width=200, file=io.StringIO())
        data_inspect.show(console, inspection, inspection.lengths(), inspection.excerpts(1, None), None)
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert ("other: is not the tokenizer that made the dataset" in shown) == warned
        facts = data_inspect.as_json(inspection, inspection.lengths(), [], None)
        assert len(facts["warnings"]) == len(inspection.verify()) == warned
    assert other.verify()[0].remedy == "leave --tokenizer out"
    Path(f"{prefix}.tokenizer", "tokenizer.json").write_bytes((tmp_path / "other" / "tokenizer.json").read_bytes())
    assert Inspection(prefix).verify()[0].remedy.startswith("copy or prepare the dataset again")
