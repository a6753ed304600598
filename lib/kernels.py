"""Views on the CPU, one image after the other, compiled by numba: what ``augmentations.batched``
computes in batches.

An image stays in its core's cache through all steps, and its jitter runs in its own order without
selecting rows of a batch: several times faster. The threads share the images out; an image's
numbers are the same however many there are. Pixels are float32 throughout, colours three rows r, g,
b of all pixels of an image.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from torch import Tensor

from lib import InputError

compiled = njit(nogil=True, cache=True, error_model="numpy")
ONE, SIX, LEVELS = np.float32(1), np.float32(6), np.float32(255)
RED, GREEN, BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)  # augmentations.LUMA


def apply(images: Tensor, parameters, boxes: Tensor, out: Tensor) -> Tensor:
    """Write the views of images (N, 3, H, W) uint8 on the CPU into out (N, 3, S, S) float32,
    contiguous, and return it.

    parameters: ``augmentations.Parameters``; boxes: (N, 4), the crops. Raises InputError for images
    of another shape: compiled code would write beyond its arrays.
    """
    if images.dim() != 4 or images.shape[1] != 3:
        raise InputError(f"images must be (N, 3, H, W), got {tuple(images.shape)}")
    recipe = parameters.recipe
    rows = [
        tensor.contiguous().numpy()
        for tensor in (
            images,
            boxes,
            parameters.flip,
            parameters.jittered,
            parameters.jitter,
            parameters.order,
            parameters.grey,
            parameters.sigma,
        )
    ]
    rows.append(out.numpy())  # itself: a copy would be written in vain
    fixed = (
        recipe.blur_kernel if recipe.blur_sigma else 0,
        np.float32(recipe.mean),
        np.float32(recipe.std),
    )
    threads = max(1, min(torch.get_num_threads(), len(images)))
    bounds = [len(images) * part // threads for part in range(threads + 1)]
    parts = [
        tuple(array[start:end] for array in rows) + fixed for start, end in zip(bounds, bounds[1:])
    ]
    if threads == 1:
        _views(*parts[0])
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part: _views(*part), parts))
    return out


@compiled
def _views(images, boxes, flip, jittered, factors, orders, grey, sigma, out, kernel, mean, std):
    """All steps, image by image. kernel: pixels of the blur, 0 for none."""
    n, channels, height, width = images.shape
    size, radius = out.shape[2], kernel // 2
    reach = math.ceil(2 * max(1, max(height, width) / size))  # pixels under a triangle
    row_first, column_first = np.empty(size, np.int64), np.empty(size, np.int64)
    row_weight, column_weight = (
        np.empty((size, reach), np.float32),
        np.empty((size, reach), np.float32),
    )
    line, padded = np.zeros(width + reach, np.float32), np.empty(size + 2 * radius, np.float32)
    lines, weight = np.empty((size + 2 * radius, size), np.float32), np.empty(kernel, np.float32)
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
def _triangle(start, length, flip, first, weight):
    """Antialiased bilinear weights (size, T) of the pixels from first (size,) on, as in
    augmentations."""
    size, taps = weight.shape
    scale = np.float32(length) / np.float32(size)
    support = max(scale, ONE)
    for target in range(size):
        centre = (np.float32(target) + np.float32(0.5)) * scale - np.float32(0.5)
        low = max(0, math.floor(centre - support) + 1)
        place = size - 1 - target if flip else target
        first[place] = start + low
        total = np.float32(0)
        for t in range(taps):
            inside = low + t < length
            value = (
                max(np.float32(0), ONE - abs(np.float32(low + t) - centre) / support)
                if inside
                else np.float32(0)
            )
            weight[place, t] = value
            total += value
        weight[place] /= total


@compiled
def _resize(image, row_first, row_weight, column_first, column_weight, line, out):
    """Resample image (3, H, W) uint8 into out (3, S, S), in [0, 1]: a row at a time, then its
    columns."""
    width = image.shape[2]
    for c in range(out.shape[0]):
        for i in range(out.shape[1]):
            line[:] = 0
            for t in range(row_weight.shape[1]):
                if row_weight[i, t]:
                    source, share = image[c, row_first[i] + t], row_weight[i, t]
                    for x in range(width):
                        line[x] += share * np.float32(source[x])
            for x in range(width):
                line[x] /= LEVELS
            if column_weight.shape[1] == 2:
                _interpolate(line, column_first, column_weight, out[c, i])
            else:
                for j in range(out.shape[2]):
                    value = np.float32(0)
                    for t in range(column_weight.shape[1]):
                        value += column_weight[j, t] * line[column_first[j] + t]
                    out[c, i, j] = value


@compiled
def _interpolate(line, first, weight, out):
    """The usual case, no image larger than its view, so two pixels under a triangle: twice as fast
    without a loop."""
    for j in range(len(out)):
        out[j] = weight[j, 0] * line[first[j]] + weight[j, 1] * line[first[j] + 1]


@compiled
def _clip(x):
    return min(max(x, np.float32(0)), ONE)


@njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"}
)  # lets the sum run in several lanes
def _mean_grey(r, g, b):
    total = 0.0
    for p in range(len(r)):
        total += RED * r[p] + GREEN * g[p] + BLUE * b[p]
    return np.float32(total / len(r))


@compiled
def _colour(r, g, b, operation, factor):
    """Brightness (0), contrast (1), saturation (2) or hue (3), in place; see augmentations.blend
    and shift_hue."""
    rest = ONE - factor
    if operation == 0:
        for p in range(len(r)):
            r[p], g[p], b[p] = _clip(factor * r[p]), _clip(factor * g[p]), _clip(factor * b[p])
    elif operation == 1:
        base = rest * _mean_grey(r, g, b)
        for p in range(len(r)):
            r[p], g[p], b[p] = (
                _clip(factor * r[p] + base),
                _clip(factor * g[p] + base),
                _clip(factor * b[p] + base),
            )
    elif operation == 2:
        for p in range(len(r)):
            base = rest * (RED * r[p] + GREEN * g[p] + BLUE * b[p])
            r[p], g[p], b[p] = (
                _clip(factor * r[p] + base),
                _clip(factor * g[p] + base),
                _clip(factor * b[p] + base),
            )
    elif factor:
        turn = SIX * factor
        for p in range(len(r)):
            red, green, blue = r[p], g[p], b[p]
            v = max(red, max(green, blue))
            c = v - min(red, min(green, blue))
            is_red, is_green = v == red, v == green
            difference = green - blue if is_red else (blue - red if is_green else red - green)
            sector = np.float32(0) if is_red else (np.float32(2) if is_green else np.float32(4))
            hue = sector + difference / (c if c > 0 else ONE) + turn
            r[p], g[p], b[p] = (
                _turned(v, c, hue + 5),
                _turned(v, c, hue + 3),
                _turned(v, c, hue + 1),
            )


@compiled
def _turned(v, c, k):
    k = np.float32(k)
    k -= SIX * np.floor(k / SIX)
    return v - c * _clip(min(k, np.float32(4) - k))


@compiled
def _blur(x, sigma, weight, padded, lines):
    """Gaussian blur in place, edges reflected: along the rows into lines (S + 2 R, S), then along
    the columns."""
    size, radius = x.shape[1], len(weight) // 2
    for t in range(len(weight)):
        offset = np.float32(t - radius) / sigma
        weight[t] = math.exp(np.float32(-0.5) * offset * offset)
    weight /= weight.sum()
    for c in range(x.shape[0]):
        for i in range(size):
            padded[radius : radius + size] = x[c, i]
            for t in range(radius):
                padded[t], padded[radius + size + t] = x[c, i, radius - t], x[c, i, size - 2 - t]
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
                share, source = weight[t], lines[i + t]
                for j in range(size):
                    x[c, i, j] += share * source[j]
