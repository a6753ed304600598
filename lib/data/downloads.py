"""The data sets that come by themselves: scikit-learn's digits, and torchvision's downloads.

torchvision reads CIFAR's pickles only after their md5 is right, and checks every file of STL-10.
Imagenette's archive is checked as it arrives; that its images are all there is checked here.
"""

import io
import os
import socket
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from lib import InputError
from lib.data.archives import from_npz
from lib.data.arrays import build
from lib.data.dataset import Dataset, stratified
from lib.data.decoding import refuse_outsize, square
from lib.files import only_writer, write_atomically
from lib.progress import bar as progress_bar

TIMEOUT = 60  # seconds; then a server that says nothing is given up
RESIDENT = 2**30  # bytes: a larger file of images stays where it is
IMAGENETTE = (9469, 3925)  # images for training and test in Imagenette's second version


def _digits(root: Path, download: bool) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, enlarged to 32x32, a fifth of them for test."""
    grey, labels = _enlarged_digits()
    images = np.repeat(grey[..., None], 3, axis=3)
    return _with_a_test("digits", images, labels, "8x8 enlarged to 32x32")


def _tinted_digits(root: Path, download: bool) -> Dataset:
    """The same digits, each in a hue of its own: a shortcut that says nothing of the digit.

    The hue is drawn at random, in 1,536 steps around the circle, at a saturation of 0.8. Pixels are
    made of integers, the same on every machine.
    """
    grey, labels = _enlarged_digits()
    hue = np.random.default_rng(0).integers(0, 1536, len(grey))
    away = np.abs((hue[:, None] - [0, 512, 1024] + 768) % 1536 - 768)  # from red, green, blue
    tint = 51 + 204 * np.clip(512 - away, 0, 256) // 256  # (1797, 3) 51..255
    images = (grey[..., None] * tint[:, None, None] + 127) // 255
    return _with_a_test("tinted-digits", images, labels, "hues drawn with seed 0")


def _enlarged_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits (1797, 32, 32) 0..255, and their labels.

    They are of 8x8 and 17 levels. Enlarged bilinearly by a factor of four: every weight is a
    multiple of 1/64, so the pixels are the same on every machine.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = torch.from_numpy(raw.images).float()[:, None]  # (1797, 1, 8, 8) 0..16
    large = F.interpolate(small, scale_factor=4, mode="bilinear", align_corners=False)
    grey = (large * (255 / 16)).round().long()
    return grey[:, 0].numpy(), raw.target.astype(np.int64)


def _with_a_test(name: str, images: np.ndarray, labels: np.ndarray, variant: str) -> Dataset:
    """A data set of images (N, 32, 32, 3), a fifth of every class of them for test."""
    held = stratified(torch.from_numpy(labels), round(0.2 * len(labels)))
    test = np.zeros(len(labels), dtype=bool)
    test[held.numpy()] = True
    return build(
        name,
        images[~test].astype(np.uint8),
        labels[~test],
        images[test].astype(np.uint8),
        labels[test],
        variant=variant,
    )


def _fetch(
    name: str,
    root: Path,
    download: bool,
    *splits: Callable[[bool], Any],
    is_checked: bool = True,
) -> list[Any]:
    """torchvision's data sets, each made by a function of whether it downloads what it lacks.

    name: of the data set, for the error where one can't be made.
    download: whether what is not there, or not whole, is fetched.
    is_checked: whether torchvision tells files that are whole from those that another process is
        writing; then those that are there are read without a lock.
    """

    def made(download: bool) -> list[Any]:
        return [split(download) for split in splits]

    try:
        if is_checked:
            with suppress(RuntimeError):  # of torchvision: something is missing
                return made(download=False)
        if not download:
            raise InputError(f"{name} is not in {root}, or not whole")
        root.mkdir(parents=True, exist_ok=True)
        with _alone(name, root):
            with suppress(RuntimeError):  # else another process, which was waited for, made it
                return made(download=False)
            with _within_its_folder():
                return made(download=True)
    except (OSError, RuntimeError, EOFError, HTTPException, zlib.error, tarfile.TarError) as error:
        raise InputError(
            f"can't get {name} into {root} ({error}); check the network and the folder, delete "
            f"what is partial there, or put {name}.npz there"
        ) from error


def _alone(name: str, root: Path) -> AbstractContextManager[None]:
    """Within, no other process fetches that data set; a root not to be written is only read."""
    if not os.access(root, os.W_OK):
        return nullcontext()
    return only_writer(root / f".{name}.lock", str(root))


@contextmanager
def _within_its_folder() -> Iterator[None]:
    """Archives unpacked within write below their folder only, and silent servers are given up.

    By PEP 706's filter, which Python 3.14 has by default.
    """
    if not hasattr(tarfile, "data_filter"):
        raise InputError("this Python can't keep an archive within its folder; use 3.11.4 or newer")

    patience = socket.getdefaulttimeout()
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = None  # Python's own default again
        socket.setdefaulttimeout(patience)


def _cifar(name: str, root: Path, download: bool) -> Dataset:
    """CIFAR-10 and CIFAR-100, 32x32, from their official pickles."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    train, test = _fetch(
        name,
        root,
        download,
        lambda fetch: kind(root, train=True, download=fetch),
        lambda fetch: kind(root, train=False, download=fetch),
    )
    y_train, y_test = np.array(train.targets), np.array(test.targets)
    return build(name, train.data, y_train, test.data, y_test, train.classes)


