import ctypes
import math
import resource
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from lib import augmentations, hardware, sessions
from lib.augmentations import RECIPES, views
from lib.config import preset
from lib.encoders import Model
from lib.hardware import choose_precision, matrix_rate, memory_kept, peak_memory
from lib.optimisers import build_optimiser
from lib.training import train_step


@pytest.mark.parametrize(
    "capability, precision", [((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")]
)
def test_automatic_precision_is_what_the_gpu_multiplies_fast(capability, precision, monkeypatch):
    """A T4 (7.5) has no bfloat16, an A100 (8.0) and an H100 (9.0) have."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx512f", "avx512_bf16"}))
    assert choose_precision("auto", torch.device("cuda")) == precision
    assert (
        choose_precision("auto", torch.device("cpu"))
        == choose_precision("auto", torch.device("mps"))
        == "float32"
    )
    assert choose_precision("float32", torch.device("cuda")) == "float32"
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx512f", "amx_bf16"}))
    assert choose_precision("auto", torch.device("cpu")) == "bfloat16"
    assert choose_precision("float32", torch.device("cpu")) == "float32"


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_first_step_that_overflows_in_float16_leaves_no_trace(optimiser, monkeypatch):
    monkeypatch.setattr(torch, "empty_like", lambda x, **keys: torch.full_like(x, math.nan, **keys))
    config, scaler = (
        preset("simclr-digits", optimiser=optimiser, precision="float16"),
        torch.amp.GradScaler("cpu"),
    )
    models = [torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)]
    models[1].load_state_dict(models[0].state_dict())
    for model, values in zip(models, ([1.0], [float("inf"), 1.0])):
        steps = build_optimiser(config, model)
        for value in values:
            steps.zero_grad()
            scaler.scale(value * sum(p.sum() for p in model.parameters())).backward()
            scaler.step(steps)
            scaler.update()
    for one, other in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["simclr-cifar10", "supcon-cifar10", "ce-cifar10", "simclr-stl10"])
def test_a_step_never_waits_for_a_number(name, monkeypatch):
    """On the meta device tensors have no numbers: whoever asked for one, as a GPU had to wait for,
    would fail."""
    chosen = preset(
        name, encoder="slim", head="linear" if name.startswith("ce") else "mlp", precision="float32"
    )
    meta, sent = torch.device("meta"), []
    monkeypatch.setattr(augmentations, "send", lambda x, device: sent.append(x) or x.to(device))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no meta device
    images = torch.empty(16, 3, 32, 32, dtype=torch.uint8, device=meta)
    x = views(images, RECIPES[chosen.recipe], 0, 0, chosen.views)
    assert x.device == meta and sent and all(tensor.device.type == "cpu" for tensor in sent)
    model = Model(chosen.encoder, chosen.stem, chosen.head, 10).to(meta)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    labels = torch.empty(16, dtype=torch.int64, device=meta)
    loss, z = train_step(chosen, model, build_optimiser(chosen, model), scaler, x, labels)
    assert loss.shape == () and z.shape == (chosen.views, 16, 10)
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(loss)  # the test can fail


def test_operations_are_counted_as_by_hand():
    """One view of 32 pixels: the slim encoder without shortcuts' and head's few, forward once,
    backward twice."""
    sides, widths = {"stem": 16, "first": 16, "second": 8, "third": 4}, [32, 64, 128]
    stem = sides["stem"] ** 2 * 32 * 3 * 9
    first = 2 * sides["first"] ** 2 * 32 * 32 * 9
    second = sides["second"] ** 2 * 64 * 9 * (32 + 64) + sides["second"] ** 2 * 32 * 64
    third = sides["third"] ** 2 * 128 * 9 * (64 + 128) + sides["third"] ** 2 * 64 * 128
    head = widths[2] * widths[2] + widths[2] * 128
    image_gradient = stem  # the stem needs none
    assert Model("slim").flops(32) == 2 * (
        3 * (stem + first + second + third + head) - image_gradient
    )


def test_resnet18_on_small_images_is_as_large_as_published():
    """0.56 G multiply-adds a forward pass for the CIFAR form of ResNet-18."""
    assert Model("resnet18").flops(32) / 6 == pytest.approx(0.56e9, rel=0.01)


def test_the_matrix_rate_and_the_memory_are_this_machines(monkeypatch):
    monkeypatch.setattr(hardware, "SIDE_ELSEWHERE", 256)
    cpu = torch.device("cpu")
    assert 1e8 < matrix_rate.__wrapped__(cpu, "float32") < 1e14
    before = peak_memory(cpu)
    held = torch.ones(2 * before // 4)  # twice the peak so far, in float32
    assert peak_memory(cpu) >= 4 * len(held)


def test_a_runs_peak_memory_is_without_the_matrices_of_the_rate(monkeypatch):
    taken = [1]
    monkeypatch.setattr(sessions, "peak_memory", lambda device: max(taken))
    monkeypatch.setattr(sessions, "matrix_rate", lambda *_: taken.append(100) or 1e9)
    curves = [{"seconds": 1.0, "views_per_second": 10.0}]
    assert sessions.cost(preset("simclr-digits"), 32, Model("slim"), curves)[
        "peak_bytes"
    ] == 1 and taken == [1, 100]


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
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    cpu = torch.device("cpu")
    with memory_kept(cpu):
        pass  # leaves glibc's defaults, whatever a test before did
    with memory_kept(torch.device("meta")):  # another device: nothing changes
        outside = faults()
    with memory_kept(cpu):
        faults()
        within, held = faults(), resident()
    assert within < outside / 8
    assert resident() < held - 2**25 and faults() > outside / 8
