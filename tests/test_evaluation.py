import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from lib import evaluation
from lib.augmentations import RECIPES
from lib.encoders import Model


def blobs(n=300, d=10, classes=4, noise=2.0, seed=0):
    random = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centres = np.random.default_rng(1).normal(size=(classes, d))
    x = centres[y] * 1.5 + random.normal(size=(n, d)) * noise
    return torch.from_numpy(x).double() * torch.logspace(-2, 3, d).double(), torch.from_numpy(y)


def test_the_probe_is_scikit_learns_at_the_same_penalty():
    x, y = blobs()
    path = (1.0, 1e-1, 1e-2, 1e-3)
    for probe, l2 in zip(evaluation.logistic_path(x, y, 4, path), path):
        standard = ((x - x.mean(0)) / x.std(0, unbiased=False)).numpy()
        theirs = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-8, max_iter=5000).fit(standard, y)
        weight = probe.weight - probe.weight.mean(1, keepdim=True)      # softmax leaves a shift free
        assert np.abs(weight.numpy().T - (theirs.coef_ - theirs.coef_.mean(0))).max() < 2e-3
        assert (probe.predict(x).numpy() == theirs.predict(standard)).mean() > 0.995


def test_the_penalty_is_chosen_on_val_and_the_probe_refitted_on_both():
    train, val = blobs(120, noise=4, seed=2), blobs(80, noise=4, seed=3)
    probe, on_val = evaluation.linear_probe(train, val, 4)
    scores = [float((p.predict(val[0]) == val[1]).double().mean()) for p in evaluation.logistic_path(*train, 4)]
    assert on_val == pytest.approx(max(scores)) and probe.l2 == evaluation.L2_PATH[scores.index(max(scores))]
    both = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    refitted = evaluation.logistic_path(*both, 4, (probe.l2,))[0]
    assert torch.allclose(probe.mean, both[0].mean(0)) and torch.allclose(probe.weight, refitted.weight, atol=5e-3)


def test_dead_features_do_no_harm():
    x, y = blobs()
    x = torch.cat([x, torch.ones(len(x), 3)], dim=1)
    probe = evaluation.logistic_path(x, y, 4)[-1]
    assert torch.isfinite(probe.weight).all() and (probe.predict(x) == y).double().mean() > 0.7


def test_knn_is_scikit_learns_with_the_same_weights():
    (x, y), (test, _) = blobs(), blobs(50, seed=5)
    x, test = x / torch.logspace(-2, 3, 10), test / torch.logspace(-2, 3, 10)
    theirs = KNeighborsClassifier(7, metric="cosine", algorithm="brute", weights=lambda d: np.exp(-d / 0.07)).fit(x, y)
    ours = evaluation.knn(x.float(), y, test.float(), 4, k=7, temperature=0.07)
    assert (ours.numpy() == theirs.predict(test)).all()


def test_features_do_not_depend_on_the_batch_and_leave_batchnorm_alone(toy, monkeypatch):
    """The trap: without eval mode, features use the test batch's own statistics."""
    model = Model("slim").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    h, z = evaluation.features(model, toy.test.images, RECIPES["none"])
    assert h.shape == (60, 128) and z.shape == (60, 128)
    monkeypatch.setattr(evaluation, "BATCH", 7)                     # 60 is no multiple of 7: none may be dropped
    again, _ = evaluation.features(model.train(), toy.test.images, RECIPES["none"])
    assert torch.allclose(h, again, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_test_labels_choose_nothing(toy):
    """Shuffling the test labels changes the score and nothing else."""
    from dataclasses import replace

    from lib.data import Split
    model = Model("slim", head="none")
    one = evaluation.evaluate(model, toy, RECIPES["none"])
    other = replace(toy, test=Split(toy.test.images, toy.test.labels.roll(1)))
    two = evaluation.evaluate(model, other, RECIPES["none"])
    assert one["h"]["linear"]["l2"] == two["h"]["linear"]["l2"] and "z" not in one
    assert one["h"]["linear"]["val_accuracy"] == two["h"]["linear"]["val_accuracy"]
    assert one["h"]["linear"]["correct"] > two["h"]["linear"]["correct"]
