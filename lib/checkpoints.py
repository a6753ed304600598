"""Checkpoints: one safetensors file with the model, the optimiser's state, and how far the run is,
as JSON.

Order and views are functions of (seed, step), so tensors and the number of steps done are all that
a resume needs. Nothing is ever unpickled. Inside is the SHA-256 of the whole file (its own digits
taken as zeros), so that no damage goes unnoticed. There are two generations: the older one stays
until the newer is whole.
"""

import hashlib
import json
import math
import os
import re
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import shorten

import torch
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from torch import Tensor
from torch.amp import GradScaler
from torch.nn import Module
from torch.optim import Optimizer

from lib import Diverged, InputError
from lib.config import Config, difference
from lib.files import parse_json, write_atomically

NEWEST, BEFORE = "checkpoint.safetensors", "checkpoint-before.safetensors"
SEAL, UNSEALED = re.compile(rb'sha256[\\": ]+([0-9a-f]{64})'), "0" * 64


@dataclass
class Progress:
    """How far a run is: all of its state but for the model's, the optimiser's and float16's
    scaler."""

    run: str = ""  # its identity
    fingerprint: str = ""  # of the data it began on
    started: str = ""  # when it first began, UTC
    plan: dict = field(default_factory=dict)  # the entry of the plan it belongs to, see lib.plan
    model_only: bool = False  # whether the file lacks what going on needs
    step: int = 0  # steps done
    curves: list[dict] = field(default_factory=list)  # a row for each finished epoch
    segments: list[dict] = field(default_factory=list)  # one for each session, see lib.sessions
    seconds: float = 0.0  # of the epoch under way,
    seen: int = 0  # its images so far,
    total: Tensor = field(default_factory=lambda: torch.zeros(()))  # their loss, summed,
    z: Tensor | None = None  # (V, N, D) of its last full batch, once that is done,
    labels: Tensor | None = None  # and its labels (N,), for supcon

    def end_epoch(self, row: dict) -> None:
        """Keep the epoch's row; the sums start anew."""
        self.curves.append(row)
        self.seconds, self.seen, self.total = 0.0, 0, torch.zeros_like(self.total)
        self.z = self.labels = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        return {
            name: value
            for name in ("total", "z", "labels")
            if (value := getattr(self, name)) is not None
        }


def save(
    path: Path,
    config: Config,
    progress: Progress,
    model: Module,
    optimiser: Optimizer | None = None,
    scaler: GradScaler | None = None,
) -> None:
    """Write a checkpoint atomically; without an optimiser and float16's scaler it holds the model
    alone.

    Raises InputError where the file can't be written, Diverged where a weight is not finite.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for place, state in optimiser.state_dict()["state"].items() if optimiser else ():
        tensors |= {
            f"optimiser.{place}.{name}": value
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
    tensors |= {f"epoch.{name}": value for name, value in progress.tensors.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    wrong = [
        name
        for name, value in tensors.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if wrong:
        raise Diverged(
            f"{wrong[0]} is not finite after step {progress.step}; lower learning_rate (the last "
            f"checkpoint is kept)"
        )
    scales = scaler.state_dict() if scaler else {}
    tensors |= {f"scaler.{name}": torch.tensor(value) for name, value in scales.items()}
    state = {
        name: value
        for name, value in vars(progress).items()
        if not isinstance(value, Tensor | None)
    }
    state["model_only"] = scaler is None
    metadata = {
        "config": json.dumps(asdict(config)),
        "progress": json.dumps(state),
        "sha256": UNSEALED,
    }
    write_atomically(path, sealed(serialise(tensors, metadata)))


def sealed(content: bytes) -> bytes:
    """A safetensors file with its SHA-256 in place of the 64 digits that its header has as
    "sha256"."""
    seal = SEAL.search(content)
    return content[: seal.start(1)] + _digest(content, seal) + content[seal.end(1) :]


def unbroken(content: bytes) -> bool:
    """Whether a sealed file is as it was written, to the last bit."""
    seal = SEAL.search(content)
    return seal is not None and _digest(content, seal) == seal[1]


def _digest(content: bytes, seal: re.Match) -> bytes:
    digest = hashlib.sha256(content[: seal.start(1)] + UNSEALED.encode())
    digest.update(memoryview(content)[seal.end(1) :])
    return digest.hexdigest().encode()


def rotate(folder: Path, *parts) -> None:
    """Save a run's newest checkpoint; the one that was the newest stays beside it."""
    coming = folder / f"{NEWEST}.coming"
    save(coming, *parts)
    if (folder / NEWEST).is_file():
        os.replace(folder / NEWEST, folder / BEFORE)
    os.replace(coming, folder / NEWEST)


def resume(
    folder: Path,
    config: Config,
    model: Module,
    optimiser: Optimizer | None,
    scaler: GradScaler | None,
) -> Progress | None:
    """Load the newest whole checkpoint of a run's folder, and return how far it is; None where
    there is none.

    A damaged one is named in a warning, deleted, and the one before it used. Raises InputError
    where there are checkpoints and none is whole.
    """
    there = [folder / name for name in (NEWEST, BEFORE) if (folder / name).is_file()]
    damage = []
    for path in there:
        try:
            progress = restore(path, config, folder.name, model, optimiser, scaler)
        except InputError as error:
            damage.append(str(error))
            continue
        for damaged, why in zip(there, damage):
            warnings.warn(
                f"{why}; going on from the checkpoint before it, {path.name}", stacklevel=3
            )
            damaged.unlink()  # or it would take the whole one's place
        return progress
    if damage:
        raise InputError(f"{'; '.join(damage)}; delete {folder} to train anew")
    return None


