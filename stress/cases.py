"""What every kind of stress needs: a process that may come to grief, a row of counts, a record."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.measure import keep
from lib import InputError

REFUSED, FAILED = 3, 4  # statuses of a child: an InputError, anything else


def forked(work: Callable[[], object]) -> int:
    """The id of a child that does the work and leaves: with REFUSED or FAILED where it says so."""
    child = os.fork()
    if child:
        return child

    status = FAILED
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()
        status = 0
    except InputError:
        status = REFUSED
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """How a child ended: 0, its status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def show(row: dict) -> dict:
    """Print a row as it comes, and return it."""
    line = f"{row['fault']:10} {row['what']:32} {row['cases']:7} cases {row['wrong']:5} wrong"
    if "in_a_write" in row:
        line += f", {row['in_a_write']} in a write, {row['half_done']} left half done"
    print(line, flush=True)
    return row


@contextmanager
def workplace(keep: Path | None) -> Iterator[Path]:
    """A folder to work in, by one thread: the one to keep, or one that goes afterwards.

    Raises InputError elsewhere than on Linux.
    """
    if sys.platform != "linux":
        raise InputError("the faults are made on Linux only")
    torch.set_num_threads(1)  # a forked process can't use its parent's threads

    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def count_and_keep(
    name: str,
    rows_of: Callable[[Path], list[dict]],
    args: argparse.Namespace,
    **settings: object,
) -> None:
    """Make the rows in a folder to work in, and keep them as the record of that name; print it.

    args: of the command line: keep, seed and results.
    settings: what the record says beside the seed and the seconds.
    """
    started = time.monotonic()
    with workplace(args.keep) as folder:
        rows = rows_of(folder)
    settings |= {"seed": args.seed, "seconds": time.monotonic() - started}
    print(keep(name, torch.device("cpu"), rows, (), settings, args.results, package="stress"))
