"""Runs that are stopped, damaged, raced or out of something: nothing is lost, nothing silent."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from torch import Tensor

from lib import ROOT, Diverged, InputError, augmentations, data
from lib.data.dataset import Dataset
from lib.evidence import tables
from lib.interruptions import SIGNALS
from lib.methods import METHODS
from lib.runs import checkpoints, identity, load, records, session
from lib.runs.checkpoints import BEFORE, NEWEST
from lib.runs.session import ENDED, WITHOUT_A_WORD, inexact, only_writer
from lib.runs.trouble import estimated_batch, out_of_memory, refuse_collapse
from lib.training import Progress
from tests.conftest import (
    arrays,
    begun,
    by_loss,
    hungry,
    same,
    sessions_of,
    small,
    stopped,
    trained,
    training_of,
    wait_for,
)

# 180 images in batches of 40: the fifth has 20, so an epoch's contrast is of the batch before
FIVE_STEPS = {"epochs": 2, "batch_size": 40, "drop_last": False}
SCALER = torch.amp.GradScaler("cpu", enabled=False)
OPTIMISERS = {"simclr": "adamw", "supcon": "sgd", "ce": "adamw"}


def step_of(folder: Path, name: str = NEWEST) -> int:
    """How far a checkpoint is."""
    return checkpoints.read(folder / name)[1].step


def ending_of(folder: Path) -> dict:
    """What the last session that did not finish left as its note."""
    return json.loads((folder / ENDED).read_text(encoding="utf-8"))


@pytest.mark.parametrize("method, optimiser", OPTIMISERS.items())
def test_a_run_stopped_anywhere_goes_on_to_the_same_end(method, optimiser, toy, tmp_path):
    """Before its first step, after any step, and between an epoch's last step and its row."""
    config = small(method, optimiser=optimiser, **FIVE_STEPS)
    whole = trained(config, toy, tmp_path / "whole")
    assert whole.record["bit_exact"] is True
    assert sessions_of(whole) == [[0, 10]]

    for taken in range(13):  # ten steps and two rows
        runs = tmp_path / str(taken)
        cut = begun(config, toy, runs)
        for _ in itertools.islice(training_of(cut, toy), taken):
            pass
        cut.save()
        step = cut.progress.step
        run = trained(config, toy, runs)
        assert same(whole, run), taken
        assert sessions_of(run) == [[0, step], [step, 10]]


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_keeps_what_the_row_is_made_of(method, toy, tmp_path):
    """Sums, and the embeddings of the last full batch: the fifth step's were fewer."""
    config = small(method, **FIVE_STEPS)
    cut = stopped(config, toy, tmp_path, steps=5)
    _, kept, _ = checkpoints.read(cut.folder / NEWEST)
    assert kept.step == 5
    assert kept.seen == 180
    assert kept.curves == []
    assert 0 < kept.mean_loss() < 10
    if method == "ce":
        assert kept.z is None
    else:
        assert kept.z.shape == (2, 40, 128)
    assert (kept.labels is not None) == (method == "supcon")


