"""What a model is asked: every probe by itself, and all of them by one call."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import transforms

from lib import InputError, data, evaluation, probes
from lib.augmentations import RECIPES
from lib.compute.bits import pack_bits
from lib.data.dataset import Dataset, Split, epoch_order, first_of_each_class, stratified
from lib.encoders import Model
from lib.evaluation import cross_validated_probe, linear_probe, logistic_path
from lib.probes import (
    PROBES,
    Probe,
    Seen,
    calibration,
    changes,
    corruptions,
    few_labels,
    fine_tuning,
    published,
    quadrants,
)
from lib.probes.changes import CHANGES
from lib.probes.corruptions import CORRUPTIONS, corrupt
from lib.probes.published import PROTOCOLS, train_probe
from lib.runs import records
from tests.blobs import blobs
from tests.conftest import arrays, small, trained

AS_IT_IS = RECIPES["none"]
TABLES = {probe.field for probe in PROBES.values()} - {None}


class Grey(nn.Module):
    """Of the colours of an image's quarters their mean."""

    def forward(self, h: Tensor) -> Tensor:
        return h.mean(1, keepdim=True)


class Quarters(nn.Module):
    """A model for probes that costs nothing: h are the mean colours of the image's quarters."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.encoder = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)  # (N, 12)
        return h, self.head(h)


def a_model(method: str) -> Quarters:
    """A head as that method has it: z is mean grey, or four logits."""
    if method == "ce":
        torch.manual_seed(0)
        return Quarters(nn.Linear(12, 4))
    return Quarters(Grey())


def unreadable(n: int = 200) -> Dataset:
    """Images whose labels say nothing of them: which ones are right hangs on every detail."""
    given = arrays(n=n)
    random = np.random.default_rng(0)
    for key in ("y_train", "y_test"):
        given[key] = random.permutation(given[key])
    return data.build("unreadable", **given)


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Few steps of fine-tuning, and two subsets of the labels."""
    patch.setattr(fine_tuning, "STEPS", 8)
    patch.setattr(fine_tuning, "EPOCHS", 1)
    patch.setattr(fine_tuning, "SUBSETS", 2)
    patch.setattr(few_labels, "SUBSETS", 2)


@pytest.fixture(scope="module", params=["simclr", "ce"])
def everything(request: pytest.FixtureRequest) -> tuple[str, Dataset, dict]:
    """A method, a data set, and what all probes find by one call."""
    method = request.param
    dataset = unreadable(80)
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        found = probes.ask(a_model(method), dataset, AS_IT_IS, method, reversed(PROBES))
    return method, dataset, found


def test_every_probe_is_asked_by_one_call_and_fills_the_fields_it_says(everything):
    method, _, found = everything
    assert found.keys() == {"evaluation"} | TABLES
    assert probes.missing(found, PROBES) == []
    for field in TABLES:
        assert found[field], field

    on_h = {name for name, probe in PROBES.items() if probe.field is None}
    published_last = {"uva-last", "supcontrast-last"}
    evaluation = found["evaluation"]
    assert evaluation["h"].keys() == on_h | published_last
    if method == "ce":
        assert evaluation["z"].keys() == {"classifier"}
    else:  # SupContrast's probe and quadrants read h only
        of_h_alone = {"supcontrast", "supcontrast-last", "quadrants"}
        assert evaluation["z"].keys() == evaluation["h"].keys() - of_h_alone
    for results in evaluation.values():
        for result in results.values():
            assert 0 < result["correct"] <= result["n"]


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_asked_alone_finds_the_same_and_nothing_else(everything, name, monkeypatch):
    shorten(monkeypatch)
    method, dataset, found = everything
    alone = probes.ask(a_model(method), dataset, AS_IT_IS, method, [name])
    field = PROBES[name].field
    if field is not None:
        assert alone == {"evaluation": {}, field: found[field]}
        return
    assert alone.keys() == {"evaluation"}
    names = {name, f"{name}-last", "classifier"}  # as far as they are there
    for kind, results in found["evaluation"].items():
        wanted = {key: value for key, value in results.items() if key in names}
        assert alone["evaluation"].get(kind, {}) == wanted


