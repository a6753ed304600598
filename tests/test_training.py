import math
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lib import (
    InputError,
    checkpoints,
    data,
    evaluation,
    hardware,
    losses,
    optimisers,
    records,
    training,
)
from lib.config import PRESETS, Config, preset
from lib.encoders import Model
from tests.conftest import arrays

SMALL = {"recipe": "supcontrast", "epochs": 3, "batch_size": 32, "data": "toy"}


def config(method="simclr", **delta):
    return preset(f"{method}-digits", **SMALL | delta)


def pretrain(config, dataset, folder):
    return training.pretrain(config, dataset, folder, device="cpu", progress=False)


def test_the_schedule_is_supcontrasts():
    """util.py: adjust_learning_rate by epochs from 1, warm-up by steps to the cosine's value at
    epoch 10."""
    report = preset("supcon-cifar10", epochs=100)
    steps = 49
    low = 0.5 * 0.1**3
    at_10 = low + (0.5 - low) * (1 + math.cos(math.pi * 10 / 100)) / 2
    assert at_10 == pytest.approx(0.48778, abs=5e-6)
    assert optimisers.learning_rate(report, 0, steps) == pytest.approx(0.01)
    assert optimisers.learning_rate(report, 245, steps) == pytest.approx((0.01 + at_10) / 2)
    assert optimisers.learning_rate(report, 489, steps) == pytest.approx(
        0.01 + (at_10 - 0.01) * 489 / 490
    )
    assert optimisers.learning_rate(report, 490, steps) == pytest.approx(
        low + (0.5 - low) * (1 + math.cos(math.pi * 11 / 100)) / 2
    )
    assert optimisers.learning_rate(report, 100 * steps - 1, steps) == pytest.approx(low)
    full = preset("supcon-cifar10")
    assert optimisers.learning_rate(full, 10 * steps - 1, steps) == pytest.approx(
        0.49988, abs=0.0011
    )


def test_the_schedule_is_uvas():
    """torch's own CosineAnnealingLR, stepped once an epoch, from lr to lr / 50."""
    uva = preset("simclr-stl10")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.AdamW([parameter], lr=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=500, eta_min=5e-4 / 50)
    for epoch in range(500):
        assert optimisers.learning_rate(uva, 390 * epoch + 17, 390) == pytest.approx(
            optimiser.param_groups[0]["lr"]
        )
        optimiser.step()
        scheduler.step()


def test_the_schedule_of_the_supervised_baseline_is_pytorchs_multisteplr():
    baseline, parameter = preset("ce-stl10"), torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.AdamW([parameter], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, [70, 90], 0.1)
    for epoch in range(100):
        for step in (78 * epoch, 78 * epoch + 77):
            assert optimisers.learning_rate(baseline, step, 78) == pytest.approx(
                optimiser.param_groups[0]["lr"]
            )
        optimiser.step()
        scheduler.step()


def supcontrasts_rate(epoch, batch, batches, epochs, lr):
    """Learning rate as SupContrast's util.py sets it, written out: epoch from 1, batch from 0,
    batch_size > 256."""
    eta_min = lr * 0.1**3
    if epoch <= 10:
        warmup_to = eta_min + (lr - eta_min) * (1 + math.cos(math.pi * 10 / epochs)) / 2
        share = (batch + (epoch - 1) * batches) / (10 * batches)
        return 0.01 + share * (warmup_to - 0.01)
    return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * epoch / epochs)) / 2


@pytest.mark.parametrize(
    "name", ["supcon-cifar10", "simclr-cifar10", "ce-cifar10", "supcon-cifar10-report"]
)
def test_the_schedules_are_supcontrasts_step_for_step(name):
    config = preset(name)
    for epoch in (1, 2, 10, 11, 50, config.epochs - 1, config.epochs):
        for batch in (0, 1, 48):
            step = (epoch - 1) * 49 + batch
            wanted = supcontrasts_rate(epoch, batch, 49, config.epochs, config.learning_rate)
            assert optimisers.learning_rate(config, step, 49) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    "name, images, steps, last",
    [
        ("supcon-cifar10", 50_000, 49, 848),
        ("ce-cifar10-r18", 50_000, 49, 848),  # SupContrast: no drop_last
        ("simclr-stl10", 100_000, 390, 256),
        ("ce-stl10", 5_000, 78, 64),
    ],
)  # UvA: drop_last
def test_the_last_batch_is_the_references(name, images, steps, last):
    sizes = optimisers.batch_sizes(preset(name), images)
    assert (len(sizes), sizes[0], sizes[-1]) == (steps, preset(name).batch_size, last)


