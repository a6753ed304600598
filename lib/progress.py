"""Progress bars: often on a terminal, rarely in a file that keeps every state of them."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SHOWN_EVERY = 1  # seconds, on a terminal
LOGGED_EVERY = 30  # seconds, in a file


def bar(items: Iterable | None = None, **options: Any) -> tqdm:
    """A bar on stderr, of items or to be updated by hand; options are tqdm's."""
    every = SHOWN_EVERY if sys.stderr.isatty() else LOGGED_EVERY
    # tqdm's own thread would else write every ten seconds
    return tqdm(items, mininterval=every, maxinterval=LOGGED_EVERY, **options)
