"""A session of a run: from where the last one stopped, saving, until it is done or has to stop."""

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import torch

from lib import InputError, files
from lib.config import Config
from lib.data.dataset import Dataset
from lib.distributed.group import about, agree, barrier, rank, rank_0_first, tell
from lib.encoders import Model
from lib.files import write_atomically
from lib.hardware import memory_format
from lib.interruptions import Interruptions
from lib.parsing import parse_json
from lib.runs import checkpoints, provenance
from lib.runs.checkpoints import RunProgress
from lib.training import build_model, build_optimiser, build_scaler

SOONEST, LATEST = 60, 900  # seconds from one checkpoint to the next
SHARE = 0.02  # of the time that saving may take
BYTES_AN_HOUR = 2_000_000_000  # that checkpoints may write
ENDED = "failure.json"  # in a run's folder: how the last session that did not finish ended
LOCK = ".lock"  # in a run's folder, empty; that it is there means nothing, who holds it does
WITHOUT_A_WORD = "killed, or the machine stopped"


def pause_after(seconds: float, size: int) -> float:
    """Seconds from a checkpoint to the next, by what the last one took, and its size in bytes.

    So long that saving takes SHARE of the time and writes BYTES_AN_HOUR, at most. LATEST goes
    before both, so that no more than that is ever lost.
    """
    return min(LATEST, max(SOONEST, seconds / SHARE, 3600 * size / BYTES_AN_HOUR))


@dataclass
class Session:
    """A run in the midst of its loop, and what it takes to save it."""

    folder: Path
    config: Config
    model: Model
    optimiser: torch.optim.Optimizer | None  # None where there is nothing to train
    scaler: torch.amp.GradScaler  # float16's
    progress: RunProgress
    interruptions: Interruptions = field(default_factory=Interruptions)
    started: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)
    # seconds from the last checkpoint to the next
    pause: float = field(default_factory=lambda: pause_after(0, 0))
    # one thread, that writes checkpoints while training goes on
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    writing: Future | None = None

    def save(self, wait: bool = True) -> None:
        """A checkpoint, this session's segment up to date in it.

        wait: until it is written, else only until the one before it is.

        Raises Diverged where loss or weights are not finite, InputError where it is waited for and
        can't be written. That the one before it couldn't is said in a note.
        """
        self.progress.mean_loss()
        *before, segment = self.progress.segments
        segment = segment | {
            "steps": [segment["steps"][0], self.progress.step],
            "seconds": time.monotonic() - self.started,
        }
        updated = replace(self.progress, segments=[*before, segment])
        if rank() == 0:
            self._note_a_failed_write()
            content = checkpoints.content(
                self.config, updated, self.model, self.optimiser, self.scaler
            )
            self.writing = self.writer.submit(self._write, content)
            if wait:
                self.written()
        barrier()
        self.progress.segments = updated.segments
        self.saved = time.monotonic()

    def written(self) -> None:
        """Wait until the last checkpoint is written. Raises InputError where it can't be."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def _note_a_failed_write(self) -> None:
        """Wait for the last checkpoint; one that can't be written is no end: the next may be."""
        try:
            self.written()
        except InputError as error:
            tell(f"note: training goes on without a checkpoint until the next one: {error}")

    def _write(self, content: checkpoints.Content) -> None:
        began = time.monotonic()
        checkpoints.rotate(self.folder, content)
        size = (self.folder / checkpoints.NEWEST).stat().st_size
        self.pause = pause_after(time.monotonic() - began, size)

    def after_step(self) -> None:
        """A checkpoint where it is time, or where a signal has come, which is then delivered.

        Training goes on while it is written, but for a signal. Ranks agree on both: what one is
        told ends all of them after the same step. A checkpoint that can't be written is told in a
        note, and tried again when the next is due; where a signal waits for it, it is an error.

        Raises what ``save`` does.
        """
        if self.writing is not None and self.writing.done():
            self._note_a_failed_write()
        due = int(rank() == 0 and time.monotonic() - self.saved > self.pause)
        caught, due = agree(self.interruptions.caught or 0, due)
        if not caught and not due:
            return
        try:
            self.save(wait=bool(caught))
        except InputError as error:
            if caught:  # of which nothing else would tell: the signal ends the process
                tell(str(error))
            raise
        if caught:
            ended = f"stopped by {signal.Signals(caught).name}"
            self.end(ended)
            if caught == signal.SIGTERM:  # of which nothing else would tell
                tell(f"{ended} after step {self.progress.step}; the same command goes on from it")
            self.interruptions.deliver(caught)

    def end(self, how: str) -> None:
        """Leave a note of how this session ended, for the next one; no trouble where that fails."""
        if rank():
            return
        step = 0
        if self.progress.segments:
            step = self.progress.segments[-1]["steps"][1]
        how = " ".join(how.split())[:500].rstrip(": ")
        note = {"ended": how, "step": step, "when": provenance.now()}
        with contextlib.suppress(InputError):
            write_atomically(self.folder / ENDED, (json.dumps(note, indent=1) + "\n").encode())


