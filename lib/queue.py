"""The queue: takes the plan's next missing run, trains it, evaluates it, publishes its record, and
goes on.

Several processes share one queue: a run is claimed by a lock on a file in the folder of runs, which
the system takes from a process that dies. What was cut off goes on from its last checkpoint.
Records are read anew for every choice, so a process sees what the others have finished.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from lib import Diverged, InputError, plan, records, training, weights
from lib.config import PRECISIONS, Config
from lib.experiments import Ledger, refuse_uncommitted
from lib.hardware import choose_device, choose_precision
from lib.plan import Entry, Planned

CLAIM_SECONDS = 1  # to wait for a lock: whoever only looks whether it is held lets it go at once
POLL_SECONDS = 30  # between looks at runs that other processes are at
KEPT = records.RESULTS / "encoders"


@dataclass(frozen=True)
class State:
    """Where a run of the plan stands."""

    run: Planned
    config: (
        Config | None
    )  # with the precision it is computed in; None where its settings are not known yet
    status: str  # done, failed, running, missing, or waiting for what tuning chooses


class Queue:
    """The plan's entries, and what there is of them: records in the ledger's folder, runs begun in
    its other one."""

    def __init__(
        self, entries: list[Entry], ledger: Ledger, device: str | None = None, kept: Path = KEPT
    ):
        self.entries, self.ledger, self.kept = entries, ledger, kept
        self.device = choose_device(device)

    @cached_property
    def tuning(self) -> dict[str, Entry]:
        """The entry that tries settings for an arm, by the arm's name."""
        return {trials.name: entry for entry in plan.read() for trials in entry.trials}

    def score(self, config: Config) -> float | None:
        """A trial's accuracy on validation, by the linear probe on h; 0 where it failed, None
        without a record."""
        for precision in PRECISIONS[1:]:
            record = self.ledger.record(replace(config, precision=precision))
            if record and "failed" in record:
                return 0.0
            for row in (record or {}).get("validation", ()):
                if (row["features"], row["probe"]) == ("h", "linear"):
                    return row["correct"] / row["n"]
        return None

    def states(self, claims: bool = True) -> Iterator[State]:
        """Every run of every entry, in the order of work. claims: look whether other processes are
        at them."""
        for entry in self.entries:
            runs = plan.runs(entry, self.score)
            precisions = self._precisions(runs)
            for run in runs:
                if run.config is None:
                    yield State(run, None, "waiting")
                    continue
                config = run.config
                if config.precision == "auto":
                    config = replace(config, precision=precisions[config.seed])
                status = self._status(run, config)
                if status == "missing" and claims and self._claimed(config):
                    status = "running"
                yield State(run, config, status)

    def work(self, budget: float | None = None) -> None:
        """Make what is missing, until nothing is left or minutes of the budget are; a run is begun
        where it fits in.

        Raises InputError where the package differs from its commit, which no record could name, and
        at the end where runs failed.
        """
        refuse_uncommitted()
        self._refuse_unlike_choices()
        started, failed = time.monotonic(), {}
        while True:
            left = None if budget is None else budget - (time.monotonic() - started) / 60
            self.ledger.refresh()
            done, busy = self._take_one(left, failed)
            if done:
                continue
            if not busy:
                break
            time.sleep(POLL_SECONDS)
        if failed:
            raise InputError("\n".join(failed.values()))

    def table(self) -> pd.DataFrame:
        """A row per entry: its runs, how many of them are in each status, and the hours that are
        left.

        Hours are by the speeds that records measured, for one process; NaN where none tells.
        """
        rows = {
            entry.name: {
                "entry": entry.name,
                "runs": 0,
                "done": 0,
                "failed": 0,
                "running": 0,
                "missing": 0,
                "waiting": 0,
                "hours": 0.0,
            }
            for entry in self.entries
        }
        for state in self.states():
            row = rows[state.run.entry.name]
            row["runs"] += 1
            row[state.status] += 1
            if state.status not in ("done", "failed"):
                minutes = self._minutes(state)
                row["hours"] += float("nan") if minutes is None else minutes / 60
        return pd.DataFrame(rows.values())

    def choices(self) -> list[str]:
        """What tuning has chosen and is not entered in the plan yet, a line for each arm."""
        lines = []
        for entry in self.entries:
            for arm in entry.arms:
                if arm.tuned is not None and arm.chosen is None:
                    chosen = plan.choice(self.tuning[arm.tuned], arm.tuned, self.score)
                    if chosen is not None:
                        lines.append(
                            f"{entry.name}: enter and commit, in the arm {arm.name}: chosen: "
                            f"{chosen}"
                        )
        return lines

    def _take_one(self, minutes_left: float | None, failed: dict[str, str]) -> tuple[bool, bool]:
        """Make the first run that is missing and free; whether there was one, and whether others
        are being made."""
        busy = False
        for state in self.states(claims=False):
            identity = self._identity(state.config) if state.status == "missing" else None
            if identity is None or identity in failed:
                continue
            needed = self._minutes(state) or 0
            if minutes_left is not None and needed >= minutes_left:
                continue
            with self._claim(state.config) as mine:
                if not mine:
                    busy = True
                    continue
                why = self._try(state)
                if why:
                    failed[identity] = why
                    print(why, flush=True)
                return True, busy
        return False, busy

    def _try(self, state: State) -> str | None:
        """Make a run, where no other process has meanwhile; why that went wrong, or None."""
        self.ledger.refresh()
        if self._status(state.run, state.config) != "missing":
            return None
        try:
            self._finish(state)
        except InputError as error:
            return f"{state.run.entry.name}: {self._identity(state.config)}: {error}"
        return None

    def _finish(self, state: State) -> None:
        """Train a run, or go on with it; evaluate it, keep its encoders, publish it."""
        run, started = state.run, time.monotonic()
        print(f"{run.entry.name}: {run.arm}: {self._identity(state.config)}", flush=True)
        dataset = self.ledger.data(state.config.data)
        try:
            made = training.pretrain(
                state.config,
                dataset,
                self.ledger.runs,
                str(self.device),
                plan=run.entry.note,
                keep=tuple(epoch for epoch in run.keep if epoch < state.config.epochs),
            )
        except Diverged as error:
            records.publish(
                self.ledger.runs / self._identity(state.config) / "failed.json", self.ledger.results
            )
            print(f"{run.entry.name}: failed: {error}", flush=True)
            return
        asked = self.ledger.asked(state.config)
        training.evaluate(
            made, dataset, str(self.device), tuple(dict.fromkeys((*run.wanted, *asked)))
        )
        for epoch in run.keep:
            weights.keep(made, self.kept, dataset, epoch)
        records.publish(made.folder, self.ledger.results)
        self.ledger.refresh()
        table = self.table()
        done = table.done.sum() + table.failed.sum()
        left = table.runs.sum() - done
        print(
            f"{run.entry.name}: {made.record['id']} in {(time.monotonic() - started) / 60:.1f} "
            f"minutes; {done} runs "
            f"are done, {left} left, {table.hours.sum():.1f} hours for one process",
            flush=True,
        )

    def _refuse_unlike_choices(self) -> None:
        """InputError where an arm has other settings than those that tuning chose."""
        for entry in self.entries:
            for arm in entry.arms:
                if arm.chosen is None:
                    continue
                chosen = plan.choice(self.tuning[arm.tuned], arm.tuned, self.score)
                if chosen != arm.chosen:
                    raise InputError(
                        f"entry {entry.name}: the arm {arm.name} has {arm.chosen}, tuning chose "
                        f"{chosen}"
                    )

    def _precisions(self, runs: list[Planned]) -> dict[int, str]:
        """Each seed's precision, where it is left open: that of the seed's first run begun, else
        what suits here."""
        suits = choose_precision("auto", self.device)
        found = {}
        for run in runs:
            if run.config is None or run.config.precision != "auto" or run.config.seed in found:
                continue
            for precision in PRECISIONS[1:]:
                config = replace(run.config, precision=precision)
                if self.ledger.record(config) or self._begun(config):
                    found[config.seed] = precision
        return {run.config.seed: found.get(run.config.seed, suits) for run in runs if run.config}

    def _status(self, run: Planned, config: Config) -> str:
        """Whether a run is "done", with every probe wanted of it, has "failed", or is "missing"."""
        record = self.ledger.record(config)
        if record and "failed" in record:
            return "failed"
        return "missing" if record is None or training.missing(record, run.wanted) else "done"

    def _minutes(self, state: State) -> float | None:
        config = state.config or state.run.like
        return self.ledger.minutes(
            replace(config, precision=choose_precision(config.precision, self.device))
        )

    def _identity(self, config: Config) -> str | None:
        """None where the data set is not there."""
        dataset = self.ledger.data(config.data)
        return training.identity(config, dataset) if dataset else None

    def _begun(self, config: Config) -> bool:
        identity = self._identity(config)
        return identity is not None and (self.ledger.runs / identity).exists()

    @contextmanager
    def _claim(self, config: Config, seconds: float = CLAIM_SECONDS) -> Iterator[bool]:
        """Within, where it gives True, no other process makes this run."""
        path = self.ledger.runs / ".claims" / f"{self._identity(config)}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _claimed(self, config: Config) -> bool:
        if self._identity(config) is None:
            return False
        with self._claim(config, seconds=0) as free:
            return not free
