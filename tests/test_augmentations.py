"""Held against torchvision's float tensor operations, parameter by parameter, image by image."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
import torchvision.transforms.v2.functional as F
from scipy import stats

from lib import ROOT, InputError, augmentations
from lib.augmentations import RECIPES, Recipe, apply, draw, views, views_in_batches_of

OPERATIONS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def compiled(x, parameters):
    """Image by image."""
    assert augmentations.views_cpu is not None
    return apply(x, parameters)


def batched(x, parameters):
    """As on other devices and without numba."""
    return views_in_batches_of(x, [parameters])[0]


both_forms = pytest.mark.parametrize("compute", [compiled, batched])


def images(n=12, height=32, width=32, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 3, height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)


def by_torchvision(image, parameters, i):
    """One image through torchvision, with row i of our parameters."""
    recipe, (height, width) = parameters.recipe, image.shape[-2:]
    x = image.float() / 255
    size = recipe.size or height
    if recipe.crop_scale:
        box = parameters.boxes(height, width)[i].tolist()
        x = F.resized_crop(x, *box, [size, size], antialias=True)
    elif x.shape[-2:] != (size, size):
        x = F.resize(x, [size, size], antialias=True)
    if parameters.flip[i]:
        x = F.horizontal_flip(x)
    if parameters.jittered[i]:
        x = jittered_by_torchvision(x, parameters, i)
    if parameters.grey[i]:
        x = F.rgb_to_grayscale(x, num_output_channels=3)
    if recipe.blur_sigma:
        x = F.gaussian_blur(x, [recipe.blur_kernel] * 2, [float(parameters.sigma[i])] * 2)
    return F.normalize(x, recipe.mean, recipe.std)


def jittered_by_torchvision(image, parameters, i):
    for k in parameters.order[i]:
        image = OPERATIONS[k](image, float(parameters.jitter[i, k]))
    return image


SIZES = [(32, 32, None), (96, 96, 96), (40, 56, 24), (20, 17, 48)]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("height, width, size", SIZES)
@both_forms
def test_views_agree_with_torchvision_on_the_same_parameters(recipe, height, width, size, compute):
    recipe, x = replace(RECIPES[recipe], size=size), images(12, height, width)
    parameters = draw(recipe, 12, seed=5, step=5)
    if recipe.jitter_probability:
        assert 0 < parameters.jittered.sum() < 12

    ours = compute(x, parameters)
    assert ours.shape == (12, 3, size or height, size or height)
    assert ours.dtype == torch.float32
    for i in range(12):
        error = (ours[i] - by_torchvision(x[i], parameters, i)).abs().max()
        assert error < 2e-5  # up to eight steps one after the other


def test_views_of_eight_bits_as_the_sources_make_them_are_about_a_level_darker():
    """SupContrast and UvA jitter PIL images, whose blends are cut off to whole levels.

    Chapter 8 says so.
    """
    recipe = replace(RECIPES["supcontrast"], crop_scale=None, flip=0, greyscale=0)
    coarse = np.random.default_rng(0).integers(30, 226, (200, 3, 8, 8), dtype=np.uint8)
    x = F.resize(torch.from_numpy(coarse), [32, 32], antialias=True)
    parameters = draw(recipe, len(x), seed=1, step=0)
    ours = 255 * apply(x, parameters)

    differences = []
    for i in parameters.jittered.nonzero()[:, 0]:
        image = jittered_by_torchvision(F.to_pil_image(x[i]), parameters, i)
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
@both_forms
def test_each_step_agrees_with_torchvision_to_2e_6(step, compute):
    for seed, (height, width) in enumerate([(64, 64), (64, 64), (96, 80)]):
        x = images(24, height, width, seed)
        recipe = replace(STEPS[step], size=STEPS[step].size or height)
        parameters = draw(recipe, 24, seed, step=1)
        theirs = torch.stack([by_torchvision(x[i], parameters, i) for i in range(24)])
        assert (compute(x, parameters) - theirs).abs().max() < 2e-6


def test_the_number_of_threads_changes_nothing():
    x, threads = images(7, 40, 40), torch.get_num_threads()
    made = []
    try:
        for count in (1, 2, 3, 16):
            torch.set_num_threads(count)
            made.append(views(x, RECIPES["uva"], 0, 0))
    finally:
        torch.set_num_threads(threads)
    for other in made[1:]:
        assert torch.equal(made[0], other)


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None  # as where it is not installed
import torch
from lib import augmentations
from lib.runs import provenance
images, parameters = torch.load(sys.argv[1], weights_only=False)
assert augmentations.views_cpu is None
assert "numba" not in provenance.versions()
torch.save(augmentations.apply(images, parameters), sys.argv[2])
"""


