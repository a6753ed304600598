"""The encoder that a page runs: exported weights as a script, and the classifier on its h.

    python -m tools.page_encoder weights/NAME --data-root DIR

fits the classifier once weights are exported, and writes it beside them. When the site is built,
``write`` makes of the weights in a folder what book/_play/play/encoder.js computes with.
"""

import argparse
import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from torch import Tensor, nn

from lib import InputError, in_a_line
from lib.augmentations import RECIPES
from lib.config import Config
from lib.data import load as load_dataset
from lib.files import write_atomically
from lib.methods import METHODS
from lib.parsing import parse_json
from lib.probes.basic import linear_result
from lib.probes.seen import Seen
from lib.weights import FILE, Weights
from lib.weights import load as load_weights
from lib.weights import run as load_run
from tools.photographs import described

CLASSIFIER = "classifier.safetensors"
SCRIPT = "encoder-weights.js"
TITLES = {"cifar10": "CIFAR-10"}  # of data sets, else their names


# --------------------------------------------------------------------------------------------------
# the classifier on h


def fit(folder: Path, root: Path | None = None) -> dict:
    """Write the classifier of exported weights beside them, and return what is said of it.

    The package's linear probe on h, its standardisation folded in, and by class the mean direction
    of h and of z. root: of data sets; the one the weights were trained on must be there.
    """
    run = load_run(folder, root)
    dataset = load_dataset(run.config.data, root)
    recipe = run.recipe(dataset)
    seen = Seen(run.model, dataset.take(run.config.images), recipe, run.config.method)

    probe, on_val = seen.probe("h")
    weight = (probe.weight / probe.scale[:, None]).T  # (C, D)
    tensors = {"weight": weight, "bias": probe.bias - weight @ probe.mean}
    for kind in ("h", "z"):
        tensors[f"mean_{kind}"] = _mean_directions(*seen.train_and_val(kind), seen.classes)

    result = linear_result(probe, on_val, seen.labelled("h", "test"))
    about = {key: result[key] for key in ("n", "correct", "l2", "val_accuracy")}
    about |= {"record": run.record["id"], "sha256": _sha256(folder)}
    content = serialise(
        {name: value.cpu().contiguous() for name, value in tensors.items()},
        {"about": json.dumps(about)},  # one field: the order of two is random
    )
    write_atomically(folder / CLASSIFIER, content)
    return about


def _mean_directions(x: Tensor, y: Tensor, classes: int) -> Tensor:
    """Of features (N, D) and their classes (N,): (C, D), rows of length 1."""
    directions = F.normalize(x, dim=1)
    means = torch.stack([directions[y == c].mean(0) for c in range(classes)])
    return F.normalize(means, dim=1)


def _sha256(folder: Path) -> str:
    return hashlib.sha256((folder / FILE).read_bytes()).hexdigest()


