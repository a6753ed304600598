"""Features whose classes lie around their centres, with noise."""

import numpy as np
import torch
from torch import Tensor


def blobs(
    n: int = 300, d: int = 10, classes: int = 4, noise: float = 2.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """x (N, D) float64, of scales from 0.01 to 1000, and y (N,); the classes take turns.

    seed: of the noise; the centres are always the same.
    """
    random = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centres = np.random.default_rng(1).normal(size=(classes, d))
    x = centres[y] * 1.5 + random.normal(size=(n, d)) * noise
    scales = torch.logspace(-2, 3, d).double()
    return torch.from_numpy(x).double() * scales, torch.from_numpy(y)
