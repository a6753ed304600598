"""Held against torchvision's float tensor operations, parameter by parameter and image by image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
import torchvision.transforms.v2.functional as F
from scipy import stats

from lib import InputError, augmentations
from lib.augmentations import RECIPES, Recipe, apply, draw, views

OPERATIONS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


@pytest.fixture(params=["compiled", "batched"])
def form(request, monkeypatch):
    """Image by image, and as it is computed on other devices and without numba."""
    if request.param == "batched":
        monkeypatch.setattr(augmentations, "kernels", None)
    else:
        assert augmentations.kernels


def images(n=12, height=32, width=32, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (n, 3, height, width), dtype=np.uint8)
    )


def by_torchvision(image, parameters, i):
    """One image through torchvision, with row i of our parameters."""
    recipe, (height, width) = parameters.recipe, image.shape[-2:]
    x = image.float() / 255
    size = recipe.size or height
    if recipe.crop_scale:
        x = F.resized_crop(
            x, *parameters.boxes(height, width)[i].tolist(), [size, size], antialias=True
        )
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
@pytest.mark.parametrize(
    "height, width, size", [(32, 32, None), (96, 96, 96), (40, 56, 24), (20, 17, 48)]
)
def test_views_agree_with_torchvision_on_the_same_parameters(recipe, height, width, size, form):
    recipe, x = replace(RECIPES[recipe], size=size), images(12, height, width)
    parameters = draw(recipe, 12, seed=5, step=5)
    if recipe.jitter_probability:
        assert 0 < parameters.jittered.sum() < 12
    ours = apply(x, parameters)
    for i in range(12):
        error = (ours[i] - by_torchvision(x[i], parameters, i)).abs().max()
        assert error < 2e-5  # up to eight steps one after the other
    assert ours.shape == (12, 3, size or height, size or height) and ours.dtype == torch.float32


def test_views_of_eight_bits_as_the_sources_make_them_are_about_a_level_darker():
    """SupContrast and UvA jitter PIL images, whose blends are cut off to whole levels; chapter 7
    says so."""
    recipe, differences = replace(RECIPES["supcontrast"], crop_scale=None, flip=0, greyscale=0), []
    coarse = np.random.default_rng(0).integers(30, 226, (200, 3, 8, 8), dtype=np.uint8)
    x = F.resize(torch.from_numpy(coarse), [32, 32], antialias=True)
    parameters = draw(recipe, len(x), seed=1, step=0)
    ours = 255 * apply(x, parameters)
    for i in range(len(x)):
        if parameters.jittered[i]:
            image = F.to_pil_image(x[i])
            for k in parameters.order[i]:
                image = OPERATIONS[k](image, float(parameters.jitter[i, k]))
            differences.append(float((ours[i] - F.pil_to_tensor(image)).mean()))
    assert 0.5 < np.mean(differences) < 2


STEPS = {
    "crop": Recipe(crop_scale=(0.08, 1.0)),
    "flip": Recipe(flip=0.5),
    "up": Recipe(size=100),
    "down": Recipe(size=23),
    "brightness": Recipe(jitter=(0.5, 0, 0, 0), jitter_probability=1),
    "contrast": Recipe(jitter=(0, 0.5, 0, 0), jitter_probability=1),
    "saturation": Recipe(jitter=(0, 0, 0.5, 0), jitter_probability=1),
    "hue": Recipe(jitter=(0, 0, 0, 0.5), jitter_probability=1),
    "grey": Recipe(greyscale=0.5),
    "blur": Recipe(blur_sigma=(0.1, 2.0)),
}


@pytest.mark.parametrize("step", STEPS)
def test_each_step_agrees_with_torchvision_to_2e_6(step, form):
    for seed, (height, width) in enumerate([(64, 64), (64, 64), (96, 80)]):
        x, parameters = images(24, height, width, seed), draw(STEPS[step], 24, seed, step=1)
        theirs = torch.stack([by_torchvision(x[i], parameters, i) for i in range(24)])
        assert (apply(x, parameters) - theirs).abs().max() < 2e-6


def test_the_number_of_threads_changes_nothing():
    x, threads = images(7, 40, 40), torch.get_num_threads()
    try:
        made = []
        for count in (1, 2, 3, 16):
            torch.set_num_threads(count)
            made.append(views(x, RECIPES["uva"], 0, 0))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(made[0], other) for other in made)


def test_images_may_lie_in_memory_in_any_way(form):
    x = images(6)
    other = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not other.is_contiguous() and torch.equal(
        views(x, RECIPES["uva"], 0, 0), views(other, RECIPES["uva"], 0, 0)
    )


def test_normalisation_comes_last(form):
    recipe = replace(RECIPES["none"], mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    ours = apply(images(), draw(recipe, 12, 0, 0))
    assert torch.equal(ours, F.normalize(images().float() / 255, recipe.mean, recipe.std))


@pytest.mark.parametrize("shift", [0.5, -0.5, 0.2, 1 / 3])
def test_grey_and_extreme_images_survive_the_hue(shift, form):
    x = torch.stack([torch.full((3, 8, 8), v, dtype=torch.uint8) for v in (0, 128, 255)])
    x = torch.cat(
        [x, torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)]
    )
    parameters = draw(STEPS["hue"], 4, 0, 0)
    parameters.jitter[:, 3] = shift
    ours = apply(x, parameters)
    assert torch.equal(ours[:3], x[:3].float() / 255)
    if shift == 1 / 3:  # red, a third on: green
        assert torch.allclose(ours[3, :, 0, 0], torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)


def test_rows_depend_on_seed_step_place_and_view_alone():
    a, b = draw(RECIPES["uva"], 64, 1, 2), draw(RECIPES["uva"], 16, 1, 2)
    for field in ("crop", "place", "flip", "jitter", "order", "jittered", "grey", "sigma"):
        assert torch.equal(getattr(a, field)[:16], getattr(b, field))
    for other in (
        draw(RECIPES["uva"], 64, 2, 2),
        draw(RECIPES["uva"], 64, 1, 3),
        draw(RECIPES["uva"], 64, 1, 2, 1),
    ):
        assert not (other.crop == a.crop).any()


def test_every_image_of_a_batch_gets_its_own_parameters():
    """The trap: torchvision's transforms on an (N, 3, H, W) tensor draw once for all N images."""
    same = images(1).expand(32, -1, -1, -1)
    ours = views(same, RECIPES["supcontrast"], seed=0, step=0).flatten(0, 1)
    assert len({view.numpy().tobytes() for view in ours}) == 64
    theirs = v2.RandomResizedCrop(32, antialias=True)(same)
    assert len({view.numpy().tobytes() for view in theirs}) == 1


