"""A data set: one uint8 tensor of images for each split, the same splits for every run."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lib import InputError, unknown
from lib.config import POOLS

# of the split into train and val: never varied, so that all runs are chosen by the same images
SPLIT_SEED = 0
VAL_SHARE = 0.1  # of train
HASHED = 4096  # images at a time, which may lie in a file
LEVEL = 1 / 255  # of 8 bits; a channel that deviates by less does not vary


RGB = tuple[float, float, float]  # red, green, blue


@dataclass(frozen=True)
class Split:
    """Images with their labels, and for training images their places in the official order."""

    images: Tensor  # (N, 3, H, W) uint8
    labels: Tensor | None = None  # (N,) int64; None where there are none
    places: Tensor | None = None  # (N,) int64; of training images alone

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor | slice) -> "Split":
        return Split(self.images[rows], _rows(self.labels, rows), _rows(self.places, rows))

    def __add__(self, other: "Split") -> "Split":
        images = torch.cat([self.images, other.images])
        return Split(images, _both(self.labels, other.labels), _both(self.places, other.places))


def _rows(values: Tensor | None, rows: Tensor | slice) -> Tensor | None:
    return None if values is None else values[rows]


def _both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return None
    return torch.cat([first, second])


@dataclass(frozen=True)
class Dataset:
    """A data set in its splits.

    val is held out of the official training images, stratified by class. Choices are made on val,
    the chosen is refitted on train + val, and test is touched once.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    unlabeled: Split | None = None
    variant: str = ""  # how the pixels differ from the official ones
    folds: tuple[Tensor, ...] = ()  # STL-10's ten official ones, 1,000 places of training images

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.train.images.shape[-2:]
        return height, width

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of variant, classes, and every pixel and label of every split: 64 hex digits."""
        digest = hashlib.sha256(repr((self.variant, self.classes)).encode())
        for name, split in self.splits.items():
            digest.update(repr((name, tuple(split.images.shape))).encode())
            for images in split.images.split(HASHED):
                digest.update(images.contiguous().numpy().data.cast("B"))
            if split.labels is not None:
                digest.update(split.labels.numpy().data.cast("B"))

        return digest.hexdigest()

    @property
    def splits(self) -> dict[str, Split]:
        """The splits there are, by name."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        if self.unlabeled is not None:
            splits["unlabeled"] = self.unlabeled
        return splits

    @property
    def counts(self) -> dict[str, int]:
        """Images in each split."""
        return {name: len(split) for name, split in self.splits.items()}

    @cached_property
    def moments(self) -> tuple[RGB, RGB]:
        """Mean and standard deviation per channel of train's pixels in [0, 1], to four digits.

        A channel that does not vary has the largest deviation of the others, since views turn hues
        into it; where none varies it is 1.
        """
        mean, std = self.measured_moments
        largest = max(std) or 1.0
        red, green, blue = (largest if value < LEVEL else value for value in std)
        return mean, (red, green, blue)

    @cached_property
    def measured_moments(self) -> tuple[RGB, RGB]:
        """The same as they are, 0 for a deviation of nothing."""
        red, green, blue = (_moments(pixels) for pixels in self.train.images.transpose(0, 1))
        return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])

    def pool_name(self, name: str) -> str:
        """The pool that a name stands for: "unlabeled" is "train+val" where none are unlabelled."""
        if name not in POOLS:
            raise InputError(unknown("pool", name, POOLS))
        if name == "unlabeled" and self.unlabeled is None:
            return "train+val"
        return name

    def pool(self, name: str) -> Split:
        """The images that are trained on."""
        pool = self.pool_name(name)
        if pool == "train":
            return self.train
        if pool == "train+val":
            return self.train + self.val
        assert self.unlabeled is not None  # by pool_name
        return self.unlabeled

    def pool_size(self, name: str) -> int:
        """How many images a pool has; no image is copied for that."""
        sizes = {"train": len(self.train), "train+val": len(self.train) + len(self.val)}
        if self.unlabeled is not None:
            sizes["unlabeled"] = len(self.unlabeled)
        return sizes[self.pool_name(name)]

    def take(self, images: int | None) -> "Dataset":
        """A stratified slice of so many labelled training images, val's share included.

        None: all. Test stays whole, official folds are of the whole and left out. A class that
        would have none in train or val has one more.
        Raises InputError where there are not so many, or where they are too few for a val.
        """
        total = len(self.train) + len(self.val)
        if images is None or images == total:
            return self

        if images > total:
            raise InputError(
                f"{self.name} has {total} labelled training images, {images} were asked for: "
                f"set images to {total} at most"
            )

        val = max(len(self.classes), round(images * VAL_SHARE))
        if images < 2 * val:
            raise InputError(
                f"a slice of {self.name} needs {2 * val} images or more, {images} were asked for"
            )

        # val may have more than its share, where a class with few images has one of them there
        train = min(images - val, len(self.train))
        return replace(
            self,
            train=_slice(self.train, train),
            val=_slice(self.val, images - train),
            folds=(),
        )


