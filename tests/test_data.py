import hashlib
import http.server
import io
import pickle
import socket
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from lib import InputError, data, downloads
from tests.conftest import arrays


def test_digits_are_scikit_learns_enlarged_and_need_no_download():
    from sklearn.datasets import load_digits

    digits, raw = data.load("digits"), load_digits()
    assert digits.size == (32, 32) and digits.classes == tuple("0123456789")
    assert sum(digits.counts.values()) == 1797 and digits.counts["test"] == 359
    means = {
        label: [] for label in range(10)
    }  # an enlargement keeps the mean, but for edges and rounding
    for split in digits.splits.values():
        for image, label in zip(split.images, split.labels):
            means[int(label)].append(float(image.float().mean()))
    for label in range(10):
        theirs = np.sort(raw.images[raw.target == label].mean((1, 2))) * 255 / 16
        assert np.abs(np.sort(means[label]) - theirs).max() < 4


def test_digits_are_the_same_everywhere():
    """The pixels are exact by construction: another fingerprint means another data set."""
    assert (
        data.load("digits").fingerprint
        == "854de9cfe3acbd33969392ee89c8ce3775930e24c978dd8cab3684a79a1fe08d"
    )


def test_an_npz_under_the_root_is_a_data_set_with_its_variant(toy_root, monkeypatch):
    toy = data.load("toy", toy_root)
    assert (toy.name, toy.variant, toy.classes) == ("toy", "made up", ("a", "b", "c", "d"))
    assert toy.train.images.dtype == torch.uint8 and toy.train.images.shape[1:] == (3, 12, 12)
    monkeypatch.setenv("DATA_ROOT", str(toy_root))
    assert data.load("toy").fingerprint == toy.fingerprint


def test_an_npz_wins_over_the_loader_of_that_name(toy_root):
    (toy_root / "toy.npz").rename(toy_root / "digits.npz")
    assert data.load("digits", toy_root).variant == "made up"


def test_val_is_held_out_of_train_stratified_and_always_the_same(toy):
    given = arrays()
    assert toy.counts == {"train": 180, "val": 20, "test": 60}
    assert torch.bincount(toy.val.labels).tolist() == [5] * 4
    both = torch.cat([toy.train.images, toy.val.images]).permute(0, 2, 3, 1).numpy()
    assert {x.tobytes() for x in both} == {x.tobytes() for x in given["x_train"]}
    assert torch.equal(data.build("toy", **arrays()).val.images, toy.val.images)


def test_a_slice_is_stratified_nested_in_train_and_keeps_test_whole(toy):
    part = toy.take(40)
    assert part.counts == {"train": 36, "val": 4, "test": 60}
    assert torch.bincount(part.train.labels).tolist() == [9] * 4
    assert {x.numpy().tobytes() for x in part.val.images} <= {
        x.numpy().tobytes() for x in toy.val.images
    }
    assert {x.numpy().tobytes() for x in part.train.images} <= {
        x.numpy().tobytes() for x in toy.train.images
    }
    assert toy.take(None) is toy and toy.take(200) is toy
    with pytest.raises(InputError, match="has 200 labelled training images, 201"):
        toy.take(201)
    with pytest.raises(InputError, match="needs 8 images or more, 7 were asked for"):
        toy.take(7)
    with pytest.raises(InputError, match="unknown pool 'trian'"):
        toy.pool("trian")


def test_the_fingerprint_tells_every_change(toy):
    prints = {
        toy.fingerprint,
        replace(toy, variant="x").fingerprint,
        replace(toy, classes=("a",) * 4).fingerprint,
    }
    for split in ("train", "val", "test"):
        changed = getattr(toy, split)[:]
        changed.images[0, 0, 0, 0] ^= 1
        prints.add(
            replace(toy, **{split: data.Split(changed.images.clone(), changed.labels)}).fingerprint
        )
        changed.images[0, 0, 0, 0] ^= 1
        prints.add(
            replace(toy, **{split: data.Split(changed.images, changed.labels.roll(1))}).fingerprint
        )
    assert len(prints) == 9


