"""What one of several processes does in tests/test_distributed.py.

``python -m tests.ranks TASK FOLDER [WORD ...]``: each rank leaves what came out in FOLDER/RANK.pt.
Everything is float64 and without BatchNorm unless a case says so, so that ranks and one process can
be held equal to 1e-10.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lib import InputError, evaluation, hardware
from lib.compute import memory
from lib.config import Config
from lib.data import Dataset, build
from lib.distributed.batches import SharedBatches, SharedViews, home_of
from lib.distributed.group import Share, joined, rank, world
from lib.distributed.step import SharedStep
from lib.encoders import ENCODERS, Model
from lib.presets import preset
from lib.runs import identity, pretrain, session
from lib.runs.pretraining import _in_its_precision
from lib.training import (
    Batches,
    Progress,
    Step,
    build_model,
    build_optimiser,
    recipe_for,
    train,
)
from tests.conftest import arrays

CPU = torch.device("cpu")
TWELVE_STEPS = {"epochs": 2, "batch_size": 30}  # of 180 images
EMPTY_RANK = 178  # a batch_size of which the last batch, of 180 images, has two

LOSSES = {
    "simclr": {"method": "simclr"},
    "supcon": {"method": "supcon"},
    "supcon in": {"method": "supcon", "positives": "in"},
    "simclr cold": {"method": "simclr", "temperature": 0.01},
    "ce": {"method": "ce"},
    "norm": {"method": "simclr", "encoder": "norm"},
}
CASES = {
    f"{name} n={n} k={accumulate}": (delta, n, accumulate)
    for n in (13, 8)
    for accumulate in (1, 3)
    for name, delta in LOSSES.items()
}


class Lift(nn.Module):
    """The first layer of the encoders below: float64 from here on, and a place to act in a step."""

    before_step: Callable[[], None] | None = None  # what happens as each step begins

    def forward(self, x: Tensor) -> Tensor:
        if self.training and Lift.before_step is not None:
            Lift.before_step()
        return x.double()


def _encoder(*norm: nn.Module) -> tuple[nn.Module, int]:
    convolution = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    layers = [Lift(), convolution, *norm, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers).double(), 32


ENCODERS["plain"] = lambda stem: _encoder()
ENCODERS["norm"] = lambda stem: _encoder(nn.BatchNorm2d(8))


def config(method: str = "simclr", **delta) -> Config:
    """A run without a head, unless it is ce's: a head is made in float32."""
    small = {
        "encoder": "plain",
        "head": "linear" if method == "ce" else "none",
        "embedding": 8,
        "recipe": "supcontrast",
        "data": "toy",
        "epochs": 1,
        "batch_size": 40,
        "drop_last": False,
        "knn_every": 0,
    }
    return preset("simclr-digits", method=method, **small | delta)


def toy() -> Dataset:
    return build("toy", **arrays())


def result(model: nn.Module, curves: list[dict]) -> dict[str, Tensor]:
    """A run's weights, and the loss of each epoch."""
    return model.state_dict() | {"losses": torch.tensor([row["loss"] for row in curves])}


# --------------------------------------------------------------------------------------------------
# One step of every loss


def batch(case: str) -> tuple[Config, Model, Tensor, Tensor]:
    """Configuration, model, views (V, N, 3, S, S) and labels (N,) of a case."""
    delta, n, accumulate = CASES[case]
    head = "linear" if delta["method"] == "ce" else "mlp"
    chosen = config(**delta, head=head, accumulate=accumulate)
    draw = torch.Generator().manual_seed(n)
    x = torch.randn(chosen.views, n, 3, 8, 8, dtype=torch.float64, generator=draw)
    labels = torch.randint(4, (n,), generator=draw)
    torch.manual_seed(0)
    model = Model(chosen.encoder, "cifar", chosen.head, chosen.embedding).double()
    return chosen, model, x, labels


