"""What a page that makes views starts from: pictures and recipes.

Written into the site when it is built, as a script of its own, so that only who asks for it waits
for it: two photographs that come with scikit-learn, made smaller, and a tinted digit.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision.transforms.v2 import functional

from lib import figures
from lib.augmentations import RECIPES, Recipe
from lib.data import load

SIDE = 256  # pixels of a photograph; a view of it has 96
DIGIT = 13  # the chapter's
CUT = "from scikit-learn; here cut, made smaller and augmented"
CREDITS = {
    "dahlia": f"Photograph: flower.jpg by vultilion, CC BY 2.0, {CUT}.",
    "pagoda": f"Photograph: china.jpg by danielbuechele, CC BY 2.0, {CUT}.",
    "digit": "Digit from scikit-learn, here in a random hue.",
}
# Chapter 1's five, and what it says of them. SimCLR's paper blurs every second view.
RECIPE_NAMES = {
    "paper": "SimCLR's paper",
    "uva": "UvA tutorial",
    "supcontrast": "SupContrast",
    "crop-flip": "SupContrast's cross-entropy",
    "tinted": "ours for tinted digits",
}
PAPER = replace(RECIPES["uva"], jitter=(0.8, 0.8, 0.8, 0.2))


def photograph(name: str, left: int) -> Tensor:
    """A square of one of scikit-learn's photographs: (3, 256, 256) uint8."""
    pixels = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)
    return functional.resize(pixels[:, :, left : left + 427], [SIDE, SIDE])


def pictures() -> dict[str, Tensor]:
    """By the word for each: (3, H, W) uint8. The photographs are cut as in the chapter."""
    return {
        "dahlia": photograph("flower.jpg", 95),
        "pagoda": photograph("china.jpg", 0),
        "digit": load("tinted-digits").train.images[DIGIT],
    }


def recipes() -> dict[str, Recipe]:
    """The recipes that can be chosen."""
    return {name: PAPER if name == "paper" else RECIPES[name] for name in RECIPE_NAMES}


def described(recipe: Recipe) -> dict[str, Any]:
    """A recipe as augment.js draws by it. blurred: the share of views that are, where any is."""
    return {
        "crop": recipe.crop_scale,
        "ratio": recipe.crop_ratio,
        "flip": recipe.flip,
        "jitter": recipe.jitter,
        "jittered": recipe.jitter_probability,
        "grey": recipe.greyscale,
        "kernel": recipe.blur_kernel,
        "sigma": recipe.blur_sigma,
        "blurred": 1,
    }


def _chosen(name: str, recipe: Recipe) -> dict[str, Any]:
    blurred = 0.5 if name == "paper" else 1
    return described(recipe) | {"name": RECIPE_NAMES[name], "blurred": blurred}


def script() -> str:
    """Assigns to Play.data.photographs: pictures, each with the side of its views and its source,
    and recipes."""
    value = {
        "pictures": {
            word: {
                "source": figures.sheet(pixels[None]),
                "size": min(96, pixels.shape[-1]),
                "credit": CREDITS[word],
            }
            for word, pixels in pictures().items()
        },
        "recipes": {name: _chosen(name, recipe) for name, recipe in recipes().items()},
    }
    return f"Play.data.photographs = {json.dumps(value)};\n"


def write(folder: Path) -> None:
    """Write photographs.js into a folder."""
    (folder / "photographs.js").write_text(script(), encoding="utf-8")
