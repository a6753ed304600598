"""Corruptions of test images: eight of the fifteen of CIFAR-10-C (Hendrycks and Dietterich, arXiv
1903.12261).

Parameters and rounding are those of the authors' make_cifar_c.py at ca36008, made for 32 x 32
pixels. Left out are the seven that need other libraries or images (glass, motion and zoom blur,
snow, frost, fog, elastic). What is drawn is a function of (seed, severity).
"""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lib import InputError

SEVERITIES = (1, 2, 3, 4, 5)


def impulse_noise(x: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Salt and pepper: that share of the values becomes 1 or 0, half of them each. x: (N, 3, H, W)
    in [0, 1]."""
    struck, salt = random.random(x.shape) < share, random.random(x.shape) < 0.5
    return np.where(struck, salt, x)


def defocus_blur(
    x: np.ndarray, disk: tuple[float, float], random: np.random.Generator
) -> np.ndarray:
    """Convolved with a disk of a radius, its edge smoothed by a 3 x 3 Gaussian; mirrored at the
    border."""
    radius, sigma = disk
    place = torch.arange(-3, 4, dtype=torch.float64)  # wide enough up to a radius of 2
    flat = (place[:, None] ** 2 + place**2 <= radius**2).double()
    line = torch.exp(-torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64) / (2 * sigma**2))
    smooth = line[:, None] * line / line.sum() ** 2
    kernel = F.conv2d(
        (flat / flat.sum())[None, None], smooth[None, None], padding=1
    )  # (1, 1, 7, 7)
    channels = torch.from_numpy(x).flatten(0, 1)[:, None]  # (3 N, 1, H, W)
    return F.conv2d(F.pad(channels, (3, 3, 3, 3), "reflect"), kernel).reshape(x.shape).numpy()


def brightness(x: np.ndarray, shift: float, random: np.random.Generator) -> np.ndarray:
    """HSV's value, the largest channel, plus shift; hue and saturation stay, so the channels keep
    their proportions."""
    value = x.max(1, keepdims=True)
    brighter = np.minimum(value + shift, 1)
    return np.where(value > 0, x / np.where(value > 0, value, 1) * brighter, brighter)


def _pixelate(image: Image.Image, share: float) -> Image.Image:
    small = image.resize(
        (int(image.width * share), int(image.height * share)), Image.Resampling.BOX
    )
    return small.resize(image.size, Image.Resampling.BOX)


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


CORRUPTIONS = {  # what is done, and its parameter at each severity
    "gaussian_noise": (
        lambda x, scale, random: x + random.normal(size=x.shape, scale=scale),
        (0.04, 0.06, 0.08, 0.09, 0.10),
    ),
    "shot_noise": (
        lambda x, photons, random: random.poisson(x * photons) / photons,
        (500, 250, 100, 75, 50),
    ),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (
        lambda x, factor, _: (
            (x - x.mean((2, 3), keepdims=True)) * factor + x.mean((2, 3), keepdims=True)
        ),
        (0.75, 0.5, 0.4, 0.3, 0.15),
    ),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (_jpeg, (80, 65, 58, 50, 40)),
}


def corrupt(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """Images (N, 3, H, W) uint8 under a corruption, the same shape and type; values are cut off, as
    the authors do.

    Raises InputError for an unknown corruption or severity.
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise InputError(
            f"unknown corruption '{name}' of severity {severity}; known: "
            f"{', '.join(CORRUPTIONS)}, of "
            f"severity 1 to 5"
        )
    function, parameters = CORRUPTIONS[name]
    if function in (_pixelate, _jpeg):
        pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]
        changed = np.stack(
            [np.asarray(function(picture, parameters[severity - 1])) for picture in pictures]
        )
        return torch.from_numpy(changed).permute(0, 3, 1, 2).contiguous()
    random = np.random.Generator(np.random.Philox(key=[seed, severity]))
    changed = function(images.numpy() / 255, parameters[severity - 1], random)
    return torch.from_numpy((changed.clip(0, 1) * 255).astype(np.uint8))
