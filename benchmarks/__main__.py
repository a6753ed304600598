"""The command line of the benchmarks: ``python -m benchmarks NAME``."""

import argparse
import sys

from benchmarks import (
    accumulation,
    encoders,
    faults,
    loss,
    measure,
    pictures,
    probe,
    training,
    views,
)
from lib import InputError

BENCHMARKS = {
    "loss": loss,
    "views": views,
    "training": training,
    "probe": probe,
    "pictures": pictures,
    "faults": faults,
    "accumulation": accumulation,
    "encoders": encoders,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark, print its table, keep its record. An InputError is one line and exit
    status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Ours beside the peers, in one run."
    )
    commands = parser.add_subparsers(required=True, metavar="NAME")
    for name, module in BENCHMARKS.items():
        sub = commands.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if getattr(module, "TIMED", True):
            sub.add_argument(
                "--repetitions",
                type=int,
                default=9,
                help="of each case, after one that does not count",
            )
        module.arguments(sub)
        sub.set_defaults(module=module)
    args = parser.parse_args(arguments)
    try:
        for peer in args.module.PEERS:
            measure.installed(peer)
        if getattr(args, "repetitions", 1) < 1:
            raise InputError("--repetitions must be at least 1")
        args.module.run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
