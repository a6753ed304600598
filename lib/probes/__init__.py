"""Probes: what can be read from frozen features, each in a module with an ``ask(seen)``.

``Seen`` holds a model and the data it is asked about; a probe returns results by kind of features,
which go into a record's "evaluation", or rows of a table, which have a field of their own. The
numerics of the linear probe and of nearest neighbours are in ``lib.evaluation``. A new probe is a
module here and its row in PROBES.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from lib import InputError, unknown
from lib.augmentations import Recipe
from lib.data.dataset import Dataset
from lib.encoders import Model
from lib.evaluation import log_likelihood
from lib.probes import (
    basic,
    calibration,
    changes,
    corruptions,
    few_labels,
    fine_tuning,
    published,
    quadrants,
)
from lib.probes.seen import Seen, Unfinished

__all__ = [
    "PROBES",
    "Probe",
    "Seen",
    "Unfinished",
    "add",
    "ask",
    "is_cut_short",
    "missing",
    "refuse_unknown",
    "unasked",
]


@dataclass(frozen=True)
class Probe:
    """A question to a model."""

    ask: Callable[[Seen], Any]  # results by kind of features and name; or the rows of a table
    field: str | None = None  # of the record, for a table


PROBES = {
    "linear": Probe(basic.ask_linear),
    "knn": Probe(basic.ask_knn),
    "uva": Probe(published.ask_uva),
    "supcontrast": Probe(published.ask_supcontrast),
    "quadrants": Probe(quadrants.ask),
    **{name: Probe(partial(changes.ask, name=name)) for name in changes.CHANGES},
    "labels": Probe(few_labels.ask, "label_sweep"),
    "calibration": Probe(calibration.ask, "calibration"),
    "calibration-by-log-loss": Probe(
        partial(calibration.ask, score=log_likelihood), "calibration_by_log_loss"
    ),
    "corruptions": Probe(corruptions.ask, "corruptions"),
    "fine-tuning": Probe(fine_tuning.ask, "fine_tuning"),
    "validation": Probe(basic.ask_validation, "validation"),
}


def ask(
    model: Model,
    dataset: Dataset,
    recipe: Recipe,
    method: str = "simclr",
    wanted: Iterable[str] = ("linear", "knn"),
    fresh: Callable[[], nn.Module] | None = None,
    seed: int = 0,
    precision: str = "float32",
    tell: Callable[[dict], None] | None = None,
    unfinished: Unfinished | None = None,
) -> dict:
    """Ask a model: ``{"evaluation": {"h": {"linear": ..., "knn": ...}, "z": ...}, FIELD: rows}``.

    recipe: the view that evaluation sees.
    method: by which the model was trained; of a classifier z are logits, and "z" holds their own
        predictions as "classifier".
    wanted: which of PROBES.
    fresh: makes the encoder as it was before training, for a probe that trains it from scratch.
    seed: the run's, for a probe that trains further.
    precision: in which the encoder multiplies under SupContrast's probe, which computes features
        anew in every step; all other features are float32.
    tell: called with the answer to each probe, of the same form, as soon as it is found.
    unfinished: what an earlier session has found of a long table.

    Each result in "evaluation": n test images, how many were correct, which ones (packed bits), and
    for a linear probe the L2 strength and the accuracy on val it was chosen by. A published probe
    gives two: the epoch best on test under its own name, with its curve, and the last epoch as
    "NAME-last". Fields of tables are there where their probe is wanted.
    """
    chosen = frozenset(wanted)
    seen = Seen(model, dataset, recipe, method, fresh, seed, precision, unfinished)
    found: dict = {"evaluation": {}}
    for name, probe in PROBES.items():
        if name not in chosen:
            continue
        results = probe.ask(seen)
        if probe.field is not None:
            answer = {"evaluation": {}, probe.field: results}
        elif seen.is_classifier:
            answer = {"evaluation": results | basic.ask_classifier(seen)}
        else:
            answer = {"evaluation": results}
        if tell is not None:
            tell(answer)
        add(answer, found)
    return found


def add(answer: dict, record: dict) -> None:
    """Put an answer of ``ask`` into a record, or another answer."""
    tables = dict(answer)
    for kind, results in tables.pop("evaluation").items():
        record["evaluation"].setdefault(kind, {}).update(results)
    record.update(tables)


def missing(record: dict, wanted: Iterable[str]) -> list[str]:
    """Those of the wanted probes that a record has no result of.

    Raises InputError for an unknown one.
    """
    wanted = tuple(wanted)
    refuse_unknown(wanted)
    on_h = record["evaluation"].get("h", {})
    return [name for name in wanted if name not in on_h and PROBES[name].field not in record]


def is_cut_short(features: str, result: dict) -> bool:
    """Whether a linear probe once read a result from z by a search that ended too early.

    At a penalty of 1e-7, too strong for the directions that a head has squeezed. Such a result does
    not name where its search ended.
    """
    return features != "h" and "l2" in result and "weakest_l2" not in result


def unasked(record: dict, wanted: Iterable[str]) -> list[str]:
    """The wanted probes that a run at hand is to be asked: missing ones, and those cut short."""
    wanted = tuple(wanted)
    lacking = set(missing(record, wanted))
    for features, by_probe in record["evaluation"].items():
        lacking |= {name for name, found in by_probe.items() if is_cut_short(features, found)}
    return [name for name in wanted if name in lacking]


def refuse_unknown(names: Iterable[str]) -> None:
    """Raise InputError where one is no probe."""
    for name in names:
        if name not in PROBES:
            raise InputError(unknown("probe", name, PROBES))
