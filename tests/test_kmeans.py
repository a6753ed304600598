"""k-means on whitened patches, against the paper's definition written out, patch by patch."""

import math

import pytest
import torch

from lib.compute import kmeans
from lib.compute.kmeans import WHITENING, KMeans, _normalise_contrast, _random_patches
from lib.presets import preset
from lib.runs import load, pretrain


@pytest.fixture
def fitted(monkeypatch):
    """An encoder of five centroids, and the images that it has learned from."""
    monkeypatch.setattr(kmeans, "PATCHES", 4000)
    noise = torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    x = noise.cumsum(3)
    encoder = KMeans(5)
    encoder.fit(x.split(16), 40, seed=0)
    return encoder, x


def described(encoder, image):
    """(20,) of one image (3, S, S): every step as in the paper, one patch after the other."""
    places = image.shape[1] - 6 + 1
    nearness = torch.zeros(places, places, len(encoder.centroids))
    for top in range(places):
        for left in range(places):
            patch = image[:, top : top + 6, left : left + 6].flatten()
            patch = (patch - patch.mean()) / math.sqrt(patch.var().item() + 0.0025)
            white = encoder.whitening @ (patch - encoder.mean)
            z = torch.stack([(white - centroid).norm() for centroid in encoder.centroids])
            nearness[top, left] = (z.mean() - z).clamp(min=0)

    half, rest = math.ceil(places / 2), places // 2
    quadrants = (
        nearness[:half, :half],
        nearness[:half, rest:],
        nearness[rest:, :half],
        nearness[rest:, rest:],
    )
    return torch.stack([quadrant.mean((0, 1)) for quadrant in quadrants]).T.flatten()


def test_features_are_the_papers(fitted):
    encoder, x = fitted
    h = encoder(x[:3])
    assert h.shape == (3, 20)
    for image, row in zip(x, h):
        torch.testing.assert_close(row, described(encoder, image), rtol=1e-4, atol=1e-5)


def test_whitened_patches_have_unit_variance_where_there_is_any(fitted):
    encoder, x = fitted
    patches = _normalise_contrast(_random_patches([x], 40, seed=3))
    before = torch.linalg.eigvalsh(torch.cov(patches.T))
    after = torch.linalg.eigvalsh(torch.cov(encoder._whiten(patches).T))
    torch.testing.assert_close(after, before / (before + WHITENING), rtol=0.2, atol=0.05)


def test_centroids_are_means_of_the_patches_nearest_to_them(fitted):
    encoder, x = fitted
    patches = encoder._whiten(_normalise_contrast(_random_patches(x.split(16), 40, seed=0)))
    nearest = torch.cdist(patches, encoder.centroids).argmin(1)
    for k, centroid in enumerate(encoder.centroids):
        assert (patches[nearest == k].mean(0) - centroid).norm() < 0.3


def test_patches_are_the_images_own_in_unfolds_order_and_do_not_depend_on_the_batches(monkeypatch):
    monkeypatch.setattr(kmeans, "PATCHES", 50)
    x = torch.arange(4 * 3 * 8 * 8.0).view(4, 3, 8, 8)
    patches = _random_patches([x], 4, seed=0)
    assert len(patches) == 50
    everything = torch.nn.functional.unfold(x, 6).mT.flatten(0, 1)
    for patch in patches:
        assert (everything == patch).all(1).any()

    assert torch.equal(patches, _random_patches(x.split(3), 4, seed=0))
    assert not torch.equal(patches, _random_patches([x], 4, seed=1))


def test_a_run_of_it_learns_once_from_its_pool_and_can_be_loaded(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(kmeans, "PATCHES", 2000)
    baseline = {"data": "toy", "encoder": "kmeans32", "head": "none", "epochs": 0}
    config = preset("simclr-digits", **baseline)
    run = pretrain(config, toy, tmp_path, "cpu", progress=False)
    centroids = run.model.encoder.centroids
    assert torch.equal(centroids, load(run.folder).model.encoder.centroids)
    linear = run.evaluate(toy, "cpu")["h"]["linear"]
    assert linear["correct"] > 0.8 * linear["n"]  # toy's classes are colours

    seeded = preset("simclr-digits", **baseline, seed=2**40)
    assert pretrain(seeded, toy, tmp_path, "cpu", progress=False).model.encoder.centroids.any()

    larger = preset("simclr-digits", **baseline, pool="train+val")
    other = pretrain(larger, toy, tmp_path, "cpu", progress=False)
    assert not torch.equal(centroids, other.model.encoder.centroids)