def test_moments_are_those_of_the_pixels(toy):
    mean, std = toy.moments
    x = toy.train.images.double() / 255
    assert mean == pytest.approx(x.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert std == pytest.approx(x.std((0, 2, 3), unbiased=False).tolist(), abs=1e-4)


def test_pools(toy):
    with_more = data.build("toy", **arrays(unlabeled=30))
    assert [len(toy.pool(name)) for name in ("train", "train+val", "unlabeled")] == [180, 200, 200]
    assert len(with_more.pool("unlabeled")) == 30 and with_more.pool("unlabeled").labels is None


def changed(**arrays_):
    return arrays() | arrays_


@pytest.mark.parametrize(
    "given, words",
    [
        (
            changed(x_train=arrays()["x_train"].astype(np.float32)),
            r"x_train must be uint8 \(N, H, W, 3\), got float32",
        ),
        (changed(x_test=arrays()["x_test"][..., :1]), "x_test must be uint8"),
        (changed(x_test=arrays(size=16)["x_test"]), r"x_test has images of \(16, 16, 3\)"),
        (changed(x_test=arrays()["x_test"][:0]), "x_test must be uint8"),
        (changed(y_train=np.arange(5)), "y_train must be 200 integers"),
        (changed(y_train=np.full(200, "a")), "y_train must be 200 integers"),
        (changed(y_test=np.zeros(60)), "y_test must be 60 integers, got float64"),
        (changed(y_test=np.full(60, -1)), "y_test has the label -1, outside"),
        (changed(classes=["a", "b"]), r"y_train has the label 2, outside 0\.\.1"),
        (
            changed(classes=list("abcde")),
            r"every class needs two training images or more, class 4 \('e'\) has 0",
        ),
        (changed(classes=[["a", "b"]]), "classes must be a list of names"),
        (changed(y_test=np.full(60, 10**9)), "the label 1000000000 means more classes"),
        (
            changed(
                x_train=np.zeros((200, 0, 0, 3), np.uint8), x_test=np.zeros((60, 0, 0, 3), np.uint8)
            ),
            "x_train must be",
        ),
    ],
)
def test_wrong_arrays_are_named(given, words):
    with pytest.raises(InputError, match=words):
        data.build("toy", **given)


def test_damaged_and_foreign_files_are_named(toy_root):
    whole = (toy_root / "toy.npz").read_bytes()
    for place in (0, 10, len(whole) // 2, len(whole) - 10):
        (toy_root / "cut.npz").write_bytes(whole[:place])
        with pytest.raises(InputError, match="cut.npz is not a whole .npz file"):
            data.load("cut", toy_root)
    squeezed = toy_root / "squeezed.npz"
    np.savez_compressed(squeezed, **arrays())
    torn = bytearray(squeezed.read_bytes())
    torn[len(torn) // 3 : len(torn) // 2] = bytes(len(torn) // 2 - len(torn) // 3)
    squeezed.write_bytes(torn)
    np.save(toy_root / "single", np.zeros(3))
    (toy_root / "single.npy").rename(toy_root / "single.npz")
    with zipfile.ZipFile(toy_root / "zip.npz", "w") as file:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            file.writestr(key, b"nothing of numpy's")
    for name in ("squeezed", "single", "zip"):
        with pytest.raises(InputError, match=f"{name}.npz is not a whole .npz file"):
            data.load(name, toy_root)
    (toy_root / "text.npz").write_text("hello")
    with pytest.raises(InputError, match="text.npz is not a whole"):
        data.load("text", toy_root)
    np.savez(toy_root / "less.npz", x_train=np.zeros(3))
    with pytest.raises(InputError, match="less.npz lacks the arrays x_test, y_test, y_train"):
        data.load("less", toy_root)
    np.savez(toy_root / "objects.npz", **arrays() | {"classes": np.array([{}, 1], dtype=object)})
    with pytest.raises(
        InputError, match="objects.npz is not a whole"
    ):  # a pickle inside is never opened
        data.load("objects", toy_root)
    with pytest.raises(InputError, match="unknown data set 'nothing'.*digits"):
        data.load("nothing", toy_root)


def test_cifar10_in_its_official_format_after_its_checksum(tmp_path, monkeypatch):
    """A small archive in the official layout; torchvision reads the pickles only where the md5 is
    right."""
    folder, random = tmp_path / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir()
    images = {}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        images[name] = random.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
        content = {"data": images[name].reshape(20, -1), "labels": [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(content))
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))

    def md5(name):
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(
        kind, "train_list", [[f"data_batch_{i}", md5(f"data_batch_{i}")] for i in range(1, 6)]
    )
    monkeypatch.setattr(kind, "test_list", [["test_batch", md5("test_batch")]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5("batches.meta")})
    cifar = data.load("cifar10", tmp_path)
    assert cifar.classes == tuple(names) and cifar.counts == {"train": 90, "val": 10, "test": 20}
    assert torch.equal(cifar.test.images, torch.from_numpy(images["test_batch"]))

    (folder / "test_batch").write_bytes((folder / "test_batch").read_bytes()[:-1])
    monkeypatch.setattr(kind, "url", "http://127.0.0.1:9/none.tar.gz")
    with pytest.raises(InputError, match="can't get cifar10 into .*put cifar10.npz there"):
        data.load("cifar10", tmp_path)


@pytest.fixture
def stl10_root(tmp_path, monkeypatch):
    """A small STL-10: raw bytes, image by image, channel by channel, column by column; labels from
    1; ten folds."""
    folder, random = tmp_path / "stl10_binary", np.random.default_rng(0)
    folder.mkdir()
    images = {
        name: random.integers(0, 256, (n, 96, 96, 3), dtype=np.uint8)
        for name, n in (("train", 40), ("test", 10), ("unlabeled", 12))
    }
    for name, x in images.items():
        x.transpose(0, 3, 2, 1).tofile(folder / f"{name}_X.bin")
    for name, n in (("train", 40), ("test", 10)):
        (np.arange(n, dtype=np.uint8) % 10 + 1).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    (folder / "fold_indices.txt").write_text(
        "\n".join(f"{i} {i + 10} {i + 20} " for i in range(10))
    )

    def listed(*files):
        return [[file, hashlib.md5((folder / file).read_bytes()).hexdigest()] for file in files]

    kind = torchvision.datasets.STL10
    monkeypatch.setattr(kind, "train_list", listed("train_X.bin", "train_y.bin", "unlabeled_X.bin"))
    monkeypatch.setattr(kind, "test_list", listed("test_X.bin", "test_y.bin"))
    monkeypatch.setattr(kind, "url", "http://127.0.0.1:9/none.tar.gz")
    return tmp_path, images


def test_stl10_in_its_official_format(stl10_root):
    root, images = stl10_root
    stl = data.load("stl10", root)
    assert (
        stl.counts == {"train": 30, "val": 10, "test": 10, "unlabeled": 12}
        and stl.classes[9] == "class 9"
    )
    assert torch.equal(stl.test.images, torch.from_numpy(images["test"]).permute(0, 3, 1, 2))
    assert torch.equal(
        stl.unlabeled.images, torch.from_numpy(images["unlabeled"]).permute(0, 3, 1, 2)
    )
    assert stl.test.labels.tolist() == list(range(10)) and len(stl.pool("unlabeled")) == 12
    assert [fold.tolist() for fold in stl.folds] == [[i, i + 10, i + 20] for i in range(10)]
    pool = stl.pool("train+val")
    assert torch.equal(
        torch.from_numpy(images["train"]).permute(0, 3, 1, 2)[pool.places], pool.images
    )
    theirs = torchvision.datasets.STL10(root, split="train", folds=3)
    assert np.array_equal(theirs.data, images["train"].transpose(0, 3, 1, 2)[stl.folds[3]])


def test_a_large_file_of_images_stays_where_it_is(stl10_root, monkeypatch):
    root, images = stl10_root
    resident = data.load("stl10", root)
    monkeypatch.setattr(downloads, "RESIDENT", 10 * 96 * 96 * 3)
    mapped = data.load("stl10", root)
    assert mapped.fingerprint == resident.fingerprint
    assert torch.equal(
        mapped.unlabeled[torch.tensor([7, 2])].images,
        resident.unlabeled[torch.tensor([7, 2])].images,
    )
    assert not mapped.unlabeled.images.is_contiguous() and resident.unlabeled.images.is_contiguous()
    file = root / "stl10_binary" / "unlabeled_X.bin"
    assert str(file) in Path("/proc/self/maps").read_text() or not Path("/proc/self/maps").exists()
    mapped.unlabeled.images[0] = 0  # whoever writes to it writes to a copy
    assert np.array_equal(
        np.fromfile(file, np.uint8), images["unlabeled"].transpose(0, 3, 2, 1).ravel()
    )


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("test_y.bin", b"\x01", "can't get stl10 into"),
        ("unlabeled_X.bin", b"\x01" * 1000, "can't get stl10 into"),
        (
            "fold_indices.txt",
            b"0 1 2\n" * 9,
            "fold_indices.txt must hold ten lines of different places below 40",
        ),
        ("fold_indices.txt", b"0 1 1\n" * 10, "must hold ten lines of different places"),
        ("fold_indices.txt", b"0 1 40\n" * 10, "must hold ten lines of different places"),
        ("fold_indices.txt", b"<html>\n" * 10, "can't be read as folds"),
    ],
)
def test_a_partial_or_wrong_stl10_is_refused(stl10_root, file, content, words):
    root, _ = stl10_root
    (root / "stl10_binary" / file).write_bytes(content)
    with pytest.raises(InputError, match=words):
        data.load("stl10", root)


