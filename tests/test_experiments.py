import json

import numpy as np
import pytest
import yaml

from lib import InputError, experiments, records, training
from lib.__main__ import main
from lib.config import preset
from lib.experiments import Ledger
from tests.conftest import arrays

SMALL = {"data": "toy", "epochs": 1, "batch_size": 32, "images": None, "knn_every": 0}
ENTRIES = [
    {
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
    },
    {
        "name": "early",
        "about": "a",
        "scale": "slice",
        "worth": 1,
        "preset": "simclr-digits",
        "delta": SMALL,
        "seeds": [0],
        "wanted": ["knn"],
        "claims": [],
    },
    {
        "name": "large",
        "about": "a",
        "scale": "full",
        "worth": 1,
        "preset": "simclr-cifar10",
        "wanted": ["linear"],
        "claims": [],
    },
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A list of small experiments, a data root with toy in it, and folders for runs and results."""
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "toy.npz", **arrays())
    (tmp_path / "experiments.yml").write_text(yaml.dump(ENTRIES))
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(records, "code", lambda: {"commit": "c", "changed": False, "source": "s"})
    return tmp_path


def ledger(place, root="data"):
    return Ledger(place / root, place / "results", place / "runs", "cpu")


def chosen(place, *names):
    return experiments.choose(list(names), "slice", place / "experiments.yml")


def finish(place, *names, **keys):
    experiments.run(chosen(place, *names), ledger(place), device="cpu", **keys)


def test_what_is_missing_is_run_most_valuable_first_evaluated_published_and_never_again(
    place, capsys, monkeypatch
):
    assert [e.name for e in chosen(place)] == ["early", "late"]
    table = experiments.plan(chosen(place), ledger(place), "cpu").set_index("experiment")
    assert table.loc["late", ["runs", "done", "missing"]].tolist() == [4, 0, 4]
    finish(place)
    lines = capsys.readouterr().out.splitlines()
    seeds = [line.split("-s")[1][0] for line in lines]
    assert [line.split(":")[0] for line in lines] == [
        "early",
        "late",
        "late",
        "late",
    ] and seeds == ["0", "0", "1", "1"]
    kept = records.load_all(place / "results")
    assert len(kept) == 4 and all("linear" in record["evaluation"]["h"] for record in kept)
    assert (
        sum("knn" in record["evaluation"]["h"] for record in kept) == 1
    )  # the run that two experiments share
    monkeypatch.setattr(training, "pretrain", None)
    finish(place)
    assert not capsys.readouterr().out
    assert experiments.plan(chosen(place), ledger(place), "cpu")["missing"].sum() == 0


def test_the_first_seeds_of_all_come_before_the_second_ones_within_a_worth(place):
    listed = [
        ENTRIES[1]
        | {"name": name, "worth": worth, "seeds": [5, 6], "delta": SMALL | {"temperature": t}}
        for name, worth, t in (("c", 2, 0.3), ("a", 1, 0.1), ("b", 1, 0.2))
    ]
    (place / "experiments.yml").write_text(yaml.dump(listed))
    order = [
        (task.experiments[0], task.config.seed) for task in experiments.tasks(chosen(place), "cpu")
    ]
    assert order == [("a", 5), ("b", 5), ("a", 6), ("b", 6), ("c", 5), ("c", 6)]


def test_the_plan_without_data_matches_the_configuration_and_says_so(place):
    finish(place)
    gone = ledger(place, "nowhere")
    table = experiments.plan(chosen(place), gone, "cpu").set_index("experiment")
    assert table["missing"].sum() == 0 and "toy is not in" in gone.missing["toy"]
    np.savez(place / "data" / "toy.npz", **arrays(seed=1))  # other pixels: other runs
    assert experiments.plan(chosen(place), ledger(place), "cpu")["missing"].sum() == 5


def test_a_probe_wanted_later_is_read_from_the_run_without_training(place, capsys, monkeypatch):
    finish(place, "early")
    entries = [
        entry | {"wanted": ["knn", "calibration"]} if entry["name"] == "early" else entry
        for entry in ENTRIES
    ]
    (place / "experiments.yml").write_text(yaml.dump(entries))
    assert ledger(place).minutes(chosen(place, "early")[0].configs[0]) == 0
    monkeypatch.setattr(training, "_train", None)
    finish(place, "early")
    (record,) = records.load_all(place / "results")
    assert "calibration" in record and "knn" in record["evaluation"]["h"]


def test_a_record_that_is_replaced_keeps_what_it_was_asked(place):
    finish(place, "late")
    target = next((place / "results").glob("simclr-digits-e1-s0-*.json"))
    before = {path.name: records.read(path) for path in (place / "results").glob("*.json")}
    for folder in (place / "runs").iterdir():  # trained elsewhere: no model is here
        (folder / "record.json").unlink()
    finish(place, "early")
    after = {path.name: records.read(path) for path in (place / "results").glob("*.json")}
    (changed,) = (name for name in after if after[name] != before[name])
    assert {"linear", "knn"} <= after[changed]["evaluation"]["h"].keys() and target.name[
        :20
    ] == changed[:20]


def test_a_half_done_run_goes_on(place, monkeypatch):
    whole, train = [], training._train
    monkeypatch.setattr(training, "_train", lambda *a: (whole.append(1), train(*a))[1])

    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_train", cut)
        with pytest.raises(KeyboardInterrupt):
            finish(place, "early")
    assert list((place / "runs").glob("*/checkpoint.safetensors")) and not list(
        (place / "results").iterdir()
    )
    finish(place, "early")
    assert len(list((place / "results").iterdir())) == len(whole) == 1


def test_the_budget_is_kept_by_the_speed_that_was_measured(place, capsys):
    finish(place, budget=0)
    assert "4 runs are left" in capsys.readouterr().out
    finish(place, "early")
    (record,) = records.load_all(place / "results")
    config = preset("simclr-digits", **SMALL, temperature=0.3)
    views = 2 * (180 // 32) * 32  # toy's 200 images without val, whole batches
    assert ledger(place).minutes(config) == pytest.approx(views / record["views_per_second"] / 60)
    # another encoder: by its floating-point operations
    twin = preset("simclr-digits", **SMALL, encoder="resnet18")
    ratio = (
        experiments._flops("resnet18", "cifar", "mlp", 128, 12) / record["cost"]["flops_per_view"]
    )
    assert ledger(place).minutes(twin) == pytest.approx(ratio * ledger(place).minutes(config))
    long = preset("simclr-digits", **SMALL | {"epochs": 10_000})
    half = ledger(place).minutes(long) / 2
    (place / "experiments.yml").write_text(
        yaml.dump([ENTRIES[0] | {"delta": SMALL | {"epochs": 10_000}}, ENTRIES[1]])
    )
    capsys.readouterr()
    finish(place, budget=half)
    assert "4 runs are left" in capsys.readouterr().out


def test_chapters_read_the_records_of_the_first_experiment_that_has_any(place, monkeypatch):
    monkeypatch.setattr(experiments.choose, "__defaults__", ((), None, place / "experiments.yml"))
    assert experiments.published("late", "early", results=place / "results") == []
    finish(place, "early")
    assert (
        len(experiments.published("late", "early", results=place / "results")) == 1
    )  # late has that run too
    finish(place)
    found = experiments.published("late", results=place / "results")
    assert len(found) == 4 and {r["config"]["temperature"] for r in found} == {0.5, 0.1}
    assert len(experiments.published("early", results=place / "results")) == 1
    (path,) = (place / "results").glob(f"{found[0]['id']}.json")
    path.write_text(
        json.dumps(found[0] | {"config": found[0]["config"] | {"precision": "bfloat16"}})
    )
    assert len(experiments.published("late", results=place / "results")) == 3  # it asks for float32
    with pytest.raises(InputError, match="unknown experiment"):
        experiments.published("none", results=place / "results")


def test_nothing_measured_means_no_estimate(place):
    assert ledger(place).minutes(preset("simclr-digits", **SMALL)) is None
    assert ledger(place).minutes(preset("simclr-digits", **SMALL | {"epochs": 0})) == 0


def test_a_record_must_name_the_code_that_made_it(place, monkeypatch):
    monkeypatch.setattr(records, "code", lambda: {"commit": "c", "changed": True, "source": "s"})
    with pytest.raises(InputError, match="commit the change first"):
        finish(place)


def test_a_failing_run_takes_no_others_work(place, capsys):
    wrong = ENTRIES[1] | {"name": "wrong", "delta": SMALL | {"data": "missing"}, "worth": 0}
    (place / "experiments.yml").write_text(yaml.dump([*ENTRIES, wrong]))
    with pytest.raises(InputError, match="wrong: .*missing"):
        finish(place)
    assert len(records.load_all(place / "results")) == 4


@pytest.mark.parametrize(
    "change, words",
    [
        ({"scale": "huge"}, "unknown scale 'huge'"),
        ({"preset": "simclr"}, "unknown preset"),
        ({"delta": {"epoch": 1}}, "unknown field 'epoch'"),
        ({"wanted": ["lin"]}, "unknown probe 'lin'"),
        ({"speed": 1}, "unexpected keyword argument 'speed'"),
        ({"vary": {"temperature": [0]}}, "temperature must be"),
    ],
)
def test_bad_experiments_are_named(place, change, words):
    (place / "experiments.yml").write_text(yaml.dump([ENTRIES[0] | change]))
    with pytest.raises(InputError, match=f"experiment late: .*{words}"):
        experiments.read(place / "experiments.yml")
    with pytest.raises(InputError, match="unknown experiment 'lat'; did you mean 'late'"):
        (place / "experiments.yml").write_text(yaml.dump(ENTRIES))
        chosen(place, "lat")


# --- the real list


def test_the_list_can_be_read_and_its_names_are_unique():
    listed = experiments.read()
    assert len({e.name for e in listed}) == len(listed) and {e.scale for e in listed} == set(
        experiments.SCALES
    )
    for experiment in listed:
        assert experiment.seeds and len(experiment.seeds) >= 3 and experiment.wanted


def test_the_published_slices_count_as_done():
    """Without any data here: their configurations alone."""
    here = Ledger("nowhere", device="cpu")
    table = experiments.plan(experiments.choose([], "slice"), here, "cpu").set_index("experiment")
    for name in (
        "longer-slice",
        "heads-slice",
        "heads-slice96",
        "reading-slice",
        "reading-slice96",
    ):
        assert table.loc[name, "done"] == table.loc[name, "runs"] > 0, name


def test_the_command_prints_the_plan(capsys, tmp_path):
    assert (
        main(
            [
                "experiments",
                "--plan",
                "--scale",
                "full",
                "--data-root",
                str(tmp_path),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "supcon-r18" in shown and "note: cifar10 is not in" in shown
    assert main(["experiments", "--only", "none", "--plan"]) == 2
