"""What every benchmark needs: times in turns, memory in a process of its own, ratios, a record."""

import argparse
import logging
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch
from tqdm import tqdm

from lib import ROOT, InputError
from lib.runs import provenance, records

Case = Callable[[], object]  # what is timed
Spread = dict[str, float]  # "min", "median" and "max"


def interleaved(
    cases: dict[str, Case],
    repetitions: int,
    within: dict[str, Callable[[], AbstractContextManager]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every call, after one that does not count.

    within: contexts for some cases, which are called twice in theirs, the first time without
        counting, as in the midst of a run.

    A round calls each case once, in an order drawn anew, so that a slow minute of the machine and
    what a case leaves behind in caches fall on all alike.
    """
    within = within or {}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    draw = random.Random(0)

    for turn in tqdm(range(-1, repetitions), desc="rounds", leave=False, disable=None):
        draw.shuffle(names)
        for name in names:
            context = within.get(name, nullcontext)
            with context():
                if name in within:
                    timed(cases[name])
                taken = timed(cases[name])
            if turn >= 0:
                seconds[name].append(taken)
    return seconds


def count(text: str) -> int:
    """An option's value, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got {text!r}")
    return int(text)


def add_command(
    commands: argparse._SubParsersAction, name: str, module: ModuleType
) -> argparse.ArgumentParser:
    """A command for a module that measures or counts: its ``arguments``, its text as help."""
    description = str(module.__doc__)
    command = commands.add_parser(
        name,
        help=description.splitlines()[0],
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.arguments(command)
    command.add_argument(
        "--results",
        type=Path,
        default=records.BENCHMARKS,
        metavar="DIR",
        help="where the record goes (default results/benchmarks)",
    )
    return command


def timed(case: Case) -> float:
    """Seconds of one call, what it started on a GPU included."""
    _synchronise()
    started = time.perf_counter()
    case()
    _synchronise()
    return time.perf_counter() - started


@contextmanager
def quiet() -> Iterator[None]:
    """Without a peer's hints and warnings on the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def spread(values: Sequence[float]) -> Spread:
    """Least, median and largest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def ratios(seconds: Sequence[float], to: Sequence[float]) -> Spread:
    """Spread of the ratio, round by round."""
    return spread([one / other for one, other in zip(seconds, to, strict=True)])


def in_words(ratio: Spread) -> str:
    """A ratio's median and its ends, as "1.20 [1.10, 1.50]"."""
    return f"{ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}]"


def in_own_process(*arguments: str) -> int:
    """The number that ``python -m benchmarks ARGUMENTS`` prints last."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what PyTorch keeps for this process the other one may need

    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        reason = f"killed by signal {-done.returncode}, for memory perhaps"
        if done.stderr.strip():
            reason = done.stderr.strip().splitlines()[-1]
        raise InputError(f"python -m benchmarks {' '.join(arguments)} failed: {reason}")
    return int(done.stdout.split()[-1])


def extra_memory(case: Case, device: torch.device) -> int:
    """Bytes by which one call raises the memory of this process.

    Resident, or on the GPU what PyTorch allocated. The resident peak is that of the whole life of
    the process; where an earlier one was higher, it counts.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case()
        return torch.cuda.max_memory_allocated() - before

    before = _resident("VmRSS")
    case()
    return _resident("VmHWM") - before


def keep(
    name: str,
    device: torch.device,
    rows: list[dict],
    peers: Sequence[str],
    settings: dict,
    folder: Path = records.BENCHMARKS,
    package: str = "benchmarks",
) -> Path:
    """Write a benchmark's record: rows, settings, code, versions, machine.

    package: the folder of the code that measured, beside lib.
    """
    record = {
        "schema": records.SCHEMA,
        "benchmark": name,
        "settings": settings,
        "rows": rows,
        "code": provenance.code(package),
        "versions": provenance.versions() | {peer: installed(peer) for peer in peers},
        "device": provenance.device(device),
        "finished": provenance.now(),
    }
    path = folder / f"{name}-{device.type}.json"
    records.write(path, record)
    return path


def installed(package: str) -> str:
    """A peer's version. Raises InputError where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise InputError(
            f"the peer {package} is not installed; run: pip install -e '.[test]'"
        ) from error


def _resident(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at the peak (VmHWM).

    getrusage would say the parent's peak too.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError("the memory of a process on the CPU is measured on Linux only") from error
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
