"""How far apart the losses of two runs of one experiment may lie, by precision: only figures that were measured."""

from __future__ import annotations

BANDS: dict[str, float] = {"fp32": 1e-5}
"""Precision -> largest |difference| of the loss, in nats a token, between engines, layouts and machines, for dense
models; fp32's is what ``docs/numerics.md`` promises and the tests hold over their twenty steps. A precision
gets its line here when its band has been measured."""

REASONS = {
    "experts": "with experts, a routing decision near a tie can flip through rounding and move the loss by more",
    "bf16": "none is promised for bf16; docs/numerics.md states what tiny models keep to over 20 steps: 5e-3 from fp32",
    "fp8": "no bound is promised for fp8, whose rounding depends on the scaling and on the device",
}
"""Why there is no band, where there is none."""


def known_band(precisions: set[str], *, experts: bool) -> tuple[float | None, str]:
    """The band for two runs that use `precisions`, and None with the reason where no general one exists.

    experts: whether either model is a mixture of experts.
    """
    if experts:
        return None, REASONS["experts"]
    if len(precisions) > 1:
        return None, f"the runs differ in precision ({' and '.join(sorted(precisions))})"
    (precision,) = precisions
    band = BANDS.get(precision)
    return band, "" if band is not None else REASONS.get(precision, f"none has been measured for {precision}")
