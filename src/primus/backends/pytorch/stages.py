"""How the layers of a model are shared out to pipeline stages. Imports nothing: planning uses it."""

from __future__ import annotations


def stage_sizes(layers: int, count: int) -> list[int]:
    """Layers on each of `count` pipeline stages, in order. Embedding and output head each weigh as much as one layer,
    so the first and the last stage hold fewer layers; the first stages take what does not divide."""
    base, extra = divmod(layers + 2, count)
    sizes = [base + (1 if stage < extra else 0) for stage in range(count)]
    sizes[0] -= 1
    sizes[-1] -= 1
    while min(sizes) < 1 < max(sizes):  # short models: no stage without a layer
        sizes[sizes.index(max(sizes))] -= 1
        sizes[sizes.index(min(sizes))] += 1
    return sizes
