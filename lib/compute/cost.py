"""What a view costs a model: floating-point operations, and the memory that training takes."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def flops(model: nn.Module, size: int) -> int:
    """Floating-point operations that training spends on one view of size x size pixels.

    Forward and backward. Counted by PyTorch from the shapes of convolutions and matrix products, a
    multiplication and an addition as two; the loss, BatchNorm and the like are left out. model: as
    ``encoders.Model``.
    """
    twin = copy.deepcopy(model).to("meta").train()
    with FlopCounterMode(display=False) as counter:
        _, z = twin(torch.empty(2, 3, size, size, device="meta"))
        z.sum().backward()
    return counter.get_total_flops() // 2


def memory(model: nn.Module, size: int) -> int:
    """Bytes that training a view takes in float32: 1.5 times what forward keeps for backward."""
    twin = copy.deepcopy(model).to("meta").train()
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        return kept.setdefault(x.untyped_storage()._cdata, x)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        twin(torch.empty(2, 3, size, size, device="meta"))
    for parameter in twin.parameters():
        kept.pop(parameter.untyped_storage()._cdata, None)
    return 3 * sum(x.untyped_storage().nbytes() for x in kept.values()) // 4
