"""Measures of an embedding's shape against the papers' equations, and maps of it."""

import math
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.special import i0
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from threadpoolctl import threadpool_info, threadpool_limits
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lib import InputError, geometry
from tests import reference


def embeddings(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def simplex(c: int) -> Tensor:
    """The corners of a regular simplex, (C, C)."""
    return torch.eye(c, dtype=torch.float64) - 1 / c


def clusters(n: int, d: int = 8) -> tuple[Tensor, Tensor]:
    """Three directions with some noise, and which row belongs to which."""
    labels = torch.arange(n) % 3
    directions = 4 * torch.eye(d, dtype=torch.float64)
    return directions[labels] + 0.5 * embeddings(n, d), labels


LABELS = [2, 0, 1, 2, 2, 0, 1, 2, 0, 2, 2]  # classes of three sizes


@pytest.mark.parametrize("n, d, t", [(2, 3, 2), (7, 1, 0.5), (9, 5, 4)])
def test_alignment_and_uniformity_equal_the_papers_equations(n, d, t):
    z = embeddings(2, n, d)
    assert geometry.alignment(z) == pytest.approx(reference.alignment(z), abs=1e-12)
    assert geometry.uniformity(z[0], t) == pytest.approx(reference.uniformity(z[0], t), abs=1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 7, 10, 16, 1000])
@pytest.mark.parametrize("n", [2, 3, 16, 17])
def test_uniformity_is_the_same_in_chunks(n, chunk, monkeypatch):
    monkeypatch.setattr(geometry, "CHUNK", chunk)
    z = embeddings(n, 4)
    want = math.log(np.exp(-2 * pdist(reference.unit(z), "sqeuclidean")).mean())
    assert geometry.uniformity(z) == pytest.approx(want, abs=1e-12)


class Largest(TorchFunctionMode):
    """Within, the largest tensor that a function of PyTorch's returns is noted."""

    elements = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.elements = max(self.elements, made.numel())
        return made


def test_uniformity_makes_no_square_matrix():
    z = embeddings(1001, 4)
    with Largest() as largest:
        made = geometry.uniformity(z)
    want = math.log(np.exp(-2 * pdist(reference.unit(z), "sqeuclidean")).mean())
    assert made == pytest.approx(want, abs=1e-12)
    assert largest.elements == 256 * 1001


@pytest.mark.parametrize("t", [0.1, 2.0, 1e5])  # exp(-1e5) is 0 in every precision
def test_points_whose_distances_are_known(t):
    z = embeddings(5)
    antipodes = torch.stack([z, -3 * z])
    assert geometry.alignment(antipodes[:, None].repeat(1, 2, 1)) == pytest.approx(4)
    assert geometry.uniformity(antipodes, t) == pytest.approx(-4 * t)
    assert geometry.uniformity(7 * torch.eye(6), t) == pytest.approx(-2 * t)
    assert geometry.uniformity(simplex(5), t) == pytest.approx(-2 * t * (1 + 1 / 4))


def test_identical_rows():
    # the mean of seven times 0.1 is not 0.1 to the bit
    x = torch.full((7, 3), 0.1, dtype=torch.float64)
    labels = torch.arange(7) % 3
    assert geometry.alignment(torch.stack([x, x])) == 0
    assert geometry.uniformity(x) == pytest.approx(0, abs=1e-12)
    assert geometry.effective_rank(x) == pytest.approx(1, abs=1e-12)
    assert geometry.effective_rank(0 * x) == 1
    assert geometry.spectrum(x).tolist() == [0, 0, 0]
    assert not geometry.class_means(x, labels, 3).any()
    assert geometry.simplex_distance(torch.zeros(3, 2)) == pytest.approx(1 / 2)
    assert math.isnan(geometry.within_between(x, labels, 3))
    same_means = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]])
    assert geometry.within_between(same_means, torch.tensor([0, 0, 1, 1]), 2) == math.inf


@pytest.mark.parametrize("d, t", [(2, 2), (3, 2), (3, 0.5), (16, 2), (128, 2), (512, 5)])
def test_the_floor_is_the_integral_over_the_sphere(d, t):
    want = reference.uniformity_of_the_sphere(d, t)
    assert geometry.uniformity_floor(d, t) == pytest.approx(want, abs=1e-8)


