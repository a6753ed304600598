"""Runs that are copied to a folder, and fetched from it on another machine."""

import itertools
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib import Diverged, InputError, hardware, settings
from lib.runs import backup, checkpoints, load
from lib.runs.backup import FAILED, RECORD, Backup
from lib.runs.checkpoints import BEFORE, NEWEST
from lib.runs.run import UNFINISHED
from stress.cases import ended, forked
from tests.conftest import same, sessions_of, small, stopped, trained, wait_for


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    """The CPU's matrix rate, which a record tells, is measured on a small one."""
    monkeypatch.setattr(hardware, "SIDE_ELSEWHERE", 64)


@pytest.fixture
def copies(tmp_path) -> Path:
    return tmp_path / "copies"


def names(folder: Path) -> set[str]:
    """Of the files in a folder of copies."""
    return {path.name for path in folder.iterdir()}


def test_a_run_goes_on_from_its_copy_on_another_machine(toy, tmp_path, copies):
    whole = trained(small(), toy, tmp_path / "whole")
    folder = stopped(small(), toy, tmp_path / "one", steps=7).folder
    size = (folder / NEWEST).stat().st_size
    one = Backup(tmp_path / "one", copies)
    assert one.copy() == size
    assert names(copies / folder.name) == {NEWEST}  # neither the generation before nor the lock
    assert one.copy() == 0  # nothing is new

    other = Backup(tmp_path / "other", copies)
    assert other.fetch() == [folder.name]
    run = trained(small(), toy, tmp_path / "other")
    assert same(run, whole) and sessions_of(run) == [[0, 7], [7, 15]]

    assert other.copy() > 0
    assert names(copies / folder.name) == {"model.safetensors", RECORD}
    assert Backup(tmp_path / "third", copies).fetch() == [folder.name]
    assert same(load(tmp_path / "third" / folder.name), whole)


def test_a_record_that_is_changed_later_is_copied_again(toy, tmp_path, copies):
    run = trained(small(epochs=1), toy, tmp_path / "one")
    backup = Backup(tmp_path / "one", copies)
    backup.copy()
    run.evaluate(toy, "cpu")
    assert backup.copy() == (run.folder / RECORD).stat().st_size
    assert (copies / run.folder.name / RECORD).read_bytes() == (run.folder / RECORD).read_bytes()


def test_what_is_here_is_not_replaced_by_an_older_copy(toy, tmp_path, copies):
    runs = tmp_path / "one"
    folder = stopped(small(), toy, runs, steps=3).folder
    Backup(runs, copies).copy()
    stopped(small(), toy, runs, steps=7)
    assert Backup(runs, copies).fetch() == []
    assert checkpoints.read(folder / NEWEST)[1].step == 7

    (folder / NEWEST).unlink()  # as between two renames
    assert (folder / BEFORE).is_file() and Backup(runs, copies).fetch() == []


def test_a_copy_that_is_further_is_fetched(toy, tmp_path, copies):
    """As where a chapter was begun without its backup; it would be overwritten otherwise."""
    folder = stopped(small(), toy, tmp_path / "one", steps=7).folder
    Backup(tmp_path / "one", copies).copy()
    stopped(small(), toy, tmp_path / "other", steps=3)
    assert Backup(tmp_path / "other", copies).fetch() == [folder.name]
    assert checkpoints.read(tmp_path / "other" / folder.name / NEWEST)[1].step == 7


def test_a_copy_that_is_further_is_not_turned_back(toy, tmp_path, copies, capsys):
    folder = stopped(small(), toy, tmp_path / "one", steps=3).folder
    one = Backup(tmp_path / "one", copies)
    one.copy()
    stopped(small(), toy, tmp_path / "other", steps=7)
    Backup(tmp_path / "other", copies).copy()
    stopped(small(), toy, tmp_path / "one", steps=5)
    assert one.copy() == 0 == one.copy()
    assert capsys.readouterr().err.count("knows more and stays as it is") == 1
    assert checkpoints.read(copies / folder.name / NEWEST)[1].step == 7

    trained(small(), toy, tmp_path / "other")
    Backup(tmp_path / "other", copies).copy()
    stopped(small(), toy, tmp_path / "one", steps=9)
    one.copy()
    assert names(copies / folder.name) == {"model.safetensors", RECORD}


def test_rows_of_a_long_probe_are_copied_and_fetched_until_they_are_in_the_record(
    toy, tmp_path, copies
):
    folder = trained(small(epochs=1), toy, tmp_path / "one").folder
    (folder / UNFINISHED).write_bytes(b"[]")
    one = Backup(tmp_path / "one", copies)
    one.copy()
    Backup(tmp_path / "other", copies).fetch()
    assert (tmp_path / "other" / folder.name / UNFINISHED).read_bytes() == b"[]"

    (folder / UNFINISHED).write_bytes(b"[{}]")
    assert one.copy() == len("[{}]")
    load(folder).evaluate(toy, "cpu", ("knn",))
    (folder / UNFINISHED).unlink()
    one.copy()
    assert names(copies / folder.name) == {"model.safetensors", RECORD}


