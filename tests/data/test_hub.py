"""Fetching from a Hub on localhost with the real client."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hub_server import Hub, Repository, serving

from primus.data.hub import fetch_dataset, fetch_model, fetch_tokenizer, fetched, is_hub_id, without_password
from primus.data.inputs import choose_hub_files
from primus.data.tokenizer import TokenizerFiles, find_tokenizer
from primus.errors import DataError


@pytest.fixture
def hub(tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    text = tokenizer.path.read_bytes()
    model = {
        "config.json": b"{}",
        "tokenizer.json": text,
        "model-00001-of-00001.safetensors": b"weights",
        "pytorch_model.bin": b"the same weights, pickled",
        "README.md": b"a card",
    }
    data = {
        "README.md": b"a card",
        "data/train-00000-of-00001.jsonl": b'{"text": "train"}\n',
        "data/test-00000-of-00001.jsonl": b'{"text": "test"}\n',
    }
    repositories = {
        "org/model": Repository(model, branches={"v2": {"config.json": b'{"v": 2}', "tokenizer.json": text + b" "}}),
        "org/gated": Repository(model, gated=True),
        "org/private": Repository(model, private=True),
        "org/data": Repository(data, kind="dataset"),
    }
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    with serving(repositories) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def refused(action: object, *arguments: object) -> str:
    assert callable(action)
    with pytest.raises(DataError) as raised:
        action(*arguments)
    assert len(raised.value.problems) == 1
    return str(raised.value)


def files_in(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def test_a_model_comes_as_safetensors_with_its_tokenizer(hub: Hub, tmp_path: Path) -> None:
    assert fetched("org/model", "model") is None
    directory = fetch_model("org/model")
    assert files_in(directory) == ["config.json", "model-00001-of-00001.safetensors", "tokenizer.json"]
    assert (directory / "model-00001-of-00001.safetensors").read_bytes() == b"weights"
    assert directory.is_relative_to(tmp_path / "home" / "hub")
    assert directory.name == Repository.commit(hub.repositories["org/model"].files)
    assert fetched("org/model", "model") == directory
    assert fetched("org/model", "tokenizer") is None
    assert find_tokenizer("org/model", "x").directory == directory
    hub.requests.clear()
    assert fetch_model("org/model") == directory
    assert not any("resolve" in request for request in hub.requests), "nothing is downloaded twice"


def test_revisions_are_pinned_to_their_commit(hub: Hub) -> None:
    first = fetch_tokenizer("org/model")
    second = fetch_tokenizer("org/model@v2")
    assert first != second
    assert fetch_tokenizer(f"org/model@{first.name}") == first
    hub.repositories["org/model"].files["tokenizer.json"] += b"  "
    moved = fetch_tokenizer("org/model")
    assert moved not in {first, second}
    assert fetched("org/model", "tokenizer") == moved
    assert fetched(f"org/model@{first.name}", "tokenizer") == first
    assert "has no revision 'v3'" in refused(fetch_tokenizer, "org/model@v3")


def test_only_the_files_of_one_split_are_fetched(hub: Hub) -> None:
    everything = partial(choose_hub_files, "org/data", pattern=None, split=None)
    assert files_in(fetch_dataset("org/data", everything)) == ["data/train-00000-of-00001.jsonl"]
    choose = partial(choose_hub_files, "org/data", pattern=None, split="nope")
    assert "has no files of split 'nope' (splits: test, train)" in refused(fetch_dataset, "org/data", choose)


def test_a_name_that_does_not_exist(hub: Hub) -> None:
    message = refused(fetch_tokenizer, "org/nothing")
    assert message.startswith(f"org/nothing: there is no such model on {hub.url}, or it is private and no token is set")
    assert "no token is set (there is no file or directory of that name here) (check the spelling, a Hub id" in message
    assert "a Hub id is written org/name or org/name@revision; is it a dataset?" in message
    assert "there is no such model" in refused(fetch_model, "org/data")
    assert "'gpt2' is not a Hub id" in refused(fetch_model, "gpt2")


def test_gated_and_private_need_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(fetch_tokenizer, "org/gated")
    assert "access to this model is restricted, and no token is set" in message
    assert f"ask for access at {hub.url}/org/gated and set HF_TOKEN" in message
    assert "or it is private and no token is set" in refused(fetch_tokenizer, "org/private")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the token in use may not read it" in refused(fetch_tokenizer, "org/gated")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert (fetch_tokenizer("org/gated") / "tokenizer.json").is_file()
    assert (fetch_tokenizer("org/private") / "tokenizer.json").is_file()


def test_what_the_repository_lacks(hub: Hub) -> None:
    del hub.repositories["org/model"].files["tokenizer.json"]
    message = refused(fetch_tokenizer, "org/model")
    assert message.startswith("org/model: has no tokenizer.json (it has README.md, config.json, model-0")
    del hub.repositories["org/model"].files["model-00001-of-00001.safetensors"]
    assert "has no *.safetensors (it has README.md, config.json, pytorch_model.bin)" in refused(
        fetch_model, "org/model"
    )


@pytest.mark.parametrize(("status", "words"), [(500, "answered 500"), (429, "answered 429"), (401, "answered 401")])
def test_a_hub_in_trouble(hub: Hub, status: int, words: str) -> None:
    hub.fail = status
    assert words in refused(fetch_tokenizer, "org/model")


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    message = refused(fetch_tokenizer, "org/model")
    assert f"http://127.0.0.1:{port} cannot be reached" in message
    assert "(there is no file or directory of that name here)" in message
    assert "check the network, or HF_ENDPOINT" in message


SHA = "a" * 40


@pytest.mark.parametrize(
    "answer",
    [
        "<html>log in</html>",
        "",
        "{}",
        "[]",
        "null",
        "5",
        '{"id": "org/model"}',
        '{"id": "org/model", "sha": "../..", "siblings": [{"rfilename": "tokenizer.json"}]}',
        f'{{"id": "org/model", "sha": "{SHA}", "siblings": [5]}}',
        f'{{"id": "org/model", "sha": "{SHA}", "siblings": [{{"rfilename": 5}}]}}',
        f'{{"id": "org/model", "sha": "{SHA}", "siblings": [{{"rfilename": "tokenizer.json"}}]}}',
    ],
)
def test_something_else_answers(hub: Hub, answer: str) -> None:
    hub.portal = answer.encode()
    assert refused(fetch_tokenizer, "org/model") == (
        f"org/model: {hub.url} did not answer as a Hub does (check HF_ENDPOINT, a proxy or a login page)"
    )


@pytest.mark.parametrize(
    "endpoint", ["http://[::1", "huggingface.co", "ftp://x", "http://", "http://x:port", "http://ä.."]
)
def test_an_endpoint_that_is_no_address(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert f"HF_ENDPOINT: '{endpoint}' is not a web address" in refused(fetch_tokenizer, "org/model")


@pytest.mark.parametrize("token", ["hf_SECRET\u00e4bc", "hf_SECRET\udcff"])
def test_a_token_that_cannot_be_sent_is_not_shown(hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(DataError, match="HF_TOKEN holds a character that no token has") as raised:
        fetch_tokenizer("org/model")
    assert "SECRET" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("name", ["org/" + "n" * 300, "org/a--b", "org/a.git"])
def test_names_the_hub_does_not_allow(hub: Hub, name: str) -> None:
    assert f"{name}: is not a Hub id: " in refused(fetch_tokenizer, name)


def test_a_misspelt_path_is_no_hub_id(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("org/model")
    (tmp_path / "org").mkdir()
    assert not is_hub_id("org/model")
    assert is_hub_id("org/model@main"), "with a revision no path can be meant"
    fetch_tokenizer("org/model")
    assert is_hub_id("org/model"), "fetched, it exists"
    (tmp_path / "org" / "model").mkdir()
    assert not is_hub_id("org/model")
    assert not is_hub_id("org/" + "n" * 300)


def test_a_password_in_the_address_of_a_mirror_is_not_shown() -> None:
    assert without_password("http://me:secret@mirror:80/hub/x@y") == "http://mirror:80/hub/x@y"
    assert without_password("https://mirror") == "https://mirror"
