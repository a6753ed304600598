import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision

from lib import InputError, data
from tests.conftest import arrays


def test_digits_are_scikit_learns_enlarged_and_need_no_download():
    from sklearn.datasets import load_digits

    digits, raw = data.load("digits"), load_digits()
    assert digits.size == (32, 32) and digits.classes == tuple("0123456789")
    assert sum(digits.counts.values()) == 1797 and digits.counts["test"] == 359
    means = {label: [] for label in range(10)}              # an enlargement keeps the mean, but for edges and rounding
    for split in digits.splits.values():
        for image, label in zip(split.images, split.labels):
            means[int(label)].append(float(image.float().mean()))
    for label in range(10):
        theirs = np.sort(raw.images[raw.target == label].mean((1, 2))) * 255 / 16
        assert np.abs(np.sort(means[label]) - theirs).max() < 4


def test_digits_are_the_same_everywhere():
    """The pixels are exact by construction: another fingerprint means another data set."""
    assert data.load("digits").fingerprint == "854de9cfe3acbd33969392ee89c8ce3775930e24c978dd8cab3684a79a1fe08d"


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
    assert {x.numpy().tobytes() for x in part.val.images} <= {x.numpy().tobytes() for x in toy.val.images}
    assert {x.numpy().tobytes() for x in part.train.images} <= {x.numpy().tobytes() for x in toy.train.images}
    assert toy.take(None) is toy and toy.take(200) is toy
    with pytest.raises(InputError, match="has 200 labelled training images, 201"):
        toy.take(201)
    with pytest.raises(InputError, match="needs 8 images or more, 7 were asked for"):
        toy.take(7)
    with pytest.raises(InputError, match="unknown pool 'trian'"):
        toy.pool("trian")


def test_the_fingerprint_tells_every_change(toy):
    prints = {toy.fingerprint, replace(toy, variant="x").fingerprint, replace(toy, classes=("a",) * 4).fingerprint}
    for split in ("train", "val", "test"):
        changed = getattr(toy, split)[:]
        changed.images[0, 0, 0, 0] ^= 1
        prints.add(replace(toy, **{split: data.Split(changed.images.clone(), changed.labels)}).fingerprint)
        changed.images[0, 0, 0, 0] ^= 1
        prints.add(replace(toy, **{split: data.Split(changed.images, changed.labels.roll(1))}).fingerprint)
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


@pytest.mark.parametrize("given, words", [
    (changed(x_train=arrays()["x_train"].astype(np.float32)), r"x_train must be uint8 \(N, H, W, 3\), got float32"),
    (changed(x_test=arrays()["x_test"][..., :1]), "x_test must be uint8"),
    (changed(x_test=arrays(size=16)["x_test"]), r"x_test has images of \(16, 16, 3\)"),
    (changed(x_test=arrays()["x_test"][:0]), "x_test must be uint8"),
    (changed(y_train=np.arange(5)), "y_train must be 200 integers"),
    (changed(y_train=np.full(200, "a")), "y_train must be 200 integers"),
    (changed(y_test=np.zeros(60)), "y_test must be 60 integers, got float64"),
    (changed(y_test=np.full(60, -1)), "y_test has the label -1, outside"),
    (changed(classes=["a", "b"]), r"y_train has the label 2, outside 0\.\.1"),
    (changed(classes=list("abcde")), r"every class needs two training images or more, class 4 \('e'\) has 0"),
    (changed(classes=[["a", "b"]]), "classes must be a list of names"),
    (changed(y_test=np.full(60, 10**9)), "the label 1000000000 means more classes"),
    (changed(x_train=np.zeros((200, 0, 0, 3), np.uint8), x_test=np.zeros((60, 0, 0, 3), np.uint8)), "x_train must be"),
])
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
    torn[len(torn) // 3:len(torn) // 2] = bytes(len(torn) // 2 - len(torn) // 3)
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
    with pytest.raises(InputError, match="objects.npz is not a whole"):         # a pickle inside is never opened
        data.load("objects", toy_root)
    with pytest.raises(InputError, match="unknown data set 'nothing'.*digits"):
        data.load("nothing", toy_root)


def test_cifar10_in_its_official_format_after_its_checksum(tmp_path, monkeypatch):
    """A small archive in the official layout; torchvision reads the pickles only where the md5 is right."""
    import hashlib

    folder, random = tmp_path / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir()
    images = {}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        images[name] = random.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
        content = {"data": images[name].reshape(20, -1), "labels": [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(content))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))

    def md5(name):
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [[f"data_batch_{i}", md5(f"data_batch_{i}")] for i in range(1, 6)])
    monkeypatch.setattr(kind, "test_list", [["test_batch", md5("test_batch")]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5("batches.meta")})
    cifar = data.load("cifar10", tmp_path)
    assert cifar.classes == tuple(names) and cifar.counts == {"train": 90, "val": 10, "test": 20}
    assert torch.equal(cifar.test.images, torch.from_numpy(images["test_batch"]))

    (folder / "test_batch").write_bytes((folder / "test_batch").read_bytes()[:-1])
    monkeypatch.setattr(kind, "url", "http://127.0.0.1:9/none.tar.gz")
    with pytest.raises(InputError, match="can't get cifar10 into .*put cifar10.npz there"):
        data.load("cifar10", tmp_path)


def test_stl10_in_its_official_format(tmp_path, monkeypatch):
    """Raw bytes, image by image, channel by channel, column by column; labels from 1."""
    import hashlib

    folder, random = tmp_path / "stl10_binary", np.random.default_rng(0)
    folder.mkdir()
    images = {name: random.integers(0, 256, (n, 96, 96, 3), dtype=np.uint8)
              for name, n in (("train", 40), ("test", 10), ("unlabeled", 12))}
    for name, x in images.items():
        x.transpose(0, 3, 2, 1).tofile(folder / f"{name}_X.bin")
    for name, n in (("train", 40), ("test", 10)):
        (np.arange(n, dtype=np.uint8) % 10 + 1).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    (folder / "fold_indices.txt").write_text("0 1 2\n" * 10)

    def listed(*files):
        return [[file, hashlib.md5((folder / file).read_bytes()).hexdigest()] for file in files]

    kind = torchvision.datasets.STL10
    monkeypatch.setattr(kind, "train_list", listed("train_X.bin", "train_y.bin", "unlabeled_X.bin"))
    monkeypatch.setattr(kind, "test_list", listed("test_X.bin", "test_y.bin"))
    stl = data.load("stl10", tmp_path)
    assert stl.counts == {"train": 30, "val": 10, "test": 10, "unlabeled": 12} and stl.classes[9] == "class 9"
    assert torch.equal(stl.test.images, torch.from_numpy(images["test"]).permute(0, 3, 1, 2))
    assert torch.equal(stl.unlabeled.images, torch.from_numpy(images["unlabeled"]).permute(0, 3, 1, 2))
    assert stl.test.labels.tolist() == list(range(10)) and len(stl.pool("unlabeled")) == 12

    (folder / "test_y.bin").write_bytes(b"\x01")
    monkeypatch.setattr(kind, "url", "http://127.0.0.1:9/none.tar.gz")
    with pytest.raises(InputError, match="can't get stl10 into"):
        data.load("stl10", tmp_path)


def test_a_root_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't get cifar10 into"):
        data.load("cifar10", tmp_path / "file" / "below")
