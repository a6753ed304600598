"""Experiments as data: what the book owes its readers, and what of it has a record already.

``book/experiments.yml`` lists them, in order of worth: a preset plus a delta, seeds, the probes
wanted of each run, the claims it bears on. ``work`` trains what has no published record, evaluates
it and publishes it at once; stopped, it goes on.
"""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field, model_validator

from lib import ROOT, InputError, counted, unknown
from lib.config import COMPUTED, Config, one_of
from lib.evidence.ledger import Ledger, in_total, key, key_of
from lib.hardware import choose_device
from lib.parsing import read_yaml
from lib.presets import preset
from lib.probes import PROBES
from lib.runs import computed_on, is_open, provenance, records
from lib.validation import checked, labelled_entries, validated

EXPERIMENTS = ROOT / "book" / "experiments.yml"
SCALES = ("slice", "full")
PLAN = "plan"  # the scale of entries that evidence.plan reads

Changes = dict[str, Any]  # fields of a configuration and their values
Probes = tuple[Annotated[str, one_of("probe", PROBES)], ...]


@checked
class Experiment:
    """One line of the list.

    Its runs: every seed x every delta in runs x every combination of the values in vary.
    """

    name: str
    about: str  # the question, in a sentence
    # "slice": hours on a CPU; "full": the published size
    scale: Annotated[str, one_of("scale", SCALES)]
    worth: int  # 1 is run before 2; within a worth the first seeds of all before the second ones
    preset: str
    wanted: Probes
    claims: tuple[str, ...]  # ids in book/claims.yml that it bears on
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    delta: Changes = field(default_factory=dict)
    runs: tuple[Changes, ...] = ({},)
    vary: dict[str, list] = field(default_factory=dict)

    @model_validator(mode="after")
    def _has_configurations(self) -> "Experiment":
        _ = self.configs
        return self

    @property
    def configs(self) -> list[Config]:
        """The configurations, seed by seed.

        Raises InputError where the preset, a field or a value is unknown.
        """
        configs = []
        for seed in self.seeds:
            for run in self.runs:
                for values in product(*self.vary.values()):
                    varied = dict(zip(self.vary, values))
                    changes = self.delta | run | varied | {"seed": seed}
                    configs.append(preset(self.preset, **changes))
        return configs


@dataclass(frozen=True)
class Task:
    """One run: its configuration, and what all its experiments want of it."""

    config: Config
    wanted: tuple[str, ...] = ()  # probes
    experiments: tuple[str, ...] = ()  # their names, the first first


def is_planned(entry: object) -> bool:
    """Whether an entry as it stands in the file is one of the plan's, which evidence.plan reads."""
    return isinstance(entry, dict) and entry.get("scale") == PLAN


def read(path: Path = EXPERIMENTS) -> list[Experiment]:
    """The experiments, most valuable first.

    Raises InputError, naming file and experiment, where something is wrong.
    """
    experiments = []
    for label, entry in labelled_entries(read_yaml(path), path, "experiment", "experiments"):
        if not is_planned(entry):
            experiments.append(validated(Experiment, entry, label))
    return sorted(experiments, key=lambda experiment: experiment.worth)


def choose(
    names: Iterable[str] = (), scale: str | None = None, path: Path = EXPERIMENTS
) -> list[Experiment]:
    """The experiments of the names given (any scale), else all of a scale.

    scale: None: "full" where there is a GPU, else "slice".
    """
    known = {experiment.name: experiment for experiment in read(path)}
    chosen = []
    for name in names:
        if name not in known:
            raise InputError(unknown("experiment", name, known))
        chosen.append(known[name])
    if chosen:
        return chosen

    if scale is not None and scale not in SCALES:
        raise InputError(unknown("scale", scale, (*SCALES, PLAN)))
    if scale is None:
        scale = "full" if choose_device().type == "cuda" else "slice"
    return [experiment for experiment in known.values() if experiment.scale == scale]


def published(*names: str, results: Path = records.RESULTS, path: Path = EXPERIMENTS) -> list[dict]:
    """The published records of the first of these experiments that has any.

    results: the folder of records.
    path: the list of experiments.

    They may be on any version of the data. A precision that is left to the device ("auto") may be
    any.
    """
    kept = [record for record in records.load_all(results) if "failed" not in record]
    keys = [key_of(record) for record in kept]

    for experiment in choose(names, path=path):
        wanted = {key(config) for config in _in_any_precision(experiment.configs)}
        matching = [record for record, own in zip(kept, keys) if own in wanted]
        if matching:
            return matching
    return []


def _in_any_precision(configs: list[Config]) -> Iterator[Config]:
    """The configurations; those whose precision is left open in each that there is."""
    for config in configs:
        if config.precision != "auto":
            yield config
            continue
        for precision in COMPUTED:
            yield replace(config, precision=precision)


