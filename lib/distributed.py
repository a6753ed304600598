"""Many processes at one run: ranks, which torchrun starts, each with a part of every batch
(``lib.shares``).

They begin with equal weights, and DistributedDataParallel averages their gradients, so that weights
stay equal. BatchNorm sees the whole batch. Only rank 0 writes; what must be decided alike is agreed
on. A rank that dies ends the job: its peers see the connection close, or wait for TIMEOUT. Without
torchrun nothing here talks to anyone.
"""

import contextlib
import copy
import functools
import io
import os
import secrets
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import MethodType

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lib import InputError, files

TIMEOUT, PATIENCE = (
    timedelta(seconds=45),
    timedelta(hours=6),
)  # for a rank in a step; for one that reads or writes
LOCK = ".lock"  # in a run's folder; it stays there, empty: only who holds it matters
SIGNS = (
    "onnection",
    "imed out",
    "timeout",
    "gloo",
    "Gloo",
    "NCCL",
    "Broken pipe",
)  # of a rank that is gone


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
    """Within, the processes that torchrun started are a group: NCCL on GPUs, one for each rank,
    Gloo on CPUs.

    Gives the device to compute on; only rank 0 prints. Raises InputError where a device can't serve
    ranks, and where another rank is gone or silent: the whole job ends, and goes on from the last
    checkpoint when it is started again. (On GPUs it may be NCCL's watchdog that ends a process
    after TIMEOUT, with its own words.)
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device not in ("cuda", "cpu"):
        raise InputError(f"ranks compute on cuda or cpu, not on {device}")
    if device == "cuda":
        if local >= gpus:
            raise InputError(
                f"there are {gpus} GPUs for {local + 1} ranks or more: lower --nproc-per-node"
            )
        torch.cuda.set_device(local)
    store, number, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    store = _of_this_start(store, number, size)
    store.set(f"here {number}", "")  # a slow start is no silence
    store.wait([f"here {other}" for other in range(size)], PATIENCE)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        store=store,
        rank=number,
        world_size=size,
        timeout=TIMEOUT,
    )
    try:
        with contextlib.redirect_stdout(io.StringIO() if rank() else sys.stdout):
            barrier()
            yield device
            barrier()
    except RuntimeError as error:
        if said := lost(error):
            raise InputError(said) from error
        raise
    dist.destroy_process_group()  # not after an error: it would wait for the others


def _of_this_start(store: dist.Store, number: int, size: int) -> dist.Store:
    """The store with keys of this start's own: torchrun keeps it for restarts, and the addresses of
    the dead in it.

    Each rank but 0 asks under a name that it has just drawn, and gets the start's name, which rank
    0 has drawn. What an earlier start asked is answered too, and nobody reads it.
    """
    name = secrets.token_hex(8)
    if number:
        store.set(f"asks {number}", name)
        store.wait([f"for {name}"], PATIENCE)
        return dist.PrefixStore(store.get(f"for {name}").decode(), store)
    own, coming = dist.PrefixStore(name, store), range(1, size)
    while coming := [other for other in coming if not own.check([f"here {other}"])]:
        for other in (other for other in coming if store.check([f"asks {other}"])):
            store.set(f"for {store.get(f'asks {other}').decode()}", name)
        time.sleep(0.05)
    return own


def lost(error: BaseException) -> str | None:
    """One sentence where an error means that another rank is gone, or was silent for TIMEOUT; else
    None."""
    if (
        not active()
        or not isinstance(error, RuntimeError)
        or not any(sign in str(error) for sign in SIGNS)
    ):
        return None
    return (
        f"rank {rank()} lost another of {world()} ranks ({' '.join(str(error).split())[:120]}); "
        "the last "
        f"checkpoint is kept, the same command goes on"
    )


@functools.cache
def _patient() -> dist.ProcessGroup:
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def about(device: torch.device) -> dict:
    """What a run's record says of its ranks; nothing without torchrun."""
    norm = (
        "torch's SyncBatchNorm"
        if device.type == "cuda"
        else "sums over ranks (SyncBatchNorm needs a GPU)"
    )
    return (
        {
            "ranks": {
                "world": world(),
                "backend": dist.get_backend(),
                "batch_norm": f"of the whole batch, by {norm}",
            }
        }
        if active()
        else {}
    )


