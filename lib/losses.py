"""NT-Xent and SupCon: one log-sum-exp, two sets of positives.

Both losses compare every anchor ``z_i`` with all other embeddings of the batch. They share the
denominator, and differ only in whom they call a positive:

    loss_i = log sum_{j != i} exp(z_i . z_j / t)  -  mean_{p in P(i)} z_i . z_p / t

NT-Xent (SimCLR, arXiv 2002.05709, equation 1): P(i) is the one other view of the same image.
SupCon (arXiv 2004.11362, equation 2, "L_out"): P(i) is every other embedding with the same label.

Letters: N images, V views, M = V N embeddings, D dimensions, t temperature. Losses are in nats,
averaged over the anchors. No M x M matrix is made: the denominators are summed tile by tile, but
for second derivatives and on a Mac's GPU (``compute.log_sum_exp``), and the positives need none,
because the sum over them is a dot product with the sum of a class.
"""

import math
from numbers import Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib import InputError
from lib.compute.log_sum_exp import Rows, log_sum_exp_others, negatives_ahead

POSITIVES = ("out", "in")
LEAST_TEMPERATURE = 1e-30  # far above where its inverse is too large for float32


def nt_xent(
    z: Tensor,
    temperature: float,
    base_temperature: float | None = None,
    check: bool = True,
    rows: Rows | None = None,
) -> Tensor:
    """SimCLR's loss, averaged over all 2N anchors (arXiv 2002.05709, section 2.1, equation 1).

    z: (2, N, D) float, two views of N images in the same order, not yet normalised; N >= 2. Half
        precision is lifted.
    base_temperature: multiply by temperature / base_temperature, as SupContrast's code does; None:
        the equation.
    check: look for numbers that are not finite. A GPU has to wait for the answer; a compiled loss
        never asks.
    rows: the anchors whose denominators this process sums, where several processes share a batch
        (``lib.distributed``); the gradient is right in their rows. None: all.

    Returns a scalar in nats (times the factor). Fully collapsed embeddings give
    ``chance(2 N)`` up to rounding, without a factor.
    Raises InputError for another shape, a number that is not finite, or a temperature that is not
    a positive number: no gradient flows to it.
    """
    factor = scale(temperature, base_temperature)
    temperature = float(temperature)
    _check(z)
    if len(z) != 2:
        raise InputError(f"nt_xent compares two views: z must be (2, N, D), not {tuple(z.shape)}")

    z = normalise(z, check)
    first, second = z  # (N, D) each
    positive = (first * second).sum() / (z.shape[1] * temperature)  # mean over anchors
    denominators = log_sum_exp_others(z.flatten(0, 1), temperature, bound=1, rows=rows)
    loss = denominators.mean() - positive
    return loss * factor


def sup_con(
    z: Tensor,
    labels: Tensor,
    temperature: float,
    positives: str = "out",
    base_temperature: float | None = None,
    check: bool = True,
    rows: Rows | None = None,
) -> Tensor:
    """The supervised contrastive loss (arXiv 2004.11362, section 3.2.2, equations 2 and 3).

    z: (V, N, D) float, V views of N images, not yet normalised.
    labels: (N,) integers, the images' classes, any values.
    positives: "out", the mean over the positives outside the logarithm (L_out, the paper's choice),
        or "in", inside (L_in, never more than L_out):
        ``log sum_{j != i} exp(z_i . z_j / t) - log mean_p exp(z_i . z_p / t)``.
    base_temperature, check, rows: as in nt_xent.

    Returns a scalar in nats: the mean over the anchors that have at least one positive. Anchors
    without one (V = 1 and alone in their class) are left out of the mean; where no anchor has one
    the loss is 0. With all labels different and V = 2 it equals ``nt_xent``.
    Raises InputError for wrong shapes, a label count that is not N, labels that are no integers, a
    number that is not finite, an unknown ``positives``, or a temperature that is not positive.
    """
    factor = scale(temperature, base_temperature)
    temperature = float(temperature)
    _check(z)
    if positives not in POSITIVES:
        raise InputError(f"positives must be 'out' or 'in', got {positives!r}")

    labels = _labels_of(z, labels)  # (M,)
    z = normalise(z, check).flatten(0, 1)  # (M, D)
    mean, count = positives_by_class(z, labels)
    if positives == "in":
        # over the others of the same class alone
        inside = log_sum_exp_others(z, temperature, labels, bound=1, rows=rows)
        log_mean = inside - count.clamp(min=1).to(z.dtype).log()
        mean = temperature * torch.where(count > 0, log_mean, 0)

    denominators = log_sum_exp_others(z, temperature, bound=1, rows=rows)
    loss = denominators - mean / temperature
    has_positive = (count > 0).to(loss.dtype)
    loss = (loss * has_positive).sum() / has_positive.sum().clamp(min=1)
    return loss * factor


