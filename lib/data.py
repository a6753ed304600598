"""Images as one uint8 tensor: a data set is loaded whole, split once, and can live on the training
device.

Any ``NAME.npz`` under the data root is a data set of that name, and wins over a download of that
name. What can be downloaded is listed in ``lib.downloads``.
"""

import hashlib
import math
import os
import zipfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib import ROOT, InputError

# of the held-out images: never varied, so that every run is chosen and tested on the same ones
SPLIT_SEED = 0
VAL_SHARE = 0.1  # of train
INFLATED, RATIO = 2**28, 100  # an .npz holds at most so many bytes, or so many times its own


@dataclass(frozen=True)
class Split:
    """Images (N, 3, H, W) uint8, their labels (N,) int64 or None where there are none, and for the
    training images their places (N,) int64 in the data set's official order."""

    images: Tensor
    labels: Tensor | None = None
    places: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows) -> "Split":
        return self._map(lambda x: x[rows])

    def __add__(self, other: "Split") -> "Split":
        return Split(
            *(None if a is None else torch.cat([a, b]) for a, b in zip(self._parts, other._parts))
        )

    @property
    def _parts(self) -> tuple:
        return self.images, self.labels, self.places

    def _map(self, function) -> "Split":
        return Split(*(None if part is None else function(part) for part in self._parts))


@dataclass(frozen=True)
class Dataset:
    """A data set in its splits.

    val is held out of the official training images, stratified by class. Choices are made on val,
    the chosen is refitted on train + val, and test is touched once. variant says how the pixels
    differ from the official ones. folds are STL-10's ten official ones, each 1,000 places of
    training images.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    unlabeled: Split | None = None
    variant: str = ""
    folds: tuple[Tensor, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return tuple(self.train.images.shape[-2:])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of every pixel and label of every split, and of the variant: 64 hexadecimal
        digits."""
        digest = hashlib.sha256(repr((self.variant, self.classes)).encode())
        for name, split in self.splits.items():
            digest.update(repr((name, tuple(split.images.shape))).encode())
            for part in split.images.split(
                4096
            ):  # in parts: the images may lie in a file, or in another order
                digest.update(memoryview(part.contiguous().numpy()).cast("B"))
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
        counts = torch.stack(
            [torch.bincount(channel, minlength=256) for channel in channels]
        ).double()
        share, value = counts / counts.sum(1, keepdim=True), torch.arange(256).double() / 255
        mean = share @ value
        std = (share @ value**2 - mean**2).clamp(min=0).sqrt()
        return tuple(round(x, 4) for x in mean.tolist()), tuple(
            round(max(x, 1e-4), 4) for x in std.tolist()
        )

    def pool(self, name: str) -> Split:
        """The images to train on: "train", "train+val", or "unlabeled" (train + val where there is
        none)."""
        if name == "train":
            return self.train
        if name == "unlabeled" and self.unlabeled is not None:
            return self.unlabeled
        if name in ("unlabeled", "train+val"):
            return self.train + self.val
        raise InputError(f"unknown pool '{name}'; known: train, train+val, unlabeled")

    def take(self, images: int | None) -> "Dataset":
        """A stratified slice of so many labelled training images, val's share included; test stays
        whole."""
        total = len(self.train) + len(self.val)
        if images is None or images == total:
            return self
        if images > total:
            raise InputError(
                f"{self.name} has {total} labelled training images, {images} were asked for: "
                f"set images to fewer, or images=None for all"
            )
        val = max(len(self.classes), round(images * VAL_SHARE))
        if images < 2 * val:
            raise InputError(
                f"a slice of {self.name} needs {2 * val} images or more, {images} were asked for"
            )
        return replace(
            self,
            train=self.train[stratified(self.train.labels, images - val)],
            val=self.val[stratified(self.val.labels, val)],
        )


