"""From a configuration and data to a finished run, whatever happens meanwhile.

A run has an identity, the hash of both: asking for one that is done returns it at once, and asking
for one that is half done goes on from the step of its last checkpoint.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from lib import Diverged, InputError, as_command, counted, in_a_line
from lib.compute.compilation import STEPS, Compiled, is_offered, mode_of
from lib.compute.cost import flops
from lib.compute.memory import memory_kept, room_for
from lib.config import COMPUTED, Config, difference, fitting_batch
from lib.data.dataset import Dataset
from lib.distributed.batches import SharedBatches, home_of
from lib.distributed.group import active, agree, lost, rank, rank_0_first, tell
from lib.distributed.step import SharedStep
from lib.encoders import BASELINES
from lib.evaluation import classified, device_of, knn_on_val
from lib.files import as_path, remove_leftovers
from lib.hardware import choose_device, fastest_convolutions, matrix_rate
from lib.methods import METHODS
from lib.presets import command, delta
from lib.progress import bar as progress_bar
from lib.runs import checkpoints, provenance, records
from lib.runs.identities import (
    NUMERICS,
    computed_on,
    furthest,
    identity,
    is_open,
    recipe_content,
)
from lib.runs.packing import seen_as
from lib.runs.run import RUNS, Run, load
from lib.runs.session import ENDED, Session, begin, inexact, only_writer
from lib.runs.trouble import out_of_memory, refuse_collapse, which_batch_would_fit
from lib.training import Batches, Step, new_model, recipe_for, train


def pretrain(
    config: Config,
    dataset: Dataset,
    runs: str | Path = RUNS,
    device: str | None = None,
    progress: bool = True,
    wait: bool = True,
    plan: dict | None = None,
    keep: Sequence[int] = (),
    instead: Sequence[Run] = (),
) -> Run:
    """Train, or return the finished run, or go on with a half-done one.

    runs: folder of all runs; each has its own below.
    device: "cuda", "mps" or "cpu"; default the best there is.
    progress: show a bar with loss, views/s and the time left.
    wait: for another process that is at this very run, to return what it made, instead of an error.
    plan: a note for the record of what the run belongs to (``evidence.plan``); a run that goes on
        keeps the one it began with.
    keep: epochs after which the model is kept, as epoch-N.safetensors.
    instead: runs one of which takes the place of training, where there are any and epochs is not 0
        (``weights.named_runs``).

    A configuration whose precision is "auto" becomes one with the precision that suits the device.
    Where the folder of runs has such a run that another kind of device finished or began, that one
    is returned or goes on, in its own precision (``identities.furthest``).
    SIGTERM and SIGINT end a run after its step and a checkpoint; a second one at once. Within a
    group of processes (``lib.distributed``) all call this; they need a folder that all of them see,
    and may be fewer or more when the run goes on.

    Raises InputError where data and configuration don't fit, no checkpoint is whole, the data
    changed since such a run began, a file can't be written, memory runs out, or none of the runs to
    take is this one; Diverged where the embeddings collapse, or loss or weights stop being finite,
    which is an outcome of its own: a record of it is left in failed.json. The last good checkpoint
    stays, and the run's failure.json says how it ended.
    """
    if dataset.name != config.data:
        raise InputError(
            f"the configuration is for the data set '{config.data}', the one given is "
            f"'{dataset.name}'"
        )
    if instead and config.epochs:
        return _taken(config, dataset, instead)

    chosen = choose_device(device)
    config = _in_its_precision(config, dataset, as_path(runs), chosen)
    folder = as_path(runs) / identity(config, dataset)
    if (folder / "record.json").is_file():
        return load(folder)
    code = provenance.code()  # the code that runs, not a later edit
    sliced = dataset.take(config.images)
    refuse_unfit(config, sliced)

    with only_writer(folder, wait):
        if (folder / "record.json").is_file():  # by the process that was waited for
            return load(folder)
        if rank() == 0:
            remove_leftovers(folder)
        session = begin(config, dataset, folder, chosen, plan or {})
        about = _about(session, dataset, sliced) | {
            "code": code,
            "device": provenance.device(chosen),
        }
        with session.interruptions:
            try:
                _train_and_note_the_end(session, sliced, chosen, progress, keep)
            except Diverged as error:
                if rank() == 0:
                    records.write(folder / "failed.json", _record(session, about, str(error)))
                raise Diverged(f"{folder.name}: {error}") from error
        record = _record(session, about)
        if session.progress.curves:
            size = config.size or sliced.size[0]
            record["cost"] = provenance.cost(config, size, session.model, session.progress.curves)
        if rank() == 0:
            _finish(session, record)
    return Run(folder, config, record, session.model.cpu().eval())


def _taken(config: Config, dataset: Dataset, runs: Sequence[Run]) -> Run:
    """The run of this configuration and data, in whatever precision it was trained."""

    def unlike(run: Run) -> dict:
        return difference(run.config, replace(config, precision=run.config.precision))

    nearest = min(runs, key=lambda run: len(unlike(run)))
    if unlike(nearest):
        field, (theirs, ours) = next(iter(unlike(nearest).items()))
        names = " ".join(run.record["id"] for run in runs)
        raise InputError(
            f"none of the weights {names} is of this run: {field} is {theirs} there and {ours} "
            "here; set the parameters to fit, leave weights out to train, or make such weights: "
            f"{command(config)}"
        )
    nearest.refuse_other(dataset)
    print(f"weights in place of training: {nearest.record['id']}")
    return nearest


def _in_its_precision(config: Config, dataset: Dataset, runs: Path, device: torch.device) -> Config:
    """The configuration with the precision of the run to go on with, else the device's own.

    Ranks have that which rank 0 finds.
    """
    own = computed_on(config, device)
    if not is_open(config):
        return own

    def folder(run: Config) -> Path:
        return runs / identity(run, dataset)

    place = 0  # in COMPUTED
    with rank_0_first():  # who may take long to look
        if rank() == 0:
            found = furthest(config, device, lambda run: checkpoints.steps_taken(folder(run)))
            place = COMPUTED.index((found or own).precision)
    (place,) = agree(place)  # the largest, so rank 0's
    chosen = replace(config, precision=COMPUTED[place])

    if chosen != own:
        does = "takes" if (folder(chosen) / "record.json").is_file() else "goes on with"
        print(f"{does} {folder(chosen).name}, begun in {chosen.precision}", flush=True)
    return chosen


def refuse_unfit(config: Config, sliced: Dataset) -> None:
    """Raise InputError where the images can't be trained on so."""
    height, width = sliced.size
    if height != width:
        side = min(height, width)
        squares = as_command("import", "NAME.npz", "--size", side, "--out", "SQUARE.npz")
        raise InputError(
            f"{sliced.name} has images of {height} x {width} pixels, and networks here see "
            f"squares: {squares} cuts the centre out of each"
        )
    _refuse_unseen(config, height, len(sliced.classes))
    count = sliced.pool_size(config.pool)
    without_labels = sliced.pool_name(config.pool) == "unlabeled"
    if METHODS[config.method].needs_labels and without_labels:
        raise InputError(
            f"{config.method} needs labels, the pool '{config.pool}' of {sliced.name} has none"
        )
    least = config.batch_size if config.drop_last else 2
    if not config.epochs or count >= least:
        return
    ways = []
    if count > 3:
        ways.append(f"batch_size={fitting_batch(count)} for example")
    if config.pool == "unlabeled":
        ways.append("pool=train+val")
    what = f"the pool '{config.pool}' of {sliced.name} has {counted(count, 'image')}"
    to_do = "more are needed"
    if ways:
        to_do = f"set {', or '.join(ways)}"
    raise InputError(f"{what}, fewer than one batch of {least}; {to_do}")


