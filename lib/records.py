"""Records: what a run was, where and when it ran, and what came out, as one small JSON file.

Every number in the book is read from a record. A finished run leaves ``runs/ID/record.json``;
``publish`` copies it to ``results/ID.json``, which is what the chapters read.
"""

import base64
import hashlib
import json
import math
import platform
import re
import subprocess
import time
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib import ROOT, InputError, hardware
from lib.config import Config, unlike_first
from lib.encoders import BASELINES
from lib.files import parse_json, write_atomically

SCHEMA = 1
RESULTS = ROOT / "results"
BENCHMARKS = RESULTS / "benchmarks"
REQUIRED = {
    "schema": int,
    "id": str,
    "config": dict,
    "data": dict,
    "code": dict,
    "versions": dict,
    "device": dict,
    "seconds": (int, float),
    "curves": list,
    "evaluation": dict,
}

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
]  # as configured
COLUMNS = [
    "id",
    "protocol",
    "method",
    "data",
    "variant",
    "images",
    "trained_on",
    "view_size",
    *RUN_COLUMNS,
    "features",
    "probe",
    "accuracy",
    "correct",
    "n",
    "minutes",
    "views_per_second",
]
SIDES = {
    "digits": 32,
    "cifar10": 32,
    "cifar100": 32,
    "imagenette96": 96,
    "stl10": 96,
}  # of the data sets' images


def write(path: Path, record: dict) -> None:
    """Write a record as JSON, atomically."""
    write_atomically(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def unfinished(folder: Path) -> str:
    """What to add to an error, where the folder is one of a run that is not finished, or of
    exported weights."""
    if any(folder.glob("checkpoint*.safetensors")):
        return "; the run is not finished: the same pretrain command goes on with it"
    exported = (folder / "model.safetensors").is_file()
    return (
        "; these are exported weights, and a run is wanted: embed uses them, probe does not"
        if exported
        else ""
    )


def read(path: Path) -> dict:
    """Read a record. Raises InputError, naming the file, where it is not JSON or not a whole
    record."""
    try:
        record = parse_json(Path(path).read_bytes())
    except OSError as error:
        raise InputError(
            f"can't read the record {path}: {error.strerror}{unfinished(Path(path).parent)}"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{path} is not JSON ({error}); run it again, or restore the file"
        ) from error
    if not isinstance(record, dict):
        raise InputError(
            f"{path} is not a record: it holds a {type(record).__name__}, not an object"
        )
    for field, kind in REQUIRED.items():
        if not isinstance(record.get(field), kind):
            raise InputError(
                f"{path} is not a record: its field '{field}' is missing or of the wrong type"
            )
    if record["schema"] != SCHEMA:
        raise InputError(f"{path} has the schema {record['schema']}, this version reads {SCHEMA}")
    if not re.fullmatch(r"[\w-][\w.-]*", record["id"]):
        raise InputError(f"{path} is not a record: its id {record['id']!r} is not a file name")
    try:
        table([record])
        label_table([record])
        if not all(
            isinstance(row, dict) for row in [*record["curves"], *record.get("segments", ())]
        ):
            raise TypeError("its curves and segments must be objects")
        for features, probe in (
            (f, p) for f, probes in record["evaluation"].items() for p in probes
        ):
            if "bits" in record["evaluation"][features][probe]:
                correct(record, features, probe)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InputError(
            f"{path} is not a whole record ({type(error).__name__}: {error})"
        ) from error
    return record


def publish(path: Path, results: Path = RESULTS) -> Path:
    """Copy the record at path (a run's folder or its record.json), evaluated or of a failure, into
    results."""
    path = Path(path)
    record = read(path / "record.json" if path.is_dir() else path)
    if not record["evaluation"] and not {"validation", "failed"} & record.keys():
        raise InputError(f"{path} is not evaluated yet; run: python -m lib probe {path}")
    target = Path(results) / f"{record['id']}.json"
    write(target, record)
    return target


def benchmark(name: str) -> dict:
    """The record of a benchmark (``python -m benchmarks``), such as "loss-cpu": rows, settings,
    versions, device, code.

    Raises InputError where it is not there or not a whole one.
    """
    path = BENCHMARKS / f"{name}.json"
    try:
        record = parse_json(path.read_bytes())
        known = (
            record["schema"] == SCHEMA
            and record["rows"]
            and isinstance(record["rows"], list)
            and all(isinstance(row, dict) for row in record["rows"])
            and all(
                isinstance(record[field], dict)
                for field in ("settings", "versions", "device", "code")
            )
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is missing or damaged ({error}); restore it, or run: make bench"
        ) from error
    if not known:
        raise InputError(
            f"{path} is not the record of a benchmark of this version; run: make bench"
        )
    return record


def origin(benchmark: dict) -> str:
    """Where a benchmark ran, in a line."""
    device, repetitions = benchmark["device"], benchmark["settings"].get("repetitions")
    return (
        f"{device['name']}, {device['threads']} threads, torch {benchmark['versions']['torch']}, "
        f"{f'{repetitions} repetitions, ' if repetitions else ''}{benchmark['finished'][:10]}, "
        f"commit {benchmark['code']['commit'][:7]}"
    )


def load_all(results: Path = RESULTS) -> list[dict]:
    """Every record in a folder, ordered by file name."""
    return [read(path) for path in sorted(Path(results).glob("*.json"))]


def table(records: list[dict]) -> pd.DataFrame:
    """One row per measured accuracy: which run, read from which features, by which probe, on how
    many images.

    The columns are COLUMNS. protocol is a hash of everything that decides the numbers but the seed:
    only equal ones may be averaged. method is what the features owe their quality to: simclr,
    supcon, ce, or "untrained", "kmeans" and "pixels" for the baselines. images: labelled ones, of
    which some validate; trained_on: those in the pool. view_size: the side of a view in pixels, NaN
    where the configuration leaves it to data of unknown size. accuracy is a fraction.
    """
    rows = []
    for record in records:
        run = run_columns(record)
        for features, probes in record["evaluation"].items():
            for probe, result in probes.items():
                if not 0 <= result["correct"] <= result["n"]:
                    raise ValueError(f"{result['correct']} of {result['n']} images correct")
                rows.append(
                    run
                    | {
                        "features": features,
                        "probe": probe,
                        "correct": result["correct"],
                        "n": result["n"],
                        "accuracy": result["correct"] / result["n"],
                    }
                )
    return pd.DataFrame(rows, columns=COLUMNS)


def label_table(records: list[dict]) -> pd.DataFrame:
    """One row per probe fitted on few labels: the runs' columns and per_class, labels, subset.

    The rows of "all" labels are those of ``table``: linear, uva and uva-last on h, for runs that
    have a sweep.
    """
    rows = []
    for record in records:
        run, classes = run_columns(record), len(record["data"]["classes"])
        for row in record.get("label_sweep", ()):
            rows.append(run | row | {"accuracy": row["correct"] / row["n"]})
        swept, on_h = (
            {row["probe"] for row in record.get("label_sweep", ())},
            record["evaluation"].get("h", {}),
        )
        for probe, result in ((probe, result) for probe, result in on_h.items() if probe in swept):
            rows.append(
                run
                | {
                    "features": "h",
                    "probe": probe,
                    "per_class": run["images"] // classes,
                    "labels": run["images"],
                    "subset": "all",
                    "n": result["n"],
                    "correct": result["correct"],
                    "accuracy": result["correct"] / result["n"],
                }
            )
    return pd.DataFrame(rows, columns=[*COLUMNS, "per_class", "labels", "subset"])


def corruption_table(records: list[dict]) -> pd.DataFrame:
    """One row per corruption ("none": no change) and severity: the runs' columns and corruption,
    severity."""
    rows = [
        run_columns(record)
        | row
        | {"severity": severity, "correct": correct, "accuracy": correct / row["n"]}
        for record in records
        for row in record.get("corruptions", ())
        for severity, correct in enumerate(row["correct"], start=1)
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS, "corruption", "severity"])