def test_the_floor_in_closed_form_and_in_the_limit():
    assert geometry.uniformity_floor(1) == pytest.approx(math.log(math.cosh(4)) - 4)
    assert geometry.uniformity_floor(2) == pytest.approx(math.log(i0(4)) - 4)
    assert geometry.uniformity_floor(3) == pytest.approx(math.log(math.sinh(4) / 4) - 4)
    assert geometry.uniformity_floor(2048) == pytest.approx(-4 + 8 / 2048, abs=1e-5)


def test_random_points_have_the_uniformity_of_the_sphere_and_others_more():
    kernel = [math.exp(geometry.uniformity(embeddings(500, 3, seed=seed))) for seed in range(20)]
    error = np.std(kernel, ddof=1) / math.sqrt(len(kernel))
    floor = geometry.uniformity_floor(3)
    assert abs(np.mean(kernel) - math.exp(floor)) < 4 * error < 0.01
    assert geometry.uniformity(embeddings(500, 3) + 0.5) > floor + 0.05


@pytest.mark.parametrize("n, d", [(50, 6), (5, 9), (8, 8), (2, 3)])
def test_the_spectrum_is_scikit_learns(n, d):
    x = embeddings(n, d) * torch.arange(1, d + 1) + 1e4
    want = PCA(svd_solver="full").fit(x.numpy()).explained_variance_ratio_
    assert geometry.spectrum(x).numpy() == pytest.approx(want, abs=1e-10)
    assert geometry.spectrum(x).sum().item() == pytest.approx(1)


def test_spectra_that_are_known():
    line = torch.tensor([[-1.0, 0, 0], [0, 0, 0], [1, 0, 0]]) + 5
    assert geometry.spectrum(line).tolist() == pytest.approx([1, 0, 0])
    cross = torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1]])
    # 4 to 1: variance, not deviation
    assert geometry.spectrum(cross).tolist() == pytest.approx([0.8, 0.2])


def test_effective_rank_equals_the_papers_definition():
    x = embeddings(30, 6) * torch.arange(1, 7) + 3
    assert geometry.effective_rank(x) == pytest.approx(reference.effective_rank(x), abs=1e-10)


def test_effective_ranks_that_are_known():
    q = torch.linalg.qr(embeddings(20, 6))[0]
    assert geometry.effective_rank(q) == pytest.approx(6)  # all directions alike
    turned = q[:, :4] @ torch.linalg.qr(embeddings(9, 4))[0].T
    assert geometry.effective_rank(turned) == pytest.approx(4)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    uneven = torch.tensor([[3.0, 0], [0, 1], [0, 0]])
    assert geometry.effective_rank(uneven) == pytest.approx(math.exp(entropy))
    assert geometry.effective_rank(torch.eye(4) + 1e6) == pytest.approx(1, abs=1e-3)  # not centred
    assert geometry.effective_rank(simplex(4)) == pytest.approx(3)


def test_class_means_and_their_measures_equal_the_papers():
    x, labels = embeddings(11, 6) + 3, torch.tensor(LABELS)
    means = geometry.class_means(x, labels, 3)
    want = np.stack(reference.centred_means(x, LABELS))
    assert means.numpy() == pytest.approx(want, abs=1e-12)
    distance = reference.simplex_distance(x, LABELS)
    assert geometry.simplex_distance(means) == pytest.approx(distance, abs=1e-12)
    ratio = reference.within_between(x, LABELS)
    assert geometry.within_between(x, labels, 3) == pytest.approx(ratio, abs=1e-12)


