"""Training: a step of SimCLR beside the same step in plain PyTorch, and whole runs beside the usual
ways to write them.

A step is forward, NT-Xent, backward and optimiser on views that are there. "ours" is
``training.train_step`` in the midst of a run, in float32 or bfloat16; "plain" the same in
contiguous float32, with the dense loss; "compiled" (on GPUs) is ours through torch.compile.
"product" is a product of two square matrices, whose rate is the best that the device can do: the
share of it says how near a step is to that.

A whole run is two epochs, views included. "ours" is ``training.pretrain`` with its checkpoints and
its record, in float32 and in the precision that suits the device, where that is another. "plain
loop" has PIL views from a DataLoader whose workers are already running, as in SupContrast;
"Lightning" the same views in a LightningModule, as in UvA's tutorial. All have the same encoder,
batches, recipe and optimiser.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.loss import dense_nt_xent
from benchmarks.views import WORKERS, Pairs, smooth
from lib import data, training
from lib.config import Config, preset
from lib.hardware import (
    SIDE,
    SIDE_ELSEWHERE,
    choose_device,
    choose_precision,
    memory_format,
    memory_kept,
)
from lib.optimisers import build_optimiser

PEERS = ("pytorch-lightning", "pillow")
IMAGES, BATCH, EPOCHS = {"cpu": 512, "cuda": 8192}, {"cpu": 128, "cuda": 512}, 2
CASES = {
    "32x32, SupContrast's recipe": (32, "simclr-cifar10-r18"),
    "96x96, UvA's recipe": (96, "simclr-stl10"),
}
ENCODERS = {"cpu": ("resnet18", "slim"), "cuda": ("resnet18", "resnet50")}


def steps(
    config: Config, size: int, batch: int, device: torch.device
) -> dict[str, Callable[[], object]]:
    """One training step on the same views, in every way; and the product of square matrices in both
    precisions."""
    if device.type == "cuda":
        torch.compiler.reset()  # each case compiles anew, for its own size
    dataset = of_smooth(size, batch)
    x = torch.randn(2, batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)

    def step(precision: str, wrap=lambda model: model) -> Callable[[], object]:
        model = (
            training.build_model(config, dataset)
            .to(device, memory_format=memory_format(device))
            .train()
        )
        return partial(
            training.train_step,
            replace(config, precision=precision),
            wrap(model),
            build_optimiser(config, model),
            torch.amp.GradScaler(device.type, enabled=False),
            x,
            None,
        )

    made = {}
    for precision in ("float32", "bfloat16"):
        made[f"ours {precision}"] = step(precision)
        if device.type == "cuda":
            made[f"compiled {precision}"] = step(precision, partial(torch.compile, dynamic=False))
        square = torch.randn([SIDE.get(device.type, SIDE_ELSEWHERE)] * 2, device=device).to(
            getattr(torch, precision)
        )
        made[f"product {precision}"] = partial(torch.mm, square, square)
    model = training.build_model(config, dataset).to(device).train()
    return made | {"plain float32": partial(plain_step, model, plain_optimiser(config, model), x)}


def plain_optimiser(config: Config, model: torch.nn.Module) -> torch.optim.Optimizer:
    """As it is usually built."""
    if config.optimiser == "adamw":
        return torch.optim.AdamW(
            model.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
    return torch.optim.SGD(
        model.parameters(),
        config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def plain_step(model: torch.nn.Module, optimiser: torch.optim.Optimizer, x: Tensor) -> Tensor:
    """One step as it is usually written, at dense_nt_xent's temperature. x: (V, N, 3, S, S)."""
    loss = dense_nt_xent(model(x.flatten(0, 1))[1].unflatten(0, x.shape[:2]))
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss


def of_smooth(size: int, images: int) -> data.Dataset:
    """A data set of smooth random images."""
    x = smooth(images, size).permute(0, 2, 3, 1).numpy()
    y = (torch.arange(images) % 4).numpy()
    return data.build("smooth", x, y, x[:8], y[:8])


