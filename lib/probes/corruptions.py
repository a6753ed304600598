"""How well are corrupted images read? By probes that were fitted on clean ones alone.

Eight of the fifteen corruptions of CIFAR-10-C (Hendrycks and Dietterich, arXiv 1903.12261).
Parameters and rounding are those of the authors' make_cifar_c.py at ca36008, made for 32 x 32
pixels. Left out are the seven that need other libraries or images (glass, motion and zoom blur,
snow, frost, fog, elastic). What is drawn is a function of (seed, severity).
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lib import InputError
from lib.data.dataset import stratified
from lib.evaluation import features
from lib.probes.seen import Seen

IMAGES = 2_000  # of test, at most: a stratified part
PIECE = 256  # images that are changed at once, in float64
SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(x: np.ndarray, scale: float, random: np.random.Generator) -> np.ndarray:
    """With normal noise of that deviation. x, here and below: (N, 3, H, W) in [0, 1]."""
    return x + random.normal(size=x.shape, scale=scale)


def shot_noise(x: np.ndarray, photons: float, random: np.random.Generator) -> np.ndarray:
    """As if so many photons were counted at most."""
    return random.poisson(x * photons) / photons


def impulse_noise(
    x: np.ndarray, share: float, random: np.random.Generator, later: np.random.Generator
) -> np.ndarray:
    """Salt and pepper: that share of the values becomes 1 or 0, half of them each.

    later: draws which of the two.
    """
    struck = random.random(x.shape) < share
    salt = later.random(x.shape) < 0.5
    return np.where(struck, salt, x)


def defocus_blur(
    x: np.ndarray, disk: tuple[float, float], random: np.random.Generator
) -> np.ndarray:
    """Convolved with a disk whose edge is smoothed by a 3 x 3 Gaussian; mirrored at the border.

    disk: its radius and the Gaussian's deviation, in pixels.
    """
    radius, sigma = disk
    place = torch.arange(-3, 4, dtype=torch.float64)  # wide enough up to a radius of 2
    inside = place[:, None] ** 2 + place**2 <= radius**2
    flat = inside.double() / inside.sum()  # (7, 7)

    line = torch.exp(-torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64) / (2 * sigma**2))
    gaussian = line[:, None] * line / line.sum() ** 2  # (3, 3)
    kernel = F.conv2d(flat[None, None], gaussian[None, None], padding=1)  # (1, 1, 7, 7)

    channels = torch.from_numpy(x).flatten(0, 1)[:, None]  # (3 N, 1, H, W)
    mirrored = F.pad(channels, (3, 3, 3, 3), "reflect")
    return F.conv2d(mirrored, kernel).reshape(x.shape).numpy()


def brightness(x: np.ndarray, shift: float, random: np.random.Generator) -> np.ndarray:
    """HSV's value, the largest channel, plus shift.

    Hue and saturation stay, so the channels keep their proportions.
    """
    value = x.max(1, keepdims=True)
    brighter = np.minimum(value + shift, 1)
    is_black = value == 0
    scaled = x / np.where(is_black, 1, value) * brighter
    return np.where(is_black, brighter, scaled)


def contrast(x: np.ndarray, factor: float, random: np.random.Generator) -> np.ndarray:
    """Nearer to each channel's mean, by a factor."""
    mean = x.mean((2, 3), keepdims=True)
    return (x - mean) * factor + mean


def pixelate(image: Image.Image, share: float) -> Image.Image:
    """Made smaller, to that share of its sides, and as large as before."""
    sides = int(image.width * share), int(image.height * share)
    small = image.resize(sides, Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BOX)


def jpeg_compression(image: Image.Image, quality: int) -> Image.Image:
    """Written as JPEG of that quality, and read."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


@dataclass(frozen=True)
class Corruption:
    """What is done to images, and how much of it."""

    change: Callable[..., Any]
    parameters: tuple  # at each severity
    one_by_one: bool = False  # done to images by Pillow, one after the other; else to many at once
    draws: int = 1  # arrays of random values for all images, one after the other


CORRUPTIONS = {
    "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption(shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), draws=2),
    "defocus_blur": Corruption(
        defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
    ),
    "brightness": Corruption(brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": Corruption(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), one_by_one=True),
    "jpeg_compression": Corruption(jpeg_compression, (80, 65, 58, 50, 40), one_by_one=True),
}


def corrupt(images: Tensor, name: str, severity: int, seed: int = 0, piece: int = PIECE) -> Tensor:
    """Images (N, 3, H, W) uint8 under a corruption, the same shape and type.

    piece: how many are changed at once, which takes some thirty times their bytes; the result is
        the same.

    Values are cut off, as the authors do. Raises InputError for an unknown corruption or severity.
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise InputError(
            f"unknown corruption '{name}' of severity {severity}; known: "
            f"{', '.join(CORRUPTIONS)}, of severity 1 to 5"
        )
    corruption = CORRUPTIONS[name]
    parameter = corruption.parameters[severity - 1]
    if corruption.one_by_one:
        pictures = []
        for image in images.permute(0, 2, 3, 1).numpy():
            picture = corruption.change(Image.fromarray(image), parameter)
            pictures.append(np.asarray(picture))
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()

    pieces = images.split(piece)
    randoms = []
    for number in range(corruption.draws):
        random = np.random.Generator(np.random.Philox(key=[seed, severity]))
        for _ in range(number):  # what the arrays before this one take of it
            for some in pieces:
                random.random(some.shape)
        randoms.append(random)
    changed = []
    for some in pieces:
        values = corruption.change(some.numpy() / 255, parameter, *randoms)
        changed.append(torch.from_numpy((values.clip(0, 1) * 255).astype(np.uint8)))
    return torch.cat(changed)


def ask(seen: Seen) -> list[dict]:
    """How many of IMAGES test images each reader gets right under each corruption and severity.

    "none" are the same images as they are.
    """
    test_labels = seen.labels("test")
    places = stratified(test_labels, min(IMAGES, len(test_labels)))
    chosen = seen.split("test").images[places]
    labels = test_labels[places]
    readers = seen.readers()
    rows = []
    for name in ("none", *CORRUPTIONS):
        correct: dict[tuple[str, str], list[int]] = {}  # by reader, one for each severity
        for images in versions(chosen, name):
            h, z = features(seen.model, images, seen.recipe)
            for reader, read in readers.items():
                predicted = read(h, z).argmax(1).cpu()
                right = int((predicted == labels).sum())
                correct.setdefault(reader, []).append(right)

        for (kind, probe), counts in correct.items():
            row = {"features": kind, "probe": probe, "corruption": name, "n": len(chosen)}
            rows.append(row | {"correct": counts})
    return rows


def versions(images: Tensor, name: str) -> Iterator[Tensor]:
    """Images (N, 3, H, W) uint8 at every severity of a corruption, or for "none" as they are."""
    if name == "none":
        yield images
        return
    for severity in SEVERITIES:
        yield corrupt(images, name, severity)
