"""The encoder trained further with few labels, beside the same network from scratch.

The head is thrown away and a linear classifier stands on h (SimCLR, arXiv 2002.05709, section 4.1
and appendix B.5, fine-tunes with more of its head kept). Both are trained by the loop of
``lib.training`` with cross-entropy, the same steps, augmentation and rates. Where the curve of one
crosses that of the other, labels are worth as much as pretraining. The frozen h is probed with the
same labels, for who asks whether further training pays.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lib.config import Config
from lib.data.dataset import Dataset, subsets
from lib.evaluation import classified, cross_validated_probe
from lib.hardware import memory_format
from lib.probes.few_labels import right, row, sizes
from lib.probes.seen import Seen
from lib.progress import bar as progress_bar
from lib.training import Batches, Progress, Step, build_optimiser, build_scaler, train

PER_CLASS = (10, 20, 50, 100, 400)  # labels of each class; few_labels has these sizes too
SUBSETS = 5  # random ones of each size, the same for every run
RATES = (0.01, 0.03, 0.1, 0.3)  # of SGD; the best on val, by the first subset of a size
STEPS, EPOCHS = 500, 20  # both at least, for every size
BATCH = 64  # images, where there are so many

Build = Callable[[], nn.Module]  # an encoder to start from


class Classifier(nn.Module):
    """A linear layer on an encoder's h; z are its logits."""

    def __init__(self, encoder: nn.Module, width: int, classes: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (N, 3, S, S). Returns h (N, width) and logits (N, classes)."""
        h = self.encoder(x)
        return h, self.head(h)


def ask(seen: Seen) -> list[dict]:
    """PER_CLASS labels of every class, as many sizes as the training images allow.

    All labels are a run of their own, with cross-entropy. Test images are looked at once, after the
    last step. The labels of val, more than are trained on, choose the rate, for both starts alike;
    the penalty of the probe is chosen within the few. Among ranks each trains everything. Returns
    one row for each size, subset and start ("fine-tuned", and "from scratch" where seen knows how
    its encoder began), and for each probe of the same labels ("probed"): features, probe,
    per_class, labels, subset, n, correct, and of a start learning_rate.
    """
    starts: dict[str, Build] = {"fine-tuned": lambda: copy.deepcopy(seen.model.encoder)}
    learns = any(weight.requires_grad for weight in seen.model.encoder.parameters())
    if learns and seen.fresh is not None:
        starts["from scratch"] = seen.fresh

    sets = label_sets(seen.dataset)
    fits = len(starts) * sum(len(RATES) + len(drawn) for drawn in sets.values())
    rows = []
    with progress_bar(total=fits, desc="fine-tuning", unit="fit", delay=2, leave=False) as bar:
        for per_class, drawn in sets.items():
            for start, build in starts.items():
                rows += _rows_of_start(seen, start, build, per_class, drawn, bar)
            for number, places in enumerate(drawn):
                correct = _probed(seen, places)
                subset = f"random {number}"
                rows.append(row(seen, "probed", per_class, subset, len(places), correct))
    return rows


def _rows_of_start(
    seen: Seen, start: str, build: Build, per_class: int, drawn: list[Tensor], bar: tqdm
) -> list[dict]:
    """The rows of a start, one for each subset of a size; those of an earlier session are kept."""
    known = _known(seen, start, per_class)
    if known:
        rate = next(iter(known.values()))["learning_rate"]
    else:
        rate = best_rate(seen, build, drawn[0])
    bar.update(len(RATES))

    rows = []
    for number, places in enumerate(drawn):
        subset = f"random {number}"
        if subset not in known:
            model = tuned(seen, build, places, rate)
            correct = classified(model, seen.dataset.test, seen.recipe)
            tested = row(seen, start, per_class, subset, len(places), correct)
            known[subset] = tested | {"learning_rate": rate}
            seen.unfinished.add(known[subset])
        rows.append(known[subset])
        bar.update()
    return rows


def _probed(seen: Seen, places: Tensor) -> int:
    """How many test images the linear probe gets right that is fitted on some rows of train."""
    h, y = seen.labelled("h", "train")
    places = places.to(h.device)
    test, _ = seen.labelled("h", "test")
    probe = cross_validated_probe(h[places], y[places], seen.classes)
    return right(seen, probe.predict(test))


def _known(seen: Seen, start: str, per_class: int) -> dict[str, dict]:
    """The rows that an earlier session found, by subset."""
    rows = seen.unfinished.rows
    of_both = [row for row in rows if (row["probe"], row["per_class"]) == (start, per_class)]
    return {row["subset"]: row for row in of_both}


def label_sets(dataset: Dataset) -> dict[int, list[Tensor]]:
    """Random subsets of the training images, rows each, by labels a class.

    Raises InputError where the smallest class has too few images for any.
    """
    numbers = sizes(dataset, dataset.train, PER_CLASS)
    return {number: subsets(dataset.train, number, SUBSETS) for number in numbers}


def best_rate(seen: Seen, build: Build, places: Tensor) -> float:
    """The rate of RATES that does best on val; of equals the lowest."""
    scores = []
    for rate in RATES:
        model = tuned(seen, build, places, rate)
        scores.append(classified(model, seen.dataset.val, seen.recipe))
    return RATES[scores.index(max(scores))]


def tuned(seen: Seen, build: Build, places: Tensor, rate: float) -> Classifier:
    """A classifier trained from a start on some rows of train; on the model's device."""
    h, _ = seen.pair("val")
    dataset = replace(seen.dataset, train=seen.dataset.train[places])
    config = config_for(seen, dataset, rate)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = Classifier(build(), h.shape[1], seen.classes)

    model = model.to(memory_format=memory_format(h.device)).to(h.device)
    optimiser = build_optimiser(config, model)
    assert optimiser is not None  # the linear layer has parameters
    take_step = Step(config, model, optimiser, build_scaler(config, h.device))
    for _ in train(config, Batches(config, dataset, h.device), take_step, Progress()):
        pass
    return model.eval()


def config_for(seen: Seen, dataset: Dataset, rate: float) -> Config:
    """How the labelled images of dataset.train are trained on. The encoder is another matter."""
    batch_size = min(BATCH, len(dataset.train))
    steps = max(1, len(dataset.train) // batch_size)  # of an epoch
    return Config(
        name="fine-tuning",
        method="ce",
        data=dataset.name,
        recipe="crop-flip",
        epochs=max(EPOCHS, math.ceil(STEPS / steps)),
        batch_size=batch_size,
        learning_rate=rate,
        weight_decay=5e-4,
        pool="train",
        size=seen.recipe.size,
        mean=seen.recipe.mean,
        std=seen.recipe.std,
        head="linear",
        drop_last=True,
        seed=seen.seed,
    )
