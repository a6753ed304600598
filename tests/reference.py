"""Slow, literal transcriptions of the papers' equations, to hold the library against.

Python loops on purpose.
"""

import math

import numpy as np
from scipy.integrate import quad


def unit(z):
    """Rows scaled to length 1, float64."""
    z = np.asarray(z, dtype=np.float64)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def nt_xent(z, temperature):
    """SimCLR, arXiv 2002.05709, equation 1 and algorithm 1. z: (2, N, D), any length."""
    z = unit(z)
    n = z.shape[1]
    views = [*z[0], *z[1]]
    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        denominator = 0.0
        for k in range(2 * n):
            if k != i:
                denominator += math.exp(views[i] @ views[k] / temperature)
        total += -math.log(math.exp(views[i] @ views[j] / temperature) / denominator)
    return total / (2 * n)


def sup_con_anchors(z, labels, temperature, normalise=True, positives="out"):
    """SupCon, arXiv 2004.11362, equations 2 (L_out) and 3 (L_in): one loss an anchor.

    z: (V, N, D). None for an anchor without a positive.
    """
    z = unit(z) if normalise else np.asarray(z, dtype=np.float64)
    rows = z.reshape(-1, z.shape[-1])
    classes = list(labels) * len(z)
    losses = []
    for i, anchor in enumerate(rows):
        denominator = 0.0
        for a, other in enumerate(rows):
            if a != i:
                denominator += math.exp(anchor @ other / temperature)

        shares = []
        for p, other in enumerate(rows):
            if p != i and classes[p] == classes[i]:
                shares.append(math.exp(anchor @ other / temperature) / denominator)

        if not shares:
            losses.append(None)
        elif positives == "out":
            losses.append(-sum(math.log(share) for share in shares) / len(shares))
        else:
            losses.append(-math.log(sum(shares) / len(shares)))
    return losses


def sup_con(z, labels, temperature, positives="out"):
    """The mean over the anchors that have a positive. z: (V, N, D)."""
    anchors = sup_con_anchors(z, labels, temperature, positives=positives)
    losses = [loss for loss in anchors if loss is not None]
    return sum(losses) / len(losses)


def alignment(z):
    """Wang and Isola, arXiv 2005.10242, section 4.1, alpha = 2. z: (2, N, D), any length."""
    first, second = unit(z)
    return sum(np.linalg.norm(a - b) ** 2 for a, b in zip(first, second)) / len(first)


def uniformity(z, t):
    """Wang and Isola, arXiv 2005.10242, section 4.1, over distinct pairs. z: (N, D), any length."""
    z = unit(z)
    kernel = []
    for i in range(len(z)):
        for j in range(len(z)):
            if i != j:
                kernel.append(math.exp(-t * np.linalg.norm(z[i] - z[j]) ** 2))
    return math.log(sum(kernel) / len(kernel))


def uniformity_of_the_sphere(d, t):
    """The same for a uniform distribution, by quadrature. D >= 2.

    u . v has the density (1 - c^2)^((D - 3) / 2).
    """
    total, _ = quad(lambda a: math.sin(a) ** (d - 2), 0, math.pi)
    kernel, _ = quad(
        lambda a: math.exp(2 * t * (math.cos(a) - 1)) * math.sin(a) ** (d - 2), 0, math.pi
    )
    return math.log(kernel / total)


def effective_rank(x):
    """Roy and Vetterli 2007: exp of the entropy of the singular values' shares.

    Here roots of the Gram matrix's eigenvalues.
    """
    x = np.asarray(x)
    values = [math.sqrt(max(value, 0)) for value in np.linalg.eigvalsh(x.T @ x)]
    entropy = 0.0
    for value in values:
        share = value / sum(values)
        if share > 0:
            entropy -= share * math.log(share)
    return math.exp(entropy)


def class_rows(x, labels):
    """Each class's rows of x (N, D), float64, in the order of the classes."""
    x = np.asarray(x, dtype=np.float64)
    rows = {c: [] for c in sorted(set(labels))}
    for row, c in zip(x, labels):
        rows[c].append(row)
    return list(rows.values())


def centred_means(x, labels):
    """Papyan et al., arXiv 2008.08186: mu_c - mu_G, with mu_G the mean of the class means."""
    means = [sum(rows) / len(rows) for rows in class_rows(x, labels)]
    return [mean - sum(means) / len(means) for mean in means]


def simplex_distance(x, labels):
    """Papyan et al., arXiv 2008.08186, NC2.

    Avg_{c != c'} |cos(mu_c - mu_G, mu_c' - mu_G) + 1 / (C - 1)|.
    """
    means = [mean / np.linalg.norm(mean) for mean in centred_means(x, labels)]
    distances = []
    for i, a in enumerate(means):
        for j, b in enumerate(means):
            if i != j:
                distances.append(abs(a @ b + 1 / (len(means) - 1)))
    return sum(distances) / len(distances)


def within_between(x, labels):
    """tr Sigma_W / tr Sigma_B, the covariances of Papyan et al., arXiv 2008.08186.

    Every class with the same weight.
    """
    within = between = 0.0
    for rows, centred in zip(class_rows(x, labels), centred_means(x, labels)):
        mean = sum(rows) / len(rows)
        covariance = sum(np.outer(row - mean, row - mean) for row in rows) / len(rows)
        within += np.trace(covariance)
        between += np.trace(np.outer(centred, centred))
    return within / between
