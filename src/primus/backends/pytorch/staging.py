"""A copy of a state dict in host memory, kept and reused from save to save."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor

from primus.backends.pytorch.pieces import Piece, Pieces


class Staging:
    """Buffers as large as the state. Making them takes several times longer than a copy."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}
        # With its index: the current device is a thread's own, and the copy may run in another thread.
        self._accelerator: torch.device | None = None
        if torch.accelerator.is_available() and (kind := torch.accelerator.current_accelerator()):
            self._accelerator = torch.device(kind.type, torch.accelerator.current_device_index())

    def allocate(self, state: dict[str, Any]) -> None:
        """Make the buffers for `state`, in another thread, before it is copied for the first time."""
        for name, value in state.items():
            if not isinstance(value, torch.Tensor) or isinstance(value, Pieces):
                parts = {f"{name}[{number}]": piece.tensor for number, piece in enumerate(getattr(value, "pieces", ()))}
            else:
                parts = {name: value.to_local() if isinstance(value, DTensor) else value}
            for key, local in parts.items():
                if key not in self._buffers:
                    self._buffers.setdefault(key, _like(local).zero_())

    @property
    def overlaps(self) -> bool:
        """Whether a copy is made beside a step. Without an accelerator it would take cores and memory bandwidth from
        it, and take longer than by itself."""
        return self._accelerator is not None

    def mark(self) -> object:
        """A point in this thread's device work after which the tensors hold what shall be copied."""
        if self._accelerator is None:
            return None
        event = torch.Event(device=self._accelerator)
        event.record()
        return event

    @torch.no_grad()
    def copy(self, state: dict[str, Any], ready: object = None) -> dict[str, Any]:
        """`state` with every tensor replaced by its copy, done when this returns. May run in another thread than the
        one that made the tensors; `ready` is then that thread's ``mark()``."""
        if self._accelerator is None:
            return {name: self._copy(name, value) for name, value in state.items()}
        torch.accelerator.set_device_index(self._accelerator.index)
        stream = torch.Stream(device=self._accelerator)
        if isinstance(ready, torch.Event):
            ready.wait(stream)
        with stream:
            copies = {name: self._copy(name, value) for name, value in state.items()}
        stream.synchronize()
        return copies

    def _copy(self, name: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if isinstance(value, Pieces):
            return Pieces(
                tuple(value.shape),
                [
                    Piece(piece.offsets, self._copy(f"{name}[{number}]", piece.tensor))
                    for number, piece in enumerate(value.pieces)
                ],
            )
        local = value.to_local() if isinstance(value, DTensor) else value
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != local.shape or buffer.dtype != local.dtype:
            buffer = self._buffers[name] = _like(local)
        buffer.copy_(local, non_blocking=local.device.type != "cpu")
        if not isinstance(value, DTensor):
            return buffer
        # from_local would move the buffer to the mesh's device
        return DTensor(buffer, value._spec, requires_grad=False)  # type: ignore[no-untyped-call]


def _like(local: torch.Tensor) -> torch.Tensor:
    return torch.empty(local.shape, dtype=local.dtype, pin_memory=local.device.type != "cpu")
