"""A copy of the runs in a folder that outlives the machine, as on a mounted Drive.

Runs are trained on the machine's own disk. From time to time what is new there is copied: of a run
on the way its newest checkpoint, of one that is done its weights, its record and the rows of a
probe that takes hours; this one is copied as soon as it is finished or probed. Every file is
written whole, and looked at before it is fetched: what a copy that was cut off has left is not
taken for a run. Drive keeps every version of a file that is overwritten in its bin, so after a
large round the next one comes later: at most BYTES_AN_HOUR are copied, finished runs apart, whose
weights are written once.

A process that ends in its own time copies once more. One that is killed, as papermill's kernel is
some seconds after the last cell, may leave uncopied: of a run on the way the steps since the last
round, EVERY seconds ago or, where checkpoints are large, more; of a finished one what is not copied
in those seconds, after SOON at most.
"""

import atexit
import contextlib
import importlib
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from lib import InputError, counted
from lib.files import as_path, refuse_unwritable, remove_leftovers, write_atomically
from lib.runs import checkpoints, records
from lib.runs.checkpoints import BEFORE, NEWEST
from lib.runs.run import UNFINISHED

LEFT = 3600  # seconds after which a file that was begun in the folder is nobody's any more
EVERY = 600  # seconds from one round of copies to the next, at least
SOON = 2  # seconds until a finished run is noticed
BYTES_AN_HOUR = 1_000_000_000  # that are copied
DRIVE = "drive"  # the name that stands for the folder on Google Drive
MOUNTED = Path("/content/drive")
ON_DRIVE = MOUNTED / "MyDrive" / "contrastive-learning-book" / "runs"
RECORD, FAILED = "record.json", "failed.json"


class Backup:
    """The runs of a folder, and their copies in another one."""

    def __init__(self, runs: str | Path, folder: str | Path):
        """runs: the folder of all runs; folder: that of their copies."""
        self.runs, self.folder = as_path(runs), as_path(folder)
        # when those files were changed that are copied, and their sizes
        self._copied: dict[Path, tuple[int, int] | None] = {}
        self._told: set[str] = set()  # runs whose copies know more
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def fetch(self) -> list[str]:
        """Copy back what the folder has and the runs lack. Returns the names of those runs.

        A run that is on the way in both is fetched where the copy is further, and one that is done
        in both where the copy's record has all results and more. Files that are not whole are told
        in a warning, and their run is not taken.
        """
        fetched = []
        for copy in _runs(self.folder):
            remove_leftovers(copy, older_than=LEFT)
            own = self.runs / copy.name
            files = _worth_copying(copy)
            if not files or not _knows_more(copy, own):
                continue
            try:
                contents = {path.name: _whole(path) for path in files}
            except InputError as error:
                warnings.warn(f"{error}; {copy.name} is not fetched", stacklevel=2)
                continue
            for name, content in contents.items():
                write_atomically(own / name, content)
            fetched.append(copy.name)
        return fetched

    def copy(self) -> int:
        """Copy what is new. Returns how many bytes were written.

        A copy that is further, or has results that the run here lacks, stays as it is, and a note
        says so. Raises InputError, when all others are copied, where files can't be written.
        """
        return self._copy_runs(_runs(self.runs))

    def _copy_runs(self, folders: Iterable[Path]) -> int:
        """``copy``, of some runs."""
        written = 0
        problems = []
        with self._lock:
            for own in folders:
                try:
                    written += self._copy_run(own)
                except (InputError, OSError) as error:
                    problems.append(str(error))
        if problems:
            raise InputError("; ".join(problems))
        return written

    def _copy_run(self, own: Path) -> int:
        """Copy what is new of a run. Returns how many bytes were written."""
        files, copy = _worth_copying(own), self.folder / own.name
        if not any(self._is_new(path, copy / path.name) for path in files):
            return 0
        if _would_lose(own, copy):
            if own.name not in self._told:
                print(f"note: {copy} knows more and stays as it is", file=sys.stderr, flush=True)
                self._told.add(own.name)
            return 0
        written = sum(self._copy(path, copy / path.name) for path in files)
        if files[-1].name == RECORD:
            for of_the_way in {NEWEST, FAILED, UNFINISHED} - {path.name for path in files}:
                (copy / of_the_way).unlink(missing_ok=True)
        return written

    def _is_new(self, path: Path, target: Path) -> bool:
        """Whether a file is there that was not copied as it is, or whose copy is gone."""
        changed = _changed(path)
        if changed is None:
            return False
        return self._copied.get(path) != changed or not target.is_file()

    def _copy(self, path: Path, target: Path) -> int:
        """Copy a file where it has changed, and is not renamed or deleted meanwhile."""
        if not self._is_new(path, target):
            return 0
        changed = _changed(path)  # before it is read: what changes meanwhile is copied next time
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return 0

        written = 0
        if not target.is_file() or target.read_bytes() != content:
            write_atomically(target, content)
            written = len(content)
        self._copied[path] = changed
        return written

    def start(self) -> None:
        """Copy from now on, in a thread, and once more when the process ends."""
        threading.Thread(target=self._keep_on, name="backup", daemon=True).start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Copy once more, and no longer."""
        atexit.unregister(self.stop)
        self._stopped.set()
        self._round(_runs(self.runs))

    def _keep_on(self) -> None:
        due = time.monotonic() + EVERY
        known: dict[Path, tuple[int, int]] = {}
        while not self._stopped.wait(min(SOON, EVERY)):
            before, known = known, self._finished()
            if time.monotonic() >= due:
                written = self._round(_runs(self.runs))
                due = time.monotonic() + max(EVERY, 3600 * written / BYTES_AN_HOUR)
            elif known != before:
                self._round(known)

    def _finished(self) -> dict[Path, tuple[int, int]]:
        """The folders of finished runs, each with when its record was changed, and its size."""
        finished = {}
        with contextlib.suppress(OSError):  # of a disk that does not answer: the next look may see
            for folder in _runs(self.runs):
                changed = _changed(folder / RECORD)
                if changed is not None:
                    finished[folder] = changed
        return finished

    def _round(self, folders: Iterable[Path]) -> int:
        """Copy some runs; where that fails say so, and leave it to the next round."""
        try:
            return self._copy_runs(folders)
        except (InputError, OSError) as error:
            print(f"note: the runs are not copied: {error}", file=sys.stderr, flush=True)
            return 0


def _runs(folder: Path) -> Iterator[Path]:
    """The folders in a folder of runs."""
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.is_dir())


def _worth_copying(folder: Path) -> list[Path]:
    """What of a run's folder is worth a copy, in the order of copying; nothing of any other folder.

    Of a finished run the record is the last: where it is there, all is. Of one that diverged the
    record of that stands beside its checkpoint.
    """
    weights = sorted(folder.glob("*.safetensors"))
    kept = [path for path in weights if path.name not in (NEWEST, BEFORE)]
    if (folder / RECORD).is_file():
        rows = [folder / UNFINISHED] if (folder / UNFINISHED).is_file() else []
        return [*kept, *rows, folder / RECORD]
    on_the_way = [path for path in (folder / FAILED, folder / NEWEST) if path.is_file()]
    return [*kept, *on_the_way] if on_the_way else []


def _changed(path: Path) -> tuple[int, int] | None:
    """When a file was changed last, and its size; None where it is not there."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_mtime_ns, about.st_size


