"""Faults: runs killed, files damaged, disks full, processes racing, and readers fed. Counts only.

Runs of a second on the digits, by SimCLR, SupCon and cross-entropy, one thread. Each fault is
followed by the same call again, whose run is held bit for bit (weights and curves; times and rates
apart) against one that nothing happened to. A kill is a signal to a forked process: half at a
random instant, half in the midst of a write, of which some leave a torn file. A disk is full by a
limit on the size of files, and where this process may mount one, by a small tmpfs. A damaged file
must be refused by name; a file that is nearly right must be refused or read (``stress.fuzz``).
"""

import argparse
import itertools
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lib import InputError, files
from lib.config import Config
from lib.data import load as load_data
from lib.data.dataset import Dataset
from lib.presets import preset
from lib.runs import Run, checkpoints, load, pretrain, records, session
from lib.runs.checkpoints import BEFORE, NEWEST
from stress import fuzz
from stress.cases import REFUSED, count_and_keep, ended, forked, show

OF_THE_MACHINE = {"seconds", "views_per_second"}
METHODS = ("simclr", "supcon", "ce")
CONFIGS = [
    preset(f"{method}-digits", images=200, epochs=3, batch_size=40, drop_last=False, knn_every=1)
    for method in METHODS
]
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
WRITES = 105  # flushes and renames in a run
HALF_WAY = 40  # of them
WAYS = ("truncated", "flipped", "emptied", "swapped")
TMPFS_MEGABYTES = (1, 2, 4, 6, 8, 10, 12, 14)


def outcome(run: Run) -> tuple[str, int]:
    """What must be the same to the bit: rows without what is the machine's, a hash of weights."""
    rows = []
    for row in run.curves:
        rows.append({key: value for key, value in row.items() if key not in OF_THE_MACHINE})
    weights = [(name, value.numpy().tobytes()) for name, value in run.model.state_dict().items()]
    return json.dumps(rows), hash(tuple(weights))


