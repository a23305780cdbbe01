"""Text to ids: the fast encoder, the reference it is held against, and what happens where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from primus.errors import DataError

EncoderName = Literal["gigatoken", "tokenizers"]
PROBES = (
    "Hello, world!  Two  spaces,\ttabs\t\tand\n\n\nnewlines \n  indented\r\n",
    "I'm you're we'LL don't 'tis; 1 22 333 4444 12345.678e-9 0xFF",
    "naïve café e\u0301 ﬁ ½ Ω ß İ ı 你好，世界 こんにちは 안녕 мир שלום مرحبا हिन्दी 🎉👩‍👩‍👧‍👦\u200d\u00a0\u3000\ufeff",
    "def f(x):\n    return [i**2 for i in range(10) if i % 2 == 0]  # comment\n\n\n",
    "<|endoftext|> </s> <s> [INST] <|im_start|>user x" + " " * 40 + "\x00\x07 end",
)
"""Text in which encoders tend to differ."""


class Encoder:
    """Encodes with one of two libraries. Special tokens written in the text become their ids; none are added."""

    def __init__(self, name: EncoderName, tokenizer: Path) -> None:
        """tokenizer: a ``tokenizer.json``. Raises DataError when the library cannot load it."""
        self.name = name
        text = tokenizer.read_bytes()
        try:
            if name == "gigatoken":
                import gigatoken

                self._encode = gigatoken.Tokenizer.from_json(text).backend.encode
            else:
                self._reference = Reference(text.decode())
                self._encode = self._reference.encode
        except Exception as error:
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{name} cannot load it: {cause}", where=str(tokenizer)) from error

    @property
    def label(self) -> str:
        """Package and version, for the manifest."""
        from importlib.metadata import version  # slow to import, and no worker needs it

        return f"{self.name} {version(self.name)}"

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """Ids of `text`, uint32 [tokens]."""
        ids: npt.NDArray[np.uint32] = self._encode(text)
        return ids

    def separable(self, left: str, right: str) -> bool:
        """Whether two neighbouring stretches of text have the same ids apart as together."""
        apart = np.concatenate((self.encode(left), self.encode(right)))
        return np.array_equal(apart, self.encode(left + right))


class Reference:
    """Hugging Face's own ``tokenizers``: slow, and right by definition."""

    def __init__(self, text: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(text)
        # a tokenizer.json may carry settings of the last call it was saved after
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """Ids of `text`, uint32 [tokens]."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def differs(self, text: str, ids: npt.NDArray[np.integer]) -> bool:
        """Whether these are not the ids of `text`."""
        return not np.array_equal(self.encode(text), ids)


def load_reference(tokenizer: Path) -> Reference:
    """The reference for a ``tokenizer.json``. Raises DataError when it cannot be loaded."""
    try:
        return Reference(tokenizer.read_text(encoding="utf-8"))
    except Exception as error:
        raise DataError(f"is not a tokenizer that `tokenizers` can load: {error}", where=str(tokenizer)) from error


def choose_encoder(tokenizer: Path, reference: Reference, samples: Sequence[str]) -> tuple[Encoder, str]:
    """The fast encoder if it takes the tokenizer and agrees with the reference on probes and samples; else the
    reference. Returns the encoder and, for a fallback, the reason."""
    try:
        fast = Encoder("gigatoken", tokenizer)
    except DataError as error:
        return Encoder("tokenizers", tokenizer), error.problems[0].message
    for text in (*PROBES, *samples):
        if reference.differs(text, fast.encode(text)):
            return Encoder("tokenizers", tokenizer), f"gigatoken's ids differ from the reference for {text[:60]!r}"
    return fast, ""
