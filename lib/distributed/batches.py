"""Batches that several share: ranks, each with a part, or chunks, one after the other, or both."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lib import InputError
from lib.augmentations import views
from lib.config import Config
from lib.data.dataset import Dataset
from lib.distributed.group import Share, agree, rank, world
from lib.training import Batches


class SharedViews(NamedTuple):
    """This rank's views of a batch."""

    chunks: list[Tensor]  # (V, n, 3, S, S) each
    share: Share  # which places of the batch they are of


def home_of(size: int, device: torch.device, room: int) -> tuple[str, str]:
    """Where the images to train on lie, in a word and in a sentence.

    size: their bytes.
    device: the one that this rank computes on.
    room: bytes that images may take there (``memory.room_for``); the least of a rank decides.

    "device": whole on every rank's device; "ranks": shared out over these devices; "host": in the
    host's memory, or a file mapped into it, read one step ahead.
    """
    (minus_least,) = agree(-room)
    least = -minus_least
    what = f"{size / 1e6:,.0f} MB of images"
    if size <= least:
        return "device", f"{what}: whole on {device}"
    if size <= least * world():
        return "ranks", f"{what}: too large for {device}, shared out over {world()} ranks"
    return "host", f"{what}: too large for {device}, read from the host's memory one step ahead"


class SharedBatches(Batches):
    """``Batches`` whose views are SharedViews; labels are those of the whole batch."""

    def __init__(self, config: Config, dataset: Dataset, device: torch.device, home: str):
        """home: where the images lie, see ``home_of``.

        Raises InputError where a rank would have no image of some chunk of some batch.
        """
        super().__init__(config, dataset, device, fits=home == "device")
        self.shares: dict[int, Share] = {}  # by the size of a batch
        for size in self.sizes:
            if size not in self.shares:
                self.shares[size] = Share(size, config.accumulate, self.home)
                refuse_idle(self.shares[size])

        self.exchanged = home == "ranks"
        self.kept = -(-self.count // world())  # images that a rank keeps for all, the last fewer
        self.start = rank() * self.kept  # the place of the first of them
        if self.exchanged:
            self.images = self.images[self.start : self.start + self.kept].to(device)

    def views_of(self, images: Tensor, step: int, batch: int) -> SharedViews:
        """Of this rank's images (n_r, 3, H, W) uint8 of a batch of so many."""
        config, share = self.config, self.shares[batch]
        chunks = []
        for chunk, own in zip(images.split(share.sizes), share.own):
            x = views(chunk, self.recipe, config.seed, step, config.views, own.start)
            chunks.append(x)
        return SharedViews(chunks, share)

    def read(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """This rank's images (n_r, 3, H, W) of each batch, on the device."""
        if self.exchanged:
            yield from map(self._exchange, batches)
        else:
            yield from super().read(places[self.shares[len(places)].mine] for places in batches)

    def _exchange(self, places: Tensor) -> Tensor:
        """Every rank sends what others want of the images that it keeps."""
        wanted = [places[of_rank] for of_rank in self.shares[len(places)].every]
        asked = [of_rank[of_rank // self.kept == rank()] - self.start for of_rank in wanted]
        sender = wanted[rank()] // self.kept

        sent = self.images[torch.cat(asked).to(self.device)]
        received = sent.new_empty(len(sender), *sent.shape[1:])
        counts = sender.bincount(minlength=world()).tolist()
        dist.all_to_all_single(received, sent, counts, list(map(len, asked)))

        in_order = sender.argsort(stable=True).to(self.device)
        return torch.empty_like(received).index_copy_(0, in_order, received)


def refuse_idle(share: Share) -> None:
    """Raise InputError where a rank would have no image of some chunk of a batch."""
    chunks = len(share.sizes)
    if share.n // chunks < world():
        raise InputError(
            f"a batch of {share.n} in {chunks} chunks leaves some of {world()} ranks without any; "
            "set drop_last=True, another batch_size or fewer ranks"
        )
