"""Pictures of one's own: what is found, how it is decoded, and the data set it becomes."""

import io
import os
import shutil
import signal
import struct
import sys
import time
import unicodedata
import warnings
import zlib
from collections import Counter
from itertools import count
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from PIL import Image

from lib import InputError, data, name_of
from lib.data import decoding, folders, pictures
from lib.data.dataset import Split
from lib.data.pictures import LISTED, Report
from lib.files import only_writer

RED = (200, 30, 40)
BLUE = (20, 60, 210)


def photo(colour=RED, size=(40, 30), mode="RGB") -> Image.Image:
    return Image.new("RGB", size, colour).convert(mode)


def each_is_of_its_class(split: Split) -> bool:
    """Whether images are blue where their label is 0, red where it is 1."""
    colours = torch.tensor([BLUE, RED])[split.labels]
    means = split.images.float().mean((2, 3))
    return torch.allclose(means, colours.float())


@pytest.fixture
def folder(tmp_path) -> Path:
    """Eight blue images, twelve red ones, and three without a class."""
    root = tmp_path / "photos"
    for name in ("blue", "red", "unlabeled"):
        (root / name).mkdir(parents=True)
    for i in range(8):
        photo(BLUE, (40 + i, 30)).save(root / "blue" / f"{i:02}.png")
    for i in range(12):
        photo(RED, (40 + i, 30)).save(root / "red" / f"{i:02}.png")
    for i in range(3):
        photo((0, 200, i)).save(root / "unlabeled" / f"{i}.webp", lossless=True)
    return root


def test_copies_that_spoil_a_test_are_told(tmp_path):
    random = np.random.default_rng(0)
    root = tmp_path / "photos"
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    _, report = pictures.make(root, 16, tmp_path / "own.npz")
    assert "pixel by pixel" not in str(report)

    shutil.copy(root / "train" / "a" / "0.png", root / "test" / "a" / "copy.png")
    shutil.copy(root / "train" / "b" / "0.png", root / "train" / "a" / "torn.png")
    _, report = pictures.make(root, 16, tmp_path / "copies.npz")
    assert str(report).endswith(
        "of 7 test images 1 also in train, pixel by pixel: accuracies will be too high; delete the "
        "copies and import again:\n"
        "test/a/copy.png (test) = train/a/0.png (train)\n"
        "1 picture in more than one class, pixel by pixel:\n"
        "train/a/torn.png (a) = train/b/0.png (b)"
    )

    for i in range(LISTED + 1):
        shutil.copy(root / "train" / "b" / "1.png", root / "test" / "b" / f"copy {i}.png")
    _, report = pictures.make(root, 16, tmp_path / "many.npz")
    assert str(report).count("(test) = ") == LISTED
    assert "(train)\n...\n1 picture in more" in str(report)


def refused(words: str, source: Path, out: Path, size: int = 16) -> None:
    """No data set is made, for such a reason in one line, and nothing is left of the attempt."""
    with pytest.raises(InputError, match=words) as caught:
        pictures.make(source, size, out)
    assert "\n" not in str(caught.value)
    assert not out.is_file()
    assert not list(out.parent.glob(".import-*"))


# --------------------------------------------------------------------------------------------------
# from a folder to a data set


def test_a_folder_becomes_a_data_set(folder, tmp_path):
    counts, report = pictures.make(folder, 24, tmp_path / "mine.npz")
    assert counts == {"train": 16, "test": 4, "unlabeled": 3}
    lines = [
        "2 classes (train + test): blue (6 + 2), red (10 + 2)",
        "there is no test: 20 % of every class are held out as one",
        "of 4 test images 4 also in train, pixel by pixel: accuracies will be too high; delete the "
        "copies and import again:",
    ]
    assert report.notes[:3] == lines
    assert len(report.notes) == 3 + 4

    mine = data.load("mine", tmp_path)
    assert mine.classes == ("blue", "red")
    assert mine.size == (24, 24)
    assert mine.variant.startswith("shorter side to 24")
    assert each_is_of_its_class(mine.train)
    assert each_is_of_its_class(mine.val)
    assert each_is_of_its_class(mine.test)
    assert mine.test.labels.bincount().tolist() == [2, 2]  # 8 : 12, stratified
    assert len(mine.unlabeled) == 3