def _refuse_unseen(config: Config, side: int, classes: int) -> None:
    """Raise InputError where nothing is left of a view between the encoder's layers."""
    if config.encoder in BASELINES:
        return
    size = config.size or side
    with torch.device("meta"):
        model = new_model(config, classes).eval()
        try:
            model(torch.empty(2, 3, size, size))
        except RuntimeError as error:
            raise InputError(
                f"{config.encoder} with the stem '{config.stem}' can't see views of {size} pixels "
                f"({in_a_line(error, 80)}): set a larger size, or another stem"
            ) from error


def _train_and_note_the_end(
    session: Session, sliced: Dataset, device: torch.device, show: bool, keep: Sequence[int]
) -> None:
    """Train to the last epoch and save; what ends it too early is noted in the run's folder."""
    try:
        with (
            session.writer,
            memory_kept(device),
            fastest_convolutions(device),
        ):
            _train(session, sliced, device, show, keep)
            session.save()
    except BaseException as error:
        if out_of_memory(error):
            size = session.config.size or sliced.size[0]
            why = which_batch_would_fit(error, session.config, session.model, size)
            session.end(why)
            raise InputError(why) from error
        session.end(lost(error) or f"{type(error).__name__}: {error}")
        raise


def _train(
    session: Session, sliced: Dataset, device: torch.device, show: bool, keep: Sequence[int]
) -> None:
    """Take the steps, one after the other, with a checkpoint and a look at what comes out."""
    config, progress = session.config, session.progress
    if not config.epochs:
        return
    assert session.optimiser is not None  # a configuration that trains has parameters
    batches, take_step = batches_and_step(
        config, session.model, session.optimiser, session.scaler, sliced, device
    )
    if not isinstance(take_step, SharedStep):
        take_step.model = _compiled_where_it_pays(session, batches)
    with progress_bar(
        total=config.epochs * len(batches),
        initial=progress.step,
        desc=f"{config.name} s{config.seed}",
        unit="step",
        dynamic_ncols=True,
        disable=not show or rank() > 0,
    ) as bar:
        for row in train(config, batches, take_step, progress):
            if row is None:
                bar.update()
            else:
                refuse_collapse(config, progress.curves)
                _look(session, sliced, row)
                if row["epoch"] in keep and rank() == 0:
                    path = session.folder / f"epoch-{row['epoch']}.safetensors"
                    checkpoints.save(path, config, progress, session.model)
                speed = f"{row['views_per_second']:.0f}"
                # in nats, as chance and floor are: some presets train by a multiple of it
                bar.set_postfix(loss=f"{row['loss'] / config.factor:.3f}", views_s=speed)
            session.after_step()


