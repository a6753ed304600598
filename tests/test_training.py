import copy
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from lib import Diverged, InputError, data, encoders, evaluation, hardware, losses
from lib.augmentations import RECIPES, apply, draw, views
from lib.compute.cost import flops
from lib.config import Config
from lib.data import pictures
from lib.data.dataset import Dataset
from lib.encoders import ENCODERS, Model
from lib.evidence import answers
from lib.methods import METHODS
from lib.presets import PRESETS, preset
from lib.probes import few_labels, published
from lib.runs import Run, checkpoints, identity, load, records
from lib.runs.checkpoints import RunProgress
from lib.runs.pretraining import _look
from lib.runs.session import ENDED, only_writer
from lib.training import (
    Batches,
    Progress,
    Step,
    batch_sizes,
    build_model,
    build_optimiser,
    learning_rate,
    recipe_for,
    train,
)
from tests.conftest import (
    arrays,
    begun,
    same,
    same_weights,
    sessions_of,
    small,
    stopped,
    trained,
    training_of,
    without_times,
)

CPU = torch.device("cpu")


def supcontrasts_cosine(lr: float, epoch: int, epochs: int) -> float:
    """As SupContrast's util.py sets it, written out: epoch from 1."""
    eta_min = lr * 0.1**3
    angle = math.pi * epoch / epochs
    return eta_min + (lr - eta_min) * (1 + math.cos(angle)) / 2


def supcontrasts_rate(epoch: int, batch: int, config: Config) -> float:
    """The same with its warm-up, for 49 batches an epoch: batch from 0."""
    lr, epochs = config.learning_rate, config.epochs
    if epoch > 10:
        return supcontrasts_cosine(lr, epoch, epochs)
    warmup_to = supcontrasts_cosine(lr, 10, epochs)
    share = (batch + (epoch - 1) * 49) / 490
    return 0.01 + share * (warmup_to - 0.01)


@pytest.mark.parametrize(
    "name", ["supcon-cifar10", "simclr-cifar10", "ce-cifar10", "supcon-cifar10-report"]
)
def test_the_schedules_are_supcontrasts_step_for_step(name):
    config = preset(name)
    last = config.epochs
    for epoch in (1, 2, 10, 11, 50, last - 1, last):
        for batch in (0, 1, 48):
            step = (epoch - 1) * 49 + batch
            wanted = supcontrasts_rate(epoch, batch, config)
            assert learning_rate(config, step, 49) == pytest.approx(wanted, rel=1e-12)


def test_the_schedule_is_supcontrasts():
    """In numbers: a warm-up by steps to epoch 10's cosine, then by epochs to a thousandth."""
    report = preset("supcon-cifar10", epochs=100)
    at_10 = 0.48778
    wanted = {
        0: 0.01,
        245: (0.01 + at_10) / 2,
        489: 0.01 + (at_10 - 0.01) * 489 / 490,
        490: 0.485235,
        4899: 0.0005,
    }
    for step, rate in wanted.items():
        assert learning_rate(report, step, 49) == pytest.approx(rate, abs=5e-6)


def adamw(lr: float) -> torch.optim.Optimizer:
    """For a schedule of PyTorch's to be stepped through."""
    parameter = nn.Parameter(torch.zeros(1))
    return torch.optim.AdamW([parameter], lr=lr)


def test_the_schedule_is_uvas():
    """torch's own CosineAnnealingLR, stepped once an epoch, from lr to lr / 50."""
    uva = preset("simclr-stl10")
    optimiser = adamw(lr=5e-4)
    scheduler = CosineAnnealingLR(optimiser, T_max=500, eta_min=1e-5)
    for epoch in range(500):
        wanted = optimiser.param_groups[0]["lr"]
        assert learning_rate(uva, 390 * epoch + 17, 390) == pytest.approx(wanted)
        optimiser.step()
        scheduler.step()


