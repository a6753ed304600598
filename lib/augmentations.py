"""Views: random crops, flips, colour changes and blur, for a whole batch at once, drawn image by
image.

``draw`` decides, ``apply`` computes. What is drawn for an image is a pure function of (seed, step,
its place in the batch, view): no worker, thread, device or number of processes changes it. What is
computed agrees with torchvision's float tensor operations on the same parameters: on a CPU image by
image (``lib.kernels``), elsewhere, and where numba is missing, in batches (``batched``).
"""

from dataclasses import dataclass, fields
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib import InputError
from lib.hardware import send

try:
    from lib import kernels
except ImportError:  # no numba, or one for another numpy
    kernels = None

CHUNK = 128 * 32 * 32  # pixels at a time on a CPU: temporaries stay in cache
ATTEMPTS = 10  # torchvision's RandomResizedCrop gives up after ten
ORDERS = np.array(list(permutations(range(4))))  # (24, 4)
HUE = 3  # operations: brightness, contrast, saturation, hue
LUMA = (0.2989, 0.587, 0.114)  # torchvision's greyscale weights (ITU-R 601)


@dataclass(frozen=True)
class Recipe:
    """What may happen to an image, and how likely. A None or a zero probability switches a step
    off.

    The steps come in this order: crop and resize, flip, colour jitter (its four operations in an
    order drawn per image, as torchvision does for a single image), greyscale, blur, normalise.
    """

    crop_scale: tuple[float, float] | None = None  # share of the image's area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height, drawn on a log scale
    flip: float = 0.0  # probability of a left-right flip
    jitter: tuple[float, float, float, float] = (
        0,
        0,
        0,
        0,
    )  # brightness, contrast, saturation, hue
    jitter_probability: float = 0.0
    greyscale: float = 0.0  # probability
    blur_kernel: int = 9  # pixels, odd
    blur_sigma: tuple[float, float] | None = None  # pixels; None: no blur
    size: int | None = None  # side of a view in pixels; None: the image's own height
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # per channel, of pixels in [0, 1]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


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
    # no change at all: what evaluation sees
    "none": Recipe(),
}


