"""The command line: ``python -m stress NAME``."""

import argparse
import sys
from pathlib import Path

from lib import InputError
from lib.runs.records import BENCHMARKS
from stress import faults, fuzz

STRESS = {"faults": faults, "fuzz": fuzz}


def main(arguments: list[str] | None = None) -> int:
    """Do what can go wrong, count, keep the record. An InputError is one line and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m stress", description="What can go wrong, done and counted."
    )
    commands = parser.add_subparsers(required=True, metavar="NAME")

    for name, module in STRESS.items():
        command = commands.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.arguments(command)
        command.add_argument("--seed", type=int, default=0, help="of all that is drawn")
        command.add_argument(
            "--keep",
            type=Path,
            metavar="DIR",
            help="folder to work in, for a look at what went wrong",
        )
        command.add_argument(
            "--results",
            type=Path,
            default=BENCHMARKS,
            metavar="DIR",
            help="where the record goes (default results/benchmarks)",
        )
        command.set_defaults(run=module.run)

    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