def test_a_record_lacks_the_probes_it_has_no_result_of():
    record = {"evaluation": {"h": {"linear": {}}}, "label_sweep": []}
    assert probes.missing(record, ["knn", "linear", "labels", "corruptions"]) == [
        "knn",
        "corruptions",
    ]
    assert probes.missing({"evaluation": {}}, iter(["linear"])) == ["linear"]
    with pytest.raises(InputError, match="unknown probe 'lineal'; did you mean 'linear'"):
        probes.missing(record, ["lineal"])


def test_asking_leaves_the_models_batchnorm_alone(toy: Dataset):
    """Also SupContrast's probe, which passes new views through the encoder a hundred times."""
    model = Model("slim", head="none").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = Seen(model, toy, AS_IT_IS)
    places = torch.arange(8)
    batch = published.augmented(seen, "crop-flip")
    h = batch(places, 0)
    assert torch.equal(h, batch(places, 0))
    assert not torch.equal(h, batch(places, 1))  # new crops in every step
    assert not h.requires_grad
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_batches_of_views_are_the_features_where_nothing_is_changed(toy: Dataset):
    recipe = replace(AS_IT_IS, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    seen = Seen(a_model("simclr"), toy, recipe)
    places = torch.tensor([7, 199, 0])
    h, _ = seen.train_and_val("h")
    assert torch.allclose(published.augmented(seen, "none")(places, 0), h[places], atol=1e-5)


def test_features_are_computed_once_for_all_probes(toy: Dataset):
    seen = Seen(a_model("simclr"), toy, AS_IT_IS)
    assert seen.pair("test") is seen.pair("test")


def test_what_is_fitted_on_are_train_and_val_in_the_order_of_the_pool(toy: Dataset):
    seen = Seen(a_model("simclr"), toy, AS_IT_IS)
    x, y = seen.train_and_val("h")
    pool = toy.pool("train+val")
    h, _ = evaluation.features(seen.model, pool.images, AS_IT_IS)
    assert torch.allclose(x, h)
    assert torch.equal(y, pool.labels)


def test_test_labels_choose_nothing(toy: Dataset):
    """Shuffling the test labels changes the score and nothing else."""
    model = Model("slim", head="none")
    shuffled = replace(toy, test=Split(toy.test.images, toy.test.labels.roll(1)))
    one = probes.ask(model, toy, AS_IT_IS)["evaluation"]
    other = probes.ask(model, shuffled, AS_IT_IS)["evaluation"]
    assert one.keys() == {"h"}  # without a head z is h
    for choice in ("l2", "val_accuracy"):
        assert one["h"]["linear"][choice] == other["h"]["linear"][choice]
    assert one["h"]["linear"]["correct"] > other["h"]["linear"]["correct"]


def test_knn_votes_among_train_and_val():
    dataset = unreadable()
    seen = Seen(Quarters(nn.Linear(12, 3)), dataset, AS_IT_IS)
    found = probes.ask(seen.model, dataset, AS_IT_IS, wanted=["knn"])["evaluation"]
    for kind in ("h", "z"):
        x, y = seen.train_and_val(kind)
        x_test, truth = seen.labelled(kind, "test")
        right = evaluation.knn(x, y, x_test, 4) == truth
        assert found[kind]["knn"]["bits"] == pack_bits(right)


def test_a_classifiers_own_accuracy(toy: Dataset):
    model = Model("slim", head="linear", embedding=4)
    found = probes.ask(model, toy, AS_IT_IS, "ce")["evaluation"]
    correct = evaluation.classified(model, toy.test, AS_IT_IS)
    assert found["z"]["classifier"]["correct"] == correct


@pytest.mark.parametrize(
    "method, readers",
    [
        ("simclr", [("h", "linear"), ("z", "linear"), ("h", "knn")]),
        ("ce", [("h", "linear"), ("h", "knn"), ("z", "classifier")]),
    ],
)
def test_validation_reads_val_alone(toy: Dataset, method, readers):
    """Whatever test holds, and however it is labelled; the accuracy is that of a fit on train."""
    model = Model("slim", head="linear", embedding=4)
    rows = probes.ask(model, toy, AS_IT_IS, method, ["validation"])["validation"]
    assert [(row["features"], row["probe"]) for row in rows] == readers
    assert {row["n"] for row in rows} == {len(toy.val)}

    black = Split(torch.zeros_like(toy.test.images), toy.test.labels.roll(1))
    other = replace(toy, test=black)
    assert probes.ask(model, other, AS_IT_IS, method, ["validation"])["validation"] == rows

    x, _ = evaluation.features(model, toy.train.images, AS_IT_IS)
    x_val, _ = evaluation.features(model, toy.val.images, AS_IT_IS)
    path = logistic_path(x, toy.train.labels, 4)
    best = max(evaluation.accuracy(probe, x_val, toy.val.labels) for probe in path)
    assert rows[0]["correct"] == round(best * len(toy.val))


def test_the_calibration_of_a_classifier_is_its_own_confidence(everything):
    method, dataset, found = everything
    readers = [("h", "linear")]
    if method == "ce":
        readers.append(("z", "classifier"))
    for row, (kind, probe) in zip(found["calibration"], readers, strict=True):
        assert (row["features"], row["probe"]) == (kind, probe)
        assert sum(row["correct"]) == found["evaluation"][kind][probe]["correct"]
        assert sum(row["count"]) == row["n"] == 60
    if method == "ce":
        _, z = evaluation.features(a_model("ce"), dataset.test.images, AS_IT_IS)
        confidence = z.softmax(1).max(1).values.sum().item()
        assert sum(found["calibration"][1]["confidence"]) == pytest.approx(confidence, abs=1e-3)


def test_calibration_by_log_loss_stands_beside_the_other(toy: Dataset):
    model = Model("slim", head="linear", embedding=4)
    wanted = ("calibration", "calibration-by-log-loss")
    found = probes.ask(model, toy, AS_IT_IS, "ce", wanted)
    by_accuracy, by_log_loss = found["calibration"], found["calibration_by_log_loss"]
    for rows in (by_accuracy, by_log_loss):
        readers = [(row["features"], row["probe"]) for row in rows]
        assert readers == [("h", "linear"), ("z", "classifier")]
    assert by_accuracy[1] == by_log_loss[1]  # nothing is chosen for it
    assert by_accuracy[0] != by_log_loss[0]


def test_a_bin_of_confidence_holds_its_upper_edge():
    bins = calibration.reliability([0.0, 1 / 3, 0.34, 1.0], [False, True, True, False], bins=3)
    assert bins["count"] == [2, 1, 1]
    assert bins["confidence"] == [0.3333, 0.34, 1.0]
    assert bins["correct"] == [1, 1, 0]


def test_corruptions_are_read_by_the_probe_of_clean_images_and_the_classifier(everything):
    """There are no more than 60 test images: all of them are corrupted."""
    method, dataset, found = everything
    readers = {("h", "linear")}
    if method == "ce":
        readers.add(("z", "classifier"))
    correct = {}
    for row in found["corruptions"]:
        assert row["n"] == 60
        correct[row["corruption"], row["features"], row["probe"]] = row["correct"]

    assert {(kind, probe) for _, kind, probe in correct} == readers
    for kind, probe in readers:
        assert correct["none", kind, probe] == [found["evaluation"][kind][probe]["correct"]]
        for name in CORRUPTIONS:
            assert len(correct[name, kind, probe]) == 5
    if method == "ce":
        changed = corrupt(dataset.test.images, "contrast", 5)
        _, z = evaluation.features(a_model("ce"), changed, AS_IT_IS)
        right = int((z.argmax(1) == dataset.test.labels).sum())
        assert correct["contrast", "z", "classifier"][4] == right


def test_corruptions_take_a_stratified_part_of_the_test_images(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corruptions, "IMAGES", 20)
    dataset = unreadable()
    seen = Seen(a_model("simclr"), dataset, AS_IT_IS)
    rows = corruptions.ask(seen)
    assert {row["n"] for row in rows} == {20}
    assert [row["corruption"] for row in rows] == ["none", *CORRUPTIONS]

    part = dataset.test[stratified(dataset.test.labels, 20)]
    assert part.labels.bincount().tolist() == [5] * 4
    probe, _ = linear_probe(seen.labelled("h", "train"), seen.labelled("h", "val"), 4)
    for row in rows[1:]:
        for severity, correct in enumerate(row["correct"], start=1):
            images = corrupt(part.images, row["corruption"], severity)
            h, _ = evaluation.features(seen.model, images, AS_IT_IS)
            assert correct == int((probe.predict(h) == part.labels).sum())


def test_a_change_is_read_where_the_features_hold_it_and_guessed_where_they_do_not():
    """Pictures with a bright top left corner: h knows how they were turned, z cannot."""
    given = arrays(n=200, test=80)
    for key in ("x_train", "x_test"):
        given[key][:, :6, :6] = 255
    corner = data.build("corner", **given)
    wanted = ("rotation", "grey")
    found = probes.ask(a_model("simclr"), corner, AS_IT_IS, "simclr", wanted)["evaluation"]
    assert found["h"]["rotation"]["n"] == found["h"]["rotation"]["correct"] == 4 * 80
    assert found["z"]["rotation"]["correct"] < 0.4 * 320
    assert found["h"]["grey"]["n"] == 160


@pytest.mark.parametrize("encoder", ["slim", "resnet9", "resnet18"])
def test_quadrants_are_means_of_the_encoders_last_map(encoder: str):
    model = Model(encoder, "cifar", "mlp", 16).eval()
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = []
    (mean,) = (part for part in model.modules() if isinstance(part, nn.AdaptiveAvgPool2d))
    mean.register_forward_hook(lambda part, given, out: maps.append(given[0]))
    with torch.no_grad():
        h, _ = model(x)
        of_quadrants, z = quadrants.by_quadrants(model)(x)
        again, _ = model(x)
    assert torch.equal(h, again), "the model is as it was"
    assert torch.equal(of_quadrants, z)

    half = maps[0].shape[2] // 2
    places = [slice(0, half), slice(half, None)]
    four = [maps[0][:, :, rows, columns].mean((2, 3)) for rows in places for columns in places]
    assert torch.allclose(of_quadrants, torch.stack(four, 2).flatten(1), atol=1e-5)


def test_quadrants_are_read_better_where_the_class_is_a_place():
    """A bright corner: the mean over the image is the same whichever corner it is."""
    generator = np.random.default_rng(0)
    given = arrays(n=200, test=80, size=32)
    for split in ("train", "test"):
        corners = generator.integers(0, 4, len(given[f"x_{split}"]))
        given[f"x_{split}"][:] = 0
        for image, corner in zip(given[f"x_{split}"], corners):
            image[16 * (corner // 2) :, 16 * (corner % 2) :][:8, :8] = 255
        given[f"y_{split}"] = corners
    places = data.build("places", **given)
    model = Quarters(nn.Identity())
    model.encoder[0] = nn.AdaptiveAvgPool2d(1)
    found = probes.ask(model, places, AS_IT_IS, wanted=["linear", "quadrants"])["evaluation"]["h"]
    assert found["quadrants"]["correct"] == 80
    assert found["linear"]["correct"] < 40, "of 80, a guess"


def test_what_has_no_mean_over_places_has_no_quadrants(toy: Dataset):
    with pytest.raises(InputError, match="where an encoder ends with a mean over all places"):
        probes.ask(Model("pixels", "cifar", "none"), toy, AS_IT_IS, wanted=["quadrants"])


def test_a_change_is_read_from_a_stratified_part(toy: Dataset, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(changes, "IMAGES", 20)
    found = probes.ask(a_model("simclr"), toy, AS_IT_IS, wanted=["grey"])["evaluation"]
    assert found["h"]["grey"]["n"] == 2 * 20


def test_changes_are_what_their_names_say():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=generator)

    turned = CHANGES["rotation"](x)
    assert len(turned) == 4
    assert torch.equal(turned[1].rot90(3, (2, 3)), x)
    assert torch.equal(turned[2].flip(2, 3), x)

    coloured, grey = CHANGES["grey"](x)
    theirs = transforms.functional.rgb_to_grayscale(x, 3)
    assert torch.equal(coloured, x)
    assert (grey.int() - theirs.int()).abs().max() <= 1

    clean, noisy = CHANGES["noise"](x)
    assert torch.equal(clean, x)
    assert torch.equal(noisy, CHANGES["noise"](x)[1])
    inside = (x > 60) & (x < 195)
    assert 15 < (noisy.float() - x.float())[inside].std() < 30


def test_published_probes_show_their_best_epoch_and_their_last(everything):
    _, _, found = everything
    on_h = found["evaluation"]["h"]
    for name in ("uva", "supcontrast"):
        best, last = on_h[name], on_h[f"{name}-last"]
        epochs, counts = zip(*best["curve"])
        every = PROTOCOLS[name].look_every
        assert list(epochs) == list(range(every, 101, every))
        assert best["correct"] == max(counts)
        assert last["correct"] == counts[-1]


@pytest.mark.parametrize("method, rate", [("simclr", 1.0), ("supcon", 5.0), ("ce", 5.0)])
def test_supcontrasts_probe_learns_slower_from_an_encoder_without_labels(method, rate):
    protocol = published.supcontrast(method)
    assert protocol == replace(PROTOCOLS["supcontrast"], learning_rate=rate)

    seen = Seen(a_model(method), unreadable(), AS_IT_IS, method)
    batch = published.augmented(seen, "crop-flip")
    _, y = seen.train_and_val("h")
    _, _, curve = train_probe(protocol, batch, y, seen.labelled("h", "test"), 4)
    assert published.ask_supcontrast(seen)["h"]["supcontrast"]["curve"] == curve


def test_a_published_probe_that_never_looks_at_test_has_its_last_epoch_for_its_best():
    """It has learned by then: classes far apart are told apart."""
    x, y = blobs(160, noise=0.01)
    x = (x / x.std(0)).float()
    protocol = replace(PROTOCOLS["uva"], epochs=9, learning_rate=0.1)
    assert protocol.epochs < protocol.look_every
    best, last, curve = train_probe(protocol, published.features_of(x), y, (x, y), 4)
    assert curve == []
    assert torch.equal(best, last)
    assert torch.equal(last, y)


def by_hand(name: str, x: Tensor, y: Tensor, test: tuple[Tensor, Tensor], rates) -> dict[int, int]:
    """How many a published probe gets right after each epoch; rates: the learning rate of each."""
    torch.manual_seed(0)
    layer = nn.Linear(x.shape[1], 4)
    optimiser: torch.optim.Optimizer
    if name == "uva":
        size = 64
        optimiser = torch.optim.AdamW(layer.parameters(), 1e-3, weight_decay=1e-3)
    else:
        size = 512
        optimiser = torch.optim.SGD(layer.parameters(), 5.0, momentum=0.9)

    x_test, y_test = test
    right = {}
    for epoch in range(1, 101):
        optimiser.param_groups[0]["lr"] = rates(epoch)
        places = epoch_order(len(y), 0, epoch)
        for start in range(0, len(y), size):
            batch = places[start : start + size]
            optimiser.zero_grad()
            F.cross_entropy(layer(x[batch]), y[batch]).backward()
            optimiser.step()
        right[epoch] = int((layer(x_test).argmax(1) == y_test).sum())
    return right


def uvas_rate(epoch: int) -> float:
    return 1e-3 * 0.1 ** ((epoch > 60) + (epoch > 80))


def supcontrasts_rate(epoch: int) -> float:
    return 5 * 0.2 ** ((epoch > 60) + (epoch > 75) + (epoch > 90))


@pytest.mark.parametrize(
    "name, rates, every, steps",
    [("uva", uvas_rate, 10, 300), ("supcontrast", supcontrasts_rate, 1, 100)],
)
def test_the_published_probes_are_the_sources_step_by_step(name, rates, every, steps):
    (x, y), (x_test, y_test) = blobs(150, noise=6), blobs(200, noise=6, seed=9)
    x, x_test = x.float() / 100, x_test.float() / 100
    right = by_hand(name, x, y, (x_test, y_test), rates)
    asked = []

    def batch(places: Tensor, step: int) -> Tensor:
        asked.append(step)
        return x[places]

    best, last, curve = train_probe(PROTOCOLS[name], batch, y, (x_test, y_test), 4)
    assert curve == [[epoch, right[epoch]] for epoch in range(every, 101, every)]
    assert int((best == y_test).sum()) == max(count for _, count in curve)
    assert int((last == y_test).sum()) == right[100]
    assert asked == list(range(steps))


@pytest.mark.parametrize("images, steps", [(100, 200), (5000, 7900)])
def test_uvas_probe_takes_as_many_steps_as_published(images, steps):
    """200 steps at 10 labels a class, 7,900 at 500: what confounds the label sweep."""
    batches = epoch_order(images, 0, 1).split(PROTOCOLS["uva"].batch_size)
    assert PROTOCOLS["uva"].epochs * len(batches) == steps


def test_the_label_sweep_uses_no_more_labels_than_it_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(few_labels, "PER_CLASS", (5, 8, 50))  # of 50 a class: 50 is left out
    monkeypatch.setattr(few_labels, "SUBSETS", 2)
    dataset = unreadable()
    seen = Seen(a_model("simclr"), dataset, AS_IT_IS)
    rows = few_labels.ask(seen)
    wanted = []
    for per_class, labels in ((5, 20), (8, 32)):
        wanted += [("linear", per_class, labels, f"random {i}") for i in range(2)]
        wanted += [(probe, per_class, labels, "first") for probe in ("uva", "uva-last")]
    found = [(row["probe"], row["per_class"], row["labels"], row["subset"]) for row in rows]
    assert found == wanted
    assert {row["n"] for row in rows} == {60}

    x, y = seen.train_and_val("h")
    x_test, truth = seen.labelled("h", "test")
    subsets = few_labels.named_subsets(dataset, seen.dataset.pool("train+val"), 5)
    for row, (_, places) in zip(rows, subsets):
        assert y[places].bincount().tolist() == [5] * 4
        probe = cross_validated_probe(x[places], y[places], 4)
        assert row["correct"] == int((probe.predict(x_test) == truth).sum())

    places = first_of_each_class(seen.dataset.pool("train+val"), 5)
    batch = published.features_of(x[places])
    best, last, _ = train_probe(PROTOCOLS["uva"], batch, y[places], (x_test, truth), 4)
    assert rows[2]["correct"] == int((best == truth).sum())
    assert rows[3]["correct"] == int((last == truth).sum())


def test_official_folds_are_used_at_a_hundred_labels_a_class(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(few_labels, "PER_CLASS", (100,))
    given = arrays(n=480)
    folds = [torch.arange(480)[i::10][:20] for i in range(10)]
    stl = data.build("toy", **given, folds=folds)
    rows = probes.ask(a_model("simclr"), stl, AS_IT_IS, wanted=["labels"])["label_sweep"]
    names = [row["subset"] for row in rows if row["probe"] == "linear"]
    assert names == [f"fold {i}" for i in range(10)]

    pool = stl.pool("train+val")
    official = torch.from_numpy(given["x_train"]).permute(0, 3, 1, 2)
    subsets = few_labels.named_subsets(stl, pool, 100)
    for (_, places), fold in zip(subsets, folds, strict=True):
        assert torch.equal(pool.images[places], official[fold])
    assert len(few_labels.named_subsets(stl, pool, 50)) == 5  # random ones


def test_what_a_probe_found_is_in_the_record_before_the_next_one_is_asked(
    toy, tmp_path, monkeypatch
):
    run = trained(small("ce", epochs=1), toy, tmp_path)

    def lost(seen: Seen) -> list:
        raise InputError("no time left")

    monkeypatch.setitem(PROBES, "labels", Probe(lost, "label_sweep"))
    with pytest.raises(InputError, match="no time left"):
        run.evaluate(toy, "cpu", ["labels", "linear", "knn", "calibration"])
    record = records.read(run.folder / "record.json")
    assert {"linear", "knn"} <= record["evaluation"]["h"].keys()
    assert "classifier" in record["evaluation"]["z"]
    assert "label_sweep" not in record and "calibration" not in record
