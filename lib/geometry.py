"""The shape of an embedding: alignment and uniformity, rank, neural collapse, and maps for the eye.

A contrastive loss pulls two ways (Wang and Isola, arXiv 2005.10242): the views of an image together
(alignment), the images apart, over the whole sphere (uniformity). Where it fails, too few
directions are in use (spectrum, effective rank). With labels the ideal is one point for each class,
the corners of a regular simplex: neural collapse (Papyan, Han and Donoho, arXiv 2008.08186; for
SupCon Graf et al., arXiv 2102.08817).

Everything is computed in float64 on the CPU, whatever comes in, and carries no gradient. A row of
zeros has no direction and stays zero where rows are normalised. Features of another shape than
said, or with a number that is not finite, raise InputError. Letters: N images or rows, D
dimensions, C classes.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from scipy.special import hyp0f1
from threadpoolctl import threadpool_limits
from torch import Tensor

from lib import InputError, unknown
from lib.compute.caches import with_a_cache

CHUNK = 256  # rows of similarities at a time: 100 MB for 50,000 embeddings
TINY = 1e-300  # keeps 0 / 0 at 0


def alignment(z: Tensor) -> float:
    """Mean squared distance of the two views on the sphere, 0 to 4; lower is better aligned.

    z: (2, N, D), two views of N images in the same order, not yet normalised; N >= 2.

    From arXiv 2005.10242, section 4.1, with alpha = 2.
    """
    if z.ndim != 3 or len(z) != 2:
        raise InputError(f"alignment compares two views: z must be (2, N, D), not {tuple(z.shape)}")

    first = F.normalize(_check(z[0]), dim=1)
    second = F.normalize(_check(z[1]), dim=1)
    return (first - second).square().sum(1).mean().item()


def uniformity(z: Tensor, t: float = 2) -> float:
    """``log mean_{i < j} exp(-t |z_i - z_j|^2)`` on the sphere, at most 0.

    z: (N, D), one view, not yet normalised; N >= 2.

    Lower is more uniform, 0 is a single point (arXiv 2005.10242, section 4.1). No N x N matrix is
    made. Raises InputError also for a t that is not positive and finite.
    """
    if not 0 < t < math.inf:
        raise InputError(f"t must be greater than 0 and finite, got {t}")
    z = F.normalize(_check(z), dim=1)
    sums = []
    for start in range(0, len(z), CHUNK):
        cosines = z[start : start + CHUNK] @ z[start:].T
        exponents = 2 * t * (cosines - 1)  # -t |z_i - z_j|^2
        again = torch.ones_like(exponents, dtype=torch.bool).tril()  # each pair once, i < j
        sums.append(exponents.masked_fill_(again, -math.inf).logsumexp((0, 1)))

    pairs = math.comb(len(z), 2)
    return torch.stack(sums).logsumexp(0).item() - math.log(pairs)


def uniformity_floor(d: int, t: float = 2) -> float:
    """Uniformity of the uniform distribution on the sphere in D dimensions.

    It is ``log 0F1(D / 2, t^2) - 2 t``, about ``-2 t + 2 t^2 / D``; t up to 300. No distribution
    has less (arXiv 2005.10242, proposition 1), and so many embeddings can't get below; a few can,
    since no embedding is paired with itself: two antipodes reach -4 t.
    """
    return math.log(hyp0f1(d / 2, t * t)) - 2 * t


def spectrum(x: Tensor) -> Tensor:
    """Shares of the variance along the principal axes, descending, with the sum 1.

    x: (N, D), as it comes; N >= 2.

    Returns (min(N, D),): eigenvalues of the covariance over their sum; all 0 where all rows are the
    same. A tail of zeros is dimensional collapse (Jing et al., arXiv 2110.09348, section 3).
    """
    x = _check(x)
    x = x - x[0]  # rows that are all the same become 0 to the bit
    variance = torch.linalg.svdvals(x - x.mean(0)).square()
    return variance / variance.sum().clamp(min=TINY)


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the singular values over their sum, from 1 to min(N, D).

    x: (N, D), as it comes; N >= 2.

    By Roy and Vetterli 2007. This is RankMe (arXiv 2210.02885, section 3) without its epsilon: 0
    log 0 is 0. As there, x is not centred, and what all rows share counts as a direction, often the
    strongest; give ``x - x.mean(0)`` for the rank of what differs.
    """
    values = torch.linalg.svdvals(_check(x))
    shares = values / values.sum().clamp(min=TINY)
    return torch.special.entr(shares).sum().exp().item()


