"""How long an epoch of a run takes on this machine, by its first steps."""

import time
from dataclasses import replace

import torch

from lib import InputError
from lib.config import Config
from lib.data.dataset import Dataset
from lib.hardware import memory_format
from lib.runs.pretraining import batches_and_step, refuse_unfit
from lib.runs.trouble import out_of_memory, which_batch_would_fit
from lib.training import Progress, build_model, build_optimiser, build_scaler, train

WARM_UP, TIMED = 3, 8  # steps


def own_schedule(config: Config, epochs: int) -> Config:
    """The configuration with so many epochs, and a cosine that ends with them."""
    return replace(config, epochs=epochs, cosine_epochs=None, cooldown_epochs=0)


def epoch_minutes(
    config: Config,
    dataset: Dataset,
    device: torch.device,
    warm_up: int = WARM_UP,
    timed: int = TIMED,
) -> float:
    """How long an epoch takes here, in minutes.

    config: of a run that trains, in a precision that is not "auto".
    warm_up, timed: steps, of which the latter count.

    Raises InputError where the run could not begin: the images don't fit it, or memory runs out.
    """
    config = own_schedule(config, warm_up + timed)  # so that there are as many steps
    sliced = dataset.take(config.images)
    refuse_unfit(config, sliced)
    model = build_model(config, sliced).to(memory_format=memory_format(device)).to(device)
    try:
        optimiser = build_optimiser(config, model)
        assert optimiser is not None  # a configuration that trains has parameters
        scaler = build_scaler(config, device)
        batches, take_step = batches_and_step(config, model, optimiser, scaler, sliced, device)
        progress = Progress()
        training = train(config, batches, take_step, progress)

        def take(steps: int) -> None:
            while progress.step < steps:
                next(training)
            float(progress.total)  # waits for the device

        take(warm_up)
        started = time.monotonic()
        take(warm_up + timed)
        return (time.monotonic() - started) / timed * len(batches) / 60
    except BaseException as error:
        if not out_of_memory(error):
            raise
        size = config.size or sliced.size[0]
        raise InputError(which_batch_would_fit(error, config, model, size)) from error
