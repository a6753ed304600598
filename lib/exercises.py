"""Checks of what a reader writes in the chapters "Write it yourself" and "Find the fault".

Each takes a function of the reader's, runs it, and answers in a sentence: ``PASSED``, or what is
wrong. Losses are compared with this package's; where they differ, with the mistakes that are often
made. A loop is watched while it trains: what goes into the model and comes out of it, which
gradient comes back, at which rate a step is taken.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lib import evaluation, losses
from lib.augmentations import RECIPES, Recipe
from lib.data.dataset import Dataset, Split
from lib.encoders import Model

PASSED = "Passed."
NOT_WRITTEN = "Not written yet."

# --------------------------------------------------------------------------------------------------
# The two losses


@dataclass(frozen=True)
class Form:
    """A way to write NT-Xent or SupCon; as it stands the right one, and each change a mistake."""

    axis: str = "dimensions"  # along which z has length 1; "images", "embeddings" or "none"
    power: int = -1  # of the temperature, by which cosines are multiplied
    itself: str = "out"  # the anchor in its own denominator: "out", "zero" (as e^0) or "in"
    positives_in_sum: bool = True
    across: bool = False  # whether views of the anchor's own kind are left out
    by_image: bool = False  # rows taken for view 1, view 2 of an image, then the next image's
    labelled: bool = True  # whether the labels count
    own_positive: bool = False  # whether the anchor is its own positive
    inside: bool = False  # the mean over positives within the logarithm
    over: str = "anchors"  # what is averaged: "anchors" or "pairs"; "sum": nothing
    anchors: int = 2  # the views whose embeddings are anchors
    positives_added: bool = False  # in place of their mean
    factor: float = 1.0
    count_more: int = 0  # by how much the number of an anchor's positives is counted too high
    scale: int = 0  # the power of the temperature that multiplies the loss
    softmaxed: bool = False  # whether the logits are probabilities already
    neighbours: bool = False  # whether the partner is taken to be in the next row

    def __call__(self, z: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """Of z (2, N, D) and labels (N,), a scalar."""
        views, images, _ = z.shape
        if not self.labelled:
            labels = torch.arange(images)
        labels = labels.repeat_interleave(views) if self.by_image else labels.repeat(views)
        rows = self._rows(z)
        logits = rows @ rows.T * temperature**self.power  # (2N, 2N)

        same = torch.eye(len(rows), dtype=torch.bool)
        if self.softmaxed:
            logits = logits.masked_fill(same, -math.inf).softmax(1)
        positive = labels[:, None] == labels
        if self.neighbours:
            positive = same.roll(1, dims=1)
        if not self.own_positive:
            positive = positive & ~same
        count = positive.sum(1) + self.count_more
        loss = self._push(logits, same, positive, images) - self._pull(logits, positive, count)

        if self.anchors == 1:
            loss, count = loss[:images], count[:images]
        if self.over == "pairs":
            mean = (loss * count).sum() / count.sum()
        else:
            mean = loss.sum() if self.over == "sum" else loss.mean()
        return mean * self.factor * temperature**self.scale

    def _rows(self, z: Tensor) -> Tensor:
        """Of z (2, N, D): all embeddings, (2N, D), of length 1 where that is not forgotten."""
        if self.axis == "images":
            z = F.normalize(z, dim=1)
        elif self.axis == "dimensions":
            z = F.normalize(z, dim=-1)
        rows = z.flatten(0, 1)
        return F.normalize(rows, dim=0) if self.axis == "embeddings" else rows

    def _pull(self, logits: Tensor, positive: Tensor, count: Tensor) -> Tensor:
        """What each anchor's positives take off its loss: (2N,)."""
        if self.inside:
            pull = logits.masked_fill(~positive, -math.inf).logsumexp(1)
            return pull if self.positives_added else pull - count.log()
        pull = (logits * positive).sum(1)
        return pull if self.positives_added else pull / count

    def _push(self, logits: Tensor, same: Tensor, positive: Tensor, images: int) -> Tensor:
        """The logarithm of each anchor's denominator: (2N,)."""
        if self.itself != "in":
            logits = logits.masked_fill(same, 0 if self.itself == "zero" else -math.inf)
        if not self.positives_in_sum:
            logits = logits.masked_fill(positive, -math.inf)
        if self.across:
            kind = torch.arange(len(logits)) // images
            logits = logits.masked_fill(kind[:, None] == kind, -math.inf)
        return logits.logsumexp(1)


Mistake = tuple[dict[str, Any], str]  # fields of a Form, and what to say of them