def test_without_numba_views_are_computed_in_batches(tmp_path):
    x, parameters = images(), draw(RECIPES["uva"], 12, 0, 0)
    given, made = tmp_path / "given.pt", tmp_path / "made.pt"
    torch.save((x, parameters), given)
    command = [sys.executable, "-c", WITHOUT_NUMBA, given, made]
    done = subprocess.run(command, cwd=ROOT, check=True, timeout=300, stderr=subprocess.PIPE)
    assert b"numba can't be imported" in done.stderr
    assert torch.equal(torch.load(made), batched(x, parameters))


@both_forms
def test_images_may_lie_in_memory_in_any_way(compute):
    x, parameters = images(6), draw(RECIPES["uva"], 6, 0, 0)
    other = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not other.is_contiguous()
    assert torch.equal(compute(x, parameters), compute(other, parameters))


@both_forms
def test_input_images_are_left_as_they_were(compute):
    x = images()
    before = x.clone()
    compute(x, draw(RECIPES["uva"], 12, 0, 0))
    assert torch.equal(x, before)


@both_forms
def test_normalisation_comes_last(compute):
    recipe = replace(RECIPES["none"], mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    ours = compute(images(), draw(recipe, 12, 0, 0))
    assert torch.equal(ours, F.normalize(images().float() / 255, recipe.mean, recipe.std))


@pytest.mark.parametrize("shift", [0.5, -0.5, 0.2, 1 / 3])
@both_forms
def test_grey_and_extreme_images_survive_the_hue(shift, compute):
    greys = [torch.full((3, 8, 8), level, dtype=torch.uint8) for level in (0, 128, 255)]
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8)
    x = torch.stack([*greys, red])
    parameters = draw(STEPS["hue"], 4, 0, 0)
    parameters.jitter[:, 3] = shift

    ours = compute(x, parameters)
    assert torch.equal(ours[:3], x[:3].float() / 255)
    if shift == 1 / 3:  # red, a third on: green
        assert torch.allclose(ours[3, :, 0, 0], torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)


def test_rows_depend_on_seed_step_place_and_view_alone():
    a, b = draw(RECIPES["uva"], 64, 1, 2), draw(RECIPES["uva"], 16, 1, 2)
    for field in ("crop", "place", "flip", "jitter", "order", "jittered", "grey", "sigma"):
        assert torch.equal(getattr(a, field)[:16], getattr(b, field))
    for seed, step, view in ((2, 2, 0), (1, 3, 0), (1, 2, 1)):
        other = draw(RECIPES["uva"], 64, seed, step, view)
        assert not (other.crop == a.crop).any()


def test_every_image_of_a_batch_gets_its_own_parameters():
    """The trap: torchvision's transforms on an (N, 3, H, W) tensor draw once for all N images."""
    same = images(1).expand(32, -1, -1, -1)
    ours = views(same, RECIPES["supcontrast"], seed=0, step=0).flatten(0, 1)
    assert different(ours) == 64
    theirs = v2.RandomResizedCrop(32, antialias=True)(same)
    assert different(theirs) == 1


def different(x):
    """How many different images there are."""
    return len({image.numpy().tobytes() for image in x})


def test_the_batch_may_be_computed_in_any_chunks(monkeypatch):
    x, parameters = images(50), draw(RECIPES["supcontrast"], 50, 0, 0)
    whole = batched(x, parameters)
    monkeypatch.setattr(augmentations, "CHUNK", 7 * 32 * 32)
    assert torch.allclose(batched(x, parameters), whole, atol=1e-6)


SAMPLES = 3000  # with so many a wrong law does not pass at p > 0.001


@pytest.mark.parametrize("height, width", [(32, 32), (64, 40)])
def test_crops_are_distributed_as_torchvisions(height, width):
    """Kolmogorov-Smirnov on each side of the box."""
    recipe, image = RECIPES["uva"], torch.zeros(3, height, width)
    boxes = draw(recipe, SAMPLES, seed=0, step=0).boxes(height, width).numpy()
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(96, scale=recipe.crop_scale, ratio=recipe.crop_ratio)
    theirs = [crop.make_params([image]) for _ in range(SAMPLES)]
    for k, side in enumerate(("top", "left", "height", "width")):
        assert alike(boxes[:, k], [box[side] for box in theirs]), side