def test_a_last_batch_of_one_image_is_left_out():
    assert optimisers.batch_sizes(config(batch_size=8, drop_last=False), 17) == [
        8,
        8,
    ]  # BatchNorm needs two
    assert optimisers.batch_sizes(config(batch_size=8, drop_last=False), 18) == [8, 8, 2]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_takes_three_steps(name, tmp_path):
    """Its own encoder, head, recipe, schedule and optimiser; small images and batches for the
    time."""
    given = arrays(n=28, test=8, size=16, unlabeled=24)
    small = preset(
        name,
        batch_size=8,
        images=None,
        size=16,
        epochs=1,
        knn_every=0,
        data="toy",
        pool="unlabeled" if preset(name).pool == "unlabeled" else "train",
    )
    run = pretrain(small, data.build("toy", **given), tmp_path)
    assert len(optimisers.batch_sizes(small, run.record["data"]["pool"])) == 3
    before = training.build_model(small, data.build("toy", **given)).state_dict()
    moved = [
        key for key, value in run.model.state_dict().items() if not torch.equal(value, before[key])
    ]
    assert math.isfinite(run.curves[0]["loss"]) and len(moved) > 0.9 * len(before)


def test_the_order_is_a_permutation_of_seed_and_epoch():
    one = training.order(50, 1, 2)
    assert sorted(one.tolist()) == list(range(50)) and torch.equal(one, training.order(50, 1, 2))
    assert not torch.equal(one, training.order(50, 1, 3)) and not torch.equal(
        one, training.order(50, 2, 2)
    )


@pytest.mark.parametrize("method", ["simclr", "supcon", "ce"])
def test_a_run_learns_and_leaves_a_whole_record(method, toy, tmp_path):
    run = pretrain(config(method, epochs=6), toy, tmp_path)
    assert run.curves[-1]["loss"] < run.curves[0]["loss"]
    record = records.read(run.folder / "record.json")
    assert record == run.record and record["data"]["fingerprint"] == toy.fingerprint
    assert record["config"]["method"] == method and record["data"]["counts"]["test"] == 60
    assert (
        len(record["curves"]) == 6 and record["views_per_second"] > 0 and record["code"]["source"]
    )
    cost = record["cost"]
    assert cost["flops_per_view"] == run.model.flops(12) and cost["peak_bytes"] > 1e7
    assert cost["share_of_matrix_rate"] == pytest.approx(
        cost["flops_per_view"] * record["views_per_second"] / cost["matrix_flops_per_second"]
    )
    assert sorted(p.name for p in run.folder.iterdir()) == [
        ".lock",
        "model.safetensors",
        "record.json",
    ]
    evaluation = training.evaluate(run, toy, "cpu")
    assert evaluation["h"]["linear"]["correct"] / 60 > 0.6  # guessing: 0.25
    assert set(evaluation["z"]) == ({"classifier"} if method == "ce" else {"linear", "knn"})
    assert records.read(run.folder / "record.json")["evaluation"] == evaluation


def test_a_run_is_a_function_of_its_configuration(toy, tmp_path):
    torch.manual_seed(1)
    one = pretrain(config(), toy, tmp_path / "a")
    torch.manual_seed(2)  # the global state must not matter
    torch.rand(5)
    two = pretrain(config(), toy, tmp_path / "b")
    other = pretrain(config(seed=1), toy, tmp_path / "b")
    same = [
        torch.equal(a, b)
        for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values())
    ]
    assert all(same) and one.folder.name == two.folder.name
    assert (
        [r["loss"] for r in one.curves]
        == [r["loss"] for r in two.curves]
        != [r["loss"] for r in other.curves]
    )


