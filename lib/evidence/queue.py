"""The queue: takes the plan's next missing run, makes it, publishes its record, and goes on.

Several processes share one queue: a run is claimed by a lock on a file in the folder of runs, which
the system takes from a process that dies. What was cut off goes on from its last checkpoint.
Records are read anew for every choice, so a process sees what the others have finished.
"""

import math
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from lib import Diverged, InputError, counted, probes
from lib.config import COMPUTED, FIELDS, Config
from lib.data.dataset import Dataset
from lib.evidence import plan
from lib.evidence.experiments import budget_note
from lib.evidence.ledger import Ledger, in_total
from lib.evidence.plan import Arm, Entry, Planned, Version
from lib.files import claimed
from lib.hardware import choose_device, computes
from lib.runs import computed_on, identity, is_open, provenance, records

CLAIM_SECONDS = 1  # to wait for a lock: whoever only looks whether it is held lets it go at once
POLL_SECONDS = 30  # between looks at runs that other processes are at
KEPT = records.RESULTS / "encoders"

Trainings = list[tuple[Planned, Config]]  # runs of the plan whose settings are known, and these


@dataclass(frozen=True)
class State:
    """Where a run of the plan stands."""

    planned: Planned
    # with the precision it is computed in; None where its settings are not known yet
    config: Config | None
    status: str  # done, failed, running, missing, or waiting for what tuning chooses