def _knows_more(copy: Path, own: Path) -> bool:
    """Whether a run is to be fetched: it is done or further in its copy, or was asked more there.

    It is where it is done in its copy alone: whether that is whole is seen in fetching it.
    """
    if not (copy / RECORD).is_file():
        return not (own / RECORD).is_file() and _is_further(copy, own)
    if not (own / RECORD).is_file():
        return True
    return _found(copy) > _found(own)


def _would_lose(own: Path, copy: Path) -> bool:
    """Whether copying would put a run that is on the way, or was asked less, over its copy."""
    if (copy / RECORD).is_file():
        return not (own / RECORD).is_file() or bool(_found(copy) - _found(own))
    if (own / RECORD).is_file():
        return False
    here, there = (checkpoints.newest_step(folder) for folder in (own, copy))
    return here is not None and there is not None and there > here


def _found(folder: Path) -> set[str]:
    """What a finished run's record has results of; nothing where it is not whole."""
    try:
        return records.found(records.read(folder / RECORD))
    except InputError:
        return set()


def _is_further(copy: Path, own: Path) -> bool:
    """Whether a run that is on the way is further in its copy, or diverged there alone.

    A copy that tells no step is looked at, and then said to be broken.
    """
    here, there = (checkpoints.newest_step(folder) for folder in (own, copy))
    if here is None or there is None or there > here:
        return True
    diverged_there_alone = (copy / FAILED).is_file() and not (own / FAILED).is_file()
    return there == here and diverged_there_alone


def _whole(path: Path) -> bytes:
    """A file's content. Raises InputError where it is missing, or not as it was written."""
    if path.name in (RECORD, FAILED):
        records.read(path)
        return path.read_bytes()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror})") from error
    if path.name != UNFINISHED and not checkpoints.unbroken(content):
        raise InputError(f"{path} is not whole")
    return content


def place(where: str) -> Path:
    """The folder of that name; "drive": one on Google Drive, which is mounted, on Colab.

    Raises InputError where there is no Drive to mount, or the name is empty.
    """
    if not where.strip():  # as a path it would be the current folder
        raise InputError(f"backup is empty: name a folder or '{DRIVE}', or None for no copies")
    if where != DRIVE:
        return as_path(where)
    try:
        drive = importlib.import_module("google.colab.drive")
    except ImportError as error:
        raise InputError(
            f"backup='{DRIVE}' mounts Google Drive, which Colab alone can; name a folder instead"
        ) from error
    drive.mount(str(MOUNTED))
    return ON_DRIVE


_under_way: list[Backup] = []


def begin(where: str, runs: str | Path) -> str:
    """Fetch from a place what the folder of runs lacks, and copy there from now on.

    A second call takes the first one's place. Returns what it does, in a sentence.

    Raises InputError where the place can't be written; what was begun before goes on then.
    """
    made = Backup(runs, place(where))
    refuse_unwritable(made.folder / RECORD, "name another folder, or allow writing there")
    while _under_way:
        _under_way.pop().stop()
    fetched = len(made.fetch())
    made.start()
    _under_way.append(made)
    return (
        f"backup: {counted(fetched, 'run')} fetched from {made.folder}; every {EVERY // 60} "
        "minutes what is new in the runs is copied there, a finished run at once (no data sets: "
        "those are downloaded again)"
    )
