"""What every run is asked: the linear probe and kNN; and the accuracies on val that choose."""

from lib.evaluation import L2_PATH, Labelled, LinearProbe, knn, result
from lib.probes.seen import Seen


def ask_linear(seen: Seen) -> dict[str, dict]:
    """The converged probe on each kind of features, with its L2 strength and what chose it."""
    answers = {}
    for kind in seen.kinds:
        probe, on_val = seen.probe(kind)
        answers[kind] = {"linear": linear_result(probe, on_val, seen.labelled(kind, "test"))}
    return answers


def linear_result(probe: LinearProbe, on_val: float, test: Labelled) -> dict:
    """A linear probe's result on test, with what chose it: its accuracy on val."""
    x, truth = test
    chosen = {"l2": probe.l2, "weakest_l2": L2_PATH[-1], "val_accuracy": on_val}
    return result(probe.predict(x), truth) | chosen


def ask_knn(seen: Seen) -> dict[str, dict]:
    """Nearest neighbours among train + val, on each kind of features."""
    answers = {}
    for kind in seen.kinds:
        neighbours, labels = seen.train_and_val(kind)
        x, truth = seen.labelled(kind, "test")
        predicted = knn(neighbours, labels, x, seen.classes)
        answers[kind] = {"knn": result(predicted, truth)}
    return answers


def ask_classifier(seen: Seen) -> dict[str, dict]:
    """A classifier's own predictions, its z."""
    logits, truth = seen.labelled("z", "test")
    return {"z": {"classifier": result(logits.argmax(1), truth)}}


def ask_validation(seen: Seen) -> list[dict]:
    """Accuracies on val of readers fitted on train. Nothing here looks at test.

    One row each, as far as the model has them: the linear probe on h and on z, at the L2 strength
    that did best on val; kNN on h; a classifier's own predictions.
    """
    n = len(seen.dataset.val)
    rows = []

    def add(kind: str, probe: str, correct: int) -> None:
        rows.append({"features": kind, "probe": probe, "n": n, "correct": correct})

    for kind in seen.kinds:
        _, on_val = seen.probe(kind)
        add(kind, "linear", round(on_val * n))

    neighbours, labels = seen.labelled("h", "train")
    x, truth = seen.labelled("h", "val")
    predicted = knn(neighbours, labels, x, seen.classes)
    add("h", "knn", int((predicted == truth).sum()))

    if seen.is_classifier:
        logits, truth = seen.labelled("z", "val")
        add("z", "classifier", int((logits.argmax(1) == truth).sum()))
    return rows
