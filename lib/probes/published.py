"""The published probes, UvA's and SupContrast's, kept to the letter.

Their choice of the best epoch by test accuracy is kept too, so that published numbers can be
compared like with like; the last epoch stands beside the best one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.augmentations import RECIPES, apply, draw
from lib.compute.memory import room_for
from lib.data.dataset import epoch_order
from lib.evaluation import Labelled, device_of, result
from lib.hardware import autocast, memory_format
from lib.methods import METHODS
from lib.probes.seen import Seen
from lib.progress import bar as progress_bar

Batch = Callable[[Tensor, int], Tensor]  # places (B,) and step -> the images' features (B, D)


@dataclass(frozen=True)
class Protocol:
    """How a published probe is trained: one linear layer on raw features, by mini-batches."""

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
    # SupContrast main_linear.py and README: a new crop and flip of every image in every epoch; this
    # learning rate is for SupCon
    "supcontrast": Protocol(
        "sgd", 5.0, 0.0, 512, (60, 75, 90), 0.2, look_every=1, augment="crop-flip"
    ),
}
SIMCLR_RATE = 1.0  # SupContrast's README: the learning rate for an encoder trained without labels


def ask_uva(seen: Seen) -> dict[str, dict]:
    """UvA's probe on each kind of features: its best epoch by test accuracy, and the last one."""
    answers = {}
    for kind in seen.kinds:
        x, y = seen.train_and_val(kind)
        answers[kind] = _results(seen, "uva", PROTOCOLS["uva"], kind, features_of(x), y)
    return answers


def ask_supcontrast(seen: Seen) -> dict[str, dict]:
    """SupContrast's probe on h: its best epoch by test accuracy, and the last one.

    The views of a hundred epochs are encoded in seen's precision, which the results name; the test
    images, once, in float32.
    """
    protocol = supcontrast(seen.method)
    batch = augmented(seen, protocol.augment)
    _, y = seen.train_and_val("h")
    results = _results(seen, "supcontrast", protocol, "h", batch, y)
    for answer in results.values():
        answer["precision"] = seen.precision
    return {"h": results}


def supcontrast(method: str) -> Protocol:
    """SupContrast's protocol for an encoder that was trained by that method."""
    protocol = PROTOCOLS["supcontrast"]
    if METHODS[method].needs_labels:
        return protocol
    return replace(protocol, learning_rate=SIMCLR_RATE)


def features_of(x: Tensor) -> Batch:
    """Batches of features (N, D) that were computed once."""
    return lambda places, step: x[places]


def augmented(seen: Seen, name: str) -> Batch:
    """Batches of h of new views of train + val, as SupContrast's linear stage sees them.

    name: of the views' recipe; its size and normalisation are those of evaluation. The encoder
        multiplies in seen's precision.
    """
    images = seen.dataset.pool("train+val").images
    device = device_of(seen.model, images)
    if images.nbytes <= room_for(images, device):
        images = images.to(device)
    recipe = replace(
        RECIPES[name], size=seen.recipe.size, mean=seen.recipe.mean, std=seen.recipe.std
    )

    @torch.no_grad()
    def batch(places: Tensor, step: int) -> Tensor:
        x = images[places.to(images.device)].to(device)
        x = apply(x, draw(recipe, len(places), seed=0, step=step))
        with autocast(device, seen.precision):
            h = seen.model.encoder(x.contiguous(memory_format=memory_format(device)))
        return h.float()

    return batch


def _results(
    seen: Seen, name: str, protocol: Protocol, kind: str, batch: Batch, y: Tensor
) -> dict[str, dict]:
    """The results of a published probe by their names: of its best epoch, and of the last one."""
    test = seen.labelled(kind, "test")
    _, truth = test
    best, last, curve = train_probe(protocol, batch, y, test, seen.classes)
    return {name: result(best, truth) | {"curve": curve}, f"{name}-last": result(last, truth)}


def train_probe(
    protocol: Protocol, batch: Batch, y: Tensor, test: Labelled, classes: int, seed: int = 0
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Train a published probe.

    batch: (places, step) -> (B, D), the training images' features at that step.
    y: (N,) their labels.
    test: features (M, D) and labels (M,).
    seed: of the layer's first weights, and of the images' order.

    Returns the predictions (M,) of the epoch that did best on test, as the sources report it (of
    the last one where the protocol never looks), those of the last epoch, which chose nothing, and
    [epoch, how many right] at every look.
    """
    x_test, y_test = test
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layer = torch.nn.Linear(x_test.shape[1], classes).to(x_test.device)
    optimiser = _optimiser(protocol, layer)
    milestones = list(protocol.milestones)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones, protocol.factor)

    @torch.no_grad()
    def predict() -> Tensor:
        return layer(x_test).argmax(1)

    step = 0
    best, most = None, -1  # predictions of the best look, and how many of them are right
    curve = []
    epochs = range(1, protocol.epochs + 1)
    for epoch in progress_bar(epochs, desc="probe", unit="epoch", delay=2, leave=False):
        for places in epoch_order(len(y), seed, epoch).to(y.device).split(protocol.batch_size):
            loss = F.cross_entropy(layer(batch(places, step)), y[places])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
        scheduler.step()

        if epoch % protocol.look_every == 0:
            predicted = predict()
            right = int((predicted == y_test).sum())
            if right > most:
                best, most = predicted, right
            curve.append([epoch, right])

    last = predict()
    if best is None:
        best = last
    return best, last, curve


def _optimiser(protocol: Protocol, layer: torch.nn.Linear) -> torch.optim.Optimizer:
    rate = protocol.learning_rate
    if protocol.optimiser == "adamw":
        return torch.optim.AdamW(layer.parameters(), rate, weight_decay=protocol.weight_decay)
    return torch.optim.SGD(layer.parameters(), rate, momentum=0.9)