def test_colours_and_blurs_are_distributed_as_torchvisions():
    """Kolmogorov-Smirnov on each parameter."""
    recipe, image = RECIPES["uva"], torch.zeros(3, 32, 32)
    ours = draw(recipe, SAMPLES, seed=0, step=0)
    torch.manual_seed(0)
    jitter = v2.ColorJitter(*recipe.jitter)
    theirs = [jitter.make_params([image]) for _ in range(SAMPLES)]
    for k, operation in enumerate(("brightness", "contrast", "saturation", "hue")):
        factors = [float(drawn[f"{operation}_factor"]) for drawn in theirs]
        assert alike(ours.jitter[:, k], factors), operation

    blur = v2.GaussianBlur(recipe.blur_kernel, recipe.blur_sigma)
    assert alike(ours.sigma, [float(blur.make_params([image])["sigma"][0]) for _ in range(SAMPLES)])


def alike(ours, theirs):
    return stats.ks_2samp(np.asarray(ours), np.asarray(theirs)).pvalue > 0.001


def test_attempts_probabilities_and_orders_follow_their_laws():
    """Every attempt at a crop: the boxes alone hardly tell the ratio's law."""
    recipe = RECIPES["uva"]
    ours = draw(recipe, SAMPLES, seed=0, step=0)
    area, ratio = ours.crop.flatten(0, 1).T.numpy()
    low, high = np.log(recipe.crop_ratio)
    assert stats.kstest(area, stats.uniform(0.08, 0.92).cdf).pvalue > 0.001
    assert stats.kstest(np.log(ratio), stats.uniform(low, high - low).cdf).pvalue > 0.001

    for drawn, probability in ((ours.flip, 0.5), (ours.jittered, 0.8), (ours.grey, 0.2)):
        assert stats.binomtest(int(drawn.sum()), SAMPLES, probability).pvalue > 0.001
    _, counts = np.unique(ours.order.numpy(), axis=0, return_counts=True)
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > 0.001


def test_a_crop_that_never_fits_falls_back_to_the_centre_as_torchvisions_does():
    recipe = Recipe(crop_scale=(2.0, 2.0))
    theirs = v2.RandomResizedCrop(8, scale=(2.0, 2.0)).make_params([torch.zeros(3, 30, 80)])
    wanted = [theirs[side] for side in ("top", "left", "height", "width")]
    assert draw(recipe, 1, 0, 0).boxes(30, 80)[0].tolist() == wanted


def test_bad_input_is_named():
    with pytest.raises(InputError, match="12 images but parameters for 3"):
        apply(images(), draw(RECIPES["uva"], 3, 0, 0))
    with pytest.raises(InputError, match="blur kernel of 9"):
        apply(images(2, 4, 4), draw(RECIPES["uva"], 2, 0, 0))
    even = replace(RECIPES["uva"], blur_kernel=4)
    with pytest.raises(InputError, match="a blur kernel has an odd number of pixels, not 4"):
        apply(images(2, 16, 16), draw(even, 2, 0, 0))
    with pytest.raises(InputError, match=r"images must be \(N, 3, H, W\), got \(2, 1, 8, 8\)"):
        compiled(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), draw(RECIPES["none"], 2, 0, 0))
    with pytest.raises(InputError, match=r"images must be \(N, 3, H, W\), got \(2, 1, 8, 8\)"):
        views(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), RECIPES["supcontrast"], 0, 0)
    with pytest.raises(InputError, match="images must be a tensor of uint8, .*, got ndarray"):
        views(images(2).numpy(), RECIPES["supcontrast"], 0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_images_of_another_kind_than_uint8_are_refused(dtype):
    """Pixels in [0, 1] would make views as good as black."""
    x = images(4).to(dtype)
    with pytest.raises(
        InputError, match=f"images must be a tensor of uint8, from 0 to 255, got {dtype}"
    ):
        views(x, RECIPES["supcontrast"], 0, 0)
    with pytest.raises(InputError, match="images must be a tensor of uint8"):
        apply(x, draw(RECIPES["none"], 4, 0, 0))
