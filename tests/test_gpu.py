"""A run and its evaluation on a pretended GPU: all tensors are where they must be."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lib import InputError, evaluation, hardware, probes
from lib.augmentations import RECIPES, views
from lib.compute import logistic
from lib.compute.bits import pack_bits, unpack_bits
from lib.compute.cost import memory
from lib.config import Config
from lib.data.dataset import Dataset
from lib.encoders import Model
from lib.hardware import choose_precision
from lib.probes import corruptions, few_labels, fine_tuning, published
from lib.runs import Run, checkpoints, pretrain
from lib.training import Batches, Progress, Step, build_model, build_optimiser, recipe_for, train
from tests.conftest import by_loss, hungry, same_weights, sessions_of, small, stopped
from tests.pretended import OnGpu, gpu

CASES = {
    "simclr": {},
    "in chunks": {"accumulate": 3},
    "supcon": {"method": "supcon"},
    "in the logarithm": {"method": "supcon", "positives": "in"},
    "cold": {"temperature": 0.01},
    "ce": {"method": "ce", "test_every": 1},
    "blurred": {"recipe": "uva-supervised"},
    "resized": {"size": 16},
}
CUDA = torch.device("cuda")
FEW = 20  # of so many images one may lie on the fence between two classes


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    """The GPU's matrix rate is measured on a small one."""
    monkeypatch.setattr(hardware, "SIDE", {"cuda": 64})


def two_epochs(**delta) -> Config:
    """Of two steps each."""
    return small(**{"epochs": 2, "batch_size": 64, "knn_every": 1} | delta)


def trained_on(device: str, config: Config, dataset: Dataset, folder: Path) -> Run:
    return pretrain(config, dataset, folder, device, progress=False)