def _stl10(root: Path, download: bool) -> Dataset:
    """5,000 labelled images for training, 8,000 for test, 100,000 unlabeled ones, and ten folds.

    They are of 96x96. torchvision downloads and checks; the files, which it would hold in memory
    whole, are read here.
    """
    from torchvision.datasets import STL10

    (train,) = _fetch(
        "stl10", root, download, lambda fetch: STL10(root, split="train", download=fetch)
    )
    folder = root / STL10.base_folder
    x_train = _stl10_images(folder / "train_X.bin")
    return build(
        "stl10",
        x_train,
        _stl10_labels(folder / "train_y.bin"),
        _stl10_images(folder / "test_X.bin"),
        _stl10_labels(folder / "test_y.bin"),
        train.classes,
        _stl10_images(folder / "unlabeled_X.bin"),
        folds=_folds(folder / STL10.folds_list_file, len(x_train)),
    )


def _stl10_images(path: Path) -> np.ndarray:
    """(N, 96, 96, 3) uint8, in memory or in the file.

    The file has raw bytes, image by image, channel by channel, column by column.
    """
    images = np.memmap(path, np.uint8, mode="c").reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
    if images.nbytes > RESIDENT:
        return images
    return np.array(images)


def _stl10_labels(path: Path) -> np.ndarray:
    """(N,) int64, from 0; in the file they count from 1."""
    return np.fromfile(path, np.uint8) - np.int64(1)


def _folds(path: Path, images: int) -> list[np.ndarray]:
    """The places in each fold, a line of the file each.

    images: how many there are in all. It is the one file of STL-10 without a published checksum.
    """
    folds = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                folds.append(np.array(line.split(), dtype=np.int64))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} can't be read as folds ({error}); delete its folder to download again"
        ) from error

    if len(folds) != 10 or not all(_are_places(fold, images) for fold in folds):
        raise InputError(
            f"{path} must hold ten lines of different places below {images}; delete its folder to "
            "download again"
        )
    return folds


def _are_places(fold: np.ndarray, images: int) -> bool:
    """Whether no place is there twice, and none is beyond the images."""
    return len(np.unique(fold)) == len(fold) and fold.min() >= 0 and fold.max() < images


def _imagenette96(root: Path, download: bool) -> Dataset:
    """Imagenette at 96x96: a public data set of STL-10's shape, ten classes, 9,469 + 3,925 images.

    Made once from torchvision's Imagenette (320 pixels), the shorter side to 96 by Lanczos, centre
    crop, and kept as imagenette96.npz. It is no STL-10: it has five times fewer images to learn
    from, and all are of the ten classes.
    """
    from torchvision.datasets import Imagenette

    folder = root / "imagenette2-320"

    def split(name: str) -> Callable[[bool], Imagenette]:
        return lambda fetch: Imagenette(root, name, "320px", download=fetch, loader=shrink)

    # torchvision takes a folder that is there for whole
    train, test = _fetch(
        "imagenette96", root, download, split("train"), split("val"), is_checked=False
    )
    x_train, y_train = _read_whole(train, "train", IMAGENETTE[0], folder)
    x_test, y_test = _read_whole(test, "test", IMAGENETTE[1], folder)

    buffer = io.BytesIO()
    np.savez(
        buffer,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        classes=[names[0] for names in train.classes],
        variant="Imagenette2-320, shorter side to 96 by Lanczos, centre crop",
    )
    path = root / "imagenette96.npz"
    write_atomically(path, buffer.getvalue())
    return from_npz("imagenette96", path)


def _read_whole(
    source: Any, split: str, wanted: int, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of a split of Imagenette. Raises InputError where some are missing."""
    if len(source) != wanted:
        raise InputError(
            f"{folder} holds {len(source)} of {wanted} images for {split}: an unpacking was cut "
            "short; delete the folder to unpack it again"
        )
    images, labels = [], []
    for place in progress_bar(range(wanted), desc=f"imagenette96 {split}", unit="image"):
        image, label = source[place]
        images.append(image)
        labels.append(label)
    return np.stack(images), np.array(labels)


def shrink(path: str) -> np.ndarray:
    """An image file as (96, 96, 3) uint8."""
    try:
        image = Image.open(path)
        refuse_outsize(image)
        return square(image, 96)
    except Exception as error:  # Pillow's plugins let through whatever they meet
        raise InputError(
            f"{path} is not a whole image ({error}); delete its data set's folder to unpack it "
            "again"
        ) from error


@dataclass(frozen=True)
class Download:
    """A data set that comes by itself."""

    load: Callable[[Path, bool], Dataset]  # by the data root, and whether it is fetched
    side: int  # of its images, in pixels
    labelled: int  # official training images, those held out as val included
    unlabeled: int = 0


DOWNLOADS = {
    "digits": Download(_digits, 32, 1438),
    "tinted-digits": Download(_tinted_digits, 32, 1438),
    "cifar10": Download(partial(_cifar, "cifar10"), 32, 50_000),
    "cifar100": Download(partial(_cifar, "cifar100"), 32, 50_000),
    "stl10": Download(_stl10, 96, 5_000, unlabeled=100_000),
    "imagenette96": Download(_imagenette96, 96, IMAGENETTE[0]),
}
