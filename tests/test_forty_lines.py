"""Chapter 3's forty lines, as the notebook has them, compute what the package computes."""

import ast
import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lib import losses, training
from lib.augmentations import views
from lib.data import load
from lib.data.dataset import epoch_order
from lib.presets import preset
from tools.book import BOOK

CHAPTER = BOOK.source / "notebooks" / "03_simclr.ipynb"
DEFINED = ("conv", "SimCLR", "nt_xent", "train")
STEPS = 10  # an epoch


def definitions() -> str:
    """The source of the cells that define the forty lines, and nothing else."""
    cells = json.loads(CHAPTER.read_bytes())["cells"]
    shown = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "remove-input" in cell["metadata"].get("tags", []):
            continue
        if any(f"def {name}(" in source or f"class {name}(" in source for name in DEFINED):
            shown.append(source)
    return "\n\n".join(shown)


@pytest.fixture(scope="module")
def chapter() -> dict:
    """Names as in the notebook: what it imports for these cells, and what they define."""
    names = {"F": F, "epoch_order": epoch_order, "nn": nn, "torch": torch, "views": views}
    exec(definitions(), names)
    return names


def test_they_are_forty_lines_that_the_page_shows():
    source = definitions()
    defined = [node.name for node in ast.parse(source).body if hasattr(node, "name")]
    assert tuple(defined) == DEFINED
    assert len([line for line in source.splitlines() if line.strip()]) <= 40


def test_their_loss_is_the_packages(chapter):
    z = torch.randn(2, 16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for temperature in (0.05, 0.5):
        ours = losses.nt_xent(z, temperature)
        theirs = chapter["nt_xent"](z, temperature)
        assert theirs.item() == pytest.approx(ours.item(), abs=1e-12)


def test_ten_steps_in_64_bits_have_the_packages_losses(chapter):
    digits = load("tinted-digits")
    config = preset("simclr-tinted-digits", warmup_epochs=0)
    batches = training.Batches(config, digits, torch.device("cpu"))
    assert len(batches) == STEPS

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = chapter["SimCLR"]().double()
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))  # views are float32
    twin = copy.deepcopy(model).train()

    recipe = training.recipe_for(config, digits)
    theirs = chapter["train"](model, digits.train.images, recipe, epochs=1)

    take_step = training.Step(
        config,
        twin,
        training.build_optimiser(config, twin),
        training.build_scaler(config, torch.device("cpu")),
    )
    ours = [take_step(x, None, config.learning_rate)[0].item() for x, _ in batches.epoch(0)]
    assert theirs == pytest.approx(ours, abs=1e-9)
    assert ours[-1] < ours[0]


class Small(nn.Module):
    """Of views (B, 3, 8, 8)."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

    def forward(self, x):
        h = self.encoder(x)
        return h, h


def test_their_rate_falls_as_the_packages_does(chapter):
    rates = []

    def note(optimiser, *_):
        rates.append(optimiser.param_groups[0]["lr"])

    config = preset("simclr-tinted-digits", size=8, warmup_epochs=0)
    digits = load("tinted-digits")
    recipe = training.recipe_for(config, digits)
    watched = register_optimizer_step_pre_hook(note)
    try:
        chapter["train"](Small(), digits.train.images[:8], recipe, config.epochs, batch=8)
    finally:
        watched.remove()

    expected = [training.learning_rate(config, step, steps=1) for step in range(config.epochs)]
    assert rates == pytest.approx(expected, abs=1e-12)
