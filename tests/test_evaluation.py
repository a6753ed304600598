"""Features, and what reads them: the linear probe, nearest neighbours, cross-validation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from lib import InputError, evaluation
from lib.augmentations import RECIPES
from lib.data.dataset import Dataset
from lib.encoders import Model
from lib.evaluation import L2_PATH, LinearProbe, knn, linear_probe, log_likelihood, logistic_path
from tests.blobs import blobs


def test_features_do_not_depend_on_the_batch_and_leave_the_model_as_it_was(
    toy: Dataset, monkeypatch: pytest.MonkeyPatch
):
    """The trap: without eval mode, features use the test batch's own statistics."""
    model = Model("slim").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    h, z = evaluation.features(model, toy.test.images, RECIPES["none"])
    assert h.shape == (60, 128)
    assert z.shape == (60, 128)

    # 60 is no multiple of 7: none may be dropped
    monkeypatch.setitem(evaluation.BATCH_PIXELS, "cpu", 7 * 12**2)
    again, _ = evaluation.features(model, toy.test.images, RECIPES["none"])
    assert torch.allclose(h, again, atol=1e-5)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_features_are_computed_in_the_precision_asked_for_and_given_in_float32(toy: Dataset):
    model = Model("slim").eval()
    given = model, toy.test.images, RECIPES["none"]
    in_bfloat16 = evaluation.features(*given, "bfloat16")
    for ours, exact in zip(in_bfloat16, evaluation.features(*given)):
        assert ours.dtype == torch.float32
        assert not torch.equal(ours, exact)
        assert torch.allclose(ours, exact, rtol=0.1, atol=0.1)


def by_scikit_learn(
    probe: LinearProbe, x: Tensor, y: Tensor, **options
) -> tuple[np.ndarray, LogisticRegression]:
    """Standardised features, and scikit-learn's fit on them at a probe's penalty."""
    standard = ((x - x.mean(0)) / x.std(0, unbiased=False)).double().numpy()
    settings = {"tol": 1e-8, "max_iter": 5000} | options
    model = LogisticRegression(C=1 / (probe.l2 * len(x)), **settings)
    return standard, model.fit(standard, y)


def distance(probe: LinearProbe, model: LogisticRegression) -> float:
    """The largest difference of weights; softmax leaves a shift over classes free."""
    ours = probe.weight - probe.weight.mean(1, keepdim=True)
    return np.abs(ours.numpy().T - (model.coef_ - model.coef_.mean(0))).max()


def test_the_probe_is_scikit_learns_at_the_same_penalty():
    x, y = blobs()
    for probe in logistic_path(x, y, 4, (1.0, 1e-1, 1e-2, 1e-3)):
        standard, model = by_scikit_learn(probe, x, y)
        assert distance(probe, model) < 2e-3
        assert (probe.predict(x).numpy() == model.predict(standard)).mean() > 0.995


def test_features_wider_than_there_are_images_have_the_same_minimum():
    """Raw pixels: the axes come from the images' products with each other."""
    random = np.random.default_rng(0)
    classes = np.arange(60) % 3
    centres = random.normal(size=(3, 200))
    x = torch.from_numpy(centres[classes] + 3 * random.normal(size=(60, 200)))
    y = torch.from_numpy(classes)
    for probe in logistic_path(x, y, 3, (1.0, 1e-2)):
        _, model = by_scikit_learn(probe, x, y)
        assert probe.weight.shape == (200, 3)
        assert distance(probe, model) < 2e-3

    begun_elsewhere, _ = linear_probe((x[:40], y[:40]), (x[40:], y[40:]), 3)
    begun_at_zero = next(logistic_path(x, y, 3, (begun_elsewhere.l2,)))
    assert torch.allclose(begun_elsewhere.logits(x), begun_at_zero.logits(x), atol=0.02)


