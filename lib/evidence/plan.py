"""The plan: experiments whose question, margin and rule of stopping stand before their first run.

Its entries are those of ``book/experiments.yml`` with the scale "plan", in the order of their work.
Each run's record names its entry, the SHA-256 of the entry as it stood when the run began, and that
time; the history of the file shows that it stood there before. An entry is a set of arms. An arm
trains a preset with a delta for several lengths, or tries settings in stages ("tuning"), where what
is tried next follows from the accuracies on validation so far.
"""

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from lib import InputError, unknown
from lib.config import Config, difference
from lib.evidence.experiments import EXPERIMENTS, Changes, Probes, is_planned
from lib.parsing import parse_yaml, read_yaml
from lib.presets import preset
from lib.runs import provenance
from lib.validation import checked, labelled_entries, validated

# of a run, on validation; None: not there yet
ValAccuracy = Callable[[Config], float | None]
Tried = dict[str, list[Config]]  # by arm
Count = Annotated[int, Field(ge=0)]


@checked
class Arm:
    """One side of a comparison: a preset, what differs from it, and how long it is trained."""

    preset: str
    delta: Changes = field(default_factory=dict)
    seeds: dict[Count, Count] = field(default_factory=dict)  # epochs: how many seeds, from 0
    # epochs of the run: after which ones its model is kept
    keep: dict[Count, tuple[Count, ...]] = field(default_factory=dict)
    tuned: str | None = None  # the arm of trials that its settings are from
    chosen: Changes | None = None  # what those trials chose; None: not entered yet
    wanted: Probes = ()  # instead of the entry's

    @model_validator(mode="after")
    def _has_configurations(self) -> "Arm":
        if self.chosen is not None and self.tuned is None:
            raise ValueError("chosen needs tuned, the arm of trials that chose it")
        for epochs in self.seeds:
            self.config(epochs=epochs)
        return self

    @property
    def is_settled(self) -> bool:
        """Whether its settings are known."""
        return self.tuned is None or self.chosen is not None

    def config(self, **changes) -> Config:
        """The arm's configuration, with what tuning chose, and these changes."""
        return preset(self.preset, **(self.chosen or {}) | self.delta | changes)


@checked
class Trials:
    """An arm that tries settings, in four stages.

    A grid of batch sizes and rates; more rates, where the best lies at the grid's edge; changes of
    the best; and the best two again for longer, of which the better is chosen.
    """

    preset: str
    batch_size: Annotated[tuple[int, ...], Field(min_length=1)]
    learning_rate: Annotated[tuple[float, ...], Field(min_length=1)]  # in ascending order
    then: tuple[Changes, ...]  # of the best of the grid
    longer: Changes  # of the best two
    delta: Changes = field(default_factory=dict)
    # the best two are sought among trials with these values
    among: Changes = field(default_factory=dict)

    @model_validator(mode="after")
    def _has_configurations(self) -> "Trials":
        self.config(**self.among)
        for config in self.grid():
            self.changed(replace(config, **self.longer))
        return self

    def config(self, **changes) -> Config:
        return preset(self.preset, **self.delta | changes)

    def grid(self) -> list[Config]:
        configs = []
        for size in self.batch_size:
            for rate in self.learning_rate:
                configs.append(self.config(batch_size=size, learning_rate=rate))
        return configs

    def changed(self, config: Config) -> list[Config]:
        return [replace(config, **change) for change in self.then]

    def is_eligible(self, config: Config) -> bool:
        """Whether a trial may be among the best two."""
        return all(getattr(config, name) == value for name, value in self.among.items())


@checked
class Entry:
    """One experiment of the plan."""

    name: str
    scale: Literal["plan"]
    about: str  # the question
    hypothesis: str  # with its sign
    contrast: str  # the primary one
    metric: str
    margin: float | None  # points; a smaller difference counts as none; None: nothing is contrasted
    stopping: str  # when no more is run
    wanted: Probes
    arms: dict[str, Arm] = field(default_factory=dict)  # by name
    trials: dict[str, Trials] = field(default_factory=dict)  # by name of the arm
    seed: Count = 0  # of the trials
    growths: Count = 0  # how often the trials' grid may grow
    sha256: str = ""  # of the entry as it stands in the file

    @property
    def note(self) -> dict:
        """What a run's record says of the plan.

        Not "sha256": a checkpoint's own seal has that name in its header.
        """
        return {"entry": self.name, "version": self.sha256}


@dataclass(frozen=True)
class Version:
    """An entry as it once stood in the file."""

    name: str
    sha256: str
    commit: str  # in which it stood there first
    committed: int  # in seconds since 1970
    written: dict  # as it was written

    @property
    def note(self) -> dict:
        """What the record of a run that belongs to it says of the plan."""
        return {"entry": self.name, "version": self.sha256}


