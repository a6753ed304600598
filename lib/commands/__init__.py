"""The commands, in the order in which help lists them.

Each imports what it needs when it is called, so that ``--help`` is there at once.
"""

from lib.commands import runs, evidence, pictures, book  # noqa: F401, I001
from lib.commands.line import app

__all__ = ["app"]
