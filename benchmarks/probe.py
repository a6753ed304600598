"""Reading features: the linear probe with its choice of the penalty, and nearest neighbours, beside
the peers.

Linear: 5,000 training features and 2,000 for test, 512-dimensional, of an untrained ResNet-18 that
sees random crops and flips of scikit-learn's handwritten digits. "ours" and "scikit-learn" do the
same: fit up to 8 strengths of the penalty on nine tenths, choose on the rest, refit the chosen one
on all. "UvA" trains 100 epochs by AdamW at one strength with Lightning, as published; "UvA, plain"
takes the same steps in the loop of ``probes.published_probe``. Test accuracy stands beside the
time: speed without it would be no win.

Nearest neighbours: 10,000 random features looked up among 50,000, of 512 dimensions. "product" is
the matrix product of all pairs alone, in the same chunks, into memory given; lightly's is its
online evaluation, called in the same chunks.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from lib import probes
from lib.augmentations import RECIPES, views
from lib.encoders import Model

PEERS = ("scikit-learn", "pytorch-lightning", "lightly")
CLASSES = 10
TRAIN, TEST = 5_000, 2_000  # features for the linear probe
ROWS, LOOKED_UP, D = 50_000, 10_000, 512  # and for the nearest neighbours


def of_digits(train: int, test: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and labels for training, of the first 1,400 digits, and for test, of the other
    397."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None].expand(-1, 3, -1, -1)
    images = (F.interpolate(images, 32, mode="bilinear") * 255 / 16).to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    recipe = replace(RECIPES["crop-flip"], size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        encoder = Model("resnet18").eval().encoder.to(memory_format=torch.channels_last)
    made = []
    for n, rows in ((train, slice(1400)), (test, slice(1400, None))):
        times = -(-n // len(images[rows]))
        x = views(images[rows], recipe, 0, len(made), times).flatten(0, 1)[:n]
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            made += [
                torch.cat([encoder(batch) for batch in x.split(512)]),
                labels[rows].repeat(times)[:n],
            ]
    return tuple(made)


def by_us(x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """``probes.linear_probe``."""
    cut = 9 * len(x) // 10
    probe, _ = probes.linear_probe((x[:cut], y[:cut]), (x[cut:], y[cut:]), CLASSES)
    return probe.predict(test)


def by_scikit_learn(x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """The same with LogisticRegression, its own solver and tolerance, each fit from the last."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, y, test, cut = x.numpy(), y.numpy(), test.numpy(), 9 * len(x) // 10
    scaler, model, right = (
        StandardScaler().fit(x[:cut]),
        LogisticRegression(warm_start=True, max_iter=1000),
        [],
    )
    for l2 in probes.L2_PATH:
        model.set_params(C=1 / (l2 * cut)).fit(scaler.transform(x[:cut]), y[:cut])
        right.append(model.score(scaler.transform(x[cut:]), y[cut:]))
        if max(right) == right[-1]:
            kept = model.coef_.copy(), model.intercept_.copy()
        if len(right) - 1 - int(np.argmax(right)) == probes.PATIENCE:
            break
    model.coef_, model.intercept_ = kept
    scaler = StandardScaler().fit(x)
    model.set_params(C=1 / (probes.L2_PATH[int(np.argmax(right))] * len(x))).fit(
        scaler.transform(x), y
    )
    return torch.from_numpy(model.predict(scaler.transform(test)))


def by_uva(x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """Lightning trains one layer from a DataLoader; without its logs and checkpoints, which would
    cost more time."""
    import pytorch_lightning as lightning

    protocol = probes.PROTOCOLS["uva"]

    class Logistic(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(x.shape[1], CLASSES)

        def configure_optimizers(self):
            optimiser = torch.optim.AdamW(
                self.parameters(), protocol.learning_rate, weight_decay=protocol.weight_decay
            )
            schedule = torch.optim.lr_scheduler.MultiStepLR(
                optimiser, protocol.milestones, protocol.factor
            )
            return [optimiser], [schedule]

        def training_step(self, batch, number):
            logits = self.layer(batch[0])
            self.log("accuracy", (logits.argmax(1) == batch[1]).float().mean())
            return F.cross_entropy(logits, batch[1])

    data = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(data, protocol.batch_size, shuffle=True)
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


def by_uvas_steps(x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """UvA's steps in a plain loop; the last epoch, since the best one is chosen on test."""
    unknown = torch.zeros(len(test), dtype=torch.int64)
    return probes.published_probe(
        probes.PROTOCOLS["uva"], lambda rows, step: x[rows], y, (test, unknown), CLASSES
    )[1]


def neighbours(train: Tensor, labels: Tensor, test: Tensor) -> dict[str, Callable[[], object]]:
    """Every way to find the nearest neighbours, and the bare product."""
    from lightly.utils.benchmarking import knn_predict

    there = train.new_zeros(probes.KNN_CHUNK, len(train))

    def product() -> None:
        for batch in test.split(probes.KNN_CHUNK):
            torch.mm(batch, train.T, out=there[: len(batch)])

    def by_lightly() -> Tensor:
        bank = F.normalize(train, dim=1).T.contiguous()
        return torch.cat(
            [
                knn_predict(batch, bank, labels, CLASSES, knn_k=20, knn_t=0.07)[:, 0]
                for batch in F.normalize(test, dim=1).split(probes.KNN_CHUNK)
            ]
        )

    return {
        "ours": lambda: probes.knn(train, labels, test, CLASSES),
        "product": product,
        "lightly": by_lightly,
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks probe``."""
    parser.add_argument(
        "--scale", type=float, default=1.0, help=argparse.SUPPRESS
    )  # of all sizes, for the tests


def run(args: argparse.Namespace) -> None:
    """Measure, print, keep the record."""
    x, y, test, truth = of_digits(int(args.scale * TRAIN), int(args.scale * TEST))
    made = {}
    functions = {
        "ours": by_us,
        "scikit-learn": by_scikit_learn,
        "UvA": by_uva,
        "UvA, plain": by_uvas_steps,
    }
    linear = {
        name: lambda name=name, f=f: made.update({name: f(x, y, test)})
        for name, f in functions.items()
    }
    rows = rows_of("linear probe", linear, args.repetitions)
    for row in rows:
        row["n"], row["correct"] = len(truth), int((made[row["library"]] == truth).sum())
        print(f"  test accuracy, {row['library']:14} {row['correct'] / row['n']:.4f}")
    draw = torch.Generator().manual_seed(0)
    train, looked_up = (
        torch.randn(int(args.scale * n), D, generator=draw) for n in (ROWS, LOOKED_UP)
    )
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
    print(measure.keep("probe", torch.device("cpu"), rows, PEERS, settings))


def rows_of(what: str, cases: dict[str, Callable[[], object]], repetitions: int) -> list[dict]:
    """Times and ratios of one comparison; printed."""
    seconds, rows = measure.interleaved(cases, repetitions), []
    for library, taken in seconds.items():
        ratio = measure.ratios(taken, seconds["ours"])
        rows.append(
            {
                "case": what,
                "library": library,
                "seconds": measure.spread(taken),
                "times_ours": ratio,
            }
        )
        print(
            f"{what:20}{library:14}{rows[-1]['seconds']['median']:8.2f} s  of ours "
            f"{ratio['median']:.2f} "
            f"[{ratio['min']:.2f}, {ratio['max']:.2f}]",
            flush=True,
        )
    return rows