def test_the_whole_path_is_converged_where_features_are_nearly_the_same():
    """Deep features are highly correlated: here 60 that share few directions.

    Newton's method finds the minimum.
    """
    random = np.random.default_rng(0)
    classes = np.arange(1000) % 5
    centres = 0.5 * random.normal(size=(5, 60))
    hidden = (centres[classes] + random.normal(size=(1000, 60))) * np.logspace(0, -3, 60)
    x = torch.from_numpy(hidden @ random.normal(size=(60, 60))).float()
    y = torch.from_numpy(classes)

    for probe in logistic_path(x, y, 5):
        standard, model = by_scikit_learn(probe, x, y, tol=1e-7, solver="newton-cholesky")

        def objective(weight: Tensor, bias: Tensor, standard=standard, l2=probe.l2) -> float:
            logits = torch.from_numpy(standard) @ weight + bias
            return float(F.cross_entropy(logits, y) + l2 / 2 * weight.square().sum())

        best = objective(torch.from_numpy(model.coef_.T), torch.from_numpy(model.intercept_))
        ours = objective(probe.weight.double(), probe.bias.double())
        assert best - 1e-7 < ours < best + 1e-4, probe.l2


def test_dead_features_do_no_harm():
    x, y = blobs()
    x = torch.cat([x, torch.ones(len(x), 3)], dim=1)
    *_, weakest = logistic_path(x, y, 4)
    assert torch.isfinite(weakest.weight).all()
    assert evaluation.accuracy(weakest, x, y) > 0.7


def test_a_short_feature_is_read_as_a_long_one():
    x, y = blobs()
    long = torch.cat([1e9 * torch.randn(len(x), 1), x], dim=1)
    for probe, plain in zip(logistic_path(long, y, 4), logistic_path(1e-9 * long, y, 4)):
        assert evaluation.accuracy(probe, long, y) > 0.7
        torch.testing.assert_close(probe.weight, plain.weight, rtol=1e-3, atol=1e-4)


def test_the_penalty_is_chosen_on_val_and_the_probe_refitted_on_both():
    train, val = blobs(120, noise=4, seed=2), blobs(80, noise=4, seed=3)
    probe, on_val = linear_probe(train, val, 4)
    scores = [evaluation.accuracy(fitted, *val) for fitted in logistic_path(*train, 4)]
    assert on_val == pytest.approx(max(scores))
    assert probe.l2 == L2_PATH[scores.index(max(scores))]

    x, y = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    refitted = next(logistic_path(x, y, 4, (probe.l2,)))
    assert torch.allclose(probe.mean, x.mean(0))
    assert torch.allclose(probe.weight, refitted.weight, atol=5e-3)


def test_the_penalty_can_be_chosen_by_the_log_likelihood_instead():
    """Weak penalties are as often right and too sure of it: noise makes the two choices differ."""
    train, val = blobs(120, noise=8, seed=2), blobs(400, noise=8, seed=3)
    x, y = val
    likelihoods = []
    for fitted in logistic_path(*train, 4):
        probabilities = fitted.logits(x).log_softmax(1)
        likelihoods.append(probabilities.gather(1, y[:, None]).mean().item())

    probe, on_val = linear_probe(train, val, 4, log_likelihood)
    best = max(likelihoods)
    assert on_val == pytest.approx(best)
    assert probe.l2 == L2_PATH[likelihoods.index(best)]
    assert min(likelihoods) < best - 0.1


