"""Encoders put to use: features of pictures, their nearest neighbours, and a classifier in
scikit-learn's manner."""

import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from lib import InputError, images, sources
from lib.config import unknown
from lib.data import read_npz
from lib.files import write_atomically
from lib.images import Report
from lib.probes import cross_validated_probe
from lib.weights import Weights, load

ARRAYS = {"h", "z", "files", "labels", "classes", "encoder"}


def embed(
    source: Path, weights: Weights, device: str | None = None
) -> tuple[dict[str, np.ndarray], Report]:
    """ARRAYS of the images that ``sources.find`` finds, and what was left out of them.

    h: (N, width) float32; z: (N, D); files: (N,) names; labels: (N,) places in classes, -1 where an
    image has none; encoder: whose features they are. Raises InputError where no image is whole.
    """
    there, whole, rows, skipped = sources.find(source), [], [], []
    for pixels, of in images.decoded(there.items, weights.size, skipped, source.name):
        whole += of
        rows.append(weights.features(torch.from_numpy(pixels).permute(0, 3, 1, 2), device))
    if not whole:
        raise InputError(
            f"none of the {len(there.items)} images of {source} is whole: {skipped[0]}"
        )
    h, z = (torch.cat(parts).numpy() for parts in zip(*rows))
    found = {
        "h": h,
        "z": z,
        "files": np.array([item.name for item in whole]),
        "encoder": np.array(weights.encoder),
        "labels": np.array([item.label for item in whole]),
        "classes": np.array(there.classes, dtype=str),
    }
    return found, Report(there.notes, skipped)


def read(path: Path) -> dict[str, np.ndarray]:
    """What ``embed`` made, from its .npz. Raises InputError where it is none."""
    found = read_npz(path, ARRAYS)
    h, labels, n = found["h"], found["labels"], len(found["h"]) if found["h"].ndim == 2 else 0
    if (
        not n
        or h.dtype != np.float32
        or labels.dtype.kind != "i"
        or not found["files"].shape == labels.shape == (n,)
        or labels.max() >= found["classes"].size
        or found["encoder"].shape
        or not np.isfinite(h).all()
    ):
        raise InputError(f"{path} holds no features; make them by: python -m lib embed")
    return found


def write(path: Path, found: dict[str, np.ndarray]) -> None:
    """Write what ``embed`` made as an .npz."""
    buffer = io.BytesIO()
    np.savez(buffer, **found)
    write_atomically(path, buffer.getvalue())


def neighbours(found: dict[str, np.ndarray], file: str, count: int = 5) -> list[tuple[str, float]]:
    """The files whose h is most alike that of one of them, itself apart, most alike first: each
    with its cosine."""
    files, x = found["files"].tolist(), F.normalize(torch.from_numpy(found["h"]), dim=1)
    if file not in files:
        raise InputError(unknown("picture", file, files))
    if count < 1:
        raise InputError(f"count must be at least 1, got {count}")
    cosines = x @ x[files.index(file)]
    cosines[files.index(file)] = -2
    best = cosines.topk(min(count, len(x) - 1))
    return [
        (files[place], cosine) for place, cosine in zip(best.indices.tolist(), best.values.tolist())
    ]


def predict(
    train: dict[str, np.ndarray], found: dict[str, np.ndarray]
) -> list[tuple[str, str, float]]:
    """Each file with its likeliest class and that one's probability, by the probe on h of those
    that have a class.

    Raises InputError where fewer than two classes have images, or the features are of two encoders.
    """
    known = train["labels"] >= 0
    if not known.any():
        raise InputError(
            "no picture to learn from has a class: embed a folder with one for each class"
        )
    if train["encoder"] != found["encoder"]:
        raise InputError(
            f"the labelled features are of the encoder {train['encoder']}, the others of "
            f"{found['encoder']}: embed both by the same weights"
        )
    try:
        probe = EncoderClassifier().fit(train["h"][known], train["classes"][train["labels"][known]])
        shares = probe.predict_proba(found["h"])
    except (
        ValueError,
        RuntimeError,
    ) as error:  # of scikit-learn; of eigh, for features without measure
        raise InputError(f"no probe fits these features: {' '.join(str(error).split())}") from error
    return list(
        zip(
            found["files"].tolist(),
            probe.classes_[shares.argmax(1)].tolist(),
            shares.max(1).tolist(),
        )
    )


class EncoderClassifier(ClassifierMixin, TransformerMixin, BaseEstimator):
    """A frozen encoder and the converged linear probe on its h, its L2 strength chosen by
    cross-validation.

    weights: a name that ``weights.load`` knows, or a loaded Weights; then X are images (N, H, W, 3)
    uint8. None: X are features (N, D) already. device: where the encoder computes.
    """

    def __init__(self, weights=None, device: str | None = None):
        self.weights = weights
        self.device = device

    def fit(self, X, y) -> "EncoderClassifier":
        """Fit the probe. y: (N,) labels of any kind. Raises ValueError for X of another shape, or a
        single class."""
        self._refuse(X)
        X, y = validate_data(self, X, y, **self._kind)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if (
            len(self.classes_) < 2 or np.bincount(labels).max() < 2
        ):  # nothing to tell apart, or to cross-validate by
            raise InputError(
                f"two classes and two rows of one are needed, y has {len(self.classes_)} class(es) "
                f"in {len(y)} row(s)"
            )
        order = np.random.RandomState(0).permutation(
            len(y)
        )  # the cross-validation's folds want a random one
        self.probe_ = cross_validated_probe(
            self._h(X)[order], torch.from_numpy(labels[order]), len(self.classes_)
        )
        return self

    def transform(self, X) -> np.ndarray:
        """h (N, D) float32."""
        check_is_fitted(self)
        self._refuse(X)
        return self._h(validate_data(self, X, reset=False, **self._kind)).numpy()

    def predict_proba(self, X) -> np.ndarray:
        """Probabilities (N, C), a column for each of classes_."""
        h = torch.from_numpy(self.transform(X))
        return self.probe_.logits(h).double().softmax(1).numpy()

    def predict(self, X) -> np.ndarray:
        """The likeliest class of each row."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    @property
    def _kind(self) -> dict:
        return (
            {"dtype": "float32"} if self.weights is None else {"dtype": "uint8", "allow_nd": True}
        )

    def _refuse(self, X) -> None:
        """InputError for images that are no uint8: a cast would make all pixels in [0, 1] black."""
        if self.weights is not None and (kind := np.asarray(X).dtype) != np.uint8:
            raise InputError(f"images must be (N, H, W, 3) uint8, got {kind}")

    def _h(self, X: np.ndarray) -> Tensor:
        if self.weights is None:
            return torch.from_numpy(X)
        if X.ndim != 4 or X.shape[3] != 3:
            raise InputError(f"images must be (N, H, W, 3) uint8, got {X.shape}")
        loaded = self.weights if isinstance(self.weights, Weights) else load(self.weights)
        return loaded.features(torch.from_numpy(X).permute(0, 3, 1, 2), self.device)[0]
