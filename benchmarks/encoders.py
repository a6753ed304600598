"""Small encoders beside each other: what a step costs, and what is learned in equal minutes.

A step takes a batch of images through their views, forward, backward and the optimiser, as a run
does. With --minutes, each encoder is trained by cross-entropy for as many whole epochs as its own
rate fits into them, and judged on validation.
"""

import argparse
import tempfile
from functools import partial

import torch

from benchmarks import measure
from benchmarks.measure import Case
from benchmarks.training import model_of
from lib import probes
from lib.augmentations import views
from lib.compute.cost import flops
from lib.compute.memory import memory_kept
from lib.config import Config
from lib.data import load
from lib.data.dataset import Dataset
from lib.hardware import choose_device, choose_precision
from lib.presets import preset
from lib.runs import pretrain
from lib.training import Step, build_model, build_optimiser, build_scaler, recipe_for

PEERS = ()
ENCODERS = ("slim", "resnet9")
BATCH = 128


def config_of(encoder: str, name: str, precision: str, epochs: int = 1) -> Config:
    """Cross-entropy as it is usually trained on CIFAR-10: crops and flips, SGD at 0.1.

    name: of the data set.
    """
    return preset(
        "ce-cifar10-resnet9",
        encoder=encoder,
        data=name,
        recipe="crop-flip",
        batch_size=BATCH,
        epochs=epochs,
        learning_rate=0.1,
        warmup_epochs=0,
        precision=precision,
    )


def step(config: Config, dataset: Dataset, device: torch.device) -> Case:
    """One step on the first images."""
    model = model_of(config, dataset, device)
    scaler = build_scaler(config, device)
    take_step = Step(config, model, build_optimiser(config, model), scaler)
    pool = dataset.train[: config.batch_size]
    images, labels = pool.images.to(device), pool.labels.to(device)
    recipe = recipe_for(config, dataset)

    def take() -> None:
        x = views(images, recipe, seed=0, step=0, count=1)
        take_step(x, labels, config.learning_rate)

    return take


def learned(config: Config, dataset: Dataset, device: torch.device) -> dict:
    """A run's minutes, and its accuracies on validation.

    By its own classifier, and by the linear probe and nearest neighbours on h.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = pretrain(config, dataset, folder, str(device))

    recipe = recipe_for(config, dataset, "none")
    answers = probes.ask(run.model.to(device), dataset, recipe, config.method, ["validation"])
    outcome = {"epochs": config.epochs, "minutes": run.record["seconds"] / 60}
    for row in answers["validation"]:
        outcome[row["probe"]] = row["correct"] / row["n"]
    return outcome


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks encoders``."""
    parser.add_argument("--data", default="cifar10", help="a data set of labelled images")
    parser.add_argument("--minutes", type=float, help="of training for each encoder (default none)")


def run(args: argparse.Namespace) -> None:
    """Measure, print, keep the record."""
    device = choose_device()
    dataset = load(args.data)
    precision = choose_precision("auto", device)
    configs = {encoder: config_of(encoder, args.data, precision) for encoder in ENCODERS}
    cases = {encoder: step(config, dataset, device) for encoder, config in configs.items()}
    within = dict.fromkeys(cases, partial(memory_kept, device))
    seconds = measure.interleaved(cases, args.repetitions, within)

    rows = []
    for encoder, taken in seconds.items():
        model = build_model(configs[encoder], dataset)
        rate = BATCH / measure.spread(taken)["median"]
        row = {
            "encoder": encoder,
            "parameters": sum(parameter.numel() for parameter in model.encoder.parameters()),
            "flops_per_view": flops(model, dataset.size[0]),
            "seconds": measure.spread(taken),
            "times_slim": measure.ratios(taken, seconds["slim"]),
            "views_per_second": rate,
        }
        if args.minutes:
            epochs = max(1, round(60 * args.minutes * rate / len(dataset.train)))
            config = config_of(encoder, args.data, precision, epochs)
            row["learned"] = learned(config, dataset, device)
        rows.append(row)
        print(
            f"{encoder:8} {row['parameters'] / 1e6:5.2f} M parameters "
            f"{row['flops_per_view'] / 1e6:5.0f} MFLOP/view "
            f"{rate:6.0f} views/s {row['times_slim']['median']:5.2f} x  {row.get('learned', '')}",
            flush=True,
        )
    settings = {
        "repetitions": args.repetitions,
        "data": args.data,
        "minutes": args.minutes,
        "batch": BATCH,
    }
    print(measure.keep("encoders", device, rows, PEERS, settings, args.results))
