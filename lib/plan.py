"""The plan: experiments whose question, contrast, margin and rule of stopping stand before their
first run.

Its entries are those of ``book/experiments.yml`` with the scale "plan", in the order of their work.
Each run's record names its entry, the SHA-256 of the entry as it stood when the run began, and that
time; the history of the file shows that it stood there before. An entry is a set of arms. An arm
trains a preset with a delta for several lengths, or tries settings in stages ("tuning"), where what
is tried next follows from the accuracies on validation so far.
"""

import calendar
import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from lib import InputError
from lib.config import Config, difference, preset, unknown
from lib.evaluation import PROBES
from lib.experiments import EXPERIMENTS, PLAN
from lib.files import parse_yaml, read_yaml

TEXTS = ("about", "hypothesis", "contrast", "metric", "stopping")
Score = Callable[
    [Config], float | None
]  # a run's accuracy on validation; None where it is not there yet


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a preset, what differs from it, and how long it is trained with how
    many seeds."""

    name: str
    preset: str
    delta: dict = field(default_factory=dict)
    seeds: dict[int, int] = field(default_factory=dict)  # epochs: how many seeds, from 0
    keep: dict[int, list[int]] = field(
        default_factory=dict
    )  # epochs of the run: after which ones its model is kept
    tuned: str | None = None  # the arm of trials that its settings are from,
    chosen: dict | None = None  # and what that chose; None: not entered yet
    wanted: tuple[str, ...] = ()  # probes, instead of the entry's

    def config(self, **delta) -> Config:
        """The arm's configuration, with what tuning chose, and this delta."""
        return preset(self.preset, **(self.chosen or {}) | self.delta | delta)


@dataclass(frozen=True)
class Trials:
    """An arm that tries settings, in four stages: a grid of batch sizes and rates; more rates,
    where the best lies at the grid's edge; changes of the best; and the best two again for longer,
    of which the better is chosen."""

    name: str
    preset: str
    batch_size: tuple[int, ...]
    learning_rate: tuple[float, ...]  # in ascending order
    then: tuple[dict, ...]  # changes of the best of the grid
    longer: dict  # a change of the best two
    delta: dict = field(default_factory=dict)
    among: dict = field(
        default_factory=dict
    )  # the best two are sought among trials with these values

    def config(self, **delta) -> Config:
        return preset(self.preset, **self.delta | delta)

    def grid(self) -> list[Config]:
        return [
            self.config(batch_size=size, learning_rate=rate)
            for size in self.batch_size
            for rate in self.learning_rate
        ]

    def changed(self, config: Config) -> list[Config]:
        return [replace(config, **change) for change in self.then]

    def eligible(self, trials: list[Config]) -> list[Config]:
        return [
            trial
            for trial in trials
            if all(getattr(trial, key) == value for key, value in self.among.items())
        ]


@dataclass(frozen=True)
class Entry:
    """One experiment of the plan."""

    name: str
    sha256: str  # of the entry in the file, as canonical JSON
    about: str  # the question
    hypothesis: str  # with its sign
    contrast: str  # the primary one
    metric: str
    margin: (
        float | None
    )  # points below which a difference counts as none; None where nothing is contrasted
    stopping: str  # when no more is run
    wanted: tuple[str, ...]  # probes, see evaluation.PROBES
    arms: tuple[Arm, ...] = ()
    trials: tuple[Trials, ...] = ()
    seed: int = 0  # of the trials
    growths: int = 0  # how often the trials' grid may grow

    @property
    def note(self) -> dict:
        """What a run's record says of the plan. (Not "sha256": a checkpoint's own seal has that
        name in its header.)"""
        return {"entry": self.name, "version": self.sha256}


@dataclass(frozen=True)
class Planned:
    """A run of an entry; config is None for a trial that earlier ones are still to decide, like
    tells its cost."""

    entry: Entry
    arm: str
    config: Config | None
    wanted: tuple[str, ...]
    like: Config
    keep: tuple[int, ...] = ()


