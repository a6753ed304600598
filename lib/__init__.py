"""Contrastive learning, reproduced: SimCLR and SupCon in one thin package.

One way through the data, and no arrow back::

    data.load -> augmentations.views -> encoders.Model -> (h, z) -> losses
              -> training.train -> runs.Run -> probes -> records -> evidence -> a chapter

The core are nine files: ``data.dataset``, ``augmentations``, ``encoders``, ``losses``, ``methods``,
``config``, ``presets``, ``training`` and ``evaluation``. The rooms stand on it, each on those
before it: ``compute`` (numbers alone, under the core), ``data``, ``probes``, ``distributed``,
``runs``, ``evidence``, ``weights``. Under the core are also ``hardware``, ``validation``, the
group of ranks (``distributed.group``), ``files``, ``parsing``, ``interruptions`` and
``progress``. ``geometry``, ``figures``, ``settings`` and ``exercises`` are for the chapters;
``python -m lib`` is the command line.
"""

import difflib
import importlib
import os
import shlex
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePath
from types import ModuleType

__version__ = "0.1.0"

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: profiles and chapters are found from here."""

HOME = ROOT if (ROOT / "pyproject.toml").is_file() else Path()
"""Of data, runs, results and weights: the checkout, or where one works with an installed copy."""

SCRIPT = "contrastive"
"""The command line's name, once it is installed."""


def _open_missing_streams() -> None:
    """A standard stream that is not there, closed or pythonw's, becomes the null device.

    Else progress bars fail, and the next file that is opened takes the descriptor's number, under
    which compiled code writes its messages.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # by their numbers
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


_open_missing_streams()


class InputError(ValueError):
    """Something given from outside is wrong.

    The message is one sentence: what, where, and what to do.
    """


class Diverged(InputError):
    """A run came to nothing by its own settings.

    Loss or weights are not finite, or all embeddings are alike.
    """


def in_a_line(text: object, most: int | None = None) -> str:
    """An error's words, or a program's, on one line of at most so many characters."""
    return " ".join(str(text).split())[:most]


def counted(number: int, noun: str) -> str:
    """``1 epoch``, ``45,000 images``."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}s"


def as_command(*words: object) -> str:
    """A command of this package as a shell takes it, whatever letters are in its words."""
    program = "python -m lib"
    if Path(sys.argv[0]).name == SCRIPT:
        program = SCRIPT
    return " ".join([program, *(shlex.quote(str(word)) for word in words)])


def legible(text: str) -> str:
    """Text that any file can hold.

    A byte that is no letter, as in names of files that are not in UTF-8, is spelt out: ``\\xff``.
    """
    try:
        content = text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half of a letter, as Windows allows it
        content = text.encode(errors="surrogatepass")
    return content.decode(errors="backslashreplace")


def name_of(path: PurePath | str) -> str:
    """A file's or class's name in one spelling.

    With /, letters composed with their accents, and bytes that are no letters spelt out.
    """
    return unicodedata.normalize("NFC", legible(PurePath(path).as_posix()))


def needed(package: str, extra: str) -> ModuleType:
    """A package that only some commands need.

    Raises InputError, naming the extra to install, where it is missing.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"this needs the package {package}, which is not installed; run in the checkout: pip "
            f"install -e '.[{extra}]'"
        ) from error


def unknown(kind: str, value: object, known: Iterable) -> str:
    """One sentence for an unknown name, with the nearest known ones."""
    names = list(map(str, known))
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = [f"did you mean '{name}'?" for name in near]
    if not near or len(names) <= 5:  # of a few, all are told: the nearest may mean the opposite
        more = ", ..." if len(names) > 30 else ""
        hint.append(f"known: {', '.join(names[:30])}{more}")
    return f"unknown {kind} '{value}'; {' '.join(hint)}"
