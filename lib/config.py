"""A run, described completely: a frozen configuration, each bound beside its field."""

import re
from collections.abc import Collection
from dataclasses import fields
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lib import legible, unknown
from lib.augmentations import RECIPES
from lib.encoders import BASELINES, ENCODERS, HEADS, STEMS
from lib.losses import LEAST_TEMPERATURE, POSITIVES, scale
from lib.methods import METHODS
from lib.validation import checked

OPTIMISERS = ("sgd", "adamw")
COMPUTED = ("float32", "bfloat16", "float16")
PRECISIONS = ("auto", *COMPUTED)
POOLS = ("train", "train+val", "unlabeled")


def one_of(kind: str, known: Collection[str]) -> AfterValidator:
    """Of a field: its value must be one of the known names of that kind."""

    def check(name: str) -> str:
        if name not in known:
            raise ValueError(unknown(kind, name, known))
        return name

    return AfterValidator(check)


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise ValueError(f"must be letters, digits, '_', '.' and '-', got {name!r}")
    return name


def _text(name: str) -> str:
    if name != legible(name):  # a record of it could not be read
        raise ValueError(f"must be a name in UTF-8, got {name!r}: rename the file")
    return name


def _three(values: object) -> object:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise ValueError(f"must be three numbers, one a channel, got {values!r}")
    return values


def _rising(shares: tuple[float, ...]) -> tuple[float, ...]:
    if not shares:
        raise ValueError("must name a share of the epochs at least; None is the cosine")
    bounds = (0.0, *shares, 1.0)
    if any(before >= after for before, after in pairwise(bounds)):
        raise ValueError(f"must rise between 0 and 1, got {shares}")
    return shares


AtLeast0 = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(ge=LEAST_TEMPERATURE)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
# of pixels in [0, 1]
Channels = Annotated[
    tuple[Fraction, Fraction, Fraction], Field(strict=False), BeforeValidator(_three)
]
PositiveChannels = Annotated[
    tuple[PositiveFraction, PositiveFraction, PositiveFraction],
    Field(strict=False),
    BeforeValidator(_three),
]
Milestones = Annotated[tuple[float, ...], Field(strict=False), AfterValidator(_rising)]