@pytest.fixture
def exiting() -> Iterator[Callable]:
    """SIGTERM and SIGINT raise SystemExit with their name."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(signal.Signals(number).name)

    before = {}
    for number in SIGNALS:
        before[number] = signal.signal(number, leave)
    yield leave
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_for_the_step_and_its_checkpoint(number, toy, tmp_path, exiting, capfd):
    cut = begun(small(), toy, tmp_path)
    with pytest.raises(SystemExit, match=number.name), cut.interruptions:
        for _ in training_of(cut, toy):
            if cut.progress.step == 7:
                os.kill(os.getpid(), number)
            cut.after_step()
    assert cut.progress.step == step_of(cut.folder) == 7
    ending = ending_of(cut.folder)
    assert ending["ended"] == f"stopped by {number.name}"
    assert ending["step"] == 7
    assert signal.getsignal(number) == exiting  # put back
    told = "stopped by SIGTERM after step 7; the same command goes on" in capfd.readouterr().err
    assert told == (number == signal.SIGTERM)  # Ctrl-C is told by the command line

    run = trained(small(), toy, tmp_path)
    assert not (cut.folder / ENDED).exists()
    assert run.record["segments"][0]["ended"] == f"stopped by {number.name}"


def test_the_second_signal_does_not_wait(toy, tmp_path, exiting):
    cut = begun(small(), toy, tmp_path)
    with cut.interruptions:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(SystemExit, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_that_comes_after_the_last_step_is_not_lost(toy, tmp_path, exiting):
    cut = begun(small(), toy, tmp_path)
    with pytest.raises(SystemExit, match="SIGTERM"), cut.interruptions:
        os.kill(os.getpid(), signal.SIGTERM)
        saved = cut.progress.step
    assert saved == 0


@pytest.mark.parametrize(
    "seconds, megabytes, pause",
    [
        (0.01, 1, 60),  # a slim encoder: every minute
        (0.4, 138, 248),  # ResNet-18: two gigabytes an hour
        (3, 10, 150),  # a slow disk: a fiftieth of the time
        (2, 600, 900),  # a quarter of an hour at most
        (60, 1, 900),
    ],
)
def test_checkpoints_are_as_rare_as_they_are_dear(seconds, megabytes, pause):
    after = session.pause_after(seconds, megabytes * 10**6)
    assert after == pytest.approx(pause, abs=1)
    if pause < session.LATEST:
        assert seconds / (seconds + after) < 0.02
        assert megabytes * 3600 / after <= 2000


def test_training_goes_on_while_a_checkpoint_is_written(toy, tmp_path):
    config = small()
    whole = trained(config, toy, tmp_path / "whole")
    cut = begun(config, toy, tmp_path / "runs")
    training = training_of(cut, toy)
    disk_is_free = threading.Event()
    cut.writer.submit(disk_is_free.wait)

    next(training)
    cut.saved -= 61
    cut.after_step()
    for _ in range(3):
        next(training)
        cut.after_step()
    assert cut.progress.step == 4
    assert step_of(cut.folder) == 0

    disk_is_free.set()
    cut.written()
    assert step_of(cut.folder) == 1
    run = trained(config, toy, tmp_path / "runs")
    assert sessions_of(run)[0] == [0, 1]
    assert same(whole, run)


def test_a_checkpoint_that_could_not_be_written_is_told_and_tried_again(toy, tmp_path, capfd):
    cut = begun(small(), toy, tmp_path)
    training = training_of(cut, toy)
    shutil.rmtree(cut.folder)
    cut.folder.write_bytes(b"a file where the folder was")

    next(training)
    cut.saved -= 61
    cut.after_step()
    wait([cut.writing])
    next(training)
    cut.after_step()
    why = f"can't write {cut.folder}.*: free space there, .*then the same command goes on\n"
    assert re.search(f"note: training goes on .*{why}", capfd.readouterr().err)
    with pytest.raises(InputError, match=why.strip()):
        cut.save()  # as at the end

    cut.folder.unlink()
    next(training)
    cut.saved -= 61
    cut.after_step()
    cut.written()
    assert step_of(cut.folder) == 3
    assert "note" not in capfd.readouterr().err


def test_a_checkpoint_that_fails_after_a_signal_is_told(toy, tmp_path, exiting, capfd):
    """The process ends by the signal, so nobody else would say why the step was lost."""
    cut = begun(small(), toy, tmp_path)
    shutil.rmtree(cut.folder)
    cut.folder.write_bytes(b"a file where the folder was")
    with pytest.raises(SystemExit, match="SIGTERM"), cut.interruptions:
        os.kill(os.getpid(), signal.SIGTERM)
        cut.after_step()
    assert f"can't write {cut.folder}" in capfd.readouterr().err


def test_a_checkpoint_says_when_the_next_is_due(toy, tmp_path, monkeypatch):
    cut = begun(small(), toy, tmp_path)
    training = training_of(cut, toy)

    def step_and_saved() -> int:
        next(training)
        cut.after_step()
        cut.written()
        return step_of(cut.folder)

    assert cut.pause == 60 and step_and_saved() == 0
    cut.saved -= 61
    assert step_and_saved() == 2

    size = (cut.folder / NEWEST).stat().st_size
    monkeypatch.setattr(session, "BYTES_AN_HOUR", 36 * size)
    cut.save()
    written = (cut.folder / NEWEST).stat().st_size  # some bytes more or less than the one before
    assert cut.pause == pytest.approx(100 * written / size)
    cut.saved -= 99
    assert step_and_saved() == 2
    cut.saved -= 2
    assert step_and_saved() == 4


RUN = """
import sys, torch
from pathlib import Path
from lib import data
from lib.runs import session
from tests.conftest import arrays, small, trained
torch.set_num_threads(1)
session.LATEST = 0
trained(small(epochs=400), data.build("toy", **arrays()), Path(sys.argv[1]))
"""


@pytest.mark.parametrize(
    "number, status, ending",
    [
        (signal.SIGKILL, -9, WITHOUT_A_WORD),
        (signal.SIGTERM, -15, "stopped by SIGTERM"),
        (signal.SIGINT, 1, "KeyboardInterrupt"),
    ],
)
def test_a_killed_process_leaves_its_lock_and_its_last_checkpoint(
    number, status, ending, toy, tmp_path
):
    """Real processes: their signals, their death, the lock that the system takes back."""
    config = small(epochs=400)
    folder = tmp_path / identity(config, toy)

    def on_the_way() -> bool:
        try:
            return step_of(folder) >= 12
        except InputError:  # not yet there, or between two renames
            return False

    process = subprocess.Popen(
        [sys.executable, "-c", RUN, tmp_path],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    try:
        wait_for(on_the_way, seconds=120)
        why = f"another process is writing .*{folder.name}; try again"
        with pytest.raises(InputError, match=why):
            trained(config, toy, tmp_path, wait=False)
        process.send_signal(number)
        process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == status
    left = begun(config, toy, tmp_path)
    assert 12 <= left.progress.step < 2000
    assert left.progress.segments[0]["ended"] == ending
    with only_writer(folder, wait=False):
        pass  # the lock is free


DAMAGES = {
    "emptied": lambda content: b"",
    "truncated": lambda content: content[:-1],
    "halved": lambda content: content[: len(content) // 2],
    "flipped": lambda content: flipped(content, len(content) - 5),
    "header": lambda content: flipped(content, 60),
    "length": lambda content: flipped(content, 0),
}


def flipped(content: bytes, place: int, bit: int = 0) -> bytes:
    """The content with a bit of the byte at that place changed."""
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(how, toy, tmp_path):
    runs = tmp_path / "cut"
    folder = stopped(small(), toy, runs, steps=7).folder
    newest, before = folder / NEWEST, folder / BEFORE
    assert step_of(folder) == 7
    assert step_of(folder, BEFORE) == 6

    newest.write_bytes(DAMAGES[how](newest.read_bytes()))
    why = rf"{NEWEST} is damaged .*going on from .*{BEFORE}"
    with pytest.warns(UserWarning, match=why):
        assert begun(small(), toy, runs).progress.step == 6
    assert not newest.exists()  # or it would take the whole one's place
    assert before.exists()

    run = trained(small(), toy, runs)
    assert same(run, trained(small(), toy, tmp_path / "whole"))
    assert sessions_of(run)[0] == [0, 6]


def test_where_no_checkpoint_is_whole_both_are_named(toy, tmp_path):
    folder = stopped(small(), toy, tmp_path, steps=2).folder
    for name in (NEWEST, BEFORE):
        (folder / name).write_bytes(b"\x08" * 40)
    why = rf"{NEWEST} is .*; .*{BEFORE} is .*; delete .* to train anew"
    with pytest.raises(InputError, match=why):
        trained(small(), toy, tmp_path)

    (folder / NEWEST).unlink()  # as between the two renames
    (folder / BEFORE).unlink()
    assert trained(small(), toy, tmp_path).curves


def of_a_newer_version(content: bytes) -> bytes:
    """A sealed file whose configuration has one field more."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header["__metadata__"]
    config = json.loads(metadata["config"]) | {"ema": 0.99}
    changed = metadata | {"config": json.dumps(config), "sha256": checkpoints.UNSEALED}
    return checkpoints.sealed(serialise(deserialise(content), changed))


