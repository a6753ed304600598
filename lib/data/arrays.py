"""A data set from arrays: what they must be, and the split that holds val out."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lib import InputError, legible
from lib.data.dataset import VAL_SHARE, Dataset, Split, stratified


def build(
    name: str,
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    classes: Sequence | np.ndarray | None = None,
    x_unlabeled: np.ndarray | None = None,
    variant: object = "",
    folds: Sequence = (),
) -> Dataset:
    """A data set from arrays; a tenth of train is held out as val.

    x_train, x_test: images (N, H, W, 3) uint8.
    y_train, y_test: labels (N,), integers from 0.
    classes: their names; None: numbers, up to the highest label.
    x_unlabeled: more images. They may lie in a file (numpy's memmap), and stay there.
    variant, folds: as in Dataset.

    Raises InputError where an array has another shape or type, or a label is out of range.
    """
    names = _check(name, x_train, y_train, x_test, y_test, classes, x_unlabeled)

    labels = torch.from_numpy(y_train.astype(np.int64))
    whole = Split(_tensor(x_train), labels, torch.arange(len(labels)))
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[stratified(labels, max(len(names), round(VAL_SHARE * len(labels))))] = True

    return Dataset(
        name,
        names,
        train=whole[~held],
        val=whole[held],
        test=Split(_tensor(x_test), torch.from_numpy(y_test.astype(np.int64))),
        unlabeled=None if x_unlabeled is None else Split(_tensor(x_unlabeled)),
        variant=_text(np.asarray(variant)[()]),
        folds=tuple(torch.as_tensor(fold) for fold in folds),
    )


def _tensor(images: np.ndarray) -> Tensor:
    """(N, H, W, 3) as (N, 3, H, W), in memory, or in the file where it is a memmap."""
    images = images.transpose(0, 3, 1, 2)
    if not isinstance(images, np.memmap):
        images = np.ascontiguousarray(images)
    return torch.from_numpy(images)


def _check(
    name: str,
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    classes: Sequence | np.ndarray | None,
    x_unlabeled: np.ndarray | None,
) -> tuple[str, ...]:
    """The classes' names, where all arrays are as ``build`` wants them.

    name: of the data set. Raises InputError, naming it and the array, where one is not.
    """
    images = {"x_train": x_train, "x_test": x_test}
    if x_unlabeled is not None:
        images["x_unlabeled"] = x_unlabeled

    for key, x in images.items():
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3 or not x.size:
            raise InputError(f"{name}: {key} must be uint8 (N, H, W, 3), got {x.dtype} {x.shape}")
        if x.shape[1:] != x_train.shape[1:]:
            raise InputError(
                f"{name}: {key} has images of {x.shape[1:]}, x_train of {x_train.shape[1:]}"
            )

    for key, y, n in (("y_train", y_train, len(x_train)), ("y_test", y_test, len(x_test))):
        if y.ndim != 1 or y.dtype.kind not in "iu" or len(y) != n:
            raise InputError(f"{name}: {key} must be {n} integers, got {y.dtype} {y.shape}")

    names = _class_names(name, classes, y_train, y_test)
    for key, y in (("y_train", y_train), ("y_test", y_test)):
        wrong = y[(y < 0) | (y >= len(names))]
        if len(wrong):
            raise InputError(f"{name}: {key} has the label {wrong[0]}, outside 0..{len(names) - 1}")

    counts = np.bincount(y_train.astype(np.int64), minlength=len(names))
    rarest = counts.argmin()
    if counts[rarest] < 2:
        raise InputError(
            f"{name}: every class needs two training images or more, class {rarest} "
            f"('{names[rarest]}') has {counts[rarest]}; labels count from 0"
        )
    return names


def _class_names(
    name: str, classes: Sequence | np.ndarray | None, y_train: np.ndarray, y_test: np.ndarray
) -> tuple[str, ...]:
    """Those given, else numbers up to the highest label."""
    if classes is None:
        highest = int(max(y_train.max(), y_test.max()))
        if highest >= len(y_train):
            raise InputError(
                f"{name}: the label {highest} means more classes than there are training images"
            )
        classes = range(highest + 1)
    elif np.ndim(classes) != 1:
        shape = np.shape(classes)
        raise InputError(f"{name}: classes must be a list of names, got the shape {shape}")
    return tuple(_text(label) for label in classes)


def _text(value: object) -> str:
    """A name as text: numpy keeps it as bytes where it was given so."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return legible(str(value))
