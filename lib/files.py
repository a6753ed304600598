"""Files that outlive what happens to a process: written whole, by one writer at a time."""

import contextlib
import errno
import functools
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from lib import InputError

READ = 5  # seconds that somebody else may read a file
ELSEWHERE = "free space or name another folder"  # what to do where a file can't be written
UNLOCKABLE = {errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS}  # what file systems without locks answer


class Unwritable(InputError):
    """A folder that can't be written."""


def as_path(text: str | Path) -> Path:
    """A path as people write it: ~ is their home, also where no shell has seen it."""
    return Path(os.path.expanduser(text))


def write_atomically(path: Path, content: bytes, ways: str = ELSEWHERE) -> None:
    """Write beside, flush to disk, rename: the file is the old one or the new one, never a part.

    ways: what to do where it can't be written, with which the error ends.

    Raises InputError, naming the path, where it can't be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        moved(beside, path)
    except OSError as error:
        raise _unwritable(path, error, ways) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()

    # the new name reaches the disk too, where folders can be flushed
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.fsync(folder)
        os.close(folder)


def refuse_unwritable(path: Path, ways: str = ELSEWHERE) -> None:
    """Try to write beside a file that is still to be computed, and leave nothing but its folder.

    ways: what to do where it can't be written, with which the error ends.

    Raises InputError, naming the path, where it can't be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise _unwritable(path, error, ways) from error


def _unwritable(path: Path, error: OSError, ways: str) -> InputError:
    return InputError(f"can't write {path} ({error.strerror or error}): {ways}")


def moved(source: Path, target: Path) -> None:
    """Rename a file, in the place of another.

    Windows refuses as long as somebody reads one of them: then it is tried again, for READ seconds.
    """
    patience = time.monotonic() + READ
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if time.monotonic() > patience:
                raise
            time.sleep(READ / 50)


def remove_leftovers(folder: Path, older_than: float = 0) -> None:
    """Delete what ``write_atomically`` had begun in a folder, in processes that were killed.

    older_than: seconds; where other machines write too, as long as they may take.
    """
    latest = time.time() - older_than
    for path in folder.glob(".*.*.[0-9]*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime <= latest:
                path.unlink()


@contextlib.contextmanager
def only_writer(path: Path, writing: str, wait: bool = True) -> Iterator[None]:
    """Within, no other process holds the lock file at path; the system takes it from one that dies.

    writing: what is written, for the line on stderr that says that this process waits, or the
        error.
    wait: for another process, instead of an error.

    Raises InputError where wait is False and another process holds it, Unwritable where the file
    can't be written.
    """
    with _locked(path, writing, functools.partial(_acquire, writing=writing, wait=wait)):
        yield


@contextlib.contextmanager
def claimed(path: Path, writing: str, seconds: float) -> Iterator[bool]:
    """Within, where it gives True, no other process holds the lock file at path.

    writing: what is written, for the warning where nothing can be locked.
    seconds: to wait for it.

    Raises InputError where the file can't be written.
    """
    with contextlib.ExitStack() as stack:
        lock = _locked(path, writing, lambda lock: lock.acquire(timeout=seconds))
        try:
            stack.enter_context(lock)
        except Timeout:
            yield False
            return
        yield True


@contextlib.contextmanager
def _locked(path: Path, writing: str, acquire: Callable[[BaseFileLock], Any]) -> Iterator[None]:
    """Within, the lock that acquire has taken is held; where none can be, that is warned of."""
    lock = FileLock(path, mode=0o666)  # whose folder several people share, can all wait for it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        acquire(lock)
    except Timeout:
        raise
    except OSError as error:
        if error.errno not in UNLOCKABLE:
            raise Unwritable(f"can't write {path} ({error.strerror}): {ELSEWHERE}") from error
        warnings.warn(
            f"{path.parent} can't be locked ({error.strerror}): see that no other process writes "
            f"{writing}",
            stacklevel=5,
        )
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, writing: str, wait: bool) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if not wait:
            raise InputError(
                f"another process is writing {writing}; try again when it is done"
            ) from None
        print(
            f"another process is writing {writing}; waiting until it is done (Ctrl-C leaves)",
            file=sys.stderr,
        )
        lock.acquire()
