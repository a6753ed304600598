"""Other people's checkpoints in our models, and ours in other people's formats.

Read are ResNets in four layouts: UvA's Lightning ``.ckpt`` (torchvision's ResNet-18 as ``convnet``,
the head as its ``fc``), SupContrast's ``.pth`` (``encoder``, ``head``, ``shortcut``, an
``argparse.Namespace`` beside the weights), and state dicts of torchvision and timm. A file is
unpickled by PyTorch's restricted reader alone, and only by one that is safe: tensors, plain
containers and the few classes in ALLOWED. Nothing of ours is a pickle that is read again.
"""

import argparse
import io
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.torch_version import TorchVersion
from torchvision.models.resnet import ResNet

from lib import InputError, needed
from lib.augmentations import Recipe
from lib.config import Channels, PositiveChannels
from lib.data.archives import refuse_bombs
from lib.encoders import Model
from lib.files import as_path, write_atomically
from lib.validation import checked

SUFFIXES = (".ckpt", ".pth", ".pt", ".tar", ".bin")  # of what torch.save wrote
SAFE = TorchVersion("2.10")  # a pickle can make earlier ones write outside of their memory


class _Inert:
    """Stands for what a checkpoint names and nobody needs, of Lightning's and of numpy's."""

    def __init__(self, *values: object):
        """Nothing is kept of them."""

    def __setstate__(self, state: object) -> None:
        """Nothing is kept of it."""


