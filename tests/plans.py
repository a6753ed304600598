"""Entries of a plan for tests: one that tries settings, and a place to work on them."""

from pathlib import Path

import numpy as np
import yaml

from tests.conftest import arrays

COMMITTED = {"changed": False}  # what is said of a package that a record can name

# what makes a preset a run of a moment
SMALL = {"data": "toy", "epochs": 1, "batch_size": 32, "images": None, "knn_every": 0}
TEXTS = {
    "about": "a",
    "hypothesis": "b",
    "contrast": "c",
    "metric": "d",
    "margin": 1.0,
    "stopping": "e",
}
TUNING = TEXTS | {
    "name": "tuning",
    "scale": "plan",
    "wanted": ["validation"],
    "seed": 9,
    "growths": 2,
    "trials": {
        "simclr": {
            "preset": "simclr-digits",
            "delta": {"epochs": 1},
            "batch_size": [16, 32],
            "learning_rate": [0.1, 0.2, 0.4, 0.8],
            "then": [{"temperature": 0.2}, {"recipe": "none"}],
            "longer": {"epochs": 2},
        },
        "ce": {
            "preset": "ce-digits",
            "delta": {"epochs": 2},
            "batch_size": [16, 32],
            "learning_rate": [1.0, 2.0, 4.0, 8.0],
            "then": [{"label_smoothing": 0.1}, {"recipe": "crop-flip"}],
            "longer": {"epochs": 4},
            "among": {"recipe": "digits"},
        },
    },
}


def written(folder: Path, *entries: dict) -> Path:
    """A list of experiments in a folder; its path."""
    path = folder / "experiments.yml"
    path.write_text(yaml.dump(list(entries), sort_keys=False), encoding="utf-8")
    return path


def with_toy_data(folder: Path) -> Path:
    """The folder, with a data root in it that has toy, and room for results."""
    (folder / "data").mkdir()
    (folder / "results").mkdir()
    np.savez(folder / "data" / "toy.npz", **arrays())
    return folder
