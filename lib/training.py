"""One loop for all methods: batches of views, a step downhill, and a generator that takes steps.

The order of images is a function of (seed, epoch), the views a function of (seed, step); a run is
determined by its configuration and data, to the bit on one kind of CPU with one number of threads,
elsewhere up to rounding. Whoever iterates over ``train`` saves, measures or stops; ranks and
gradient accumulation are other batches and other steps of the same shape (``lib.distributed``).
"""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lib import Diverged, InputError
from lib.augmentations import RECIPES, Recipe, apply, draw, views
from lib.compute.kmeans import KMeans
from lib.config import Config
from lib.data.dataset import Dataset, epoch_order
from lib.encoders import Model
from lib.hardware import autocast, memory_format, read_ahead, send
from lib.losses import contrast
from lib.methods import METHODS


class Batches:
    """A run's training images, epoch by epoch and batch by batch, as views with their labels."""

    def __init__(self, config: Config, dataset: Dataset, device: torch.device, fits: bool = True):
        """dataset: the slice that is trained on; fits: whether its images may lie on the device."""
        pool = dataset.pool(config.pool)
        self.config, self.device, self.fits = config, device, fits
        self.recipe = recipe_for(config, dataset)
        self.count = len(pool)
        self.sizes = batch_sizes(config, self.count)
        self.home = device if fits else torch.device("cpu")  # of the images, and of their places
        self.images = pool.images.to(self.home)
        self.labels = None
        if METHODS[config.method].needs_labels:
            assert pool.labels is not None  # runs.pretrain refuses a pool without
            self.labels = pool.labels.to(self.home)

    def __len__(self) -> int:
        """Steps in an epoch."""
        return len(self.sizes)

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Any, Tensor | None]]:
        """Of each batch, from the first one on, views (V, N, 3, S, S) and labels (N,) or None."""
        step = number * len(self) + first
        batches = self.places(number)[first:]
        for places, images in zip(batches, self.read(batches)):
            yield self.views_of(images, step, len(places)), self.labels_of(places)
            step += 1

    def views_of(self, images: Tensor, step: int, batch: int) -> Any:
        """Of a batch's images (N, 3, H, W) uint8, views (V, N, 3, S, S). batch: N."""
        return views(images, self.recipe, self.config.seed, step, self.config.views)

    def places(self, epoch: int) -> tuple[Tensor, ...]:
        """Which images are in each batch: (N,) places in the pool."""
        everything = epoch_order(self.count, self.config.seed, epoch).to(self.home)
        return everything[: sum(self.sizes)].split(self.config.batch_size)

    def read(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images (N, 3, H, W) uint8 in the places of each batch, on the device."""
        if self.fits:
            yield from (self.images[places] for places in batches)
        else:
            for images in read_ahead(self.images.__getitem__, batches):
                yield send(images, self.device)

    def labels_of(self, places: Tensor) -> Tensor | None:
        return None if self.labels is None else self.labels[places].to(self.device)


class Step:
    """A step downhill. All views pass the encoder together: BatchNorm has one mean for them."""

    def __init__(
        self, config: Config, model: nn.Module, optimiser: Optimizer, scaler: torch.amp.GradScaler
    ):
        self.config, self.model, self.optimiser, self.scaler = config, model, optimiser, scaler

    def __call__(self, x: Any, labels: Tensor | None, rate: float) -> tuple[Tensor, Tensor]:
        """Views x (V, N, 3, S, S) and labels (N,) -> the loss and z (V, N, D).

        rate: the learning rate. Both results are detached and on the device: nobody waits for them.
        (``lib.distributed.step.SharedStep`` takes SharedViews instead.)
        """
        z = embed(self.config, self.model, x)
        loss = METHODS[self.config.method].loss(z, labels, self.config, None)

        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.update(rate)
        return loss.detach(), z.detach()

    def update(self, rate: float) -> None:
        """Change the weights by their gradients."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimiser)
        self.scaler.update()


def embed(config: Config, model: nn.Module, x: Tensor) -> Tensor:
    """Views (V, N, 3, S, S) -> z (V, N, D), in the run's precision, which is not "auto" by then."""
    images = x.flatten(0, 1).contiguous(memory_format=memory_format(x.device))  # (V N, 3, S, S)
    with autocast(x.device, config.precision):
        _, z = model(images)
    return z.unflatten(0, x.shape[:2])


@dataclass
class Progress:
    """How far a training is: steps, finished epochs, and the sums of the epoch under way."""

    step: int = 0  # steps done
    curves: list[dict] = field(default_factory=list)  # a row for each finished epoch
    # of the epoch under way: seconds, images seen, the sum of their losses
    seconds: float = 0.0
    seen: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    # z (V, N, D) of its latest full batch, where there are several views, and the batch's labels
    # (N,), for methods that need them
    z: Tensor | None = None
    labels: Tensor | None = None

    def add(self, loss: Tensor, z: Tensor, labels: Tensor | None) -> None:
        """Count a step: its loss, z (V, N, D) and labels (N,)."""
        images = z.shape[1]
        self.total = self.total + loss * images  # on the loss's device from then on
        self.seen += images
        self.step += 1
        full = self.z is None or images >= self.z.shape[1]
        if full and len(z) > 1:
            self.z, self.labels = z, labels

    def mean_loss(self) -> float:
        """Of the epoch's images so far. Waits for the device; Diverged where it is not finite."""
        mean = float(self.total) / max(self.seen, 1)
        if not math.isfinite(mean):
            raise Diverged(
                f"the loss became {mean} in epoch {len(self.curves) + 1}; lower learning_rate or "
                "raise temperature (the last checkpoint is kept)"
            )
        return mean

    def end_epoch(self, rate: float, views: int, started: float) -> dict:
        """Append the epoch's row and return it; the sums start anew.

        rate: the last learning rate.
        views: of an image in a step.
        started: time.monotonic() then.
        """
        loss = self.mean_loss()
        seconds = time.monotonic() - started
        row = {
            "epoch": len(self.curves) + 1,
            "loss": loss,
            "learning_rate": rate,
            "seconds": seconds,
            "views_per_second": self.seen * views / seconds,
        }
        if self.z is not None:
            try:
                row |= contrast(self.z, self.labels)._asdict()
            except InputError as error:  # z overflows where the loss, which skips them, is finite
                raise Diverged(
                    f"z became too long or no numbers in epoch {row['epoch']}; lower learning_rate "
                    "(the last checkpoint is kept)"
                ) from error

        self.curves.append(row)
        self.seconds, self.seen, self.total = 0.0, 0, torch.zeros_like(self.total)
        self.z = self.labels = None
        return row


def train(
    config: Config, batches: Batches, take_step: Step, progress: Progress
) -> Iterator[dict | None]:
    """Train from where progress stands to the last epoch.

    Yields None after every step, and after every epoch its row of the curves.
    """
    for epoch in range(len(progress.curves), config.epochs):
        started = time.monotonic() - progress.seconds
        done = progress.step - epoch * len(batches)
        take_step.model.train()

        for x, labels in batches.epoch(epoch, first=done):
            rate = learning_rate(config, progress.step, len(batches))
            loss, z = take_step(x, labels, rate)
            progress.add(loss, z, labels)
            progress.seconds = time.monotonic() - started
            yield None

        last_rate = learning_rate(config, progress.step - 1, len(batches))
        yield progress.end_epoch(last_rate, config.views, started)


def learning_rate(config: Config, step: int, steps: int) -> float:
    """Learning rate of a step, counted from 0, in a run with so many steps an epoch.

    With milestones, a tenth of what it was after each of them, in whole epochs (PyTorch's
    MultiStepLR). Else a cosine that changes once an epoch,

        low + (high - low) (1 + cos(pi e / E)) / 2

    with low = final_rate * high, E = schedule_epochs, and e counted from first_epoch; after it a
    cooldown, linear step by step, from where the cosine is left to low (Hägele et al., 2024,
    arXiv:2405.18392). Before either a warm-up, linear step by step, from warmup_from to the rate at
    the warm-up's end (SupContrast util.py, adjust_learning_rate and warmup_learning_rate).
    """
    epoch = step // steps
    high, low = config.learning_rate, config.learning_rate * config.final_rate

    def stepped(epoch: float) -> float:
        shares = config.milestones or ()
        passed = sum(epoch >= int(config.epochs * share) for share in shares)
        return high * 0.1**passed

    def cosine(epoch: float) -> float:
        return low + (high - low) * (1 + math.cos(math.pi * epoch / config.schedule_epochs)) / 2

    warmup_steps = config.warmup * steps
    if step < warmup_steps:
        schedule = stepped if config.milestones else cosine
        end = schedule(config.warmup)
        return config.warmup_from + (end - config.warmup_from) * step / warmup_steps

    if config.milestones:
        return stepped(epoch)

    left = config.epochs - config.cooldown_epochs  # the epoch in which the cosine is left
    if epoch >= left and config.cooldown_epochs:
        start = cosine(left + config.first_epoch)
        cooldown_steps = config.cooldown_epochs * steps
        return start + (low - start) * (step - left * steps) / cooldown_steps
    return cosine(epoch + config.first_epoch)


def batch_sizes(config: Config, image_count: int) -> list[int]:
    """How many images each step of an epoch sees; a last one alone is left out, for BatchNorm."""
    whole, rest = divmod(image_count, config.batch_size)
    sizes = [config.batch_size] * whole
    if rest > 1 and not config.drop_last:
        sizes.append(rest)
    return sizes


def build_optimiser(config: Config, model: nn.Module) -> Optimizer | None:
    """AdamW or SGD over all parameters, in one kernel where there is one; None without parameters.

    SGD in float16 is not fused: where the scaler skips the first step, PyTorch's kernel leaves the
    momentum unwritten.
    """
    parameters = list(model.parameters())
    if not parameters:
        return None
    rate, decay = config.learning_rate, config.weight_decay
    fused = parameters[0].device.type in ("cpu", "cuda")
    if config.optimiser == "adamw":
        return torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=fused)
    fused = fused and config.precision != "float16"
    return torch.optim.SGD(parameters, rate, config.momentum, weight_decay=decay, fused=fused)


