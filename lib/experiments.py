"""Experiments as data: what the book owes its readers, in order of worth, and what of it has a record already.

``book/experiments.yml`` lists them. An experiment is a preset plus a delta at several seeds, the probes wanted of each
run, and the claims it bears on. ``run`` trains what has no record in ``results/`` yet, evaluates it and publishes its
record at once; stopped at any time, the same command goes on.
"""

import functools
import json
import time
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path

import pandas as pd
import yaml

from lib import ROOT, InputError, evaluation, records, training
from lib.config import Config, preset, unknown
from lib.data import Dataset, data_root, load
from lib.encoders import Model
from lib.hardware import choose_device, choose_precision
from lib.optimisers import batch_sizes

EXPERIMENTS = ROOT / "book" / "experiments.yml"
SCALES = ("slice", "full")
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "stl10": "stl10_binary",
           "imagenette96": "imagenette2-320"}                      # where torchvision puts a download


@dataclass(frozen=True)
class Experiment:
    """One line of the list. Its runs: every seed x every delta in runs x every combination of the values in vary."""

    name: str
    about: str              # the question, in a sentence
    scale: str              # "slice": hours on a CPU; "full": the published size
    worth: int              # 1 is run before 2; within a worth the first seeds of all before the second ones
    preset: str
    wanted: tuple           # evaluation.PROBES
    claims: tuple           # ids in book/claims.yml that it bears on
    seeds: tuple = (0, 1, 2)
    delta: dict | None = None
    runs: tuple = ({},)
    vary: dict | None = None

    @property
    def configs(self) -> list[Config]:
        """The configurations, seed by seed. Raises InputError where the preset, a field or a value is unknown."""
        vary = self.vary or {}
        deltas = [(self.delta or {}) | run | dict(zip(vary, values))
                  for run in self.runs for values in product(*vary.values())]
        return [preset(self.preset, **delta | {"seed": seed}) for seed in self.seeds for delta in deltas]


@dataclass(frozen=True)
class Task:
    """One run: its configuration, the probes wanted of it by all its experiments, and their names, the first first."""

    config: Config
    wanted: tuple[str, ...] = ()
    experiments: tuple[str, ...] = ()