@pytest.mark.parametrize(
    "method, optimiser", [("simclr", "adamw"), ("supcon", "sgd"), ("ce", "adamw")]
)
def test_an_interrupted_run_goes_on_to_the_same_end(method, optimiser, toy, tmp_path, monkeypatch):
    chosen = config(method, optimiser=optimiser, epochs=4)
    whole = pretrain(chosen, toy, tmp_path / "whole")
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    order, epochs = training.order, []

    def stop_in_epoch_3(n, seed, epoch):
        epochs.append(epoch)
        if epoch == 2 and epochs.count(2) == 1:
            raise KeyboardInterrupt
        return order(n, seed, epoch)

    monkeypatch.setattr(training, "order", stop_in_epoch_3)
    with pytest.raises(KeyboardInterrupt):
        pretrain(chosen, toy, tmp_path / "cut")
    cut = pretrain(chosen, toy, tmp_path / "cut")
    assert epochs == [0, 1, 2, 2, 3]
    assert [r["loss"] for r in cut.curves] == [r["loss"] for r in whole.curves]
    for a, b in zip(whole.model.state_dict().values(), cut.model.state_dict().values()):
        assert torch.equal(a, b)


def test_a_finished_run_is_returned_at_once(toy, tmp_path, monkeypatch):
    one = pretrain(config(), toy, tmp_path)
    monkeypatch.setattr(training, "_train", None)
    assert pretrain(config(), toy, tmp_path).record == one.record


def test_the_untrained_encoder_is_a_run_of_no_epochs(toy, tmp_path):
    run = pretrain(config(epochs=0), toy, tmp_path)
    fresh = training.build_model(config(epochs=0), toy).state_dict()
    assert run.curves == [] and all(
        torch.equal(v, fresh[k]) for k, v in run.model.state_dict().items()
    )


def test_data_of_other_content_is_another_run(toy, tmp_path):
    other = data.build("toy", **arrays(seed=1))
    assert training.identity(config(), toy) != training.identity(config(), other)
    run = pretrain(config(epochs=0), toy, tmp_path)
    with pytest.raises(InputError, match="was trained on another version of toy"):
        training.evaluate(run, other)


def test_training_images_are_only_those_of_the_pool(toy, tmp_path):
    assert pretrain(config(pool="train", epochs=1), toy, tmp_path).record["data"]["pool"] == 180
    assert pretrain(config(pool="train+val", epochs=1), toy, tmp_path).record["data"]["pool"] == 200
    assert pretrain(config(images=80, epochs=1), toy, tmp_path).record["data"]["pool"] == 72


def test_the_last_batch_is_kept_or_left_out(toy, tmp_path, monkeypatch):
    seen, views = [], training.views

    def spy(images, *rest):
        seen.append(len(images))
        return views(images, *rest)

    monkeypatch.setattr(training, "views", spy)
    pretrain(config(drop_last=False, epochs=1, batch_size=50), toy, tmp_path)
    pretrain(config(drop_last=True, epochs=1, batch_size=50), toy, tmp_path)
    assert seen == [50, 50, 50, 30, 50, 50, 50]


def test_supervised_methods_need_labels(tmp_path):
    unlabeled = data.build("toy", **arrays(unlabeled=64))
    assert (
        pretrain(config(pool="unlabeled", epochs=1), unlabeled, tmp_path).record["data"]["pool"]
        == 64
    )
    with pytest.raises(InputError, match="supcon needs labels"):
        pretrain(config("supcon", pool="unlabeled"), unlabeled, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(toy, tmp_path):
    with pytest.raises(InputError, match="became nan in epoch"):
        pretrain(config(optimiser="sgd", learning_rate=1e30, warmup_epochs=0), toy, tmp_path)


def test_a_batch_larger_than_the_pool_is_named(toy, tmp_path):
    with pytest.raises(InputError, match="180 images, fewer than one batch of 256"):
        pretrain(config(batch_size=256), toy, tmp_path)


def test_the_data_set_must_be_the_configurations(toy, tmp_path):
    with pytest.raises(InputError, match="is for the data set 'digits', the one given is 'toy'"):
        pretrain(config(data="digits"), toy, tmp_path)


def test_supcontrasts_factor_scales_the_loss():
    z, labels = (
        torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)),
        torch.arange(8) % 3,
    )
    for method in ("simclr", "supcon"):
        plain, theirs = (
            config(method, temperature=0.5, base_temperature=base) for base in (None, 0.07)
        )
        assert training.loss_of(theirs, z, labels) == pytest.approx(
            float(training.loss_of(plain, z, labels)) * 0.5 / 0.07
        )


