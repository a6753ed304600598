"""Each corruption against its definition in make_cifar_c.py: scipy, colorsys, loops and Pillow."""

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from lib import InputError
from lib.probes.corruptions import CORRUPTIONS, SEVERITIES, corrupt, versions

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


def cut_off(ours: np.ndarray, values: np.ndarray) -> bool:
    """Whether levels are the integers below values in [0, 1].

    Where a value is an integer, rounding decides.
    """
    theirs = 255 * np.clip(values, 0, 1)
    not_above = ours <= theirs + 1e-6
    not_below = theirs < np.asarray(ours, dtype=int) + 1 + 1e-6
    return not_above.all() and not_below.all()


def test_the_parameters_are_the_authors():
    levels = {name: list(corruption.parameters) for name, corruption in CORRUPTIONS.items()}
    assert levels == LEVELS


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_by_scipy(severity):
    radius, sigma = LEVELS["defocus_blur"][severity - 1]
    x, y = np.meshgrid(range(-8, 9), range(-8, 9))
    inside = x**2 + y**2 <= radius**2
    near_x, near_y = np.meshgrid(range(-1, 2), range(-1, 2))
    gaussian = np.exp(-(near_x**2 + near_y**2) / (2 * sigma**2))
    kernel = ndimage.convolve(inside / inside.sum(), gaussian / gaussian.sum(), mode="constant")
    ours = corrupt(IMAGES, "defocus_blur", severity)
    for image, blurred in zip(IMAGES.numpy() / 255, ours.numpy()):
        for channel, blurred_channel in zip(image, blurred):
            assert cut_off(blurred_channel, ndimage.convolve(channel, kernel, mode="mirror"))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_pixel_by_pixel_in_hsv(severity):
    shift = LEVELS["brightness"][severity - 1]
    ours = corrupt(IMAGES, "brightness", severity).numpy()
    for image, brighter in zip(IMAGES.numpy()[:, :, ::4, ::4] / 255, ours[:, :, ::4, ::4]):
        for row, column in np.ndindex(8, 8):
            h, s, v = colorsys.rgb_to_hsv(*image[:, row, column])
            theirs = colorsys.hsv_to_rgb(h, s, min(v + shift, 1))
            assert cut_off(brighter[:, row, column], np.array(theirs))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_by_loops(severity):
    factor = LEVELS["contrast"][severity - 1]
    ours = corrupt(IMAGES, "contrast", severity).numpy()
    for n, c in np.ndindex(6, 3):
        x = IMAGES[n, c].numpy() / 255
        mean = x.sum() / 1024
        assert cut_off(ours[n, c], (x - mean) * factor + mean)


def coarse(picture: Image.Image, severity: int) -> Image.Image:
    side = int(32 * LEVELS["pixelate"][severity - 1])
    small = picture.resize((side, side), Image.Resampling.BOX)
    return small.resize((32, 32), Image.Resampling.BOX)


def compressed(picture: Image.Image, severity: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=LEVELS["jpeg_compression"][severity - 1])
    return Image.open(file)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(
    "name, by_pillow", [("pixelate", coarse), ("jpeg_compression", compressed)]
)
def test_pixelate_and_jpeg_by_pillow(name, by_pillow, severity):
    ours = corrupt(IMAGES, name, severity).permute(0, 2, 3, 1).numpy()
    for image, changed in zip(IMAGES.permute(0, 2, 3, 1).numpy(), ours):
        theirs = by_pillow(Image.fromarray(image), severity)
        assert (changed == np.asarray(theirs)).all()


def in_units(images: Tensor) -> Tensor:
    """Values in [0, 1]; half a level is added, since they were cut off."""
    return (images.double() + 0.5) / 255


GREY = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_the_distribution_it_says(severity):
    scale = LEVELS["gaussian_noise"][severity - 1]
    noise = in_units(corrupt(GREY, "gaussian_noise", severity)) - 128 / 255
    assert noise.mean().item() == pytest.approx(0, abs=5 * scale / GREY.numel() ** 0.5)
    assert noise.std().item() == pytest.approx(scale, rel=0.02)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_shot_noise_has_the_distribution_it_says(severity):
    photons = LEVELS["shot_noise"][severity - 1]
    counts = in_units(corrupt(GREY, "shot_noise", severity)) * photons
    mean = 128 / 255 * photons
    assert counts.var().item() == pytest.approx(mean, rel=0.03)  # Poisson: variance = mean


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_has_the_distribution_it_says(severity):
    share = LEVELS["impulse_noise"][severity - 1]
    struck = corrupt(GREY, "impulse_noise", severity)
    for level in (0, 255):
        assert (struck == level).double().mean().item() == pytest.approx(share / 2, rel=0.1)
    assert ((struck == 128) | (struck == 0) | (struck == 255)).all()
    assert (struck != 128).any(1).double().mean() > 2.5 * share  # channel by channel


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_seed_and_severity_give_the_same_images_and_no_others(name):
    first = corrupt(IMAGES, name, 3)
    assert first.shape == IMAGES.shape
    assert first.dtype == torch.uint8
    assert torch.equal(first, corrupt(IMAGES, name, 3))
    assert torch.equal(first, corrupt(IMAGES, name, 3, piece=3))  # however many at once
    assert not torch.equal(first, corrupt(IMAGES, name, 4))
    assert not torch.equal(first, IMAGES)
    is_drawn = "noise" in name
    assert torch.equal(first, corrupt(IMAGES, name, 3, seed=1)) == (not is_drawn)


def test_the_versions_of_a_corruption_are_its_severities():
    (unchanged,) = versions(IMAGES, "none")
    assert torch.equal(unchanged, IMAGES)
    for severity, images in enumerate(versions(IMAGES, "contrast"), start=1):
        assert torch.equal(images, corrupt(IMAGES, "contrast", severity))
    assert len(list(versions(IMAGES, "contrast"))) == 5


@pytest.mark.parametrize("name, severity", [("rain", 1), ("contrast", 0), ("contrast", 6)])
def test_unknown_corruptions_are_named(name, severity):
    with pytest.raises(InputError, match=f"unknown corruption '{name}' of severity {severity}"):
        corrupt(IMAGES, name, severity)