def test_a_cosine_may_be_left_early_and_cooled_down_from():
    """Up to there the rates of the long run, from there a line to the end's rate."""
    long = preset("simclr-stl10")
    early = replace(long, epochs=100, cosine_epochs=500)
    cooled = replace(early, cooldown_epochs=10)
    begin, end = 90 * 390, 100 * 390
    line = [begin, end], [learning_rate(long, begin, 390), 1e-5]
    for step in range(0, end, 97):
        wanted = learning_rate(long, step, 390)
        assert learning_rate(early, step, 390) == wanted
        if step > begin:
            wanted = np.interp(step, *line)
        assert learning_rate(cooled, step, 390) == pytest.approx(wanted)
    assert learning_rate(cooled, end - 1, 390) == pytest.approx(1e-5, rel=0.02)


def test_a_run_that_leaves_the_cosine_early_is_the_long_one_so_far(toy, tmp_path):
    long = small(epochs=4, warmup_epochs=2)
    early = trained(replace(long, epochs=2, cosine_epochs=4), toy, tmp_path)
    kept = trained(long, toy, tmp_path, keep=(2,)).folder / "epoch-2.safetensors"
    _, _, tensors = checkpoints.read(kept)
    for name, value in early.model.state_dict().items():
        assert torch.equal(value, tensors[f"model.{name}"]), name


def test_the_schedule_of_the_supervised_baseline_is_pytorchs_multisteplr():
    baseline = preset("ce-stl10")
    optimiser = adamw(lr=1e-3)
    scheduler = MultiStepLR(optimiser, [70, 90], 0.1)
    for epoch in range(100):
        wanted = optimiser.param_groups[0]["lr"]
        for step in (78 * epoch, 78 * epoch + 77):
            assert learning_rate(baseline, step, 78) == pytest.approx(wanted)
        optimiser.step()
        scheduler.step()


def test_a_warm_up_leads_to_the_rate_before_the_first_milestone():
    config = preset("supcon-cifar10", epochs=100, milestones=(0.7, 0.9))
    assert (config.warmup, config.warmup_from) == (10, 0.01)
    rates = [learning_rate(config, step, 2) for step in range(200)]
    assert rates[:20] == pytest.approx(np.linspace(0.01, 0.5, 21)[:20])
    assert rates[20:] == pytest.approx([0.5] * 120 + [0.05] * 40 + [0.005] * 20)


@pytest.mark.parametrize(
    "name, images, steps, last",
    [
        # SupContrast: no drop_last
        ("supcon-cifar10", 50_000, 49, 848),
        ("ce-cifar10-r18", 50_000, 49, 848),
        # UvA: drop_last
        ("simclr-stl10", 100_000, 390, 256),
        ("ce-stl10", 5_000, 78, 64),
    ],
)
def test_the_last_batch_is_the_references(name, images, steps, last):
    config = preset(name)
    sizes = batch_sizes(config, images)
    assert len(sizes) == steps
    assert sizes[0] == config.batch_size
    assert sizes[-1] == last


def test_a_last_batch_of_one_image_is_left_out():
    """BatchNorm needs two."""
    config = small(batch_size=8, drop_last=False)
    assert batch_sizes(config, 17) == [8, 8]
    assert batch_sizes(config, 18) == [8, 8, 2]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_takes_three_steps(name, tmp_path):
    """Its own encoder, head, recipe, schedule, optimiser; small images and batches for the time."""
    few = arrays(n=28, test=8, size=16, unlabeled=24)
    dataset = data.build("toy", **few)
    pool = "unlabeled" if preset(name).pool == "unlabeled" else "train"
    config = preset(
        name,
        data="toy",
        pool=pool,
        images=None,
        size=16,
        batch_size=8,
        epochs=1,
        knn_every=0,
    )
    run = trained(config, dataset, tmp_path)
    images = run.record["data"]["pool"]
    assert len(batch_sizes(config, images)) == 3
    assert math.isfinite(run.curves[0]["loss"])

    before = build_model(config, dataset).state_dict()
    moved = 0
    for key, x in run.model.state_dict().items():
        if not torch.equal(x, before[key]):
            moved += 1
    assert moved > 0.9 * len(before)


