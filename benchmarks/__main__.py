"""The command line of the benchmarks: ``python -m benchmarks NAME``."""

import argparse
import sys

from benchmarks import accumulation, encoders, loss, measure, page, pictures, probe, training, views
from lib import InputError

BENCHMARKS = {
    "loss": loss,
    "views": views,
    "training": training,
    "probe": probe,
    "pictures": pictures,
    "accumulation": accumulation,
    "encoders": encoders,
    "page": page,
}


def build_parser() -> argparse.ArgumentParser:
    """A command for each benchmark, with its options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Ours beside the peers, in one run."
    )
    commands = parser.add_subparsers(required=True, metavar="NAME")

    for name, module in BENCHMARKS.items():
        command = measure.add_command(commands, name, module)
        command.add_argument(
            "--repetitions",
            type=measure.count,
            default=9,
            help="of each case, after one that does not count",
        )
        command.set_defaults(module=module)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark, print its table, keep its record.

    An InputError is one line and exit status 2.
    """
    if arguments is None:
        arguments = sys.argv[1:]
    args = build_parser().parse_args(arguments)
    try:
        for peer in args.module.PEERS:
            measure.installed(peer)
        args.module.run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
