"""A run as a file that others can use: half-precision weights, its record and a model card."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lib import InputError, counted
from lib.config import Config
from lib.data.dataset import Dataset
from lib.evidence.statistics import binomial
from lib.evidence.tables import matching, results, run_columns, table
from lib.files import write_atomically
from lib.parsing import parse_json
from lib.runs import records
from lib.runs.packing import packed, view_of
from lib.runs.run import Run
from lib.weights.registry import FILE, REGISTRY, EncoderEntry, read_bytes, record_in


def export(
    run: Run,
    folder: Path,
    dataset: Dataset,
    half: bool = True,
    licence: str = "none stated",
    results: Path = records.RESULTS,
) -> dict[str, str]:
    """Write a run's model.safetensors, its record inside, and a model card, README.md.

    dataset: the one the run was trained on.
    half: matrices and convolutions in float16; vectors (BatchNorm, biases) stay float32: they are
        few, and a small variance would lose its digits.
    results: folder of published records, for the card's accuracies of other seeds.

    Returns its registry entry. Raises InputError where dataset is another one, a weight is too
    large for float16, the folder has something else under these names, or a file can't be written.
    """
    _refuse_to_replace(folder, run.record["id"])
    record, content = packed(run.record, run.model, view_of(run, dataset), half)
    entry = EncoderEntry(
        name=record["id"],
        url=_from_registry(folder),
        sha256=hashlib.sha256(content).hexdigest(),
        record=record["id"],
        licence=licence,
    )
    card = "\n".join(_card(record, entry, results))
    write_atomically(folder / FILE, content)
    write_atomically(folder / "README.md", card.encode())
    return asdict(entry)


def _refuse_to_replace(folder: Path, run: str) -> None:
    """Raise InputError where files are in the way; an earlier export of that run is not."""
    for name in ("record.json", FILE, "README.md"):
        path = folder / name
        if not path.exists():
            continue
        if name == FILE and _exported_run(path) == run:
            return
        raise InputError(
            f"{path} is there already, and is no earlier export of this run: name another folder"
        )


def _exported_run(path: Path) -> str | None:
    """The id of the run in an exported file; None where there is none."""
    text = record_in(path, read_bytes(path))
    if not text:
        return None
    record: Any = parse_json(text)
    return record.get("id")


def _from_registry(folder: Path) -> str:
    """The folder, by its path from the registry's where it is below that."""
    place = folder.resolve()
    home = REGISTRY.parent.resolve()
    if place.is_relative_to(home):
        place = place.relative_to(home)
    return place.as_posix()


def _card(record: dict, entry: EncoderEntry, published: Path) -> Iterator[str]:
    """The lines of a model card, all from the record and its like among those published."""
    config = Config(**record["config"])
    data = record["data"]
    view = record["input"]
    variant = f" ({data['variant']})" if data["variant"] else ""
    yield f"# {record['id']}\n"
    yield f"{config.method} on {data['name']}{variant}, {counted(config.epochs, 'epoch')}.\n"

    yield "| read from | probe | test accuracy, % | n |"
    yield "|---|---|---|---|"
    for features, probe, result in results(record):
        interval = binomial(result["correct"], result["n"])
        yield f"| {features} | {probe} | {interval.percent()} | {result['n']} |"
    others = [f"{100 * share:.1f}" for share in _of_other_seeds(record, published)]
    if others:
        said = ", ".join(others)
        yield f"\nOther seeds of this setup, from h by the linear probe: {said} %."
    yield "\nIntervals are 95 % over test images; one run says nothing of the spread over seeds."

    images = [f"{count:,} {split}" for split, count in data["counts"].items()]
    about = {
        "images": ", ".join(images),
        "trained on": f"{data['pool']:,} of them ({config.pool})",
        "image, view (pixels)": f"{view['image']}, {view['size']}",
        "mean of RGB in [0, 1]": view["mean"],
        "its deviation": view["std"],
        "weights": record["weights"],
        "commit": record["code"]["commit"],
        "made on": record["device"]["name"],
        "sha256": entry.sha256,
        "licence": f"{entry.licence}; the data set's own terms hold for its images",
        **config.decisive,
    }
    yield "\n| setting | value |"
    yield "|---|---|"
    for name, value in about.items():
        yield f"| {name} | {value} |"
    side = view["size"]
    yield "\n## Not for\n"
    yield f"- Pictures that need more than {side} x {side} pixels: it is shown no more of them."
    yield (
        f"- Pictures unlike {data['name']}'s. It has seen no others, and was tested on no others: "
        "compare with the untrained encoder and with ready weights first."
    )
    yield "- Decisions about people. What it gets wrong was not studied beyond these accuracies."
    yield "\n`lib.weights.load(FOLDER)` reads it; the record is in the file.\n"


def _of_other_seeds(record: dict, published: Path) -> list[float]:
    """Shares of right answers from h, by the linear probe, of records that differ in the seed."""
    protocol = run_columns(record)["protocol"]
    read = {"protocol": protocol, "features": "h", "probe": "linear"}
    runs = matching(table(records.load_all(published)), read)
    return runs.loc[runs["id"] != record["id"], "accuracy"].tolist()
