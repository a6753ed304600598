"""How was an image changed? Read from h and from z (SimCLR section 4.2, table 3)."""

from collections.abc import Callable

import torch
from torch import Tensor

from lib.compute.image_operations import luma
from lib.data.dataset import stratified
from lib.evaluation import Labelled, features, linear_probe
from lib.probes.basic import linear_result
from lib.probes.seen import Seen

IMAGES = 2_000  # of each split, at most, from which a change is read

# images (N, 3, H, W) uint8 -> their versions, which a probe must tell apart
Change = Callable[[Tensor], list[Tensor]]


def rotation(images: Tensor) -> list[Tensor]:
    """By 0, 90, 180 and 270 degrees."""
    return [images.rot90(turns, (2, 3)) for turns in range(4)]


def grey(images: Tensor) -> list[Tensor]:
    """In colour and in grey."""
    greyscale = luma(images.float().unbind(1)).round().to(torch.uint8)
    return [images, greyscale.unsqueeze(1).expand(-1, 3, -1, -1)]


def noise(images: Tensor) -> list[Tensor]:
    """Without and with Gaussian noise of 25 levels, always the same."""
    generator = torch.Generator().manual_seed(0)
    noisy = images + 25 * torch.randn(images.shape, generator=generator)
    return [images, noisy.round().clamp(0, 255).to(torch.uint8)]


CHANGES: dict[str, Change] = {"rotation": rotation, "grey": grey, "noise": noise}


def ask(seen: Seen, name: str) -> dict[str, dict]:
    """The linear probe on each kind of features, the class being the version of an image.

    name: of one of CHANGES. n counts versions of images.
    """
    change = CHANGES[name]
    versions = len(change(seen.dataset.test.images[:1]))
    train = _labelled(seen, change, "train")
    val = _labelled(seen, change, "val")
    test = _labelled(seen, change, "test")

    answers = {}
    for kind in seen.kinds:
        probe, on_val = linear_probe(train[kind], val[kind], versions)
        answers[kind] = {name: linear_result(probe, on_val, test[kind])}
    return answers


def _labelled(seen: Seen, change: Change, split: str) -> dict[str, Labelled]:
    """h and z of every version of some images, drawn evenly from every class; and which it is."""
    classes = seen.labels(split)
    images = seen.split(split).images[stratified(classes, min(IMAGES, len(classes)))]
    parts_of_h, parts_of_z, parts_of_labels = [], [], []
    for version, changed in enumerate(change(images)):
        h, z = features(seen.model, changed, seen.recipe)
        parts_of_h.append(h)
        parts_of_z.append(z)
        parts_of_labels.append(torch.full((len(h),), version, device=h.device))

    labels = torch.cat(parts_of_labels)
    return {"h": (torch.cat(parts_of_h), labels), "z": (torch.cat(parts_of_z), labels)}
