"""Training: a step of SimCLR, and whole runs, beside the same in plain PyTorch and Lightning.

A step is forward, NT-Xent, backward and optimiser on views that are there. "ours" is
``training.Step`` in the midst of a run, in float32 or bfloat16; "plain" the same in contiguous
float32, with the dense loss; "compiled" (on GPUs, in the precision that suits them) is ours through
torch.compile. "product" is a product of two square matrices, whose rate is the best that the device
can do: the share of it says how near a step is to that.

A whole run is two epochs, views included. "ours" is ``runs.pretrain`` with its checkpoints and its
record, in float32 and in the precision that suits the device, where that is another. "plain loop"
has PIL views from a DataLoader whose workers, one for each core, are already running, as in
SupContrast; "Lightning" the same views in a LightningModule, as in UvA's tutorial. All have the
same encoder, batches, recipe and optimiser.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import measure
from benchmarks.loss import dense_nt_xent
from benchmarks.measure import Case
from benchmarks.views import Pairs, smooth
from lib.compute.cost import flops
from lib.compute.memory import memory_kept
from lib.config import Config
from lib.data import Dataset, build
from lib.encoders import Model
from lib.hardware import SIDE, SIDE_ELSEWHERE, choose_device, choose_precision, memory_format
from lib.presets import preset
from lib.runs import pretrain
from lib.training import Step, build_model, build_optimiser, build_scaler, recipe_for

PEERS = ("pytorch-lightning", "pillow")
IMAGES = {"cpu": 512, "cuda": 8192}
BATCH = {"cpu": 128, "cuda": 512}
WORKERS = os.cpu_count() or 1
EPOCHS = 2
RATE = 1e-4  # nothing is to be learned, and there is nothing to learn: higher ones can collapse
CASES = {
    "32x32, SupContrast's recipe": (32, "simclr-cifar10-r18"),
    "96x96, UvA's recipe": (96, "simclr-stl10"),
}
ENCODERS = {"cpu": ("resnet18", "slim"), "cuda": ("resnet18", "resnet50")}


def step_of(
    config: Config,
    model: Model,
    x: Tensor,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> Case:
    """One step of a run on views x (V, N, 3, S, S), at the learning rate of its preset.

    wrap: what stands in the place of the model.
    """
    optimiser = build_optimiser(config, model)
    scaler = build_scaler(config, x.device)
    take_step = Step(config, wrap(model), optimiser, scaler)
    return partial(take_step, x, None, config.learning_rate)


def model_of(config: Config, dataset: Dataset, device: torch.device) -> Model:
    """The model in training, as a run has it on the device."""
    model = build_model(config, dataset).to(device, memory_format=memory_format(device))
    return model.train()


def steps(config: Config, size: int, batch: int, device: torch.device) -> dict[str, Case]:
    """One training step on the same views, in every way; and the product of square matrices."""
    if device.type == "cuda":
        torch.compiler.reset()  # each case compiles anew, for its own size
    dataset = of_smooth(size, batch)
    x = torch.randn(2, batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    side = SIDE.get(device.type, SIDE_ELSEWHERE)

    made: dict[str, Case] = {}
    fast = choose_precision("auto", device)
    for precision in dict.fromkeys(("float32", "bfloat16", fast)):
        precise = replace(config, precision=precision)
        made[f"ours {precision}"] = step_of(precise, model_of(config, dataset, device), x)
        if device.type == "cuda" and precision == fast:
            compiled = partial(torch.compile, dynamic=False)
            model = model_of(config, dataset, device)
            made[f"compiled {precision}"] = step_of(precise, model, x, wrap=compiled)
        square = torch.randn(side, side, device=device).to(getattr(torch, precision))
        made[f"product {precision}"] = partial(torch.mm, square, square)

    model = build_model(config, dataset).to(device).train()
    made["plain float32"] = partial(plain_step, model, plain_optimiser(config, model), x)
    return made


def plain_optimiser(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """As it is usually built."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimiser == "adamw":
        return torch.optim.AdamW(model.parameters(), rate, weight_decay=decay)
    return torch.optim.SGD(model.parameters(), rate, momentum=config.momentum, weight_decay=decay)


def plain_loss(model: nn.Module, x: Tensor) -> Tensor:
    """dense_nt_xent of views x (V, N, 3, S, S), at its temperature."""
    _, z = model(x.flatten(0, 1))
    return dense_nt_xent(z.unflatten(0, x.shape[:2]))


def plain_step(model: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor) -> Tensor:
    """One step as it is usually written. x: (V, N, 3, S, S). Returns the loss."""
    loss = plain_loss(model, x)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss


def of_smooth(size: int, images: int) -> Dataset:
    """A data set of smooth random images."""
    x = smooth(images, size).permute(0, 2, 3, 1).numpy()
    y = (torch.arange(images) % 4).numpy()
    return build("smooth", x, y, x[:8], y[:8])


def ours(config: Config, dataset: Dataset, precision: str) -> None:
    """A whole run, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        pretrain(replace(config, precision=precision), dataset, folder, progress=False)


def plain_loop(config: Config, dataset: Dataset, loader: DataLoader) -> None:
    """Epochs of plain steps; each one's loss is looked at, as usual for a running mean."""
    device = choose_device()
    model = build_model(config, dataset).to(device).train()
    optimiser = plain_optimiser(config, model)

    for _ in range(config.epochs):
        for views in loader:
            plain_step(model, optimiser, torch.stack(views).to(device)).item()


