"""A run's identity: a hash of everything that decides its numbers."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import fields, replace

import torch

from lib.augmentations import RECIPES
from lib.config import COMPUTED, Config
from lib.data.dataset import Dataset
from lib.hardware import choose_precision, computes

NUMERICS = 1  # raise when a change makes earlier runs incomparable: it enters every run's identity


def identity(config: Config, dataset: Dataset) -> str:
    """The run's name: preset, epochs, seed, and a hash of everything that decides its numbers.

    The device does not.
    """
    unlike = unlike_first(config.recipe, recipe_content(config.recipe))
    text = json.dumps([config.decisive, dataset.fingerprint, NUMERICS, *unlike], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return f"{config.name}-e{config.epochs}-s{config.seed}-{digest}"


def computed_on(config: Config, device: torch.device) -> Config:
    """The configuration with the precision in which that device trains it.

    Where nothing is trained "auto" is float32 on every device, as features are measured in it.
    """
    if config.precision == "auto" and not config.epochs:
        return replace(config, precision="float32")
    return replace(config, precision=choose_precision(config.precision, device))


def furthest(
    config: Config, device: torch.device, steps: Callable[[Config], float | None]
) -> Config | None:
    """Where a configuration leaves its precision open, the run of it to go on with on a device.

    That in the device's own precision, finished or begun; else one that is finished; else, of those
    that the device can compute, the one with the most steps. None where nothing is begun, or where
    the precision is not "auto", which is never another one's run.

    steps: how many a run has taken; infinity where it is finished, None where it is not begun.
    """
    if not is_open(config):
        return None
    own = computed_on(config, device)
    if steps(own) is not None:
        return own

    found: dict[Config, float] = {}
    for precision in COMPUTED:
        run = replace(config, precision=precision)
        taken = steps(run)
        if taken is None:
            continue
        if taken == math.inf or computes(device, precision):
            found[run] = taken
    return max(found, key=found.__getitem__, default=None)


def is_open(config: Config) -> bool:
    """Whether the device decides the precision."""
    return config.precision == "auto" and config.epochs > 0


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
    """What views of that recipe are: its fields that are not at their default, as in JSON."""
    recipe = RECIPES[name]
    content = {}
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if value != field.default:
            content[field.name] = list(value) if isinstance(value, tuple) else value
    return content


def unlike_first(name: str, content: dict | None) -> list[str]:
    """The hash of a recipe's content where its name first stood for another; else nothing.

    content: None in older records, which are of the first kind.
    """
    if content is None:
        return []
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    return [] if FIRST_RECIPES.get(name) == digest else [digest]
