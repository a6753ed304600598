"""What there is already: records, data sets, and the speeds that the records tell."""

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from lib import Diverged, InputError, probes
from lib.config import Config
from lib.data import Dataset, data_root, load
from lib.evidence import estimates
from lib.evidence.timing import epoch_minutes
from lib.hardware import choose_device
from lib.runs import (
    NUMERICS,
    RUNS,
    checkpoints,
    computed_on,
    furthest,
    identity,
    packing,
    pretrain,
    provenance,
    records,
)
from lib.runs.identities import recipe_content, unlike_first
from lib.runs.run import Run

STEPS = 1, 2  # of a run whose cost nothing tells: to warm up, and timed


def key(config: Config) -> str:
    """What two configurations have in common whose runs by this code are the same on equal data."""
    return _key(config, NUMERICS, recipe_content(config.recipe))


def key_of(record: dict) -> str:
    """The same of a record: by the code that made it."""
    return _key(Config(**record["config"]), record["numerics"], record.get("recipe"))


def _key(config: Config, numerics: int, recipe: dict | None) -> str:
    content = [config.decisive, numerics, *unlike_first(config.recipe, recipe)]
    return json.dumps(content, sort_keys=True)


class Ledger:
    """What there is already: records, data sets, and speeds."""

    def __init__(
        self,
        root: str | Path | None = None,
        results: Path = records.RESULTS,
        runs: Path = RUNS,
        device: str | None = None,
        download: bool = False,
    ):
        """Where to look.

        root: the folder of data sets.
        results: the folder of records.
        runs: the folder of runs.
        device: whose speeds count.
        download: whether data sets that are not there are fetched.
        """
        self.root, self.results, self.runs = data_root(root), Path(results), Path(runs)
        self.download = download
        self.computing = choose_device(device)
        self.device = provenance.device(self.computing)
        self.records: dict[str, list[dict]] = {}  # by key, the last one read first
        self.missing: dict[str, str] = {}  # data sets that are not there, and why
        self._data: dict[str, Dataset | None] = {}
        self._timed: list[dict] = []  # what was timed here, as far as a record would tell it
        self._read: dict[Path, int] = {}  # files of results, when they were changed last
        self.refresh()

    def refresh(self) -> None:
        """Read what is new or changed in the folder of results: the records of other processes."""
        for path in sorted(self.results.glob("*.json")):
            changed = path.stat().st_mtime_ns
            if self._read.get(path) != changed:
                self._read[path] = changed
                self.add(records.read(path))

    def add(self, record: dict) -> None:
        """Put a record in the place of an earlier one of its id, before those on other data."""
        run = key_of(record)
        others = [other for other in self.records.get(run, ()) if other["id"] != record["id"]]
        self.records[run] = [record, *others]

    def data(self, name: str) -> Dataset | None:
        """The data set, or None where it is not there (or, with download, can't be had)."""
        if name in self._data:
            return self._data[name]

        self._data[name] = None
        try:
            self._data[name] = load(name, self.root, self.download)
        except InputError as error:
            self.missing[name] = str(error)
        return self._data[name]

    def record(self, config: Config) -> dict | None:
        """The published record of the same run.

        Where its data are not there, that of the same configuration.
        """
        dataset = self.data(config.data)
        for record in self.records.get(key(config), ()):
            if dataset is None or record["data"]["fingerprint"] == dataset.fingerprint:
                return record
        return None

    def settled(self, config: Config, wanted: tuple[str, ...] = ()) -> Config:
        """The configuration in the precision that counts, where it leaves that open.

        That of a run which is finished or begun in any, by a record or in the folder of runs
        (``runs.furthest``); else the device's own.

        wanted: probes. A published run that lacks one counts as begun, where it is not here.
        """

        def steps(run: Config) -> float | None:
            dataset, record = self.data(run.data), self.record(run)
            if record is not None and not self.todo(run, wanted):
                return math.inf
            taken = None
            if dataset is not None:
                taken = checkpoints.steps_taken(self.runs / identity(run, dataset))
            if taken is None and record is not None and "failed" not in record:
                return 0
            return taken

        return furthest(config, self.computing, steps) or computed_on(config, self.computing)

    def asked(self, config: Config) -> list[str]:
        """The probes that the published record of the same run has results of.

        They are asked again where it is replaced.
        """
        record = self.record(config)
        if record is None:
            return []

        missing = probes.missing(record, probes.PROBES)
        return [name for name in probes.PROBES if name not in missing]

    def make(
        self,
        config: Config,
        dataset: Dataset,
        wanted: Iterable[str],
        device: str | None = None,
        plan: dict | None = None,
        keep: Sequence[int] = (),
        kept: Path | None = None,
    ) -> Run:
        """Train a run, or go on with it; evaluate it, publish its record, and keep its encoders.

        wanted: probes. What an older published record of the same run has been asked is asked
            again, since it is replaced.
        device, plan: as in ``runs.pretrain``.
        keep, kept: after which epochs encoders are kept, and the folder where.

        Raises what that does. That a run diverged is published, too.
        """
        try:
            early = [epoch for epoch in keep if epoch < config.epochs]
            run = pretrain(config, dataset, self.runs, device, plan=plan, keep=early)
        except Diverged:
            self._publish(self.runs / identity(config, dataset) / "failed.json")
            raise
        run.evaluate(dataset, device, dict.fromkeys((*wanted, *self.asked(config))))
        try:
            for epoch in keep:  # before the record, which says that all is done
                assert kept is not None
                packing.keep(run, kept, dataset, epoch)
        except InputError:
            self._publish(run.folder)
            raise
        self._publish(run.folder)
        return run

    def _publish(self, path: Path) -> None:
        records.publish(path, self.results)
        self.refresh()

    def todo(self, config: Config, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """The probes that are wanted of a run and have no published result.

        None of a run that failed: that is its outcome.
        """
        record = self.record(config)
        if record is None:
            return wanted
        if "failed" in record:
            return ()
        return tuple(probes.missing(record, wanted))

    def minutes(self, config: Config) -> float | None:
        """How long training will take: as measured, else as ``estimates`` says of such a GPU.

        None where nothing tells yet.
        """
        measured = self.measured_minutes(config)
        if measured is None:
            return estimates.minutes(config, self.device["name"])
        return measured

    def measured_minutes(self, config: Config) -> float | None:
        """How long training will take, by the views and the latest measured speed; None without.

        The speed is that of the same encoder on the same images, else that of another one in
        floating-point operations; on this device, else on another of its type. A run that is done
        but not evaluated takes none.
        """
        dataset = self.data(config.data)
        if not config.epochs or self._is_trained(config, dataset):
            return 0.0

        pool = self._pool(config, dataset)
        if pool is None:
            return None
        views = estimates.views(config, pool)

        measured = self._measured(config)
        for record in (*self._timed, *reversed(measured)):
            if _same(record, config, "encoder", "stem", "data", "size", "precision"):
                return views / record["views_per_second"] / 60

        size = config.size
        if size is None and dataset is not None:
            size = dataset.size[0]
        counted = [record for record in measured if record.get("cost")]
        if not counted or size is None:
            return None

        rate = counted[-1]["views_per_second"] * counted[-1]["cost"]["flops_per_view"]
        return estimates.operations(config, pool, size) / rate / 60

    def timed_minutes(self, config: Config) -> float | None:
        """``measured_minutes``, by a run's own first steps where nothing tells.

        None where its data can't be had; 0 where it can't begin, which it says when it is to.
        """
        minutes, dataset = self.measured_minutes(config), self.data(config.data)
        if minutes is not None or dataset is None:
            return minutes
        try:
            an_epoch = epoch_minutes(config, dataset, self.computing, *STEPS)
        except InputError:
            return 0.0
        pool = dataset.take(config.images).pool_size(config.pool)
        minutes = config.epochs * an_epoch
        speed = estimates.views(config, pool) / minutes / 60
        self._timed.append({"config": asdict(config), "views_per_second": speed})
        return minutes

    def fits(self, config: Config, minutes: float) -> bool:
        """Whether a run would be trained in less than so many minutes, its timing included.

        minutes: infinity where it does not matter, and nothing is timed.

        A run whose data can't be had fits: it says so when it is to begin.
        """
        if minutes == math.inf:
            return True
        if minutes <= 0:
            return False
        started = time.monotonic()
        needed = self.timed_minutes(config) or 0.0
        return (time.monotonic() - started) / 60 + needed < minutes

    def _is_trained(self, config: Config, dataset: Dataset | None) -> bool:
        if dataset is None:
            return False
        return (self.runs / identity(config, dataset) / "record.json").is_file()

    def _pool(self, config: Config, dataset: Dataset | None) -> int | None:
        """How many images are trained on, as the data or a record of the same pool tell."""
        if dataset is not None:
            return dataset.take(config.images).pool_size(config.pool)
        for record in reversed(self.everything()):
            if _same(record, config, "data", "images", "pool"):
                return record["data"]["pool"]
        return None

    def _measured(self, config: Config) -> list[dict]:
        """Records with a speed in the same precision on such a device; the best to go by last."""

        def nearness(record: dict) -> tuple:
            device = record["device"]
            alike = [device.get(key) == self.device[key] for key in ("name", "threads")]
            return alike, record["finished"]

        measured = []
        for record in self.everything():
            if not record["views_per_second"] or not _same(record, config, "precision"):
                continue
            if record["device"]["type"] == self.device["type"]:
                measured.append(record)
        return sorted(measured, key=nearness)

    def everything(self) -> list[dict]:
        """All records."""
        return [record for versions in self.records.values() for record in versions]


def in_total(amounts: pd.Series, unit: str, digits: int = 0) -> str:
    """``12 hours``; with what is unknown (NaN): ``12 hours and an unknown number more``."""
    known = f"{amounts.sum():.{digits}f} {unit}"
    if not amounts.isna().any():
        return known
    if not amounts.sum():
        return f"an unknown number of {unit}"
    return f"{known} and an unknown number more"


def _same(record: dict, config: Config, *names: str) -> bool:
    theirs = record["config"]  # what it does not tell has its default
    return all(
        theirs.get(name, getattr(Config, name, None)) == getattr(config, name) for name in names
    )