def contents(folder: Path) -> dict[str, bytes]:
    """The checkpoints that a run's folder has."""
    return {path.name: path.read_bytes() for path in folder.glob("checkpoint*.safetensors")}


@pytest.mark.parametrize("names", [(NEWEST,), (NEWEST, BEFORE)])
def test_checkpoints_of_a_newer_version_stay(names, toy, tmp_path):
    """The newest alone, and both: an older one takes no place, and nothing is to be deleted."""
    folder = stopped(small(), toy, tmp_path, steps=7).folder
    for name in names:
        (folder / name).write_bytes(of_a_newer_version((folder / name).read_bytes()))
    left = contents(folder)
    why = f"{NEWEST} holds what can't be read here .unknown field 'ema'.*: update the package, or"
    with pytest.raises(InputError, match=why) as refused:
        trained(small(), toy, tmp_path)
    assert "delete" not in str(refused.value)
    assert contents(folder) == left


def test_a_newer_versions_checkpoint_stays_beside_a_damaged_one(toy, tmp_path):
    folder = stopped(small(), toy, tmp_path, steps=7).folder
    (folder / NEWEST).write_bytes(b"")
    (folder / BEFORE).write_bytes(of_a_newer_version((folder / BEFORE).read_bytes()))
    left = contents(folder)
    with pytest.raises(InputError, match=f"{NEWEST} is damaged .*; .*{BEFORE} .*update the pack"):
        trained(small(), toy, tmp_path)
    assert contents(folder) == left


