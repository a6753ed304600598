"""What a loop does to a model: its views and embeddings, gradients, steps and rates."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lib.encoders import Model
from lib.exercises.sentences import NOT_WRITTEN


@dataclass(frozen=True)
class Call:
    """A call of the encoder or of the head."""

    given: Tensor  # without its history
    made: Tensor  # keeps its gradient


@dataclass
class Taken:
    """A step of a loop, as it was watched."""

    encoded: list[Call] = field(default_factory=list)
    embedded: list[Call] = field(default_factory=list)
    training: bool = True  # the model's mode
    has_gradient: bool = True  # whether the optimiser has one of any weight
    rate: float = 0.0

    @cached_property
    def has_looks(self) -> bool:
        """Whether the calls that no gradient came back to were mere looks.

        They were where the others have two views of each image.
        """
        used = [call.given for call in _with_gradient(self.encoded)]
        return bool(used) and not _wrong_with_views(used)

    @property
    def x(self) -> list[Tensor]:
        """The views that the step is taken for, call by call."""
        calls = _with_gradient(self.encoded) if self.has_looks else self.encoded
        return [call.given for call in calls]

    @property
    def z(self) -> list[Tensor]:
        """Their embeddings."""
        calls = _with_gradient(self.embedded) if self.has_looks else self.embedded
        return [call.made for call in calls]

    @property
    def gradient(self) -> Tensor | None:
        """Of the loss by z (2N, D); None where none came back to a part of it."""
        gradients = [z.grad for z in self.z if z.grad is not None]
        return torch.cat(gradients) if len(gradients) == len(self.z) else None


def _with_gradient(calls: list[Call]) -> list[Call]:
    """Those that a gradient came back to."""
    return [call for call in calls if call.made.grad is not None]


class Watch:
    """What a model does while a function trains and measures it."""

    def __init__(self, steps: float = math.inf) -> None:
        """steps: of how many to keep views and embeddings."""
        self.most = steps
        self.steps: list[Taken] = []
        self.calls = 0
        self.measured_in_training = False  # whether the model was, when no gradient was asked for
        self._open = Taken()

    def __deepcopy__(self, _: object) -> "Watch":
        """Itself: a copy of the model, which may be what is measured, is watched as well."""
        return self

    @contextmanager
    def on(self, model: Model) -> Iterator["Watch"]:
        """Within, every call of encoder and head and every step of any optimiser is noted."""
        hooks = (
            model.encoder.register_forward_hook(self._encoded, with_kwargs=True),
            model.head.register_forward_hook(self._embedded, with_kwargs=True),
            register_optimizer_step_pre_hook(self._stepped),
        )
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _encoded(self, encoder: nn.Module, given: tuple, named: dict, h: Tensor) -> None:
        self.calls += 1
        if torch.is_grad_enabled():
            self._open.training &= encoder.training
            self._keep(self._open.encoded, (*given, *named.values()), h)
        else:
            self.measured_in_training |= encoder.training

    def _embedded(self, _: nn.Module, given: tuple, named: dict, z: Tensor) -> None:
        if torch.is_grad_enabled():
            self._keep(self._open.embedded, (*given, *named.values()), z)

    def _keep(self, calls: list[Call], given: tuple[Tensor, ...], made: Tensor) -> None:
        if len(self.steps) >= self.most:
            return
        if made.requires_grad:
            made.retain_grad()
        calls.append(Call(given[0].detach(), made))

    def _stepped(self, optimiser: torch.optim.Optimizer, *_: object) -> None:
        weights = [weight for group in optimiser.param_groups for weight in group["params"]]
        self._open.has_gradient = any(weight.grad is not None for weight in weights)
        self._open.rate = optimiser.param_groups[0]["lr"]
        self.steps.append(self._open)
        self._open = Taken()


def wrong_with_steps(watch: Watch) -> str:
    """What is wrong with how a model was fed and stepped; nothing where it is sound."""
    if not watch.calls:
        return NOT_WRITTEN
    if not watch.steps:
        return (
            "No step is taken: backward() finds the gradients, optimiser.step() takes the step "
            "(with an optimiser of torch.optim: what is written by hand is not seen)."
        )
    if not all(step.training for step in watch.steps):
        return "The model is in evaluation mode while it trains: call model.train() before."
    for step in watch.steps:
        problem = _wrong_with_views(step.x) if step.x else ""
        if problem:
            return problem
    return ""


def _wrong_with_views(x: list[Tensor]) -> str:
    """What is wrong with the views of a step; nothing where they are two of each image."""
    if len({views.shape[1:] for views in x}) > 1:
        return "This check expects views of one size, and they differ within a step."
    pairs = list(_pairings(x))
    if not pairs:
        return "A step must see two views of each image, as many second ones as first ones."
    if any(torch.allclose(first, second) for first, second in pairs):
        return "The two views of an image are the same picture, number for number."
    if not any(_of_the_same_images(first, second) for first, second in pairs):
        return (
            "This check expects all first views and then all second ones in the same order; "
            "so read, the two views of a pair are not of one image."
        )
    return ""


def _pairings(x: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """First and second views, (N, 3, S, S) each, as the calls of a step may hold them.

    All calls together; or a part of the batch by each call, or by each two.
    """
    for together in sorted({len(x), 1, 2}, reverse=True):
        parts = [torch.cat(x[start : start + together]) for start in range(0, len(x), together)]
        if all(len(part) % 2 == 0 for part in parts):
            halves = [part.chunk(2) for part in parts]
            yield torch.cat([first for first, _ in halves]), torch.cat([last for _, last in halves])


def _of_the_same_images(first: Tensor, second: Tensor) -> bool:
    """Whether views (N, 3, S, S) are alike in pairs more than at random, by their grey values."""
    grey = [F.normalize(_centred(x.mean(1).flatten(1)), dim=1) for x in (first, second)]
    alike = grey[0] @ grey[1].T  # (N, N)
    paired = alike.diagonal().mean()
    others = (alike.sum() - alike.diagonal().sum()) / (len(alike) * (len(alike) - 1))
    return bool(paired > others + 0.1)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)
