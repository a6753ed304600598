"""Views: random crops, flips, colour changes and blur, drawn image by image.

``draw`` decides, ``apply`` computes. What is drawn for an image is a pure function of (seed, step,
its place in the batch, view): no worker, thread, device or number of processes changes it. What is
computed agrees with torchvision's float tensor operations on the same parameters: on a CPU image by
image (``compute.views_cpu``), elsewhere, and where numba is missing, in batches
(``compute.views_in_batches``).
"""

import warnings
from dataclasses import dataclass, fields
from itertools import permutations
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from lib import InputError
from lib.compute import views_in_batches
from lib.compute.image_operations import check_blur
from lib.hardware import compiles, send

views_cpu: ModuleType | None
try:
    from lib.compute import views_cpu
except ImportError as error:  # no numba, or one for another numpy
    views_cpu = None
    warnings.warn(
        f"numba can't be imported ({error}): views on a CPU take several times as long",
        stacklevel=2,
    )

CHUNK = 128 * 32 * 32  # pixels at a time on a CPU: temporaries stay in cache
ATTEMPTS = 10  # torchvision's RandomResizedCrop gives up after ten
ORDERS = np.array(list(permutations(range(4))))  # (24, 4)
# steps. On an H100 the compiler took 25 seconds, and a step of 2,048 views became 9 ms faster: as
# many steps pay for it, so no training takes much longer with it than without
COMPILED_FROM = 3000
COMPILED_UP_TO = 2  # times the side of a view; of larger images it would take the compiler minutes


@dataclass(frozen=True)
class Recipe:
    """What may happen to an image, and how likely. None or a zero probability switches a step off.

    The steps come in this order: crop and resize, flip, colour jitter (its four operations in an
    order drawn per image, as torchvision does for a single image), greyscale, blur, normalise.
    """

    crop_scale: tuple[float, float] | None = None  # share of the image's area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height, drawn on a log scale
    flip: float = 0.0  # probability of a left-right flip
    # strength of brightness, contrast, saturation, hue
    jitter: tuple[float, float, float, float] = (0, 0, 0, 0)
    jitter_probability: float = 0.0
    greyscale: float = 0.0  # probability
    blur_kernel: int = 9  # pixels, odd
    blur_sigma: tuple[float, float] | None = None  # pixels; None: no blur
    size: int | None = None  # side of a view in pixels; None: that of the image, which is square
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # per channel, of pixels in [0, 1]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def side(self, images: Tensor) -> int:
        """The side in pixels of a view of these images (..., H, W).

        Raises InputError where it is left to images that are not square.
        """
        height, width = images.shape[-2:]
        if self.size is None and height != width:
            raise InputError(f"images of {height} x {width} pixels need a recipe with a size")
        return self.size or height


RECIPES = {
    # SupContrast main_supcon.py: CIFAR, contrastive stage (no blur)
    "supcontrast": Recipe(
        crop_scale=(0.2, 1.0),
        flip=0.5,
        jitter=(0.4, 0.4, 0.4, 0.1),
        jitter_probability=0.8,
        greyscale=0.2,
    ),
    # ours: with dkobak/simclr-cifar10's greyscale probability, half of SupContrast's
    "supcontrast-grey-0.1": Recipe(
        crop_scale=(0.2, 1.0),
        flip=0.5,
        jitter=(0.4, 0.4, 0.4, 0.1),
        jitter_probability=0.8,
        greyscale=0.1,
    ),
    # SupContrast main_ce.py and main_linear.py: crop and flip only
    "crop-flip": Recipe(crop_scale=(0.2, 1.0), flip=0.5),
    # UvA deep-learning tutorial 17: STL-10, always blurred
    "uva": Recipe(
        crop_scale=(0.08, 1.0),
        flip=0.5,
        jitter=(0.5, 0.5, 0.5, 0.1),
        jitter_probability=0.8,
        greyscale=0.2,
        blur_kernel=9,
        blur_sigma=(0.1, 2.0),
    ),
    # ours: the same without blur, to see what blur costs on small images
    "uva-sharp": Recipe(
        crop_scale=(0.08, 1.0),
        flip=0.5,
        jitter=(0.5, 0.5, 0.5, 0.1),
        jitter_probability=0.8,
        greyscale=0.2,
    ),
    # UvA deep-learning tutorial 17, the supervised baseline: milder, no colour jitter
    "uva-supervised": Recipe(
        crop_scale=(0.8, 1.0), flip=0.5, greyscale=0.2, blur_kernel=9, blur_sigma=(0.1, 0.5)
    ),
    # ours, for grey handwritten digits: a mirrored 2 is no 2, and there is no colour to change
    "digits": Recipe(
        crop_scale=(0.5, 1.0),
        jitter=(0.4, 0.4, 0.0, 0.0),
        jitter_probability=0.8,
        blur_kernel=5,
        blur_sigma=(0.1, 1.0),
    ),
    # ours, for digits in random colours, whose hue views must not share
    "tinted": Recipe(
        crop_scale=(0.5, 1.0),
        jitter=(0.4, 0.4, 0.8, 0.5),
        jitter_probability=0.9,
        greyscale=0.3,
        blur_kernel=5,
        blur_sigma=(0.1, 1.0),
    ),
    # no change at all: what evaluation sees
    "none": Recipe(),
}


