"""The data sets that come by themselves: scikit-learn's digits, and torchvision's downloads.

torchvision reads CIFAR's pickles only after their md5 is right, and checks every file of STL-10.
Imagenette's archive is checked as it arrives; that its images are all there is checked here.
"""

import io
import os
import socket
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize
from tqdm import tqdm

from lib import InputError
from lib.data import Dataset, build, load, stratified
from lib.files import only_writer, write_atomically

TIMEOUT = 60  # seconds; then a server that says nothing is given up
PIXELS = 2**24  # of an image file; more is no photograph of a data set
RESIDENT = 2**30  # bytes: a larger file of images stays where it is
IMAGENETTE = (9469, 3925)  # images for training and test in Imagenette's second version


def _digits(root: Path) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8x8 and 17 levels, enlarged to 32x32, a fifth of
    them for test.

    Bilinear by a factor of four: every weight is a multiple of 1/64, so the pixels are the same on
    every machine.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = torch.from_numpy(raw.images).float()[:, None]  # (1797, 1, 8, 8) 0..16
    large = F.interpolate(small, scale_factor=4, mode="bilinear", align_corners=False) * (255 / 16)
    images = large.round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    labels = raw.target.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    test[stratified(torch.from_numpy(labels), round(0.2 * len(labels))).numpy()] = True
    return build(
        "digits",
        images[~test],
        labels[~test],
        images[test],
        labels[test],
        variant="8x8 enlarged to 32x32",
    )


def _fetch(name: str, root: Path, *splits):
    """torchvision's data sets, each made by a function of the root, downloaded where they are not
    there whole."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = root / f".{name}.lock"
        with (
            only_writer(lock, str(root)) if os.access(root, os.W_OK) else nullcontext(),
            _within_its_folder(),
        ):
            return [split(root) for split in splits]
    except (OSError, RuntimeError, EOFError, HTTPException, zlib.error, tarfile.TarError) as error:
        raise InputError(
            f"can't get {name} into {root} ({error}); check the network and the folder, delete "
            "what is "
            f"partial there, or put {name}.npz there"
        ) from error


@contextmanager
def _within_its_folder() -> Iterator[None]:
    """Archives unpacked within write below their folder only: PEP 706's filter, which Python 3.14
    has by default."""
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


def _cifar(name: str, root: Path) -> Dataset:
    """CIFAR-10 and CIFAR-100, 32x32, from their official pickles."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    train, test = _fetch(
        name,
        root,
        lambda root: kind(root, train=True, download=True),
        lambda root: kind(root, train=False, download=True),
    )
    return build(
        name, train.data, np.array(train.targets), test.data, np.array(test.targets), train.classes
    )


def _stl10(root: Path) -> Dataset:
    """5,000 labelled images for training, 8,000 for test, 100,000 unlabeled ones, 96x96, and the
    ten folds.

    torchvision downloads and checks; the files, which it would hold in memory whole, are read here.
    """
    from torchvision.datasets import STL10

    (train,) = _fetch("stl10", root, lambda root: STL10(root, split="train", download=True))
    folder = root / STL10.base_folder
    x_train, x_test, x_unlabeled = (
        _stl10_images(folder / f"{name}_X.bin") for name in ("train", "test", "unlabeled")
    )
    y_train, y_test = (
        np.fromfile(folder / f"{name}_y.bin", np.uint8) - np.int64(1) for name in ("train", "test")
    )
    return build(
        "stl10",
        x_train,
        y_train,
        x_test,
        y_test,
        train.classes,
        x_unlabeled,
        folds=_folds(folder / STL10.folds_list_file, len(x_train)),
    )


def _stl10_images(path: Path) -> np.ndarray:
    """Raw bytes, image by image, channel by channel, column by column -> (N, 96, 96, 3), in memory
    or in the file."""
    images = np.memmap(path, np.uint8, mode="c").reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
    return images if images.nbytes > RESIDENT else np.array(images)


def _folds(path: Path, images: int) -> list[np.ndarray]:
    """The places in each fold, a line of the file each. It is the one file of STL-10 without a
    published checksum."""
    try:
        folds = [
            np.array(line.split(), dtype=np.int64)
            for line in path.read_text().splitlines()
            if line.strip()
        ]
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} can't be read as folds ({error}); delete its folder to download again"
        ) from error
    if len(folds) != 10 or any(
        len(set(f.tolist())) != len(f) or f.min() < 0 or f.max() >= images for f in folds
    ):
        raise InputError(
            f"{path} must hold ten lines of different places below {images}; delete its folder to "
            f"download again"
        )
    return folds


def _imagenette96(root: Path) -> Dataset:
    """Imagenette at 96x96: a public data set of STL-10's shape, ten classes of ImageNet, 9,469 +
    3,925 images.

    Made once from torchvision's Imagenette (320 pixels), the shorter side to 96 by Lanczos, centre
    crop, and kept as imagenette96.npz. It is no STL-10: it has five times fewer images to learn
    from, and all are of the ten classes.
    """
    from torchvision.datasets import Imagenette

    folder, arrays = root / "imagenette2-320", {}

    def split(name: str):  # torchvision takes a folder that is there for whole
        return lambda root: Imagenette(
            root, name, "320px", download=not folder.exists(), loader=_shrink
        )

    sources = _fetch("imagenette96", root, split("train"), split("val"))
    for key, source, wanted in zip(("train", "test"), sources, IMAGENETTE):
        if len(source) != wanted:
            raise InputError(
                f"{folder} holds {len(source)} of {wanted} images for {key}: an "
                f"unpacking was cut short; delete the folder to unpack it again"
            )
        images, labels = zip(
            *(source[i] for i in tqdm(range(wanted), desc=f"imagenette96 {key}", unit="image"))
        )
        arrays |= {f"x_{key}": np.stack(images), f"y_{key}": np.array(labels)}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        **arrays,
        classes=[names[0] for names in source.classes],
        variant="Imagenette2-320, shorter side to 96 by Lanczos, centre crop",
    )
    write_atomically(root / "imagenette96.npz", buffer.getvalue())
    return load("imagenette96", root)


def _shrink(path: str, size: int = 96) -> np.ndarray:
    """An image file with its shorter side resized to size by Lanczos and the centre cut out: (size,
    size, 3) uint8."""
    try:
        image = Image.open(path)
        if image.width * image.height > PIXELS or max(image.size) > 16 * min(image.size):
            raise ValueError(f"{image.width} x {image.height} pixels")
        image = resize(image.convert("RGB"), size, InterpolationMode.LANCZOS)
    except Exception as error:  # Pillow's plugins let through whatever they meet
        raise InputError(
            f"{path} is not a whole image ({error}); delete its data set's folder to unpack it "
            f"again"
        ) from error
    return np.asarray(center_crop(image, size))


LOADERS = {
    "digits": _digits,
    "cifar10": lambda root: _cifar("cifar10", root),
    "cifar100": lambda root: _cifar("cifar100", root),
    "stl10": _stl10,
    "imagenette96": _imagenette96,
}
