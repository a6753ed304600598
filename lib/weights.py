"""Weights in place of training: encoders by name, each with its record, and a run exported so that
others can use it.

A name is one in ``weights/registry.yml``, an exported folder, the folder of a run of one's own, or
another project's checkpoint (``lib.foreign``). A registered file is fetched once, and used only
where its SHA-256 is the registered one; an exported one has its own inside, as a checkpoint has.
"""

import hashlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from torch import Tensor, uint8

from lib import (
    ROOT,
    InputError,
    checkpoints,
    data,
    evaluation,
    foreign,
    needed,
    records,
    statistics,
    training,
)
from lib.augmentations import Recipe
from lib.config import PRESETS, Config, difference, unknown
from lib.data import Dataset
from lib.encoders import Model
from lib.files import parse_json, read_yaml, write_atomically
from lib.hardware import choose_device, lent
from lib.runs import Run, build_model, described, load_run, recipe_for

REGISTRY = ROOT / "weights" / "registry.yml"
FIELDS = ("name", "url", "sha256", "record", "licence")
FILE = "model.safetensors"
TIMEOUT = 60  # seconds without an answer; then a download is given up


@dataclass(frozen=True)
class Weights:
    """An encoder and its head, ready to look at images."""

    name: str  # what it was loaded by
    model: Model = field(repr=False)  # in eval mode, on the CPU
    recipe: Recipe  # the view it takes of an image, its normalisation included
    size: int  # side in pixels that images are brought to before
    record: dict = field(repr=False)  # of the run; empty for another project's checkpoint,
    about: str  # of which this says what was found in it

    @property
    def encoder(self) -> str:
        """Which encoder it is: the run's id, or the checkpoint's file name and the start of its
        weights' SHA-256."""
        if self.record:
            return self.record["id"]
        digest = hashlib.sha256(
            b"".join(value.numpy().tobytes() for value in self.model.state_dict().values())
        )
        return f"{Path(self.name).name}-{digest.hexdigest()[:10]}"

    def features(self, images: Tensor, device: str | None = None) -> tuple[Tensor, Tensor]:
        """h (N, width) and z (N, D), float32 on the CPU, of images (N, 3, H, W) uint8; InputError
        for any others."""
        if (
            not isinstance(images, Tensor)
            or images.dtype != uint8
            or images.dim() != 4
            or images.shape[1] != 3
        ):
            raise InputError(
                f"images must be a tensor (N, 3, H, W) uint8, got {type(images).__name__} "
                f"{getattr(images, 'dtype', '')} {tuple(getattr(images, 'shape', ()))}"
            )
        with lent(self.model, choose_device(device)) as model:
            return tuple(part.cpu() for part in evaluation.features(model, images, self.recipe))

    def write(self, path: Path) -> str:
        """Write the model for other programs, by the path's ending (``foreign.write``); returns
        what input it wants."""
        side = self.recipe.size
        foreign.write(self.model, side, path)
        return (
            f"for other programs; wants images (B, 3, {side}, {side}) float32 as (pixels / 255 - "
            "mean) / std, "
            f"mean {self.recipe.mean}, std {self.recipe.std}"
        )


def load(name: str | Path, root: str | Path | None = None, registry: Path = REGISTRY) -> Weights:
    """An encoder by name: registered, exported, of a run of one's own, or another project's
    checkpoint.

    root: of data sets, see ``data.data_root``; fetched files are kept in its folder "weights". A
    run of one's own needs its data set there, whose pixels say how it is normalised. Raises
    InputError for an unknown name, a wrong hash, a damaged file or another architecture.
    """
    path = _folder(name)
    if (
        path.suffix in foreign.SUFFIXES
        or path.suffix == ".safetensors"
        and not _record(path, _read(path))
    ):
        found = foreign.read(path)
        recipe = foreign.SOURCES[found.source]
        return Weights(str(name), found.model, recipe, recipe.size, {}, str(found))
    there = run(name, root, registry)
    try:
        seen = there.record.get("input") or _input(there, data.load(there.config.data, root))
    except InputError as error:
        raise InputError(
            f"{name} is a run, and its data set says how it sees images: {error}; or export it "
            "where that "
            f"is, and use what is exported"
        ) from error
    try:
        config = replace(there.config, size=seen["size"], mean=seen["mean"], std=seen["std"])
        recipe = Recipe(size=config.size, mean=config.mean, std=config.std)
        return Weights(
            str(name),
            there.model,
            recipe,
            replace(config, size=seen["image"]).size,
            there.record,
            "",
        )
    except (TypeError, LookupError, InputError) as error:
        raise InputError(
            f"{name} does not say how it sees images ({error}); export it again"
        ) from error


