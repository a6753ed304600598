"""How long a GPU trains that no record has measured: by its arithmetic, and what others reached.

Every time that the pages promise of a GPU follows from here (``tools.times``).
"""

import functools
import re

from lib.compute.cost import flops
from lib.config import Config
from lib.data.dataset import VAL_SHARE
from lib.data.downloads import DOWNLOADS
from lib.encoders import Model
from lib.training import batch_sizes

# floating-point operations a second that the matrix units do in half precision at best, dense, by
# the maker's data sheets
PEAKS = {"T4": 65e12, "A100": 312e12, "H100": 989e12, "H200": 989e12}
# what training reaches of that: on an H100 as in the record supcon-cifar10-r18-e100-s0-2e25954a3b,
# its slow first epoch included; elsewhere as 100 epochs of SimCLR with a ResNet-18 on CIFAR-10,
# 1e7 views of 3.33e9 operations, which took twenty minutes on an A100 (README of
# github.com/dkobak/simclr-cifar10)
SHARES = {"T4": 0.089, "A100": 0.089, "H100": 0.16, "H200": 0.16}


def rate(device: str) -> float | None:
    """Floating-point operations a second of training on a GPU of that name; None: nobody tells."""
    for kind, peak in PEAKS.items():
        if re.search(rf"\b{kind}\b", device):
            return SHARES[kind] * peak
    return None


def operations(config: Config, pool: int, size: int) -> float:
    """Floating-point operations of a run's training.

    pool: images that are trained on.
    size: side of their views, in pixels.
    """
    per_view = per_view_of(config.encoder, config.stem, config.head, config.embedding, size)
    return per_view * views(config, pool)


def views(config: Config, pool: int) -> int:
    """How many views a run sees, of a pool of so many images."""
    return config.epochs * config.views * sum(batch_sizes(config, pool))


@functools.cache
def per_view_of(encoder: str, stem: str, head: str, embedding: int, size: int) -> int:
    """Floating-point operations that training spends on a view (``compute.cost.flops``)."""
    return flops(Model(encoder, stem, head, embedding), size)


def official_pool(config: Config) -> int | None:
    """How many images of a download are trained on; None of another data set."""
    download = DOWNLOADS.get(config.data)
    if download is None:
        return None
    if config.pool == "unlabeled" and download.unlabeled:
        return download.unlabeled
    labelled = config.images or download.labelled
    if config.pool == "train":
        return labelled - round(VAL_SHARE * labelled)
    return labelled


def minutes(config: Config, device: str) -> float | None:
    """How long a run is trained on a GPU of that name; None where nothing tells.

    Without its evaluation, and as if no other work were on the machine.
    """
    pool, reached = official_pool(config), rate(device)
    if pool is None or reached is None:
        return None
    size = config.size or DOWNLOADS[config.data].side
    return operations(config, pool, size) / reached / 60
