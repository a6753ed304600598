"""The check of a loop with a fault, in a short run of it: its symptom, not its cause."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch

from lib import losses
from lib.augmentations import Recipe
from lib.data.dataset import Split
from lib.encoders import Model
from lib.exercises.sentences import PASSED, raised
from lib.exercises.training import neighbours_right, wrong_with_weights
from lib.exercises.watch import Taken, Watch, wrong_with_steps

CURVES = ("loss", "found", "rate", "kNN")
EPOCHS, BATCH, TEMPERATURE = 5, 64, 0.2  # of the short run that a check looks at
EVERY = 5  # image is in it


def check_loop(loop: Callable[..., Any], train: Split, val: Split, plain: Recipe) -> str:
    """Of a loop as chapter 20 has it, in a short run of it: its symptom, not its cause.

    loop: of a model, the splits train and val, epochs, batch and temperature; returns its curves.
    plain: the view that the loop measures h of.
    """
    train = train[slice(None, None, EVERY)]
    settings = {"epochs": EPOCHS, "batch": BATCH, "temperature": TEMPERATURE}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model("slim")
        untrained, watch = copy.deepcopy(model), Watch()
        try:
            with watch.on(model):
                curves = loop(model, train, val, **settings)
        except Exception as error:
            return raised(error, "a short run")

    problem = wrong_with_steps(watch) or _wrong_with_curves(curves, len(watch.steps))
    problem = problem or _wrong_with_loss(curves, watch.steps)
    problem = problem or _wrong_with_rate(curves["rate"], watch.steps)
    problem = problem or wrong_with_weights(model, untrained, watch.steps)
    if problem:
        return f"Not yet. {problem}"
    if watch.measured_in_training:
        return (
            "Not yet. The same network gives an image another h when other images are measured "
            "beside it."
        )
    right = neighbours_right(model, train, val, plain)
    if abs(right - curves["kNN"][-1]) > 0.02:
        return (
            f"Not yet. The neighbours of the trained network are right in {100 * right:.0f} %, and "
            f"the curve says {100 * curves['kNN'][-1]:.0f} %."
        )
    return PASSED


def _wrong_with_curves(curves: Any, steps: int) -> str:
    if not isinstance(curves, dict) or not set(CURVES) <= curves.keys():
        return f"The loop must return its curves: {', '.join(CURVES)}."
    for name in CURVES:
        expected = EPOCHS if name == "kNN" else steps
        if not _are_numbers(curves[name]):
            return f"The curve {name!r} must be a list of numbers, none of them infinite or NaN."
        if len(curves[name]) != expected:
            return f"The curve {name!r} has {len(curves[name])} values in place of {expected}."
    return ""


def _are_numbers(values: Any) -> bool:
    try:
        return all(math.isfinite(value) for value in values)
    except TypeError:
        return False


def _wrong_with_loss(curves: dict[str, list[float]], steps: list[Taken]) -> str:
    """Whether the loss, the partners found and the gradient are those of NT-Xent, for its own z."""
    gradients = [step.gradient for step in steps]
    if any(gradient is None for gradient in gradients):
        return "No gradient comes back to z."

    found, right, off = [], [], []
    for step, gradient in zip(steps, gradients):
        z = torch.cat(step.z).detach().unflatten(0, (2, -1)).requires_grad_()
        loss = losses.nt_xent(z, TEMPERATURE)
        (expected,) = torch.autograd.grad(loss, z)
        found.append(losses.contrast(z.detach()).top1)
        right.append(loss.item())
        off.append(float((gradient - expected.flatten(0, 1)).norm() / expected.norm()))

    place, gap = _farthest(curves["found"], found)
    if gap > 0.02:
        return (
            f"In step {place + 1} the nearest embedding is the partner for "
            f"{100 * found[place]:.0f} % of views; the curve says "
            f"{100 * curves['found'][place]:.0f} %."
        )
    place, gap = _farthest(curves["loss"], right)
    if gap > 0.001:
        return (
            f"In step {place + 1} NT-Xent of these z is {right[place]:.3f} at temperature "
            f"{TEMPERATURE}, and the curve says {curves['loss'][place]:.3f}."
        )
    if max(off) > 0.01:
        return "The curve has NT-Xent's value, and the gradient is another one's."
    return ""


def _farthest(noted: list[float], right: list[float]) -> tuple[int, float]:
    """Where two curves differ most, and by how much."""
    gaps = [abs(one - other) for one, other in zip(noted, right)]
    place = gaps.index(max(gaps))
    return place, gaps[place]


def _wrong_with_rate(noted: list[float], steps: list[Taken]) -> str:
    rates = [step.rate for step in steps]
    if rates[-1] > rates[0] / 4:
        return (
            f"The rate must fall along a cosine to zero; in {len(rates)} steps it has gone from "
            f"{rates[0]:.4f} to {rates[-1]:.4f}."
        )
    if any(later > rate for rate, later in zip(rates, rates[1:])):
        return "The rate must not rise."
    place, gap = _farthest(noted, rates)
    if gap > rates[0] / 10:  # more than a note one step late
        return (
            f"In step {place + 1} the rate is {rates[place]:.4f}, and the curve says "
            f"{noted[place]:.4f}."
        )
    return ""
