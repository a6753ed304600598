"""Time and memory of the losses, forward and backward, beside the peers.

Each case takes embeddings of random directions, float32, D = 128, two views, temperature 0.1, 10
classes for SupCon, and computes the loss and its gradient. "dense" is the loss as it is most
shortly written, by us, with all M x M similarities in memory. "product" is one M x M x D matrix
product into memory given: a loss and its gradient need at least two. A peer is left out of the
sizes where it takes minutes or more memory than most machines have.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import Case
from lib import InputError, losses

D, TEMPERATURE, CLASSES = 128, 0.1, 10
SIZES = {"cpu": (512, 2048, 8192, 65536), "cuda": (512, 2048, 8192, 32768, 131072)}
PEERS = ("lightly", "pytorch-metric-learning")
LARGEST = {  # M, by the library or by the loss and the library
    "dense": 8192,
    "lightly": 8192,
    "pytorch-metric-learning": 8192,
    "product": 8192,
    "nt_xent pytorch-metric-learning": 512,  # it compares every positive pair with every negative
    "sup_con_in ours": 8192,  # this and the next for the time only
    "contrast ours": 8192,
}


def dense_nt_xent(z: Tensor) -> Tensor:
    """The loss as most code bases write it: all similarities, then each row's cross-entropy."""
    n = z.shape[1]
    rows = F.normalize(z.flatten(0, 1), dim=1)
    similarity = (rows @ rows.T / TEMPERATURE).fill_diagonal_(-math.inf)
    return F.cross_entropy(similarity, torch.arange(2 * n, device=z.device).roll(n))


def dense_sup_con(z: Tensor, labels: Tensor) -> Tensor:
    """SupCon with an M x M mask of the positives."""
    rows = F.normalize(z.flatten(0, 1), dim=1)
    labels = labels.repeat(2)
    similarity = (rows @ rows.T / TEMPERATURE).fill_diagonal_(-math.inf)
    positive = (labels[:, None] == labels).fill_diagonal_(False)
    log_probability = (similarity - similarity.logsumexp(1, keepdim=True)).masked_fill(~positive, 0)
    return -(log_probability.sum(1) / positive.sum(1)).mean()


def both_ways(z: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Forward and backward: the gradient of the loss."""
    return torch.autograd.grad(loss(z), z)[0]


def product(m: int, device: torch.device) -> Callable[[], Tensor]:
    """One matrix product of all pairs, into memory that is there before."""
    rows = torch.randn(m, D, generator=torch.Generator().manual_seed(0)).to(device)
    return partial(torch.mm, rows, rows.T, out=rows.new_zeros(len(rows), len(rows)))


def cases(m: int, device: torch.device) -> dict[str, Case]:
    """Every loss that can be had at this size, by "LOSS LIBRARY", as a call for its gradient."""
    from lightly.loss import NTXentLoss
    from pytorch_metric_learning import losses as pml

    n = m // 2
    z = torch.randn(2, n, D, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    labels = torch.arange(n, device=device) % CLASSES
    images = torch.arange(n, device=device)
    lightly = NTXentLoss(TEMPERATURE)
    pml_nt_xent = pml.NTXentLoss(TEMPERATURE)
    pml_sup_con = pml.SupConLoss(TEMPERATURE)

    functions = {
        "nt_xent ours": lambda z: losses.nt_xent(z, TEMPERATURE),
        "nt_xent dense": dense_nt_xent,
        "nt_xent lightly": lambda z: lightly(z[0], z[1]),
        "nt_xent pytorch-metric-learning": lambda z: pml_nt_xent(z.flatten(0, 1), images.repeat(2)),
        "sup_con ours": lambda z: losses.sup_con(z, labels, TEMPERATURE),
        "sup_con dense": lambda z: dense_sup_con(z, labels),
        "sup_con pytorch-metric-learning": lambda z: pml_sup_con(z.flatten(0, 1), labels.repeat(2)),
        "sup_con_in ours": lambda z: losses.sup_con(z, labels, TEMPERATURE, positives="in"),
    }
    made: dict[str, Case] = {}
    for name, function in functions.items():
        made[name] = partial(both_ways, z, function)
    made["contrast ours"] = lambda: losses.contrast(z.detach(), labels)
    return {name: case for name, case in made.items() if m <= largest(name)}


def largest(name: str) -> float:
    """The most embeddings that a case "LOSS LIBRARY" is measured at."""
    library = name.split()[1]
    return min(LARGEST.get(name, math.inf), LARGEST.get(library, math.inf))


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks loss``."""
    parser.add_argument(
        "--sizes", type=int, nargs="+", metavar="M", help="embeddings in a batch; even"
    )
    parser.add_argument(
        "--memory-of", nargs=3, metavar=("LOSS", "LIBRARY", "M"), help=argparse.SUPPRESS
    )


def run(args: argparse.Namespace, memory: Callable[..., int] = measure.in_own_process) -> None:
    """Measure, print, keep the record. memory: of a case, by the command that measures it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.memory_of:
        loss, library, m = args.memory_of
        print(memory_of(f"{loss} {library}", int(m), device))
        return

    sizes = args.sizes or SIZES[device.type]
    if any(m < 4 or m % 2 for m in sizes):
        raise InputError("--sizes must be even numbers from 4 up")

    rows = []
    for m in sizes:
        rows += rows_of(m, device, args.repetitions, memory)
    settings = {
        "dimensions": D,
        "temperature": TEMPERATURE,
        "classes": CLASSES,
        "repetitions": args.repetitions,
    }
    print(measure.keep("loss", device, rows, PEERS, settings, args.results))


def rows_of(
    m: int, device: torch.device, repetitions: int, memory: Callable[..., int]
) -> list[dict]:
    """Times, memory and ratios at one size; printed as they come."""
    made = cases(m, device)
    if m <= LARGEST["product"]:
        made["all product"] = product(m, device)
    seconds = measure.interleaved(made, repetitions)

    rows = []
    for name, taken in seconds.items():
        loss, library = name.split()
        row = {"loss": loss, "library": library, "m": m, "seconds": measure.spread(taken)}
        row["extra_bytes"] = 0
        if library != "product":
            row["extra_bytes"] = memory("loss", "--memory-of", loss, library, str(m))
        if library == "ours" and "all product" in seconds:
            row["times_the_product"] = measure.ratios(taken, seconds["all product"])
        if library != "ours" and f"{loss} ours" in seconds:
            row["times_ours"] = measure.ratios(taken, seconds[f"{loss} ours"])
        rows.append(row)
        show(name, row)
    return rows


def show(name: str, row: dict) -> None:
    ratio = ""
    if "times_ours" in row:
        ratio = f"of ours {measure.in_words(row['times_ours'])}"
    elif "times_the_product" in row:
        ratio = f"of the product {measure.in_words(row['times_the_product'])}"
    print(
        f"{row['m']:7} {name:32} {1e3 * row['seconds']['median']:10.2f} ms "
        f"{row['extra_bytes'] / 1e6:9.1f} MB  {ratio}",
        flush=True,
    )


def memory_of(name: str, m: int, device: torch.device) -> int:
    """Extra bytes of one call, in a process that has done the same on a small batch before."""
    cases(256, device)[name]()
    return measure.extra_memory(cases(m, device)[name], device)
