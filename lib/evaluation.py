"""What do the features know? A linear probe and nearest neighbours on frozen h and z.

Features are computed once, in eval mode, without augmentation. Every choice of ours (the probe's L2
strength) is made on val; the chosen probe is refitted on train + val, and test is looked at once.
An encoder whose pool was train + val (the published presets) has seen val before, with its labels
where its method needs them; then val favours weak penalties a little. Test stays untouched either
way. Further probes are in ``lib.probes``.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib import InputError
from lib.augmentations import Recipe, apply, draw
from lib.compute.bits import pack_bits
from lib.compute.logistic import minimise, principal_axes
from lib.data.dataset import Dataset, Split
from lib.distributed.group import Share, barrier
from lib.encoders import Model
from lib.hardware import autocast, choose_device, memory_format
from lib.progress import bar as progress_bar

BATCH_PIXELS = {"cpu": 2**19}  # 512 images of 32 x 32: larger were not faster, nor smaller ones
BATCH_PIXELS_ELSEWHERE = 2**22  # 4,096 of them: accelerators wait for a batch to begin
VIEWS = 512  # of a batch, where they are given
# Strong to weak, each starts from the last. A head may squeeze directions of z to a millionth of
# the longest; a float32 holds them, and only so weak a penalty lets a probe read them.
L2_PATH = tuple(10.0**-k for k in range(13))
FITTED = 1e-2  # nats, where a path ends: weaker penalties would do little but lengthen the weights
ROUNDING = 1e-6  # of float32 sums, as a share of their mean
FOLDS = 5  # of the cross-validation on small label sets
KNN_CHUNK = 1024  # test images at a time
COLDEST = 0.025  # temperature of votes: that of the farthest neighbour is exp(-80)

Labelled = tuple[Tensor, Tensor]  # features (N, D) and their classes (N,)


@torch.no_grad()
def features(
    model: nn.Module, images: Tensor, recipe: Recipe, precision: str = "float32"
) -> tuple[Tensor, Tensor]:
    """h (N, width) and z (N, D), float32, of images (N, 3, H, W) uint8, on the model's device.

    model: gives h and z, as ``encoders.Model``.
    recipe: the view that evaluation sees, usually ``RECIPES["none"]`` with the run's size and
        normalisation.
    precision: in which the model multiplies; all that is published of features is of float32.

    Ranks (lib.distributed) compute a part each, and all get all.
    """
    barrier()  # patient: what ranks do between two calls takes them unequally long
    device = device_of(model, images)
    size = recipe.side(images)
    share = Share(len(images))
    parts_of_h, parts_of_z = [], []

    own = images[share.own[0]]  # this rank's part; without ranks all
    most = BATCH_PIXELS.get(device.type, BATCH_PIXELS_ELSEWHERE)
    with _in_eval_mode(model):
        for batch in own.split(max(1, most // size**2)):
            x = apply(batch.to(device), draw(recipe, len(batch), seed=0, step=0))
            with autocast(device, precision):
                h, z = model(x.contiguous(memory_format=memory_format(device)))
            parts_of_h.append(h.float())
            parts_of_z.append(z.float())

    h, z = torch.cat(parts_of_h), torch.cat(parts_of_z)
    barrier()  # as before: processors may be unequally fast
    return share.gather(h[None])[0], share.gather(z[None])[0]


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Afterwards the model is in the mode that it was in before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def view_features(
    model: nn.Module, x: Tensor, batch: int = VIEWS, device: str | None = None
) -> tuple[Tensor, Tensor]:
    """h (V, N, width) and z (V, N, D), on the CPU, of views x (V, N, 3, S, S), on a device.

    model: on the CPU, in training or eval mode as it is. A copy computes, so that BatchNorm counts
        nothing.
    batch: views at a time; in training mode these are normalised by their own statistics.
    device: "cuda", "mps" or "cpu"; default the best there is.
    """
    chosen = choose_device(device)
    working = copy.deepcopy(model).to(chosen)
    batches = x.flatten(0, 1).split(batch)
    parts_of_h, parts_of_z = [], []
    for part in progress_bar(batches, desc="features", unit="batch", delay=2, leave=False):
        h, z = working(part.to(chosen))
        parts_of_h.append(h.cpu())
        parts_of_z.append(z.cpu())
    h, z = torch.cat(parts_of_h), torch.cat(parts_of_z)
    return h.unflatten(0, x.shape[:2]), z.unflatten(0, x.shape[:2])


def device_of(model: nn.Module, images: Tensor) -> torch.device:
    """Where a model computes; without parameters where the images are."""
    return next((parameter.device for parameter in model.parameters()), images.device)


@dataclass(frozen=True)
class LinearProbe:
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


# a probe, features (N, D) and their classes (N,) -> how well they are read, higher is better
Score = Callable[[LinearProbe, Tensor, Tensor], float]


def logistic_path(
    x: Tensor,
    y: Tensor,
    classes: int,
    path: tuple[float, ...] = L2_PATH,
    start: LinearProbe | None = None,
) -> Iterator[LinearProbe]:
    """Multinomial logistic regression, a probe for each L2 strength, each starting from the last.

    Ends early where the minimum falls below FITTED.

    Minimises ``mean cross-entropy + l2 / 2 |weight|^2`` by full-batch L-BFGS on features
    standardised by their own mean and deviation; the bias is not penalised (scikit-learn's
    LogisticRegression with C = 1 / (l2 N)).

    x: (N, D) float.
    y: (N,) classes.
    start: where the first begins, else at 0.

    Features' principal axes differ in variance by many orders of magnitude, which slows L-BFGS down
    until it seems to stand still. So it works along these axes, each in units of a bound of the
    objective's curvature there, half its variance (Boehning, Ann. Inst. Stat. Math. 1992) plus the
    penalty: the same minimum, in far fewer iterations.
    """
    mean, scale = x.mean(0), x.std(0, unbiased=False)
    dead = scale <= ROUNDING * mean.abs()  # what is left of a constant
    scale = scale.masked_fill(dead, 1)  # dead features stay 0
    x = (x - mean) / scale
    variance, axes = principal_axes(x)
    x = x @ axes

    weight, bias = x.new_zeros(classes, x.shape[1]), x.new_zeros(classes)  # rows: along the axes
    if start is not None:
        weight, bias = start.weight.T @ axes, start.bias
    for l2 in path:
        unit = (variance / 2 + l2).rsqrt()
        weight, bias, least = minimise(x * unit, y, weight / unit, bias, l2 * unit.square())
        weight = weight * unit
        yield LinearProbe(axes @ weight.T, bias, mean, scale, l2)
        if least < FITTED:
            return


def accuracy(probe: LinearProbe, x: Tensor, y: Tensor) -> float:
    """The share of features x (N, D) whose class y (N,) a probe predicts."""
    return float((probe.predict(x) == y).float().mean())


def log_likelihood(probe: LinearProbe, x: Tensor, y: Tensor) -> float:
    """The mean log probability, in nats, that a probe gives to the class y (N,) of x (N, D)."""
    return -float(F.cross_entropy(probe.logits(x), y))


def linear_probe(
    train: Labelled,
    val: Labelled,
    classes: int,
    score: Score = accuracy,
) -> tuple[LinearProbe, float]:
    """The probe whose L2 strength did best on val, refitted on both; and its score on val before.

    score: by what it is chosen; ``accuracy`` or ``log_likelihood``.

    Ties go to the stronger penalty. All are tried, since what z has kept in short directions may
    show after several that gained nothing.
    """
    fitted = list(logistic_path(*train, classes))
    scores = [score(probe, *val) for probe in fitted]
    best = fitted[scores.index(max(scores))]
    x, y = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    return next(logistic_path(x, y, classes, (best.l2,), best)), max(scores)


def cross_validated_probe(x: Tensor, y: Tensor, classes: int) -> LinearProbe:
    """The probe whose L2 strength did best in stratified five-fold cross-validation, fitted on all.

    For label sets too small to hold some out, and without a label from outside. x: (N, D) in random
    order; y: (N,).
    """
    fold = torch.empty_like(y)
    for c in y.unique():
        places = (y == c).nonzero()[:, 0]
        fold[places] = torch.arange(len(places), device=y.device) % FOLDS
    held_out = [fold == k for k in range(FOLDS)]
    paths = [logistic_path(x[~held], y[~held], classes) for held in held_out]

    correct = []
    for probes in zip(*paths):  # as far as the first fold's path that ends
        predicted = [probe.predict(x[held]) for probe, held in zip(probes, held_out)]
        right = [(p == y[held]).sum() for p, held in zip(predicted, held_out)]
        correct.append(int(torch.stack(right).sum()))
    best = L2_PATH[correct.index(max(correct))]
    return next(logistic_path(x, y, classes, (best,)))


def knn(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Weighted k nearest neighbours by cosine (Wu et al., arXiv 1805.01978, section 3.4).

    Each neighbour votes for its class with exp(cosine / temperature). train: (M, D); labels: (M,);
    test: (N, D). Half precision is lifted. Returns (N,) classes. Raises InputError where a vote may
    be too small a number for float32.
    """
    if temperature < COLDEST:
        raise InputError(f"knn: temperature must be at least {COLDEST}, not {temperature}")
    k = min(k, len(train))
    kind = torch.promote_types(torch.promote_types(train.dtype, test.dtype), torch.float32)
    train, test = train.detach().to(kind), test.detach().to(kind)
    train = F.normalize(train, dim=1)
    room = train.new_empty(min(len(test), KNN_CHUNK), len(train))  # once: new memory is slow
    predicted = []
    for batch in F.normalize(test, dim=1).split(KNN_CHUNK):
        cosines = torch.mm(batch, train.T, out=room[: len(batch)])
        nearest, places = cosines.topk(k, dim=1)
        votes = train.new_zeros(len(batch), classes)
        # less 1, so that nothing overflows
        votes.scatter_add_(1, labels[places], ((nearest - 1) / temperature).exp())
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)


