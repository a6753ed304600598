"""What a GPU does in its first minutes: is it right, how fast is it, and what can it decide.

    python -m tools.gpu --minutes 15

First the smoke test, then the benchmark of training, then the experiments of the published size,
most valuable first, as far as the minutes go; last an encoder of each method is exported. What is
done stays done: the same command goes on.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lib import InputError
from lib.files import as_path
from lib.methods import METHODS
from lib.runs import RUNS, load

EXPORTING = 1.0  # minutes that are left for it

Command = list[str]
Call = Callable[[Command], int]  # runs a command and returns its exit status


def work(minutes: float, options: Sequence[str], runs: Path, weights: Path, call: Call) -> None:
    """The four steps. options: of the experiments' command, as --data-root.

    Raises InputError where the GPU computes something wrong, before it leaves a record.
    """
    started = time.monotonic()
    if call(["pytest", "-m", "device"]):
        raise InputError("the smoke test failed, see above: nothing is run on this device")
    if call(["benchmarks", "training", "--side", "32", "--encoders", "resnet18"]):
        print("the benchmark failed, see above; the experiments begin", file=sys.stderr)

    left = minutes - (time.monotonic() - started) / 60 - EXPORTING
    call(["lib", "experiments", "--budget-minutes", f"{max(left, 0):.1f}", *options])
    for method, run in longest(runs).items():
        call(["lib", "export", str(run), "--out", str(weights / method)])


def longest(runs: Path) -> dict[str, Path]:
    """Of each method the finished run of most epochs, of equals the first: no accuracy chooses."""
    found: dict[str, tuple[int, Path]] = {}
    for record in sorted(runs.glob("*/record.json")):
        config = load(record.parent).config
        if config.epochs > found.get(config.method, (0, record))[0]:
            found[config.method] = (config.epochs, record.parent)
    return {method: found[method][1] for method in METHODS if method in found}


def in_this_python(command: Command) -> int:
    """Run a module of this Python with its arguments; what it prints is shown."""
    return subprocess.run([sys.executable, "-m", *command], check=False).returncode


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15, help="default 15")
    parser.add_argument("--runs", type=as_path, default=RUNS, help="folder of all runs")
    parser.add_argument("--weights", type=as_path, default=Path("weights"), help="for the export")
    parser.add_argument("--data-root", help="folder of data sets")
    given = parser.parse_args(arguments)

    options = ["--scale", "full", "--runs", str(given.runs)]
    if given.data_root:
        options += ["--data-root", given.data_root]
    try:
        work(given.minutes, options, given.runs, given.weights, in_this_python)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