def test_the_same_pictures_are_the_same_data_set(folder, tmp_path):
    """An .npz is a source too, in its own order."""
    pictures.make(folder, 24, tmp_path / "mine.npz")
    pictures.make(folder, 24, tmp_path / "again.npz")
    pictures.make(tmp_path / "mine.npz", 24, tmp_path / "copy.npz")
    fingerprint = data.load("mine", tmp_path).fingerprint
    assert data.load("again", tmp_path).fingerprint == fingerprint
    assert data.load("copy", tmp_path).fingerprint == fingerprint
    assert not list(tmp_path.glob(".import-*"))


@pytest.fixture
def split_folder(folder, tmp_path) -> Path:
    """Folders for train, val and unlabeled, and an image beside them."""
    root = tmp_path / "split"
    (root / "val" / "red").mkdir(parents=True)
    folder.rename(root / "train")
    (root / "train" / "unlabeled").rename(root / "unlabeled")
    photo().save(root / "val" / "red" / "x.jpg")
    photo().save(root / "forgotten.png")
    return root


def test_train_and_test_folders_are_kept_apart(split_folder, tmp_path):
    counts, report = pictures.make(split_folder, 16, tmp_path / "mine.npz")
    assert counts == {"train": 20, "test": 1, "unlabeled": 3}
    assert data.load("mine", tmp_path).test.labels.tolist() == [1]
    assert report.notes == [
        "2 classes (train + test): blue (8 + 0), red (12 + 1)",
        "val/ is taken for test",
        "left out, as not below train/, val/, unlabeled/: forgotten.png",
    ]


def test_a_test_of_other_classes_or_without_train_is_refused(split_folder, tmp_path):
    (split_folder / "val" / "red").rename(split_folder / "val" / "green")
    words = "val/green/x.jpg: unknown class .green.; known: blue, red .of .*train"
    refused(words, split_folder, tmp_path / "mine.npz")

    (split_folder / "train").rename(split_folder / "others")
    words = "has val/ with classes and no train/: move the other classes there"
    refused(words, split_folder, tmp_path / "mine.npz")


def test_a_train_without_classes_beside_a_test_with_them_is_refused(split_folder, tmp_path):
    shutil.rmtree(split_folder / "train" / "blue")
    for path in (split_folder / "train" / "red").iterdir():
        path.rename(split_folder / "train" / path.name)
    (split_folder / "train" / "red").rmdir()
    words = "train holds no folders of classes, val/ beside it does: make a folder for each class"
    refused(words, split_folder, tmp_path / "mine.npz")


def test_names_of_folders_are_read_as_they_are_meant(folder, tmp_path):
    (folder / "unlabeled").rename(folder / "Unlabelled")
    (folder / "red").rename(folder / "train")  # a class of trains, not a split
    counts, report = pictures.make(folder, 16, tmp_path / "mine.npz")
    assert counts == {"train": 16, "test": 4, "unlabeled": 3}
    assert "blue (6 + 2), train (10 + 2)" in report.notes[0]


def test_what_is_nearly_unlabeled_is_a_class_and_said(folder, tmp_path):
    (folder / "unlabeled").rename(folder / "un-labeled")
    _, report = pictures.make(folder, 16, tmp_path / "mine.npz")
    assert "un-labeled is taken for a class; for images of none there is unlabeled/" in str(report)


