"""h read with few labels: a sweep over how many each class has."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lib import InputError
from lib.data.dataset import Dataset, Split, first_of_each_class, subsets
from lib.evaluation import cross_validated_probe
from lib.probes.published import PROTOCOLS, features_of, train_probe
from lib.probes.seen import Seen

PER_CLASS = (10, 20, 50, 100, 200, 400)  # labels of each class: UvA's numbers, and 400
SUBSETS = 5  # random ones of each size
FOLD_SIZE = 100  # labels of each class in STL-10's official folds


def ask(seen: Seen) -> list[dict]:
    """PER_CLASS labels of every class, as many sizes as the training images allow.

    The converged probe ("linear") on random subsets, its L2 strength cross-validated within each;
    at 100 per class on the data set's own folds where it has them (STL-10). UvA's probe on the
    first images of each class, as published, its best epoch by test accuracy ("uva") and its last
    one. Returns one row each: features, probe, per_class, labels, subset, n, correct.

    Raises InputError where the smallest class has too few images for any size.
    """
    pool = seen.dataset.pool("train+val")
    rows = []
    for per_class in sizes(seen.dataset, pool, PER_CLASS):
        rows += _linear_rows(seen, pool, per_class)
        rows += _uva_rows(seen, pool, per_class)
    return rows


def sizes(dataset: Dataset, pool: Split, per_class: Sequence[int]) -> list[int]:
    """Those numbers of labels of each class that leave some of every class in the pool over.

    Raises InputError where there are none, naming the smallest class.
    """
    assert pool.labels is not None  # training images have one
    counts = pool.labels.bincount(minlength=len(dataset.classes))
    fewest = int(counts.min())
    found = [number for number in per_class if number < fewest]
    if not found:
        raise InputError(
            f"few labels are at least {per_class[0]} a class, and the class "
            f"'{dataset.classes[int(counts.argmin())]}' of {dataset.name} has {fewest} images to "
            "draw them from: leave the class out, or add images of it"
        )
    return found


def _linear_rows(seen: Seen, pool: Split, per_class: int) -> list[dict]:
    """The converged probe, on several subsets."""
    x, y = seen.train_and_val("h")
    x_test, _ = seen.labelled("h", "test")

    rows = []
    for subset, places in named_subsets(seen.dataset, pool, per_class):
        probe = cross_validated_probe(x[places], y[places], seen.classes)
        correct = right(seen, probe.predict(x_test))
        rows.append(row(seen, "linear", per_class, subset, len(places), correct))
    return rows


def _uva_rows(seen: Seen, pool: Split, per_class: int) -> list[dict]:
    """UvA's probe on the first images of each class: its best epoch, and its last one."""
    x, y = seen.train_and_val("h")
    places = first_of_each_class(pool, per_class).to(x.device)
    batch = features_of(x[places])
    test = seen.labelled("h", "test")

    best, last, _ = train_probe(PROTOCOLS["uva"], batch, y[places], test, seen.classes)
    return [
        row(seen, "uva", per_class, "first", len(places), right(seen, best)),
        row(seen, "uva-last", per_class, "first", len(places), right(seen, last)),
    ]


def right(seen: Seen, predicted: Tensor) -> int:
    """How many test images have the classes predicted (M,)."""
    _, truth = seen.labelled("h", "test")
    return int((predicted == truth).sum())


def row(seen: Seen, probe: str, per_class: int, subset: str, labels: int, correct: int) -> dict:
    """What is recorded of one subset: how many labels it has, how many test images came right."""
    return {
        "features": "h",
        "probe": probe,
        "per_class": per_class,
        "labels": labels,
        "subset": subset,
        "n": len(seen.dataset.test),
        "correct": correct,
    }


def named_subsets(dataset: Dataset, pool: Split, per_class: int) -> list[tuple[str, Tensor]]:
    """Subsets of the pool by name, places each: official folds where there are any of that size."""
    if per_class == FOLD_SIZE and dataset.folds:
        assert pool.places is not None  # training images have one
        places = torch.arange(len(pool))
        by_official_place = torch.empty_like(places).scatter_(0, pool.places, places)
        return [(f"fold {i}", by_official_place[fold]) for i, fold in enumerate(dataset.folds)]

    drawn = subsets(pool, per_class, SUBSETS)
    return [(f"random {i}", places) for i, places in enumerate(drawn)]
