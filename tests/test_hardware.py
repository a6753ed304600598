import ctypes
import math
import resource
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lib import hardware
from lib.augmentations import RECIPES, views
from lib.compute.cost import flops
from lib.compute.drivers import nvidia_driver, unusable_gpu
from lib.compute.memory import memory_kept, peak_memory
from lib.config import COMPUTED
from lib.encoders import Model
from lib.hardware import (
    choose_precision,
    fast_on_cpu,
    fast_on_gpu,
    matrix_rate,
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


# as the kernel's modules tell it, the closed one and the open one
DRIVERS = {
    "535.104.05": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 "
    "UTC 2023\nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n",
    "580.65.06": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build"
    "  (root@host)  Sun Jul 27 2025\nGCC version:  gcc version 13.3.0\n",
    "470.256.02": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May 2 2024\n",
}


def machine_with(root: Path, driver: str) -> Path:
    """The root of a machine that has this driver of NVIDIA's."""
    told = root / "proc" / "driver" / "nvidia" / "version"
    told.parent.mkdir(parents=True)
    told.write_text(DRIVERS[driver], encoding="utf-8")
    return root


def refuse() -> None:
    raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check that you have a GPU")


@pytest.mark.parametrize(
    "driver, built_for, words, index",
    [
        ("535.104.05", "13.0", "its driver, 535.104.05, is older than 580", "cu126"),
        ("535.104.05", None, "is built for the CPU alone", "cu126"),
        ("580.65.06", None, "is built for the CPU alone", "cu130"),
        ("470.256.02", "12.6", "470.256.02, is older than 525", None),
        ("470.256.02", None, "is built for the CPU alone; update the driver", None),
        ("580.65.06", "13.0", "Found no NVIDIA driver on your system. Please check", None),
        ("535.104.05", "12.6", "Found no NVIDIA driver on your system. Please check", None),
    ],
)
def test_a_gpu_that_can_not_be_used_says_why_and_what_to_install(
    driver, built_for, words, index, tmp_path, monkeypatch
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    said = unusable_gpu(machine_with(tmp_path, driver), built_for, refuse)
    assert said.startswith("there is an NVIDIA GPU, and PyTorch can't use it: ") and words in said
    assert "\n" not in said
    if index is None:
        assert "pip install" not in said
    else:
        assert said.endswith(f"--extra-index-url https://download.pytorch.org/whl/{index}")


def test_a_gpu_that_is_hidden_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    said = unusable_gpu(machine_with(tmp_path, "580.65.06"), "13.0", refuse)
    assert said.endswith("CUDA_VISIBLE_DEVICES hides it")


NVIDIA_SMI = {
    "a driver": ("echo 537.58", "537.58"),
    "two GPUs": ("echo 537.58; echo 537.58", "537.58"),
    "no version": ("echo '[N/A]'", ""),
    "no driver": ("echo NVIDIA-SMI has failed; exit 9", None),
    "no GPU": ("true", None),
}


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a shell script")
@pytest.mark.parametrize("case", NVIDIA_SMI)
def test_where_no_file_tells_the_driver_nvidias_program_is_asked(case, tmp_path, monkeypatch):
    script, driver = NVIDIA_SMI[case]
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_driver(tmp_path) == driver
    assert (unusable_gpu(tmp_path, None, refuse) is None) == (driver is None)


def test_nothing_is_said_where_there_is_no_gpu_or_it_works(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert unusable_gpu(tmp_path, "13.0", refuse) is None
    machine_with(tmp_path, "535.104.05")
    assert unusable_gpu(tmp_path, "13.0", begin=lambda: None) is None
    with gpu():
        assert unusable_gpu(tmp_path, "13.0", refuse) is None


def test_a_gpu_without_a_version_gets_the_build_for_older_drivers(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert unusable_gpu(tmp_path, None, refuse).endswith("/cu126")


def test_a_device_in_words():
    with gpu(capability=(9, 0)):
        assert hardware.in_words(torch.device("cuda"), "auto") == "pretended (cuda), bfloat16"
    threads = torch.get_num_threads()
    words = hardware.in_words(CPU, "float32")
    assert words.endswith(f"(cpu, {threads} thread{'' if threads == 1 else 's'}), float32")
    assert hardware.in_words(CPU).endswith(")")


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
    state = torch.get_rng_state()
    assert 1e8 < matrix_rate.__wrapped__(CPU, "float32") < 1e14
    assert torch.equal(torch.get_rng_state(), state)
    before = peak_memory(CPU)
    held = torch.ones(2 * before // 4)  # twice the peak so far, in float32
    assert peak_memory(CPU) >= 4 * len(held)


def faults() -> int:
    """Page faults of taking and freeing 64 MB again and again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * resource.getpagesize()


def check_that_memory_is_kept() -> None:
    """Every time there are faults outside, once within."""
    with memory_kept(META):  # another device: nothing changes
        outside = faults()
    with memory_kept(CPU):
        faults()
        within, held = faults(), resident()
    assert within < outside / 8
    assert resident() < held - 2**25
    assert faults() > outside / 8


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc only"
)
def test_memory_is_kept_within_and_given_back_after():
    """In a process of its own: where memory has run out before, as in other tests, none is kept."""
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        fresh.submit(check_that_memory_is_kept).result(timeout=300)


def test_cudnn_looks_for_the_fastest_convolutions_where_they_may_differ():
    def looks(device: str) -> bool:
        with hardware.fastest_convolutions(torch.device(device)):
            return torch.backends.cudnn.benchmark

    assert looks("cuda") and not looks("cpu")
    assert not torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    try:
        assert not looks("cuda")
    finally:
        torch.use_deterministic_algorithms(False)