def begin(
    config: Config, dataset: Dataset, folder: Path, device: torch.device, plan: dict
) -> Session:
    """A session that stands where the last checkpoint left the run, or at its start.

    plan: the run's note of the plan, where it is new. A GPU's peak memory counts from here.
    """
    model = build_model(config, dataset).to(memory_format=memory_format(device)).to(device)
    optimiser = build_optimiser(config, model)
    scaler = build_scaler(config, device)

    with rank_0_first():  # who deletes what is damaged
        progress = checkpoints.resume(folder, config, model, optimiser, scaler)
    barrier()  # patient: a large checkpoint takes some longer to read
    if not same_everywhere(-1 if progress is None else progress.step):
        raise InputError(
            f"ranks found different checkpoints in {folder}: it must be a folder that all of them "
            "see"
        )
    is_new = progress is None
    if progress is None:
        checkpoints.refuse_changed_data(config, dataset.name, dataset.fingerprint, folder)
        started = provenance.now()
        progress = RunProgress(
            run=folder.name, fingerprint=dataset.fingerprint, started=started, plan=plan
        )
    progress.move(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    note_the_end_of_the_last(progress.segments, folder)
    progress.segments.append(segment(progress.step, device))

    session = Session(folder, config, model, optimiser, scaler, progress)
    if is_new:
        session.save()  # can the folder be written? Now, not later
    return session


def same_everywhere(value: int) -> bool:
    """Whether all ranks have the same value."""
    most, minus_least = agree(value, -value)
    return most == -minus_least


def segment(step: int, device: torch.device) -> dict:
    """What a record says of a session: where and from which step on it ran."""
    return {
        "device": provenance.device(device),
        "versions": provenance.versions(),
        "commit": provenance.code()["commit"],
        "deterministic": device.type == "cpu" or torch.are_deterministic_algorithms_enabled(),
        "steps": [step, step],
        "seconds": 0.0,
        **about(),
    }


def note_the_end_of_the_last(segments: list[dict], folder: Path) -> None:
    """Say in the last segment how it ended, as far as it left word."""
    if not segments:
        return
    last = segments[-1]
    last["ended"] = WITHOUT_A_WORD
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        note = parse_json((folder / ENDED).read_bytes())
        if note["step"] == last["steps"][1]:
            last["ended"] = str(note["ended"])


def inexact(segments: list[dict]) -> str | None:
    """Why a run is not, to the bit, what it would have been in one session of one process.

    None where devices and versions were the same all the time. Its code is not compared: whoever
    makes a change that matters raises NUMERICS (``runs.identities``).
    """
    if any("ranks" in segment for segment in segments):
        worlds = [str(segment.get("ranks", {}).get("world", 1)) for segment in segments]
        return (
            f"its segments ran on {', '.join(worlds)} ranks, whose sums are added in another "
            "order: exact up to rounding"
        )
    if len(segments) > 1 and not all(segment["deterministic"] for segment in segments):
        return (
            "it was resumed outside of deterministic mode (torch.use_deterministic_algorithms), "
            "exact up to rounding"
        )
    for number, (one, other) in enumerate(pairwise(segments), start=1):
        for group in ("device", "versions"):
            for key in one[group] | other[group]:
                before = one[group].get(key)
                after = other[group].get(key)
                if before != after:
                    return (
                        f"segments {number} and {number + 1} differ in {key} "
                        f"({before}, then {after}): exact up to rounding"
                    )
    return None


@contextlib.contextmanager
def only_writer(folder: Path, wait: bool = True, reads: bool = False) -> Iterator[bool]:
    """Within, no other process writes a run's folder; rank 0 holds the lock for all ranks.

    Nobody leaves before rank 0 wrote. wait: for the other process, instead of an InputError.
    reads: whether a folder that can't be written will do; a note says that nothing is kept.

    Gives whether the folder can be written.
    """
    refused = False
    with contextlib.ExitStack() as stack:
        if rank() == 0:
            try:
                stack.enter_context(files.only_writer(folder / LOCK, str(folder), wait))
            except files.Unwritable as error:
                if not reads:
                    raise
                refused = True
                tell(f"note: what is found is not kept: {error}")
        barrier()
        (refused_anywhere,) = agree(int(refused))
        yield not refused_anywhere
        barrier()
