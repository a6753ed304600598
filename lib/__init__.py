"""Contrastive learning, reproduced: SimCLR and SupCon in one thin package.

One way through the data, and no arrow back::

    data.load -> augmentations.views -> encoders.Model -> (h, z) -> losses
              -> training.pretrain -> evaluation.evaluate -> records -> figures -> a chapter

``files``, ``config``, ``data``, ``augmentations``, ``corruptions``, ``encoders``, ``losses``,
``geometry``, ``statistics``, ``hardware``, ``records`` and ``distributed`` stand on the ground;
``downloads``, ``optimisers``, ``checkpoints``, ``shares``, ``probes``, ``evaluation``, ``runs``,
``sessions`` and ``training`` on them; ``comparisons``, ``claims`` and ``figures`` read records;
``foreign``, ``sources`` and ``images`` bring other people's weights and one's own pictures, which
``weights`` and ``estimator`` use; ``experiments``, ``plan`` and its ``queue``, ``book`` and the
command line (``python -m lib``) are on top.
"""

import importlib
from pathlib import Path
from types import ModuleType

__version__ = "0.1.0"

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: profiles, chapters and published results are found from here."""


class InputError(ValueError):
    """Something given from outside is wrong. The message is one sentence: what, where, and what to
    do."""


class Diverged(InputError):
    """A run came to nothing by its own settings: loss or weights are not finite, or all embeddings
    are alike."""


def needed(package: str, extra: str) -> ModuleType:
    """A package that only some commands need. Raises InputError, naming the extra to install, where
    it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"this needs the package {package}, which is not installed; run: pip install -e "
            f"'.[{extra}]'"
        ) from error