def test_the_same_import_again_changes_nothing(folder, tmp_path):
    out = tmp_path / "mine.npz"
    _, report = pictures.make(folder, 16, out)
    assert "was there" not in str(report)
    before = out.stat()
    for replace in (False, True):
        _, report = pictures.make(folder, 16, out, replace)
        assert f"{out} was there already, and holds the same" in report.notes
        assert (out.stat().st_ino, out.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def another_size(folder: Path) -> int:
    return 24


def another_class(folder: Path) -> int:
    shutil.copytree(folder / "red", folder / "green")
    return 16


def another_picture(folder: Path) -> int:
    photo((9, 9, 9)).save(folder / "red" / "00.png")
    return 16


@pytest.mark.parametrize("change", [another_size, another_class, another_picture])
def test_another_data_set_is_replaced_only_where_that_is_said(change, folder, tmp_path):
    out = tmp_path / "mine.npz"
    pictures.make(folder, 16, out)
    content = out.read_bytes()
    size = change(folder)
    words = "mine.npz is there already, and is no earlier import of .*: name another .* --replace"
    with pytest.raises(InputError, match=words):
        pictures.make(folder, size, out)
    assert out.read_bytes() == content
    assert not list(tmp_path.glob(".import-*"))

    _, report = pictures.make(folder, size, out, replace=True)
    assert f"{out} was there and is replaced: to probe what was trained on it" in str(report)
    pictures.make(folder, size, tmp_path / "other.npz")
    assert out.read_bytes() == (tmp_path / "other.npz").read_bytes()


def test_what_is_seen_to_be_another_is_refused_before_all_is_decoded(folder, tmp_path, capsys):
    out = tmp_path / "mine.npz"
    for content in (b"no data set", (folder / "red" / "00.png").read_bytes()):
        out.write_bytes(content)
        with pytest.raises(InputError, match="mine.npz is there already"):
            pictures.make(folder, 16, out)
        assert out.read_bytes() == content
    pictures.make(folder, 16, out, replace=True)
    capsys.readouterr()
    with pytest.raises(InputError, match="mine.npz is there already"):
        pictures.make(folder, 24, out)
    assert not capsys.readouterr().err  # no bar


def test_a_copy_that_is_damaged_is_not_the_same(folder, tmp_path):
    out = tmp_path / "mine.npz"
    pictures.make(folder, 16, out)
    whole = out.read_bytes()
    pixels = data.load("mine", tmp_path).test.images.permute(0, 2, 3, 1).numpy().tobytes()
    place = whole.index(pixels)
    out.write_bytes(whole[:place] + b"?" + whole[place + 1 :])
    with pytest.raises(InputError, match="mine.npz is there already"):
        pictures.make(folder, 16, out)
    pictures.make(folder, 16, out, replace=True)
    assert out.read_bytes() == whole


def test_a_report_names_the_first_of_many(tmp_path):
    """Classes and broken images alike."""
    names = [f"class {number:02}" for number in range(LISTED + 3)]
    for name in names:
        (tmp_path / "many" / name).mkdir(parents=True)
        for i in range(3):
            photo().save(tmp_path / "many" / name / f"{i}.png")
        (tmp_path / "many" / name / "broken.png").touch()

    _, report = pictures.make(tmp_path / "many", 16, tmp_path / "mine.npz")
    lines = str(report).splitlines()
    assert lines[0].startswith("23 classes (train + test): class 00 (")
    assert lines[0].endswith("), and 3 more")
    assert "class 19" in lines[0] and "class 20" not in lines[0]
    assert lines[-LISTED - 2] == "23 broken images skipped:"
    for line in lines[-LISTED - 1 : -1]:
        assert line.endswith("broken.png: 0 bytes")
    assert lines[-1] == "..."
    assert str(Report(["so"], ["x: why"])) == "so\n1 broken image skipped:\nx: why"


LARGE, SMALL = "simclr-stl10 --epochs 10 --set encoder=slim", "simclr-cifar10-slim --epochs 10"


@pytest.mark.parametrize(
    "train, unlabeled, size, expected",
    [
        (480, 100, 96, f"{LARGE} --set batch_size=128 --set pool=train+val"),
        (480, 9000, 64, f"{LARGE} --set batch_size=256"),
        (480, 9000, 32, f"{SMALL} --set batch_size=128"),
        (6, 0, 32, f"{SMALL} --set batch_size=2"),
    ],
)
def test_a_first_try_fits_the_images(train, unlabeled, size, expected):
    counts = {"train": train, "test": train // 4, "unlabeled": unlabeled}
    assert " ".join(pictures.first_try(counts, size)) == expected


def test_what_is_wrong_is_one_line(folder, tmp_path):
    out = tmp_path / "mine.npz"
    refused("--out must be NAME.npz", folder, tmp_path / "mine.zip")
    refused("--size must be between 8 and 1024, got 4", folder, out, size=4)
    with pytest.raises(InputError, match="would take the place of the data set 'digits' that"):
        pictures.make(folder, 32, tmp_path / "digits.npz")

    blocked = tmp_path / "blocked"
    blocked.touch()
    with pytest.raises(InputError, match="can't write .*blocked/mine.npz"):
        pictures.make(folder, 16, blocked / "mine.npz")


def test_too_few_images_are_one_line(folder, tmp_path):
    out = tmp_path / "mine.npz"
    refused("is neither a folder, nor a picture, nor an .npz file", tmp_path / "none", out)
    refused("digits.npz is neither a folder, nor", tmp_path / "digits.npz", out)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    refused("empty holds no images .*; left out, .*: 1 .txt", tmp_path / "empty", out)
    refused("has no class with images; two .*; 'unlabeled' beside", folder / "red", out)

    (tmp_path / "one").mkdir()
    (folder / "red").rename(tmp_path / "one" / "red")
    refused("has only one class with images, red; two are needed", tmp_path / "one", out)
    (tmp_path / "one" / "red").rename(folder / "red")

    for path in list((folder / "blue").iterdir())[1:]:
        path.write_bytes(b"")
    refused("every class needs two whole images for training.*'blue' has [01]", folder, out)


def test_where_a_class_has_too_few_images_the_reasons_are_told(folder, tmp_path):
    """Those of its own images, the first of them."""
    (folder / "red" / "broken.png").touch()
    for path in (folder / "blue").iterdir():
        photo(BLUE, (17 * 8, 8)).save(path)
    reason = "136 x 8 pixels are refused: at most 67,108,864 of them, no side over 16 times the"
    words = "; ".join(rf"blue/0\d.png: {reason} other" for _ in range(3))
    refused(f"; 'blue' has 0 for training; {words}; and 5 more$", folder, tmp_path / "mine.npz")


def test_where_none_is_left_for_test_the_reasons_are_told(split_folder, tmp_path):
    (split_folder / "val" / "red" / "x.jpg").write_bytes(b"")
    words = "one must be left for test; none is left; val/red/x.jpg: 0 bytes$"
    refused(words, split_folder, tmp_path / "mine.npz")


# --------------------------------------------------------------------------------------------------
# what is found


def test_a_single_picture_is_found(folder):
    (item,) = folders.find(folder / "red" / "00.png").items
    assert (item.name, item.split, item.label) == ("00.png", "unlabeled", -1)


def labelled(source: Path) -> int:
    """How many images of a source have a class."""
    return sum(item.label >= 0 for item in folders.find(source).items)


def test_links_are_followed_and_their_loops_are_not(folder, tmp_path):
    (tmp_path / "linked").mkdir()
    for name in ("blue", "red"):
        (tmp_path / "linked" / name).symlink_to(folder / name, target_is_directory=True)
    (folder / "red" / "again").symlink_to(folder, target_is_directory=True)
    (folder / "red" / "itself").symlink_to(folder / "red", target_is_directory=True)
    assert labelled(folder) == 20
    assert labelled(tmp_path / "linked") == 20


def test_two_folders_that_link_to_each_other_are_read_once(folder):
    """Real folders go first: each class keeps its own images."""
    (folder / "blue" / "other").symlink_to(folder / "red", target_is_directory=True)
    (folder / "red" / "other").symlink_to(folder / "blue", target_is_directory=True)
    (folder / "red" / "nowhere.png").symlink_to(folder / "gone.png")
    listing = folders.find(folder)
    counts = Counter((item.split, item.label) for item in listing.items)
    assert counts == {("train", 0): 8, ("train", 1): 12, ("unlabeled", -1): 3}
    again, broken = listing.notes
    assert again == (
        "left out, as links that lead to folders that are read already: blue/other and 1 more"
    )
    assert broken == "left out, as links that lead nowhere: red/nowhere.png"


def test_one_folder_under_two_links_is_read_once(folder, tmp_path):
    """The links lie beside each other, and one leads into what the other leads to."""
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "a").symlink_to(folder / "red", target_is_directory=True)
    (linked / "b").symlink_to(folder, target_is_directory=True)
    assert labelled(linked) == 12 + 8 + 3


def test_a_folder_that_cannot_be_listed_is_named(folder, tmp_path, monkeypatch):
    """As on a network drive that stumbles; who runs this may be allowed everything."""
    scandir = os.scandir

    def stumbles(path):
        if Path(path).name == "red":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", stumbles)
    refused(r"can't read .*red \(Permission denied\)", folder, tmp_path / "mine.npz")


def test_a_class_without_images_is_named(folder):
    (folder / "green").mkdir()
    assert folders.find(folder).notes == ["left out, as folders without images: green"]


def test_splits_below_the_classes_are_read_as_one_and_told(folder):
    for name in ("train", "test"):
        shutil.copytree(folder / "red", folder / "blue" / name)
    (note,) = folders.find(folder).notes
    assert note.startswith("test/ and train/ below blue are read as one; ")
    shutil.rmtree(folder / "blue" / "test")
    assert folders.find(folder).notes == []


@pytest.mark.parametrize("train, test", [("train", "test"), ("Training", "Testing"), ("a", "val")])
def test_splits_without_classes_are_no_classes(folder, tmp_path, train, test):
    (folder / "blue").rename(folder / train)
    (folder / "red").rename(folder / test)
    if train == "a":  # one of two is a class like any other, which is said
        _, report = pictures.make(folder, 16, tmp_path / "mine.npz")
        assert "val is taken for a class, since it holds images and no classes" in report.notes
    else:
        words = f"{min(train, test)} and {max(train, test)} are names of splits, and hold images"
        refused(words, folder, tmp_path / "mine.npz")


@pytest.mark.parametrize("train, test", [("Training", "Testing"), ("train", "valid")])
def test_splits_by_their_other_names_are_taken_and_named(folder, tmp_path, train, test):
    for split in (train, test):
        shutil.copytree(folder / "red", folder / split / "red")
        shutil.copytree(folder / "blue", folder / split / "blue")
    shutil.rmtree(folder / "red")
    shutil.rmtree(folder / "blue")
    counts, report = pictures.make(folder, 16, tmp_path / "mine.npz")
    assert counts == {"train": 20, "test": 20, "unlabeled": 3}
    assert f"{test}/ is taken for test" in report.notes
    assert ("Training/ is taken for train" in report.notes) == (train == "Training")


def test_rare_classes_have_an_image_of_test_each(tmp_path):
    """Ten classes of three: a fifth of all would be six, of the first six classes."""
    for label in range(10):
        (tmp_path / "rare" / f"c{label}").mkdir(parents=True)
        for i in range(3):
            photo((20 * label, 0, 80 * i)).save(tmp_path / "rare" / f"c{label}" / f"{i}.png")
    _, report = pictures.make(tmp_path / "rare", 16, tmp_path / "rare.npz")
    assert report.notes[0].count("(2 + 1)") == 10
    assert report.notes[1] == "there is no test: 20 % of every class are held out as one"

    (tmp_path / "rare" / "c4" / "0.png").unlink()
    _, report = pictures.make(tmp_path / "rare", 16, tmp_path / "rarer.npz")
    assert "c4 (2 + 0)" in report.notes[0]
    assert report.notes[1].endswith("but of those that have two images or fewer none")


@pytest.fixture
def on_disk(folder, tmp_path):
    """Hugging Face's data set of the folder's images that have a class."""
    import datasets

    whole = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=tmp_path / "cache")
    names = whole["train"].features["label"].names
    return whole["train"].filter(lambda label: names[label] != "unlabeled", input_columns="label")


