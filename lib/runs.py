"""Finished runs: how they are named, loaded, probed, and what they make of images."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from lib import ROOT, InputError, checkpoints, distributed, evaluation, records
from lib.augmentations import RECIPES, Recipe, apply, draw
from lib.config import Config, recipe_content, unknown, unlike_first
from lib.data import Dataset
from lib.encoders import Model
from lib.hardware import choose_device, lent, memory_kept
from lib.kmeans import KMeans

NUMERICS = 1  # raise when a change makes earlier runs incomparable: it enters every run's identity
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
        """One dictionary per epoch: epoch, loss, learning_rate, seconds, contrast and, where
        measured, knn."""
        return self.record["curves"]

    @property
    def cost(self) -> str:
        """How fast it went, how near the device's limit, and what memory it took, as far as its
        record knows."""
        cost, parts = (
            self.record.get("cost", {}),
            [f"{self.record['views_per_second']:,.0f} views/s"],
        )
        if cost:
            parts.append(f"{100 * cost['share_of_matrix_rate']:.0f} % of the device's matrix rate")
        if cost.get("peak_bytes"):
            parts.append(f"{cost['peak_bytes'] / 1e6:,.0f} MB at most")
        return ", ".join(parts)


def identity(config: Config, dataset: Dataset) -> str:
    """The run's name: preset, epochs, seed, and a hash of everything that decides its numbers; the
    device does not."""
    unlike = unlike_first(config.recipe, recipe_content(config.recipe))
    text = json.dumps([config.decisive, dataset.fingerprint, NUMERICS, *unlike], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return f"{config.name}-e{config.epochs}-s{config.seed}-{digest}"


def build_model(config: Config, dataset: Dataset) -> Model:
    """The model of a run, freshly initialised from its seed, on the CPU. The global random state is
    left as it was.

    k-means, which no gradient trains, has learned from the run's pool.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        embedding = len(dataset.classes) if config.method == "ce" else config.embedding
        model = Model(config.encoder, config.stem, config.head, embedding)
    if isinstance(model.encoder, KMeans):
        part = dataset.take(config.images)
        images, recipe = part.pool(config.pool).images, recipe_for(config, part, "none")
        batches = (apply(batch, draw(recipe, len(batch), 0, 0)) for batch in images.split(1024))
        model.encoder.fit(batches, len(images), config.seed)
    return model


def recipe_for(config: Config, dataset: Dataset, name: str | None = None) -> Recipe:
    """The run's recipe (or the one of that name) with its size and normalisation, from the data
    where left open."""
    mean, std = dataset.moments
    return replace(
        RECIPES[name or config.recipe],
        size=config.size,
        mean=config.mean or mean,
        std=config.std or std,
    )


def load_run(folder: str | Path) -> Run:
    """A finished run from its folder. Raises InputError where a file is missing, damaged or of
    another run."""
    record, config, model = described(Path(folder))
    checkpoints.restore(Path(folder) / "model.safetensors", config, record["id"], model)
    return Run(Path(folder), config, record, model.eval())


def described(folder: Path) -> tuple[dict, Config, Model]:
    """A run's record, its configuration and its model, which has no weights yet: it is on the
    "meta" device."""
    record = records.read(folder / "record.json")
    try:
        config = Config(**record["config"])
        embedding = len(record["data"]["classes"]) if config.method == "ce" else config.embedding
        with torch.device("meta"):  # takes no memory until the weights are there
            return record, config, Model(config.encoder, config.stem, config.head, embedding)
    except (TypeError, RuntimeError, InputError) as error:
        raise InputError(
            f"{folder / 'record.json'} holds a configuration of another version ({error})"
        ) from error


def missing(record: dict, wanted: tuple[str, ...]) -> list[str]:
    """Those of the wanted probes (evaluation.PROBES) that a record has no result of."""
    there = record["evaluation"].get("h", {})
    return [
        name for name in wanted if name not in there and evaluation.TABLES.get(name) not in record
    ]


def evaluate(
    run: Run,
    dataset: Dataset,
    device: str | None = None,
    wanted: tuple[str, ...] = ("linear", "knn"),
    wait: bool = True,
) -> dict:
    """Probe the run's h and z (lib.evaluation) and write what is new into its record.

    wanted: which of evaluation.PROBES; those in the record already are not computed again.
    evaluation.TABLES says in which field of the record "labels", "calibration" and "corruptions"
    go. wait: for another process that is at this run, instead of an error. Returns the record's
    "evaluation". Raises InputError for an unknown probe, or where dataset is not the one the run
    was trained on.
    """
    if dataset.fingerprint != run.record["data"]["fingerprint"]:
        raise InputError(
            f"{run.folder.name} was trained on another version of {run.record['data']['name']}: "
            "the "
            f"fingerprint of {dataset.name} differs; restore that version, or train anew"
        )
    for name in wanted:
        if name not in evaluation.PROBES:
            raise InputError(unknown("probe", name, evaluation.PROBES))
    if missing(run.record, wanted):
        with distributed.only_writer(run.folder, wait):
            run.record.update(
                records.read(run.folder / "record.json")
            )  # with what others found meanwhile
            if todo := missing(run.record, wanted):
                _probe(run, dataset.take(run.config.images), device, todo)
    return run.record["evaluation"]


def _probe(run: Run, part: Dataset, device: str | None, todo: list[str]) -> None:
    """Compute what is missing, and write it into the record."""
    record, device, recipe = run.record, choose_device(device), recipe_for(run.config, part, "none")
    probes = tuple(name for name in todo if name not in evaluation.TABLES)
    with memory_kept(device), lent(run.model, device) as model:
        record |= evaluation.tables(model, part, recipe, run.config.method, tuple(todo))
        found = (
            evaluation.evaluate(model, part, recipe, run.config.method, probes) if probes else {}
        )
    for kind, results in found.items():
        record["evaluation"].setdefault(kind, {}).update(results)
    looks = [row["test_correct"] for row in run.curves if "test_correct" in row]
    if probes and looks:
        record["evaluation"]["z"]["classifier-best"] = {"n": len(part.test), "correct": max(looks)}
    record["evaluated"] = {
        "code": records.code(),
        "versions": records.versions(),
    }  # may be later than training
    if not distributed.rank():
        records.write(run.folder / "record.json", record)


def features(
    run: Run, images: Tensor, dataset: Dataset, device: str | None = None
) -> tuple[Tensor, Tensor]:
    """h (N, width) and z (N, D), on the CPU, of images (N, 3, H, W) uint8, as the evaluation of the
    run sees them.

    dataset: the one the run was trained on; it says how pixels are normalised.
    """
    recipe = recipe_for(run.config, dataset.take(run.config.images), "none")
    with lent(run.model, choose_device(device)) as model:
        h, z = evaluation.features(model, images, recipe)
    return h.cpu(), z.cpu()
