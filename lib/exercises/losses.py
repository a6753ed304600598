"""The check of a loss: right, one of the known mistakes, two of them, or wrong in its own way."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from lib import losses
from lib.exercises.forms import OF_NT_XENT, OF_SUPCON, Form, Mistake
from lib.exercises.sentences import NOT_WRITTEN, PASSED, kind, raised

SIZES, TEMPERATURES = (4, 7, 16), (0.1, 0.5)  # images in a batch
CLOSE = 1e-9  # nats: in float64 nothing else than rounding differs by less
SINGLE = 1e-4  # and in float32


def check_nt_xent(nt_xent: Callable[[Tensor, float], Any]) -> str:
    """Of a function of z (2, N, D) and the temperature: SimCLR's loss."""
    return _check_loss(lambda z, _, t: nt_xent(z, t), Form(labelled=False), OF_NT_XENT)


def check_sup_con(sup_con: Callable[[Tensor, Tensor, float], Any]) -> str:
    """Of a function of z (2, N, D), labels (N,) and the temperature: SupCon's loss, L_out."""
    return _check_loss(sup_con, Form(), OF_SUPCON)


@dataclass(frozen=True)
class Trial:
    """A batch, and what a function makes of it."""

    z: Tensor  # (2, N, D)
    labels: Tensor  # (N,)
    temperature: float
    right: float  # the loss
    given: float  # the reader's
    turned: float  # how far the reader's gradient is from the right one, as a share of its length

    def off(self, form: Form | None = None) -> float:
        """How far the reader's value is from the right one, or from another form's."""
        value = self.right if form is None else float(form(self.z, self.labels, self.temperature))
        return abs(self.given - value) / max(1, abs(value))


def _check_loss(loss: Callable[..., Any], right: Form, mistakes: list[Mistake]) -> str:
    trials = []
    for images in SIZES:
        for temperature in TEMPERATURES:
            draw = torch.Generator().manual_seed(images)
            z = 2 * torch.randn(2, images, 8, dtype=torch.float64, generator=draw)
            labels = torch.randint(3, (images,), generator=draw)
            made = _made(loss, z, labels, temperature)
            if isinstance(made, str):
                return made
            given, gradient = made
            leaf = z.clone().requires_grad_()
            loss_of_ours = _ours(leaf, labels if right.labelled else None, temperature)
            (expected,) = torch.autograd.grad(loss_of_ours, leaf)
            turned = float((gradient - expected).norm() / expected.norm())
            value = float(loss_of_ours.detach())
            trials.append(Trial(z, labels, temperature, value, given, turned))

    worst = max(trials, key=Trial.off)
    if worst.off() < CLOSE and max(trial.turned for trial in trials) > SINGLE:
        return "The value is right and its gradient another one: somewhere z is detached."
    if worst.off() < CLOSE:
        return PASSED
    if worst.off() < SINGLE:
        return (
            f"Right to {worst.off():.0e} only, for z in float64. Did numbers become float32 (new "
            "tensors take dtype=z.dtype), was a small number added to a length or a sum, or is the "
            "diagonal not minus infinity?"
        )
    return _diagnosis(trials, right, mistakes)


def _ours(z: Tensor, labels: Tensor | None, temperature: float) -> Tensor:
    if labels is None:
        return losses.nt_xent(z, temperature)
    return losses.sup_con(z, labels, temperature)


def _made(
    loss: Callable[..., Any], z: Tensor, labels: Tensor, temperature: float
) -> tuple[float, Tensor] | str:
    """What a function makes of a batch, and its gradient by z; or a sentence on what is wrong."""
    given = z.clone().requires_grad_()
    gradient = None
    try:
        value = loss(given, labels.clone(), temperature)
        if isinstance(value, Tensor) and value.requires_grad and not value.ndim:
            (gradient,) = torch.autograd.grad(value, given, allow_unused=True)
    except Exception as error:  # whatever it is, the reader wants to know
        return raised(error, f"z of the shape {tuple(z.shape)}")

    problem = ""
    if value is None:
        problem = NOT_WRITTEN
    elif not isinstance(value, Tensor):
        problem = f"It must return a tensor, so that gradients can flow, not {kind(value)}."
    elif value.ndim:
        shape = tuple(value.shape)
        problem = f"Wrong shape: it must return one number, the mean over the anchors, not {shape}."
    elif value.isinf():
        problem = (
            f"It is {value.item()} for z of the shape {tuple(z.shape)}: the right answer is "
            "the anchor itself, which the mask has taken out."
        )
    elif not value.isfinite():
        problem = (
            f"It is {value.item()} for z of the shape {tuple(z.shape)}. Minus infinity times 0 is "
            "no number: choose the positives first, and mask the diagonal for the denominator only."
        )
    elif gradient is None:
        problem = "No gradient flows: it must be computed from z, without detach() or item()."
    elif not torch.equal(given, z):
        problem = "It changes z itself: leave the argument as it is."
    if problem or gradient is None:
        return problem
    return float(value.detach()), gradient


def _diagnosis(trials: list[Trial], right: Form, mistakes: list[Mistake]) -> str:
    """Which mistake, or which two, give the reader's values."""
    for changes, sentence in mistakes:
        if _gives(replace(right, **changes), trials):
            return sentence
    for (one, first), (two, second) in combinations(mistakes, 2):
        if not one.keys() & two.keys() and _gives(replace(right, **one | two), trials):
            return f"Two things. {first} {second}"
    for temperature in TEMPERATURES:
        if all(trial.off() < SINGLE for trial in trials if trial.temperature == temperature):
            return f"Right at temperature {temperature} alone: it must be the argument."
    worst = max(trials, key=Trial.off)
    return (
        f"Wrong, and by no mistake that is known here: for {worst.z.shape[1]} images and "
        f"temperature {worst.temperature} it is {worst.given:.4f} in place of {worst.right:.4f}."
    )


def _gives(form: Form, trials: list[Trial]) -> bool:
    return all(trial.off(form) < SINGLE for trial in trials)
