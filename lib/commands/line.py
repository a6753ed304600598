"""What every command has: the application, its examples, options that several share, and notes."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lib import InputError
from lib.files import as_path

EXAMPLES = """examples:
  python -m lib pretrain simclr-digits                       half a minute, without any download
  python -m lib pretrain supcon-cifar10 --epochs 100 --set encoder=resnet18
  python -m lib pretrain simclr-digits --epochs 0            the untrained encoder, to compare with
  python -m lib probe runs/RUN                               what do its h and z know?
  python -m lib probe simclr-cifar10                         and those of the weights that are here?
  python -m lib probe runs/RUN --with uva --with labels      as published, and with few labels
  python -m lib probe runs/A runs/B --only validation        which setting is better?
  python -m lib compare runs/RUN runs/OTHER                  is one better, or is it noise?
  python -m lib publish runs/RUN                             put its record where chapters read it
  python -m lib experiments --budget-minutes 60              what is missing, most valuable first
  python -m lib experiments --only heads-slice --plan        what is there of one of them
  python -m lib tune tuning                                  what a plan's entry tries, all of it
  python -m lib replicate report-head --minutes 30           compute again what a claim rests on
  python -m lib records                                      every published accuracy
  python -m lib headline                                     the first page's table anew
  python -m lib export runs/RUN --out weights/mine           weights and a model card, for others
  python -m lib import photos --size 96 --out data/mine.npz  a folder becomes --data mine
  python -m lib embed photos --weights runs/RUN --out h.npz  features; also by a .pth or .ckpt
  python -m lib neighbours h.npz cats/1.jpg                  the pictures most alike one of them
  python -m lib predict new.npz --train h.npz                classes, by a probe on labelled ones
  python -m lib book --profile cpu --only 03                 run chapter 03 on a slice of CIFAR-10
"""
SEVERAL_RUNS = " where a run does not say its precision"  # said of the device of several

app = typer.Typer(
    help="Contrastive learning, reproduced.",
    epilog="\b\n" + EXAMPLES,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)


def command(name: str):
    """Make a function a command of that name; its examples stand in its help.

    Its paths may begin with ~.
    """
    lines = EXAMPLES.splitlines()
    own = [line for line in lines if line.startswith(f"  python -m lib {name} ")]
    register = app.command(name, epilog="\n".join(["\b", lines[0], *own]))

    def registered(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def with_homes(**values: Any) -> None:
            function(**{parameter: _with_homes(value) for parameter, value in values.items()})

        return register(with_homes)

    return registered


def _with_homes(value: Any) -> Any:
    """A path, or those in a list, with ~ as people mean it; any other value as it is."""
    if isinstance(value, list):
        return [_with_homes(entry) for entry in value]
    if isinstance(value, Path):
        return as_path(value)
    return value


Runs = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of all runs (default runs/).")
]
DataRoot = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Folder of data sets (default DATA_ROOT, else data/)."),
]
Size = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS",
        help="Side of the images that another project's checkpoint sees, where its file does not "
        "say it.",
    ),
]
Mean = Annotated[
    tuple[float, float, float] | None,
    typer.Option(metavar="R G B", help="The mean that it takes off their pixels in [0, 1]."),
]
Std = Annotated[
    tuple[float, float, float] | None,
    typer.Option(metavar="R G B", help="The deviation that it divides them by."),
]
Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu (default the best there is).")]
Wait = Annotated[
    bool,
    typer.Option(
        " /--no-wait",
        help="Leave with an error where another process is at the same work, instead of waiting.",
    ),
]
Features = Annotated[Path, typer.Argument(metavar="FEATURES.npz")]


def tell_device(
    asked: str | None, precision: str = "auto", note: str = "", chosen: str | None = None
) -> None:
    """On stderr what computes, and why no GPU does where there is one.

    asked: the device of the command line; chosen: this rank's.
    """
    from lib import hardware
    from lib.compute import drivers
    from lib.distributed.group import rank

    if rank():
        return
    unusable = drivers.unusable_gpu() if asked is None else None
    device = hardware.choose_device(chosen or asked)
    print(f"device: {hardware.in_words(device, precision)}{note}", file=sys.stderr, flush=True)
    if unusable:
        print(f"note: {unusable}", file=sys.stderr, flush=True)


def data_root_option(data_root: str | Path | None) -> list[str]:
    """The option that names the folder of data sets, where one was named."""
    if not data_root:
        return []
    return ["--data-root", str(data_root)]


def refuse(error: str) -> int:
    """Say why on stderr; the status of a command that could not do its work."""
    print(f"error: {error}", file=sys.stderr)
    return 2


def for_each(folders: list[Path], work: Callable[[Path], None]) -> None:
    """As runs/* may hold what is unfinished or no run, one that is refused keeps no other back."""
    refused = 0
    for folder in folders:
        try:
            work(folder)
        except InputError as error:
            if len(folders) == 1:
                raise
            refuse(str(error))
            refused += 1
    if refused:
        raise InputError(f"{refused} of {len(folders)} were refused, see above; the rest is done")
