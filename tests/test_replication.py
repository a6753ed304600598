"""Replication: a claim computed again on toy data, and what is said before and after."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from lib import InputError
from lib.__main__ import main
from lib.data import Dataset, load
from lib.evidence import claims, plan, replication, tables, timing
from lib.evidence.ledger import Ledger
from lib.evidence.plan import Entry
from lib.evidence.queue import Queue
from lib.presets import preset
from lib.runs import records
from tests.plans import COMMITTED, TEXTS, with_toy_data, written

CPU = torch.device("cpu")
SMALL = {"data": "toy", "batch_size": 32, "images": None, "knn_every": 0}
ENTRY = TEXTS | {
    "name": "lengths",
    "scale": "plan",
    "wanted": ["linear"],
    "arms": {
        "simclr": {"preset": "simclr-digits", "delta": SMALL, "seeds": {1: 2, 2: 3, 6: 1}},
        "untrained": {"preset": "simclr-digits", "delta": SMALL, "seeds": {0: 3}},
    },
}
OURS = {
    "claim": "six epochs are better than none",
    "entry": "lengths",
    "like_for_like": {
        "method": "simclr",
        "data": "toy",
        "epochs": 6,
        "features": "h",
        "probe": "linear",
    },
    "minus": [{"method": "untrained", "epochs": 0}, {"epochs": 1}],
    "margin": 1.0,
    "seeds": 3,
    "shorter": [{"epochs": 1, "minus": [{}, {"epochs": 0, "method": "untrained"}]}, {"epochs": 2}],
}
CLAIM = {
    "id": "longer",
    "claim": "c",
    "source": "s",
    "rule": "sign",
    "like_for_like": {"epochs": 500},
    "question": "Is it so?",
    "ours": OURS,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where the plan's runs are: three of two epochs, two of one, and one of six."""
    place = with_toy_data(tmp_path_factory.mktemp("plan"))
    ledger = Ledger(place / "data", place / "results", place / "runs", "cpu")
    Queue(plan.read(written(place, ENTRY)), ledger, "cpu", place / "kept").work(package=COMMITTED)
    return place


@pytest.fixture
def entries(place) -> list[Entry]:
    return plan.read(place / "experiments.yml")


@pytest.fixture
def toy(place) -> Dataset:
    return load("toy", place / "data")


@pytest.fixture
def table(place) -> pd.DataFrame:
    return tables.measures(records.load_all(place / "results"))


def a_minute(config, dataset, device) -> float:
    """What every epoch takes, so that what fits does not depend on this machine."""
    return 1.0


def prepared(
    table, entries, toy, minutes=30.0, precision=None, **changes
) -> replication.Replication:
    claim = CLAIM | {"ours": OURS | changes}
    return replication.prepare(claim, table, entries, toy, CPU, minutes, a_minute, precision)


def test_the_largest_size_with_two_recorded_pairs_is_taken_with_a_new_seed(table, entries, toy):
    """Six epochs have one pair."""
    found = prepared(table, entries, toy)
    assert [config.epochs for config in (found.first, *found.seconds)] == [2, 0, 1]
    assert {config.seed for config in found.configs} == {3}
    assert found.recorded.seeds == 2
    assert found.minutes == 3


def test_an_epoch_is_measured_on_this_machine(table, entries, toy):
    found = replication.prepare(CLAIM, table, entries, toy, CPU)
    assert math.isfinite(found.minutes) and found.minutes > 0


def test_a_group_may_belong_to_another_entry(table, entries, toy):
    elsewhere = replace(entries[0], name="baselines")
    apart = table.assign(entry=table["entry"].where(table["epochs"] > 0, "baselines"))
    minus = [{"method": "untrained", "epochs": 0, "entry": "baselines"}]
    found = prepared(apart, [*entries, elsewhere], toy, minus=minus, shorter=[{"epochs": 2}])
    assert [config.epochs for config in (found.first, *found.seconds)] == [2, 0]
    assert found.recorded.seeds == 3
    with pytest.raises(InputError, match="unknown entry of the plan 'baselines'"):
        prepared(apart, entries, toy, minus=minus, shorter=[{"epochs": 2}])


