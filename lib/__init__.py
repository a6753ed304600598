"""Contrastive learning, reproduced: SimCLR and SupCon in one thin package.

One way through the data, and no arrow back::

    data.load -> augmentations.views -> encoders.Model -> (h, z) -> losses
              -> training.pretrain -> evaluation.evaluate -> records -> figures -> a chapter

``files``, ``config``, ``data``, ``augmentations``, ``corruptions``, ``encoders``, ``losses``, ``geometry``,
``statistics``, ``hardware``, ``records`` and ``distributed`` stand on the ground; ``downloads``, ``optimisers``,
``checkpoints``, ``shares``, ``probes``, ``evaluation``, ``runs``, ``sessions`` and ``training`` on them; ``claims``
and ``figures`` read records; ``experiments``, ``book`` and the command line (``python -m lib``) are on top.
"""

from pathlib import Path

__version__ = "0.1.0"

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: profiles, chapters and published results are found from here."""


class InputError(ValueError):
    """Something given from outside is wrong. The message is one sentence: what, where, and what to do."""