def has_learned(run: Run) -> bool:
    first, *_, last = run.curves
    return last["loss"] < first["loss"]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_learns_and_leaves_a_whole_record(method, toy, tmp_path):
    run = trained(small(method, epochs=6), toy, tmp_path)
    assert has_learned(run)
    path = run.folder / "record.json"
    record = records.read(path)
    assert record == run.record

    assert record["data"]["fingerprint"] == toy.fingerprint
    assert record["config"]["method"] == method
    assert record["data"]["counts"]["test"] == 60
    assert len(record["curves"]) == 6
    assert record["code"]["source"]

    cost, speed = record["cost"], record["views_per_second"]
    assert cost["flops_per_view"] == flops(run.model, 12)
    assert cost["peak_bytes"] > 1e7
    assert speed > 0
    share = cost["flops_per_view"] * speed / cost["matrix_flops_per_second"]
    assert cost["share_of_matrix_rate"] == pytest.approx(share)
    left = sorted(path.name for path in run.folder.iterdir())
    assert left == [".lock", "model.safetensors", "record.json"]

    answers = run.evaluate(toy, "cpu")
    assert answers["h"]["linear"]["correct"] / 60 > 0.6  # guessing: 0.25
    if method == "ce":
        assert answers["z"].keys() == {"classifier"}
    else:
        assert answers["z"].keys() == {"linear", "knn"}
    assert records.read(path)["evaluation"] == answers


def test_a_run_is_a_function_of_its_configuration(toy, tmp_path):
    torch.manual_seed(1)
    one = trained(small(), toy, tmp_path / "a")
    torch.manual_seed(2)  # the global state must not matter
    torch.rand(5)
    two = trained(small(), toy, tmp_path / "b")
    other = trained(small(seed=1), toy, tmp_path / "b")

    assert same(one, two)
    assert one.folder.name == two.folder.name
    assert not same(one, other)


def fresh_step(config: Config, dataset: Dataset) -> Step:
    """A step on a new model, as a reader builds it."""
    model = build_model(config, dataset)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Step(config, model, build_optimiser(config, model), scaler)


def fresh_batches(config: Config, dataset: Dataset) -> Batches:
    return Batches(config, dataset.take(config.images), CPU)


def rows_of(training: Iterator[dict | None]) -> list[dict]:
    return [row for row in training if row is not None]


# 144 images to train on, in batches of 40, 40, 40 and 24
PLAIN = {"images": 160, "batch_size": 40, "drop_last": False}


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
@pytest.mark.parametrize("method", METHODS)
def test_the_loop_alone_makes_what_pretrain_makes(method, optimiser, toy, tmp_path):
    """In one go, and stopped after 7 steps and carried over to other objects."""
    config = small(method, optimiser=optimiser, **PLAIN)
    run = trained(config, toy, tmp_path)
    take_step = fresh_step(config, toy)
    training = train(config, fresh_batches(config, toy), take_step, Progress())
    rows = rows_of(training)

    assert same_weights(take_step.model, run.model)
    assert without_times(rows) == without_times(run.curves)

    begun_with, progress = fresh_step(config, toy), Progress()
    training = train(config, fresh_batches(config, toy), begun_with, progress)
    taken = list(itertools.islice(training, 8))
    assert taken.count(None) == progress.step == 7

    went_on = fresh_step(config, toy)
    went_on.model.eval()  # training puts it back
    went_on.model.load_state_dict(begun_with.model.state_dict())
    went_on.optimiser.load_state_dict(begun_with.optimiser.state_dict())
    progress = copy.deepcopy(progress)
    training = train(config, fresh_batches(config, toy), went_on, progress)
    assert len(rows_of(training)) == 2
    assert same_weights(went_on.model, run.model)
    assert without_times(progress.curves) == without_times(run.curves)


# Two files each of a run by the package at 12792ef, before its loop became a generator: the
# checkpoint that it left when it was stopped after 7 steps (9 for SupCon: all full batches of the
# second epoch), and the model that the same run, not stopped, ended with. Made on one thread, from
# tests.conftest.arrays(), by
#     encoders.ENCODERS["tiny"] = tiny
#     config = preset("simclr-digits", **TINY, optimiser="adamw")  # sgd for supcon, adamw for ce
#     training.pretrain(config, data.build("toy", **arrays()), folder, "cpu")
# twice, once with training.CHECKPOINT_SECONDS = 0 and a training.train_step that raises
# KeyboardInterrupt at its call 7 (9), counted from 0. TINY = {"recipe": "supcontrast", "epochs": 3,
# "batch_size": 40, "drop_last": False, "data": "toy", "encoder": "tiny", "embedding": 16,
# "knn_every": 1}. The tiny encoder keeps the files small.
OLD = Path(__file__).parent / "data" / "before-the-redesign"


