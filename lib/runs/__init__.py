"""Runs: configuration and data become a folder with a record and weights, whatever happens.

``pretraining`` trains, or goes on, or finds the run done; ``run`` is what it leaves, ``identities``
names it. ``session`` decides when it is saved, ``checkpoints`` how; ``trouble`` ends it before its
time. ``provenance`` and ``records`` say what it was; ``packing`` makes one file of it,
``backup`` copies it to where it outlives the machine.
"""

from lib.runs.identities import NUMERICS, computed_on, furthest, identity, is_open
from lib.runs.pretraining import pretrain
from lib.runs.run import RUNS, Run, load

__all__ = [
    "NUMERICS",
    "RUNS",
    "Run",
    "computed_on",
    "furthest",
    "identity",
    "is_open",
    "load",
    "pretrain",
]
