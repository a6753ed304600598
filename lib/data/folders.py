"""Where pictures come from: a folder, an .npz, a Hugging Face data set on disk, a single file.

Nothing is decoded here. A folder follows torchvision's ImageFolder: ``root/CLASS/*.jpg``, or
``root/train/CLASS`` and ``root/test/CLASS``, with ``root/unlabeled`` beside.
"""

import difflib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lib import InputError, in_a_line, name_of, needed, unknown
from lib.data.archives import from_npz
from lib.data.dataset import Dataset
from lib.data.decoding import Item

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
# What splits are called, in any case of letters; of several names the first that is there counts
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
    "unlabeled": ("unlabeled", "unlabelled"),
}


NAMES_OF_SPLITS = {*SPLITS["train"], *SPLITS["test"]}


@dataclass(frozen=True)
class Listing:
    """The images of a source."""

    items: list[Item]
    classes: list[str]  # their names
    notes: list[str]  # lines about what in it was not taken as one might expect


def find(source: Path) -> Listing:
    """The images of a folder, an .npz or a Hugging Face data set on disk; nothing is decoded.

    A folder without classes, or a single file, is unlabeled images. Raises InputError where there
    is no image, test has other classes, or two names can't be told apart once they are spelt out.
    """
    if source.is_file() and source.suffix.lower() in SUFFIXES:
        return Listing([Item(name_of(source.name), "unlabeled", -1, source)], [], [])

    if source.suffix == ".npz" and source.is_file():
        listing = _from_dataset(from_npz(source.stem, source))
    elif not source.is_dir():
        raise InputError(f"{source} is neither a folder, nor a picture, nor an .npz file")
    elif (source / "dataset_dict.json").is_file() or (source / "state.json").is_file():
        listing = _from_huggingface(source)
    else:
        try:
            listing = _from_folder(source)
        except OSError as error:
            raise InputError(f"can't read {error.filename} ({error.strerror})") from error

    if not listing.items:
        nothing = f"{source} holds no images ({', '.join(sorted(SUFFIXES))})"
        raise InputError("; ".join([nothing, *listing.notes]))
    return listing


def _splits(names: Iterable[str]) -> dict[str, str]:
    """The splits among the names: ours -> theirs."""
    by_lower = {name.lower(): name for name in sorted(names)}
    splits = {}
    for split, known in SPLITS.items():
        for name in known:
            if name in by_lower:
                splits[split] = by_lower[name]
                break
    return splits


def _taken_for(splits: dict[str, str], suffix: str = "") -> list[str]:
    """A note for each split that has another name."""
    notes = []
    for split in ("train", "test"):
        name = splits.get(split) or split
        if name.lower() != split:
            notes.append(f"{name}{suffix} is taken for {split}")
    return notes


# --------------------------------------------------------------------------------------------------
# a folder

Places = dict[Path, tuple[str, tuple[str, ...]]]  # by image: its split, and its path below that


def _from_folder(root: Path) -> Listing:
    splits = _folders_of_splits(root)
    tree = _tree(root)
    _refuse_one_spelling_of_two(root, tree.files)
    places = _places(root, tree.files, splits)

    classes = set()
    for split, below in places.values():
        if split == "train" and len(below) > 1:
            classes.add(below[0])
    names = sorted(classes)

    items = _items(root, places, names, splits)
    notes = _notes(root, tree.files, places, names, splits)
    notes += _about_links(root, tree)
    return Listing(items, names, notes)


def _folders_of_splits(root: Path) -> dict[str, str]:
    """The folder of each split, by its name below root; root itself ("") where train has none."""
    folders = [path for path in root.iterdir() if path.is_dir()]
    with_classes = set()
    for folder in folders:
        if any(path.is_dir() for path in folder.glob("[!.]*")):
            with_classes.add(folder.name)

    splits = _splits(folder.name for folder in folders)
    if splits.get("train") in with_classes:  # else it is a class, of trains
        return splits
    if splits.get("test") in with_classes:
        if "train" in splits:
            raise InputError(
                f"{root / splits['train']} holds no folders of classes, {splits['test']}/ beside "
                "it does: make a folder for each class in it"
            )
        raise InputError(
            f"{root} has {splits['test']}/ with classes and no train/: move the other classes there"
        )
    if "unlabeled" in splits:
        return {"train": "", "unlabeled": splits["unlabeled"]}
    return {"train": ""}


@dataclass
class Tree:
    """What is below a folder, and which names there lead to no file."""

    files: list[Path] = field(default_factory=list)
    again: list[Path] = field(default_factory=list)  # links to folders that are in it already
    broken: list[Path] = field(default_factory=list)  # links that lead nowhere


