"""Finished shards into one file of tokens and one of document lengths."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import xxhash

from primus.data.indexed import sync
from primus.data.manifest import FileFacts
from primus.data.shards import ShardResult, shard_path
from primus.data.workspace import forget_shards, write_json

COPY = 1 << 20


class Merger:
    """Appends finished shards to one file, in order, and removes them. Its state on disk is always behind its files,
    never ahead, so after a crash the files are cut back to it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.tokens, self.lengths = directory / "tokens.bin", directory / "lengths.i32"
        self._hash = xxhash.xxh3_128()
        self._next = 0
        self._buffer = memoryview(bytearray(COPY))

    def __enter__(self) -> Merger:
        state_path = self._directory / "state.json"
        state = json.loads(state_path.read_bytes()) if state_path.is_file() else {"next": 0, "tokens": 0, "lengths": 0}
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