def ours(config: Config, dataset: data.Dataset, precision: str) -> None:
    """A whole run, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        training.pretrain(replace(config, precision=precision), dataset, folder, progress=False)


def plain_loop(config: Config, dataset: data.Dataset, loader: torch.utils.data.DataLoader) -> None:
    """Epochs of plain steps; the loss is looked at after each, as usual for a running mean."""
    device = choose_device()
    model = training.build_model(config, dataset).to(device).train()
    optimiser = plain_optimiser(config, model)
    for _ in range(config.epochs):
        for views in loader:
            plain_step(model, optimiser, torch.stack(views).to(device)).item()


def by_lightning(
    config: Config, dataset: data.Dataset, loader: torch.utils.data.DataLoader
) -> None:
    """The same by a LightningModule, without its logs and checkpoints, which would cost more
    time."""
    import pytorch_lightning as lightning

    class SimCLR(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = training.build_model(config, dataset)

        def configure_optimizers(self):
            return plain_optimiser(config, self)

        def training_step(self, views, number):
            x = torch.stack(views)
            loss = dense_nt_xent(self.model(x.flatten(0, 1))[1].unflatten(0, x.shape[:2]))
            self.log("loss", loss)
            return loss

    with measure.quiet():
        lightning.Trainer(
            max_epochs=config.epochs,
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        ).fit(SimCLR(), loader)


def runs(config: Config, size: int, images: int) -> dict[str, Callable[[], object]]:
    """Every way to train."""
    dataset = of_smooth(size, images)
    recipe = training.recipe_for(config, dataset)
    loader = torch.utils.data.DataLoader(
        Pairs(dataset.pool(config.pool).images, recipe),
        config.batch_size,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        drop_last=config.drop_last,
    )
    precisions = dict.fromkeys(["float32", choose_precision("auto", choose_device())])
    return {
        **{
            f"ours {precision}": partial(ours, config, dataset, precision)
            for precision in precisions
        },
        "plain loop": partial(plain_loop, config, dataset, loader),
        "Lightning": partial(by_lightning, config, dataset, loader),
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks training``."""
    parser.add_argument("--images", type=int, help=argparse.SUPPRESS)  # small, for the tests
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--encoders", nargs="+", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    """Measure, print, keep the record."""
    device, rows = choose_device(), []
    images, batch = args.images or IMAGES[device.type], args.batch or BATCH[device.type]
    for what, (size, name) in CASES.items():
        for encoder in args.encoders or ENCODERS[device.type]:
            config = preset(
                name,
                data="smooth",
                encoder=encoder,
                size=size,
                batch_size=batch,
                epochs=EPOCHS,
                pool="train+val",
                precision="float32",
            )
            cases, within = steps(config, size, batch, device), partial(memory_kept, device)
            seconds = measure.interleaved(
                cases,
                args.repetitions,
                {name: within for name in cases if not name.startswith(("plain", "product"))},
            )
            about = {
                "case": what,
                "encoder": encoder,
                "flops_per_view": training.build_model(config, of_smooth(size, 16)).flops(size),
            }
            rows += rows_of(about | {"kind": "step", "views": 2 * batch}, seconds, device)
            seconds = measure.interleaved(runs(config, size, images), args.repetitions)
            views = 2 * EPOCHS * (images // batch * batch if config.drop_last else images)
            rows += rows_of(about | {"kind": "run", "views": views}, seconds, device)
    settings = {
        "images": images,
        "batch": batch,
        "epochs": EPOCHS,
        "workers": WORKERS,
        "repetitions": args.repetitions,
    }
    print(measure.keep("training", device, rows, PEERS, settings))


def rows_of(about: dict, seconds: dict[str, list[float]], device: torch.device) -> list[dict]:
    """Times, rates and ratios of one comparison; printed."""
    rows, of_product = [], 2 * SIDE.get(device.type, SIDE_ELSEWHERE) ** 3
    for way, taken in seconds.items():
        flops = (
            of_product if way.startswith("product") else about["flops_per_view"] * about["views"]
        )
        row = about | {
            "way": way,
            "seconds": measure.spread(taken),
            "flops_per_second": measure.spread([flops / second for second in taken]),
            "times_ours": measure.ratios(taken, seconds["ours float32"]),
        }
        product = f"product {way.split()[-1]}"
        if product in seconds and way != product:
            shares = [flops / of_product * p / second for p, second in zip(seconds[product], taken)]
            row["share_of_matrix_rate"] = measure.spread(shares)
        rows.append(row)
        ratio, share = row["times_ours"], row.get("share_of_matrix_rate")
        print(
            f"{about['case']:28} {about['encoder']:9} {about['kind']:5} {way:17} "
            f"{row['seconds']['median']:8.3f} s "
            f"{row['flops_per_second']['median'] / 1e9:7,.0f} GFLOP/s  of ours "
            f"{ratio['median']:.2f} "
            f"[{ratio['min']:.2f}, {ratio['max']:.2f}]"
            + (f"  share {share['median']:.2f}" if share else ""),
            flush=True,
        )
    return rows
