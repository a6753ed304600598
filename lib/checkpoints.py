"""Checkpoints: one safetensors file with the model, the optimiser's state, the configuration and the curves so far.

Order and views are functions of (seed, step), so tensors and a number of epochs are all that a resume needs. Nothing is
ever unpickled.
"""

import json
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor
from torch.amp import GradScaler
from torch.nn import Module
from torch.optim import Optimizer

from lib import InputError, records
from lib.config import Config, difference


def save(path: Path, config: Config, curves: list[dict], model: Module, optimiser: Optimizer | None = None,
         scaler: GradScaler | None = None) -> None:
    """Write a checkpoint atomically; without an optimiser and float16's scaler it holds the model alone."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for place, state in optimiser.state_dict()["state"].items() if optimiser else ():
        tensors |= {f"optimiser.{place}.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
    scales = scaler.state_dict() if scaler else {}
    tensors |= {f"scaler.{name}": torch.tensor(value) for name, value in scales.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"config": json.dumps(asdict(config)), "curves": json.dumps(curves)}
    records.write_atomically(path, serialise(tensors, metadata))


def resume(path: Path, config: Config, model: Module, optimiser: Optimizer | None = None,
           scaler: GradScaler | None = None) -> list[dict]:
    """Load a checkpoint into model, optimiser and scaler, and return its curves.

    Raises InputError, naming the file, where it is missing, damaged, or of another configuration.
    """
    theirs, curves, tensors = _read(path)
    for field, (there, here) in difference(theirs, config).items():
        raise InputError(f"{path} does not fit its configuration: {field} is {there} there and {here} here; delete it "
                         f"to train anew")
    try:
        model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    except RuntimeError as error:
        why = shorten(str(error).splitlines()[1], 120, placeholder=" ...")
        raise InputError(f"{path} does not fit its configuration: {why}") from error
    if optimiser:
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimiser."):
                _, place, key = name.split(".", 2)
                state.setdefault(int(place), {})[key] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        for parameter, of in optimiser.state.items():       # a fused kernel reads both in one order, and checks nothing
            of |= {key: torch.empty_like(parameter).copy_(value) for key, value in of.items()
                   if value.shape == parameter.shape}
    if scaler and scaler.is_enabled():
        scaler.load_state_dict({n[7:]: value.item() for n, value in tensors.items() if n.startswith("scaler.")})
    return curves


def _read(path: Path) -> tuple[Config, list[dict], dict[str, Tensor]]:
    """Configuration, curves and tensors of a file of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            config, curves = Config(**json.loads(metadata["config"])), json.loads(metadata["curves"])
            return config, curves, {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is missing or damaged ({error}); delete its folder to train anew") from error
