"""Gradient accumulation with exact negatives: a step in chunks beside the step at once.

A step of SimCLR on a batch that is there, at once and in 2 to 16 chunks: its time, and its memory,
which is what the step adds to a process of its own: on a CPU the resident memory, with the C
library's usual handling of large pieces.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from benchmarks import measure
from benchmarks.measure import Case
from benchmarks.training import model_of, of_smooth, step_of
from lib.distributed.batches import SharedViews
from lib.distributed.group import Share
from lib.distributed.step import SharedStep
from lib.hardware import choose_device, choose_precision
from lib.presets import preset
from lib.training import build_optimiser, build_scaler

PEERS = ()
CHUNKS = (1, 2, 4, 8, 16)
SIZE = 32
BATCH = {"cpu": 256, "cuda": 1024}
ENCODER = {"cpu": "slim", "cuda": "resnet50"}


def case(encoder: str, batch: int, accumulate: int, device: torch.device) -> Case:
    """One step, as a run takes it."""
    config = preset("simclr-cifar10", encoder=encoder, data="smooth", accumulate=accumulate)
    config = replace(config, precision=choose_precision("auto", device))
    model = model_of(config, of_smooth(SIZE, 16), device)
    x = torch.randn(2, batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    if accumulate == 1:
        return step_of(config, model, x)

    optimiser = build_optimiser(config, model)
    scaler = build_scaler(config, device)
    take_step = SharedStep(config, model, optimiser, scaler)
    share = Share(batch, accumulate, device)
    views = SharedViews([x[:, places] for places in share.own], share)
    return partial(take_step, views, None, config.learning_rate)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks accumulation``."""
    parser.add_argument("--batch", type=measure.count, help="images, in two views each")
    parser.add_argument("--encoder", help="a name in lib.encoders")
    parser.add_argument("--memory-of", type=measure.count, metavar="CHUNKS", help=argparse.SUPPRESS)


def run(args: argparse.Namespace, memory: Callable[..., int] = measure.in_own_process) -> None:
    """Measure, print, keep the record. memory: of a step, by the command that measures it."""
    device = choose_device()
    batch = args.batch or BATCH[device.type]
    encoder = args.encoder or ENCODER[device.type]
    if args.memory_of:
        print(measure.extra_memory(case(encoder, batch, args.memory_of, device), device))
        return

    cases = {str(chunks): case(encoder, batch, chunks, device) for chunks in CHUNKS}
    seconds = measure.interleaved(cases, args.repetitions)
    command = ("accumulation", "--batch", str(batch), "--encoder", encoder, "--memory-of")
    rows = []
    for chunks, taken in seconds.items():
        row = {
            "chunks": int(chunks),
            "batch": batch,
            "encoder": encoder,
            "seconds": measure.spread(taken),
            "times_at_once": measure.ratios(taken, seconds["1"]),
            "extra_bytes": memory(*command, chunks),
        }
        rows.append(row)
        print(
            f"{chunks:>3} chunks  {row['seconds']['median']:8.3f} s  "
            f"{row['times_at_once']['median']:5.2f} x  {row['extra_bytes'] / 1e6:8.1f} MB"
        )
    settings = {"size": SIZE, "repetitions": args.repetitions}
    print(measure.keep("accumulation", device, rows, PEERS, settings, args.results))
