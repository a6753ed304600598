"""A pretended GPU: tensors that say they are on it, compute on the CPU, and refuse to meet tensors
that are not.

What a CPU forgives, a tensor made without its device or labels left behind, fails here as it would
on a GPU. Of a GPU's own kernels, precision, speed and memory it knows nothing.
"""

from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from lib import tiles
from lib.encoders import Model

GPU = torch.device("cuda", 0)
COPIES = {"copy_", "_to_copy"}  # between any two devices
TAKE_FROM = {
    "index",
    "index_put",
    "index_put_",
    "_index_put_impl_",
}  # by places on the CPU, but not the reverse
OURS = {
    "log_sum_exp_others": tiles._forward._init_fn,
    "log_sum_exp_others_backward": tiles._backward._init_fn,
}


class OnGpu(Tensor):
    """A tensor of the pretended GPU. inner: the one on the CPU that has its numbers."""

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

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        name, kwargs = operation.overloadpacket.__name__, kwargs or {}
        if name in OURS:
            return OURS[name](*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        apart = [
            x
            for x in given
            if not isinstance(x, OnGpu) and (x.dim() or x is args[0] and name.endswith("_"))
        ]
        if apart and name not in COPIES and not (name in TAKE_FROM and isinstance(args[0], OnGpu)):
            raise RuntimeError(
                f"{name}: a tensor {tuple(apart[0].shape)} is on the CPU, the others are on the GPU"
            )
        found = operation(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if name == "copy_":
            return args[0]
        same = {id(_inner(x)): x for x in given}  # what works in place returns its argument
        return tree_map(
            lambda x: (
                same.get(id(x)) if id(x) in same else OnGpu(x) if isinstance(x, Tensor) else x
            ),
            found,
        )


def _inner(x):
    return x.inner if isinstance(x, OnGpu) else x


def _put(x: Tensor) -> Tensor:
    return x if isinstance(x, OnGpu) else OnGpu(x.detach()).requires_grad_(x.requires_grad)


class _Mode(TorchFunctionMode):
    """What names a device: factories, and copies from one to the other."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), dict(kwargs or {})
        if name in ("pin_memory", "cpu", "numpy", "tolist", "to") and isinstance(args[0], Tensor):
            return self._moved(name, function, *args, **kwargs)
        if torch.device(kwargs.get("device") or "cpu").type == "cuda":
            return _put(function(*args, **kwargs | {"device": "cpu"}))
        return function(*args, **kwargs)

    def _moved(self, name: str, function, x: Tensor, *args, **kwargs):
        if name == "numpy" and isinstance(x, OnGpu):
            raise TypeError("a tensor on the GPU has no numpy array; call .cpu() first")
        if name in ("numpy", "tolist"):
            return function(_inner(x.detach()) if isinstance(x, OnGpu) else x)
        if name == "pin_memory":
            assert not any(n > 1 and not step for n, step in zip(x.shape, x.stride())), (
                "its copy has the same strides"
            )
            return x
        target, rest = (
            ("cpu", ())
            if name == "cpu"
            else (kwargs.pop("device", args[0] if args else None), args[1:])
        )
        target = target.device if isinstance(target, Tensor) else target
        if not isinstance(target, (str, torch.device)):
            return function(x, *args, **kwargs)  # to another type
        kwargs.pop("non_blocking", None)
        x = (
            _put(x)
            if torch.device(target).type == "cuda"
            else _inner(x.detach())
            if isinstance(x, OnGpu)
            else x
        )
        rest = [value for value in rest if isinstance(value, torch.dtype)]
        return function(x, *rest, **kwargs) if rest or kwargs else x


@contextmanager
def gpu(memory: int = 2**34):
    """Within, "cuda" is the pretended GPU, with so many bytes free."""
    told = {
        "is_available": True,
        "current_device": 0,
        "device_count": 1,
        "mem_get_info": (memory, memory),
        "max_memory_allocated": 1,
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "synchronize": None,
        "get_device_capability": (7, 5),
        "get_device_name": "pretended",
        "get_device_properties": SimpleNamespace(total_memory=memory),
    }
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    with ExitStack() as stack:
        for name, value in told.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, value=value: value))
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            stack.enter_context(
                mock.patch.object(torch.optim.Optimizer, name, lambda _: None, create=True)
            )
        for name in ("flops", "memory"):  # which need a copy without numbers
            stack.enter_context(mock.patch.object(Model, name, lambda *_: 1))
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swapped)
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.enter_context(_Mode())
        yield
