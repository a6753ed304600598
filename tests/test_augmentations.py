"""Held against torchvision's float tensor operations, parameter by parameter and image by image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
import torchvision.transforms.v2.functional as F
from scipy import stats

from lib import InputError, augmentations
from lib.augmentations import RECIPES, Recipe, apply, draw, two_views, views

OPERATIONS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def images(n=12, height=32, width=32, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, height, width), dtype=np.uint8))


def by_torchvision(image, parameters, i):
    """One image through torchvision, with row i of our parameters."""
    recipe, (height, width) = parameters.recipe, image.shape[-2:]
    x = image.float() / 255
    size = recipe.size or height
    if recipe.crop_scale:
        x = F.resized_crop(x, *parameters.boxes(height, width)[i].tolist(), [size, size], antialias=True)
    elif x.shape[-2:] != (size, size):
        x = F.resize(x, [size, size], antialias=True)
    if parameters.flip[i]:
        x = F.horizontal_flip(x)
    if parameters.jittered[i]:
        for k in parameters.order[i]:
            x = OPERATIONS[k](x, float(parameters.jitter[i, k]))
    if parameters.grey[i]:
        x = F.rgb_to_grayscale(x, num_output_channels=3)
    if recipe.blur_sigma:
        x = F.gaussian_blur(x, [recipe.blur_kernel] * 2, [float(parameters.sigma[i])] * 2)
    return F.normalize(x, recipe.mean, recipe.std)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("height, width, size", [(32, 32, None), (96, 96, 96), (40, 56, 24), (20, 17, 48)])
def test_views_agree_with_torchvision_on_the_same_parameters(recipe, height, width, size):
    recipe, x = replace(RECIPES[recipe], size=size), images(12, height, width)
    parameters = draw(recipe, 12, seed=3, step=5)
    ours = apply(x, parameters)
    for i in range(12):
        error = (ours[i] - by_torchvision(x[i], parameters, i)).abs().max()
        assert error < 2e-5                                         # up to eight steps one after the other
    assert ours.shape == (12, 3, size or height, size or height) and ours.dtype == torch.float32


def test_each_step_agrees_with_torchvision_to_2e_6():
    for seed in range(4):
        x = images(24, 64, 64, seed).float() / 255
        p = draw(RECIPES["uva"], 24, seed, step=1)
        boxes = p.boxes(64, 64)
        cropped = [F.resized_crop(x[i], *boxes[i].tolist(), [64, 64], antialias=True) for i in range(24)]
        pairs = [(augmentations.crop_resize_flip(x, boxes, p.flip, 64),
                  [F.horizontal_flip(c) if p.flip[i] else c for i, c in enumerate(cropped)]),
                 (augmentations.gaussian_blur(x, p.sigma, 9),
                  [F.gaussian_blur(x[i], [9, 9], [float(p.sigma[i])] * 2) for i in range(24)]),
                 (augmentations.shift_hue(x, p.jitter[:, 3]),
                  [F.adjust_hue(x[i], float(p.jitter[i, 3])) for i in range(24)]),
                 (augmentations.luma(x), [F.rgb_to_grayscale(x[i]) for i in range(24)])]
        pairs += [(augmentations.blend(x, torch.full((24,), k), p.jitter[:, k]),
                   [OPERATIONS[k](x[i], float(p.jitter[i, k])) for i in range(24)]) for k in range(3)]
        for ours, theirs in pairs:
            assert (ours - torch.stack(theirs)).abs().max() < 2e-6


def test_normalisation_comes_last():
    recipe = replace(RECIPES["none"], mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    ours = apply(images(), draw(recipe, 12, 0, 0))
    assert torch.allclose(ours, F.normalize(images().float() / 255, recipe.mean, recipe.std), atol=1e-6)


def test_grey_and_extreme_images_survive_the_hue():
    x = torch.stack([torch.full((3, 8, 8), v, dtype=torch.uint8) for v in (0, 128, 255)])
    x = torch.cat([x, torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)])
    shift = torch.tensor([0.5, -0.5, 0.2, 1 / 3])
    ours = augmentations.shift_hue(x.float() / 255, shift)
    for i in range(3):
        assert torch.equal(ours[i], x[i].float() / 255)
    assert torch.allclose(ours[3, :, 0, 0], torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)       # red, a third on: green


def test_rows_depend_on_seed_step_place_and_view_alone():
    a, b = draw(RECIPES["uva"], 64, 1, 2), draw(RECIPES["uva"], 16, 1, 2)
    for field in ("crop", "place", "flip", "jitter", "order", "jittered", "grey", "sigma"):
        assert torch.equal(getattr(a, field)[:16], getattr(b, field))
    for other in (draw(RECIPES["uva"], 64, 2, 2), draw(RECIPES["uva"], 64, 1, 3), draw(RECIPES["uva"], 64, 1, 2, 1)):
        assert not (other.crop == a.crop).any()


def test_every_image_of_a_batch_gets_its_own_parameters():
    """The trap: torchvision's transforms on an (N, 3, H, W) tensor draw once for all N images."""
    same = images(1).expand(32, -1, -1, -1)
    ours = two_views(same, RECIPES["supcontrast"], seed=0, step=0).flatten(0, 1)
    assert len({view.numpy().tobytes() for view in ours}) == 64
    theirs = v2.RandomResizedCrop(32, antialias=True)(same)
    assert len({view.numpy().tobytes() for view in theirs}) == 1


