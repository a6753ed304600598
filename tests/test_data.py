"""Data sets: splits and draws against their definitions, files that are damaged, and downloads.

What is downloaded is small and made here, in the official layout. Of torchvision only the published
addresses and checksums are replaced, by those of what is made.
"""

import colorsys
import hashlib
import http.server
import io
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy.stats import chisquare
from torch import Tensor

from lib import ROOT, InputError, data
from lib.augmentations import RECIPES, views
from lib.data import downloads
from lib.data.dataset import (
    Dataset,
    Split,
    epoch_order,
    first_of_each_class,
    stratified,
    subsets,
)
from lib.data.oddities import oddities, unused_images
from tests.conftest import arrays

NOWHERE = "http://127.0.0.1:9/none.tar.gz"
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
DIGITS = "854de9cfe3acbd33969392ee89c8ce3775930e24c978dd8cab3684a79a1fe08d"


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def listed(folder: Path, *files: str) -> list[list[str]]:
    """Files with their checksums, as torchvision lists them."""
    return [[file, md5(folder / file)] for file in files]


def noise(*shape: int) -> np.ndarray:
    """Pixels of any values, always the same."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def tensor(images: np.ndarray) -> Tensor:
    """(N, H, W, 3) as (N, 3, H, W)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def each(images: Tensor) -> set[bytes]:
    """The images (N, 3, H, W), told apart by their pixels."""
    return {image.numpy().tobytes() for image in images}


# --------------------------------------------------------------------------------------------------
# what a data set is


def test_digits_are_scikit_learns_enlarged_and_need_no_download():
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    assert digits.size == (32, 32)
    assert digits.classes == tuple("0123456789")
    assert sum(digits.counts.values()) == 1797
    assert digits.counts["test"] == 359

    # an enlargement keeps an image's mean, but for edges and rounding
    whole = digits.train + digits.val + digits.test
    means = whole.images.double().mean((1, 2, 3)).numpy()
    raw = load_digits()
    their_means = raw.images.mean((1, 2)) * 255 / 16
    for label in range(10):
        ours = np.sort(means[whole.labels == label])
        theirs = np.sort(their_means[raw.target == label])
        assert np.abs(ours - theirs).max() < 4


def test_digits_are_the_same_everywhere():
    """The pixels are exact by construction: another fingerprint means another data set."""
    assert data.load("digits").fingerprint == DIGITS


def test_tinted_digits_are_the_digits_each_in_one_hue_that_says_nothing_of_the_digit():
    grey, tinted = data.load("digits"), data.load("tinted-digits")
    assert tinted.fingerprint[:16] == "57bd317d7b787285"
    hues = []
    for split in ("train", "val", "test"):
        of_grey, of_tinted = getattr(grey, split), getattr(tinted, split)
        assert torch.equal(of_grey.labels, of_tinted.labels)
        assert torch.equal(of_grey.images.amax(1), of_tinted.images.amax(1))  # as bright as it was

        for image in of_tinted.images.flatten(2).numpy() / 255:
            red, green, blue = image[:, image.sum(0).argmax()]
            hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
            assert saturation == pytest.approx(0.8, abs=0.005)
            one_hue = np.array(colorsys.hsv_to_rgb(hue, saturation, 1.0))
            assert np.abs(image - one_hue[:, None] * image.max(0)).max() < 1.6 / 255
            hues.append(hue)

    counts = np.histogram(hues, bins=12, range=(0, 1))[0]
    assert chisquare(counts).pvalue > 0.01  # all hues, alike often
    labels = torch.cat([grey.train.labels, grey.val.labels, grey.test.labels])
    order = np.argsort(hues)
    nearest = (labels[order[1:]] == labels[order[:-1]]).double().mean()
    assert 0.08 < nearest < 0.12  # who knows the hue alone guesses


