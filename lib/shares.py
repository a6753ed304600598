"""A batch shared out: which places are a rank's, its rows of the loss, and where the images to
choose from lie.

A batch is first cut into chunks (gradient accumulation), then each chunk into ranks
(``lib.distributed``), so that order, views, loss and BatchNorm's batches are the same whatever the
number of ranks. Embeddings are gathered. What depends on all pairs is computed by rows: a rank sums
the denominators of its own anchors, the sums are gathered, and with all of them it knows the whole
gradient of its own embeddings, ``sum_j (g_i p_ij + g_j p_ji) z_j / t``. So M D numbers and M sums
are sent in the loss's forward pass, none in its backward pass, and no rank holds more than O(M D).
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch import Tensor

from lib import InputError
from lib.distributed import active, agree, rank, world
from lib.hardware import free_memory, send

STRIP = {"cpu": 2**18}  # similarities at a time
STRIP_ELSEWHERE = 2**24
ROOM = 0.5  # of a device's free memory that images may take; training needs the rest


def cut(start: int, stop: int, pieces: int) -> list[slice]:
    """start to stop in nearly equal pieces."""
    bounds = [start + (stop - start) * piece // pieces for piece in range(pieces + 1)]
    return [slice(*pair) for pair in zip(bounds, bounds[1:])]


class Share:
    """Which places of a batch of n images are whose. A batch too small for so many chunks has
    fewer."""

    def __init__(self, n: int, accumulate: int = 1, device: torch.device | str = "cpu"):
        chunks = cut(0, n, max(1, min(accumulate, n // 2)))
        slices = [
            [cut(chunk.start, chunk.stop, world())[r] for chunk in chunks] for r in range(world())
        ]
        self.own = slices[rank()]  # a slice of places for each chunk
        self.sizes = [part.stop - part.start for part in self.own]
        self.every = [
            torch.cat([torch.arange(part.start, part.stop, device=device) for part in of])
            for of in slices
        ]
        self.mine = self.every[rank()]  # (n_r,) places

    def gather(self, mine: Tensor) -> Tensor:
        """Of every rank's (V, n_r, ...) the whole batch's (V, n, ...), in its order. Without a
        gradient."""
        if not active():
            return mine
        lengths = list(map(len, self.every))
        padded = mine.new_zeros(max(lengths), len(mine), *mine.shape[2:])
        padded[: mine.shape[1]] = mine.transpose(0, 1)
        every = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(every, padded)
        rows = torch.cat([part[:length] for part, length in zip(every, lengths)])
        places = torch.cat(self.every).to(rows.device)
        return torch.empty_like(rows).index_copy_(0, places, rows).transpose(0, 1).contiguous()

    def log_sum_exp(
        self,
        z: Tensor,
        temperature: float,
        labels: Tensor | None = None,
        bound: float | None = None,
    ):
        """``tiles.log_sum_exp_others`` of the whole batch's z (M, D), its gradient right in this
        rank's own rows."""
        return _OwnRows.apply(z, temperature, labels, self)


def refuse_idle(shares: Iterable[Share]) -> None:
    """Raise InputError where a rank would have no image of some chunk of some batch."""
    for images, chunks in ((sum(map(len, share.every)), len(share.sizes)) for share in shares):
        if images // chunks < world():
            raise InputError(
                f"a batch of {images} in {chunks} chunks leaves some of {world()} ranks without "
                "any; "
                f"set drop_last=True, another batch_size or fewer ranks"
            )


