import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lib import InputError, data, images, sources

RED, BLUE = (200, 30, 40), (20, 60, 210)


def photo(colour=RED, size=(40, 30), mode="RGB"):
    return Image.new("RGB", size, colour).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Two classes of twelve and eight images, and three without a class."""
    for name, colour, count in (("blue", BLUE, 8), ("red", RED, 12)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            photo(colour, (40 + i, 30)).save(tmp_path / "photos" / name / f"{i:02}.png")
    (tmp_path / "photos" / "unlabeled").mkdir()
    for i in range(3):
        photo((0, 200, i)).save(tmp_path / "photos" / "unlabeled" / f"{i}.webp", lossless=True)
    return tmp_path / "photos"


def test_a_folder_becomes_a_data_set_and_comes_back(folder, tmp_path):
    counts, report = images.make(folder, 24, tmp_path / "mine.npz")
    assert counts == {"train": 16, "test": 4, "unlabeled": 3}
    assert str(report) == (
        "2 classes (train + test): blue (6 + 2), red (10 + 2)\n"
        "there is no test: 20 % of every class are held out as one"
    )
    mine = data.load("mine", tmp_path)
    assert (
        mine.classes == ("blue", "red")
        and mine.size == (24, 24)
        and mine.variant.startswith("shorter side to 24")
    )
    for split in (mine.train, mine.val, mine.test):
        for image, label in zip(split.images, split.labels):
            assert image.float().mean((1, 2)).tolist() == pytest.approx((BLUE, RED)[label])
    assert (
        mine.test.labels.bincount().tolist() == [2, 2] and len(mine.unlabeled) == 3
    )  # 8 : 12, stratified
    images.make(folder, 24, tmp_path / "again.npz")
    assert data.load("again", tmp_path).fingerprint == mine.fingerprint
    assert not list(tmp_path.glob(".import-*"))
    images.make(
        tmp_path / "mine.npz", 24, tmp_path / "copy.npz"
    )  # an .npz is a source too, in its own order
    assert data.load("copy", tmp_path).fingerprint == mine.fingerprint


def test_train_and_test_folders_are_kept_apart(folder, tmp_path):
    (tmp_path / "split").mkdir()
    folder.rename(tmp_path / "split" / "train")
    (tmp_path / "split" / "val" / "red").mkdir(parents=True)
    photo().save(tmp_path / "split" / "val" / "red" / "x.jpg")
    (tmp_path / "split" / "train" / "unlabeled").rename(tmp_path / "split" / "unlabeled")
    photo().save(tmp_path / "split" / "forgotten.png")
    counts, report = images.make(tmp_path / "split", 16, tmp_path / "mine.npz")
    assert counts == {"train": 20, "test": 1, "unlabeled": 3}
    assert data.load("mine", tmp_path).test.labels.tolist() == [1]
    assert report.notes == [
        "2 classes (train + test): blue (8 + 0), red (12 + 1)",
        "val/ is taken for test",
        "left out, as not below train/, val/, unlabeled/: forgotten.png",
    ]
    (tmp_path / "split" / "val" / "red").rename(tmp_path / "split" / "val" / "green")
    with pytest.raises(
        InputError, match="val/green/x.jpg: unknown class .green.; known: blue, red .of .*train"
    ):
        images.make(tmp_path / "split", 16, tmp_path / "mine.npz")
    (tmp_path / "split" / "train").rename(tmp_path / "split" / "others")
    with pytest.raises(
        InputError, match="has val/ with classes and no train/: move the other classes there"
    ):
        images.make(tmp_path / "split", 16, tmp_path / "mine.npz")


def test_names_of_folders_are_read_as_they_are_meant(folder, tmp_path):
    (folder / "unlabeled").rename(folder / "Unlabelled")
    (folder / "red").rename(folder / "train")  # a class of trains, not a split
    counts, report = images.make(folder, 16, tmp_path / "mine.npz")
    assert (
        counts == {"train": 16, "test": 4, "unlabeled": 3}
        and "blue (6 + 2), train (10 + 2)" in report.notes[0]
    )


def test_what_is_nearly_unlabeled_is_a_class_and_said(folder, tmp_path):
    for i in range(3):
        photo().save(folder / "unlabeled" / f"{i}.png")
    (folder / "unlabeled").rename(folder / "un-labeled")
    _, report = images.make(folder, 16, tmp_path / "mine.npz")
    assert "un-labeled is taken for a class; for images of none there is unlabeled/" in str(report)
    assert "is replaced" not in str(report)
    _, report = images.make(folder, 16, tmp_path / "mine.npz")
    assert "mine.npz was there and is replaced" in str(report)


def test_a_single_picture_is_found(folder):
    (found,) = sources.find(folder / "red" / "00.png").items
    assert (found.name, found.split, found.label) == ("00.png", "unlabeled", -1)


@pytest.mark.parametrize(
    "counts, size, words",
    [
        (
            {"train": 480, "test": 120, "unlabeled": 100},
            96,
            "simclr-stl10 --epochs 10 --set encoder=slim --set batch_size=128 --set pool=train+val",
        ),
        (
            {"train": 480, "test": 120, "unlabeled": 9000},
            64,
            "simclr-stl10 --epochs 10 --set encoder=slim --set batch_size=256",
        ),
        (
            {"train": 6, "test": 2, "unlabeled": 0},
            32,
            "simclr-cifar10-r18 --epochs 10 --set encoder=slim --set batch_size=2",
        ),
    ],
)
def test_a_first_try_fits_the_images(counts, size, words):
    assert images.first_try(counts, size) == words


def test_links_are_followed_and_their_loops_are_not(folder, tmp_path):
    (tmp_path / "linked").mkdir()
    for name in ("blue", "red"):
        (tmp_path / "linked" / name).symlink_to(folder / name, target_is_directory=True)
    (folder / "red" / "again").symlink_to(folder, target_is_directory=True)
    (folder / "red" / "itself").symlink_to(folder / "red", target_is_directory=True)
    for source in (folder, tmp_path / "linked"):
        assert sum(item.label >= 0 for item in sources.find(source).items) == 20


def saved(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def of_16_bits(pixels):
    return Image.fromarray(pixels.astype(np.uint16))


def turned():
    """Red left, blue right, stored on its side with EXIF orientation 6: the viewer turns it by 90
    degrees clockwise."""
    upright = Image.new("RGB", (32, 32), RED)
    upright.paste(BLUE, (16, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(upright.rotate(90, expand=True), format="PNG", exif=exif), np.asarray(upright)


@pytest.mark.parametrize(
    "content, expected",
    [
        (saved(photo(mode="L"), format="PNG"), (photo(mode="L").getpixel((0, 0)),) * 3),
        (saved(photo().quantize(4), format="GIF"), RED),
        (saved(photo(mode="1"), format="PNG"), None),
        (
            saved(Image.new("RGBA", (20, 20), (255, 0, 0, 51)), format="PNG"),
            (255, 204, 204),
        ),  # a fifth on white
        (saved(Image.new("LA", (20, 20), (0, 128)), format="PNG"), (127, 127, 127)),
        (saved(photo(mode="CMYK"), format="JPEG", quality=100), RED),
        (saved(of_16_bits(np.full((20, 20), 257 * 100)), format="PNG"), (100, 100, 100)),
        (saved(of_16_bits(np.full((20, 20), 65535)), format="TIFF"), (255, 255, 255)),
        (saved(Image.new("P", (20, 20), 0), format="PNG", transparency=0), (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(content, expected):
    found = images.decode(content, 16)
    assert found.shape == (16, 16, 3) and found.dtype == np.uint8
    if expected:
        assert np.abs(found.reshape(-1, 3).astype(int) - expected).max() <= 2


def test_exif_turns_the_image():
    content, upright = turned()
    assert np.array_equal(images.decode(content, 32), upright)


def test_the_shorter_side_is_resized_and_the_centre_cut_out():
    wide = Image.new("RGB", (90, 30), BLUE)
    wide.paste(RED, (30, 0, 60, 30))
    assert (images.decode(saved(wide, format="PNG"), 30) == RED).all()
    large = images.decode(saved(wide.resize((1800, 600), 0), format="JPEG", quality=95), 30).astype(
        int
    )  # by draft
    assert np.abs(large[:, 3:-3] - RED).max() <= 4


def bomb(width, height):
    """A PNG of a few hundred bytes that claims so many pixels."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_what_is_broken_is_skipped_and_named(folder, tmp_path):
    red = folder / "red"
    (red / "empty.jpg").touch()
    (red / "text.png").write_text("no image")
    (red / "cut.jpg").write_bytes(saved(photo(size=(64, 64)), format="JPEG")[:-300])
    (red / "bomb.png").write_bytes(bomb(60_000, 60_000))
    (red / "large.png").write_bytes(bomb(9_000, 9_000))
    (red / "long.png").write_bytes(bomb(100_000, 1))
    (red / "float.tif").write_bytes(
        saved(Image.fromarray(np.zeros((9, 9), np.float32)), format="TIFF")
    )
    (red / "notes.txt").write_text("not looked at")
    (red / "new.heic").touch()
    (red / "._photo.jpg").write_bytes(b"macOS's")
    counts, report = images.make(folder, 16, tmp_path / "mine.npz")
    skipped = report.skipped
    assert sum(counts.values()) == 23
    assert "left out, as no images by their ending: 1 .heic, 1 .txt" in str(report)
    assert "7 broken images skipped:\nred/" in str(report)
    assert {line.split(":")[0] for line in skipped} == {
        f"red/{name}"
        for name in (
            "empty.jpg",
            "text.png",
            "cut.jpg",
            "bomb.png",
            "large.png",
            "long.png",
            "float.tif",
        )
    }
    why = dict(line.split(": ", 1) for line in skipped)
    assert (
        why["red/empty.jpg"] == "0 bytes"
        and "9000 x 9000 pixels are refused" in why["red/large.png"]
    )
    assert "decompression bomb" in why["red/bomb.png"] and "floating-point" in why["red/float.tif"]