def run_columns(record: dict) -> dict:
    """The columns of the table that are the same for all of a run's accuracies."""
    config, data, known = (
        record["config"],
        record["data"],
        Config(**record["config"]),
    )  # which fills in new fields
    decisive = {key: value for key, value in known.decisive.items() if key != "seed"}
    unlike = unlike_first(config["recipe"], record.get("recipe"))
    decisive = json.dumps(
        [decisive, data["fingerprint"], record["numerics"], *unlike], sort_keys=True
    )
    method = known.method if known.epochs else BASELINES.get(known.encoder, "untrained")
    return {key: getattr(known, key) for key in RUN_COLUMNS} | {
        "factor": round(known.factor, 4),
        "id": record["id"],
        "protocol": hashlib.sha256(decisive.encode()).hexdigest()[:10],
        "method": method,
        "data": data["name"],
        "variant": data["variant"],
        "images": config["images"] or data["counts"]["train"] + data["counts"]["val"],
        "trained_on": data.get("pool"),
        "view_size": known.size or SIDES.get(data["name"], math.nan),
        "minutes": record["seconds"] / 60,
        "views_per_second": record["views_per_second"],
    }


def pack_bits(correct) -> str:
    """Which test images were right, as base64 of packed bits: 1.7 kB for 10,000 images. For paired
    tests."""
    return base64.b64encode(np.packbits(np.asarray(correct, dtype=bool)).tobytes()).decode()


def correct(record: dict, features: str, probe: str) -> np.ndarray:
    """Which test images a record's probe got right, in the data set's order: (n,) bool. The reverse
    of pack_bits."""
    result = record["evaluation"][features][probe]
    packed = np.frombuffer(base64.b64decode(result["bits"]), dtype=np.uint8)
    if len(packed) != -(-result["n"] // 8):
        raise ValueError(f"{len(packed)} bytes of bits for {result['n']} images")
    return np.unpackbits(packed, count=result["n"]).astype(bool)


@cache
def code(*others: str) -> dict:
    """The commit of the checkout, whether ``lib`` (and other folders) differ from it, and a hash of
    their source."""
    digest, folders = hashlib.sha256(), ("lib", *others)
    for path in (path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", ROOT, *arguments], capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git("status", "--porcelain", "--", *folders)
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed": None if changed is None else bool(changed),
        "source": digest.hexdigest(),
    }


def now() -> str:
    """The time in UTC, as records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def versions() -> dict:
    """Versions of Python and of the packages that numbers depend on."""
    names = ["torch", "torchvision", "numpy", "scipy", "scikit-learn"] + ["numba"] * bool(
        find_spec("numba")
    )
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def device(device: torch.device) -> dict:
    """What the run ran on: type, name, CPU threads, operating system."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = hardware.processor("model name") or platform.processor() or platform.machine()
    return {
        "type": device.type,
        "name": name,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }
