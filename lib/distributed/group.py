"""Many processes at one run: the ranks that torchrun starts, and what each has of a batch.

They begin with equal weights. Only rank 0 writes; what must be decided alike is agreed on. A rank
that dies ends the job: its peers see the connection close, or wait for TIMEOUT. Without torchrun
nothing here talks to anyone.
"""

import contextlib
import functools
import io
import os
import secrets
import sys
import time
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from lib import InputError, in_a_line
from lib.compute.log_sum_exp import Rows

TIMEOUT = timedelta(seconds=45)  # for a rank in a step
PATIENCE = timedelta(hours=6)  # for one that reads or writes
# what errors say where a rank is gone
SIGNS = ("onnection", "imed out", "timeout", "gloo", "Gloo", "NCCL", "Broken pipe")


def active() -> bool:
    """Whether this process is one of a group's, be it the only one."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process, from 0. Only rank 0 writes."""
    return dist.get_rank() if active() else 0


def world() -> int:
    """How many ranks there are; 1 without torchrun."""
    return dist.get_world_size() if active() else 1


@contextlib.contextmanager
def joined(device: str | None = None) -> Iterator[str | None]:
    """Within, the processes that torchrun started are a group, where it did.

    NCCL on GPUs, one for each rank, Gloo on CPUs. Gives the device to compute on; only rank 0
    prints. Raises InputError where a device can't serve ranks, and where another rank is gone or
    silent: the whole job ends, and goes on from the last checkpoint when it is started again. (On
    GPUs it may be NCCL's watchdog that ends a process after TIMEOUT, with its own words.)
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        _tell_of_idle_gpus(device, torch.cuda.device_count())
        yield device
        return

    device = _device_of_this_rank(device)
    _meet(device)
    output = sys.stdout if rank() == 0 else io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            barrier()
            yield device
            barrier()
    except RuntimeError as error:
        sentence = lost(error)
        if sentence is None:
            raise
        raise InputError(sentence) from error
    dist.destroy_process_group()  # not after an error: it would wait for the others


def _tell_of_idle_gpus(device: str | None, gpus: int) -> None:
    """That a run takes one GPU of several, in a line on stderr."""
    if gpus > 1 and device in (None, "cuda"):
        print(
            f"one of {gpus} GPUs is used; for all of them begin the command with torchrun "
            f"--standalone --nproc-per-node {gpus} -m lib in place of python -m lib",
            file=sys.stderr,
        )


def _device_of_this_rank(device: str | None) -> str:
    """The device to compute on, by name, "cuda" where there is one; a GPU becomes the current one.

    Raises InputError where it can't serve this rank.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cuda", "cpu"):
        raise InputError(f"ranks compute on cuda or cpu, not on {device}")

    if device == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        gpus = torch.cuda.device_count()
        if local >= gpus:
            raise InputError(
                f"there are {gpus} GPUs for {local + 1} ranks or more: lower --nproc-per-node"
            )
        torch.cuda.set_device(local)
    return device


def _meet(device: str) -> None:
    """Wait until all ranks are here, then be a group."""
    store, number, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    store = _of_this_start(store, number, size)
    store.set(f"here {number}", "")  # a slow start is no silence
    for other in range(size):
        store.wait([f"here {other}"], PATIENCE)

    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        store=store,
        rank=number,
        world_size=size,
        timeout=TIMEOUT,
    )


def _of_this_start(store: dist.Store, number: int, size: int) -> dist.Store:
    """The store with keys of this start's own.

    torchrun keeps the store for restarts, and the addresses of the dead in it. Each rank but 0 asks
    under a name that it has just drawn, and gets the start's name, which rank 0 has drawn. What an
    earlier start asked is answered too, and nobody reads it.
    """
    name = secrets.token_hex(8)
    if number > 0:
        store.set(f"asks {number}", name)
        store.wait([f"for {name}"], PATIENCE)
        start = store.get(f"for {name}").decode()
        return dist.PrefixStore(start, store)

    own = dist.PrefixStore(name, store)
    absent = list(range(1, size))
    while absent:
        for other in absent:
            if store.check([f"asks {other}"]):
                asked = store.get(f"asks {other}").decode()
                store.set(f"for {asked}", name)
        time.sleep(0.05)
        absent = [other for other in absent if not own.check([f"here {other}"])]
    return own