def tiny(stem: str) -> tuple[nn.Module, int]:
    """The encoder of the old runs, 8 wide."""
    convolution = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
    layers = [
        convolution,
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers), 8


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", sorted(os.listdir(OLD)))
def test_a_run_that_an_older_version_left_half_done_goes_on(
    name, toy, tmp_path, monkeypatch, one_thread
):
    """To the same bits where the machine and its packages are those it began on."""
    monkeypatch.setitem(encoders.ENCODERS, "tiny", tiny)
    checkpoint = OLD / name / "checkpoint.safetensors"
    config, progress, _ = checkpoints.read(checkpoint)
    step = progress.step
    assert identity(config, toy) == name
    model = build_model(config, toy)
    at_the_end = checkpoints.restore(OLD / name / "model.safetensors", config, name, model)

    (tmp_path / name).mkdir()
    shutil.copy(checkpoint, tmp_path / name)
    run = trained(config, toy, tmp_path)
    assert sessions_of(run) == [[0, step], [step, 15]]

    for row, wanted in zip(run.curves, at_the_end.curves, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], abs=1e-4)
    weights = run.model.state_dict()
    for key, x in model.state_dict().items():
        torch.testing.assert_close(weights[key], x, rtol=1e-3, atol=1e-4)

    if run.record["bit_exact"]:
        assert same_weights(run.model, model)
        assert without_times(run.curves) == without_times(at_the_end.curves)


def test_a_finished_run_is_returned_at_once(toy, tmp_path):
    """Even while another process holds its folder."""
    one = trained(small(), toy, tmp_path)
    with only_writer(one.folder):
        two = trained(small(), toy, tmp_path, wait=False)
    assert two.record == one.record


def test_the_untrained_encoder_is_a_run_of_no_epochs(toy, tmp_path):
    config = small(epochs=0)
    run = trained(config, toy, tmp_path)
    assert run.curves == []
    assert same_weights(run.model, build_model(config, toy))


def test_data_of_other_content_is_another_run(toy, tmp_path):
    other = data.build("toy", **arrays(seed=1))
    assert identity(small(), toy) != identity(small(), other)
    run = trained(small(epochs=0), toy, tmp_path)
    with pytest.raises(InputError, match="was trained on another version of toy"):
        run.evaluate(other)
    with pytest.raises(InputError, match="was trained on another version of toy"):
        run.features(toy.test.images, other)  # normalised by other pixels


def test_training_images_are_only_those_of_the_pool(toy, tmp_path):
    for delta, images in (
        ({"pool": "train"}, 180),
        ({"pool": "train+val"}, 200),
        ({"images": 80}, 72),
    ):
        run = trained(small(epochs=1, **delta), toy, tmp_path)
        assert run.record["data"]["pool"] == images


@pytest.mark.parametrize("drop_last, rest", [(False, [30]), (True, [])])
def test_the_last_batch_is_kept_or_left_out(drop_last, rest, toy):
    config = small(batch_size=50, drop_last=drop_last)
    batches = fresh_batches(config, toy)
    sizes = [x.shape[1] for x, _ in batches.epoch(0)]
    assert sizes == [50, 50, 50, *rest]
    assert len(batches) == len(sizes)


