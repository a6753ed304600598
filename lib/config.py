"""A run, described completely: frozen configurations, named presets, and the sources of their
numbers.

An experiment is a preset plus a delta: ``preset("simclr-cifar10", epochs=100, seed=1)``.
"""

import ast
import difflib
import hashlib
import json
import math
import re
from dataclasses import dataclass, fields, replace

from lib import InputError
from lib.augmentations import RECIPES
from lib.encoders import BASELINES, ENCODERS, HEADS, STEMS
from lib.losses import POSITIVES, scale

METHODS = ("simclr", "supcon", "ce")
OPTIMISERS = ("sgd", "adamw")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
POOLS = ("train", "train+val", "unlabeled")


@dataclass(frozen=True)
class Config:
    """One pretraining run. Equal configurations on equal data are the same run.

    Raises InputError where a value is of the wrong type, unknown or out of range.
    """

    name: str  # the preset it started from; says nothing about what is computed
    method: str  # simclr, supcon or ce (cross-entropy)
    data: str  # a data set's name, see lib.data.load
    recipe: str  # the views' recipe, see lib.augmentations.RECIPES
    epochs: int  # passes over the pool; 0: the untrained encoder
    batch_size: int  # images; a contrastive step sees two views of each
    learning_rate: float
    weight_decay: float  # on all parameters
    temperature: float = 0.5  # of the contrastive losses; unused by ce
    # SupContrast multiplies its loss by temperature / base_temperature
    base_temperature: float | None = None
    # supcon: their mean outside the logarithm, or "in" it (lib.losses.sup_con)
    positives: str = "out"
    label_smoothing: float = 0.0  # ce: the share of each target that goes to all classes alike
    # what is trained on; "unlabeled" where the data set has it, else train+val
    pool: str = "train+val"
    images: int | None = None  # a stratified slice of so many labelled images; None: all
    size: int | None = None  # side of a view in pixels; None: the data set's
    mean: tuple[float, ...] | None = None  # normalisation per channel; None: the data set's
    std: tuple[float, ...] | None = None
    encoder: str = "resnet18"
    stem: str = "cifar"
    head: str = "mlp"
    embedding: int = 128  # dimensions of z; for ce the number of classes takes its place
    optimiser: str = "sgd"
    momentum: float = 0.9  # sgd only
    warmup_epochs: int = 0  # linear, step by step; runs shorter than twice this warm up for a tenth
    warmup_from: float = 0.0  # learning rate at the first step of the warm-up
    final_rate: float = 0.0  # the cosine's end, as a share of learning_rate
    first_epoch: int = 0  # what the cosine calls the first epoch: 0 (PyTorch) or 1 (SupContrast)
    # instead of the cosine: the rate falls to a tenth at these shares
    milestones: tuple[float, ...] | None = None
    drop_last: bool = False  # leave out the last, smaller batch of an epoch
    accumulate: int = 1  # chunks of a batch, for less memory; BatchNorm sees one chunk at a time
    # bfloat16, float16: autocast, weights and sums in float32; auto: by the device
    precision: str = "float32"
    knn_every: int = 0  # kNN accuracy of h on val every so many epochs; 0: never
    test_every: int = 0  # ce: accuracy on test every so many epochs, shown beside, choosing nothing
    seed: int = 0  # of initialisation, order and views

    def __post_init__(self):
        for field in fields(self):
            object.__setattr__(
                self, field.name, _typed(field.name, field.type, getattr(self, field.name))
            )
        for name, known in (
            ("method", METHODS),
            ("recipe", RECIPES),
            ("encoder", ENCODERS),
            ("stem", STEMS),
            ("head", HEADS),
            ("optimiser", OPTIMISERS),
            ("precision", PRECISIONS),
            ("pool", POOLS),
            ("positives", POSITIVES),
        ):
            if getattr(self, name) not in known:
                raise InputError(unknown(name, getattr(self, name), known))
        lowest = {
            "epochs": 0,
            "batch_size": 2,
            "seed": 0,
            "warmup_epochs": 0,
            "weight_decay": 0,
            "embedding": 1,
            "knn_every": 0,
            "test_every": 0,
            "final_rate": 0,
            "warmup_from": 0,
            "images": 2,
            "size": 8,
            "accumulate": 1,
        }
        for name, bound in lowest.items():
            if getattr(self, name) is not None and getattr(self, name) < bound:
                raise InputError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if not all(
                math.isfinite(v)
                for v in (value if isinstance(value, tuple) else (value,))
                if isinstance(v, float)
            ):
                raise InputError(f"{field.name} must be finite, got {value}")
        positive = {
            "learning_rate": self.learning_rate,
            "temperature": self.temperature,
            "base_temperature": self.base_temperature,
            "std": min(self.std or (1.0,)),
        }
        for name, value in positive.items():
            if value is not None and value <= 0:
                raise InputError(f"{name} must be greater than 0, got {value}")
        for name in ("momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.seed >= 2**63:
            raise InputError(f"seed must be below 2**63, got {self.seed}")
        if not re.fullmatch(r"[\w.-]+", self.name) or self.name.startswith("."):
            raise InputError(f"name must be letters, digits, '_', '.' and '-', got {self.name!r}")
        shares = (0.0, *(self.milestones or ()), 1.0)
        if any(a >= b for a, b in zip(shares, shares[1:])):
            raise InputError(f"milestones must rise between 0 and 1, got {self.milestones}")
        if self.test_every and self.method != "ce":
            raise InputError(f"test_every follows a classifier: only ce has one, not {self.method}")
        if self.positives != "out" and self.method != "supcon":
            raise InputError(f"positives is a choice of supcon's alone, not of {self.method}")
        if self.method == "ce" and self.head == "none" and self.epochs:
            raise InputError("cross-entropy needs a classifier: set head=linear")
        if self.label_smoothing and self.method != "ce":
            raise InputError(
                f"label_smoothing softens the targets of ce alone, {self.method} has none"
            )
        if self.encoder in BASELINES and (self.head != "none" or self.epochs):
            raise InputError(
                f"the encoder '{self.encoder}' has nothing to train: set head=none and epochs=0"
            )

    @property
    def warmup(self) -> float:
        """Epochs of warm-up that are really done: a run shorter than twice warmup_epochs warms up
        for a tenth."""
        return self.warmup_epochs if self.epochs >= 2 * self.warmup_epochs else self.epochs / 10

    @property
    def delta(self) -> dict:
        """What differs from the preset of the same name, a shortened warm-up included; nothing
        where there is none."""
        shortened = {"warmup_epochs": self.warmup} if self.warmup != self.warmup_epochs else {}
        return {
            field: ours
            for field, (ours, _) in difference(self, PRESETS.get(self.name, self)).items()
        } | shortened

    @property
    def decisive(self) -> dict:
        """The fields that decide a run's numbers and are not at their default, so that a new field
        changes none."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "name" and getattr(self, field.name) != field.default
        }

    @property
    def factor(self) -> float:
        """What the loss is multiplied by: temperature / base_temperature; 1 where there is none."""
        return scale(self.temperature, self.base_temperature)

    @property
    def views(self) -> int:
        """Views of each image in a step: two for the contrastive losses, one for cross-entropy."""
        return 1 if self.method == "ce" else 2


# What the recipes' names stood for when the first records were made
FIRST_RECIPES = {
    "supcontrast": "69ebc3cdad",
    "crop-flip": "d57c59c8de",
    "uva": "164325d451",
    "uva-sharp": "b227e8301f",
    "uva-supervised": "7a75b8fef5",
    "digits": "e62aff79f5",
    "none": "44136fa355",
}


def recipe_content(name: str) -> dict:
    """The fields of a recipe that are not at their default, as in JSON: what views of that name
    are."""
    values = {
        field.name: (getattr(RECIPES[name], field.name), field.default)
        for field in fields(RECIPES[name])
    }
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, (value, default) in values.items()
        if value != default
    }


def unlike_first(name: str, content: dict | None) -> list[str]:
    """Nothing where a recipe's content is what its name first stood for (None: in older records),
    else its hash."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    return [] if content is None or FIRST_RECIPES.get(name) == digest else [digest]


FIELDS = frozenset(field.name for field in fields(Config)) - {"name"}


def fitting_batch(images: int) -> int:
    """A batch_size for so few images: the largest power of two that they fill twice, 2 at least."""
    return 2 ** max(1, (images // 2).bit_length() - 1)


def unknown(what: str, value, known) -> str:
    """One sentence for an unknown name, with the nearest known ones."""
    names = list(map(str, known))
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = [f"did you mean '{name}'?" for name in near]
    if not near or len(names) <= 5:  # of a few, all are told: the nearest may mean the opposite
        hint.append(f"known: {', '.join(names[:30])}" + ", ..." * (len(names) > 30))
    return f"unknown {what} '{value}'; {' '.join(hint)}"


def _typed(name: str, kind, value):
    """The value as the field's type; an int serves as a float, a list as a tuple."""
    if isinstance(value, (list, tuple)):
        value = tuple(float(v) if type(v) is int else v for v in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    wanted = tuple if "tuple" in str(kind) else kind
    optional = value is None and "None" in str(kind)
    if not (optional or isinstance(value, wanted)) or (
        isinstance(value, bool) and kind is not bool
    ):
        raise InputError(f"{name} must be {getattr(kind, '__name__', kind)}, got {value!r}")
    if isinstance(value, tuple) and not all(isinstance(v, float) for v in value):
        raise InputError(f"{name} must be numbers, got {value!r}")
    if name in ("mean", "std") and value and len(value) != 3:
        raise InputError(f"{name} must be three numbers, one a channel, got {value!r}")
    return value


def difference(a: Config, b: Config) -> dict[str, tuple]:
    """The fields in which two runs differ, each with a's value and b's; their names apart."""
    pairs = {
        field.name: (getattr(a, field.name), getattr(b, field.name)) for field in fields(Config)[1:]
    }
    return {name: (ours, theirs) for name, (ours, theirs) in pairs.items() if ours != theirs}


def preset(name: str, /, **delta) -> Config:
    """The preset of that name with some fields changed; with other data its normalisation too,
    unless it is given.

    Raises InputError for an unknown preset or field.
    """
    if name not in PRESETS:
        raise InputError(unknown("preset", name, PRESETS))
    for field in delta:
        if field not in FIELDS:
            raise InputError(unknown("field", field, sorted(FIELDS)))
    own = (
        {}
        if delta.get("data", PRESETS[name].data) == PRESETS[name].data
        else {"mean": None, "std": None}
    )
    return replace(PRESETS[name], **own | delta)


def parse(assignments: list[str]) -> dict:
    """``["epochs=5", "data=mine"]`` as a delta: numbers, None, True and tuples as in Python, the
    rest as text."""
    delta = {}
    for assignment in assignments:
        field, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"--set takes field=value, got '{assignment}'")
        try:
            delta[field] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            delta[field] = text
    return delta


# --------------------------------------------------------------------------------------------------
# SupContrast, main_supcon.py and losses.py at 66a8fe5, and its README
_SUPCONTRAST = Config(
    name="supcon-cifar10",
    method="supcon",
    data="cifar10",
    recipe="supcontrast",
    epochs=1000,
    batch_size=1024,
    learning_rate=0.5,
    weight_decay=1e-4,
    momentum=0.9,
    optimiser="sgd",  # README; the script's own default is .05
    temperature=0.1,  # README
    base_temperature=0.07,  # losses.py: the loss times 1.43
    warmup_epochs=10,
    warmup_from=0.01,  # forced where batch_size > 256; a smaller one keeps them here
    final_rate=0.1**3,
    first_epoch=1,  # eta_min = lr * 0.1^3, epochs from 1
    encoder="resnet50",
    stem="cifar",
    head="mlp",
    embedding=128,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
    precision="auto",
)

# UvA deep-learning tutorial 17 at 0da8037: SimCLR on STL-10's unlabeled images
_UVA = Config(
    name="simclr-stl10",
    method="simclr",
    data="stl10",
    recipe="uva",
    pool="unlabeled",
    epochs=500,
    batch_size=256,
    drop_last=True,
    learning_rate=5e-4,
    weight_decay=1e-4,
    optimiser="adamw",
    temperature=0.07,
    final_rate=1 / 50,  # CosineAnnealingLR to lr / 50, by epoch
    encoder="resnet18",
    stem="imagenet",
    head="mlp",
    embedding=128,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    precision="auto",
    seed=42,
)

# Ours: slices for a CPU. AdamW and a slim encoder, because there are only some hundred steps. The
# same values for all three methods, but for the temperature; none was tuned.
_SLIM = Config(
    name="simclr-cifar10-slim",
    method="simclr",
    data="cifar10",
    recipe="supcontrast",
    pool="train",
    images=10_000,
    epochs=20,
    batch_size=256,
    drop_last=True,
    learning_rate=2e-3,
    weight_decay=1e-4,
    optimiser="adamw",
    temperature=0.5,
    warmup_epochs=1,
    encoder="slim",
    knn_every=5,
)

# the embedded default: 1,437 handwritten digits train in seconds
_DIGITS = replace(
    _SLIM,
    name="simclr-digits",
    data="digits",
    recipe="digits",
    images=None,
    epochs=10,
    batch_size=128,
)

# the stand-in of STL-10's kind, seen at 64 pixels
_SLIM96 = replace(
    _SLIM,
    name="simclr-imagenette96-slim",
    data="imagenette96",
    recipe="uva",
    images=4_000,
    batch_size=128,
    size=64,
    stem="imagenet",
)

# Ours: what two CPU cores can learn of all of CIFAR-10. SGD as in SupContrast; where the entry
# "tuning" of book/experiments.yml starts to look for rates and batches. base_temperature is the
# preset's own temperature: the factor on the loss is 1, and cancels what another temperature does
# to the size of a step.
_RESNET9 = Config(
    name="simclr-cifar10-resnet9",
    method="simclr",
    data="cifar10",
    recipe="supcontrast",
    pool="train",
    epochs=100,
    batch_size=256,
    drop_last=True,
    learning_rate=0.5,
    weight_decay=1e-4,
    optimiser="sgd",
    temperature=0.5,
    base_temperature=0.5,
    warmup_epochs=1,
    encoder="resnet9",
    precision="auto",
)
_RESNET9_FAMILY = (
    _RESNET9,
    replace(
        _RESNET9,
        name="supcon-cifar10-resnet9",
        method="supcon",
        learning_rate=0.2,
        temperature=0.1,
        base_temperature=0.1,
    ),
    # one view, so twice the epochs, of the warm-up too: as many image passes as the contrastive
    # runs
    replace(
        _RESNET9,
        name="ce-cifar10-resnet9",
        method="ce",
        epochs=200,
        learning_rate=0.1,
        base_temperature=None,
        warmup_epochs=2,
        head="linear",
    ),
)

# UvA's setup on a data set that can be had offline, at a size that two CPU cores can train for 500
# epochs
_UVA_RESNET9 = replace(
    _UVA,
    name="simclr-imagenette96-resnet9",
    data="imagenette96",
    pool="train",
    size=64,
    encoder="resnet9",
    seed=0,
)


def _slim_family(simclr: Config, ce_knn: int) -> tuple[Config, ...]:
    """The same slice for SimCLR, SupCon and cross-entropy."""
    data = simclr.name.removeprefix("simclr-")
    return (
        simclr,
        replace(simclr, name=f"supcon-{data}", method="supcon", temperature=0.1),
        # one view, so twice the epochs: as many image passes as the contrastive runs
        replace(
            simclr,
            name=f"ce-{data}",
            method="ce",
            epochs=2 * simclr.epochs,
            head="linear",
            knn_every=ce_knn,
        ),
    )


_PUBLISHED = (
    _SUPCONTRAST,
    # SupContrast main_supcon.py --method SimCLR --temp 0.5: the loss times 7.14
    replace(_SUPCONTRAST, name="simclr-cifar10", method="simclr", temperature=0.5),
    # SupContrast main_ce.py: one view, crop and flip only, lr 0.8, 500 epochs
    replace(
        _SUPCONTRAST,
        name="ce-cifar10",
        method="ce",
        recipe="crop-flip",
        epochs=500,
        learning_rate=0.8,
        head="linear",
        base_temperature=None,
        test_every=1,
    ),
)

_PRESETS = (
    *_PUBLISHED,
    *(replace(config, name=f"{config.name}-r18", encoder="resnet18") for config in _PUBLISHED),
    # the student report: main_supcon.py --batch_size 1024 --learning_rate 0.5 --temp 0.1 --cosine,
    # for 100 epochs
    replace(_SUPCONTRAST, name="supcon-cifar10-report", epochs=100),
    _UVA,
    # the student report: simclr.py --epochs 100, with a cosine of its own
    replace(_UVA, name="simclr-stl10-100", epochs=100),
    # UvA tutorial 17's supervised baseline: ResNet-18 from scratch on the 5,000 labelled images
    replace(
        _UVA,
        name="ce-stl10",
        method="ce",
        recipe="uva-supervised",
        pool="train+val",
        epochs=100,
        batch_size=64,
        learning_rate=1e-3,
        weight_decay=2e-4,
        milestones=(0.7, 0.9),
        head="linear",
        test_every=2,
    ),
    *_RESNET9_FAMILY,
    _UVA_RESNET9,
    replace(
        _UVA_RESNET9,
        name="ce-imagenette96-resnet9",
        method="ce",
        recipe="uva-supervised",
        epochs=100,
        batch_size=64,
        learning_rate=1e-3,
        weight_decay=2e-4,
        milestones=(0.7, 0.9),
        head="linear",
    ),
    *_slim_family(_SLIM, ce_knn=10),
    *_slim_family(_SLIM96, ce_knn=10),
    *_slim_family(_DIGITS, ce_knn=5),
)
PRESETS = {config.name: config for config in _PRESETS}
