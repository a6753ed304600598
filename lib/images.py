"""Pictures of one's own: found in a folder, an .npz or a Hugging Face data set, decoded in parallel, made a data set.

A folder follows torchvision's ImageFolder: ``root/CLASS/*.jpg``, or ``root/train/CLASS`` and ``root/test/CLASS``, with
``root/unlabeled`` beside. Where there is no test folder, a fifth is held out, stratified, always the same.
"""

import io
import os
from collections.abc import Iterator
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

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
TESTS = ("test", "val", "validation")   # folders and splits that are taken for test, the first that is there
TEST_SHARE = 0.2
PIXELS, ELONGATED = 2**26, 16           # of an image at most, and its longer side over the shorter one
CHUNK = 256                             # images decoded at a time: all that is in memory


@dataclass(frozen=True)
class Item:
    """An image to be read: its name, split, class (-1: none), and a file, pixels, or a function that returns bytes."""

    name: str
    split: str
    label: int
    source: object


def find(source: Path) -> tuple[list[Item], list[str]]:
    """The images of a folder, an .npz or a Hugging Face data set on disk, and the classes' names; nothing is decoded.

    A folder without classes is unlabeled images. Raises InputError where there is no image, or test has other classes.
    """
    if source.suffix == ".npz":
        items, classes = _from_npz(data.load(source.stem, source.parent))
    elif not source.is_dir():
        raise InputError(f"{source} is neither a folder nor an .npz file")
    elif any((source / name).is_file() for name in ("dataset_dict.json", "state.json")):
        items, classes = _from_huggingface(source)
    else:
        items, classes = _from_folder(source)
    if not items:
        raise InputError(f"{source} holds no images ({', '.join(sorted(SUFFIXES))})")
    return items, classes


def make(source: Path, size: int, out: Path) -> tuple[dict[str, int], list[str]]:
    """Write the images as a data set, NAME.npz, each with its shorter side at size pixels and the centre cut out.

    Returns how many there are in each split, and a line for each one skipped, saying why. In memory are CHUNK images at
    a time. Raises InputError where there are fewer than two classes, too few whole images of one, or out can't be
    written.
    """
    items, classes = find(source)
    if len(classes) < 2:
        raise InputError(f"{source} has {len(classes)} class(es) with images, two are needed: a folder for each; "
                         f"'unlabeled' is for images of none")
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
            per_class = np.bincount(arrays["y_train"], minlength=len(classes))
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
    return counts, skipped


def decoded(items: list[Item], size: int, skipped: list[str], what: str) -> Iterator[tuple[np.ndarray, list[Item]]]:
    """Pixels (B, size, size, 3) uint8 and the items they are of, in order; skipped gets a line for each broken one."""

    def one(item: Item) -> np.ndarray | str:
        try:
            return decode(item.source() if callable(item.source) else item.source, size)
        except Exception as error:                      # Pillow's plugins let through whatever they meet
            why = str(error).replace(f" {str(item.source)!r}", "")      # the line names it already, shorter
            return " ".join(why.split())[:100] or type(error).__name__

    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=len(items), desc=what, unit="image") as bar:
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
        raise ValueError(f"{image.width} x {image.height} pixels are refused")
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
    """Images below a folder, in order; not what is hidden."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
                  and not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _splits(names) -> dict[str, str]:
    """The splits among the names: ours -> theirs."""
    wanted = {"train": ("train",), "test": TESTS, "unlabeled": ("unlabeled",)}
    return {ours: there[0] for ours, known in wanted.items() if (there := [name for name in known if name in names])}


def _from_folder(root: Path) -> tuple[list[Item], list[str]]:
    folders = {split: root / name for split, name in _splits(os.listdir(root)).items() if (root / name).is_dir()}
    if "train" not in folders:
        folders = {"train": root} | {split: folder for split, folder in folders.items() if split == "unlabeled"}
    below = {path: (split, path.relative_to(folder).parts) for split, folder in folders.items()    # the last one's word
             for path in _files(folder)}
    classes = sorted({parts[0] for split, parts in below.values() if split == "train" and len(parts) > 1})
    places = {name: place for place, name in enumerate(classes)}
    items = []
    for path, (split, parts) in below.items():
        label = -1 if split == "unlabeled" else places.get(parts[0], -1)
        if split == "test" and label < 0:
            raise InputError(f"{path} is of no class that {folders['train']} has")
        items.append(Item(str(path.relative_to(root)), split if label >= 0 else "unlabeled", label, path))
    return items, classes


def _from_npz(dataset: data.Dataset) -> tuple[list[Item], list[str]]:
    pool, items = dataset.pool("train+val"), []
    parts = {"train": pool[pool.places.argsort()], "test": dataset.test, "unlabeled": dataset.unlabeled}
    for split, part in ((split, part) for split, part in parts.items() if part is not None):
        labels = [-1] * len(part) if part.labels is None else part.labels.tolist()
        items += [Item(f"{split} {place}", split, label, part.images[place].permute(1, 2, 0).numpy())
                  for place, label in enumerate(labels)]
    return items, list(dataset.classes)


def _from_huggingface(folder: Path) -> tuple[list[Item], list[str]]:
    library, items = needed("datasets", "huggingface"), []
    try:
        parts = library.load_from_disk(str(folder))
        parts = parts if isinstance(parts, dict) else {"train": parts}
        kinds = parts["train"].features
        image, label = (next(key for key, kind in kinds.items() if isinstance(kind, wanted))
                        for wanted in (library.Image, library.ClassLabel))
        for split, name in _splits(parts).items():
            part = parts[name].cast_column(image, library.Image(decode=False))
            labels = [-1] * len(part) if split == "unlabeled" else part[label]
            items += [Item(f"{name} {place}", split if number >= 0 else "unlabeled", number,
                           partial(_stored, part, image, place)) for place, number in enumerate(labels)]
        return items, kinds[label].names
    except Exception as error:                          # of datasets, arrow, or a column that is not there
        raise InputError(f"{folder} is no data set with a split 'train', a column of images and one of classes "
                         f"({' '.join(str(error).split())[:100]})") from error


def _stored(part, column: str, place: int) -> bytes | Path:
    row = part[place][column]
    return row["bytes"] or Path(row["path"])