def lost(error: BaseException) -> str | None:
    """One sentence where an error means that another rank is gone, or was silent for TIMEOUT.

    None where it means something else.
    """
    if not active() or not isinstance(error, RuntimeError):
        return None
    if not any(sign in str(error) for sign in SIGNS):
        return None

    words = in_a_line(error, 120)
    return (
        f"rank {rank()} lost another of {world()} ranks ({words}); the last checkpoint is kept, "
        "the same command goes on"
    )


@functools.cache
def _patient() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup)  # of which every rank is a member
    return group


def about() -> dict:
    """What a run's record says of its ranks; nothing without torchrun."""
    if not active():
        return {}
    batch_norm = "of the whole batch, by sums over ranks"
    return {"ranks": {"world": world(), "backend": dist.get_backend(), "batch_norm": batch_norm}}


def tell(sentence: str) -> None:
    """Rank 0 says it on stderr, in a line with what there is to say of the ranks."""
    if rank() > 0:
        return
    if active():
        ranks = about()["ranks"]
        group = f"{ranks['world']} ranks by {ranks['backend']}, BatchNorm {ranks['batch_norm']}"
        sentence = f"{group}; {sentence}"
    print(sentence, file=sys.stderr, flush=True)


def barrier() -> None:
    """Wait for all ranks, for hours if need be; a rank that dies is noticed at once."""
    if active():
        dist.all_reduce(torch.zeros(1), group=_patient())


def agree(*values: int) -> list[int]:
    """The largest of all ranks' values, one by one.

    A host waits for the others here, a GPU does not.
    """
    largest = torch.tensor(values)
    if active():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


@contextlib.contextmanager
def rank_0_first() -> Iterator[None]:
    """Rank 0 is within before the others are: for what one must do and all read."""
    if rank() > 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def cut(start: int, stop: int, pieces: int) -> list[slice]:
    """start to stop in nearly equal pieces."""
    bounds = [start + (stop - start) * piece // pieces for piece in range(pieces + 1)]
    return list(map(slice, bounds, bounds[1:]))


class Share:
    """Which places of a batch of n images are whose.

    A batch is first cut into chunks (gradient accumulation), then each chunk into ranks, so that
    order, views, loss and BatchNorm's batches are the same whatever the number of ranks. A batch
    too small for so many chunks has fewer. Embeddings are gathered. What depends on all pairs is
    computed by rows: a rank sums the denominators of its own anchors, the sums are gathered, and
    with all of them it knows the whole gradient of its own embeddings,
    ``sum_j (g_i p_ij + g_j p_ji) z_j / t``. So M D numbers and M sums are sent in the loss's
    forward pass, none in its backward pass, and no rank holds more than O(M D).
    """

    def __init__(self, n: int, accumulate: int = 1, device: torch.device | str = "cpu"):
        """n: images in the batch.

        accumulate: chunks that the batch is cut into.
        device: of ``every`` and ``mine``.
        """
        chunks = cut(0, n, max(1, min(accumulate, n // 2)))
        pieces = [cut(chunk.start, chunk.stop, world()) for chunk in chunks]

        self.n = n
        self.own = [of_ranks[rank()] for of_ranks in pieces]  # a slice of places for each chunk
        self.sizes = [piece.stop - piece.start for piece in self.own]
        self.every = []  # the places (n_r,) of each rank
        for number in range(world()):
            places = [torch.arange(n)[of_ranks[number]] for of_ranks in pieces]
            self.every.append(torch.cat(places).to(device))
        self.mine = self.every[rank()]

    def gather(self, mine: Tensor) -> Tensor:
        """Every rank's (V, n_r, ...) -> the batch's (V, n, ...), in its order, without gradient."""
        if not active():
            return mine
        lengths = list(map(len, self.every))
        padded = mine.new_zeros(max(lengths), len(mine), *mine.shape[2:])
        padded[: mine.shape[1]] = mine.transpose(0, 1)
        every = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(every, padded)

        rows = torch.cat([images[:length] for images, length in zip(every, lengths)])
        places = torch.cat(self.every).to(rows.device)
        in_order = torch.empty_like(rows).index_copy_(0, places, rows)
        return in_order.transpose(0, 1).contiguous()

    def rows(self, views: int, device: torch.device) -> Rows:
        """This rank's rows of the batch's embeddings z.flatten(0, 1), z being (V, n, D)."""
        starts = torch.arange(views, device=device)[:, None] * self.n
        own = (starts + self.mine.to(device)).flatten()  # (V n_r,)
        return Rows(own, lambda values: self.gather(values.view(views, -1)).flatten())