def test_an_npz_under_the_root_is_a_data_set_with_its_variant(toy_root, monkeypatch):
    toy = data.load("toy", toy_root)
    assert toy.name == "toy"
    assert toy.variant == "made up"
    assert toy.classes == tuple("abcd")
    assert toy.train.images.shape == (180, 3, 12, 12)
    assert toy.train.images.dtype == torch.uint8

    monkeypatch.setenv("DATA_ROOT", str(toy_root))
    assert data.load("toy").fingerprint == toy.fingerprint


def test_an_npz_wins_over_the_loader_of_that_name(toy_root):
    (toy_root / "toy.npz").rename(toy_root / "digits.npz")
    assert data.load("digits", toy_root).variant == "made up"


def test_val_is_held_out_of_train_stratified_and_always_the_same(toy):
    assert toy.counts == {"train": 180, "val": 20, "test": 60}
    assert toy.val.labels.bincount().tolist() == [5] * 4

    given = tensor(arrays()["x_train"])
    pool = toy.pool("train+val")
    assert torch.equal(pool.images, given[pool.places])
    assert sorted(pool.places.tolist()) == list(range(200))

    again = data.build("toy", **arrays())
    assert torch.equal(again.val.images, toy.val.images)


def test_a_slice_is_stratified_nested_in_train_and_keeps_test_whole(toy):
    part = toy.take(40)
    assert part.counts == {"train": 36, "val": 4, "test": 60}
    assert part.train.labels.bincount().tolist() == [9] * 4
    assert each(part.val.images) <= each(toy.val.images)
    assert each(part.train.images) <= each(toy.train.images)

    assert toy.take(None) is toy and toy.take(200) is toy
    with pytest.raises(InputError, match="has 200 labelled training images, 201"):
        toy.take(201)
    with pytest.raises(InputError, match="needs 8 images or more, 7 were asked for"):
        toy.take(7)


def test_a_slice_may_have_nearly_all_images_where_small_classes_fill_val():
    """Each of eight classes with two images has one in val, which so is more than a tenth."""
    labels = np.repeat(np.arange(9), [84, *[2] * 8])
    x = np.zeros((100, 12, 12, 3), np.uint8)
    many = data.build("many", x, labels, x[:9], np.arange(9))
    assert many.counts["val"] > 10
    for images in (95, 99):
        part = many.take(images)
        assert images <= len(part.train) + len(part.val) <= 100
        assert set(part.train.labels.tolist()) == set(part.val.labels.tolist()) == set(range(9))


def test_official_folds_are_of_the_whole_and_not_of_a_slice():
    folded = data.build("folded", **arrays(n=480), folds=[torch.arange(20)])
    assert folded.take(480).folds and not folded.take(100).folds


def of_classes(*counts: int) -> Tensor:
    """Labels of so many images of each class, in an order drawn at random."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return torch.from_numpy(np.random.default_rng(0).permutation(labels))


def lowest_ranks(labels: Tensor, n: int) -> list[int]:
    """The n places with the lowest ranks within their classes, of one shuffle."""
    shuffled = np.random.RandomState(0).permutation(len(labels))
    ranks = {}
    for c in labels.unique():
        members = [place for place in shuffled if labels[place] == c]
        for number, place in enumerate(members):
            ranks[place] = (number + 0.5) / len(members)
    return sorted(sorted(range(len(labels)), key=lambda place: ranks[place])[:n])


@pytest.mark.parametrize("counts", [(200,) * 10, (187, 125, 110, 171), (40, 6, 6)])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.37])
def test_where_every_class_has_an_image_the_draw_is_what_it_always_was(counts, share):
    """The published splits rest on it."""
    labels = of_classes(*counts)
    n = round(share * len(labels))
    wanted = lowest_ranks(labels, n)
    assert len(labels[wanted].unique()) == len(counts)
    assert stratified(labels, n).tolist() == wanted


def test_a_class_that_would_have_none_is_given_one_and_no_other_image_moves():
    labels = of_classes(300, 3, 2, 0, 1)
    drawn = stratified(labels, 30)
    assert labels[drawn].bincount().tolist() == [30, 1, 1, 0, 1]
    assert set(lowest_ranks(labels, 30)) < set(drawn.tolist())


def test_no_class_is_left_out_of_a_split_or_a_slice():
    labels = of_classes(300, 3, 3).numpy()
    x = np.zeros((306, 8, 8, 3), np.uint8)
    rare = data.build("rare", x, labels, x, labels)
    assert rare.val.labels.bincount().tolist() == [31, 1, 1]
    assert rare.take(30).train.labels.bincount().tolist() == [27, 1, 1]
    assert rare.take(30).val.labels.bincount().tolist() == [3, 1, 1]
    assert oddities(rare.take(30))[1:] == []


def test_the_digits_are_split_and_scaled_as_they_always_were():
    """And so their runs keep their names."""
    digits = data.load("digits")
    assert digits.fingerprint[:16] == "854de9cfe3acbd33"
    assert digits.moments == ((0.3058,) * 3, (0.324,) * 3)
    digest = hashlib.sha256()
    for split in (digits.train, digits.val, digits.take(1000).train, digits.take(1000).val):
        digest.update(split.places.numpy().tobytes())
    assert digest.hexdigest()[:16] == "b80aa216e38ee7a7"


def of_channels(*scales: float) -> Dataset:
    """Noise in three channels, as wide as told."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3))
    x = (128 + (noise - 128) * np.array(scales)).astype(np.uint8)
    y = np.arange(40) % 2
    return data.build("channels", x, y, x[:4], y[:4])