def test_a_hugging_face_data_set_on_disk(on_disk, tmp_path):
    on_disk.train_test_split(test_size=5, seed=0).save_to_disk(tmp_path / "disk")
    counts, report = pictures.make(tmp_path / "disk", 16, tmp_path / "mine.npz")
    assert counts == {"train": 15, "test": 5, "unlabeled": 0}
    assert not report.skipped

    mine = data.load("mine", tmp_path)
    assert mine.classes == ("blue", "red")  # and not "unlabeled", a name that no image has
    assert each_is_of_its_class(mine.test)


def test_a_hugging_face_data_set_of_one_part_has_its_test_held_out(on_disk, tmp_path):
    on_disk.save_to_disk(tmp_path / "disk")
    counts, report = pictures.make(tmp_path / "disk", 16, tmp_path / "mine.npz")
    assert counts == {"train": 16, "test": 4, "unlabeled": 0}
    assert report.notes[1] == "there is no test: 20 % of every class are held out as one"


def test_a_hugging_face_data_set_without_images_says_so(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"x": [1, 2]}).save_to_disk(tmp_path / "disk")
    words = "is no data set with .* a column of images .*none of its columns x is of the type Image"
    refused(words, tmp_path / "disk", tmp_path / "mine.npz")


def stored(folder: Path, label, values, more=None) -> Path:
    """A Hugging Face data set: images that are red where value repeats the first, else blue."""
    import datasets

    columns = {"image": [], "label": values} | (more or {})
    for value in values:
        colour = RED if value == values[0] else BLUE
        columns["image"].append({"bytes": saved(photo(colour)), "path": None})
    features = {"image": datasets.Image(), "label": label}
    features |= {name: datasets.Value("int64") for name in more or {}}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.save_to_disk(folder)
    return folder


