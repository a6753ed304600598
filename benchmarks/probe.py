"""Reading features: the linear probe with its choice of the penalty, and nearest neighbours.

Linear: 5,000 training features and 2,000 for test, 512-dimensional, of an untrained ResNet-18 that
sees random crops and flips of scikit-learn's handwritten digits. "ours" and "scikit-learn" do the
same: fit up to 13 strengths of the penalty on nine tenths, until these are fitted, choose on the
rest, refit the chosen one on all. "UvA" trains 100 epochs by AdamW at one strength with Lightning,
as published; "UvA, plain" takes the same steps in the loop of ``probes.published``. Test accuracy
stands beside the time: speed without it would be no win.

Nearest neighbours: 10,000 random features looked up among 50,000, of 512 dimensions. "product" is
the matrix product of all pairs alone, in the same chunks, into memory given; lightly's is its
online evaluation, called in the same chunks.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import measure
from benchmarks.measure import Case
from lib import evaluation
from lib.augmentations import RECIPES, views
from lib.encoders import Model
from lib.evaluation import Labelled
from lib.probes.published import PROTOCOLS, Protocol, features_of, train_probe

PEERS = ("scikit-learn", "pytorch-lightning", "lightly")
CLASSES = 10
TRAIN, TEST = 5_000, 2_000  # features for the linear probe
ROWS, LOOKED_UP, D = 50_000, 10_000, 512  # and for the nearest neighbours

# training features (N, D), their classes (N,) and test features (M, D) -> predictions (M,)
Reader = Callable[[Tensor, Tensor, Tensor], Tensor]


def of_digits(train: int, test: int) -> tuple[Labelled, Labelled]:
    """Features and labels for training, of the first 1,400 digits, and for test, of the others."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None].expand(-1, 3, -1, -1)
    images = (F.interpolate(images, 32, mode="bilinear") * 255 / 16).to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        encoder = Model("resnet18").eval().encoder.to(memory_format=torch.channels_last)

    first, others = slice(1400), slice(1400, None)
    return (
        features_of_views(encoder, images[first], labels[first], train, step=0),
        features_of_views(encoder, images[others], labels[others], test, step=2),
    )