def test_a_channel_that_does_not_vary_is_scaled_as_the_others():
    """Views turn hues into it: at its own scale they would be thousands."""
    green = of_channels(0, 1, 0)
    (_, (red, own, blue)) = green.moments
    assert red == blue == own == pytest.approx(0.289, abs=0.005)
    mean, std = green.moments
    recipe = replace(RECIPES["supcontrast"], mean=mean, std=std)
    assert views(green.train.images, recipe, 0, 0).abs().max() < 4
    assert oddities(green) == [
        "channels: channels that do not vary from pixel to pixel, and are scaled as the one that "
        "varies most: red, blue"
    ]


def test_channels_that_vary_little_keep_their_scale_and_flat_ones_have_1():
    assert of_channels(0.1, 1, 0.05).moments[1] == pytest.approx((0.029, 0.29, 0.0145), rel=0.1)
    assert of_channels(0, 0, 0).moments[1] == (1.0, 1.0, 1.0)
    assert oddities(of_channels(0.1, 1, 0.05)) == []


def test_images_without_labels_that_a_pool_leaves_out_are_told(toy):
    mine = data.build("mine", **arrays(unlabeled=30))
    assert (
        unused_images(mine, "train")
        == unused_images(mine, "train+val")
        == ["mine: 30 images without labels left out; --set pool=unlabeled trains on them"]
    )
    assert unused_images(mine, "unlabeled") == unused_images(toy, "train") == []


def test_the_fingerprint_tells_every_change(toy):
    changes = [{}, {"variant": "x"}, {"classes": tuple("aaaa")}]
    for name, split in toy.splits.items():
        images = split.images.clone()
        images[0, 0, 0, 0] ^= 1
        changes.append({name: Split(images, split.labels)})
        changes.append({name: Split(split.images, split.labels.roll(1))})

    fingerprints = {replace(toy, **change).fingerprint for change in changes}
    assert len(fingerprints) == 9


def test_moments_are_those_of_the_pixels(toy):
    mean, std = toy.moments
    x = toy.train.images.double() / 255
    std_of_pixels, mean_of_pixels = torch.std_mean(x, (0, 2, 3), correction=0)
    assert mean == pytest.approx(mean_of_pixels.tolist(), abs=1e-4)
    assert std == pytest.approx(std_of_pixels.tolist(), abs=1e-4)


def test_pools(toy):
    assert len(toy.pool("train")) == 180
    assert len(toy.pool("train+val")) == 200
    assert len(toy.pool("unlabeled")) == 200
    with pytest.raises(InputError, match="unknown pool 'trian'"):
        toy.pool("trian")

    unlabeled = data.build("toy", **arrays(unlabeled=30)).pool("unlabeled")
    assert len(unlabeled) == 30
    assert unlabeled.labels is None


