"""``primus-cli data`` as a user types it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
from command_line import ROOT, Cli, wait_for
from hub_server import Repository, serving

from primus.data import stdlib

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "then",
    "it",
    "does",
    "so",
    "again",
]


def write_jsonl(path: Path, count: int) -> Path:
    lines = (" ".join(WORDS[(n * k) % len(WORDS)] for k in range(1, 40 + n % 50)) for n in range(count))
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def test_own_data_in_two_commands(cli: Cli, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "my data.jsonl", 300)
    made = cli("data", "prepare", source, "--train-bpe", "300", "-o", tmp_path / "own set")
    assert made.returncode == 0, made.stderr
    assert "training a byte-level BPE of 300 entries" in made.stderr
    first, *rest = made.stdout.splitlines()
    assert first.startswith(f"prepared {tmp_path}/own set in ")
    assert rest[0].startswith("  300 documents, ")
    assert f"  in an experiment file:  data: {{train: {tmp_path}/own set}}" in rest
    assert f"  look into it:           primus-cli data inspect '{tmp_path}/own set'" in rest
    shown = cli("data", "inspect", tmp_path / "own set", "--verify", "--samples", "1")
    assert shown.returncode == 0, shown.stderr
    for fact in ("300", "uint16", "<|endoftext|> = 0", "trained on this text", "verified: hashes, index and id range"):
        assert fact in shown.stdout
    assert "document 0 of 300" in shown.stdout
    again = cli("data", "prepare", source, "--train-bpe", "300", "-o", tmp_path / "own set")
    assert again.returncode == 0
    assert again.stdout.startswith("already prepared: ")


def test_json_for_programs(cli: Cli, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", 50)
    made = cli("data", "prepare", source, "--train-bpe", "260", "-o", "out", "--json")
    facts = json.loads(made.stdout)
    assert facts["prefix"] == str(tmp_path / "out")
    assert (facts["documents"], facts["already"]) == (50, False)
    shown = json.loads(cli("data", "inspect", "out", "--json", "--seq-length", "16", "--samples", "3").stdout)
    assert shown["digest"] == facts["digest"]
    assert [len(sample["ids"]) for sample in shown["samples"]] == [17, 17, 17]
    assert shown["samples"][0]["text"].startswith("the the the")
    assert shown["verified"] is None
    assert sum(count for _, _, count in shown["lengths"]["bins"]) == 50


def test_damage_is_found_by_verify(cli: Cli, tmp_path: Path) -> None:
    cli("data", "prepare", write_jsonl(tmp_path / "in.jsonl", 50), "--train-bpe", "260", "-o", "out")
    tokens = tmp_path / "out.bin"
    content = bytearray(tokens.read_bytes())
    content[101] ^= 0xFF
    tokens.write_bytes(content)
    unread = cli("data", "inspect", "out")
    assert unread.returncode == 0
    found = cli("data", "inspect", "out", "--verify")
    assert found.returncode == 1
    assert "its content is not what was written" in found.stderr
    assert "its ids run from 0 to 65" in found.stderr
    assert json.loads(cli("data", "inspect", "out", "--verify", "--json").stdout)["verified"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare"], "there is nothing to prepare"),
        (["prepare", "in.jsonl", "--train-bpe", "300"], "where the dataset goes is not given"),
        (["prepare", "in.jsonl", "-o", "x"], "no tokenizer is given"),
        (["prepare", "in.jsonl", "-o", "x", "--train-bpe", "300", "--tokenizer", "t"], "two tokenizers are asked for"),
        (["prepare", "in.jsonl", "-o", "x", "--train-bpe", "100"], "a byte-level vocabulary needs at least 257"),
        (["prepare", "in.jsonl", "-o", "x.bin", "--train-bpe", "300"], "is a file name, not a prefix"),
        (["prepare", "in.jsonl", "-o", ".", "--train-bpe", "300"], "is a directory, not a prefix"),
        (["prepare", "in.jsonl", "-o", "x", "--train-bpe", str(10**12)], "a vocabulary of 1000000000000 entries"),
        (["prepare", "in.jsonl", "-o", "~nosuch/x", "--train-bpe", "300"], "there is no user ~nosuch"),
        (["prepare", "", "-o", "", "--train-bpe", "300"], "--output is empty"),
        (["prepare", "", "-o", "x", "--tokenizer", ""], "an input is empty"),
        (["prepare", "in.jsonl", "-o", "x", "--train-bpe", "300", "--eod", ""], "--eod is empty"),
        (["prepare", "in.jsonl", "-o", "x", "--train-bpe", "300", "--field", "\udcff"], "\\udcff is not UTF-8 text"),
        (["prepare", "in.jsonl", "-o", "x", "--train-bpe", "300", "--split", "test"], "--split test has no effect"),
        (["prepare", "in.jsonl", "-o", "x", "--train-bpe", "300", "--document", "line"], "--document has no effect"),
        (["prepare", "--stdlib", "--eod", "none"], "--stdlib has its own inputs"),
        (["prepare", "--stdlib", "-o", "x"], "--stdlib has its own inputs, place and tokenizer"),
        (["prepare", "--stdlib", "--workers", "2"], "--stdlib has its own inputs"),
        (["inspect", "x", "--samples", "-1"], "-1 is not in the range"),
    ],
)
def test_wrong_usage_ends_with_2_and_no_traces(cli: Cli, tmp_path: Path, arguments: list[str], message: str) -> None:
    write_jsonl(tmp_path / "in.jsonl", 5)
    ended = cli("data", *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert message in " ".join(ended.stderr.split())
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "primus") == ["in.jsonl"]


def test_a_misspelt_path_is_not_looked_for_on_the_hub(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for name in ("nowhere/web.jsonl", "nowhere/web.gz", "corpus/web", "~nosuch/web", "a/" + 300 * "b" + ".txt"):
        ended = cli("data", "prepare", name, "-o", "x", "--train-bpe", "300", HF_ENDPOINT="http://127.0.0.1:1")
        assert ended.returncode == 1
        assert f"error: {name}\n  does not exist" in ended.stderr
    piped = f"'{ROOT / 'primus-cli'}' data prepare <(echo) -o x --train-bpe 300"
    ended = subprocess.run(
        ["bash", "-c", piped], cwd=tmp_path, env=cli.env, capture_output=True, text=True, check=False
    )
    assert "is not a regular file" in ended.stderr


def test_a_field_for_text_files_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a")
    ended = cli("data", "prepare", "in.txt", "-o", "x", "--train-bpe", "300", "--field", "body")
    assert (ended.returncode, "--field has no effect" in ended.stderr) == (2, True)


def test_bad_lines_end_with_1_and_their_places(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": \n{"txt": "b"}\n')
    ended = cli("data", "prepare", "in.jsonl", "-o", "x", "--train-bpe", "300")
    assert ended.returncode == 1
    assert "in.jsonl:2" in ended.stderr
    assert "in.jsonl:3" in ended.stderr
    assert "--skip-bad" in ended.stderr
    assert not (tmp_path / "x.idx").exists()
    ended = cli("data", "prepare", "in.jsonl", "-o", "x", "--train-bpe", "300", "--skip-bad")
    assert ended.returncode == 0
    assert "2 bad records left out" in ended.stdout


def test_interrupted_it_goes_on(cli: Cli, tmp_path: Path) -> None:
    """Two files, so that two processes are at work when Ctrl-C comes."""
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", 20_000)
    cli("data", "prepare", write_jsonl(tmp_path / "few.jsonl", 50), "-o", "few", "--train-bpe", "300")
    command = ("data", "prepare", "in", "-o", "out", "--tokenizer", "few.tokenizer", "--workers", "2")
    child = cli.start(*command)
    wait_for(lambda: list((tmp_path / "out.partial").glob("shard-*")) or child.poll() is not None, 100)
    os.killpg(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out.idx").exists()
    ended = cli(*command)
    assert ended.returncode == 0, ended.stderr
    assert "40,000 documents" in ended.stdout


def test_progress_on_a_terminal_is_a_bar(cli: Cli, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", 8_000)
    ours, theirs = pty.openpty()
    command = [str(ROOT / "primus-cli"), "data", "prepare", str(source), "-o", "out", "--train-bpe", "300"]
    child = subprocess.Popen(
        command, cwd=tmp_path, env=cli.environment(TERM="xterm"), stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    try:
        while block := os.read(ours, 65536):
            seen += block
    except OSError:
        pass  # how a pseudo-terminal says that nobody writes any more
    assert child.wait(timeout=60) == 0
    assert b"encoding" in seen
    assert "━".encode() in seen


def test_from_the_hub(cli: Cli, tmp_path: Path) -> None:
    tokenizer = tmp_path / "own.tokenizer"
    cli("data", "prepare", write_jsonl(tmp_path / "in.jsonl", 50), "-o", "own", "--train-bpe", "300")
    repositories = {
        "org/bpe": Repository({"tokenizer.json": (tokenizer / "tokenizer.json").read_bytes()}),
        "org/texts": Repository({"train.jsonl": (tmp_path / "in.jsonl").read_bytes()}, kind="dataset"),
    }
    with serving(repositories) as hub:
        made = cli(
            *("data", "prepare", "org/texts", "--tokenizer", "org/bpe", "-o", "hub", "--json"), HF_ENDPOINT=hub.url
        )
        assert made.returncode == 0, made.stderr
        facts = json.loads(made.stdout)
        commit = Repository.commit(repositories["org/texts"].files)
        assert facts["sources"][0]["path"] == f"org/texts@{commit}"
        assert facts["tokenizer"]["origin"].startswith("org/bpe@")
        fetched = cli("data", "fetch", "org/bpe", "--tokenizer", HF_ENDPOINT=hub.url)
        assert (Path(fetched.stdout.strip()) / "tokenizer.json").is_file()
        missing = cli("data", "fetch", "org/none", HF_ENDPOINT=hub.url)
        assert missing.returncode == 1
        assert "there is no such model" in " ".join(missing.stderr.split())
    assert (tmp_path / "hub.bin").read_bytes() == (tmp_path / "own.bin").read_bytes()


def test_the_embedded_corpus(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one: prepared, found by planning's predicate, and the same wherever its files are read from."""
    monkeypatch.setenv("PRIMUS_HOME", str(tmp_path / "primus"))
    assert not stdlib.is_prepared()
    made = cli("data", "prepare", "--stdlib", "--json")
    assert made.returncode == 0, made.stderr
    assert stdlib.is_prepared()
    facts = json.loads(made.stdout)
    assert facts["prefix"] == str(stdlib.prefix())
    assert facts["max_id"] == stdlib.VOCAB_SIZE - 1
    assert facts["documents"] > 300
    assert facts["tokens"] > 1_500_000
    shown = json.loads(cli("data", "inspect", "stdlib", "--json", "--samples", "20", "--verify").stdout)
    assert shown["verified"] is True
    assert any("import" in sample["text"] for sample in shown["samples"])
    again = cli("data", "prepare", "--stdlib")
    assert again.stdout.startswith("already prepared")


def test_the_corpus_leaves_out_tests_and_other_packages() -> None:
    names = [path.relative_to(stdlib.library_root()).as_posix() for path in stdlib.source_files(stdlib.library_root())]
    assert {"json/decoder.py", "argparse.py", "collections/__init__.py"} <= set(names)
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {"test", "tests", "site-packages", "dist-packages", "idlelib", "__pycache__"}
    assert not [name for name in names if "_sysconfigdata" in name]
