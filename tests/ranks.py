"""What one of several processes does in tests/test_distributed.py: ``python -m tests.ranks TASK
FOLDER [WORD ...]``.

Everything is float64 and without BatchNorm unless a case says so, so that ranks and one process can
be held equal to 1e-10. Each rank leaves what it found in FOLDER/RANK.pt.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from lib import augmentations, data, distributed, encoders, evaluation, sessions, shares, training
from lib.config import Config, preset
from lib.encoders import Model
from lib.shares import Share
from tests.conftest import arrays

CASES = {
    f"{name} n={n} k={accumulate}": (delta, n, accumulate)
    for n in (13, 8)
    for accumulate in (1, 3)
    for name, delta in {
        "simclr": {"method": "simclr"},
        "supcon": {"method": "supcon"},
        "supcon in": {"method": "supcon", "positives": "in"},
        "simclr cold": {"method": "simclr", "temperature": 0.01},
        "ce": {"method": "ce"},
        "norm": {"method": "simclr", "encoder": "norm"},
    }.items()
}
encoders.ENCODERS["plain"] = lambda stem: (
    nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    ),
    32,
)
encoders.ENCODERS["norm"] = lambda stem: (
    nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    ),
    32,
)


def config(method: str = "simclr", **delta) -> Config:
    return preset(
        "simclr-digits",
        method=method,
        **{
            "encoder": "plain",
            "head": "linear" if method == "ce" else "mlp",
            "embedding": 8,
            "recipe": "supcontrast",
            "data": "toy",
            "epochs": 1,
            "batch_size": 40,
            "drop_last": False,
            "knn_every": 0,
        }
        | delta,
    )


def toy() -> data.Dataset:
    return data.build("toy", **arrays())


def in_double(patch) -> None:
    """Training and evaluation in float64. patch(object, name, value)."""
    build, apply = training.build_model, evaluation.apply
    patch(training, "build_model", lambda *of: build(*of).double())
    patch(training, "views", lambda *of: augmentations.views(*of).double())
    patch(evaluation, "apply", lambda *of: apply(*of).double())
    patch(sessions, "cost", lambda *_: {})


def batch(case: str) -> tuple:
    """Configuration, model, optimiser, views (V, N, 3, S, S) and labels of a case; the optimiser
    stands still."""
    delta, n, accumulate = CASES[case]
    chosen = config(**delta, accumulate=accumulate)
    draw = torch.Generator().manual_seed(n)
    x = torch.randn(chosen.views, n, 3, 8, 8, dtype=torch.float64, generator=draw)
    torch.manual_seed(0)
    model = Model(chosen.encoder, "cifar", chosen.head, chosen.embedding).double()
    return (
        chosen,
        model,
        torch.optim.SGD(model.parameters(), 0.0),
        x,
        torch.randint(4, (n,), generator=draw),
    )


def found(model: nn.Module, loss, z) -> dict:
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return (
        {"loss": loss, "z": z}
        | gradients
        | {name: value.clone() for name, value in model.named_buffers()}
    )


def step(case: str) -> dict:
    """A spread step of this rank: the loss, z, every gradient and buffer."""
    chosen, model, optimiser, x, labels = batch(case)
    share = Share(x.shape[1], chosen.accumulate)
    wrapped = distributed.wrap(model, torch.device("cpu")).train()
    loss, z = training.spread_step(
        chosen,
        wrapped,
        optimiser,
        torch.amp.GradScaler("cpu", enabled=False),
        [x[:, places] for places in share.own],
        labels,
        share,
    )
    return found(model, loss, z)


def steps(folder: Path) -> dict:
    """Every case; and a whole small run of each method, with the images whole, shared out, and on
    the host."""
    made, room = {case: step(case) for case in CASES}, shares.room_for
    for method, nbytes in (
        ("simclr", None),
        ("supcon", 90_000 // distributed.world()),
        ("ce", 1_000),
    ):
        shares.room_for = room if nbytes is None else lambda *_, nbytes=nbytes: nbytes
        run = training.pretrain(config(method), toy(), folder / "runs", "cpu", progress=False)
        made[f"run {method}"] = run.model.state_dict() | {
            "losses": torch.tensor([row["loss"] for row in run.curves])
        }
        made[f"record {method}"] = run.record
    model = training.build_model(config(), toy()).eval()
    recipe = training.recipe_for(config(), toy(), "none")
    for n in (1, 3, 60):
        made[f"features {n}"] = torch.stack(
            evaluation.features(model, toy().test.images[:n], recipe)[1:]
        )
    made["evaluation"] = training.evaluate(run, toy(), "cpu")
    return made


def go_on(folder: Path, stop: str = "99", number: str = "") -> dict:
    """A run that is to be left before the step of that number; or in which the last rank gets a
    signal there."""
    spread_step, ahead = training.spread_step, [int(stop)]

    def counting(*parts):
        ahead[0] -= 1
        if ahead[0] == -1 and not number:
            raise KeyboardInterrupt
        if (
            ahead[0] == -1
            and distributed.rank() == distributed.world() - 1
            and not (folder / "once").exists()
        ):
            (folder / "once").touch()
            os.kill(os.getpid(), int(number))
        return spread_step(*parts)

    training.spread_step, training.CHECKPOINT_SECONDS = counting, 0
    run = training.pretrain(
        config(epochs=2, batch_size=30), toy(), folder / "runs", "cpu", progress=False
    )
    return run.model.state_dict() | {"losses": torch.tensor([row["loss"] for row in run.curves])}


def main(task: str, folder: Path, *words: str) -> None:
    """A task of this rank, in the group that the environment names; an InputError is one line and
    status 1."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    in_double(setattr)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            with distributed.joined("cpu"):
                torch.save(
                    {"steps": steps, "go_on": go_on}[task](folder, *words),
                    folder / f"{distributed.rank()}.pt",
                )
        except training.InputError as error:
            sys.exit(f"error: {error}")


def forked(rank: int, world: int, port: int, task: str, folder: Path, *words: str) -> None:
    """The same in a process that has imported all already; what it says goes to FOLDER/RANK.err."""
    os.environ.update(
        {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(world),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "TORCHELASTIC_RUN_ID": "test",
        }
    )
    with open(folder / f"{rank}.err", "w") as said:
        os.dup2(said.fileno(), 2)
        sys.stderr = open(2, "w", buffering=1, closefd=False)
        main(task, folder, *words)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
