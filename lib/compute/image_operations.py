"""Changes of images on whole batches, on any device.

``compute.views_in_batches`` puts them together, and ``compute.views_cpu`` computes the same image
by image. Each agrees with torchvision's float tensor operation on the same parameters. Colours are
three tensors r, g, b of all pixels, (M, P) each: a compiler fuses what is done to them into one
loop over pixels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lib import InputError

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # operations of a colour jitter
LUMA = (0.2989, 0.587, 0.114)  # torchvision's greyscale weights (ITU-R 601)

Planes = Sequence[Tensor]  # r, g, b


def crop_resize_flip(x: Tensor, boxes: Tensor, flip: Tensor, size: int) -> Planes:
    """Cut out a box of an image, resize it with antialiased bilinear weights, mirror where flip.

    x: (N, 3, H, W).
    boxes: (M, 4) top, left, height, width, in pixels; row m is of image m modulo N.
    flip: (M, 1) bool.

    Returns r, g, b, float (M, size * size) each: sums over the few pixels under a triangle.
    """
    n, _, height, width = x.shape
    top, left, h, w = boxes.split(1, dim=1)
    rows = _triangle(top, h, torch.zeros_like(flip), size, height)
    columns = _triangle(left, w, flip, size, width)

    image = torch.arange(len(boxes), device=x.device).unsqueeze(1) % n  # (M, 1)
    target = torch.arange(size * size, device=x.device)
    i, j = target // size, target % size
    planes = [plane.flatten(1) for plane in x.unbind(1)]  # (N, H W) each
    sums = [torch.zeros((), device=x.device)] * len(planes)
    for row, row_weight in rows:
        for column, column_weight in columns:
            source = row[:, i] * width + column[:, j]  # (M, P)
            weight = row_weight[:, i] * column_weight[:, j]
            sums = [sum + weight * plane[image, source] for sum, plane in zip(sums, planes)]
    return sums


def _triangle(
    start: Tensor, length: Tensor, flip: Tensor, size: int, full: int
) -> list[tuple[Tensor, Tensor]]:
    """The source pixels under each of ``size`` output pixels, and their weights: (M, size) each.

    The weights of an output pixel sum to 1. A triangle as wide as an output pixel, at least one
    source pixel, cut off at the crop's edge and renormalised; under it are as many source pixels
    as under that of the largest crop.

    start, length: (M, 1), of the crop.
    flip: (M, 1) bool, whether the first output pixel is the last.
    full: pixels of the image.
    """
    target = torch.arange(size, device=start.device)
    target = torch.where(flip, size - 1 - target, target)
    scale = length / size
    support = scale.clamp(min=1)
    centre = (target + 0.5) * scale
    first = (centre - 0.5 - support).floor().clamp(min=-1) + 1  # counted within the crop

    sources, weights = [], []
    for tap in range(math.ceil(2 * max(1, full / size))):
        source = first + tap
        distance = source - centre + 0.5  # rounded as torchvision rounds
        weight = (1 - distance.abs() / support).clamp(min=0)
        sources.append((start + source).clamp(max=full - 1).long())
        weights.append(torch.where(source < length, weight, 0))
    total = torch.stack(weights).sum(0)
    return [(source, weight / total) for source, weight in zip(sources, weights)]


def luma(rgb: Planes) -> Tensor:
    """Greyscale, of the planes' shape."""
    r, g, b = rgb
    return LUMA[0] * r + LUMA[1] * g + LUMA[2] * b


def colour_jitter(
    rgb: Planes, blends: Tensor, amounts: Tensor, hue: bool, mean: Tensor | None = None
) -> Planes:
    """Three blends, a turn of the hue, and the same three blends again.

    So each image has its four operations in its own order: a blend by 1 and a turn by 0 change
    nothing.

    rgb: (M, P) each, in [0, 1].
    blends: (M, 3) operations, see ``blend``.
    amounts: (M, 7) factors of the blends, turns of the hue, factors of the blends.
    hue: whether any hue is turned.
    mean: see ``blend``.
    """
    operations = blends.split(1, dim=1)
    steps = amounts.split(1, dim=1)
    for operation, factor in zip(operations, steps[:3]):
        rgb = blend(rgb, operation, factor, mean)
    if hue:
        rgb = shift_hue(rgb, steps[3])
    for operation, factor in zip(operations, steps[4:]):
        rgb = blend(rgb, operation, factor, mean)
    return rgb


def blend(rgb: Planes, operation: Tensor, factor: Tensor, mean: Tensor | None = None) -> Planes:
    """``factor x + (1 - factor) base``, clipped to [0, 1].

    The base is black for brightness (operation 0), the mean grey for contrast (1), the image's own
    grey for saturation (2).

    rgb: (M, P) each.
    operation, factor: (M, 1).
    mean: (M, 1), the mean grey where it is known.
    """
    grey = luma(rgb)
    if mean is None:
        mean = grey.mean(1, keepdim=True)
    base = torch.where(operation == SATURATION, grey, (operation == CONTRAST) * mean)
    rest = (1 - factor) * base
    return [(factor * plane + rest).clamp(0, 1) for plane in rgb]


def shift_hue(rgb: Planes, shift: Tensor) -> Planes:
    """Turn each image's hue by shift (M, 1), in turns.

    rgb: (M, P) each, in [0, 1].

    In closed form: with v the largest channel, c = v - smallest and hue h in sixths of a turn, the
    turned channels are

        v - c clamp(min(k, 4 - k), 0, 1)

    with k = (h + 6 shift + 5, 3 or 1) mod 6 for red, green and blue.
    """
    r, g, b = rgb
    v = torch.maximum(torch.maximum(r, g), b)
    c = v - torch.minimum(torch.minimum(r, g), b)
    safe = c.masked_fill(c == 0, 1)
    not_red = torch.where(v == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    hue = torch.where(v == r, (g - b) / safe, not_red) + 6 * shift

    turned = []
    for sixths in (5, 3, 1):
        k = (hue + sixths) % 6
        turned.append(v - c * torch.minimum(k, 4 - k).clamp(0, 1))
    return turned


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur each image with its own sigma (M, 1), in pixels, edges reflected. x: (M, C, S, S)."""
    height, width = x.shape[-2:]
    check_blur(kernel, height, width)
    radius = kernel // 2
    offset = torch.arange(-radius, radius + 1, device=x.device)
    weight = torch.exp(-0.5 * (offset / sigma) ** 2)  # (M, kernel)
    weight = weight / weight.sum(1, keepdim=True)
    shares = weight.view(-1, kernel, 1, 1, 1).unbind(1)

    padded = F.pad(x, (radius,) * 4, mode="reflect")  # (M, C, S + 2 R, S + 2 R)
    down = _weighted([padded[:, :, k : k + height] for k in range(kernel)], shares)
    return _weighted([down[..., k : k + width] for k in range(kernel)], shares)


def _weighted(parts: Sequence[Tensor], shares: Sequence[Tensor]) -> Tensor:
    """The sum of the parts, each times its share."""
    total = shares[0] * parts[0]
    for share, part in zip(shares[1:], parts[1:]):
        total = total + share * part
    return total


def check_blur(kernel: int, height: int, width: int) -> None:
    """Raise InputError where a blur has no centre, or would reach beyond an image's reflection."""
    if kernel % 2 == 0:
        raise InputError(f"a blur kernel has an odd number of pixels, not {kernel}")
    if kernel // 2 >= min(height, width):
        raise InputError(
            f"a blur kernel of {kernel} pixels does not fit an image of {height} x {width}"
        )
