import dataclasses
import json

import pytest

from lib import InputError, losses
from lib.augmentations import RECIPES, Recipe
from lib.config import PRESETS, Config, difference, parse, preset


def test_a_preset_plus_a_delta():
    changed = preset("simclr-digits", epochs=3, seed=7)
    assert changed.delta == {"epochs": 3, "seed": 7} and preset("simclr-digits").delta == {}
    assert difference(changed, preset("simclr-digits"))["epochs"] == (
        3,
        preset("simclr-digits").epochs,
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.epochs = 4


def test_presets_have_the_published_values():
    """protocols of SupContrast (README, main_supcon.py, main_ce.py) and of UvA tutorial 17, typed a
    second time."""
    supcon, simclr, ce, uva = (
        PRESETS[k] for k in ("supcon-cifar10", "simclr-cifar10", "ce-cifar10", "simclr-stl10")
    )
    for config in (supcon, simclr, ce):
        assert difference(PRESETS[f"{config.name}-r18"], config) == {
            "encoder": ("resnet18", "resnet50")
        }
        assert (config.pool, config.drop_last, config.embedding, config.recipe) == (
            "train+val",
            False,
            128,
            "crop-flip" if config is ce else "supcontrast",
        )
    assert difference(PRESETS["supcon-cifar10-report"], supcon) == {"epochs": (100, 1000)}
    assert difference(PRESETS["simclr-stl10-100"], uva) == {"epochs": (100, 500)}
    baseline = PRESETS["ce-stl10"]
    assert (baseline.encoder, baseline.stem, baseline.optimiser, baseline.pool) == (
        "resnet18",
        "imagenet",
        "adamw",
        "train+val",
    )
    assert (baseline.epochs, baseline.batch_size, baseline.learning_rate) == (100, 64, 1e-3)
    assert (baseline.weight_decay, baseline.milestones, baseline.drop_last) == (
        2e-4,
        (0.7, 0.9),
        True,
    )
    assert baseline.test_every == 2
    assert RECIPES[baseline.recipe] == Recipe(
        crop_scale=(0.8, 1.0), flip=0.5, greyscale=0.2, blur_kernel=9, blur_sigma=(0.1, 0.5)
    )
    assert (ce.test_every, uva.epochs, uva.seed, uva.mean, uva.std) == (
        1,
        500,
        42,
        (0.5,) * 3,
        (0.5,) * 3,
    )
    for config in (supcon, simclr, ce):
        assert (config.encoder, config.stem, config.batch_size, config.optimiser) == (
            "resnet50",
            "cifar",
            1024,
            "sgd",
        )
        assert (config.momentum, config.weight_decay, config.final_rate) == (
            0.9,
            1e-4,
            pytest.approx(1e-3),
        )
        assert (config.warmup_epochs, config.warmup_from, config.first_epoch) == (10, 0.01, 1)
        assert config.mean == (0.4914, 0.4822, 0.4465) and config.std == (0.2023, 0.1994, 0.2010)
    assert (supcon.epochs, supcon.learning_rate, supcon.temperature) == (1000, 0.5, 0.1)
    assert (simclr.epochs, simclr.learning_rate, simclr.temperature) == (1000, 0.5, 0.5)
    factors = [
        losses.scale(config.temperature, config.base_temperature) for config in (supcon, simclr, ce)
    ]
    assert factors == pytest.approx([1 / 0.7, 5 / 0.7, 1])
    assert (ce.epochs, ce.learning_rate, ce.recipe, ce.head) == (500, 0.8, "crop-flip", "linear")
    assert (uva.encoder, uva.stem, uva.batch_size, uva.temperature) == (
        "resnet18",
        "imagenet",
        256,
        0.07,
    )
    assert (uva.optimiser, uva.learning_rate, uva.weight_decay) == ("adamw", 5e-4, 1e-4)
    assert (uva.drop_last, uva.final_rate, uva.warmup_epochs, uva.first_epoch) == (
        True,
        1 / 50,
        0,
        0,
    )


@pytest.mark.parametrize(
    "delta, words",
    [
        ({"epoch": 3}, "unknown field 'epoch'; did you mean 'epochs'"),
        ({"epochs": "3"}, "epochs must be int, got '3'"),
        ({"epochs": True}, "epochs must be int, got True"),
        ({"epochs": -1}, "epochs must be at least 0"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"temperature": 0}, "temperature must be greater than 0"),
        ({"temperature": float("nan")}, "temperature must be finite"),
        ({"std": (0, 1, 1)}, "std must be greater than 0"),
        ({"momentum": -1.0}, "momentum must lie in"),
        ({"seed": 2**63}, "seed must be below"),
        ({"weight_decay": float("inf")}, "weight_decay must be finite"),
        ({"name": "mine"}, "unknown field 'name'"),
        ({"method": "ce", "head": "none"}, "cross-entropy needs a classifier"),
        ({"learning_rate": "1e-3"}, "learning_rate must be float, got '1e-3'"),
        ({"method": "simclrr"}, "unknown method 'simclrr'; did you mean 'simclr'"),
        ({"encoder": "vit"}, "unknown encoder 'vit'; known: resnet18"),
        ({"mean": (1, 2)}, "mean must be three numbers"),
        ({"milestones": (0.9, 0.7)}, "milestones must rise between 0 and 1"),
        ({"milestones": (0.5, 1.0)}, "milestones must rise between 0 and 1"),
        ({"milestones": ("a",)}, "milestones must be numbers"),
        ({"test_every": 1}, "only ce has one, not simclr"),
        ({"precision": "half"}, "unknown precision 'half'"),
        ({"images": 1}, "images must be at least 2"),
        ({"positives": "in"}, "positives is a choice of supcon's alone"),
        ({"method": "supcon", "positives": "inside"}, "unknown positives 'inside'"),
        ({"encoder": "pixels"}, "'pixels' has nothing to train"),
        ({"encoder": "kmeans400", "head": "none"}, "'kmeans400' has nothing to train"),
        (
            {"label_smoothing": 0.1},
            "label_smoothing softens the targets of ce alone, simclr has none",
        ),
        ({"method": "ce", "head": "linear", "label_smoothing": 1.0}, "label_smoothing must lie in"),
    ],
)
def test_bad_values_are_named(delta, words):
    with pytest.raises(InputError, match=words):
        preset("simclr-digits", **delta)


