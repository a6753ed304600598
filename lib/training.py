"""One loop for SimCLR, SupCon and cross-entropy, and all that keeps a run from being lost.

The order of images is a function of (seed, epoch), the views are one of (seed, step); so a run is
determined by its configuration and data, to the bit on one kind of CPU with one number of threads,
elsewhere up to rounding. It has an identity, the hash of both: asking for a run that is done
returns it at once, and asking for one that is half done goes on from the step of its last
checkpoint.
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

from lib import (
    Diverged,
    InputError,
    checkpoints,
    distributed,
    evaluation,
    losses,
    records,
    sessions,
    shares,
)
from lib.augmentations import views
from lib.checkpoints import Progress
from lib.config import Config, fitting_batch, recipe_content
from lib.data import Dataset, Split, order
from lib.encoders import Model
from lib.hardware import choose_device, choose_precision, memory_format, memory_kept
from lib.optimisers import batch_sizes, build_optimiser, learning_rate
from lib.runs import NUMERICS, RUNS, Run, build_model, identity, load_run, recipe_for

# isort: split
from lib.runs import evaluate, features, missing  # noqa: F401

CHECKPOINT_SECONDS = 60  # a checkpoint after the first step after so long


def loss_of(config: Config, z: Tensor, labels: Tensor | None, **how) -> Tensor:
    """The run's loss on z (V, N, D) and labels (N,). Not finite where z is not: no step waits for a
    check.

    how: of the contrastive losses, ``log_sum_exp``.
    """
    if config.method == "simclr":
        return losses.nt_xent(z, config.temperature, config.base_temperature, check=False, **how)
    if config.method == "supcon":
        return losses.sup_con(
            z,
            labels,
            config.temperature,
            config.positives,
            config.base_temperature,
            check=False,
            **how,
        )
    if config.method == "ce":
        return F.cross_entropy(
            z.flatten(0, 1).float(), labels.repeat(len(z)), label_smoothing=config.label_smoothing
        )
    raise InputError(f"no loss is known for the method '{config.method}'")


def pretrain(
    config: Config,
    dataset: Dataset,
    runs: str | Path = RUNS,
    device: str | None = None,
    progress: bool = True,
    wait: bool = True,
    plan: dict | None = None,
    keep: tuple[int, ...] = (),
) -> Run:
    """Train, or return the finished run, or go on with a half-done one.

    runs: folder of all runs; each has its own below. device: "cuda", "mps" or "cpu"; default the
    best there is. progress: show a bar with loss, views/s and the time left. wait: for another
    process that is at this very run, to return what it made, instead of an error. plan: a note for
    the record of what the run belongs to (lib.plan); a run that goes on keeps the one it began
    with. keep: epochs after which the model is kept, as epoch-N.safetensors. A configuration whose
    precision is "auto" becomes one with the precision that suits the device. SIGTERM and SIGINT end
    a run after its step and a checkpoint; a second one at once. Within a group of processes
    (lib.distributed) all call this; they need a folder that all of them see, and may be fewer or
    more when the run goes on. Raises InputError where data and configuration don't fit, no
    checkpoint is whole, the data changed since such a run began, a file can't be written, or memory
    runs out; Diverged where the embeddings collapse, or loss or weights stop being finite, which is
    an outcome of its own: a record of it is left in failed.json. The last good checkpoint stays,
    and the run's failure.json says how it ended.
    """
    if dataset.name != config.data:
        raise InputError(
            f"the configuration is for the data set '{config.data}', the one given is "
            f"'{dataset.name}'"
        )
    device = choose_device(device)
    config = replace(config, precision=choose_precision(config.precision, device))
    folder, code = (
        Path(runs) / identity(config, dataset),
        records.code(),
    )  # the code that runs, not a later edit
    if (folder / "record.json").is_file():
        return load_run(folder)
    part = dataset.take(config.images)
    pool = part.pool(config.pool)
    if config.method != "simclr" and pool.labels is None:
        raise InputError(
            f"{config.method} needs labels, the pool '{config.pool}' of {dataset.name} has none"
        )
    least = config.batch_size if config.drop_last else 2
    if config.epochs and len(pool) < least:
        fits = f"batch_size={fitting_batch(len(pool))}" if len(pool) > 3 else "another pool"
        raise InputError(
            f"the pool '{config.pool}' of {dataset.name} has {len(pool)} images, fewer than one "
            "batch of "
            f"{least}; set {fits} for example"
            + ", or pool=train+val"
            * (config.pool == "unlabeled")
        )
    with distributed.only_writer(folder, wait):
        if (folder / "record.json").is_file():  # by the process that was waited for
            return load_run(folder)
        for path in (
            () if distributed.rank() else folder.glob(".*.*.[0-9]*")
        ):  # what killed ones had begun to write
            path.unlink(missing_ok=True)
        session = _begin(config, dataset, folder, device, plan or {}, keep)
        state, model = session.progress, session.parts[0]
        data = {
            "name": dataset.name,
            "variant": dataset.variant,
            "fingerprint": dataset.fingerprint,
            "classes": list(dataset.classes),
            "counts": part.counts,
            "pool": len(pool),
        }
        try:
            _run(session, part, pool, progress)
        except Diverged as error:
            record = _record(session, data, code, device) | {"failed": str(error)}
            if not distributed.rank():
                records.write(folder / "failed.json", record)
            raise
        record = _record(session, data, code, device)
        if state.curves:
            record["cost"] = sessions.cost(config, config.size or part.size[0], model, state.curves)
        if not distributed.rank():
            checkpoints.save(folder / "model.safetensors", config, state, model)
            records.write(folder / "record.json", record)
            for path in [
                *folder.glob("checkpoint*.safetensors*"),
                folder / sessions.ENDED,
                folder / "failed.json",
            ]:
                path.unlink(missing_ok=True)
    return Run(folder, config, record, model.cpu().eval())


def _record(session: "_Session", data: dict, code: dict, device: torch.device) -> dict:
    """What a run was and what came out so far; evaluation comes later."""
    config, state = session.config, session.progress
    record = {
        "schema": records.SCHEMA,
        "id": session.folder.name,
        "config": asdict(config),
        "delta": config.delta,
        "recipe": recipe_content(config.recipe),
        "data": data,
        "numerics": NUMERICS,
        "code": code,
        "versions": records.versions(),
        "device": records.device(device),
        "started": state.started,
        "finished": records.now(),
    }
    if state.plan:
        record["plan"] = state.plan
    why = sessions.inexact(state.segments)
    record |= {"segments": state.segments, "bit_exact": why is None}
    if why:
        record["inexact_because"] = why
    return record | {
        "seconds": sum(row["seconds"] for row in state.curves),
        "views_per_second": sessions.rate(state.curves),
        "cost": {},
        "curves": state.curves,
        "evaluation": {},
    }


@dataclass
class _Session:
    """A run in the midst of its loop, and what it takes to save it."""

    folder: Path
    config: Config
    parts: tuple  # model, optimiser (None where there is nothing to train), float16's scaler
    progress: Progress = field(default_factory=Progress)
    keep: tuple[int, ...] = ()  # epochs after which the model is kept
    interruptions: sessions.Interruptions = field(default_factory=sessions.Interruptions)
    started: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    def save(self) -> None:
        """A checkpoint, the session's segment up to date in it. Raises InputError where the loss is
        not finite."""
        self.mean_loss()
        *before, segment = self.progress.segments
        segment = segment | {
            "steps": [segment["steps"][0], self.progress.step],
            "seconds": time.monotonic() - self.started,
        }
        coming = replace(self.progress, segments=[*before, segment])
        if not distributed.rank():
            checkpoints.rotate(self.folder, self.config, coming, *self.parts)
        distributed.barrier()
        self.progress.segments, self.saved = coming.segments, time.monotonic()

    def after_step(self) -> None:
        """A checkpoint where it is time, or where a signal has come, which is then delivered; else
        wait for nothing.

        Ranks agree on both: what one is told ends all of them after the same step.
        """
        due = time.monotonic() - self.saved > CHECKPOINT_SECONDS
        caught, due = distributed.agree(self.interruptions.caught or 0, int(due))
        if not caught and not due:
            return
        self.save()
        if caught:
            sessions.end(self.progress, self.folder, f"stopped by {signal.Signals(caught).name}")
            self.interruptions.deliver(caught)

    def mean_loss(self) -> float | None:
        """Of the epoch's images so far. Raises InputError where it is not finite."""
        state = self.progress
        mean = float(state.total) / state.seen if state.seen else 0.0
        if not math.isfinite(mean):
            raise Diverged(
                f"the loss of {self.folder.name} became {mean} in epoch {len(state.curves) + 1}; "
                "lower "
                f"learning_rate or raise temperature (the last checkpoint is kept)"
            )
        return mean


