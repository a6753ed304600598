"""NT-Xent and SupCon: one log-sum-exp, two sets of positives.

Both losses compare every anchor ``z_i`` with all other embeddings of the batch. They share the denominator, and
differ only in whom they call a positive:

    loss_i = log sum_{j != i} exp(z_i . z_j / t)  -  mean_{p in P(i)} z_i . z_p / t

NT-Xent (SimCLR, arXiv 2002.05709, equation 1): P(i) is the one other view of the same image.
SupCon (arXiv 2004.11362, equation 2, "L_out"): P(i) is every other embedding with the same label.

Letters: N images, V views, M = V N embeddings, D dimensions, t temperature. Losses are in nats.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lib import InputError


def log_sum_exp_others(z: Tensor, temperature: float) -> Tensor:
    """``log sum_{j != i} exp(z_i . z_j / t)`` for every row i.

    z: (M, D) float, normalised or not. Returns (M,). The diagonal is set to -inf before the sum, which is exact
    in every precision (a large negative constant overflows in half precision).
    """
    similarity = z @ z.T / temperature                                  # (M, M)
    return similarity.fill_diagonal_(-math.inf).logsumexp(dim=1)        # (M,)


def positives_by_class(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of ``z_i . z_p`` over the positives p of each anchor i, and how many positives it has.

    z: (M, D) float; labels: (M,) integers. Returns (M,) float and (M,) integers. No M x M mask is needed, because
    the sum over positives is a dot product with the class's sum: ``sum_p z_i . z_p = z_i . (S_c - z_i)``.
    An anchor that is alone in its class has no positive; its mean is 0.
    """
    _, of = labels.unique(return_inverse=True)
    member = F.one_hot(of).to(z.dtype)                                  # (M, C)
    others = member @ (member.T @ z) - z        # (M, D)  sum over the other members; no gather: its backward is not
                                                # deterministic on several threads
    count = member.sum(0).long()[of] - 1                                # (M,)
    return (z * others).sum(1) / count.clamp(min=1), count


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss, averaged over all 2N anchors (arXiv 2002.05709, section 2.1, equation 1).

    z: (2, N, D) float, two views of N images in the same order, not yet normalised; N >= 2.
    Returns a scalar in nats. Fully collapsed embeddings give exactly ``chance(2 N)``.
    Raises InputError for another shape or a temperature that is not positive.
    """
    _check(z, temperature)
    if len(z) != 2:
        raise InputError(f"nt_xent compares two views: z must be (2, N, D), not {tuple(z.shape)}")
    z = F.normalize(_at_least_float32(z), dim=-1)
    positive = (z[0] * z[1]).sum(-1) / temperature                      # (N,)  the same for both directions
    return log_sum_exp_others(z.flatten(0, 1), temperature).mean() - positive.mean()


def sup_con(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The supervised contrastive loss "L_out" (arXiv 2004.11362, section 3.2.2, equation 2).

    z: (V, N, D) float, V views of N images, not yet normalised; labels: (N,) integers, the images' classes.
    Returns a scalar in nats: the mean over the anchors that have at least one positive. Anchors without one (V = 1
    and alone in their class) are left out of the mean; where no anchor has one the loss is 0.
    With all labels different and V = 2 it equals ``nt_xent``.
    Raises InputError for wrong shapes, a label count that is not N, or a temperature that is not positive.
    """
    _check(z, temperature)
    if labels.shape != z.shape[1:2]:
        raise InputError(f"sup_con needs one label for each of the {z.shape[1]} images, got {tuple(labels.shape)}")
    views = len(z)
    z = F.normalize(_at_least_float32(z), dim=-1).flatten(0, 1)         # (M, D)  view by view
    positive, count = positives_by_class(z, labels.repeat(views))
    loss = log_sum_exp_others(z, temperature) - positive / temperature  # (M,)
    has_positive = (count > 0).to(loss.dtype)
    return (loss * has_positive).sum() / has_positive.sum().clamp(min=1)


def chance(m: int) -> float:
    """The loss of M embeddings that are all the same, log(M - 1): what a collapsed encoder pays. In nats."""
    return math.log(m - 1)


def floor(m: int, positives: int, temperature: float) -> float:
    """The loss no M embeddings with P positives each can beat, ``log(P + (M-1-P) exp(-M / ((M-1-P) t)))``, in nats.

    Reached where positives coincide and the groups of P + 1 are the corners of a regular simplex, at the cosine
    -(P + 1) / (M - 1 - P); a bound in any case, by Jensen's inequality and |sum of z|^2 >= 0.
    """
    negatives = m - 1 - positives
    return math.log(positives + (negatives * math.exp(-m / (negatives * temperature)) if negatives else 0))


def _at_least_float32(z: Tensor) -> Tensor:
    """Half precision is lifted, so that the sums keep their digits; float64 stays."""
    return z if z.dtype == torch.float64 else z.float()


def _check(z: Tensor, temperature: float) -> None:
    if not temperature > 0:
        raise InputError(f"temperature must be greater than 0, got {temperature}")
    if z.ndim != 3:
        raise InputError(f"z must have the shape (views, images, dimensions), got {tuple(z.shape)}")
    if z.shape[1] < 2:
        raise InputError(f"a contrastive loss needs at least two images in a batch, z has the shape {tuple(z.shape)}")
