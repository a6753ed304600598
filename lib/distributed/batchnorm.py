"""BatchNorm over the whole batch of all ranks, by two sums over them, on any device.

PyTorch's SyncBatchNorm runs on GPUs only, and there the host waits in every layer for the ranks'
counts; here nothing waits.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """The sum over all ranks; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _Sum.apply(g)


def batch_norm(self: _BatchNorm, x: Tensor) -> Tensor:
    """BatchNorm's forward with the mean and variance of all ranks' x: (n_r, C, ...)."""
    if not self.training:
        return type(self).forward(self, x)
    dtype = x.dtype
    axes = [0, *range(2, x.dim())]  # all but the channels
    shape = [1, -1] + [1] * (x.dim() - 2)
    x = x.to(torch.promote_types(dtype, torch.float32))

    own_count = x.new_full([1], x.numel() / x.shape[1])
    sums = _Sum.apply(torch.cat([x.sum(axes), own_count]))
    count = sums[-1].detach()
    mean = sums[:-1] / sums[-1]
    x = x - mean.view(shape)
    variance = _Sum.apply(x.square().sum(axes)) / count

    assert self.num_batches_tracked is not None and self.momentum is not None
    assert self.running_mean is not None and self.running_var is not None
    with torch.no_grad():
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)

    gain = (variance + self.eps).rsqrt() * self.weight
    x = x * gain.view(shape) + self.bias.view(shape)
    return x.to(dtype)


@contextlib.contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards BatchNorm's running sums are what they were before: a second pass will count."""
    kept = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, before in zip(model.buffers(), kept):
            buffer.copy_(before)
