"""Slow, literal transcriptions of the papers' equations, to hold the library against. Python loops on purpose."""

import math

import numpy as np


def unit(z):
    """Rows scaled to length 1, float64."""
    z = np.asarray(z, dtype=np.float64)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def nt_xent(z, temperature):
    """SimCLR, arXiv 2002.05709, equation 1 and algorithm 1. z: (2, N, D), any length."""
    z = unit(z)
    n = z.shape[1]
    views = [z[0][i] for i in range(n)] + [z[1][i] for i in range(n)]
    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        denominator = sum(math.exp(views[i] @ views[k] / temperature) for k in range(2 * n) if k != i)
        total += -math.log(math.exp(views[i] @ views[j] / temperature) / denominator)
    return total / (2 * n)


def sup_con_anchors(z, labels, temperature, normalise=True):
    """SupCon L_out, arXiv 2004.11362, equation 2: one loss for each anchor, None without a positive. z: (V, N, D)."""
    z = unit(z) if normalise else np.asarray(z, dtype=np.float64)
    rows = [(z[v][i], labels[i]) for v in range(z.shape[0]) for i in range(z.shape[1])]
    out = []
    for i, (anchor, label) in enumerate(rows):
        denominator = sum(math.exp(anchor @ other / temperature) for a, (other, _) in enumerate(rows) if a != i)
        logs = [math.log(math.exp(anchor @ other / temperature) / denominator)
                for p, (other, theirs) in enumerate(rows) if p != i and theirs == label]
        out.append(-sum(logs) / len(logs) if logs else None)
    return out


def sup_con(z, labels, temperature):
    """The mean over the anchors that have a positive."""
    losses = [loss for loss in sup_con_anchors(z, labels, temperature) if loss is not None]
    return sum(losses) / len(losses)
