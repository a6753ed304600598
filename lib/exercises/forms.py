"""Ways to write NT-Xent and SupCon: the right one, and the mistakes that are often made."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Form:
    """A way to write NT-Xent or SupCon; as it stands the right one, and each change a mistake."""

    axis: str = "dimensions"  # along which z has length 1; "images", "embeddings" or "none"
    power: int = -1  # of the temperature, by which cosines are multiplied
    itself: str = "out"  # the anchor in its own denominator: "out", "zero" (as e^0) or "in"
    positives_in_sum: bool = True
    across: bool = False  # whether views of the anchor's own kind are left out
    by_image: bool = False  # rows taken for view 1, view 2 of an image, then the next image's
    labelled: bool = True  # whether the labels count
    own_positive: bool = False  # whether the anchor is its own positive
    inside: bool = False  # the mean over positives within the logarithm
    over: str = "anchors"  # what is averaged: "anchors" or "pairs"; "sum": nothing
    anchors: int = 2  # the views whose embeddings are anchors
    positives_added: bool = False  # in place of their mean
    factor: float = 1.0
    count_more: int = 0  # by how much the number of an anchor's positives is counted too high
    scale: int = 0  # the power of the temperature that multiplies the loss
    softmaxed: bool = False  # whether the logits are probabilities already
    neighbours: bool = False  # whether the partner is taken to be in the next row

    def __call__(self, z: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """Of z (2, N, D) and labels (N,), a scalar."""
        views, images, _ = z.shape
        if not self.labelled:
            labels = torch.arange(images)
        labels = labels.repeat_interleave(views) if self.by_image else labels.repeat(views)
        rows = self._rows(z)
        logits = rows @ rows.T * temperature**self.power  # (2N, 2N)

        same = torch.eye(len(rows), dtype=torch.bool)
        if self.softmaxed:
            logits = logits.masked_fill(same, -math.inf).softmax(1)
        positive = labels[:, None] == labels
        if self.neighbours:
            positive = same.roll(1, dims=1)
        if not self.own_positive:
            positive = positive & ~same
        count = positive.sum(1) + self.count_more
        loss = self._push(logits, same, positive, images) - self._pull(logits, positive, count)

        if self.anchors == 1:
            loss, count = loss[:images], count[:images]
        if self.over == "pairs":
            mean = (loss * count).sum() / count.sum()
        else:
            mean = loss.sum() if self.over == "sum" else loss.mean()
        return mean * self.factor * temperature**self.scale

    def _rows(self, z: Tensor) -> Tensor:
        """Of z (2, N, D): all embeddings, (2N, D), of length 1 where that is not forgotten."""
        if self.axis == "images":
            z = F.normalize(z, dim=1)
        elif self.axis == "dimensions":
            z = F.normalize(z, dim=-1)
        rows = z.flatten(0, 1)
        return F.normalize(rows, dim=0) if self.axis == "embeddings" else rows

    def _pull(self, logits: Tensor, positive: Tensor, count: Tensor) -> Tensor:
        """What each anchor's positives take off its loss: (2N,)."""
        if self.inside:
            pull = logits.masked_fill(~positive, -math.inf).logsumexp(1)
            return pull if self.positives_added else pull - count.log()
        pull = (logits * positive).sum(1)
        return pull if self.positives_added else pull / count

    def _push(self, logits: Tensor, same: Tensor, positive: Tensor, images: int) -> Tensor:
        """The logarithm of each anchor's denominator: (2N,)."""
        if self.itself != "in":
            logits = logits.masked_fill(same, 0 if self.itself == "zero" else -math.inf)
        if not self.positives_in_sum:
            logits = logits.masked_fill(positive, -math.inf)
        if self.across:
            kind = torch.arange(len(logits)) // images
            logits = logits.masked_fill(kind[:, None] == kind, -math.inf)
        return logits.logsumexp(1)


Mistake = tuple[dict[str, Any], str]  # fields of a Form, and what to say of them