def _tree(root: Path) -> Tree:
    """All files below a folder, in order.

    Links are followed, as ImageFolder does, to every real folder once, and to none above them; real
    folders go first, so that a class keeps its images. What is hidden is left out. Raises OSError
    where a folder can't be listed.
    """
    tree = Tree()
    visited: set[tuple[int, int]] = set()  # real folders, by device and number
    waiting = [root]  # and links, in order
    for start in waiting:
        is_above = start.parent.resolve().is_relative_to(start.resolve())
        for where, folders, names in os.walk(start, onerror=_stop):
            here = Path(where)
            if is_above or _number(here) in visited:
                tree.again.append(here)
                folders.clear()
                continue
            visited.add(_number(here))
            folders[:] = [name for name in folders if not name.startswith(".")]
            waiting += [here / name for name in sorted(folders) if (here / name).is_symlink()]
            _sort_in(tree, [here / name for name in sorted(names) if not name.startswith(".")])
    for paths in (tree.files, tree.again, tree.broken):
        paths.sort()
    return tree


def _sort_in(tree: Tree, paths: list[Path]) -> None:
    for path in paths:
        if path.is_file():
            tree.files.append(path)
        elif path.is_symlink():
            tree.broken.append(path)


def _stop(error: OSError) -> None:
    """For os.walk, which else passes over a folder that can't be listed."""
    raise error


def _number(folder: Path) -> tuple[int, int]:
    """What names a real folder, whatever link leads to it: its device and number there."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def _about_links(root: Path, tree: Tree) -> list[str]:
    notes = []
    for why, paths in (
        ("lead to folders that are read already", tree.again),
        ("lead nowhere", tree.broken),
    ):
        if paths:
            notes.append(f"left out, as links that {why}: {_example(root, paths)}")
    return notes


def _example(root: Path, paths: list[Path]) -> str:
    """The first of some paths, and how many more there are."""
    example = name_of(paths[0].relative_to(root))
    if len(paths) > 1:
        example += f" and {len(paths) - 1} more"
    return example


def _about_folders(folder: Path, classes: list[str], splits: dict[str, str]) -> list[str]:
    """Lines on the folders where classes are: those without images, and two that are one class."""
    folders = [path for path in folder.iterdir() if path.is_dir()]
    found = Counter(name_of(path.name) for path in folders if not path.name.startswith("."))
    notes = []
    empty = sorted(found.keys() - {*classes, *splits.values()})
    if empty:
        notes.append(f"left out, as folders without images: {', '.join(empty)}")
    twice = sorted(name for name in classes if found[name] > 1)
    if twice:
        notes.append(
            f"two folders each, of accents written in two ways, are one: {', '.join(twice)}"
        )
    return notes


def _about_splits_below(places: Places, classes: list[str]) -> list[str]:
    """A line on folders train and test that are below the classes, where none is a split."""
    below: dict[str, set[str]] = {name: set() for name in classes}
    for split, parts in places.values():
        if split == "train" and len(parts) > 2 and parts[1].lower() in NAMES_OF_SPLITS:
            below[parts[0]].add(parts[1])
    for name, splits in below.items():
        if len(splits) > 1:
            found = "/ and ".join(sorted(splits))
            return [
                f"{found}/ below {name} are read as one; to keep them apart put them above the "
                "classes, as train/CLASS and test/CLASS"
            ]
    return []


def _refuse_one_spelling_of_two(root: Path, files: list[Path]) -> None:
    """Raise InputError where a name has letters for what stands for a byte in another one."""
    names: set[str] = set()
    for path in files:
        names.update(path.relative_to(root).parts)
    known: dict[str, str] = {}
    for name in sorted(names):
        composed = unicodedata.normalize("NFC", name)
        if known.setdefault(name_of(name), composed) != composed:
            raise InputError(f"{root} has two names that are spelt {name_of(name)}: rename one")


def _places(root: Path, files: list[Path], splits: dict[str, str]) -> Places:
    """Where each image is; not those that are in no split's folder."""
    places: Places = {}
    for split, name in splits.items():  # where two claim an image, it is the last one's
        folder = root / name
        for path in files:
            if path.suffix.lower() in SUFFIXES and path.is_relative_to(folder):
                below = name_of(path.relative_to(folder))
                places[path] = split, tuple(below.split("/"))
    return places


def _items(root: Path, places: Places, classes: list[str], splits: dict[str, str]) -> list[Item]:
    labels = {name: label for label, name in enumerate(classes)}
    items = []
    for path, (split, below) in places.items():
        label = -1
        if split != "unlabeled":
            label = labels.get(below[0], -1)
        if split == "test" and label < 0:
            raise InputError(
                f"{path}: {unknown('class', below[0], classes)} (of {root / splits['train']})"
            )
        if label < 0:
            split = "unlabeled"
        items.append(Item(name_of(path.relative_to(root)), split, label, path))
    return items


