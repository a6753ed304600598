"""Checkpoints in other projects' exact formats, their networks written here anew, against what we
make of them."""

import argparse
import os
import pickle
import sys

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from lib import InputError, foreign
from lib.encoders import Model


class SupContrastBlock(nn.Module):
    """As networks/resnet_big.py names its parts: shortcut, and an activation between."""

    def __init__(self, inside, width, stride, bottleneck):
        super().__init__()
        out = width * (4 if bottleneck else 1)
        sizes = (
            [(inside, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
            if bottleneck
            else [(inside, width, 3, stride), (width, out, 3, 1)]
        )
        self.depth = len(sizes)
        for i, (a, b, side, step) in enumerate(sizes, 1):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, side, step, side // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x):
        out = x
        for i in range(1, self.depth + 1):
            out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(out))
            out = out.relu() if i < self.depth else out
        return (out + self.shortcut(x)).relu()


class SupContrastResNet(nn.Module):
    def __init__(self, depths, bottleneck):
        super().__init__()
        self.conv1, self.bn1, inside = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), 64
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                blocks.append(
                    SupContrastBlock(inside, 64 * 2**i, 2 if i and not j else 1, bottleneck)
                )
                inside = 64 * 2**i * (4 if bottleneck else 1)
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.width = inside

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return x.mean((2, 3))


class SupCon(nn.Module):
    """SupConResNet: encoder and head."""

    def __init__(self, depths=(2, 2, 2, 2), bottleneck=False, parallel=False):
        super().__init__()
        self.encoder = SupContrastResNet(depths, bottleneck)
        width = self.encoder.width
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, 128)
        )
        if parallel:
            self.encoder = nn.DataParallel(self.encoder)


class UvA(nn.Module):
    def __init__(self, inner=512):
        super().__init__()
        self.convnet = torchvision.models.resnet18(weights=None, num_classes=inner)
        self.convnet.fc = nn.Sequential(
            self.convnet.fc, nn.ReLU(inplace=True), nn.Linear(inner, 128)
        )


def lived_in(net, seed=0):
    """With BatchNorm's statistics as after some training, so that a forgotten buffer shows."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.num_batches_tracked += 7
    return net.eval()


def images(size):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def supcontrast_file(path, net, dataset="cifar10"):
    """util.py's save_model."""
    options = argparse.Namespace(
        dataset=dataset,
        batch_size=1024,
        learning_rate=0.5,
        temp=0.1,
        cosine=True,
        lr_decay_epochs=[700, 800, 900],
        warmup_to=0.49988,
        model="resnet50",
        method="SupCon",
    )
    optimiser = torch.optim.SGD(net.parameters(), 0.5, momentum=0.9)
    sum(p.sum() for p in net.parameters()).backward()
    optimiser.step()
    torch.save(
        {
            "opt": options,
            "model": net.state_dict(),
            "optimizer": optimiser.state_dict(),
            "epoch": 100,
        },
        path,
    )