@dataclass(frozen=True)
class Planned:
    """A run of an entry."""

    entry: Entry
    arm: str
    config: Config | None  # None for a trial that earlier ones are still to decide
    wanted: tuple[str, ...]
    like: Config  # tells the cost
    keep: tuple[int, ...] = ()


def canonical_hash(entry: dict) -> str:
    """SHA-256 of an entry as JSON with sorted keys and no spaces: 64 hexadecimal digits."""
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read(path: Path = EXPERIMENTS) -> list[Entry]:
    """The plan's entries, in order.

    Raises InputError, naming file and entry, where something is wrong.
    """
    entries = []
    for label, written in labelled_entries(read_yaml(path), path, "entry", "experiments"):
        if not is_planned(written):
            continue
        if "sha256" in written:
            raise InputError(f"{label}: unknown field 'sha256'")
        entry = validated(Entry, written, label)
        try:
            entries.append(replace(entry, sha256=canonical_hash(written)))
        except TypeError as error:  # what YAML has and JSON has not
            raise InputError(f"{label}: {error}") from error

    tuning = [name for entry in entries for name in entry.trials]
    for entry in entries:
        for arm in entry.arms.values():
            if arm.tuned is not None and arm.tuned not in tuning:
                why = unknown("arm of tuning", arm.tuned, tuning)
                raise InputError(f"{path}: entry {entry.name}: {why}")
    return entries


def history(path: Path = EXPERIMENTS) -> list[Version] | None:
    """Every version of every entry that was ever committed, the oldest first.

    None where the checkout has no history, or not all of it.
    """

    def git(*arguments: str) -> bytes:
        command = ["git", "-C", str(path.parent), *arguments]
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout

    versions: dict[tuple[str, str], Version] = {}
    try:
        if git("rev-parse", "--is-shallow-repository").strip() != b"false":
            return None
        # what stood on a branch that was merged counts, too
        log = ("log", "--reverse", "--full-history", "--format=%H %ct", "--", path.name)
        commits = git(*log).decode()
        for line in commits.splitlines():
            commit, seconds = line.split()
            try:
                content = parse_yaml(git("show", f"{commit}:./{path.name}"))
            except (ValueError, yaml.YAMLError, subprocess.CalledProcessError):
                continue  # no run can belong to what nobody could read, or was deleted
            entries = content if isinstance(content, list) else []
            for written in filter(is_planned, entries):
                try:
                    name, sha256 = written["name"], canonical_hash(written)
                except (KeyError, TypeError):
                    continue
                version = Version(name, sha256, commit, int(seconds), written)
                versions.setdefault((name, sha256), version)
    except (OSError, subprocess.SubprocessError):
        return None
    return list(versions.values())


def unplanned(record: dict, versions: list[Version]) -> str | None:
    """Why a record's run was not planned as it says, in a sentence.

    versions: ``history``. None where it was, or says nothing of the plan.
    """
    note = record.get("plan")
    if not note:
        return None
    named = [version for version in versions if version.note == note]
    if not named:
        return (
            f"{record['id']} names a version of the entry {note['entry']} that was never committed"
        )

    if "started" not in record:
        return f"{record['id']} does not say when it began"
    early = named[0].committed - provenance.seconds_since_1970(record["started"])
    if early <= 0:
        return None
    return f"{record['id']} began {early} seconds before its version of the entry was committed"


def left_out(entry: Entry, versions: list[Version], score: ValAccuracy) -> int:
    """How many runs earlier versions of an entry had that are not in it any more."""
    before: set[Config] = set()
    for version in versions:
        if version.name != entry.name:
            continue
        try:
            before |= _distinct(validated(Entry, version.written, "an earlier version"), score)
        except InputError:  # of a form that is not read any more
            continue
    return len(before - _distinct(entry, score))


def _distinct(entry: Entry, score: ValAccuracy) -> set[Config]:
    """An entry's runs by their settings, but for precision and what tuning chose for an arm.

    Its trials as far as they are known.
    """
    distinct: set[Config] = set()
    for run in runs(entry, score):
        if entry.trials:
            if run.config is not None:
                distinct.add(replace(run.config, precision="auto"))
            continue
        arm = entry.arms[run.arm]
        own = {"epochs": run.like.epochs, "seed": run.like.seed, "precision": "auto"}
        distinct.add(preset(arm.preset, **arm.delta | own))
    return distinct