def test_random_subsets_are_balanced_nested_in_nothing_and_always_the_same(toy):
    pool = toy.pool("train+val")
    drawn = subsets(pool, 5, 3)
    again = subsets(pool, 5, 3)
    for number, rows in enumerate(drawn):
        assert pool.labels[rows].bincount().tolist() == [5] * 4
        assert torch.equal(rows, again[number])
    assert len({frozenset(rows.tolist()) for rows in drawn}) == 3
    with pytest.raises(InputError, match="a class has 50 images, 51 were asked for"):
        subsets(pool, 51, 1)


def test_the_first_of_each_class_are_so_in_the_official_order(toy):
    """Whose classes take turns."""
    pool = toy.pool("train+val")
    chosen = pool[first_of_each_class(pool, 3)]
    assert sorted(chosen.places.tolist()) == list(range(12))

    given = tensor(arrays()["x_train"])
    assert torch.equal(chosen.images, given[chosen.places])


def test_an_order_is_one_of_seed_and_epoch():
    orders = set()
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 1)):
        places = epoch_order(20, seed, epoch).tolist()
        assert sorted(places) == list(range(20))
        orders.add(tuple(places))
    assert len(orders) == 4


# --------------------------------------------------------------------------------------------------
# arrays and files that are none


@pytest.mark.parametrize(
    "change, words",
    [
        ({"x_train": arrays()["x_train"] / 1}, r"x_train must be uint8 \(N, H, W, 3\), got float"),
        ({"x_test": arrays()["x_test"][..., :1]}, "x_test must be uint8"),
        ({"x_test": arrays(size=16)["x_test"]}, r"x_test has images of \(16, 16, 3\)"),
        ({"x_test": arrays()["x_test"][:0]}, "x_test must be uint8"),
        ({"x_train": noise(200, 0, 0, 3)}, "x_train must be"),
        ({"x_unlabeled": noise(9, 12, 12)}, "x_unlabeled must be uint8"),
        ({"y_train": np.arange(5)}, "y_train must be 200 integers"),
        ({"y_train": np.full(200, "a")}, "y_train must be 200 integers"),
        ({"y_test": np.zeros(60)}, "y_test must be 60 integers, got float64"),
        ({"y_test": np.full(60, -1)}, "y_test has the label -1, outside"),
        ({"y_test": np.full(60, 10**9)}, "the label 1000000000 means more classes"),
        ({"classes": ["a", "b"]}, r"y_train has the label 2, outside 0\.\.1"),
        ({"classes": list("abcde")}, r"needs two training images .*, class 4 \('e'\) has 0"),
        ({"classes": [["a", "b"]]}, "classes must be a list of names"),
    ],
)
def test_wrong_arrays_are_named(change, words):
    with pytest.raises(InputError, match=f"toy: .*{words}"):
        data.build("toy", **arrays() | change)


def refused(name: str, root: Path, words: str) -> None:
    """A data set's file is refused, in such words."""
    with pytest.raises(InputError, match=f"{name}.npz {words}"):
        data.load(name, root)


def test_a_file_that_was_cut_is_not_whole(toy_root):
    whole = (toy_root / "toy.npz").read_bytes()
    half = len(whole) // 2
    for end in (0, 10, half, -10):
        (toy_root / "cut.npz").write_bytes(whole[:end])
        refused("cut", toy_root, "is not a whole .npz file")


def test_a_compressed_file_with_a_hole_is_not_whole(tmp_path):
    path = tmp_path / "squeezed.npz"
    np.savez_compressed(path, **arrays())
    content = path.read_bytes()
    third = len(content) // 3
    path.write_bytes(content[:third] + bytes(third) + content[2 * third :])
    refused("squeezed", tmp_path, "is not a whole .npz file")


