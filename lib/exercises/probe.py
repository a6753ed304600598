"""The check of a linear probe, beside the package's."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lib import evaluation
from lib.data.dataset import Dataset
from lib.exercises.sentences import NOT_WRITTEN, PASSED, kind, raised

Features = dict[str, Tensor]  # h (N, D) by the name of the split


def check_probe(
    probe: Callable[[Tensor, Tensor, Tensor], Any], h: Features, digits: Dataset
) -> str:
    """Of a function of h (N, D), classes (N,) and other h (T, D): their classes (T,)."""
    train, val, test = digits.train, digits.val, digits.test
    assert train.labels is not None and val.labels is not None and test.labels is not None
    x, y = torch.cat([h["train"], h["val"]]), torch.cat([train.labels, val.labels])
    one_class = test.labels == test.labels[0]
    given = []  # twice, from the same random numbers
    for asked in (h["test"], h["test"][one_class]):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                given.append(probe(x.clone(), y.clone(), asked.clone()))
            except Exception as error:
                return raised(error, f"{len(x)} features of {x.shape[1]} numbers")

    answers, alone = given
    for classes, count in ((answers, len(test)), (alone, int(one_class.sum()))):
        problem = _wrong_with_answers(classes, count, len(x))
        if problem:
            return problem
    if (alone == answers[one_class]).float().mean() < 0.9:
        return (
            "What it says of an image depends on the images that are asked beside it: standardise "
            "by the mean and deviation of the known features."
        )

    known = (h["train"], train.labels), (h["val"], val.labels)
    ours, _ = evaluation.linear_probe(*known, len(digits.classes))
    best, right = (
        100 * float((given == test.labels).float().mean())
        for given in (ours.predict(h["test"]), answers)
    )
    said = f"{right:.1f} % of the test digits are right, with the package's probe {best:.1f} %."
    if right >= best - 1:
        return f"{PASSED} {said}"
    return (
        f"Not yet: {said} Are the features standardised, the penalty weak enough, and the steps "
        "enough to arrive?"
    )


def _wrong_with_answers(answers: Any, asked: int, known: int) -> str:
    if answers is None:
        return NOT_WRITTEN
    if not isinstance(answers, Tensor):
        return f"It must return a tensor of classes, not {kind(answers)}."
    if answers.ndim == 2 and len(answers) == asked and answers.shape[1] > 1:
        return (
            "Wrong shape: these are scores of the classes. Take the place of the largest, argmax."
        )
    if answers.shape == (known,):
        return "Wrong shape: these are answers for the known images. Answer for those asked."
    if answers.shape != (asked,):
        return (
            f"Wrong shape: it must return ({asked},), a class for each, not {tuple(answers.shape)}."
        )
    if answers.is_floating_point():
        return "The classes must be integers."
    return ""