def test_results_that_only_a_copy_has_are_fetched_and_not_replaced(toy, tmp_path, copies):
    run = trained(small(epochs=1), toy, tmp_path / "one")
    Backup(tmp_path / "one", copies).copy()
    Backup(tmp_path / "other", copies).fetch()
    load(tmp_path / "other" / run.folder.name).evaluate(toy, "cpu", ("knn",))
    Backup(tmp_path / "other", copies).copy()

    assert Backup(tmp_path / "one", copies).copy() == 0
    assert "knn" in load(copies / run.folder.name).record["evaluation"]["h"]
    assert Backup(tmp_path / "one", copies).fetch() == [run.folder.name]
    assert "knn" in load(run.folder).record["evaluation"]["h"]


def test_a_run_that_can_not_be_copied_stops_no_other(toy, tmp_path, copies):
    first, second = sorted(
        stopped(small(seed=seed), toy, tmp_path / "one", steps=3).folder.name for seed in (0, 1)
    )
    copies.mkdir()
    (copies / first).write_text("a file where a folder should be", encoding="utf-8")
    with pytest.raises(InputError, match="can't write"):
        Backup(tmp_path / "one", copies).copy()
    assert names(copies / second) == {NEWEST}


def test_a_copy_that_is_gone_is_made_again(toy, tmp_path, copies):
    stopped(small(), toy, tmp_path / "one", steps=3)
    one = Backup(tmp_path / "one", copies)
    size = one.copy()
    shutil.rmtree(copies)
    assert one.copy() == size > 0


def killed(backup: Backup, flush: int) -> None:
    """A copy by a process that is killed where it would flush a file, or its folder, then."""

    def copy() -> None:
        fsync, flushes = os.fsync, itertools.count()

        def flush_or_die(file: int) -> None:
            if next(flushes) == flush:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(file)

        os.fsync = flush_or_die
        backup.copy()

    assert ended(forked(copy)) == -signal.SIGKILL


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the process is a forked one")


@on_linux
def test_a_copy_that_is_killed_leaves_the_one_before(toy, tmp_path, copies):
    """And nothing of its own, once somebody fetches an hour later; before, it may be under way."""
    runs = tmp_path / "one"
    folder = stopped(small(), toy, runs, steps=3).folder
    Backup(runs, copies).copy()
    stopped(small(), toy, runs, steps=7)
    killed(Backup(runs, copies), flush=0)
    assert len(names(copies / folder.name)) == 2  # the copy, and the one that was begun

    other = Backup(tmp_path / "other", copies)
    other.fetch()
    (begun,) = names(copies / folder.name) - {NEWEST}
    an_hour_ago = time.time() - 3700
    os.utime(copies / folder.name / begun, (an_hour_ago, an_hour_ago))
    other.fetch()
    assert names(copies / folder.name) == {NEWEST}
    run = trained(small(), toy, tmp_path / "other")
    assert sessions_of(run) == [[0, 3], [3, 15]]
    assert same(run, trained(small(), toy, tmp_path / "whole"))


@on_linux
def test_a_finished_run_whose_copy_is_killed_is_not_taken_for_finished(toy, tmp_path, copies):
    """Its weights are there, its record is not: the copy before goes on."""
    runs = tmp_path / "one"
    stopped(small(), toy, runs, steps=7)
    Backup(runs, copies).copy()
    folder = trained(small(), toy, runs).folder
    killed(Backup(runs, copies), flush=2)  # after the weights and their folder
    assert {NEWEST, "model.safetensors"} <= names(copies / folder.name)
    assert RECORD not in names(copies / folder.name)

    assert Backup(tmp_path / "other", copies).fetch() == [folder.name]
    assert sessions_of(trained(small(), toy, tmp_path / "other")) == [[0, 7], [7, 15]]


@pytest.mark.parametrize("name", [NEWEST, "model.safetensors", RECORD])
def test_a_copy_that_is_not_whole_is_not_fetched(name, toy, tmp_path, copies):
    """As of a folder whose files arrive in parts."""
    if name == NEWEST:
        folder = stopped(small(), toy, tmp_path / "one", steps=3).folder
    else:
        folder = trained(small(epochs=1), toy, tmp_path / "one").folder
    Backup(tmp_path / "one", copies).copy()
    path = copies / folder.name / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match=f"{name}.* is not fetched"):
        assert Backup(tmp_path / "other", copies).fetch() == []
    assert not (tmp_path / "other" / folder.name).exists()


def test_other_folders_are_left_alone(tmp_path, copies):
    (tmp_path / "runs" / "tuning").mkdir(parents=True)
    (tmp_path / "runs" / "tuning" / "a.csv").touch()
    (tmp_path / "runs" / "note.txt").touch()
    assert Backup(tmp_path / "runs", copies).copy() == 0
    assert not copies.exists() and Backup(tmp_path / "runs", copies).fetch() == []


