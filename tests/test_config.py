import dataclasses
import json

import pytest

from lib import InputError
from lib.augmentations import RECIPES, Recipe
from lib.commands.runs import parse
from lib.config import Config, difference
from lib.presets import PRESETS, delta, preset


def test_a_preset_plus_a_delta():
    base, changed = preset("simclr-digits"), preset("simclr-digits", epochs=3, seed=7)
    assert delta(changed) == {"epochs": 3, "seed": 7}
    assert delta(base) == {}
    assert difference(changed, base) == {"epochs": (3, base.epochs), "seed": (7, base.seed)}
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.epochs = 4


def has(config, **values):
    """Whether these are a configuration's values."""
    return {name: getattr(config, name) for name in values} == values


CIFAR = ("supcon-cifar10", "simclr-cifar10", "ce-cifar10")


@pytest.mark.parametrize("name", CIFAR)
def test_presets_on_cifar_have_supcontrasts_values(name):
    """SupContrast's README, main_supcon.py and main_ce.py, typed a second time."""
    config = PRESETS[name]
    assert has(config, pool="train+val", batch_size=1024, drop_last=False)
    assert has(config, encoder="resnet50", stem="cifar", embedding=128)
    assert has(config, optimiser="sgd", momentum=0.9, weight_decay=1e-4)
    assert has(config, warmup_epochs=10, warmup_from=0.01, first_epoch=1)
    assert config.final_rate == pytest.approx(1e-3)
    assert has(config, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
    smaller = difference(PRESETS[f"{name}-r18"], config)
    assert smaller == {"encoder": ("resnet18", "resnet50")}


def test_presets_on_cifar_differ_by_method_as_supcontrasts_scripts():
    supcon, simclr, ce = (PRESETS[name] for name in CIFAR)
    assert has(supcon, recipe="supcontrast", epochs=1000, learning_rate=0.5, temperature=0.1)
    assert has(simclr, recipe="supcontrast", epochs=1000, learning_rate=0.5, temperature=0.5)
    assert has(ce, recipe="crop-flip", epochs=500, learning_rate=0.8, head="linear", test_every=1)
    factors = [config.factor for config in (supcon, simclr, ce)]
    assert factors == pytest.approx([1 / 0.7, 5 / 0.7, 1])
    assert PRESETS["supcon-cifar10-slim"].factor == 1
    report = PRESETS["supcon-cifar10-report"]
    assert difference(report, supcon) == {"epochs": (100, 1000)}


def test_presets_on_stl10_have_the_tutorials_values():
    """UvA deep-learning tutorial 17, typed a second time."""
    simclr, ce = PRESETS["simclr-stl10"], PRESETS["ce-stl10"]
    for config in (simclr, ce):
        assert has(config, encoder="resnet18", stem="imagenet", optimiser="adamw", drop_last=True)
    assert has(simclr, epochs=500, batch_size=256, learning_rate=5e-4, weight_decay=1e-4, seed=42)
    assert has(simclr, temperature=0.07, final_rate=1 / 50, warmup_epochs=0, first_epoch=0)
    assert has(simclr, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert difference(PRESETS["simclr-stl10-100"], simclr) == {"epochs": (100, 500)}

    assert has(ce, epochs=100, batch_size=64, learning_rate=1e-3, weight_decay=2e-4)
    assert has(ce, milestones=(0.7, 0.9), pool="train+val", test_every=2)
    assert RECIPES[ce.recipe] == Recipe(
        crop_scale=(0.8, 1.0), flip=0.5, greyscale=0.2, blur_kernel=9, blur_sigma=(0.1, 0.5)
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"epoch": 3}, "unknown field 'epoch'; did you mean 'epochs'"),
        ({"epochs": "3"}, "epochs must be an integer, got '3'"),
        ({"epochs": True}, "epochs must be an integer, got True"),
        ({"epochs": -1}, "epochs must be at least 0"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"temperature": 0}, "temperature must be at least 1e-30"),
        ({"temperature": 1e-40}, "temperature must be at least 1e-30, got 1e-40"),
        ({"base_temperature": 0}, "base_temperature must be at least 1e-30"),
        ({"temperature": float("nan")}, "temperature must be finite"),
        ({"std": (0, 1, 1)}, "std must be greater than 0"),
        ({"momentum": -1.0}, "momentum must be at least 0, got -1.0"),
        ({"momentum": 1.0}, "momentum must be below 1, got 1.0"),
        ({"seed": 2**63}, "seed must be below"),
        ({"weight_decay": float("inf")}, "weight_decay must be finite"),
        ({"name": "mine"}, "unknown field 'name'"),
        ({"method": "ce", "head": "none"}, "cross-entropy needs a classifier"),
        ({"learning_rate": "1e-3"}, "learning_rate must be a number, got '1e-3'"),
        ({"method": "simclrr"}, "unknown method 'simclrr'; did you mean 'simclr'"),
        ({"encoder": "vit"}, "unknown encoder 'vit'; known: resnet18"),
        ({"mean": (1, 2)}, "mean must be three numbers"),
        ({"mean": (123.0, 116.0, 103.0)}, "mean must be at most 1"),
        ({"std": (58.0, 57.0, 57.0)}, "std must be at most 1"),
        ({"milestones": (0.9, 0.7)}, "milestones must rise between 0 and 1"),
        ({"milestones": (0.5, 1.0)}, "milestones must rise between 0 and 1"),
        ({"milestones": ("a",)}, "milestones must be numbers, got 'a'"),
        ({"milestones": ()}, "milestones must name a share of the epochs at least"),
        ({"method": "ce", "base_temperature": 0.07}, "of the contrastive losses, not of ce"),
        ({"cosine_epochs": 0}, "cosine_epochs must be at least 1, got 0"),
        ({"epochs": 9, "cosine_epochs": 8}, "cosine_epochs must be at least epochs, 9, got 8"),
        ({"epochs": 9, "cooldown_epochs": 9}, "the warm-up leaves of 9 epochs, got 9"),
        ({"milestones": (0.5,), "cosine_epochs": 99}, "with milestones there is no cosine"),
        ({"milestones": (0.5,), "cooldown_epochs": 1}, "with milestones there is no cosine"),
        ({"test_every": 1}, "test_every is a setting of ce alone, not of simclr"),
        ({"precision": "half"}, "unknown precision 'half'"),
        ({"images": 1}, "images must be at least 2"),
        ({"positives": "in"}, "positives is a setting of supcon alone, not of simclr"),
        ({"method": "supcon", "positives": "inside"}, "unknown positives 'inside'"),
        ({"encoder": "pixels"}, "'pixels' has nothing to train"),
        ({"encoder": "kmeans400", "head": "none"}, "'kmeans400' has nothing to train"),
        ({"label_smoothing": 0.1}, "label_smoothing is a setting of ce alone, not of simclr"),
        ({"data": "a\udcff"}, r"data must be a name in UTF-8, got 'a\\udcff': rename the file"),
        ({"method": "ce", "label_smoothing": 1.0}, "label_smoothing must be below 1, got 1.0"),
    ],
)
def test_bad_values_are_named(changes, words):
    with pytest.raises(InputError, match=words):
        preset("simclr-digits", **changes)