def restore(
    path: Path,
    config: Config,
    run: str,
    model: Module,
    optimiser: Optimizer | None = None,
    scaler: GradScaler | None = None,
) -> Progress:
    """Load one file of a run into model, optimiser and scaler. The model may be on the "meta"
    device.

    Raises InputError, naming the file, where it is missing, damaged, of another run, or not of this
    kind.
    """
    theirs, progress, tensors = read(path)
    for name, (there, here) in difference(theirs, config).items():
        raise InputError(
            f"{path} does not fit its configuration: {name} is {there} there and {here} here"
        )
    if progress.run not in (run, "") or progress.model_only != (scaler is None):
        raise InputError(
            f"{path} is not what its name says: it holds "
            f"{'the model' if progress.model_only else 'all'} "
            f"of {progress.run}"
        )
    try:
        weights, empty = _named(tensors, "model."), any(p.is_meta for p in model.parameters())
        model.load_state_dict(weights, assign=empty)
        if optimiser:
            optimiser.load_state_dict(
                {
                    "state": _moments(_named(tensors, "optimiser."), model),
                    "param_groups": optimiser.state_dict()["param_groups"],
                }
            )
        if scaler and scaler.is_enabled():
            scaler.load_state_dict(
                {name: value.item() for name, value in _named(tensors, "scaler.").items()}
            )
    except (
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
    ) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [
            type(error).__name__
        ]
        why = shorten(lines[min(1, len(lines) - 1)], 120, placeholder=" ...")
        raise InputError(f"{path} does not fit its configuration: {why}") from error
    return progress


def read(path: Path) -> tuple[Config, Progress, dict[str, Tensor]]:
    """Configuration, progress and tensors of a file of ours, whole to the last bit.

    A finished run of an earlier version has no checksum; that is said in a warning.
    """
    try:
        content = path.read_bytes()
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        metadata = parse_json(header)["__metadata__"]
        if metadata.keys() == {"config", "curves"}:
            warnings.warn(
                f"{path} was written without a checksum, by an earlier version", stacklevel=2
            )
            state = {"curves": parse_json(metadata["curves"]), "model_only": True}
        else:
            if not unbroken(content):
                raise ValueError("its checksum is wrong")
            state = parse_json(metadata["progress"])
        config, tensors = Config(**parse_json(metadata["config"])), deserialise(content)
        return config, _progress(state, _named(tensors, "epoch.")), tensors
    except OSError as error:
        raise InputError(f"{path} is missing or damaged ({error.strerror})") from error
    except Exception as error:  # of safetensors, or of a file that is right and means harm
        why = shorten(str(error) or type(error).__name__, 120, placeholder=" ...")
        raise InputError(f"{path} is missing or damaged ({why})") from error


def refuse_changed_data(config: Config, data: str, fingerprint: str, folder: Path) -> None:
    """Raise InputError where the same configuration is half done on other data than those of this
    fingerprint."""
    for path in folder.parent.glob(f"{config.name}-e{config.epochs}-s{config.seed}-*/{NEWEST}"):
        if path.with_name("record.json").is_file():
            continue
        try:
            theirs, state, _ = read(path)
        except InputError:
            continue  # damaged: told when its own run goes on
        if theirs == config and state.fingerprint != fingerprint:
            raise InputError(
                f"{data} has changed since {path.parent} began: its fingerprint was "
                f"{state.fingerprint[:16]} and is {fingerprint[:16]}; restore the data to go on, "
                f"or delete that folder to train on the new data"
            )


def _named(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
    }


def _progress(state: dict, tensors: dict[str, Tensor]) -> Progress:
    progress = Progress(**state | tensors)
    rows = [*progress.curves, *progress.segments]
    if (
        all(isinstance(row, dict) for row in rows)
        and math.isfinite(progress.seconds)
        and isinstance(progress.curves, list)
        and isinstance(progress.segments, list)
        and isinstance(progress.started, str)
        and isinstance(progress.plan, dict)
        and all(
            type(number) is int and 0 <= number < 2**53 for number in (progress.step, progress.seen)
        )
        and isinstance(progress.total, Tensor)
        and not progress.total.dim()
    ):
        return progress
    raise ValueError("what it says of the run's progress makes no sense")


def _moments(tensors: dict[str, Tensor], model: Module) -> dict[int, dict[str, Tensor]]:
    """The optimiser's state by the parameter's place, each value one number or of the parameter's
    shape.

    In the parameter's layout too: a fused optimiser walks through the memory of both in step,
    whatever the strides.
    """
    parameters, state = list(model.parameters()), {}
    for name, value in tensors.items():
        place, _, key = name.partition(".")
        if value.dim():
            parameter = parameters[int(place)]
            if value.shape != parameter.shape:
                raise ValueError(f"optimiser.{name} is of the shape {tuple(value.shape)}")
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(place), {})[key] = value
    if state and state.keys() != set(range(len(parameters))):
        raise ValueError("the optimiser's state lacks parameters")
    return state