def test_views_and_labels_are_of_the_same_images(toy):
    """From any step of an epoch on; without a recipe, views are the images."""
    config = small("supcon", recipe="none")
    batches = fresh_batches(config, toy)
    recipe = recipe_for(config, toy)
    places = batches.places(1)
    assert len(torch.cat(places).unique()) == 160  # five full batches

    for of_batch, (x, labels) in zip(places[2:], batches.epoch(1, first=2), strict=True):
        images = toy.train.images[of_batch]
        wanted = views(images, recipe, seed=0, step=0)
        assert torch.equal(x, wanted)
        assert torch.equal(labels, toy.train.labels[of_batch])
    pairs = zip(toy.train.images, toy.train.labels.tolist())
    wanted = {tuple(image.flatten().tolist()): c for image, c in pairs}
    recipe = recipe_for(config, toy)
    mean = torch.tensor(recipe.mean).view(3, 1, 1)
    std = torch.tensor(recipe.std).view(3, 1, 1)
    for x, labels in fresh_batches(config, toy).epoch(1):
        pixels = ((x[0] * std + mean) * 255).round().to(torch.uint8)
        for image, c in zip(pixels, labels.tolist(), strict=True):
            assert wanted[tuple(image.flatten().tolist())] == c


def test_supervised_methods_need_labels(tmp_path):
    unlabeled = data.build("toy", **arrays(unlabeled=64))
    run = trained(small(pool="unlabeled", epochs=1), unlabeled, tmp_path)
    assert run.record["data"]["pool"] == 64
    with pytest.raises(InputError, match="supcon needs labels"):
        trained(small("supcon", pool="unlabeled"), unlabeled, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(toy, tmp_path):
    """What came of it is kept as a record of its own."""
    config = small(optimiser="sgd", learning_rate=1e30, warmup_epochs=0)
    folder = tmp_path / identity(config, toy)
    with pytest.raises(Diverged, match=f"^{folder.name}: the loss became nan in epoch 1"):
        trained(config, toy, tmp_path)
    assert "became nan in epoch 1" in records.read(folder / "failed.json")["failed"]
    assert "Diverged: the loss became nan" in (folder / ENDED).read_text(encoding="utf-8")


def test_embeddings_too_long_for_their_length_are_a_divergence():
    """The loss, which does not wait for a look at them, takes them for zeros."""
    progress = Progress()
    progress.add(torch.tensor(2.0), 1e20 * torch.ones(2, 8, 4), None)
    with pytest.raises(Diverged, match="z became too long or no numbers in epoch 1; lower learn"):
        progress.end_epoch(0.1, views=2, started=0.0)


@pytest.mark.parametrize("epochs", [0, 1])
def test_views_of_which_an_encoder_leaves_nothing_are_refused(epochs, toy, tmp_path):
    config = small(encoder="resnet9", stem="imagenet", size=8, epochs=epochs)
    words = "resnet9 with the stem 'imagenet' can't see views of 8 pixels .*: set a larger size"
    with pytest.raises(InputError, match=words):
        trained(config, toy, tmp_path)
    trained(replace(config, size=16), toy, tmp_path)


def wide(height: int = 32, width: int = 48) -> Dataset:
    """Noise in images that are wider than high."""
    x = np.random.default_rng(0).integers(0, 256, (40, height, width, 3)).astype(np.uint8)
    return data.build("wide", x, np.arange(40) % 2, x[:8], np.arange(8) % 2)


def test_images_that_are_not_square_are_refused_with_what_makes_them_so(tmp_path):
    """Evaluation would see them squashed, and embed cut."""
    words = r"wide has images of 32 x 48 pixels.* import NAME.npz --size 32 --out SQUARE.npz"
    with pytest.raises(InputError, match=words):
        trained(small(data="wide"), wide(), tmp_path / "runs")

    whole = wide().pool("train+val")
    x, y = whole.images.permute(0, 2, 3, 1).numpy(), whole.labels.numpy()
    np.savez(tmp_path / "wide.npz", x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
    pictures.make(tmp_path / "wide.npz", 32, tmp_path / "square.npz")
    square = data.load("square", tmp_path)
    assert torch.equal(square.test.images, whole.images[:8, :, :, 8:40])


def test_no_size_is_taken_from_images_that_are_not_square():
    """Turned they would have another, which a probe of rotation would read."""
    images = wide().train.images[:4]
    with pytest.raises(InputError, match="images of 32 x 48 pixels need a recipe with a size"):
        evaluation.features(Model("pixels", head="none"), images, RECIPES["none"])
    with pytest.raises(InputError, match="need a recipe with a size"):
        views(images, RECIPES["none"], 0, 0)
    with pytest.raises(InputError, match="need a recipe with a size"):
        apply(images, draw(RECIPES["none"], 4, 0, 0))

    sized = replace(RECIPES["none"], size=24)
    assert views(images, sized, 0, 0).shape == (2, 4, 3, 24, 24)
    assert recipe_for(small(), wide(32, 32)).size == 32


def test_a_pool_of_one_image_is_refused_with_what_there_is_to_do(tmp_path):
    one = data.build("toy", **arrays(unlabeled=1))
    with pytest.raises(
        InputError, match="1 image, fewer than one batch of 32; set pool=train.val$"
    ):
        trained(small(pool="unlabeled"), one, tmp_path)


def test_a_batch_larger_than_the_pool_is_named(toy, tmp_path):
    with pytest.raises(InputError, match="180 images, fewer than one batch of 256"):
        trained(small(batch_size=256), toy, tmp_path)


def test_the_data_set_must_be_the_configurations(toy, tmp_path):
    with pytest.raises(InputError, match="is for the data set 'digits', the one given is 'toy'"):
        trained(small(data="digits"), toy, tmp_path)


def loss_of(config: Config, z: Tensor, labels: Tensor) -> float:
    return float(METHODS[config.method].loss(z, labels, config, None))


def embeddings(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator)


@pytest.mark.parametrize("method", ["simclr", "supcon"])
def test_supcontrasts_factor_scales_the_loss(method):
    z = embeddings(2, 8, 4)
    labels = torch.arange(8) % 3
    plain = small(method, temperature=0.5)
    theirs = replace(plain, base_temperature=0.07)
    wanted = loss_of(plain, z, labels) * 0.5 / 0.07
    assert loss_of(theirs, z, labels) == pytest.approx(wanted)


def test_label_smoothing_gives_a_share_of_each_target_to_all_classes():
    z = embeddings(1, 6, 4)
    labels = torch.arange(6) % 4
    log_probability = z[0].log_softmax(1)
    for smoothing in (0.0, 0.3):
        target = (1 - smoothing) * F.one_hot(labels, 4) + smoothing / 4
        by_hand = float(-(target * log_probability).sum(1).mean())
        config = preset("ce-digits", label_smoothing=smoothing)
        assert loss_of(config, z, labels) == pytest.approx(by_hand)


def test_supcon_trains_with_the_positives_it_is_told():
    z = embeddings(2, 8, 4)
    labels = torch.arange(8) % 3
    trains_with = {}
    for form in ("out", "in"):
        config = preset("supcon-digits", positives=form, temperature=0.2)
        trains_with[form] = loss_of(config, z, labels)
        assert trains_with[form] == losses.sup_con(z, labels, 0.2, form)
    assert trains_with["in"] < trains_with["out"]


@pytest.mark.parametrize("method", METHODS)
def test_an_epoch_tells_the_contrast_of_its_last_full_batch(method, toy):
    """180 images in batches of 32: the sixth batch has 20."""
    config = small(method, epochs=2, drop_last=False)
    steps = []

    class Noting(Step):
        def __call__(self, x: Tensor, labels: Tensor | None, rate: float) -> tuple[Tensor, Tensor]:
            loss, z = super().__call__(x, labels, rate)
            steps.append((z, labels))
            return loss, z

    noting = Noting(**vars(fresh_step(config, toy)))
    rows = rows_of(train(config, fresh_batches(config, toy), noting, Progress()))
    assert [z.shape[1] for z, _ in steps] == 2 * [32, 32, 32, 32, 32, 20]

    for row, full in zip(rows, (4, 10), strict=True):
        z, labels = steps[full]
        if method == "ce":
            assert "top1" not in row
            continue
        assert (labels is not None) == (method == "supcon")
        wanted = losses.contrast(z, labels)._asdict()
        assert row.items() >= wanted.items()


def test_checkpoints_that_do_not_fit_are_named(toy, tmp_path):
    one = trained(small(epochs=1), toy, tmp_path)
    other = small(epochs=2)
    checkpoint = tmp_path / identity(other, toy) / "checkpoint.safetensors"
    checkpoint.parent.mkdir()
    shutil.copy(one.folder / "model.safetensors", checkpoint)
    why = "does not fit its configuration: epochs is 1 there and 2 here"
    with pytest.raises(InputError, match=why):
        trained(other, toy, tmp_path)

    checkpoint.write_bytes(b"\x08" * 40)
    with pytest.raises(InputError, match="checkpoint.safetensors is damaged"):
        trained(other, toy, tmp_path)

    model = one.folder / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-100])
    ways = f"; delete {one.folder} to train anew, or restore the file$"
    with pytest.raises(InputError, match=f"model.safetensors is damaged .*{ways}"):
        load(one.folder)
    model.unlink()
    with pytest.raises(InputError, match=f"model.safetensors is missing{ways}"):
        load(one.folder)
    (one.folder / "record.json").write_bytes(b"")
    with pytest.raises(InputError, match=f"record.json is not JSON .*{ways}"):
        trained(small(epochs=1), toy, tmp_path)