def canonical_hash(entry: dict) -> str:
    """SHA-256 of an entry as JSON with sorted keys and no spaces: 64 hexadecimal digits."""
    return hashlib.sha256(
        json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def read(path: Path = EXPERIMENTS) -> list[Entry]:
    """The plan's entries, in order. Raises InputError, naming file and entry, where something is
    wrong."""
    content, entries = read_yaml(path), []
    for raw in content if isinstance(content, list) else []:
        if not isinstance(raw, dict) or raw.get("scale") != PLAN:
            continue
        try:
            entries.append(_entry(raw))
        except (InputError, TypeError, ValueError, AttributeError, LookupError) as error:
            raise InputError(f"{path}: entry {raw.get('name')}: {error}") from error
    tuning = {trials.name for entry in entries for trials in entry.trials}
    for entry in entries:
        for arm in entry.arms:
            if arm.tuned is not None and arm.tuned not in tuning:
                raise InputError(
                    f"{path}: entry {entry.name}: " + unknown("arm of tuning", arm.tuned, tuning)
                )
    return entries


def history(path: Path = EXPERIMENTS) -> dict[tuple[str, str], int] | None:
    """When each version of each entry was committed first, in seconds since 1970, by name and
    SHA-256.

    None where the checkout has no history, or not all of it.
    """

    def git(*arguments: str) -> bytes:
        command = ["git", "-C", path.parent, *arguments]
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout

    versions = {}
    try:
        if git("rev-parse", "--is-shallow-repository").strip() != b"false":
            return None
        for line in (
            git("log", "--reverse", "--format=%H %ct", "--", path.name).decode().splitlines()
        ):
            commit, seconds = line.split()
            content = parse_yaml(git("show", f"{commit}:./{path.name}"))
            for raw in content if isinstance(content, list) else []:
                if isinstance(raw, dict) and raw.get("scale") == PLAN:
                    versions.setdefault((raw["name"], canonical_hash(raw)), int(seconds))
    except (OSError, subprocess.SubprocessError):
        return None
    return versions


def unplanned(record: dict, versions: dict[tuple[str, str], int]) -> str | None:
    """Why a record's run was not planned as it says, in a sentence; None where it was, or says
    nothing of the plan."""
    note = record.get("plan")
    if not note:
        return None
    committed = versions.get((note["entry"], note["version"]))
    if committed is None:
        return (
            f"{record['id']} names a version of the entry {note['entry']} that was never committed"
        )
    started = calendar.timegm(time.strptime(record["started"], "%Y-%m-%dT%H:%M:%SZ"))
    if started < committed:
        early = committed - started
        return f"{record['id']} began {early} seconds before its version of the entry was committed"
    return None


def _entry(raw: dict) -> Entry:
    fields = {
        key: value for key, value in raw.items() if key not in ("scale", "arms", "trials", "wanted")
    }
    for key in TEXTS:
        if not isinstance(fields.get(key), str):
            raise InputError(f"the field '{key}' is missing or no text")
    arms = tuple(
        Arm(name, **arm | {"wanted": tuple(arm.get("wanted", ()))})
        for name, arm in raw.get("arms", {}).items()
    )
    trials = tuple(
        Trials(
            name,
            **{
                key: tuple(value) if isinstance(value, list) else value
                for key, value in arm.items()
            },
        )
        for name, arm in raw.get("trials", {}).items()
    )
    entry = Entry(
        **fields, sha256=canonical_hash(raw), wanted=tuple(raw["wanted"]), arms=arms, trials=trials
    )
    for probe in (*entry.wanted, *(probe for arm in arms for probe in arm.wanted)):
        if probe not in PROBES:
            raise InputError(unknown("probe", probe, PROBES))
    for arm in arms:
        for epochs in arm.seeds:
            arm.config(epochs=epochs)
    for arm in trials:
        for config in arm.grid():
            arm.changed(replace(config, **arm.longer))
    return entry


def runs(entry: Entry, score: Score) -> list[Planned]:
    """Every run of an entry, in the order of work: the shortest first, within a length all arms of
    a seed together."""
    if entry.trials:
        return list(_trials(entry, score))
    found = []
    for place, arm in enumerate(entry.arms):
        for epochs, count in arm.seeds.items():
            for seed in range(count):
                config = arm.config(epochs=epochs, seed=seed)
                keep = tuple(arm.keep.get(epochs, ()))
                ready = arm.tuned is None or arm.chosen is not None
                run = Planned(
                    entry,
                    arm.name,
                    config if ready else None,
                    arm.wanted or entry.wanted,
                    config,
                    keep,
                )
                found.append((epochs * config.views, seed, place, run))
    return [run for *_, run in sorted(found, key=lambda row: row[:3])]


def stages(entry: Entry, score: Score) -> dict[str, dict[str, list[Config]]]:
    """The stages of an entry of trials that are known so far: "grid", "growth 1" and so on,
    "changes", "longer".

    Each has the trials of every arm, by the arm's name. A stage that follows from runs without a
    score yet is not there, nor those after it.
    """
    tried = {
        arm.name: [replace(config, seed=entry.seed) for config in arm.grid()]
        for arm in entry.trials
    }
    known = {"grid": {name: list(trials) for name, trials in tried.items()}}
    for number in range(entry.growths):
        if not _scored(tried, score) or not any(
            _at_edge(trials, score) for trials in tried.values()
        ):
            break
        growth = {name: [_next_rate(trials, score)] for name, trials in tried.items()}
        known[f"growth {number + 1}"] = growth
        _extend(tried, growth)
    if not _scored(tried, score):
        return known
    known["changes"] = {
        arm.name: arm.changed(_best(tried[arm.name], score)) for arm in entry.trials
    }
    _extend(tried, known["changes"])
    if not _scored(tried, score):
        return known
    known["longer"] = {}
    for arm in entry.trials:
        two = sorted(arm.eligible(tried[arm.name]), key=score, reverse=True)[:2]
        known["longer"][arm.name] = [replace(config, **arm.longer) for config in two]
    return known


def choice(entry: Entry, arm: str, score: Score) -> dict | None:
    """What an arm's trials chose: the fields in which the better of the two longer ones differs
    from the arm's preset and length; None as long as trials are missing."""
    longer = stages(entry, score).get("longer")
    if longer is None or not _scored({arm: longer[arm]}, score):
        return None
    trials = next(trials for trials in entry.trials if trials.name == arm)
    start = replace(trials.config(**trials.longer), seed=entry.seed)
    return {
        key: chosen for key, (chosen, _) in difference(_best(longer[arm], score), start).items()
    }


def _trials(entry: Entry, score: Score) -> Iterator[Planned]:
    known = stages(entry, score)
    for stage in known.values():
        for name, configs in stage.items():
            for config in configs:
                yield Planned(entry, name, config, entry.wanted, config)
    for arm in entry.trials:
        unknown_yet = []
        if "changes" not in known:
            unknown_yet += [arm.config()] * len(arm.then)
        if "longer" not in known:
            unknown_yet += [arm.config(**arm.longer)] * 2
        for like in unknown_yet:
            yield Planned(entry, arm.name, None, entry.wanted, like)


def _scored(tried: dict[str, list[Config]], score: Score) -> bool:
    return all(score(config) is not None for trials in tried.values() for config in trials)


def _best(trials: list[Config], score: Score) -> Config:
    """The trial with the highest score, of equals the first."""
    return max(trials, key=score)


def _rates(trials: list[Config], best: Config) -> list[float]:
    return sorted({trial.learning_rate for trial in trials if trial.batch_size == best.batch_size})


def _at_edge(trials: list[Config], score: Score) -> bool:
    best = _best(trials, score)
    rates = _rates(trials, best)
    return best.learning_rate in (rates[0], rates[-1])


def _next_rate(trials: list[Config], score: Score) -> Config:
    """The best with a rate beyond those of its batch size: twice the highest or half the lowest, on
    the best's side."""
    best = _best(trials, score)
    rates = _rates(trials, best)
    upper = rates.index(best.learning_rate) >= len(rates) / 2
    return replace(best, learning_rate=2 * rates[-1] if upper else rates[0] / 2)


def _extend(tried: dict[str, list[Config]], more: dict[str, list[Config]]) -> None:
    for name, trials in more.items():
        tried[name].extend(trials)