@pytest.mark.parametrize(
    "kind, values, classes",
    [
        ("int64", [7, 3] * 8, ["3", "7"]),
        ("uint8", [1, 0] * 8, ["0", "1"]),
        ("string", ["red", "blue"] * 8, ["blue", "red"]),
    ],
)
def test_labels_without_the_type_of_classes_are_taken_and_told(kind, values, classes, tmp_path):
    import datasets

    more = {"taken": list(range(len(values)))}  # another column of integers
    stored(tmp_path / "disk", datasets.Value(kind), values, more)
    _, report = pictures.make(tmp_path / "disk", 16, tmp_path / "mine.npz")
    assert "the column 'label' is taken for the classes" in report.notes
    mine = data.load("mine", tmp_path)
    assert list(mine.classes) == classes
    assert each_is_of_its_class(mine.test)


def test_a_row_without_a_label_or_an_image_is_no_error(tmp_path):
    import datasets

    label = datasets.ClassLabel(names=["blue", "red"])
    folder = stored(tmp_path / "disk", label, [1, 0, None, -1] * 4)
    counts, _ = pictures.make(folder, 16, tmp_path / "mine.npz")
    assert counts["unlabeled"] == 8

    whole = {"bytes": saved(photo()), "path": None}
    columns = {"image": [whole, None] * 8, "label": [0, 0, 1, 1] * 4}
    features = datasets.Features({"image": datasets.Image(), "label": label})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "gaps")
    _, report = pictures.make(tmp_path / "gaps", 16, tmp_path / "gaps.npz")
    assert "train 1: the row has no image" in report.skipped