ALLOWED: list[Callable | tuple[Callable, str]] = [
    argparse.Namespace,
    OrderedDict,
    # before Lightning 1.6 a callback's state stood under its class
    (_Inert, "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint"),
    (_Inert, "lightning.pytorch.callbacks.lr_monitor.LearningRateMonitor"),
    (_Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (_Inert, "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor"),
    # an accuracy beside the weights, under the names of numpy 1 and 2; numpy itself is not called
    (_Inert, "numpy.dtype"),
    (_Inert, "numpy.ndarray"),
    (_Inert, "numpy.core.multiarray.scalar"),
    (_Inert, "numpy.core.multiarray._reconstruct"),
    (_Inert, "numpy._core.multiarray.scalar"),
    (_Inert, "numpy._core.multiarray._reconstruct"),
]
# Where a checkpoint keeps its weights, if not at its top; of several the first that is there counts
STATES = ("state_dict", "model", "model_state_dict", "net")
# By the kind of its blocks, and how many each of the four layers has
ENCODER_BY_BLOCKS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
}
STEM_BY_KERNEL = {3: "cifar", 7: "imagenet"}  # by the side of the first kernel
# What a tensor of ours may be in a file
KINDS = {
    torch.float32: (torch.float16, torch.bfloat16, torch.float32, torch.float64),
    torch.int64: (torch.int32, torch.int64),
}
# What each project's evaluation sees
SOURCES = {
    # tutorial 17, contrast_transforms
    "uva": Recipe(size=96, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    # main_supcon.py, cifar10 and cifar100
    "supcontrast": Recipe(size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    "supcontrast-cifar100": Recipe(
        size=32, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)
    ),
    # its references, and most of timm's
    "torchvision": Recipe(size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
UNKNOWN = "an unknown project"  # the source of what none of SOURCES wrote
GUESSES = {"cifar": SOURCES["supcontrast"], "imagenet": SOURCES["torchvision"]}  # its view, by stem


@checked
class StatedView:
    """What somebody says of how a network sees images; None: nothing."""

    size: Annotated[int, Field(ge=8)] | None = None  # side in pixels
    mean: Channels | None = None
    std: PositiveChannels | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What is not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


NOTHING_STATED = StatedView()


@dataclass(frozen=True)
class Foreign:
    """A model read from another project's file, and which names of the two found each other."""

    model: Model  # in eval mode, on the CPU
    encoder: str  # in lib.encoders.ENCODERS
    stem: str
    source: str  # in SOURCES, or UNKNOWN
    view: Recipe  # what it takes of an image
    guessed: tuple[str, ...]  # what of the view neither the file nor anybody says
    matched: tuple[str, ...]  # names in the file
    # names of the model that kept their initial value: BatchNorm's counters at most
    missing: tuple[str, ...]
    left_over: tuple[str, ...]  # names in the file that have no place in the model

    def __str__(self) -> str:
        head = "with"
        if isinstance(self.model.head, nn.Identity):
            head = "without"
        examples = ""
        if self.left_over:
            examples = f" ({', '.join(self.left_over[:3])})"
        return (
            f"{self.source}'s {self.encoder} with the {self.stem} stem, {head} a head: "
            f"{len(self.matched)} tensors matched, {len(self.missing)} missing, "
            f"{len(self.left_over)} left over{examples}; images are seen {self._how_seen()}"
        )

    def _how_seen(self) -> str:
        """The view, and by whose word it is this one."""
        side = self.view.size
        view = f"{side} x {side} pixels, mean {self.view.mean}, std {self.view.std}"
        if self.guessed:
            return f"by a guess, {view}: give {', '.join(self.guessed)} where it is known"
        if self.view != SOURCES.get(self.source):
            return f"as asked for, {view}"
        return f"as in {self.source}'s evaluation, {view}"


@dataclass(frozen=True)
class _Checkpoint:
    """A ResNet's tensors in a file, and what they are called there and in our model."""

    path: Path
    tensors: dict[str, Tensor]  # by the file's names
    start: str  # of the names of the encoder's tensors
    names: dict[str, str]  # the file's, by ours

    def __getitem__(self, name: str) -> Tensor:
        """The tensor that our model calls so."""
        return self.tensors[self.names[name]]


def read(
    path: str | Path,
    encoder: str | None = None,
    stem: str | None = None,
    classes: int | None = None,
    stated: StatedView = NOTHING_STATED,
) -> Foreign:
    """Another project's checkpoint as a model of ours: its names and shapes say what it is.

    encoder, stem: what is expected of it.
    classes: those expected of its linear classifier, which becomes the head.
    stated: how it sees images, where that is known better.

    A head is none, one linear layer, or two with a ReLU between, of whatever widths; another one is
    left over. Raises InputError where the file is missing, damaged, holds more than weights, or is
    of another architecture.
    """
    path = as_path(path)
    content = _unpickle(path)
    checkpoint = _resnet(path, content)

    its_encoder, its_stem = _architecture(checkpoint)
    head = _head(checkpoint)
    its_classes: int | str = "no linear classifier"
    if isinstance(head, nn.Linear):
        its_classes = head.out_features
    expected = {"encoder": encoder, "stem": stem, "classes": classes}
    actual = {"encoder": its_encoder, "stem": its_stem, "classes": its_classes}
    for field, value in expected.items():
        if value is not None and value != actual[field]:
            raise InputError(
                f"{path} is of another architecture: {field} is {actual[field]} there, {value} was "
                "asked for"
            )

    model = Model(its_encoder, its_stem, "none")
    model.head = head
    matched, missing = _fill(model, checkpoint)
    source = _source(content, checkpoint, its_stem)
    known = SOURCES.get(source)
    guessed: tuple[str, ...] = ()
    if known is None:
        guessed = tuple(name for name in asdict(stated) if name not in stated.given)
    return Foreign(
        model.eval(),
        its_encoder,
        its_stem,
        source,
        replace(known or GUESSES[its_stem], **stated.given),
        guessed,
        matched,
        missing,
        left_over=tuple(name for name in checkpoint.tensors if name not in matched),
    )


def _unpickle(path: Path) -> dict:
    """What torch.save or safetensors wrote, of tensors, plain containers and ALLOWED."""
    try:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        if path.suffix == ".safetensors":
            return load_file(path)
        _refuse_unsafe_reader(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                refuse_bombs(archive, path.stat().st_size)
        with torch.serialization.safe_globals(ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # of pickle, zipfile, PyTorch: whatever a damaged file provokes
        raise InputError(f"{path} can't be read as weights: {_why(error)}") from error
    if not isinstance(content, dict):
        return {f"a {type(content).__name__} alone": content}
    return content


def _refuse_unsafe_reader(path: Path) -> None:
    """Raise InputError where this PyTorch's restricted reader is not safe (CVE-2026-24747)."""
    if torch.__version__ < SAFE:
        raise InputError(
            f"{path} is a pickle, and PyTorch {torch.__version__} does not read these safely "
            f"(CVE-2026-24747): update torch to {SAFE} or newer, or have the file as .safetensors"
        )


def _why(error: Exception) -> str:
    """What PyTorch or the system says of a file that can't be read, in words of ours."""
    alien = re.search(r"GLOBAL ([\w.]+)", str(error))
    if alien:
        return (
            f"it holds {alien[1]}, which is not loaded; save its weights alone, by "
            "torch.save(model.state_dict(), path)"
        )
    line = str(error).rpartition("error: ")[2].split("\n")[0][:120]
    if not re.search("[a-z]{3}", line):
        return "it is not what torch.save writes"
    return line


def _resnet(path: Path, content: dict) -> _Checkpoint:
    """The ResNet in a file. Raises InputError where there is none."""
    tensors = _tensors(content)
    first = _first_convolution(tensors)
    if first is None:
        examples = ", ".join(list(tensors or content)[:3])
        raise InputError(f"{path} holds no ResNet: it has no conv1.weight, but {examples}")

    start = first.removesuffix("conv1.weight")
    names = {}
    for name in tensors:
        inside = name.removeprefix(start)
        if inside.startswith(("fc.", "head.")):
            names[f"head.{inside.partition('.')[2]}"] = name
        elif name.startswith(start):
            names[f"encoder.{inside.replace('shortcut', 'downsample')}"] = name
    for name in names.values():
        if not _is_stored(tensors[name]):
            raise InputError(f"{path} is damaged: it does not hold all numbers of {name}")
    return _Checkpoint(path, tensors, start, names)


def _tensors(content: dict) -> dict[str, Tensor]:
    """A file's tensors, without what DataParallel and torch.compile put before their names."""
    state = content
    for key in STATES:
        if isinstance(content.get(key), dict):
            state = content[key]
            break

    tensors = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            tensors[re.sub(r"(^|\.)(?:(?:module|_orig_mod)\.)+", r"\1", str(name))] = value
    return tensors


def _is_stored(tensor: Tensor) -> bool:
    """Whether its numbers are all there: neither sparse, nor without data, nor few for a shape."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


def _first_convolution(tensors: dict[str, Tensor]) -> str | None:
    """The shortest name that is one's."""
    names = []
    for name in tensors:
        if re.search(r"(^|\.)conv1\.weight$", name) and "layer" not in name:
            names.append(name)
    return min(names, key=len, default=None)


def _architecture(checkpoint: _Checkpoint) -> tuple[str, str]:
    """Encoder and stem, by blocks and first kernel. Raises InputError where we have no such."""
    kind = "basic"
    if "encoder.layer1.0.conv3.weight" in checkpoint.names:
        kind = "bottleneck"

    blocks: dict[str, set[str]] = {f"layer{number}": set() for number in range(1, 5)}
    for name in checkpoint.names:
        owner, layer, *inside = name.split(".")
        if owner == "encoder" and layer in blocks and inside:
            blocks[layer].add(inside[0])
    depths = tuple(len(numbers) for numbers in blocks.values())
    kernel = checkpoint["encoder.conv1.weight"].shape

    encoder = ENCODER_BY_BLOCKS.get((kind, depths))
    stem = STEM_BY_KERNEL.get(kernel[-1]) if kernel else None
    if encoder is None or stem is None:
        raise InputError(
            f"{checkpoint.path} is of another architecture: {kind} blocks "
            f"{'-'.join(map(str, depths))}, a first kernel of {tuple(kernel)}; known: "
            f"{', '.join(ENCODER_BY_BLOCKS.values())}, a kernel of 3 or 7"
        )
    return encoder, stem


def _head(checkpoint: _Checkpoint) -> nn.Module:
    """The projection head or classifier that names and shapes tell, freshly initialised."""
    names = sorted(name for name in checkpoint.names if name.startswith("head."))
    layers = []
    for name in names:
        shape = checkpoint[name].shape
        if name.endswith("weight") and len(shape) == 2:
            layers.append(nn.Linear(shape[1], shape[0]))

    if names == ["head.bias", "head.weight"] and len(layers) == 1:
        return layers[0]
    two = ["head.0.bias", "head.0.weight", "head.2.bias", "head.2.weight"]
    if names == two and len(layers) == 2:
        return nn.Sequential(layers[0], nn.ReLU(inplace=True), layers[1])
    return nn.Identity()


def _source(content: dict, checkpoint: _Checkpoint, stem: str) -> str:
    """The project that wrote a file: SupContrast leaves its options there.

    torchvision's names have nothing before them; whatever has another start, or a stem that
    torchvision does not have, is of UNKNOWN.
    """
    options = content.get("opt")
    dataset = getattr(options, "dataset", None)
    if isinstance(options, argparse.Namespace) and checkpoint.start == "encoder.":
        if dataset == "cifar10":
            return "supcontrast"
        if dataset == "cifar100":
            return "supcontrast-cifar100"
    if checkpoint.start == "convnet.":
        return "uva"
    if checkpoint.start == "" and stem == "imagenet":
        return "torchvision"
    return UNKNOWN


def _fill(model: Model, checkpoint: _Checkpoint) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Load a file's tensors into the model: the file's names that matched, ours that are missing.

    BatchNorm's counters may be missing, as in files of old; no weight may, and none of the
    encoder's layers may be left over: the features would be others.
    """
    own = model.state_dict()
    missing = tuple(name for name in own if name not in checkpoint.names)
    for name in missing:
        if not name.endswith("num_batches_tracked"):
            raise InputError(
                f"{checkpoint.path} lacks {len(missing)} of {len(own)} tensors, one of them {name}"
            )

    state = {name: checkpoint[name] for name in own if name in checkpoint.names}
    for name, value in state.items():
        ours = own[name]
        if value.shape != ours.shape or value.dtype not in KINDS[ours.dtype]:
            raise InputError(
                f"{checkpoint.path} is of another architecture: {checkpoint.names[name]} is "
                f"{tuple(value.shape)} {value.dtype} there, {tuple(ours.shape)} {ours.dtype} in "
                "ours"
            )
        if not value.isfinite().all():
            raise InputError(
                f"{checkpoint.path} is damaged: {checkpoint.names[name]} is not finite"
            )
    for name, theirs in checkpoint.names.items():
        if name not in own and _is_a_layer(name):
            raise InputError(
                f"{checkpoint.path} is of another architecture: our ResNet has no {theirs}"
            )
    model.load_state_dict(state, strict=False)
    return tuple(checkpoint.names[name] for name in state), missing


def _is_a_layer(name: str) -> bool:
    """Whether a name of ours would be that of a tensor in the encoder's layers."""
    return re.match(r"encoder\.(conv1|bn1|layer\d)\.", name) is not None


def torchvision_state(model: Model) -> dict[str, Tensor]:
    """The weights under torchvision's names.

    A ResNet of torchvision's loads them, strictly where the head is one layer. Without such a head
    there is no ``fc``: set ``net.fc = nn.Identity()``. With the "cifar" stem set ``net.conv1`` to a
    3x3 convolution and ``net.maxpool`` to ``nn.Identity()`` before. Raises InputError where the
    encoder is no ResNet.
    """
    if not isinstance(model.encoder, ResNet):
        raise InputError(
            "torchvision has no such encoder, only the resnets: export to .onnx or .pt2"
        )
    state = OrderedDict(model.encoder.state_dict())
    if isinstance(model.head, nn.Linear):
        for name, value in model.head.state_dict().items():
            state[f"fc.{name}"] = value
    return state


def write(model: Model, size: int, path: Path) -> None:
    """Write a model as the ending says: .pth (``torchvision_state``), .onnx, .pt2 (torch.export).

    The latter two map normalised images, x (B, 3, size, size) float32, to h and z, for any B from
    2. ONNX needs the packages onnx and onnxscript. Raises InputError where one is missing, the
    ending is another one, or the encoder is none of torchvision's.
    """
    buffer = io.BytesIO()
    match path.suffix:
        case ".pth":
            torch.save(torchvision_state(model), buffer)
        case ".pt2":
            torch.export.save(_program(model, size), buffer)
        case ".onnx":
            buffer.write(_onnx(model, size))
        case _:
            raise InputError(
                f"{path} must end in .pth, .onnx or .pt2, or be a folder, which must be there "
                "already where its name has a dot"
            )
    write_atomically(path, buffer.getvalue())


def _program(model: Model, size: int) -> torch.export.ExportedProgram:
    """What the model computes, as a graph."""
    example = torch.zeros(2, 3, size, size)
    batch = torch.export.Dim("batch", min=2)
    return torch.export.export(model.eval(), (example,), dynamic_shapes={"x": {0: batch}})


def _onnx(model: Model, size: int) -> bytes:
    needed("onnx", "onnx")
    needed("onnxscript", "onnx")
    program: Any = torch.onnx.export(
        _program(model, size),
        dynamo=True,
        input_names=["x"],
        output_names=["h", "z"],
        verbose=False,
    )
    return program.model_proto.SerializeToString()
