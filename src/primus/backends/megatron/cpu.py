"""The CPU where Megatron expects a GPU.

Megatron names the device in its code: ``torch.cuda.current_device()``, ``device="cuda"``, streams and events. On a
machine without an accelerator its modules get a view of torch whose CUDA is the CPU; torch itself stays as it is, and
so does everything outside ``megatron.core``.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

PACKAGE = "megatron.core"
FACTORIES = ("tensor", "zeros", "ones", "empty", "empty_like", "zeros_like", "full", "arange", "rand", "randn")


class Event:
    """Everything on a CPU has happened when a call returns."""

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def record(self, *args: object) -> None:
        pass

    wait = synchronize = record

    def query(self) -> bool:
        return True


class Stream(Event):
    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def wait_event(self, event: Event) -> None:
        pass

    wait_stream = wait_event


class Cuda(types.ModuleType):
    """``torch.cuda`` as Megatron calls it."""

    def __init__(self) -> None:
        super().__init__("primus_cpu_as_cuda")
        self.Event, self.Stream = Event, Stream
        self._stream = Stream()

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    def current_device(self) -> str:
        return "cpu"

    def current_stream(self, device: object = None) -> Stream:
        return self._stream

    default_stream = current_stream

    def stream(self, stream: object) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def synchronize(self, device: object = None) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        torch.set_rng_state(state)


def cover() -> None:
    """Give every module of Megatron that has been imported the view of torch. Idempotent."""
    view = _view()
    for name, module in list(sys.modules.items()):
        if _ours(name) and module is not None and module.__dict__.get("torch") is torch:
            module.__dict__["torch"] = view


def covered() -> bool:
    """Whether Megatron is imported, and no module of it sees torch itself."""
    modules = [module for name, module in sys.modules.items() if _ours(name) and module is not None]
    return bool(modules) and not any(module.__dict__.get("torch") is torch for module in modules)


def _ours(name: str) -> bool:
    return name == PACKAGE or name.startswith(PACKAGE + ".")


@functools.cache
def _view() -> types.ModuleType:
    view = types.ModuleType("torch")
    view.__dict__.update(torch.__dict__)
    view.__dict__["cuda"] = Cuda()
    for name in FACTORIES:
        view.__dict__[name] = _on_cpu(getattr(torch, name))
    return view


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(*args: Any, **options: Any) -> torch.Tensor:
        if options.get("device") == "cuda":
            options["device"] = "cpu"
        options.pop("pin_memory", None)
        return factory(*args, **options)

    return make


def use_cpu_random_state() -> None:
    """Megatron's own functions that read and set a GPU's random state reach into private parts of torch.cuda."""
    from megatron.core.tensor_parallel import random

    for name in ("_get_cuda_rng_state", "_set_cuda_rng_state"):
        if not hasattr(random, name):
            raise AttributeError(f"megatron.core.tensor_parallel.random has no {name}")
    changes: Any = random
    changes._get_cuda_rng_state, changes._set_cuda_rng_state = _get_random_state, _set_random_state


def uses_cpu_random_state() -> bool:
    from megatron.core.tensor_parallel import random

    return random._get_cuda_rng_state is _get_random_state


def _get_random_state(device: object = "cuda", clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
    return torch.get_rng_state()


def _set_random_state(new_state: torch.Tensor, device: object = -1, graph_safe: bool = False) -> None:
    torch.set_rng_state(new_state)


def split_sizes_on_cpu() -> None:
    """The dispatcher turns split sizes into lists only where they come from a GPU; gloo wants lists too."""
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    if not hasattr(moe_utils, "maybe_move_tensor_to_cpu"):
        raise AttributeError("megatron.core.transformer.moe.moe_utils has no maybe_move_tensor_to_cpu")
    for module in (moe_utils, token_dispatcher):
        if hasattr(module, "maybe_move_tensor_to_cpu"):
            module.maybe_move_tensor_to_cpu = _to_list


def splits_on_cpu() -> bool:
    from megatron.core.transformer.moe import moe_utils

    return moe_utils.maybe_move_tensor_to_cpu is _to_list


def _to_list(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor


@contextlib.contextmanager
def tensors_of_a_gpu() -> Iterator[None]:
    """While Megatron builds, tensors move to a GPU by staying where they are, and say the type they would have there,
    by which the optimizers sort them."""
    original, move = torch.Tensor.type, torch.Tensor.cuda

    def type_(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        answer = original(tensor, *args, **options)
        return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer

    changes: Any = torch.Tensor
    changes.type, changes.cuda = type_, lambda tensor, *_, **__: tensor
    try:
        yield
    finally:
        changes.type, changes.cuda = original, move
