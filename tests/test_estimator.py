import numpy as np
import pytest
import torch
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from lib import InputError, estimator
from lib.augmentations import Recipe
from lib.encoders import Model
from lib.estimator import EncoderClassifier
from lib.weights import Weights
from tests.conftest import arrays

NOT_APPLICABLE = {
    "check_transformer_preserve_dtypes": "h is float32, whatever comes in: encoders compute in it",
    "check_array_api_input": "skipped by scikit-learn itself where SCIPY_ARRAY_API is not set",
}


@pytest.fixture
def weights():
    torch.manual_seed(0)
    recipe = Recipe(size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Weights("mine", Model("slim", "cifar", "mlp", 16).eval(), recipe, 16, {}, "")


def test_scikit_learns_own_checks_pass_where_they_apply():
    results = check_estimator(EncoderClassifier(), on_fail=None, on_skip=None)
    failed = {result["check_name"] for result in results if result["status"] != "passed"}
    assert len(results) > 50 and failed <= NOT_APPLICABLE.keys()


def test_images_go_through_the_encoder_and_the_probe(weights):
    given, classifier = arrays(n=120, size=16), EncoderClassifier(weights, device="cpu")
    names = np.array(["red", "green", "blue", "olive"])
    classifier.fit(given["x_train"], names[given["y_train"]])
    assert classifier.score(given["x_test"], names[given["y_test"]]) > 0.9
    h = weights.features(torch.from_numpy(given["x_test"]).permute(0, 3, 1, 2), "cpu")[0]
    assert np.array_equal(classifier.transform(given["x_test"]), h.numpy())
    shares = classifier.predict_proba(given["x_test"])
    assert shares.shape == (60, 4) and shares.sum(1) == pytest.approx(1)
    with pytest.raises(
        InputError, match=r"images must be \(N, H, W, 3\) uint8, got \(60, 16, 16\)"
    ):
        classifier.transform(given["x_test"][..., 0])
    with pytest.raises(InputError, match=r"are needed, y has 1 class\(es\) in 120 row"):
        classifier.fit(given["x_train"], ["a"] * 120)


def test_it_stands_in_a_pipeline():
    random = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = random.normal(size=(60, 5)) + y[:, None]
    assert cross_val_score(make_pipeline(StandardScaler(), EncoderClassifier()), x, y).mean() > 0.6


@pytest.fixture
def found():
    """Features of two classes that lie apart, and one image of none."""
    random = np.random.default_rng(0)
    labels = np.array([0, 1] * 10 + [-1])
    h = random.normal(0, 0.1, (21, 4)).astype(np.float32)
    h[np.arange(21), labels] += 1
    return {
        "h": h,
        "z": h[:, :2],
        "files": np.array([f"{i}.png" for i in range(21)]),
        "labels": labels,
        "classes": np.array(["a", "b"]),
        "encoder": np.array("one"),
    }


def test_neighbours_are_the_highest_cosines(found):
    h = found["h"].astype(np.float64)
    cosines = h @ h[3] / np.linalg.norm(h, axis=1) / np.linalg.norm(h[3])
    expected = [i for i in np.argsort(-cosines) if i != 3][:4]
    near = estimator.neighbours(found, "3.png", 4)
    assert [file for file, _ in near] == [f"{i}.png" for i in expected]
    assert [cosine for _, cosine in near] == pytest.approx(cosines[expected], abs=1e-6)
    assert len(estimator.neighbours(found, "3.png", 99)) == 20
    with pytest.raises(InputError, match="unknown picture '3.jpg'; did you mean"):
        estimator.neighbours(found, "3.jpg")
    with pytest.raises(InputError, match="count must be at least 1, got 0"):
        estimator.neighbours(found, "3.png", 0)


def test_predictions_are_by_those_that_have_a_class(found):
    rows = estimator.predict(found, found)
    assert [name for _, name, _ in rows[:20]] == ["a", "b"] * 10 and all(
        0.5 < share <= 1 for _, _, share in rows[:20]
    )
    with pytest.raises(InputError, match="no probe fits these features: two classes"):
        estimator.predict(found | {"labels": np.zeros(21, int)}, found)
    with pytest.raises(
        InputError, match="are of the encoder one, the others of two: embed both by the same"
    ):
        estimator.predict(found, found | {"encoder": np.array("two")})
    with pytest.raises(
        InputError, match="no picture to learn from has a class: embed a folder with one for each"
    ):
        estimator.predict(found | {"labels": np.full(21, -1)}, found)
    one_each = np.array([0, 1, *[-1] * 19])
    with pytest.raises(InputError, match=r"y has 2 class\(es\) in 2 row"):
        estimator.predict(found | {"labels": one_each}, found)
    with pytest.raises(InputError, match="no probe fits these features: linalg.eigh"):
        estimator.predict(found | {"h": found["h"] * np.float32(1e38)}, found)
    with pytest.raises(
        InputError, match="no probe fits these features: X has 3 features.*expecting 4"
    ):
        estimator.predict(found, found | {"h": found["h"][:, :3]})


def test_features_are_written_read_and_refused_where_they_are_none(found, tmp_path):
    path = tmp_path / "features.npz"
    estimator.write(path, found)
    again = estimator.read(path)
    assert all(np.array_equal(again[name], found[name]) for name in estimator.ARRAYS)
    for change in (
        {"h": found["h"][:5]},
        {"h": found["h"].astype(np.float64)},
        {"labels": found["labels"] + 1.0},
        {"labels": found["labels"] + 9},
        {"h": np.zeros((0, 4), np.float32)},
        {"h": found["h"] * np.nan},
        {"encoder": np.array(["one", "two"])},
    ):
        estimator.write(path, found | change)
        with pytest.raises(InputError, match="holds no features; make them by"):
            estimator.read(path)
    estimator.write(path, {"h": found["h"]})
    with pytest.raises(InputError, match="lacks the arrays classes, encoder, files, labels, z"):
        estimator.read(path)


def test_a_folder_of_broken_images_has_no_features(weights, tmp_path):
    (tmp_path / "x.jpg").touch()
    with pytest.raises(InputError, match="none of the 1 images of .* is whole: x.jpg: 0 bytes"):
        estimator.embed(tmp_path, weights)


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
    """Compiled code does not look where it writes; a cast of pixels in [0, 1] would make them
    black."""
    with pytest.raises(InputError, match=r"images must be a tensor \(N, 3, H, W\) uint8, got"):
        weights.features(wrong)
    with pytest.raises(InputError, match=r"images must be \(N, H, W, 3\) uint8, got float"):
        EncoderClassifier(weights).fit(np.zeros((4, 8, 8, 3)), [0, 1, 0, 1])