def test_where_little_time_is_given_a_smaller_size_is_taken(table, entries, toy):
    """Two epochs, less one, take three minutes; one epoch, less none, takes one."""
    found = prepared(table, entries, toy, minutes=2.9)
    assert found.first.epochs == 1
    assert found.minutes == 1
    wanted = r"longer: the smallest size takes 1 minute on this machine; set --minutes 1$"
    with pytest.raises(InputError, match=wanted):
        prepared(table, entries, toy, minutes=0.9)


def test_a_size_that_tells_the_sign_goes_before_a_larger_one_that_does_not(table, entries, toy):
    accuracies = {(0, 0): 0.1, (0, 1): 0.1, (1, 0): 0.9, (1, 1): 0.91, (2, 0): 0.2, (2, 1): 0.95}
    runs = zip(table["epochs"], table["seed"])
    changed = table.assign(accuracy=[accuracies.get(run, 0.1) for run in runs])
    found = prepared(changed, entries, toy)
    assert (found.first.epochs, found.tells_the_sign) == (1, True)


def test_what_would_agree_is_said_before_and_the_outcome_after(table, entries, toy, tmp_path):
    found = prepared(table, entries, toy)
    said = "\n".join(found.in_words())
    assert "runs: simclr-digits, 2 epochs, seed 3; simclr-digits, 0 epochs, seed 3" in said
    assert "computed again: simclr, toy, epochs 2, h, linear; minus untrained, epochs 0 or" in said
    low, high = (100 * end for end in found.expected[1:])
    assert f"agreement: a difference between {low:+.1f} and {high:+.1f} points" in said

    record = replication.compute(found, toy, tmp_path, "cpu", progress=False)
    made = [records.read(tmp_path / run / "record.json") for run in record["runs"]]
    accuracies = {}
    for run in made:
        result = run["evaluation"]["h"]["linear"]
        accuracies[run["config"]["epochs"]] = result["correct"] / result["n"]
    best = max(accuracies[0], accuracies[1])
    assert record["difference"] == pytest.approx(accuracies[2] - best)
    assert record["outcome"] == found.outcome(record["difference"])
    assert record["accuracies"][0] - max(record["accuracies"][1:]) == record["difference"]
    assert record["data"] == toy.fingerprint

    path = replication.write(record, tmp_path)
    assert replication.conclusion(record).startswith(f"{record['outcome']}: ")
    said = replication.summary(record)
    assert said.startswith(
        "longer (simclr, toy, epochs 2, h, linear; minus untrained, epochs 0 or "
    )
    kept = replication.publish(path, tmp_path / "results")
    assert replication.load_all(tmp_path / "results") == [record]
    kept.write_text(
        kept.read_text(encoding="utf-8").replace('"outcome"', '"outcom"'), encoding="utf-8"
    )
    with pytest.raises(InputError, match="is not a whole replication: the field 'outcome'"):
        replication.load_all(tmp_path / "results")


def test_it_is_computed_in_another_precision_where_that_is_asked(table, entries, toy, tmp_path):
    """What is not trained is float32 as ever; a claim about precision has its own two."""
    found = prepared(table, entries, toy, precision="bfloat16")
    assert {run.precision for run in found.configs if run.epochs} == {"bfloat16"}
    assert {run.precision for run in found.configs if not run.epochs} == {"float32"}
    record = replication.compute(found, toy, tmp_path, "cpu", progress=False)
    assert record["precisions"] == found.precisions == ["bfloat16"]
    device = record["device"]
    assert f"seed 3 in bfloat16 on {device['name']}, {device['threads']} " in (
        replication.conclusion(record)
    )
    of_precision = OURS["like_for_like"] | {"precision": "float32"}
    with pytest.raises(InputError, match="longer compares precisions: leave --precision out"):
        prepared(table, entries, toy, precision="bfloat16", like_for_like=of_precision)