def test_the_batch_may_be_computed_in_any_chunks(monkeypatch):
    x = images(50)
    whole = views(x, RECIPES["supcontrast"], 0, 0)
    monkeypatch.setattr(augmentations, "CHUNK", 7 * 32 * 32)
    assert torch.allclose(views(x, RECIPES["supcontrast"], 0, 0), whole, atol=1e-6)


def test_input_images_are_left_as_they_were():
    x = images()
    before = x.clone()
    two_views(x, RECIPES["uva"], 0, 0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("height, width", [(32, 32), (64, 40)])
def test_parameters_are_distributed_as_torchvisions(height, width):
    """Kolmogorov-Smirnov on each drawn parameter; with 3,000 draws and p > 0.001 a wrong law does not pass."""
    n, recipe = 3000, RECIPES["uva"]
    ours = draw(recipe, n, seed=0, step=0)
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(96, scale=recipe.crop_scale, ratio=recipe.crop_ratio)
    jitter, blur = v2.ColorJitter(*recipe.jitter), v2.GaussianBlur(recipe.blur_kernel, recipe.blur_sigma)
    image = torch.zeros(3, height, width)
    crops = [crop.make_params([image]) for _ in range(n)]
    jitters = [jitter.make_params([image]) for _ in range(n)]
    boxes = ours.boxes(height, width).numpy()
    pairs = {name: (boxes[:, k], [c[name] for c in crops]) for k, name in enumerate(("top", "left", "height", "width"))}
    names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    pairs |= {name: (ours.jitter[:, k], [float(j[name]) for j in jitters]) for k, name in enumerate(names)}
    pairs["sigma"] = ours.sigma, [float(blur.make_params([image])["sigma"][0]) for _ in range(n)]
    for name, (mine, theirs) in pairs.items():
        assert stats.ks_2samp(np.asarray(mine), np.asarray(theirs)).pvalue > 0.001, name
    area, ratio = ours.crop.flatten(0, 1).T.numpy()         # every attempt: the boxes alone hardly tell the ratio's law
    low, high = np.log(recipe.crop_ratio)
    assert stats.kstest(area, stats.uniform(0.08, 0.92).cdf).pvalue > 0.001
    assert stats.kstest(np.log(ratio), stats.uniform(low, high - low).cdf).pvalue > 0.001
    for mine, share in ((ours.flip, 0.5), (ours.jittered, 0.8), (ours.grey, 0.2)):
        assert stats.binomtest(int(mine.sum()), n, share).pvalue > 0.001
    _, counts = np.unique(ours.order.numpy(), axis=0, return_counts=True)
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > 0.001


def test_a_crop_that_never_fits_falls_back_to_the_centre_as_torchvisions_does():
    recipe = Recipe(crop_scale=(2.0, 2.0))
    theirs = v2.RandomResizedCrop(8, scale=(2.0, 2.0)).make_params([torch.zeros(3, 30, 80)])
    assert draw(recipe, 1, 0, 0).boxes(30, 80)[0].tolist() == [theirs[k] for k in ("top", "left", "height", "width")]


def test_bad_input_is_named():
    with pytest.raises(InputError, match="12 images but parameters for 3"):
        apply(images(), draw(RECIPES["uva"], 3, 0, 0))
    with pytest.raises(InputError, match="blur kernel of 9"):
        apply(images(2, 4, 4), draw(RECIPES["uva"], 2, 0, 0))
