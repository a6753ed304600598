"""Where pictures come from: a folder, an .npz, a Hugging Face data set on disk, a single file.
Nothing is decoded here.

A folder follows torchvision's ImageFolder: ``root/CLASS/*.jpg``, or ``root/train/CLASS`` and
``root/test/CLASS``, with ``root/unlabeled`` beside.
"""

import difflib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lib import InputError, data, needed
from lib.config import unknown

SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".webp",
    ".avif",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
}
SPLITS = {
    "train": ("train",),
    "test": ("test", "val", "validation"),  # folders and splits, in any case of letters:
    "unlabeled": ("unlabeled", "unlabelled"),
}  # the first that is there is taken


@dataclass(frozen=True)
class Item:
    """An image to be read: its name, split, class (-1: none), and a file, pixels, or a function
    that returns bytes."""

    name: str
    split: str
    label: int
    source: object


@dataclass(frozen=True)
class Found:
    """The images of a source, its classes' names, and lines about what in it was not taken as one
    might expect."""

    items: list[Item]
    classes: list[str]
    notes: list[str]


def find(source: Path) -> Found:
    """The images of a folder, an .npz or a Hugging Face data set on disk; nothing is decoded.

    A folder without classes, or a single file, is unlabeled images. Raises InputError where there
    is no image, or test has other classes.
    """
    if source.is_file() and source.suffix.lower() in SUFFIXES:
        return Found([Item(source.name, "unlabeled", -1, source)], [], [])
    if source.suffix == ".npz":
        found = _from_npz(data.load(source.stem, source.parent))
    elif not source.is_dir():
        raise InputError(f"{source} is neither a folder, nor a picture, nor an .npz file")
    elif any((source / name).is_file() for name in ("dataset_dict.json", "state.json")):
        found = _from_huggingface(source)
    else:
        try:
            found = _from_folder(source)
        except OSError as error:
            raise InputError(f"can't read {error.filename} ({error.strerror})") from error
    if not found.items:
        raise InputError(
            "; ".join([f"{source} holds no images ({', '.join(sorted(SUFFIXES))})", *found.notes])
        )
    return found


def _files(folder: Path) -> list[Path]:
    """All files below a folder, in order, through links as ImageFolder does; not what is hidden."""
    found = []
    for where, folders, names in os.walk(folder, followlinks=True):
        here = Path(where)
        loop = here.parent.resolve().is_relative_to(here.resolve())  # a link to a folder above
        folders[:] = [] if loop else [name for name in folders if not name.startswith(".")]
        found += [] if loop else [here / name for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _splits(names: Iterable[str]) -> dict[str, str]:
    """The splits among the names: ours -> theirs."""
    there = {name.lower(): name for name in sorted(names)}
    first = {
        ours: next((name for name in known if name in there), None)
        for ours, known in SPLITS.items()
    }
    return {ours: there[name] for ours, name in first.items() if name}


def _from_folder(root: Path) -> Found:
    folders = {path.name for path in root.iterdir() if path.is_dir()}
    parted = {
        name for name in folders if any(path.is_dir() for path in (root / name).glob("[!.]*"))
    }
    named = _splits(folders)
    if named.get("train") not in parted:  # a class may be of trains
        if named.get("test") in parted:
            raise InputError(
                f"{root} has {named['test']}/ with classes and no train/: move the other classes "
                "there"
            )
        named = {"train": ""} | {
            split: name for split, name in named.items() if split == "unlabeled"
        }
    files = _files(root)
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    below = {
        path: (split, path.relative_to(root / name).parts)  # where two claim it, the last one's
        for split, name in named.items()
        for path in images
        if path.is_relative_to(root / name)
    }
    classes = sorted(
        {parts[0] for split, parts in below.values() if split == "train" and len(parts) > 1}
    )
    places = {name: place for place, name in enumerate(classes)}
    items, notes = (
        [],
        [
            f"{name}/ is taken for test"
            for name in [named.get("test", "")]
            if name not in ("", "test")
        ],
    )
    notes += [
        f"{name} is taken for a class; for images of none there is unlabeled/, beside the classes "
        "or train/"
        for name in difflib.get_close_matches("unlabeled", map(str.lower, classes), cutoff=0.8)
    ]
    for path, (split, parts) in below.items():
        label = -1 if split == "unlabeled" else places.get(parts[0], -1)
        if split == "test" and label < 0:
            raise InputError(
                f"{path}: {unknown('class', parts[0], classes)} (of {root / named['train']})"
            )
        items.append(
            Item(str(path.relative_to(root)), split if label >= 0 else "unlabeled", label, path)
        )
    outside = [str(path.relative_to(root)) for path in images if path not in below]
    if outside:
        more = f" and {len(outside) - 1} more" * (len(outside) > 1)
        notes.append(f"left out, as not below {'/, '.join(named.values())}/: {outside[0]}{more}")
    kinds = Counter(
        path.suffix.lower() or path.name for path in files if path.suffix.lower() not in SUFFIXES
    )
    if kinds:
        notes.append(
            "left out, as no images by their ending: "
            + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        )
    return Found(items, classes, notes)


def _from_npz(dataset: data.Dataset) -> Found:
    pool, items = dataset.pool("train+val"), []
    parts = {
        "train": pool[pool.places.argsort()],
        "test": dataset.test,
        "unlabeled": dataset.unlabeled,
    }
    for split, part in ((split, part) for split, part in parts.items() if part is not None):
        labels = [-1] * len(part) if part.labels is None else part.labels.tolist()
        items += [
            Item(f"{split} {place}", split, label, part.images[place].permute(1, 2, 0).numpy())
            for place, label in enumerate(labels)
        ]
    return Found(items, list(dataset.classes), [])


def _from_huggingface(folder: Path) -> Found:
    library, items = needed("datasets", "huggingface"), []
    try:
        parts = library.load_from_disk(str(folder))
        parts = parts if isinstance(parts, dict) else {"train": parts}
        kinds = parts["train"].features
        image, label = (
            next(key for key, kind in kinds.items() if isinstance(kind, wanted))
            for wanted in (library.Image, library.ClassLabel)
        )
        used = sorted(
            {number for number in parts["train"][label] if number >= 0}
        )  # a part of a data set keeps
        places = {
            number: place for place, number in enumerate(used)
        }  # the names of all its classes
        named = _splits(parts)
        for split, name in named.items():
            part = parts[name].cast_column(image, library.Image(decode=False))
            labels = [-1] * len(part) if split == "unlabeled" else part[label]
            items += [
                Item(
                    f"{name} {place}",
                    split if number >= 0 else "unlabeled",
                    places.get(number, -1),
                    partial(_stored, part, image, place),
                )
                for place, number in enumerate(labels)
            ]
    except Exception as error:  # of datasets, arrow, or a column that is not there
        raise InputError(
            f"{folder} is no data set with a split 'train', a column of images and one of classes "
            f"({' '.join(str(error).split())[:100]})"
        ) from error
    strange = [item.name for item in items if item.split == "test" and item.label < 0]
    if strange:
        raise InputError(f"{folder}: {strange[0]} is of no class that train has")
    left = sorted({*parts} - {*named.values()})
    notes = [f"{named['test']} is taken for test"] * (named.get("test", "test") != "test")
    return Found(
        items,
        [kinds[label].names[number] for number in used],
        notes + [f"splits that are left out: {', '.join(left)}"] * bool(left),
    )


def _stored(part, column: str, place: int) -> bytes | Path:
    row = part[place][column]
    return row["bytes"] or Path(row["path"])