def run(name: str | Path, root: str | Path | None = None, registry: Path = REGISTRY) -> Run:
    """The run behind registered or exported weights, or one of one's own, as ``runs.load_run``
    returns it.

    What further probes find is kept below root's folder "weights"; the exported file stays as it
    is. Raises InputError where there is none of that name, or a file is damaged or has no record of
    a run.
    """
    path, cache, entry = _folder(name), data.data_root(root) / "weights", {}
    if (path / "record.json").is_file():
        return load_run(path)
    path = path if path.is_file() else path / FILE
    if not path.is_file():
        entry = _entry(str(name), registry)
        path = _fetch(entry, cache, registry)
    content = _read(path)
    told = path.suffix == ".safetensors" and _record(path, content)
    if not told:
        raise InputError(
            f"{name} holds no record of a run: name the folder of a finished run, or an exported "
            "one "
            f"(.pth, .pt2 and .onnx are for other programs)"
        )
    if not checkpoints.unbroken(content):
        raise InputError(f"{path} is damaged: its checksum is wrong; copy or export it again")
    folder = cache / hashlib.sha256(content).hexdigest()[:16]
    if not (folder / "record.json").is_file():
        write_atomically(folder / "record.json", told.encode())
    record, config, model = described(folder)
    if record["id"] != entry.get("record", record["id"]):
        raise InputError(
            f"{name} is registered as the run {entry['record']}, its file holds {record['id']}"
        )
    try:
        model.load_state_dict(
            {
                key: value.float() if value.is_floating_point() else value
                for key, value in deserialise(content).items()
            },
            assign=True,
        )
    except Exception as error:  # of safetensors, or of weights that are another model's
        why = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path} is of another architecture than its record says ({why})"
        ) from error
    return Run(folder, config, record, model.eval())


def pretrain(
    config: Config,
    dataset: Dataset,
    names: str | None = None,
    root: str | Path | None = None,
    registry: Path = REGISTRY,
    **options,
) -> Run:
    """The run of a configuration: the one among the named weights, where some are named, else
    trained.

    names: separated by spaces, as in a chapter's parameter ``weights``; None trains, and so does
    epochs=0. options: of ``training.pretrain``. Raises InputError where none of the weights is of
    this very configuration and data.
    """
    given = [run(name, root, registry) for name in (names or "").split()]
    if not given or not config.epochs:
        return training.pretrain(config, dataset, **options)
    unlike = [
        difference(found.config, replace(config, precision=found.config.precision))
        for found in given
    ]
    differs, found = min(zip(unlike, given), key=lambda pair: len(pair[0]))
    for name, (there, here) in differs.items():
        raise InputError(
            f"none of the weights {names} is of this run: {name} is {there} there and {here} here; "
            f"set the parameters to fit, weights=None to train, "
            f"or make such weights: python -m lib pretrain {_words(config)}"
        )
    if found.record["data"]["fingerprint"] != dataset.fingerprint:
        raise InputError(
            f"the weights {found.record['id']} were trained on another version of {dataset.name}"
        )
    print(f"weights in place of training: {found.record['id']}")
    return found


def _words(config: Config) -> str:
    """What follows ``pretrain`` on the command line to make such a run."""
    changed = difference(config, PRESETS.get(config.name, config))
    return shlex.join(
        [
            config.name,
            *(
                word
                for field, (value, _) in changed.items()
                for word in ("--set", f"{field}={value}")
            ),
        ]
    )


