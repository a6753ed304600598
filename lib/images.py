"""Pictures of one's own: found in a folder, an .npz or a Hugging Face data set, decoded in parallel, made a data set.

A folder follows torchvision's ImageFolder: ``root/CLASS/*.jpg``, or ``root/train/CLASS`` and ``root/test/CLASS``, with
``root/unlabeled`` beside. Where there is no test folder, a fifth is held out, stratified, always the same.
"""

import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize
from tqdm import tqdm

from lib import InputError, data, needed
from lib.data import stratified
from lib.downloads import LOADERS

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
SPLITS = {"train": ("train",), "test": ("test", "val", "validation"),      # folders and splits, in any case of letters:
          "unlabeled": ("unlabeled", "unlabelled")}                         # the first that is there is taken
TEST_SHARE = 0.2
PIXELS, ELONGATED = 2**26, 16           # of an image at most, and its longer side over the shorter one
CHUNK = 256                             # images decoded at a time: all that is in memory
LISTED = 20                             # classes, and broken images, that a report names


@dataclass(frozen=True)
class Item:
    """An image to be read: its name, split, class (-1: none), and a file, pixels, or a function that returns bytes."""

    name: str
    split: str
    label: int
    source: object


@dataclass(frozen=True)
class Found:
    """The images of a source, its classes' names, and lines about what in it was not taken as one might expect."""

    items: list[Item]
    classes: list[str]
    notes: list[str]


@dataclass(frozen=True)
class Report:
    """What a user should know of what was read: lines, and for each broken image, skipped, "NAME: why"."""

    notes: list[str]
    skipped: list[str]

    def __str__(self) -> str:
        count = len(self.skipped)
        return "\n".join([*self.notes, *[f"{count} broken image{'s' * (count > 1)} skipped:"][:count],
                          *self.skipped[:LISTED], *["..."][:max(0, count - LISTED)]])


def find(source: Path) -> Found:
    """The images of a folder, an .npz or a Hugging Face data set on disk; nothing is decoded.

    A folder without classes is unlabeled images. Raises InputError where there is no image, or test has other classes.
    """
    if source.suffix == ".npz":
        found = _from_npz(data.load(source.stem, source.parent))
    elif not source.is_dir():
        raise InputError(f"{source} is neither a folder nor an .npz file")
    elif any((source / name).is_file() for name in ("dataset_dict.json", "state.json")):
        found = _from_huggingface(source)
    else:
        try:
            found = _from_folder(source)
        except OSError as error:
            raise InputError(f"can't read {error.filename} ({error.strerror})") from error
    if not found.items:
        raise InputError("; ".join([f"{source} holds no images ({', '.join(sorted(SUFFIXES))})", *found.notes]))
    return found


