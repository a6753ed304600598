"""One loop for SimCLR, SupCon and cross-entropy, and all that keeps a run from being lost.

The order of images is a function of (seed, epoch), the views are one of (seed, step); so a run is determined by its
configuration and data, to the bit on one kind of CPU with one number of threads, elsewhere up to rounding. It has an
identity, the hash of both: asking for a run that is done returns it at once, and asking for one that is half done goes
on from the step of its last checkpoint.
"""

import math
import signal
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lib import InputError, checkpoints, evaluation, losses, records, sessions
from lib.augmentations import views
from lib.checkpoints import Progress
from lib.config import Config, recipe_content
from lib.data import Dataset, Split, order
from lib.encoders import Model
from lib.files import only_writer
from lib.hardware import choose_device, choose_precision, matrix_rate, memory_format, memory_kept, peak_memory
from lib.optimisers import batch_sizes, build_optimiser, learning_rate
from lib.runs import LOCK, NUMERICS, RUNS, Run, evaluate, features, identity, load_run, missing, recipe_for  # noqa: F401

CHECKPOINT_SECONDS = 60     # a checkpoint after the first step after so long
COLLAPSED = 0.999           # mean cosine of different images, after two epochs in a row: no run of ours came near it


def build_model(config: Config, dataset: Dataset) -> Model:
    """The model of a run, freshly initialised from its seed, on the CPU. The global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        embedding = len(dataset.classes) if config.method == "ce" else config.embedding
        return Model(config.encoder, config.stem, config.head, embedding)


def loss_of(config: Config, z: Tensor, labels: Tensor | None) -> Tensor:
    """The run's loss on z (V, N, D) and labels (N,). Not finite where z is not: no step waits for a check."""
    if config.method == "simclr":
        return losses.nt_xent(z, config.temperature, config.base_temperature, check=False)
    if config.method == "supcon":
        return losses.sup_con(z, labels, config.temperature, config.positives, config.base_temperature, check=False)
    if config.method == "ce":
        return F.cross_entropy(z.flatten(0, 1).float(), labels.repeat(len(z)))
    raise InputError(f"no loss is known for the method '{config.method}'")


def pretrain(config: Config, dataset: Dataset, runs: str | Path = RUNS, device: str | None = None,
             progress: bool = True, wait: bool = True) -> Run:
    """Train, or return the finished run, or go on with a half-done one.

    runs: folder of all runs; each has its own below. device: "cuda", "mps" or "cpu"; default the best there is.
    progress: show a bar with loss, views/s and the time left. wait: for another process that is at this very run, to
    return what it made, instead of an error.
    A configuration whose precision is "auto" becomes one with the precision that suits the device. SIGTERM and SIGINT
    end a run after its step and a checkpoint; a second one at once.
    Raises InputError where data and configuration don't fit, no checkpoint is whole, the data changed since such a run
    began, a file can't be written, memory runs out, the embeddings collapse, or loss or weights stop being finite. The
    last good checkpoint stays, and the run's failure.json says how it ended.
    """
    if dataset.name != config.data:
        raise InputError(f"the configuration is for the data set '{config.data}', the one given is '{dataset.name}'")
    device = choose_device(device)
    config = replace(config, precision=choose_precision(config.precision, device))
    folder, code = Path(runs) / identity(config, dataset), records.code()       # the code that runs, not a later edit
    if (folder / "record.json").is_file():
        return load_run(folder)
    part = dataset.take(config.images)
    pool = part.pool(config.pool)
    if config.method != "simclr" and pool.labels is None:
        raise InputError(f"{config.method} needs labels, the pool '{config.pool}' of {dataset.name} has none")
    least = config.batch_size if config.drop_last else 2
    if config.epochs and len(pool) < least:
        raise InputError(f"the pool '{config.pool}' of {dataset.name} has {len(pool)} images, fewer than one batch of "
                         f"{least}; set a smaller batch_size or more images")
    with only_writer(folder / LOCK, str(folder), wait):
        if (folder / "record.json").is_file():                  # by the process that was waited for
            return load_run(folder)
        for path in folder.glob(".*.*.[0-9]*"):                 # what killed processes had begun to write
            path.unlink(missing_ok=True)
        session = _begin(config, dataset, folder, device)
        _run(session, part, pool, progress)
        state, model = session.progress, session.parts[0]
        why = sessions.inexact(state.segments)
        record = {
            "schema": records.SCHEMA, "id": folder.name, "config": asdict(config), "delta": config.delta,
            "recipe": recipe_content(config.recipe),
            "data": {"name": dataset.name, "variant": dataset.variant, "fingerprint": dataset.fingerprint,
                     "classes": list(dataset.classes), "counts": part.counts, "pool": len(pool)},
            "numerics": NUMERICS, "code": code, "versions": records.versions(),
            "device": records.device(device), "finished": records.now(),
            "segments": state.segments, "bit_exact": why is None, **({"inexact_because": why} if why else {}),
            "seconds": sum(row["seconds"] for row in state.curves), "views_per_second": _rate(state.curves),
            "cost": _cost(config, part, model, state.curves) if state.curves else {},
            "curves": state.curves, "evaluation": {},
        }
        checkpoints.save(folder / "model.safetensors", config, state, model)
        records.write(folder / "record.json", record)
        for path in [*folder.glob("checkpoint*.safetensors*"), folder / sessions.ENDED]:
            path.unlink(missing_ok=True)
    return Run(folder, config, record, model.cpu().eval())