class _OwnRows(torch.autograd.Function):
    """A rank's rows of ``log sum_{j != i} exp(z_i . z_j / t)``, in strips; the sums of the others
    are gathered."""

    @staticmethod
    def forward(ctx, z: Tensor, temperature: float, labels: Tensor | None, share: Share) -> Tensor:
        n = sum(map(len, share.every))
        own = (
            torch.arange(0, len(z), n, device=z.device)[:, None] + share.mine.to(z.device)
        ).flatten()  # (V n_r,)
        sums = torch.cat([strip.logsumexp(1) for _, strip in _strips(z, own, temperature, labels)])
        lse = share.gather(sums.view(len(z) // n, -1)).flatten()  # (M,)
        ctx.save_for_backward(z, lse, own, labels)
        ctx.temperature = temperature
        return lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: Tensor):
        z, lse, own, labels = ctx.saved_tensors
        g, lse = (
            g.masked_fill(lse.isinf(), 0),
            lse.masked_fill(lse.isinf(), 0),
        )  # rows without any j
        gradient = torch.zeros_like(z)
        for rows, strip in _strips(z, own, ctx.temperature, labels):
            share = (
                (strip - lse[rows, None])
                .exp_()
                .mul_(g[rows, None])
                .add_((strip - lse).exp_().mul_(g))
            )
            gradient[rows] = share @ z / ctx.temperature
        return gradient, None, None, None


def _strips(
    z: Tensor, own: Tensor, temperature: float, labels: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in own.split(max(1, STRIP.get(z.device.type, STRIP_ELSEWHERE) // len(z))):
        strip = (z[rows] @ z.T).div_(temperature).scatter_(1, rows[:, None], -math.inf)
        yield (
            rows,
            strip
            if labels is None
            else strip.masked_fill_(labels[rows, None] != labels, -math.inf),
        )


def room_for(images: Tensor, device: torch.device) -> int:
    """Bytes that images may take on a device; no limit where they are there already, or nobody
    tells."""
    free = None if images.device.type == device.type else free_memory(device)
    return 2**62 if free is None else int(ROOM * free)


class Pool:
    """Images (P, 3, H, W) uint8 to train on, where they fit: whole on every rank's device, shared
    out over these devices, or in the host's memory (or a file mapped into it), read one step ahead.
    The least room of a rank decides.
    """

    def __init__(self, images: Tensor, device: torch.device):
        room = -agree(-room_for(images, device))[0]
        self.n, self.device, self.part = len(images), device, -(-len(images) // world())
        self.where = (
            "device"
            if images.nbytes <= room
            else "ranks"
            if images.nbytes <= room * world()
            else "host"
        )
        self.said = (
            f"{images.nbytes / 1e6:,.0f} MB of images: "
            + {
                "device": f"whole on {device}",
                "ranks": f"too large for {device}, shared out over {world()} ranks",
                "host": f"too large for {device}, read from the host's memory or file one step "
                "ahead",
            }[self.where]
        )
        if self.where == "ranks":
            images = images[rank() * self.part : (rank() + 1) * self.part]
        self.images = images if self.where == "host" else images.to(device)
        self.index = (
            device if self.where == "device" else torch.device("cpu")
        )  # where rows are to be

    def stream(self, steps: Iterable[tuple[Tensor, Share]]) -> Iterator[Tensor]:
        """The rank's images (n_r, 3, H, W) of each step, on the device. steps: the batch's rows of
        the pool (n,), on ``index``, and its share."""
        if self.where == "host":
            coming = deque()
            with ThreadPoolExecutor(1) as reader:
                for rows, share in steps:
                    coming.append(reader.submit(self.images.__getitem__, rows[share.mine]))
                    if len(coming) == 2:
                        yield send(coming.popleft().result(), self.device)
                yield from (send(last.result(), self.device) for last in coming)
        else:
            take = (
                self._exchanged
                if self.where == "ranks"
                else lambda rows, share: self.images[rows[share.mine]]
            )
            yield from (take(*step) for step in steps)

    def _exchanged(self, rows: Tensor, share: Share) -> Tensor:
        """Every rank sends what others want of its part: rank r has the rows from r times self.part
        on."""
        wanted = [rows[places] for places in share.every]
        asked = [of[of // self.part == rank()] - rank() * self.part for of in wanted]
        sender = wanted[rank()] // self.part
        sent = self.images[torch.cat(asked).to(self.device)]
        got = sent.new_empty(len(sender), *sent.shape[1:])
        dist.all_to_all_single(
            got, sent, sender.bincount(minlength=world()).tolist(), list(map(len, asked))
        )
        return torch.empty_like(got).index_copy_(
            0, sender.argsort(stable=True).to(self.device), got
        )
