"""What ends a run before its time: collapsed embeddings, and memory that is too small."""

import traceback

import torch

from lib import Diverged
from lib.compute import cost
from lib.compute.memory import free_memory
from lib.config import Config
from lib.distributed.group import world
from lib.encoders import Model

# mean cosine of different images, after two epochs in a row: no run of ours came near it
COLLAPSED = 0.999
# what PyTorch's other allocators say: of Linux and macOS, of Windows, of Apple's GPUs
NO_MEMORY = ("can't allocate memory", "not enough memory", "MPS backend out of memory")


def refuse_collapse(config: Config, curves: list[dict]) -> None:
    """Raise Diverged where all embeddings were alike at the end of two epochs after the warm-up."""
    last_two = curves[-2:]
    alike = [(row.get("negative") or 0) > COLLAPSED for row in last_two]
    last = curves[-1]
    if len(last_two) == 2 and all(alike) and last["epoch"] - 1 > config.warmup:
        raise Diverged(
            "embeddings have collapsed: different images have a mean cosine of "
            f"{last['negative']:.5f} after epoch {last['epoch']}; lower learning_rate or "
            "temperature (the last checkpoint stays)"
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether it is an allocator's, on a GPU, a Mac or in the machine's own memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in NO_MEMORY)


def which_batch_would_fit(error: BaseException, config: Config, model: Model, size: int) -> str:
    """One sentence for a step that found no memory, with a batch that would fit, an estimate."""
    traceback.clear_frames(error.__traceback__)  # they hold the step's tensors
    device = next(model.parameters()).device
    an_image = cost.memory(model, size) * config.views
    batch = estimated_batch(config, an_image, free_memory(device))
    trouble = f"out of memory on {device} with batches of {config.batch_size} images; "
    if batch is None:
        return f"{trouble}not even 2 would fit, as estimated: choose a smaller size or encoder"
    return (
        f"{trouble}batch_size={batch} would fit, as estimated, or "
        f"accumulate={2 * config.accumulate}; both are other runs (the last checkpoint is kept)"
    )


def estimated_batch(config: Config, an_image: int, free: int | None) -> int | None:
    """The largest power of two, at most half of the run's batch, that has room.

    an_image: bytes that all views of an image take.
    free: bytes of the device, or None where nobody tells: then half of the batch is the guess.

    None where that is not 2, the smallest batch of a contrastive loss.
    """
    fit = config.batch_size // 2
    if free is not None:
        fit = min(fit, free // an_image * config.accumulate * world())
    return 2 ** (fit.bit_length() - 1) if fit >= 2 else None
