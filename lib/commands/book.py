"""The command that runs the chapters and builds the site."""

from typing import Annotated

import typer

from lib import InputError
from lib.commands.line import Wait, command


@command("book")
def book(
    profile: Annotated[str, typer.Option(help="A file in book/profiles.")] = "quick",
    only: Annotated[
        str | None, typer.Option(metavar="NN", help="Run only the chapters whose name starts so.")
    ] = None,
    wait: Wait = True,
) -> None:
    """Run the chapters that are not done yet and build the site."""
    from lib import ROOT

    if not (ROOT / "tools" / "book.py").is_file():
        raise InputError(
            f"{ROOT} is no checkout of the book, which is needed to run it: clone the repository "
            "and install it there with pip install -e ."
        )
    from tools import book as builder

    builder.run(profile, only, wait)
    print(f"open {builder.build(profile, wait)}")
