"""Encoders put to use: features of pictures, neighbours, and the classifier in scikit-learn."""

import hashlib
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from lib import InputError
from lib.augmentations import Recipe
from lib.encoders import Model
from lib.weights import Weights, estimator
from lib.weights.estimator import Arrays, EncoderClassifier
from tests.conftest import arrays

NOT_APPLICABLE = {
    "check_transformer_preserve_dtypes": "h is float32, whatever comes in: encoders compute in it",
    "check_array_api_input": "skipped by scikit-learn itself where SCIPY_ARRAY_API is not set",
}


@pytest.fixture
def weights() -> Weights:
    torch.manual_seed(0)
    model = Model("slim", "cifar", "mlp", 16).eval()
    return Weights("mine", model, Recipe(size=16), 16, {}, "")


def h_and_z(weights: Weights, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of images (N, H, W, 3), by the encoder itself."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    h, z = weights.features(x, "cpu")
    return h.numpy(), z.numpy()


# --------------------------------------------------------------------------------------------------
# the classifier


def test_scikit_learns_own_checks_pass_where_they_apply():
    results = check_estimator(EncoderClassifier(), on_fail=None, on_skip=None)
    assert len(results) > 50
    others = {result["check_name"] for result in results if result["status"] != "passed"}
    assert others <= NOT_APPLICABLE.keys()


def test_images_go_through_the_encoder_and_the_probe(weights):
    given = arrays(n=120, size=16)
    names = np.array(["red", "green", "blue", "olive"])
    classifier = EncoderClassifier(weights, device="cpu")
    classifier.fit(given["x_train"], names[given["y_train"]])
    assert classifier.score(given["x_test"], names[given["y_test"]]) > 0.9

    h, _ = h_and_z(weights, given["x_test"])
    assert np.array_equal(classifier.transform(given["x_test"]), h)
    shares = classifier.predict_proba(given["x_test"])
    assert shares.shape == (60, 4)
    assert shares.sum(1) == pytest.approx(1)


def test_the_classifier_wants_images_and_two_classes(weights):
    x = arrays(n=120, size=16)["x_train"]
    classifier = EncoderClassifier(weights, device="cpu")
    classifier.fit(x, ["a", "b"] * 60)
    words = r"images must be \(N, H, W, 3\) uint8, got \(120, 16, 16\)"
    with pytest.raises(InputError, match=words):
        classifier.transform(x[..., 0])
    with pytest.raises(InputError, match=r"images must be \(N, H, W, 3\) uint8, got float"):
        classifier.transform(x / 255)
    with pytest.raises(
        InputError, match=r"\(16, 16, 3\) \(H, W, 3\), as in fit, got \(32, 32, 3\)"
    ):
        classifier.predict(np.zeros((2, 32, 32, 3), np.uint8))
    with pytest.raises(InputError, match=r"are needed, y has 1 class\(es\) in 120 row"):
        classifier.fit(x, ["a"] * 120)


def test_its_features_are_a_table_where_that_is_wanted(weights):
    x = arrays(n=120, size=16)["x_train"]
    classifier = EncoderClassifier(weights, device="cpu").fit(x, ["a", "b"] * 60)
    names = list(classifier.get_feature_names_out())
    assert names[0] == "encoderclassifier0"

    answers = classifier.predict_proba(x)
    h = classifier.transform(x)
    classifier.set_output(transform="pandas")
    table = classifier.transform(x)
    assert list(table.columns) == names
    assert np.array_equal(table.to_numpy(), h)
    assert np.array_equal(classifier.predict_proba(x), answers)


def test_weights_that_know_how_they_see_images_are_not_told(weights):
    x = arrays(n=120, size=16)["x_train"]
    classifier = EncoderClassifier(weights, mean=(0, 0, 0))
    with pytest.raises(InputError, match="mine knows how it sees images: leave out mean, which"):
        classifier.fit(x, ["a", "b"] * 60)


def test_how_a_checkpoint_sees_images_is_a_parameter(tmp_path):
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save({f"backbone.{name}": state[name] for name in state}, tmp_path / "x.pth")
    x = arrays(n=20, size=16)["x_train"]
    classifier = EncoderClassifier(tmp_path / "x.pth", "cpu", size=16, mean=(0.5,) * 3)
    classifier.fit(x, ["a", "b"] * 10)
    assert (classifier.encoder_.recipe.size, classifier.encoder_.recipe.mean) == (16, (0.5,) * 3)


def test_it_stands_in_a_pipeline():
    random = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = random.normal(size=(60, 5)) + y[:, None]
    pipeline = make_pipeline(StandardScaler(), EncoderClassifier())
    assert cross_val_score(pipeline, x, y).mean() > 0.6


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(7, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(2, 4, 8, 8).byte(),
        torch.zeros(3, 8, 8).byte(),
        torch.zeros(2, 3, 8, 8),
        np.zeros((2, 3, 8, 8), np.uint8),
    ],
)
def test_images_of_another_shape_or_kind_are_refused(weights, wrong):
    """Compiled code does not look where it writes; a cast of pixels in [0, 1] would be black."""
    with pytest.raises(InputError, match=r"images must be a tensor \(N, 3, S, S\) uint8, got"):
        weights.features(wrong)


