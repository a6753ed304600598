"""Records as tables, one row a measured accuracy."""

import hashlib
import json
import math
from collections.abc import Iterator

import pandas as pd

from lib import probes
from lib.config import Config
from lib.data.downloads import DOWNLOADS
from lib.encoders import BASELINES
from lib.evidence.statistics import calibration_error
from lib.runs.identities import unlike_first

# as configured
RUN_COLUMNS = [
    "name",
    "encoder",
    "stem",
    "head",
    "epochs",
    "seed",
    "temperature",
    "recipe",
    "optimiser",
    "batch_size",
    "positives",
    "precision",
    "factor",
]
COLUMNS = [
    "id",
    "entry",
    "protocol",
    "method",
    "data",
    "variant",
    "images",
    "trained_on",
    "view_size",
    *RUN_COLUMNS,
    "schedule",
    "features",
    "probe",
    "accuracy",
    "correct",
    "n",
    "minutes",
    "views_per_second",
]
# columns that the command line leaves out
NOT_LISTED = [
    "correct",
    "entry",
    "variant",
    "name",
    "batch_size",
    "positives",
    "precision",
    "factor",
    "schedule",
]
OWN_SCHEDULE = "own"  # one that ends with the run


def results(record: dict) -> Iterator[tuple[str, str, dict]]:
    """Every measured accuracy of a record: read from which features, by which probe, the result.

    But for those cut short (``probes.is_cut_short``).
    """
    for features, by_probe in record["evaluation"].items():
        for probe, result in by_probe.items():
            if not probes.is_cut_short(features, result):
                yield features, probe, result


def table(records: list[dict]) -> pd.DataFrame:
    """One row per measured accuracy: which run, from which features, by which probe, of how many.

    The columns are COLUMNS, among them:
    entry: of the plan, to which the run says that it belongs, else "-".
    protocol: a hash of everything that decides the numbers but the seed; only equal ones may be
        averaged.
    method: what the features owe their quality to: simclr, supcon, ce, or "untrained", "kmeans" and
        "pixels" for the baselines.
    images, trained_on: labelled ones, of which some validate; those in the pool.
    view_size: the side of a view in pixels, NaN where the configuration leaves it to data of
        unknown size.
    schedule: "own", or of which longer run, and with which cooldown: ``schedule``.
    accuracy: a fraction.
    """
    rows = []
    for record in records:
        run = run_columns(record)
        for features, probe, result in results(record):
            rows.append(run | {"features": features, "probe": probe} | _share(result))
    return pd.DataFrame(rows, columns=COLUMNS)


def _share(result: dict) -> dict:
    """A result's columns: correct images of n, and their share."""
    correct, n = result["correct"], result["n"]
    return {"correct": correct, "n": n, "accuracy": correct / n}


def label_table(records: list[dict]) -> pd.DataFrame:
    """One row per probe fitted on few labels: the runs' columns and per_class, labels, subset.

    The rows of "all" labels are those of ``table``: linear, uva and uva-last on h, for runs that
    have a sweep.
    """
    rows = []
    for record in records:
        run = run_columns(record)
        sweep = record.get("label_sweep", [])
        for row in sweep:
            rows.append(run | row | _share(row))

        swept = {row["probe"] for row in sweep}

        every = {
            "per_class": run["images"] // len(record["data"]["classes"]),
            "labels": run["images"],
            "subset": "all",
        }
        for features, probe, result in results(record):
            if features == "h" and probe in swept:
                rows.append(run | every | {"features": "h", "probe": probe} | _share(result))
    return pd.DataFrame(rows, columns=[*COLUMNS, "per_class", "labels", "subset"])


def fine_tuning_table(records: list[dict]) -> pd.DataFrame:
    """One row per encoder trained further with few labels, or from scratch: as ``label_table``."""
    rows = []
    for record in records:
        run = run_columns(record)
        for row in record.get("fine_tuning", ()):
            rows.append(run | row | _share(row))
    return pd.DataFrame(rows, columns=[*COLUMNS, "per_class", "labels", "subset"])


def corruption_table(records: list[dict]) -> pd.DataFrame:
    """One row per corruption ("none": no change) and severity: the runs' columns and these two."""
    rows = []
    for record in records:
        run = run_columns(record)
        for row in record.get("corruptions", ()):
            for severity, correct in enumerate(row["correct"], start=1):
                share = _share({"correct": correct, "n": row["n"]})
                rows.append(run | row | share | {"severity": severity})
    return pd.DataFrame(rows, columns=[*COLUMNS, "corruption", "severity"])