OF_BOTH: list[Mistake] = [
    ({"axis": "none"}, "z is not brought to length 1: similarities are cosines."),
    (
        {"axis": "images"},
        "Lengths are taken along the images: F.normalize(z, dim=-1) is each one's.",
    ),
    (
        {"axis": "embeddings"},
        "Lengths are taken along the embeddings: F.normalize(z, dim=-1) is each one's.",
    ),
    ({"power": 1}, "The temperature is on the wrong side: cosines are divided by it."),
    ({"power": 0}, "The temperature has no effect: cosines are divided by it."),
    (
        {"power": 0, "scale": -1},
        "The whole loss is divided by the temperature: only the cosines are, in the exponent.",
    ),
    ({"scale": 1}, "The loss is multiplied by the temperature: nothing but cosines meets it."),
    ({"itself": "in"}, "The anchor is among its own negatives: leave the diagonal out of the sum."),
    (
        {"itself": "zero"},
        "The diagonal is 0, and e to the power of 0 still counts in the sum: minus infinity "
        "takes it out.",
    ),
    ({"over": "sum"}, "The anchors' losses are added up: take their mean."),
    ({"factor": 2.0}, "It is twice the loss: there are 2N anchors, not N."),
    ({"factor": 0.5}, "It is half of the loss: divide by the 2N anchors once."),
    ({"factor": -1.0}, "The sign is wrong: the loss must fall as positives come nearer."),
    (
        {"anchors": 1},
        "Not symmetric: only the first views are anchors, the second ones must be too.",
    ),
]
OF_NT_XENT: list[Mistake] = [
    *OF_BOTH,
    (
        {"positives_in_sum": False},
        "The partner is missing from the denominator, which has all others, 2N - 1 of them.",
    ),
    (
        {"by_image": True},
        "Wrong partners: in z.flatten(0, 1) all first views come before all second views, so the "
        "partner is N rows away.",
    ),
    (
        {"neighbours": True},
        "Wrong partners: the partner of row i is N rows away, not the next row.",
    ),
    (
        {"softmaxed": True, "itself": "in"},
        "Softmax is taken twice: cross_entropy takes logits, and does it itself.",
    ),
    (
        {"across": True},
        "First views meet second views only: the other images' views of the anchor's own kind are "
        "negatives too.",
    ),
    (
        {"across": True, "anchors": 1},
        "Not symmetric: first views are anchors, second views candidates. All 2N embeddings must "
        "be both.",
    ),
]
OF_SUPCON: list[Mistake] = [
    *OF_BOTH,
    (
        {"positives_in_sum": False},
        "The positives are missing from the denominator, which has all others, 2N - 1 of them.",
    ),
    (
        {"by_image": True},
        "Labels in the wrong order: in z.flatten(0, 1) all first views come before all second "
        "views, so labels.repeat(2) fits, and repeat_interleave does not.",
    ),
    ({"labelled": False}, "The labels have no effect: this is NT-Xent, with one positive each."),
    ({"own_positive": True}, "The anchor is among its own positives: leave it out of them."),
    (
        {"own_positive": True, "itself": "in"},
        "The anchor is among its own positives and its own negatives: leave it out of both.",
    ),
    ({"inside": True}, "This is L_in: the mean over positives belongs outside the logarithm."),
    (
        {"over": "pairs"},
        "It averages over all pairs at once: take each anchor's mean over its positives first, and "
        "then the mean over anchors.",
    ),
    (
        {"positives_added": True},
        "An anchor's positives are added up: divide by how many it has.",
    ),
    (
        {"count_more": 1},
        "An anchor's positives are counted with the anchor itself, which is none of them: |P| is "
        "one less.",
    ),
    (
        {"inside": True, "positives_added": True},
        "This is L_in without its 1/|P|: the mean over positives belongs outside the logarithm.",
    ),
    (
        {"scale": 1, "factor": 1 / 0.07},
        "There is a factor temperature / 0.07, which SupContrast's code has.",
    ),
]

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
        return _raised(error, f"z of the shape {tuple(z.shape)}")

    problem = ""
    if value is None:
        problem = NOT_WRITTEN
    elif not isinstance(value, Tensor):
        problem = f"It must return a tensor, so that gradients can flow, not {_kind(value)}."
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


def _raised(error: Exception, where: str) -> str:
    return f"It raises {type(error).__name__} for {where}: {error}"


def _kind(value: object) -> str:
    return f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"


# --------------------------------------------------------------------------------------------------
# The loop


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


def _wrong_with_steps(watch: Watch) -> str:
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


def _wrong_with_weights(model: Model, untrained: Model, steps: list[Taken]) -> str:
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
            return _raised(error, "the tinted digits")

    problem = _wrong_with_steps(watch) or _wrong_with_weights(model, untrained, watch.steps)
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


# --------------------------------------------------------------------------------------------------
# The probe

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
                return _raised(error, f"{len(x)} features of {x.shape[1]} numbers")

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
        return f"It must return a tensor of classes, not {_kind(answers)}."
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


# --------------------------------------------------------------------------------------------------
# Loops with a fault

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
            return _raised(error, "a short run")

    problem = _wrong_with_steps(watch) or _wrong_with_curves(curves, len(watch.steps))
    problem = problem or _wrong_with_loss(curves, watch.steps)
    problem = problem or _wrong_with_rate(curves["rate"], watch.steps)
    problem = problem or _wrong_with_weights(model, untrained, watch.steps)
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