@pytest.fixture
def imagenette_root(tmp_path, monkeypatch):
    """A small Imagenette as its archive unpacks: folders of JPEGs, some upright, some wide."""
    from PIL import Image

    random, kind = np.random.default_rng(0), torchvision.datasets.Imagenette
    build = tmp_path / "build" / "imagenette2-320"
    for split, count in (("train", 3), ("val", 2)):
        for wnid in kind._WNID_TO_CLASS:
            (build / split / wnid).mkdir(parents=True)
            for i in range(count):
                small = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                size = [(320, 439), (481, 320), (320, 320)][i]
                Image.fromarray(small).resize(size).save(build / split / wnid / f"{split}_{i}.JPEG")
    archive = tmp_path / "imagenette2-320.tgz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(build, "imagenette2-320")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    address = ("http://127.0.0.1:9/imagenette2-320.tgz", md5)
    monkeypatch.setattr(kind, "_ARCHIVES", {"320px": address})
    monkeypatch.setattr(downloads, "IMAGENETTE", (30, 20))
    return tmp_path


def test_imagenette96_is_made_from_the_official_archive(imagenette_root):
    """Against Pillow's own resize and crop, the sides written out."""
    from PIL import Image

    made = data.load("imagenette96", imagenette_root)
    assert (
        made.size == (96, 96)
        and made.classes[:2] == ("tench", "English springer")
        and "Lanczos" in made.variant
    )
    assert made.counts == {"train": 20, "val": 10, "test": 20}

    def shrink(image):
        long = int(96 * max(image.size) / min(image.size))
        width, height = (96, long) if image.width < image.height else (long, 96)
        left, top = round((width - 96) / 2), round((height - 96) / 2)
        return image.resize((width, height), Image.Resampling.LANCZOS).crop(
            (left, top, left + 96, top + 96)
        )

    files = sorted((imagenette_root / "imagenette2-320" / "val").rglob("*.JPEG"))
    for path, image, label in zip(files, made.test.images, made.test.labels):
        theirs = np.asarray(shrink(Image.open(path).convert("RGB")))
        assert (
            np.array_equal(image.permute(1, 2, 0).numpy(), theirs)
            and int(label) == files.index(path) // 2
        )
    (imagenette_root / "imagenette2-320" / "val").rename(
        imagenette_root / "gone"
    )  # made once, then kept
    assert data.load("imagenette96", imagenette_root).fingerprint == made.fingerprint


