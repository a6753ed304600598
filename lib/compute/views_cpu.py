"""Views on the CPU, image by image, compiled by numba: what ``augmentations`` does in batches too.

An image stays in its core's cache through all steps, and its jitter runs in its own order without
selecting rows of a batch: several times faster. The threads share the images out; an image's
numbers are the same however many there are. Pixels are float32 throughout, colours three rows r, g,
b of all pixels of an image.
"""

import functools
import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from lib import InputError, in_a_line

Array = np.ndarray
Float = np.float32

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
compiled: Any = njit(**OPTIONS)
# its sums may run in several lanes
compiled_in_lanes: Any = njit(**OPTIONS, fastmath={"reassoc"})

ZERO = np.float32(0)
ONE = np.float32(1)
SIX = np.float32(6)
LEVELS = np.float32(255)
RED, GREEN, BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)  # operations' LUMA


def apply(images: Tensor, parameters: Any, boxes: Tensor, out: Tensor) -> Tensor:
    """Write the views of images (N, 3, H, W) uint8 into out (N, 3, S, S) float32, and return it.

    images: on the CPU.
    parameters: ``augmentations.Parameters``.
    boxes: (N, 4), the crops.
    out: on the CPU, contiguous.

    Raises InputError for images of another shape: compiled code would write beyond its arrays.
    """
    if images.dim() != 4 or images.shape[1] != 3:
        raise InputError(f"images must be (N, 3, H, W), got {tuple(images.shape)}")
    by_image = (
        images,
        boxes,
        parameters.flip,
        parameters.jittered,
        parameters.jitter,
        parameters.order,
        parameters.grey,
        parameters.sigma,
    )
    arrays = [tensor.contiguous().numpy() for tensor in by_image]
    arrays.append(out.numpy())  # itself: a copy would be written in vain

    recipe = parameters.recipe
    kernel = recipe.blur_kernel if recipe.blur_sigma else 0
    mean, std = np.float32(recipe.mean), np.float32(recipe.std)

    def compute(start: int, end: int) -> None:
        rows = [array[start:end] for array in arrays]
        try:
            compiled_views(*rows, kernel, mean, std)
        except OSError as error:  # it is compiled, and its file could not be written
            _warn(error)
            compiled_views(*rows, kernel, mean, std)

    compiled_views = _compiled_views()
    threads = max(1, min(torch.get_num_threads(), len(images)))
    if threads == 1:
        compute(0, len(images))
    else:
        bounds = [len(images) * thread // threads for thread in range(threads + 1)]
        with ThreadPoolExecutor(threads) as executor:
            list(executor.map(compute, bounds, bounds[1:]))  # a list, to raise what a thread raised
    return out


@functools.cache
def _compiled_views() -> Any:
    """``_views``, with all that it calls, kept on disk for the next process where that can be."""
    try:
        return njit(**OPTIONS, cache=True)(_views)
    except RuntimeError as error:  # no folder for it can be written
        _warn(error)
        return compiled(_views)


def _warn(error: Exception) -> None:
    warnings.warn(
        f"views are compiled anew in every process, some seconds each, as numba can't keep them "
        f"({in_a_line(error, 200)}): NUMBA_CACHE_DIR names a folder for it",
        stacklevel=3,
    )


def _views(
    images: Array,
    boxes: Array,
    flip: Array,
    jittered: Array,
    factors: Array,
    orders: Array,
    grey: Array,
    sigma: Array,
    out: Array,
    kernel: int,
    mean: Array,
    std: Array,
) -> None:
    """All steps, image by image. kernel: pixels of the blur, 0 for none."""
    n, channels, height, width = images.shape
    size = out.shape[2]
    radius = kernel // 2
    reach = math.ceil(2 * max(1, max(height, width) / size))  # pixels under a triangle

    row_first = np.empty(size, np.int64)
    row_weight = np.empty((size, reach), np.float32)
    column_first = np.empty(size, np.int64)
    column_weight = np.empty((size, reach), np.float32)
    line = np.zeros(width + reach, np.float32)
    padded = np.empty(size + 2 * radius, np.float32)
    lines = np.empty((size + 2 * radius, size), np.float32)
    weight = np.empty(kernel, np.float32)

    for i in range(n):
        top, left, h, w = boxes[i]
        _triangle(top, h, False, row_first, row_weight)
        _triangle(left, w, flip[i], column_first, column_weight)
        x = out[i]
        _resize(images[i], row_first, row_weight, column_first, column_weight, line, x)

        r, g, b = x[0].reshape(-1), x[1].reshape(-1), x[2].reshape(-1)
        if jittered[i]:
            for operation in orders[i]:
                _colour(r, g, b, operation, factors[i, operation])
        if grey[i]:
            for p in range(len(r)):
                value = RED * r[p] + GREEN * g[p] + BLUE * b[p]
                r[p] = value
                g[p] = value
                b[p] = value

        if kernel:
            _blur(x, sigma[i], weight, padded, lines)
        for c in range(channels):
            x[c] = (x[c] - mean[c]) / std[c]


@compiled
def _triangle(start: int, length: int, flip: bool, first: Array, weight: Array) -> None:
    """Antialiased bilinear weights (size, T) of the pixels from first (size,) on.

    As ``compute.image_operations`` computes them.
    """
    size, taps = weight.shape
    scale = np.float32(length) / np.float32(size)
    support = max(scale, ONE)

    for target in range(size):
        centre = (np.float32(target) + np.float32(0.5)) * scale - np.float32(0.5)
        low = max(0, math.floor(centre - support) + 1)
        place = target
        if flip:
            place = size - 1 - target
        first[place] = start + low

        total = ZERO
        for t in range(taps):
            value = ZERO
            if low + t < length:
                value = max(value, ONE - abs(np.float32(low + t) - centre) / support)
            weight[place, t] = value
            total += value
        weight[place] /= total


@compiled
def _resize(
    image: Array,
    row_first: Array,
    row_weight: Array,
    column_first: Array,
    column_weight: Array,
    line: Array,
    out: Array,
) -> None:
    """Resample image (3, H, W) uint8 into out (3, S, S), in [0, 1].

    A row at a time, then its columns.
    """
    width = image.shape[2]
    for c in range(out.shape[0]):
        for i in range(out.shape[1]):
            line[:] = 0
            for t in range(row_weight.shape[1]):
                if row_weight[i, t]:
                    source = image[c, row_first[i] + t]
                    share = row_weight[i, t]
                    for x in range(width):
                        line[x] += share * np.float32(source[x])
            for x in range(width):
                line[x] /= LEVELS

            if column_weight.shape[1] == 2:
                _interpolate(line, column_first, column_weight, out[c, i])
            else:
                for j in range(out.shape[2]):
                    value = ZERO
                    for t in range(column_weight.shape[1]):
                        value += column_weight[j, t] * line[column_first[j] + t]
                    out[c, i, j] = value


@compiled
def _interpolate(line: Array, first: Array, weight: Array, out: Array) -> None:
    """The usual case, no image larger than its view, so two pixels under a triangle.

    Twice as fast as with a loop over them.
    """
    for j in range(len(out)):
        out[j] = weight[j, 0] * line[first[j]] + weight[j, 1] * line[first[j] + 1]


@compiled
def _clip(x: Float) -> Float:
    return min(max(x, ZERO), ONE)


@compiled_in_lanes
def _mean_grey(r: Array, g: Array, b: Array) -> Float:
    total = 0.0
    for p in range(len(r)):
        total += RED * r[p] + GREEN * g[p] + BLUE * b[p]
    return np.float32(total / len(r))


@compiled
def _colour(r: Array, g: Array, b: Array, operation: int, factor: Float) -> None:
    """Brightness (0), contrast (1), saturation (2) or hue (3), in place.

    As ``image_operations.blend`` and ``shift_hue``.
    """
    rest = ONE - factor
    if operation == 0:
        for p in range(len(r)):
            r[p], g[p], b[p] = _blend(r[p], g[p], b[p], factor, ZERO)
    elif operation == 1:
        base = rest * _mean_grey(r, g, b)
        for p in range(len(r)):
            r[p], g[p], b[p] = _blend(r[p], g[p], b[p], factor, base)
    elif operation == 2:
        for p in range(len(r)):
            base = rest * (RED * r[p] + GREEN * g[p] + BLUE * b[p])
            r[p], g[p], b[p] = _blend(r[p], g[p], b[p], factor, base)
    elif factor:
        turn = SIX * factor
        for p in range(len(r)):
            r[p], g[p], b[p] = _turn_hue(r[p], g[p], b[p], turn)


@compiled
def _blend(
    red: Float, green: Float, blue: Float, factor: Float, base: Float
) -> tuple[Float, Float, Float]:
    """``factor x + base`` of a pixel's three channels, clipped to [0, 1]."""
    red = _clip(factor * red + base)
    green = _clip(factor * green + base)
    blue = _clip(factor * blue + base)
    return red, green, blue


@compiled
def _turn_hue(red: Float, green: Float, blue: Float, turn: Float) -> tuple[Float, Float, Float]:
    """A pixel whose hue is turned by so many sixths of a turn."""
    v = max(red, max(green, blue))
    c = v - min(red, min(green, blue))
    # each of the three is computed and one is chosen: the loop over pixels stays without branches
    sector, difference = np.float32(4), red - green
    if v == green:
        sector, difference = np.float32(2), blue - red
    if v == red:
        sector, difference = ZERO, green - blue

    divisor = c if c > 0 else ONE
    hue = sector + difference / divisor + turn
    red = _turned(v, c, hue + 5)
    green = _turned(v, c, hue + 3)
    blue = _turned(v, c, hue + 1)
    return red, green, blue


@compiled
def _turned(v: Float, c: Float, k: Float) -> Float:
    k = np.float32(k)
    k -= SIX * np.floor(k / SIX)
    return v - c * _clip(min(k, np.float32(4) - k))


@compiled
def _blur(x: Array, sigma: Float, weight: Array, padded: Array, lines: Array) -> None:
    """Gaussian blur in place, edges reflected.

    Along the rows into lines (S + 2 R, S), then along the columns.
    """
    size = x.shape[1]
    radius = len(weight) // 2
    for t in range(len(weight)):
        offset = np.float32(t - radius) / sigma
        weight[t] = math.exp(np.float32(-0.5) * offset * offset)
    weight /= weight.sum()

    for c in range(x.shape[0]):
        for i in range(size):
            padded[radius : radius + size] = x[c, i]
            for t in range(radius):
                padded[t] = x[c, i, radius - t]
                padded[radius + size + t] = x[c, i, size - 2 - t]
            row = lines[radius + i]
            row[:] = 0
            for t in range(len(weight)):
                share = weight[t]
                for j in range(size):
                    row[j] += share * padded[j + t]

        for t in range(radius):
            lines[t] = lines[2 * radius - t]
            lines[radius + size + t] = lines[radius + size - 2 - t]
        x[c] = 0
        for i in range(size):
            for t in range(len(weight)):
                share = weight[t]
                source = lines[i + t]
                for j in range(size):
                    x[c, i, j] += share * source[j]
