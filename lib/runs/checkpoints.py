"""Checkpoints: one safetensors file with the model, the optimiser's state, and how far the run is.

Order and views are functions of (seed, step), so tensors and the number of steps done are all that
a resume needs. Nothing is ever unpickled. Inside is the SHA-256 of the whole file (its own digits
taken as zeros), so that no damage goes unnoticed. There are two generations: the older one stays
until the newer is whole.
"""

import contextlib
import hashlib
import json
import math
import re
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, with_config
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from torch import Tensor
from torch.amp import GradScaler
from torch.nn import Module
from torch.optim import Optimizer
from typing_extensions import TypedDict

from lib import Diverged, InputError
from lib.config import Config, difference
from lib.files import moved, write_atomically
from lib.hardware import copied_to_cpu
from lib.parsing import parse_json
from lib.runs.trouble import out_of_memory
from lib.training import Progress
from lib.validation import validated

NEWEST, BEFORE = "checkpoint.safetensors", "checkpoint-before.safetensors"
SEAL = re.compile(rb'sha256[\\": ]+([0-9a-f]{64})')
UNSEALED = "0" * 64
Content = tuple[dict[str, Tensor], dict[str, str]]  # of a file: tensors and metadata, by name
# what content raises that is not as this version writes it
UNFIT = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
OTHER_VERSION = (
    "as another version of this package may write it: update the package, or name another folder "
    "of runs (--runs)"
)
# in another folder a run would begin anew
SAME_COMMAND = "free space there, or allow writing, then the same command goes on"


class Damaged(InputError):
    """A file is not whole: its checksum is wrong, or it ends too early."""


class Misplaced(InputError):
    """A file is whole, and of another run or kind than its name says."""


@dataclass
class RunProgress(Progress):
    """How far a run is, and which: its state but for model, optimiser and float16's scaler."""

    run: str = ""  # its identity
    fingerprint: str = ""  # of the data it began on
    started: str = ""  # when it first began, UTC
    plan: dict = field(default_factory=dict)  # the entry of the plan it belongs to
    segments: list[dict] = field(default_factory=list)  # one for each session, see runs.session
    model_only: bool = False  # whether the file lacks what going on needs

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        named = {"total": self.total, "z": self.z, "labels": self.labels}
        return {name: value for name, value in named.items() if value is not None}

    def move(self, device: torch.device) -> None:
        for name, value in self.tensors.items():
            setattr(self, name, value.to(device))


Count = Annotated[int, Field(ge=0, lt=2**53)]


