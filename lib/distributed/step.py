"""A step that several share: embeddings first, then the loss of all, then the gradient in parts."""

import contextlib
import copy
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lib.config import Config
from lib.distributed.batches import SharedViews
from lib.distributed.batchnorm import batch_norm, buffers_kept
from lib.distributed.group import active, barrier, world
from lib.methods import METHODS
from lib.training import Step, embed


class SharedStep(Step):
    """``Step`` where this process has a part of the batch, or takes it chunk by chunk, or both.

    Embeddings come first, with several chunks without a graph; then the loss of all of them and its
    gradient by each embedding; then, chunk by chunk, by the weights (GradCache, arXiv 2101.06983,
    section 3.2). With one chunk the gradient is Step's.
    """

    def __init__(
        self, config: Config, model: nn.Module, optimiser: Optimizer, scaler: torch.amp.GradScaler
    ):
        super().__init__(config, wrap(model), optimiser, scaler)

    def __call__(self, x: SharedViews, labels: Tensor | None, rate: float) -> tuple[Tensor, Tensor]:
        """labels: (N,) of the whole batch. Returns its loss and its z (V, N, D), both detached."""
        share = x.share
        if len(x.chunks) > 1:
            embeddings = self.embed_without_graph(x.chunks)
        else:
            embeddings = [embed(self.config, self.model, x.chunks[0])]

        mine = torch.cat([z.detach() for z in embeddings], dim=1)  # (V, n_r, D)
        precise = torch.promote_types(mine.dtype, torch.float32)
        everyone = share.gather(mine.to(precise)).requires_grad_()  # (V, N, D)
        rows = share.rows(len(mine), mine.device) if active() else None
        loss = METHODS[self.config.method].loss(everyone, labels, self.config, rows)
        (gradient,) = torch.autograd.grad(self.scaler.scale(loss), everyone)
        gradient = gradient[:, share.mine].to(mine.dtype) * world()  # DistributedDataParallel means

        self.optimiser.zero_grad(set_to_none=True)
        self.backward(x.chunks, embeddings, gradient.split(share.sizes, dim=1))
        self.update(rate)
        return loss.detach(), everyone.detach()

    def embed_without_graph(self, chunks: list[Tensor]) -> list[Tensor]:
        """z (V, n, D) of each chunk; BatchNorm's running sums stay, as the second pass counts."""
        model = getattr(self.model, "module", self.model)
        with torch.no_grad(), buffers_kept(model):
            return [embed(self.config, model, chunk) for chunk in chunks]

    def backward(
        self, chunks: list[Tensor], embeddings: list[Tensor], gradients: tuple[Tensor, ...]
    ) -> None:
        """The weights' gradient, from that of each chunk's z (V, n, D)."""
        last = len(chunks) - 1
        for i, chunk in enumerate(chunks):
            with self.gradients_averaged(now=i == last):
                z = embeddings[i]
                if len(chunks) > 1:
                    z = embed(self.config, self.model, chunk)
                z.backward(gradients[i])

    def gradients_averaged(self, now: bool) -> contextlib.AbstractContextManager:
        """Within, gradients are averaged over ranks, or, where it is not yet time, only add up."""
        if now or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()


def wrap(model: nn.Module) -> nn.Module:
    """A twin on the same weights that averages gradients, its BatchNorm seeing the whole batch.

    Without ranks the model itself.
    """
    parameters = list(model.parameters())
    if not active() or not parameters:
        return model
    shared = {id(tensor): tensor for tensor in [*parameters, *model.buffers()]}
    twin = copy.deepcopy(model, shared)

    for module in twin.modules():
        if isinstance(module, _BatchNorm):
            module.forward = MethodType(batch_norm, module)  # type: ignore[method-assign]
    devices = None
    if parameters[0].device.type == "cuda":
        devices = [torch.cuda.current_device()]
    barrier()  # patient: images may have come slowly to some
    return DistributedDataParallel(
        twin,
        device_ids=devices,
        gradient_as_bucket_view=True,
        broadcast_buffers=False,  # from the same sums all ranks compute the same
    )
