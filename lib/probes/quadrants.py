"""The linear probe on h by quadrants: four means over places in place of one.

k-means on patches describes an image so (Coates, Lee and Ng, AISTATS 2011, section 3.2), where a
network's h is one mean over all places. Read both by quadrants, and what remains between them is
not due to that.
"""

import copy

from torch import nn

from lib import InputError
from lib.encoders import Model
from lib.evaluation import Labelled, features, labels_at, linear_probe
from lib.probes.basic import linear_result
from lib.probes.seen import Seen

SIDE = 2  # means along each side of the image


def ask(seen: Seen) -> dict[str, dict]:
    """The linear probe on the encoder's last map (N, width, P, P), averaged over its quadrants.

    They are (N, 4 width) features, chosen for and tested as h is. Raises InputError where the
    encoder does not end with a mean over all places.
    """
    model = by_quadrants(seen.model)

    def labelled(split: str) -> Labelled:
        h, _ = features(model, seen.split(split).images, seen.recipe)
        return h, labels_at(seen.split(split), h.device)

    probe, on_val = linear_probe(labelled("train"), labelled("val"), seen.classes)
    return {"h": {"quadrants": linear_result(probe, on_val, labelled("test"))}}


def by_quadrants(model: Model) -> Model:
    """A copy of a model whose h holds of every channel the means over the four quadrants.

    Its head is gone: z is h. Raises InputError as ``ask`` does.
    """
    working = copy.deepcopy(model)
    means = [part for part in working.encoder.modules() if isinstance(part, nn.AdaptiveAvgPool2d)]
    if len(means) != 1:
        raise InputError("quadrants are read where an encoder ends with a mean over all places")
    (mean,) = means
    mean.output_size = SIDE
    working.head = nn.Identity()
    return working
