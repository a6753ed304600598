"""Odd inputs: data sets, folders and parameters of every kind, held against what must be true.

A case is refused in a sentence, or what is made of it keeps its promises: every class in every
part that can have it, views of the size of other views, every picture once and in its class.
"""

import argparse
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from PIL import Image
from torch import Tensor

from lib import InputError
from lib.augmentations import views
from lib.data import Dataset, build, folders, pictures
from lib.data.dataset import LEVEL
from lib.data.oddities import oddities
from lib.evaluation import linear_probe
from lib.presets import preset
from lib.settings import load_profile
from lib.training import recipe_for
from stress.cases import count_and_keep, show

SIDES = (8, 8, 8, 12, 17)
SCALES = (0.0, 0.0, 0.002, 0.02, 0.3, 1.0)  # of a channel's noise; 1 covers all levels
SIZES = (1, 2, 2, 3, 3, 4, 9, 30)  # of a class
LARGEST_VIEW = 1 / LEVEL  # deviations of a pixel: none is divided by less than a level of 8 bits
NAMES = (
    "cats",
    "dogs",
    "Ünlü",
    "猫",
    "a b",
    "train",
    "Training",
    "test",
    "val",
    "unlabeled",
    ".x",
    "x.png",
)
SUFFIXES = (".png", ".PNG", ".jpg", ".txt", "")
# of parameters of chapters that are numbers
LEAST = {"epochs": 1, "ce_epochs": 1, "seeds": 1, "ratio": 2, "batch_size": 1, "images": 1}
VALUES = (0, 1, 2, -1, 1.5, True, None, "2", "abc", "", [], [1], {}, "auto", 10**30)
TINY = preset("simclr-digits", encoder="pixels", head="none", epochs=0, data="odd", images=None)


def data_set(draw: random.Random, folder: Path) -> str | None:
    """A data set of odd channels, sides and classes, a slice of it, its views and a probe."""
    height = width = draw.choice(SIDES)
    if draw.random() < 0.3:
        width = draw.choice(SIDES)
    counts = [draw.choice(SIZES) for _ in range(draw.randint(2, 6))]
    y = np.repeat(np.arange(len(counts)), counts)
    draw.shuffle(y)
    scales = np.array([draw.choice(SCALES) for _ in range(3)])
    noise = np.random.default_rng(draw.getrandbits(32)).uniform(-1, 1, (len(y), height, width, 3))
    x = (127.5 + 127.5 * scales * noise).round().astype(np.uint8)
    tested = slice(draw.randint(1, len(y)))

    dataset = build("odd", x, y, x[tested], y[tested])
    sliced = dataset.take(draw.choice((None, draw.randint(1, len(y)))))
    oddities(sliced)
    for whole in (dataset, sliced):
        wrong = _lacks_a_class(whole)
        if wrong:
            return wrong
    recipe = recipe_for(replace(TINY, recipe=draw.choice(("supcontrast", "uva"))), sliced)
    made = views(sliced.train.images, replace(recipe, blur_kernel=3), seed=0, step=0)
    if not made.isfinite().all() or made.abs().max() > LARGEST_VIEW:
        return f"a view has {float(made.abs().max())}"
    return _probed(sliced)


def _lacks_a_class(dataset: Dataset) -> str | None:
    for name in ("train", "val"):
        count = dataset.splits[name].labels.bincount(minlength=len(dataset.classes))
        if count.min() == 0:
            return f"{name} of {dataset.counts} lacks a class"
    return None


def _probed(dataset: Dataset) -> str | None:
    """The linear probe on pixels: its weights are numbers."""

    def labelled(name: str) -> tuple[Tensor, Tensor]:
        split = dataset.splits[name]
        return split.images.flatten(1).float() / 255, split.labels

    probe, _ = linear_probe(labelled("train"), labelled("val"), len(dataset.classes))
    if not probe.weight.isfinite().all():
        return "the probe has weights that are no numbers"
    return None


