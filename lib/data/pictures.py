"""Pictures of one's own as a data set: what ``data.folders`` finds, decoded and written as .npz.

Where there is no test folder, a fifth is held out, stratified, always the same.
"""

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lib import InputError, counted, legible
from lib.config import fitting_batch
from lib.data.archives import read_npz
from lib.data.dataset import stratified
from lib.data.decoding import Account, Item, decoded, digests_of
from lib.data.downloads import DOWNLOADS
from lib.data.folders import NAMES_OF_SPLITS, find
from lib.files import moved, only_writer

TEST_SHARE = 0.2
LISTED = 20  # classes, broken images, and copies, that a report names
REASONS = 3  # of broken images, that an error tells
SPLITS = ("train", "test", "unlabeled")
MADE = "whole.npz"  # the data set, before it has its place


@dataclass(frozen=True)
class Report:
    """What a user should know of what was read."""

    notes: list[str]  # lines
    skipped: list[str]  # for each broken image, "NAME: why"

    def __str__(self) -> str:
        lines = [*self.notes]
        count = len(self.skipped)
        if count:
            lines.append(f"{counted(count, 'broken image')} skipped:")
        lines += _first(self.skipped)
        return "\n".join(lines)


def _first(lines: list[str]) -> list[str]:
    """The first LISTED lines, and dots for more."""
    if len(lines) <= LISTED:
        return lines
    return [*lines[:LISTED], "..."]


def make(
    source: Path, size: int, out: Path, replace: bool = False
) -> tuple[dict[str, int], Report]:
    """Write the images of a source as a data set.

    size: pixels that each image's shorter side is brought to; then the centre is cut out.
    out: NAME.npz.
    replace: whether another data set that is there already gives way.

    Returns how many there are in each split, and what to know of it: the classes and what was left
    out. In memory are two CHUNKs of images. Raises InputError where there are fewer than two
    classes, too few whole images of one, out can't be written, or is there and not to be replaced.
    """
    if not 8 <= size <= 1024:
        raise InputError(f"--size must be between 8 and 1024, got {size}")
    if out.suffix != ".npz":
        raise InputError(f"--out must be NAME.npz, got {out}")
    if out.stem != legible(out.stem):
        raise InputError(f"--out must have a name in UTF-8, as records hold it, got {out.stem!r}")
    if out.stem in DOWNLOADS:
        raise InputError(
            f"{out} would take the place of the data set '{out.stem}' that comes with the package: "
            "choose another name"
        )
    listing = find(source)
    _refuse_too_few_classes(source, listing.classes)
    if out.is_file() and not replace:
        _refuse_another(out, size, listing.classes)  # before all is decoded

    notes = [*listing.notes]
    items: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for item in listing.items:
        items[item.split].append(item)
    if not items["test"]:
        items["train"], items["test"] = _held_out(items["train"])
        notes.append(_about_held_out(items["test"], listing.classes))
    account = Account()
    try:
        with _workplace(out) as work:
            whole, digests = _write(items, listing.classes, size, work, account)
            notes += _put(work / MADE, out, replace)
    except OSError as error:
        raise InputError(
            f"can't write {out} ({error.strerror}): free space or name another folder"
        ) from error

    notes += account.notes
    notes += _about_copies(whole, digests)
    notes += _about_torn(whole, digests, listing.classes)
    counts = {split: len(whole[split]) for split in SPLITS}
    return counts, Report([_about_classes(listing.classes, whole), *notes], account.skipped)


def _refuse_too_few_classes(source: Path, classes: list[str]) -> None:
    if classes and NAMES_OF_SPLITS.issuperset(name.lower() for name in classes):
        raise InputError(
            f"{source}: {' and '.join(classes)} are names of splits, and hold images but no "
            "classes: make a folder for each class in them"
        )
    if len(classes) > 1:
        return
    holds = "no class with images"
    if classes:
        holds = f"only one class with images, {classes[0]}"
    raise InputError(
        f"{source} has {holds}; two are needed, a folder for each, to test by; 'unlabeled' beside "
        "them may hold any number without a class, to train on (pool=unlabeled)"
    )


