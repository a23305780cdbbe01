"""Small datasets made by hand, text to prepare, and what preparing must give."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from primus.data.format import bin_path, idx_path
from primus.data.indexed import IndexedDataset
from primus.data.inputs import collect
from primus.data.prepare import Outcome, Request, prepare
from primus.data.progress import Silent
from primus.data.tokenizer import TokenizerFiles
from primus.plan.plan import Plan

CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float64": 6, "float32": 7, "uint16": 8}
TEXT = """The quick brown fox jumps over the lazy dog. It's 1984, isn't it?
def permute(x):
    return (x * 5 + 1) % 16   # naïve – “quoted” … 你好 🎉
Numbers: 3.14159, 0xDEADBEEF, 1_000_000.
"""

Make = Callable[..., Path]
MakePlan = Callable[..., Plan]


def write_by_hand(prefix: Path, documents: Sequence[Sequence[Sequence[int]]], dtype: str = "uint16") -> Path:
    """Megatron's layout written from its description: documents of sequences of tokens."""
    sequences = [sequence for document in documents for sequence in document]
    lengths = [len(sequence) for sequence in sequences]
    tokens = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences]).astype(dtype)
    width = tokens.dtype.itemsize
    pointers = [sum(lengths[:number]) * width for number in range(len(lengths))]
    ends = np.cumsum([0, *(len(document) for document in documents)])
    prefix.with_name(prefix.name + ".bin").write_bytes(tokens.tobytes())
    prefix.with_name(prefix.name + ".idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, CODES[dtype], len(sequences), len(ends))
        + struct.pack(f"<{len(lengths)}i", *lengths)
        + struct.pack(f"<{len(pointers)}q", *pointers)
        + struct.pack(f"<{len(ends)}q", *ends)
    )
    return prefix


WORDS = TEXT.split(" ")


def importing() -> dict[str, str]:
    """The environment in which another interpreter imports what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def texts(count: int, seed: int = 0) -> list[str]:
    """Documents of 1 to 80 words, some with odd characters."""
    rng = np.random.default_rng(seed)
    return [
        "w " + " ".join(rng.choice(WORDS, rng.integers(1, 80))) + rng.choice(["", "\n", " é\u0301🎉"])
        for _ in range(count)
    ]


def write_jsonl(path: Path, documents: Sequence[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({field: text, "n": n}) + "\n" for n, text in enumerate(documents)))
    return path


def run(path: Path | Sequence[Path], output: Path, tokenizer: TokenizerFiles | None, **options: object) -> Outcome:
    split, pattern = options.pop("split", None), options.pop("pattern", None)
    report = options.pop("report", Silent())
    paths = [path] if isinstance(path, Path) else path
    inputs = collect([str(entry) for entry in paths], pattern=pattern, split=split)  # type: ignore[arg-type]
    return prepare(Request(inputs, output, tokenizer, **options), report)  # type: ignore[arg-type]


def read(prefix: Path | str) -> list[list[int]]:
    dataset = IndexedDataset(prefix)
    return [dataset.document(number).tolist() for number in range(len(dataset))]


def expected(documents: Sequence[str], tokenizer: TokenizerFiles) -> list[list[int]]:
    """The ids by the reference library, one end-of-document token each, empty documents left out."""
    reference = Tokenizer.from_file(str(tokenizer.path))
    ids = [reference.encode(text, add_special_tokens=False).ids for text in documents]
    return [[*row, tokenizer.eod_id()] for row in ids if row]


def digest_of(prefix: Path | str) -> tuple[bytes, bytes]:
    return bin_path(prefix).read_bytes(), idx_path(prefix).read_bytes()