def _begin(
    config: Config,
    dataset: Dataset,
    folder: Path,
    device: torch.device,
    plan: dict,
    keep: tuple[int, ...],
) -> _Session:
    """A session that stands where the last checkpoint left the run, or at its start."""
    model = build_model(config, dataset).to(device, memory_format=memory_format(device))
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
    session = _Session(folder, config, (model, build_optimiser(config, model), scaler), keep=keep)
    with distributed.first():  # who deletes what is damaged
        found = checkpoints.resume(folder, config, *session.parts)
    most, least = distributed.agree(*([found.step, -found.step] if found else [-1, 1]))
    if most != -least:
        raise InputError(
            f"ranks found different checkpoints in {folder}: it must be a folder that all of them "
            "see"
        )
    if not found:
        checkpoints.refuse_changed_data(config, dataset.name, dataset.fingerprint, folder)
    new = Progress(folder.name, dataset.fingerprint, started=records.now(), plan=plan)
    session.progress = state = found or new
    for name, value in state.tensors.items():
        setattr(state, name, value.to(device))
    sessions.begin(state, folder, device)
    if not found:
        session.save()  # can the folder be written? Now, not later
    return session


def _run(session: _Session, part: Dataset, pool: Split, progress: bool) -> None:
    """The loop, with what ends it before its time noted in the run's folder."""
    model = session.parts[0]
    device = next((parameter.device for parameter in model.parameters()), pool.images.device)
    try:
        with session.interruptions, memory_kept(device):
            images = shares.Pool(pool.images, device)
            if distributed.active() or images.where != "device":
                distributed.tell(device, images.said)
            _train(session, part, images, pool.labels, progress)
            session.save()
        return
    except BaseException as error:
        if sessions.out_of_memory(error):
            said = sessions.which_batch_would_fit(
                error, session.config, model, session.config.size or part.size[0]
            )
            sessions.end(session.progress, session.folder, said)
            raise InputError(said) from error
        sessions.end(
            session.progress,
            session.folder,
            distributed.lost(error) or f"{type(error).__name__}: {error}",
        )
        raise