def _held_out(items: list[Item]) -> tuple[list[Item], list[Item]]:
    """The items without TEST_SHARE of every class, and these.

    A class keeps two images for training: of one that has no more nothing is held out.
    """
    labels = torch.tensor([item.label for item in items])
    chosen = stratified(labels, max(1, round(TEST_SHARE * len(labels))))
    has_three = labels.bincount()[labels[chosen]] > 2
    held = set(chosen[has_three].tolist())

    train, test = [], []
    for place, item in enumerate(items):
        if place in held:
            test.append(item)
        else:
            train.append(item)
    return train, test


def _about_held_out(test: list[Item], classes: list[str]) -> str:
    note = f"there is no test: {100 * TEST_SHARE:.0f} % of every class are held out as one"
    represented = {item.label for item in test}
    if len(represented) < len(classes):
        note += ", but of those that have two images or fewer none"
    return note


def _about_copies(whole: dict[str, list[Item]], digests: dict[str, list[bytes]]) -> list[str]:
    """Lines on the test images that are in train too, each with one that it is a copy of.

    whole: the images of each split. digests: of their pixels.
    """
    trained = dict(zip(digests["train"], whole["train"]))
    copies = []
    for item, digest in zip(whole["test"], digests["test"]):
        if digest in trained:
            copies.append(f"{item.name} (test) = {trained[digest].name} (train)")
    if not copies:
        return []
    note = (
        f"of {counted(len(whole['test']), 'test image')} {len(copies)} also in train, pixel by "
        "pixel: accuracies will be too high; delete the copies and import again:"
    )
    return [note, *_first(copies)]


def _about_torn(
    whole: dict[str, list[Item]], digests: dict[str, list[bytes]], classes: list[str]
) -> list[str]:
    """Lines on the pictures that are in more than one class, each with two of its places."""
    first: dict[bytes, Item] = {}
    torn: dict[bytes, str] = {}
    for split in ("train", "test"):
        for item, digest in zip(whole[split], digests[split]):
            other = first.setdefault(digest, item)
            if other.label != item.label:
                pair = (
                    f"{other.name} ({classes[other.label]}) = {item.name} ({classes[item.label]})"
                )
                torn.setdefault(digest, pair)
    if not torn:
        return []
    note = f"{counted(len(torn), 'picture')} in more than one class, pixel by pixel:"
    return [note, *_first(list(torn.values()))]


def _about_classes(classes: list[str], whole: dict[str, list[Item]]) -> str:
    """How many images for training and for test each class has."""
    train = _count(whole["train"], classes)
    test = _count(whole["test"], classes)
    counts = []
    for name, for_training, for_test in zip(classes[:LISTED], train, test):
        counts.append(f"{name} ({for_training} + {for_test})")
    if len(classes) > LISTED:
        counts.append(f"and {len(classes) - LISTED} more")
    return f"{len(classes)} classes (train + test): {', '.join(counts)}"


def _count(items: list[Item], classes: list[str]) -> np.ndarray:
    """How many of them each class has: (C,) int."""
    labels = np.array([item.label for item in items], dtype=int)
    return np.bincount(labels, minlength=len(classes))


def _write(
    items: dict[str, list[Item]], classes: list[str], size: int, work: Path, account: Account
) -> tuple[dict[str, list[Item]], dict[str, list[bytes]]]:
    """Decode the items of every split and write the .npz.

    work: the folder where it is made, as MADE.
    account: gets what there is to tell of them.

    Returns those that were whole, and hashes of their pixels.
    """
    whole: dict[str, list[Item]] = {split: [] for split in items}
    digests: dict[str, list[bytes]] = {split: [] for split in items}
    for split in items:
        with open(work / split, "wb") as file:
            for pixels, read in decoded(items[split], size, account, split):
                file.write(pixels.data)
                whole[split] += read
                digests[split] += digests_of(pixels)
    _refuse_too_few_images(classes, whole, account)

    np.savez(
        work / MADE,
        y_train=[item.label for item in whole["train"]],
        y_test=[item.label for item in whole["test"]],
        classes=classes,
        variant=_variant(size),
    )
    with zipfile.ZipFile(work / MADE, "a") as archive:
        for split in items:
            shape = (len(whole[split]), size, size, 3)
            if whole[split]:
                _append(archive, f"x_{split}.npy", work / split, shape)
    return whole, digests


