"""The first thing to run on a new machine: its accelerator beside the CPU.

pytest -m device runs it; without an accelerator it is skipped, unless TEST_DEVICE names one (cpu,
to see that the test itself is right).
"""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from lib import evaluation, losses
from lib.augmentations import COMPILED_FROM, RECIPES, draw, views, views_in_batches_of
from lib.data.dataset import Dataset
from lib.hardware import choose_device, compiles
from lib.runs import load, pretrain
from tests.conftest import same_weights, sessions_of, small, stopped

pytestmark = pytest.mark.device


@pytest.fixture(scope="module")
def device() -> torch.device:
    chosen = choose_device(os.environ.get("TEST_DEVICE"))
    if chosen.type == "cpu" and "TEST_DEVICE" not in os.environ:
        pytest.skip("there is no accelerator")
    return chosen


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("images", [64, 2500], ids=["one tile", "many tiles"])
@pytest.mark.parametrize("positives", ["out", "in"])
def test_losses_and_their_gradients(device, images, positives):
    z, labels = numbers(2, images, 32), torch.arange(images) % 7

    def with_gradients(where: torch.device) -> list[Tensor]:
        here = z.to(where).requires_grad_()
        nt_xent = losses.nt_xent(here, 0.5)
        sup_con = losses.sup_con(here, labels.to(where), 0.1, positives)
        gradients = [torch.autograd.grad(loss, here)[0] for loss in (nt_xent, sup_con)]
        return [x.detach().cpu() for x in (nt_xent, sup_con, *gradients)]

    for ours, wanted in zip(with_gradients(device), with_gradients(torch.device("cpu"))):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-7)


def test_contrast(device):
    z, labels = numbers(2, 2500, 32), torch.arange(2500) % 7
    ours = losses.contrast(z.to(device), labels.to(device))
    assert ours == pytest.approx(losses.contrast(z, labels), rel=1e-4, abs=1e-6)


def on_cpu(images: Tensor, name: str, seed: int, step: int) -> Tensor:
    """``views`` there, without numba, which would first compile its own form for half a minute."""
    drawn = [draw(RECIPES[name], len(images), seed, step, view) for view in range(2)]
    return views_in_batches_of(images, drawn)


@pytest.mark.parametrize("recipe", ["supcontrast", "uva"])
def test_views(device, recipe):
    images = (255 * torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(1))).byte()
    ours = views(images.to(device), RECIPES[recipe], seed=3, step=5)
    torch.testing.assert_close(ours.cpu(), on_cpu(images, recipe, 3, 5), rtol=0, atol=2e-5)


def test_neighbours(device):
    train, test = numbers(3000, 16), numbers(700, 16, seed=1)
    labels = torch.arange(3000) % 10
    wanted = evaluation.knn(train, labels, test, 10)
    ours = evaluation.knn(train.to(device), labels.to(device), test.to(device), 10)
    assert float((ours.cpu() == wanted).float().mean()) > 0.99


def test_three_steps(device, toy: Dataset, tmp_path: Path):
    config = small(epochs=1, images=108, precision="float32")  # three batches of 32
    ours = pretrain(config, toy, tmp_path / "ours", device.type, progress=False)
    wanted = pretrain(config, toy, tmp_path / "wanted", "cpu", progress=False)
    assert ours.curves[0]["loss"] == pytest.approx(wanted.curves[0]["loss"], rel=1e-3)
    weights = wanted.model.state_dict()
    for name, value in ours.model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_a_run_that_was_cut_off_goes_on(device, precision, toy: Dataset, tmp_path: Path):
    config = small(epochs=2, precision=precision)
    whole = pretrain(config, toy, tmp_path / "whole", device.type, progress=False)
    config = whole.config  # its precision is chosen
    stopped(config, toy, tmp_path / "cut", steps=3, device=device.type)
    resumed = pretrain(config, toy, tmp_path / "cut", device.type, progress=False)
    assert [steps[0] for steps in sessions_of(resumed)] == [0, 3]
    assert resumed.curves[-1]["loss"] == pytest.approx(whole.curves[-1]["loss"], rel=0.02)
    assert same_weights(load(resumed.folder).model, resumed.model)


def test_a_steps_views_are_few_kernels_and_one_copy(device):
    """Last, since it waits for the compiler."""
    if not compiles(device):
        pytest.skip("this device has no compiler")
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, 3, 96, 96), dtype=torch.uint8, generator=random)
    on_gpu = images.to(device)

    def made(step: int) -> Tensor:
        return views(on_gpu, RECIPES["uva"], seed=0, step=step)

    compiled = made(COMPILED_FROM)  # compiles
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        made(COMPILED_FROM + 1)
        torch.cuda.synchronize()

    on_device = [event.name for event in profiled.events() if event.device_type == DeviceType.CUDA]
    copies = [name for name in on_device if name.startswith("Memcpy")]
    assert len(copies) == 1 and "HtoD" in copies[0]
    assert 2 <= len(on_device) - len(copies) <= 2 * 30

    for step, ours in ((COMPILED_FROM, compiled), (COMPILED_FROM - 1, made(COMPILED_FROM - 1))):
        assert (ours.cpu() - on_cpu(images, "uva", 0, step)).abs().max() < 2e-5