@dataclass
class _Session:
    """A run in the midst of its loop, and what it takes to save it."""

    folder: Path
    config: Config
    parts: tuple                # model, optimiser (None where there is nothing to train), float16's scaler
    progress: Progress = field(default_factory=Progress)
    interruptions: sessions.Interruptions = field(default_factory=sessions.Interruptions)
    started: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    def save(self) -> None:
        """A checkpoint, the session's segment up to date in it. Raises InputError where the loss is not finite."""
        self.mean_loss()
        *before, segment = self.progress.segments
        segment = segment | {"steps": [segment["steps"][0], self.progress.step],
                             "seconds": time.monotonic() - self.started}
        coming = replace(self.progress, segments=[*before, segment])
        checkpoints.rotate(self.folder, self.config, coming, *self.parts)
        self.progress.segments, self.saved = coming.segments, time.monotonic()

    def after_step(self) -> None:
        """A checkpoint where it is time, or where a signal has come, which is then delivered; else wait for nothing."""
        caught = self.interruptions.caught
        if not caught and time.monotonic() - self.saved <= CHECKPOINT_SECONDS:
            return
        self.save()
        if caught:
            sessions.end(self.progress, self.folder, f"stopped by {signal.Signals(caught).name}")
            self.interruptions.deliver()

    def mean_loss(self) -> float | None:
        """Of the epoch's images so far. Raises InputError where it is not finite."""
        state = self.progress
        mean = float(state.total) / state.seen if state.seen else 0.0
        if not math.isfinite(mean):
            raise InputError(f"the loss of {self.folder.name} became {mean} in epoch {len(state.curves) + 1}; lower "
                             f"learning_rate or raise temperature (the last checkpoint is kept)")
        return mean


def _begin(config: Config, dataset: Dataset, folder: Path, device: torch.device) -> _Session:
    """A session that stands where the last checkpoint left the run, or at its start."""
    model = build_model(config, dataset).to(device, memory_format=memory_format(device))
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
    session = _Session(folder, config, (model, build_optimiser(config, model), scaler))
    found = checkpoints.resume(folder, config, *session.parts)
    if not found:
        _refuse_changed_data(config, dataset, folder)
    session.progress = state = found or Progress(folder.name, dataset.fingerprint)
    for name, value in state.tensors.items():
        setattr(state, name, value.to(device))
    sessions.begin(state, folder, device)
    if not found:
        session.save()                                      # can the folder be written? Now, not later
    return session


def _refuse_changed_data(config: Config, dataset: Dataset, folder: Path) -> None:
    """Raise InputError where the same configuration is half done on other data."""
    for path in folder.parent.glob(f"{config.name}-e{config.epochs}-s{config.seed}-*/{checkpoints.NEWEST}"):
        if path.with_name("record.json").is_file():
            continue
        try:
            theirs, state, _ = checkpoints.read(path)
        except InputError:
            continue                                            # damaged: told when its own run goes on
        if theirs == config and state.fingerprint != dataset.fingerprint:
            raise InputError(f"{dataset.name} has changed since {path.parent} began: its fingerprint was "
                             f"{state.fingerprint[:16]} and is {dataset.fingerprint[:16]}; restore the data to go on, "
                             f"or delete that folder to train on the new data")


def _run(session: _Session, part: Dataset, pool: Split, progress: bool) -> None:
    """The loop, with what ends it before its time noted in the run's folder."""
    model = session.parts[0]
    device = next((parameter.device for parameter in model.parameters()), pool.images.device)
    try:
        with session.interruptions, memory_kept(device):
            _train(session, part, pool.to(device), progress)
            session.save()
        return
    except BaseException as error:
        if sessions.out_of_memory(error):
            said = sessions.which_batch_would_fit(error, session.config, model, session.config.size or part.size[0])
            sessions.end(session.progress, session.folder, said)
            raise InputError(said) from error
        sessions.end(session.progress, session.folder, f"{type(error).__name__}: {error}")
        raise