def train(config: Config, dataset: Dataset, folder: Path) -> Run:
    """A run with a checkpoint after every step."""
    session.LATEST = 0
    return pretrain(config, dataset, folder, "cpu", progress=False)


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happens to, to hold others against."""

    config: Config
    dataset: Dataset
    outcome: tuple[str, int]
    seconds: float

    def again(self, folder: Path) -> Run:
        """The same call, made in another folder."""
        return train(self.config, self.dataset, folder)

    def differs(self, folder: Path) -> bool:
        """Whether the same call, made in another folder, ends otherwise."""
        return outcome(self.again(folder)) != self.outcome


def undisturbed(config: Config, dataset: Dataset, folder: Path) -> Undisturbed:
    """Trained twice, which must end the same; the second time is timed."""
    first = outcome(train(config, dataset, folder / "first"))
    started = time.monotonic()
    second = outcome(train(config, dataset, folder / "second"))
    if first != second:
        raise InputError(
            f"two runs of {config.name} differ without any fault: this machine is not deterministic"
        )
    return Undisturbed(config, dataset, second, time.monotonic() - started)


def kills(wanted: int, dataset: Dataset, folder: Path, draw: random.Random) -> list[dict]:
    """A row for each method and signal, with so many kills that struck over all of them.

    Of them, those in a write, and those that left a run half done; wrong: runs that ended otherwise
    than the undisturbed one, or children that ended neither well nor by the signal.
    """
    rows = []
    for config in CONFIGS:
        whole = undisturbed(config, dataset, folder)
        for number in SIGNALS:
            count: Counter[str] = Counter()
            while count["cases"] < wanted / (len(SIGNALS) * len(CONFIGS)):
                in_write = count["tries"] % 2 == 0
                count.update(kill(whole, folder / "cut", number, in_write, draw))
            counts = {key: count[key] for key in ("cases", "in_a_write", "half_done", "wrong")}
            name = f"{config.method}, {signal.Signals(number).name}"
            rows.append(show({"fault": "kill", "what": name} | counts))
    return rows


def kill(
    whole: Undisturbed, folder: Path, number: int, in_write: bool, draw: random.Random
) -> dict[str, int]:
    """Counts of one try to kill a run, and to go on with it afterwards."""
    place = draw.randrange(WRITES)
    torn = draw.random() < 0.5
    wait = draw.random() * whole.seconds

    def work() -> None:
        if in_write:
            die_in_write(number, place, torn and number == signal.SIGKILL)
        whole.again(folder)

    child = forked(work)
    if not in_write:
        time.sleep(wait)
        os.kill(child, number)
    status = ended(child)

    struck = status == -number
    left = {path.name for path in folder.glob("*/*")}
    half_done = struck and NEWEST in left and "record.json" not in left
    wrong = int(whole.differs(folder)) + int(status not in (0, -number))
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "tries": 1,
        "cases": int(struck),
        "in_a_write": int(struck and in_write),
        "half_done": int(half_done),
        "wrong": wrong,
    }


def die_in_write(number: int, place: int, torn: bool) -> None:
    """This process will send itself the signal at that flush or rename; the file may be torn."""
    events = itertools.count()
    fsync, replace = os.fsync, os.replace

    def strike(descriptor: int | None) -> None:
        if next(events) != place:
            return
        if torn and descriptor is not None:
            about = os.fstat(descriptor)
            if stat.S_ISREG(about.st_mode):
                os.ftruncate(descriptor, about.st_size // 2)
        os.kill(os.getpid(), number)

    def striking_fsync(descriptor: int) -> None:
        strike(descriptor)
        fsync(descriptor)

    def striking_replace(*paths: Path) -> None:
        strike(None)
        replace(*paths)

    os.fsync, os.replace = striking_fsync, striking_replace


class Damage:
    """Files that runs left, to be damaged: checkpoints of one half done, the model of one done."""

    def __init__(self, dataset: Dataset, folder: Path, draw: random.Random):
        self.dataset, self.draw = dataset, draw
        self.config, another = CONFIGS[:2]
        self.done = train(self.config, dataset, folder / "done").folder
        self.half = folder / "half" / self.done.name
        ended(forked(self.leave_half_done))

        self.newest, self.before = self.half / NEWEST, self.half / BEFORE
        self.model = self.done / "model.safetensors"
        paths = (self.newest, self.before, self.model)
        self.whole = {path: path.read_bytes() for path in paths}
        self.step_before = checkpoints.read(self.before)[1].step
        other = train(another, dataset, folder / "other").folder / "model.safetensors"
        self.strangers = {  # whole files that are not what the name says
            self.newest: (self.whole[self.model], other.read_bytes()),
            self.before: (self.whole[self.model], other.read_bytes()),
            self.model: (self.whole[self.newest], other.read_bytes()),
        }

    def leave_half_done(self) -> None:
        die_in_write(signal.SIGKILL, HALF_WAY, torn=False)
        train(self.config, self.dataset, self.half.parent)

    def damaged(self, path: Path, way: str) -> bytes:
        """What a file becomes in one of the WAYS."""
        content, draw = self.whole[path], self.draw
        if way == "truncated":
            return content[: draw.randrange(1, len(content))]
        if way == "emptied":
            return b""
        if way == "swapped":
            return draw.choice(self.strangers[path])

        flipped = bytearray(content)
        end = draw.choice((400, len(content)))  # within the header, or anywhere
        flipped[draw.randrange(end)] ^= 1 << draw.randrange(8)
        return bytes(flipped)

    def refused(self, paths: tuple[Path, ...], way: str) -> bool:
        """Whether every damaged file is named, and the one before it used, where that is whole.

        A swapped one is whole, so it stays: the first is named, and no other is used.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                if self.model in paths:
                    load(self.done)
                    return False
                device = torch.device("cpu")
                resumed = session.begin(self.config, self.dataset, self.half, device, {})
            except InputError as error:
                named = [path.name in str(error) for path in paths]
                return named[0] if way == "swapped" else all(named)
        if way == "swapped":
            return False
        named = any(self.newest.name in str(warning.message) for warning in caught)
        return self.before not in paths and resumed.progress.step == self.step_before and named

    def accepted(self, paths: tuple[Path, ...], way: str) -> bool:
        """Damage files, ask, and mend them: whether a damaged one was taken for whole."""
        for path in paths:
            path.write_bytes(self.damaged(path, way))
        accepted = not self.refused(paths, way)
        for path, content in self.whole.items():
            path.write_bytes(content)
        return accepted


def damages(wanted: int, dataset: Dataset, folder: Path, draw: random.Random) -> list[dict]:
    """Newest checkpoints, both, and finished models, in four ways each."""
    damage = Damage(dataset, folder, draw)
    targets = {
        "newest checkpoint": (damage.newest,),
        "both checkpoints": (damage.newest, damage.before),
        "model": (damage.model,),
    }
    cases = -(-wanted // (len(targets) * len(WAYS)))

    rows = []
    for name, paths in targets.items():
        for way in WAYS:
            wrong = sum(damage.accepted(paths, way) for _ in range(cases))
            row = {"fault": "damage", "what": f"{name}, {way}", "cases": cases, "wrong": wrong}
            rows.append(show(row))
    return rows


def limit_files_from(write: int) -> None:
    """In this process, from that write on no file may grow beyond half of what is written."""
    writes = itertools.count()

    def limited(path: Path, content: bytes, *ways: str) -> None:
        if next(writes) == write:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, resource.RLIM_INFINITY))
        files.write_atomically(path, content, *ways)

    checkpoints.write_atomically = limited
    records.write_atomically = limited


