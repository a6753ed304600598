"""Images as one uint8 tensor: a data set is loaded whole, split once, and can live on the training device.

``digits`` comes with scikit-learn. Any ``NAME.npz`` under the data root is a data set of that name, and wins over a
download of that name; CIFAR-10, CIFAR-100 and STL-10 are downloaded by torchvision.
"""

import hashlib
import os
import zipfile
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib import ROOT, InputError

SPLIT_SEED = 0          # of the held-out images: never varied, so that every run is chosen and tested on the same ones
VAL_SHARE = 0.1         # of train


@dataclass(frozen=True)
class Split:
    """Images (N, 3, H, W) uint8 and their labels (N,) int64, or None where there are none."""

    images: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows) -> "Split":
        return Split(self.images[rows], None if self.labels is None else self.labels[rows])

    def __add__(self, other: "Split") -> "Split":
        return Split(torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels]))

    def to(self, device) -> "Split":
        return Split(self.images.to(device), None if self.labels is None else self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set in its splits.

    val is held out of the official training images, stratified by class. Choices are made on val, the chosen is
    refitted on train + val, and test is touched once. variant says how the pixels differ from the official ones.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    unlabeled: Split | None = None
    variant: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return tuple(self.train.images.shape[-2:])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of every pixel and label of every split, and of the variant: 64 hexadecimal digits."""
        digest = hashlib.sha256(repr((self.variant, self.classes)).encode())
        for name, split in self.splits.items():
            digest.update(repr((name, tuple(split.images.shape))).encode())
            digest.update(memoryview(split.images.numpy()).cast("B"))
            if split.labels is not None:
                digest.update(memoryview(split.labels.numpy()).cast("B"))
        return digest.hexdigest()

    @property
    def splits(self) -> dict[str, Split]:
        """The splits there are, by name."""
        named = {name: getattr(self, name) for name in ("train", "val", "test", "unlabeled")}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def counts(self) -> dict[str, int]:
        """Images in each split."""
        return {name: len(split) for name, split in self.splits.items()}

    @cached_property
    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel of train's pixels in [0, 1], to four digits."""
        channels = self.train.images.transpose(0, 1).flatten(1)
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels]).double()
        share, value = counts / counts.sum(1, keepdim=True), torch.arange(256).double() / 255
        mean = share @ value
        std = (share @ value**2 - mean**2).clamp(min=0).sqrt()
        return tuple(round(x, 4) for x in mean.tolist()), tuple(round(max(x, 1e-4), 4) for x in std.tolist())

    def pool(self, name: str) -> Split:
        """The images to train on: "train", "train+val", or "unlabeled" (train + val where there is none)."""
        if name == "train":
            return self.train
        if name == "unlabeled" and self.unlabeled is not None:
            return self.unlabeled
        if name in ("unlabeled", "train+val"):
            return self.train + self.val
        raise InputError(f"unknown pool '{name}'; known: train, train+val, unlabeled")

    def take(self, images: int | None) -> "Dataset":
        """A stratified slice of so many labelled training images, val's share included; test stays whole."""
        total = len(self.train) + len(self.val)
        if images is None or images == total:
            return self
        if images > total:
            raise InputError(f"{self.name} has {total} labelled training images, {images} were asked for")
        val = max(len(self.classes), round(images * VAL_SHARE))
        if images < 2 * val:
            raise InputError(f"a slice of {self.name} needs {2 * val} images or more, {images} were asked for")
        return replace(self, train=self.train[stratified(self.train.labels, images - val)],
                       val=self.val[stratified(self.val.labels, val)])


