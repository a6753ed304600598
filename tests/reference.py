"""Slow, literal transcriptions of the papers' equations, to hold the library against. Python loops
on purpose."""

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
        denominator = sum(
            math.exp(views[i] @ views[k] / temperature) for k in range(2 * n) if k != i
        )
        total += -math.log(math.exp(views[i] @ views[j] / temperature) / denominator)
    return total / (2 * n)


def sup_con_anchors(z, labels, temperature, normalise=True, positives="out"):
    """SupCon, arXiv 2004.11362, equations 2 (L_out) and 3 (L_in): one loss an anchor, None without
    a positive."""
    z = unit(z) if normalise else np.asarray(z, dtype=np.float64)
    rows = [(z[v][i], labels[i]) for v in range(z.shape[0]) for i in range(z.shape[1])]
    out = []
    for i, (anchor, label) in enumerate(rows):
        denominator = sum(
            math.exp(anchor @ other / temperature) for a, (other, _) in enumerate(rows) if a != i
        )
        shares = [
            math.exp(anchor @ other / temperature) / denominator
            for p, (other, theirs) in enumerate(rows)
            if p != i and theirs == label
        ]
        if not shares:
            out.append(None)
        elif positives == "out":
            out.append(-sum(math.log(share) for share in shares) / len(shares))
        else:
            out.append(-math.log(sum(shares) / len(shares)))
    return out


def sup_con(z, labels, temperature, positives="out"):
    """The mean over the anchors that have a positive. z: (V, N, D)."""
    losses = [
        loss
        for loss in sup_con_anchors(z, labels, temperature, positives=positives)
        if loss is not None
    ]
    return sum(losses) / len(losses)


def alignment(z):
    """Wang and Isola, arXiv 2005.10242, section 4.1, alpha = 2. z: (2, N, D), any length."""
    first, second = unit(z)
    return sum(np.linalg.norm(a - b) ** 2 for a, b in zip(first, second)) / len(first)


def uniformity(z, t):
    """Wang and Isola, arXiv 2005.10242, section 4.1, over distinct pairs. z: (N, D), any length."""
    z = unit(z)
    kernel = [
        math.exp(-t * np.linalg.norm(z[i] - z[j]) ** 2)
        for i in range(len(z))
        for j in range(len(z))
        if i != j
    ]
    return math.log(sum(kernel) / len(kernel))


def uniformity_of_the_sphere(d, t):
    """The same for a uniform distribution, by quadrature: u . v has the density (1 - c^2)^((D - 3)
    / 2). D >= 2."""
    from scipy.integrate import quad

    total = quad(lambda a: math.sin(a) ** (d - 2), 0, math.pi)[0]
    return math.log(
        quad(lambda a: math.exp(2 * t * (math.cos(a) - 1)) * math.sin(a) ** (d - 2), 0, math.pi)[0]
        / total
    )


def effective_rank(x):
    """Roy and Vetterli 2007: exp of the entropy of the singular values' shares; here roots of the
    Gram matrix's."""
    values = [
        math.sqrt(max(value, 0)) for value in np.linalg.eigvalsh(np.asarray(x).T @ np.asarray(x))
    ]
    shares = [value / sum(values) for value in values]
    return math.exp(-sum(p * math.log(p) for p in shares if p > 0))


def centred_means(x, labels):
    """Papyan et al., arXiv 2008.08186: mu_c - mu_G, with mu_G the mean of the class means."""
    x = np.asarray(x, dtype=np.float64)
    means = [
        sum(row for row, of in zip(x, labels) if of == c) / list(labels).count(c)
        for c in sorted(set(labels))
    ]
    return [mean - sum(means) / len(means) for mean in means]


def simplex_distance(x, labels):
    """Papyan et al., arXiv 2008.08186, NC2: Avg_{c != c'} |cos(mu_c - mu_G, mu_c' - mu_G) + 1 / (C
    - 1)|."""
    means = [mean / np.linalg.norm(mean) for mean in centred_means(x, labels)]
    off = [
        abs(a @ b + 1 / (len(means) - 1))
        for i, a in enumerate(means)
        for j, b in enumerate(means)
        if i != j
    ]
    return sum(off) / len(off)


def within_between(x, labels):
    """tr Sigma_W / tr Sigma_B, the covariances of Papyan et al., arXiv 2008.08186, every class with
    the same weight."""
    x, known = np.asarray(x, dtype=np.float64), sorted(set(labels))
    within = between = 0.0
    for c, centred in zip(known, centred_means(x, labels)):
        rows = [row for row, of in zip(x, labels) if of == c]
        mean = sum(rows) / len(rows)
        within += np.trace(sum(np.outer(row - mean, row - mean) for row in rows) / len(rows)) / len(
            known
        )
        between += np.trace(np.outer(centred, centred)) / len(known)
    return within / between
