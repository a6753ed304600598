"""Records: what a run was, where and when it ran, and what came out, as one small JSON file.

Every number in the book is read from a record. A finished run leaves ``runs/ID/record.json``;
``publish`` copies it to ``results/ID.json``, which is what the chapters read.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from lib import HOME, InputError, as_command, counted, legible
from lib.compute.bits import unpack_bits
from lib.config import COMPUTED, Config, one_of
from lib.files import write_atomically
from lib.parsing import parse_json
from lib.probes import PROBES
from lib.runs import provenance
from lib.runs.checkpoints import SAME_COMMAND
from lib.validation import validated

SCHEMA = 1
RESULTS = HOME / "results"
BENCHMARKS = RESULTS / "benchmarks"


def _configuration(values: dict) -> dict:
    try:
        Config(**values)
    except InputError as error:
        raise ValueError(f"config: {error}") from None
    return values


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ValueError(f"must be a file name, got {name!r}")
    return name


def _time(text: str) -> str:
    try:
        provenance.seconds_since_1970(text)
    except ValueError:
        raise ValueError(f"must be a time as 2026-01-31T23:59:59Z, got {text!r}") from None
    return text


def _possible(result: dict) -> dict:
    n, correct = result["n"], result["correct"]
    if correct > n:
        raise ValueError(f"must have at most {n} correct images, got {correct}")
    if "bits" in result:
        try:
            unpack_bits(result["bits"], n)
        except ValueError as error:
            raise ValueError(f"must have a bit for each image ({error})") from None
    return result


# counts that a float64 holds, as shares are made of them
AtLeast0 = Annotated[int, Field(ge=0, lt=2**53)]
AtLeast1 = Annotated[int, Field(ge=1, lt=2**53)]
Precision = Annotated[str, one_of("precision", COMPUTED)]
Time = Annotated[str, AfterValidator(_time)]
# the fields that readers rely on are there and right; others may stand beside them
whole = with_config(ConfigDict(strict=True, extra="allow", allow_inf_nan=False))


@whole
class _Epoch(TypedDict):
    """A row of the curves."""

    # of the features behind "knn" and "test_correct"; float32 where a row does not say
    look_precision: NotRequired[Precision]


@whole
class _Counts(TypedDict):
    train: AtLeast0
    val: AtLeast0
    test: AtLeast0


@whole
class _Data(TypedDict):
    name: str
    variant: str
    fingerprint: str
    pool: AtLeast0  # images that were trained on
    classes: Annotated[list[str], Field(min_length=1)]
    counts: _Counts


@whole
class _Result(TypedDict):
    """What a probe found on the test images."""

    n: AtLeast1
    correct: AtLeast0
    bits: NotRequired[str]
    # of the encoder, where it is the run's own; float32 where a result does not say
    precision: NotRequired[Precision]


@whole
class _Row(_Result):
    """A result in a table."""

    features: str
    probe: str


@whole
class _FewLabels(_Row):
    per_class: int
    labels: int
    subset: str


@whole
class _Calibration(TypedDict):
    features: str
    probe: str
    n: AtLeast1
    count: list[int]
    confidence: list[float]
    correct: list[int]


@whole
class _Corruption(TypedDict):
    features: str
    probe: str
    corruption: str
    n: AtLeast1
    correct: list[int]


@whole
class Device(TypedDict):
    type: str
    name: str
    threads: NotRequired[AtLeast1]


@whole
class _Code(TypedDict):
    commit: str | None  # None without git


class _Plan(TypedDict):
    entry: str
    version: str


@whole
class _Record(TypedDict):
    schema: int
    id: Annotated[str, AfterValidator(_file_name)]
    config: Annotated[dict, AfterValidator(_configuration)]
    data: _Data
    numerics: int
    code: _Code
    versions: dict
    device: Device
    seconds: float
    views_per_second: float | None
    curves: list[_Epoch]
    segments: NotRequired[list[dict]]
    delta: NotRequired[dict]
    failed: NotRequired[str]
    started: NotRequired[Time]
    finished: Time
    plan: NotRequired[_Plan]
    evaluation: dict[str, dict[str, Annotated[_Result, AfterValidator(_possible)]]]
    label_sweep: NotRequired[list[Annotated[_FewLabels, AfterValidator(_possible)]]]
    fine_tuning: NotRequired[list[Annotated[_FewLabels, AfterValidator(_possible)]]]
    calibration: NotRequired[list[_Calibration]]
    calibration_by_log_loss: NotRequired[list[_Calibration]]
    corruptions: NotRequired[list[_Corruption]]
    validation: NotRequired[list[Annotated[_Row, AfterValidator(_possible)]]]


@whole
class _Benchmark(TypedDict):
    schema: Literal[1]
    rows: Annotated[list[dict], Field(min_length=1)]
    settings: dict
    versions: dict
    device: dict
    code: dict
    finished: Time


def write(path: Path, record: dict) -> None:
    """Write a record as JSON, atomically, its text as ``legible`` spells it, or none could read it.

    Raises InputError where the file can't be written.
    """
    text = json.dumps(_legible(record), indent=1, allow_nan=False)
    write_atomically(path, f"{text}\n".encode(), SAME_COMMAND)


def _legible(value: Any) -> Any:
    """The same of a record's value, or of all that is in it."""
    if isinstance(value, str):
        return legible(value)
    if isinstance(value, dict):
        return {_legible(key): _legible(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_legible(entry) for entry in value]
    return value


def unfinished(folder: Path) -> str:
    """What to add to an error, where a folder is of a run under way, or of exported weights."""
    if any(folder.glob("checkpoint*.safetensors")):
        return "; the run is not finished: the same pretrain command goes on with it"
    if (folder / "model.safetensors").is_file():
        return "; these are exported weights, and a run is wanted"
    return ""


def read(path: Path) -> dict:
    """Read a record.

    Raises InputError, naming the file, where it is not JSON or not a whole record.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        why = f"{error.strerror}{unfinished(path.parent)}"
        raise InputError(f"can't read the record {path}: {why}") from error
    return parsed(content, path)


def parsed(content: bytes | str, path: Path) -> dict:
    """A record from JSON.

    path: where it is from; InputError, where it is not JSON or not a whole record, names it.
    """
    try:
        record: Any = parse_json(content)
    except ValueError as error:
        ways = "restore the file, or publish its run again"
        if path.name == "record.json":
            ways = f"delete {path.parent} to train anew, or restore the file"
        raise InputError(f"{path} is not JSON ({error}); {ways}") from error

    if isinstance(record, dict) and record.get("schema", SCHEMA) != SCHEMA:
        raise InputError(
            f"{path} has the schema {record['schema']}, this version reads {SCHEMA}: update the "
            "package"
        )
    try:
        validated(_Record, record, f"{path} is not a whole record")
    except InputError as error:
        raise InputError(
            f"{error}; update the package where a newer version wrote it, else restore the file"
        ) from error
    return record


def file_of(path: Path) -> Path:
    """A record's file, where the folder of its run may be named."""
    path = Path(path)
    if path.is_dir():
        return path / "record.json"
    return path


def publish(path: Path, results: Path = RESULTS) -> Path:
    """Copy a record into results, where the chapters read it, and return its path there.

    path: a run's folder or its record.json, evaluated or of a failure.

    Raises InputError where it is neither, or where the record that is there knows more.
    """
    file = file_of(path)
    record = read(file)
    if not record["evaluation"] and not {"validation", "failed"} & record.keys():
        raise InputError(f"{path} is not evaluated yet; run: {as_command('probe', file.parent)}")

    target = Path(results) / f"{record['id']}.json"
    if target.is_file():
        lost = sorted(found(read(target)) - found(record))
        if lost:
            raise InputError(
                f"{target} has results that {path} lacks, {', '.join(lost)}: probe the run by "
                "these first, or delete the record there"
            )
    write(target, record)
    return target


def found(record: dict) -> set[str]:
    """What a record has results of: by which probe of which features, or a whole table."""
    results = record.keys() & {probe.field for probe in PROBES.values()}
    for features, by_probe in record["evaluation"].items():
        results |= {f"{probe} on {features}" for probe in by_probe}
    return results


def benchmark(name: str, folder: Path = BENCHMARKS) -> dict:
    """The record of a benchmark, such as "loss-cpu": rows, settings, versions, device, code.

    Raises InputError where it is not there or not a whole one.
    """
    path = folder / f"{name}.json"
    try:
        record: Any = parse_json(path.read_bytes())
        validated(_Benchmark, record, "it is not of this version")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is missing or damaged ({error}); restore it, or run: make bench"
        ) from error
    return record


