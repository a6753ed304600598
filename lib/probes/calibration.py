"""How sure is a reader of h, and how right?"""

import numpy as np
from numpy.typing import ArrayLike

from lib.evaluation import Score, accuracy
from lib.probes.seen import Seen


def ask(seen: Seen, score: Score = accuracy) -> list[dict]:
    """A row for each reader: how sure and how right it is on test, in bins of confidence.

    score: by which the linear probe's L2 strength is chosen: ``accuracy``, or ``log_likelihood``,
        which asks for honest probabilities.
    """
    h, z = seen.pair("test")
    labels = seen.labels("test")

    rows = []
    for (kind, probe), read in seen.readers(score).items():
        confidence, predicted = read(h, z).softmax(1).cpu().max(1)
        bins = reliability(confidence, predicted == labels)
        rows.append({"features": kind, "probe": probe, "n": len(labels)} | bins)
    return rows


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> dict[str, list]:
    """How sure and how right, in bins of confidence (0, 1/15], (1/15, 2/15] ... of equal width.

    confidence: (n,), the probability given to the class that is predicted.
    correct: (n,) bool.

    Returns for each bin the count of images, the sum of their confidences and how many are correct
    (Guo et al., arXiv 1706.04599, section 2).
    """
    confidence = np.asarray(confidence, dtype=float)
    correct = np.asarray(correct, dtype=bool)
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)

    count = np.bincount(places, minlength=bins)
    summed = np.bincount(places, confidence, bins).round(4)
    right = np.bincount(places, correct, bins).astype(int)
    return {"count": count.tolist(), "confidence": summed.tolist(), "correct": right.tolist()}