def test_what_is_wrong_is_one_line(folder, tmp_path):
    def said(source, words, out="mine.npz", size=16):
        with pytest.raises(InputError, match=words) as caught:
            images.make(source, size, tmp_path / out)
        assert "\n" not in str(caught.value) and not (tmp_path / out).is_file()
        assert not list(tmp_path.glob(".import-*"))

    (tmp_path / "empty").mkdir()
    said(tmp_path / "empty", "empty holds no images")
    said(tmp_path / "none", "none is neither a folder, nor a picture, nor an .npz file")
    said(
        folder / "red",
        "has no class with images; two are needed, a folder for each, to test by; .unlabeled. "
        "beside",
    )
    (tmp_path / "one").mkdir()
    (folder / "red").rename(tmp_path / "one" / "red")
    said(tmp_path / "one", "has only one class with images, red; two are needed")
    (tmp_path / "one" / "red").rename(folder / "red")
    said(folder, "--out must be NAME.npz", out="mine.zip")
    said(folder, "--size must be between 8 and 1024, got 4", size=4)
    for path in list((folder / "blue").glob("*"))[1:]:
        path.write_bytes(b"")
    said(folder, "every class needs two whole images for training.*'blue' has [01]")
    blocked = tmp_path / "blocked"
    blocked.touch()
    with pytest.raises(InputError, match="can't write .*blocked/mine.npz"):
        images.make(folder, 16, blocked / "mine.npz")