def positives_by_class(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of ``z_i . z_p`` over the positives p of each anchor i, and how many positives it has.

    z: (M, D) float.
    labels: (M,) integers.

    Returns (M,) float and (M,) integers, in O(M D) memory, because the sum over positives is a dot
    product with the class's sum: ``sum_p z_i . z_p = z_i . (S_c - z_i)``. An anchor that is alone
    in its class has no positive; its mean is 0.
    """
    place = _class_places(labels)
    sums = torch.zeros_like(z).index_add(0, place, z)  # (M, D)  row c: the sum of class c
    one = z.new_ones(len(z))  # not of integers, which MPS can't add so in PyTorch 2.6 to 2.8
    count = torch.zeros_like(one).index_add(0, place, one)[place].long() - 1
    # index_select: the backward pass of z[place] adds in any order on several threads
    others = sums.index_select(0, place) - z
    return (z * others).sum(1) / count.clamp(min=1), count


def _class_places(labels: Tensor) -> Tensor:
    """Labels of any value as classes from 0, (M,) int64; by sorting: no size depends on them."""
    ordered, places = labels.sort()
    numbers = F.pad((ordered[1:] != ordered[:-1]).long().cumsum(0), (1, 0))
    return torch.empty_like(places).scatter_(0, places, numbers)


class Contrast(NamedTuple):
    """How well a batch's embeddings tell who belongs together, over anchors with a positive."""

    top1: float  # anchors whose nearest other embedding is a positive; by guessing P / (M - 1)
    top5: float  # anchors with a positive among the five nearest; both are shares
    positive: float  # mean cosine of the positive pairs
    negative: float | None  # mean cosine of all other pairs; None where there are none


@torch.no_grad()
def contrast(z: Tensor, labels: Tensor | None = None) -> Contrast:
    """Accuracies and mean similarities of a batch, for a run's curves. No M x M matrix is made.

    z: (V, N, D) float, not yet normalised.
    labels: (N,) integers, or None: each image is its own class.

    A tie counts against the positive.
    Raises InputError as the losses do, and where no anchor has a positive.
    """
    _check(z)
    if labels is None:
        labels = torch.arange(z.shape[1], device=z.device)
    labels = _labels_of(z, labels)  # (M,)
    z = normalise(z).flatten(0, 1)  # (M, D)
    mean, count = positives_by_class(z, labels)
    if not count.any():
        raise InputError(
            "no embedding of the batch has a positive: give two views, or labels that occur twice"
        )

    ahead = negatives_ahead(z, labels)[count > 0]
    top1 = int((ahead < 1).sum()) / len(ahead)
    top5 = int((ahead < 5).sum()) / len(ahead)

    positive = (mean * count).sum()
    everything = z.sum(0).square().sum() - z.square().sum()
    positives = int(count.sum())
    negatives = len(z) * (len(z) - 1) - positives
    negative = None
    if negatives:
        negative = (everything - positive).item() / negatives
    return Contrast(top1, top5, positive.item() / positives, negative)


def chance(m: int) -> float:
    """The loss of M equal embeddings, log(M - 1), in nats: what a collapsed encoder pays."""
    return math.log(m - 1)


def floor(m: int, positives: int, temperature: float) -> float:
    """The loss that no M embeddings with P positives each can beat, in nats.

    ``log(P + (M-1-P) exp(-M / ((M-1-P) t)))``. Reached where positives coincide and the groups of
    P + 1 are the corners of a regular simplex, at the cosine ``-(P + 1) / (M - 1 - P)``; a bound in
    any case, by Jensen's inequality and |sum of z|^2 >= 0.
    """
    negatives = m - 1 - positives
    if not negatives:
        return math.log(positives)
    return math.log(positives + negatives * math.exp(-m / (negatives * temperature)))


def normalise(z: Tensor, check: bool = True) -> Tensor:
    """Rows of length 1, float64 or lifted to float32, so that the sums keep their digits.

    A row of zeros has no direction: it stays zero and gets no gradient. With check, raises
    InputError for a NaN or an infinity, or a row too long for its length to be a number.
    """
    if z.dtype != torch.float64:
        z = z.float()
    length = z.norm(dim=-1, keepdim=True)
    if check and not torch.compiler.is_compiling() and not length.isfinite().all():
        raise InputError(
            f"z has a NaN or an infinity, or rows too long for {z.dtype}; look for them in the "
            "model's output, or lower the learning rate"
        )
    return z / length.masked_fill(length == 0, math.inf)


def scale(temperature: float, base_temperature: float | None) -> float:
    """SupContrast's factor on the loss, a hidden learning rate: temperature / base_temperature.

    1 where base_temperature is None. Raises InputError where one is not a positive number.
    """
    _check_temperature("temperature", temperature)
    if base_temperature is None:
        return 1.0
    _check_temperature("base_temperature", base_temperature)
    return float(temperature) / float(base_temperature)


def _labels_of(z: Tensor, labels: Tensor) -> Tensor:
    """The labels of the embeddings z.flatten(0, 1), view by view: (M,). Arrays serve as tensors."""
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"labels must be integers, one for each image, got {labels!r:.60}"
        ) from error
    if labels.shape != z.shape[1:2] or labels.is_floating_point() or labels.is_complex():
        raise InputError(
            f"there must be one integer label for each of the {z.shape[1]} images, got "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    return labels.to(z.device).repeat(len(z))


def _check_temperature(name: str, value: float) -> None:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise InputError(
                f"{name} must be a number, got a tensor of the shape {tuple(value.shape)}; two "
                "views go into one z: torch.stack([z1, z2])"
            )
        raise InputError(f"{name} must be a number, as float({name}): it gets no gradient")
    if not isinstance(value, Real):
        raise InputError(f"{name} must be a number, got {value!r}")
    if not LEAST_TEMPERATURE <= value < math.inf:
        raise InputError(f"{name} must be at least {LEAST_TEMPERATURE:g} and finite, got {value}")


def _check(z: Tensor) -> None:
    if not isinstance(z, Tensor) or not z.is_floating_point():
        kind = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise InputError(f"z must be a tensor of floating-point numbers, got {kind}")
    shape = tuple(z.shape)
    if z.ndim != 3 or not len(z):
        raise InputError(f"z must have the shape (views, images, dimensions), got {shape}")
    if z.shape[1] < 2:
        raise InputError(
            f"a contrastive loss needs at least two images in a batch, z has the shape {shape}"
        )
