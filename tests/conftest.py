"""What several tests share: a toy data set, its runs, and runs that are stopped on the way."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Module

from lib import data
from lib.config import Config
from lib.data.dataset import Dataset
from lib.evaluation import device_of
from lib.methods import METHODS, Loss
from lib.presets import preset
from lib.runs import Run, identity, pretrain
from lib.runs.session import Session, begin
from lib.training import Batches, Step, train
from tools import book

SMALL = {
    "recipe": "supcontrast",
    "epochs": 3,
    "batch_size": 32,
    "data": "toy",
}
# of the classes
COLOURS = (
    (200, 60, 60),
    (60, 200, 60),
    (60, 60, 200),
    (160, 160, 40),
)
# files whose tests look at the built book, or use what it has left
OF_THE_SITE = ("test_site", "test_browser", "test_pdf", "test_solutions")
OF_THE_MACHINE = {"seconds", "views_per_second"}  # what may differ between equal runs


def arrays(n=200, test=60, size=12, classes=4, seed=0, unlabeled=0) -> dict[str, np.ndarray]:
    """Images whose class shows in their colour, with noise: learnable, not trivial."""
    random = np.random.default_rng(seed)

    def images(labels: np.ndarray) -> np.ndarray:
        colour = np.array(COLOURS)[labels % 4, None, None]
        noise = random.normal(0, 40, (len(labels), size, size, 3))
        return np.clip(colour + noise, 0, 255).astype(np.uint8)

    y_train = np.arange(n) % classes
    y_test = np.arange(test) % classes
    made = {
        "x_train": images(y_train),
        "y_train": y_train,
        "x_test": images(y_test),
        "y_test": y_test,
    }
    if unlabeled:
        made["x_unlabeled"] = images(random.integers(0, classes, unlabeled))
    return made


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Until condition() is true; AssertionError where it is not after so long."""
    ending = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ending
        time.sleep(0.05)


def small(method: str = "simclr", **delta) -> Config:
    """A run of seconds on the toy data set: five steps an epoch."""
    return preset(f"{method}-digits", **SMALL | delta)


def by_loss(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A run by a method of our own: its row, and nothing else."""
    row = replace(METHODS["simclr"], loss=loss)
    monkeypatch.setitem(METHODS, "ours", row)
    return replace(small(epochs=30, learning_rate=0.02), method="ours")


def hungry(*_: object) -> Tensor:
    """A loss for which no memory is left."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


def trained(config: Config, dataset: Dataset, folder: Path, **options) -> Run:
    """The run on the CPU, in silence."""
    return pretrain(config, dataset, folder, device="cpu", progress=False, **options)


def begun(config: Config, dataset: Dataset, runs: Path, device: str = "cpu") -> Session:
    """A session of a run, as ``pretrain`` begins it in that folder of runs."""
    folder = runs / identity(config, dataset)
    return begin(config, dataset, folder, torch.device(device), plan={})


def training_of(session: Session, dataset: Dataset) -> Iterator[dict | None]:
    """The session's training: None after every step, and after every epoch its row."""
    config, model = session.config, session.model
    taken = dataset.take(config.images)
    device = device_of(model, taken.train.images)
    batches = Batches(config, taken, device)
    take_step = Step(config, model, session.optimiser, session.scaler)
    return train(config, batches, take_step, session.progress)


def stopped(
    config: Config, dataset: Dataset, runs: Path, steps: int, device: str = "cpu"
) -> Session:
    """A run that nobody ends: so many steps, each with a checkpoint, and then no more."""
    session = begun(config, dataset, runs, device)
    training = training_of(session, dataset)
    while session.progress.step < steps:
        next(training)
        session.save()
    return session


def sessions_of(run: Run) -> list[list[int]]:
    """Of each session of a run the first step and the last."""
    return [segment["steps"] for segment in run.record["segments"]]


def same_weights(one: Module, other: Module) -> bool:
    """Whether two models are equal, to the bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def without_times(curves: list[dict]) -> list[dict]:
    """The rows, times and rates apart."""
    rows = []
    for row in curves:
        comparable = row.keys() - OF_THE_MACHINE
        rows.append({key: row[key] for key in comparable})
    return rows


def same(one: Run, other: Run) -> bool:
    """Whether two runs have the same weights and the same rows, times and rates apart."""
    equal_rows = without_times(one.curves) == without_times(other.curves)
    return equal_rows and same_weights(one.model, other.model)


def pytest_configure(config: pytest.Config) -> None:
    """Processes that share the tests share the cores; all of them hear SIGINT."""
    # a shell's background jobs ignore it, and so would what the tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        threads = max(1, (os.cpu_count() or 1) // worker["workercount"])
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that tests start
        torch.set_num_threads(threads)


@pytest.hookimpl(optionalhook=True)  # xdist may be missing, on a GPU machine say
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """A file's tests go to one process, and those of the built book together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "site" if Path(file).stem in OF_THE_SITE else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of the built book, the longest, first."""
    items.sort(key=lambda item: item.path.stem not in OF_THE_SITE)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test draws the same numbers every time, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def toy() -> Dataset:
    return data.build("toy", **arrays())


@pytest.fixture
def toy_root(tmp_path: Path) -> Path:
    """A data root with toy.npz in it."""
    path = tmp_path / "toy.npz"
    np.savez(path, **arrays(), variant="made up", classes=list("abcd"))
    return tmp_path


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of the built quick book; its chapters are run once for all tests."""
    book.run("quick")
    return book.build("quick").parent
