import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from lib import probes
from lib.data import order


def blobs(n=300, d=10, classes=4, noise=2.0, seed=0):
    random = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centres = np.random.default_rng(1).normal(size=(classes, d))
    x = centres[y] * 1.5 + random.normal(size=(n, d)) * noise
    return torch.from_numpy(x).double() * torch.logspace(-2, 3, d).double(), torch.from_numpy(y)


def test_the_probe_is_scikit_learns_at_the_same_penalty():
    x, y = blobs()
    path = (1.0, 1e-1, 1e-2, 1e-3)
    for probe, l2 in zip(probes.logistic_path(x, y, 4, path), path):
        standard = ((x - x.mean(0)) / x.std(0, unbiased=False)).numpy()
        theirs = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-8, max_iter=5000).fit(standard, y)
        weight = probe.weight - probe.weight.mean(1, keepdim=True)  # softmax leaves a shift free
        assert np.abs(weight.numpy().T - (theirs.coef_ - theirs.coef_.mean(0))).max() < 2e-3
        assert (probe.predict(x).numpy() == theirs.predict(standard)).mean() > 0.995


def test_features_wider_than_there_are_images_have_the_same_minimum():
    """Raw pixels: the axes come from the images' products with each other."""
    random = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = torch.from_numpy(random.normal(size=(3, 200))[y] + 3 * random.normal(size=(60, 200)))
    standard = ((x - x.mean(0)) / x.std(0, unbiased=False)).numpy()
    for probe in probes.logistic_path(x, torch.from_numpy(y), 3, (1.0, 1e-2)):
        theirs = LogisticRegression(C=1 / (probe.l2 * 60), tol=1e-8, max_iter=5000).fit(standard, y)
        weight = probe.weight - probe.weight.mean(1, keepdim=True)
        assert weight.shape == (200, 3)
        assert np.abs(weight.numpy().T - (theirs.coef_ - theirs.coef_.mean(0))).max() < 2e-3
    half = probes.linear_probe(
        (x[:40], torch.from_numpy(y[:40])), (x[40:], torch.from_numpy(y[40:])), 3
    )[0]
    refitted = next(probes.logistic_path(x, torch.from_numpy(y), 3, (half.l2,)))  # begun elsewhere
    assert torch.allclose(half.logits(x), refitted.logits(x), atol=0.02)


def test_the_penalty_can_be_chosen_by_the_log_likelihood_instead():
    """Weak penalties are as often right and too sure of it: noise makes the two choices differ."""
    train, val = blobs(120, noise=8, seed=2), blobs(400, noise=8, seed=3)
    _, on_val = probes.linear_probe(train, val, 4, probes.log_likelihood)
    path = list(probes.logistic_path(*train, 4))
    likelihoods = [
        probe.logits(val[0]).log_softmax(1).gather(1, val[1][:, None]).mean().item()
        for probe in path
    ]
    assert on_val == pytest.approx(max(likelihoods))
    chosen = probes.linear_probe(train, val, 4, probes.log_likelihood)[0]
    assert chosen.l2 == path[likelihoods.index(max(likelihoods))].l2
    assert min(likelihoods) < max(likelihoods) - 0.1


def test_the_whole_path_is_converged_where_features_are_nearly_the_same():
    """Deep features are highly correlated: here 60 that share few directions. Newton's method finds
    the minimum."""
    random = np.random.default_rng(0)
    y = np.arange(1000) % 5
    hidden = (0.5 * random.normal(size=(5, 60))[y] + random.normal(size=(1000, 60))) * np.logspace(
        0, -3, 60
    )
    x = torch.from_numpy(hidden @ random.normal(size=(60, 60))).float()
    standard = ((x - x.mean(0)) / x.std(0, unbiased=False)).double()

    def objective(weight, bias, l2):
        loss = (
            F.cross_entropy(standard @ weight + bias, torch.from_numpy(y))
            + l2 / 2 * weight.square().sum()
        )
        return loss.item()

    for probe in probes.logistic_path(x, torch.from_numpy(y), 5):
        theirs = LogisticRegression(
            C=1 / (probe.l2 * 1000), tol=1e-7, max_iter=1000, solver="newton-cholesky"
        )
        theirs.fit(standard.numpy(), y)
        best = objective(
            torch.from_numpy(theirs.coef_.T), torch.from_numpy(theirs.intercept_), probe.l2
        )
        assert (
            best - 1e-7
            < objective(probe.weight.double(), probe.bias.double(), probe.l2)
            < best + 1e-4
        ), probe.l2


def test_the_penalty_is_chosen_on_val_and_the_probe_refitted_on_both():
    train, val = blobs(120, noise=4, seed=2), blobs(80, noise=4, seed=3)
    probe, on_val = probes.linear_probe(train, val, 4)
    scores = [
        float((p.predict(val[0]) == val[1]).double().mean())
        for p in probes.logistic_path(*train, 4)
    ]
    assert (
        on_val == pytest.approx(max(scores))
        and probe.l2 == probes.L2_PATH[scores.index(max(scores))]
    )
    both = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    refitted = next(probes.logistic_path(*both, 4, (probe.l2,)))
    assert torch.allclose(probe.mean, both[0].mean(0)) and torch.allclose(
        probe.weight, refitted.weight, atol=5e-3
    )


