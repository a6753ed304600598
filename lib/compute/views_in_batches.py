"""Views on any device, by operations on the whole batch: what ``augmentations`` does on GPUs.

``pack`` puts all that was drawn into one array, so that it goes to the device in one copy.
``compute`` is a few hundred operations; ``compute_compiled`` is the same in a few loops over the
pixels, made by PyTorch's compiler. With V views of N images there are M = V N rows; row m is of
image m modulo N. Neither asks for a number that is on the device, so nobody waits for it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.compute.compilation import go_on_without
from lib.compute.image_operations import (
    CONTRAST,
    HUE,
    Planes,
    colour_jitter,
    crop_resize_flip,
    gaussian_blur,
    luma,
)

NO_CHANGE = np.array([1, 1, 1, 0, 1, 1, 1])  # by ``colour_jitter``
# PyTorch's compiler: the same rounding as without it, and r, g and b by one loop over pixels
OPTIONS: dict[str, Any] = {
    "emulate_precision_casts": True,
    "max_pointwise_cat_inputs": 0,
    "max_complex_pointwise_cat_inputs": 0,
}
# and both directions of a blur of up to 9 pixels by one loop: keeping the first costs more memory
# traffic than computing it again
BLUR_OPTIONS = OPTIONS | {
    "realize_reads_threshold": 20,
    "realize_opcount_threshold": 1000,
    "realize_acc_reads_threshold": 128,
}


class Drawn(NamedTuple):
    """What was drawn for M views, on the device, all float32."""

    box: Tensor  # (M, 4) top, left, height, width, in pixels
    flip: Tensor  # (M, 1) 0 or 1
    grey: Tensor  # (M, 1) 0 or 1
    sigma: Tensor  # (M, 1)
    blends: Tensor  # (M, 3), see ``image_operations.colour_jitter``, and
    amounts: Tensor  # (M, 7)
    early: Tensor  # (M, 7) amounts, without contrast and what follows it


WIDTHS = (4, 1, 1, 1, 3, 7, 7)  # columns of the fields of Drawn


def pack(parameters: Any, boxes: Tensor) -> np.ndarray:
    """The columns of ``Drawn``, side by side: (n, 24) float32, which holds each number exactly.

    parameters: ``augmentations.Parameters`` of n images.
    boxes: (n, 4), the crops.
    """
    order, strength = parameters.order.numpy(), parameters.jitter.numpy()
    is_hue = order == HUE
    hue_turn = is_hue.argmax(1)[:, None]  # (n, 1)
    blends = order[~is_hue].reshape(-1, 3)
    factors = np.take_along_axis(strength, blends, axis=1)
    is_before_hue = np.arange(3) < hue_turn
    amounts = np.hstack(
        [
            np.where(is_before_hue, factors, 1),
            strength[:, [HUE]],
            np.where(is_before_hue, 1, factors),
        ]
    )
    amounts[~parameters.jittered.numpy()] = NO_CHANGE

    contrast = (blends == CONTRAST).argmax(1)[:, None]  # among the blends, then among the amounts
    contrast = np.where(contrast < hue_turn, contrast, contrast + 4)
    early = np.where(np.arange(7) < contrast, amounts, NO_CHANGE)

    columns = [parameters.flip.numpy(), parameters.grey.numpy(), parameters.sigma.numpy()]
    packed = np.column_stack([boxes.numpy(), *columns, blends, amounts, early])
    return packed.astype(np.float32)


def unpack(packed: Tensor) -> Drawn:
    """The columns of ``pack``'s array (M, 24)."""
    return Drawn(*packed.split(WIDTHS, dim=1))


def compute(images: Tensor, packed: Tensor, recipe: Any) -> Tensor:
    """Views (M, 3, S, S) float32, channels last, of images (N, 3, H, W) uint8.

    packed: (M, 24), see ``pack``.
    recipe: ``augmentations.Recipe``.
    """
    x = sharp_views(images, packed, recipe)
    if recipe.blur_sigma:
        x = gaussian_blur(x, unpack(packed).sigma, recipe.blur_kernel)
    return x


