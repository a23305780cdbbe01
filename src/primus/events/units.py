"""Numbers as people read them. Every figure carries its unit."""

from __future__ import annotations

import math

_SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_BYTES = ((2**50, "PiB"), (2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def count(value: float) -> str:
    """1234 -> ``1,234``; 12345 -> ``12.3 k``; 8.03e9 -> ``8.03 B``."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 10_000:
        return f"{value:,.0f}"
    for scale, suffix in _SCALES:
        if abs(value) >= 0.9995 * scale:
            return f"{_three_digits(value / scale)} {suffix}"
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes: ``1.21 GiB``."""
    for scale, suffix in _BYTES:
        if value >= 0.9995 * scale:
            return f"{_three_digits(value / scale)} {suffix}"
    return f"{value:.0f} bytes"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 9.995 else f"{value:.1f}" if abs(value) < 99.95 else f"{value:,.0f}"


def rate(tokens: float, seconds: float) -> str:
    return f"{count(tokens / seconds)} tokens/s" if seconds > 0 else "? tokens/s"


def duration(seconds: float) -> str:
    """``0.32 s``, ``12.3 s``, ``4:05 min``, ``3:04:05 h``, ``2 d 03:04 h``."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    days, hours, minutes, rest = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    if days:
        return f"{days} d {hours:02d}:{minutes:02d} h"
    return f"{hours}:{minutes:02d}:{rest:02d} h" if hours else f"{minutes}:{rest:02d} min"


def loss(value: float) -> str:
    return f"{value:.4f}"


def learning_rate(value: float) -> str:
    return f"{value:.2e}"


def norm(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if 1e-3 <= abs(value) < 1000 or not value else f"{value:.1e}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
