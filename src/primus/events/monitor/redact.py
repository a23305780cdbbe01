"""Texts of other packages, without the secrets they may quote."""

from __future__ import annotations

import os
import re

from primus.config.secrets import is_secret

_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]+@")
SHORTEST = 6
"""Characters of a value that counts as a secret: a shorter one would be found in any text."""


def redacted(text: str) -> str:
    """`text` with the values of this process's secret variables, and names and passwords in addresses, struck out."""
    values = [value for name, value in os.environ.items() if is_secret(name) and len(value) >= SHORTEST]
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return _CREDENTIALS.sub("***@", text)
