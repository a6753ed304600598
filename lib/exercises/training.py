"""The check of a loop that the reader writes: does the model learn the digits?"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from lib import evaluation
from lib.augmentations import RECIPES, Recipe
from lib.data.dataset import Dataset, Split
from lib.encoders import Model
from lib.exercises.sentences import PASSED, raised
from lib.exercises.watch import Taken, Watch, wrong_with_steps

MOVED = 1e-3  # of their length: less is no training
GOOD = 0.9  # share of the test digits whose neighbours vote for them


def neighbours_right(model: nn.Module, known: Split, asked: Split, plain: Recipe) -> float:
    """The share of images whose 20 nearest known ones, by h, vote for their class."""
    assert known.labels is not None and asked.labels is not None
    h, _ = evaluation.features(model, known.images, plain)
    queries, _ = evaluation.features(model, asked.images, plain)
    classes = int(known.labels.max()) + 1
    voted = evaluation.knn(h, known.labels, queries, classes)
    return float((voted == asked.labels).float().mean())


def wrong_with_weights(model: Model, untrained: Model, steps: list[Taken]) -> str:
    """What is wrong with how far encoder and head have come; nothing where both have moved."""
    if not all(weight.isfinite().all() for weight in model.parameters()):
        return "The weights are no numbers any more: lower the learning rate."
    parts = {"encoder": (model.encoder, untrained.encoder), "head": (model.head, untrained.head)}
    for name, (part, before) in parts.items():
        old, new = (parameters_to_vector(net.parameters()).detach() for net in (before, part))
        way = float((new - old).norm() / old.norm())
        if way > MOVED:
            continue
        if not any(step.has_gradient for step in steps):
            return (
                "The optimiser has no gradients: give it model.parameters(), and call zero_grad() "
                "before backward(), not between backward() and step()."
            )
        return (
            f"The weights of the {name} have hardly moved, by {way:.0e} of their length: does the "
            "optimiser have them all, and is its rate high enough?"
        )
    return ""


def check_training(train: Callable[[nn.Module, Tensor], Any], digits: Dataset) -> str:
    """Of a function that trains a model on images (N, 3, 32, 32) uint8: SimCLR's loop."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model("slim")
        untrained, watch = copy.deepcopy(model), Watch(steps=2)
        try:
            with watch.on(model):
                train(model, digits.train.images)
        except Exception as error:
            return raised(error, "the tinted digits")

    problem = wrong_with_steps(watch) or wrong_with_weights(model, untrained, watch.steps)
    if problem:
        return problem

    mean, std = digits.moments
    plain = replace(RECIPES["none"], mean=mean, std=std)
    right, guessed = (
        neighbours_right(net, digits.train + digits.val, digits.test, plain)
        for net in (model, untrained)
    )
    said = f"kNN is right in {100 * right:.0f} % of the test digits"
    if right > GOOD:
        return f"{PASSED} {said}."
    said = f"Not yet: {said}, and in {100 * guessed:.0f} % before training."
    if right < guessed:
        return f"{said} Something is easier to find than digits. What do its two views share?"
    return (
        f"{said} It must be more than {100 * GOOD:.0f} %. Pass over the images ten times, with a "
        "rate that falls to zero."
    )
