"""Named presets: SupContrast's, UvA's and ours, each number with its source.

An experiment is a preset plus a delta: ``preset("simclr-cifar10", epochs=100, seed=1)``.
"""

from dataclasses import replace

from lib import InputError, as_command, unknown
from lib.config import FIELDS, Config, difference


def preset(name: str, /, **changes) -> Config:
    """The preset of that name with some fields changed.

    With other data its normalisation is left to them, unless it is given.
    Raises InputError for an unknown preset or field, or a wrong value.
    """
    if name not in PRESETS:
        raise InputError(unknown("preset", name, PRESETS))
    for field in changes:
        if field not in FIELDS:
            raise InputError(unknown("field", field, sorted(FIELDS)))

    base = PRESETS[name]
    if changes.get("data", base.data) != base.data:
        changes = {"mean": None, "std": None, "images": None} | changes
    return replace(base, **changes)


def delta(config: Config) -> dict:
    """What differs from the preset of the same name, a shortened warm-up included.

    Nothing where there is no such preset.
    """
    base = PRESETS.get(config.name, config)
    changed = {field: ours for field, (ours, _) in difference(config, base).items()}
    if config.warmup != config.warmup_epochs:
        changed["warmup_epochs"] = config.warmup
    return changed


def command(config: Config) -> str:
    """The command that trains such a run."""
    base = PRESETS.get(config.name, config)
    changes = {field: value for field, (value, _) in difference(config, base).items()}
    words = ["pretrain", config.name]
    if "data" in changes:  # --set would take some names for numbers
        words += ["--data", changes.pop("data")]
    for field, value in changes.items():
        words += ["--set", f"{field}={value}"]
    return as_command(*words)


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
    warmup_from=0.01,  # forced there where batch_size > 256; here at any
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


# the embedded default: 1,438 handwritten digits train in seconds
_DIGITS = replace(
    _SLIM,
    name="simclr-digits",
    data="digits",
    recipe="digits",
    images=None,
    epochs=10,
    batch_size=128,
)


# the book's live data: seconds of training, with a shortcut that the recipe takes away
_TINTED = replace(_DIGITS, name="simclr-tinted-digits", data="tinted-digits", recipe="tinted")


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
    *_slim_family(_TINTED, ce_knn=5),
)
PRESETS = {config.name: config for config in _PRESETS}