def test_files_of_another_kind_are_not_whole(tmp_path):
    (tmp_path / "text.npz").write_text("hello", encoding="utf-8")
    with open(tmp_path / "single.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(key, b"nothing of numpy's")
    for name in ("text", "single", "zip"):
        refused(name, tmp_path, "is not a whole .npz file")


def test_a_pickle_inside_is_never_opened(tmp_path):
    objects = np.array([{}, 1], dtype=object)
    np.savez(tmp_path / "objects.npz", **arrays() | {"classes": objects})
    refused("objects", tmp_path, "is not a whole .npz file")


def test_missing_arrays_and_files_are_named(tmp_path):
    np.savez(tmp_path / "less.npz", x_train=np.zeros(3))
    refused("less", tmp_path, "lacks the arrays x_test, y_test, y_train")
    np.savez(tmp_path / "least.npz", x_train=0, y_train=0, x_test=0)
    refused("least", tmp_path, "lacks the array y_test")

    with pytest.raises(InputError, match="unknown data set 'nothing'.*digits.*, least, less"):
        data.load("nothing", tmp_path)
    with pytest.raises(InputError, match="is its file's without .npz, 'less'"):
        data.load("less.npz", tmp_path)


# --------------------------------------------------------------------------------------------------
# CIFAR-10


@pytest.fixture
def cifar10(tmp_path, monkeypatch) -> dict[str, np.ndarray]:
    """A small CIFAR-10 under tmp_path; its images (20, 3, 32, 32) by file."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    batches = [f"data_batch_{number}" for number in range(1, 6)]
    files = [*batches, "test_batch"]
    images = dict(zip(files, noise(6, 20, 3, 32, 32), strict=True))
    for name, pixels in images.items():
        content = {"data": pixels.reshape(20, -1), "labels": [*range(10)] * 2}
        (folder / name).write_bytes(pickle.dumps(content))
    meta = folder / "batches.meta"
    meta.write_bytes(pickle.dumps({"label_names": CIFAR10}))

    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "url", NOWHERE)
    monkeypatch.setattr(kind, "train_list", listed(folder, *batches))
    monkeypatch.setattr(kind, "test_list", listed(folder, "test_batch"))
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(meta)})
    return images


def test_cifar10_in_its_official_format(cifar10, tmp_path):
    cifar = data.load("cifar10", tmp_path)
    assert cifar.classes == tuple(CIFAR10)
    assert cifar.counts == {"train": 90, "val": 10, "test": 20}
    assert torch.equal(cifar.test.images, torch.from_numpy(cifar10["test_batch"]))


def test_a_cifar10_of_another_checksum_is_not_unpickled(cifar10, tmp_path):
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="can't get cifar10 into .*put cifar10.npz there"):
        data.load("cifar10", tmp_path)


def test_what_is_not_there_is_not_fetched_where_that_is_not_wanted(cifar10, tmp_path):
    """Nor made of what is there in part; torchvision takes any folder for a whole Imagenette."""
    assert data.load("cifar10", tmp_path, download=False).name == "cifar10"
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    (tmp_path / "imagenette2-320").mkdir()
    for name in ("cifar10", "imagenette96", "stl10"):
        with pytest.raises(InputError, match=f"^{name} is not in .*, or not whole"):
            data.load(name, tmp_path, download=False)


@pytest.mark.parametrize(
    "name, file",
    [("cifar10", "cifar-10-batches-py/test_batch"), ("stl10", "stl10_binary/test_X.bin")],
)
def test_data_that_are_there_are_only_read(name, file, request, tmp_path, monkeypatch):
    """The lock is somebody else's, whom nobody can wait for; Python can't unpack safely."""
    request.getfixturevalue(name)
    (tmp_path / f".{name}.lock").mkdir()
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    assert data.load(name, tmp_path).name == name

    (tmp_path / file).unlink()
    with pytest.raises(InputError, match=r"can't write .*\.lock"):
        data.load(name, tmp_path)
    (tmp_path / f".{name}.lock").rmdir()
    with pytest.raises(InputError, match="use 3.11.4 or newer"):
        data.load(name, tmp_path)
    mode = (tmp_path / f".{name}.lock").stat().st_mode
    assert mode & 0o666 == 0o666  # whoever shares the folder can wait


def test_a_root_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="can't get cifar10 into"):
        data.load("cifar10", tmp_path / "file" / "below")


def test_a_server_that_says_nothing_is_given_up(tmp_path, monkeypatch):
    """It takes the connection and never answers."""
    monkeypatch.setattr(downloads, "TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/none"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
        started = time.monotonic()
        with pytest.raises(InputError, match="can't get cifar10 into .*timed out.*the network"):
            data.load("cifar10", tmp_path)

    assert time.monotonic() - started < 10
    assert socket.getdefaulttimeout() is None


# --------------------------------------------------------------------------------------------------
# STL-10


@pytest.fixture
def stl10(tmp_path, monkeypatch) -> dict[str, np.ndarray]:
    """A small STL-10 under tmp_path; its images (N, 96, 96, 3) by split.

    Raw bytes, image by image, channel by channel, column by column; labels from 1; ten folds.
    """
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    pixels = noise(62, 96, 96, 3)
    images = {"train": pixels[:40], "test": pixels[40:50], "unlabeled": pixels[50:]}
    for split, x in images.items():
        x.transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")
    labels = np.arange(40, dtype=np.uint8) % 10 + 1
    labels.tofile(folder / "train_y.bin")
    labels[:10].tofile(folder / "test_y.bin")
    names = [f"class {label}" for label in range(10)]
    (folder / "class_names.txt").write_text("\n".join(names), encoding="utf-8")
    folds = [f"{i} {i + 10} {i + 20} " for i in range(10)]
    (folder / "fold_indices.txt").write_text("\n".join(folds), encoding="utf-8")

    training = listed(folder, "train_X.bin", "train_y.bin", "unlabeled_X.bin")
    kind = torchvision.datasets.STL10
    monkeypatch.setattr(kind, "url", NOWHERE)
    monkeypatch.setattr(kind, "train_list", training)
    monkeypatch.setattr(kind, "test_list", listed(folder, "test_X.bin", "test_y.bin"))
    return images


def test_stl10_in_its_official_format(stl10, tmp_path):
    stl = data.load("stl10", tmp_path)
    assert stl.counts == {"train": 30, "val": 10, "test": 10, "unlabeled": 12}
    assert stl.classes[9] == "class 9"
    assert stl.test.labels.tolist() == list(range(10))

    pool = stl.pool("train+val")
    assert torch.equal(pool.images, tensor(stl10["train"])[pool.places])
    assert torch.equal(stl.test.images, tensor(stl10["test"]))
    assert torch.equal(stl.pool("unlabeled").images, tensor(stl10["unlabeled"]))


def test_stl10s_folds_are_torchvisions(stl10, tmp_path):
    stl = data.load("stl10", tmp_path)
    assert len(stl.folds) == 10
    for number, fold in enumerate(stl.folds):
        assert fold.tolist() == [number, number + 10, number + 20]
        theirs = torchvision.datasets.STL10(tmp_path, split="train", folds=number)
        ours = tensor(stl10["train"])[fold]
        assert torch.equal(torch.from_numpy(theirs.data), ours)


def test_a_large_file_of_images_stays_where_it_is(stl10, tmp_path, monkeypatch):
    file = tmp_path / "stl10_binary" / "unlabeled_X.bin"
    content = file.read_bytes()
    resident = data.load("stl10", tmp_path)
    monkeypatch.setattr(downloads, "RESIDENT", 10 * 96 * 96 * 3)
    mapped = data.load("stl10", tmp_path)
    assert mapped.fingerprint == resident.fingerprint
    ours, theirs = mapped.unlabeled.images, resident.unlabeled.images
    assert torch.equal(ours[[7, 2]], theirs[[7, 2]])

    assert theirs.is_contiguous() and not ours.is_contiguous()
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(file) in maps.read_text(encoding="utf-8")

    ours[0] = 0  # whoever writes to it writes to a copy
    assert file.read_bytes() == content


@pytest.mark.parametrize("file", ["test_y.bin", "unlabeled_X.bin"])
def test_a_partial_stl10_is_refused(stl10, tmp_path, file):
    (tmp_path / "stl10_binary" / file).write_bytes(b"\x01")
    with pytest.raises(InputError, match="can't get stl10 into"):
        data.load("stl10", tmp_path)


@pytest.mark.parametrize(
    "lines, words",
    [
        (["0 1 2"] * 9, "must hold ten lines of different places below 40"),
        (["0 1 1"] * 10, "must hold ten lines of different places"),
        (["0 1 40"] * 10, "must hold ten lines of different places"),
        (["0 1 -1"] * 10, "must hold ten lines of different places"),
        (["<html>"] * 10, "can't be read as folds"),
    ],
)
def test_wrong_folds_are_refused(stl10, tmp_path, lines, words):
    """They are the one file of STL-10 without a published checksum."""
    path = tmp_path / "stl10_binary" / "fold_indices.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=f"fold_indices.txt {words}"):
        data.load("stl10", tmp_path)


# --------------------------------------------------------------------------------------------------
# Imagenette


def published(monkeypatch, archive: Path, url: str = NOWHERE) -> None:
    """Let an archive be the official one, with its checksum."""
    kind = torchvision.datasets.Imagenette
    monkeypatch.setattr(kind, "_ARCHIVES", {"320px": (f"{url}/{archive.name}", md5(archive))})


@pytest.fixture
def archive(tmp_path, monkeypatch) -> Path:
    """A small Imagenette's archive, published: folders of JPEGs, some upright, some wide."""
    build = tmp_path / "build" / "imagenette2-320"
    wnids = list(torchvision.datasets.Imagenette._WNID_TO_CLASS)
    sizes = [(320, 439), (481, 320), (320, 320)]
    for split, count in (("train", 3), ("val", 2)):
        for wnid, pixels in zip(wnids, noise(10, 3, 8, 8, 3), strict=True):
            folder = build / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(pixels[i]).resize(sizes[i])
                image.save(folder / f"{split}_{i}.JPEG")

    path = tmp_path / "imagenette2-320.tgz"
    with tarfile.open(path, "w:gz") as file:
        file.add(build, "imagenette2-320")
    published(monkeypatch, path)
    monkeypatch.setattr(downloads, "IMAGENETTE", (30, 20))
    return path


def shrunken(image: Image.Image) -> np.ndarray:
    """By Pillow's own resize and crop, the sides written out: (96, 96, 3)."""
    longer = int(96 * max(image.size) / min(image.size))
    start = round((longer - 96) / 2)
    if image.width < image.height:
        size, box = (96, longer), (0, start, 96, start + 96)
    else:
        size, box = (longer, 96), (start, 0, start + 96, 96)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS).crop(box))