def test_label_smoothing_gives_a_share_of_each_target_to_all_classes():
    z, labels = (
        torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 3, 0, 1]),
    )
    target = 0.7 * F.one_hot(labels, 4) + 0.3 / 4
    by_hand = -(target * z[0].log_softmax(1)).sum(1).mean()
    smoothed = preset("ce-digits", label_smoothing=0.3)
    assert training.loss_of(smoothed, z, labels) == pytest.approx(float(by_hand))
    assert training.loss_of(preset("ce-digits"), z, labels) == pytest.approx(
        float(F.cross_entropy(z[0], labels))
    )


@pytest.mark.parametrize("method", ["simclr", "supcon", "ce"])
def test_an_epoch_tells_the_contrast_of_its_last_full_batch(method, toy, tmp_path, monkeypatch):
    """180 images in batches of 32: the sixth batch has 20."""
    seen, loss_of = [], training.loss_of
    monkeypatch.setattr(
        training,
        "loss_of",
        lambda config, z, labels: (seen.append((z, labels)), loss_of(config, z, labels))[1],
    )
    run = pretrain(config(method, epochs=2, drop_last=False), toy, tmp_path)
    assert [z.shape[1] for z, _ in seen] == 2 * [32, 32, 32, 32, 32, 20]
    for epoch, row in enumerate(run.curves):
        z, labels = seen[6 * epoch + 4]
        if method == "ce":
            assert "top1" not in row
        else:
            wanted = losses.contrast(z, labels if method == "supcon" else None)
            assert {field: row[field] for field in wanted._fields} == wanted._asdict()


def test_checkpoints_that_do_not_fit_are_named(toy, tmp_path, monkeypatch):
    one, other = pretrain(config(epochs=1), toy, tmp_path), config(epochs=2)
    target = tmp_path / training.identity(other, toy)
    target.mkdir()
    shutil.copy(one.folder / "model.safetensors", target / "checkpoint.safetensors")
    with pytest.raises(
        InputError, match="does not fit its configuration: epochs is 1 there and 2 here"
    ):
        pretrain(other, toy, tmp_path)
    (target / "checkpoint.safetensors").write_bytes(b"\x08" * 40)
    with pytest.raises(InputError, match="checkpoint.safetensors is missing or damaged"):
        pretrain(other, toy, tmp_path)
    whole = (one.folder / "model.safetensors").read_bytes()
    (one.folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(InputError, match="model.safetensors is missing or damaged"):
        training.load_run(one.folder)
    (one.folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="model.safetensors is missing or damaged"):
        training.load_run(one.folder)


def test_weights_of_another_shape_are_named(toy, tmp_path):
    run = pretrain(config(epochs=0), toy, tmp_path)
    checkpoints.save(
        run.folder / "model.safetensors",
        run.config,
        checkpoints.Progress(),
        Model("slim", head="linear"),
    )
    with pytest.raises(
        InputError, match="model.safetensors does not fit its configuration: Missing"
    ):
        training.load_run(run.folder)


def test_folders_and_devices_that_cannot_be_used_are_named(toy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't write .*file"):
        pretrain(config(epochs=0), toy, tmp_path / "file" / "runs")
    with pytest.raises(InputError, match="the device 'toaster' can't be used"):
        hardware.choose_device("toaster")


def test_bfloat16_trains_too(toy, tmp_path):
    run = pretrain(config(precision="bfloat16"), toy, tmp_path)
    assert run.curves[-1]["loss"] < run.curves[0]["loss"]
    assert all(p.dtype == torch.float32 for p in run.model.parameters())


def test_float16_trains_with_a_scale_that_survives_a_resume(toy, tmp_path, monkeypatch):
    chosen = config("supcon", precision="float16", epochs=3)
    whole = pretrain(chosen, toy, tmp_path / "whole")
    assert whole.curves[-1]["loss"] < whole.curves[0]["loss"]
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    scales, rotate = [], checkpoints.rotate

    def stop_after_step_7(folder, config, progress, model, optimiser, scaler):
        rotate(folder, config, progress, model, optimiser, scaler)
        scales.append(scaler.state_dict())
        if progress.step == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoints, "rotate", stop_after_step_7)
        pretrain(chosen, toy, tmp_path / "cut")
    loaded, restore = [], checkpoints.restore

    def spy(path, config, run, model, optimiser=None, scaler=None):
        progress = restore(path, config, run, model, optimiser, scaler)
        loaded.extend([scaler.state_dict()] if scaler else [])
        return progress

    monkeypatch.setattr(checkpoints, "restore", spy)
    cut = pretrain(chosen, toy, tmp_path / "cut")
    assert loaded[0] == scales[-1] and loaded[0]["_growth_tracker"] > 0
    assert [r["loss"] for r in cut.curves] == [r["loss"] for r in whole.curves]


def test_the_best_look_at_test_is_shown_beside_and_chooses_nothing(toy, tmp_path):
    plain, looked = config("ce", epochs=4, test_every=0), config("ce", epochs=4, test_every=2)
    one, two = pretrain(plain, toy, tmp_path), pretrain(looked, toy, tmp_path)
    for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values()):
        assert torch.equal(a, b)
    looks = [row["test_correct"] for row in two.curves if "test_correct" in row]
    found = training.evaluate(two, toy, "cpu")["z"]
    assert len(looks) == 2 and looks[-1] == found["classifier"]["correct"]
    assert found["classifier-best"] == {"n": 60, "correct": max(looks)}
    alone = pretrain(config("ce", epochs=2, test_every=1), toy, tmp_path)
    assert training.evaluate(alone, toy, "cpu", ("labels",)) == {} and alone.record["label_sweep"]
    assert "classifier-best" not in training.evaluate(one, toy, "cpu")["z"]