def stratified(labels: Tensor, n: int) -> Tensor:
    """Places of n of the labels, drawn evenly from every class in proportion, in ascending order.

    Always the same ones for the same labels and n. Raises InputError where n is not between 1 and
    their number.
    """
    if not 0 < n <= len(labels):
        raise InputError(f"can't take {n} of {len(labels)} images")
    values = labels.numpy()
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(
        len(values)
    )  # a stream that numpy has frozen
    shuffled = shuffled[
        np.argsort(values[shuffled], kind="stable")
    ]  # class by class, shuffled within
    rank = np.empty(len(values))
    for c in np.unique(values):  # how far through its class: (0, 1)
        of_class = shuffled[values[shuffled] == c]
        rank[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    return torch.from_numpy(np.sort(np.argsort(rank, kind="stable")[:n]))


def subsets(split: Split, per_class: int, count: int) -> list[Tensor]:
    """Rows of so many random subsets with per_class images of every class, each in random order.

    Always the same ones for the same labels and per_class. Raises InputError where a class has
    fewer images.
    """
    chosen = []
    for number in range(count):
        key = [SPLIT_SEED, per_class]
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, number]))
        shuffled = torch.from_numpy(generator.permutation(len(split)))
        chosen.append(shuffled[_first(split.labels[shuffled], per_class)])
    return chosen


def first(split: Split, per_class: int) -> Tensor:
    """Rows of the first per_class images of every class in the official order, as UvA's tutorial
    takes them."""
    official = split.places.argsort()
    return official[_first(split.labels[official], per_class)]


def _first(labels: Tensor, per_class: int) -> Tensor:
    """Places of the first per_class of every class, in ascending order."""
    of_class = [(labels == c).nonzero()[:per_class, 0] for c in labels.unique()]
    if min(map(len, of_class)) < per_class:
        raise InputError(
            f"a class has {min(map(len, of_class))} images, {per_class} were asked for"
        )
    return torch.cat(of_class).sort().values


def order(n: int, seed: int, epoch: int) -> Tensor:
    """The images' order in an epoch, a function of (seed, epoch): (n,) int64."""
    key = [seed, epoch]
    return torch.from_numpy(
        np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, 2**32])).permutation(n)
    )


def data_root(root: str | Path | None = None) -> Path:
    """The folder of data sets: the one given, else the environment's DATA_ROOT, else the checkout's
    ``data``."""
    return Path(root or os.environ.get("DATA_ROOT") or ROOT / "data")


def load(name: str, root: str | Path | None = None) -> Dataset:
    """Load a data set by name.

    root: the folder of downloads and NAME.npz files, see ``data_root``. Raises InputError for an
    unknown name, a damaged file, arrays of the wrong shape or type, labels out of range, a download
    that fails, or a root that can't be written.
    """
    from lib.downloads import LOADERS

    root = data_root(root)
    path = root / f"{name}.npz"
    if path.is_file():
        return _from_npz(name, path)
    if name in LOADERS:
        return LOADERS[name](root)
    here = sorted(p.stem for p in root.glob("*.npz")) if root.is_dir() else []
    hint = (
        f": a data set's name is its file's without .npz, '{Path(name).stem}'"
        if name.endswith(".npz")
        else f": there is no {path}; known: {', '.join([*LOADERS, *here])} (DATA_ROOT names "
        "another folder)"
    )
    raise InputError(f"unknown data set '{name}'{hint}")


