"""Encoders put to use: features of pictures, their nearest neighbours, and a classifier.

The classifier is in scikit-learn's manner.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from lib import InputError, as_command, in_a_line, name_of, unknown
from lib.data.archives import read_npz
from lib.data.decoding import Account, decoded, digests_of
from lib.data.folders import find
from lib.data.pictures import Report
from lib.evaluation import cross_validated_probe
from lib.files import write_atomically
from lib.weights.foreign import StatedView
from lib.weights.registry import Weights, load, refuse_a_stated_view

# What is kept of N pictures
# h: (N, width) float32
# z: (N, D) float32
# files: (N,) their names
# labels: (N,) places in classes, -1 where a picture has none
# classes: (C,) names
# encoder: whose features they are
ARRAYS = {"h", "z", "files", "labels", "classes", "encoder"}
# digests: (N, 32) uint8, SHA-256 of their pixels; early files have none
DIGESTS = "digests"
Arrays = dict[str, np.ndarray]


def embed(source: Path, weights: Weights, device: str | None = None) -> tuple[Arrays, Report]:
    """ARRAYS and DIGESTS of the images that ``folders.find`` finds, and what was left out of them.

    Raises InputError where no image is whole.
    """
    listing = find(source)
    account = Account()
    items, parts_of_h, parts_of_z, digests = [], [], [], []
    for pixels, whole in decoded(listing.items, weights.size, account, source.name):
        h, z = weights.features(torch.from_numpy(pixels).permute(0, 3, 1, 2), device)
        parts_of_h.append(h)
        parts_of_z.append(z)
        items += whole
        digests += digests_of(pixels)
    if not items:
        raise InputError(
            f"none of the {len(listing.items)} images of {source} is whole: {account.skipped[0]}"
        )

    arrays = {
        "h": torch.cat(parts_of_h).numpy(),
        "z": torch.cat(parts_of_z).numpy(),
        "files": np.array([item.name for item in items]),
        "encoder": np.array(weights.encoder),
        "labels": np.array([item.label for item in items]),
        "classes": np.array(listing.classes, dtype=str),
        DIGESTS: np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
    }
    return arrays, Report([*listing.notes, *account.notes], account.skipped)


def read(path: Path) -> Arrays:
    """What ``embed`` made, from its .npz. Raises InputError where it is none."""
    arrays = read_npz(path, ARRAYS, {DIGESTS})
    if not _are_features(arrays):
        raise InputError(f"{path} holds no features; see: {as_command('embed', '--help')}")
    return arrays


def _are_features(arrays: Arrays) -> bool:
    """Whether shapes and types are those above, of one picture or more, and h is finite."""
    h, labels = arrays["h"], arrays["labels"]
    if h.ndim != 2 or not len(h) or h.dtype != np.float32 or not np.isfinite(h).all():
        return False
    if labels.shape != (len(h),) or labels.dtype.kind != "i":
        return False
    if DIGESTS in arrays:
        digests = arrays[DIGESTS]
        if digests.dtype != np.uint8 or digests.shape != (len(h), 32):
            return False
    if labels.max() >= arrays["classes"].size:
        return False
    return arrays["files"].shape == labels.shape and arrays["encoder"].ndim == 0


def write(path: Path, arrays: Arrays) -> None:
    """Write what ``embed`` made as an .npz."""
    buffer = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez(buffer, **named)
    write_atomically(path, buffer.getvalue())


def neighbours(arrays: Arrays, file: str, count: int = 5) -> list[tuple[str, float]]:
    """The files whose h is most alike that of one of them, most alike first, with their cosines.

    Without the file itself. Raises InputError where it is not there, or no other one is.
    """
    files = arrays["files"].tolist()
    spelt = [name_of(known) for known in files]
    if name_of(file) not in spelt:
        raise InputError(unknown("picture", file, files))
    if count < 1:
        raise InputError(f"count must be at least 1, got {count}")
    if len(files) == 1:
        raise InputError(f"there is no other picture than {file}: embed a folder of several")

    x = F.normalize(torch.from_numpy(arrays["h"]), dim=1)
    own = spelt.index(name_of(file))
    cosines = x @ x[own]
    cosines[own] = -2
    best = cosines.topk(min(count, len(x) - 1))
    names = [files[place] for place in best.indices.tolist()]
    return list(zip(names, best.values.tolist()))


def predict(train: Arrays, arrays: Arrays) -> list[tuple[str, str, float]]:
    """Each file with its likeliest class and that one's probability.

    train: features of labelled pictures, and maybe of others; the probe is on h of the labelled.

    Raises InputError where fewer than two classes have images, or the features are of two encoders.
    """
    labelled = train["labels"] >= 0
    if not labelled.any():
        raise InputError(
            "no picture to learn from has a class: embed a folder with one for each class"
        )
    if train["encoder"] != arrays["encoder"]:
        raise InputError(
            f"the labelled features are of the encoder {train['encoder']}, the others of "
            f"{arrays['encoder']}: embed both by the same weights"
        )

    names = train["classes"][train["labels"][labelled]]
    try:
        classifier = EncoderClassifier().fit(train["h"][labelled], names)
        shares = classifier.predict_proba(arrays["h"])
    # of scikit-learn; of eigh, for features without measure
    except (ValueError, RuntimeError) as error:
        raise InputError(f"no probe fits these features: {in_a_line(error)}") from error
    likeliest = classifier.classes_[shares.argmax(1)]
    return list(zip(arrays["files"].tolist(), likeliest.tolist(), shares.max(1).tolist()))


def rights(arrays: Arrays, predicted: Sequence[str], train: Arrays) -> np.ndarray:
    """Whether what is predicted is right, of each picture whose class is known: (n,) bool.

    Pictures that the probe has learnt from, those with a class in train, are left out. They are
    known by their pixels, since h depends in its last bits on the batch; where a file has no
    digests, by h all the same.
    """
    mark = DIGESTS if DIGESTS in train and DIGESTS in arrays else "h"
    learnt = {row.tobytes() for row in train[mark][train["labels"] >= 0]}
    is_new = np.array([row.tobytes() not in learnt for row in arrays[mark]], dtype=bool)
    known = (arrays["labels"] >= 0) & is_new
    truth = arrays["classes"][arrays["labels"][known]]
    return np.asarray(predicted)[known] == truth


class EncoderClassifier(
    ClassNamePrefixFeaturesOutMixin, ClassifierMixin, TransformerMixin, BaseEstimator
):
    """A frozen encoder and the converged linear probe on its h.

    The probe's L2 strength is chosen by cross-validation.

    weights: a name that ``weights.load`` knows, or a loaded Weights; then X are images (N, H, W, 3)
        uint8. None: X are features (N, D) already.
    device: where the encoder computes.
    size, mean, std: how another project's checkpoint sees images, as for ``weights.load``.
    """

    def __init__(
        self,
        weights: str | Path | Weights | None = None,
        device: str | None = None,
        size: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ):
        self.weights = weights
        self.device = device
        self.size = size
        self.mean = mean
        self.std = std

    def fit(self, X: Any, y: Any) -> "EncoderClassifier":
        """Fit the probe.

        y: (N,) labels of any kind.

        Raises ValueError for X of another shape, or a single class.
        """
        self._refuse(X)
        X, y = validate_data(self, X, y, **self._wanted)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        # else there is nothing to tell apart, or to cross-validate by
        if len(self.classes_) < 2 or np.bincount(labels).max() < 2:
            raise InputError(
                f"two classes and two rows of one are needed, y has {len(self.classes_)} class(es) "
                f"in {len(y)} row(s)"
            )

        if self.weights is not None:
            self.encoder_ = self._encoder()
            self.image_shape_ = X.shape[1:]
        # the cross-validation's folds want a random order
        order = np.random.RandomState(0).permutation(len(y))
        h = self._h(X)[order]
        self._n_features_out = h.shape[1]
        self.probe_ = cross_validated_probe(h, torch.from_numpy(labels[order]), len(self.classes_))
        return self

    def transform(self, X: Any) -> np.ndarray:
        """h (N, D) float32; a table of them after ``set_output``."""
        return self._features(X).numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (N, C), a column for each of classes_."""
        h = self._features(X)
        return self.probe_.logits(h).double().softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class of each row."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    @property
    def _wanted(self) -> dict[str, Any]:
        """What scikit-learn checks X by."""
        if self.weights is None:
            return {"dtype": "float32"}
        return {"dtype": "uint8", "allow_nd": True}

    def _encoder(self) -> Weights:
        """That of ``weights``."""
        assert self.weights is not None
        if isinstance(self.weights, Weights):
            refuse_a_stated_view(
                self.weights.name, StatedView(size=self.size, mean=self.mean, std=self.std)
            )
            return self.weights
        return load(self.weights, size=self.size, mean=self.mean, std=self.std)

    def _refuse(self, X: Any) -> None:
        """InputError for images that are no uint8: a cast would make all pixels in [0, 1] black."""
        if self.weights is None:
            return
        images = np.asarray(X)
        if images.dtype != np.uint8:
            raise InputError(f"images must be (N, H, W, 3) uint8, got {images.dtype}")
        if images.ndim != 4 or images.shape[3] != 3:
            raise InputError(f"images must be (N, H, W, 3) uint8, got {images.shape}")

    def _features(self, X: Any) -> Tensor:
        """h (N, D) of what is to be transformed or classified."""
        check_is_fitted(self)
        self._refuse(X)
        if self.weights is not None and np.shape(X)[1:] != self.image_shape_:
            raise InputError(
                f"images must be {self.image_shape_} (H, W, 3), as in fit, got {np.shape(X)[1:]}"
            )
        return self._h(validate_data(self, X, reset=False, **self._wanted))

    def _h(self, X: np.ndarray) -> Tensor:
        if self.weights is None:
            return torch.from_numpy(X)
        h, _ = self.encoder_.features(torch.from_numpy(X).permute(0, 3, 1, 2), self.device)
        return h