def test_a_hugging_face_data_set_on_disk(folder, tmp_path):
    import datasets as library

    made = library.load_dataset("imagefolder", data_dir=str(folder), cache_dir=tmp_path / "cache")[
        "train"
    ]
    made = made.filter(
        lambda label: made.features["label"].names[label] != "unlabeled", input_columns="label"
    )
    made = made.train_test_split(test_size=5, seed=0)
    made.save_to_disk(tmp_path / "disk")
    counts, report = images.make(tmp_path / "disk", 16, tmp_path / "mine.npz")
    assert counts["train"] == 15 and counts["test"] == 5 and not report.skipped
    mine = data.load("mine", tmp_path)
    assert mine.classes == ("blue", "red")  # and not "unlabeled", a name that no image has
    for image, label in zip(mine.test.images, mine.test.labels):
        assert image.float().mean((1, 2)).tolist() == pytest.approx(
            {"blue": BLUE, "red": RED}[mine.classes[label]]
        )


def test_without_the_package_a_hugging_face_data_set_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"needs the package datasets.*\[huggingface\]"):
        images.make(tmp_path / "disk", 16, tmp_path / "mine.npz")


def test_a_data_set_that_comes_with_the_package_is_not_replaced(folder, tmp_path):
    with pytest.raises(
        InputError, match="digits.npz would take the place of the data set 'digits' that comes with"
    ):
        images.make(folder, 32, tmp_path / "digits.npz")