def build_scaler(config: Config, device: torch.device) -> torch.amp.GradScaler:
    """float16's scaler of the loss, whose gradients would vanish; it does nothing otherwise."""
    return torch.amp.GradScaler(device.type, enabled=config.precision == "float16")


def build_model(config: Config, dataset: Dataset) -> Model:
    """The model of a run, freshly initialised from its seed, on the CPU.

    The global random state is left as it was. k-means, which no gradient trains, has learned from
    the run's pool.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = new_model(config, len(dataset.classes))

    if isinstance(model.encoder, KMeans):
        sliced = dataset.take(config.images)
        images = sliced.pool(config.pool).images
        recipe = recipe_for(config, sliced, "none")
        batches = (apply(batch, draw(recipe, len(batch), 0, 0)) for batch in images.split(1024))
        model.encoder.fit(batches, len(images), config.seed)
    return model


def new_model(config: Config, classes: int) -> Model:
    """A run's model, initialised by the global random state; a classifier's z are logits."""
    embedding = classes if METHODS[config.method].classifier else config.embedding
    return Model(config.encoder, config.stem, config.head, embedding)


def recipe_for(config: Config, dataset: Dataset, name: str | None = None) -> Recipe:
    """The run's recipe, or the one of that name, with its size and normalisation.

    dataset: the slice that is trained on, of square images; its side and moments are the size and
        the normalisation that are left open.
    """
    mean, std = dataset.moments
    return replace(
        RECIPES[name or config.recipe],
        size=config.size or dataset.size[0],
        mean=config.mean or mean,
        std=config.std or std,
    )
