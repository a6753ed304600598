"""Experiments as data: what the book owes its readers, in order of worth, and what of it has a
record already.

``book/experiments.yml`` lists them: a preset plus a delta, seeds, the probes wanted of each run,
the claims it bears on. ``run`` trains what has no published record, evaluates it and publishes it
at once; stopped, it goes on.
"""

import functools
import json
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pandas as pd

from lib import ROOT, InputError, evaluation, records, training
from lib.config import PRECISIONS, Config, preset, unknown
from lib.data import Dataset, data_root, load
from lib.encoders import Model
from lib.files import read_yaml
from lib.hardware import choose_device, choose_precision
from lib.optimisers import batch_sizes

EXPERIMENTS = ROOT / "book" / "experiments.yml"
SCALES = ("slice", "full")
PLAN = "plan"  # the scale of entries that lib.plan reads
FOLDERS = {
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "stl10": "stl10_binary",
    "imagenette96": "imagenette2-320",
}  # where torchvision puts a download


@dataclass(frozen=True)
class Experiment:
    """One line of the list. Its runs: every seed x every delta in runs x every combination of the
    values in vary."""

    name: str
    about: str  # the question, in a sentence
    scale: str  # "slice": hours on a CPU; "full": the published size
    worth: int  # 1 is run before 2; within a worth the first seeds of all before the second ones
    preset: str
    wanted: tuple  # evaluation.PROBES
    claims: tuple  # ids in book/claims.yml that it bears on
    seeds: tuple = (0, 1, 2)
    delta: dict | None = None
    runs: tuple = ({},)
    vary: dict | None = None

    @property
    def configs(self) -> list[Config]:
        """The configurations, seed by seed. Raises InputError where the preset, a field or a value
        is unknown."""
        vary = self.vary or {}
        deltas = [
            (self.delta or {}) | run | dict(zip(vary, values))
            for run in self.runs
            for values in product(*vary.values())
        ]
        return [
            preset(self.preset, **delta | {"seed": seed}) for seed in self.seeds for delta in deltas
        ]


def published(*names: str, results: Path = records.RESULTS) -> list[dict]:
    """The published records of the first of these experiments that has any, on whatever version of
    its data.

    A precision that is left to the device ("auto") may be any.
    """
    kept = [(record, Config(**record["config"])) for record in records.load_all(results)]
    for experiment in choose(names):
        wanted = [
            replace(config, precision=precision).decisive
            for config in experiment.configs
            for precision in (PRECISIONS if config.precision == "auto" else [config.precision])
        ]
        found = [
            record
            for record, config in kept
            if config.decisive in wanted and "failed" not in record
        ]
        if found:
            return found
    return []


@dataclass(frozen=True)
class Task:
    """One run: its configuration, the probes wanted of it by all its experiments, and their names,
    the first first."""

    config: Config
    wanted: tuple[str, ...] = ()
    experiments: tuple[str, ...] = ()


def read(path: Path = EXPERIMENTS) -> list[Experiment]:
    """The experiments, most valuable first. Raises InputError, naming file and experiment, where
    something is wrong."""
    entries = read_yaml(path)
    found = []
    for entry in entries if isinstance(entries, list) else [entries]:
        if isinstance(entry, dict) and entry.get("scale") == PLAN:
            continue
        try:
            found.append(
                Experiment(
                    **{
                        field: tuple(value) if isinstance(value, list) else value
                        for field, value in entry.items()
                    }
                )
            )
            for what, value, known in (
                ("scale", found[-1].scale, SCALES),
                *(("probe", probe, evaluation.PROBES) for probe in found[-1].wanted),
            ):
                if value not in known:
                    raise InputError(unknown(what, value, known))
            _ = found[-1].configs
        except (InputError, TypeError, AttributeError) as error:
            name = entry.get("name") if isinstance(entry, dict) else entry
            raise InputError(f"{path}: experiment {name}: {error}") from error
    return sorted(found, key=lambda experiment: experiment.worth)


def choose(
    names: list[str] | tuple = (), scale: str | None = None, path: Path = EXPERIMENTS
) -> list[Experiment]:
    """Those of the names given (any scale), else all of a scale; None: "full" where there is a GPU,
    else "slice"."""
    known = {experiment.name: experiment for experiment in read(path)}
    for name in names:
        if name not in known:
            raise InputError(unknown("experiment", name, known))
    scale = scale or ("full" if choose_device().type == "cuda" else "slice")
    return [known[name] for name in names] or [
        experiment for experiment in known.values() if experiment.scale == scale
    ]