@pytest.mark.parametrize("c", [2, 3, 10])
def test_a_regular_simplex_is_one_wherever_it_lies_and_however_often_a_corner_is_there(c):
    labels = torch.cat([torch.arange(c), torch.arange(c) // 2])  # no balance
    turned = 3 * torch.linalg.qr(embeddings(12, c))[0].T
    for corners in (simplex(c), torch.eye(c) + 7, turned):
        means = geometry.class_means(corners[labels], labels, c)
        assert geometry.simplex_distance(means) == pytest.approx(0, abs=1e-12)
        assert geometry.within_between(corners[labels], labels, c) == pytest.approx(0, abs=1e-12)


def test_means_on_a_line_are_no_simplex():
    means = torch.tensor([[2.0, 0], [-1, 0], [-1, 0]])  # cosines -1, -1 and 1
    assert geometry.simplex_distance(means) == pytest.approx((0.5 + 0.5 + 1.5) / 3)


def test_variances_that_are_known():
    x = torch.tensor([[1.5], [0.5], [-1.5], [-0.5]])  # means 1 and -1, deviations 0.5
    assert geometry.within_between(x, torch.tensor([0, 0, 1, 1]), 2) == pytest.approx(0.25)
    assert geometry.within_between(x, torch.tensor([0, 1, 0, 1]), 2) == math.inf


MEASURES = {
    "alignment": lambda x, y: geometry.alignment(torch.stack([x, x.roll(1, 1)])),
    "uniformity": lambda x, y: geometry.uniformity(x),
    "effective rank": lambda x, y: geometry.effective_rank(x),
    "spectrum": lambda x, y: geometry.spectrum(x).tolist(),
    "within_between": lambda x, y: geometry.within_between(x, y, 3),
    "simplex": lambda x, y: geometry.simplex_distance(geometry.class_means(x, y, 3)),
}


@pytest.mark.parametrize("name", MEASURES)
def test_neither_order_nor_scale_matters(name):
    measure = MEASURES[name]
    x, labels, places = embeddings(11, 6), torch.tensor(LABELS), torch.randperm(11)
    want = pytest.approx(measure(x, labels), abs=1e-10)
    assert measure(x[places], labels[places]) == want
    assert measure(5 * x, labels) == want


@pytest.mark.parametrize("name", sorted(MEASURES.keys() - {"alignment"}))
def test_no_rotation_matters(name):
    measure = MEASURES[name]
    x, labels = embeddings(11, 6), torch.tensor(LABELS)
    turn = torch.linalg.qr(embeddings(6, 6, seed=1))[0]
    assert measure(x @ turn, labels) == pytest.approx(measure(x, labels), abs=1e-10)


def test_no_rotation_of_both_views_matters():
    z = embeddings(2, 11, 6)
    turn = torch.linalg.qr(embeddings(6, 6, seed=1))[0]
    assert geometry.alignment(z @ turn) == pytest.approx(geometry.alignment(z), abs=1e-10)


def test_any_dtype_is_taken_and_no_gradient_is_kept():
    x, labels = embeddings(11, 6).half().requires_grad_(), torch.tensor(LABELS)
    assert geometry.uniformity(x) == geometry.uniformity(x.detach().double())
    whole = x.detach().int()
    assert geometry.effective_rank(whole) == geometry.effective_rank(whole.double())
    for made in (geometry.spectrum(x), geometry.class_means(x, labels.int(), 3)):
        assert made.dtype == torch.float64 and not made.requires_grad
    before = x.detach().clone()
    geometry.class_means(x, labels.to(torch.uint8), 3)
    assert torch.equal(x, before)


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_a_map_keeps_neighbours_and_is_the_same_every_time(method):
    x, labels = clusters(90)
    with threadpool_limits(1):
        made = geometry.map_2d(x, method)
    assert made.shape == (90, 2) and made.dtype == torch.float32
    assert trustworthiness(reference.unit(x), made.numpy(), n_neighbors=10) > 0.85
    nearest = torch.cdist(made, made).fill_diagonal_(math.inf).argmin(1)
    assert (labels[nearest] == labels).float().mean() > 0.95
    with threadpool_limits(2):
        assert torch.equal(geometry.map_2d(x, method), made)
    lengths = 2.0 ** (torch.arange(90) % 5)
    assert torch.equal(geometry.map_2d(x * lengths[:, None], method), made)  # directions count
    if method == "umap":
        assert not torch.equal(geometry.map_2d(x, method, seed=1), made)


def threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info()}


class Mapper:
    """Notes on how many threads it is fitted."""

    def fit_transform(self, x: np.ndarray) -> np.ndarray:
        self.threads = threads()
        return x[:, :2]


def test_maps_are_made_on_one_thread(monkeypatch: pytest.MonkeyPatch):
    mapper = Mapper()
    monkeypatch.setitem(geometry.MAPPERS, "first two axes", lambda seed: mapper)
    with threadpool_limits(2):
        geometry.map_2d(embeddings(40, 8), "first two axes")
        assert threads() == {2}
    assert mapper.threads == {1}


@pytest.mark.parametrize("noise", [0, 1e-8])
def test_a_collapsed_embedding_maps_to_one_point(noise):
    assert not geometry.map_2d(torch.ones(40, 8) + noise * embeddings(40, 8)).any()


def test_almost_collapsed_embeddings_are_mapped():
    made = geometry.map_2d(torch.ones(40, 8) + 1e-5 * embeddings(40, 8))
    assert made.isfinite().all() and made.std() > 0.01


def test_a_map_without_umap_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match="pip install umap-learn"):
        geometry.map_2d(clusters(40)[0], "umap")


