"""Experiments: what is missing is trained, evaluated and published, and nothing twice."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from lib import InputError
from lib.__main__ import main
from lib.augmentations import RECIPES
from lib.compute.cost import flops
from lib.data import load
from lib.encoders import Model
from lib.evidence import experiments
from lib.evidence.experiments import Experiment
from lib.evidence.ledger import Ledger, in_total
from lib.evidence.queue import Queue
from lib.presets import preset
from lib.runs import provenance, records
from tests.conftest import arrays, stopped
from tests.plans import COMMITTED, SMALL, with_toy_data, written

LATE = {
    "name": "late",
    "about": "a",
    "scale": "slice",
    "worth": 2,
    "preset": "simclr-digits",
    "delta": SMALL,
    "vary": {"temperature": [0.5, 0.1]},
    "seeds": [0, 1],
    "wanted": ["linear"],
    "claims": [],
}
EARLY = {
    "name": "early",
    "about": "a",
    "scale": "slice",
    "worth": 1,
    "preset": "simclr-digits",
    "delta": SMALL,
    "seeds": [0],
    "wanted": ["knn"],
    "claims": [],
}
LARGE = {
    "name": "large",
    "about": "a",
    "scale": "full",
    "worth": 1,
    "preset": "simclr-cifar10",
    "wanted": ["linear"],
    "claims": [],
}


@pytest.fixture
def place(tmp_path) -> Path:
    """A list of small experiments, a data root with toy in it, and folders for runs and results."""
    written(tmp_path, LATE, EARLY, LARGE)
    return with_toy_data(tmp_path)


def ledger(place: Path, root: str = "data") -> Ledger:
    return Ledger(place / root, place / "results", place / "runs", "cpu")


def chosen(place: Path, *names: str) -> list[Experiment]:
    return experiments.choose(names, "slice", place / "experiments.yml")


def finish(place: Path, *names: str, budget: float | None = None) -> None:
    experiments.work(chosen(place, *names), ledger(place), budget, "cpu", COMMITTED)


def missing(place: Path) -> int:
    """How many runs are missing in all experiments."""
    return experiments.overview(chosen(place), ledger(place), "cpu")["missing"].sum()


def published(place: Path) -> dict[str, dict]:
    """The published records by their ids."""
    return {record["id"]: record for record in records.load_all(place / "results")}


def probes_of(record: dict) -> set[str]:
    return set(record["evaluation"]["h"])


def test_what_is_missing_is_run_most_valuable_first_evaluated_and_published(place, capsys):
    assert [experiment.name for experiment in chosen(place)] == ["early", "late"]
    table = experiments.overview(chosen(place), ledger(place), "cpu").set_index("experiment")
    assert list(table.loc["late", ["runs", "done", "missing"]]) == [4, 0, 4]

    finish(place)
    runs = []
    for line in lines(capsys):
        name, record = line.split()[:2]
        runs.append((name, record.split("-")[3]))
    assert runs == [
        ("early:", "s0"),  # which is one of late's too
        ("late:", "s0"),
        ("late:", "s1"),
        ("late:", "s1"),
    ]
    kept = published(place)
    assert len(kept) == 4
    assert all("linear" in probes_of(record) for record in kept.values())
    assert sum("knn" in probes_of(record) for record in kept.values()) == 1
    assert missing(place) == 0


def lines(capsys: pytest.CaptureFixture) -> list[str]:
    """What was printed since the last look."""
    return capsys.readouterr().out.splitlines()


def test_what_is_published_is_not_run_again(place, capsys):
    finish(place, "early")
    assert len(lines(capsys)) == 1
    shutil.rmtree(place / "runs")
    finish(place, "early")
    assert not lines(capsys)
    assert not (place / "runs").exists()


def test_the_first_seeds_of_all_come_before_the_second_ones_within_a_worth(place):
    listed = []
    for name, worth, temperature in (("c", 2, 0.3), ("a", 1, 0.1), ("b", 1, 0.2)):
        delta = SMALL | {"temperature": temperature}
        listed.append(EARLY | {"name": name, "worth": worth, "seeds": [5, 6], "delta": delta})
    written(place, *listed)
    tasks = experiments.tasks(chosen(place), "cpu")
    order = [task.experiments[0] + str(task.config.seed) for task in tasks]
    assert order == ["a5", "b5", "a6", "b6", "c5", "c6"]


def test_without_data_the_configuration_tells_what_is_done_and_that_is_said(place):
    finish(place)
    gone = ledger(place, "nowhere")
    table = experiments.overview(chosen(place), gone, "cpu")
    assert table["missing"].sum() == 0
    *_, note = experiments.in_words(table, gone)
    assert note.startswith("note: toy is not in")

    np.savez(place / "data" / "toy.npz", **arrays(seed=1))  # other pixels: other runs
    assert missing(place) == 5


def test_a_probe_wanted_later_is_read_from_the_run_without_training(place):
    finish(place, "early")
    (before,) = published(place).values()
    written(place, EARLY | {"wanted": ["knn", "calibration"]})
    (experiment,) = chosen(place, "early")
    assert ledger(place).minutes(experiment.configs[0]) == 0

    finish(place, "early")
    (after,) = published(place).values()
    assert "calibration" in after
    assert "knn" in probes_of(after)
    assert after["finished"] == before["finished"]
    assert after["segments"] == before["segments"]


def test_a_record_that_is_replaced_keeps_what_it_was_asked(place):
    finish(place, "late")
    before = published(place)
    for folder in (place / "runs").iterdir():  # trained elsewhere: no model is here
        (folder / "record.json").unlink()
    finish(place, "early")
    after = published(place)

    (changed,) = (name for name in after if after[name] != before[name])
    assert changed.startswith("simclr-digits-e1-s0")
    assert probes_of(after[changed]) == {"linear", "knn"}


def test_a_half_done_run_goes_on(place):
    (experiment,) = chosen(place, "early")
    (config,) = experiment.configs
    stopped(config, load("toy", place / "data"), place / "runs", steps=2)
    assert missing(place) == 5

    finish(place, "early")
    (record,) = published(place).values()
    assert [segment["steps"] for segment in record["segments"]] == [[0, 2], [2, 5]]


def test_nothing_is_begun_that_does_not_fit_into_the_budget(place, capsys):
    finish(place, budget=0)
    assert "did not fit into 0 minutes: 4 runs" in lines(capsys)
    assert not published(place)

    finish(place, "early")
    delta = SMALL | {"epochs": 10_000}
    written(place, LATE | {"delta": delta}, EARLY)
    minutes = ledger(place).minutes(preset("simclr-digits", **delta))
    finish(place, budget=minutes / 2)
    assert lines(capsys)[-1].endswith(" minutes: 4 runs")


def test_a_run_whose_cost_nobody_measured_is_timed_before_it_is_begun(place, capsys):
    """Hours of it, where a minute is left; the run of a few seconds is begun."""
    long = LATE | {"worth": 0, "delta": SMALL | {"epochs": 10**6, "encoder": "resnet9"}}
    written(place, long, EARLY)
    here = ledger(place)
    config = chosen(place, "late")[0].configs[0]
    assert here.minutes(config) is None
    experiments.work(chosen(place), here, 1.0, "cpu", COMMITTED)
    made = [record["config"]["epochs"] for record in published(place).values()]
    assert made == [1]
    assert lines(capsys)[-1] == "did not fit into 1 minute: 4 runs"
    assert not list((place / "runs").glob("*-e1000000-*"))

    told = here.minutes(config)
    assert told > 60
    assert here.minutes(replace(config, epochs=10**5)) == pytest.approx(told / 10)
    assert here.timed_minutes(config) == told  # once


def test_a_run_that_can_not_begin_takes_no_time_and_says_why(place):
    delta = SMALL | {"batch_size": 10_000}
    written(place, EARLY | {"delta": delta})
    with pytest.raises(InputError, match="early: .*fewer than one batch"):
        finish(place, budget=1.0)


def test_a_run_that_diverges_is_published_as_failed_and_not_tried_again(place):
    delta = SMALL | {"learning_rate": 1e30, "optimiser": "sgd", "warmup_epochs": 0}
    written(place, EARLY | {"delta": delta})
    with pytest.raises(InputError, match="early: .*the loss became"):
        finish(place)
    (record,) = published(place).values()
    assert "the loss became" in record["failed"]
    finish(place)
    assert missing(place) == 0


def test_a_record_that_is_published_again_takes_its_own_place(place):
    finish(place, "early")
    (record,) = published(place).values()
    here = ledger(place)
    here.add(record | {"started": "later"})
    assert [other["started"] for other in here.everything()] == ["later"]


def test_an_estimate_that_nothing_tells_is_unknown_and_not_0(place):
    words = experiments.in_words(
        experiments.overview(chosen(place), ledger(place), "cpu"), ledger(place)
    )
    assert words[-1] == "an unknown number of minutes of training are missing on this cpu"
    assert "?" in words[0]
    assert in_total(pd.Series([1.5, 2.0]), "hours", digits=1) == "3.5 hours"
    assert in_total(pd.Series([1.5, math.nan]), "hours") == "2 hours and an unknown number more"
    assert in_total(pd.Series([0.0, math.nan]), "hours") == "an unknown number of hours"
    assert in_total(pd.Series([0.0]), "hours") == "0 hours"


def test_minutes_are_told_by_the_speed_that_was_measured(place):
    finish(place, "early")
    (record,) = published(place).values()
    config = preset("simclr-digits", **SMALL, temperature=0.3)
    views = 2 * (180 // 32) * 32  # toy's 200 images without val, whole batches
    minutes = views / record["views_per_second"] / 60
    assert ledger(place).minutes(config) == pytest.approx(minutes)

    # another encoder: by its floating-point operations
    twin = preset("simclr-digits", **SMALL, encoder="resnet18")
    ratio = flops(Model("resnet18", "cifar", "mlp", 128), 12) / record["cost"]["flops_per_view"]
    assert ledger(place).minutes(twin) == pytest.approx(ratio * minutes)


def test_nothing_measured_means_no_estimate(place):
    assert ledger(place).minutes(preset("simclr-digits", **SMALL)) is None
    assert ledger(place).minutes(preset("simclr-digits", **SMALL | {"epochs": 0})) == 0


def test_chapters_read_the_records_of_the_first_experiment_that_has_any(place):
    def found(*names: str) -> list[dict]:
        return experiments.published(
            *names, results=place / "results", path=place / "experiments.yml"
        )

    assert found("late", "early") == []
    finish(place, "early")
    assert len(found("late", "early")) == 1  # late has that run too
    finish(place)
    late = found("late")
    assert [record["config"]["temperature"] for record in late].count(0.1) == 2
    assert len(late) == 4
    assert len(found("early")) == 1

    other = late[0] | {"config": late[0]["config"] | {"precision": "bfloat16"}}
    (place / "results" / f"{other['id']}.json").write_text(json.dumps(other), encoding="utf-8")
    assert len(found("late")) == 3  # it asks for float32
    with pytest.raises(InputError, match="unknown experiment"):
        found("none")


def test_a_recipe_that_changed_makes_another_run(place, monkeypatch):
    """And so do other numerics."""
    finish(place)
    assert missing(place) == 0
    digits = RECIPES["digits"]
    monkeypatch.setitem(RECIPES, "digits", replace(digits, flip=0.25))
    assert missing(place) == 5  # one of them in both
    read = {"results": place / "results", "path": place / "experiments.yml"}
    assert experiments.published("early", **read) == []

    monkeypatch.setitem(RECIPES, "digits", digits)
    (record,) = experiments.published("early", **read)
    records.write(place / "results" / f"{record['id']}.json", record | {"numerics": 0})
    assert experiments.published("early", **read) == []


def test_a_failing_run_takes_no_others_work(place):
    delta = SMALL | {"data": "missing"}
    written(place, LATE, EARLY, EARLY | {"name": "wrong", "delta": delta, "worth": 0})
    with pytest.raises(InputError, match="wrong: .*missing"):
        finish(place)
    assert len(published(place)) == 4


@pytest.mark.parametrize(
    "change, words",
    [
        ({"scale": "huge"}, "unknown scale 'huge'"),
        ({"preset": "simclr"}, "unknown preset"),
        ({"delta": {"epoch": 1}}, "unknown field 'epoch'"),
        ({"wanted": ["lin"]}, "unknown probe 'lin'"),
        ({"speed": 1}, "unknown field 'speed'"),
        ({"worth": "much"}, "worth must be an integer"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [0.5]}, "seeds must be"),
        ({"vary": {"temperature": 0.5}}, "vary.temperature must be a list"),
        ({"vary": {"temperature": [0]}}, "temperature must be"),
    ],
)
def test_bad_experiments_are_named(place, change, words):
    path = written(place, LATE | change)
    with pytest.raises(InputError, match=f"experiments.yml: experiment late: .*{words}"):
        experiments.read(path)


def test_what_is_no_list_of_experiments_is_named(place):
    path = written(place, 3)
    with pytest.raises(InputError, match="experiment number 1: it must be a mapping"):
        experiments.read(path)
    path.write_text("a: 1", encoding="utf-8")
    with pytest.raises(InputError, match="experiments.yml must be a list of experiments"):
        experiments.read(path)


def test_two_experiments_of_one_name_are_refused(place):
    """One of them could never be chosen."""
    with pytest.raises(InputError, match="experiments.yml: experiment late is there twice"):
        experiments.read(written(place, LATE, LATE))


def test_an_unknown_experiment_is_named_with_the_nearest(place):
    with pytest.raises(InputError, match="unknown experiment 'lat'; did you mean 'late'"):
        chosen(place, "lat")


# --- the real list


def test_the_list_can_be_read_and_its_names_are_unique():
    listed = yaml.safe_load(experiments.EXPERIMENTS.read_bytes())
    names = [entry["name"] for entry in listed]
    assert len(set(names)) == len(names)
    read = experiments.read()
    assert {experiment.scale for experiment in read} == set(experiments.SCALES)
    for experiment in read:
        assert len(experiment.seeds) >= 3, experiment.name
        assert experiment.wanted, experiment.name


@pytest.mark.parametrize(
    "name",
    ["longer-slice", "heads-slice", "heads-slice96", "reading-slice", "reading-slice96"],
)
def test_the_published_slices_count_as_done(name):
    """Without any data here: their configurations alone."""
    table = experiments.overview(experiments.choose([name]), ledger_of_the_book(), "cpu")
    (row,) = table.itertuples()
    assert row.done == row.runs > 0


def ledger_of_the_book() -> Ledger:
    return Ledger("nowhere", device="cpu")


def test_the_command_prints_the_plan(capsys, tmp_path):
    here = ["--data-root", str(tmp_path), "--device", "cpu"]
    assert main(["experiments", "--plan", "--scale", "full", *here]) == 0
    shown = capsys.readouterr().out
    assert "supcon-r18" in shown
    assert "note: cifar10 is not in" in shown
    assert main(["experiments", "--only", "none", "--plan"]) == 2
    assert main(["experiments", "--budget-minutes", "-1"]) == 2
    assert "--budget-minutes" in capsys.readouterr().err
    assert main(["experiments", "--scale", "big", "--plan"]) == 2
    assert "unknown scale 'big'; known: slice, full, plan" in capsys.readouterr().err


@pytest.mark.parametrize("scale", ["slice", "plan"])
def test_a_record_must_name_the_code_that_made_it(scale, capsys, monkeypatch):
    monkeypatch.setattr(provenance, "code", lambda: {"commit": "c", "changed": True, "source": "s"})
    assert main(["experiments", "--scale", scale, "--budget-minutes", "0"]) == 2
    assert "commit the change first" in capsys.readouterr().err


def test_who_calls_the_work_is_asked_for_the_commit_too(place):
    """Not the command alone."""
    changed = {"changed": True}
    with pytest.raises(InputError, match="commit the change first"):
        experiments.work(chosen(place), ledger(place), device="cpu", package=changed)
    with pytest.raises(InputError, match="commit the change first"):
        Queue([], ledger(place), "cpu").work(package=changed)
    assert not (place / "runs").exists()
