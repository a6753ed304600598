"""A run and its evaluation on a pretended GPU (tests/pretended.py): all tensors are where they must
be."""

from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from lib import augmentations, evaluation, hardware, probes, runs, training
from lib.config import preset
from tests.pretended import gpu

CASES = {
    "simclr": {},
    "in chunks": {"accumulate": 3},
    "supcon": {"method": "supcon"},
    "in the logarithm": {"method": "supcon", "positives": "in"},
    "cold": {"temperature": 0.01},
    "ce": {"method": "ce", "head": "linear", "test_every": 1},
    "blurred": {"recipe": "uva-supervised"},
    "resized": {"size": 16},
}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """Both devices compute views by operations on the whole batch; the GPU's matrix rate is
    measured on a small one."""
    monkeypatch.setattr(augmentations, "kernels", None)
    monkeypatch.setattr(hardware, "SIDE", {"cuda": 64})


def pretrain(dataset, folder, device, **delta):
    config = preset(
        "simclr-digits",
        **{"recipe": "supcontrast", "epochs": 2, "batch_size": 64, "data": "toy", "knn_every": 1}
        | delta,
    )
    return training.pretrain(config, dataset, folder, device, progress=False)


def test_it_refuses_what_a_gpu_refuses():
    with gpu():
        x = torch.ones(3, 4).to("cuda")
        assert (
            x.device.type
            == (x * 2)[torch.tensor([0, 2])].device.type
            == torch.zeros_like(x).device.type
            == "cuda"
        )
        assert x.sum().item() == 12 and (x + torch.tensor(1.0)).cpu().numpy().sum() == 24
        for wrong in (
            lambda: x + torch.ones(4),
            lambda: x[:, 0] @ torch.ones(3),
            lambda: x.numpy(),
            lambda: torch.ones(3)[torch.tensor([0], device="cuda")],
            lambda: torch.cat([x, torch.ones(1, 4)]),
            lambda: torch.tensor(1.0).add_(x.sum()),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
    assert torch.ones(1).device.type == "cpu" and not isinstance(
        torch.ones(1, device="cpu"), type(x)
    )


def test_float32_is_no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with gpu():
        hardware.choose_device("cuda")
        assert not torch.backends.cudnn.allow_tf32


def test_a_model_comes_back_when_what_it_was_lent_for_fails():
    model = torch.nn.Linear(2, 2)
    with (
        gpu(),
        pytest.raises(ZeroDivisionError),
        hardware.lent(model, torch.device("cuda")) as there,
    ):
        assert there.weight.device.type == "cuda"
        raise ZeroDivisionError
    assert model.weight.device.type == "cpu"


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_the_cpus(toy, tmp_path, case):
    with gpu():
        there = pretrain(toy, tmp_path / "gpu", "cuda", **CASES[case])
    here = pretrain(toy, tmp_path / "cpu", "cpu", **CASES[case])
    assert there.record["device"]["type"] == "cuda" and there.folder.name == here.folder.name
    for one, other in zip(there.curves, here.curves):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["knn"] == pytest.approx(other["knn"], abs=0.06)  # of 20 images: one more or less
        assert one.get("test_correct", 0) == pytest.approx(other.get("test_correct", 0), abs=1)
    for name, tensor in here.model.state_dict().items():
        torch.testing.assert_close(there.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_run_whose_images_do_not_fit_reads_them_from_the_host(toy, tmp_path, capfd):
    with gpu(memory=2**16):
        there = pretrain(toy, tmp_path / "gpu", "cuda")
    assert "too large for cuda:0, read from the host's memory" in capfd.readouterr().err
    assert there.curves[-1]["loss"] == pytest.approx(
        pretrain(toy, tmp_path, "cpu").curves[-1]["loss"], abs=1e-4
    )


def test_a_run_goes_on_from_its_checkpoint(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    rate = training.learning_rate

    def ends(config, step, batches):
        if step == 3:
            raise RuntimeError("the power went")
        return rate(config, step, batches)

    with gpu():
        whole = pretrain(toy, tmp_path / "whole", "cuda")
        monkeypatch.setattr(training, "learning_rate", ends)
        with pytest.raises(RuntimeError, match="power"):
            pretrain(toy, tmp_path / "parts", "cuda")
        monkeypatch.setattr(training, "learning_rate", rate)
        parts = pretrain(toy, tmp_path / "parts", "cuda")
    assert (
        len(parts.record["segments"]) == 2
        and "deterministic mode" in parts.record["inexact_because"]
    )
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(parts.model.state_dict()[name], tensor)


@pytest.mark.parametrize(
    "method, wanted", [("simclr", evaluation.PROBES), ("ce", ("linear", "calibration"))]
)
def test_every_probe_finds_what_it_finds_on_the_cpu(toy, tmp_path, method, wanted, monkeypatch):
    monkeypatch.setattr(evaluation, "SUBSETS", 1)
    monkeypatch.setattr(evaluation, "PER_CLASS", (10,))
    monkeypatch.setattr(evaluation, "SEVERITIES", (3,))
    for name, protocol in probes.PROTOCOLS.items():
        monkeypatch.setitem(probes.PROTOCOLS, name, replace(protocol, epochs=10))
    run = pretrain(toy, tmp_path, "cpu", method=method, head="linear" if method == "ce" else "mlp")
    recipe, found = runs.recipe_for(run.config, toy, "none"), []
    for device in ("cpu", "cuda"):
        with gpu():
            model = run.model.to(device)
            found.append(
                [
                    of(model, toy, recipe, method, wanted)
                    for of in (evaluation.evaluate, evaluation.tables)
                ]
            )
            run.model.cpu()
    for one, other in zip(*map(tree_leaves, found), strict=True):
        assert one == (pytest.approx(other, rel=1e-3) if isinstance(other, float) else other)