def test_weights_of_another_shape_are_named(toy, tmp_path):
    run = trained(small(epochs=0), toy, tmp_path)
    path = run.folder / "model.safetensors"
    other = Model("slim", head="linear")
    checkpoints.save(path, run.config, RunProgress(), other)
    why = "model.safetensors does not fit its configuration .Missing.*update the package"
    with pytest.raises(InputError, match=why):
        load(run.folder)


def test_a_checkpoint_of_ours_with_another_tensor_is_refused(toy, tmp_path):
    """None may set a field of the progress that is no tensor."""
    cut = stopped(small(), toy, tmp_path, steps=4)
    path = cut.folder / "checkpoint.safetensors"
    config, progress, _ = checkpoints.read(path)

    class Odd(RunProgress):
        tensors = {"curves": torch.zeros(2)}

    checkpoints.save(path, config, Odd(**vars(progress)), cut.model)
    with pytest.raises(InputError, match="it has the tensors curves of an epoch"):
        checkpoints.read(path)


def test_folders_and_devices_that_cannot_be_used_are_named(toy, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="can't write .*file"):
        trained(small(epochs=0), toy, tmp_path / "file" / "runs")
    with pytest.raises(InputError, match="unknown device 'toaster'; known: cuda, mps, cpu"):
        hardware.choose_device("toaster")


