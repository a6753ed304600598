"""Replication: what a claim at our size rests on, computed again by whoever doubts it.

A new seed of both groups is trained and probed on this machine, at the largest size that fits into
the minutes given and at which the records tell the sign of one more pair. Its difference is held
against the interval in which one more pair of the recorded ones would lie
(``statistics.one_more``), which is said beforehand.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import pandas as pd
import torch
from pydantic import Field
from typing_extensions import TypedDict

from lib import InputError, as_command, counted, unknown
from lib.config import Config
from lib.data.dataset import Dataset
from lib.evidence import plan
from lib.evidence.claims import Claim, OurSize, groups, in_words, sizes
from lib.evidence.comparisons import Comparison
from lib.evidence.plan import Entry
from lib.evidence.statistics import Interval, one_more
from lib.evidence.tables import config_columns
from lib.evidence.timing import epoch_minutes, own_schedule
from lib.evidence.verdicts import Ours, against_margin, at_our_size
from lib.hardware import choose_device
from lib.parsing import parse_json
from lib.runs import RUNS, computed_on, pretrain, provenance, records
from lib.validation import validated

REPLICATIONS = records.RESULTS / "replications"

Outcome = Literal["verified", "not verified", "too small to tell"]


@records.whole
class _Record(TypedDict):
    schema: Literal[1]
    replicates: str  # a claim's id
    size: dict  # its claim at our size, with the columns that were computed
    recorded: dict  # the comparison of the records
    expected: Annotated[list[float], Field(min_length=2, max_length=2)]  # as fractions
    seed: int
    runs: Annotated[list[str], Field(min_length=1)]
    difference: float
    outcome: Outcome
    # the accuracies that were subtracted, the first and those of the others; records from before
    # 28 November 2026 have neither these nor the fingerprint of the data
    accuracies: NotRequired[Annotated[list[float], Field(min_length=2)]]
    data: NotRequired[str]
    # what the new runs were computed on, and in which precisions; since 29 November 2026
    device: NotRequired[records.Device]
    precisions: NotRequired[Annotated[list[str], Field(min_length=1)]]
    code: dict
    versions: dict
    finished: records.Time


@dataclass(frozen=True)
class Replication:
    """What is to be computed again, and what would count as agreement."""

    claim: Claim
    size: OurSize
    first: Config
    seconds: list[Config]  # of the groups that are subtracted; the best counts
    recorded: Comparison
    expected: Interval  # where one more pair would lie, as fractions
    minutes: float  # of training, on this machine

    @property
    def configs(self) -> list[Config]:
        """The runs, each once."""
        return list(dict.fromkeys((self.first, *self.seconds)))

    @property
    def precisions(self) -> list[str]:
        """In which the runs that train are computed; where none does, float32."""
        return sorted({run.precision for run in self.configs if run.epochs}) or ["float32"]

    def in_words(self) -> Iterator[str]:
        """What is said beforehand, in lines."""
        others = " or ".join(in_words(minus) for minus in self.size["minus"])
        yield f"{self.claim['id']}: {self.size['claim']}"
        yield f"computed again: {in_words(self.size['like_for_like'])}; minus {others}"
        runs = [
            f"{run.name}, {counted(run.epochs, 'epoch')}, seed {run.seed}" for run in self.configs
        ]
        yield f"runs: {'; '.join(runs)} ({', '.join(self.precisions)})"
        minutes = counted(math.ceil(self.minutes), "minute")
        yield f"training takes {minutes} on this machine; then the probes"
        yield f"recorded at this size: {self.recorded.points()}"
        low, high = (100 * end for end in self.expected[1:])
        yield f"agreement: a difference between {low:+.1f} and {high:+.1f} points"

    def outcome(self, difference: float) -> Outcome:
        """Of a new pair's difference, as a fraction.

        "too small to tell" where it agrees, and the opposite sign would have agreed too.
        """
        _, low, high = self.expected
        if not low <= difference <= high:
            return "not verified"
        if self.tells_the_sign:
            return "verified"
        return "too small to tell"

    @property
    def tells_the_sign(self) -> bool:
        """Whether one more pair is expected on one side of zero."""
        _, low, high = self.expected
        return low > 0 or high < 0


def prepare(
    claim: Claim,
    table: pd.DataFrame,
    entries: list[Entry],
    dataset: Dataset,
    device: torch.device,
    minutes: float = 30.0,
    timer: Callable[[Config, Dataset, torch.device], float] = epoch_minutes,
    precision: str | None = None,
) -> Replication:
    """The largest size of a claim that fits into so many minutes of training on this device.

    Of those that fit one whose records tell the sign goes before larger ones that don't.

    table: ``tables.measures``.
    entries: the plan.
    dataset: the one that the claim is about.
    timer: gives the minutes that an epoch of a run takes; by default it measures them.
    precision: in which the new runs are trained; None: in the recorded ones'.

    Raises InputError where no size has two recorded pairs, where the smallest such takes longer,
    and where a precision is given for a claim that is about precision.
    """
    sized = recorded_sizes(claim, table)
    if precision and "precision" in claim["ours"]["like_for_like"]:
        raise InputError(f"{claim['id']} compares precisions: leave --precision out")
    seed = _unused_seed(entries, table)
    speeds: dict[Config, float] = {}
    possible = []
    for size, recorded in sized:
        first, *seconds = _configs(size, entries, seed, device, precision)
        needed = 0.0
        for config in dict.fromkeys((first, *seconds)):
            if not config.epochs:
                continue
            an_epoch = own_schedule(config, 1)  # the same for every length and schedule
            if an_epoch not in speeds:
                speeds[an_epoch] = timer(config, dataset, device)
            needed += config.epochs * speeds[an_epoch]
        assert recorded.comparison is not None  # it has two pairs or more
        expected = one_more(recorded.pairs)
        possible.append(
            Replication(claim, size, first, seconds, recorded.comparison, expected, needed)
        )

    fitting = [one for one in possible if one.minutes <= minutes]
    telling = [one for one in fitting if one.tells_the_sign]
    if not fitting:
        least = math.ceil(min(one.minutes for one in possible))
        raise InputError(
            f"{claim['id']}: the smallest size takes {counted(least, 'minute')} on this machine; "
            f"set --minutes {least}"
        )
    return (telling or fitting)[0]


def recorded_sizes(claim: Claim, table: pd.DataFrame) -> list[tuple[OurSize, Ours]]:
    """The sizes of a claim that two recorded pairs of runs say something of, the largest first.

    Raises InputError where there are none.
    """
    if "ours" not in claim:
        raise InputError(f"{claim['id']} has no size that can be run here; see book/claims.yml")
    sized = []
    for size in sizes(claim["ours"]):
        recorded = at_our_size(size, table)
        if len(recorded.pairs) >= 2:
            sized.append((size, recorded))
    if not sized:
        raise InputError(
            f"{claim['id']}: no size has two recorded pairs of runs yet, so nothing says what "
            f"would agree; see: {as_command('experiments', '--scale', 'plan', '--plan')}"
        )
    return sized


def compute(
    replication: Replication,
    dataset: Dataset,
    runs: Path = RUNS,
    device: str | None = None,
    progress: bool = True,
) -> dict:
    """Train and probe the new pair; the record of what came out."""
    conditions = replication.size["like_for_like"]
    probe = str(conditions["probe"])
    ids = []

    def accuracy(config: Config, features: str) -> float:
        run = pretrain(config, dataset, runs, device, progress=progress)
        result = run.evaluate(dataset, device, [probe])[features][probe]
        ids.append(run.record["id"])
        return result["correct"] / result["n"]

    first = accuracy(replication.first, str(conditions["features"]))
    others = []
    for config, minus in zip(replication.seconds, replication.size["minus"], strict=True):
        others.append(accuracy(config, str(minus.get("features", conditions["features"]))))
    difference = first - max(others)

    low, high = replication.expected[1:]
    return {
        "schema": records.SCHEMA,
        "replicates": replication.claim["id"],
        "size": dict(replication.size),
        "recorded": replication.recorded._asdict(),
        "expected": [low, high],
        "seed": replication.first.seed,
        "runs": list(dict.fromkeys(ids)),
        "difference": difference,
        "outcome": replication.outcome(difference),
        "accuracies": [first, *others],
        "data": dataset.fingerprint,
        "device": provenance.device(choose_device(device)),
        "precisions": replication.precisions,
        "code": provenance.code(),
        "versions": provenance.versions(),
        "finished": provenance.now(),
    }


def conclusion(record: dict) -> str:
    """``verified: +1.2 points with seed 10, recorded +1.4 [0.3, 2.5], 3 seeds; at this size: yes``.

    After the seed come the precision and the device, where the record has them.
    What is verified are the records, whatever they say of the claim at this size.
    """
    recorded = Comparison(**record["recorded"])
    of_claim = against_margin(recorded.interval, record["size"]["margin"] / 100)
    computed = f"seed {record['seed']}"
    if "device" in record:
        name, threads = record["device"]["name"], record["device"]["threads"]
        computed += f" in {', '.join(record['precisions'])} on {name}, {counted(threads, 'thread')}"
    return (
        f"{record['outcome']}: {100 * record['difference']:+.1f} points with "
        f"{computed}, recorded {recorded.points()}; at this size: {of_claim}"
    )


def summary(record: dict) -> str:
    """The claim, the size that was computed again, and what came out."""
    size = record["size"]
    others = " or ".join(map(in_words, size["minus"]))
    computed = f"{in_words(size['like_for_like'])}; minus {others}"
    return f"{record['replicates']} ({computed}): {conclusion(record)}"


def write(record: dict, runs: Path) -> Path:
    """Keep a replication beside the runs it made, and return its path."""
    name = f"{record['replicates']}-s{record['seed']}-{record['runs'][0].rpartition('-')[2]}.json"
    path = Path(runs) / REPLICATIONS.name / name
    records.write(path, record)
    return path


def is_one(path: Path) -> bool:
    """Whether a path is that of a replication, as ``write`` leaves them, and not of a run."""
    return path.is_file() and path.parent.name == REPLICATIONS.name


def publish(path: Path, results: Path = REPLICATIONS) -> Path:
    """Copy a replication to those that the book shows, and return its path there."""
    target = Path(results) / path.name
    records.write(target, read(path))
    return target


def read(path: Path) -> dict:
    """Read a replication.

    Raises InputError, naming the file, where it is not JSON or not a whole one.
    """
    try:
        record: Any = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"can't read the replication {path}: {error}") from error
    validated(_Record, record, f"{path} is not a whole replication")
    return record


def load_all(results: Path = REPLICATIONS) -> list[dict]:
    """Every replication in a folder, ordered by file name."""
    return [read(path) for path in sorted(Path(results).glob("*.json"))]


def _planned(name: str, entries: list[Entry]) -> list[Config]:
    """The runs of an entry whose settings are known."""
    named = {entry.name: entry for entry in entries}
    if name not in named:
        raise InputError(unknown("entry of the plan", name, named))
    runs = plan.runs(named[name], score=lambda config: None)
    return [run.config for run in runs if run.config is not None]


def _unused_seed(entries: list[Entry], table: pd.DataFrame) -> int:
    """One beyond all of the plan and of the records: a seed that nothing was chosen by."""
    seeds = [int(seed) for seed in table["seed"].unique()]
    for entry in entries:
        seeds.append(entry.seed)
        for arm in entry.arms.values():
            seeds += [count - 1 for count in arm.seeds.values()]
    return max(seeds) + 1


def _configs(
    size: OurSize, entries: list[Entry], seed: int, device: torch.device, precision: str | None
) -> list[Config]:
    """A run of each group, of a new seed: the first, and those that are subtracted."""
    configs = []
    for wanted in groups(size):
        name = size["entry"] if wanted["entry"] == "any" else wanted["entry"]
        alike = [config for config in _planned(name, entries) if _has(config, wanted)]
        if not alike:
            raise InputError(f"the entry {name} of the plan has no run with {wanted}")
        config = replace(alike[0], seed=seed)
        if precision and config.epochs:  # what is not trained is float32
            config = replace(config, precision=precision)
        configs.append(computed_on(config, device))
    return configs


def _has(config: Config, wanted: dict) -> bool:
    """Whether a configuration has the wanted columns, as far as it tells them."""
    columns = config_columns(config)
    return all(
        value == "any" or column not in columns or columns[column] == value
        for column, value in wanted.items()
    )