def test_a_runs_features_are_those_its_evaluation_reads(toy, tmp_path):
    run = pretrain(config(epochs=1, images=80), toy, tmp_path)
    h, z = training.features(run, toy.test.images, toy, "cpu")
    recipe = training.recipe_for(run.config, toy.take(80), "none")
    theirs = evaluation.features(run.model, toy.test.images, recipe)
    assert (
        torch.equal(h, theirs[0])
        and torch.equal(z, theirs[1])
        and recipe.mean == toy.take(80).moments[0]
    )


def test_evaluation_adds_what_is_missing_and_repeats_nothing(toy, tmp_path, monkeypatch):
    run = pretrain(config(epochs=1), toy, tmp_path)
    training.evaluate(run, toy, "cpu", ("knn",))
    asked, evaluate = [], evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", lambda *a: (asked.append(a[-1]), evaluate(*a))[1])
    monkeypatch.setattr(evaluation, "PER_CLASS", (5,))
    training.evaluate(run, toy, "cpu", ("linear", "knn", "labels"))
    training.evaluate(run, toy, "cpu", ("linear", "knn", "labels"))
    assert asked == [("linear",)]
    record = records.read(run.folder / "record.json")
    assert set(record["evaluation"]["h"]) == {"knn", "linear"} and len(record["label_sweep"]) == 7
    with pytest.raises(InputError, match="unknown probe 'uav'; did you mean 'uva'"):
        training.evaluate(run, toy, "cpu", ("uav",))


def test_supcon_trains_with_the_positives_it_is_told(toy):
    z, labels = (
        torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)),
        torch.arange(8) % 3,
    )
    for form in ("out", "in"):
        config = preset("supcon-digits", positives=form, temperature=0.2)
        assert torch.equal(
            training.loss_of(config, z, labels), losses.sup_con(z, labels, 0.2, form)
        )
    assert losses.sup_con(z, labels, 0.2, "in") < losses.sup_con(z, labels, 0.2, "out")


def test_published_runs_keep_their_identity():
    """Every published record's name is still that of its configuration, on the data it names."""
    for record in records.load_all():
        dataset = SimpleNamespace(fingerprint=record["data"]["fingerprint"])
        assert training.identity(Config(**record["config"]), dataset) == record["id"]
