"""What do the features know? Linear probe and nearest neighbours on frozen h and z.

Features are computed once, in eval mode, without augmentation. Every choice (the probe's L2 strength) is made on val;
the chosen probe is refitted on train + val, and test is looked at once. An encoder whose pool was train + val (the
published presets) has seen val before, with its labels under supcon and ce; then val favours weak penalties a little.
Test stays untouched either way.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib import records
from lib.augmentations import Recipe, apply, draw
from lib.data import Dataset
from lib.encoders import Model, memory_format

L2_PATH = tuple(10.0 ** k for k in range(0, -8, -1))        # 8 strengths, strong to weak: each starts from the last
BATCH = 512


@torch.no_grad()
def features(model: Model, images: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """h (N, width) and z (N, D), float32, of images (N, 3, H, W) uint8, on the model's device.

    recipe: the view that evaluation sees, usually ``RECIPES["none"]`` with the run's size and normalisation.
    """
    model.eval()
    device = next((p.device for p in model.parameters()), images.device)
    h, z = [], []
    for batch in images.split(BATCH):
        x = apply(batch.to(device), draw(recipe, len(batch), 0, 0)).contiguous(memory_format=memory_format(device))
        for out, rows in zip((h, z), model(x)):
            out.append(rows.float())
    return torch.cat(h), torch.cat(z)


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


def logistic_path(x: Tensor, y: Tensor, classes: int, path: tuple[float, ...] = L2_PATH) -> list[Probe]:
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
        _minimise(x, y, weight, bias, l2)
        probes.append(Probe(weight.detach().clone(), bias.detach().clone(), mean, scale, l2))
    return probes


def _minimise(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, l2: float) -> None:
    """Move weight and bias to the minimum for one L2 strength."""
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-5, tolerance_change=1e-9,
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


def knn_on_val(model: Model, dataset: Dataset, recipe: Recipe) -> float:
    """kNN accuracy of h, train against val: cheap enough to follow a run by, and test stays untouched."""
    device = next(model.parameters()).device
    train, val = (split.to(device) for split in (dataset.train, dataset.val))
    predicted = knn(features(model, train.images, recipe)[0], train.labels,
                    features(model, val.images, recipe)[0], len(dataset.classes))
    return float((predicted == val.labels).float().mean())


def evaluate(model: Model, dataset: Dataset, recipe: Recipe, classifier: bool = False) -> dict:
    """Probe h and z (where the head makes them differ): ``{"h": {"linear": ..., "knn": ...}, "z": ...}``.

    classifier: z are logits of dataset's classes; then "z" holds their own predictions as "classifier" instead.
    Each result: n test images, how many were correct, which ones (packed bits), and for the linear probe the L2
    strength and the accuracy on val it was chosen by.
    """
    splits = {name: getattr(dataset, name) for name in ("train", "val", "test")}
    both = {name: features(model, split.images, recipe) for name, split in splits.items()}
    h, z = ({name: pair[place] for name, pair in both.items()} for place in (0, 1))
    labels = {name: split.labels.to(h[name].device) for name, split in splits.items()}
    result = {"h": _probes(h, labels, len(dataset.classes))}
    if classifier:
        result["z"] = {"classifier": _result(z["test"].argmax(1), labels["test"])}
    elif not isinstance(model.head, torch.nn.Identity):
        result["z"] = _probes(z, labels, len(dataset.classes))
    return result


def _probes(x: dict[str, Tensor], labels: dict[str, Tensor], classes: int) -> dict:
    probe, on_val = linear_probe((x["train"], labels["train"]), (x["val"], labels["val"]), classes)
    neighbours = knn(torch.cat([x["train"], x["val"]]), torch.cat([labels["train"], labels["val"]]), x["test"], classes)
    return {"linear": _result(probe.predict(x["test"]), labels["test"]) | {"l2": probe.l2, "val_accuracy": on_val},
            "knn": _result(neighbours, labels["test"])}


def _result(predicted: Tensor, truth: Tensor) -> dict:
    correct = (predicted == truth).cpu()
    return {"n": len(correct), "correct": int(correct.sum()), "bits": records.pack_bits(correct)}