def export(
    of: Run, folder: Path, dataset: Dataset, half: bool = True, licence: str = "none stated"
) -> dict:
    """Write a run's model.safetensors, its record inside, and a model card, README.md. Returns its
    registry entry.

    half: matrices and convolutions in float16; vectors (BatchNorm, biases) stay float32: they are
    few, and a small variance would lose its digits. dataset: the one the run was trained on. Raises
    InputError where it is another one, a weight is too large for float16, the folder has something
    else under these names, or a file can't be written.
    """
    there = [
        path for name in ("record.json", FILE, "README.md") if (path := folder / name).exists()
    ]
    told = _record(there[0], _read(there[0])) if there and there[0].name == FILE else ""
    if there and not (told and parse_json(told).get("id") == of.record["id"]):
        raise InputError(
            f"{there[0]} is there already, and is no earlier export of this run: name another "
            "folder"
        )
    record, content = _packed(of.record, of.model, _input(of, dataset), half)
    place, home = folder.resolve(), REGISTRY.parent.resolve()
    url = str(place.relative_to(home) if place.is_relative_to(home) else place)
    entry = dict(
        zip(FIELDS, (record["id"], url, hashlib.sha256(content).hexdigest(), record["id"], licence))
    )
    write_atomically(folder / FILE, content)
    write_atomically(folder / "README.md", "\n".join(_card(record, entry)).encode())
    return entry


def keep(of: Run, folder: Path, dataset: Dataset, epoch: int) -> Path:
    """Write the model of a run as it was after an epoch, in half precision, for later experiments:
    one file, ``run`` reads it. Returns its path.

    Of the record inside, curves and results are left out; they stand in the run's own. Before the
    last epoch the model is the one that ``pretrain(..., keep=...)`` left in the run's folder.
    Raises as ``export``.
    """
    record, model = of.record | {"curves": [], "evaluation": {}}, of.model
    for table in evaluation.TABLES.values():
        record.pop(table, None)
    if epoch < of.config.epochs:
        record["id"] = f"{of.record['id']}-epoch{epoch}"
        model = build_model(of.config, dataset)
        checkpoints.restore(
            of.folder / f"epoch-{epoch}.safetensors", of.config, of.record["id"], model
        )
    path = folder / f"{record['id']}.safetensors"
    write_atomically(path, _packed(record, model, _input(of, dataset), half=True)[1])
    return path


def _packed(record: dict, model: Model, seen: dict, half: bool) -> tuple[dict, bytes]:
    """A model and the record it is of as the content of one sealed file; the record as it stands in
    there."""
    record = record | {
        "input": seen,
        "weights": "float16" if half else "float32",
        "sha256": checkpoints.UNSEALED,
    }
    tensors = {
        name: (value.half() if half and value.dim() > 1 else value).contiguous()
        for name, value in model.state_dict().items()
    }
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise InputError(
                f"{name} of {record['id']} is not finite in {record['weights']}; export it in "
                "float32"
            )
    return record, checkpoints.sealed(
        serialise(tensors, {"record": json.dumps(record)})
    )  # the order of two is random


def _card(record: dict, entry: dict) -> Iterator[str]:
    """The lines of a model card, all from the record."""
    config, of, seen = Config(**record["config"]), record["data"], record["input"]
    variant = f" ({of['variant']})" if of["variant"] else ""
    yield f"# {record['id']}\n\n{config.method} on {of['name']}{variant}, {config.epochs} epochs.\n"
    yield "| read from | probe | test accuracy, % | n |\n|---|---|---|---|"
    for kind, probe, result in (
        (k, p, r) for k, probes in record["evaluation"].items() for p, r in probes.items()
    ):
        interval = statistics.binomial(result["correct"], result["n"])
        yield f"| {kind} | {probe} | {interval.percent()} | {result['n']} |"
    about = {
        "images": ", ".join(f"{n:,} {split}" for split, n in of["counts"].items()),
        "trained on": f"{of['pool']:,} of them ({config.pool})",
        "image, view (pixels)": f"{seen['image']}, {seen['size']}",
        "mean of RGB in [0, 1]": seen["mean"],
        "its deviation": seen["std"],
        "weights": record["weights"],
        "commit": record["code"]["commit"],
        "made on": record["device"]["name"],
        "sha256": entry["sha256"],
        "licence": f"{entry['licence']}; the data set's own terms hold for its images",
        **config.decisive,
    }
    yield "\n| setting | value |\n|---|---|"
    yield from (f"| {name} | {value} |" for name, value in about.items())
    yield "\n`lib.weights.load(FOLDER)` reads it; the record is in the file.\n"