def test_imagenette96_is_made_from_the_official_archive_and_kept(archive, monkeypatch):
    root = archive.parent
    made = data.load("imagenette96", root)
    assert made.size == (96, 96) and "Lanczos" in made.variant
    assert made.classes[:2] == ("tench", "English springer")
    assert made.counts == {"train": 20, "val": 10, "test": 20}

    files = sorted((root / "imagenette2-320" / "val").rglob("*.JPEG"))
    assert len(files) == 20
    for place, path in enumerate(files):
        ours = made.test.images[place].permute(1, 2, 0)
        assert np.array_equal(ours, shrunken(Image.open(path)))
        assert made.test.labels[place] == place // 2

    # what is unpacked needs no Python that unpacks safely
    (root / "imagenette96.npz").unlink()
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    assert data.load("imagenette96", root).fingerprint == made.fingerprint

    (root / "imagenette2-320" / "val").rename(root / "gone")
    assert data.load("imagenette96", root).fingerprint == made.fingerprint


def test_an_imagenette_that_was_cut_is_refused(archive):
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(InputError, match="can't get imagenette96 into .*delete what is partial"):
        data.load("imagenette96", archive.parent)
    assert not (archive.parent / "imagenette2-320").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    "damage, words",
    [
        (cut, "JPEG is not a whole image"),
        (Path.unlink, "holds 29 of 30 images for train.*delete the folder"),
    ],
)
def test_a_partly_unpacked_or_damaged_imagenette_is_refused(archive, damage, words):
    root = archive.parent
    data.load("imagenette96", root)
    (root / "imagenette96.npz").unlink()
    damage(next((root / "imagenette2-320" / "train").rglob("*.JPEG")))
    with pytest.raises(InputError, match=words):
        data.load("imagenette96", root)
    assert not list(root.glob("*.npz"))


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside-of-everything.txt", "link"])
def test_an_archive_cannot_write_outside_of_its_folder(tmp_path, monkeypatch, name):
    """In the official archive's place, its checksum right."""
    root = tmp_path / "root"
    root.mkdir()
    path = root / "imagenette2-320.tgz"
    with tarfile.open(path, "w:gz") as file:
        if name == "link":
            link = tarfile.TarInfo("imagenette2-320")
            link.type, link.linkname = tarfile.SYMTYPE, ".."
            file.addfile(link)
            name = "imagenette2-320/outside.txt"
        member = tarfile.TarInfo(name)
        member.size = 4
        file.addfile(member, io.BytesIO(b"evil"))
    published(monkeypatch, path)

    with pytest.raises(InputError, match="can't get imagenette96 into .*delete what is partial"):
        data.load("imagenette96", root)
    assert not list(tmp_path.glob("outside*"))
    assert not Path("/tmp/outside-of-everything.txt").exists()
    assert getattr(tarfile.TarFile, "extraction_filter", None) is None  # as it was


