"""Pictures of one's own: what ``lib.sources`` finds is decoded in parallel and made a data set.

Where there is no test folder, a fifth is held out, stratified, always the same.
"""

import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize
from tqdm import tqdm

from lib import InputError
from lib.config import fitting_batch
from lib.data import stratified
from lib.downloads import LOADERS
from lib.sessions import Interruptions
from lib.sources import Item, find

TEST_SHARE = 0.2
PIXELS, ELONGATED = 2**26, 16  # of an image at most, and its longer side over the shorter one
CHUNK = 256  # images decoded at a time; two of them are all that is in memory
LISTED = 20  # classes, and broken images, that a report names


@dataclass(frozen=True)
class Report:
    """What a user should know of what was read: lines, and for each broken image, skipped, "NAME:
    why"."""

    notes: list[str]
    skipped: list[str]

    def __str__(self) -> str:
        count = len(self.skipped)
        return "\n".join(
            [
                *self.notes,
                *[f"{count} broken image{'s' * (count > 1)} skipped:"][:count],
                *self.skipped[:LISTED],
                *["..."][: max(0, count - LISTED)],
            ]
        )


def make(source: Path, size: int, out: Path) -> tuple[dict[str, int], Report]:
    """Write the images as a data set, NAME.npz, each with its shorter side at size pixels and the
    centre cut out.

    Returns how many there are in each split, and what to know of it: the classes and what was left
    out. In memory are two CHUNKs of images. Raises InputError where there are fewer than two
    classes, too few whole images of one, or out can't be written.
    """
    found = find(source)
    classes, notes = found.classes, [*found.notes]
    if len(classes) < 2:
        only = f"only one class with images, {classes[0]}" if classes else "no class with images"
        raise InputError(
            f"{source} has {only}; two are needed, a folder for each, to test by; "
            "'unlabeled' beside them may hold any number without a class, to train on "
            "(pool=unlabeled)"
        )
    if not 8 <= size <= 1024:
        raise InputError(f"--size must be between 8 and 1024, got {size}")
    if out.suffix != ".npz":
        raise InputError(f"--out must be NAME.npz, got {out}")
    if out.stem in LOADERS:
        raise InputError(
            f"{out} would take the place of the data set '{out.stem}' that comes with the package: "
            f"choose another name"
        )
    parts = {
        split: [item for item in found.items if item.split == split]
        for split in ("train", "test", "unlabeled")
    }
    if not parts["test"]:
        parts["train"], parts["test"] = _held_out(parts["train"])
        notes.append(
            f"there is no test: {100 * TEST_SHARE:.0f} % of every class are held out as one"
        )
    if out.exists():
        notes.append(
            f"{out} was there and is replaced: to probe what was trained on it, the old one is "
            "needed"
        )
    skipped = []
    try:
        labels = _write(parts, classes, size, out, skipped)
    except OSError as error:
        raise InputError(
            f"can't write {out} ({error.strerror}): free space or name another folder"
        ) from error
    counts = (np.bincount(labels[split], minlength=len(classes)) for split in ("train", "test"))
    named = [f"{name} ({count} + {test})" for name, count, test in zip(classes, *counts)]
    more = f", and {len(named) - LISTED} more" * (len(named) > LISTED)
    about = f"{len(classes)} classes (train + test): {', '.join(named[:LISTED])}{more}"
    return {split: len(part) for split, part in labels.items()}, Report([about, *notes], skipped)


def _held_out(items: list[Item]) -> tuple[list[Item], list[Item]]:
    """The items without TEST_SHARE of every class, and these."""
    labels = torch.tensor([item.label for item in items])
    held = set(stratified(labels, max(1, round(TEST_SHARE * len(labels)))).tolist())
    return [item for place, item in enumerate(items) if place not in held], [
        items[place] for place in sorted(held)
    ]


