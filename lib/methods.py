"""The methods: what each makes of a batch's embeddings, one row a method.

A new method is a loss in ``lib.losses`` (or PyTorch's own) and a row here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lib.compute.log_sum_exp import Rows
from lib.losses import nt_xent, sup_con

# (z (V, N, D), labels (N,) or None, the run's lib.config.Config, the anchors that this process sums
# or None) -> a scalar. Nobody waits for a check: a loss that is not finite is met at a checkpoint.
Loss = Callable[[Tensor, Tensor | None, Any, Rows | None], Tensor]


@dataclass(frozen=True)
class Method:
    """How a method trains an encoder, and how it is shown."""

    name: str  # in words
    colour: str  # throughout the book; Okabe and Ito's, which colour-blind readers tell apart
    loss: Loss
    views: int  # of each image in a step
    needs_labels: bool
    classifier: bool = False  # whether z are the logits of the data set's classes
    settings: tuple[str, ...] = ()  # fields of the configuration that are this method's alone


def _simclr(z: Tensor, labels: Tensor | None, config: Any, rows: Rows | None) -> Tensor:
    return nt_xent(z, config.temperature, config.base_temperature, check=False, rows=rows)


def _supcon(z: Tensor, labels: Tensor | None, config: Any, rows: Rows | None) -> Tensor:
    assert labels is not None  # Batches sees to it
    return sup_con(
        z,
        labels,
        config.temperature,
        config.positives,
        config.base_temperature,
        check=False,
        rows=rows,
    )


def _cross_entropy(z: Tensor, labels: Tensor | None, config: Any, rows: Rows | None) -> Tensor:
    assert labels is not None
    logits = z.flatten(0, 1).float()
    return F.cross_entropy(logits, labels.repeat(len(z)), label_smoothing=config.label_smoothing)


METHODS = {
    "simclr": Method("SimCLR", "#0072B2", _simclr, views=2, needs_labels=False),
    "supcon": Method(
        "SupCon", "#D55E00", _supcon, views=2, needs_labels=True, settings=("positives",)
    ),
    "ce": Method(
        "cross-entropy",
        "#009E73",
        _cross_entropy,
        views=1,
        needs_labels=True,
        classifier=True,
        settings=("label_smoothing", "test_every"),
    ),
}
