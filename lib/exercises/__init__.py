"""Checks of what a reader writes in the chapters "Write it yourself" and "Find the fault".

Each takes a function of the reader's, runs it, and answers in a sentence: ``PASSED``, or what is
wrong. ``losses`` compares a loss with this package's and, where they differ, with the mistakes that
are often made (``forms``). ``training`` and ``loop`` watch a loop while it trains (``watch``): what
goes into the model and comes out of it, which gradient comes back, at which rate a step is taken.
"""

from lib.exercises.loop import check_loop
from lib.exercises.losses import check_nt_xent, check_sup_con
from lib.exercises.probe import check_probe
from lib.exercises.sentences import NOT_WRITTEN, PASSED
from lib.exercises.training import GOOD, check_training, neighbours_right

__all__ = [
    "GOOD",
    "NOT_WRITTEN",
    "PASSED",
    "check_loop",
    "check_nt_xent",
    "check_probe",
    "check_sup_con",
    "check_training",
    "neighbours_right",
]