def _train(
    session: _Session, dataset: Dataset, pool: shares.Pool, labels_of: Tensor | None, progress: bool
) -> None:
    """From where the session stands to the last epoch. Appends one row per epoch to its curves."""
    config, state, (model, optimiser, scaler) = session.config, session.progress, session.parts
    recipe, sizes = recipe_for(config, dataset), batch_sizes(config, pool.n)
    batches, last_full = len(sizes), max(pool.n // config.batch_size, 1) - 1
    share_of = {
        size: shares.Share(size, config.accumulate, pool.index)
        for size in {*sizes}
        if config.epochs
    }
    shares.refuse_idle(share_of.values())
    stepping = distributed.wrap(model, pool.device)
    spread = distributed.active() or config.accumulate > 1
    labels_of = None if labels_of is None else labels_of.to(pool.index)
    bar = tqdm(
        total=config.epochs * batches,
        initial=state.step,
        desc=f"{config.name} s{config.seed}",
        unit="step",
        mininterval=1,
        dynamic_ncols=True,
        disable=not (progress and config.epochs) or distributed.rank() > 0,
    )
    for epoch in range(len(state.curves), config.epochs):
        stepping.train()
        started = time.monotonic() - state.seconds
        places = (
            order(pool.n, config.seed, epoch).to(pool.index)[: sum(sizes)].split(config.batch_size)
        )
        to_do = [(rows, share_of[len(rows)]) for rows in places[state.step - epoch * batches :]]
        for (rows, share), images in zip(to_do, pool.stream(to_do)):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config, state.step, batches)
            x = [
                views(
                    part, recipe, config.seed, state.step, config.views, at.start
                )  # (V, n, 3, S, S) a chunk
                for part, at in zip(images.split(share.sizes), share.own)
            ]
            labels = None if labels_of is None else labels_of[rows].to(pool.device)
            loss, z = (
                spread_step(config, stepping, optimiser, scaler, x, labels, share)
                if spread
                else train_step(config, model, optimiser, scaler, *x, labels)
            )
            if state.step - epoch * batches == last_full and config.method != "ce":
                state.z, state.labels = z, labels if config.method == "supcon" else None
            state.total += loss * len(rows)
            state.seen += len(rows)
            state.step += 1
            state.seconds = time.monotonic() - started
            bar.update()
            session.after_step()
        row = {
            "epoch": epoch + 1,
            "loss": session.mean_loss(),
            "learning_rate": learning_rate(config, state.step - 1, batches),
        }
        state.seconds = time.monotonic() - started  # the device is done by now
        row |= {
            "seconds": state.seconds,
            "views_per_second": state.seen * config.views / state.seconds,
        }
        if config.method != "ce":
            row |= losses.contrast(state.z, state.labels)._asdict()
            sessions.refuse_collapse(config, [*state.curves[-1:], row])
        if config.knn_every and (epoch + 1) % config.knn_every == 0:
            row["knn"] = evaluation.knn_on_val(model, dataset, recipe_for(config, dataset, "none"))
        if config.test_every and (epoch + 1) % config.test_every == 0:
            row["test_correct"] = evaluation.classified(
                model, dataset.test, recipe_for(config, dataset, "none")
            )
        state.end_epoch(row)
        if epoch + 1 in session.keep and not distributed.rank():
            checkpoints.save(
                session.folder / f"epoch-{epoch + 1}.safetensors", config, state, model
            )
        bar.set_postfix(loss=f"{row['loss']:.3f}", views_s=f"{row['views_per_second']:.0f}")
        session.after_step()
    bar.close()


