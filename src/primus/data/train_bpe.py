"""A byte-level BPE tokenizer trained on the spot."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from primus.data.documents import BadRecords, read_shard
from primus.data.inputs import DocumentUnit, Shard
from primus.errors import UsageError

END_OF_TEXT = "<|endoftext|>"
SAMPLE_BYTES = 64 << 20
"""Text a tokenizer is trained on at most; taken from all over the inputs."""
SMALLEST_VOCABULARY = 257
LARGEST_VOCABULARY = 1 << 22
"""More than any tokenizer in use has; far beyond it the trainer runs out of memory and aborts the process."""


def check_vocabulary(size: int) -> None:
    """Raise UsageError when a byte-level vocabulary cannot be that small or that large."""
    if size < SMALLEST_VOCABULARY:
        raise UsageError(
            f"a byte-level vocabulary needs at least {SMALLEST_VOCABULARY} entries (256 bytes, one to end documents), "
            f"not {size}"
        )
    if size > LARGEST_VOCABULARY:
        raise UsageError(f"a vocabulary of {size} entries cannot be trained", remedy=f"at most {LARGEST_VOCABULARY}")


def train_bpe(texts: Iterable[str], vocab_size: int, directory: Path, eod: str = END_OF_TEXT) -> int:
    """Train on `texts` and save ``tokenizer.json`` with its companion into `directory`, which is made.

    The alphabet is the 256 bytes, so nothing is ever unknown; `eod`, id 0, ends documents. Returns the size reached,
    which is smaller than `vocab_size` when the text has no more pairs to merge.
    """
    check_vocabulary(vocab_size)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[eod],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eod, "bos_token": eod}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    unfinished = directory / "tokenizer.json.new"  # a killed process must not leave half a tokenizer to go on with
    tokenizer.save(str(unfinished))
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    unfinished.replace(directory / "tokenizer.json")
    return int(tokenizer.get_vocab_size())


def sample_texts(
    shards: Sequence[Shard], field: str, unit: DocumentUnit, budget: int, *, skip_bad: bool
) -> Iterator[str]:
    """About `budget` bytes of text, an equal part from the beginning of up to 64 evenly spaced shards."""
    step = max(1, len(shards) // 64)
    chosen = shards[::step]
    for shard in chosen:
        left = budget // len(chosen)
        bad = BadRecords(skip_bad)
        for text, _ in read_shard(shard, field, unit, bad, lambda left, right: True):
            yield text[:left]
            left -= len(text)
            if left <= 0:
                break
        bad.raise_any()