@checked
class Config:
    """One pretraining run. Equal configurations on equal data are the same run.

    Raises InputError where a value is of the wrong type, unknown or out of range.
    """

    name: Annotated[str, AfterValidator(_file_name)]  # its preset; says nothing about the numbers
    method: Annotated[str, one_of("method", METHODS)]
    data: Annotated[str, AfterValidator(_text)]  # a data set's name, see lib.data.load
    recipe: Annotated[str, one_of("recipe", RECIPES)]  # of the views
    epochs: AtLeast0  # passes over the pool; 0: the untrained encoder
    batch_size: Annotated[int, Field(ge=2)]  # images; a contrastive step sees two views of each
    learning_rate: Positive
    weight_decay: NotNegative  # on all parameters
    temperature: Temperature = 0.5  # of the contrastive losses; unused by ce
    # contrastive: SupContrast multiplies its loss by temperature / base_temperature
    base_temperature: Temperature | None = None
    # supcon: their mean outside the logarithm, or "in" it (lib.losses.sup_con)
    positives: Annotated[str, one_of("positives", POSITIVES)] = "out"
    label_smoothing: BelowOne = 0.0  # ce: the share of a target that goes to all classes alike
    # what is trained on; "unlabeled" where the data set has it, else train+val
    pool: Annotated[str, one_of("pool", POOLS)] = "train+val"
    # a stratified slice of so many labelled images; None: all
    images: Annotated[int, Field(ge=2)] | None = None
    size: Annotated[int, Field(ge=8)] | None = None  # side of a view, pixels; None: the data's
    mean: Channels | None = None  # normalisation per channel; None: the data set's
    std: PositiveChannels | None = None
    encoder: Annotated[str, one_of("encoder", ENCODERS)] = "resnet18"
    stem: Annotated[str, one_of("stem", STEMS)] = "cifar"
    head: Annotated[str, one_of("head", HEADS)] = "mlp"
    # dimensions of z; for a classifier the number of classes takes its place
    embedding: Annotated[int, Field(ge=1)] = 128
    optimiser: Annotated[str, one_of("optimiser", OPTIMISERS)] = "sgd"
    momentum: BelowOne = 0.9  # sgd only
    # linear, step by step; a schedule of less than twice as many epochs has a tenth of its own
    warmup_epochs: AtLeast0 = 0
    warmup_from: NotNegative = 0.0  # learning rate at the first step of the warm-up
    final_rate: NotNegative = 0.0  # the cosine's end, as a share of learning_rate
    first_epoch: int = 0  # what the cosine calls the first epoch: 0 (PyTorch) or 1 (SupContrast)
    # of the cosine's whole way, for a run that leaves it early; None: as many as the run has
    cosine_epochs: Annotated[int, Field(ge=1)] | None = None
    # the last ones, in which the rate falls on a line to final_rate, step by step
    cooldown_epochs: AtLeast0 = 0
    # instead of the cosine: the rate falls to a tenth at these shares of the epochs
    milestones: Milestones | None = None
    drop_last: bool = False  # leave out the last, smaller batch of an epoch
    # chunks of a batch, for less memory; BatchNorm sees one chunk at a time
    accumulate: Annotated[int, Field(ge=1)] = 1
    # bfloat16, float16: autocast, weights and sums in float32; auto: by the device
    precision: Annotated[str, one_of("precision", PRECISIONS)] = "float32"
    knn_every: AtLeast0 = 0  # kNN accuracy of h on val every so many epochs; 0: never
    # ce: accuracy on test every so many epochs, shown beside, choosing nothing
    test_every: AtLeast0 = 0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # of initialisation, order and views

    @model_validator(mode="after")
    def _settings_are_the_methods_own(self) -> "Config":
        changed = self.decisive
        for owner, method in METHODS.items():
            for field in method.settings:
                if owner != self.method and field in changed:
                    raise ValueError(f"{field} is a setting of {owner} alone, not of {self.method}")
        if METHODS[self.method].classifier and self.base_temperature is not None:
            raise ValueError(f"base_temperature is of the contrastive losses, not of {self.method}")
        return self

    @model_validator(mode="after")
    def _there_is_something_to_train(self) -> "Config":
        if METHODS[self.method].classifier and self.head == "none" and self.epochs:
            raise ValueError("cross-entropy needs a classifier: set head=linear")
        if self.encoder in BASELINES and (self.head != "none" or self.epochs):
            raise ValueError(
                f"the encoder '{self.encoder}' has nothing to train: set head=none and epochs=0"
            )
        return self

    @model_validator(mode="after")
    def _schedule_has_room(self) -> "Config":
        shaped = self.cosine_epochs is not None or self.cooldown_epochs
        if self.milestones and shaped:
            raise ValueError(
                "with milestones there is no cosine for cosine_epochs or cooldown_epochs to shape"
            )
        if self.cosine_epochs is not None and self.cosine_epochs < self.epochs:
            raise ValueError(
                f"cosine_epochs must be at least epochs, {self.epochs}, got {self.cosine_epochs}"
            )
        if self.cooldown_epochs and self.cooldown_epochs > self.epochs - self.warmup:
            raise ValueError(
                f"cooldown_epochs must be at most what the warm-up leaves of {self.epochs} epochs, "
                f"got {self.cooldown_epochs}"
            )
        return self

    @property
    def views(self) -> int:
        """Views of each image in a step."""
        return METHODS[self.method].views

    @property
    def schedule_epochs(self) -> int:
        """Of the run that the learning rate belongs to, which this one may leave early."""
        return self.cosine_epochs or self.epochs

    @property
    def warmup(self) -> float:
        """Epochs of warm-up that are done: a tenth of a schedule of less than twice as many."""
        if self.schedule_epochs >= 2 * self.warmup_epochs:
            return self.warmup_epochs
        return self.schedule_epochs / 10

    @property
    def factor(self) -> float:
        """What the loss is multiplied by: temperature / base_temperature; 1 where there is none."""
        return scale(self.temperature, self.base_temperature)

    @property
    def decisive(self) -> dict:
        """The fields that decide a run's numbers, where they are not at their default.

        So a new field changes no run's identity.
        """
        decisive = {}
        for field in fields(self)[1:]:  # all but the name
            value = getattr(self, field.name)
            if value != field.default:
                decisive[field.name] = value
        return decisive


FIELDS = frozenset(field.name for field in fields(Config)) - {"name"}


def difference(a: Config, b: Config) -> dict[str, tuple]:
    """The fields in which two runs differ, each with a's value and b's; their names apart."""
    pairs = {
        field.name: (getattr(a, field.name), getattr(b, field.name)) for field in fields(a)[1:]
    }
    return {name: (ours, theirs) for name, (ours, theirs) in pairs.items() if ours != theirs}


def fitting_batch(image_count: int) -> int:
    """A batch_size for so few images: the largest power of two that they fill twice, 2 at least."""
    return 2 ** max(1, (image_count // 2).bit_length() - 1)