def make(source: Path, size: int, out: Path) -> tuple[dict[str, int], Report]:
    """Write the images as a data set, NAME.npz, each with its shorter side at size pixels and the centre cut out.

    Returns how many there are in each split, and what to know of it: the classes and what was left out. In memory are
    CHUNK images at a time. Raises InputError where there are fewer than two classes, too few whole images of one, or
    out can't be written.
    """
    found = find(source)
    items, classes, notes = found.items, found.classes, found.notes
    if len(classes) < 2:
        raise InputError(f"{source} has {len(classes)} class(es) with images, two are needed, a folder for each, to test by; "
                         f"'unlabeled' beside them may hold any number without a class, to train on (pool=unlabeled)")
    if out.suffix != ".npz" or not 8 <= size <= 1024:
        raise InputError(f"--out must be NAME.npz and --size between 8 and 1024, got {out} and {size}")
    if out.stem in LOADERS:
        raise InputError(f"{out} would take the place of the data set '{out.stem}' that comes with the package: "
                         f"choose another name")
    parts = {split: [item for item in items if item.split == split] for split in ("train", "test", "unlabeled")}
    if not parts["test"]:
        labels = torch.tensor([item.label for item in parts["train"]])
        held = set(stratified(labels, max(1, round(TEST_SHARE * len(labels)))).tolist())
        parts["test"] = [parts["train"][place] for place in sorted(held)]
        parts["train"] = [item for place, item in enumerate(parts["train"]) if place not in held]
        notes = [*notes, f"there is no test: {TEST_SHARE:.0%} of every class are held out as one"]
    skipped, arrays = [], {}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=".import-") as work:
            for split, part in parts.items():
                path, labels = Path(work) / split, []
                with open(path, "wb") as file:
                    for pixels, whole in decoded(part, size, skipped, split):
                        file.write(pixels)
                        labels += [item.label for item in whole]
                arrays[f"y_{split}"] = np.array(labels, dtype=int)
                if labels:
                    arrays[f"x_{split}"] = np.memmap(path, np.uint8, "r", shape=(len(labels), size, size, 3))
            per_class, tests = (np.bincount(arrays[key], minlength=len(classes)) for key in ("y_train", "y_test"))
            if per_class.min() < 2 or not len(arrays["y_test"]):
                raise InputError(f"{source}: every class needs two whole images for training, and one must be left for "
                                 f"test; '{classes[per_class.argmin()]}' has {per_class.min()} for training")
            counts = {split: len(arrays[f"y_{split}"]) for split in parts}
            del arrays["y_unlabeled"]
            np.savez(Path(work) / "whole.npz", **arrays, classes=classes,      # which copies the files in small pieces
                     variant=f"shorter side to {size} by Lanczos, centre crop")
            os.replace(Path(work) / "whole.npz", out)
    except OSError as error:
        raise InputError(f"can't write {out} ({error.strerror}): free space or name another folder") from error
    named = [f"{name} {count} + {test}" for name, count, test in zip(classes, per_class, tests)][:LISTED]
    more = f", and {len(classes) - LISTED} more" * (len(classes) > LISTED)
    return counts, Report([f"{len(classes)} classes (train + test): {', '.join(named)}{more}", *notes], skipped)


def decoded(items: list[Item], size: int, skipped: list[str], what: str) -> Iterator[tuple[np.ndarray, list[Item]]]:
    """Pixels (B, size, size, 3) uint8 and the items they are of, in order; skipped gets a line for each broken one."""

    def one(item: Item) -> np.ndarray | str:
        try:
            return decode(item.source() if callable(item.source) else item.source, size)
        except Exception as error:                      # Pillow's plugins let through whatever they meet
            why = str(error).replace(f" {str(item.source)!r}", "")      # the line names it already, shorter
            return " ".join(why.split())[:100] or type(error).__name__

    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(
            total=len(items), desc=what, unit="image", disable=not items) as bar:
        for start in range(0, len(items), CHUNK):
            chunk = items[start:start + CHUNK]
            found = list(pool.map(one, chunk))
            skipped += [f"{item.name}: {why}" for item, why in zip(chunk, found) if isinstance(why, str)]
            whole = [place for place, pixels in enumerate(found) if not isinstance(pixels, str)]
            bar.update(len(chunk))
            if whole:
                yield np.stack([found[place] for place in whole]), [chunk[place] for place in whole]


def decode(source: Path | bytes | np.ndarray, size: int) -> np.ndarray:
    """An image as (size, size, 3) uint8: turned as its EXIF says, on white where transparent, 16 bits scaled to 8.

    Raises what Pillow does, or ValueError, where it is broken, too large, too elongated or of floating-point pixels.
    """
    if isinstance(source, Path) and not source.stat().st_size:
        raise ValueError("0 bytes")
    if isinstance(source, np.ndarray):
        image = Image.fromarray(source)
    else:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    if image.width * image.height > PIXELS or max(image.size) > ELONGATED * min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels are refused: at most {PIXELS:,} of them, no side over "
                         f"{ELONGATED} times the other")
    image.draft(None, (2 * size, 2 * size))             # a JPEG may be decoded smaller: many times faster
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(center_crop(resize(image.convert("RGB"), size, InterpolationMode.LANCZOS), size))


