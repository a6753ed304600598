"""Readers of frozen features: what does a simple classifier make of them?

The linear probe is logistic regression by full-batch L-BFGS; its L2 strength is chosen without the test images. Its 200
iterations reach the minimum at strong penalties; below about 1e-3 they can end short of it. The published probes, UvA's
and SupContrast's, are kept beside it to the letter, their choice of the best epoch by test accuracy included, so that
published numbers can be compared like with like.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lib.data import order

L2_PATH = tuple(10.0 ** k for k in range(0, -8, -1))        # 8 strengths, strong to weak: each starts from the last
FOLDS = 5                                                   # of the cross-validation on small label sets


@dataclass(frozen=True)
class Probe:
    """A fitted linear probe: logits = ((x - mean) / scale) @ weight + bias."""

    weight: Tensor      # (D, C)
    bias: Tensor        # (C,)
    mean: Tensor        # (D,)
    scale: Tensor       # (D,)
    l2: float

    def logits(self, x: Tensor) -> Tensor:
        """(N, D) features -> (N, C)."""
        return (x - self.mean) / self.scale @ self.weight + self.bias

    def predict(self, x: Tensor) -> Tensor:
        """(N, D) features -> (N,) classes."""
        return self.logits(x).argmax(1)


def logistic_path(x: Tensor, y: Tensor, classes: int, path: tuple[float, ...] = L2_PATH,
                  iterations: int = 200) -> list[Probe]:
    """Multinomial logistic regression by full-batch L-BFGS, one probe for each L2 strength, each from the last.

    Minimises ``mean cross-entropy + l2 / 2 |weight|^2`` on features standardised by their own mean and deviation; the
    bias is not penalised (scikit-learn's LogisticRegression with C = 1 / (l2 N)). x: (N, D) float; y: (N,) classes.
    """
    mean, scale = x.mean(0), x.std(0, unbiased=False)
    scale = torch.where(scale > 1e-6 * scale.max(), scale, torch.ones_like(scale))      # dead features stay 0
    x = (x - mean) / scale
    weight = torch.zeros(x.shape[1], classes, dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, device=x.device, requires_grad=True)
    probes = []
    for l2 in path:
        _minimise(x, y, weight, bias, l2, iterations)
        probes.append(Probe(weight.detach().clone(), bias.detach().clone(), mean, scale, l2))
    return probes


def _minimise(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, l2: float, iterations: int) -> None:
    """Move weight and bias to the minimum for one L2 strength."""
    solver = torch.optim.LBFGS([weight, bias], max_iter=iterations, tolerance_grad=1e-5, tolerance_change=1e-9,
                               history_size=20, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, y) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(objective)


def linear_probe(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], classes: int) -> tuple[Probe, float]:
    """The probe whose L2 strength did best on val, refitted on train + val, and its accuracy on val before that.

    train, val: features (N, D) and labels (N,). Ties go to the stronger penalty.
    """
    path = logistic_path(*train, classes)
    accuracy = [float((probe.predict(val[0]) == val[1]).float().mean()) for probe in path]
    best = max(range(len(path)), key=lambda i: (accuracy[i], -i))
    both = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    return logistic_path(*both, classes, L2_PATH[:best + 1])[-1], accuracy[best]


def knn(train: Tensor, labels: Tensor, test: Tensor, classes: int, k: int = 20, temperature: float = 0.07) -> Tensor:
    """Weighted k nearest neighbours by cosine (Wu et al., arXiv 1805.01978, section 3.4): (N,) classes.

    Each neighbour votes for its class with exp(cosine / temperature). train: (M, D); labels: (M,); test: (N, D).
    """
    train, k = F.normalize(train, dim=1), min(k, len(train))
    predicted = []
    for batch in F.normalize(test, dim=1).split(1024):
        similarity, place = (batch @ train.T).topk(k, dim=1)
        votes = torch.zeros(len(batch), classes, device=train.device)
        votes.scatter_add_(1, labels[place], ((similarity - 1) / temperature).exp())
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)


def cross_validated_probe(x: Tensor, y: Tensor, classes: int) -> Probe:
    """The probe whose L2 strength did best in stratified five-fold cross-validation, fitted on all of x.

    For label sets too small to hold some out, and without a label from outside. x: (N, D) in random order; y: (N,).
    The folds' fits stop after 50 iterations: that decides between strengths, the final fit goes on to 200.
    """
    fold = torch.empty_like(y)
    for c in y.unique():
        rows = (y == c).nonzero()[:, 0]
        fold[rows] = torch.arange(len(rows), device=y.device) % FOLDS
    correct = torch.zeros(len(L2_PATH))
    for k in range(FOLDS):
        held = fold == k
        for i, probe in enumerate(logistic_path(x[~held], y[~held], classes, iterations=50)):
            correct[i] += float((probe.predict(x[held]) == y[held]).sum())
    return logistic_path(x, y, classes, L2_PATH[:int(correct.argmax()) + 1])[-1]       # ties: the stronger penalty


@dataclass(frozen=True)
class Protocol:
    """How a published probe is trained: one linear layer on raw features, by mini-batches, without early stopping."""

    optimiser: str
    learning_rate: float
    weight_decay: float
    batch_size: int
    milestones: tuple[int, ...]     # after so many epochs the learning rate is multiplied by factor
    factor: float
    look_every: int                 # epochs between looks at test; the best look is what the sources report
    augment: str = "none"           # the recipe of the training images' views
    epochs: int = 100


PROTOCOLS = {
    # UvA deep-learning tutorial 17, LogisticRegression: on features computed once
    "uva": Protocol("adamw", 1e-3, 1e-3, 64, (60, 80), 0.1, look_every=10),
    # SupContrast main_linear.py and README: a new crop and flip of every image in every epoch; lr 5 for SupCon
    "supcontrast": Protocol("sgd", 5.0, 0.0, 512, (60, 75, 90), 0.2, look_every=1, augment="crop-flip"),
}


def published_probe(protocol: Protocol, batch: Callable[[Tensor, int], Tensor], y: Tensor,
                    test: tuple[Tensor, Tensor], classes: int, seed: int = 0) -> tuple[Tensor, Tensor, list]:
    """Train a published probe.

    batch: (rows, step) -> (B, D), the training images' features at that step. y: (N,) their labels. test: features
    (M, D) and labels (M,). Returns the predictions (M,) of the epoch that did best on test, as the sources report it,
    those of the last epoch, which chose nothing, and [epoch, how many right] at every look.
    """
    x_test, y_test = test
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layer = torch.nn.Linear(x_test.shape[1], classes).to(x_test.device)
    if protocol.optimiser == "adamw":
        optimiser = torch.optim.AdamW(layer.parameters(), protocol.learning_rate, weight_decay=protocol.weight_decay)
    else:
        optimiser = torch.optim.SGD(layer.parameters(), protocol.learning_rate, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, list(protocol.milestones), protocol.factor)
    step, best, curve = 0, None, []
    for epoch in tqdm(range(1, protocol.epochs + 1), desc="probe", unit="epoch", delay=2, leave=False):
        for rows in order(len(y), seed, epoch).to(y.device).split(protocol.batch_size):
            loss = F.cross_entropy(layer(batch(rows, step)), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
        scheduler.step()
        if epoch % protocol.look_every == 0:
            with torch.no_grad():
                last = layer(x_test).argmax(1)
            right = int((last == y_test).sum())
            if right > max((count for _, count in curve), default=-1):
                best = last
            curve.append([epoch, right])
    return best, last, curve