@pytest.mark.parametrize("kind", ["float32", "bool"])
def test_a_table_without_a_column_of_classes_names_its_columns(kind, tmp_path):
    import datasets

    folder = stored(tmp_path / "disk", datasets.Value(kind), [1, 0] * 4)
    words = "none of its columns image, label is of the type ClassLabel, or called 'label'"
    refused(words, folder, tmp_path / "mine.npz")


def test_a_hugging_face_data_set_without_train_names_its_splits(on_disk, tmp_path):
    import datasets

    datasets.DatasetDict(test=on_disk, dev=on_disk).save_to_disk(tmp_path / "disk")
    words = r"is no data set with a split 'train', .*\(its splits are test, dev\)"
    refused(words, tmp_path / "disk", tmp_path / "mine.npz")


def test_a_test_split_without_labels_is_unlabeled(on_disk, tmp_path):
    import datasets

    parts = datasets.DatasetDict(train=on_disk)
    parts["test"] = on_disk.select(range(3)).remove_columns("label")
    for name, part in parts.items():
        part.save_to_disk(tmp_path / "disk" / name)
    (tmp_path / "disk" / "dataset_dict.json").write_text(
        '{"splits": ["train", "test"]}', encoding="utf-8"
    )
    counts, _ = pictures.make(tmp_path / "disk", 16, tmp_path / "mine.npz")
    assert counts == {"train": 16, "test": 4, "unlabeled": 3}


def test_without_the_package_a_hugging_face_data_set_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "state.json").write_text("{}", encoding="utf-8")
    words = r"needs the package datasets.*\[huggingface\]"
    refused(words, tmp_path / "disk", tmp_path / "mine.npz")


def test_accents_are_one_letter_however_they_are_written(tmp_path):
    """macOS writes them apart; train/ and test/ may come from two machines."""
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for split, name in (("train", apart), ("test", composed)):
        for folder in (name, "tea"):
            (tmp_path / "photos" / split / folder).mkdir(parents=True)
            for i in range(3):
                photo().save(tmp_path / "photos" / split / folder / f"{i}.png")
    listing = folders.find(tmp_path / "photos")
    assert listing.classes == [composed, "tea"] and listing.notes == []
    assert {item.name for item in listing.items} >= {f"train/{composed}/0.png", "test/tea/2.png"}
    assert name_of(PureWindowsPath("train") / apart / "0.png") == f"train/{composed}/0.png"

    shutil.copytree(tmp_path / "photos" / "train" / "tea", tmp_path / "photos" / "train" / composed)
    (note,) = folders.find(tmp_path / "photos").notes
    assert note.endswith(f"are one: {composed}")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are in UTF-8")