def _write(
    parts: dict[str, list[Item]], classes: list[str], size: int, out: Path, skipped: list[str]
) -> dict[str, list[int]]:
    """Decode the items of every split and write the .npz. Returns the labels of those that were
    whole."""
    labels = {split: [] for split in parts}
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=".import-") as folder:
        work = Path(folder)
        for split, part in parts.items():
            with open(work / split, "wb") as file:
                for pixels, whole in decoded(part, size, skipped, split):
                    file.write(pixels)
                    labels[split] += [item.label for item in whole]
        few = np.bincount(np.array(labels["train"], dtype=int), minlength=len(classes))
        if few.min() < 2 or not labels["test"]:
            raise InputError(
                f"every class needs two whole images for training, and one must be left for test; "
                f"'{classes[few.argmin()]}' has {few.min()} for training"
            )
        np.savez(
            work / "whole.npz",
            y_train=labels["train"],
            y_test=labels["test"],
            classes=classes,
            variant=f"shorter side to {size} by Lanczos, centre crop",
        )
        with zipfile.ZipFile(work / "whole.npz", "a") as archive:
            for split in (split for split, part in labels.items() if part):
                _append(
                    archive, f"x_{split}.npy", work / split, (len(labels[split]), size, size, 3)
                )
        os.replace(work / "whole.npz", out)
    return labels


def first_try(counts: dict[str, int], size: int) -> str:
    """What follows ``pretrain`` for a run of minutes on so many images: a preset for their size,
    made small."""
    preset, unlabeled = (
        ("simclr-stl10", counts["unlabeled"]) if size >= 64 else ("simclr-cifar10-r18", 0)
    )
    most = max(unlabeled, counts["train"])
    pool = " --set pool=train+val" if 0 < unlabeled < most else ""
    batch_size = min(256, fitting_batch(most))
    return f"{preset} --epochs 10 --set encoder=slim --set batch_size={batch_size}{pool}"


def _append(archive: zipfile.ZipFile, name: str, pixels: Path, shape: tuple[int, ...]) -> None:
    """Add a file of bytes as an array, copied in small pieces: mapped into memory it would count as
    the process's."""
    with archive.open(name, "w", force_zip64=True) as there, open(pixels, "rb") as here:
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(there, header)
        shutil.copyfileobj(here, there, 2**20)


def decoded(
    items: list[Item], size: int, skipped: list[str], what: str
) -> Iterator[tuple[np.ndarray, list[Item]]]:
    """Pixels (B, size, size, 3) uint8 and the items they are of, in order; skipped gets a line for
    each broken one."""

    def one(item: Item) -> np.ndarray | str:
        try:
            return decode(item.source() if callable(item.source) else item.source, size)
        except Exception as error:  # Pillow's plugins let through whatever they meet
            why = str(error).replace(
                f" {str(item.source)!r}", ""
            )  # the line names it already, shorter
            return " ".join(why.split())[:100] or type(error).__name__

    with (
        Interruptions() as stop,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(items), desc=what, unit="image", disable=not items) as bar,
    ):
        chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
        coming = [pool.map(one, chunk) for chunk in chunks[:1]]
        for place, chunk in enumerate(chunks):
            if stop.caught:  # here: raised amid the pool's locks it could hang the process
                stop.deliver()
            coming += [
                pool.map(one, later) for later in chunks[place + 1 : place + 2]
            ]  # while the caller is busy
            found = list(coming.pop(0))
            skipped += [
                f"{item.name}: {why}" for item, why in zip(chunk, found) if isinstance(why, str)
            ]
            whole = [place for place, pixels in enumerate(found) if not isinstance(pixels, str)]
            bar.update(len(chunk))
            if whole:
                yield np.stack([found[place] for place in whole]), [chunk[place] for place in whole]


def decode(source: Path | bytes | np.ndarray, size: int) -> np.ndarray:
    """An image as (size, size, 3) uint8: turned as its EXIF says, on white where transparent, 16
    bits scaled to 8.

    Raises what Pillow does, or ValueError, where it is broken, too large, too elongated or of
    floating-point pixels.
    """
    if isinstance(source, Path) and not source.stat().st_size:
        raise ValueError("0 bytes")
    if isinstance(source, np.ndarray):
        image = Image.fromarray(source)
    else:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    if image.width * image.height > PIXELS or max(image.size) > ELONGATED * min(image.size):
        raise ValueError(
            f"{image.width} x {image.height} pixels are refused: at most {PIXELS:,} of them, no "
            "side over "
            f"{ELONGATED} times the other"
        )
    image.draft(None, (2 * size, 2 * size))  # a JPEG may be decoded smaller: many times faster
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(
        center_crop(resize(image.convert("RGB"), size, InterpolationMode.LANCZOS), size)
    )