def _notes(
    root: Path, files: list[Path], places: Places, classes: list[str], splits: dict[str, str]
) -> list[str]:
    """What was taken in another way than one might expect, or left out."""
    notes = _taken_for(splits, "/")

    names = [name.lower() for name in classes]
    for name in difflib.get_close_matches("unlabeled", names, cutoff=0.8):
        notes.append(
            f"{name} is taken for a class; for images of none there is unlabeled/, beside the "
            "classes or train/"
        )
    for name in classes:
        if name.lower() in NAMES_OF_SPLITS:
            notes.append(f"{name} is taken for a class, since it holds images and no classes")
    notes += _about_folders(root / splits["train"], classes, splits)
    notes += _about_splits_below(places, classes)

    outside: list[Path] = []
    others: Counter[str] = Counter()
    for path in files:
        kind = path.suffix.lower()
        if kind not in SUFFIXES:
            others[kind or path.name] += 1
        elif path not in places:
            outside.append(path)
    if outside:
        folders = "/, ".join(splits.values())
        notes.append(f"left out, as not below {folders}/: {_example(root, outside)}")
    if others:
        counts = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
        notes.append(f"left out, as no images by their ending: {counts}")
    return notes


# --------------------------------------------------------------------------------------------------
# an .npz


def _from_dataset(dataset: Dataset) -> Listing:
    pool = dataset.pool("train+val")
    assert pool.places is not None  # of training images
    splits = {"train": pool[pool.places.argsort()], "test": dataset.test}
    if dataset.unlabeled is not None:
        splits["unlabeled"] = dataset.unlabeled

    items = []
    for name, split in splits.items():
        labels = [-1] * len(split)
        if split.labels is not None:
            labels = split.labels.tolist()
        for place, label in enumerate(labels):
            pixels = split.images[place].permute(1, 2, 0).numpy()
            items.append(Item(f"{name} {place}", name, label, pixels))
    return Listing(items, list(dataset.classes), [])


# --------------------------------------------------------------------------------------------------
# a Hugging Face data set


def _from_huggingface(folder: Path) -> Listing:
    library = needed("datasets", "huggingface")
    try:
        listing = _from_splits(library, library.load_from_disk(str(folder)))
    except Exception as error:  # of datasets, arrow, or a column that is not there
        why = in_a_line(error, 200)
        raise InputError(
            f"{folder} is no data set with a split 'train', a column of images and one of classes "
            f"({why})"
        ) from error

    for item in listing.items:
        if item.split == "test" and item.label < 0:
            raise InputError(f"{folder}: {item.name} is of no class that train has")
    return listing


def _from_splits(library: Any, loaded: Any) -> Listing:
    """library: the package datasets. loaded: a data set of its, or several by split."""
    if not isinstance(loaded, dict):
        loaded = {"train": loaded}
    splits = _splits(loaded)
    if "train" not in splits:
        raise LookupError(f"its splits are {', '.join(loaded)}")
    train = loaded[splits["train"]]
    image = _column_of_images(train.features, library)
    label = _column_of_classes(train.features, library)
    # a selection from a data set keeps the names of all its classes
    used = sorted({value for value in train[label] if _is_class(value)})
    places = {value: place for place, value in enumerate(used)}

    items = []
    for split, name in splits.items():
        rows = loaded[name].cast_column(image, library.Image(decode=False))
        values = [None] * len(rows)
        if split != "unlabeled" and label in rows.features:
            values = rows[label]
        for place, value in enumerate(values):
            own_split = split if _is_class(value) else "unlabeled"
            source = partial(_stored, rows, image, place)
            items.append(Item(f"{name} {place}", own_split, places.get(value, -1), source))

    names = [str(value) for value in used]
    notes = _taken_for(splits)
    feature = train.features[label]
    if isinstance(feature, library.ClassLabel):
        names = [feature.names[number] for number in used]
    else:
        notes.append(f"the column '{label}' is taken for the classes")
    left = sorted(set(loaded) - set(splits.values()))
    if left:
        notes.append(f"splits that are left out: {', '.join(left)}")
    return Listing(items, names, notes)


def _column_of_images(features: dict[str, Any], library: Any) -> str:
    """The first one."""
    for name, feature in features.items():
        if isinstance(feature, library.Image):
            return name
    raise LookupError(f"none of its columns {', '.join(features)} is of the type Image")


def _column_of_classes(features: dict[str, Any], library: Any) -> str:
    """The first of the type ClassLabel; else "label", or the only one, of integers or of text."""
    plain = []
    for name, feature in features.items():
        if isinstance(feature, library.ClassLabel):
            return name
        if getattr(feature, "dtype", "").startswith(("int", "uint", "string", "large_string")):
            plain.append(name)
    if "label" in plain:
        return "label"
    if len(plain) == 1:
        return plain[0]
    raise LookupError(
        f"none of its columns {', '.join(features)} is of the type ClassLabel, or called 'label' "
        "and of integers or text"
    )


def _is_class(value: object) -> bool:
    """Whether a label names a class: none is None, text without letters, or a number below 0."""
    if isinstance(value, int):
        return value >= 0
    return bool(value)


def _stored(rows: Any, column: str, place: int) -> bytes | Path:
    """An image as it is stored in a row: its bytes, or its file."""
    stored = rows[place][column] or {"bytes": None, "path": None}
    if stored["bytes"]:
        return stored["bytes"]
    if stored["path"]:
        return Path(stored["path"])
    raise ValueError("the row has no image")