def after_step(
    kind: type[Step], chosen: Config, model: Model, x: object, labels: Tensor
) -> dict[str, Tensor]:
    """The loss, z, every gradient and buffer of a step that changes no weight."""
    optimiser = torch.optim.SGD(model.parameters(), 0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    loss, z = kind(chosen, model, optimiser, scaler)(x, labels, 0.0)

    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    return {"loss": loss, "z": z} | gradients | buffers


def shared_step(case: str) -> dict[str, Tensor]:
    """A case by this rank, its chunks one after the other."""
    chosen, model, x, labels = batch(case)
    share = Share(x.shape[1], chosen.accumulate)
    chunks = [x[:, places] for places in share.own]
    return after_step(SharedStep, chosen, model, SharedViews(chunks, share), labels)


# --------------------------------------------------------------------------------------------------
# A small run, wherever its images lie


def trained(method: str, home: str | None = None) -> dict[str, Tensor]:
    """A small run. home: of the images that ranks share; None: the plain loop of one process."""
    chosen = config(method)
    model = build_model(chosen, toy()).double()
    optimiser = build_optimiser(chosen, model)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    if home is None:
        batches = Batches(chosen, toy(), CPU)
        step = Step(chosen, model, optimiser, scaler)
    else:
        batches = SharedBatches(chosen, toy(), CPU, home)
        step = SharedStep(chosen, model, optimiser, scaler)

    progress = Progress()
    for _ in train(chosen, batches, step, progress):
        pass
    return result(model, progress.curves)


def pretrained(home: str, folder: Path) -> dict[str, Tensor]:
    """A small run that finds so much room for its images that they come to lie there."""
    images = toy().pool("train").images.nbytes
    rooms = {"device": images, "ranks": images // world() + 1, "host": images // world() - 1}
    before, memory.NO_LIMIT = memory.NO_LIMIT, rooms[home]
    run = pretrain(config("supcon"), toy(), folder / home, "cpu", progress=False)
    memory.NO_LIMIT = before
    return result(run.model, run.curves)


def homes() -> list[tuple[str, str]]:
    """Where images of 1,000 bytes lie where the last rank has just room enough, then less."""
    rooms = (1000, 999, 1000 // world(), 1000 // world() - 1)
    last = rank() == world() - 1
    return [home_of(1000, CPU, room if last else 2**40) for room in rooms]


def refusal(batch_size: int) -> str:
    """What ranks say of a run with such batches; nothing where they take it."""
    try:
        SharedBatches(config(batch_size=batch_size), toy(), CPU, "device")
    except InputError as error:
        return str(error)
    return ""


# --------------------------------------------------------------------------------------------------
# Tasks


def everything(folder: Path) -> dict:
    """Every case, small runs, and a whole run with its record, features and probe."""
    made: dict = {case: shared_step(case) for case in CASES}
    made["homes"] = homes()
    made["refusal"] = refusal(EMPTY_RANK)
    for method, home in (("simclr", "device"), ("supcon", "ranks"), ("ce", "host")):
        made[f"{method} {home}"] = trained(method, home)
    for home in ("device", "ranks", "host"):
        made[f"pretrained {home}"] = pretrained(home, folder)

    run = pretrain(config(), toy(), folder / "runs", "cpu", progress=False)
    made["run"] = result(run.model, run.curves)
    made["record"] = run.record
    made["evaluation"] = run.evaluate(toy(), "cpu")
    made["features"] = features()
    made["settled"] = settled(folder)
    return made


def features() -> dict[int, Tensor]:
    """z (n, D) of one, three and all test images."""
    model = build_model(config(), toy()).eval()
    recipe = recipe_for(config(), toy(), "none")
    images = toy().test.images
    return {n: evaluation.features(model, images[:n], recipe)[1] for n in (1, 3, 60)}


def settled(folder: Path) -> str:
    """The precision of a run that leaves it open, where rank 0 alone sees one in bfloat16."""
    left_open = config(precision="auto")
    if rank() == 0:
        begun = folder / "0" / identity(replace(left_open, precision="bfloat16"), toy())
        begun.mkdir(parents=True)
        (begun / "record.json").touch()
    return _in_its_precision(left_open, toy(), folder / str(rank()), CPU).precision


def go_on(folder: Path, stop: str = "99", number: str = "") -> dict[str, Tensor]:
    """A run that is left before the step of that number, counted from here.

    number: of a signal that the last rank gets there instead, once.
    """
    ahead = int(stop)

    def before_step() -> None:
        nonlocal ahead
        ahead -= 1
        if ahead != -1:
            return
        if not number:
            raise KeyboardInterrupt
        if rank() == world() - 1 and not (folder / "once").exists():
            (folder / "once").touch()
            os.kill(os.getpid(), int(number))

    Lift.before_step = before_step
    session.LATEST = 0
    run = pretrain(config(**TWELVE_STEPS), toy(), folder / "runs", "cpu", progress=False)
    return result(run.model, run.curves)


TASKS = {"everything": everything, "go_on": go_on}


def main(task: str, folder: Path, *words: str) -> None:
    """A task of this rank, in the group that the environment names.

    An InputError is one line and status 1.
    """
    torch.set_num_threads(1)
    hardware.SIDE_ELSEWHERE = 64
    with contextlib.suppress(KeyboardInterrupt):
        try:
            with joined("cpu"):
                torch.save(TASKS[task](folder, *words), folder / f"{rank()}.pt")
        except InputError as error:
            sys.exit(f"error: {error}")


def forked(number: int, ranks: int, port: int, task: str, folder: Path, *words: str) -> None:
    """The same in a process that has imported all already; its stderr goes to FOLDER/RANK.err."""
    os.environ.update(
        {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(ranks),
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "TORCHELASTIC_RUN_ID": "test",
        }
    )
    with open(folder / f"{number}.err", "w", encoding="utf-8") as errors:
        os.dup2(errors.fileno(), 2)
        sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)
        main(task, folder, *words)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
