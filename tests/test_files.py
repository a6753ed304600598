"""Files are written whole, and by one writer at a time."""

import errno
import os
from pathlib import Path
from threading import Event, Thread

import pytest
from filelock import FileLock

from lib import InputError, files
from lib.files import claimed, only_writer
from tests.conftest import wait_for


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file.json"
    files.write_atomically(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(InputError, match="can't write .*file.json .No space left"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_whether_a_file_can_be_written_is_tried_without_a_trace(tmp_path: Path):
    path = tmp_path / "new" / "file.npz"
    files.refuse_unwritable(path)
    assert not list(path.parent.iterdir())
    path.write_bytes(b"old")
    files.refuse_unwritable(path)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]

    with pytest.raises(InputError, match=r"can't write .*new \(Is a directory\): free space or"):
        files.refuse_unwritable(path.parent)
    with pytest.raises(InputError, match=r"can't write .*file.npz/x.npz \("):
        files.refuse_unwritable(path / "x.npz")


@pytest.mark.parametrize("step", ["fsync", "open"])
def test_a_folder_that_cannot_be_flushed_is_no_trouble(
    step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As on Windows and on some network drives; the file is whole all the same."""
    path = tmp_path / "file.json"
    usual = getattr(os, step)
    refused = []

    def refuse_folders(at: int | Path, *options: int) -> int | None:
        if os.path.isdir(at):
            refused.append(at)
            raise OSError(errno.EINVAL, "Invalid argument")
        return usual(at, *options)

    monkeypatch.setattr(os, step, refuse_folders)
    files.write_atomically(path, b"new")
    assert len(refused) == 1
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_somebody_reads_is_moved_as_soon_as_may_be(tmp_path: Path, monkeypatch):
    """As Windows refuses it meanwhile."""
    rename = os.replace
    refusals = [PermissionError(13, "in use"), PermissionError(13, "in use")]

    def replace(source: Path, target: Path) -> None:
        if refusals:
            raise refusals.pop()
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "new").write_text("new", encoding="utf-8")
    (tmp_path / "file").write_text("old", encoding="utf-8")
    files.moved(tmp_path / "new", tmp_path / "file")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "new"


def test_a_file_is_written_into_folders_that_are_made_and_nothing_else_stays(tmp_path: Path):
    path = tmp_path / "a" / "b" / "file.json"
    files.write_atomically(path, b"one")
    files.write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_one_writer_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture):
    lock = tmp_path / "folder" / ".lock"
    with only_writer(lock, "the run"):
        with pytest.raises(InputError, match="another process is writing the run; try again"):
            with only_writer(lock, "the run", wait=False):
                pass
    with only_writer(lock, "the run", wait=False):
        pass  # it is free again
    assert capsys.readouterr().err == ""


def test_a_writer_that_waits_says_so(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = tmp_path / ".lock"
    written = Event()

    def write() -> None:
        with only_writer(path, "the run"):
            written.set()

    writer = Thread(target=write)
    with FileLock(path):
        writer.start()
        wait_for(lambda: "another process is writing the run; waiting" in capsys.readouterr().err)
        assert not written.is_set()
    writer.join(60)
    assert written.is_set()


def test_a_claim_is_held_by_one_alone(tmp_path):
    path = tmp_path / "claims" / ".lock"
    with claimed(path, "the run", 0) as mine, claimed(path, "the run", 0) as also:
        assert mine and not also
    with claimed(path, "the run", 0) as again:
        assert again


@pytest.mark.parametrize("number, warned", [(errno.ENOLCK, True), (errno.ENOSPC, False)])
def test_a_file_system_without_locks_is_warned_of(
    number, warned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "acquire", fail)
    if warned:
        with pytest.warns(UserWarning, match="can't be locked .*see that no other process writes"):
            with only_writer(tmp_path / ".lock", "the run"):
                pass
        with (
            pytest.warns(UserWarning, match="can't be locked"),
            claimed(tmp_path / ".lock", "the run", 0) as mine,
        ):
            assert mine
    else:
        with pytest.raises(InputError, match="can't write .*.lock .No space left"):
            with only_writer(tmp_path / ".lock", "the run"):
                pass
