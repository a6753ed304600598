"""What every benchmark needs: interleaved times, peak memory in a process of its own, ratios, and a
record."""

import logging
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from tqdm import tqdm

from lib import ROOT, InputError, records


def interleaved(
    cases: dict[str, Callable[[], object]],
    repetitions: int,
    within: dict[str, Callable[[], AbstractContextManager]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every call, after one that does not count.

    A round calls each case once, in an order drawn anew, so that a slow minute of the machine and
    what a case leaves behind in caches fall on all alike. within: contexts for some cases, which
    are called twice in theirs, the first time without counting, as in the midst of a run.
    """
    within = within or {}
    seconds, names, draw = {name: [] for name in cases}, list(cases), random.Random(0)
    for turn in tqdm(range(-1, repetitions), desc="rounds", leave=False, disable=None):
        draw.shuffle(names)
        for name in names:
            with within.get(name, nullcontext)():
                for _ in range(1 + (name in within)):
                    _synchronise()
                    started = time.perf_counter()
                    cases[name]()
                    _synchronise()
                    taken = time.perf_counter() - started
            if turn >= 0:
                seconds[name].append(taken)
    return seconds


@contextmanager
def quiet() -> Iterator[None]:
    """Without a peer's hints and warnings on the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        yield
        logging.disable(logging.NOTSET)


def spread(values: list[float]) -> dict[str, float]:
    """Least, median and largest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def ratios(seconds: list[float], to: list[float]) -> dict[str, float]:
    """Spread of the ratio, round by round."""
    return spread([one / other for one, other in zip(seconds, to, strict=True)])


def in_own_process(*arguments: str) -> int:
    """The number that ``python -m benchmarks ARGUMENTS`` prints last."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what PyTorch keeps for this process the other one may need
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [
            f"killed by signal {-done.returncode}, for memory perhaps"
        ]
        raise InputError(f"python -m benchmarks {' '.join(arguments)} failed: {reason[-1]}")
    return int(done.stdout.split()[-1])


def extra_memory(case: Callable[[], object], device: torch.device) -> int:
    """Bytes by which one call raises the memory of this process: resident, or on the GPU what
    PyTorch allocated.

    The resident peak is that of the whole life of the process; where an earlier one was higher, it
    counts.
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
    name: str, device: torch.device, rows: list[dict], peers: list[str], settings: dict
) -> Path:
    """Write a benchmark's record: rows, settings, code, versions, machine."""
    versions = records.versions() | {peer: installed(peer) for peer in peers}
    record = {
        "schema": records.SCHEMA,
        "benchmark": name,
        "settings": settings,
        "rows": rows,
        "code": records.code("benchmarks"),
        "versions": versions,
        "device": records.device(device),
        "finished": records.now(),
    }
    path = records.BENCHMARKS / f"{name}-{device.type}.json"
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
    """Bytes of this process in memory: now (VmRSS) or at the peak (VmHWM), of which getrusage says
    the parent's too."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError as error:
        raise InputError("the memory of a process on the CPU is measured on Linux only") from error
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