def test_images_that_are_not_square_are_refused(weights):
    with pytest.raises(InputError, match="images must be square, got 8 x 16 pixels"):
        weights.features(torch.zeros(2, 3, 8, 16).byte())


# --------------------------------------------------------------------------------------------------
# features of pictures


@pytest.fixture
def features() -> Arrays:
    """Of two classes that lie apart, and one picture of none."""
    random = np.random.default_rng(0)
    labels = np.array([0, 1] * 10 + [-1])
    h = random.normal(0, 0.1, (21, 4))
    h[np.arange(21), labels] += 1
    return {
        "h": h.astype(np.float32),
        "z": np.zeros((21, 2), np.float32),
        "files": np.array([f"{i}.png" for i in range(21)]),
        "labels": labels,
        "classes": np.array(["a", "b"]),
        "encoder": np.array("one"),
    }


def test_features_are_those_of_the_pictures_in_their_order(weights, tmp_path):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    names = ["a/0.png", "a/1.png", "b/0.png", "b/1.png", "unlabeled/0.png"]
    for name, image in zip(names, pixels, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "a" / "broken.png").touch()
    pages = [Image.fromarray(image) for image in pixels]
    pages[4].save(tmp_path / "unlabeled" / "0.tif", save_all=True, append_images=pages)
    (tmp_path / "unlabeled" / "0.png").unlink()
    names[4] = "unlabeled/0.tif"

    found, report = estimator.embed(tmp_path, weights, "cpu")
    assert found.keys() == {*estimator.ARRAYS, "digests"}
    assert found["files"].tolist() == names
    assert found["labels"].tolist() == [0, 0, 1, 1, -1]
    assert found["classes"].tolist() == ["a", "b"]
    assert found["encoder"] == weights.encoder
    assert report.skipped == ["a/broken.png: 0 bytes"]
    (note,) = report.notes
    assert note == "of 1 file with several pages the first alone is read: unlabeled/0.tif"

    h, z = h_and_z(weights, pixels)
    assert np.array_equal(found["h"], h)
    assert np.array_equal(found["z"], z)
    expected = [hashlib.sha256(image.tobytes()).digest() for image in pixels]
    assert [mark.tobytes() for mark in found["digests"]] == expected


def test_a_folder_of_broken_images_has_no_features(weights, tmp_path):
    (tmp_path / "x.jpg").touch()
    with pytest.raises(InputError, match="none of the 1 images of .* is whole: x.jpg: 0 bytes"):
        estimator.embed(tmp_path, weights)


def test_features_are_written_and_read(features, tmp_path):
    estimator.write(tmp_path / "features.npz", features)
    again = estimator.read(tmp_path / "features.npz")
    assert again.keys() == estimator.ARRAYS
    for name, values in again.items():
        assert np.array_equal(values, features[name])


@pytest.mark.parametrize(
    "change",
    [
        {"h": np.zeros((5, 4), np.float32)},
        {"h": np.zeros((0, 4), np.float32)},
        {"h": np.zeros((21, 4), np.float64)},
        {"h": np.zeros(21, np.float32)},
        {"h": np.full((21, 4), np.nan, np.float32)},
        {"labels": np.zeros(21)},
        {"labels": np.full(21, 9)},
        {"files": np.array(["x"])},
        {"digests": np.zeros((5, 32), np.uint8)},
        {"digests": np.zeros((21, 32), np.int64)},
        {"encoder": np.array(["one", "two"])},
    ],
)
def test_what_are_no_features_is_refused(features, tmp_path, change):
    path = tmp_path / "features.npz"
    estimator.write(path, features | change)
    with pytest.raises(InputError, match="holds no features; see: python -m lib embed --help"):
        estimator.read(path)


