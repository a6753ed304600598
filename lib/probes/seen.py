"""What a model makes of a data set: features, labels and readers of them, each computed once."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from lib.augmentations import Recipe
from lib.data.dataset import Dataset, Split
from lib.encoders import Model
from lib.evaluation import Labelled, Probe, Score, accuracy, features, linear_probe
from lib.methods import METHODS

Reader = Callable[[Tensor, Tensor], Tensor]  # h and z -> logits (N, C)


class Seen:
    """A model and the data it is asked about. Features are float32, on the model's device."""

    def __init__(self, model: Model, dataset: Dataset, recipe: Recipe, method: str = "simclr"):
        """model: it is in eval mode from now on.

        recipe: the view that evaluation sees.
        method: by which the model was trained.
        """
        self.model = model.eval()
        self.dataset = dataset
        self.recipe = recipe
        self.method = method

        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}  # by split
        self._probes: dict[Score, Probe] = {}

    @property
    def classes(self) -> int:
        return len(self.dataset.classes)

    @property
    def is_classifier(self) -> bool:
        """Whether z are logits of the data set's classes."""
        return METHODS[self.method].classifier

    @property
    def kinds(self) -> tuple[str, ...]:
        """The features worth a probe: "h", and "z" where the head makes it another."""
        if self.is_classifier or isinstance(self.model.head, nn.Identity):
            return ("h",)
        return ("h", "z")

    def split(self, name: str) -> Split:
        """train, val or test."""
        return self.dataset.splits[name]

    @cached_property
    def train_and_val_split(self) -> Split:
        return self.dataset.pool("train+val")

    def pair(self, split: str) -> tuple[Tensor, Tensor]:
        """h and z of a split."""
        if split not in self._pairs:
            images = self.split(split).images
            self._pairs[split] = features(self.model, images, self.recipe)
        return self._pairs[split]

    def labels(self, split: str) -> Tensor:
        """A split's labels (N,), on the CPU."""
        labels = self.split(split).labels
        assert labels is not None  # train, val and test have some
        return labels

    def labelled(self, kind: str, split: str) -> Labelled:
        """h or z of a split, and its labels."""
        h, z = self.pair(split)
        labels = self.labels(split).to(h.device)

        if kind == "h":
            return h, labels
        return z, labels

    def train_and_val(self, kind: str) -> Labelled:
        """What a probe whose choices are made is fitted on."""
        x_train, y_train = self.labelled(kind, "train")
        x_val, y_val = self.labelled(kind, "val")
        return torch.cat([x_train, x_val]), torch.cat([y_train, y_val])

    def readers(self, score: Score = accuracy) -> dict[tuple[str, str], Reader]:
        """What turns h and z into logits, by kind of features and probe.

        The linear probe on h, and z themselves where they are logits. score: by which the probe's
        L2 strength is chosen on val.
        """
        probe = self._probe(score)

        readers: dict[tuple[str, str], Reader] = {("h", "linear"): lambda h, z: probe.logits(h)}
        if self.is_classifier:
            readers["z", "classifier"] = lambda h, z: z
        return readers

    def _probe(self, score: Score) -> Probe:
        if score not in self._probes:
            train = self.labelled("h", "train")
            val = self.labelled("h", "val")
            self._probes[score], _ = linear_probe(train, val, self.classes, score)
        return self._probes[score]