def classifier(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """What ``fit`` wrote: tensors by name, and what is said of them.

    Raises InputError where it is of other weights, or damaged.
    """
    path = folder / CLASSIFIER
    advice = f"write it again: python -m tools.page_encoder {folder}"
    try:
        content = path.read_bytes()
        tensors = deserialise(content)
        header: Any = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about: Any = parse_json(header["__metadata__"]["about"])
    except Exception as error:  # of safetensors, or a file that is none
        raise InputError(f"can't read {path} ({in_a_line(error, 100)}); {advice}") from error
    if about["sha256"] != _sha256(folder):
        raise InputError(f"{path} is not of the weights beside it; {advice}")
    return tensors, about


# --------------------------------------------------------------------------------------------------
# the script


@dataclass(frozen=True)
class Pair:
    """An encoder before its training and after."""

    untrained: Path  # folders
    trained: Path


def pair(home: Path) -> Pair | None:
    """The weights in a folder of weights that a page runs; None where they are not both there.

    A narrow ResNet-9 by SimCLR or SupCon that has a classifier beside it, SimCLR first and then the
    longest, and an untrained one of the same data.
    """
    configs = {}
    for file in sorted(home.glob(f"*/{FILE}")):
        config = load_run(file.parent, home).config
        contrastive = not METHODS[config.method].classifier  # whose z a cosine is read on
        if contrastive and (config.encoder, config.stem) == ("resnet9", "cifar"):
            configs[file.parent] = config

    def order(folder: Path) -> tuple[bool, int, Path]:
        return configs[folder].method != "simclr", -configs[folder].epochs, folder

    for trained in sorted(configs, key=order):
        ours = configs[trained]
        if not ours.epochs or not (trained / CLASSIFIER).is_file():
            continue
        for untrained, other in configs.items():
            if not other.epochs and (other.data, other.head) == (ours.data, ours.head):
                return Pair(untrained, trained)
    return None


def script(home: Path) -> str | None:
    """The script that a page loads, of the weights in a folder; None where they are not there."""
    chosen = pair(home)
    if chosen is None:
        return None
    tensors, about = classifier(chosen.trained)
    trained, untrained = load_weights(chosen.trained, home), load_weights(chosen.untrained, home)
    config = Config(**trained.record["config"])
    if (trained.recipe.size or trained.size) != trained.size:
        raise InputError(f"a page can't make the views of {chosen.trained}: another size")

    title = TITLES.get(config.data, config.data)
    written = {
        "side": trained.size,
        "recipe": described(RECIPES[config.recipe]),
        "about": f"{METHODS[config.method].name}, {config.epochs} epochs on {title}",
        "data": title,
        "encoders": {"untrained": _written(untrained), "trained": _written(trained)},
        "classifier": {name: _text(value, np.float32) for name, value in sorted(tensors.items())}
        | {"classes": trained.record["data"]["classes"], "n": about["n"]}
        | {"correct": about["correct"]},
    }
    return f'"use strict";\nPlay.data.encoder = {json.dumps(written)};\n'


def write(folder: Path, home: Path) -> None:
    """Write the script into a folder of scripts; nothing where the weights are not there."""
    content = script(home)
    if content:
        write_atomically(folder / SCRIPT, content.encode())


def _written(weights: Weights) -> dict:
    """A ResNet-9, its layers in the order in which an image passes them, and its head."""
    blocks: list[dict] = []
    for residual, modules in _blocks(weights.model.encoder):
        blocks.append({"residual": residual, "layers": list(_layers(modules))})
    head = []
    for module in weights.model.head.children():
        if isinstance(module, nn.Linear):
            bias = _text(module.bias, np.float32)
            head.append({"weight": _text(module.weight, np.float16), "bias": bias})
    mean, std = weights.recipe.mean, weights.recipe.std
    return {"mean": mean, "std": std, "blocks": blocks, "head": head}


def _blocks(encoder: nn.Module) -> Iterator[tuple[bool, list[nn.Module]]]:
    """Parts of a ResNet-9, and whether what goes into each is added to what comes out."""
    plain: list[nn.Module] = []
    for module in encoder.children():
        inner = getattr(module, "block", None)
        if isinstance(inner, nn.Sequential):
            yield False, plain
            yield True, list(inner)
            plain = []
        else:
            plain.append(module)


def _layers(modules: list[nn.Module]) -> Iterator[dict]:
    """Each convolution with the BatchNorm after it, and whether a max-pool of 2 x 2 is between.

    BatchNorm is folded into a factor and a summand for each channel. The factors do not go into the
    weights: these stay the numbers that were exported, and where a factor is negative the largest
    of four would be another one.
    """
    layer: dict = {}
    for module in modules:
        if isinstance(module, nn.Conv2d):
            kernel, stride = module.kernel_size[0], module.stride[0]
            weight = _text(module.weight.permute(0, 2, 3, 1), np.float16)  # channels last
            layer = {"kernel": kernel, "stride": stride, "pool": False, "weight": weight}
        elif isinstance(module, nn.MaxPool2d):
            layer["pool"] = True
        elif isinstance(module, nn.BatchNorm2d):
            kept = {name: value.double() for name, value in module.state_dict().items()}
            scale = kept["weight"] / (kept["running_var"] + module.eps).sqrt()
            shift = kept["bias"] - kept["running_mean"] * scale
            yield layer | {"scale": _text(scale, np.float32), "shift": _text(shift, np.float32)}


def _text(values: Tensor, kind: type) -> str:
    """Numbers in base64, little-endian."""
    array = values.detach().cpu().numpy().astype(np.dtype(kind).newbyteorder("<"))
    return base64.b64encode(array.tobytes()).decode()


def main(arguments: list[str] | None = None) -> int:
    """Fit the classifier of exported weights."""
    parser = argparse.ArgumentParser(prog="python -m tools.page_encoder", description=main.__doc__)
    parser.add_argument("weights", type=Path, metavar="FOLDER", help="exported weights")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder of data sets")
    asked = parser.parse_args(arguments)
    try:
        about = fit(asked.weights, asked.data_root)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    accuracy = 100 * about["correct"] / about["n"]
    print(f"{asked.weights / CLASSIFIER}: {accuracy:.1f} % of {about['n']:,} test images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