def test_a_partial_or_damaged_imagenette_is_refused(imagenette_root):
    archive, folder = imagenette_root / "imagenette2-320.tgz", imagenette_root / "imagenette2-320"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-100])  # a download that was cut
    with pytest.raises(InputError, match="can't get imagenette96 into .*delete what is partial"):
        data.load("imagenette96", imagenette_root)
    assert not folder.exists()
    archive.write_bytes(whole)
    data.load("imagenette96", imagenette_root)
    (imagenette_root / "imagenette96.npz").unlink()
    image = next((folder / "train").rglob("*.JPEG"))
    content = image.read_bytes()
    image.write_bytes(content[:200])
    with pytest.raises(InputError, match=f"{image.name} is not a whole image"):
        data.load("imagenette96", imagenette_root)
    image.unlink()  # an unpacking that was cut
    with pytest.raises(InputError, match="holds 29 of 30 images for train.*delete the folder"):
        data.load("imagenette96", imagenette_root)
    assert not list(imagenette_root.glob("*.npz"))


def test_random_subsets_are_balanced_nested_in_nothing_and_always_the_same(toy):
    pool = toy.pool("train+val")
    chosen = data.subsets(pool, 5, 3)
    assert all(pool.labels[rows].bincount().tolist() == [5] * 4 for rows in chosen)
    assert all(torch.equal(a, b) for a, b in zip(chosen, data.subsets(pool, 5, 3)))
    assert len({tuple(sorted(rows.tolist())) for rows in chosen}) == 3
    with pytest.raises(InputError, match="a class has 50 images, 51 were asked for"):
        data.subsets(pool, 51, 1)


