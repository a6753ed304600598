"""Checkpoints in other projects' exact formats, against what we make of them.

Their networks are written here anew.
"""

import argparse
import datetime
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from lib import ROOT, InputError, weights
from lib.__main__ import main
from lib.encoders import Model
from lib.weights import foreign
from lib.weights.foreign import SOURCES
from tests import pickles


class SupContrastBlock(nn.Module):
    """As networks/resnet_big.py names its parts: shortcut, and an activation between."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        outputs = width
        kernels = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if bottleneck:
            outputs = 4 * width
            kernels = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]

        self.depth = len(kernels)
        for i, (before, after, side, step) in enumerate(kernels, 1):
            convolution = nn.Conv2d(before, after, side, step, side // 2, bias=False)
            setattr(self, f"conv{i}", convolution)
            setattr(self, f"bn{i}", nn.BatchNorm2d(after))

        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in range(1, self.depth + 1):
            convolution = getattr(self, f"conv{i}")
            out = getattr(self, f"bn{i}")(convolution(out))
            if i < self.depth:
                out = out.relu()
        return (out + self.shortcut(x)).relu()


class SupContrastResNet(nn.Module):
    def __init__(self, depths: tuple[int, ...], bottleneck: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.width = 64
        for i, depth in enumerate(depths):
            width = 64 * 2**i
            blocks = nn.Sequential()
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(SupContrastBlock(self.width, width, stride, bottleneck))
                self.width = 4 * width if bottleneck else width
            setattr(self, f"layer{i + 1}", blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return x.mean((2, 3))


class SupCon(nn.Module):
    """SupConResNet: encoder and head."""

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 2, 2),
        bottleneck: bool = False,
        parallel: bool = False,
    ):
        super().__init__()
        encoder = SupContrastResNet(depths, bottleneck)
        width = encoder.width
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, 128)
        )
        self.encoder = nn.DataParallel(encoder) if parallel else encoder


class UvA(nn.Module):
    def __init__(self, inner: int = 512):
        super().__init__()
        self.convnet = torchvision.models.resnet18(weights=None, num_classes=inner)
        first, last = self.convnet.fc, nn.Linear(inner, 128)
        self.convnet.fc = nn.Sequential(first, nn.ReLU(inplace=True), last)


def lived_in(net: nn.Module) -> nn.Module:
    """With BatchNorm's statistics as after some training, so that a forgotten buffer shows."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.num_batches_tracked += 7
    return net.eval()


def images(size: int, n: int = 3) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def close(ours: Tensor, theirs: Tensor, relative: float = 1e-6, absolute: float = 1e-6) -> None:
    torch.testing.assert_close(ours, theirs, rtol=relative, atol=absolute)


def supcontrast_file(path: Path, net: nn.Module, dataset: str = "cifar10") -> None:
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
    sum(parameter.sum() for parameter in net.parameters()).backward()
    optimiser.step()
    state = {
        "opt": options,
        "model": net.state_dict(),
        "optimizer": optimiser.state_dict(),
        "epoch": 100,
    }
    torch.save(state, path)


# --------------------------------------------------------------------------------------------------
# SupContrast's


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
    read = foreign.read(tmp_path / "last.pth")
    assert (read.encoder, read.stem, read.source) == (name, "cifar", "supcontrast")
    assert read.missing == read.left_over == ()
    assert len(read.matched) == len(net.state_dict())

    encoder = net.encoder.module if parallel else net.encoder
    h, z = read.model(images(32))
    theirs = encoder(images(32))
    close(h, theirs)
    close(z, net.head(theirs))


def test_supcontrasts_normalisation_is_of_its_data_set(tmp_path):
    supcontrast_file(tmp_path / "10.pth", SupCon())
    supcontrast_file(tmp_path / "100.pth", SupCon(), "cifar100")
    of_cifar10 = SOURCES[foreign.read(tmp_path / "10.pth").source]
    of_cifar100 = SOURCES[foreign.read(tmp_path / "100.pth").source]
    assert (of_cifar10.size, of_cifar100.size) == (32, 32)
    assert of_cifar10.mean == (0.4914, 0.4822, 0.4465)
    assert of_cifar100.mean == (0.5071, 0.4867, 0.4408)


