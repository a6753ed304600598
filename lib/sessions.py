"""A run's sessions: signals that wait for a step, a segment for each, how it ended, and what made
the run inexact."""

import contextlib
import json
import signal
import threading
import traceback
from pathlib import Path

import torch

from lib import Diverged, InputError, distributed, records
from lib.checkpoints import Progress
from lib.config import Config
from lib.encoders import Model
from lib.files import parse_json, write_atomically
from lib.hardware import free_memory, matrix_rate, peak_memory

ENDED = "failure.json"  # in a run's folder: how the last session that did not finish ended
SIGNALS = (signal.SIGTERM, signal.SIGINT)
WITHOUT_A_WORD = "killed, or the machine stopped"
# mean cosine of different images, after two epochs in a row: no run of ours came near it
COLLAPSED = 0.999


class Interruptions:
    """Within, SIGTERM and SIGINT are noted in ``caught`` and wait for ``deliver``; the second one
    does not wait, except for one of several ranks, whom torchrun and the terminal both tell.

    Signals that are ignored stay so; outside of the main thread, where Python has no handlers,
    nothing changes.
    """

    def __enter__(self) -> "Interruptions":
        self.caught, self.before = None, {}
        if threading.current_thread() is threading.main_thread():
            taken = {number: signal.getsignal(number) for number in SIGNALS}
            self.before = {n: old for n, old in taken.items() if old not in (signal.SIG_IGN, None)}
            for number in self.before:
                signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame) -> None:
        if self.caught and not distributed.active():
            self.deliver(number)
        else:
            self.caught = number

    def deliver(self, number: int | None = None) -> None:
        """Let the signal do what it would have done: end the process, or raise
        KeyboardInterrupt."""
        number, self.caught = number or self.caught, None
        signal.signal(number, self.before[number])
        signal.raise_signal(number)
        signal.signal(number, self._note)  # whoever handled it wants the run to go on

    def __exit__(self, kind, error, trace) -> None:
        for number, old in self.before.items():
            signal.signal(number, old)
        if self.caught and error is None:
            signal.raise_signal(self.caught)


def begin(progress: Progress, folder: Path, device: torch.device) -> None:
    """Append this session's segment, and say in the one before how it ended. A GPU's peak memory
    counts from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if progress.segments:
        before = progress.segments[-1]
        before["ended"] = WITHOUT_A_WORD
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            told = parse_json((folder / ENDED).read_bytes())
            if told["step"] == before["steps"][1]:
                before["ended"] = str(told["ended"])
    progress.segments.append(
        {
            "device": records.device(device),
            "versions": records.versions(),
            "commit": records.code()["commit"],
            "deterministic": device.type == "cpu" or torch.are_deterministic_algorithms_enabled(),
            "steps": [progress.step, progress.step],
            "seconds": 0.0,
            **distributed.about(device),
        }
    )


def end(progress: Progress, folder: Path, how: str) -> None:
    """Leave a note of how this session ended, for the next one; no trouble where that fails."""
    if distributed.rank():
        return
    step = progress.segments[-1]["steps"][1] if progress.segments else 0
    note = {"ended": " ".join(how.split())[:500].rstrip(": "), "step": step, "when": records.now()}
    with contextlib.suppress(InputError):
        write_atomically(folder / ENDED, (json.dumps(note, indent=1) + "\n").encode())


def inexact(segments: list[dict]) -> str | None:
    """Why the run is not what it would have been in one session of one process, to the bit; None
    where it is."""
    worlds = [segment.get("ranks", {}).get("world", 1) for segment in segments]
    if any("ranks" in segment for segment in segments):
        return (
            f"its segments ran on {', '.join(map(str, worlds))} ranks, whose sums are added in "
            "another order: "
            f"exact up to rounding"
        )
    if len(segments) > 1 and not all(segment["deterministic"] for segment in segments):
        return (
            "it was resumed outside of deterministic mode (torch.use_deterministic_algorithms), "
            "exact up to rounding"
        )
    for number, (one, other) in enumerate(zip(segments, segments[1:]), start=1):
        for what in ("device", "versions"):
            for key in one[what] | other[what]:
                mine, theirs = one[what].get(key), other[what].get(key)
                if mine != theirs:
                    return (
                        f"segments {number} and {number + 1} differ in {key} ({mine}, then "
                        f"{theirs}): exact up to "
                        f"rounding"
                    )
    return None


def refuse_collapse(config: Config, rows: list[dict]) -> None:
    """Raise Diverged where different images had the same embedding at the end of two epochs after
    the warm-up."""
    last = rows[-1]
    alike = [(row["negative"] or 0) > COLLAPSED for row in rows]
    if len(rows) == 2 and all(alike) and last["epoch"] - 1 > config.warmup:
        raise Diverged(
            "embeddings have collapsed: different images have a mean cosine of "
            f"{last['negative']:.5f} "
            f"after epoch {last['epoch']}; lower learning_rate or temperature (the last "
            "checkpoint stays)"
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether it is an allocator's, on a GPU or in the machine's own memory."""
    said = str(error) if isinstance(error, RuntimeError) else ""
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in said
    )


def which_batch_would_fit(error: BaseException, config: Config, model: Model, size: int) -> str:
    """One sentence for a step that found no memory: a power of two below the batch, by
    Model.memory; an estimate."""
    traceback.clear_frames(error.__traceback__)  # they hold the step's tensors
    device = next(model.parameters()).device
    needed, free, half = (
        model.memory(size) * config.views,
        free_memory(device),
        config.batch_size // 2,
    )
    fit = (
        half
        if free is None
        else min(half, free // needed * config.accumulate * distributed.world())
    )
    batch = 2 ** max(1, fit.bit_length() - 1)
    return (
        f"out of memory on {device} with batches of {config.batch_size} images; "
        f"batch_size={batch} would fit, as "
        f"estimated, or accumulate={2 * config.accumulate}; both are other runs (the last "
        "checkpoint is kept)"
    )


def rate(curves: list[dict]) -> float | None:
    """Views a second over all epochs; None for a run without any."""
    seconds = sum(row["seconds"] for row in curves)
    return (
        sum(row["views_per_second"] * row["seconds"] for row in curves) / seconds
        if seconds
        else None
    )


def cost(config: Config, size: int, model: Model, curves: list[dict]) -> dict:
    """What a view of size x size pixels costs and how near the run came to what its devices can do.

    FLOPs: floating-point operations.
    """
    device = next(model.parameters()).device
    peak = peak_memory(device)  # before the matrices below
    flops, best = model.flops(size), matrix_rate(device, config.precision)
    return {
        "flops_per_view": flops,
        "matrix_flops_per_second": best,
        "share_of_matrix_rate": flops * rate(curves) / best / distributed.world(),
        "peak_bytes": peak,
    }