def test_bfloat16_trains_too(toy, tmp_path):
    run = trained(small(precision="bfloat16"), toy, tmp_path)
    assert has_learned(run)
    for parameter in run.model.parameters():
        assert parameter.dtype == torch.float32


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_is_followed_in_its_precision_and_read_in_float32(
    precision, toy, tmp_path, monkeypatch
):
    """By an encoder that notes whether it trains and what it gives."""
    noted = set()

    class Noting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            h = super().forward(x.flatten(1))
            noted.add((self.training, h.dtype))
            return h

    monkeypatch.setitem(ENCODERS, "noting", lambda stem: (Noting(3 * 12**2, 8), 8))
    shorter = replace(published.PROTOCOLS["supcontrast"], epochs=1)
    monkeypatch.setitem(published.PROTOCOLS, "supcontrast", shorter)
    own = getattr(torch, precision)

    looks = {"knn_every": 1, "test_every": 2}
    config = small("ce", encoder="noting", epochs=2, precision=precision, **looks)
    session = begun(config, toy, tmp_path)
    for row in filter(None, training_of(session, toy)):
        _look(session, toy, row)
    assert noted == {(True, own), (False, own)}
    for row in session.progress.curves:
        assert row.get("look_precision", "float32") == precision

    run = trained(config, toy, tmp_path / "whole")
    recipe = run.recipe(toy)
    assert run.curves[1]["knn"] == evaluation.knn_on_val(run.model, toy, recipe, precision)
    noted.clear()
    run.evaluate(toy, "cpu", ("linear", "knn"))
    assert noted == {(False, torch.float32)}
    run.evaluate(toy, "cpu", ("supcontrast",))
    assert noted == {(False, torch.float32), (False, own)}
    on_h = records.read(run.folder / "record.json")["evaluation"]["h"]
    assert on_h["supcontrast"]["precision"] == on_h["supcontrast-last"]["precision"] == precision