def _input(of: Run, dataset: Dataset) -> dict:
    """How the run sees images: the side they are brought to, the side of its view, the
    normalisation."""
    if dataset.fingerprint != of.record["data"]["fingerprint"]:
        raise InputError(
            f"{of.record['id']} was trained on another version of {dataset.name}: restore its data"
        )
    recipe, side = recipe_for(of.config, dataset.take(of.config.images), "none"), dataset.size[0]
    return {
        "image": side,
        "size": recipe.size or side,
        "mean": list(recipe.mean),
        "std": list(recipe.std),
    }


def _folder(name: str | Path) -> Path:
    """The path a name may be: a run's folder where a file in it is named."""
    path = Path(name)
    return (
        path.parent
        if path.suffix == ".safetensors" and (path.parent / "record.json").is_file()
        else path
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"can't read {path} ({error.strerror})") from error


def _record(path: Path, content: bytes) -> str:
    """The record inside an exported file, as JSON; "" where there is none. Raises InputError for a
    file of a run."""
    try:
        header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
        told = dict(header.get("__metadata__", {}))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path} is not a whole .safetensors file; copy or export it again"
        ) from error
    if "progress" in told:
        raise InputError(
            f"{path} is a file of a run: name the folder of the run, once it is finished"
        )
    return str(told.get("record", ""))


def _entry(name: str, registry: Path) -> dict:
    """The registry's entry of that name. Raises InputError where there is none, or the registry is
    not one."""
    entries, known = read_yaml(registry) or [], {}
    if not isinstance(entries, list):
        raise InputError(f"{registry} must be a list of weights, each with {', '.join(FIELDS)}")
    for number, entry in enumerate(entries, 1):
        wrong = [
            field
            for field in FIELDS
            if not (isinstance(entry, dict) and isinstance(entry.get(field), str))
        ]
        more = sorted(map(str, entry.keys() - {*FIELDS})) if not wrong else []
        if wrong or more:
            raise InputError(
                f"{registry}, entry {number}: "
                + (f"{wrong[0]} is missing or no text" if wrong else f"{more[0]} is unknown")
                + f"; the fields are {', '.join(FIELDS)}"
            )
        if entry["name"] in known:
            raise InputError(
                f"{registry}, entry {number}: there is another one named {entry['name']}"
            )
        known[entry["name"]] = entry
    if name not in known:
        if Path(name).is_dir():
            raise InputError(
                f"the folder {name} holds neither a finished run nor exported weights"
                + records.unfinished(Path(name))
            )
        raise InputError(
            "there is no file or folder of that name, and "
            + unknown(
                "weights", name, [*known, "a run's folder", "an exported one", "a checkpoint"]
            )
        )
    return known[name]


def _fetch(entry: dict, cache: Path, registry: Path) -> Path:
    """The registered file: local, kept from an earlier download, or downloaded; with the registered
    hash."""
    url, wanted, remote = (
        entry["url"],
        entry["sha256"],
        entry["url"].startswith(("https://", "http://")),
    )
    path = cache / f"{wanted[:16]}.safetensors" if remote else registry.parent / url
    path = path / FILE if path.is_dir() else path
    if remote and not path.is_file():
        pooch = needed("pooch", "weights")
        try:
            web = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)
            pooch.retrieve(url, f"sha256:{wanted}", path.name, cache, downloader=web)
        except Exception as error:  # of pooch, requests, or the file system
            why = " ".join(str(error).split())[:200]
            raise InputError(f"can't get the weights {entry['name']} from {url}: {why}") from error
    if hashlib.sha256(_read(path)).hexdigest() != wanted:
        raise InputError(
            f"{path} is not what is registered as {entry['name']}: its SHA-256 is another one; "
            + ("delete it, to get it anew" if remote else f"if it is yours, correct {registry}")
        )
    return path
