"""Runs whose precision the device decides: what another kind of device began is found."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib.config import Config
from lib.data import Dataset, load
from lib.evidence import experiments, plan
from lib.evidence.ledger import Ledger
from lib.evidence.queue import Queue
from lib.hardware import choose_precision
from lib.presets import preset
from lib.runs import checkpoints, furthest, identity, pretrain, records
from tests.conftest import same_weights, sessions_of, small, stopped, trained
from tests.plans import COMMITTED, SMALL, TEXTS, with_toy_data, written
from tests.pretended import gpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
T4, A100 = (7, 5), (8, 0)
OPEN = small(epochs=1, knn_every=0, precision="auto")
OWN = choose_precision("auto", CPU)
OTHER = "float32" if OWN == "bfloat16" else "bfloat16"


@pytest.mark.parametrize(
    "capability, steps, wanted",
    [
        (A100, {}, None),
        (A100, {"float16": 3}, "float16"),
        (A100, {"float16": 3, "bfloat16": 0}, "bfloat16"),  # its own
        (T4, {"float16": 0, "float32": math.inf}, "float16"),
        (A100, {"float16": 900, "float32": math.inf}, "float32"),
        (A100, {"float16": 3, "float32": 4}, "float32"),
        (A100, {"float16": 4, "float32": 3}, "float16"),
        (T4, {"bfloat16": 900}, None),  # it can't compute that
        (T4, {"bfloat16": 900, "float32": 1}, "float32"),
        (T4, {"bfloat16": math.inf, "float32": 1}, "bfloat16"),
    ],
)
def test_the_run_to_go_on_with(capability, steps, wanted):
    with gpu(capability=capability):
        found = furthest(OPEN, CUDA, lambda run: steps.get(run.precision))
    assert found == (None if wanted is None else replace(OPEN, precision=wanted))


def test_what_leaves_nothing_open_is_no_other_run():
    for config in (replace(OPEN, precision="float32"), replace(OPEN, epochs=0)):
        assert furthest(config, CPU, lambda run: math.inf) is None


def test_how_far_a_run_is_stands_in_its_newest_checkpoint(toy: Dataset, tmp_path: Path):
    config = replace(OPEN, precision="float32")
    assert checkpoints.steps_taken(tmp_path / identity(config, toy)) is None
    folder = stopped(config, toy, tmp_path, steps=3).folder
    assert checkpoints.steps_taken(folder) == 3

    (folder / checkpoints.NEWEST).write_bytes(b"damaged")
    assert checkpoints.steps_taken(folder) == 2
    (folder / "failed.json").touch()
    assert checkpoints.steps_taken(folder) is None
    (folder / "record.json").touch()
    assert checkpoints.steps_taken(folder) == math.inf


def test_a_half_done_run_of_another_device_goes_on_in_its_precision(toy, tmp_path, capsys):
    begun = replace(OPEN, precision=OTHER)
    whole = trained(begun, toy, tmp_path / "whole")
    stopped(begun, toy, tmp_path, steps=2)
    run = trained(OPEN, toy, tmp_path)
    assert capsys.readouterr().out == f"goes on with {whole.folder.name}, begun in {OTHER}\n"
    assert run.config == begun
    assert sessions_of(run) == [[0, 2], [2, 5]]
    assert same_weights(run.model, whole.model)

    again = trained(OPEN, toy, tmp_path)
    assert capsys.readouterr().out == f"takes {whole.folder.name}, begun in {OTHER}\n"
    assert again.folder == run.folder
    own = trained(replace(OPEN, precision=OWN), toy, tmp_path)  # that precision and no other
    assert own.folder != run.folder
    assert trained(OPEN, toy, tmp_path).folder == own.folder
    assert not capsys.readouterr().out


def test_a_finished_run_is_taken_by_a_device_that_could_not_compute_it(toy, tmp_path):
    made = trained(replace(OPEN, precision="bfloat16"), toy, tmp_path)
    with gpu(capability=T4):
        assert pretrain(OPEN, toy, tmp_path, "cuda", progress=False).folder == made.folder


# --- experiments and the plan


OPEN_ENTRY = {
    "name": "open",
    "about": "a",
    "scale": "slice",
    "worth": 1,
    "preset": "simclr-digits",
    "delta": SMALL | {"precision": "auto"},
    "seeds": [0],
    "wanted": ["knn"],
    "claims": [],
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return with_toy_data(tmp_path)


def ledger(place: Path) -> Ledger:
    return Ledger(place / "data", place / "results", place / "runs", "cpu")


def done(place: Path, *entries: dict) -> list[int]:
    """Of each experiment, how many of its runs are done."""
    path = written(place, *entries)
    chosen = experiments.choose((), "slice", path)
    return list(experiments.overview(chosen, ledger(place), "cpu")["done"])


def test_an_experiment_counts_a_run_in_any_precision_once_where_it_leaves_that_open(place):
    explicit = {}
    for precision in (OWN, OTHER):
        delta = SMALL | {"precision": precision}
        explicit[precision] = OPEN_ENTRY | {"name": precision, "delta": delta}
    both = OPEN_ENTRY, explicit[OWN], explicit[OTHER]
    assert done(place, *both) == [0, 0, 0]

    config = preset("simclr-digits", **SMALL, precision=OTHER)
    stopped(config, load("toy", place / "data"), place / "runs", steps=2)
    chosen = experiments.choose((), "slice", written(place, OPEN_ENTRY))
    experiments.work(chosen, ledger(place), device="cpu", package=COMMITTED)
    (record,) = records.load_all(place / "results")
    assert record["config"]["precision"] == OTHER
    assert [segment["steps"] for segment in record["segments"]] == [[0, 2], [2, 5]]
    assert done(place, *both) == [1, 0, 1]

    chosen = experiments.choose([OWN], path=written(place, *both))
    experiments.work(chosen, ledger(place), device="cpu", package=COMMITTED)
    assert len(records.load_all(place / "results")) == 2
    assert done(place, *both) == [1, 1, 1]


def test_a_published_run_that_lacks_a_probe_is_made_again_where_it_can_be(place):
    """A record from elsewhere, without its weights."""
    chosen = experiments.choose((), "slice", written(place, OPEN_ENTRY))
    elsewhere = trained(
        preset("simclr-digits", **SMALL, precision="bfloat16"),
        load("toy", place / "data"),
        place / "elsewhere",
    )
    elsewhere.evaluate(load("toy", place / "data"), "cpu", ["knn"])
    records.publish(elsewhere.folder, place / "results")
    (open_one,) = (task.config for task in experiments.tasks(chosen, "cpu"))
    with gpu(capability=T4):
        here = Ledger(place / "data", place / "results", place / "runs", "cuda")
        assert here.settled(open_one, ("knn",)).precision == "bfloat16"
        assert here.settled(open_one, ("knn", "linear")).precision == "float16"
    assert ledger(place).settled(open_one, ("knn", "linear")).precision == "bfloat16"


def queue(place: Path, device: str, *entries: dict) -> Queue:
    there = Ledger(place / "data", place / "results", place / "runs", device)
    return Queue(plan.read(written(place, *entries)), there, device, place / "kept")


def test_a_seed_goes_on_in_a_precision_that_this_device_can_compute(place):
    """Both arms of it, since pairs are of one precision."""
    dataset = load("toy", place / "data")
    arms = {}
    for method in ("simclr", "supcon"):
        delta = {**SMALL, "precision": "auto"}
        del delta["epochs"]
        arms[method] = {"preset": f"{method}-digits", "delta": delta, "seeds": {1: 1}}
    entry = TEXTS | {"name": "main", "scale": "plan", "wanted": ["knn"], "arms": arms}

    def precisions(capability: tuple[int, int]) -> list[str]:
        with gpu(capability=capability):
            states = list(queue(place, "cuda", entry).states(claims=False))
        return [state.config.precision for state in states]

    stopped(preset("simclr-digits", **SMALL, precision="bfloat16"), dataset, place / "runs", 2)
    assert precisions(A100) == ["bfloat16"] * 2
    assert precisions(T4) == ["float16"] * 2

    for method in ("simclr", "supcon"):
        config = preset(f"{method}-digits", **SMALL, precision="bfloat16")
        run = trained(config, dataset, place / "runs")
        run.evaluate(dataset, "cpu", ["knn"])
        records.publish(run.folder, place / "results")
    assert precisions(T4) == ["bfloat16"] * 2  # all is done


def test_a_trial_of_a_stated_precision_has_the_score_of_no_other(place):
    config: Config = preset("simclr-digits", **SMALL, precision="float32")
    run = trained(config, load("toy", place / "data"), place / "runs")
    run.evaluate(load("toy", place / "data"), "cpu", ["validation"])
    records.publish(run.folder, place / "results")
    made = Queue([], ledger(place), "cpu")
    assert made.score(config) == made.score(replace(config, precision="auto")) > 0
    assert made.score(replace(config, precision="bfloat16")) is None
