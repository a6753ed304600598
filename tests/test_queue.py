"""The queue: works off the plan, alone or with other processes, whatever happens meanwhile."""

import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib import ROOT, InputError, weights
from lib.config import Config
from lib.data import Dataset, load
from lib.evidence import plan, tables
from lib.evidence.ledger import Ledger
from lib.evidence.queue import Queue
from lib.hardware import choose_precision
from lib.presets import preset
from lib.runs import NUMERICS, checkpoints, identity, packing, records
from lib.runs import load as load_run
from lib.runs.session import begin
from tests.conftest import same_weights, trained, training_of, wait_for
from tests.plans import COMMITTED, TEXTS, TUNING, with_toy_data, written

SMALL = {"data": "toy", "batch_size": 32, "images": None, "knn_every": 0}
MAIN = TEXTS | {
    "name": "main",
    "scale": "plan",
    "wanted": ["knn"],
    "arms": {
        "simclr": {
            "preset": "simclr-digits",
            "delta": SMALL,
            "seeds": {1: 2, 3: 1},
            "keep": {3: [1, 3]},
        },
        "untrained": {"preset": "simclr-digits", "delta": SMALL, "seeds": {0: 1}},
    },
}
THREE_EPOCHS = preset("simclr-digits", **SMALL, epochs=3)


@pytest.fixture
def place(tmp_path) -> Path:
    """A data root with toy in it, and folders for runs and results."""
    return with_toy_data(tmp_path)


@pytest.fixture
def dataset(place) -> Dataset:
    return load("toy", place / "data")


def ledger(place: Path) -> Ledger:
    return Ledger(place / "data", place / "results", place / "runs", "cpu")


def queue(place: Path, *entries: dict) -> Queue:
    return Queue(plan.read(written(place, *entries)), ledger(place), "cpu", place / "kept")


def main_with(arms: dict) -> dict:
    return MAIN | {"arms": arms}


def counts(queue: Queue) -> dict[str, int]:
    """How many runs of the entry "main" there are, and are in each status, zeros left out."""
    row = queue.table().drop(columns="hours").set_index("entry").loc["main"]
    return row[row > 0].to_dict()


def test_what_is_missing_is_made_shortest_first_and_names_its_entry(place, capsys):
    made = queue(place, MAIN)
    assert counts(made) == {"runs": 4, "missing": 4}
    made.work(package=COMMITTED)
    assert counts(made) == {"runs": 4, "done": 4}

    for record in records.load_all(place / "results"):
        assert record["plan"]["version"] == plan.canonical_hash(MAIN)
        assert record["started"] <= record["finished"]
    printed = [line for line in capsys.readouterr().out.splitlines() if "minutes" in line]
    assert [line.split("-e")[1][:4] for line in printed] == ["0-s0", "1-s0", "1-s1", "3-s0"]
    assert "4 runs are done, 0 left" in printed[-1]


def version_of(entry: dict, commit: str) -> plan.Version:
    return plan.Version(entry["name"], plan.canonical_hash(entry), commit, 0, entry)


def test_no_run_is_hidden(place):
    """Planned, done, failed, left out, and made under an earlier version of the entry."""
    before = main_with(MAIN["arms"] | {"simclr": MAIN["arms"]["simclr"] | {"seeds": {1: 3, 3: 1}}})
    versions = [version_of(before, "a" * 40), version_of(MAIN, "b" * 40)]
    queue(place, before).work(package=COMMITTED)
    (file,) = (place / "results").glob("*-e3-s0-*.json")
    record = records.read(file)
    records.write(file, record | {"evaluation": {}, "failed": "the loss became nan"})

    (row,) = queue(place, MAIN).account(versions).to_dict("records")
    assert row == {
        "entry": "main",
        "planned": 4,
        "done": 3,
        "failed": 1,
        "left out": 1,
        "changed since": "5 runs, at bbbbbbb",
    }
    (row,) = queue(place, MAIN).account(None).to_dict("records")
    assert (row["left out"], row["changed since"]) == ("unknown", "unknown")
    (row,) = queue(place, before).account(versions).to_dict("records")
    assert (row["left out"], row["changed since"]) == (0, "-")


def test_every_trial_is_shown_with_what_it_tries(place):
    """Before any run the grid alone is known, without scores."""
    made = queue(place, TUNING)
    tables = made.trials(made.entries[0])
    assert list(tables) == ["simclr", "ce"]
    simclr = tables["simclr"]
    assert list(simclr) == ["stage", "batch_size", "learning_rate", "validation, %"]
    assert len(simclr) == 8
    assert set(simclr["stage"]) == {"grid"}
    assert simclr["validation, %"].isna().all()