def test_missing_arrays_are_named(features, tmp_path):
    path: Path = tmp_path / "features.npz"
    estimator.write(path, {"h": features["h"]})
    with pytest.raises(InputError, match="lacks the arrays classes, encoder, files, labels, z"):
        estimator.read(path)


def test_neighbours_are_the_highest_cosines(features):
    h = features["h"].astype(np.float64)
    lengths = np.linalg.norm(h, axis=1)
    cosines = h @ h[3] / lengths / lengths[3]
    _, *expected = np.argsort(-cosines)[:5]  # the first is the picture itself

    files, values = zip(*estimator.neighbours(features, "3.png", 4), strict=True)
    assert list(files) == [f"{i}.png" for i in expected]
    assert values == pytest.approx(cosines[expected], abs=1e-6)

    assert len(estimator.neighbours(features, "3.png", 99)) == 20
    with pytest.raises(InputError, match="unknown picture '3.jpg'; did you mean"):
        estimator.neighbours(features, "3.jpg")
    with pytest.raises(InputError, match="count must be at least 1, got 0"):
        estimator.neighbours(features, "3.png", 0)
    single = features | {"h": features["h"][:1], "files": features["files"][:1]}
    with pytest.raises(InputError, match="no other picture than 0.png: embed a folder of several"):
        estimator.neighbours(single, "0.png")


def test_a_picture_is_found_however_its_accents_are_written(features):
    names = [unicodedata.normalize("NFD", f"é{name}") for name in features["files"].tolist()]
    apart = features | {"files": np.array(names)}
    found = estimator.neighbours(apart, unicodedata.normalize("NFC", "é3.png"), 4)
    assert [name for name, _ in found] == [
        unicodedata.normalize("NFD", f"é{name}")
        for name, _ in estimator.neighbours(features, "3.png", 4)
    ]


def test_predictions_are_by_those_that_have_a_class(features):
    rows = estimator.predict(features, features)
    files, names, shares = zip(*rows, strict=True)
    assert list(files) == features["files"].tolist()
    assert list(names[:20]) == ["a", "b"] * 10
    assert min(shares) > 0.5 and max(shares) <= 1


def test_what_was_learnt_from_is_known_by_its_pixels(features):
    """In another batch h differs in its last bits."""
    marks = np.arange(21 * 32).reshape(21, 32).astype(np.uint8)
    train = features | {"digests": marks}
    elsewhere = features | {"h": np.nextafter(features["h"], np.float32(2)), "digests": marks}
    names = ["a", "b"] * 10 + ["a"]
    assert not len(estimator.rights(elsewhere, names, train))

    others = elsewhere | {"digests": marks + np.uint8(1)}
    assert estimator.rights(others, names, train).tolist() == [True] * 20


def test_without_digests_what_was_learnt_from_is_known_by_h(features, tmp_path):
    """In files that were written before."""
    estimator.write(tmp_path / "early.npz", features)
    early = estimator.read(tmp_path / "early.npz")
    now = features | {"digests": np.zeros((21, 32), np.uint8)}
    names = ["a", "b"] * 10 + ["a"]
    assert not len(estimator.rights(now, names, early))
    assert not len(estimator.rights(early, names, now))


ONE_EACH = np.array([0, 1] + [-1] * 19)  # labelled pictures
# so large that their variance is not finite
HUGE = np.linspace(-2e38, 2e38, 84, dtype=np.float32).reshape(21, 4)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"labels": np.zeros(21, int)}, "no probe fits these features: two classes"),
        ({"labels": ONE_EACH}, r"y has 2 class\(es\) in 2 row"),
        ({"labels": np.full(21, -1)}, "no picture to learn from has a class: embed a folder with"),
        ({"encoder": np.array("two")}, "are of the encoder two, the others of one: embed both by"),
        ({"h": np.zeros((21, 3), np.float32)}, "features: X has 4 features.*expecting 3"),
        ({"h": HUGE}, "no probe fits these features: linalg.eigh"),
    ],
)
def test_what_cannot_be_learned_from_is_one_line(features, change, words):
    with pytest.raises(InputError, match=words):
        estimator.predict(features | change, features)