def stratified(labels: Tensor, n: int) -> Tensor:
    """Places of n of the labels, drawn evenly from every class in proportion, in ascending order.

    Always the same ones for the same labels and n. Raises InputError where n is not between 1 and their number.
    """
    if not 0 < n <= len(labels):
        raise InputError(f"can't take {n} of {len(labels)} images")
    values = labels.numpy()
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(values))     # a stream that numpy has frozen
    shuffled = shuffled[np.argsort(values[shuffled], kind="stable")]          # class by class, shuffled within
    rank = np.empty(len(values))
    for c in np.unique(values):                                               # how far through its class: (0, 1)
        of_class = shuffled[values[shuffled] == c]
        rank[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    return torch.from_numpy(np.sort(np.argsort(rank, kind="stable")[:n]))


def data_root(root: str | Path | None = None) -> Path:
    """The folder of data sets: the one given, else the environment's DATA_ROOT, else the checkout's ``data``."""
    return Path(root or os.environ.get("DATA_ROOT") or ROOT / "data")


def load(name: str, root: str | Path | None = None) -> Dataset:
    """Load a data set by name.

    root: the folder of downloads and NAME.npz files, see ``data_root``.
    Raises InputError for an unknown name, a damaged file, arrays of the wrong shape or type, labels out of range,
    a download that fails, or a root that can't be written.
    """
    root = data_root(root)
    path = root / f"{name}.npz"
    if path.is_file():
        return _from_npz(name, path)
    if name in LOADERS:
        return LOADERS[name](root)
    here = sorted(p.stem for p in root.glob("*.npz")) if root.is_dir() else []
    raise InputError(f"unknown data set '{name}': there is no {path}; known: {', '.join([*LOADERS, *here])} "
                     f"(DATA_ROOT names another folder)")


def build(name: str, x_train, y_train, x_test, y_test, classes=None, x_unlabeled=None, variant="") -> Dataset:
    """A data set from arrays: images (N, H, W, 3) uint8, labels (N,) integers from 0.

    Holds a tenth of train out as val. Raises InputError where an array has another shape or type, or a label is
    out of range.
    """
    arrays = {"x_train": x_train, "x_test": x_test} | ({} if x_unlabeled is None else {"x_unlabeled": x_unlabeled})
    for key, x in arrays.items():
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3 or not x.size:
            raise InputError(f"{name}: {key} must be uint8 (N, H, W, 3), got {x.dtype} {x.shape}")
        if x.shape[1:] != x_train.shape[1:]:
            raise InputError(f"{name}: {key} has images of {x.shape[1:]}, x_train of {x_train.shape[1:]}")
    for key, y, x in (("y_train", y_train, x_train), ("y_test", y_test, x_test)):
        if y.ndim != 1 or y.dtype.kind not in "iu" or len(y) != len(x):
            raise InputError(f"{name}: {key} must be {len(x)} integers, got {y.dtype} {y.shape}")
    if classes is None:
        highest = int(max(y_train.max(), y_test.max()))
        if highest >= len(y_train):
            raise InputError(f"{name}: the label {highest} means more classes than there are training images")
        classes = range(highest + 1)
    elif np.ndim(classes) != 1:
        raise InputError(f"{name}: classes must be a list of names, got the shape {np.shape(classes)}")
    classes = tuple(map(str, classes))
    for key, y in (("y_train", y_train), ("y_test", y_test)):
        wrong = y[(y < 0) | (y >= len(classes))]
        if len(wrong):
            raise InputError(f"{name}: {key} has the label {wrong[0]}, outside 0..{len(classes) - 1}")
    train = Split(_tensor(x_train), torch.from_numpy(y_train.astype(np.int64)))
    counts = np.bincount(y_train.astype(np.int64), minlength=len(classes))
    if counts.min() < 2:
        raise InputError(f"{name}: every class needs two training images or more, class {counts.argmin()} "
                         f"('{classes[counts.argmin()]}') has {counts.min()}; labels count from 0")
    held = torch.zeros(len(train), dtype=torch.bool)
    held[stratified(train.labels, max(len(classes), round(VAL_SHARE * len(train))))] = True
    return Dataset(name, classes, train[~held], train[held],
                   test=Split(_tensor(x_test), torch.from_numpy(y_test.astype(np.int64))),
                   unlabeled=None if x_unlabeled is None else Split(_tensor(x_unlabeled)), variant=str(variant))


def _tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _from_npz(name: str, path: Path) -> Dataset:
    keys = {"x_train", "y_train", "x_test", "y_test", "x_unlabeled", "classes", "variant"}
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = {"x_train", "y_train", "x_test", "y_test"} - set(file.files)
            if missing:
                raise InputError(f"{path} lacks the array{'s' * (len(missing) > 1)} {', '.join(sorted(missing))}")
            arrays = {key: file[key] for key in keys & set(file.files)}
            foreign = sorted(key for key, value in arrays.items() if not isinstance(value, np.ndarray))
            if foreign:
                raise ValueError(f"{foreign[0]} is no array")
    except InputError:
        raise
    except (OSError, ValueError, TypeError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is not a whole .npz file ({error}); make or copy it again") from error
    return build(name, **arrays)


def _digits(root: Path) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8x8 and 17 levels, enlarged to 32x32, a fifth of them for test.

    Bilinear by a factor of four: every weight is a multiple of 1/64, so the pixels are the same on every machine.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = torch.from_numpy(raw.images).float()[:, None]                                   # (1797, 1, 8, 8) 0..16
    large = F.interpolate(small, scale_factor=4, mode="bilinear", align_corners=False) * (255 / 16)
    images = large.round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    labels = raw.target.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    test[stratified(torch.from_numpy(labels), round(0.2 * len(labels))).numpy()] = True
    return build("digits", images[~test], labels[~test], images[test], labels[test], variant="8x8 enlarged to 32x32")


def _fetch(name: str, root: Path, *splits):
    """torchvision's data sets, each made by a function of the root, downloaded where they are not there whole."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        return [split(root) for split in splits]
    except (OSError, RuntimeError) as error:
        raise InputError(f"can't get {name} into {root} ({error}); check the network and the folder, delete what is "
                         f"partial there, or put {name}.npz there") from error


def _cifar(name: str, root: Path) -> Dataset:
    """Official pickles, which torchvision reads only after their md5 is right."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    train, test = _fetch(name, root, lambda root: kind(root, train=True, download=True),
                         lambda root: kind(root, train=False, download=True))
    return build(name, train.data, np.array(train.targets), test.data, np.array(test.targets), train.classes)


def _stl10(root: Path) -> Dataset:
    """5,000 labelled images for training, 8,000 for test, 100,000 unlabeled ones: 96x96, 2.7 GB in memory."""
    from torchvision.datasets import STL10

    def split(name: str):
        return lambda root: STL10(root, split=name, download=True)

    train, test, more = _fetch("stl10", root, split("train"), split("test"), split("unlabeled"))
    x_train, x_test, x_unlabeled = (np.moveaxis(part.data, 1, 3) for part in (train, test, more))
    return build("stl10", x_train, train.labels, x_test, test.labels, train.classes, x_unlabeled)


LOADERS = {
    "digits": _digits,
    "cifar10": lambda root: _cifar("cifar10", root),
    "cifar100": lambda root: _cifar("cifar100", root),
    "stl10": _stl10,
}