@pytest.mark.skipif(sys.platform != "linux", reason="a file of Linux's that can't be read")
def test_a_checkpoint_that_can_not_be_read_now_stays(toy, tmp_path):
    """As on a network's disk, for a moment: the memory of a process has no first byte."""
    folder = stopped(small(), toy, tmp_path, steps=7).folder
    kept = folder / "kept"
    (folder / NEWEST).rename(kept)
    (folder / NEWEST).symlink_to("/proc/self/mem")
    with pytest.raises(InputError, match=f"can't read .*{NEWEST} .Input/output error.: try again"):
        trained(small(), toy, tmp_path)
    assert (folder / NEWEST).is_symlink()

    kept.replace(folder / NEWEST)
    assert sessions_of(trained(small(), toy, tmp_path))[0] == [0, 7]


def test_a_checkpoint_for_which_there_is_no_memory_is_not_damaged(toy, tmp_path):
    folder = stopped(small(), toy, tmp_path, steps=7).folder

    class Hungry(torch.nn.Module):
        def load_state_dict(self, *_: object, **__: object) -> None:
            torch.empty(2**52)

    why = f"can't read .*{NEWEST} .out of memory.: free some"
    with pytest.raises(InputError, match=why) as refused:
        checkpoints.restore(folder / NEWEST, small(), folder.name, Hungry(), None, SCALER)
    assert not isinstance(refused.value, checkpoints.Damaged)


def other_toy() -> Dataset:
    """Of the same name and size."""
    return data.build("toy", **arrays(seed=1))


def test_a_whole_file_in_another_ones_place_is_refused(toy, tmp_path):
    """Of one configuration: a model is no checkpoint; a checkpoint, or other data's, no model.

    It is somebody's work, and stays.
    """
    runs = tmp_path / "cut"
    newest = stopped(small(), toy, runs, steps=7).folder / NEWEST
    checkpoint = newest.read_bytes()
    done = trained(small(), toy, tmp_path / "done")
    model = done.folder / "model.safetensors"
    others = trained(small(), other_toy(), tmp_path / "other").folder / model.name

    newest.write_bytes(model.read_bytes())
    why = f"{NEWEST} is not what its name says: it holds the model of {done.folder.name}; move it"
    with pytest.raises(InputError, match=why):
        trained(small(), toy, runs)
    newest.rename(tmp_path / "moved.safetensors")
    assert same(trained(small(), toy, runs), done)

    for content in (checkpoint, others.read_bytes()):
        model.write_bytes(content)
        why = "is not what its name says: it holds (all|the model) of simclr.*or restore the file"
        with pytest.raises(InputError, match=why):
            load(done.folder)


