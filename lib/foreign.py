"""Other people's checkpoints in our models, and ours in other people's formats.

Read are ResNets in four layouts: UvA's Lightning ``.ckpt`` (torchvision's ResNet-18 as ``convnet``,
the head as its ``fc``), SupContrast's ``.pth`` (``encoder``, ``head``, ``shortcut``, an
``argparse.Namespace`` beside the weights), and state dicts of torchvision and timm. A file is
unpickled by PyTorch's restricted reader alone: tensors, plain containers and the few classes in
ALLOWED.
"""

import argparse
import io
import re
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from lib import InputError, data, needed
from lib.augmentations import Recipe
from lib.encoders import Model
from lib.files import write_atomically

SUFFIXES = (".ckpt", ".pth", ".pt", ".tar", ".bin")  # of what torch.save wrote


class _Inert:
    """Stands for a class of Lightning's that a checkpoint names and nobody needs."""


ALLOWED = [
    argparse.Namespace,
    OrderedDict,
    *(
        (_Inert, f"{package}.callbacks.{name}")
        for package in ("pytorch_lightning", "lightning.pytorch")  # before 1.6
        for name in ("model_checkpoint.ModelCheckpoint", "lr_monitor.LearningRateMonitor")
    ),
]
BLOCKS = {
    ("basic", 2, 2, 2, 2): "resnet18",
    ("basic", 3, 4, 6, 3): "resnet34",
    ("bottleneck", 3, 4, 6, 3): "resnet50",
}
STEMS = {3: "cifar", 7: "imagenet"}  # by the side of the first kernel
SOURCES = {  # what each one's evaluation sees
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


@dataclass(frozen=True)
class Foreign:
    """A model read from another project's file, and which of the file's and the model's names found
    each other."""

    model: Model  # in eval mode, on the CPU
    encoder: str  # in ENCODERS
    stem: str
    source: str  # in SOURCES
    matched: tuple[str, ...]  # names in the file
    missing: tuple[
        str, ...
    ]  # names of the model that kept their initial value: BatchNorm's counters at most
    left_over: tuple[str, ...]  # names in the file that have no place in the model

    def __str__(self) -> str:
        seen, head = (
            SOURCES[self.source],
            "without" if isinstance(self.model.head, nn.Identity) else "with",
        )
        left = f" ({', '.join(self.left_over[:3])})" if self.left_over else ""
        return (
            f"{self.source}'s {self.encoder} with the {self.stem} stem, {head} a head: "
            f"{len(self.matched)} tensors matched, {len(self.missing)} missing, "
            f"{len(self.left_over)} left over"
            f"{left}; images are seen as in {self.source}'s evaluation, {seen.size} x {seen.size} "
            "pixels, "
            f"mean {seen.mean}, std {seen.std}"
        )


def read(
    path: str | Path,
    encoder: str | None = None,
    stem: str | None = None,
    classes: int | None = None,
) -> Foreign:
    """Another project's checkpoint as a model of ours; what it is, is told by its names and shapes.

    encoder, stem, classes: what is expected of it; classes of its linear classifier, which becomes
    the head. A head is none, one linear layer, or two with a ReLU between, of whatever widths;
    another one is left over. Raises InputError where the file is missing, damaged, holds more than
    weights, or is of another architecture.
    """
    content, places = _unpickle(Path(path)), {}
    tensors = next(
        (content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)),
        content,
    )
    tensors = {
        re.sub(
            r"(^|\.)(module|_orig_mod)\.", r"\1", str(name)
        ): value  # DataParallel's, torch.compile's
        for name, value in tensors.items()
        if isinstance(value, Tensor)
    }
    first = min(
        (
            name
            for name in tensors
            if re.search(r"(^|\.)conv1\.weight$", name) and "layer" not in name
        ),
        key=len,
        default=None,
    )
    if first is None:
        there = ", ".join(list(tensors or content)[:3])
        raise InputError(f"{path} holds no ResNet: it has no conv1.weight, but {there}")
    start, kernel = first.removesuffix("conv1.weight"), tensors[first].shape
    for name in tensors:  # places: our names -> theirs
        inside = name.removeprefix(start)
        if inside.startswith(("fc.", "head.")):
            places[f"head.{inside.partition('.')[2]}"] = name
        elif name.startswith(start):
            places[f"encoder.{inside.replace('shortcut', 'downsample')}"] = name
    blocks = {tuple(name.split(".")[1:3]) for name in places if name.startswith("encoder.layer")}
    depths = [sum(layer == f"layer{i}" for layer, _ in blocks) for i in range(1, 5)]
    kind = "bottleneck" if "encoder.layer1.0.conv3.weight" in places else "basic"
    is_encoder, is_stem = BLOCKS.get((kind, *depths)), STEMS.get(kernel[-1] if kernel else 0)
    if not (is_encoder and is_stem):
        raise InputError(
            f"{path} is of another architecture: {kind} blocks {'-'.join(map(str, depths))}, a "
            "first "
            f"kernel of {tuple(kernel)}; known: {', '.join(BLOCKS.values())}, a kernel of 3 or 7"
        )
    model = Model(is_encoder, is_stem, "none")
    model.head = _head(tensors, places)
    is_classes = (
        model.head.out_features if isinstance(model.head, nn.Linear) else "no linear classifier"
    )
    for what, asked, there in (
        ("encoder", encoder, is_encoder),
        ("stem", stem, is_stem),
        ("classes", classes, is_classes),
    ):
        if asked not in (None, there):
            raise InputError(
                f"{path} is of another architecture: {what} is {there} there, {asked} was asked for"
            )
    matched, missing = _fill(path, model, tensors, places)
    options = content.get("opt")
    source = "uva" if start.endswith("convnet.") else "torchvision"
    if isinstance(options, argparse.Namespace):
        source = (
            "supcontrast-cifar100"
            if getattr(options, "dataset", "") == "cifar100"
            else "supcontrast"
        )
    return Foreign(
        model.eval(),
        is_encoder,
        is_stem,
        source,
        tuple(matched),
        tuple(missing),
        tuple(name for name in tensors if name not in matched),
    )


