"""Runs that are stopped, damaged, raced or out of something: nothing is lost, and nothing is wrong
in silence."""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from lib import (
    ROOT,
    InputError,
    augmentations,
    checkpoints,
    data,
    evaluation,
    records,
    runs,
    sessions,
    training,
)
from lib.checkpoints import BEFORE, NEWEST
from lib.encoders import Model
from tests.conftest import arrays
from tests.test_training import config, pretrain

OF_THE_MACHINE = {"seconds", "views_per_second"}  # what may differ between equal runs


def same(one, other):
    """Whether two runs have the same weights and the same rows, times and rates apart."""
    rows = [
        [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in run.curves]
        for run in (one, other)
    ]
    weights = [run.model.state_dict() for run in (one, other)]
    return rows[0] == rows[1] and all(
        torch.equal(a, b) for a, b in zip(*(w.values() for w in weights))
    )


@contextlib.contextmanager
def stopped_before(step):
    """Training is interrupted before that step, counted from here; every step before has left a
    checkpoint."""
    train_step, count = training.train_step, itertools.count()

    def stopping(*parts):
        if next(count) == step:
            raise KeyboardInterrupt
        return train_step(*parts)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "train_step", stopping)
        patched.setattr(training, "CHECKPOINT_SECONDS", 0)
        yield


@pytest.mark.parametrize(
    "method, optimiser", [("simclr", "adamw"), ("supcon", "sgd"), ("ce", "adamw")]
)
def test_a_run_stopped_before_any_step_goes_on_to_the_same_end(method, optimiser, toy, tmp_path):
    """180 images in batches of 40: the fifth has 20, so the contrast of an epoch is of the batch
    before."""
    chosen = config(
        method, optimiser=optimiser, epochs=2, batch_size=40, drop_last=False, knn_every=1
    )
    whole = pretrain(chosen, toy, tmp_path / "whole")
    assert whole.record["bit_exact"] is True and len(whole.record["segments"]) == 1
    for step in range(10):
        with stopped_before(step):
            pretrain(chosen, toy, tmp_path / str(step))
        cut = pretrain(chosen, toy, tmp_path / str(step))
        assert same(whole, cut), step
        assert [segment["steps"] for segment in cut.record["segments"]] == [[0, step], [step, 10]]