def _files(folder: Path) -> list[Path]:
    """All files below a folder, in order, through links as ImageFolder does; not what is hidden."""
    found = []
    for where, folders, names in os.walk(folder, followlinks=True):
        here = Path(where)
        loop = here.parent.resolve().is_relative_to(here.resolve())         # a link to a folder above
        folders[:] = [] if loop else [name for name in folders if not name.startswith(".")]
        found += [] if loop else [here / name for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _splits(names: Iterable[str]) -> dict[str, str]:
    """The splits among the names: ours -> theirs."""
    there = {name.lower(): name for name in sorted(names)}
    first = {ours: next((name for name in known if name in there), None) for ours, known in SPLITS.items()}
    return {ours: there[name] for ours, name in first.items() if name}


def _from_folder(root: Path) -> Found:
    folders = {path.name for path in root.iterdir() if path.is_dir()}
    parted = {name for name in folders if any(path.is_dir() for path in (root / name).glob("[!.]*"))}
    named = _splits(folders)
    if named.get("train") not in parted:                # a class may be of trains
        if named.get("test") in parted:
            raise InputError(f"{root} has {named['test']}/ with classes and no train/: move the other classes there")
        named = {"train": ""} | {split: name for split, name in named.items() if split == "unlabeled"}
    files = _files(root)
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    below = {path: (split, path.relative_to(root / name).parts)                 # where two claim it, the last one's
             for split, name in named.items() for path in images if path.is_relative_to(root / name)}
    classes = sorted({parts[0] for split, parts in below.values() if split == "train" and len(parts) > 1})
    places = {name: place for place, name in enumerate(classes)}
    items, notes = [], [f"{name}/ is taken for test" for name in [named.get("test", "")] if name not in ("", "test")]
    for path, (split, parts) in below.items():
        label = -1 if split == "unlabeled" else places.get(parts[0], -1)
        if split == "test" and label < 0:
            raise InputError(f"{path} is of no class that {root / named['train']} has")
        items.append(Item(str(path.relative_to(root)), split if label >= 0 else "unlabeled", label, path))
    outside = [str(path.relative_to(root)) for path in images if path not in below]
    if outside:
        more = f" and {len(outside) - 1} more" * (len(outside) > 1)
        notes.append(f"left out, as not below {'/, '.join(named.values())}/: {outside[0]}{more}")
    kinds = Counter(path.suffix.lower() or path.name for path in files if path.suffix.lower() not in SUFFIXES)
    if kinds:
        notes.append("left out, as no images by their ending: "
                     + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)))
    return Found(items, classes, notes)


def _from_npz(dataset: data.Dataset) -> Found:
    pool, items = dataset.pool("train+val"), []
    parts = {"train": pool[pool.places.argsort()], "test": dataset.test, "unlabeled": dataset.unlabeled}
    for split, part in ((split, part) for split, part in parts.items() if part is not None):
        labels = [-1] * len(part) if part.labels is None else part.labels.tolist()
        items += [Item(f"{split} {place}", split, label, part.images[place].permute(1, 2, 0).numpy())
                  for place, label in enumerate(labels)]
    return Found(items, list(dataset.classes), [])


def _from_huggingface(folder: Path) -> Found:
    library, items = needed("datasets", "huggingface"), []
    try:
        parts = library.load_from_disk(str(folder))
        parts = parts if isinstance(parts, dict) else {"train": parts}
        kinds = parts["train"].features
        image, label = (next(key for key, kind in kinds.items() if isinstance(kind, wanted))
                        for wanted in (library.Image, library.ClassLabel))
        used = sorted({number for number in parts["train"][label] if number >= 0})     # a part of a data set keeps
        places = {number: place for place, number in enumerate(used)}                   # the names of all its classes
        named = _splits(parts)
        for split, name in named.items():
            part = parts[name].cast_column(image, library.Image(decode=False))
            labels = [-1] * len(part) if split == "unlabeled" else part[label]
            items += [Item(f"{name} {place}", split if number >= 0 else "unlabeled", places.get(number, -1),
                           partial(_stored, part, image, place)) for place, number in enumerate(labels)]
    except Exception as error:                          # of datasets, arrow, or a column that is not there
        raise InputError(f"{folder} is no data set with a split 'train', a column of images and one of classes "
                         f"({' '.join(str(error).split())[:100]})") from error
    strange = [item.name for item in items if item.split == "test" and item.label < 0]
    if strange:
        raise InputError(f"{folder}: {strange[0]} is of no class that train has")
    left = sorted({*parts} - {*named.values()})
    notes = [f"{named['test']} is taken for test"] * (named.get("test", "test") != "test")
    return Found(items, [kinds[label].names[number] for number in used],
                 notes + [f"splits that are left out: {', '.join(left)}"] * bool(left))


def _stored(part, column: str, place: int) -> bytes | Path:
    row = part[place][column]
    return row["bytes"] or Path(row["path"])