def tell(device: torch.device, what: str) -> None:
    """Rank 0 says it on stderr, in a line with what there is to say of the ranks."""
    of = about(device).get("ranks")
    if not rank():
        line = (
            f"{of['world']} ranks by {of['backend']}, BatchNorm {of['batch_norm']}; {what}"
            if of
            else what
        )
        print(line, file=sys.stderr, flush=True)


def barrier() -> None:
    """Wait for all ranks, for hours if need be; a rank that dies is noticed at once."""
    if active():
        dist.all_reduce(torch.zeros(1), group=_patient())


def agree(*values: int) -> list[int]:
    """The largest of all ranks' values, one by one. A host waits for the others here, a GPU does
    not."""
    largest = torch.tensor(values)
    if active():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


@contextlib.contextmanager
def first() -> Iterator[None]:
    """Rank 0 is within before the others are: for what one must do and all read."""
    if rank():
        barrier()
    yield
    if not rank():
        barrier()


@contextlib.contextmanager
def only_writer(folder: Path, wait: bool = True) -> Iterator[None]:
    """``files.only_writer`` of a run's folder for all ranks: rank 0 holds the lock, nobody leaves
    before it wrote."""
    with (
        contextlib.nullcontext() if rank() else files.only_writer(folder / LOCK, str(folder), wait)
    ):
        barrier()
        yield
        barrier()


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """What a step calls: a twin on the same weights whose BatchNorm sees the whole batch, averaging
    gradients.

    torch's SyncBatchNorm runs on GPUs only; on CPUs the same is computed here, by sums over all
    ranks.
    """
    if not active() or not any(True for _ in model.parameters()):
        return model
    twin = copy.deepcopy(
        model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    )
    if device.type == "cuda":
        twin = nn.SyncBatchNorm.convert_sync_batchnorm(twin)
    for module in twin.modules() if device.type == "cpu" else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = MethodType(_batch_norm, module)
    barrier()  # patient: images may have come slowly to some
    return DistributedDataParallel(
        twin,
        gradient_as_bucket_view=True,
        device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None,
    )


class _Sum(torch.autograd.Function):
    """The sum over all ranks; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return _Sum.apply(g)


def _batch_norm(self, x: Tensor) -> Tensor:
    """BatchNorm's forward with the mean and variance of all ranks' x: (n_r, C, ...)."""
    if not self.training:
        return type(self).forward(self, x)
    axes, shape, dtype = [0, *range(2, x.dim())], (1, -1, *(1 for _ in x.shape[2:])), x.dtype
    x = x.to(torch.promote_types(dtype, torch.float32))
    sums = _Sum.apply(torch.cat([x.sum(axes), x.new_tensor([x.numel() / x.shape[1]])]))
    mean, count = sums[:-1] / sums[-1], sums[-1].detach()
    x = x - mean.view(shape)
    variance = _Sum.apply(x.square().sum(axes)) / count
    with torch.no_grad():
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)
    x = x * ((variance + self.eps).rsqrt() * self.weight).view(shape) + self.bias.view(shape)
    return x.to(dtype)


@contextlib.contextmanager
def buffers_kept(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Where wanted, BatchNorm's running sums are afterwards what they were before: a second pass
    will count."""
    kept = [buffer.clone() for buffer in model.buffers()] if wanted else []
    yield
    for buffer, before in zip(model.buffers(), kept):
        buffer.copy_(before)


def not_yet(model: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """Within, gradients only add up; with the last chunk's they are averaged over ranks."""
    return (
        contextlib.nullcontext()
        if last or not isinstance(model, DistributedDataParallel)
        else model.no_sync()
    )