def run_columns(record: dict) -> dict:
    """The columns of the table that are the same for all of a run's accuracies."""
    data = record["data"]
    config = Config(**record["config"])  # which fills in new fields

    view_size: float = math.nan
    if config.size is not None:
        view_size = config.size
    elif data["name"] in DOWNLOADS:
        view_size = DOWNLOADS[data["name"]].side

    return config_columns(config) | {
        "id": record["id"],
        "entry": record.get("plan", {}).get("entry", "-"),
        "protocol": protocol(record, config),
        "variant": data["variant"],
        "images": config.images or data["counts"]["train"] + data["counts"]["val"],
        "trained_on": data["pool"],
        "view_size": view_size,
        "minutes": record["seconds"] / 60,
        "views_per_second": record["views_per_second"],
    }


def config_columns(config: Config) -> dict:
    """The columns of the table that a configuration tells."""
    columns = {key: getattr(config, key) for key in RUN_COLUMNS}
    return columns | {
        "factor": round(config.factor, 4),
        "schedule": schedule(config),
        "method": method(config),
        "data": config.data,
    }


def protocol(record: dict, config: Config) -> str:
    """A hash of everything that decides a run's numbers but the seed: 10 hexadecimal digits."""
    decisive = {key: value for key, value in config.decisive.items() if key != "seed"}
    unlike = unlike_first(config.recipe, record.get("recipe"))
    content = [decisive, record["data"]["fingerprint"], record["numerics"], *unlike]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def method(config: Config) -> str:
    """What the features owe their quality to: a method, or the name of a baseline."""
    if config.epochs:
        return config.method
    return BASELINES.get(config.encoder, "untrained")


def schedule(config: Config) -> str:
    """Whose schedule of the learning rate a run has, in words."""
    words = OWN_SCHEDULE
    if config.schedule_epochs != config.epochs:
        words = f"of {config.schedule_epochs} epochs"
    if config.cooldown_epochs:
        words += f", the last {config.cooldown_epochs} a cooldown"
    return words


def measures(records: list[dict]) -> pd.DataFrame:
    """All that claims can be decided by: ``table`` and more rows, told apart by the column measure.

    "accuracy": as in ``table``.
    "few labels": with per_class.
    "ece": the expected calibration error.
    "corruption error": one minus the accuracy over all corruptions and severities.
    "lost to corruption": how much that is beyond the error on the same images as they are.
    "failed": a run that came to nothing; its accuracy is NaN.

    The value stands in the column accuracy, as a fraction. The n images of a corruption error are
    the same under every corruption, and correct is so many images' worth of errors.
    """
    accuracies = table(records).assign(measure="accuracy")
    few = label_table(records).query("subset != 'all'").assign(measure="few labels")

    tables = [accuracies, few, _calibration_errors(records), *_corruption_errors(records)]
    tuned = fine_tuning_table(records).assign(measure="few labels")
    tables += [tuned, _failures(records)]
    filled = [table for table in tables if len(table)] or [accuracies]
    return pd.concat(filled, ignore_index=True).reindex(columns=[*COLUMNS, "measure", "per_class"])


def _calibration_errors(records: list[dict]) -> pd.DataFrame:
    """The rows of "ece"."""
    rows = []
    for record in records:
        run = run_columns(record)
        for bins in record.get("calibration", ()):
            reader = {key: bins[key] for key in ("features", "probe", "n")}
            rows.append(run | reader | {"accuracy": calibration_error(bins), "measure": "ece"})
    return pd.DataFrame(rows)


def _failures(records: list[dict]) -> pd.DataFrame:
    """The rows of "failed"."""
    rows = []
    for record in records:
        if "failed" in record:
            rows.append(run_columns(record) | {"accuracy": math.nan, "measure": "failed"})
    return pd.DataFrame(rows)


def _corruption_errors(records: list[dict]) -> list[pd.DataFrame]:
    """The rows of "corruption error" and of "lost to corruption"."""
    shares = corruption_table(records)
    varying = ("corruption", "severity", "correct", "accuracy")
    reader = [column for column in shares if column not in varying]
    is_clean = shares["corruption"] == "none"

    clean = _mean_accuracy(shares[is_clean], reader)
    corrupted = _mean_accuracy(shares[~is_clean], reader)
    both = corrupted.merge(clean, on=reader, suffixes=("", "_clean"))
    lost = both["accuracy_clean"] - both["accuracy"]

    errors = corrupted.assign(accuracy=1 - corrupted["accuracy"], measure="corruption error")
    losses = both.drop(columns="accuracy_clean").assign(accuracy=lost, measure="lost to corruption")
    return [_with_correct(errors), _with_correct(losses)]


def _mean_accuracy(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    return rows.groupby(by, dropna=False, as_index=False)["accuracy"].mean()


def _with_correct(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(correct=(rows["accuracy"] * rows["n"]).astype(float).round())


def matching(table: pd.DataFrame, wanted: dict) -> pd.DataFrame:
    """The rows of the records' table that have all the wanted values; "any": whatever value."""
    keep = pd.Series(True, index=table.index)
    for column, value in wanted.items():
        if value != "any":
            keep &= table[column] == value
    return table[keep]