def train_step(
    config: Config, model: Model, optimiser, scaler, x: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One step downhill. All views pass the encoder together, so BatchNorm has one mean and one
    variance for them.

    x: (V, N, 3, S, S) float, V views of N images; labels: (N,), or None for simclr. Returns the
    loss, in nats, and z (V, N, D), both detached and on the device, so that nobody waits for them.
    """
    z = embed(config, model, x)
    loss = loss_of(config, z, labels)
    optimiser.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.step(optimiser)
    scaler.update()
    return loss.detach(), z.detach()


def embed(config: Config, model: Model, x: Tensor) -> Tensor:
    """z (V, N, D) of views x (V, N, 3, S, S), in the run's precision."""
    with torch.autocast(
        x.device.type, getattr(torch, config.precision), enabled=config.precision != "float32"
    ):
        _, z = model(x.flatten(0, 1).contiguous(memory_format=memory_format(x.device)))  # (V N, D)
    return z.unflatten(0, x.shape[:2])


def spread_step(
    config: Config,
    model: torch.nn.Module,
    optimiser,
    scaler,
    chunks: list[Tensor],
    labels: Tensor | None,
    share: shares.Share,
) -> tuple[Tensor, Tensor]:
    """The same step where this process has a part of the batch, or takes it chunk by chunk, or
    both.

    chunks: its views (V, n, 3, S, S), as share says; labels: (N,) of the whole batch. Embeddings
    come first, with several chunks without a graph; then the loss of all of them and its gradient
    by each embedding; then, chunk by chunk, by the weights (GradCache, arXiv 2101.06983, section
    3.2). With one chunk it is train_step's gradient. Returns the loss and z (V, N, D) of the whole
    batch, both detached.
    """
    several, inner = len(chunks) > 1, getattr(model, "module", model)
    with torch.set_grad_enabled(not several), distributed.buffers_kept(inner, several):
        z = [embed(config, inner if several else model, x) for x in chunks]
    mine = torch.cat([part.detach() for part in z], dim=1)  # (V, n_r, D)
    everyone = share.gather(
        mine.to(torch.promote_types(mine.dtype, torch.float32))
    ).requires_grad_()
    how = {"log_sum_exp": share.log_sum_exp} if distributed.active() else {}
    loss = loss_of(config, everyone, labels, **how)
    (gradient,) = torch.autograd.grad(scaler.scale(loss), everyone)
    gradient = (
        gradient[:, share.mine].to(mine.dtype) * distributed.world()
    )  # for DDP will take the mean
    optimiser.zero_grad(set_to_none=True)
    for number, (x, part) in enumerate(zip(chunks, gradient.split(share.sizes, dim=1)), start=1):
        with distributed.not_yet(model, number == len(chunks)):
            (embed(config, model, x) if several else z[0]).backward(part)
    scaler.step(optimiser)
    scaler.update()
    return loss.detach(), everyone.detach()