def class_means(x: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Each class's mean, less the mean of these means: every class counts once.

    x: (N, D), as it comes (normalise z before).
    labels: (N,) integers in 0..C-1, each at least once.
    classes: C >= 2.

    Returns (C, D) float64 (arXiv 2008.08186, where classes are balanced). Raises InputError also
    where the labels are not like that.
    """
    means, _ = _by_class(x, labels, classes)
    return means - means.mean(0)


def simplex_distance(means: Tensor) -> float:
    """``mean_{b != c} |cos(m_b, m_c) + 1 / (C - 1)|``: 0 at a regular simplex's angles.

    means: (C, D), ``class_means``; C >= 2.

    This is NC2 of arXiv 2008.08186. Lengths are not looked at, and a mean of length 0 has the
    cosine 0. Of two classes it says nothing: their centred means are opposite, always.
    """
    means = F.normalize(_check(means), dim=1)
    classes = len(means)

    first, second = torch.triu_indices(classes, classes, offset=1)
    cosines = (means @ means.T)[first, second]
    return (cosines + 1 / (classes - 1)).abs().mean().item()


def within_between(x: Tensor, labels: Tensor, classes: int) -> float:
    """Variance within classes over variance between their means, ``tr S_W / tr S_B``.

    0 where each class is a point, inf where all class means are the same, nan where all rows are.
    Arguments and errors are those of ``class_means``; every class counts once. Papyan et al.
    measure the same collapse (NC1) by ``tr(S_W pinv(S_B)) / C``, direction by direction.
    """
    means, within = _by_class(x, labels, classes)
    between = (means - means.mean(0)).square().sum(1)
    return (within.mean() / between.mean()).item()


def map_2d(x: Tensor, method: str = "tsne", seed: int = 0) -> Tensor:
    """A map of the rows' directions, for the eye: neighbours stay neighbours.

    Sizes and distances mean little. It runs on one thread, since the last digit of a sum grows into
    another picture: t-SNE of 5,000 rows takes half a minute.

    x: (N, D), not yet normalised; N > 30, D >= 2.
    method: "tsne" (van der Maaten and Hinton 2008; perplexity 30, from the principal axes) or
        "umap" (McInnes et al., arXiv 1802.03426; 15 neighbours).
    seed: of the randomness in either.

    Returns (N, 2) float32, zeros where all directions are the same. Raises InputError also for
    another method, and where umap-learn is not installed.
    """
    if method not in MAPPERS:
        raise InputError(unknown("map", method, MAPPERS))
    x = F.normalize(_check(x, rows=31, dimensions=2), dim=1)
    x = x - x[0]  # no distance changes, and the principal axes keep digits
    if x.abs().max() < 1e-6:  # nothing but float32's rounding; t-SNE would crash
        return torch.zeros(len(x), 2)

    mapper = MAPPERS[method](seed % 2**32)  # neither takes a larger one
    with threadpool_limits(1):
        places = mapper.fit_transform(x.numpy())
    return torch.from_numpy(places).float()


def _tsne(seed: int) -> Any:
    """Imported here alone: it takes a second, and most who import this module draw no map."""
    from sklearn.manifold import TSNE

    return TSNE(perplexity=30, init="pca", random_state=seed)


def _umap(seed: int) -> Any:
    """Imported here alone: it compiles itself anew in every process, ten seconds or more."""
    try:
        umap = with_a_cache("umap")
    except ImportError as error:
        raise InputError(
            f"UMAP can't be imported ({error}); install it with: pip install umap-learn"
        ) from error
    return umap.UMAP(n_neighbors=15, random_state=seed, n_jobs=1)


MAPPERS = {"tsne": _tsne, "umap": _umap}  # of scikit-learn's kind, by the seed


def _by_class(x: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Means (C, D), seen from x[0], and variances summed over dimensions (C,), of every class."""
    x = _check(x)
    labels = labels.cpu()
    if labels.shape != x.shape[:1] or labels.is_floating_point():
        raise InputError(
            f"labels must be {len(x)} integers, got {labels.dtype} {tuple(labels.shape)}"
        )
    if classes < 2:
        raise InputError(f"at least two classes are needed, got {classes}")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"labels must lie in 0..{classes - 1}, got {labels.min()} to {labels.max()}"
        )
    count = torch.bincount(labels, minlength=classes)
    if not count.all():
        raise InputError(f"every class needs a row, class {count.argmin()} has none")

    x = x - x[0]  # rows that are all the same become 0 to the bit
    labels = labels.long()
    shares = F.one_hot(labels, classes).double() / count  # (N, C), each column with the sum 1
    means = shares.T @ x
    deviations = (x - means[labels]).square().sum(1)
    return means, shares.T @ deviations


def _check(x: Tensor, rows: int = 2, dimensions: int = 1) -> Tensor:
    """x (N, D) as float64 on the CPU, without its graph.

    Raises InputError for another shape, NaN or infinity.
    """
    if x.ndim != 2 or len(x) < rows or x.shape[1] < dimensions:
        raise InputError(
            f"features must be (N, D) with N >= {rows} and D >= {dimensions}, got {tuple(x.shape)}"
        )

    x = x.detach().cpu().double()
    wrong = (~x.isfinite().all(1)).nonzero()
    if len(wrong):
        raise InputError(f"features must be finite, row {wrong[0].item()} has a NaN or an infinity")
    return x
