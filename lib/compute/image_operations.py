"""Changes of images on whole batches, on any device.

``compute.views_cpu`` computes the same image by image. Each agrees with torchvision's float tensor
operation on the same parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lib import InputError
from lib.hardware import send

HUE = 3  # operations: brightness, contrast, saturation, hue
LUMA = (0.2989, 0.587, 0.114)  # torchvision's greyscale weights (ITU-R 601)


def crop_resize_flip(x: Tensor, boxes: Tensor, flip: Tensor, size: int) -> Tensor:
    """Cut out each image's box, resize it with antialiased bilinear weights, mirror where flip.

    x: (N, 3, H, W) float.
    boxes: (N, 4) top, left, height, width, in pixels.
    flip: (N,) bool.

    Returns (N, 3, size, size). Rows and columns are resampled by one banded matrix per image each;
    a flip reverses the column matrix.
    """
    n, _, height, width = x.shape
    top, left, h, w = boxes.unbind(1)
    rows = _triangle(top, h, size, height)  # (N, size, H)
    columns = _triangle(left, w, size, width)  # (N, size, W)
    columns = torch.where(flip.view(n, 1, 1), columns.flip(1), columns)
    return rows.unsqueeze(1) @ x @ columns.unsqueeze(1).mT


def _triangle(start: Tensor, length: Tensor, size: int, full: int) -> Tensor:
    """Weights of every source pixel for each of ``size`` output pixels: (N, size, full).

    They sum to 1. A triangle as wide as an output pixel, at least one source pixel, cut off at the
    crop's edge and renormalised.
    """
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    # counted within the crop
    source = torch.arange(full, device=start.device).view(1, 1, full) - start
    target = torch.arange(size, device=start.device).view(1, size, 1)
    scale = length / size
    distance = source - (target + 0.5) * scale + 0.5  # rounded as torchvision rounds
    weight = (1 - distance.abs() / scale.clamp(min=1)).clamp_(min=0)
    weight = weight * ((source >= 0) & (source < length))
    return weight / weight.sum(-1, keepdim=True)


def luma(x: Tensor) -> Tensor:
    """Greyscale: (N, 3, H, W) -> (N, 1, H, W)."""
    return LUMA[0] * x[:, 0:1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:3]


def colour_jitter(x: Tensor, jittered: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue (operations 0 to 3), each image in its own order.

    x: (N, 3, S, S) in [0, 1], on any device; changed. On the CPU: jittered (N,) bool; order (N, 4)
    operations; factors (N, 4) by operation, of hue its shift in turns.
    """
    shifts_hue = bool(factors[:, HUE].any())
    for turn in range(4):
        operation = order[:, turn]
        rows = (jittered & (operation != HUE)).nonzero()[:, 0]
        if len(rows):
            factor = send(factors[rows, operation[rows]], x.device)
            which = send(operation[rows], x.device)
            rows = send(rows, x.device)
            x[rows] = blend(x[rows], which, factor)

        if shifts_hue:
            rows = (jittered & (operation == HUE)).nonzero()[:, 0]
            shift = send(factors[rows, HUE], x.device)
            rows = send(rows, x.device)
            x[rows] = shift_hue(x[rows], shift)
    return x


def blend(x: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """``factor x + (1 - factor) base``, clipped to [0, 1].

    The base is black for brightness (operation 0), the mean grey for contrast (1), the image's own
    grey for saturation (2).

    x: (N, 3, S, S).
    operation: (N,) integers.
    factor: (N,).
    """
    grey = luma(x)
    operation, factor = operation.view(-1, 1, 1, 1), factor.view(-1, 1, 1, 1)
    base = torch.where(operation == 2, grey, (operation == 1) * grey.mean((2, 3), keepdim=True))
    return (factor * x + (1 - factor) * base).clamp_(0, 1)


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn each image's hue by shift (N,), in turns.

    x: (N, 3, S, S) in [0, 1].

    In closed form: with v the largest channel, c = v - smallest and hue h in sixths of a turn, the
    turned channels are

        v - c clamp(min(k, 4 - k), 0, 1)

    with k = (h + 6 shift + 5, 3 or 1) mod 6 for red, green and blue.
    """
    r, g, b = x.unbind(1)
    v = x.amax(1)
    c = v - x.amin(1)
    safe = c.masked_fill(c == 0, 1)
    not_red = torch.where(v == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    hue = torch.where(v == r, (g - b) / safe, not_red) + 6 * shift.view(-1, 1, 1)
    k = torch.stack([hue + 5, hue + 3, hue + 1], dim=1) % 6
    return v.unsqueeze(1) - c.unsqueeze(1) * torch.minimum(k, 4 - k).clamp_(0, 1)


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur each image with its own sigma (N,), in pixels, edges reflected. x: (N, 3, S, S)."""
    n, channels, height, width = x.shape
    check_blur(kernel, height, width)
    radius = kernel // 2
    offset = torch.arange(-radius, radius + 1, device=x.device)
    weight = torch.exp(-0.5 * (offset / sigma.view(-1, 1)) ** 2)  # (N, kernel)
    weight = (weight / weight.sum(1, keepdim=True)).repeat_interleave(channels, dim=0)

    padded = F.pad(x, (radius,) * 4, mode="reflect").flatten(0, 1)[
        None
    ]  # (1, N 3, S + 2 R, S + 2 R)
    down = F.conv2d(padded, weight.view(-1, 1, kernel, 1), groups=n * channels)
    across = F.conv2d(down, weight.view(-1, 1, 1, kernel), groups=n * channels)
    return across.view(n, channels, height, width)


def check_blur(kernel: int, height: int, width: int) -> None:
    """Raise InputError where a blur would reach beyond an image's reflection."""
    if kernel // 2 >= min(height, width):
        raise InputError(
            f"a blur kernel of {kernel} pixels does not fit an image of {height} x {width}"
        )
