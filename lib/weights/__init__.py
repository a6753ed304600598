"""Weights in place of training: by name, from other projects, for others, and put to use.

``registry`` finds an encoder by name; ``exporting`` writes one for others; ``foreign`` reads and
writes other projects' formats; ``estimator`` makes features, neighbours and a classifier of
pictures.
"""

from lib.weights.exporting import export
from lib.weights.registry import FILE, REGISTRY, Weights, are_weights, load, named_runs, run

__all__ = ["FILE", "REGISTRY", "Weights", "are_weights", "export", "load", "named_runs", "run"]