@pytest.mark.parametrize("method", ["simclr", "supcon", "ce"])
def test_a_run_stopped_between_the_last_step_of_an_epoch_and_its_row_goes_on_to_the_same_end(
    method, toy, tmp_path
):
    """The row is made from what the checkpoint kept: sums, and the embeddings of the last full
    batch."""
    chosen = config(method, epochs=2, batch_size=40, drop_last=False, knn_every=1)

    def stopping(*_):
        raise KeyboardInterrupt

    whole = pretrain(chosen, toy, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(evaluation, "knn_on_val", stopping)
        patched.setattr(training, "CHECKPOINT_SECONDS", 0)
        pretrain(chosen, toy, tmp_path / "cut")
    kept = checkpoints.read(tmp_path / "cut" / whole.folder.name / NEWEST)[1]
    assert (
        kept.step == 5
        and kept.seen == 180
        and not kept.curves
        and (kept.z is None) == (method == "ce")
    )
    assert same(whole, pretrain(chosen, toy, tmp_path / "cut"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_waits_for_the_step_and_its_checkpoint(name, toy, tmp_path, monkeypatch):
    number, handled = getattr(signal, name), []
    before = signal.signal(number, lambda *_: (_ for _ in ()).throw(SystemExit(name)))
    try:
        whole, train_step = pretrain(config(), toy, tmp_path / "whole"), training.train_step

        def signalled(*parts):
            result = train_step(*parts)
            handled.append(1)
            if len(handled) == 7:
                os.kill(os.getpid(), number)
            return result

        with monkeypatch.context() as patched, pytest.raises(SystemExit, match=name):
            patched.setattr(training, "train_step", signalled)
            pretrain(config(), toy, tmp_path / "cut")
        folder = next((tmp_path / "cut").iterdir())
        assert checkpoints.read(folder / NEWEST)[1].step == 7
        assert json.loads((folder / sessions.ENDED).read_text())["step"] == 7
        cut = pretrain(config(), toy, tmp_path / "cut")
        assert same(whole, cut) and not (folder / sessions.ENDED).exists()
        assert cut.record["segments"][0]["ended"] == f"SystemExit: {name}"
        assert signal.getsignal(number) not in (
            signal.SIG_DFL,
            signal.default_int_handler,
        )  # ours, put back
    finally:
        signal.signal(number, before)


RUN = """
import signal, sys, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from lib import data, training
from tests.conftest import arrays
from tests.test_training import config
torch.set_num_threads(1)
train_step = training.train_step
def told(*parts):
    result = train_step(*parts)
    print("step", flush=True)
    return result
training.train_step = told
toy = data.build("toy", **arrays())
training.pretrain(config(epochs=400), toy, sys.argv[1], "cpu", progress=False)
print("done", flush=True)
"""


@pytest.mark.parametrize(
    "number, status", [(signal.SIGKILL, -9), (signal.SIGTERM, -15), (signal.SIGINT, 1)]
)
def test_a_killed_process_leaves_its_lock_and_its_last_checkpoint(number, status, toy, tmp_path):
    """Real processes: their signals, their death, the lock that the system takes back."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, tmp_path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.PIPE,
    )
    for _ in range(12):
        assert process.stdout.readline() == "step\n"
    folder = next(tmp_path.iterdir())
    with pytest.raises(InputError, match=f"another process is writing .*{folder.name}; try again"):
        training.pretrain(config(epochs=400), toy, tmp_path, "cpu", progress=False, wait=False)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == status
    step = checkpoints.read(folder / NEWEST)[1].step
    assert (step == 0) if number == signal.SIGKILL else (12 <= step < 2000)
    with stopped_before(0):  # the lock is free
        pretrain(config(epochs=400), toy, tmp_path)
    assert checkpoints.read(folder / NEWEST)[1].step == step


def half_done(toy, tmp_path, step=7):
    """A run stopped at a step, with two generations of checkpoints; its folder."""
    with stopped_before(step):
        pretrain(config(), toy, tmp_path)
    return tmp_path / runs.identity(config(), toy)


def damage(content, how):
    return {
        "emptied": b"",
        "truncated": content[:-1],
        "halved": content[: len(content) // 2],
        "flipped": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        "header": content[:60] + bytes([content[60] ^ 1]) + content[61:],
        "length": bytes([content[0] ^ 1]) + content[1:],
    }[how]


@pytest.mark.parametrize("how", ["emptied", "truncated", "halved", "flipped", "header", "length"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(how, toy, tmp_path):
    whole = pretrain(config(), toy, tmp_path / "whole")
    folder = half_done(toy, tmp_path / "cut")
    assert [checkpoints.read(folder / name)[1].step for name in (NEWEST, BEFORE)] == [7, 6]
    (folder / NEWEST).write_bytes(damage((folder / NEWEST).read_bytes(), how))
    with (
        pytest.warns(
            UserWarning, match=rf"{NEWEST} is missing or damaged .*going on from .*{BEFORE}"
        ),
        stopped_before(0),
    ):
        pretrain(config(), toy, tmp_path / "cut")
    assert (
        not (folder / NEWEST).exists() and (folder / BEFORE).exists()
    )  # the next one will not replace the whole
    cut = pretrain(config(), toy, tmp_path / "cut")
    assert same(whole, cut) and cut.record["segments"][0]["steps"] == [0, 6]


def test_where_no_checkpoint_is_whole_both_are_named(toy, tmp_path):
    folder = half_done(toy, tmp_path)
    for name in (NEWEST, BEFORE):
        (folder / name).write_bytes(b"\x08" * 40)
    with pytest.raises(
        InputError, match=rf"{NEWEST} is .*; .*{BEFORE} is .*; delete .* to train anew"
    ):
        pretrain(config(), toy, tmp_path)
    (folder / NEWEST).unlink()  # as between the two renames
    (folder / BEFORE).unlink()
    assert pretrain(config(), toy, tmp_path).curves


def test_a_whole_file_in_another_ones_place_is_refused(toy, tmp_path):
    """Of the same configuration: a model is no checkpoint, a checkpoint no model, and other data
    another run."""
    folder, done = (
        half_done(toy, tmp_path / "cut"),
        pretrain(config(), toy, tmp_path / "done").folder,
    )
    other = pretrain(config(), data.build("toy", **arrays(seed=1)), tmp_path / "other").folder
    whole = (folder / NEWEST).read_bytes()
    (folder / NEWEST).write_bytes((done / "model.safetensors").read_bytes())
    with pytest.warns(
        UserWarning, match=f"{NEWEST} is not what its name says: it holds the model of {done.name}"
    ):
        assert same(pretrain(config(), toy, tmp_path / "cut"), training.load_run(done))
    for content in (whole, (other / "model.safetensors").read_bytes()):
        (done / "model.safetensors").write_bytes(content)
        with pytest.raises(
            InputError, match="is not what its name says: it holds (all|the model) of simclr"
        ):
            training.load_run(done)


def test_every_bit_of_a_finished_model_is_checked(toy, tmp_path):
    run = pretrain(config(epochs=0), toy, tmp_path)
    path = run.folder / "model.safetensors"
    content, draw = path.read_bytes(), torch.Generator().manual_seed(0)
    header = 8 + int.from_bytes(content[:8], "little")
    places = torch.cat(
        [
            torch.arange(12),
            torch.randint(header, (80,), generator=draw),
            torch.randint(header, len(content), (20,), generator=draw),
        ]
    )
    for place, bit in zip(places.tolist(), itertools.cycle(range(8))):
        path.write_bytes(
            content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
        )
        with pytest.raises(InputError, match="model.safetensors is missing or damaged"):
            training.load_run(run.folder)
    path.write_bytes(content)
    assert same(training.load_run(run.folder), run)


def test_a_finished_run_without_a_checksum_is_read_with_a_warning(toy, tmp_path):
    """As earlier versions wrote it; their records have no segments either."""
    from safetensors.torch import save

    run = pretrain(config(epochs=1), toy, tmp_path)
    metadata = {"config": json.dumps(run.record["config"]), "curves": json.dumps(run.curves)}
    weights = {
        f"model.{name}": value.contiguous() for name, value in run.model.state_dict().items()
    }
    (run.folder / "model.safetensors").write_bytes(save(weights, metadata))
    older = {k: v for k, v in run.record.items() if k not in ("segments", "bit_exact", "recipe")}
    records.write(run.folder / "record.json", older)
    with pytest.warns(UserWarning, match="written without a checksum"):
        assert same(training.load_run(run.folder), run)
    assert (records.table([older]).protocol == records.table([run.record]).protocol).all()


def test_a_full_disk_at_any_write_loses_nothing(toy, tmp_path, monkeypatch):
    whole = pretrain(config(epochs=1), toy, tmp_path / "whole")
    fsync, failed = os.fsync, 0
    for write in range(24):
        writes = itertools.count()

        def full(descriptor, write=write, writes=writes):
            if next(writes) == write:
                raise OSError(28, "No space left on device")
            return fsync(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            patched.setattr(training, "CHECKPOINT_SECONDS", 0)
            try:
                pretrain(config(epochs=1), toy, tmp_path / str(write))
            except InputError as error:
                assert "No space left" in str(error)
                failed += 1
        assert same(pretrain(config(epochs=1), toy, tmp_path / str(write)), whole)
        assert not [
            p for p in (tmp_path / str(write)).rglob("*") if "." + str(os.getpid()) in p.name
        ]
    assert failed >= 8


def test_the_second_of_two_waits_and_returns_what_the_first_made(toy, tmp_path, monkeypatch, capfd):
    train, trained, entered, leave = training._train, [], threading.Event(), threading.Event()

    def slow(*parts):
        trained.append(1)
        entered.set()
        assert leave.wait(60)
        train(*parts)

    monkeypatch.setattr(training, "_train", slow)
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(pretrain(config(), toy, tmp_path)))
        for _ in range(2)
    ]
    threads[0].start()
    assert entered.wait(60)
    threads[1].start()
    while "waiting until it is done" not in (said := capfd.readouterr().err):
        time.sleep(0.05)
    leave.set()
    for thread in threads:
        thread.join(60)
    assert trained == [1] and made[0].record == made[1].record and said.count("\n") == 1


def test_two_evaluations_keep_each_others_results(toy, tmp_path):
    run = pretrain(config(epochs=0), toy, tmp_path)
    one, other = training.load_run(run.folder), training.load_run(run.folder)
    training.evaluate(one, toy, "cpu", ("knn",))
    training.evaluate(other, toy, "cpu", ("linear",))
    assert set(records.read(run.folder / "record.json")["evaluation"]["h"]) == {"knn", "linear"}


def test_the_record_says_how_sessions_ended_and_whether_it_is_exact(toy, tmp_path, monkeypatch):
    folder = half_done(toy, tmp_path)
    note = json.loads((folder / sessions.ENDED).read_text())
    assert note["ended"] == "KeyboardInterrupt" and note["step"] == 7
    (folder / sessions.ENDED).write_text(
        json.dumps(note | {"step": 3})
    )  # of an earlier session: says nothing
    device = records.device
    monkeypatch.setattr(records, "device", lambda d: device(d) | {"threads": 99})
    record = pretrain(config(), toy, tmp_path).record
    one, two = record["segments"]
    assert one["ended"] == sessions.WITHOUT_A_WORD and "ended" not in two and one["seconds"] > 0
    assert (
        two["device"]["threads"] == 99
        and two["versions"]["torch"] == torch.__version__.split("+")[0]
    )
    assert record["bit_exact"] is False and re.fullmatch(
        r"segments 1 and 2 differ in threads \(\d+, then 99\): exact up to rounding",
        record["inexact_because"],
    )
    gpu = [one | {"deterministic": False}, one]
    assert "deterministic mode" in sessions.inexact(gpu) and sessions.inexact(gpu[:1]) is None


def test_what_is_not_finite_is_never_kept(toy, tmp_path, monkeypatch):
    train_step, count = training.train_step, itertools.count()

    def spoilt(config, model, *parts):
        loss, z = train_step(config, model, *parts)
        if next(count) == 4:
            next(model.parameters()).data[0] = float("inf")  # the loss before it is still finite
        return loss, z

    monkeypatch.setattr(training, "train_step", spoilt)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    with pytest.raises(
        InputError, match=r"model\.encoder.* is not finite after step 5; lower learning_rate"
    ):
        pretrain(config(), toy, tmp_path)
    folder = next(tmp_path.iterdir())
    assert checkpoints.read(folder / NEWEST)[1].step == 4
    assert (
        "is not finite after step 5" in json.loads((folder / sessions.ENDED).read_text())["ended"]
    )


@pytest.mark.parametrize("method", ["simclr", "supcon"])
def test_collapsed_embeddings_stop_a_run_and_healthy_ones_do_not(
    method, toy, tmp_path, monkeypatch
):
    def pulled(config, z, labels):  # alignment alone: chapter 10's collapse
        return (
            torch.nn.functional.normalize(z, dim=-1).diff(dim=0).square().sum()
            + torch.nn.functional.normalize(z, dim=-1).flatten(0, 1).var(0).sum() * 1000
        )

    assert pretrain(config(method, epochs=4), toy, tmp_path).curves[-1]["negative"] < 0.99
    monkeypatch.setattr(training, "loss_of", pulled)
    with pytest.raises(
        InputError, match="collapsed: different images have a mean cosine of (1.0|0.999)"
    ):
        pretrain(config(method, epochs=30, learning_rate=0.02), toy, tmp_path)


def test_running_out_of_memory_names_a_batch(toy, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(training, "train_step", full)
    needed = Model("slim").memory(12) * 2
    for free, batch in ((None, 16), (10**12, 16), (9 * needed, 8), (5 * needed, 4), (0, 2)):
        monkeypatch.setattr(sessions, "free_memory", lambda device, free=free: free)
        with pytest.raises(
            InputError, match=f"out of memory on cpu with batches of 32 .*batch_size={batch} would"
        ):
            pretrain(config(), toy, tmp_path)
    assert sessions.out_of_memory(MemoryError()) and not sessions.out_of_memory(
        RuntimeError("shapes differ")
    )


def test_a_real_allocator_that_fails_is_told_in_a_sentence(toy, tmp_path):
    """More than the machine has, asked of PyTorch's own allocator."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52)
    assert sessions.out_of_memory(caught.value)


def test_data_that_changed_in_the_midst_of_a_run_is_named(toy, tmp_path):
    half_done(toy, tmp_path)
    other = data.build("toy", **arrays(seed=1))
    with pytest.raises(
        InputError,
        match=f"toy has changed since .* its fingerprint was {toy.fingerprint[:16]} and is "
        f"{other.fingerprint[:16]}; restore the data",
    ):
        pretrain(config(), other, tmp_path)
    assert pretrain(config(seed=1), other, tmp_path).curves  # another run is another run
    assert pretrain(config(), toy, tmp_path).curves
    assert pretrain(config(), other, tmp_path).curves  # the first is done: nothing is half done


def test_a_recipe_of_other_content_is_another_run(toy, tmp_path, monkeypatch):
    published = {record["id"]: record for record in records.load_all()}
    for record in published.values():  # identities stay as they were published
        chosen = runs.Config(**record["config"])
        known = replace(toy, name=record["data"]["name"])
        known.__dict__["fingerprint"] = record["data"]["fingerprint"]
        assert runs.identity(chosen, known) == record["id"]
    before = runs.identity(config(), toy)
    changed = replace(augmentations.RECIPES["supcontrast"], greyscale=0.3)
    one = pretrain(config(epochs=0), toy, tmp_path)
    monkeypatch.setitem(augmentations.RECIPES, "supcontrast", changed)
    two = pretrain(config(epochs=0), toy, tmp_path)
    assert runs.identity(config(), toy) != before and one.record["id"] != two.record["id"]
    for run in (one, two):
        training.evaluate(run, toy, "cpu", ("knn",))
    assert len(set(records.table([one.record, two.record]).protocol)) == 2