def compute_compiled(images: Tensor, packed: Tensor, recipe: Any) -> Tensor:
    """``compute`` in three passes over the pixels, each compiled; up to rounding the same.

    Contrast needs all pixels of an image before it changes one, and blur a pixel's neighbours. The
    first pass finds the mean greys and writes nothing else: that the second resamples the images
    again costs less than keeping them. Where there is something amiss with the compiler, it warns
    and computes without it from then on.
    """
    try:
        mean = None
        if recipe.jitter_probability:
            mean = _compiled(mean_grey, images, packed, recipe)
        x = _compiled(sharp_views, images, packed, recipe, mean)
        if recipe.blur_sigma:
            sigma = unpack(packed).sigma.contiguous()
            x = _compiled(gaussian_blur, x, sigma, recipe.blur_kernel)
        return x
    except torch._dynamo.exc.BackendCompilerFailed as error:
        go_on_without(error, "views are", images.device)
        return compute(images, packed, recipe)


def _compiled(function: Callable, *arguments: Any) -> Tensor:
    """function(*arguments), compiled when it is first called, for any number of images and views.

    So a last, smaller batch needs no code of its own.
    """
    for argument in arguments:
        if isinstance(argument, Tensor):
            torch._dynamo.maybe_mark_dynamic(argument, 0)
    return _compiler(function)(*arguments)


@cache
def _compiler(function: Callable) -> Callable:
    options = BLUR_OPTIONS if function is gaussian_blur else OPTIONS
    known = torch._inductor.list_options()  # differ from version to version
    options = {name: value for name, value in options.items() if name in known}
    # without fullgraph: what has been compiled for too many recipes or sizes goes on as it is
    return torch.compile(function, options=options)


def mean_grey(images: Tensor, packed: Tensor, recipe: Any) -> Tensor:
    """Of each view as it is when contrast has its turn: (M, 1). See ``compute``."""
    drawn = unpack(packed)
    unused = torch.zeros_like(drawn.flip)
    rgb = cropped(images, drawn, recipe)
    rgb = colour_jitter(rgb, drawn.blends, drawn.early, recipe.jitter[HUE] > 0, unused)
    return luma(rgb).mean(1, keepdim=True)


def sharp_views(images: Tensor, packed: Tensor, recipe: Any, mean: Tensor | None = None) -> Tensor:
    """Views before their blur: (M, 3, S, S), channels last. See ``compute``.

    Normalised already, as a blur's weights sum to 1.

    mean: ``mean_grey`` where it is known.
    """
    drawn = unpack(packed)
    rgb = cropped(images, drawn, recipe)
    if recipe.jitter_probability:
        rgb = colour_jitter(rgb, drawn.blends, drawn.amounts, recipe.jitter[HUE] > 0, mean)
    if recipe.greyscale:
        grey = luma(rgb)
        rgb = [torch.where(drawn.grey > 0, grey, plane) for plane in rgb]

    size = recipe.side(images)
    normalised = [(plane - m) / s for plane, m, s in zip(rgb, recipe.mean, recipe.std)]
    return torch.stack(normalised, dim=2).view(-1, size, size, 3).movedim(3, 1)


def cropped(images: Tensor, drawn: Drawn, recipe: Any) -> Planes:
    """Images resampled and mirrored: r, g, b in [0, 1], (M, S * S) each."""
    size = recipe.side(images)
    if recipe.crop_scale or recipe.flip or (size, size) != images.shape[-2:]:
        rgb = crop_resize_flip(images, drawn.box, drawn.flip > 0, size)
    else:
        views = len(drawn.box) // len(images)
        rgb = images.flatten(2).repeat(views, 1, 1).unbind(1)
    return [plane / 255 for plane in rgb]