def origin(benchmark: dict) -> str:
    """Where a benchmark ran, in a line."""
    device = benchmark["device"]

    words = [
        device["name"],
        counted(device["threads"], "thread"),
        f"torch {benchmark['versions']['torch']}",
    ]
    repetitions = benchmark["settings"].get("repetitions")
    if repetitions:
        words.append(f"{repetitions} repetitions")

    words.append(benchmark["finished"][:10])
    commit = benchmark["code"]["commit"]  # None without git
    words.append(f"commit {commit[:7]}" if commit else "no commit")
    return ", ".join(words)


def load_all(results: Path = RESULTS) -> list[dict]:
    """Every record in a folder, ordered by file name.

    Raises InputError where a file has not its record's name: a copy would count as another seed.
    """
    records = []
    for path in sorted(Path(results).glob("*.json")):
        record = read(path)
        if record["id"] != path.stem:
            raise InputError(
                f"{path} holds the record {record['id']}: delete it where it is a copy, else name "
                f"it {record['id']}.json"
            )
        records.append(record)
    return records


def correct(record: dict, features: str, probe: str) -> np.ndarray:
    """Which test images a record's probe got right, in the data set's order: (n,) bool."""
    result = record["evaluation"][features][probe]
    return unpack_bits(result["bits"], result["n"])
