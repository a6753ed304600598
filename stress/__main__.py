"""The command line: ``python -m stress NAME``."""

import argparse
import sys
from pathlib import Path

from benchmarks import measure
from lib import InputError
from stress import faults, fuzz, inputs

STRESS = {"faults": faults, "fuzz": fuzz, "inputs": inputs}


def main(arguments: list[str] | None = None) -> int:
    """Do what can go wrong, count, keep the record. An InputError is one line and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m stress", description="What can go wrong, done and counted."
    )
    commands = parser.add_subparsers(required=True, metavar="NAME")

    for name, module in STRESS.items():
        command = measure.add_command(commands, name, module)
        command.add_argument("--seed", type=int, default=0, help="of all that is drawn")
        command.add_argument(
            "--keep",
            type=Path,
            metavar="DIR",
            help="folder to work in, for a look at what went wrong",
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