@pytest.mark.parametrize("wrapped", ["module.", "module._orig_mod.", "_orig_mod.module."])
def test_what_wrappers_put_before_names_is_taken_off_whatever_their_order(tmp_path, wrapped):
    """By DataParallel, by torch.compile, and by both."""
    plain = Model("resnet18", "cifar", "mlp").state_dict()
    options = argparse.Namespace(dataset="cifar100")
    torch.save({"model": with_prefix(plain, wrapped), "opt": options}, tmp_path / "x.pth")
    read = foreign.read(tmp_path / "x.pth")
    assert (read.source, read.missing, read.left_over) == ("supcontrast-cifar100", (), ())
    assert torch.equal(read.model.state_dict()["head.0.weight"], plain["head.0.weight"])


def test_its_options_are_allowed_while_reading_only(tmp_path):
    supcontrast_file(tmp_path / "last.pth", SupCon())
    foreign.read(tmp_path / "last.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


# --------------------------------------------------------------------------------------------------
# UvA's


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

    read = foreign.read(tmp_path / "SimCLR.ckpt", encoder="resnet18", stem="imagenet")
    assert read.source == "uva"
    assert SOURCES["uva"].size == 96
    assert not read.left_over
    assert net.convnet.fc[0].out_features == inner

    x = images(96)
    h, z = read.model(x)
    close(z, net.convnet(x))
    net.convnet.fc = nn.Identity()
    close(h, net.convnet(x))


def test_a_lightning_checkpoint_of_old_that_names_its_callbacks_classes(tmp_path, monkeypatch):
    """Before Lightning 1.6 the callbacks' states stood under their classes."""
    module = type(sys)("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    state = UvA().state_dict()
    callbacks = {module.ModelCheckpoint: {"best": 1.0}}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        torch.save({"state_dict": state, "callbacks": callbacks}, tmp_path / "old.ckpt")

    assert foreign.read(tmp_path / "old.ckpt").source == "uva"


# --------------------------------------------------------------------------------------------------
# torchvision's and timm's


@pytest.mark.parametrize("kind", ["resnet18", "resnet50"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvisions_state_dict_gives_the_same_outputs(tmp_path, kind, suffix):
    """timm's ResNets have the very same names; its files are safetensors."""
    net = lived_in(getattr(torchvision.models, kind)(weights=None, num_classes=7))
    path = tmp_path / f"net{suffix}"
    if suffix == ".pth":
        torch.save(net.state_dict(), path)
    else:
        save_file(net.state_dict(), path)

    read = foreign.read(path, classes=7)
    assert (read.encoder, read.stem, read.left_over) == (kind, "imagenet", ())
    close(read.model(images(64))[1], net(images(64)))


def test_timms_own_resnet(tmp_path):
    import timm

    net = lived_in(timm.create_model("resnet18", num_classes=5))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    read = foreign.read(tmp_path / "model.safetensors")
    close(read.model(images(64))[1], net(images(64)), relative=1e-5)

    deep = timm.create_model("resnet26d").state_dict()
    torch.save({"state_dict": deep}, tmp_path / "deep.pth")
    with pytest.raises(InputError, match="another architecture|no ResNet"):
        foreign.read(tmp_path / "deep.pth")


def resnet18(classes: int = 10) -> dict[str, Tensor]:
    """torchvision's, freshly initialised."""
    return torchvision.models.resnet18(weights=None, num_classes=classes).state_dict()


def without(state: dict[str, Tensor], *words: str) -> dict[str, Tensor]:
    """A state dict without the names in which one of the words is."""
    return {name: state[name] for name in state if not any(word in name for word in words)}


def test_what_has_no_place_is_left_over_and_said(tmp_path):
    state = without(resnet18(), "fc.", "num_batches_tracked")
    more = {"queue": torch.zeros(2), "head.1.running_mean": torch.zeros(2)}
    torch.save(state | more, tmp_path / "odd.pth")
    read = foreign.read(tmp_path / "odd.pth")
    assert read.left_over == ("queue", "head.1.running_mean")
    assert len(read.missing) == 20
    assert isinstance(read.model.head, nn.Identity)
    assert "without a head: 100 tensors matched, 20 missing, 2 left over (queue, " in str(read)


# --------------------------------------------------------------------------------------------------
# what is wrong


def refused(path: Path, **expected: object) -> str:
    """The one sentence that refuses a checkpoint."""
    with pytest.raises(InputError) as caught:
        foreign.read(path, **expected)
    said = str(caught.value)
    assert "\n" not in said
    assert str(path) in said
    return said


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "it is empty"),
        (b"no pickle at all", "can't be read as weights"),
        (pickle.dumps({"a": 1}, 2)[:-3], "can't be read as weights"),
        (None, "can't be read as weights: [Errno 2] No such file"),
    ],
)
def test_what_is_no_checkpoint_is_one_line(tmp_path, content, words):
    if content is not None:
        (tmp_path / "x.pth").write_bytes(content)
    assert words in refused(tmp_path / "x.pth")


def untrained(kind: str) -> dict[str, Tensor]:
    return getattr(torchvision.models, kind)(weights=None).state_dict()


@pytest.mark.parametrize(
    "content, words",
    [
        (lambda: {"epoch": 3}, "has no conv1.weight, but epoch"),
        (lambda: torch.zeros(3), "but a Tensor alone"),
        (lambda: nn.Linear(2, 2), "holds torch.nn.modules.linear.Linear, which is not loaded"),
        (lambda: nn.Linear(2, 2).state_dict(), "holds no ResNet: it has no conv1.weight, but w"),
        (lambda: untrained("resnet101"), "bottleneck blocks 3-4-23-3"),
        (
            lambda: untrained("wide_resnet50_2"),
            "layer1.0.conv1.weight is (128, 64, 1, 1) torch.float32 there, (64, 64, 1, 1)",
        ),
        (
            lambda: without(resnet18(), "layer1.0.bn1.bias"),
            "lacks 1 of 122 tensors, one of them encoder.layer1.0.bn1.bias",
        ),
        (lambda: resnet18() | {"conv1.weight": torch.zeros(())}, "a first kernel of ()"),
        (
            lambda: resnet18() | {"bn1.bias": torch.zeros(64).int()},
            "bn1.bias is (64,) torch.int32 there",
        ),
        (  # squeeze and excitation
            lambda: resnet18() | {"layer1.0.se.fc1.weight": torch.zeros(4, 64)},
            "is of another architecture: our ResNet has no layer1.0.se.fc1.weight",
        ),
        (
            lambda: resnet18() | {"bn1.bias": torch.full((64,), torch.nan)},
            "bn1.bias is not finite",
        ),
    ],
)
def test_what_is_no_resnet_of_ours_is_one_line(tmp_path, content, words):
    torch.save(content(), tmp_path / "x.pth")
    assert words in refused(tmp_path / "x.pth")


def test_what_is_not_as_expected_is_one_line(tmp_path):
    path = tmp_path / "x.pth"
    torch.save(resnet18(), path)
    assert "classes is 10 there, 100 was asked for" in refused(path, classes=100)
    assert "encoder is resnet18 there, resnet50 was" in refused(path, encoder="resnet50")
    assert "stem is imagenet there, cifar was asked for" in refused(path, stem="cifar")


def test_a_pickle_that_would_run_something_runs_nothing(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harmed"),)

    torch.save({"model": {}, "opt": Harm()}, tmp_path / "harm.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Harm(), 2))
    for name in ("harm.pth", "bare.pth"):
        assert "mkdir, which is not loaded" in refused(tmp_path / name)
    assert not (tmp_path / "harmed").exists()


def huge_head() -> bytes:
    """A ResNet-18's names, and a classifier of one number and of 2**44."""
    tensors = {"conv1.weight": pickles.tensor((64, 3, 7, 7), (0, 0, 0, 0))}
    for layer in range(1, 5):
        for block in range(2):
            tensors[f"layer{layer}.{block}.any"] = pickles.tensor()
    head = {
        "fc.weight": pickles.tensor((2**22, 2**22), (0, 0)),
        "fc.bias": pickles.tensor((2**22,), (0,)),
    }
    return pickles.named(tensors | head)


LIES = {
    "storage larger than its record": pickles.tensor(held=pickles.storage(2**20)),
    "storage smaller than its record": pickles.tensor(held=pickles.storage(1)),
    "storage without end": pickles.tensor(held=pickles.storage(2**61)),
    "storage below zero": pickles.tensor(held=pickles.storage(-4)),
    "storage of another kind": pickles.tensor(held=pickles.storage(kind="DoubleStorage")),
    "storage that is not there": pickles.tensor(held=pickles.storage(key="7")),
    "tensor larger than its storage": pickles.tensor((2**20,)),
    "tensor of terabytes": pickles.tensor((2**40,)),
    "tensor of one number": pickles.tensor((2**40,), (0,)),
    "tensor beyond its storage": pickles.tensor(offset=2**30),
    "tensor before its storage": pickles.tensor(offset=-8),
    "tensor backwards": pickles.tensor(stride=(-1,)),
}
OPCODES = {
    "item of a tensor": pickles.set_item(pickles.tensor()),
    "items of a tensor": pickles.set_items(pickles.tensor()),
    "item of a storage": pickles.set_item(pickles.storage()),
    "items of a storage": pickles.set_items(pickles.storage()),
    "item of a list": pickles.set_item(b"]"),
    "items of None": pickles.set_items(b"N"),
}
READ_ALL = """
import sys
from pathlib import Path
from lib import InputError
from lib.weights import foreign
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        foreign.read(path)
    except InputError as error:
        print(error)
"""


def test_pickles_that_lie_end_in_a_sentence_and_no_crash(tmp_path):
    """In a process of its own: what they aim at is memory."""
    for name, code in LIES.items():
        pickles.write(tmp_path / f"{name}.pth", pickles.named({"conv1.weight": code}))
    for name, code in OPCODES.items():
        pickles.write(tmp_path / f"{name}.pth", code)
    pickles.write(tmp_path / "huge head.pth", huge_head())

    command = [sys.executable, "-c", READ_ALL, str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, encoding="utf-8"
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    paths = sorted(map(str, tmp_path.iterdir()))
    assert len(said) == len(paths)
    for path, line in zip(paths, said):
        assert line.startswith(f"{path} "), line


def test_what_is_crafted_is_read_where_it_is_true(tmp_path):
    """Else the test above could pass by files that are wrong in another way."""
    pickles.write(tmp_path / "true.pth", pickles.named({"weight": pickles.tensor()}))
    assert torch.equal(torch.load(tmp_path / "true.pth")["weight"], torch.zeros(4))


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(
    "odd",
    [
        lambda: torch.zeros(64, device="meta"),
        lambda: torch.zeros(64).to_sparse(),
        lambda: torch.zeros(1).expand(64),
    ],
)
def test_a_tensor_whose_numbers_are_not_there_is_refused(tmp_path, odd):
    torch.save(resnet18() | {"bn1.bias": odd()}, tmp_path / "x.pth")
    assert "does not hold all numbers of bn1.bias" in refused(tmp_path / "x.pth")


def test_an_eight_bit_float_is_refused(tmp_path):
    torch.save(resnet18() | {"bn1.bias": torch.zeros(64).to(torch.float8_e5m2)}, tmp_path / "x.pth")
    assert "bn1.bias is (64,) torch.float8_e5m2 there" in refused(tmp_path / "x.pth")


@pytest.mark.parametrize("suffix", foreign.SUFFIXES)
def test_a_pytorch_that_reads_pickles_unsafely_opens_none(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"x{suffix}"
    torch.save(resnet18(), path)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1+cu128"))
    monkeypatch.setattr(torch, "load", None)
    said = refused(path)
    assert "PyTorch 2.9.1+cu128 does not read these safely" in said
    assert "update torch to 2.10 or newer, or have the file as .safetensors" in said
    with pytest.raises(InputError, match="does not read these safely"):
        weights.load(path)


def test_safetensors_are_read_by_any_pytorch_and_pickles_by_newer_ones(tmp_path, monkeypatch):
    torch.save(resnet18(), tmp_path / "x.pth")
    save_file(resnet18(), tmp_path / "x.safetensors")
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0"))
    assert foreign.read(tmp_path / "x.safetensors").encoder == "resnet18"
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.10.0+cu128"))
    assert foreign.read(tmp_path / "x.pth").encoder == "resnet18"


# --------------------------------------------------------------------------------------------------
# what stands beside the weights, and where they stand


@pytest.mark.parametrize("key", ["net", "model_state_dict", "model", "state_dict"])
def test_weights_are_found_where_scripts_put_them(tmp_path, key):
    torch.save({"epoch": 3, key: resnet18()}, tmp_path / "x.pth")
    assert len(foreign.read(tmp_path / "x.pth").matched) == 122


@pytest.mark.parametrize(
    "beside", [np.float64(91.2), np.float32(1), np.int64(3), np.bool_(True), np.arange(3.0)]
)
def test_numbers_of_numpy_beside_the_weights_do_no_harm(tmp_path, beside):
    torch.save({"state_dict": resnet18(), "best_acc": beside}, tmp_path / "x.pth")
    assert foreign.read(tmp_path / "x.pth").encoder == "resnet18"


def test_numpy_is_not_called_for_them(tmp_path):
    """A scalar of objects would be whatever the pickle holds; a dtype takes any state."""
    inert = foreign._Inert
    assert all(stand_in is inert for stand_in, name in foreign.ALLOWED[2:])
    torch.save({"best": np.float64(1)}, tmp_path / "x.pth")
    with torch.serialization.safe_globals(foreign.ALLOWED):
        assert type(torch.load(tmp_path / "x.pth")["best"]) is inert


def test_numpy_1s_names_and_a_scalar_of_objects_do_no_harm(tmp_path):
    """numpy would take the object as it is, and the state of a dtype without a look."""
    dtype = b"cnumpy\ndtype\n(" + pickles.text("O") + b"tR" + pickles.numbers((3, -8, 2**40)) + b"b"
    scalar = b"cnumpy.core.multiarray\nscalar\n(" + dtype + pickles.text("any") + b"tR"
    pickles.write(tmp_path / "x.pth", pickles.named({"best": scalar}))
    assert "it has no conv1.weight, but best" in refused(tmp_path / "x.pth")


def test_what_is_not_loaded_is_told_with_how_to_save_again(tmp_path):
    torch.save({"model": resnet18(), "when": datetime.date(2026, 1, 1)}, tmp_path / "x.pth")
    said = refused(tmp_path / "x.pth")
    assert "it holds datetime.date, which is not loaded; save its weights alone" in said
    assert "torch.save(model.state_dict(), path)" in said


# --------------------------------------------------------------------------------------------------
# how it sees images

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def with_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["backbone.", "encoder.", "encoder_q."])
def test_names_with_a_prefix_are_no_torchvisions(tmp_path, prefix):
    """sthalles' and solo-learn's, Spijkervet's, MoCo's: how they see images is not in the file."""
    torch.save({"state_dict": with_prefix(resnet18(), prefix)}, tmp_path / "x.pth")
    read = foreign.read(tmp_path / "x.pth")
    assert read.source == foreign.UNKNOWN
    assert read.guessed == ("size", "mean", "std")
    assert "an unknown project's resnet18" in str(read)
    assert "seen by a guess, 224 x 224 pixels" in str(read)
    assert str(read).endswith("give size, mean, std where it is known")


def test_a_stem_that_torchvision_does_not_have_is_no_torchvisions(tmp_path):
    small = torch.zeros(64, 3, 3, 3)
    torch.save(resnet18() | {"conv1.weight": small}, tmp_path / "x.pth")
    read = foreign.read(tmp_path / "x.pth")
    assert (read.source, read.view.size) == (foreign.UNKNOWN, 32)


def test_options_of_another_data_set_are_no_cifar10s(tmp_path):
    supcontrast_file(tmp_path / "x.pth", SupCon(), "path")
    assert foreign.read(tmp_path / "x.pth").source == foreign.UNKNOWN


def test_torchvisions_view_is_no_guess(tmp_path):
    torch.save(resnet18(), tmp_path / "x.pth")
    read = foreign.read(tmp_path / "x.pth")
    assert (read.source, read.guessed) == ("torchvision", ())
    assert (read.view.size, read.view.mean, read.view.std) == (224, *IMAGENET)
    assert "seen as in torchvision's evaluation, 224 x 224 pixels" in str(read)


def test_how_it_sees_images_can_be_said_in_part_or_whole(tmp_path):
    torch.save(with_prefix(resnet18(), "backbone."), tmp_path / "x.pth")
    part = weights.load(tmp_path / "x.pth", size=96)
    assert (part.size, part.recipe.size, part.recipe.mean) == (96, 96, IMAGENET[0])
    assert part.about.endswith("give mean, std where it is known")

    whole = weights.load(tmp_path / "x.pth", size=32, mean=(0, 0, 0), std=(1, 1, 1))
    assert (whole.recipe.mean, whole.recipe.std) == ((0, 0, 0), (1, 1, 1))
    assert "seen as asked for, 32 x 32 pixels" in whole.about
    # features of the two are not to be mixed
    assert part.encoder != whole.encoder


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"size": 4}, "size must be at least 8, got 4"),
        ({"std": (0, 1, 1)}, "std must be greater than 0, got 0"),
        ({"mean": (1, 2)}, r"mean must be three numbers, one a channel, got \(1, 2\)"),
    ],
)
def test_a_wrong_view_is_one_line(tmp_path, wrong, words):
    torch.save(resnet18(), tmp_path / "x.pth")
    with pytest.raises(InputError, match=words) as caught:
        weights.load(tmp_path / "x.pth", **wrong)
    assert "\n" not in str(caught.value)


