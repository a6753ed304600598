"""Each corruption against its definition in make_cifar_c.py: scipy, colorsys, loops and Pillow."""

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from lib import InputError, corruptions
from lib.corruptions import CORRUPTIONS, SEVERITIES, corrupt

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8))
IMAGES[0, :, :16] = 0  # black, without a hue
LEVELS = {  # typed a second time, from the authors' file
    "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.10],
    "shot_noise": [500, 250, 100, 75, 50],
    "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],
    "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],
    "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
    "pixelate": [0.95, 0.9, 0.85, 0.75, 0.65],
    "jpeg_compression": [80, 65, 58, 50, 40],
}


def cut_off(ours, theirs):
    """ours: levels, the integers below theirs, values in [0, 1]; where theirs is an integer,
    rounding decides."""
    theirs = 255 * np.clip(theirs, 0, 1)
    return (ours <= theirs + 1e-6).all() and (theirs < np.asarray(ours, dtype=int) + 1 + 1e-6).all()


def test_the_parameters_are_the_authors():
    assert {name: list(levels) for name, (_, levels) in CORRUPTIONS.items()} == LEVELS


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_by_scipy(severity):
    radius, sigma = LEVELS["defocus_blur"][severity - 1]
    x, y = np.meshgrid(range(-8, 9), range(-8, 9))
    disk = (x**2 + y**2 <= radius**2) / (x**2 + y**2 <= radius**2).sum()
    smooth = np.exp(
        -np.array([[i * i + j * j for i in (-1, 0, 1)] for j in (-1, 0, 1)]) / (2 * sigma**2)
    )
    kernel = ndimage.convolve(disk, smooth / smooth.sum(), mode="constant")
    ours = corrupt(IMAGES, "defocus_blur", severity)
    for image, blurred in zip(IMAGES.numpy() / 255, ours.numpy()):
        theirs = [ndimage.convolve(channel, kernel, mode="mirror") for channel in image]
        assert cut_off(blurred, theirs)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_pixel_by_pixel_in_hsv(severity):
    ours = corrupt(IMAGES, "brightness", severity).numpy()
    for image, brighter in zip(IMAGES.numpy()[:, :, ::4, ::4] / 255, ours[:, :, ::4, ::4]):
        for row, column in np.ndindex(8, 8):
            h, s, v = colorsys.rgb_to_hsv(*image[:, row, column])
            theirs = colorsys.hsv_to_rgb(h, s, min(v + LEVELS["brightness"][severity - 1], 1))
            assert cut_off(brighter[:, row, column], theirs)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_by_loops(severity):
    ours, factor = corrupt(IMAGES, "contrast", severity).numpy(), LEVELS["contrast"][severity - 1]
    for n, c in np.ndindex(6, 3):
        x = IMAGES[n, c].numpy() / 255
        assert cut_off(ours[n, c], (x - x.sum() / 1024) * factor + x.sum() / 1024)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_and_jpeg_by_pillow(severity):
    for n in range(len(IMAGES)):
        picture = Image.fromarray(IMAGES[n].permute(1, 2, 0).numpy())
        side = int(32 * LEVELS["pixelate"][severity - 1])
        coarse = picture.resize((side, side), Image.Resampling.BOX).resize(
            (32, 32), Image.Resampling.BOX
        )
        file = io.BytesIO()
        picture.save(file, format="JPEG", quality=LEVELS["jpeg_compression"][severity - 1])
        for name, theirs in (("pixelate", coarse), ("jpeg_compression", Image.open(file))):
            assert (
                corrupt(IMAGES, name, severity)[n].permute(1, 2, 0).numpy() == np.asarray(theirs)
            ).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_distribution_it_says(severity):
    grey = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)
    n, value = grey.numel(), 128 / 255
    scale = LEVELS["gaussian_noise"][severity - 1]
    noise = (
        corrupt(grey, "gaussian_noise", severity).double() + 0.5
    ) / 255 - value  # cut off, so half a level
    assert noise.mean().item() == pytest.approx(0, abs=5 * scale / n**0.5)
    assert noise.std().item() == pytest.approx(scale, rel=0.02)
    photons = LEVELS["shot_noise"][severity - 1]
    counts = corrupt(grey, "shot_noise", severity).double() / 255 * photons
    assert counts.var().item() == pytest.approx(
        value * photons, rel=0.03
    )  # Poisson: variance = mean
    share = LEVELS["impulse_noise"][severity - 1]
    struck = corrupt(grey, "impulse_noise", severity)
    for level in (0, 255):
        assert (struck == level).double().mean().item() == pytest.approx(share / 2, rel=0.1)
    assert ((struck == 128) | (struck == 0) | (struck == 255)).all()
    assert (struck != 128).any(1).double().mean() > 2.5 * share  # channel by channel


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_seed_and_severity_give_the_same_images_and_no_others(name):
    first = corrupt(IMAGES, name, 3)
    assert (
        first.shape == IMAGES.shape
        and first.dtype == torch.uint8
        and torch.equal(first, corrupt(IMAGES, name, 3))
    )
    assert not torch.equal(first, corrupt(IMAGES, name, 4)) and not torch.equal(first, IMAGES)
    assert torch.equal(first, corrupt(IMAGES, name, 3, seed=1)) == ("noise" not in name)


def test_unknown_corruptions_are_named():
    for name, severity in (("rain", 1), ("contrast", 0), ("contrast", 6)):
        with pytest.raises(InputError, match=f"unknown corruption '{name}' of severity {severity}"):
            corruptions.corrupt(IMAGES, name, severity)