def _variant(size: int) -> str:
    """How the pixels come from the pictures'."""
    return f"shorter side to {size} by Lanczos, centre crop"


def _refuse_another(out: Path, size: int, classes: list[str]) -> None:
    """Raise InputError where a file is of another size or other classes, or no data set of ours."""
    try:
        kept = read_npz(out, {"classes", "variant"})
    except InputError as error:
        raise _in_the_way(out) from error
    if kept["classes"].tolist() != classes or str(kept["variant"]) != _variant(size):
        raise _in_the_way(out)


def _in_the_way(out: Path) -> InputError:
    return InputError(
        f"{out} is there already, and is no earlier import of these pictures at this size: name "
        "another file, or replace it by --replace; what was trained on it can't be probed then"
    )


def _put(made: Path, out: Path, replace: bool) -> list[str]:
    """Give a data set its place, where none is or that gives way, and tell what was there.

    Raises InputError where another one is there, not to be replaced.
    """
    if not out.is_file():
        moved(made, out)
        return []
    if _same_arrays(made, out):
        return [f"{out} was there already, and holds the same"]
    if not replace:
        raise _in_the_way(out)
    moved(made, out)
    return [
        f"{out} was there and is replaced: to probe what was trained on it, the old one is needed"
    ]


def _same_arrays(made: Path, kept: Path) -> bool:
    """Whether two .npz files hold the same, by sizes and checksums; the second is read for that."""
    try:
        with zipfile.ZipFile(made) as ours, zipfile.ZipFile(kept) as theirs:
            return _checksums(ours) == _checksums(theirs) and theirs.testzip() is None
    except Exception:  # zipfile and its codecs let through whatever they meet
        return False


def _checksums(archive: zipfile.ZipFile) -> dict[str, tuple[int, int]]:
    """The bytes of each member, and their checksum."""
    return {member.filename: (member.file_size, member.CRC) for member in archive.infolist()}


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """A folder beside out for what it is made of, and removed then, with what a killed import left.

    Raises InputError where another process makes out.
    """
    work = out.with_name(f".import-{out.stem}")
    work.mkdir(parents=True, exist_ok=True)
    with only_writer(work / "lock", str(out), wait=False):
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _refuse_too_few_images(
    classes: list[str], whole: dict[str, list[Item]], account: Account
) -> None:
    """whole: the images of each split. account: with the broken ones."""
    counts = _count(whole["train"], classes)
    rarest = int(counts.argmin())
    if counts[rarest] < 2:
        lack = f"'{classes[rarest]}' has {counts[rarest]} for training"
        broken = [(item, why) for item, why in account.broken if item.label == rarest]
    elif not whole["test"]:
        lack = "none is left"
        broken = [(item, why) for item, why in account.broken if item.label >= 0]
    else:
        return
    reasons = Account(broken).skipped
    told = [lack, *reasons[:REASONS]]
    if len(reasons) > REASONS:
        told.append(f"and {len(reasons) - REASONS} more")
    raise InputError(
        "every class needs two whole images for training, and one must be left for test; "
        + "; ".join(told)
    )


def _append(archive: zipfile.ZipFile, name: str, pixels: Path, shape: tuple[int, ...]) -> None:
    """Add a file of bytes as an array.

    Copied in small pieces: mapped into memory it would count as the process's.
    """
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)),
        "fortran_order": False,
        "shape": shape,
    }
    with archive.open(name, "w", force_zip64=True) as member, open(pixels, "rb") as file:
        np.lib.format.write_array_header_1_0(member, header)
        shutil.copyfileobj(file, member, 2**20)


def first_try(counts: dict[str, int], size: int) -> list[str]:
    """The words after ``pretrain`` for a run of minutes on so many images.

    It is a preset for their size, made small.
    """
    preset, delta = "simclr-cifar10-slim", []
    unlabeled = 0  # that it trains on
    if size >= 64:
        preset, delta = "simclr-stl10", ["--set", "encoder=slim"]
        unlabeled = counts["unlabeled"]

    images = max(unlabeled, counts["train"])
    batch_size = min(256, fitting_batch(images))
    words = [preset, "--epochs", "10", *delta, "--set", f"batch_size={batch_size}"]
    if 0 < unlabeled < images:
        words += ["--set", "pool=train+val"]
    return words