@pytest.mark.parametrize("name", ["../elsewhere", ".hidden", "two words", ""])
def test_a_name_that_is_no_file_name_is_refused(name):
    """It names the run's folder."""
    values = dataclasses.asdict(preset("simclr-digits")) | {"name": name}
    with pytest.raises(InputError, match="name must be letters, digits, '_', '.' and '-', got"):
        Config(**values)


def test_unknown_preset():
    words = "unknown preset 'simclr-digit'; did you mean 'simclr-digits'"
    with pytest.raises(InputError, match=words):
        preset("simclr-digit")


def test_assignments_are_read_as_python_or_text():
    read = parse(["epochs=5", "data=mine", "learning_rate=1e-3", "images=None", "mean=(0.5, 1)"])
    assert read == {
        "epochs": 5,
        "data": "mine",
        "learning_rate": 1e-3,
        "images": None,
        "mean": (0.5, 1),
    }
    with pytest.raises(InputError, match="field=value, got 'epochs'"):
        parse(["epochs"])


def test_an_int_serves_as_a_float():
    rate = preset("simclr-digits", learning_rate=1).learning_rate
    assert rate == 1.0 and isinstance(rate, float)


@pytest.mark.parametrize(
    "changes", [{}, {"epochs": 20}, {"epochs": 10, "warmup_epochs": 1}], ids=["1000", "20", "10"]
)
def test_runs_of_less_than_two_warm_ups_warm_up_for_a_tenth_and_say_so(changes):
    epochs = changes.get("epochs", 1000)
    config = preset("supcon-cifar10", epochs=epochs)
    assert config.warmup == changes.get("warmup_epochs", 10)
    assert delta(config) == changes


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_filed_under_their_names_and_come_back_from_a_record(name):
    config = PRESETS[name]
    assert config.name == name
    assert Config(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    "name, field, value",
    [("supcon-cifar10-slim", "positives", "in"), ("ce-cifar10-slim", "label_smoothing", 0.1)],
)
def test_a_field_at_its_default_changes_no_identity(name, field, value):
    """Those of published runs are older than the field: it enters where it is changed."""
    config = preset(name)
    assert field not in config.decisive
    assert preset(name, **{field: value}).decisive == config.decisive | {field: value}


def test_other_data_are_normalised_by_themselves_unless_it_is_said():
    """A preset's mean and deviation are its own data's; slices with records leave them open."""
    cifars = (0.4914, 0.4822, 0.4465)
    assert preset("supcon-cifar10").mean == cifars
    assert preset("supcon-cifar10", data="cifar10").mean == cifars
    mine = preset("supcon-cifar10", data="mine", std=(0.5, 0.5, 0.5))
    assert mine.mean is None and mine.std == (0.5, 0.5, 0.5)
    for name, config in PRESETS.items():
        assert "slim" not in name or config.mean is None