@with_config(ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class SavedProgress(TypedDict, total=False):
    """What a file says of a run's progress, beside its tensors."""

    run: str
    fingerprint: str
    started: str
    plan: dict
    segments: list[dict]
    model_only: bool
    step: Count
    curves: list[dict]
    seconds: float
    seen: Count


def save(path: Path, config: Config, progress: RunProgress, model: Module) -> None:
    """Write a checkpoint of the model alone, atomically.

    Raises InputError where the file can't be written, Diverged where a weight is not finite.
    """
    write(path, content(config, progress, model))


def content(
    config: Config,
    progress: RunProgress,
    model: Module,
    optimiser: Optimizer | None = None,
    scaler: GradScaler | None = None,
) -> Content:
    """What a checkpoint holds, copied: training may go on while it is written.

    Without a scaler it is of the model alone.
    Raises Diverged where a weight is not finite.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    if optimiser is not None:
        tensors |= _optimiser_tensors(optimiser)
    tensors |= {f"epoch.{name}": value for name, value in progress.tensors.items()}
    tensors = copied_to_cpu(tensors)
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise Diverged(
                f"{name} is not finite after step {progress.step}; lower learning_rate (the last "
                "checkpoint is kept)"
            )
    if scaler is not None:
        for name, value in scaler.state_dict().items():
            tensors[f"scaler.{name}"] = torch.tensor(value)

    state = {name: getattr(progress, name) for name in SavedProgress.__annotations__}
    state["model_only"] = scaler is None
    metadata = {
        "config": json.dumps(asdict(config)),
        "progress": json.dumps(state),
        "sha256": UNSEALED,
    }
    return tensors, metadata


def write(path: Path, content: Content) -> None:
    """Write a checkpoint atomically; InputError where the file can't be written."""
    write_atomically(path, sealed(serialise(*content)), SAME_COMMAND)


def _optimiser_tensors(optimiser: Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for place, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{place}.{name}"] = value
    return tensors


def sealed(content: bytes) -> bytes:
    """A safetensors file with its SHA-256 in place of the 64 zeros that its header has for it."""
    seal = SEAL.search(content)
    if seal is None:
        raise ValueError("there is no place for a seal")
    return content[: seal.start(1)] + _digest(content, seal) + content[seal.end(1) :]


def unbroken(content: bytes) -> bool:
    """Whether a sealed file is as it was written, to the last bit."""
    seal = SEAL.search(content)
    return seal is not None and _digest(content, seal) == seal[1]


def _digest(content: bytes, seal: re.Match) -> bytes:
    digest = hashlib.sha256(content[: seal.start(1)] + UNSEALED.encode())
    digest.update(memoryview(content)[seal.end(1) :])
    return digest.hexdigest().encode()


def rotate(folder: Path, content: Content) -> None:
    """Write a run's newest checkpoint; the one that was the newest stays beside it.

    Raises InputError where it can't be written.
    """
    newest = folder / f"{NEWEST}.coming"
    write(newest, content)
    try:
        if (folder / NEWEST).is_file():
            moved(folder / NEWEST, folder / BEFORE)
        moved(newest, folder / NEWEST)
    except OSError as error:
        raise InputError(
            f"can't write {folder / NEWEST} ({error.strerror}): {SAME_COMMAND}"
        ) from error


def resume(
    folder: Path,
    config: Config,
    model: Module,
    optimiser: Optimizer | None,
    scaler: GradScaler,
) -> RunProgress | None:
    """Load the newest whole checkpoint of a run's folder: how far it is; None where there is none.

    A damaged one is named in a warning, deleted, and the one before it used. Raises InputError
    where there are checkpoints and none is whole; also where one can't be read, is of another
    version or misplaced: it may be sound, so it stays, and no older one takes its place.
    """
    paths = [folder / name for name in (NEWEST, BEFORE) if (folder / name).is_file()]
    damage: list[str] = []
    for path in paths:
        try:
            progress = restore(path, config, folder.name, model, optimiser, scaler)
        except Damaged as error:
            damage.append(str(error))
            continue
        except Misplaced as error:
            where = "move it away, and the same command goes on without it"
            raise InputError("; ".join([*damage, str(error), where])) from error
        except InputError as error:
            raise InputError("; ".join([*damage, str(error)])) from error
        for damaged, why in zip(paths, damage):
            warnings.warn(
                f"{why}; going on from the checkpoint before it, {path.name}", stacklevel=3
            )
            damaged.unlink()  # or it would take the whole one's place
        return progress
    if damage:
        raise InputError(f"{'; '.join(damage)}; delete {folder} to train anew")
    return None


def steps_taken(folder: Path) -> float | None:
    """How many steps a run has taken, as the header of its newest checkpoint says.

    Infinity where it is finished; None where it is not begun, has failed, or no header can be read.
    """
    if (folder / "record.json").is_file():
        return math.inf
    if (folder / "failed.json").is_file():
        return None
    return newest_step(folder)


def newest_step(folder: Path) -> int | None:
    """The step of a run's newest checkpoint, as its header says; None where none can be read."""
    for name in (NEWEST, BEFORE):
        with contextlib.suppress(OSError, SafetensorError, *UNFIT):
            state = parse_json(_header(folder / name)["progress"])
            return int(state["step"])
    return None


def restore(
    path: Path,
    config: Config,
    run: str,
    model: Module,
    optimiser: Optimizer | None = None,
    scaler: GradScaler | None = None,
) -> RunProgress:
    """Load one file of a run into model, optimiser and scaler. The model may be on "meta".

    Raises what ``read`` does, Misplaced where it is of another run or not of this kind, and
    InputError where its tensors don't fit.
    """
    theirs, progress, tensors = read(path)
    differing = difference(theirs, config)
    if differing:
        name, (in_file, here) = next(iter(differing.items()))
        raise Misplaced(
            f"{path} does not fit its configuration: {name} is {in_file} there and {here} here"
        )
    if progress.run not in (run, "") or progress.model_only != (scaler is None):
        content = "the model" if progress.model_only else "all"
        raise Misplaced(f"{path} is not what its name says: it holds {content} of {progress.run}")

    try:
        weights = _named(tensors, "model.")
        empty = any(parameter.is_meta for parameter in model.parameters())
        model.load_state_dict(weights, assign=empty)
        if optimiser is not None:
            state = _moments(_named(tensors, "optimiser."), model)
            groups = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": state, "param_groups": groups})
        if scaler is not None and scaler.is_enabled():
            scales = _named(tensors, "scaler.")
            scaler.load_state_dict({name: value.item() for name, value in scales.items()})
    except UNFIT as error:
        if out_of_memory(error):
            raise InputError(_no_memory(path)) from error
        raise InputError(
            f"{path} does not fit its configuration ({_why(error)}), {OTHER_VERSION}"
        ) from error
    return progress


def _why(error: Exception) -> str:
    """The second line of an error, where PyTorch says what is wrong, else its first, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return shorten(lines[min(1, len(lines) - 1)], 120, placeholder=" ...")


def read(path: Path) -> tuple[Config, RunProgress, dict[str, Tensor]]:
    """Configuration, progress and tensors of a file of ours, whole to the last bit.

    A finished run of an earlier version has no checksum; that is said in a warning.

    Raises Damaged where it is not whole, InputError where it can't be read or is of another
    version.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"can't read {path} ({error.strerror}): try again") from error
    except MemoryError as error:
        raise InputError(_no_memory(path)) from error

    metadata = _metadata(content, path)
    try:
        state = _state(metadata)
        config = Config(**parse_json(metadata["config"]))
        tensors = deserialise(content)
        return config, _progress(state, _named(tensors, "epoch.")), tensors
    except Exception as error:  # of safetensors, or of a file that is right and means harm
        if out_of_memory(error):
            raise InputError(_no_memory(path)) from error
        why = shorten(str(error) or type(error).__name__, 120, placeholder=" ...")
        if _without_a_checksum(metadata):
            raise Damaged(f"{path} is damaged ({why})") from error
        raise InputError(
            f"{path} holds what can't be read here ({why}), {OTHER_VERSION}"
        ) from error


def _no_memory(path: Path) -> str:
    return f"can't read {path} (out of memory): free some, and try again"


def _metadata(content: bytes, path: Path) -> dict[str, str]:
    """What stands in a file's header. Raises Damaged where the file is not whole."""
    try:
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        metadata = dict(parse_json(header)["__metadata__"])
    except UNFIT as error:
        why = shorten(str(error), 120, placeholder=" ...")
        raise Damaged(f"{path} is damaged ({why})") from error
    if _without_a_checksum(metadata):
        warnings.warn(f"{path} was written without a checksum, by an earlier version", stacklevel=3)
    elif not unbroken(content):
        raise Damaged(f"{path} is damaged (its checksum is wrong)")
    return metadata


def _without_a_checksum(metadata: dict[str, str]) -> bool:
    """Whether it is the header of a finished run of an earlier version."""
    return metadata.keys() == {"config", "curves"}


def _state(metadata: dict[str, str]) -> Any:
    """A run's progress as a header says it, beside its tensors."""
    if _without_a_checksum(metadata):
        return {"curves": parse_json(metadata["curves"]), "model_only": True}
    return parse_json(metadata["progress"])


def refuse_changed_data(config: Config, data: str, fingerprint: str, folder: Path) -> None:
    """Raise InputError where the same configuration is half done on data of another fingerprint.

    Of other runs only the headers are read, whatever their size.
    """
    for path in folder.parent.glob(f"{config.name}-e{config.epochs}-s{config.seed}-*/{NEWEST}"):
        if path.with_name("record.json").is_file():
            continue
        try:
            header = _header(path)
            theirs = Config(**parse_json(header["config"]))
            began_on = str(parse_json(header["progress"])["fingerprint"])
        except (OSError, SafetensorError, *UNFIT):
            continue  # told when its own run goes on
        if theirs == config and began_on != fingerprint:
            raise InputError(
                f"{data} has changed since {path.parent} began: its fingerprint was "
                f"{began_on[:16]} and is {fingerprint[:16]}; restore the data to go on, "
                "or delete that folder to train on the new data"
            )


def _header(path: Path) -> dict[str, str]:
    """What stands in a file's header; nothing else of it is read, so damage may go unnoticed."""
    with safe_open(path, "pt") as file:
        return file.metadata()


def _named(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    """The tensors whose name starts so, by the rest of it."""
    named = {}
    for name, value in tensors.items():
        if name.startswith(start):
            named[name.removeprefix(start)] = value
    return named


def _progress(state: object, tensors: dict[str, Tensor]) -> RunProgress:
    fields: dict[str, Any] = validated(SavedProgress, state, "its progress")
    if not tensors.keys() <= {"total", "z", "labels"}:
        raise ValueError(f"it has the tensors {', '.join(tensors)} of an epoch")
    progress = RunProgress(**fields | tensors)
    if progress.total.dim():
        raise ValueError("the sum of its losses is no number")
    return progress


def _moments(tensors: dict[str, Tensor], model: Module) -> dict[int, dict[str, Tensor]]:
    """The optimiser's state by the parameter's place.

    Each value is one number or of the parameter's shape, and in its layout too: a fused optimiser
    walks through the memory of both in step, whatever the strides.
    """
    parameters = list(model.parameters())
    state: dict[int, dict[str, Tensor]] = {}
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