def test_names_that_are_not_in_utf_8_are_spelt_out(folder, tmp_path):
    green = folder / os.fsdecode(b"gr\xfcn")
    shutil.copytree(folder / "red", green)
    (green / "00.png").rename(green / os.fsdecode(b"\xff.png"))
    listing = folders.find(folder)
    assert listing.classes == ["blue", r"gr\xfcn", "red"]
    assert r"gr\xfcn/\xff.png" in {item.name for item in listing.items}
    (single,) = folders.find(green / os.fsdecode(b"\xff.png")).items
    assert single.name == r"\xff.png"

    pictures.make(folder, 8, tmp_path / "mine.npz")
    assert data.load("mine", tmp_path).classes == ("blue", r"gr\xfcn", "red")
    words = r"--out must have a name in UTF-8, as records hold it, got '\\udcff'"
    refused(words, folder, tmp_path / os.fsdecode(b"\xff.npz"))

    shutil.copytree(folder / "red", folder / r"gr\xfcn")
    words = r"photos has two names that are spelt gr\\xfcn: rename one"
    refused(words, folder, tmp_path / "again.npz")


def test_what_a_killed_import_left_is_removed_by_the_next_one(folder, tmp_path):
    left = tmp_path / ".import-mine"
    left.mkdir()
    (left / "train").write_bytes(b"half")
    pictures.make(folder, 16, tmp_path / "mine.npz")
    assert not left.exists()


def test_a_stop_reads_no_further_pictures():
    read, numbers = [], count(1)

    def source() -> bytes:
        number = next(numbers)
        read.append(number)
        time.sleep(0.02)
        if number == 50:
            # the main thread waits by now: a signal just before it begins to would not wake it
            os.kill(os.getpid(), signal.SIGINT)
        return b"no picture"

    items = [decoding.Item(str(number), "train", 0, source) for number in range(3 * decoding.CHUNK)]
    with pytest.raises(KeyboardInterrupt):
        list(decoding.decoded(items, 8, decoding.Account(), "train"))
    assert len(read) < decoding.CHUNK / 2


def test_two_imports_do_not_make_one_file(folder, tmp_path):
    with only_writer(tmp_path / ".import-mine" / "lock", "mine"):
        with pytest.raises(InputError, match="another process is writing .*mine.npz; try again"):
            pictures.make(folder, 16, tmp_path / "mine.npz")


# --------------------------------------------------------------------------------------------------
# how it is decoded


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(mode: str, colour: int | tuple[int, ...]) -> Image.Image:
    """Of one colour, in whatever way it is stored."""
    return Image.new(mode, (20, 20), colour)


MODES = {
    "grey": (saved(plain("L", 77)), 77),
    "black or white": (saved(plain("1", 1)), 255),
    "16 bits": (saved(plain("I;16", 257 * 100)), 100),
    "white of 16 bits": (saved(plain("I;16", 65535), "TIFF"), 255),
    "palette": (saved(photo().quantize(4), "GIF"), RED),
    "CMYK": (saved(photo(mode="CMYK"), "JPEG", quality=100), RED),
    "transparent": (saved(plain("P", 0), transparency=0), 255),
    "half of black on white": (saved(plain("LA", (0, 128))), 127),
    "a fifth of red on white": (saved(plain("RGBA", (255, 0, 0, 51))), (255, 204, 204)),
}


@pytest.mark.parametrize("content, expected", MODES.values(), ids=MODES)
def test_every_mode_becomes_rgb(content, expected):
    pixels = decoding.decode(content, 16)
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    assert np.allclose(pixels, expected, rtol=0, atol=2)


