"""One loop for SimCLR, SupCon and cross-entropy.

The order of images is a function of (seed, epoch), the views are one of (seed, step); so a run is determined by its
configuration and data, to the bit on one kind of CPU with one number of threads, elsewhere up to rounding. It has an
identity, the hash of both: asking for a run that is done returns it at once, and asking for one that is half done goes
on from its checkpoint.
"""

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lib import ROOT, InputError, checkpoints, evaluation, losses, records
from lib.augmentations import RECIPES, Recipe, views
from lib.config import Config, unknown
from lib.data import Dataset, Split, order
from lib.encoders import Model
from lib.hardware import choose_device, choose_precision, matrix_rate, memory_format, memory_kept, peak_memory
from lib.optimisers import batch_sizes, build_optimiser, learning_rate

NUMERICS = 1                # raise when a change makes earlier runs incomparable: it enters every run's identity
CHECKPOINT_SECONDS = 60     # a checkpoint at the first end of an epoch after so long
RUNS = ROOT / "runs"


@dataclass
class Run:
    """A finished run: its folder, its record and its model (on the CPU, in eval mode)."""

    folder: Path
    config: Config
    record: dict
    model: Model = field(repr=False)

    @property
    def curves(self) -> list[dict]:
        """One dictionary per epoch: epoch, loss, learning_rate, seconds, contrast and, where measured, knn."""
        return self.record["curves"]


def recipe_for(config: Config, dataset: Dataset, name: str | None = None) -> Recipe:
    """The run's recipe (or the one of that name) with its size and normalisation, from the data where left open."""
    mean, std = dataset.moments
    return replace(RECIPES[name or config.recipe], size=config.size, mean=config.mean or mean, std=config.std or std)


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