OF_BOTH: list[Mistake] = [
    ({"axis": "none"}, "z is not brought to length 1: similarities are cosines."),
    (
        {"axis": "images"},
        "Lengths are taken along the images: F.normalize(z, dim=-1) is each one's.",
    ),
    (
        {"axis": "embeddings"},
        "Lengths are taken along the embeddings: F.normalize(z, dim=-1) is each one's.",
    ),
    ({"power": 1}, "The temperature is on the wrong side: cosines are divided by it."),
    ({"power": 0}, "The temperature has no effect: cosines are divided by it."),
    (
        {"power": 0, "scale": -1},
        "The whole loss is divided by the temperature: only the cosines are, in the exponent.",
    ),
    ({"scale": 1}, "The loss is multiplied by the temperature: nothing but cosines meets it."),
    ({"itself": "in"}, "The anchor is among its own negatives: leave the diagonal out of the sum."),
    (
        {"itself": "zero"},
        "The diagonal is 0, and e to the power of 0 still counts in the sum: minus infinity "
        "takes it out.",
    ),
    ({"over": "sum"}, "The anchors' losses are added up: take their mean."),
    ({"factor": 2.0}, "It is twice the loss: there are 2N anchors, not N."),
    ({"factor": 0.5}, "It is half of the loss: divide by the 2N anchors once."),
    ({"factor": -1.0}, "The sign is wrong: the loss must fall as positives come nearer."),
    (
        {"anchors": 1},
        "Not symmetric: only the first views are anchors, the second ones must be too.",
    ),
]
OF_NT_XENT: list[Mistake] = [
    *OF_BOTH,
    (
        {"positives_in_sum": False},
        "The partner is missing from the denominator, which has all others, 2N - 1 of them.",
    ),
    (
        {"by_image": True},
        "Wrong partners: in z.flatten(0, 1) all first views come before all second views, so the "
        "partner is N rows away.",
    ),
    (
        {"neighbours": True},
        "Wrong partners: the partner of row i is N rows away, not the next row.",
    ),
    (
        {"softmaxed": True, "itself": "in"},
        "Softmax is taken twice: cross_entropy takes logits, and does it itself.",
    ),
    (
        {"across": True},
        "First views meet second views only: the other images' views of the anchor's own kind are "
        "negatives too.",
    ),
    (
        {"across": True, "anchors": 1},
        "Not symmetric: first views are anchors, second views candidates. All 2N embeddings must "
        "be both.",
    ),
]
OF_SUPCON: list[Mistake] = [
    *OF_BOTH,
    (
        {"positives_in_sum": False},
        "The positives are missing from the denominator, which has all others, 2N - 1 of them.",
    ),
    (
        {"by_image": True},
        "Labels in the wrong order: in z.flatten(0, 1) all first views come before all second "
        "views, so labels.repeat(2) fits, and repeat_interleave does not.",
    ),
    ({"labelled": False}, "The labels have no effect: this is NT-Xent, with one positive each."),
    ({"own_positive": True}, "The anchor is among its own positives: leave it out of them."),
    (
        {"own_positive": True, "itself": "in"},
        "The anchor is among its own positives and its own negatives: leave it out of both.",
    ),
    ({"inside": True}, "This is L_in: the mean over positives belongs outside the logarithm."),
    (
        {"over": "pairs"},
        "It averages over all pairs at once: take each anchor's mean over its positives first, and "
        "then the mean over anchors.",
    ),
    (
        {"positives_added": True},
        "An anchor's positives are added up: divide by how many it has.",
    ),
    (
        {"count_more": 1},
        "An anchor's positives are counted with the anchor itself, which is none of them: |P| is "
        "one less.",
    ),
    (
        {"inside": True, "positives_added": True},
        "This is L_in without its 1/|P|: the mean over positives belongs outside the logarithm.",
    ),
    (
        {"scale": 1, "factor": 1 / 0.07},
        "There is a factor temperature / 0.07, which SupContrast's code has.",
    ),
]
