"""Finished shards into one file of tokens and one of document lengths."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import xxhash

from primus.data.indexed import sync
from primus.data.manifest import FileFacts
from primus.data.shards import ShardResult, read_result, shard_path
from primus.data.workspace import forget_shards, read_json, write_json

COPY = 1 << 20
LENGTH_BYTES = 4
NOTHING = {"next": 0, "tokens": 0, "lengths": 0}
"""The state before anything is merged: shards, bytes of tokens, bytes of lengths."""


class Merger:
    """Appends finished shards to one file, in order, and removes them. Its state on disk is always behind its files,
    never ahead, so after a crash the files are cut back to it."""

    def __init__(self, directory: Path, token_bytes: int) -> None:
        self._directory, self._token_bytes = directory, token_bytes
        self.tokens, self.lengths = directory / "tokens.bin", directory / "lengths.i32"
        self._hash = xxhash.xxh3_128()
        self._next = 0
        self._buffer = memoryview(bytearray(COPY))

    def __enter__(self) -> Merger:
        state_path = self._directory / "state.json"
        state = read_json(state_path)
        if not isinstance(state, dict) or state.keys() != NOTHING.keys():
            if state_path.exists():  # damaged: what it counted cannot be told any more
                forget_shards(self._directory)
            state = NOTHING
        self._next = state["next"]
        self._files = {"bin": self.tokens.open("a+b"), "lengths": self.lengths.open("a+b")}
        sizes = {kind: os.fstat(file.fileno()).st_size for kind, file in self._files.items()}
        if sizes["bin"] < state["tokens"] or sizes["lengths"] < state["lengths"]:
            # a crash of the machine lost what the state counted on, and the shards are gone: begin anew
            forget_shards(self._directory)
            self.__exit__()
            return self.__enter__()
        self._files["bin"].truncate(state["tokens"])
        self._files["lengths"].truncate(state["lengths"])
        self._files["bin"].seek(0)
        while block := self._files["bin"].read(COPY):
            self._hash.update(block)
        for file in self._files.values():
            file.seek(0, os.SEEK_END)
        return self

    def finished(self, number: int) -> ShardResult | None:
        """The facts of a shard that need not be encoded: it is merged, or its files have the size they should."""
        result = read_result(self._directory, number)
        if result is None or number < self._next:
            return result
        sizes = {"bin": result.tokens * self._token_bytes, "lengths": result.documents * LENGTH_BYTES}
        paths = {kind: shard_path(self._directory, number, kind) for kind in sizes}
        whole = all(path.is_file() and path.stat().st_size == sizes[kind] for kind, path in paths.items())
        return result if whole else None

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def take(self, results: Mapping[int, ShardResult | None]) -> None:
        """Append every shard that is finished and whose turn it is. results: by shard number; None: not finished."""
        while results.get(self._next):
            parts = {kind: shard_path(self._directory, self._next, kind) for kind in self._files}
            for kind, path in parts.items():
                self._append(path, self._files[kind], hashed=kind == "bin")
            self._next += 1
            sizes = {"tokens": self._files["bin"].tell(), "lengths": self._files["lengths"].tell()}
            write_json(self._directory / "state.json", {"next": self._next, **sizes})
            for path in parts.values():
                path.unlink()

    def _append(self, path: Path, target: BinaryIO, *, hashed: bool) -> None:
        with path.open("rb", buffering=0) as source:
            while size := source.readinto(self._buffer):
                block = self._buffer[:size]
                target.write(block)
                if hashed:
                    self._hash.update(block)
        sync(target)

    def facts(self, shards: int) -> FileFacts:
        """Size and hash of all tokens merged, once all `shards` are."""
        if self._next != shards:
            raise RuntimeError(f"only {self._next} of {shards} shards were merged")
        return FileFacts(size=self._files["bin"].tell(), xxh3=self._hash.hexdigest())
