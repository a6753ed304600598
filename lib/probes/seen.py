"""What a model makes of a data set: features, labels and readers of them, each computed once."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.augmentations import Recipe
from lib.data.dataset import Dataset, Split
from lib.encoders import Model
from lib.evaluation import (
    Labelled,
    LinearProbe,
    Score,
    accuracy,
    features,
    labels_at,
    linear_probe,
)
from lib.files import write_atomically
from lib.methods import METHODS
from lib.parsing import parse_json

ROW = {"probe", "per_class", "subset", "n", "correct"}  # what one of a long table has at least
Reader = Callable[[Tensor, Tensor], Tensor]  # h and z -> logits (N, C)


class Unfinished:
    """Rows of a table that takes hours, on disk until it is whole: a stopped probe goes on."""

    def __init__(self, path: Path | None = None):
        """path: of the rows, which are read where there are any; None: they are not kept."""
        self.path = path
        self.rows: list[dict] = []
        if path is not None:
            # what can't be read, or is no list of such rows, is computed anew
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
                rows = list(parse_json(path.read_bytes()))
                self.rows = rows if all(ROW <= row.keys() for row in rows) else []

    def add(self, row: dict) -> None:
        """Raises InputError where the row can't be written."""
        self.rows.append(row)
        if self.path is not None:
            write_atomically(self.path, json.dumps(self.rows).encode())

    def remove(self) -> None:
        """Delete the rows on disk, which are in a record now."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class Seen:
    """A model and the data it is asked about. Features are float32, on the model's device."""

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        recipe: Recipe,
        method: str = "simclr",
        fresh: Callable[[], nn.Module] | None = None,
        seed: int = 0,
        precision: str = "float32",
        unfinished: Unfinished | None = None,
    ):
        """model: it is in eval mode from now on.

        recipe: the view that evaluation sees.
        method: by which the model was trained.
        fresh: makes its encoder as it was before training, by the global random state.
        seed: the run's, for a probe that trains further.
        precision: in which a probe that computes new features in every step does so.
        unfinished: what an earlier session has found of a long table.
        """
        self.model = model.eval()
        self.dataset = dataset
        self.recipe = recipe
        self.method = method
        self.fresh = fresh
        self.seed = seed
        self.precision = precision
        self.unfinished = unfinished or Unfinished()

        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}  # by split
        self._pools: dict[str, Labelled] = {}  # by kind of features
        self._probes: dict[tuple[str, Score], tuple[LinearProbe, float]] = {}

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

    def pair(self, split: str) -> tuple[Tensor, Tensor]:
        """h and z of a split."""
        if split not in self._pairs:
            images = self.split(split).images
            self._pairs[split] = features(self.model, images, self.recipe)
        return self._pairs[split]

    def labels(self, split: str) -> Tensor:
        """A split's labels (N,), on the CPU."""
        return labels_at(self.split(split), torch.device("cpu"))

    def labelled(self, kind: str, split: str) -> Labelled:
        """h or z of a split, and its labels."""
        h, z = self.pair(split)
        x = h if kind == "h" else z
        return x, labels_at(self.split(split), x.device)

    def train_and_val(self, kind: str) -> Labelled:
        """What a probe whose choices are made is fitted on."""
        if kind not in self._pools:
            x_train, y_train = self.labelled(kind, "train")
            x_val, y_val = self.labelled(kind, "val")
            self._pools[kind] = torch.cat([x_train, x_val]), torch.cat([y_train, y_val])
        return self._pools[kind]

    def probe(self, kind: str, score: Score = accuracy) -> tuple[LinearProbe, float]:
        """The linear probe on h or z, and its score on val before it was refitted.

        score: by which its L2 strength is chosen on val.
        """
        asked = kind, score
        if asked not in self._probes:
            train, val = self.labelled(kind, "train"), self.labelled(kind, "val")
            self._probes[asked] = linear_probe(train, val, self.classes, score)
        return self._probes[asked]

    def readers(self, score: Score = accuracy) -> dict[tuple[str, str], Reader]:
        """What turns h and z into logits, by kind of features and probe.

        The linear probe on h, and z themselves where they are logits.

        score: by which the probe's L2 strength is chosen on val.
        """
        probe, _ = self.probe("h", score)
        readers: dict[tuple[str, str], Reader] = {("h", "linear"): lambda h, z: probe.logits(h)}
        if self.is_classifier:
            readers["z", "classifier"] = lambda h, z: z
        return readers