def tasks(experiments: list[Experiment], device: str | None = None) -> list[Task]:
    """Every run once, in order of worth; the same run in two experiments is evaluated for both."""
    device, found = choose_device(device), {}
    ranked = [
        (experiment.worth, experiment.seeds.index(config.seed), experiment, config)
        for experiment in experiments
        for config in experiment.configs
    ]
    for _, _, experiment, config in sorted(ranked, key=lambda rank: rank[:2]):
        config = replace(config, precision=choose_precision(config.precision, device))
        task = found.get(_key(config), Task(config))
        found[_key(config)] = replace(
            task,
            wanted=tuple(dict.fromkeys((*task.wanted, *experiment.wanted))),
            experiments=(*task.experiments, experiment.name),
        )
    return list(found.values())


def _key(config: Config, numerics: int = training.NUMERICS) -> str:
    return json.dumps([config.decisive, numerics], sort_keys=True)


class Ledger:
    """What is there already: records, data sets (fetched, with download), and the speed that the
    records tell."""

    def __init__(
        self,
        root: Path | None = None,
        results: Path = records.RESULTS,
        runs: Path = training.RUNS,
        device: str | None = None,
        download: bool = False,
    ):
        self.root, self.results, self.runs, self.download = (
            data_root(root),
            Path(results),
            Path(runs),
            download,
        )
        self.device = records.device(choose_device(device))
        self.records, self.missing, self._data = (
            {},
            {},
            {},
        )  # by key, newest first; why data are missing; data
        self._read = {}  # files of results, when they were changed last
        self.refresh()

    def refresh(self) -> None:
        """Read the records that are new or changed in the folder of results: those of other
        processes."""
        for path in sorted(self.results.glob("*.json")):
            changed = path.stat().st_mtime_ns
            if self._read.get(path) != changed:
                self._read[path] = changed
                self.add(records.read(path))

    def add(self, record: dict) -> None:
        self.records.setdefault(_key(Config(**record["config"]), record["numerics"]), []).insert(
            0, record
        )

    def data(self, name: str) -> Dataset | None:
        """The data set, or None where it is not there (or, with download, can't be had)."""
        if name not in self._data:
            files = (f"{name}.npz", FOLDERS.get(name, f"{name}.npz"))
            try:
                if not (
                    self.download
                    or name == "digits"
                    or any((self.root / file).exists() for file in files)
                ):
                    raise InputError(f"{name} is not in {self.root}")
                self._data[name] = load(name, self.root)
            except InputError as error:
                self._data[name], self.missing[name] = None, str(error)
        return self._data[name]

    def record(self, config: Config) -> dict | None:
        """The published record of the same run; where its data are not there, that of the same
        configuration."""
        dataset = self.data(config.data)
        return next(
            (
                record
                for record in self.records.get(_key(config), ())
                if dataset is None or record["data"]["fingerprint"] == dataset.fingerprint
            ),
            None,
        )

    def asked(self, config: Config) -> list[str]:
        """The probes that the published record of the same run has results of: asked again where it
        is replaced."""
        record = self.record(config)
        return [
            name for name in evaluation.PROBES if record and not training.missing(record, (name,))
        ]

    def todo(self, task: Task) -> tuple[str, ...]:
        """The probes that are wanted of a run and have no published result."""
        record = self.record(task.config)
        return tuple(training.missing(record, task.wanted)) if record else task.wanted

    def minutes(self, config: Config) -> float | None:
        """How long training will take, by the views and the latest measured speed; None where
        nothing tells yet.

        The speed is that of the same encoder on the same images, else that of another one in
        floating-point operations; on this device, else on another of its type. A run that is done
        but not evaluated takes none.
        """
        everything = [record for of_key in self.records.values() for record in of_key]
        dataset, pool = self.data(config.data), None
        if (
            not config.epochs
            or dataset
            and (self.runs / training.identity(config, dataset) / "record.json").is_file()
        ):
            return 0.0
        if dataset:
            pool = len(dataset.take(config.images).pool(config.pool))
        for record in everything if pool is None else ():
            if _same(record, config, "data", "images", "pool"):
                pool = record["data"]["pool"]
        measured = sorted(
            (
                r
                for r in everything
                if r["views_per_second"]
                and _same(r, config, "precision")
                and r["device"]["type"] == self.device["type"]
            ),
            key=lambda r: (
                [r["device"][key] == self.device[key] for key in ("name", "threads")],
                r["finished"],
            ),
        )
        same = [r for r in measured if _same(r, config, "encoder", "stem", "data", "size")]
        counted, size = (
            [r for r in measured if r.get("cost")],
            config.size or dataset and dataset.size[0],
        )
        if pool is None or not (same or counted and size):
            return None
        views = config.epochs * config.views * sum(batch_sizes(config, pool))
        if same:
            return views / same[-1]["views_per_second"] / 60
        rate = counted[-1]["views_per_second"] * counted[-1]["cost"]["flops_per_view"]
        return (
            views
            * _flops(config.encoder, config.stem, config.head, config.embedding, size)
            / rate
            / 60
        )