class Queue:
    """The plan's entries, and what there is of them.

    Records are in the ledger's folder of results, runs begun in its folder of runs.
    """

    def __init__(
        self,
        entries: list[Entry],
        ledger: Ledger,
        device: str | None = None,
        kept: Path = KEPT,
        only: Collection[str] = (),
    ):
        """What is to be worked on, and by what.

        entries: all of the plan.
        kept: the folder of the encoders that the plan keeps.
        only: names of the entries to work on, where not all.
        """
        self.entries = [entry for entry in entries if not only or entry.name in only]
        self.ledger, self.kept = ledger, kept
        self.device = choose_device(device)
        # the entry that tries settings for an arm, by the arm's name
        self.tuning = {arm: entry for entry in entries for arm in entry.trials}

    def score(self, config: Config) -> float | None:
        """A trial's accuracy on validation, by the linear probe on h.

        0 where it failed, None without a record. A precision that is left open may be any; one in
        which the trial did not fail counts.
        """
        precisions: tuple[str, ...] = (config.precision,)
        if config.precision == "auto":
            precisions = COMPUTED
        failed = False
        for precision in precisions:
            record = self.ledger.record(replace(config, precision=precision))
            if record is None:
                continue
            failed = failed or "failed" in record
            for row in record.get("validation", ()):
                if (row["features"], row["probe"]) == ("h", "linear"):
                    return row["correct"] / row["n"]
        return 0.0 if failed else None

    def states(self, claims: bool = True) -> Iterator[State]:
        """Every run of every entry, in the order of work.

        claims: look whether other processes are at them.
        """
        for entry in self.entries:
            runs = plan.runs(entry, self.score)
            precisions = self._precisions(runs)
            for planned in runs:
                if planned.config is None:
                    yield State(planned, None, "waiting")
                    continue

                config = planned.config
                if is_open(config) and config.seed in precisions:
                    config = replace(config, precision=precisions[config.seed])
                config = computed_on(config, self.device)
                status = self._status(planned, config)
                if status == "missing" and claims and self._is_claimed(config):
                    status = "running"
                yield State(planned, config, status)

    def work(self, budget: float | None = None, package: dict | None = None) -> None:
        """Make what is missing, until nothing is left.

        budget: minutes. A run is begun where it fits into what is left of them; where no record
            tells that, three steps of it do.
        package: what ``provenance.code`` says of the code; None: it is asked.

        Raises InputError where the package differs from its commit, which no record could name,
        where an arm has other settings than tuning chose, and at the end where runs failed or their
        data can't be had.
        """
        provenance.refuse_uncommitted(package)
        self._refuse_unlike_choices()

        ending = math.inf if budget is None else time.monotonic() + 60 * budget
        failed: dict[str, str] = {}  # why, by the run's identity
        while True:
            self.ledger.refresh()
            made, others_work = self._make_one(ending, failed)
            if made:
                continue
            if not others_work:
                break
            time.sleep(POLL_SECONDS)

        without_data, left = self._left(failed)
        if left and budget is not None:
            print(budget_note(left, budget))
        if failed or without_data:
            raise InputError("\n".join([*failed.values(), *without_data]))

    def _left(self, failed: Collection[str]) -> tuple[list[str], int]:
        """Which data sets can't be had, and why; and how many other runs are missing.

        failed: the identities of runs that don't count.
        """
        without_data: dict[str, str] = {}
        left = 0
        for state in self.states(claims=False):
            config = state.config
            if config is None or state.status != "missing":
                continue
            name = self._identity(config)
            if name is None:
                without_data[config.data] = self.ledger.missing[config.data]
            elif name not in failed:
                left += 1
        return list(without_data.values()), left

    def table(self) -> pd.DataFrame:
        """A row per entry: its runs, how many of them are in each status, and the hours left.

        Hours are by the speeds that records measured, for one process; NaN where none tells.
        """
        statuses = ("done", "failed", "running", "missing", "waiting")
        rows: dict[str, dict] = {}
        for entry in self.entries:
            counts = dict.fromkeys(("runs", *statuses), 0)
            rows[entry.name] = {"entry": entry.name} | counts | {"hours": 0.0}

        for state in self.states():
            row = rows[state.planned.entry.name]
            row["runs"] += 1
            row[state.status] += 1
            if state.status not in ("done", "failed"):
                minutes = self._minutes(state)
                row["hours"] += math.nan if minutes is None else minutes / 60
        return pd.DataFrame(rows.values())

    def account(self, versions: list[Version] | None) -> pd.DataFrame:
        """A row per entry, so that no run is hidden.

        planned, done, failed: runs.
        left out: runs that an earlier version of the entry had.
        changed since: how many runs there are of an earlier version, and the commit from which on
            the entry stands as it does.

        versions: ``plan.history``; without one, as in a clone of one commit, these two are
            "unknown".
        """
        rows: dict[str, dict] = {}
        for entry in self.entries:
            row: dict = {"entry": entry.name, "planned": 0, "done": 0, "failed": 0}
            row["left out"] = row["changed since"] = "unknown"
            if versions is not None:
                row["left out"] = plan.left_out(entry, versions, self.score)
                row["changed since"] = self._changed_since(entry, versions)
            rows[entry.name] = row

        for state in self.states(claims=False):
            counts = rows[state.planned.entry.name]
            counts["planned"] += 1
            if state.status in ("done", "failed"):
                counts[state.status] += 1
        return pd.DataFrame(rows.values())

    def trials(self, entry: Entry) -> dict[str, pd.DataFrame]:
        """All trials of an entry so far, a table for each arm, in the order they are tried.

        stage: grid, growth, changes or longer; then every field that differs between trials;
        "validation, %": the score, NaN where the trial has none yet.
        """
        rows: dict[str, list[dict]] = {arm: [] for arm in entry.trials}
        for stage, tried in plan.stages(entry, self.score).items():
            for arm, configs in tried.items():
                for config in configs:
                    rows[arm].append(asdict(config) | {"stage": stage, "score": self.score(config)})

        made = {}
        for arm, trials in rows.items():
            table = pd.DataFrame(trials)
            differing = []
            for name in table.columns:
                if name in FIELDS and table[name].astype(str).nunique() > 1:
                    differing.append(name)
            scores = 100 * table["score"].astype(float)
            made[arm] = table[["stage", *differing]].assign(**{"validation, %": scores})
        return made

    def _changed_since(self, entry: Entry, versions: list[Version]) -> str:
        earlier = 0
        for record in self.ledger.everything():
            note = record.get("plan")
            if note and note["entry"] == entry.name and note != entry.note:
                earlier += 1
        if not earlier:
            return "-"
        commits = [version.commit[:7] for version in versions if version.note == entry.note]
        return f"{counted(earlier, 'run')}, at {commits[0] if commits else 'no commit'}"

    def in_words(self) -> list[str]:
        """The table, what is left, and what is to be entered in the plan, in lines for people."""
        table = self.table()
        left = (
            f"{table.done.sum()} of {table.runs.sum()} runs are done; "
            f"{in_total(table.hours, 'hours', digits=1)} are left for one process of "
            f"{counted(self.ledger.device['threads'], 'thread')}"
        )

        lines = [table.to_string(index=False, float_format="{:.1f}".format, na_rep="?"), left]
        notes = [f"note: {why}" for why in self.ledger.missing.values()]
        return [*lines, *self.choices(), *notes]

    def choices(self) -> list[str]:
        """What tuning has chosen and is not entered in the plan yet, a line for each arm."""
        lines = []
        for entry, name, arm, chosen in self._tuned_arms():
            if arm.chosen is None and chosen is not None:
                lines.append(f"{entry.name}: enter and commit, in the arm {name}: chosen: {chosen}")
        return lines

    def _refuse_unlike_choices(self) -> None:
        """InputError where an arm has other settings than those that tuning chose."""
        for entry, name, arm, chosen in self._tuned_arms():
            if arm.chosen is not None and arm.chosen != chosen:
                raise InputError(
                    f"entry {entry.name}: the arm {name} has {arm.chosen}, tuning chose {chosen}"
                )

    def _tuned_arms(self) -> Iterator[tuple[Entry, str, Arm, dict | None]]:
        """Arms whose settings tuning chooses: entry, name, arm, and what it chose so far."""
        for entry in self.entries:
            for name, arm in entry.arms.items():
                if arm.tuned is not None:
                    chosen = plan.choice(self.tuning[arm.tuned], arm.tuned, self.score)
                    yield entry, name, arm, chosen

    def _make_one(self, ending: float, failed: dict[str, str]) -> tuple[bool, bool]:
        """Make the first run that is missing and free.

        ending: when all must be done, as time.monotonic() counts; infinity: no matter when.

        Returns whether there was one, and whether others are being made.
        """
        others_work = False
        for state in self.states(claims=False):
            config = state.config
            if config is None or state.status != "missing":
                continue
            name = self._identity(config)
            if name is None or name in failed:
                continue
            if not self.ledger.fits(config, (ending - time.monotonic()) / 60):
                continue

            with self._claim(name) as mine:
                if mine:
                    self._try(state.planned, config, failed)
                    return True, others_work
            others_work = True
        return False, others_work

    def _try(self, planned: Planned, config: Config, failed: dict[str, str]) -> None:
        """Make a run, where no other process has meanwhile; note why where that goes wrong."""
        self.ledger.refresh()
        dataset = self.ledger.data(config.data)
        if dataset is None or self._status(planned, config) != "missing":
            return

        name = identity(config, dataset)
        try:
            self._make(planned, config, dataset)
        except InputError as error:
            failed[name] = f"{planned.entry.name}: {name}: {error}"
            print(failed[name], flush=True)

    def _make(self, planned: Planned, config: Config, dataset: Dataset) -> None:
        """Train a run, or go on with it; evaluate it, keep its encoders, publish it."""
        entry = planned.entry
        name = identity(config, dataset)

        started = time.monotonic()
        print(f"{entry.name}: {planned.arm}: {name}", flush=True)
        try:
            self.ledger.make(
                config,
                dataset,
                planned.wanted,
                str(self.device),
                plan=entry.note,
                keep=planned.keep,
                kept=self.kept,
            )
        except Diverged as error:
            print(f"{entry.name}: failed: {error}", flush=True)
            return
        minutes = (time.monotonic() - started) / 60
        print(f"{entry.name}: {name} in {minutes:.1f} minutes; {self._standing()}", flush=True)

    def _standing(self) -> str:
        table = self.table()
        done = table.done.sum() + table.failed.sum()
        left = table.runs.sum() - done
        hours = in_total(table.hours, "hours", digits=1)
        return f"{done} runs are done, {left} left, {hours} for one process"

    def _precisions(self, runs: list[Planned]) -> dict[int, str]:
        """By seed, where the precision is left open, that of its first training begun.

        One that this device can't compute counts where all of the seed is done in it: pairs are of
        one precision.
        """
        precisions: dict[int, str] = {}
        for seed, trainings in _open_trainings(runs).items():
            precision = self._first_begun(trainings)
            if precision is None:
                continue
            if computes(self.device, precision) or self._are_done(trainings, precision):
                precisions[seed] = precision
        return precisions

    def _first_begun(self, trainings: Trainings) -> str | None:
        """The precision in which the first of them is begun that is."""
        for _, config in trainings:
            for precision in COMPUTED:
                if self._is_begun(replace(config, precision=precision)):
                    return precision
        return None

    def _are_done(self, trainings: Trainings, precision: str) -> bool:
        for planned, config in trainings:
            if self._status(planned, replace(config, precision=precision)) == "missing":
                return False
        return True

    def _is_begun(self, config: Config) -> bool:
        if self.ledger.record(config):
            return True
        name = self._identity(config)
        return name is not None and (self.ledger.runs / name).exists()

    def _status(self, planned: Planned, config: Config) -> str:
        """Whether a run is "done", with every probe wanted of it, has "failed", or is "missing"."""
        record = self.ledger.record(config)
        if record is None:
            return "missing"
        if "failed" in record:
            return "failed"
        if probes.missing(record, planned.wanted):
            return "missing"
        return "done"

    def _minutes(self, state: State) -> float | None:
        config = state.config or state.planned.like
        return self.ledger.minutes(computed_on(config, self.device))

    def _identity(self, config: Config) -> str | None:
        """None where the data set is not there."""
        dataset = self.ledger.data(config.data)
        if dataset is None:
            return None
        return identity(config, dataset)

    @contextmanager
    def _claim(self, name: str, seconds: float = CLAIM_SECONDS) -> Iterator[bool]:
        """Within, where it gives True, no other process makes the run of that name."""
        with claimed(self._lock_of(name), name, seconds) as mine:
            yield mine

    def _is_claimed(self, config: Config) -> bool:
        name = self._identity(config)
        if name is None or not self._lock_of(name).exists():  # who only looks writes nothing
            return False
        with self._claim(name, seconds=0) as free:
            return not free

    def _lock_of(self, name: str) -> Path:
        return self.ledger.runs / ".claims" / f"{name}.lock"


def _open_trainings(runs: list[Planned]) -> dict[int, Trainings]:
    """By seed, those whose precision is left open, in the order of work."""
    by_seed: dict[int, Trainings] = {}
    for planned in runs:
        if planned.config is not None and is_open(planned.config):
            by_seed.setdefault(planned.config.seed, []).append((planned, planned.config))
    return by_seed