@pytest.mark.parametrize(
    "depths, bottleneck, parallel, name",
    [
        ((2, 2, 2, 2), False, True, "resnet18"),
        ((3, 4, 6, 3), False, False, "resnet34"),
        ((3, 4, 6, 3), True, True, "resnet50"),
    ],
)
def test_supcontrasts_checkpoint_gives_the_same_outputs(
    tmp_path, depths, bottleneck, parallel, name
):
    net = lived_in(SupCon(depths, bottleneck, parallel))
    supcontrast_file(tmp_path / "last.pth", net)
    found = foreign.read(tmp_path / "last.pth")
    x = images(32)
    with torch.no_grad():
        h, z = found.model(x)
        theirs = (net.encoder.module if parallel else net.encoder)(x)
        torch.testing.assert_close(h, theirs, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(z, net.head(theirs), rtol=1e-6, atol=1e-6)
    assert (found.encoder, found.stem, found.source) == (name, "cifar", "supcontrast")
    assert (found.missing, found.left_over) == ((), ()) and len(found.matched) == len(
        net.state_dict()
    )
    assert foreign.SOURCES[found.source].size == 32 and foreign.SOURCES[found.source].mean == (
        0.4914,
        0.4822,
        0.4465,
    )
    assert (
        foreign.argparse.Namespace not in torch.serialization.get_safe_globals()
    )  # allowed while reading only


def test_supcontrasts_cifar100_has_its_own_normalisation(tmp_path):
    supcontrast_file(tmp_path / "last.pth", SupCon(), "cifar100")
    assert foreign.SOURCES[foreign.read(tmp_path / "last.pth").source].mean == (
        0.5071,
        0.4867,
        0.4408,
    )


@pytest.mark.parametrize("inner", [512, 128])
def test_uvas_lightning_checkpoint_gives_the_same_outputs(tmp_path, inner):
    """Written by Lightning itself. The older version of the tutorial has a head of 512-128-128."""
    import pytorch_lightning as lightning

    class SimCLR(lightning.LightningModule):
        def __init__(self, hidden_dim, lr, temperature, weight_decay, max_epochs=500):
            super().__init__()
            self.save_hyperparameters()
            self.convnet = lived_in(UvA(inner)).convnet

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 5e-4)

    net = SimCLR(128, 5e-4, 0.07, 1e-4).eval()
    trainer = lightning.Trainer(
        max_epochs=0,
        logger=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.strategy.connect(net)
    trainer.save_checkpoint(tmp_path / "SimCLR.ckpt")
    found, x = (
        foreign.read(tmp_path / "SimCLR.ckpt", encoder="resnet18", stem="imagenet"),
        images(96),
    )
    with torch.no_grad():
        h, z = found.model(x)
        torch.testing.assert_close(z, net.convnet(x), rtol=1e-6, atol=1e-6)
        head, net.convnet.fc = net.convnet.fc, nn.Identity()
        torch.testing.assert_close(h, net.convnet(x), rtol=1e-6, atol=1e-6)
    assert found.source == "uva" and foreign.SOURCES["uva"].size == 96
    assert not found.left_over and head[0].out_features == inner


def test_a_lightning_checkpoint_of_old_that_names_its_callbacks_classes(tmp_path):
    """Before Lightning 1.6 the callbacks' states stood under their classes."""
    module = type(sys)("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        torch.save(
            {
                "state_dict": UvA().state_dict(),
                "callbacks": {module.ModelCheckpoint: {"best": 1.0}},
            },
            tmp_path / "old.ckpt",
        )
    finally:
        sys.modules.pop(module.__name__)
        if before:
            sys.modules[module.__name__] = before
    assert foreign.read(tmp_path / "old.ckpt").source == "uva"


@pytest.mark.parametrize("kind", ["resnet18", "resnet50"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvisions_state_dict_gives_the_same_outputs(tmp_path, kind, suffix):
    """timm's ResNets have the very same names; its files are safetensors."""
    net = lived_in(getattr(torchvision.models, kind)(weights=None, num_classes=7))
    write = torch.save if suffix == ".pth" else save_file
    write(net.state_dict(), tmp_path / f"net{suffix}")
    found, x = foreign.read(tmp_path / f"net{suffix}", classes=7), images(64)
    with torch.no_grad():
        torch.testing.assert_close(found.model(x)[1], net(x), rtol=1e-6, atol=1e-6)
    assert (found.encoder, found.stem, found.left_over) == (kind, "imagenet", ())


def test_timms_own_resnet(tmp_path):
    import timm

    net, x = lived_in(timm.create_model("resnet18", num_classes=5)), images(64)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(
            foreign.read(tmp_path / "model.safetensors").model(x)[1], net(x), rtol=1e-5, atol=1e-6
        )
    torch.save({"state_dict": timm.create_model("resnet26d").state_dict()}, tmp_path / "deep.pth")
    with pytest.raises(InputError, match="another architecture|no ResNet"):
        foreign.read(tmp_path / "deep.pth")


def test_what_has_no_place_is_left_over_and_said(tmp_path):
    state = torchvision.models.resnet18(weights=None).state_dict()
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    state = {
        name: value for name, value in state.items() if not name.endswith("num_batches_tracked")
    }
    torch.save(
        state | {"queue": torch.zeros(2), "head.1.running_mean": torch.zeros(2)},
        tmp_path / "odd.pth",
    )
    found = foreign.read(tmp_path / "odd.pth")
    assert found.left_over == ("queue", "head.1.running_mean") and len(found.missing) == 20
    assert isinstance(found.model.head, nn.Identity)
    assert "100 tensors matched, 20 missing, 2 left over (queue, head.1.running_mean)" in str(found)


def test_what_is_wrong_is_one_line(tmp_path):
    net = torchvision.models.resnet18(weights=None, num_classes=10)
    state, path = net.state_dict(), tmp_path / "x.pth"

    def said(content, **expected):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(InputError) as caught:
            foreign.read(path, **expected)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        return str(caught.value)

    assert "it is empty" in said(b"")
    assert "can't be read as weights" in said(b"no pickle at all")
    assert "can't be read as weights" in said(pickle.dumps({"a": 1}, 2)[:-3])
    assert "classes is 10 there, 100 was asked for" in said(state, classes=100)
    assert "encoder is resnet18 there, resnet50 was asked for" in said(state, encoder="resnet50")
    assert "stem is imagenet there, cifar was asked for" in said(state, stem="cifar")
    assert "bottleneck blocks 3-4-23-3" in said(
        torchvision.models.resnet101(weights=None).state_dict()
    )
    wide = torchvision.models.wide_resnet50_2(weights=None).state_dict()
    assert "layer1.0.conv1.weight is (128, 64, 1, 1) torch.float32 there" in said(wide)
    assert "holds no ResNet" in said(nn.Linear(2, 2).state_dict())
    assert "has no conv1.weight, but epoch" in said({"epoch": 3})
    assert "but a Tensor alone" in said(torch.zeros(3))
    assert "holds torch.nn.modules.linear.Linear, which is not loaded" in said(nn.Linear(2, 2))
    assert "lacks 1 of 122 tensors, one of them encoder.bn1.bias" in said(
        {name: value for name, value in state.items() if name != "bn1.bias"}
    )
    assert "bn1.bias is not finite" in said(state | {"bn1.bias": torch.full((64,), torch.nan)})
    assert "a first kernel of ()" in said(state | {"conv1.weight": torch.zeros(())})
    with pytest.raises(InputError, match="none.pth can't be read as weights: .*No such file"):
        foreign.read(tmp_path / "none.pth")


def test_a_pickle_that_would_run_something_runs_nothing(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harmed"),)

    torch.save({"model": {}, "opt": Harm()}, tmp_path / "harm.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Harm(), 2))
    for name in ("harm.pth", "bare.pth"):
        with pytest.raises(InputError, match="mkdir, which is not loaded"):
            foreign.read(tmp_path / name)
    assert not (tmp_path / "harmed").exists()


def test_ours_in_torchvisions_names_gives_the_same_outputs(tmp_path):
    model, x = lived_in(Model("resnet18", "imagenet", "linear", 10)), images(64)
    net = torchvision.models.resnet18(weights=None, num_classes=10).eval()
    foreign.write(model, 64, tmp_path / "ours.pth")
    net.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True))
    with torch.no_grad():
        assert torch.equal(net(x), model(x)[1])
    with pytest.raises(InputError, match="torchvision has no such encoder"):
        foreign.torchvision_state(Model("slim"))


def test_ours_by_torch_export_gives_the_same_outputs_for_any_batch(tmp_path):
    model = lived_in(Model("slim", "cifar", "mlp", 16))
    foreign.write(model, 32, tmp_path / "ours.pt2")
    program = torch.export.load(tmp_path / "ours.pt2").module()
    for n in (2, 5):
        x = torch.randn(n, 3, 32, 32)
        with torch.no_grad():
            for ours, theirs in zip(model(x), program(x)):
                torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-6)


def test_ours_as_onnx_gives_the_same_outputs_for_any_batch(tmp_path):
    import onnxruntime as runtime

    model = lived_in(Model("slim", "cifar", "mlp", 16))
    foreign.write(model, 32, tmp_path / "ours.onnx")
    session = runtime.InferenceSession(tmp_path / "ours.onnx")
    for n in (2, 5):
        x = torch.randn(n, 3, 32, 32)
        with torch.no_grad():
            for ours, theirs in zip(model(x), session.run(["h", "z"], {"x": x.numpy()})):
                torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-5)


def test_a_missing_package_is_named_with_what_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", type(sys)("onnx"))
    with pytest.raises(
        InputError, match=r"needs the package onnxscript.*pip install -e '\.\[onnx\]'"
    ):
        foreign.write(Model("slim"), 32, tmp_path / "ours.onnx")
    with pytest.raises(InputError, match="ours.h5 must end in .pth, .onnx or .pt2"):
        foreign.write(Model("slim"), 32, tmp_path / "ours.h5")
