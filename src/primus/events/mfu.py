"""Model FLOPs utilisation."""

from __future__ import annotations


def model_flops_utilisation(
    flops_per_token: float, tokens: int, seconds: float, devices: int, peak_tflops: float | None
) -> float | None:
    """Fraction of the devices' dense peak that the model's own arithmetic used (PaLM, arXiv:2204.02311, appendix B):
    recomputed activations do not count.

    flops_per_token: forward and backward; tokens: of all devices in `seconds`; peak_tflops: of one device in the
    precision trained in, None where no sourced figure exists: the result is None then, never a guess.
    """
    if not peak_tflops or seconds <= 0:
        return None
    return flops_per_token * tokens / (seconds * devices * peak_tflops * 1e12)