def test_only_the_entries_that_are_asked_for_are_worked_on(place):
    entries = plan.read(written(place, MAIN, MAIN | {"name": "other"}))
    some = Queue(entries, ledger(place), "cpu", place / "kept", only=["other"])
    assert list(some.table()["entry"]) == ["other"]


def test_a_run_that_was_cut_off_keeps_its_entry_and_the_time_it_began(place, dataset):
    first = {"entry": "main", "version": "a" * 64}
    folder = place / "runs" / identity(THREE_EPOCHS, dataset)
    session = begin(THREE_EPOCHS, dataset, folder, torch.device("cpu"), plan=first)
    session.progress.started = "2020-02-02T02:02:02Z"
    training = training_of(session, dataset)
    for _ in range(8):  # six steps, and the row of the first epoch after five
        next(training)
    session.save()

    other = {"entry": "other", "version": "b" * 64}
    resumed = trained(THREE_EPOCHS, dataset, place / "runs", plan=other)
    assert resumed.record["plan"] == first
    assert resumed.record["started"] == "2020-02-02T02:02:02Z"
    whole = trained(THREE_EPOCHS, dataset, place / "whole")
    assert same_weights(resumed.model, whole.model)


def test_encoders_are_kept_in_half_precision_as_they_were_after_their_epochs(place, dataset):
    queue(place, MAIN).work(package=COMMITTED)
    (folder,) = (place / "runs").glob("*-e3-s0-*")
    run = load_run(folder)
    kept = weights.run(str(place / "kept" / f"{folder.name}.safetensors"), place / "data")
    with torch.no_grad():
        x = torch.randn(4, 3, 12, 12)
        assert torch.allclose(kept.model(x)[0], run.model(x)[0], rtol=1e-2, atol=1e-2)

    # the cosine of three epochs is no cosine of one; the first epoch by hand
    early = weights.run(str(place / "kept" / f"{folder.name}-epoch1.safetensors"), place / "data")
    assert early.record["id"] == f"{folder.name}-epoch1"
    assert not early.record["evaluation"]
    again = trained(run.config, dataset, place / "again", keep=(1, 2))
    _, _, tensors = checkpoints.read(again.folder / "epoch-1.safetensors")
    for name, value in early.model.state_dict().items():
        assert torch.equal(value, in_half_precision(tensors[f"model.{name}"])), name


def in_half_precision(value: Tensor) -> Tensor:
    """A tensor as a kept file has it: vectors keep their digits."""
    if value.dim() > 1:
        value = value.half()
    return value.float()


def test_a_run_begun_without_keeping_is_published_and_told(place, dataset):
    trained(THREE_EPOCHS, dataset, place / "runs")
    made = queue(place, MAIN)
    with pytest.raises(InputError, match="epoch-1.safetensors is missing: the run was begun with"):
        made.work(package=COMMITTED)
    assert counts(made) == {"runs": 4, "done": 4}


def test_the_real_encoders_take_less_than_a_mebibyte(place, toy):
    config = preset("simclr-cifar10-resnet9", data="toy", epochs=0)
    run = trained(config, toy, place / "runs")
    assert packing.keep(run, place / "kept", toy, 0).stat().st_size < 2**20


def small_tuning() -> dict:
    """An entry of trials on toy, of three rates each."""
    trials = {}
    for name, arm in TUNING["trials"].items():
        grid = {"batch_size": [16], "learning_rate": [1e-3, 2e-3, 4e-3]}
        trials[name] = arm | grid | {"delta": arm["delta"] | SMALL}
    return TUNING | {"trials": trials}


def test_trials_decide_what_is_tried_next_and_have_no_number_of_test(place):
    """That validation does not look at test is a test of the probes."""
    made = queue(place, small_tuning())
    made.work(package=COMMITTED)
    found = records.load_all(place / "results")
    for record in found:
        assert record["validation"]
        assert not record["evaluation"]
        assert not any("test_correct" in row for row in record["curves"])
    assert tables.table(found).empty

    (entry,) = made.entries
    known = plan.stages(entry, made.score)
    assert "longer" in known
    assert len(found) == sum(len(configs) for tried in known.values() for configs in tried.values())
    assert isinstance(plan.choice(entry, "ce", made.score), dict)


def with_scores(made: Queue, dataset: Dataset) -> Queue:
    """The queue with a record of every trial of its tuning; the higher the rate the better."""
    entry = made.tuning["simclr"]
    scored = False
    while not scored:
        scored = True
        for planned in plan.runs(entry, made.score):
            if planned.config is not None and made.score(planned.config) is None:
                made.ledger.add(a_trial(planned.config, dataset))
                scored = False
    return made


