"""Steps downhill: how many there are in an epoch, how large each is, and the optimiser that takes
them."""

import math

import torch

from lib.config import Config
from lib.encoders import Model


def learning_rate(config: Config, step: int, steps: int) -> float:
    """Learning rate of a step, counted from 0, in a run with so many steps an epoch.

    With milestones, a tenth of what it was after each of them, in whole epochs (PyTorch's
    MultiStepLR). Else a cosine that changes once an epoch, ``low + (high - low)(1 + cos(pi e / E))
    / 2`` with low = final_rate * high, e counted from first_epoch; before it a warm-up, linear step
    by step, from warmup_from to the cosine's value at the warm-up's end (SupContrast util.py,
    adjust_learning_rate and warmup_learning_rate).
    """
    if config.milestones:
        passed = sum(step // steps >= int(config.epochs * share) for share in config.milestones)
        return config.learning_rate * 0.1**passed
    high, low = config.learning_rate, config.learning_rate * config.final_rate

    def cosine(epoch: float) -> float:
        return low + (high - low) * (1 + math.cos(math.pi * epoch / config.epochs)) / 2

    warmup_steps = config.warmup * steps
    if step < warmup_steps:
        return (
            config.warmup_from + (cosine(config.warmup) - config.warmup_from) * step / warmup_steps
        )
    return cosine(step // steps + config.first_epoch)


def batch_sizes(config: Config, images: int) -> list[int]:
    """How many images each step of an epoch sees. A last batch of one is left out: BatchNorm needs
    two."""
    whole, rest = divmod(images, config.batch_size)
    return [config.batch_size] * whole + ([rest] if rest > 1 and not config.drop_last else [])


def build_optimiser(config: Config, model: Model) -> torch.optim.Optimizer | None:
    """AdamW or SGD over all parameters, in one kernel where the device has it; None where there are
    no parameters.

    SGD in float16 is not fused: where the scaler skips the first step, PyTorch's kernel leaves the
    momentum unwritten.
    """
    parameters = list(model.parameters())
    if not parameters:
        return None
    fused = parameters[0].device.type in ("cpu", "cuda")
    if config.optimiser == "adamw":
        return torch.optim.AdamW(
            parameters, config.learning_rate, weight_decay=config.weight_decay, fused=fused
        )
    return torch.optim.SGD(
        parameters,
        config.learning_rate,
        config.momentum,
        weight_decay=config.weight_decay,
        fused=fused and config.precision != "float16",
    )