def test_exif_turns_the_image():
    """Stored on its side with EXIF's orientation 6: to be turned by 90 degrees clockwise."""
    upright = Image.new("RGB", (32, 32), RED)
    upright.paste(BLUE, (16, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(upright.rotate(90, expand=True), exif=exif)
    assert np.array_equal(decoding.decode(content, 32), np.asarray(upright))


def test_the_shorter_side_is_resized_and_the_centre_cut_out():
    wide = Image.new("RGB", (90, 30), BLUE)
    wide.paste(RED, (30, 0, 60, 30))
    assert np.all(decoding.decode(saved(wide), 30) == RED)

    # a large JPEG is decoded smaller
    large = wide.resize((1800, 600), Image.Resampling.NEAREST)
    pixels = decoding.decode(saved(large, "JPEG", quality=95), 30)
    assert np.allclose(pixels[:, 3:-3], RED, rtol=0, atol=4)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        length = struct.pack(">I", len(content))
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return length + kind + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


BROKEN = {
    "empty.jpg": (b"", "0 bytes"),
    "text.png": (b"no image", "cannot identify image file"),
    "cut.jpg": (saved(photo(size=(64, 64)), "JPEG")[:-300], "cannot load this image"),
    "bomb.png": (bomb(60_000, 60_000), "decompression bomb"),
    "large.png": (bomb(9_000, 9_000), "9000 x 9000 pixels are refused"),
    "long.png": (bomb(100_000, 1), "100000 x 1 pixels are refused"),
    "float.tif": (saved(plain("F", 0), "TIFF"), "floating-point pixels have no agreed range"),
}


def grey_of_16_bits(levels: np.ndarray, transparent: int | None = None) -> bytes:
    """A PNG, with its tRNS chunk where a level is transparent."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    height, width = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    declared = b""
    if transparent is not None:
        declared = chunk(b"tRNS", struct.pack(">H", transparent))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
        + declared
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_a_transparent_level_of_16_bits_is_white():
    levels = np.full((16, 16), 257 * 50)
    levels[:8] = 1000
    levels[8:, 8:] = 1001  # of the same eight bits, and opaque
    pixels = decoding.decode(grey_of_16_bits(levels, 1000), 16)
    assert np.all(pixels[:8] == 255)
    assert np.all(pixels[8:, 8:] == 4)
    assert np.all(pixels[8:, :8] == 50)


def test_12_bits_in_16_are_told():
    dark = np.full((16, 16), 4095)
    with pytest.warns(UserWarning, match="lowest 12 of them at most come out nearly black: scale"):
        pixels = decoding.decode(grey_of_16_bits(dark), 16)
    assert np.all(pixels == 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for level in (0, 4096):
            decoding.decode(grey_of_16_bits(np.full((16, 16), level)), 16)


def test_what_is_broken_is_skipped_and_named(folder, tmp_path):
    for name, (content, _) in BROKEN.items():
        (folder / "red" / name).write_bytes(content)
    counts, report = pictures.make(folder, 16, tmp_path / "mine.npz")
    assert sum(counts.values()) == 23

    reasons = dict(line.split(": ", 1) for line in report.skipped)
    assert len(reasons) == len(report.skipped) == len(BROKEN)
    for name, (_, words) in BROKEN.items():
        assert words in reasons[f"red/{name}"]
    assert "7 broken images skipped:\nred/" in str(report)


def test_files_of_several_pages_are_told_and_their_first_is_read(folder, tmp_path):
    """Of TIFFs alone: the frames of an animation are not pictures of their own."""
    more = [photo(RED), photo(RED)]
    photo(BLUE).save(folder / "blue" / "0a.tif", save_all=True, append_images=more)
    photo(BLUE).save(folder / "blue" / "one.tif")
    photo(BLUE).save(folder / "blue" / "x.gif", save_all=True, append_images=more)
    _, report = pictures.make(folder, 16, tmp_path / "mine.npz")
    words = "with several pages the first alone is read: blue/0a.tif"
    assert f"of 1 file {words}" in report.notes
    assert np.all(decoding.decode(folder / "blue" / "0a.tif", 16) == BLUE)

    photo(BLUE).save(folder / "red" / "y.tiff", save_all=True, append_images=more)
    _, report = pictures.make(folder, 16, tmp_path / "two.npz")
    assert f"of 2 files {words} and 1 more" in report.notes
    assert sum("several pages" in note for note in report.notes) == 1


def test_what_is_no_image_by_its_ending_is_left_out_and_said(folder, tmp_path):
    (folder / "red" / "notes.txt").write_text("not looked at", encoding="utf-8")
    (folder / "red" / "new.heic").touch()
    (folder / "red" / "._photo.jpg").write_bytes(b"macOS's")
    counts, report = pictures.make(folder, 16, tmp_path / "mine.npz")
    assert sum(counts.values()) == 23
    assert "left out, as no images by their ending: 1 .heic, 1 .txt" in str(report)
    assert not report.skipped
