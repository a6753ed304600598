"""What a run is and what its probes found, in lines for people."""

from collections.abc import Iterator

import pandas as pd

from lib import InputError, counted, probes
from lib.config import Config
from lib.evidence import tables
from lib.evidence.statistics import (
    Interval,
    binomial,
    bootstrap,
    calibration_error,
    summarise_labels,
)
from lib.runs import records

# fields that a line tells in another way, or that follow from the length or the device
UNLISTED = ("data", "epochs", "seed", "warmup_epochs", "precision")
# fields of the record, and by what the probe's penalty was chosen where not by accuracy
CALIBRATIONS = {"calibration": "", "calibration_by_log_loss": ", penalty by log-loss"}


def in_lines(record: dict) -> Iterator[str]:
    """The run; then each result, with its 95 % interval where it has one.

    Every probe of ``lib.probes`` has its lines. The interval is the test images' noise; with few
    labels also that of the choice of labels, where there are several subsets.
    """
    yield f"{record['id']}: {summary(record)}"
    for features, by_probe in record["evaluation"].items():
        for probe, result in by_probe.items():
            if probes.is_cut_short(features, result):
                words = "left out: its search ended too early; probe the run again"
            else:
                words = _share(result)
            yield _line(features, probe, words)
    for row in record.get("validation", ()):
        yield _line(row["features"], row["probe"], f"on validation {_share(row)}")
    yield from _few_labels(record)

    for field, chosen_by in CALIBRATIONS.items():
        for bins in record.get(field, ()):
            error = f"calibration error {100 * calibration_error(bins):.1f} %{chosen_by}"
            yield _line(bins["features"], bins["probe"], error)
    for row in tables.measures([record]).query("measure == 'corruption error'").itertuples():
        yield _line(row.features, row.probe, f"corruption error {100 * row.accuracy:.1f} %")


def compared(first: dict, second: dict) -> Iterator[str]:
    """Two runs on the same test images: the difference of each accuracy that both have, in points.

    With its 95 % interval by the paired bootstrap (``statistics.bootstrap``).
    Raises InputError where they have other test images, or no probe in common.
    """
    if first["data"]["fingerprint"] != second["data"]["fingerprint"]:
        raise InputError(
            f"{first['id']} and {second['id']} were tested on other images: of {_data(first)} and "
            f"{_data(second)}"
        )
    shared = []
    theirs = {(features, probe): result for features, probe, result in tables.results(second)}
    for features, probe, result in tables.results(first):
        if "bits" in result and "bits" in theirs.get((features, probe), {}):
            shared.append((features, probe))
    if not shared:
        raise InputError(
            f"{first['id']} and {second['id']} have no probe in common: probe both by the same"
        )

    yield f"{first['id']}: {summary(first)}"
    yield f"minus {second['id']}: {summary(second)}"
    for features, probe in shared:
        one, other = (records.correct(record, features, probe) for record in (first, second))
        difference = bootstrap(one, other).points()
        yield _line(features, probe, f"{difference} points  n = {len(one)}")
    yield "in brackets is the noise of the test images; another seed may move it further"


def _data(record: dict) -> str:
    """``cifar10 ad3f...``: its data set, and which version of it."""
    return f"{record['data']['name']} {record['data']['fingerprint'][:8]}"


def summary(record: dict) -> str:
    """``simclr, 5 epochs, on mine (encoder=slim)``: method or baseline, data, and the delta."""
    config = Config(**record["config"])
    words = tables.method(config)
    if config.epochs:
        words += f", {counted(config.epochs, 'epoch')},"
    words += f" on {config.data}"
    changes = [
        f"{key}={value}" for key, value in record.get("delta", {}).items() if key not in UNLISTED
    ]
    if changes:
        words += f" ({', '.join(changes)})"
    return words


def _line(features: str, probe: str, words: str) -> str:
    return f"  {features}  {probe:16}  {words}"


def _share(result: dict) -> str:
    interval = binomial(result["correct"], result["n"])
    return f"{interval.percent()} %  n = {result['n']}"


def _few_labels(record: dict) -> Iterator[str]:
    """Lines of what was fitted or trained on few labels."""
    by_probe = pd.concat([tables.label_table([record]), tables.fine_tuning_table([record])])
    for row in summarise_labels(by_probe, []).itertuples():
        interval = Interval(row.mean, row.low, row.high).percent()
        labels = f"{row.per_class:4} labels a class"
        yield _line("h", row.probe, f"{labels}  {interval} %  over {row.interval}")