def knn_on_val(model: Model, dataset: Dataset, recipe: Recipe, precision: str = "float32") -> float:
    """kNN accuracy of h, train against val: cheap enough to follow a run by; no look at test.

    precision: of the ``features``.
    """
    train, _ = features(model, dataset.train.images, recipe, precision)
    val, _ = features(model, dataset.val.images, recipe, precision)
    labels = labels_at(dataset.train, train.device)
    predicted = knn(train, labels, val, len(dataset.classes))
    return float((predicted == labels_at(dataset.val, val.device)).float().mean())


def classified(model: nn.Module, split: Split, recipe: Recipe, precision: str = "float32") -> int:
    """How many images of a split a classifier, whose z are logits, gets right.

    precision: of the ``features``.
    """
    _, logits = features(model, split.images, recipe, precision)
    return int((logits.argmax(1) == labels_at(split, logits.device)).sum())


def labels_at(split: Split, device: torch.device) -> Tensor:
    """The labels (N,) of train, val or test, on a device."""
    assert split.labels is not None  # unlabeled alone has none
    return split.labels.to(device)


def result(predicted: Tensor, truth: Tensor) -> dict:
    """What a record says of predictions (N,): how many, how many right, and which ones."""
    correct = (predicted == truth).cpu()
    return {"n": len(correct), "correct": int(correct.sum()), "bits": pack_bits(correct)}