def _slice(split: Split, n: int) -> Split:
    assert split.labels is not None  # as in train, val and test
    return split[stratified(split.labels, n)]


def _moments(pixels: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of a channel (N, H, W) uint8, in [0, 1]."""
    value = torch.arange(256).double() / 255
    share = pixels.flatten().bincount(minlength=256).double() / pixels.numel()
    mean = share @ value
    variance = (share @ value**2 - mean**2).clamp(min=0)
    return round(mean.item(), 4), round(variance.sqrt().item(), 4)


def stratified(labels: Tensor, n: int) -> Tensor:
    """Places of n of the labels, drawn evenly from every class in proportion, in ascending order.

    And one more of each class that has none among these. Always the same ones for the same labels
    and n. Raises InputError where n is not between 1 and their number.
    """
    if not 0 < n <= len(labels):
        raise InputError(f"can't take {n} of {len(labels)} images")

    values = labels.numpy()
    generator = np.random.RandomState(SPLIT_SEED)  # numpy has frozen its stream
    shuffled = generator.permutation(len(values))
    rank = np.empty(len(values))  # of each image within its class, in (0, 1)
    first_of_class = {}
    for c in np.unique(values):
        members = shuffled[values[shuffled] == c]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
        first_of_class[c] = members[0]

    chosen = np.argsort(rank, kind="stable")[:n]
    lacking = np.setdiff1d(values, values[chosen])
    more = [first_of_class[c] for c in lacking]
    return torch.from_numpy(np.sort(np.append(chosen, more).astype(np.int64)))


def subsets(split: Split, per_class: int, count: int) -> list[Tensor]:
    """Rows of so many random subsets with per_class images of every class, each in random order.

    Always the same ones for the same labels and per_class. Raises InputError where a class has
    fewer images.
    """
    assert split.labels is not None
    chosen = []
    for number in range(count):
        key = [SPLIT_SEED, per_class]
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, number]))
        shuffled = torch.from_numpy(generator.permutation(len(split)))
        chosen.append(shuffled[_first_of_each_class(split.labels[shuffled], per_class)])
    return chosen


def first_of_each_class(split: Split, per_class: int) -> Tensor:
    """Rows of every class's first per_class images in the official order, as UvA takes them."""
    assert split.labels is not None and split.places is not None
    official = split.places.argsort()
    return official[_first_of_each_class(split.labels[official], per_class)]


def _first_of_each_class(labels: Tensor, per_class: int) -> Tensor:
    """Places of the first per_class of every class, in ascending order."""
    members = [(labels == c).nonzero()[:per_class, 0] for c in labels.unique()]
    fewest = min(map(len, members))
    if fewest < per_class:
        raise InputError(f"a class has {fewest} images, {per_class} were asked for")
    return torch.cat(members).sort().values


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The images' order in an epoch, a function of (seed, epoch): (n,) int64."""
    philox = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, 2**32])
    return torch.from_numpy(np.random.Generator(philox).permutation(n))