def test_the_batch_may_be_computed_in_any_chunks(monkeypatch):
    monkeypatch.setattr(augmentations, "kernels", None)
    x = images(50)
    whole = views(x, RECIPES["supcontrast"], 0, 0)
    monkeypatch.setattr(augmentations, "CHUNK", 7 * 32 * 32)
    assert torch.allclose(views(x, RECIPES["supcontrast"], 0, 0), whole, atol=1e-6)


def test_input_images_are_left_as_they_were(form):
    x = images()
    before = x.clone()
    views(x, RECIPES["uva"], 0, 0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("height, width", [(32, 32), (64, 40)])
def test_parameters_are_distributed_as_torchvisions(height, width):
    """Kolmogorov-Smirnov on each drawn parameter; with 3,000 draws and p > 0.001 a wrong law does
    not pass."""
    n, recipe = 3000, RECIPES["uva"]
    ours = draw(recipe, n, seed=0, step=0)
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(96, scale=recipe.crop_scale, ratio=recipe.crop_ratio)
    jitter, blur = (
        v2.ColorJitter(*recipe.jitter),
        v2.GaussianBlur(recipe.blur_kernel, recipe.blur_sigma),
    )
    image = torch.zeros(3, height, width)
    crops = [crop.make_params([image]) for _ in range(n)]
    jitters = [jitter.make_params([image]) for _ in range(n)]
    boxes = ours.boxes(height, width).numpy()
    pairs = {
        name: (boxes[:, k], [c[name] for c in crops])
        for k, name in enumerate(("top", "left", "height", "width"))
    }
    names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    pairs |= {
        name: (ours.jitter[:, k], [float(j[name]) for j in jitters]) for k, name in enumerate(names)
    }
    pairs["sigma"] = ours.sigma, [float(blur.make_params([image])["sigma"][0]) for _ in range(n)]
    for name, (mine, theirs) in pairs.items():
        assert stats.ks_2samp(np.asarray(mine), np.asarray(theirs)).pvalue > 0.001, name
    area, ratio = ours.crop.flatten(
        0, 1
    ).T.numpy()  # every attempt: the boxes alone hardly tell the ratio's law
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
    assert draw(recipe, 1, 0, 0).boxes(30, 80)[0].tolist() == [
        theirs[k] for k in ("top", "left", "height", "width")
    ]


def test_bad_input_is_named():
    with pytest.raises(InputError, match="12 images but parameters for 3"):
        apply(images(), draw(RECIPES["uva"], 3, 0, 0))
    with pytest.raises(InputError, match="blur kernel of 9"):
        apply(images(2, 4, 4), draw(RECIPES["uva"], 2, 0, 0))
