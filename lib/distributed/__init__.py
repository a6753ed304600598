"""Many processes at one run, which torchrun starts: each has a part of every batch.

``group`` is who there is and what they agree on; it knows nothing of training. ``batches``,
``step`` and ``batchnorm`` are what training in a group takes, and gradient accumulation, which
shares a batch out over time instead of over processes: batches and a step of the same shape as
those of ``lib.training``.
"""

from lib.distributed.group import (
    Share,
    active,
    agree,
    barrier,
    joined,
    lost,
    rank,
    rank_0_first,
    world,
)

__all__ = ["Share", "active", "agree", "barrier", "joined", "lost", "rank", "rank_0_first", "world"]