def test_float16_trains_with_a_scale_that_survives_a_resume(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "SIDE_ELSEWHERE", 64)  # of 2048 a CPU takes a minute in float16
    config = small("supcon", precision="float16")
    whole = trained(config, toy, tmp_path / "whole")
    assert has_learned(whole)

    runs = tmp_path / "cut"
    scale = stopped(config, toy, runs, steps=7).scaler.state_dict()
    assert scale["_growth_tracker"] > 0
    assert begun(config, toy, runs).scaler.state_dict() == scale
    assert same(trained(config, toy, runs), whole)


def test_the_best_look_at_test_is_shown_beside_and_chooses_nothing(toy, tmp_path):
    config = small("ce", epochs=4)
    plain = trained(config, toy, tmp_path)
    looked = trained(replace(config, test_every=2), toy, tmp_path)
    assert same_weights(plain.model, looked.model)
    assert "classifier-best" not in plain.evaluate(toy, "cpu")["z"]

    looks = [row["test_correct"] for row in looked.curves if "test_correct" in row]
    answers = looked.evaluate(toy, "cpu")["z"]
    assert len(looks) == 2
    assert looks[-1] == answers["classifier"]["correct"]
    best = {"n": 60, "correct": max(looks), "precision": "float32"}
    assert answers["classifier-best"] == best

    alone = trained(replace(config, test_every=1), toy, tmp_path)
    assert alone.evaluate(toy, "cpu", ("labels",)) == {}
    assert alone.record["label_sweep"]


def test_a_runs_features_are_those_its_evaluation_reads(toy, tmp_path):
    run = trained(small(epochs=1, images=80), toy, tmp_path)
    images = toy.test.images
    h, z = run.features(images, toy, "cpu")
    trained_on = toy.take(80)
    recipe = recipe_for(run.config, trained_on, "none")
    assert (recipe.mean, recipe.std) == trained_on.moments
    wanted_h, wanted_z = evaluation.features(run.model, images, recipe)
    assert torch.equal(h, wanted_h)
    assert torch.equal(z, wanted_z)


def test_evaluation_adds_what_is_missing_and_repeats_nothing(toy, tmp_path, monkeypatch):
    """What is computed anew would come without the mark."""
    monkeypatch.setattr(few_labels, "PER_CLASS", (5,))
    run = trained(small(epochs=1), toy, tmp_path)
    path = run.folder / "record.json"
    run.evaluate(toy, "cpu", ("knn",))
    run.record["evaluation"]["h"]["knn"]["mark"] = "the first"
    records.write(path, run.record)

    run.evaluate(toy, "cpu", ("linear", "knn", "labels"))
    answers = records.read(path)["evaluation"]["h"]
    assert answers.keys() == {"knn", "linear"}
    assert answers["knn"]["mark"] == "the first"

    sweep = run.record["label_sweep"]
    assert len(sweep) == 7
    run.evaluate(toy, "cpu", ("linear", "knn", "labels"))
    assert run.record["label_sweep"] is sweep

    with pytest.raises(InputError, match="unknown probe 'uav'; did you mean 'uva'"):
        run.evaluate(toy, "cpu", ("uav",))


def test_what_was_cut_short_is_read_anew(toy, tmp_path):
    run = trained(small(epochs=1), toy, tmp_path)
    found = run.evaluate(toy, "cpu")["z"]["linear"]
    record = json.loads(json.dumps(run.record))
    old = record["evaluation"]["z"]["linear"] = dict(found, correct=1)
    del old["weakest_l2"]
    assert "z  linear" in "".join(answers.in_lines(run.record))
    (line,) = (line for line in answers.in_lines(record) if "z  linear" in line)
    assert "left out: its search ended too early" in line

    records.write(run.folder / "record.json", record)
    again = load(run.folder)
    assert again.evaluate(toy, "cpu", ("knn",))["z"]["linear"] == old  # not what is asked
    assert again.evaluate(toy, "cpu")["z"]["linear"] == found


def test_published_runs_keep_their_identity():
    """Every published record's name is still that of its configuration, on the data it names."""
    published = records.load_all()
    assert published
    for record in published:
        config = Config(**record["config"])
        dataset = SimpleNamespace(fingerprint=record["data"]["fingerprint"])
        assert identity(config, dataset) == record["id"]
