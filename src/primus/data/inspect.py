"""Looking into a token dataset: what is in it, whether it is whole, what it says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from primus.data.encoder import Reference, load_reference
from primus.data.format import bin_path, damaged_document, idx_path
from primus.data.indexed import IndexedDataset
from primus.data.manifest import Manifest, check_manifest, manifest_path, read_manifest, sampled_digest
from primus.data.shards import hash_file
from primus.data.tokenizer import TokenizerFiles
from primus.errors import DataError, Problem

SURVEYED = 4 << 20
"""Documents whose lengths are looked at; of more, an even sample."""
CHUNK = 4 << 20


@dataclass(frozen=True)
class Lengths:
    """Tokens a document. bins: (smallest, largest, documents) by powers of two; surveyed: documents looked at."""

    shortest: int
    median: float
    mean: float
    longest: int
    bins: tuple[tuple[int, int, int], ...]
    surveyed: int


@dataclass(frozen=True)
class Excerpt:
    """Some tokens and, with a tokenizer, their text. title: where they are; cut: whether more follow."""

    title: str
    ids: tuple[int, ...]
    text: str | None
    cut: bool


class Inspection:
    """A dataset opened for looking. Raises DataError when it is missing, damaged, or not what its manifest says."""

    def __init__(self, prefix: Path, tokenizer: TokenizerFiles | None = None) -> None:
        self.prefix = prefix
        self.dataset = IndexedDataset(prefix)
        self.header = self.dataset.header
        self.manifest: Manifest | None = read_manifest(prefix)
        if self.manifest:
            check_manifest(self.manifest, self.header)
        self.digest = self.manifest.digest if self.manifest else sampled_digest(self.header)
        self._asked = tokenizer is not None
        self.tokenizer = tokenizer or self._own_tokenizer()

    def _own_tokenizer(self) -> TokenizerFiles | None:
        if self.manifest is None:
            return None
        directory = manifest_path(self.prefix).parent / self.manifest.tokenizer.directory
        return TokenizerFiles(directory) if (directory / "tokenizer.json").is_file() else None

    def foreign_tokenizer(self) -> Problem | None:
        """The problem when another tokenizer made the dataset, so that the text shown is not its own. Raises DataError
        when the tokenizer cannot be read."""
        if self.manifest is None or self.tokenizer is None:
            return None
        made = self.manifest.tokenizer
        if self.tokenizer.matches(made.file_hash, made.hash):
            return None
        return Problem(
            self.tokenizer.name,
            f"is not the tokenizer that made the dataset ({made.origin}, {made.vocab_size} ids): its text may be wrong",
            "leave --tokenizer out" if self._asked else "copy or prepare the dataset again, with its tokenizer",
        )

    def lengths(self) -> Lengths:
        """Survey of the documents' lengths. Raises DataError when the index is damaged."""
        count = len(self.dataset)
        step = -(-count // SURVEYED)
        numbers = np.arange(0, count, step)
        lengths = self.dataset.document_starts(numbers + 1) - self.dataset.document_starts(numbers)
        if lengths.min() < 0:
            number = int(numbers[lengths.argmin()])
            raise damaged_document(self.header, number, "ends before it begins")
        classes = np.bincount(np.ceil(np.log2(np.maximum(lengths, 1) + 1)).astype(np.int64) - 1)
        bins = tuple((1 << power if power else 0, (2 << power) - 1, int(n)) for power, n in enumerate(classes) if n)
        mean = self.header.tokens / count
        return Lengths(int(lengths.min()), float(np.median(lengths)), mean, int(lengths.max()), bins, len(numbers))

    def excerpts(self, count: int, seq_length: int | None, longest: int = 160) -> Iterator[Excerpt]:
        """`count` evenly spaced documents, or windows of `seq_length` + 1 tokens; at most `longest` tokens of each."""
        reference: Reference | None = load_reference(self.tokenizer.path) if self.tokenizer else None
        units = (self.header.tokens - 1) // seq_length if seq_length else len(self.dataset)
        for unit in np.unique(np.linspace(0, units - 1, min(count, units)).astype(np.int64)):
            if seq_length:
                tokens = self.dataset.tokens[unit * seq_length : (unit + 1) * seq_length + 1]
                title = f"window {unit:,} of {units:,}"
            else:
                tokens = self.dataset.document(int(unit))
                title = f"document {unit:,} of {units:,}"
            ids = tokens[:longest].tolist()
            text = reference.decode(ids) if reference else None
            yield Excerpt(f"{title}, {len(tokens):,} tokens", tuple(ids), text, len(tokens) > longest)

    def verify(self) -> list[Problem]:
        """Read everything: hashes against the manifest, order of the index, range of ids. Empty when all is well.

        Raises DataError with everything found when documents cannot be told apart: then nothing more can be shown.
        """
        problems: list[Problem] = []
        if foreign := self.foreign_tokenizer():
            problems.append(foreign)
        manifest, header, index = self.manifest, self.header, str(idx_path(self.prefix))
        if manifest:
            for path, promised in ((bin_path(self.prefix), manifest.bin), (idx_path(self.prefix), manifest.idx)):
                if hash_file(path) != promised.xxh3:
                    problems.append(Problem(str(path), "its content is not what was written", "copy or make it again"))
        if (bad := self.dataset.first_gap()) is not None:
            problems.append(Problem(index, f"sequence {bad} does not begin where the one before ends"))
        limit = manifest.tokenizer.vocab_size if manifest else None
        low, high = self._id_range()
        if low < 0 or (limit is not None and high >= limit):
            size = "" if limit is None else f", outside the tokenizer's {limit}"
            problems.append(Problem(str(bin_path(self.prefix)), f"its ids run from {low} to {high}{size}"))
        if header.tokens != (total := self.dataset.summed_lengths()):
            problems.append(Problem(index, f"its lengths sum to {total}, not to {header.tokens} tokens"))
        if (bad := self.dataset.first_misplaced_document()) is not None:
            damage = damaged_document(header, bad, "begins before the one before it, or outside the dataset")
            raise DataError(problems=[*problems, *damage.problems])
        return problems

    def _id_range(self) -> tuple[int, int]:
        lows, highs = [], []
        for start in range(0, self.header.tokens, CHUNK):
            block: npt.NDArray[np.integer] = self.dataset.tokens[start : start + CHUNK]
            lows.append(int(block.min()))
            highs.append(int(block.max()))
        return min(lows), max(highs)