def test_copies_are_made_while_a_run_is_on_its_way_and_a_failure_is_told(
    toy, tmp_path, copies, monkeypatch, capfd
):
    monkeypatch.setattr(backup, "EVERY", 0.05)
    copies.write_text("a file in the folder's place", encoding="utf-8")
    made = Backup(tmp_path / "one", copies)
    folder = stopped(small(), toy, tmp_path / "one", steps=3).folder
    made.start()
    wait_for(lambda: "note: the runs are not copied: can't write" in capfd.readouterr().err)
    copies.unlink()  # and the next round succeeds
    wait_for((copies / folder.name / NEWEST).is_file)
    made.stop()
    shutil.rmtree(copies)
    stopped(small(), toy, tmp_path / "one", steps=5)
    assert not copies.exists()


def test_a_chapter_fetches_says_so_and_copies_from_then_on(toy, tmp_path, copies, capsys):
    folder = stopped(small(), toy, tmp_path / "one", steps=3).folder
    Backup(tmp_path / "one", copies).copy()
    here = {"backup": str(copies), "runs": str(tmp_path / "other")}
    for fetched in ("1 run", "0 runs"):  # the cell may be run again
        settings.settings("03_simclr", "quick", **here)
        assert f"backup: {fetched} fetched from {copies}" in capsys.readouterr().out
    assert len(backup._under_way) == 1

    stopped(small(), toy, tmp_path / "other", steps=5)
    backup._under_way.pop().stop()
    assert checkpoints.read(copies / folder.name / NEWEST)[1].step == 5


def test_a_place_that_can_not_be_written_is_refused_at_once(toy, tmp_path, copies):
    """And the place that was copied to before stays the one."""
    backup.begin(str(tmp_path / "before"), tmp_path / "one")
    copies.write_text("a file in the folder's place", encoding="utf-8")
    with pytest.raises(InputError, match=f"can't write {copies}.*: name another folder"):
        backup.begin(str(copies), tmp_path / "one")
    stopped(small(), toy, tmp_path / "one", steps=3)
    backup._under_way.pop().stop()
    assert list((tmp_path / "before").glob(f"*/{NEWEST}"))
    assert not list((tmp_path / "before").glob(".*"))  # what was tried is gone


@pytest.mark.parametrize("where", ["", " "])
def test_a_place_without_a_name_is_not_the_current_folder(where):
    with pytest.raises(InputError, match="backup is empty: name a folder"):
        backup.place(where)


def test_a_run_is_copied_as_soon_as_it_is_finished_and_others_later(
    toy, tmp_path, copies, monkeypatch
):
    monkeypatch.setattr(backup, "SOON", 0.05)
    made = Backup(tmp_path / "one", copies)
    made.start()
    half = stopped(small(), toy, tmp_path / "one", steps=3).folder
    done = trained(small(seed=1), toy, tmp_path / "one").folder
    wait_for((copies / done.name / RECORD).is_file)
    assert not (copies / half.name).exists()
    made.stop()
    assert names(copies / half.name) == {NEWEST}


def test_drive_is_mounted_on_colab_and_nowhere_else(monkeypatch):
    with pytest.raises(InputError, match="which Colab alone can; name a folder instead"):
        backup.place("drive")
    mounted = []
    monkeypatch.setitem(sys.modules, "google", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "google.colab.drive", SimpleNamespace(mount=mounted.append))
    assert backup.place("drive").is_relative_to("/content/drive/MyDrive")
    assert mounted == [os.path.join("/content", "drive")]
    assert backup.place("~/runs") == Path.home() / "runs"


def test_that_a_run_diverged_is_copied_and_fetched_with_its_checkpoint(toy, tmp_path, copies):
    config = small(optimiser="sgd", learning_rate=1e30, warmup_epochs=0)
    folder = stopped(small(), toy, tmp_path / "one", steps=3).folder
    with pytest.raises(Diverged):
        trained(config, toy, tmp_path / "one")
    (failed,) = (path.parent for path in (tmp_path / "one").glob(f"*/{FAILED}"))
    Backup(tmp_path / "one", copies).copy()
    assert FAILED in names(copies / failed.name)

    other = tmp_path / "other"
    assert set(Backup(other, copies).fetch()) == {folder.name, failed.name}
    assert checkpoints.steps_taken(other / failed.name) is None
    assert Backup(other, copies).fetch() == []  # once


def test_a_run_that_is_further_here_is_not_replaced_by_a_copy_that_diverged(toy, tmp_path, copies):
    stopped(small(), toy, tmp_path / "one", steps=3)
    one = Backup(tmp_path / "one", copies)
    one.copy()
    folder = stopped(small(), toy, tmp_path / "one", steps=7).folder
    (copies / folder.name / FAILED).write_text("{}", encoding="utf-8")
    assert one.fetch() == []
    assert checkpoints.steps_taken(folder) == 7