def test_unknown_preset():
    with pytest.raises(
        InputError, match="unknown preset 'simclr-digit'; did you mean 'simclr-digits'"
    ):
        preset("simclr-digit")


def test_assignments_are_read_as_python_or_text():
    assert parse(
        ["epochs=5", "data=mine", "learning_rate=1e-3", "images=None", "mean=(0.5, 0.5, 0.5)"]
    ) == {
        "epochs": 5,
        "data": "mine",
        "learning_rate": 1e-3,
        "images": None,
        "mean": (0.5, 0.5, 0.5),
    }
    assert preset("simclr-digits", learning_rate=1).learning_rate == 1.0  # an int serves as a float
    with pytest.raises(InputError, match="field=value, got 'epochs'"):
        parse(["epochs"])


def test_short_runs_warm_up_for_a_tenth():
    assert (
        preset("supcon-cifar10").warmup == 10 and preset("supcon-cifar10", epochs=20).warmup == 10
    )
    assert preset("supcon-cifar10", epochs=10).warmup == 1
    assert preset("supcon-cifar10", epochs=10).delta == {
        "epochs": 10,
        "warmup_epochs": 1,
    }  # told, not hidden
    assert preset("supcon-cifar10", epochs=20).delta == {"epochs": 20}


def test_presets_are_filed_under_their_names_and_come_back_from_a_record():
    for config in PRESETS.values():
        assert Config(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert {f.name for f in dataclasses.fields(Config)} >= {"method", "seed", "precision"}
    assert all(config.name == name for name, config in PRESETS.items())


def test_a_choice_of_positives_changes_no_run_that_does_not_make_it():
    """Identities of published runs: a field enters them where it is not at its default."""
    supcon = preset("supcon-cifar10-slim")
    assert "positives" not in supcon.decisive and supcon.factor == 1
    assert preset("supcon-cifar10-slim", positives="in").decisive == supcon.decisive | {
        "positives": "in"
    }
    ce = preset("ce-cifar10-slim")
    assert "label_smoothing" not in ce.decisive
    assert preset("ce-cifar10-slim", label_smoothing=0.1).decisive == ce.decisive | {
        "label_smoothing": 0.1
    }
    assert preset("supcon-cifar10").factor == pytest.approx(1 / 0.7)


def test_other_data_are_normalised_by_themselves_unless_it_is_said():
    """A preset's mean and deviation are its own data's; the slices that have records leave them to
    the data anyway."""
    assert (
        preset("supcon-cifar10").mean
        == preset("supcon-cifar10", data="cifar10").mean
        == (0.4914, 0.4822, 0.4465)
    )
    mine = preset("supcon-cifar10", data="mine", std=(0.5, 0.5, 0.5))
    assert mine.mean is None and mine.std == (0.5, 0.5, 0.5)
    assert all(config.mean is None for config in PRESETS.values() if "slim" in config.name)
