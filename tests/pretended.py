"""A pretended GPU: tensors that say they are on it, and refuse to meet tensors that are not.

They compute on the CPU. What a CPU forgives, a tensor made without its device or labels left
behind, fails here as it would on a GPU. Of a GPU's own kernels, precision and speed this knows
nothing, of its memory only which tensor was the largest, of copies to it only which ones wait.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from lib.compute import log_sum_exp

GPU = torch.device("cuda", 0)
MOVES = {"pin_memory", "cpu", "numpy", "tolist", "to"}  # methods that leave a device, or may
COPIES = {"copy_", "_to_copy"}  # between any two devices
# by places on the CPU, but not the reverse
TAKE_FROM = {"index", "index_put", "index_put_", "_index_put_impl_"}
OURS = {
    "log_sum_exp_others": log_sum_exp._forward._init_fn,
    "log_sum_exp_others_backward": log_sum_exp._backward._init_fn,
}


class OnGpu(Tensor):
    """A tensor of the pretended GPU. inner: the one on the CPU that has its numbers."""

    largest = 0  # bytes of the largest one since the peak was reset
    waits: list[bool] = []  # of each copy from or into the CPU's memory, whether one waits for it

    @staticmethod
    def __new__(cls, inner: Tensor):
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            dtype=inner.dtype,
            device="cpu",
            storage_offset=inner.storage_offset(),
        )

    def __init__(self, inner: Tensor):
        self.inner = inner
        OnGpu.largest = max(OnGpu.largest, inner.nbytes)

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        name, kwargs = operation.overloadpacket.__name__, kwargs or {}
        if name in OURS:
            return OURS[name](*args, **kwargs)

        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name not in COPIES and not (name in TAKE_FROM and isinstance(args[0], OnGpu)):
            _refuse_apart(name, given, changed=args[0] if name.endswith("_") else None)
        if name == "copy_" and not isinstance(args[0], OnGpu):
            pinned = getattr(args[0], "is_in_pinned_memory", False)
            non_blocking = args[2] if len(args) > 2 else False
            OnGpu.waits.append(not (pinned and non_blocking))
        result = operation(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if name == "copy_":
            return args[0]

        known = {id(_inner(x)): x for x in given}  # what works in place returns its argument

        def on_gpu(x: Any) -> Any:
            if id(x) in known:
                return known[id(x)]
            return OnGpu(x) if isinstance(x, Tensor) else x

        return tree_map(on_gpu, result)


def _refuse_apart(name: str, given: list[Tensor], changed: Tensor | None) -> None:
    """Raise RuntimeError for a tensor on the CPU; a single number may be read there."""
    for x in given:
        if isinstance(x, OnGpu):
            continue
        if x.dim() or x is changed:
            raise RuntimeError(
                f"{name}: a tensor {tuple(x.shape)} is on the CPU, the others are on the GPU"
            )


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, OnGpu) else x


def _put(x: Tensor) -> Tensor:
    if isinstance(x, OnGpu):
        return x
    return OnGpu(x.detach()).requires_grad_(x.requires_grad)


def _fetched(x: Tensor) -> Tensor:
    """On the CPU, without its graph where it was on the GPU."""
    return x.detach().inner if isinstance(x, OnGpu) else x


class _Mode(TorchFunctionMode):
    """What names a device: factories, and copies from one to the other."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), dict(kwargs or {})
        if name in MOVES and isinstance(args[0], Tensor):
            return _moved(name, function, *args, **kwargs)
        if kwargs.pop("pin_memory", False):
            return _pinned(function(*args, **kwargs))
        if torch.device(kwargs.get("device") or "cpu").type == "cuda":
            return _put(function(*args, **kwargs | {"device": "cpu"}))
        return function(*args, **kwargs)


def _moved(name: str, function: Callable, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    if name == "tolist":
        return function(_fetched(x))
    if name == "cpu":
        return _fetched(x)
    if name == "numpy":
        if isinstance(x, OnGpu):
            raise TypeError("a tensor on the GPU has no numpy array; call .cpu() first")
        return function(x)
    if name == "pin_memory":
        return _pinned(x)
    return _to(function, x, *args, **kwargs)


def _pinned(x: Tensor) -> Tensor:
    if isinstance(x, OnGpu):
        raise RuntimeError("only a tensor on the CPU can be pinned")
    for size, stride in zip(x.shape, x.stride()):
        assert size == 1 or stride, "its copy has the same strides"
    pinned = x.detach()
    pinned.is_in_pinned_memory = True
    return pinned


def _to(function: Callable, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """x.to(...): another device, another type, or both."""
    target = kwargs.pop("device", None)
    if target is None and args:
        target, args = args[0], args[1:]
    if isinstance(target, Tensor):
        target = target.device
    if not isinstance(target, str | torch.device):
        return function(x, target, *args, **kwargs)  # to another type

    non_blocking = kwargs.pop("non_blocking", False)
    kind = torch.device(target).type
    if kind == "meta":
        return function(_fetched(x), target)
    if kind == "cuda" and not isinstance(x, OnGpu):
        pinned = getattr(x, "is_in_pinned_memory", False)
        OnGpu.waits.append(not (pinned and non_blocking))
    x = _put(x) if kind == "cuda" else _fetched(x)
    types = [value for value in args if isinstance(value, torch.dtype)]
    if types or kwargs:
        return function(x, *types, **kwargs)
    return x


def _reset_peak(*_: Any) -> None:
    OnGpu.largest = 0


@contextmanager
def gpu(memory: int = 2**34, capability: tuple[int, int] = (7, 5)) -> Iterator[None]:
    """Within, "cuda" is the pretended GPU, with so many bytes free, as old as a T4 or newer."""
    answers = {
        "is_available": True,
        "current_device": 0,
        "device_count": 1,
        "mem_get_info": (memory, memory),
        "empty_cache": None,
        "synchronize": None,
        "get_device_capability": capability,
        "get_device_name": "pretended",
        "get_device_properties": SimpleNamespace(total_memory=memory),
    }
    functions: dict[str, Callable] = {
        "max_memory_allocated": lambda *_: OnGpu.largest,
        "reset_peak_memory_stats": _reset_peak,
    }
    for name, value in answers.items():
        functions[name] = lambda *_, value=value: value

    OnGpu.waits.clear()
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    with ExitStack() as stack:
        for name, function in functions.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            unchecked = mock.patch.object(torch.optim.Optimizer, name, lambda _: None, create=True)
            stack.enter_context(unchecked)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swapped)
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.enter_context(_Mode())
        yield