def test_embed_and_export_take_what_is_said(tmp_path, capsys):
    torch.save(with_prefix(resnet18(), "backbone."), tmp_path / "x.pth")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    said = ["--size", "32", "--mean", "0", "0", "0", "--std", "1", "1", "1"]
    using = ["--weights", str(tmp_path / "x.pth"), "--out", str(tmp_path / "h.npz")]
    assert main(["embed", str(tmp_path / "red.png"), *using, *said, "--device", "cpu"]) == 0
    view = "32 x 32 pixels, mean (0.0, 0.0, 0.0), std (1.0, 1.0, 1.0)"
    assert f"as asked for, {view}" in capsys.readouterr().out

    out = ["--out", str(tmp_path / "again.pth")]
    assert main(["export", str(tmp_path / "x.pth"), *out, "--size", "32"]) == 0
    printed = capsys.readouterr().out
    assert "wants images (B, 3, 32, 32)" in printed
    assert "give mean, std where it is known" in printed


# --------------------------------------------------------------------------------------------------
# ours in their formats


def test_ours_in_torchvisions_names_gives_the_same_outputs(tmp_path):
    model = lived_in(Model("resnet18", "imagenet", "linear", 10))
    foreign.write(model, 64, tmp_path / "ours.pth")
    net = torchvision.models.resnet18(weights=None, num_classes=10).eval()
    net.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True))
    assert torch.equal(net(images(64)), model(images(64))[1])
    with pytest.raises(InputError, match="torchvision has no such encoder"):
        foreign.torchvision_state(Model("slim"))


