"""Gradient accumulation with exact negatives: time and memory of a step in chunks beside the step
at once.

A step of SimCLR on a batch that is there, at once and in 2 to 16 chunks. Memory is what the step
adds to a process of its own: on a CPU the resident memory, with the C library's usual handling of
large pieces.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from benchmarks import measure
from benchmarks.training import of_smooth
from lib import shares, training
from lib.config import preset
from lib.hardware import choose_device, choose_precision, memory_format
from lib.optimisers import build_optimiser

PEERS = ()
CHUNKS, SIZE = (1, 2, 4, 8, 16), 32
BATCH, ENCODER = {"cpu": 256, "cuda": 1024}, {"cpu": "slim", "cuda": "resnet50"}


def case(encoder: str, batch: int, accumulate: int, device: torch.device) -> Callable[[], object]:
    """One step, as a run takes it."""
    config = preset("simclr-cifar10", encoder=encoder, data="smooth", accumulate=accumulate)
    config = replace(config, precision=choose_precision("auto", device))
    model = (
        training.build_model(config, of_smooth(SIZE, 16))
        .to(device, memory_format=memory_format(device))
        .train()
    )
    x = torch.randn(2, batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    parts = (
        build_optimiser(config, model),
        torch.amp.GradScaler(device.type, enabled=config.precision == "float16"),
    )
    share = shares.Share(batch, accumulate, device)
    if accumulate == 1:
        return partial(training.train_step, config, model, *parts, x, None)
    return partial(
        training.spread_step,
        config,
        model,
        *parts,
        [x[:, places] for places in share.own],
        None,
        share,
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks accumulation``."""
    parser.add_argument("--batch", type=int, help="images, in two views each")
    parser.add_argument("--encoder", help="a name in lib.encoders")
    parser.add_argument("--memory-of", type=int, metavar="CHUNKS", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    """Measure, print, keep the record."""
    device = choose_device()
    batch, encoder = args.batch or BATCH[device.type], args.encoder or ENCODER[device.type]
    if args.memory_of:
        print(measure.extra_memory(case(encoder, batch, args.memory_of, device), device))
        return
    seconds = measure.interleaved(
        {k: case(encoder, batch, k, device) for k in CHUNKS}, args.repetitions
    )
    rows = []
    for chunks, taken in seconds.items():
        memory = measure.in_own_process(
            "accumulation", "--batch", str(batch), "--encoder", encoder, "--memory-of", str(chunks)
        )
        rows.append(
            {
                "chunks": chunks,
                "batch": batch,
                "encoder": encoder,
                "seconds": measure.spread(taken),
                "times_at_once": measure.ratios(taken, seconds[1]),
                "extra_bytes": memory,
            }
        )
        print(
            f"{chunks:3} chunks  {rows[-1]['seconds']['median']:8.3f} s  "
            f"{rows[-1]['times_at_once']['median']:5.2f} x  {memory / 1e6:8.1f} MB"
        )
    print(
        measure.keep(
            "accumulation", device, rows, [], {"size": SIZE, "repetitions": args.repetitions}
        )
    )