@dataclass(frozen=True)
class Parameters:
    """What was drawn for n images. Row i belongs to the image at place i. All on the CPU, float32
    or int64."""

    recipe: Recipe
    crop: Tensor  # (n, 10, 2) attempts: share of the area, width / height
    place: Tensor  # (n, 2) in [0, 1): where the crop lies, from the top and from the left
    flip: Tensor  # (n,) bool
    # (n, 4) factors of brightness, contrast and saturation (1: no change), hue shift in turns
    jitter: Tensor
    order: Tensor  # (n, 4) the operations 0..3 in the order of their use
    jittered: Tensor  # (n,) bool
    grey: Tensor  # (n,) bool
    sigma: Tensor  # (n,) blur in pixels

    def __len__(self) -> int:
        return len(self.flip)

    def __getitem__(self, rows) -> "Parameters":
        return Parameters(
            self.recipe, *(getattr(self, field.name)[rows] for field in fields(self)[1:])
        )

    def boxes(self, height: int, width: int) -> Tensor:
        """Crops of a height x width image as torchvision's RandomResizedCrop finds them: the first
        of ten attempts that fits, else the largest central crop of an allowed ratio.

        Returns (n, 4) int64: top, left, height, width, in pixels.
        """
        n, recipe = len(self), self.recipe
        if recipe.crop_scale is None:
            return torch.tensor([0, 0, height, width]).repeat(n, 1)
        area, ratio = self.crop.double().unbind(-1)  # (n, 10) each
        h = (area * height * width / ratio).sqrt().round().long()
        w = (area * height * width * ratio).sqrt().round().long()
        fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
        first = fits.int().argmax(1, keepdim=True)
        h, w = h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]
        none = ~fits.any(1)
        h = h.masked_fill(none, min(height, round(width / recipe.crop_ratio[0])))
        w = w.masked_fill(none, min(width, round(height * recipe.crop_ratio[1])))
        top = (self.place[:, 0] * (height - h + 1)).long().where(~none, (height - h) // 2)
        left = (self.place[:, 1] * (width - w + 1)).long().where(~none, (width - w) // 2)
        return torch.stack([top, left, h, w], dim=1)


def draw(recipe: Recipe, n: int, seed: int, step: int, view: int = 0) -> Parameters:
    """Draw what happens to each of n images in one view of one training step.

    A counter-based generator (Philox, keyed by seed and step, its counter starting at the view)
    gives every image a row of its own, so row i is the same for every n > i. The distributions are
    those of torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter, RandomGrayscale and
    GaussianBlur.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, 0, view]))
    u = generator.random((n, 2 * ATTEMPTS + 11))  # (n, 31) in [0, 1)
    attempts, u = u[:, : 2 * ATTEMPTS].reshape(n, ATTEMPTS, 2), u[:, 2 * ATTEMPTS :]
    scale = recipe.crop_scale or (1.0, 1.0)
    low, high = np.log(recipe.crop_ratio)
    area = scale[0] + attempts[..., 0] * (scale[1] - scale[0])
    ratio = np.exp(low + attempts[..., 1] * (high - low))
    strength = np.array(recipe.jitter)
    lowest = np.append(np.maximum(1 - strength[:3], 0), -strength[3])
    highest = np.append(1 + strength[:3], strength[3])
    sigma = recipe.blur_sigma or (1.0, 1.0)

    def tensor(values, dtype=torch.float32) -> Tensor:
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
        sigma=tensor(sigma[0] + u[:, 10] * (sigma[1] - sigma[0])),
    )


def apply(images: Tensor, parameters: Parameters, out: Tensor | None = None) -> Tensor:
    """Compute the views.

    images: (N, 3, H, W) uint8 on any device, one row of parameters each. Returns (N, 3, S, S)
    float32, normalised by the recipe's mean and std, in out (contiguous) where given. Raises
    InputError where the numbers of images and parameters differ, or the blur is wider than the
    view.
    """
    if len(images) != len(parameters):
        raise InputError(f"{len(images)} images but parameters for {len(parameters)}")
    recipe, (height, width) = parameters.recipe, images.shape[-2:]
    size = recipe.size or height
    if recipe.blur_sigma:
        _check_blur(recipe.blur_kernel, size, size)
    if out is None:
        out = torch.empty(len(images), 3, size, size, device=images.device)
    boxes = parameters.boxes(height, width)
    if kernels and images.device.type == "cpu":
        return kernels.apply(images, parameters, boxes, out)
    chunk = (
        max(1, CHUNK // (height * width)) if images.device.type == "cpu" else max(1, len(images))
    )
    for start in range(0, len(images), chunk):
        rows = slice(start, start + chunk)
        out[rows] = batched(images[rows], parameters[rows], boxes[rows], size)
    return out


def views(
    images: Tensor, recipe: Recipe, seed: int, step: int, count: int = 2, first: int = 0
) -> Tensor:
    """``count`` independent views of each image: (N, 3, H, W) uint8 -> (count, N, 3, S, S) float32.

    first: the place of the first image in the step's batch, where these are a part of it.
    """
    size = recipe.size or images.shape[2]
    made = torch.empty(count, len(images), 3, size, size, device=images.device)
    for view, out in enumerate(made):
        apply(images, draw(recipe, first + len(images), seed, step, view)[first:], out)
    return made


def batched(images: Tensor, parameters: Parameters, boxes: Tensor, size: int) -> Tensor:
    """The views by operations on the whole batch, on any device; boxes: (N, 4), the crops."""
    recipe, device = parameters.recipe, images.device
    x = images.float() / 255
    if recipe.crop_scale or recipe.flip or (size, size) != images.shape[-2:]:
        x = crop_resize_flip(x, send(boxes, device), send(parameters.flip, device), size)
    if recipe.jitter_probability:
        x = colour_jitter(x, parameters)
    if recipe.greyscale:
        rows = send(parameters.grey.nonzero()[:, 0], device)
        x[rows] = luma(x[rows]).expand(-1, 3, -1, -1)
    if recipe.blur_sigma:
        x = gaussian_blur(x, send(parameters.sigma, device), recipe.blur_kernel)
    mean, std = (
        send(torch.tensor(values).view(3, 1, 1), device) for values in (recipe.mean, recipe.std)
    )
    return (x - mean) / std


def crop_resize_flip(x: Tensor, boxes: Tensor, flip: Tensor, size: int) -> Tensor:
    """Cut out each image's box, resize it to size x size with antialiased bilinear weights, mirror
    where flip.

    x: (N, 3, H, W) float; boxes: (N, 4) top, left, height, width; flip: (N,) bool. Returns (N, 3,
    size, size). Rows and columns are resampled by one banded matrix per image each; a flip reverses
    the column matrix.
    """
    n, _, height, width = x.shape
    top, left, h, w = boxes.unbind(1)
    rows = _triangle(top, h, size, height)  # (N, size, H)
    columns = _triangle(left, w, size, width)  # (N, size, W)
    columns = torch.where(flip.view(n, 1, 1), columns.flip(1), columns)
    return rows.unsqueeze(1) @ x @ columns.unsqueeze(1).mT


def _triangle(start: Tensor, length: Tensor, size: int, full: int) -> Tensor:
    """Weights of every source pixel for each of ``size`` output pixels: (N, size, full), rows
    summing to 1.

    A triangle as wide as an output pixel, at least one source pixel, cut off at the crop's edge and
    renormalised.
    """
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    source = (
        torch.arange(full, device=start.device).view(1, 1, full) - start
    )  # counted within the crop
    target = torch.arange(size, device=start.device).view(1, size, 1)
    scale = length / size
    distance = source - (target + 0.5) * scale + 0.5  # rounded as torchvision rounds
    weight = (1 - distance.abs() / scale.clamp(min=1)).clamp_(min=0)
    weight = weight * ((source >= 0) & (source < length))
    return weight / weight.sum(-1, keepdim=True)


def luma(x: Tensor) -> Tensor:
    """Greyscale: (N, 3, H, W) -> (N, 1, H, W)."""
    return LUMA[0] * x[:, 0:1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:3]


def colour_jitter(x: Tensor, parameters: Parameters) -> Tensor:
    """Brightness, contrast, saturation and hue, each image in its own order. x: (N, 3, S, S) in [0,
    1]; changed."""
    for turn in range(4):
        operation = parameters.order[:, turn]
        rows = (parameters.jittered & (operation != HUE)).nonzero()[:, 0]
        if len(rows):
            which, factor = operation[rows], parameters.jitter[rows, operation[rows]]
            rows, which, factor = (send(tensor, x.device) for tensor in (rows, which, factor))
            x[rows] = blend(x[rows], which, factor)
        if parameters.recipe.jitter[HUE]:
            rows = (parameters.jittered & (operation == HUE)).nonzero()[:, 0]
            rows, shift = (
                send(tensor, x.device) for tensor in (rows, parameters.jitter[rows, HUE])
            )
            x[rows] = shift_hue(x[rows], shift)
    return x


def blend(x: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """``factor x + (1 - factor) base``, clipped to [0, 1].

    The base is black for brightness (operation 0), the mean grey for contrast (1), the image's own
    grey for saturation (2). x: (N, 3, S, S); operation: (N,) integers; factor: (N,).
    """
    grey = luma(x)
    operation, factor = operation.view(-1, 1, 1, 1), factor.view(-1, 1, 1, 1)
    base = torch.where(operation == 2, grey, (operation == 1) * grey.mean((2, 3), keepdim=True))
    return (factor * x + (1 - factor) * base).clamp_(0, 1)


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn each image's hue by shift (N,), in turns. x: (N, 3, S, S) in [0, 1].

    In closed form: with v the largest channel, c = v - smallest and hue h in sixths of a turn, the
    turned channels are ``v - c clamp(min(k, 4 - k), 0, 1)`` with ``k = (h + 6 shift + 5, 3, 1) mod
    6`` for red, green and blue.
    """
    r, g, b = x.unbind(1)
    v = x.amax(1)
    c = v - x.amin(1)
    safe = c.masked_fill(c == 0, 1)
    hue = torch.where(
        v == r, (g - b) / safe, torch.where(v == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )
    hue = hue + 6 * shift.view(-1, 1, 1)
    k = torch.stack([hue + 5, hue + 3, hue + 1], dim=1) % 6
    return v.unsqueeze(1) - c.unsqueeze(1) * torch.minimum(k, 4 - k).clamp_(0, 1)


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur each image with its own sigma (N,), in pixels, edges reflected. x: (N, 3, S, S)."""
    n, channels, height, width = x.shape
    _check_blur(kernel, height, width)
    radius = kernel // 2
    offset = torch.arange(-radius, radius + 1, device=x.device)
    weight = torch.exp(-0.5 * (offset / sigma.view(-1, 1)) ** 2)  # (N, kernel)
    weight = (weight / weight.sum(1, keepdim=True)).repeat_interleave(channels, dim=0)
    padded = F.pad(x, (radius,) * 4, mode="reflect").view(
        1, n * channels, height + 2 * radius, width + 2 * radius
    )
    down = F.conv2d(padded, weight.view(-1, 1, kernel, 1), groups=n * channels)
    return F.conv2d(down, weight.view(-1, 1, 1, kernel), groups=n * channels).view(
        n, channels, height, width
    )


def _check_blur(kernel: int, height: int, width: int) -> None:
    if kernel // 2 >= min(height, width):
        raise InputError(
            f"a blur kernel of {kernel} pixels does not fit an image of {height} x {width}"
        )
