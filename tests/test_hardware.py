import ctypes
import math
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lib import hardware
from lib.augmentations import RECIPES, views
from lib.compute.cost import flops
from lib.config import COMPUTED
from lib.encoders import Model
from lib.hardware import (
    choose_precision,
    fast_on_cpu,
    fast_on_gpu,
    matrix_rate,
    memory_kept,
    peak_memory,
)
from lib.presets import preset
from lib.training import Step, build_optimiser
from tests.pretended import gpu

CPU, META = torch.device("cpu"), torch.device("meta")


def test_automatic_precision_is_what_a_gpu_multiplies_fast():
    """A T4 (7.5) has no bfloat16, an A100 (8.0) and an H100 (9.0) have."""
    assert fast_on_gpu((7, 5)) == "float16"
    assert fast_on_gpu((8, 0)) == "bfloat16"
    assert fast_on_gpu((9, 0)) == "bfloat16"


def test_automatic_precision_is_what_a_cpu_multiplies_fast():
    assert fast_on_cpu(frozenset({"avx512f", "avx512_vnni"})) == "float32"
    assert fast_on_cpu(frozenset({"avx512f", "avx512_bf16"})) == "float32"
    assert fast_on_cpu(frozenset({"avx512f", "amx_bf16"})) == "bfloat16"
    assert choose_precision("auto", torch.device("mps")) == "float32"


@pytest.fixture
def cpu_with(monkeypatch) -> Iterator[Callable[[str], None]]:
    """A function of flags: Linux says from then on that the processor has these."""

    def pretend(flags: str) -> None:
        says = f"processor\t: 0\nmodel name\t: pretended\nflags\t\t: {flags}\nbugs\t\t:\n"
        monkeypatch.setattr(Path, "is_file", lambda path: True)
        monkeypatch.setattr(Path, "read_text", lambda path, encoding: says)
        hardware.cpu_flags.cache_clear()

    yield pretend
    monkeypatch.undo()
    hardware.cpu_flags.cache_clear()


def test_automatic_precision_is_that_of_the_cpu_at_hand(cpu_with):
    cpu_with("fpu avx512f avx512_vnni")
    assert choose_precision("auto", CPU) == "float32"
    cpu_with("fpu avx512f amx_bf16 amx_tile")
    assert hardware.cpu_flags() == {"fpu", "avx512f", "amx_bf16", "amx_tile"}
    assert choose_precision("auto", CPU) == "bfloat16"
    assert choose_precision("float32", CPU) == "float32"


def test_which_precisions_a_device_computes():
    def of(device: str) -> list[str]:
        return [name for name in COMPUTED if hardware.computes(torch.device(device), name)]

    assert of("cpu") == list(COMPUTED)
    assert of("mps") == ["float32"]
    with gpu(capability=(7, 5)):
        assert of("cuda") == ["float32", "float16"]
    with gpu(capability=(8, 0)):
        assert of("cuda") == list(COMPUTED)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_precision_that_is_asked_for_is_left_alone(precision):
    for device in ("cpu", "mps", "cuda"):
        assert choose_precision(precision, torch.device(device)) == precision


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_first_step_that_overflows_in_float16_leaves_no_trace(optimiser, monkeypatch):
    """Memory that is not written holds anything; here it holds no number."""

    def unwritten(x: Tensor, **options) -> Tensor:
        return torch.full_like(x, math.nan, **options)

    monkeypatch.setattr(torch, "empty_like", unwritten)
    config = preset("simclr-digits", optimiser=optimiser, precision="float16")
    scaler = torch.amp.GradScaler("cpu")
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.load_state_dict(one.state_dict())

    def take_steps(model: nn.Module, *factors: float) -> None:
        optimiser = build_optimiser(config, model)
        for factor in factors:
            optimiser.zero_grad()
            loss = factor * (model.weight.sum() + model.bias.sum())
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()

    take_steps(one, 1.0)
    take_steps(other, math.inf, 1.0)
    torch.testing.assert_close(one.weight, other.weight)
    torch.testing.assert_close(one.bias, other.bias)


@pytest.mark.parametrize(
    "name, head",
    [
        ("simclr-cifar10", "mlp"),
        ("supcon-cifar10", "mlp"),
        ("ce-cifar10", "linear"),
        ("simclr-stl10", "mlp"),
    ],
)
def test_a_step_never_waits_for_a_number(name, head, monkeypatch):
    """On the meta device, where tensors have no numbers, whoever asks for one fails."""
    # autocast knows no meta device
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    config = preset(name, encoder="slim", head=head, precision="float32")
    images = torch.empty(16, 3, 32, 32, dtype=torch.uint8, device=META)
    recipe = RECIPES[config.recipe]
    x = views(images, recipe, seed=0, step=0, count=config.views)
    assert x.device == META

    model = Model("slim", config.stem, head, 10).to(META)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimiser = build_optimiser(config, model)
    take_step = Step(config, model, optimiser, scaler)
    labels = torch.empty(16, dtype=torch.int64, device=META)
    loss, z = take_step(x, labels, rate=0.1)
    assert loss.shape == ()
    assert z.shape == (config.views, 16, 10)
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(loss)  # the test can fail


def test_operations_are_counted_as_by_hand():
    """One view of 32 pixels through the slim encoder: forward once, backward twice."""
    stem = 16**2 * 32 * 3 * 9
    first = 2 * 16**2 * 32 * 32 * 9
    second = 8**2 * 64 * 9 * (32 + 64) + 8**2 * 32 * 64
    third = 4**2 * 128 * 9 * (64 + 128) + 4**2 * 64 * 128
    head = 128 * 128 + 128 * 128
    image_gradient = stem  # the stem needs none
    forward = stem + first + second + third + head
    assert flops(Model("slim"), 32) == 2 * (3 * forward - image_gradient)


def test_resnet18_on_small_images_is_as_large_as_published():
    """0.56 G multiply-adds a forward pass for the CIFAR form of ResNet-18."""
    forward = flops(Model("resnet18"), 32) / 6
    assert forward == pytest.approx(0.56e9, rel=0.01)


def test_the_matrix_rate_and_the_memory_are_this_machines(monkeypatch):
    monkeypatch.setattr(hardware, "SIDE_ELSEWHERE", 256)
    assert 1e8 < matrix_rate.__wrapped__(CPU, "float32") < 1e14
    before = peak_memory(CPU)
    held = torch.ones(2 * before // 4)  # twice the peak so far, in float32
    assert peak_memory(CPU) >= 4 * len(held)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc only"
)
def test_memory_is_kept_within_and_given_back_after():
    """Page faults of taking and freeing 64 MB again and again: every time outside, once within."""

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(8):
            torch.ones(2**24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def resident() -> int:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()

    with memory_kept(CPU):
        pass  # leaves glibc's defaults, whatever a test before did
    with memory_kept(META):  # another device: nothing changes
        outside = faults()
    with memory_kept(CPU):
        faults()
        within, held = faults(), resident()
    assert within < outside / 8
    assert resident() < held - 2**25
    assert faults() > outside / 8