def by_lightning(config: Config, dataset: Dataset, loader: DataLoader) -> None:
    """The same by a LightningModule.

    Without its logs and checkpoints, which would cost more time.
    """
    import pytorch_lightning as lightning

    class SimCLR(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = build_model(config, dataset)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return plain_optimiser(config, self)

        def training_step(self, views: list[Tensor], number: int) -> Tensor:
            loss = plain_loss(self.model, torch.stack(views))
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


def runs(config: Config, size: int, images: int) -> dict[str, Case]:
    """Every way to train."""
    dataset = of_smooth(size, images)
    loader = DataLoader(
        Pairs(dataset.pool(config.pool).images, recipe_for(config, dataset)),
        config.batch_size,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        drop_last=config.drop_last,
    )
    made: dict[str, Case] = {}
    for precision in ("float32", choose_precision("auto", choose_device())):
        made[f"ours {precision}"] = partial(ours, config, dataset, precision)
    made["plain loop"] = partial(plain_loop, config, dataset, loader)
    made["Lightning"] = partial(by_lightning, config, dataset, loader)
    return made


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks training``; the hidden ones are for the tests."""
    sides = [size for size, _ in CASES.values()]
    parser.add_argument("--side", type=int, choices=sides, help="of the images; default both")
    parser.add_argument("--images", type=measure.count, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=measure.count, help=argparse.SUPPRESS)
    parser.add_argument("--encoders", nargs="+", metavar="NAME", help="default two, by the device")


def run(args: argparse.Namespace) -> None:
    """Measure, print, keep the record."""
    device = choose_device()
    images = args.images or IMAGES[device.type]
    batch = args.batch or BATCH[device.type]
    settings = {
        "images": images,
        "batch": batch,
        "epochs": EPOCHS,
        "workers": WORKERS,
        "repetitions": args.repetitions,
    }

    def keep(rows: list[dict]) -> Path:
        return measure.keep("training", device, rows, PEERS, settings, args.results)

    rows: list[dict] = []
    for case, (size, name) in CASES.items():
        if args.side not in (None, size):
            continue
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
                learning_rate=RATE,
                warmup_epochs=0,
            )
            model = build_model(config, of_smooth(size, 16))
            about = {
                "case": case,
                "encoder": encoder,
                "flops_per_view": flops(model, size),
            }

            rows += rows_of_steps(about, config, size, device, args.repetitions)
            keep(rows)
            rows += rows_of_runs(about, config, size, images, device, args.repetitions)
            path = keep(rows)
    print(path)


def rows_of_steps(
    about: dict, config: Config, size: int, device: torch.device, repetitions: int
) -> list[dict]:
    """The steps beside each other; ours in the midst of a run, where freed memory is kept."""
    batch = config.batch_size
    cases = steps(config, size, batch, device)
    within = {}
    for name in cases:
        if name.startswith(("ours", "compiled")):
            within[name] = partial(memory_kept, device)
    seconds = measure.interleaved(cases, repetitions, within)
    return rows_of(about | {"kind": "step", "views": 2 * batch}, seconds, device)


def rows_of_runs(
    about: dict, config: Config, size: int, images: int, device: torch.device, repetitions: int
) -> list[dict]:
    """The whole runs beside each other."""
    seconds = measure.interleaved(runs(config, size, images), repetitions)
    if config.drop_last:
        images -= images % config.batch_size
    return rows_of(about | {"kind": "run", "views": 2 * EPOCHS * images}, seconds, device)


def rows_of(about: dict, seconds: dict[str, list[float]], device: torch.device) -> list[dict]:
    """Times, rates and ratios of one comparison; printed."""
    flops_of_product = 2 * SIDE.get(device.type, SIDE_ELSEWHERE) ** 3
    rows = []
    for way, taken in seconds.items():
        flops_of_way = about["flops_per_view"] * about["views"]
        if way.startswith("product"):
            flops_of_way = flops_of_product
        row = about | {
            "way": way,
            "seconds": measure.spread(taken),
            "flops_per_second": measure.spread([flops_of_way / second for second in taken]),
            "times_ours": measure.ratios(taken, seconds["ours float32"]),
        }

        product = f"product {way.split()[-1]}"  # in the same precision
        if product in seconds and way != product:
            times = zip(seconds[product], taken)
            shares = [flops_of_way / flops_of_product * bare / own for bare, own in times]
            row["share_of_matrix_rate"] = measure.spread(shares)
        rows.append(row)
        show(row)
    return rows


def show(row: dict) -> None:
    share = ""
    if "share_of_matrix_rate" in row:
        share = f"  share {row['share_of_matrix_rate']['median']:.2f}"
    print(
        f"{row['case']:28} {row['encoder']:9} {row['kind']:5} {row['way']:17} "
        f"{row['seconds']['median']:8.3f} s "
        f"{row['flops_per_second']['median'] / 1e9:7,.0f} GFLOP/s  of ours "
        f"{measure.in_words(row['times_ours'])}{share}",
        flush=True,
    )