def limited_files(most: int, whole: Undisturbed, folder: Path) -> dict:
    """A limit at each write of a run in turn, until there are no more."""
    cases = wrong = 0
    for write in range(most):
        target = folder / f"limit{write}"

        def work(write: int = write, target: Path = target) -> None:
            limit_files_from(write)
            whole.again(target)

        status = ended(forked(work))
        if status == 0:
            break
        cases += 1
        wrong += int(whole.differs(target)) + int(status != REFUSED)
    return {"fault": "full disk", "what": "a limit at each write", "cases": cases, "wrong": wrong}


def small_disks(most: int, whole: Undisturbed, folder: Path) -> dict:
    """Runs on disks of some megabytes, which then grow; none where nothing may be mounted."""
    cases = wrong = 0
    for size in TMPFS_MEGABYTES[:most]:
        disk = folder / f"disk{size}"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            break  # not allowed here
        try:
            status = ended(forked(partial(whole.again, disk)))
            grow = ["mount", "-o", "remount,size=64m", str(disk)]
            subprocess.run(grow, check=True, capture_output=True)
            cases += int(status == REFUSED)
            wrong += int(whole.differs(disk)) + int(status not in (0, REFUSED))
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    return {"fault": "full disk", "what": "a small tmpfs", "cases": cases, "wrong": wrong}


def full_disks(most: int, dataset: Dataset, folder: Path) -> list[dict]:
    """Limits and small disks, of each kind so many at most."""
    whole = undisturbed(CONFIGS[1], dataset, folder)
    return [
        show(limited_files(most, whole, folder)),
        show(small_disks(most, whole, folder)),
    ]


def races(pairs: int, dataset: Dataset, folder: Path, draw: random.Random) -> list[dict]:
    """Two processes at one run; of every other pair one is killed, and a third call finishes."""
    whole = undisturbed(CONFIGS[2], dataset, folder)
    rows = []
    for name, killed in (("both live", False), ("one is killed", True)):
        wrong = 0
        for pair in range(pairs // 2):
            wrong += race(whole, folder / f"{killed}{pair}", killed, draw)
        rows.append(show({"fault": "race", "what": name, "cases": pairs // 2, "wrong": wrong}))
    return rows


def race(whole: Undisturbed, folder: Path, killed: bool, draw: random.Random) -> bool:
    """Whether a race of two processes, the first of which may be killed, ends wrong."""
    first = forked(partial(whole.again, folder))
    second = forked(partial(whole.again, folder))
    if killed:
        time.sleep(draw.random() * whole.seconds)
        os.kill(first, signal.SIGKILL)
    first_status, second_status = ended(first), ended(second)

    run = whole.again(folder)
    if outcome(run) != whole.outcome or second_status != 0:
        return True
    return not killed and (first_status != 0 or len(run.record["segments"]) != 1)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m stress faults``."""
    parser.add_argument("--kills", type=int, default=216, help="over three methods and two signals")
    parser.add_argument("--damages", type=int, default=516, help="files, or pairs of them")
    parser.add_argument(
        "--writes", type=int, default=1000, help="on a full disk, at most; a run has fewer"
    )
    parser.add_argument("--pairs", type=int, default=20, help="of racing processes")
    parser.add_argument("--cases", type=int, default=105_000, help="of fuzz, over all readers")


def run(args: argparse.Namespace) -> None:
    """Do, count, print, keep the record."""
    draw = random.Random(args.seed)
    dataset = load_data("digits")
    kinds: dict[str, Callable[[Path], list[dict]]] = {
        "kills": lambda place: kills(args.kills, dataset, place, draw),
        "damages": lambda place: damages(args.damages, dataset, place, draw),
        "disks": lambda place: full_disks(args.writes, dataset, place),
        "races": lambda place: races(args.pairs, dataset, place, draw),
        "fuzz": lambda place: fuzz.rows_of(args.cases, place, args.seed),
    }

    def rows_of(folder: Path) -> list[dict]:
        rows = []
        for name, make in kinds.items():
            (folder / name).mkdir(parents=True)
            rows += make(folder / name)
        return rows

    count_and_keep("faults", rows_of, args, methods=list(METHODS))
