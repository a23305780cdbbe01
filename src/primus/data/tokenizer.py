"""Tokenizer files: where they are, what identifies them, which token ends a document. Standard library only."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import xxhash

from primus.errors import DataError
from primus.home import user_path

COMMON_EOD = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|end▁of▁sentence|>", "<|im_end|>")
COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""Files saved with a tokenizer.json that carry what it lacks: names of the special tokens, the chat template."""
# truncation and padding are settings of a call, post_processor wraps single prompts, version is the file's own
NOT_CONTENT = frozenset({"version", "truncation", "padding", "post_processor", "decoder"})

NOT_AS_EXPECTED = (TypeError, KeyError, ValueError, AttributeError, IndexError, RecursionError)
"""What reading a foreign file raises: anything may be of another type than it is in a tokenizer.json."""


def content_hash(content: dict[str, Any]) -> str:
    """xxh3-128 of what decides the ids in a parsed ``tokenizer.json``.

    Indifferent to formatting, key order, and to whether merges are written as ``"a b"`` or as ``["a", "b"]``.
    """
    kept = {key: value for key, value in content.items() if key not in NOT_CONTENT}
    model = dict(kept["model"])
    state = xxhash.xxh3_128()
    # the two big parts are hashed as flat text: as JSON they would take a second
    if isinstance(vocabulary := model.pop("vocab", None), dict):
        by_id = sorted(vocabulary.items(), key=itemgetter(1, 0))
        state.update("\0".join(token for token, _ in by_id).encode())
        state.update(json.dumps([number for _, number in by_id]).encode())
    else:
        model["vocab"] = vocabulary
    merges = model.pop("merges", None) or []
    state.update("\0".join(merge if isinstance(merge, str) else " ".join(merge) for merge in merges).encode())
    state.update(json.dumps({**kept, "model": model}, sort_keys=True, ensure_ascii=False).encode())
    return state.hexdigest()


def _vocabulary(model: dict[str, Any]) -> dict[str, Any]:
    """token -> id. Unigram models list tokens with their scores, in the order of the ids."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        return {str(token): number for number, (token, _) in enumerate(vocabulary)}
    if vocabulary is not None and not isinstance(vocabulary, dict):
        raise TypeError("`vocab` is neither a map nor a list")
    return vocabulary or {}


def _ids(vocabulary: dict[str, Any]) -> dict[str, int]:
    for token, number in vocabulary.items():
        if type(number) is not int:
            raise TypeError(f"the id of token {token!r} is {number!r}, not a number")
    return vocabulary


@dataclass(frozen=True)
class Facts:
    """vocabulary, added: token -> id."""

    hash: str
    vocabulary: dict[str, int]
    added: dict[str, int]

    @property
    def vocab_size(self) -> int:
        """Largest id + 1, added tokens included."""
        return max((*self.vocabulary.values(), *self.added.values()), default=-1) + 1


class TokenizerFiles:
    """A directory with ``tokenizer.json`` and perhaps its companions.

    name: what to call it, default its path. known: (file hash, content hash) of a manifest; saves parsing a large file
    when its bytes are still the same.
    """

    def __init__(self, directory: Path, name: str = "", known: tuple[str, str] | None = None) -> None:
        self.directory = directory
        self.name = name or str(directory)
        self._known = known

    @property
    def path(self) -> Path:
        return self.directory / "tokenizer.json"

    def read(self) -> bytes:
        """The file's bytes. Raises DataError."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", where=str(self.path)) from error

    @cached_property
    def file_hash(self) -> str:
        """xxh3-128 of the file."""
        return xxhash.xxh3_128_hexdigest(self.read())

    @cached_property
    def facts(self) -> Facts:
        """What the file says, parsed once. Raises DataError when it is not a tokenizer."""
        try:
            content = json.loads(self.read())
        except ValueError as error:
            raise DataError(
                f"is not valid JSON: {error}", where=str(self.path), remedy="fetch or save it again"
            ) from error
        except RecursionError as error:
            raise self._unreadable(error) from error
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            raise DataError("is not a tokenizer.json: it has no `model`", where=str(self.path))
        try:
            added = {str(token["content"]): token["id"] for token in content.get("added_tokens") or ()}
            return Facts(content_hash(content), _ids(_vocabulary(content["model"])), _ids(added))
        except NOT_AS_EXPECTED as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> DataError:
        cause = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        return DataError(
            f"is not a tokenizer.json that can be read: {cause}", where=str(self.path), remedy="fetch or save it again"
        )

    @property
    def hash(self) -> str:
        """What identifies the tokenizer, see ``content_hash``."""
        if self._known and self.file_hash == self._known[0]:
            return self._known[1]
        return self.facts.hash

    def matches(self, file_hash: str, content: str) -> bool:
        """Whether this is the tokenizer with these hashes."""
        return self.file_hash == file_hash or self.hash == content

    def token_id(self, token: str) -> int | None:
        """Id of a token, None when there is no such token."""
        return self.facts.added.get(token, self.facts.vocabulary.get(token))

    def eod_token(self) -> str | None:
        """The token that ends a document: the configured end of sequence, else the first usual name that exists."""
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            configured = _read_object(self.directory / name).get("eos_token")
            token = configured.get("content") if isinstance(configured, dict) else configured
            if isinstance(token, str) and self.token_id(token) is not None:
                return token
        return next((token for token in COMMON_EOD if self.token_id(token) is not None), None)

    def eod_id(self) -> int | None:
        token = self.eod_token()
        return self.token_id(token) if token is not None else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path)) from error
    return content if isinstance(content, dict) else {}


def _lacks_tokenizer(name: str, directory: Path) -> str:
    try:
        others = sorted(entry for entry in os.listdir(directory) if "token" in entry)
    except OSError as error:
        return f"'{name}' cannot be read: {error.strerror}"
    if "tokenizer.json" in others:
        return f"'{name}' has a tokenizer.json that is not a file"
    return f"'{name}' has no tokenizer.json" + (f" (it has {', '.join(others)})" if others else "")


def find_tokenizer(name: str, where: str) -> TokenizerFiles:
    """The tokenizer called `name`: a directory with ``tokenizer.json``, that file itself, or a Hub id already fetched.

    where: what to point at in an error. Raises DataError.
    """
    path = user_path(name).absolute()
    # not the methods of Path, which raise for names that are too long
    if os.path.isfile(path) and path.name == "tokenizer.json":
        path = path.parent
    if os.path.isdir(path):
        if not os.path.isfile(path / "tokenizer.json"):
            raise DataError(
                _lacks_tokenizer(name, path),
                where=where,
                remedy="save the tokenizer as a fast one: AutoTokenizer.from_pretrained(...).save_pretrained(...)",
            )
        return TokenizerFiles(path)
    from primus.data.hub import fetched, is_hub_id, not_here

    if is_hub_id(name):
        found = fetched(name, "tokenizer") or fetched(name, "model")
        if found is None:
            raise DataError(
                f"the tokenizer of '{name}' has not been fetched from the Hub yet{not_here(name)}",
                where=where,
                remedy=f"primus-cli data fetch {name} --tokenizer",
            )
        return TokenizerFiles(found, name)
    parent = os.path.dirname(name)
    raise DataError(
        f"'{name}' is neither a directory nor a Hub id"
        + (f" ('{parent}' is a directory here and has no such entry)" if parent and os.path.isdir(parent) else ""),
        where=where,
        remedy="give a directory with tokenizer.json, or a Hub id such as org/name or org/name@revision",
    )
