"""Faults: runs killed, files damaged, disks full, processes racing, and readers fed what is nearly
right. Counts only.

Runs of a second on the digits, by SimCLR, SupCon and cross-entropy, one thread. Each fault is
followed by the same call again, whose run is held bit for bit (weights and curves; times and rates
apart) against one that nothing happened to. A kill is a signal to a forked process: half at a
random instant, half in the midst of a write, of which some leave a torn file. A disk is full by a
limit on the size of files, and where this process may mount one, by a small tmpfs. A damaged file
must be refused by name; a fuzzed one must be refused or read, with one gigabyte of memory and in
ten seconds.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import fuzz, measure
from lib import InputError, checkpoints, data, files, runs, training
from lib.config import Config, preset

PEERS, TIMED = (), False
OF_THE_MACHINE = {"seconds", "views_per_second"}
METHODS = ("simclr", "supcon", "ce")
CONFIGS = [
    preset(f"{method}-digits", images=200, epochs=3, batch_size=40, drop_last=False, knn_every=1)
    for method in METHODS
]
TMPFS_MEGABYTES = (1, 2, 4, 6, 8, 10, 12, 14)
GIGABYTE = 2**30


def outcome(run: training.Run) -> tuple:
    """What must be the same to the bit: rows without what is the machine's, and a hash of the
    weights."""
    rows = [
        {key: value for key, value in row.items() if key not in OF_THE_MACHINE}
        for row in run.curves
    ]
    weights = [(name, value.numpy().tobytes()) for name, value in run.model.state_dict().items()]
    return json.dumps(rows), hash(tuple(weights))


def train(config: Config, dataset: data.Dataset, folder: Path, every: float = 0.0) -> training.Run:
    """A run with a checkpoint after every so many seconds."""
    training.CHECKPOINT_SECONDS = every
    return training.pretrain(config, dataset, folder, "cpu", progress=False)


def whole_run(config: Config, dataset: data.Dataset, folder: Path) -> tuple[tuple, float]:
    """What a run ends with that nothing happens to, and its seconds; after one that must end the
    same."""
    first = outcome(train(config, dataset, folder / "first"))
    started = time.monotonic()
    second = outcome(train(config, dataset, folder / "second"))
    if first != second:
        raise InputError(
            f"two runs of {config.name} differ without any fault: this machine is not deterministic"
        )
    return second, time.monotonic() - started


def forked(work: Callable[[], object]) -> int:
    """The id of a child that does the work and leaves: with status 3 for an InputError, 4 for
    anything else."""
    child = os.fork()
    if child:
        return child
    status = 4
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()
        status = 0
    except InputError:
        status = 3
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """How a child ended: 0, its status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_in_write(number: int, at: int, torn: bool) -> None:
    """In this process, send the signal to itself at a certain flush or rename of a file, which may
    be left torn."""
    events, fsync, replace = iter(range(10**9)), os.fsync, os.replace

    def strike(descriptor: int | None) -> None:
        if next(events) == at:
            if torn and descriptor is not None and stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), number)

    os.fsync = lambda descriptor: (strike(descriptor), fsync(descriptor))
    os.replace = lambda *paths: (strike(None), replace(*paths))


def kills(wanted: int, dataset: data.Dataset, folder: Path, draw: random.Random) -> list[dict]:
    """One row for each method and signal: kills that struck, of them in a write, and runs that
    ended different."""
    rows = []
    for config in CONFIGS:
        expected, lasts = whole_run(config, dataset, folder)
        for number in (signal.SIGKILL, signal.SIGTERM):
            count = Counter()
            while count["struck"] < wanted / (2 * len(CONFIGS)):
                target, in_write = folder / "cut", count["tries"] % 2 == 0
                at, torn, wait = draw.randrange(105), draw.random() < 0.5, draw.random() * lasts

                def work(
                    config=config, target=target, in_write=in_write, number=number, at=at, torn=torn
                ):
                    if in_write:
                        die_in_write(number, at, torn and number == signal.SIGKILL)
                    train(config, dataset, target)

                child = forked(work)
                if not in_write:
                    time.sleep(wait)
                    os.kill(child, number)
                status = ended(child)
                struck = status == -number
                count += Counter(
                    tries=1,
                    struck=struck,
                    in_write=struck and in_write,
                    odd=status not in (0, -number),
                )
                left = {path.name for path in target.glob("*/*")}
                count["half_done"] += (
                    struck and checkpoints.NEWEST in left and "record.json" not in left
                )
                count["different"] += outcome(train(config, dataset, target)) != expected
                shutil.rmtree(target, ignore_errors=True)
            rows.append(
                {
                    "fault": "kill",
                    "what": f"{config.method}, {signal.Signals(number).name}",
                    "cases": count["struck"],
                    "in_a_write": count["in_write"],
                    "half_done": count["half_done"],
                    "wrong": count["different"] + count["odd"],
                }
            )
            show(rows[-1])
    return rows


