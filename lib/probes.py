"""Readers of frozen features: what does a simple classifier make of them?

The linear probe is logistic regression by full-batch L-BFGS, to convergence; its L2 strength is
chosen without the test images. The published probes, UvA's and SupContrast's, are kept beside it to
the letter, their choice of the best epoch by test accuracy included, so that published numbers can
be compared like with like.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lib.data import order

L2_PATH = tuple(
    10.0**k for k in range(0, -8, -1)
)  # 8 strengths, strong to weak: each starts from the last
LOOK, ITERATIONS, TOLERANCE = 10, 400, 1e-4  # of L-BFGS: see _minimise
KNN_CHUNK = 1024  # test images at a time
PATIENCE = 2  # weaker strengths tried in vain before the choice
FOLDS = 5  # of the cross-validation on small label sets


@dataclass(frozen=True)
class Probe:
    """A fitted linear probe: logits = ((x - mean) / scale) @ weight + bias."""

    weight: Tensor  # (D, C)
    bias: Tensor  # (C,)
    mean: Tensor  # (D,)
    scale: Tensor  # (D,)
    l2: float

    def logits(self, x: Tensor) -> Tensor:
        """(N, D) features -> (N, C)."""
        return (x - self.mean) / self.scale @ self.weight + self.bias

    def predict(self, x: Tensor) -> Tensor:
        """(N, D) features -> (N,) classes."""
        return self.logits(x).argmax(1)


def logistic_path(
    x: Tensor,
    y: Tensor,
    classes: int,
    path: tuple[float, ...] = L2_PATH,
    start: Probe | None = None,
) -> Iterator[Probe]:
    """Multinomial logistic regression by full-batch L-BFGS, one probe for each L2 strength, each
    from the last.

    Minimises ``mean cross-entropy + l2 / 2 |weight|^2`` on features standardised by their own mean
    and deviation; the bias is not penalised (scikit-learn's LogisticRegression with C = 1 / (l2
    N)). x: (N, D) float; y: (N,) classes. start: where the first begins, else at 0.

    Features' principal axes differ in variance by many orders of magnitude, which slows L-BFGS down
    until it seems to stand still. So it works along these axes, each in units of a bound of the
    objective's curvature there, half its variance (Boehning, Ann. Inst. Stat. Math. 1992) plus the
    penalty: the same minimum, in far fewer iterations.
    """
    mean, scale = x.mean(0), x.std(0, unbiased=False)
    scale = torch.where(
        scale > 1e-6 * scale.max(), scale, torch.ones_like(scale)
    )  # dead features stay 0
    x = (x - mean) / scale
    variance, axes = _principal_axes(x)
    x = x @ axes
    weight, bias = x.new_zeros(classes, x.shape[1]), x.new_zeros(classes)  # rows: along the axes
    if start:
        weight, bias = start.weight.T @ axes, start.bias
    for l2 in path:
        unit = (variance / 2 + l2).rsqrt()
        weight, bias = _minimise(x * unit, y, weight / unit, bias, l2 * unit.square())
        weight = weight * unit
        yield Probe(axes @ weight.T, bias, mean, scale, l2)


def _principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variance (A,) along each principal axis of x (N, D), which is centred, and the axes (D, A),
    orthonormal.

    A = D; with fewer features than dimensions A <= N, the axes along which there is any variance: a
    penalised minimum lies in their span. They come from the N x N matrix of products then, as all D
    of raw pixels would take hours.
    """
    n, dimensions = x.shape
    wide = x.cpu().double()  # on the CPU: MPS has neither
    if n >= dimensions:
        variance, axes = torch.linalg.eigh(wide.T @ wide / n)
        variance = variance.clamp(min=0)
    else:
        variance, left = torch.linalg.eigh(wide @ wide.T / n)
        there = variance > 1e-10 * variance[-1].clamp(min=1e-10)
        variance = variance[there]
        axes = wide.T @ left[:, there] / (n * variance).sqrt()
    return variance.to(x.dtype).to(x.device), axes.to(x.dtype).to(x.device)