def test_it_refuses_what_a_gpu_refuses():
    with gpu():
        x = torch.ones(3, 4).to("cuda")
        made = [x, x * 2, torch.zeros_like(x), x[torch.tensor([0, 2])]]
        assert {y.device.type for y in made} == {"cuda"}

        assert x.sum().item() == 12
        y = x + torch.tensor(1.0)
        assert y.cpu().numpy().sum() == 24

        for wrong in (
            lambda: x + torch.ones(4),
            lambda: x[:, 0] @ torch.ones(3),
            lambda: x.numpy(),
            lambda: x.pin_memory(),
            lambda: torch.ones(3)[torch.tensor([0], device="cuda")],
            lambda: torch.cat([x, torch.ones(1, 4)]),
            lambda: torch.tensor(1.0).add_(x.sum()),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
    assert torch.ones(1).device.type == "cpu"
    assert not isinstance(torch.ones(1, device="cpu"), OnGpu)


def test_float32_is_no_tf32(monkeypatch):
    """Neither in convolutions nor in products, whatever a container's settings say."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.backends.cuda.matmul.allow_tf32 = True
    with gpu():
        hardware.choose_device("cuda")
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    "capability, precision", [((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")]
)
def test_automatic_precision_is_that_of_the_gpu_at_hand(capability, precision):
    """A T4 (7.5) has no bfloat16, an A100 (8.0) and an H100 (9.0) have."""
    with gpu(capability=capability):
        assert choose_precision("auto", CUDA) == precision
        assert choose_precision("float32", CUDA) == "float32"
        assert choose_precision("auto", torch.device("mps")) == "float32"


def test_what_gpus_have_code_compiled():
    """As Triton is told to need it, where it is installed."""
    has_triton = find_spec("triton") is not None
    for capability, expected in (((6, 1), False), ((7, 0), has_triton), ((9, 0), has_triton)):
        with gpu(capability=capability):
            assert hardware.compiles(CUDA) is expected
            torch.use_deterministic_algorithms(True)
            try:
                assert not hardware.compiles(CUDA)
            finally:
                torch.use_deterministic_algorithms(False)
    assert not hardware.compiles(torch.device("mps"))
    assert not hardware.compiles(torch.device("cpu"))


def test_a_copy_to_the_gpu_is_waited_for_unless_it_is_from_pinned_memory():
    """By the pretended one's own account."""
    x = torch.ones(2)
    with gpu():
        x.to(CUDA)
        x.to(CUDA, non_blocking=True)
        x.pin_memory().to(CUDA)
        x.pin_memory().to(CUDA, non_blocking=True)
        hardware.send(x, CUDA)
    assert OnGpu.waits == [True, True, True, False, False]


def test_a_checkpoint_is_copied_from_the_gpu_without_a_wait_for_each_tensor(toy, tmp_path):
    with gpu():
        cut = stopped(small(), toy, tmp_path, steps=3, device="cuda")
        state = {name: value.clone() for name, value in cut.model.state_dict().items()}
        OnGpu.waits.clear()
        tensors, _ = checkpoints.content(
            cut.config, cut.progress, cut.model, cut.optimiser, cut.scaler
        )
        assert len(OnGpu.waits) > 2 * len(list(cut.model.parameters()))
        assert not any(OnGpu.waits)
        for value in cut.model.parameters():
            value.data.zero_()
        for name, value in state.items():
            copy = tensors[f"model.{name}"]
            assert copy.device.type == "cpu" and copy.is_contiguous()
            assert torch.equal(copy, value.cpu()), name


@pytest.mark.parametrize("recipe", ["supcontrast", "uva-supervised"])
def test_a_batch_needs_two_copies_to_the_gpu_and_waits_for_none(recipe, toy):
    """Of its images, which lie in the host's memory, and of what was drawn for all their views."""
    with gpu():
        batches = Batches(two_epochs(recipe=recipe), toy, CUDA, fits=False)
        OnGpu.waits.clear()
        for x, _ in batches.epoch(0):
            assert x.device.type == "cuda"
            assert x.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert OnGpu.waits == [False, False] * len(batches)


def test_a_model_comes_back_when_what_it_was_lent_for_fails():
    model = torch.nn.Linear(2, 2)
    with gpu(), pytest.raises(ZeroDivisionError):
        with hardware.lent(model, CUDA) as lent:
            assert lent.weight.device.type == "cuda"
            raise ZeroDivisionError
    assert model.weight.device.type == "cpu"


@pytest.mark.parametrize("trains", [False, True])
def test_features_of_views_are_computed_on_the_gpu_and_come_back(toy, trains):
    """By a copy: the model stays where it is, and what BatchNorm has counted as it was."""
    computed = []

    class Noting(Model):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            computed.append((x.device.type, len(x)))
            return super().forward(x)

    model = Noting("slim").train(trains)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = views(toy.val.images, RECIPES["digits"], seed=0, step=0)  # (2, 20, 3, 12, 12)
    with gpu():
        h, z = evaluation.view_features(model, x, batch=16)
    assert computed == [("cuda", 16), ("cuda", 16), ("cuda", 8)]
    assert (h.shape, z.shape) == ((2, 20, 128), (2, 20, 128))
    assert h.device.type == z.device.type == "cpu"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training == trains

    wanted = [model(part)[0] for part in x.flatten(0, 1).split(16)]
    torch.testing.assert_close(h.flatten(0, 1), torch.cat(wanted), rtol=1e-3, atol=1e-4)
    exact, _ = evaluation.view_features(model, x, 16, "cpu")
    assert torch.equal(exact.flatten(0, 1), torch.cat(wanted))


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_the_cpus(toy, tmp_path, case):
    """By SGD, whose steps are in proportion to the gradient, rounding and all."""
    config = two_epochs(optimiser="sgd", **CASES[case])
    with gpu():
        on_gpu = trained_on("cuda", config, toy, tmp_path / "gpu")
    on_cpu = trained_on("cpu", config, toy, tmp_path / "cpu")
    assert on_gpu.record["device"]["type"] == "cuda"
    assert on_gpu.folder.name == on_cpu.folder.name

    for one, other in zip(on_gpu.curves, on_cpu.curves, strict=True):
        assert one.keys() == other.keys()
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        # of 20 images, one more or less
        assert one["knn"] == pytest.approx(other["knn"], abs=0.06)
        if "test_correct" in one:
            assert abs(one["test_correct"] - other["test_correct"]) <= 1

    weights = on_gpu.model.state_dict()
    for name, x in on_cpu.model.state_dict().items():
        torch.testing.assert_close(weights[name], x, rtol=1e-3, atol=1e-4)


def test_a_run_whose_images_do_not_fit_reads_them_from_the_host(toy, tmp_path, capfd):
    config = two_epochs()
    with gpu(memory=2**16):
        on_gpu = trained_on("cuda", config, toy, tmp_path / "gpu")
    assert "too large for cuda:0, read from the host's memory" in capfd.readouterr().err

    on_cpu = trained_on("cpu", config, toy, tmp_path / "cpu")
    for one, other in zip(on_gpu.curves, on_cpu.curves, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)


@pytest.mark.parametrize(
    "images, advice",
    [
        (10**6, "batch_size=16 would fit"),
        (9, "batch_size=8 would fit"),
        (5, "batch_size=4 would fit"),
        (0, "not even 2 would fit"),
    ],
)
def test_a_run_that_finds_no_memory_names_the_batch_that_would_fit(
    images, advice, toy, tmp_path, monkeypatch
):
    """images: how many the GPU has room for."""
    config = by_loss(hungry, monkeypatch)
    room = images * 2 * memory(Model(config.encoder), 12)
    why = f"out of memory on cuda:0 with batches of 32 .*{advice}"
    with gpu(memory=room), pytest.raises(InputError, match=why):
        trained_on("cuda", config, toy, tmp_path)


def test_a_run_goes_on_from_its_checkpoint(toy, tmp_path):
    """Stopped in its second epoch."""
    config = two_epochs(knn_every=0)
    runs = tmp_path / "parts"
    with gpu():
        whole = trained_on("cuda", config, toy, tmp_path / "whole")
        stopped(config, toy, runs, steps=3, device="cuda")
        parts = trained_on("cuda", config, toy, runs)
    assert sessions_of(parts) == [[0, 3], [3, 4]]
    assert "deterministic mode" in parts.record["inexact_because"]
    assert same_weights(whole.model, parts.model)


def test_the_loop_alone_runs_on_a_gpu(toy):
    """Whose progress begins on the CPU."""
    config = two_epochs(method="supcon")
    with gpu():
        model = build_model(config, toy).to("cuda")
        scaler = torch.amp.GradScaler("cuda", enabled=False)
        optimiser = build_optimiser(config, model)
        take_step = Step(config, model, optimiser, scaler)
        batches = Batches(config, toy, CUDA)
        progress = Progress()
        for _ in train(config, batches, take_step, progress):
            pass

    assert progress.step == 4
    first, second = progress.curves
    assert second["loss"] < first["loss"]


def test_a_runs_peak_memory_is_its_own(toy, tmp_path, monkeypatch):
    """Without what the process took before, and without the matrices of the device's rate."""
    monkeypatch.setattr(hardware, "SIDE", {"cuda": 1024})
    hardware.matrix_rate.cache_clear()
    with gpu():
        torch.ones(2**20, device="cuda")
        run = trained_on("cuda", two_epochs(), toy, tmp_path)
    cost = run.record["cost"]
    assert OnGpu.largest == 4 * 1024**2
    assert 10**5 < cost["peak_bytes"] < 4 * 10**6


def test_a_run_of_a_newer_gpu_is_read_on_an_older_one(toy, tmp_path, monkeypatch):
    """Which has no bfloat16."""
    shorter = replace(published.PROTOCOLS["supcontrast"], epochs=1)
    monkeypatch.setitem(published.PROTOCOLS, "supcontrast", shorter)
    run = trained_on("cpu", two_epochs(precision="bfloat16"), toy, tmp_path)
    with gpu(capability=(7, 5)):
        found = run.evaluate(toy, "cuda", ["supcontrast"])
    assert found["h"]["supcontrast"]["precision"] == "float32"


PROBES = {"simclr": probes.PROBES, "ce": ("linear", "calibration")}


@pytest.mark.parametrize("method, wanted", PROBES.items())
def test_every_probe_finds_what_it_finds_on_the_cpu(toy, tmp_path, method, wanted, monkeypatch):
    monkeypatch.setattr(few_labels, "SUBSETS", 1)
    monkeypatch.setattr(few_labels, "PER_CLASS", (10,))
    monkeypatch.setattr(corruptions, "SEVERITIES", (3,))
    little = {"STEPS": 2, "EPOCHS": 1, "SUBSETS": 1, "PER_CLASS": (10,), "RATES": (0.1,)}
    for constant, value in little.items():
        monkeypatch.setattr(fine_tuning, constant, value)
    for name, protocol in published.PROTOCOLS.items():
        shorter = replace(protocol, epochs=3)
        monkeypatch.setitem(published.PROTOCOLS, name, shorter)
    # a few steps towards each minimum: most of the test's time goes into them
    monkeypatch.setattr(logistic, "LOOK", 2)
    monkeypatch.setattr(logistic, "ITERATIONS", 2)

    run = trained_on("cpu", two_epochs(method=method), toy, tmp_path)
    recipe = recipe_for(run.config, toy, "none")
    answers = []
    for device in (torch.device("cpu"), CUDA):
        with gpu(), hardware.lent(run.model, device) as model:
            answers.append(probes.ask(model, toy, recipe, method, wanted))
    on_cpu, on_gpu = answers
    assert_alike(on_gpu, on_cpu)


def assert_alike(one: Any, other: Any, n: int = 0) -> None:
    """Answers about n images, equal but for a few images on the fence between two classes.

    The linear probe's search ends within a tolerance of the minimum, and sums in another order on a
    GPU; so do different numbers of threads and kinds of CPU. Such images may fall on either side.
    """
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        n = other.get("n", n)
        for key, value in other.items():
            if key == "bits":
                differ = unpack_bits(one[key], n) != unpack_bits(value, n)
                assert differ.sum() <= n // FEW
            else:
                assert_alike(one[key], value, n)
    elif isinstance(other, list):
        for ours, theirs in zip(one, other, strict=True):
            assert_alike(ours, theirs, n)
    elif isinstance(other, float):
        assert one == pytest.approx(other, rel=0.05, abs=0.05)
    elif isinstance(other, int):
        assert abs(one - other) <= n // FEW
    else:
        assert one == other


def test_answers_that_differ_in_more_than_a_few_images_are_not_alike():
    right = torch.arange(100) < 50
    answer = {"n": 100, "correct": 50, "bits": pack_bits(right), "l2": 0.01}
    assert_alike(answer | {"correct": 45}, answer)
    for change in (
        {"correct": 44},
        {"bits": pack_bits(right.roll(3))},
        {"l2": 1.0},
        {"n": 94},
    ):
        with pytest.raises(AssertionError):
            assert_alike(answer | change, answer)
