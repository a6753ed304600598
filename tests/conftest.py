import time

import numpy as np
import pytest

from lib import book, data


def arrays(n=200, test=60, size=12, classes=4, seed=0, unlabeled=0):
    """Small images whose class shows in their colour and brightness, with noise: learnable, not
    trivial."""
    random = np.random.default_rng(seed)

    def images(labels):
        base = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [160, 160, 40]])[labels % 4]
        noise = random.normal(0, 40, (len(labels), size, size, 3))
        return np.clip(base[:, None, None] + noise, 0, 255).astype(np.uint8)

    y_train, y_test = np.arange(n) % classes, np.arange(test) % classes
    made = {
        "x_train": images(y_train),
        "y_train": y_train,
        "x_test": images(y_test),
        "y_test": y_test,
    }
    return made | (
        {"x_unlabeled": images(random.integers(0, classes, unlabeled))} if unlabeled else {}
    )


def wait_for(condition, seconds=60):
    """Until condition() is true; AssertionError where it is not after so long."""
    ending = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ending
        time.sleep(0.05)


@pytest.fixture
def toy():
    return data.build("toy", **arrays())


@pytest.fixture
def toy_root(tmp_path):
    """A data root with toy.npz in it."""
    np.savez(tmp_path / "toy.npz", **arrays(), variant="made up", classes=["a", "b", "c", "d"])
    return tmp_path


@pytest.fixture(scope="session")
def site():
    """The folder of the built quick book: its chapters are run where they have not been, once for
    all tests."""
    book.run("quick")
    return book.build("quick").parent