@pytest.fixture
def serve() -> Iterator[Callable[[bytes, float], str]]:
    """A function of content and a share of it: the address of a server that sends so much."""
    servers = []

    def start(content: bytes, share: float) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.end_headers()

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: int(share * len(content))])

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_download_that_breaks_off_is_refused_and_made_anew(archive, tmp_path, monkeypatch, serve):
    root, content = tmp_path / "root", archive.read_bytes()
    published(monkeypatch, archive, serve(content, 0.5))
    with pytest.raises(InputError, match="can't get imagenette96 into"):
        data.load("imagenette96", root)
    assert not (root / "imagenette2-320").exists()

    published(monkeypatch, archive, serve(content, 1))
    made: Dataset = data.load("imagenette96", root)
    assert made.counts["test"] == 20


def test_names_that_numpy_keeps_as_bytes_are_text(tmp_path):
    given = arrays(n=40) | {"classes": np.array([b"cat", b"dog", b"cow", b"eel"])}
    np.savez(tmp_path / "mine.npz", **given, variant=np.bytes_(b"small"))
    mine = data.load("mine", tmp_path)
    assert mine.classes == ("cat", "dog", "cow", "eel")
    assert mine.variant == "small"


def test_names_that_no_record_can_hold_are_spelt_out(tmp_path):
    given = arrays(n=40) | {"classes": np.array(["gr\udcfcn", "dog", "cow", "eel"])}
    np.savez(tmp_path / "mine.npz", **given)
    assert data.load("mine", tmp_path).classes == (r"gr\xfcn", "dog", "cow", "eel")


def test_an_installed_copy_keeps_nothing_among_the_packages(tmp_path):
    """It works where it is called."""
    packages = tmp_path / "site-packages"
    shutil.copytree(ROOT / "lib", packages / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    code = """
from lib.data import data_root
from lib.runs import RUNS, records
from lib.weights import REGISTRY
for path in (RUNS, records.RESULTS, data_root(), REGISTRY):
    print(path.absolute())
"""
    environment = os.environ | {"PYTHONPATH": str(packages)}
    environment.pop("DATA_ROOT", None)
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-c", code]
    said = subprocess.check_output(
        command, cwd=work, env=environment, text=True, timeout=300, encoding="utf-8"
    )
    names = ("runs", "results", "data", "weights/registry.yml")
    assert said.split() == [str(work / name) for name in names]
