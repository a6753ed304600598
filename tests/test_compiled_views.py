"""Views by PyTorch's compiler, here for the CPU, and what its loops read and write."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._inductor import compile_fx, metrics
from torch._inductor import config as inductor

from lib import augmentations
from lib.augmentations import RECIPES, Parameters, Recipe, draw, views_in_batches_of, views_of

# all that a recipe can ask for, with a blur that is soon compiled
RECIPE = replace(RECIPES["uva"], blur_kernel=3, mean=(0.4, 0.5, 0.6), std=(0.9, 1.0, 1.1))
SIDE = 16
FAST = {"force_disable_caches": True, "cpp.simdlen": 1}  # to compile, not to run


def images(n: int) -> Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (n, 3, SIDE, SIDE), dtype=np.uint8))


def drawn(n: int, recipe: Recipe = RECIPE) -> list[Parameters]:
    return [draw(recipe, n, seed=0, step=0, view=view) for view in range(2)]


@pytest.fixture(scope="module")
def compiled():
    """Two views of 16 images, and the loops and bytes that the compiler says they took."""
    metrics.reset()
    log = compile_fx.inductor_metrics_log
    level = log.level
    log.setLevel(logging.INFO)  # else no bytes are counted
    try:
        with inductor.patch(FAST):
            made = views_in_batches_of(images(16), drawn(16), compiled=True)
    finally:
        log.setLevel(level)
    return made, metrics.generated_kernel_count, metrics.num_bytes_accessed


def test_compiled_views_are_numbas_and_those_of_the_operations_one_by_one(compiled):
    made, *_ = compiled
    assert augmentations.views_cpu is not None
    assert (made - views_of(images(16), drawn(16))).abs().max() < 2e-6
    assert (made - views_in_batches_of(images(16), drawn(16))).abs().max() < 2e-6
    assert made.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_compiled_views_take_few_loops_and_little_traffic(compiled):
    """At least the images are read once and the views written once."""
    made, kernels, traffic = compiled
    assert 3 <= kernels <= 2 * 30
    least = images(16).nbytes + made.nbytes
    assert 2 * least < traffic < 4 * least


def test_a_smaller_batch_is_computed_by_the_same_code(compiled):
    with torch.compiler.set_stance("fail_on_recompile"):
        made = views_in_batches_of(images(5), drawn(5), compiled=True)
    assert (made - views_of(images(5), drawn(5))).abs().max() < 2e-6


def test_without_a_working_compiler_views_are_computed_without_it():
    recipe = replace(RECIPES["none"], flip=0.5)
    try:
        with inductor.patch(FAST | {"cpp.cxx": ("/no/such/compiler",)}):
            with pytest.warns(UserWarning, match=r"views are not compiled for cpu \(.+\)"):
                made = views_in_batches_of(images(5), drawn(5, recipe), compiled=True)
            again = views_in_batches_of(images(5), drawn(5, recipe), compiled=True)
    finally:
        torch.compiler.set_stance("default")
    expected = views_in_batches_of(images(5), drawn(5, recipe))
    assert torch.equal(made, expected)
    assert torch.equal(again, expected)