@dataclass(frozen=True)
class Parameters:
    """What was drawn for n images, row i for the image at place i. All on the CPU."""

    recipe: Recipe
    crop: Tensor  # (n, 10, 2) attempts: share of the area, width / height
    place: Tensor  # (n, 2) in [0, 1): where the crop lies, from the top and from the left
    flip: Tensor  # (n,) bool
    jitter: (
        Tensor  # (n, 4) factors of brightness, contrast, saturation (1: no change); turns of hue
    )
    order: Tensor  # (n, 4) the operations 0..3 in the order of their use
    jittered: Tensor  # (n,) bool
    grey: Tensor  # (n,) bool
    sigma: Tensor  # (n,) blur in pixels

    def __len__(self) -> int:
        return len(self.flip)

    def __getitem__(self, rows) -> "Parameters":
        drawn = (getattr(self, field.name)[rows] for field in fields(self)[1:])
        return Parameters(self.recipe, *drawn)

    def boxes(self, height: int, width: int) -> Tensor:
        """Crops of a height x width image as torchvision's RandomResizedCrop finds them.

        The first of ten attempts that fits, else the largest central crop of an allowed ratio.
        Returns (n, 4) int64: top, left, height, width, in pixels.
        """
        if self.recipe.crop_scale is None:
            return torch.tensor([0, 0, height, width]).repeat(len(self), 1)

        area, ratio = np.moveaxis(self.crop.numpy().astype(np.float64), -1, 0)  # (n, 10) each
        h = np.rint(np.sqrt(area * height * width / ratio)).astype(np.int64)
        w = np.rint(np.sqrt(area * height * width * ratio)).astype(np.int64)
        fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
        rows, first = np.arange(len(self)), fits.argmax(1)
        h, w = h[rows, first], w[rows, first]

        none = ~fits.any(1)
        narrowest, widest = self.recipe.crop_ratio
        h[none] = min(height, round(width / narrowest))
        w[none] = min(width, round(height * widest))
        top, left = (self.place.numpy().T * (height - h + 1, width - w + 1)).astype(np.int64)
        top = np.where(none, (height - h) // 2, top)
        left = np.where(none, (width - w) // 2, left)
        return torch.from_numpy(np.stack([top, left, h, w], axis=1))


def draw(recipe: Recipe, n: int, seed: int, step: int, view: int = 0) -> Parameters:
    """Draw what happens to each of n images in one view of one training step.

    A counter-based generator (Philox, keyed by seed and step, its counter starting at the view)
    gives every image a row of its own, so row i is the same for every n > i. The distributions are
    those of torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter, RandomGrayscale and
    GaussianBlur.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, 0, view]))
    u = generator.random((n, 2 * ATTEMPTS + 11))  # (n, 31) in [0, 1)
    attempts = u[:, : 2 * ATTEMPTS].reshape(n, ATTEMPTS, 2)
    u = u[:, 2 * ATTEMPTS :]

    smallest, largest = recipe.crop_scale or (1.0, 1.0)
    area = smallest + attempts[..., 0] * (largest - smallest)
    low, high = np.log(recipe.crop_ratio)
    ratio = np.exp(low + attempts[..., 1] * (high - low))

    strength = np.array(recipe.jitter)
    lowest = np.append(np.maximum(1 - strength[:3], 0), -strength[3])
    highest = np.append(1 + strength[:3], strength[3])
    sharpest, softest = recipe.blur_sigma or (1.0, 1.0)

    def tensor(values: np.ndarray, dtype=torch.float32) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)

    return Parameters(
        recipe,
        crop=tensor(np.stack([area, ratio], axis=-1)),
        place=tensor(u[:, 0:2], torch.float64),  # float32 could round up to 1, one pixel too far
        flip=tensor(u[:, 2] < recipe.flip, torch.bool),
        jitter=tensor(lowest + u[:, 3:7] * (highest - lowest)),
        order=tensor(ORDERS[(u[:, 7] * len(ORDERS)).astype(int)], torch.int64),
        jittered=tensor(u[:, 8] < recipe.jitter_probability, torch.bool),
        grey=tensor(u[:, 9] < recipe.greyscale, torch.bool),
        sigma=tensor(sharpest + u[:, 10] * (softest - sharpest)),
    )


def apply(images: Tensor, parameters: Parameters) -> Tensor:
    """Compute the views.

    images: (N, 3, H, W) uint8 on any device, one row of parameters each. Returns (N, 3, S, S)
    float32, normalised by the recipe's mean and std. Raises InputError where the numbers of images
    and parameters differ, or the blur is wider than the view.
    """
    return views_of(images, [parameters])[0]


def views(
    images: Tensor, recipe: Recipe, seed: int, step: int, count: int = 2, first: int = 0
) -> Tensor:
    """``count`` independent views of each image: (N, 3, H, W) uint8 -> (count, N, 3, S, S) float32.

    first: the place of the first image in the step's batch, where these are a part of it.

    On GPUs for which PyTorch compiles (``hardware.compiles``) steps from COMPILED_FROM on are
    computed by compiled code, the same up to rounding, unless images are much larger than views.
    TORCH_COMPILE_DISABLE=1 in the environment switches that off.
    """
    drawn = [draw(recipe, first + len(images), seed, step, view)[first:] for view in range(count)]
    compiled = (
        step >= COMPILED_FROM
        and compiles(images.device)
        and max(images.shape[-2:]) <= COMPILED_UP_TO * recipe.side(images)
    )
    return views_of(images, drawn, compiled)


def views_of(images: Tensor, drawn: list[Parameters], compiled: bool = False) -> Tensor:
    """Views (V, N, 3, S, S) of images (N, 3, H, W), by V times N parameters. See ``apply``.

    compiled: whether by PyTorch's compiler, elsewhere than on a CPU.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"images must be a tensor of uint8, from 0 to 255, got {kind}")
    if images.dim() != 4 or images.shape[1] != 3:
        raise InputError(f"images must be (N, 3, H, W), got {tuple(images.shape)}")
    recipe = drawn[0].recipe
    size = recipe.side(images)
    for parameters in drawn:
        if len(images) != len(parameters):
            raise InputError(f"{len(images)} images but parameters for {len(parameters)}")
    if recipe.blur_sigma:
        check_blur(recipe.blur_kernel, size, size)

    if images.device.type != "cpu" or not views_cpu:
        return views_in_batches_of(images, drawn, compiled)
    made = torch.empty(len(drawn), len(images), 3, size, size)
    for parameters, out in zip(drawn, made):
        boxes = parameters.boxes(*images.shape[-2:])
        views_cpu.apply(images, parameters, boxes, out)
    return made


def views_in_batches_of(images: Tensor, drawn: list[Parameters], compiled: bool = False) -> Tensor:
    """``views_of`` without numba, channels last in memory; on a CPU CHUNK pixels at a time."""
    height, width = images.shape[-2:]
    recipe, device = drawn[0].recipe, images.device
    rows = [views_in_batches.pack(some, some.boxes(height, width)) for some in drawn]
    packed = send(torch.from_numpy(np.stack(rows)), device)  # (V, N, 24), in one copy

    chunk = len(images)
    if device.type == "cpu":
        chunk = max(1, CHUNK // (height * width))
    compute = views_in_batches.compute_compiled if compiled else views_in_batches.compute
    made = []
    for some, theirs in zip(images.split(chunk), packed.split(chunk, dim=1)):
        x = compute(some, theirs.flatten(0, 1), recipe)
        made.append(x.unflatten(0, theirs.shape[:2]))
    return made[0] if len(made) == 1 else torch.cat(made, dim=1)
