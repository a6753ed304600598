import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from lib import ROOT, InputError, evaluation, plan, records, training, weights
from lib.config import PRECISIONS, Config, preset
from lib.data import load
from lib.experiments import Ledger
from lib.queue import Queue
from tests.conftest import arrays, wait_for
from tests.test_plan import TEXTS, TUNING

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


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A plan, a data root with toy in it, and folders for runs and results."""
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "toy.npz", **arrays())
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(records, "code", lambda: {"commit": "c", "changed": False, "source": "s"})
    return tmp_path


def queue(place, *listed):
    path = place / "experiments.yml"
    path.write_text(yaml.dump(list(listed), sort_keys=False))
    ledger = Ledger(place / "data", place / "results", place / "runs", "cpu")
    return Queue(plan.read(path), ledger, "cpu", place / "kept")


COUNTS = {"runs": 0, "done": 0, "failed": 0, "running": 0, "missing": 0, "waiting": 0}


def counts(queue):
    return queue.table().drop(columns="hours").set_index("entry").loc["main"].to_dict()


def test_what_is_missing_is_made_shortest_first_and_names_its_entry(place, capsys):
    made = queue(place, MAIN)
    assert counts(made) == COUNTS | {"runs": 4, "missing": 4}
    made.work()
    assert counts(made) == COUNTS | {"runs": 4, "done": 4}
    found = sorted(records.load_all(place / "results"), key=lambda record: record["finished"])
    assert {record["plan"]["version"] for record in found} == {plan.canonical_hash(MAIN)}
    assert all(record["started"] <= record["finished"] for record in found)
    shown = [line for line in capsys.readouterr().out.splitlines() if "minutes" in line]
    assert [line.split("-e")[1][:4] for line in shown] == ["0-s0", "1-s0", "1-s1", "3-s0"]
    assert "4 runs are done, 0 left" in shown[-1]


def test_a_run_that_was_cut_off_keeps_its_entry_and_the_time_it_began(place):
    queue(place, MAIN).work()
    record = next(r for r in records.load_all(place / "results") if r["config"]["epochs"] == 3)
    config, dataset = Config(**record["config"]), load("toy", place / "data")
    plan_of_the_first, folder = {"entry": "main", "version": "a" * 64}, place / "cut"

    def stopped(plan, after):
        """The loop ends by an exception after so many epochs; the next call goes on."""

        def save(*arguments, **options):
            if arguments[2].step == after:
                raise KeyboardInterrupt
            return rotate(*arguments, **options)

        rotate = training.checkpoints.rotate
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "CHECKPOINT_SECONDS", 0)
            patch.setattr(training.checkpoints, "rotate", save)
            with pytest.raises(KeyboardInterrupt):
                training.pretrain(config, dataset, folder, "cpu", progress=False, plan=plan)

    stopped(plan_of_the_first, after=7)
    (saved,) = folder.glob("*/checkpoint.safetensors")
    before = training.checkpoints.read(saved)[1]
    assert before.plan == plan_of_the_first and before.step == 6
    resumed = training.pretrain(
        config, dataset, folder, "cpu", progress=False, plan={"entry": "other", "version": "b"}
    )
    assert (
        resumed.record["plan"] == plan_of_the_first and resumed.record["started"] == before.started
    )
    assert [row["loss"] for row in resumed.curves] == [row["loss"] for row in record["curves"]]


def test_encoders_are_kept_in_half_precision_as_they_were_after_their_epochs(place):
    queue(place, MAIN).work()
    dataset = load("toy", place / "data")
    (last,) = (place / "runs").glob("*-e3-s0-*")
    run = training.load_run(last)
    kept = weights.run(place / "kept" / f"{last.name}.safetensors", place / "data")
    early = weights.run(place / "kept" / f"{last.name}-epoch1.safetensors", place / "data")
    assert early.record["id"] == f"{last.name}-epoch1" and not early.record["evaluation"]
    with torch.no_grad():
        x = torch.randn(4, 3, 12, 12)
        assert torch.allclose(kept.model(x)[0], run.model(x)[0], rtol=1e-2, atol=1e-2)
    # the cosine of three epochs is no cosine of one; the first epoch by hand
    stopped = training.pretrain(
        run.config, dataset, place / "again", "cpu", progress=False, keep=(1, 2)
    )
    theirs = {
        name: value.half().float() if value.dim() > 1 else value
        for name, value in training.checkpoints.read(stopped.folder / "epoch-1.safetensors")[
            2
        ].items()
    }
    for name, value in early.model.state_dict().items():
        assert torch.equal(value, theirs[f"model.{name}"]), name


def test_the_real_encoders_take_less_than_a_mebibyte(place, toy):
    run = training.pretrain(
        preset("simclr-cifar10-resnet9", data="toy", epochs=0), toy, place / "runs", "cpu"
    )
    path = weights.keep(run, place / "kept", toy, 0)
    assert path.stat().st_size < 2**20


def test_trials_decide_what_is_tried_next_and_test_is_never_looked_at(place, monkeypatch):
    grid = {"batch_size": [16], "learning_rate": [1e-3, 2e-3, 4e-3]}
    trials = {
        name: arm | grid | {"delta": arm["delta"] | SMALL} for name, arm in TUNING["trials"].items()
    }
    test, features = load("toy", place / "data").test.images, evaluation.features

    def without_test(model, images, recipe):
        assert images.shape != test.shape or not torch.equal(images, test)
        return features(model, images, recipe)

    monkeypatch.setattr(evaluation, "features", without_test)
    made = queue(place, TUNING | {"trials": trials})
    made.work()
    found = records.load_all(place / "results")
    assert not any(record["evaluation"] for record in found) and all(
        record["validation"] for record in found
    )
    assert records.table(found).empty
    (entry,) = made.entries
    known = plan.stages(entry, made.score)
    assert "longer" in known and len(found) == sum(
        len(c) for stage in known.values() for c in stage.values()
    )
    assert isinstance(plan.choice(entry, "ce", made.score), dict)


def test_settings_wait_for_tuning_and_must_be_what_it_chose(place, monkeypatch):
    arm = {
        "preset": "simclr-digits",
        "delta": SMALL,
        "tuned": "simclr",
        "chosen": None,
        "seeds": {1: 1},
    }
    waiting = queue(place, TUNING, MAIN | {"arms": {"a": arm}})
    assert counts(waiting)["waiting"] == 1
    monkeypatch.setattr(plan, "choice", lambda entry, arm, score: {"learning_rate": 0.2})
    monkeypatch.setattr(Queue, "tuning", {"simclr": None})
    assert waiting.choices() == [
        "main: enter and commit, in the arm a: chosen: {'learning_rate': 0.2}"
    ]
    wrong = queue(place, TUNING, MAIN | {"arms": {"a": arm | {"chosen": {"learning_rate": 0.4}}}})
    with pytest.raises(
        InputError,
        match="the arm a has {'learning_rate': 0.4}, tuning chose {'learning_rate': 0.2}",
    ):
        wrong.work()


def test_the_first_run_of_a_seed_fixes_its_precision(place, monkeypatch):
    auto = MAIN | {
        "arms": {
            name: {
                "preset": f"{name}-digits",
                "delta": SMALL | {"precision": "auto"},
                "seeds": {1: 2},
            }
            for name in ("simclr", "supcon")
        }
    }
    made = queue(place, auto)
    assert {state.config.precision for state in made.states()} == {"float32"}
    dataset = load("toy", place / "data")
    config = preset("supcon-digits", **SMALL, epochs=1, seed=1, precision=PRECISIONS[2])
    (place / "runs" / training.identity(config, dataset)).mkdir(
        parents=True
    )  # begun on another machine
    assert {(state.config.seed, state.config.precision) for state in made.states()} == {
        (0, "float32"),
        (1, "bfloat16"),
    }


def test_a_run_that_diverges_has_failed_for_good_and_takes_no_others_work(place, monkeypatch):
    arms = MAIN["arms"] | {
        "wrong": {
            "preset": "supcon-digits",
            "seeds": {1: 1},
            "delta": SMALL | {"learning_rate": 1e30, "optimiser": "sgd"},
        }
    }
    made = queue(place, MAIN | {"arms": arms})
    made.work()
    assert counts(made) == COUNTS | {"runs": 5, "done": 4, "failed": 1}
    (failed,) = (record for record in records.load_all(place / "results") if "failed" in record)
    assert (
        "became nan in epoch 1" in failed["failed"]
        and failed["plan"]["entry"] == "main"
        and failed["started"]
    )
    (config,) = (state.config for state in made.states() if state.status == "failed")
    assert made.score(config) == 0 and records.table([failed]).empty
    monkeypatch.setattr(
        training, "pretrain", None
    )  # an outcome like any other: it is not run again
    made.work()


def test_what_goes_wrong_around_a_run_is_told_and_takes_no_others_work(place, monkeypatch):
    pretrain = training.pretrain

    def full(config, *arguments, **options):
        if config.epochs == 3:
            raise InputError("can't write runs (No space left on device)")
        return pretrain(config, *arguments, **options)

    monkeypatch.setattr(training, "pretrain", full)
    made = queue(place, MAIN)
    with pytest.raises(InputError, match="main: simclr-digits-e3-s0-.*: can't write runs"):
        made.work()
    assert counts(made) == COUNTS | {"runs": 4, "done": 3, "missing": 1}


def test_the_budget_is_kept(place):
    made = queue(place, MAIN)
    made.work(budget=0)
    assert counts(made)["done"] == 0


def test_data_that_are_not_there_are_told(place):
    made = queue(place, MAIN | {"arms": {"a": {"preset": "simclr-cifar10-slim", "seeds": {1: 1}}}})
    made.work()
    assert counts(made)["missing"] == 1 and "cifar10 is not in" in made.ledger.missing["cifar10"]


# --- several processes

SCRIPT = """
import sys
from pathlib import Path
from lib import plan, queue, records, training
from lib.experiments import Ledger
from lib.queue import Queue
place = Path(sys.argv[1])
queue.POLL_SECONDS = training.CHECKPOINT_SECONDS = 0.2
records.code = lambda: {"commit": "c", "changed": False, "source": "s"}
ledger = Ledger(place / "data", place / "results", place / "runs", "cpu")
Queue(plan.read(place / "experiments.yml"), ledger, "cpu", place / "kept").work()
"""


def started(place):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(place)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.fixture
def one_thread():
    """As the processes below have: with more, sums are added in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_two_processes_share_the_queue_and_one_may_die(place, how):
    arm = {"preset": "simclr-digits", "delta": SMALL, "seeds": {30: 3}}
    watching = queue(place, MAIN | {"arms": {"simclr": arm}})
    first, second = started(place), started(place)
    try:
        wait_for(lambda: counts(watching)["running"] == 2)
        victim = next(line for line in first.stdout if line.startswith("main"))
        folder = place / "runs" / victim.split()[-1]
        wait_for(
            lambda: (folder / "checkpoint-before.safetensors").exists()
        )  # it is in the midst of it
        first.send_signal(how)
        first.wait(30)
        printed = second.communicate(timeout=240)[0]
    finally:
        first.kill()
        second.kill()
    watching.ledger.refresh()
    assert counts(watching)["done"] == 3
    assert (
        len([line for line in printed.splitlines() if "minutes" in line]) == 3
    )  # the survivor made them all
    resumed = training.load_run(folder)
    assert len(resumed.record["segments"]) == 2 and resumed.record["bit_exact"]
    whole = training.pretrain(
        resumed.config, load("toy", place / "data"), place / "whole", "cpu", progress=False
    )
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
