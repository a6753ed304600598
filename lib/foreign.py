"""Other people's checkpoints in our models, and ours in other people's formats.

Read are ResNets in four layouts: UvA's Lightning ``.ckpt`` (torchvision's ResNet-18 as ``convnet``, the head as its
``fc``), SupContrast's ``.pth`` (``encoder``, ``head``, ``shortcut``, an ``argparse.Namespace`` beside the weights), and
state dicts of torchvision and timm. A file is unpickled by PyTorch's restricted reader alone: tensors, plain containers
and the few classes in ALLOWED.
"""

import argparse
import re
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lib import InputError, data, needed
from lib.augmentations import Recipe
from lib.encoders import Model

SUFFIXES = (".ckpt", ".pth", ".pt", ".tar", ".bin")     # of what torch.save wrote


class _Inert:
    """Stands for a class of Lightning's that a checkpoint names and nobody needs."""


ALLOWED = [argparse.Namespace, OrderedDict, *(
    (_Inert, f"{package}.callbacks.{name}") for package in ("pytorch_lightning", "lightning.pytorch")    # before 1.6
    for name in ("model_checkpoint.ModelCheckpoint", "lr_monitor.LearningRateMonitor"))]
BLOCKS = {("basic", 2, 2, 2, 2): "resnet18", ("basic", 3, 4, 6, 3): "resnet34", ("bottleneck", 3, 4, 6, 3): "resnet50"}
STEMS = {3: "cifar", 7: "imagenet"}                     # by the side of the first kernel
VIEWS = {                                               # what each source's evaluation sees: size, mean, deviation
    "uva": (96, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),      # tutorial 17, contrast_transforms
    "supcontrast": (32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),            # main_supcon.py, cifar10
    "supcontrast-cifar100": (32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),   # the same, cifar100
    "torchvision": (224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),                 # and most of timm's
}


@dataclass(frozen=True)
class Foreign:
    """A model read from another project's file, and which of the file's and the model's names found each other."""

    model: Model                # in eval mode, on the CPU
    encoder: str                # in ENCODERS
    stem: str
    source: str                 # in VIEWS
    matched: tuple[str, ...]    # names in the file
    missing: tuple[str, ...]    # names of the model that kept their initial value: BatchNorm's counters at most
    left_over: tuple[str, ...]  # names in the file that have no place in the model

    @property
    def recipe(self) -> Recipe:
        """The view that evaluation sees, by the source's own normalisation and size."""
        size, mean, std = VIEWS[self.source]
        return Recipe(size=size, mean=mean, std=std)

    def __str__(self) -> str:
        lost = f": {', '.join(self.left_over[:3])}{' ...' * (len(self.left_over) > 3)}" if self.left_over else ""
        return (f"{self.source}'s {self.encoder} with the {self.stem} stem: {len(self.matched)} tensors matched, "
                f"{len(self.missing)} missing, {len(self.left_over)} left over{lost}")