def tree(draw: random.Random, folder: Path) -> str | None:
    """A folder of folders, pictures, other files and links that lead everywhere."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        root = Path(place) / "root"
        made = [root]
        images: list[Path] = []
        for name in ("cats", "dogs"):  # enough of each for a data set
            (root / name).mkdir(parents=True)
            made.append(root / name)
            for number in range(3):
                images.append(root / name / f"first{number}.png")
                Image.new("RGB", (9, 8)).save(images[-1])
        for number in range(draw.randint(3, 25)):
            parent = draw.choice(made)
            kind = draw.random()
            if kind < 0.35:
                path = parent / draw.choice(NAMES)
                if not path.exists():
                    path.mkdir()
                    made.append(path)
            elif kind < 0.5:
                target = draw.choice([*made, root / "nowhere", root.parent, Path("..")])
                (parent / f"link{number}").symlink_to(target)
            else:
                path = parent / f"{number}{draw.choice(SUFFIXES)}"
                Image.new("RGB", (9, 8), (number, 2 * number, 255 - number)).save(path, "PNG")
                images.append(path)
        return _listed_rightly(root, images)


def _listed_rightly(root: Path, images: list[Path]) -> str | None:
    """Every image at most once, and all that are seen or told of are there."""
    listing = folders.find(root)
    real = Counter(os.path.realpath(item.source) for item in listing.items)
    twice = [path for path, times in real.items() if times > 1]
    if twice:
        return f"read {real[twice[0]]} times: {Path(twice[0]).relative_to(root)}"

    visible = []
    for path in images:
        is_hidden = any(name.startswith(".") for name in path.relative_to(root).parts)
        if not is_hidden and path.suffix.lower() in folders.SUFFIXES:
            visible.append(path)
    missing = [path for path in visible if os.path.realpath(path) not in real]
    if missing and not any("left out" in note for note in listing.notes):
        return f"not read and not told of: {missing[0].relative_to(root)}"
    for item in listing.items:
        if item.label >= 0 and listing.classes[item.label] not in Path(item.name).parts:
            return f"{item.name} is taken for {listing.classes[item.label]}"
    return _made(root, images)


def _made(root: Path, images: list[Path]) -> str | None:
    """The data set of it: as many images, each class in train."""
    counts, report = pictures.make(root, 8, root.parent / "made.npz")
    if sum(counts.values()) + len(report.skipped) > len(images):
        return f"{counts} of {len(images)} images"
    return None


def parameters(draw: random.Random, folder: Path) -> str | None:
    """A profile whose parameters have odd values: what is taken is a number of at least its least.

    Or a name that there is.
    """
    given = {name: draw.choice(VALUES) for name in draw.sample(sorted(LEAST), 1)}
    (folder / "odd.yml").write_text(yaml.safe_dump({"common": given}), encoding="utf-8")
    taken = load_profile("odd", folder).common
    for name, value in taken.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value < LEAST[name]:
            return f"{name} is {value!r}"
    return None


KINDS: dict[str, Callable[[random.Random, Path], str | None]] = {
    "data sets": data_set,
    "folder trees": tree,
    "parameters": parameters,
}


class Outcome(NamedTuple):
    """What became of a case: refused in a sentence, or taken; and what is wrong with that."""

    refused: bool
    wrong: str | None


def tried(kind: str, draw: random.Random, folder: Path) -> Outcome:
    """What becomes of a case of a kind."""
    try:
        return Outcome(False, KINDS[kind](draw, folder))
    except InputError as error:
        return Outcome(True, None if str(error) else "an InputError that says nothing")
    except Exception as error:
        return Outcome(False, f"{type(error).__name__}: {error}")


def rows_of(cases: int, folder: Path, seed: int) -> list[dict]:
    """Every kind, so many cases of each; printed, with the first that went wrong."""
    rows = []
    for kind in KINDS:
        refused = 0
        wrong: dict[int, str] = {}
        for number in range(cases):
            outcome = tried(kind, random.Random(f"{seed} {kind} {number}"), folder)
            refused += outcome.refused
            if outcome.wrong:
                wrong[number] = outcome.wrong
        counts = {"cases": cases, "refused": refused, "wrong": len(wrong)}
        rows.append(show({"fault": "inputs", "what": kind} | counts))
        for number, answer in list(wrong.items())[:9]:
            print(f"    case {number}: {answer[:200]}")
    return rows


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m stress inputs``."""
    parser.add_argument("--cases", type=int, default=1_000, help="of each kind")


def run(args: argparse.Namespace) -> None:
    """Make, count, print, keep the record."""
    count_and_keep("inputs", lambda folder: rows_of(args.cases, folder, args.seed), args)