def _same(record: dict, config: Config, *names: str) -> bool:
    return all(record["config"][name] == getattr(config, name) for name in names)


@functools.cache
def _flops(encoder: str, stem: str, head: str, embedding: int, size: int) -> int:
    return Model(encoder, stem, head, embedding).flops(size)


def plan(experiments: list[Experiment], ledger: Ledger, device: str | None = None) -> pd.DataFrame:
    """A row per experiment: scale, worth, runs, done, missing and the minutes of training that are
    missing.

    A run that several experiments share takes its minutes where it comes first; NaN where nothing
    measured tells.
    """
    rows = {
        e.name: {
            "experiment": e.name,
            "scale": e.scale,
            "worth": e.worth,
            "runs": 0,
            "done": 0,
            "missing": 0,
            "minutes": 0.0,
        }
        for e in experiments
    }
    for task in tasks(experiments, device):
        missing = bool(ledger.todo(task))
        for name in task.experiments:
            rows[name]["runs"] += 1
            rows[name]["missing" if missing else "done"] += 1
        if missing:
            minutes = ledger.minutes(task.config)
            rows[task.experiments[0]]["minutes"] += float("nan") if minutes is None else minutes
    return pd.DataFrame(rows.values())


def told(table: pd.DataFrame, ledger: Ledger) -> list[str]:
    """A plan in lines for people."""
    total = (
        f"{table.minutes.sum():.0f} minutes of training are missing on this {ledger.device['type']}"
    )
    return [
        table.to_string(index=False, float_format="{:.1f}".format, na_rep="?"),
        total + ", and what is marked ?" * bool(table.minutes.isna().any()),
        *(
            f"note: {why}; its runs are told by their configuration alone"
            for why in ledger.missing.values()
        ),
    ]


def refuse_uncommitted() -> None:
    """Raise InputError where the package differs from its commit."""
    if records.code()["changed"]:
        raise InputError(
            "lib/ differs from its commit, which a record could not name: commit the change first"
        )


def run(
    experiments: list[Experiment],
    ledger: Ledger,
    budget: float | None = None,
    device: str | None = None,
) -> None:
    """Train, evaluate and publish what is missing, most valuable first, as far as the minutes of
    the budget go.

    A run is begun where its estimate fits into what is left: the training, and what evaluating cost
    so far. Raises InputError where the package differs from its commit, which no record could name,
    and at the end where runs failed.
    """
    refuse_uncommitted()
    started, overheads, failed, late = time.monotonic(), [], [], 0
    for task in (task for task in tasks(experiments, device) if ledger.todo(task)):
        spent = (time.monotonic() - started) / 60
        needed = (ledger.minutes(task.config) or 0) + sum(overheads) / max(len(overheads), 1)
        if budget is not None and spent + needed >= budget:
            late += 1
            continue
        try:
            done = _finish(task, ledger, device)
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


def _finish(task: Task, ledger: Ledger, device: str | None) -> dict:
    """Train one run, or go on with it; evaluate and publish it. Returns its record.

    What an older published record of the same run has been asked is asked again, since it will be
    replaced.
    """
    dataset = ledger.data(task.config.data)
    if dataset is None:
        raise InputError(ledger.missing[task.config.data])
    asked = ledger.asked(task.config)
    found = training.pretrain(task.config, dataset, ledger.runs, device)
    training.evaluate(found, dataset, device, tuple(dict.fromkeys((*task.wanted, *asked))))
    records.publish(found.folder, ledger.results)
    ledger.add(found.record)
    return found.record
