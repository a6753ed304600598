"""The baseline without a network: k-means on whitened patches.

Coates, Lee and Ng, AISTATS 2011, sections 3.1 and 3.2. Patches of 6 x 6 pixels, one at every place,
are normalised for contrast and whitened. k-means finds centroids among them; a patch is then
described by how much nearer than the average each centroid is, and an image by the means of its
patches' descriptions over its four quadrants. No label, no gradient, and nothing to tune but the
number of centroids.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 6  # pixels, the side of a patch
DIMENSIONS = 3 * PATCH * PATCH
PATCHES = 400_000  # drawn to learn from
ITERATIONS = 50  # of k-means, at most
# added to a patch's variance: the authors' 10, of 255^2, for pixels of variance 1
CONTRAST = 0.0025
WHITENING = 0.1  # added to the variance along each axis, as the authors'
CHUNK = 2**13  # patches at a time: their distances stay in cache


class KMeans(nn.Module):
    """An encoder h = f(x) of 4 ``centroids`` dimensions, which ``fit`` learns.

    Its parameters take no gradient.
    """

    def __init__(self, centroids: int):
        super().__init__()
        self.mean = _parameter(DIMENSIONS)
        self.whitening = _parameter(DIMENSIONS, DIMENSIONS)
        self.centroids = _parameter(centroids, DIMENSIONS)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor], image_count: int, seed: int) -> None:
        """Learn the whitening and the centroids: a function of the images and the seed.

        batches: (B, 3, S, S) float each, normalised.
        image_count: how many there are in all of them.
        """
        from sklearn.cluster import KMeans as Lloyd  # a second to import

        patches = _normalise_contrast(_random_patches(batches, image_count, seed))
        self.mean.copy_(patches.mean(0))
        variance, axes = torch.linalg.eigh(torch.cov(patches.T).double())
        whitening = (axes / (variance + WHITENING).sqrt()) @ axes.T  # ZCA: rotated back
        self.whitening.copy_(whitening)

        search = Lloyd(
            len(self.centroids),
            init="random",
            n_init=1,
            max_iter=ITERATIONS,
            random_state=seed % 2**32,  # it takes no larger one
        )
        search.fit(self._whiten(patches).numpy())
        self.centroids.copy_(torch.from_numpy(search.cluster_centers_))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, S, S) float, normalised. Returns h (B, 4 K), K the number of centroids."""
        if torch.compiler.is_compiling():  # an export has no size of a batch
            return self._describe(x)
        rows, columns = _places(x)
        batches = x.split(max(1, CHUNK // (rows * columns)))
        return torch.cat([self._describe(batch) for batch in batches])

    def _describe(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, PATCH).mT  # (B, L, 108), L places
        white = self._whiten(_normalise_contrast(patches))
        distances = torch.cdist(white, self.centroids)  # (B, L, K)
        average = distances.mean(2, keepdim=True)
        nearness = (average - distances).relu_()  # (B, L, K), the paper's triangle

        over_places = nearness.mT.unflatten(2, _places(x))  # (B, K, rows, columns)
        return F.adaptive_avg_pool2d(over_places, 2).flatten(1)

    def _whiten(self, patches: Tensor) -> Tensor:
        return (patches - self.mean) @ self.whitening


def _places(x: Tensor) -> tuple[int, int]:
    """Rows and columns of places where a patch lies within images (B, 3, H, W)."""
    return x.shape[2] - PATCH + 1, x.shape[3] - PATCH + 1


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape), requires_grad=False)


def _normalise_contrast(patches: Tensor) -> Tensor:
    """Each patch (..., 108) with mean 0 and, where it is not flat, variance 1."""
    centred = patches - patches.mean(-1, keepdim=True)
    variance = centred.var(-1, keepdim=True)
    return centred / (variance + CONTRAST).sqrt()


def _random_patches(batches: Iterable[Tensor], image_count: int, seed: int) -> Tensor:
    """PATCHES patches (PATCHES, 108) at random places of random images, pixels in unfold's order.

    batches: square images (B, 3, S, S) each.
    image_count: how many there are in all of them.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    counts = torch.from_numpy(generator.multinomial(PATCHES, np.full(image_count, 1 / image_count)))
    places = torch.from_numpy(generator.random((PATCHES, 2)))  # in [0, 1): from top and left

    patches = []
    image = patch = 0  # seen so far
    for x in batches:
        count = counts[image : image + len(x)]  # patches of each image
        total = int(count.sum())
        along_a_side, _ = _places(x)
        top, left = (places[patch : patch + total] * along_a_side).long().unbind(1)

        every = x.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # (B, 3, L, L, 6, 6), a view
        source = torch.arange(len(x)).repeat_interleave(count)
        patches.append(every[source, :, top, left].flatten(1))
        image += len(x)
        patch += total
    return torch.cat(patches)