def build(
    name: str,
    x_train,
    y_train,
    x_test,
    y_test,
    classes=None,
    x_unlabeled=None,
    variant="",
    folds=(),
) -> Dataset:
    """A data set from arrays: images (N, H, W, 3) uint8, labels (N,) integers from 0, folds of
    places in x_train.

    Holds a tenth of train out as val. x_unlabeled may lie in a file (numpy's memmap) and stays
    there. Raises InputError where an array has another shape or type, or a label is out of range.
    """
    arrays = {"x_train": x_train, "x_test": x_test} | (
        {} if x_unlabeled is None else {"x_unlabeled": x_unlabeled}
    )
    for key, x in arrays.items():
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3 or not x.size:
            raise InputError(f"{name}: {key} must be uint8 (N, H, W, 3), got {x.dtype} {x.shape}")
        if x.shape[1:] != x_train.shape[1:]:
            raise InputError(
                f"{name}: {key} has images of {x.shape[1:]}, x_train of {x_train.shape[1:]}"
            )
    for key, y, x in (("y_train", y_train, x_train), ("y_test", y_test, x_test)):
        if y.ndim != 1 or y.dtype.kind not in "iu" or len(y) != len(x):
            raise InputError(f"{name}: {key} must be {len(x)} integers, got {y.dtype} {y.shape}")
    if classes is None:
        highest = int(max(y_train.max(), y_test.max()))
        if highest >= len(y_train):
            raise InputError(
                f"{name}: the label {highest} means more classes than there are training images"
            )
        classes = range(highest + 1)
    elif np.ndim(classes) != 1:
        raise InputError(
            f"{name}: classes must be a list of names, got the shape {np.shape(classes)}"
        )
    classes = tuple(map(str, classes))
    for key, y in (("y_train", y_train), ("y_test", y_test)):
        wrong = y[(y < 0) | (y >= len(classes))]
        if len(wrong):
            raise InputError(
                f"{name}: {key} has the label {wrong[0]}, outside 0..{len(classes) - 1}"
            )
    train = Split(
        _tensor(x_train), torch.from_numpy(y_train.astype(np.int64)), torch.arange(len(x_train))
    )
    counts = np.bincount(y_train.astype(np.int64), minlength=len(classes))
    if counts.min() < 2:
        raise InputError(
            f"{name}: every class needs two training images or more, class {counts.argmin()} "
            f"('{classes[counts.argmin()]}') has {counts.min()}; labels count from 0"
        )
    held = torch.zeros(len(train), dtype=torch.bool)
    held[stratified(train.labels, max(len(classes), round(VAL_SHARE * len(train))))] = True
    return Dataset(
        name,
        classes,
        train[~held],
        train[held],
        test=Split(_tensor(x_test), torch.from_numpy(y_test.astype(np.int64))),
        unlabeled=None if x_unlabeled is None else Split(_tensor(x_unlabeled)),
        variant=str(variant),
        folds=tuple(map(torch.as_tensor, folds)),
    )


def _tensor(images: np.ndarray) -> Tensor:
    """(N, H, W, 3) as (N, 3, H, W), in memory, or in the file where it is a memmap."""
    images = images.transpose(0, 3, 1, 2)
    return torch.from_numpy(
        images if isinstance(images, np.memmap) else np.ascontiguousarray(images)
    )


def _from_npz(name: str, path: Path) -> Dataset:
    return build(
        name,
        **read_npz(
            path, {"x_train", "y_train", "x_test", "y_test"}, {"x_unlabeled", "classes", "variant"}
        ),
    )


def read_npz(path: Path, needed: set[str], known: set[str] = frozenset()) -> dict[str, np.ndarray]:
    """The arrays of an .npz that are needed, and those known that it has. Raises InputError where
    it is not whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            refuse_bombs(archive, path.stat().st_size)
        with np.load(path, allow_pickle=False) as file:
            missing = needed - set(file.files)
            if missing:
                raise InputError(
                    f"{path} lacks the array{'s' * (len(missing) > 1)} {', '.join(sorted(missing))}"
                )
            arrays = {key: file[key] for key in (needed | known) & set(file.files)}
            foreign = sorted(
                key for key, value in arrays.items() if not isinstance(value, np.ndarray)
            )
            if foreign:
                raise ValueError(f"{foreign[0]} is no array")
            return arrays
    except InputError:
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise InputError(f"can't read {path} ({error.strerror})") from error
    except Exception as error:  # numpy, zipfile and its codecs let through whatever they meet
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} is not a whole .npz file ({why}); make or copy it again"
        ) from error


def refuse_bombs(archive: zipfile.ZipFile, size: int) -> None:
    """ValueError where arrays claim more than there is: numpy takes the memory before it reads."""
    if sum(member.file_size for member in archive.infolist()) > max(INFLATED, RATIO * size):
        raise ValueError(f"its arrays would take more than {RATIO} times the file")
    for member in (member for member in archive.infolist() if member.filename.endswith(".npy")):
        with archive.open(member) as file:
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            shape, _, dtype = read[np.lib.format.read_magic(file)](file)
            claimed = math.prod(shape) * dtype.itemsize + file.tell()
        if not dtype.hasobject and (min(shape, default=0) < 0 or claimed != member.file_size):
            raise ValueError(
                f"{member.filename} holds {member.file_size} bytes and claims {claimed}"
            )