def test_every_bit_of_a_finished_model_is_checked(toy, tmp_path):
    run = trained(small(epochs=0), toy, tmp_path)
    path = run.folder / "model.safetensors"
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    draw = torch.Generator().manual_seed(0)
    of_header = torch.randint(header, (80,), generator=draw)
    of_all = torch.randint(len(content), (20,), generator=draw)
    places = torch.cat([torch.arange(12), of_header, of_all])
    for place, bit in zip(places.tolist(), itertools.cycle(range(8))):
        path.write_bytes(flipped(content, place, bit))
        with pytest.raises(InputError, match="model.safetensors is damaged"):
            load(run.folder)

    path.write_bytes(content)
    assert same(load(run.folder), run)


def protocols(evaluated: list[dict]) -> set[str]:
    """Of what records found."""
    return set(tables.table(evaluated).protocol)


def test_a_finished_run_without_a_checksum_is_read_with_a_warning(toy, tmp_path):
    """As earlier versions wrote it; their records have no segments either."""
    run = trained(small(epochs=1), toy, tmp_path)
    metadata = {
        "config": json.dumps(run.record["config"]),
        "curves": json.dumps(run.curves),
    }
    weights = {}
    for name, x in run.model.state_dict().items():
        weights[f"model.{name}"] = x.contiguous()
    (run.folder / "model.safetensors").write_bytes(serialise(weights, metadata))

    older = dict(run.record)
    for field in ("segments", "bit_exact", "recipe"):
        del older[field]
    records.write(run.folder / "record.json", older)
    with pytest.warns(UserWarning, match="written without a checksum"):
        assert same(load(run.folder), run)
    assert protocols([older]) == protocols([run.record])


def test_what_killed_processes_had_begun_to_write_is_removed(toy, tmp_path):
    folder = stopped(small(), toy, tmp_path, steps=1).folder
    for name in (".checkpoint.safetensors.coming.4321", ".record.json.77"):
        (folder / name).write_bytes(b"half")
    trained(small(), toy, tmp_path)
    left = sorted(path.name for path in folder.iterdir())
    assert left == [".lock", "model.safetensors", "record.json"]


def full_at(write: int) -> Callable[[int], None]:
    """An fsync that fails once, when a file is flushed that many files after now."""
    fsync = os.fsync
    flushes = itertools.count()

    def flush(descriptor: int) -> None:
        if next(flushes) == 2 * write:  # after each file its folder is flushed
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    return flush


def test_a_full_disk_at_any_write_loses_nothing(toy, tmp_path, monkeypatch):
    """And ``pretrain`` goes on to the same end from wherever it was, with its looks on the way.

    On the way there is another try, at the start and the end an error.
    """
    monkeypatch.setattr(session, "LATEST", 0)
    config = small(knn_every=1, **FIVE_STEPS)
    whole = trained(config, toy, tmp_path / "whole")
    for write in range(16):  # at the start, each step, each row, the end; the model, the record
        runs = tmp_path / str(write)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full_at(write))
            may_end = contextlib.nullcontext()
            if write in (0, 13, 14, 15):
                may_end = pytest.raises(InputError, match="No space left")
            with may_end:
                trained(config, toy, runs)
        assert same(trained(config, toy, runs), whole)
        assert not list(runs.rglob(f"*.{os.getpid()}"))


