"""Small encoders beside each other: what a step costs, and what cross-entropy learns in equal
minutes.

A step takes a batch of images through their views, forward, backward and the optimiser, as a run
does. With --minutes, each encoder is trained for as many whole epochs as its own rate fits into
them, and judged on validation.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial

import torch

from benchmarks import measure
from lib import data, evaluation, training
from lib.augmentations import views
from lib.config import Config, preset
from lib.data import Dataset
from lib.hardware import choose_device, choose_precision, memory_format, memory_kept
from lib.optimisers import build_optimiser
from lib.runs import recipe_for

PEERS = ()
ENCODERS = ("slim", "resnet9")


def config_of(encoder: str, name: str, precision: str, epochs: int = 1) -> Config:
    """Cross-entropy as it is usually trained on CIFAR-10: crops and flips, SGD at 0.1 for 128
    images."""
    return preset(
        "ce-cifar10-resnet9",
        encoder=encoder,
        data=name,
        recipe="crop-flip",
        batch_size=128,
        epochs=epochs,
        learning_rate=0.1,
        warmup_epochs=0,
        precision=precision,
    )


def step(config: Config, dataset: Dataset, device: torch.device) -> Callable[[], object]:
    """One step on the first images."""
    model = (
        training.build_model(config, dataset)
        .to(device, memory_format=memory_format(device))
        .train()
    )
    parts = (
        build_optimiser(config, model),
        torch.amp.GradScaler(device.type, enabled=config.precision == "float16"),
    )
    pool, recipe = dataset.train[slice(config.batch_size)], recipe_for(config, dataset)
    images, labels = pool.images.to(device), pool.labels.to(device)

    def take() -> None:
        x = views(images, recipe, seed=0, step=0, count=1)
        training.train_step(config, model, *parts, x, labels)

    return take


def learned(config: Config, dataset: Dataset, device: torch.device) -> dict:
    """A run's minutes, and its accuracies on validation by its own classifier and by the linear
    probe on h."""
    with tempfile.TemporaryDirectory() as folder:
        run = training.pretrain(config, dataset, folder, str(device))
    rows = evaluation.validation(
        run.model.to(device), dataset, recipe_for(config, dataset, "none"), config.method
    )
    return {"epochs": config.epochs, "minutes": run.record["seconds"] / 60} | {
        row["probe"]: row["correct"] / row["n"] for row in rows
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks encoders``."""
    parser.add_argument("--data", default="cifar10", help="a data set of labelled images")
    parser.add_argument("--minutes", type=float, help="of training for each encoder (default none)")


def run(args: argparse.Namespace) -> None:
    """Measure, print, keep the record."""
    device, dataset = choose_device(), data.load(args.data)
    of = partial(config_of, name=args.data, precision=choose_precision("auto", device))
    cases = {encoder: step(of(encoder), dataset, device) for encoder in ENCODERS}
    seconds = measure.interleaved(
        cases, args.repetitions, dict.fromkeys(cases, partial(memory_kept, device))
    )
    rows = []
    for encoder, taken in seconds.items():
        config = of(encoder)
        model = training.build_model(config, dataset)
        rate = config.batch_size / measure.spread(taken)["median"]
        row = {
            "encoder": encoder,
            "parameters": sum(p.numel() for p in model.encoder.parameters()),
            "flops_per_view": model.flops(dataset.size[0]),
            "seconds": measure.spread(taken),
            "times_slim": measure.ratios(taken, seconds["slim"]),
            "views_per_second": rate,
        }
        if args.minutes:
            epochs = max(1, round(60 * args.minutes * rate / len(dataset.train)))
            row |= {"learned": learned(of(encoder, epochs=epochs), dataset, device)}
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
        "batch": 128,
    }
    print(measure.keep("encoders", device, rows, [], settings))