def squeezed(images: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N, 8), the same through a square matrix that squeezes, and classes (N,).

    The classes lie along a direction that the matrix makes 3,000 times shorter than the others.
    """
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(images) % 2
    h = torch.randn(images, 8, generator=generator)
    h[:, 0] += 4 * y - 2
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(9)))
    z = h * torch.tensor([1 / 3000] + [1.0] * 7) @ rotation
    return h, z, y


def test_what_a_square_matrix_only_squeezes_is_read_as_well_as_before():
    """An invertible matrix loses nothing, so the weakest penalties have to be tried."""
    (h, z, y), (val_h, val_z, val_y) = squeezed(400, seed=0), squeezed(200, seed=1)
    test_h, test_z, truth = squeezed(2000, seed=2)
    of_h, _ = linear_probe((h, y), (val_h, val_y), 2)
    of_z, _ = linear_probe((z, y), (val_z, val_y), 2)
    read = evaluation.accuracy(of_h, test_h, truth)
    assert read > 0.95
    assert evaluation.accuracy(of_z, test_z, truth) == pytest.approx(read, abs=0.01)
    assert of_z.l2 < 1e-5

    small = evaluation.cross_validated_probe(z, y, 2)
    assert evaluation.accuracy(small, test_z, truth) == pytest.approx(read, abs=0.01)


def test_a_path_ends_where_the_classes_are_told_apart():
    x, y = blobs(120, noise=0.1)
    *_, last = logistic_path(x, y, 4)
    assert last.l2 > L2_PATH[-1]
    nats = float(F.cross_entropy(last.logits(x), y))
    assert nats < evaluation.FITTED
    x, y = blobs(120, noise=8)
    *_, last = logistic_path(x, y, 4)
    assert last.l2 == L2_PATH[-1]


def test_knn_is_scikit_learns_with_the_same_weights(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluation, "KNN_CHUNK", 20)  # 50 test images are no multiple of it
    (x, y), (test, _) = blobs(), blobs(50, seed=5)
    x, test = x / torch.logspace(-2, 3, 10), test / torch.logspace(-2, 3, 10)

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp(-distances / 0.07)

    model = KNeighborsClassifier(7, metric="cosine", algorithm="brute", weights=weights)
    ours = knn(x.float(), y, test.float(), 4, k=7, temperature=0.07)
    assert (ours.numpy() == model.fit(x, y).predict(test)).all()


def test_fewer_images_than_neighbours_all_vote():
    x = torch.eye(3)
    assert knn(x, torch.tensor([0, 1, 1]), x, 2, k=20).tolist() == [0, 1, 1]


def test_the_farthest_neighbours_still_vote_at_the_coldest_temperature():
    train, test = torch.eye(2)[[0, 0, 0]], -torch.eye(2)[:1]
    labels = torch.ones(3, dtype=torch.int64)
    assert knn(train, labels, test, 2, temperature=evaluation.COLDEST).tolist() == [1]
    with pytest.raises(InputError, match="temperature must be at least"):
        knn(train, labels, test, 2, temperature=0.01)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_knn_reads_any_floating_point_type(dtype):
    random = torch.Generator().manual_seed(0)
    train, test = (torch.randn(n, 8, generator=random) for n in (50, 10))
    labels = (train[:, 0] > 0).long()
    expected = knn(train, labels, test, 2, k=1)
    found = knn(train.to(dtype).requires_grad_(), labels, test.to(dtype), 2, k=1)
    assert (found == expected).float().mean() >= 0.9  # rounding may turn one


def test_the_curves_knn_reads_val_by_train(toy: Dataset):
    model = Model("slim")
    train, _ = evaluation.features(model, toy.train.images, RECIPES["none"])
    val, _ = evaluation.features(model, toy.val.images, RECIPES["none"])
    predicted = knn(train, toy.train.labels, val, 4)
    wanted = (predicted == toy.val.labels).double().mean().item()
    assert evaluation.knn_on_val(model, toy, RECIPES["none"]) == pytest.approx(wanted)


def folded(x: Tensor, y: Tensor, fold: np.ndarray, l2: float) -> int:
    """How many are right in cross-validation over given folds, by scikit-learn."""
    right = 0
    for train, test in PredefinedSplit(fold).split():
        scaler = StandardScaler().fit(x[train])
        model = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-8, max_iter=5000)
        model.fit(scaler.transform(x[train]), y[train])
        right += (model.predict(scaler.transform(x[test])) == y[test].numpy()).sum()
    return right


@pytest.mark.parametrize("noise", [8.0, 2.0, 0.3])
def test_cross_validation_chooses_what_scikit_learn_chooses_and_fits_on_all(noise):
    """The same five folds, every strength fitted by scikit-learn; then all at the chosen one."""
    x, y = blobs(80, noise=noise, seed=4)
    probe = evaluation.cross_validated_probe(x, y, 4)
    fold = (torch.arange(80) // 4 % 5).numpy()  # the classes take turns in blobs
    path = L2_PATH[:5]
    scores = [folded(x, y, fold, l2) for l2 in path]
    assert probe.l2 == path[int(np.argmax(scores))]
    assert torch.allclose(probe.mean, x.mean(0))
    alone = next(logistic_path(x, y, 4, (probe.l2,)))
    assert torch.allclose(probe.weight, alone.weight, atol=5e-3)