LABEL = torch.arange(4) % 2


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: geometry.alignment(x), "two views"),
        (lambda x: geometry.alignment(x.repeat(3, 1, 1)), "two views"),
        (lambda x: geometry.alignment(x[:1].repeat(2, 1, 1)), r"N >= 2 and D >= 1, got \(1, 3\)"),
        (lambda x: geometry.uniformity(x[0]), r"must be \(N, D\).* got \(3,\)"),
        (lambda x: geometry.uniformity(x[:1]), "N >= 2"),
        (lambda x: geometry.uniformity(x[:, :0]), "D >= 1"),
        (lambda x: geometry.uniformity(x, 0), "t must be greater than 0 and finite, got 0"),
        (lambda x: geometry.uniformity(x, math.inf), "t must be greater than 0 and finite"),
        (lambda x: geometry.uniformity(x, math.nan), "t must be greater than 0 and finite"),
        (lambda x: geometry.spectrum(x[:1]), "N >= 2"),
        (lambda x: geometry.effective_rank(x.repeat(2, 1, 1)), r"got \(2, 4, 3\)"),
        (lambda x: geometry.simplex_distance(x[:1]), "N >= 2"),
        (
            lambda x: geometry.class_means(x, LABEL[:3], 2),
            r"labels must be 4 integers, got torch.int64 \(3,\)",
        ),
        (
            lambda x: geometry.class_means(x, LABEL.float(), 2),
            r"labels must be 4 integers, got torch.float32 \(4,\)",
        ),
        (lambda x: geometry.class_means(x, LABEL, 1), "at least two classes are needed, got 1"),
        (lambda x: geometry.class_means(x, LABEL + 1, 2), r"labels must lie in 0..1, got 1 to 2"),
        (
            lambda x: geometry.within_between(x, LABEL - 1, 2),
            r"labels must lie in 0..1, got -1 to 0",
        ),
        (lambda x: geometry.within_between(x, 2 * LABEL, 3), "class 1 has none"),
        (lambda x: geometry.map_2d(x, "pca"), "unknown map 'pca'; known: tsne, umap"),
        (lambda x: geometry.map_2d(x), r"N >= 31 and D >= 2, got \(4, 3\)"),
        (lambda x: geometry.map_2d(x.repeat(10, 1)[:, :1]), "D >= 2"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call(embeddings(4, 3))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "call",
    [
        lambda x: geometry.alignment(torch.stack([x.nan_to_num(), x])),
        geometry.uniformity,
        geometry.spectrum,
        geometry.effective_rank,
        lambda x: geometry.class_means(x, LABEL, 2),
        geometry.simplex_distance,
        lambda x: geometry.within_between(x, LABEL, 2),
        lambda x: geometry.map_2d(x.repeat(10, 1)),
    ],
)
def test_numbers_that_are_not_finite_are_named(call, wrong):
    x = embeddings(4, 3)
    x[2, 1] = wrong
    with pytest.raises(InputError, match="features must be finite, row 2 has a NaN or an infinity"):
        call(x)