def _minimise(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, penalty: Tensor
) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) at the minimum of ``mean cross-entropy + sum penalty weight^2 /
    2``; penalty: (D,).

    At the minimum: LOOK iterations lowered the objective by TOLERANCE of it (or of 0.1 nats) or
    less.
    """
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=LOOK,
        history_size=LOOK,
        tolerance_grad=1e-7,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        logits = torch.addmm(
            bias[:, None], weight, x.T
        )  # (C, N): softmax over columns is many times faster on CPUs,
        pair = (
            (logits[None], y[None]) if x.device.type == "cpu" else (logits.T, y)
        )  # on GPUs not deterministic
        loss = F.cross_entropy(*pair) + (penalty * weight.square()).sum() / 2
        loss.backward()
        return loss.detach()

    now = float(solver.step(objective))  # a step returns what the objective was at its start
    for _ in range(ITERATIONS // LOOK):
        before, now = now, float(solver.step(objective))
        if before - now <= TOLERANCE * max(before, 0.1):
            break
    return weight.detach(), bias.detach()


def accuracy(probe: Probe, x: Tensor, y: Tensor) -> float:
    """The share of features x (N, D) whose class y (N,) a probe predicts."""
    return float((probe.predict(x) == y).float().mean())


def log_likelihood(probe: Probe, x: Tensor, y: Tensor) -> float:
    """The mean logarithm of the probability that a probe gives to the class y (N,) of features x
    (N, D), in nats."""
    return -float(F.cross_entropy(probe.logits(x), y))


def linear_probe(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    classes: int,
    score: Callable[[Probe, Tensor, Tensor], float] = accuracy,
) -> tuple[Probe, float]:
    """The probe whose L2 strength did best on val, refitted on train + val, and its score on val
    before that.

    train, val: features (N, D) and labels (N,). score: ``accuracy`` or ``log_likelihood``. Ties go
    to the stronger penalty. Strengths are tried from strong to weak, until PATIENCE in a row did no
    better than the best.
    """
    fitted = []

    def scores() -> Iterator[float]:
        for probe in logistic_path(*train, classes):
            fitted.append(probe)
            yield score(probe, *val)

    best, on_val = _best(scores())
    both = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    return next(logistic_path(*both, classes, L2_PATH[best:], fitted[best])), on_val


def _best(scores: Iterable[float]) -> tuple[int, float]:
    """Place of the best score, the first of equals, and the score; looks no further than PATIENCE
    after it."""
    place, best = 0, -math.inf
    for i, score in enumerate(scores):
        if score > best:
            place, best = i, score
        elif i == place + PATIENCE:
            break
    return place, best


def knn(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Weighted k nearest neighbours by cosine (Wu et al., arXiv 1805.01978, section 3.4): (N,)
    classes.

    Each neighbour votes for its class with exp(cosine / temperature). train: (M, D); labels: (M,);
    test: (N, D).
    """
    train, k = F.normalize(train, dim=1), min(k, len(train))
    height = max(1, math.isqrt(len(train) // k))
    room = train.new_full((min(len(test), KNN_CHUNK), height * -(-len(train) // height)), -math.inf)
    predicted = []
    for batch in F.normalize(test, dim=1).split(KNN_CHUNK):
        cosines = room[: len(batch)]  # once for all: new memory is slow
        torch.mm(batch, train.T, out=cosines[:, : len(train)])
        similarity, place = _highest(cosines.view(len(batch), height, -1), k)
        votes = torch.zeros(len(batch), classes, device=train.device)
        votes.scatter_add_(1, labels[place], ((similarity - 1) / temperature).exp())
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)


def _highest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each x[i], values and places in x[i].flatten(), in descending order: (B, k)
    each.

    x: (B, H, W), W >= k. Exact: they lie in the k columns with the largest maxima, where few are
    left to be searched.
    """
    columns = x.amax(1).topk(k, dim=1).indices  # (B, k)
    values, at = x.gather(2, columns[:, None].expand(-1, x.shape[1], -1)).flatten(1).topk(k, dim=1)
    return values, at // k * x.shape[2] + columns.gather(1, at % k)


def cross_validated_probe(x: Tensor, y: Tensor, classes: int) -> Probe:
    """The probe whose L2 strength did best in stratified five-fold cross-validation, fitted on all
    of x.

    For label sets too small to hold some out, and without a label from outside. x: (N, D) in random
    order; y: (N,).
    """
    fold = torch.empty_like(y)
    for c in y.unique():
        rows = (y == c).nonzero()[:, 0]
        fold[rows] = torch.arange(len(rows), device=y.device) % FOLDS
    held = [fold == k for k in range(FOLDS)]
    paths = zip(*(logistic_path(x[~rows], y[~rows], classes) for rows in held))
    best, _ = _best(
        sum(float((probe.predict(x[rows]) == y[rows]).sum()) for probe, rows in zip(probes, held))
        for probes in paths
    )
    return next(logistic_path(x, y, classes, L2_PATH[best:]))


@dataclass(frozen=True)
class Protocol:
    """How a published probe is trained: one linear layer on raw features, by mini-batches, without
    early stopping."""

    optimiser: str
    learning_rate: float
    weight_decay: float
    batch_size: int
    milestones: tuple[int, ...]  # after so many epochs the learning rate is multiplied by factor
    factor: float
    look_every: int  # epochs between looks at test; the best look is what the sources report
    augment: str = "none"  # the recipe of the training images' views
    epochs: int = 100


PROTOCOLS = {
    # UvA deep-learning tutorial 17, LogisticRegression: on features computed once
    "uva": Protocol("adamw", 1e-3, 1e-3, 64, (60, 80), 0.1, look_every=10),
    # SupContrast main_linear.py and README: a new crop and flip of every image in every epoch; lr 5
    # for SupCon
    "supcontrast": Protocol(
        "sgd", 5.0, 0.0, 512, (60, 75, 90), 0.2, look_every=1, augment="crop-flip"
    ),
}


def published_probe(
    protocol: Protocol,
    batch: Callable[[Tensor, int], Tensor],
    y: Tensor,
    test: tuple[Tensor, Tensor],
    classes: int,
    seed: int = 0,
) -> tuple[Tensor, Tensor, list]:
    """Train a published probe.

    batch: (rows, step) -> (B, D), the training images' features at that step. y: (N,) their labels.
    test: features (M, D) and labels (M,). Returns the predictions (M,) of the epoch that did best
    on test, as the sources report it, those of the last epoch, which chose nothing, and [epoch, how
    many right] at every look.
    """
    x_test, y_test = test
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layer = torch.nn.Linear(x_test.shape[1], classes).to(x_test.device)
    if protocol.optimiser == "adamw":
        optimiser = torch.optim.AdamW(
            layer.parameters(), protocol.learning_rate, weight_decay=protocol.weight_decay
        )
    else:
        optimiser = torch.optim.SGD(layer.parameters(), protocol.learning_rate, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(
        optimiser, list(protocol.milestones), protocol.factor
    )
    step, best, curve = 0, None, []
    for epoch in tqdm(
        range(1, protocol.epochs + 1), desc="probe", unit="epoch", delay=2, leave=False
    ):
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