def runs(entry: Entry, score: ValAccuracy) -> list[Planned]:
    """Every run of an entry, in the order of work.

    The shortest come first, within a length all arms of a seed together.
    """
    if entry.trials:
        return list(_trials(entry, score))

    ranked = []
    for place, (name, arm) in enumerate(entry.arms.items()):
        wanted = arm.wanted or entry.wanted
        for epochs, count in arm.seeds.items():
            keep = arm.keep.get(epochs, ())
            for seed in range(count):
                like = arm.config(epochs=epochs, seed=seed)
                config = like if arm.is_settled else None
                run = Planned(entry, name, config, wanted, like, keep)
                ranked.append(((epochs * like.views, seed, place), run))
    ranked.sort(key=lambda row: row[0])
    return [run for _, run in ranked]


def stages(entry: Entry, score: ValAccuracy) -> dict[str, Tried]:
    """The stages of an entry of trials that are known so far.

    "grid", "growth 1" and so on, "changes", "longer". Each has the trials of every arm, by the
    arm's name. A stage that follows from runs without a score yet is not there, nor those after it.
    """
    tried: Tried = {}
    for name, trials in entry.trials.items():
        tried[name] = [replace(config, seed=entry.seed) for config in trials.grid()]
    known = {"grid": {name: list(configs) for name, configs in tried.items()}}

    for number in range(entry.growths):
        if not _scored(tried, score) or not _any_at_edge(tried, score):
            break
        growth = {name: [_next_rate(configs, score)] for name, configs in tried.items()}
        known[f"growth {number + 1}"] = growth
        _extend(tried, growth)
    if not _scored(tried, score):
        return known

    changes: Tried = {}
    for name, trials in entry.trials.items():
        changes[name] = trials.changed(_best_first(tried[name], score)[0])
    known["changes"] = changes
    _extend(tried, changes)
    if not _scored(tried, score):
        return known

    known["longer"] = {}
    for name, trials in entry.trials.items():
        eligible = [config for config in tried[name] if trials.is_eligible(config)]
        two = _best_first(eligible, score)[:2]
        known["longer"][name] = [replace(config, **trials.longer) for config in two]
    return known


def choice(entry: Entry, arm: str, score: ValAccuracy) -> dict | None:
    """What an arm's trials chose; None as long as trials are missing.

    The fields in which the better of the two longer ones differs from the arm's preset and length.
    """
    longer = stages(entry, score).get("longer")
    if longer is None or not _scored({arm: longer[arm]}, score):
        return None

    trials = entry.trials[arm]
    start = replace(trials.config(**trials.longer), seed=entry.seed)
    chosen = {}
    for name, (value, _) in difference(_best_first(longer[arm], score)[0], start).items():
        chosen[name] = value
    return chosen


def _trials(entry: Entry, score: ValAccuracy) -> Iterator[Planned]:
    """The runs of an entry of trials; those not known yet come last, without a configuration."""
    known = stages(entry, score)
    for tried in known.values():
        for name, configs in tried.items():
            for config in configs:
                yield Planned(entry, name, config, entry.wanted, config)

    for name, trials in entry.trials.items():
        open_ones = []
        if "changes" not in known:
            open_ones += [trials.config()] * len(trials.then)
        if "longer" not in known:
            open_ones += [trials.config(**trials.longer)] * 2
        for like in open_ones:
            yield Planned(entry, name, None, entry.wanted, like)


def _scored(tried: Tried, score: ValAccuracy) -> bool:
    """Whether every trial has a score."""
    return all(score(config) is not None for configs in tried.values() for config in configs)


def _best_first(configs: list[Config], score: ValAccuracy) -> list[Config]:
    """The trials by their scores, of equals the first tried first."""
    return sorted(configs, key=lambda config: score(config) or 0.0, reverse=True)


def _rates(configs: list[Config], best: Config) -> list[float]:
    """The rates tried at the best's batch size, in ascending order."""
    return sorted(
        {config.learning_rate for config in configs if config.batch_size == best.batch_size}
    )


def _any_at_edge(tried: Tried, score: ValAccuracy) -> bool:
    """Whether the best of an arm has the lowest or the highest rate of its batch size."""
    for configs in tried.values():
        best = _best_first(configs, score)[0]
        rates = _rates(configs, best)
        if best.learning_rate in (rates[0], rates[-1]):
            return True
    return False


def _next_rate(configs: list[Config], score: ValAccuracy) -> Config:
    """The best with a rate beyond those of its batch size.

    Twice the highest or half the lowest, on the best's side.
    """
    best = _best_first(configs, score)[0]
    rates = _rates(configs, best)
    if rates.index(best.learning_rate) >= len(rates) / 2:
        return replace(best, learning_rate=2 * rates[-1])
    return replace(best, learning_rate=rates[0] / 2)


def _extend(tried: Tried, more: Tried) -> None:
    for name, configs in more.items():
        tried[name].extend(configs)