def damages(wanted: int, dataset: data.Dataset, folder: Path, draw: random.Random) -> list[dict]:
    """Newest checkpoints, both, and finished models, in four ways each."""
    config = CONFIGS[0]
    done = train(config, dataset, folder / "done")
    half = folder / "half" / done.folder.name
    ended(
        forked(
            lambda: (die_in_write(signal.SIGKILL, 40, False), train(config, dataset, half.parent))
        )
    )
    other = train(CONFIGS[1], dataset, folder / "other").folder / "model.safetensors"
    newest, before, model = (
        half / checkpoints.NEWEST,
        half / checkpoints.BEFORE,
        done.folder / "model.safetensors",
    )
    whole = {path: path.read_bytes() for path in (newest, before, model)}
    strangers = {
        newest: [whole[model], other.read_bytes()],
        before: [whole[model], other.read_bytes()],
        model: [whole[newest], other.read_bytes()],
    }
    steps = {path: checkpoints.read(path)[1].step for path in (newest, before)}

    def damaged(path: Path, way: str) -> bytes:
        content = bytearray(whole[path])
        if way == "flipped":
            content[draw.randrange(draw.choice((400, len(content))))] ^= 1 << draw.randrange(8)
        return {
            "truncated": content[: draw.randrange(1, len(content))],
            "flipped": content,
            "emptied": b"",
            "swapped": draw.choice(strangers[path]),
        }[way]

    def refused(paths: tuple[Path, ...]) -> bool:
        """Whether every damaged file is named, and the one before, where there is one, is what is
        used."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                if model in paths:
                    runs.load_run(done.folder)
                    return False
                fresh = training.build_model(config, dataset)
                found = checkpoints.resume(
                    half,
                    config,
                    fresh,
                    training.build_optimiser(config, fresh),
                    torch.amp.GradScaler("cpu", enabled=False),
                )
            except InputError as error:
                return all(path.name in str(error) for path in paths)
        named = any(newest.name in str(warning.message) for warning in said)
        return before not in paths and found.step == steps[before] and named

    rows = []
    for what, paths in (
        ("newest checkpoint", (newest,)),
        ("both checkpoints", (newest, before)),
        ("model", (model,)),
    ):
        for way in ("truncated", "flipped", "emptied", "swapped"):
            accepted, cases = 0, -(-wanted // 12)
            for _ in range(cases):
                for path in paths:
                    path.write_bytes(damaged(path, way))
                accepted += not refused(paths)
                for path, content in whole.items():
                    path.write_bytes(content)
            rows.append(
                {"fault": "damage", "what": f"{what}, {way}", "cases": cases, "wrong": accepted}
            )
            show(rows[-1])
    return rows


def full_at(write: int) -> None:
    """In this process, from the write of that number on no file may grow beyond half of what is
    written."""
    count, write_atomically = iter(range(10**9)), files.write_atomically

    def limited(path: Path, content: bytes) -> None:
        if next(count) == write:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, resource.RLIM_INFINITY))
        write_atomically(path, content)

    checkpoints.write_atomically = limited
    training.records.write_atomically = limited


def full_disks(most: int, dataset: data.Dataset, folder: Path) -> list[dict]:
    """A limit at each write of a run in turn, until there are no more; then small disks."""
    config, rows = CONFIGS[1], []
    expected, _ = whole_run(config, dataset, folder)
    count = Counter()
    while count["cases"] < most:
        target, write = folder / f"limit{count['cases']}", count["cases"]
        status = ended(
            forked(
                lambda write=write, target=target: (full_at(write), train(config, dataset, target))
            )
        )
        if status == 0:
            break
        count += Counter(cases=1, odd=status != 3)
        count["different"] += outcome(train(config, dataset, target)) != expected
    rows.append(
        {
            "fault": "full disk",
            "what": "a limit at each write",
            "cases": count["cases"],
            "wrong": count["different"] + count["odd"],
        }
    )
    show(rows[-1])
    count = Counter()
    for size in TMPFS_MEGABYTES[:most]:
        disk = folder / f"disk{size}"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", disk]
        if subprocess.run(mount, capture_output=True).returncode:
            break  # not allowed here
        try:
            status = ended(forked(lambda disk=disk: train(config, dataset, disk)))
            subprocess.run(
                ["mount", "-o", "remount,size=64m", disk], check=True, capture_output=True
            )
            count += Counter(cases=status == 3, odd=status not in (0, 3))
            count["different"] += outcome(train(config, dataset, disk)) != expected
        finally:
            subprocess.run(["umount", disk], check=True)
    rows.append(
        {
            "fault": "full disk",
            "what": "a small tmpfs",
            "cases": count["cases"],
            "wrong": count["different"] + count["odd"],
        }
    )
    show(rows[-1])
    return rows


def races(pairs: int, dataset: data.Dataset, folder: Path, draw: random.Random) -> list[dict]:
    """Two processes at one run; of every other pair one is killed in the midst of it, and a third
    call finishes."""
    config, rows = CONFIGS[2], []
    expected, lasts = whole_run(config, dataset, folder)
    for what, killed in (("both live", False), ("one is killed", True)):
        wrong = 0
        for pair in range(pairs // 2):
            target = folder / f"{killed}{pair}"
            children = [
                forked(lambda target=target: train(config, dataset, target)) for _ in range(2)
            ]
            if killed:
                time.sleep(draw.random() * lasts)
                os.kill(children[0], signal.SIGKILL)
            statuses = [ended(child) for child in children]
            run = train(config, dataset, target)
            wrong += (
                outcome(run) != expected
                or statuses[1] != 0
                or (not killed and (statuses != [0, 0] or len(run.record["segments"]) != 1))
            )
        rows.append({"fault": "race", "what": what, "cases": pairs // 2, "wrong": wrong})
        show(rows[-1])
    return rows


def fuzzed(wanted: int, folder: Path, seed: int) -> list[dict]:
    """Every reader on its share of the cases, in a process with a gigabyte more than it has, ten
    seconds a case."""
    rows, readers = [], fuzz.readers(folder)
    for reader, (name, whole, read) in readers.items():
        found = folder / f"{reader}.txt"

        def work(reader=reader, name=name, whole=whole, read=read, found=found):
            draw, place = random.Random(f"{seed} {reader}"), folder / reader
            place.mkdir()
            pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (pages + GIGABYTE, pages + GIGABYTE))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a hang ends the process
            warnings.simplefilter("ignore")
            assert fuzz.try_one(place, name, whole, read) is None
            with open(found, "w") as file:
                for _ in range(-(-wanted // len(readers))):
                    content = fuzz.bent(name, whole, draw)
                    signal.alarm(10)
                    wrong = fuzz.try_one(place, name, content, read)
                    signal.alarm(0)
                    print(json.dumps(wrong), file=file, flush=True)
                    if wrong:
                        (folder / f"{reader}-wrong-{name}").write_bytes(content)

        status = ended(forked(work))
        answers = (
            [json.loads(line) for line in found.read_text().splitlines()] if found.is_file() else []
        )
        wrong = [answer for answer in answers if answer]
        rows.append(
            {
                "fault": "fuzz",
                "what": reader,
                "cases": len(answers),
                "wrong": len(wrong) + (status != 0),
            }
        )
        show(rows[-1])
        for answer, times in Counter(wrong).most_common(9):
            print(f"    {times} x {answer[:200]}")
    return rows


def show(row: dict) -> None:
    """Print a row as it comes."""
    print(
        f"{row['fault']:10} {row['what']:32} {row['cases']:7} cases {row['wrong']:5} wrong"
        + (
            f", {row['in_a_write']} in a write, {row['half_done']} left half done"
            if "in_a_write" in row
            else ""
        ),
        flush=True,
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks faults``."""
    parser.add_argument("--kills", type=int, default=216, help="over three methods and two signals")
    parser.add_argument("--damages", type=int, default=516, help="files, or pairs of them")
    parser.add_argument(
        "--writes", type=int, default=1000, help="on a full disk, at most; a run has fewer"
    )
    parser.add_argument("--pairs", type=int, default=20, help="of racing processes")
    parser.add_argument("--cases", type=int, default=105_000, help="of fuzz, over all readers")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="folder to work in, for a look at what went wrong"
    )


def run(args: argparse.Namespace) -> None:
    """Do, count, print, keep the record."""
    if sys.platform != "linux":
        raise InputError("the faults are made on Linux only")
    torch.set_num_threads(1)  # a forked process can't use its parent's threads
    started, draw, dataset = time.monotonic(), random.Random(args.seed), data.load("digits")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        parts = {name: folder / name for name in ("kills", "damages", "disks", "races", "fuzz")}
        for part in parts.values():
            part.mkdir(parents=True)
        rows = kills(args.kills, dataset, parts["kills"], draw)
        rows += damages(args.damages, dataset, parts["damages"], draw)
        rows += full_disks(args.writes, dataset, parts["disks"])
        rows += races(args.pairs, dataset, parts["races"], draw)
        rows += fuzzed(args.cases, parts["fuzz"], args.seed)
    settings = {"methods": list(METHODS), "seed": args.seed, "seconds": time.monotonic() - started}
    print(measure.keep("faults", torch.device("cpu"), rows, PEERS, settings))