def test_the_first_of_each_class_are_so_in_the_official_order(toy):
    given, pool = arrays(), toy.pool("train+val")
    rows = data.first(pool, 3)
    official = [i for c in range(4) for i in np.flatnonzero(given["y_train"] == c)[:3]]
    assert sorted(pool.places[rows].tolist()) == sorted(official)
    images = pool.images[rows].permute(0, 2, 3, 1).numpy()
    assert np.array_equal(images, given["x_train"][pool.places[rows]])


def test_a_root_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't get cifar10 into"):
        data.load("cifar10", tmp_path / "file" / "below")


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside-of-everything.txt", "link"])
def test_an_archive_cannot_write_outside_of_its_folder(imagenette_root, name, monkeypatch):
    """In the official archive's place, its checksum right."""
    path, kind, folder = (
        imagenette_root / "imagenette2-320.tgz",
        torchvision.datasets.Imagenette,
        imagenette_root / "d",
    )
    folder.mkdir()
    with tarfile.open(path, "w:gz") as file:
        if name == "link":
            link = tarfile.TarInfo("imagenette2-320")
            link.type, link.linkname = tarfile.SYMTYPE, ".."
            file.addfile(link)
            name = "imagenette2-320/outside.txt"
        member = tarfile.TarInfo(name)
        member.size = 4
        file.addfile(member, io.BytesIO(b"evil"))
    path.rename(folder / path.name)
    md5 = hashlib.md5((folder / path.name).read_bytes()).hexdigest()
    monkeypatch.setattr(
        kind, "_ARCHIVES", {"320px": ("http://127.0.0.1:9/imagenette2-320.tgz", md5)}
    )
    with pytest.raises(InputError, match="can't get imagenette96 into .*delete what is partial"):
        data.load("imagenette96", folder)
    assert (
        not list(imagenette_root.glob("outside*"))
        and not Path("/tmp/outside-of-everything.txt").exists()
    )
    assert getattr(tarfile.TarFile, "extraction_filter", None) is None  # as it was


def test_a_server_that_says_nothing_is_given_up(tmp_path, monkeypatch):
    """It takes the connection and never answers; the next try, with the file there, is content."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(downloads, "TIMEOUT", 0.3)
        monkeypatch.setattr(
            torchvision.datasets.CIFAR10, "url", f"http://127.0.0.1:{server.getsockname()[1]}/none"
        )
        started = time.monotonic()
        with pytest.raises(
            InputError, match="can't get cifar10 into .*timed out.*check the network"
        ):
            data.load("cifar10", tmp_path)
    assert time.monotonic() - started < 10 and socket.getdefaulttimeout() is None


def test_a_download_that_breaks_off_is_refused_and_made_anew(imagenette_root, monkeypatch):
    """A server that closes after half of the archive, then one that gives it whole."""
    whole, kind = (
        (imagenette_root / "imagenette2-320.tgz").read_bytes(),
        torchvision.datasets.Imagenette,
    )
    (imagenette_root / "imagenette2-320.tgz").unlink()
    served = {"share": 0.5}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[: int(served["share"] * len(whole))])

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/imagenette2-320.tgz"
        monkeypatch.setattr(kind, "_ARCHIVES", {"320px": (address, hashlib.md5(whole).hexdigest())})
        with pytest.raises(InputError, match="can't get imagenette96 into"):
            data.load("imagenette96", imagenette_root)
        assert not (imagenette_root / "imagenette2-320").exists()
        served["share"] = 1
        assert data.load("imagenette96", imagenette_root).counts["test"] == 20
        server.shutdown()
