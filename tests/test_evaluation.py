from dataclasses import replace

import pytest
import torch
from torchvision import transforms

from lib import data, evaluation, probes
from lib.augmentations import RECIPES
from lib.corruptions import CORRUPTIONS, corrupt
from lib.data import Split
from lib.encoders import Model
from tests.conftest import arrays


def test_features_do_not_depend_on_the_batch_and_leave_batchnorm_alone(toy, monkeypatch):
    """The trap: without eval mode, features use the test batch's own statistics."""
    model = Model("slim").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    h, z = evaluation.features(model, toy.test.images, RECIPES["none"])
    assert h.shape == (60, 128) and z.shape == (60, 128)
    monkeypatch.setattr(
        evaluation, "BATCH_PIXELS", 7 * 12**2
    )  # 60 is no multiple of 7: none may be dropped
    again, _ = evaluation.features(model.train(), toy.test.images, RECIPES["none"])
    assert torch.allclose(h, again, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_test_labels_choose_nothing(toy):
    """Shuffling the test labels changes the score and nothing else."""
    model = Model("slim", head="none")
    one = evaluation.evaluate(model, toy, RECIPES["none"])
    other = replace(toy, test=Split(toy.test.images, toy.test.labels.roll(1)))
    two = evaluation.evaluate(model, other, RECIPES["none"])
    assert one["h"]["linear"]["l2"] == two["h"]["linear"]["l2"] and "z" not in one
    assert one["h"]["linear"]["val_accuracy"] == two["h"]["linear"]["val_accuracy"]
    assert one["h"]["linear"]["correct"] > two["h"]["linear"]["correct"]


@pytest.mark.parametrize(
    "method, readers",
    [
        ("simclr", [("h", "linear"), ("z", "linear"), ("h", "knn")]),
        ("ce", [("h", "linear"), ("h", "knn"), ("z", "classifier")]),
    ],
)
def test_validation_reads_val_alone(toy, method, readers):
    """Whatever test holds, and however it is labelled: the same rows; the accuracy is that of a fit
    on train."""
    model = Model("slim", head="linear", embedding=4)
    rows = evaluation.validation(model, toy, RECIPES["none"], method)
    assert [(row["features"], row["probe"]) for row in rows] == readers and {
        row["n"] for row in rows
    } == {len(toy.val)}
    other = replace(toy, test=Split(torch.zeros_like(toy.test.images), toy.test.labels.roll(1)))
    assert evaluation.validation(model, other, RECIPES["none"], method) == rows
    x, x_val = (
        evaluation.features(model, split.images, RECIPES["none"])[0]
        for split in (toy.train, toy.val)
    )
    best = max(
        probes.accuracy(probe, x_val, toy.val.labels)
        for probe in probes.logistic_path(x, toy.train.labels, 4)
    )
    assert rows[0]["correct"] == round(best * len(toy.val))


def test_calibration_by_log_loss_stands_beside_the_other(toy):
    model = Model("slim", head="linear", embedding=4)
    wanted = ("calibration", "calibration-by-log-loss")
    found = evaluation.tables(model, toy, RECIPES["none"], "ce", wanted)
    for rows in (found["calibration"], found["calibration_by_log_loss"]):
        assert [(row["features"], row["probe"]) for row in rows] == [
            ("h", "linear"),
            ("z", "classifier"),
        ]
    assert (
        found["calibration"][1] == found["calibration_by_log_loss"][1]
    )  # nothing is chosen for it
    assert found["calibration"][0] != found["calibration_by_log_loss"][0]


def test_published_probes_stand_beside_ours_with_their_last_epoch(toy, monkeypatch):
    monkeypatch.setattr(
        probes, "PROTOCOLS", {k: replace(v, epochs=10) for k, v in probes.PROTOCOLS.items()}
    )
    rates, fit = [], probes.published_probe
    monkeypatch.setattr(
        probes,
        "published_probe",
        lambda p, *rest: (rates.append(p.learning_rate), fit(p, *rest))[1],
    )
    for method, rate in (("simclr", 1.0), ("supcon", 5.0)):
        found = evaluation.evaluate(
            Model("slim"), toy, RECIPES["none"], method, ("uva", "supcontrast")
        )
        assert list(found["h"]) == ["uva", "uva-last", "supcontrast", "supcontrast-last"]
        assert list(found["z"]) == ["uva", "uva-last"]
        best, last = found["h"]["supcontrast"], found["h"]["supcontrast-last"]
        assert (
            best["correct"]
            == max(right for _, right in best["curve"])
            >= last["correct"]
            == best["curve"][-1][1]
        )
        assert rates[-2:] == [rate, 1e-3]  # h: uva, supcontrast; z: uva


def test_supcontrasts_probe_sees_new_crops_in_every_step_and_leaves_batchnorm_alone(toy):
    model = Model("slim").eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batch = evaluation._augmented(
        model, toy.train, RECIPES["none"], probes.PROTOCOLS["supcontrast"]
    )
    rows = torch.arange(8)
    assert torch.equal(batch(rows, 0), batch(rows, 0)) and not torch.equal(
        batch(rows, 0), batch(rows, 1)
    )
    assert (
        all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        and not batch(rows, 0).requires_grad
    )


def test_the_label_sweep_uses_no_more_labels_than_it_says(toy, monkeypatch):
    monkeypatch.setattr(
        evaluation, "PER_CLASS", (5, 10, 100)
    )  # toy has 50 a class: 100 is left out
    monkeypatch.setattr(
        probes, "PROTOCOLS", {k: replace(v, epochs=10) for k, v in probes.PROTOCOLS.items()}
    )
    seen, fit = [], probes.cross_validated_probe
    monkeypatch.setattr(
        probes, "cross_validated_probe", lambda x, y, c: (seen.append(y), fit(x, y, c))[1]
    )
    rows = evaluation.label_sweep(Model("slim"), toy, RECIPES["none"])
    assert [len(y) for y in seen] == [20] * 5 + [40] * 5 and all(
        set(y.bincount().tolist()) <= {5, 10} for y in seen
    )
    assert [(r["probe"], r["per_class"], r["labels"], r["subset"]) for r in rows[:7]] == [
        *(("linear", 5, 20, f"random {i}") for i in range(5)),
        ("uva", 5, 20, "first"),
        ("uva-last", 5, 20, "first"),
    ]
    assert len(rows) == 14 and all(row["n"] == 60 and 0 <= row["correct"] <= 60 for row in rows)


def test_official_folds_are_used_at_a_hundred_labels_a_class(monkeypatch):
    given = arrays(n=480)
    folds = [torch.arange(480)[i::10][:20] for i in range(10)]
    stl = data.build("toy", **given, folds=folds)
    pool = stl.pool("train+val")
    official = torch.from_numpy(given["x_train"]).permute(0, 3, 1, 2)
    for fold, rows in zip(folds, evaluation._folds(stl, pool)):
        assert torch.equal(pool.images[rows], official[fold])
    found = evaluation.label_sweep(Model("slim"), stl, RECIPES["none"])
    names = [row["subset"] for row in found if row["per_class"] == 100 and row["probe"] == "linear"]
    assert names == [f"fold {i}" for i in range(10)]


def test_a_classifiers_own_accuracy(toy):
    model = Model("slim", head="linear", embedding=4)
    found = evaluation.evaluate(model, toy, RECIPES["none"], "ce")
    assert (
        evaluation.classified(model, toy.test, RECIPES["none"])
        == found["z"]["classifier"]["correct"]
    )


class Seen(torch.nn.Module):
    """An "encoder" whose h is the mean colour of each quarter of the image and whose z is its mean
    grey."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(1, 1)

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1), x.mean((1, 2, 3))[:, None]


def test_a_transformation_is_read_where_the_features_hold_it_and_guessed_where_they_do_not():
    """Pictures with a bright top left corner: h knows how they were turned, z cannot."""
    given = arrays(n=200, test=80)
    for key in ("x_train", "x_test"):
        given[key][:, :6, :6] = 255
    corner = data.build("corner", **given)
    found = evaluation.evaluate(Seen(), corner, RECIPES["none"], "simclr", ("rotation", "grey"))
    assert found["h"]["rotation"]["n"] == 4 * 80 and found["h"]["rotation"]["correct"] == 320
    assert found["z"]["rotation"]["correct"] < 0.4 * 320
    assert found["h"]["grey"]["n"] == 160


def test_transformations_are_what_their_names_say():
    x = torch.randint(
        0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    turned, grey, noise = (
        evaluation.TRANSFORMATIONS[name](x) for name in ("rotation", "grey", "noise")
    )
    assert (
        torch.equal(turned[1].rot90(3, (2, 3)), x)
        and torch.equal(turned[2].flip(2, 3), x)
        and len(turned) == 4
    )
    theirs = transforms.functional.rgb_to_grayscale(x, 3)
    assert (grey[1].int() - theirs.int()).abs().max() <= 1 and torch.equal(grey[0], x)
    assert torch.equal(noise[1], evaluation.TRANSFORMATIONS["noise"](x)[1])
    inside = (x > 60) & (x < 195)
    assert 15 < (noise[1].float() - x.float())[inside].std() < 30


def test_calibration_and_corruptions_are_read_by_the_probe_and_the_classifier(toy, monkeypatch):
    model = Model("slim", head="linear", embedding=4).eval()
    found = evaluation.tables(model, toy, RECIPES["none"], "ce", ("calibration", "corruptions"))
    assert found.keys() == {"calibration", "corruptions"}
    clean = evaluation.evaluate(model, toy, RECIPES["none"], "ce", ("linear",))
    for row in found["calibration"]:
        right = clean[row["features"]][row["probe"]]["correct"]
        assert sum(row["correct"]) == right and sum(row["count"]) == row["n"] == 60
    z = evaluation.features(model, toy.test.images, RECIPES["none"])[1].softmax(1)
    (own,) = (row for row in found["calibration"] if row["probe"] == "classifier")
    assert sum(own["confidence"]) == pytest.approx(z.max(1).values.sum().item(), abs=1e-3)
    assert {(row["features"], row["probe"]) for row in found["corruptions"]} == {
        ("h", "linear"),
        ("z", "classifier"),
    }
    rows = {(row["corruption"], row["probe"]): row["correct"] for row in found["corruptions"]}
    assert rows["none", "linear"] == [
        clean["h"]["linear"]["correct"]
    ]  # all 60 test images: toy has no more
    for name in CORRUPTIONS:
        assert len(rows[name, "linear"]) == 5
    changed = evaluation.features(model, corrupt(toy.test.images, "contrast", 5), RECIPES["none"])[
        1
    ]
    assert rows["contrast", "classifier"][4] == int((changed.argmax(1) == toy.test.labels).sum())


def test_corruptions_take_a_stratified_part_of_the_test_images(toy, monkeypatch):
    monkeypatch.setattr(evaluation, "CORRUPTED", 20)
    monkeypatch.setattr(evaluation, "CORRUPTIONS", {"contrast": None})
    seen, look = [], evaluation.features
    monkeypatch.setattr(evaluation, "features", lambda m, x, r: (seen.append(x), look(m, x, r))[1])
    found = evaluation.tables(Model("slim"), toy, RECIPES["none"], "simclr", ("corruptions",))[
        "corruptions"
    ]
    assert [(row["probe"], row["corruption"], row["n"]) for row in found] == [
        ("linear", "none", 20),
        ("linear", "contrast", 20),
    ]
    part = toy.test[data.stratified(toy.test.labels, 20)]
    assert torch.equal(seen[2], part.images) and part.labels.bincount().tolist() == [5] * 4
    assert len(seen) == 8
    for severity, changed in enumerate(seen[3:], start=1):
        assert torch.equal(changed, corrupt(part.images, "contrast", severity))