def read(path: str | Path, encoder: str | None = None, stem: str | None = None, classes: int | None = None) -> Foreign:
    """Another project's checkpoint as a model of ours; what it is, is told by its names and shapes.

    encoder, stem, classes: what is expected of it; classes of its linear classifier, which becomes the head.
    Raises InputError where the file is missing, damaged, holds more than weights, or is of another architecture.
    """
    content = _unpickle(Path(path))
    tensors = _weights(path, content)
    starts = [name.removesuffix("conv1.weight") for name in tensors
              if re.search(r"(^|\.)conv1\.weight$", name) and "layer" not in name]
    if not starts:
        raise InputError(f"{path} holds no ResNet: it has no conv1.weight, but {', '.join(list(tensors)[:3])} ...")
    start = min(starts, key=len)
    body, head = {}, {}                                         # our names -> theirs
    for name in tensors:
        inside = name.removeprefix(start) if name.startswith(start) else None
        found = re.match(r"(?:fc|head)\.(.*)", inside if inside is not None else name)
        if found:
            head[found[1]] = name
        elif inside is not None:
            body[inside.replace("shortcut", "downsample")] = name
    kernel = tensors[body["conv1.weight"]]
    depths = [len({name.split(".")[1] for name in body if name.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4)]
    kind = "bottleneck" if "layer1.0.conv3.weight" in body else "basic"
    there, form = BLOCKS.get((kind, *depths)), STEMS.get(kernel.shape[-1] if kernel.dim() == 4 else 0)
    if there is None or form is None:
        raise InputError(f"{path} is of another architecture: {kind} blocks {'-'.join(map(str, depths))}, a first "
                         f"kernel of {tuple(kernel.shape)}; known: {', '.join(BLOCKS.values())}, a kernel of 3 or 7")
    for what, wanted, is_ in (("encoder", encoder, there), ("stem", stem, form)):
        if wanted not in (None, is_):
            raise InputError(f"{path} is of another architecture: its {what} is {is_}, not {wanted}")
    model = Model(there, form, "none")
    used, missing = _fill(path, model.encoder, tensors, body)
    model.head, of_head = _head(path, tensors, head, classes)
    used = {*used, *of_head}
    return Foreign(model.eval(), there, form, _source(content, start), tuple(n for n in tensors if n in used), missing,
                   tuple(n for n in tensors if n not in used))


def _unpickle(path: Path) -> dict:
    """What torch.save or safetensors wrote, of tensors, plain containers and ALLOWED."""
    try:
        size = path.stat().st_size
        if not size:
            raise ValueError("it is empty")
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                data.refuse_bombs(archive, size)
        with torch.serialization.safe_globals(ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"can't read {path} ({error.strerror or error})") from error
    except Exception as error:                      # of pickle, zipfile, PyTorch: whatever a damaged file provokes
        alien = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it holds {alien[1]}, which is not loaded" if alien else str(error).split("\n")[0][:120]
        raise InputError(f"{path} can't be read as weights: {why or type(error).__name__}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not weights by name; save a state_dict instead")
    return content


def _weights(path: Path, content: dict) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, without what DataParallel and torch.compile put into the names."""
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no weights: its fields are {', '.join(map(str, list(content)[:5]))}")
    return {re.sub(r"(^|\.)(module|_orig_mod)\.", r"\1", name): value for name, value in tensors.items()}


def _fill(path: Path, module: nn.Module, tensors: dict[str, Tensor],
          names: dict[str, str]) -> tuple[list[str], tuple[str, ...]]:
    """Load tensors into a module, names: the module's -> the file's. Returns those used, and the module's missing ones.

    BatchNorm's counters may be missing, as in files of old; no weight may.
    """
    own = module.state_dict()
    missing = tuple(name for name in own if name not in names)
    lost = [name for name in missing if not name.endswith("num_batches_tracked")]
    if lost:
        raise InputError(f"{path} lacks {len(lost)} of {len(own)} tensors, the first of them {lost[0]}")
    state = {name: tensors[names[name]] for name in own if name in names}
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise InputError(f"{path} is of another architecture: {names[name]} is {tuple(value.shape)} there, and "
                             f"{tuple(own[name].shape)} in ours")
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"{path} is damaged: {names[name]} is not finite")
    module.load_state_dict(state, strict=False)
    return [names[name] for name in state], missing


def _head(path: Path, tensors: dict[str, Tensor], names: dict[str, str],
          classes: int | None) -> tuple[nn.Module, list[str]]:
    """The projection head or classifier, of whatever widths: none, one linear layer, or two with a ReLU between."""
    layers = [nn.Linear(*tensors[names[key]].shape[::-1]) for key in ("weight", "0.weight", "2.weight")
              if key in names and tensors[names[key]].dim() == 2]
    if names.keys() == {"weight", "bias"} and len(layers) == 1:
        head, = layers
    elif names.keys() == {"0.weight", "0.bias", "2.weight", "2.bias"} and len(layers) == 2:
        head = nn.Sequential(layers[0], nn.ReLU(inplace=True), layers[1])
    else:
        head, names = nn.Identity(), {}
    there = head.out_features if isinstance(head, nn.Linear) else "no linear classifier"
    if classes not in (None, there):
        raise InputError(f"{path} is of another number of classes: it has {there}, {classes} were asked for")
    return head, _fill(path, head, tensors, names)[0]


def _source(content: dict, start: str) -> str:
    options = content.get("opt")
    if isinstance(options, argparse.Namespace):
        return "supcontrast-cifar100" if getattr(options, "dataset", "") == "cifar100" else "supcontrast"
    return "uva" if start.endswith("convnet.") else "torchvision"


def torchvision_state(model: Model) -> dict[str, Tensor]:
    """The weights under torchvision's names: a ResNet of its own loads them, strictly where the head is one layer.

    Without such a head there is no ``fc``: set ``net.fc = nn.Identity()``. With the "cifar" stem set ``net.conv1`` to a
    3x3 convolution and ``net.maxpool`` to ``nn.Identity()`` before. Raises InputError where the encoder is no ResNet.
    """
    if "layer4.0.conv1.weight" not in model.encoder.state_dict():
        raise InputError("torchvision has no such encoder; its formats are for the resnets: export to onnx or torch")
    head = model.head.state_dict() if isinstance(model.head, nn.Linear) else {}
    return model.encoder.state_dict() | {f"fc.{name}": value for name, value in head.items()}


def write(model: Model, size: int, path: Path, kind: str) -> Path:
    """Write a model as kind: "torchvision" (a state dict, .pth), "onnx", or "torch" (torch.export, .pt2).

    The latter two map normalised images, x (B, 3, size, size) float32, to h and z, for any B from 2. ONNX needs the
    packages onnx and onnxscript. Raises InputError where one is missing, or the encoder is none of torchvision's.
    """
    path = path.with_suffix({"torchvision": ".pth", "onnx": ".onnx", "torch": ".pt2"}[kind])
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "torchvision":
        torch.save(torchvision_state(model), path)
        return path
    if kind == "onnx":
        needed("onnx", "onnx"), needed("onnxscript", "onnx")
    batch = {"x": {0: torch.export.Dim("batch", min=2)}}
    program = torch.export.export(model.eval(), (torch.zeros(2, 3, size, size),), dynamic_shapes=batch)
    if kind == "onnx":
        torch.onnx.export(program, dynamo=True, input_names=["x"], output_names=["h", "z"], external_data=False,
                          verbose=False).save(path)
    else:
        torch.export.save(program, path)
    return path