def _unpickle(path: Path) -> dict:
    """What torch.save or safetensors wrote, of tensors, plain containers and ALLOWED."""
    try:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                data.refuse_bombs(archive, path.stat().st_size)
        with torch.serialization.safe_globals(ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
        return (
            content if isinstance(content, dict) else {f"a {type(content).__name__} alone": content}
        )
    except Exception as error:  # of pickle, zipfile, PyTorch: whatever a damaged file provokes
        alien, said = re.search(r"GLOBAL ([\w.]+)", str(error)), str(error).rpartition("error: ")[2]
        why = f"it holds {alien[1]}, which is not loaded" if alien else said.split("\n")[0][:120]
        why = why if re.search("[a-z]{3}", why) else "it is not what torch.save writes"
        raise InputError(f"{path} can't be read as weights: {why}") from error


def _head(tensors: dict[str, Tensor], places: dict[str, str]) -> nn.Module:
    """The projection head or classifier that names and shapes tell, freshly initialised."""
    names = {name for name in places if name.startswith("head.")}
    shapes = [tensors[places[name]].shape for name in sorted(names) if name.endswith("weight")]
    layers = [nn.Linear(shape[1], shape[0]) for shape in shapes if len(shape) == 2]
    if len(layers) == 1 and names == {"head.weight", "head.bias"}:
        return layers[0]
    if len(layers) == 2 and names == {
        "head.0.weight",
        "head.0.bias",
        "head.2.weight",
        "head.2.bias",
    }:
        return nn.Sequential(layers[0], nn.ReLU(inplace=True), layers[1])
    return nn.Identity()


def _fill(
    path: str | Path, model: Model, tensors: dict[str, Tensor], places: dict[str, str]
) -> tuple[list[str], list[str]]:
    """Load tensors into the model. Returns the file's names that matched, and the model's that are
    missing.

    BatchNorm's counters may be missing, as in files of old; no weight may.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in places]
    state = {name: tensors[places[name]] for name in own if name in places}
    for name in missing:
        if not name.endswith("num_batches_tracked"):
            raise InputError(
                f"{path} lacks {len(missing)} of {len(own)} tensors, one of them {name}"
            )
    for name, value in state.items():
        if (
            value.shape != own[name].shape
            or value.is_floating_point() != own[name].is_floating_point()
        ):
            raise InputError(
                f"{path} is of another architecture: {places[name]} is {tuple(value.shape)} "
                f"{value.dtype} there, {tuple(own[name].shape)} {own[name].dtype} in ours"
            )
        if not value.isfinite().all():
            raise InputError(f"{path} is damaged: {places[name]} is not finite")
    model.load_state_dict(state, strict=False)
    return [places[name] for name in state], missing


def torchvision_state(model: Model) -> dict[str, Tensor]:
    """The weights under torchvision's names: a ResNet of its own loads them, strictly where the
    head is one layer.

    Without such a head there is no ``fc``: set ``net.fc = nn.Identity()``. With the "cifar" stem
    set ``net.conv1`` to a 3x3 convolution and ``net.maxpool`` to ``nn.Identity()`` before. Raises
    InputError where the encoder is no ResNet.
    """
    if not isinstance(model.encoder, ResNet):
        raise InputError(
            "torchvision has no such encoder, only the resnets: export to .onnx or .pt2"
        )
    head = model.head.state_dict() if isinstance(model.head, nn.Linear) else {}
    return model.encoder.state_dict() | {f"fc.{name}": value for name, value in head.items()}


def write(model: Model, size: int, path: Path) -> None:
    """Write a model as the ending says: .pth (``torchvision_state``), .onnx (ONNX) or .pt2
    (torch.export).

    The latter two map normalised images, x (B, 3, size, size) float32, to h and z, for any B from
    2. ONNX needs the packages onnx and onnxscript. Raises InputError where one is missing, the
    ending is another one, or the encoder is none of torchvision's.
    """
    for package in ("onnx", "onnxscript") if path.suffix == ".onnx" else ():
        needed(package, "onnx")
    if path.suffix not in (".pth", ".onnx", ".pt2"):
        raise InputError(f"{path} must end in .pth, .onnx or .pt2, or be a folder")
    buffer = io.BytesIO()
    if path.suffix == ".pth":
        torch.save(torchvision_state(model), buffer)
        return write_atomically(path, buffer.getvalue())
    program = torch.export.export(
        model.eval(),
        (torch.zeros(2, 3, size, size),),
        dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2)}},
    )
    if path.suffix == ".pt2":
        torch.export.save(program, buffer)
    else:
        made = torch.onnx.export(
            program, dynamo=True, input_names=["x"], output_names=["h", "z"], verbose=False
        )
        buffer.write(made.model_proto.SerializeToString())
    write_atomically(path, buffer.getvalue())