@torch.no_grad()
def features_of_views(
    encoder: torch.nn.Module, images: Tensor, labels: Tensor, n: int, step: int
) -> Labelled:
    """Features (n, D) of random crops and flips, as often as needed, and their labels (n,)."""
    recipe = replace(RECIPES["crop-flip"], size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    times = -(-n // len(images))
    x = views(images, recipe, 0, step, times).flatten(0, 1)[:n]
    x = x.contiguous(memory_format=torch.channels_last)
    features = torch.cat([encoder(batch) for batch in x.split(512)])
    return features, labels.repeat(times)[:n]


def by_us(x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """``evaluation.linear_probe``."""
    cut = 9 * len(x) // 10
    probe, _ = evaluation.linear_probe((x[:cut], y[:cut]), (x[cut:], y[cut:]), CLASSES)
    return probe.predict(test)


def by_scikit_learn(x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """The same with LogisticRegression, its own solver and tolerance, each fit from the last."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.preprocessing import StandardScaler

    rows, classes = x.numpy(), y.numpy()
    cut = 9 * len(rows) // 10
    scaler = StandardScaler().fit(rows[:cut])
    model = LogisticRegression(warm_start=True, max_iter=1000)

    scores: list[float] = []
    fitted = []
    for l2 in evaluation.L2_PATH:
        model.set_params(C=1 / (l2 * cut)).fit(scaler.transform(rows[:cut]), classes[:cut])
        scores.append(model.score(scaler.transform(rows[cut:]), classes[cut:]))
        fitted.append((model.coef_.copy(), model.intercept_.copy()))
        nats = log_loss(classes[:cut], model.predict_proba(scaler.transform(rows[:cut])))
        if nats + l2 / 2 * np.square(model.coef_).sum() < evaluation.FITTED:
            break

    best = int(np.argmax(scores))
    model.coef_, model.intercept_ = fitted[best]
    scaler = StandardScaler().fit(rows)
    model.set_params(C=1 / (evaluation.L2_PATH[best] * len(rows)))
    model.fit(scaler.transform(rows), classes)
    return torch.from_numpy(model.predict(scaler.transform(test.numpy())))


def by_uva(protocol: Protocol, x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """Lightning trains one layer from a DataLoader.

    Without its logs and checkpoints, which would cost more time.
    """
    import pytorch_lightning as lightning

    class Logistic(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(x.shape[1], CLASSES)

        def configure_optimizers(self) -> tuple[list, list]:
            optimiser = torch.optim.AdamW(
                self.parameters(), protocol.learning_rate, weight_decay=protocol.weight_decay
            )
            schedule = torch.optim.lr_scheduler.MultiStepLR(
                optimiser, list(protocol.milestones), protocol.factor
            )
            return [optimiser], [schedule]

        def training_step(self, batch: list[Tensor], number: int) -> Tensor:
            rows, classes = batch
            logits = self.layer(rows)
            self.log("accuracy", (logits.argmax(1) == classes).float().mean())
            return F.cross_entropy(logits, classes)

    loader = DataLoader(TensorDataset(x, y), protocol.batch_size, shuffle=True)
    model = Logistic()
    with measure.quiet():
        lightning.Trainer(
            max_epochs=protocol.epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        ).fit(model, loader)
    with torch.no_grad():
        return model.layer(test).argmax(1)


def by_uvas_steps(protocol: Protocol, x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """UvA's steps in a plain loop; the last epoch, since the best one is chosen on test."""
    unknown = torch.zeros(len(test), dtype=torch.int64)
    _, last, _ = train_probe(protocol, features_of(x), y, (test, unknown), CLASSES)
    return last


def neighbours(train: Tensor, labels: Tensor, test: Tensor) -> dict[str, Case]:
    """Every way to find the nearest neighbours, and the bare product."""
    from lightly.utils.benchmarking import knn_predict

    room = train.new_zeros(evaluation.KNN_CHUNK, len(train))

    def product() -> None:
        for batch in test.split(evaluation.KNN_CHUNK):
            torch.mm(batch, train.T, out=room[: len(batch)])

    def by_lightly() -> Tensor:
        bank = F.normalize(train, dim=1).T.contiguous()
        predicted = []
        for batch in F.normalize(test, dim=1).split(evaluation.KNN_CHUNK):
            ranked = knn_predict(batch, bank, labels, CLASSES, knn_k=20, knn_t=0.07)
            predicted.append(ranked[:, 0])
        return torch.cat(predicted)

    return {
        "ours": lambda: evaluation.knn(train, labels, test, CLASSES),
        "product": product,
        "lightly": by_lightly,
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks probe``; both of them small ones for the tests."""
    parser.add_argument("--scale", type=float, default=1.0, help=argparse.SUPPRESS)  # of all sizes
    parser.add_argument(
        "--epochs", type=measure.count, default=PROTOCOLS["uva"].epochs, help=argparse.SUPPRESS
    )


def run(args: argparse.Namespace) -> None:
    """Measure, print, keep the record."""
    (x, y), (test, truth) = of_digits(int(args.scale * TRAIN), int(args.scale * TEST))
    protocol = replace(PROTOCOLS["uva"], epochs=args.epochs)
    readers: dict[str, Reader] = {
        "ours": by_us,
        "scikit-learn": by_scikit_learn,
        "UvA": partial(by_uva, protocol),
        "UvA, plain": partial(by_uvas_steps, protocol),
    }
    predicted: dict[str, Tensor] = {}

    def read(library: str) -> None:
        predicted[library] = readers[library](x, y, test)

    cases = {library: partial(read, library) for library in readers}
    rows = rows_of("linear probe", cases, args.repetitions)
    for row in rows:
        row["n"] = len(truth)
        row["correct"] = int((predicted[row["library"]] == truth).sum())
        print(f"  test accuracy, {row['library']:14} {row['correct'] / row['n']:.4f}")

    draw = torch.Generator().manual_seed(0)
    train = torch.randn(int(args.scale * ROWS), D, generator=draw)
    looked_up = torch.randn(int(args.scale * LOOKED_UP), D, generator=draw)
    labels = torch.arange(len(train)) % CLASSES
    rows += rows_of("nearest neighbours", neighbours(train, labels, looked_up), args.repetitions)
    settings = {
        "train": len(x),
        "test": len(test),
        "dimensions": D,
        "classes": CLASSES,
        "rows": len(train),
        "looked_up": len(looked_up),
        "repetitions": args.repetitions,
    }
    print(measure.keep("probe", torch.device("cpu"), rows, PEERS, settings, args.results))


def rows_of(name: str, cases: dict[str, Case], repetitions: int) -> list[dict]:
    """Times and ratios of one comparison; printed."""
    seconds = measure.interleaved(cases, repetitions)
    rows = []
    for library, taken in seconds.items():
        ratio = measure.ratios(taken, seconds["ours"])
        row = {
            "case": name,
            "library": library,
            "seconds": measure.spread(taken),
            "times_ours": ratio,
        }
        rows.append(row)
        print(
            f"{name:20}{library:14}{row['seconds']['median']:8.2f} s  of ours "
            f"{measure.in_words(ratio)}",
            flush=True,
        )
    return rows