def read(path: Path = EXPERIMENTS) -> list[Experiment]:
    """The experiments, most valuable first. Raises InputError, naming file and experiment, where something is wrong."""
    try:
        entries = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} can't be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path} must be a list of experiments, each with {_names()}")
    found = []
    for place, entry in enumerate(entries, start=1):
        try:
            experiment = Experiment(**{key: tuple(value) if isinstance(value, list) else value
                                       for key, value in entry.items()})
            if experiment.scale not in SCALES:
                raise InputError(unknown("scale", experiment.scale, SCALES))
            for probe in experiment.wanted:
                if probe not in evaluation.PROBES:
                    raise InputError(unknown("probe", probe, evaluation.PROBES))
            _ = experiment.configs
        except (InputError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: experiment {entry.get('name', f'number {place}')}: {error}") from error
        found.append(experiment)
    return sorted(found, key=lambda experiment: experiment.worth)


def _names() -> str:
    return ", ".join(field.name for field in fields(Experiment))


def choose(names: list[str] = (), scale: str | None = None, path: Path = EXPERIMENTS) -> list[Experiment]:
    """Those of the names given (any scale), else all of a scale; None: "full" where there is a GPU, else "slice"."""
    known = read(path)
    for name in names:
        if name not in [experiment.name for experiment in known]:
            raise InputError(unknown("experiment", name, [experiment.name for experiment in known]))
    scale = scale or ("full" if choose_device().type == "cuda" else "slice")
    return [experiment for experiment in known
            if (experiment.name in names if names else experiment.scale == scale)]


def tasks(experiments: list[Experiment], device: str | None = None) -> list[Task]:
    """Every run once, in order of worth; the same run in two experiments is evaluated for both."""
    device, found = choose_device(device), {}
    ranked = [(experiment.worth, experiment.seeds.index(config.seed), experiment, config)
              for experiment in experiments for config in experiment.configs]
    for _, _, experiment, config in sorted(ranked, key=lambda rank: rank[:2]):
        config = replace(config, precision=choose_precision(config.precision, device))
        task = found.get(_key(config), Task(config))
        found[_key(config)] = replace(task, wanted=tuple(dict.fromkeys((*task.wanted, *experiment.wanted))),
                                      experiments=(*task.experiments, experiment.name))
    return list(found.values())


def _key(config: Config) -> str:
    return json.dumps([config.decisive, training.NUMERICS], sort_keys=True)


class Ledger:
    """What is there already: records, data sets, and the speed that the records tell.

    root: the data root; results: the folder of published records; runs: the folder of runs.
    """

    def __init__(self, root: Path | None = None, results: Path = records.RESULTS, runs: Path = training.RUNS,
                 device: str | None = None, download: bool = False):
        self.root, self.results, self.runs, self.download = data_root(root), Path(results), Path(runs), download
        self.device = records.device(choose_device(device))
        self.missing: dict[str, str] = {}                   # data sets that are not there, and why
        self.records: dict[str, list[dict]] = {}            # the newest first
        self._data: dict[str, Dataset | None] = {}
        for record in records.load_all(self.results):
            self.add(record)

    def add(self, record: dict) -> None:
        key = json.dumps([Config(**record["config"]).decisive, record["numerics"]], sort_keys=True)
        self.records.setdefault(key, []).insert(0, record)

    def data(self, name: str) -> Dataset | None:
        """The data set, or None where it is not there (or, with download, can't be had)."""
        if name not in self._data:
            self._data[name] = self._load(name)
        return self._data[name]

    def _load(self, name: str) -> Dataset | None:
        there = (self.root / f"{name}.npz", self.root / FOLDERS.get(name, f"{name}.npz"))
        if not self.download and not any(path.exists() for path in there) and name != "digits":
            self.missing[name] = f"{name} is not in {self.root}"
            return None
        try:
            return load(name, self.root)
        except InputError as error:
            self.missing[name] = str(error)
            return None

    def record(self, config: Config) -> dict | None:
        """The published record of the same run; where its data are not there, that of the same configuration."""
        dataset = self.data(config.data)
        for record in self.records.get(_key(config), []):
            if dataset is None or record["data"]["fingerprint"] == dataset.fingerprint:
                return record
        return None

    def todo(self, task: Task) -> tuple[str, ...]:
        """The probes that are wanted of a run and have no published result."""
        record = self.record(task.config)
        return tuple(training.missing(record, task.wanted)) if record else task.wanted

    def minutes(self, config: Config) -> float | None:
        """How long training will take, by the views and the latest measured speed; None where nothing tells yet.

        The speed is that of the same encoder on the same images, else that of another one in floating-point operations;
        on this device, else on another of its type. A run that is done but not evaluated takes none.
        """
        views, dataset = self._views(config), self.data(config.data)
        if views == 0 or dataset and (self.runs / training.identity(config, dataset) / "record.json").is_file():
            return 0.0
        measured = sorted((r for of_key in self.records.values() for r in of_key
                           if r["views_per_second"] and r["device"]["type"] == self.device["type"]
                           and r["config"]["precision"] == config.precision),
                          key=lambda r: ([r["device"][key] == self.device[key] for key in ("name", "threads")],
                                         r["finished"]))
        same = [r for r in measured if all(r["config"][field] == getattr(config, field)
                                           for field in ("encoder", "stem", "data", "size"))]
        if views is None or not measured:
            return None
        if same:
            return views / same[-1]["views_per_second"] / 60
        counted = [r for r in measured if r.get("cost")]
        size = config.size or (dataset and dataset.size[0])
        if not counted or not size:
            return None
        rate = counted[-1]["views_per_second"] * counted[-1]["cost"]["flops_per_view"]
        return views * _flops(config.encoder, config.stem, config.head, config.embedding, size) / rate / 60

    def _views(self, config: Config) -> int | None:
        """Views that a run will see; None where neither the data nor a record of them is there."""
        if not config.epochs:
            return 0
        dataset = self.data(config.data)
        if dataset:
            pool = len(dataset.take(config.images).pool(config.pool))
        else:
            pool = next((r["data"]["pool"] for of_key in self.records.values() for r in of_key
                         if all(r["config"][field] == getattr(config, field)
                                for field in ("data", "images", "pool"))), None)
        return None if pool is None else config.epochs * config.views * sum(batch_sizes(config, pool))


@functools.cache
def _flops(encoder: str, stem: str, head: str, embedding: int, size: int) -> int:
    return Model(encoder, stem, head, embedding).flops(size)


def plan(experiments: list[Experiment], ledger: Ledger, device: str | None = None) -> pd.DataFrame:
    """A row per experiment: scale, worth, runs, done, missing and the minutes of training that are missing.

    A run that several experiments share takes its minutes where it comes first; NaN where nothing measured tells.
    """
    rows = {e.name: {"experiment": e.name, "scale": e.scale, "worth": e.worth, "runs": 0, "done": 0, "missing": 0,
                     "minutes": 0.0} for e in experiments}
    for task in tasks(experiments, device):
        missing = bool(ledger.todo(task))
        for name in task.experiments:
            rows[name]["runs"] += 1
            rows[name]["missing" if missing else "done"] += 1
        if missing:
            minutes = ledger.minutes(task.config)
            rows[task.experiments[0]]["minutes"] += float("nan") if minutes is None else minutes
    return pd.DataFrame(rows.values())


def run(experiments: list[Experiment], ledger: Ledger, budget: float | None = None, device: str | None = None) -> None:
    """Train, evaluate and publish what is missing, most valuable first, as far as the minutes of the budget go.

    A run is begun where its estimate fits into what is left: the training, and what evaluating cost so far. What could
    not be done is told, and goes on at the next call. Raises InputError where the package differs from its commit,
    because a record must name the code that made it, and at the end where runs failed.
    """
    if records.code()["changed"]:
        raise InputError("lib/ differs from its commit, which a record could not name: commit the change first")
    started, overheads, failed, late = time.monotonic(), [], [], 0
    for task in tasks(experiments, device):
        todo, minutes = ledger.todo(task), ledger.minutes(task.config)
        if not todo:
            continue
        spent = (time.monotonic() - started) / 60
        needed = (minutes or 0) + (sum(overheads) / len(overheads) if overheads else 0)
        dataset = ledger.data(task.config.data)
        if dataset is None:
            failed.append(f"{task.experiments[0]}: {ledger.missing[task.config.data]}")
            continue
        if budget is not None and spent + needed >= budget:
            late += 1
            continue
        try:
            done = _finish(task, ledger, dataset, device)
        except InputError as error:
            failed.append(f"{task.experiments[0]}: {error}")
            continue
        whole = (time.monotonic() - started) / 60 - spent
        overheads.append(max(whole - done["seconds"] / 60, 0))
        print(f"{task.experiments[0]}: {done['id']} in {whole:.1f} minutes", flush=True)
    if late:
        print(f"{late} runs are left: they did not fit into {budget:g} minutes")
    if failed:
        raise InputError("\n".join(dict.fromkeys(failed)))


def _finish(task: Task, ledger: Ledger, dataset: Dataset, device: str | None) -> dict:
    """Train one run, or go on with it; evaluate and publish it. Returns its record.

    What an older published record of the same run has been asked is asked again, since it will be replaced.
    """
    older = ledger.record(task.config)
    asked = [name for name in evaluation.PROBES if older and not training.missing(older, (name,))]
    found = training.pretrain(task.config, dataset, ledger.runs, device)
    training.evaluate(found, dataset, device, tuple(dict.fromkeys((*task.wanted, *asked))))
    records.publish(found.folder, ledger.results)
    ledger.add(found.record)
    return found.record