def batches_and_step(
    config: Config,
    model: nn.Module,
    optimiser: Optimizer,
    scaler: torch.amp.GradScaler,
    sliced: Dataset,
    device: torch.device,
) -> tuple[Batches, Step]:
    """The plain ones, or those that ranks or chunks share."""
    images = sliced.train.images
    computing = device_of(model, images)
    size = sliced.pool_size(config.pool) * images[0].nbytes
    home, where = home_of(size, computing, room_for(images, computing))
    if active() or home != "device":
        tell(where)
    if active() or config.accumulate > 1:
        shared = SharedBatches(config, sliced, device, home)
        return shared, SharedStep(config, model, optimiser, scaler)
    batches = Batches(config, sliced, device, fits=home == "device")
    return batches, Step(config, model, optimiser, scaler)


def _compiled_where_it_pays(session: Session, batches: Batches) -> nn.Module:
    """The session's model as a step runs it; where it is compiled, the record says how."""
    config, model = session.config, session.model
    steps = config.epochs * len(batches) - session.progress.step
    if steps < STEPS or not is_offered(batches.device):
        return model
    views = config.views * config.batch_size
    operations = steps * views * flops(model, batches.recipe.side(batches.images))
    mode = mode_of(operations, matrix_rate(batches.device, config.precision), views)
    if mode is None:
        return model
    session.progress.segments[-1]["compiled"] = mode
    tell(
        f"the encoder is compiled ({mode}), which takes a minute; TORCH_COMPILE_DISABLE=1 in the "
        "environment leaves it as it is"
    )
    return Compiled(model, mode)


def _look(session: Session, sliced: Dataset, row: dict) -> None:
    """Add to the epoch's row what is looked at every so many epochs, in the run's precision.

    The row names it where it is not float32.
    """
    config, epoch, model = session.config, row["epoch"], session.model
    asks_knn = config.knn_every and epoch % config.knn_every == 0
    asks_test = config.test_every and epoch % config.test_every == 0
    if not asks_knn and not asks_test:
        return
    recipe = recipe_for(config, sliced, "none")
    if config.precision != "float32":
        row["look_precision"] = config.precision
    if asks_knn:
        row["knn"] = knn_on_val(model, sliced, recipe, config.precision)
    if asks_test:
        row["test_correct"] = classified(model, sliced.test, recipe, config.precision)


def _about(session: Session, dataset: Dataset, sliced: Dataset) -> dict:
    """What a record says of a run that is known before it is trained."""
    config, progress = session.config, session.progress
    about = {
        "schema": records.SCHEMA,
        "id": session.folder.name,
        "config": asdict(config),
        "delta": delta(config),
        "recipe": recipe_content(config.recipe),
        "data": {
            "name": dataset.name,
            "variant": dataset.variant,
            "fingerprint": dataset.fingerprint,
            "classes": list(dataset.classes),
            "counts": sliced.counts,
            "pool": sliced.pool_size(config.pool),
        },
        "input": seen_as(config, sliced),
        "numerics": NUMERICS,
        "versions": provenance.versions(),
        "started": progress.started,
    }
    if progress.plan:
        about["plan"] = progress.plan
    return about


def _record(session: Session, about: dict, failed: str | None = None) -> dict:
    """What a run was and what came out so far; evaluation comes later."""
    progress = session.progress
    why = inexact(progress.segments)
    record = about | {
        "finished": provenance.now(),
        "segments": progress.segments,
        "bit_exact": why is None,
        "seconds": sum(row["seconds"] for row in progress.curves),
        "views_per_second": provenance.rate(progress.curves),
        "cost": {},
        "curves": progress.curves,
        "evaluation": {},
    }
    if why is not None:
        record["inexact_because"] = why
    if failed is not None:
        record["failed"] = failed
    return record


def _finish(session: Session, record: dict) -> None:
    """Leave the run's model and record, and nothing of the way there."""
    folder = session.folder
    checkpoints.save(folder / "model.safetensors", session.config, session.progress, session.model)
    records.write(folder / "record.json", record)
    left = [*folder.glob("checkpoint*.safetensors*"), folder / ENDED, folder / "failed.json"]
    for path in left:
        path.unlink(missing_ok=True)