def identity(config: Config, dataset: Dataset) -> str:
    """The run's name: preset, epochs, seed, and a hash of everything that decides its numbers."""
    text = json.dumps([config.decisive, dataset.fingerprint, NUMERICS], sort_keys=True)
    return f"{config.name}-e{config.epochs}-s{config.seed}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def pretrain(config: Config, dataset: Dataset, runs: str | Path = RUNS, device: str | None = None,
             progress: bool = True) -> Run:
    """Train, or return the finished run, or go on with a half-done one.

    runs: folder of all runs; each has its own below. device: "cuda", "mps" or "cpu"; default the best there is.
    progress: show a bar with loss, views/s and the time left.
    A configuration whose precision is "auto" becomes one with the precision that suits the device.
    Raises InputError where data and configuration don't fit, a checkpoint is damaged or of another configuration, the
    folder can't be written, or the loss stops being finite (the last good checkpoint stays).
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
    model = build_model(config, dataset).to(device, memory_format=memory_format(device))
    optimiser = build_optimiser(config, model)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
    path = folder / "checkpoint.safetensors"
    if path.is_file():
        curves = checkpoints.resume(path, config, model, optimiser, scaler)
    else:
        curves = []
        checkpoints.save(path, config, curves, model, optimiser, scaler)    # can the folder be written? Now, not later
    with memory_kept(device):
        _train(config, part, pool.to(device), model, optimiser, scaler, curves, folder, progress)
    record = {
        "schema": records.SCHEMA, "id": folder.name, "config": asdict(config), "delta": config.delta,
        "data": {"name": dataset.name, "variant": dataset.variant, "fingerprint": dataset.fingerprint,
                 "classes": list(dataset.classes), "counts": part.counts, "pool": len(pool)},
        "numerics": NUMERICS, "code": code, "versions": records.versions(),
        "device": records.device(device), "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": sum(row["seconds"] for row in curves),
        "views_per_second": _rate(curves), "cost": _cost(config, part, model, curves) if curves else {},
        "curves": curves, "evaluation": {},
    }
    checkpoints.save(folder / "model.safetensors", config, curves, model)
    records.write(folder / "record.json", record)
    path.unlink()
    return Run(folder, config, record, model.cpu().eval())


def load_run(folder: str | Path) -> Run:
    """A finished run from its folder. Raises InputError where a file is missing, damaged or of another run."""
    folder = Path(folder)
    record = records.read(folder / "record.json")
    try:
        config = Config(**record["config"])
    except (TypeError, InputError) as error:
        raise InputError(f"{folder / 'record.json'} holds a configuration of another version ({error})") from error
    embedding = len(record["data"]["classes"]) if config.method == "ce" else config.embedding
    model = Model(config.encoder, config.stem, config.head, embedding)
    checkpoints.resume(folder / "model.safetensors", config, model)
    return Run(folder, config, record, model.eval())


def missing(record: dict, wanted: tuple[str, ...]) -> list[str]:
    """Those of the wanted probes (evaluation.PROBES) that a record has no result of."""
    there = record["evaluation"].get("h", {})
    return [name for name in wanted if name not in there and evaluation.TABLES.get(name) not in record]


def evaluate(run: Run, dataset: Dataset, device: str | None = None,
             wanted: tuple[str, ...] = ("linear", "knn")) -> dict:
    """Probe the run's h and z (lib.evaluation) and write what is new into its record.

    wanted: which of evaluation.PROBES; those in the record already are not computed again. evaluation.TABLES says in
    which field of the record "labels", "calibration" and "corruptions" go.
    Returns the record's "evaluation". Raises InputError for an unknown probe, or where dataset is not the one the run
    was trained on.
    """
    if dataset.fingerprint != run.record["data"]["fingerprint"]:
        raise InputError(f"{run.folder.name} was trained on another version of {run.record['data']['name']}: the "
                         f"fingerprint of {dataset.name} differs")
    for name in wanted:
        if name not in evaluation.PROBES:
            raise InputError(unknown("probe", name, evaluation.PROBES))
    record, part, todo = run.record, dataset.take(run.config.images), missing(run.record, wanted)
    if todo:
        device, recipe = choose_device(device), recipe_for(run.config, part, "none")
        probes = tuple(name for name in todo if name not in evaluation.TABLES)
        with memory_kept(device):
            model = run.model.to(device)
            record |= evaluation.tables(model, part, recipe, run.config.method, tuple(todo))
            found = evaluation.evaluate(model, part, recipe, run.config.method, probes) if probes else {}
        for kind, results in found.items():
            record["evaluation"].setdefault(kind, {}).update(results)
        looks = [row["test_correct"] for row in run.curves if "test_correct" in row]
        if probes and looks:
            record["evaluation"]["z"]["classifier-best"] = {"n": len(part.test), "correct": max(looks)}
        run.model.cpu()
        record["evaluated"] = {"code": records.code(), "versions": records.versions()}     # may be later than training
        records.write(run.folder / "record.json", record)
    return record["evaluation"]


def features(run: Run, images: Tensor, dataset: Dataset, device: str | None = None) -> tuple[Tensor, Tensor]:
    """h (N, width) and z (N, D), on the CPU, of images (N, 3, H, W) uint8, as the evaluation of the run sees them.

    dataset: the one the run was trained on; it says how pixels are normalised.
    """
    recipe = recipe_for(run.config, dataset.take(run.config.images), "none")
    h, z = evaluation.features(run.model.to(choose_device(device)), images, recipe)
    run.model.cpu()
    return h.cpu(), z.cpu()


def _train(config: Config, dataset: Dataset, pool: Split, model: Model, optimiser, scaler, curves: list[dict],
           folder: Path, progress: bool) -> None:
    """The loop. Appends one row per epoch to curves."""
    device = pool.images.device
    recipe = recipe_for(config, dataset)
    sizes = batch_sizes(config, len(pool))
    batches, last_full = len(sizes), max(len(pool) // config.batch_size, 1) - 1
    saved = time.monotonic()
    bar = tqdm(total=config.epochs * batches, initial=len(curves) * batches, desc=f"{config.name} s{config.seed}",
               unit="step", mininterval=1, dynamic_ncols=True, disable=not (progress and config.epochs))
    for epoch in range(len(curves), config.epochs):
        model.train()
        started = time.monotonic()
        total, seen = torch.zeros((), device=device), 0
        places = order(len(pool), config.seed, epoch).to(device)
        for batch, rows in enumerate(places[:sum(sizes)].split(config.batch_size)):
            step = epoch * batches + batch
            rate = learning_rate(config, step, batches)
            for group in optimiser.param_groups:
                group["lr"] = rate
            x = views(pool.images[rows], recipe, config.seed, step, config.views)      # (V, N, 3, S, S)
            labels = None if pool.labels is None else pool.labels[rows]
            loss, z = train_step(config, model, optimiser, scaler, x, labels)
            if batch == last_full and config.method != "ce":
                shown = z, labels if config.method == "supcon" else None
            total += loss * len(rows)
            seen += len(rows)
            bar.update()
        mean = float(total) / seen
        if not math.isfinite(mean):
            raise InputError(f"the loss of {folder.name} became {mean} in epoch {epoch + 1}; lower learning_rate or "
                             f"raise temperature (the last checkpoint is kept)")
        seconds = time.monotonic() - started
        row = {"epoch": epoch + 1, "loss": mean, "learning_rate": rate, "seconds": seconds,
               "views_per_second": seen * config.views / seconds}
        if config.method != "ce":
            row |= losses.contrast(*shown)._asdict()
        if config.knn_every and (epoch + 1) % config.knn_every == 0:
            row["knn"] = evaluation.knn_on_val(model, dataset, recipe_for(config, dataset, "none"))
        if config.test_every and (epoch + 1) % config.test_every == 0:
            row["test_correct"] = evaluation.classified(model, dataset.test, recipe_for(config, dataset, "none"))
        curves.append(row)
        bar.set_postfix(loss=f"{mean:.3f}", views_s=f"{row['views_per_second']:.0f}")
        if epoch + 1 < config.epochs and time.monotonic() - saved > CHECKPOINT_SECONDS:
            checkpoints.save(folder / "checkpoint.safetensors", config, curves, model, optimiser, scaler)
            saved = time.monotonic()
    bar.close()


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