@pytest.mark.parametrize(
    "scores, best, looked_at",
    [
        ([3, 5, 4, 5, 9], 1, 4),  # the first of equals; two in vain end it
        ([3, 5, 4, 6, 0, 0, 7], 3, 6),  # one does not
        ([0, 0, 0, 7], 0, 3),
        ([1, 2, 3], 2, 3),
    ],
)
def test_weaker_penalties_are_tried_until_two_in_a_row_gain_nothing(scores, best, looked_at):
    rest = iter(scores)
    assert probes._best(rest) == (best, scores[best]) and len(scores) - len(list(rest)) == looked_at


def test_dead_features_do_no_harm():
    x, y = blobs()
    x = torch.cat([x, torch.ones(len(x), 3)], dim=1)
    *_, probe = probes.logistic_path(x, y, 4)
    assert torch.isfinite(probe.weight).all() and (probe.predict(x) == y).double().mean() > 0.7


@pytest.mark.parametrize("height, width, k", [(1, 20, 20), (3, 9, 4), (50, 100, 20), (4, 5, 5)])
def test_the_highest_are_found_by_way_of_columns(height, width, k):
    x = torch.randn(6, height, width, generator=torch.Generator().manual_seed(0))
    values, places = probes._highest(x, k)
    wanted = x.flatten(1).topk(k, dim=1)
    assert torch.equal(values, wanted.values) and torch.equal(places, wanted.indices)


def test_knn_is_scikit_learns_with_the_same_weights():
    (x, y), (test, _) = blobs(), blobs(50, seed=5)
    x, test = x / torch.logspace(-2, 3, 10), test / torch.logspace(-2, 3, 10)
    theirs = KNeighborsClassifier(
        7, metric="cosine", algorithm="brute", weights=lambda d: np.exp(-d / 0.07)
    ).fit(x, y)
    ours = probes.knn(x.float(), y, test.float(), 4, k=7, temperature=0.07)
    assert (ours.numpy() == theirs.predict(test)).all()


@pytest.mark.parametrize("noise", [8.0, 2.0, 0.3])
def test_cross_validation_chooses_what_scikit_learn_chooses_and_fits_on_all(noise):
    """The same five folds, every strength fitted by scikit-learn; then the whole subset at the
    chosen one."""
    x, y = blobs(80, noise=noise, seed=4)
    probe = probes.cross_validated_probe(x, y, 4)
    fold, path = (
        (torch.arange(80) // 4 % 5).numpy(),
        probes.L2_PATH[:5],
    )  # the classes take turns in blobs
    scores = []
    for l2 in path:
        right = 0
        for train, test in PredefinedSplit(fold).split():
            scaler = StandardScaler().fit(x[train])
            model = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-8, max_iter=5000)
            model.fit(scaler.transform(x[train]), y[train])
            right += (model.predict(scaler.transform(x[test])) == y[test].numpy()).sum()
        scores.append(right)
    assert probe.l2 == path[int(np.argmax(scores))] and torch.allclose(probe.mean, x.mean(0))
    alone = next(probes.logistic_path(x, y, 4, (probe.l2,)))
    assert torch.allclose(probe.weight, alone.weight, atol=5e-3)


def by_hand(protocol, x, y, test, classes, rates):
    """A published probe written out: the learning rate of every epoch given, the looks at test
    listed."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(x.shape[1], classes)
    weights = list(layer.parameters())
    optimiser = (
        torch.optim.AdamW(weights, 1e-3, weight_decay=1e-3)
        if protocol == "uva"
        else torch.optim.SGD(weights, 5.0, momentum=0.9)
    )
    looks = {}
    for epoch in range(1, 101):
        optimiser.param_groups[0]["lr"] = rates(epoch)
        places = order(len(y), 0, epoch)
        for start in range(0, len(y), 64 if protocol == "uva" else 512):
            rows = places[start : start + (64 if protocol == "uva" else 512)]
            optimiser.zero_grad()
            F.cross_entropy(layer(x[rows]), y[rows]).backward()
            optimiser.step()
        looks[epoch] = int((layer(test[0]).argmax(1) == test[1]).sum())
    return looks


def test_the_published_probes_are_the_sources_step_by_step():
    (x, y), test = blobs(150, noise=6), blobs(200, noise=6, seed=9)
    x, test = x.float() / 100, (test[0].float() / 100, test[1])
    uva = by_hand("uva", x, y, test, 4, lambda e: 1e-3 * 0.1 ** ((e > 60) + (e > 80)))
    theirs = by_hand(
        "supcontrast", x, y, test, 4, lambda e: 5 * 0.2 ** ((e > 60) + (e > 75) + (e > 90))
    )
    for name, looks, every in (("uva", uva, 10), ("supcontrast", theirs, 1)):
        steps = []

        def batch(rows, step, steps=steps):
            steps.append(step)
            return x[rows]

        best, last, curve = probes.published_probe(probes.PROTOCOLS[name], batch, y, test, 4)
        assert curve == [[epoch, looks[epoch]] for epoch in range(every, 101, every)]
        assert int((best == test[1]).sum()) == max(right for _, right in curve)
        assert int((last == test[1]).sum()) == curve[-1][1]
        assert steps == list(range(len(steps))) and len(steps) == (300 if name == "uva" else 100)


def test_uvas_probe_takes_as_many_steps_as_published():
    """200 steps at 10 labels a class, 7,900 at 500: what confounds the label sweep."""
    for n, steps in ((100, 200), (5000, 7900)):
        assert 100 * len(order(n, 0, 1).split(probes.PROTOCOLS["uva"].batch_size)) == steps