def _train(session: _Session, dataset: Dataset, pool: Split, progress: bool) -> None:
    """From where the session stands to the last epoch. Appends one row per epoch to its curves."""
    config, state, (model, optimiser, scaler) = session.config, session.progress, session.parts
    device = pool.images.device
    recipe, sizes = recipe_for(config, dataset), batch_sizes(config, len(pool))
    batches, last_full = len(sizes), max(len(pool) // config.batch_size, 1) - 1
    bar = tqdm(total=config.epochs * batches, initial=state.step, desc=f"{config.name} s{config.seed}",
               unit="step", mininterval=1, dynamic_ncols=True, disable=not (progress and config.epochs))
    for epoch in range(len(state.curves), config.epochs):
        model.train()
        started = time.monotonic() - state.seconds
        places = order(len(pool), config.seed, epoch).to(device)[:sum(sizes)].split(config.batch_size)
        for batch in range(state.step - epoch * batches, batches):
            rows = places[batch]
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config, state.step, batches)
            x = views(pool.images[rows], recipe, config.seed, state.step, config.views)    # (V, N, 3, S, S)
            labels = None if pool.labels is None else pool.labels[rows]
            loss, z = train_step(config, model, optimiser, scaler, x, labels)
            if batch == last_full and config.method != "ce":
                state.z, state.labels = z, labels if config.method == "supcon" else None
            state.total += loss * len(rows)
            state.seen += len(rows)
            state.step += 1
            state.seconds = time.monotonic() - started
            bar.update()
            session.after_step()
        row = {"epoch": epoch + 1, "loss": session.mean_loss(),
               "learning_rate": learning_rate(config, state.step - 1, batches)}
        state.seconds = time.monotonic() - started              # the device is done by now
        row |= {"seconds": state.seconds, "views_per_second": state.seen * config.views / state.seconds}
        if config.method != "ce":
            row |= losses.contrast(state.z, state.labels)._asdict()
            _refuse_collapse(config, [*state.curves[-1:], row])
        if config.knn_every and (epoch + 1) % config.knn_every == 0:
            row["knn"] = evaluation.knn_on_val(model, dataset, recipe_for(config, dataset, "none"))
        if config.test_every and (epoch + 1) % config.test_every == 0:
            row["test_correct"] = evaluation.classified(model, dataset.test, recipe_for(config, dataset, "none"))
        state.end_epoch(row)
        bar.set_postfix(loss=f"{row['loss']:.3f}", views_s=f"{row['views_per_second']:.0f}")
        session.after_step()
    bar.close()


def _refuse_collapse(config: Config, rows: list[dict]) -> None:
    """Raise InputError where different images had the same embedding at the end of two epochs after the warm-up."""
    last = rows[-1]
    alike = [(row["negative"] or 0) > COLLAPSED for row in rows]
    if len(rows) == 2 and all(alike) and last["epoch"] - 1 > config.warmup:
        raise InputError(f"embeddings have collapsed: different images have a mean cosine of {last['negative']:.5f} "
                         f"after epoch {last['epoch']}; lower learning_rate or temperature (the last checkpoint stays)")


def train_step(config: Config, model: Model, optimiser, scaler, x: Tensor,
               labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """One step downhill. All views pass the encoder together, so BatchNorm has one mean and one variance for them.

    x: (V, N, 3, S, S) float, V views of N images; labels: (N,), or None for simclr. Returns the loss, in nats, and
    z (V, N, D), both detached and on the device, so that nobody waits for them.
    """
    device = x.device
    with torch.autocast(device.type, getattr(torch, config.precision), enabled=config.precision != "float32"):
        _, z = model(x.flatten(0, 1).contiguous(memory_format=memory_format(device)))      # (V N, D)
    z = z.unflatten(0, x.shape[:2])                                                         # (V, N, D)
    loss = loss_of(config, z, labels)
    optimiser.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.step(optimiser)
    scaler.update()
    return loss.detach(), z.detach()


def _rate(curves: list[dict]) -> float | None:
    """Views a second over all epochs; None for a run without any."""
    seconds = sum(row["seconds"] for row in curves)
    return sum(row["views_per_second"] * row["seconds"] for row in curves) / seconds if seconds else None


def _cost(config: Config, dataset: Dataset, model: Model, curves: list[dict]) -> dict:
    """What a view costs and how near the run came to what the device can do; FLOPs: floating-point operations."""
    device = next(model.parameters()).device
    flops, rate = model.flops(config.size or dataset.train.images.shape[2]), matrix_rate(device, config.precision)
    return {"flops_per_view": flops, "matrix_flops_per_second": rate,
            "share_of_matrix_rate": flops * _rate(curves) / rate, "peak_bytes": peak_memory(device)}