def a_trial(config: Config, dataset: Dataset) -> dict:
    """What a record needs to have to be a trial's."""
    correct = round(1e6 * config.learning_rate)
    row = {"features": "h", "probe": "linear", "n": 10**9, "correct": correct}
    return {
        "config": asdict(config),
        "numerics": NUMERICS,
        "data": {"fingerprint": dataset.fingerprint},
        "evaluation": {},
        "validation": [row],
        "views_per_second": None,
    }


def tuned_arm(chosen: dict | None) -> dict:
    arm = {"preset": "simclr-digits", "delta": SMALL, "tuned": "simclr", "chosen": chosen}
    return main_with({"a": arm | {"seeds": {1: 1}}})


def test_settings_wait_for_tuning_and_are_told_when_it_has_chosen(place, dataset):
    waiting = queue(place, small_tuning(), tuned_arm(None))
    assert counts(waiting) == {"runs": 1, "waiting": 1}
    assert waiting.choices() == []
    assert with_scores(waiting, dataset).choices() == [
        "main: enter and commit, in the arm a: chosen: {'batch_size': 16, 'learning_rate': 0.016}"
    ]


def test_settings_must_be_what_tuning_chose(place, dataset):
    wrong = with_scores(queue(place, small_tuning(), tuned_arm({"learning_rate": 0.4})), dataset)
    with pytest.raises(InputError, match="the arm a has {'learning_rate': 0.4}, tuning chose"):
        wrong.work(package=COMMITTED)
    assert not records.load_all(place / "results")

    chosen = {"batch_size": 16, "learning_rate": 0.016}
    right = with_scores(queue(place, small_tuning(), tuned_arm(chosen)), dataset)
    (state,) = (state for state in right.states() if state.planned.entry.name == "main")
    assert (state.status, state.config.learning_rate) == ("missing", 0.016)
    right.work(package=COMMITTED)
    assert counts(right) == {"runs": 1, "done": 1}


def test_the_first_run_of_a_seed_fixes_its_precision(place, dataset):
    arms = {}
    for method in ("simclr", "supcon"):
        delta = SMALL | {"precision": "auto"}
        arms[method] = {"preset": f"{method}-digits", "delta": delta, "seeds": {1: 2}}
    made = queue(place, main_with(arms))
    suits = choose_precision("auto", torch.device("cpu"))
    assert {state.config.precision for state in made.states()} == {suits}

    begun = preset("supcon-digits", **SMALL, epochs=1, seed=1, precision="float16")
    (place / "runs" / identity(begun, dataset)).mkdir(parents=True)  # on another machine
    for state in made.states():
        wanted = {0: suits, 1: "float16"}[state.config.seed]
        assert state.config.precision == wanted


def test_what_is_not_trained_has_float32_and_fixes_no_precision(place, dataset):
    delta = SMALL | {"precision": "auto"}
    arms = {"simclr": {"preset": "simclr-digits", "delta": delta, "seeds": {0: 1, 1: 1}}}
    made = queue(place, main_with(arms))
    untrained, trained = (state.config for state in made.states())
    suits = choose_precision("auto", torch.device("cpu"))
    assert (untrained.precision, trained.precision) == ("float32", suits)

    (place / "runs" / identity(untrained, dataset)).mkdir(parents=True)
    assert [state.config.precision for state in made.states()] == ["float32", suits]

    begun = replace(trained, precision="float16")
    (place / "runs" / identity(begun, dataset)).mkdir(parents=True)
    assert [state.config.precision for state in made.states()] == ["float32", "float16"]


def test_a_run_that_diverges_has_failed_for_good_and_takes_no_others_work(place, capsys):
    delta = SMALL | {"learning_rate": 1e30, "optimiser": "sgd"}
    wrong = {"preset": "supcon-digits", "seeds": {1: 1}, "delta": delta}
    made = queue(place, main_with(MAIN["arms"] | {"wrong": wrong}))
    made.work(package=COMMITTED)
    assert counts(made) == {"runs": 5, "done": 4, "failed": 1}

    (failed,) = (record for record in records.load_all(place / "results") if "failed" in record)
    assert "became nan in epoch 1" in failed["failed"]
    assert failed["plan"]["entry"] == "main"
    assert failed["started"]
    assert tables.table([failed]).empty

    (state,) = (state for state in made.states() if state.status == "failed")
    assert made.score(state.config) == 0
    assert made.score(replace(state.config, precision="auto")) == 0
    score = {"features": "h", "probe": "linear", "n": 4, "correct": 3}
    bfloat16 = failed["config"] | {"precision": "bfloat16"}
    other = {name: failed[name] for name in failed if name != "failed"}
    made.ledger.add(other | {"id": "other", "config": bfloat16, "validation": [score]})
    assert made.score(replace(state.config, precision="auto")) == 0.75

    capsys.readouterr()
    made.work(package=COMMITTED)  # an outcome like any other: it is not run again
    assert not capsys.readouterr().out