@pytest.fixture
def small_model() -> nn.Module:
    return lived_in(Model("slim", "cifar", "mlp", 16))


def test_k_means_by_torch_export_gives_the_same_outputs_for_any_batch(tmp_path):
    model = Model("kmeans32", head="none").eval()
    foreign.write(model, 32, tmp_path / "ours.pt2")
    program = torch.export.load(tmp_path / "ours.pt2").module()
    x = images(32, 70)  # more than are described at once elsewhere
    close(program(x)[0], model(x)[0])


def test_ours_by_torch_export_gives_the_same_outputs_for_any_batch(small_model, tmp_path):
    foreign.write(small_model, 32, tmp_path / "ours.pt2")
    program = torch.export.load(tmp_path / "ours.pt2").module()
    for n in (2, 5):
        x = images(32, n)
        for ours, theirs in zip(small_model(x), program(x), strict=True):
            close(theirs, ours)


def test_ours_as_onnx_gives_the_same_outputs_for_any_batch(small_model, tmp_path):
    import onnxruntime

    foreign.write(small_model, 32, tmp_path / "ours.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "ours.onnx")
    for n in (2, 5):
        x = images(32, n)
        outputs = session.run(["h", "z"], {"x": x.numpy()})
        for ours, theirs in zip(small_model(x), outputs, strict=True):
            close(torch.from_numpy(theirs), ours, relative=1e-4, absolute=1e-5)


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(InputError, match="ours.h5 must end in .pth, .onnx or .pt2"):
        foreign.write(Model("slim"), 32, tmp_path / "ours.h5")


def test_a_missing_package_is_named_with_what_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    words = r"needs the package onnxscript.*pip install -e '\.\[onnx\]'"
    with pytest.raises(InputError, match=words):
        foreign.write(Model("slim"), 32, tmp_path / "ours.onnx")