def tasks(experiments: list[Experiment], device: str | None = None) -> list[Task]:
    """Every run once, in order of worth; the same run in two experiments is evaluated for both.

    A precision that the device decides stays open: what there is of the run decides it.
    """
    chosen = choose_device(device)
    ranked = []
    for experiment in experiments:
        for config in experiment.configs:
            rank = experiment.worth, experiment.seeds.index(config.seed)
            ranked.append((rank, experiment, config))
    ranked.sort(key=lambda row: row[0])

    by_run: dict[str, Task] = {}
    for _, experiment, config in ranked:
        if not is_open(config):
            config = computed_on(config, chosen)
        run = key(config)
        task = by_run.get(run, Task(config))
        by_run[run] = Task(
            task.config,
            tuple(dict.fromkeys((*task.wanted, *experiment.wanted))),
            (*task.experiments, experiment.name),
        )
    return list(by_run.values())


def overview(
    experiments: list[Experiment], ledger: Ledger, device: str | None = None
) -> pd.DataFrame:
    """A row per experiment: scale, worth, runs, done, missing and the missing minutes of training.

    A run that several experiments share takes its minutes where it comes first; NaN where nothing
    measured tells.
    """
    rows = {}
    for experiment in experiments:
        about = {name: getattr(experiment, name) for name in ("scale", "worth")}
        counts = {"runs": 0, "done": 0, "missing": 0, "minutes": 0.0}
        rows[experiment.name] = {"experiment": experiment.name} | about | counts

    for task in tasks(experiments, device):
        config = ledger.settled(task.config, task.wanted)
        status = "missing" if ledger.todo(config, task.wanted) else "done"
        for name in task.experiments:
            rows[name]["runs"] += 1
            rows[name][status] += 1
        if status == "missing":
            minutes = ledger.minutes(config)
            rows[task.experiments[0]]["minutes"] += math.nan if minutes is None else minutes
    return pd.DataFrame(rows.values())


def in_words(table: pd.DataFrame, ledger: Ledger) -> list[str]:
    """An overview in lines for people."""
    kind = ledger.device["type"]
    total = f"{in_total(table.minutes, 'minutes')} of training are missing on this {kind}"
    lines = [table.to_string(index=False, float_format="{:.1f}".format, na_rep="?"), total]
    for why in ledger.missing.values():
        lines.append(f"note: {why}; its runs are told by their configuration alone")
    return lines


def work(
    experiments: list[Experiment],
    ledger: Ledger,
    budget: float | None = None,
    device: str | None = None,
    package: dict | None = None,
) -> None:
    """Train, evaluate and publish what is missing, most valuable first.

    budget: minutes. A run is begun where its estimate fits into what is left of them: the training
        (where no record tells how long, three steps of it do) and what evaluating cost so far.
    package: what ``provenance.code`` says of the code; None: it is asked.

    Raises InputError where the package differs from its commit, which no record could name, and at
    the end where runs failed.
    """
    provenance.refuse_uncommitted(package)
    ending = math.inf if budget is None else time.monotonic() + 60 * budget
    overheads: list[float] = []  # minutes of evaluating, run by run
    failed: list[str] = []
    left_out = 0
    for task in tasks(experiments, device):
        task = replace(task, config=ledger.settled(task.config, task.wanted))
        if not ledger.todo(task.config, task.wanted):
            continue

        overhead = sum(overheads) / max(len(overheads), 1)
        if not ledger.fits(task.config, (ending - time.monotonic()) / 60 - overhead):
            left_out += 1
            continue

        begun = time.monotonic()
        try:
            record = _finish(task, ledger, device)
        except InputError as error:
            failed.append(f"{task.experiments[0]}: {error}")
            continue

        minutes = (time.monotonic() - begun) / 60
        overheads.append(max(minutes - record["seconds"] / 60, 0))
        print(f"{task.experiments[0]}: {record['id']} in {minutes:.1f} minutes", flush=True)

    if left_out and budget is not None:
        print(budget_note(left_out, budget))
    if failed:
        raise InputError("\n".join(dict.fromkeys(failed)))


def budget_note(left: int, budget: float) -> str:
    """That so many runs were not begun within a budget, in minutes."""
    minutes = "1 minute" if budget == 1 else f"{budget:g} minutes"
    return f"did not fit into {minutes}: {counted(left, 'run')}"


def _finish(task: Task, ledger: Ledger, device: str | None) -> dict:
    """Make one run (``Ledger.make``). Returns its record."""
    dataset = ledger.data(task.config.data)
    if dataset is None:
        raise InputError(ledger.missing[task.config.data])

    return ledger.make(task.config, dataset, task.wanted, device).record