def test_folders_that_cannot_be_flushed_stop_no_run(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "LATEST", 0)
    fsync = os.fsync
    refused = []

    def flush(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            refused.append(descriptor)
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    config = small(**FIVE_STEPS)
    whole = trained(config, toy, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", flush)
        run = trained(config, toy, tmp_path / "runs")
    assert len(refused) > 10  # of each checkpoint, of the model and of the record
    assert same(run, whole)
    assert same(load(run.folder), whole)


def test_of_two_that_wait_one_trains_and_the_other_returns_what_it_made(toy, tmp_path, capfd):
    made = []
    lines = []

    def train() -> None:
        made.append(trained(small(), toy, tmp_path))

    def both_wait() -> bool:
        lines.append(capfd.readouterr().err)
        return "".join(lines).count("waiting until it is done (Ctrl-C leaves)\n") == 2

    threads = [threading.Thread(target=train), threading.Thread(target=train)]
    with only_writer(tmp_path / identity(small(), toy)):
        for thread in threads:
            thread.start()
        wait_for(both_wait)
        assert not made
    for thread in threads:
        thread.join(60)
    assert len(made) == 2
    assert made[0].record == made[1].record
    assert "".join(lines).count("\n") == 2


def test_two_evaluations_keep_each_others_results(toy, tmp_path):
    run = trained(small(epochs=0), toy, tmp_path)
    one, other = load(run.folder), load(run.folder)
    one.evaluate(toy, "cpu", ("knn",))
    other.evaluate(toy, "cpu", ("linear",))
    answers = records.read(run.folder / "record.json")["evaluation"]
    assert answers["h"].keys() == {"knn", "linear"}


def test_a_run_in_a_folder_that_can_not_be_written_is_probed(toy, tmp_path, capfd):
    """A folder in the lock's place is refused to everyone, as a read-only disk is."""
    run = trained(small(epochs=0), toy, tmp_path)
    path = run.folder / "record.json"
    record = path.read_bytes()
    (run.folder / ".lock").unlink()
    (run.folder / ".lock").mkdir()
    found = load(run.folder).evaluate(toy, "cpu", ("knn",))
    assert found["h"]["knn"]["n"] == 60
    assert "note: what is found is not kept: can't write" in capfd.readouterr().err
    assert path.read_bytes() == record


def test_the_record_says_how_sessions_ended_and_whether_it_is_exact(toy, tmp_path):
    cut = stopped(small(), toy, tmp_path, steps=7)
    cut.progress.segments[0]["device"]["threads"] = 99
    cut.save()
    cut.progress.segments[0]["steps"] = [0, 3]
    cut.end("of an earlier session: says nothing")
    assert ending_of(cut.folder)["step"] == 3

    record = trained(small(), toy, tmp_path).record
    one, two = record["segments"]
    assert one["ended"] == WITHOUT_A_WORD
    assert one["seconds"] > 0
    assert "ended" not in two
    assert torch.__version__.startswith(two["versions"]["torch"])
    assert record["bit_exact"] is False
    why = r"segments 1 and 2 differ in threads \(99, then \d+\): exact up to rounding"
    assert re.fullmatch(why, record["inexact_because"])


def test_a_run_resumed_outside_of_deterministic_mode_is_not_exact():
    alike = {"device": {}, "versions": {}, "deterministic": True}
    random = alike | {"deterministic": False}
    assert inexact([random]) is None
    assert inexact([alike, alike]) is None
    assert "deterministic mode" in inexact([random, alike])


def test_what_is_not_finite_is_never_kept(toy, tmp_path):
    cut = stopped(small(), toy, tmp_path, steps=4)
    next(training_of(cut, toy))
    weight = next(cut.model.parameters())
    weight.data[0] = float("inf")  # the loss before it is still finite
    why = r"model\.encoder.* is not finite after step 5; lower learning_rate"
    with pytest.raises(Diverged, match=why):
        cut.save()
    assert step_of(cut.folder) == 4

    weight.data[0] = 0.0
    cut.progress.total = cut.progress.total * float("nan")
    with pytest.raises(Diverged, match="the loss became nan in epoch 1"):
        cut.save()
    assert step_of(cut.folder) == 4


def test_collapsed_embeddings_are_refused_after_two_epochs_past_the_warm_up():
    config = small(epochs=30, warmup_epochs=2)

    def curves(*negative: float | None) -> list[dict]:
        rows = enumerate(negative, start=1)
        return [{"epoch": epoch, "negative": cosine} for epoch, cosine in rows]

    refuse_collapse(config, curves(0.9999, 0.9999, 0.9999))
    refuse_collapse(config, curves(0.9999, 0.9999, 0.998, 0.9999))
    refuse_collapse(config, curves(0.9999, 0.9999, None, 0.9999))
    why = r"collapsed: different images have a mean cosine of 0\.99990 after epoch 4"
    with pytest.raises(Diverged, match=why):
        refuse_collapse(config, curves(0.2, 0.3, 0.9999, 0.9999))


def pulled(z: Tensor, *_: object) -> Tensor:
    """Alignment alone, and of all images: chapter 11's collapse."""
    z = F.normalize(z, dim=-1)
    of_views = z.diff(dim=0).square().sum()
    of_images = z.flatten(0, 1).var(0).sum()
    return of_views + 1000 * of_images


def test_collapsed_embeddings_stop_a_run_and_healthy_ones_do_not(toy, tmp_path, monkeypatch):
    for method in ("simclr", "supcon"):
        healthy = trained(small(method, epochs=4), toy, tmp_path)
        assert healthy.curves[-1]["negative"] < 0.99
    config = by_loss(pulled, monkeypatch)
    why = "collapsed: different images have a mean cosine of (1.0|0.999)"
    with pytest.raises(Diverged, match=why):
        trained(config, toy, tmp_path)
    folder = tmp_path / identity(config, toy)
    assert "collapsed" in records.read(folder / "failed.json")["failed"]
    assert step_of(folder) == 0


def test_running_out_of_memory_names_a_batch(toy, tmp_path, monkeypatch):
    config = by_loss(hungry, monkeypatch)
    why = "out of memory on cpu with batches of 32 .*batch_size=16 would fit"
    with pytest.raises(InputError, match=why):
        trained(config, toy, tmp_path)
    folder = tmp_path / identity(config, toy)
    assert ending_of(folder)["ended"].startswith("out of memory on cpu")


def test_the_batch_that_would_fit_is_a_power_of_two_that_has_room():
    wanted = {None: 16, 10**12: 16, 900: 8, 500: 4, 200: 2, 100: None, 0: None}
    for free, batch in wanted.items():
        assert estimated_batch(small(), an_image=100, free=free) == batch


def test_chunks_make_room_for_a_larger_batch():
    config = small(batch_size=256, accumulate=4)
    assert estimated_batch(config, an_image=100, free=900) == 32


def test_what_runs_out_of_memory_is_known_by_its_error():
    """Of PyTorch's own allocator too: more than the machine has is asked of it."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52)
    assert out_of_memory(caught.value)
    assert out_of_memory(MemoryError())
    for sign in ("DefaultCPUAllocator: not enough memory: you tried", "MPS backend out of memory"):
        assert out_of_memory(RuntimeError(sign))
    assert not out_of_memory(RuntimeError("shapes differ"))


def test_data_that_changed_in_the_midst_of_a_run_is_named(toy, tmp_path):
    stopped(small(), toy, tmp_path, steps=2)
    other = other_toy()
    why = (
        f"toy has changed since .* its fingerprint was {toy.fingerprint[:16]} and is "
        f"{other.fingerprint[:16]}; restore the data"
    )
    with pytest.raises(InputError, match=why):
        trained(small(), other, tmp_path)
    (half_done,) = tmp_path.glob(f"*/{NEWEST}")
    content = half_done.read_bytes()
    half_done.write_bytes(flipped(content, len(content) - 5))  # of which the header alone is read
    with pytest.raises(InputError, match=why):
        trained(small(), other, tmp_path)
    half_done.write_bytes(content)
    assert trained(small(seed=1), other, tmp_path).curves  # another run is another run
    assert trained(small(), toy, tmp_path).curves
    assert trained(small(), other, tmp_path).curves  # the first is done: nothing is half done


def test_a_recipe_of_other_content_is_another_run(toy, tmp_path, monkeypatch):
    before = identity(small(), toy)
    one = trained(small(epochs=0), toy, tmp_path)
    changed = replace(augmentations.RECIPES["supcontrast"], greyscale=0.3)
    monkeypatch.setitem(augmentations.RECIPES, "supcontrast", changed)
    two = trained(small(epochs=0), toy, tmp_path)
    assert identity(small(), toy) != before
    assert one.record["id"] != two.record["id"]
    for run in (one, two):
        run.evaluate(toy, "cpu", ("knn",))
    assert len(protocols([one.record, two.record])) == 2


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_process_also_where_its_checkpoint_fails(
    number, toy, tmp_path, exiting, monkeypatch
):
    """Whoever works on several runs would else begin the next one."""

    def fail(*_):
        raise InputError("can't write")

    def end(*_):
        monkeypatch.setattr(checkpoints, "rotate", fail)
        os.kill(os.getpid(), number)
        return {"epoch": 1}

    monkeypatch.setattr(Progress, "end_epoch", end)
    with pytest.raises(SystemExit, match=number.name):
        trained(small(), toy, tmp_path)