def test_what_goes_wrong_around_a_run_is_told_and_takes_no_others_work(place, dataset):
    blocked = place / "runs" / identity(THREE_EPOCHS, dataset)
    blocked.parent.mkdir()
    blocked.write_text("a file where the run's folder should be", encoding="utf-8")

    made = queue(place, MAIN)
    with pytest.raises(InputError, match=f"main: {blocked.name}: can't write"):
        made.work(package=COMMITTED)
    assert counts(made) == {"runs": 4, "done": 3, "missing": 1}


def test_the_budget_is_kept(place, capsys):
    made = queue(place, MAIN)
    made.work(budget=0, package=COMMITTED)
    assert capsys.readouterr().out == "did not fit into 0 minutes: 4 runs\n"
    assert counts(made) == {"runs": 4, "missing": 4}


def test_a_run_that_nothing_tells_the_cost_of_is_timed_before_it_is_begun(place):
    arm = {"preset": "simclr-digits", "delta": SMALL, "seeds": {10**6: 1}}
    made = queue(place, main_with({"long": arm}))
    assert any("an unknown number of hours are left" in line for line in made.in_words())
    made.work(budget=0.5, package=COMMITTED)
    assert counts(made) == {"runs": 1, "missing": 1}
    assert not list((place / "runs").glob("simclr*"))
    assert not any("unknown" in line for line in made.in_words())


def test_data_that_are_not_there_are_told(place):
    simclr = {"preset": "simclr-cifar10-slim", "seeds": {1: 1}}
    made = queue(place, main_with(MAIN["arms"] | {"a": simclr}))
    with pytest.raises(InputError, match="^cifar10 is not in .*data, or not whole$"):
        made.work(package=COMMITTED)
    assert counts(made) == {"runs": 5, "done": 4, "missing": 1}  # what could be done was
    assert made.in_words()[-1].startswith("note: cifar10 is not in")


# --- several processes

SCRIPT = """
import sys
from pathlib import Path
from lib.evidence import plan, queue
from lib.evidence.ledger import Ledger
from lib.runs import session

place = Path(sys.argv[1])
queue.POLL_SECONDS = session.LATEST = 0.2
ledger = Ledger(place / "data", place / "results", place / "runs", "cpu")
entries = plan.read(place / "experiments.yml")
queue.Queue(entries, ledger, "cpu", place / "kept").work(package={"changed": False})
"""


def started(place: Path, output: Path) -> subprocess.Popen:
    """Another process that works off the queue; what it prints goes to a file."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }
    with open(output, "w", encoding="utf-8") as printed:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(place)],
            env=environment,
            stdout=printed,
            stderr=subprocess.DEVNULL,
        )


def lines_of_runs(output: Path) -> list[str]:
    """The lines that begin with the entry's name, as far as they are whole."""
    lines = output.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.startswith("main") and line.endswith("\n")]


@pytest.fixture
def one_thread():
    """As the processes below have: with more, sums are added in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_two_processes_share_the_queue_and_one_may_die(place, dataset, number):
    arm = {"preset": "simclr-digits", "delta": SMALL, "seeds": {30: 3}}
    watching = queue(place, main_with({"simclr": arm}))
    outputs = [place / "first.txt", place / "second.txt"]
    processes = []
    try:
        for output in outputs:
            processes.append(started(place, output))
        first, second = processes
        wait_for(lambda: counts(watching).get("running") == 2)
        wait_for(lambda: lines_of_runs(outputs[0]))
        victim = lines_of_runs(outputs[0])[0]
        folder = place / "runs" / victim.split()[-1]
        # it is in the midst of it
        wait_for(lambda: (folder / checkpoints.BEFORE).exists())
        first.send_signal(number)
        first.wait(30)
        second.wait(240)
    finally:
        for process in processes:
            process.kill()

    printed = outputs[1].read_text(encoding="utf-8")
    watching.ledger.refresh()
    assert counts(watching) == {"runs": 3, "done": 3}
    assert printed.count(" minutes;") == 3  # the survivor made them all
    resumed = load_run(folder)
    assert len(resumed.record["segments"]) == 2
    assert resumed.record["bit_exact"]
    whole = trained(resumed.config, dataset, place / "whole")
    assert same_weights(resumed.model, whole.model)