def test_from_the_command_line_to_the_evidence(place, tmp_path, monkeypatch, capsys):
    """In a folder of runs of that very name: a run is no replication for that."""
    (place / "claims.yml").write_text(yaml.dump([CLAIM]), encoding="utf-8")
    monkeypatch.setattr(claims.read, "__defaults__", (place / "claims.yml",))
    monkeypatch.setattr(plan.read, "__defaults__", (place / "experiments.yml",))
    for function in (records.load_all, records.publish):
        monkeypatch.setattr(function, "__defaults__", (place / "results",))
    monkeypatch.setattr(replication.publish, "__defaults__", (tmp_path / "published",))

    runs = tmp_path / "replications"
    where = ["--runs", str(runs), "--data-root", str(place / "data"), "--device", "cpu"]
    again = ["replicate", "longer", "--minutes", "30", "--precision", "bfloat16"]
    assert main([*again, *where]) == 0
    *said, conclusion, left = capsys.readouterr().out.splitlines()
    assert any(line.startswith("agreement: ") for line in said)
    assert conclusion.startswith(("verified: ", "not verified: ", "too small to tell: "))
    path = Path(left.partition(": ")[0])
    assert left.endswith(f"python -m lib publish {path}")

    assert main(["publish", str(path)]) == 0
    (record,) = replication.load_all(tmp_path / "published")
    assert record["precisions"] == ["bfloat16"]
    assert main(["publish", str(runs / record["runs"][0])]) == 0
    published = {kept["id"] for kept in records.load_all(place / "results")}
    assert record["runs"][0] in published


@pytest.mark.parametrize("epochs, batch_size", [(1, 128), (2, 32)])
def test_an_epoch_is_timed_however_short_the_run(toy, epochs, batch_size):
    config = preset("simclr-digits", **SMALL | {"epochs": epochs, "batch_size": batch_size})
    minutes = timing.epoch_minutes(config, toy, CPU)
    assert 0 < minutes < 1


@pytest.mark.parametrize("shape", [{"cooldown_epochs": 90}, {"cosine_epochs": 100}])
def test_an_epoch_is_timed_whatever_the_schedule(toy, shape):
    config = preset("simclr-digits", **SMALL | {"epochs": 100, **shape})
    assert 0 < timing.epoch_minutes(config, toy, CPU, warm_up=1, timed=1) < 1
    an_epoch = timing.own_schedule(config, 1)
    assert an_epoch == timing.own_schedule(preset("simclr-digits", **SMALL), 1)


@pytest.mark.parametrize(
    "low, high, difference, outcome",
    [
        (0.01, 0.03, 0.02, "verified"),
        (0.01, 0.03, 0.04, "not verified"),
        (0.01, 0.03, 0.0, "not verified"),
        (-0.03, -0.01, -0.02, "verified"),
        (-0.01, 0.03, 0.02, "too small to tell"),
        (-0.01, 0.03, 0.04, "not verified"),
        (math.nan, math.nan, 0.04, "not verified"),
    ],
)
def test_the_outcome(table, entries, toy, low, high, difference, outcome):
    found = prepared(table, entries, toy)
    asked = replace(found, expected=found.expected._replace(low=low, high=high))
    assert asked.outcome(difference) == outcome


def test_changed_records_are_not_verified(table, entries, toy, tmp_path):
    """Each of the larger group made better by half of all the images."""
    changed = table.copy()
    changed.loc[changed.epochs == 2, "accuracy"] += 0.5
    found = prepared(changed, entries, toy)
    record = replication.compute(found, toy, tmp_path, "cpu", progress=False)
    assert record["outcome"] == "not verified"


def test_what_can_not_be_replicated_says_why(table, entries, toy):
    with pytest.raises(InputError, match="longer: no size has two recorded pairs of runs yet"):
        prepared(table.iloc[:0], entries, toy)
    with pytest.raises(InputError, match="unknown entry of the plan 'length'"):
        prepared(table.assign(entry="length"), entries, toy, entry="length")
    without = {key: CLAIM[key] for key in CLAIM if key != "ours"}
    with pytest.raises(InputError, match="longer has no size that can be run here"):
        replication.prepare(without, table, entries, toy, CPU)
