"""Weights in place of training: encoders by name, each with its record.

A name is one in ``weights/registry.yml``, an exported folder, the folder of a run of one's own, or
another project's checkpoint (``weights.foreign``). A registered file is fetched once, and used only
where its SHA-256 is the registered one; an exported one has its own inside, as a checkpoint has.
"""

import hashlib
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from safetensors.torch import load as deserialise
from torch import Tensor, nn, uint8

from lib import HOME, InputError, evaluation, in_a_line, needed, unknown
from lib.augmentations import Recipe
from lib.config import Channels, PositiveChannels
from lib.data.loading import data_root
from lib.data.loading import load as load_dataset
from lib.encoders import Model
from lib.files import as_path
from lib.hardware import choose_device, lent
from lib.parsing import parse_json, read_yaml
from lib.runs import checkpoints, records
from lib.runs.packing import view_of
from lib.runs.records import unfinished
from lib.runs.run import Run, described
from lib.runs.run import load as load_run
from lib.validation import checked, labelled_entries, validated
from lib.weights import foreign

REGISTRY = HOME / "weights" / "registry.yml"
FILE = "model.safetensors"
TIMEOUT = 60  # seconds without an answer; then a download is given up


@checked
class EncoderEntry:
    """What the registry says of an encoder."""

    name: str
    url: str  # of a file or its folder; without "https://" a path from the registry's folder
    sha256: str  # of the file
    record: str  # the id of its run
    licence: str

    @property
    def remote(self) -> bool:
        return self.url.startswith(("https://", "http://"))


FIELDS = tuple(field.name for field in fields(EncoderEntry))

Side = Annotated[int, Field(ge=8)]


@checked
class View:
    """How a run sees images."""

    image: Side  # in pixels, what images are brought to first
    size: Side  # of the view that is taken of them
    mean: Channels
    std: PositiveChannels


@dataclass(frozen=True)
class Weights:
    """An encoder and its head, ready to look at images."""

    name: str  # what it was loaded by
    model: Model = field(repr=False)  # in eval mode, on the CPU
    recipe: Recipe  # the view it takes of an image, its normalisation included
    size: int  # side in pixels that images are brought to before
    record: dict = field(repr=False)  # of the run; empty for another project's checkpoint
    about: str  # what was found in another project's checkpoint

    @property
    def encoder(self) -> str:
        """Which encoder it is: the run's id, or the checkpoint's name and a hash.

        The hash is of its weights, and of how it sees images.
        """
        if self.record:
            return self.record["id"]
        digest = hashlib.sha256(str(self.recipe).encode())
        for value in self.model.state_dict().values():
            digest.update(value.numpy().tobytes())
        return f"{Path(self.name).name}-{digest.hexdigest()[:10]}"

    def features(self, images: Tensor, device: str | None = None) -> tuple[Tensor, Tensor]:
        """h (N, width) and z (N, D), float32 on the CPU, of images (N, 3, S, S) uint8.

        Raises InputError for any others.
        """
        _refuse_other_images(images)
        with lent(self.model, choose_device(device)) as model:
            h, z = evaluation.features(model, images, self.recipe)
        return h.cpu(), z.cpu()

    def write(self, path: Path) -> str:
        """Write the model for other programs (``foreign.write``), and say what input it wants."""
        side = self.recipe.size or self.size
        foreign.write(self.model, side, path)
        return (
            f"for other programs; wants images (B, 3, {side}, {side}) float32 as (pixels / 255 - "
            f"mean) / std, mean {self.recipe.mean}, std {self.recipe.std}"
        )


def _refuse_other_images(images: Any) -> None:
    """Compiled code would not look where it writes, and what is not square would be squashed."""
    kind = getattr(images, "dtype", "")
    shape = tuple(getattr(images, "shape", ()))
    if not isinstance(images, Tensor) or kind != uint8 or len(shape) != 4 or shape[1] != 3:
        raise InputError(
            f"images must be a tensor (N, 3, S, S) uint8, got {type(images).__name__} {kind} "
            f"{shape}"
        )
    if shape[2] != shape[3]:
        raise InputError(f"images must be square, got {shape[2]} x {shape[3]} pixels: cut them")


def load(
    name: str | Path,
    root: str | Path | None = None,
    registry: Path = REGISTRY,
    size: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> Weights:
    """An encoder by name: registered, exported, a run's, or another project's checkpoint.

    root: of data sets, see ``data.data_root``; fetched files are kept in its folder "weights". A
        run of one's own needs its data set there only where its record, an early one, does not
        say how it sees images.
    size, mean, std: how another project's checkpoint sees images, where its file does not say it:
        the side in pixels, and the normalisation by channel, of pixels in [0, 1].

    Raises InputError for an unknown name, a wrong hash, a damaged file or another architecture.
    """
    path = _path(name)
    stated = foreign.StatedView(size=size, mean=mean, std=std)
    if _is_foreign(path):
        theirs = foreign.read(path, stated=stated)
        assert theirs.view.size is not None  # as in all SOURCES
        return Weights(str(name), theirs.model, theirs.view, theirs.view.size, {}, str(theirs))

    refuse_a_stated_view(name, stated)
    ours = run(name, root, registry)
    view = _view(name, ours, root)
    recipe = Recipe(size=view.size, mean=view.mean, std=view.std)
    return Weights(str(name), ours.model, recipe, view.image, ours.record, "")


def run(name: str | Path, root: str | Path | None = None, registry: Path = REGISTRY) -> Run:
    """The run behind registered or exported weights, or one of one's own, as ``runs.load`` does.

    What further probes find is kept below root's folder "weights"; the exported file stays as it
    is. Raises InputError where there is none of that name, or a file is damaged or has no record of
    a run.
    """
    path = _path(name)
    if (path / "record.json").is_file():
        return load_run(path)

    cache = data_root(root) / "weights"
    file = path if path.is_file() else path / FILE
    if file.is_file():
        return _exported(name, file, cache)

    entry = _entry(str(name), registry)
    ours = _exported(name, _fetch(entry, cache, registry), cache)
    if ours.record["id"] != entry.record:
        raise InputError(
            f"{name} is registered as the run {entry.record}, its file holds {ours.record['id']}"
        )
    return ours


def are_weights(name: str | Path) -> bool:
    """Whether a name is not a run's folder or a record, but exported weights or of the registry.

    What there is no path of can only be in the registry.
    """
    path = _path(name)
    if path.is_dir():
        return (path / FILE).is_file() and not (path / "record.json").is_file()
    return path.suffix == ".safetensors" or not path.exists()


def named_runs(
    names: str | None, root: str | Path | None = None, registry: Path = REGISTRY
) -> list[Run]:
    """The runs behind weights. names: separated by spaces, as a chapter's parameter; None: none."""
    return [run(name, root, registry) for name in (names or "").split()]


def refuse_a_stated_view(name: object, stated: foreign.StatedView) -> None:
    """Raise InputError where somebody says how weights that know it themselves see images."""
    if stated.given:
        raise InputError(
            f"{name} knows how it sees images: leave out {' and '.join(stated.given)}, which are "
            "for another project's checkpoint"
        )


def _path(name: str | Path) -> Path:
    """The path a name may be: a run's folder where a file in it is named."""
    path = as_path(name)
    if path.suffix == ".safetensors" and (path.parent / "record.json").is_file():
        return path.parent
    return path


def _is_foreign(path: Path) -> bool:
    """Whether it is named as other projects' files are, or has no record of a run inside."""
    if path.is_dir():
        return False
    if path.suffix == ".safetensors":
        return not record_in(path, read_bytes(path))
    return path.suffix in foreign.SUFFIXES


def _view(name: str | Path, ours: Run, root: str | Path | None) -> View:
    """How a run sees images: its record says it where it was exported, else its data set does."""
    view = ours.record.get("input")
    if not view:
        try:
            view = view_of(ours, load_dataset(ours.config.data, root))
        except InputError as error:
            raise InputError(
                f"{name} is a run, and its data set says how it sees images: {error}; or export it "
                "where that is, and use what is exported"
            ) from error
    try:
        return validated(View, view, "its input")
    except InputError as error:
        raise InputError(
            f"{name} does not say how it sees images ({error}); export it again"
        ) from error


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"can't read {path} ({error.strerror})") from error
    except ValueError as error:  # no path can be so
        raise InputError(f"can't read {str(path)!r} ({error})") from error


def record_in(path: Path, content: bytes) -> str:
    """The record inside an exported file, as JSON; "" where there is none.

    Raises InputError for a file of a run.
    """
    try:
        header: Any = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = dict(header.get("__metadata__", {}))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path} is not a whole .safetensors file; copy or export it again"
        ) from error
    if "progress" in metadata:
        raise InputError(
            f"{path} is a file of a run: name the folder of the run, once it is finished"
        )
    return str(metadata.get("record", ""))


def _exported(name: str | Path, path: Path, cache: Path) -> Run:
    """The run in an exported file. What probes find is kept with its record, in the cache.

    name: what it was asked for by.
    """
    content = read_bytes(path)
    text = ""
    if path.suffix == ".safetensors":
        text = record_in(path, content)
    if not text:
        raise InputError(
            f"{name} holds no record of a run: name the folder of a finished run, or an exported "
            "one (.pth, .pt2 and .onnx are for other programs)"
        )
    if not checkpoints.unbroken(content):
        raise InputError(f"{path} is damaged: its checksum is wrong; copy or export it again")

    folder = cache / hashlib.sha256(content).hexdigest()[:16]
    if (folder / "record.json").is_file():
        record = records.read(folder / "record.json")
    else:
        record = records.parsed(text, path)
    config, model = described(record, path)
    _fill(model, path, content)
    return Run(folder, config, record, model.eval())


def _fill(model: nn.Module, path: Path, content: bytes) -> None:
    """Load a file's tensors into the model, which is on "meta", in float32."""
    try:
        state = deserialise(content)
        for name, value in state.items():
            if value.is_floating_point():
                state[name] = value.float()
        model.load_state_dict(state, assign=True)
    except Exception as error:  # of safetensors, or of weights that are another model's
        why = in_a_line(error, 120)
        raise InputError(
            f"{path} is of another architecture than its record says ({why})"
        ) from error


def entries(registry: Path = REGISTRY) -> dict[str, EncoderEntry]:
    """The registry's entries, by name. Raises InputError where one is not whole."""
    known = {}
    entries_of_file = read_yaml(registry) or []  # None: it is empty
    content = f"weights, each with {', '.join(FIELDS)}"
    for label, written in labelled_entries(entries_of_file, registry, "encoder", content):
        entry = validated(EncoderEntry, written, label)
        known[entry.name] = entry
    return known


def _entry(name: str, registry: Path) -> EncoderEntry:
    """The registry's entry of that name. Raises InputError where there is none."""
    known = entries(registry)
    if name in known:
        return known[name]
    folder = as_path(name)
    if folder.is_dir():
        raise InputError(
            f"the folder {name} holds neither a finished run nor exported weights"
            f"{unfinished(folder)}"
        )
    names = [*known, "a run's folder", "an exported one", "a checkpoint"]
    raise InputError(
        f"there is no file or folder of that name, and {unknown('weights', name, names)}"
    )


def _fetch(entry: EncoderEntry, cache: Path, registry: Path) -> Path:
    """The registered file: local, kept from an earlier download, or downloaded.

    Raises InputError where it is not to be had, or its hash is not the registered one.
    """
    if entry.remote:
        path = cache / f"{entry.sha256[:16]}.safetensors"
        advice = "delete it, to get it anew"
        if not path.is_file():
            _download(entry, path)
    else:
        path = registry.parent / entry.url
        advice = f"if it is yours, correct {registry}"
        if os.path.isdir(path):  # no error where a name is too long
            path = path / FILE

    if hashlib.sha256(read_bytes(path)).hexdigest() != entry.sha256:
        raise InputError(
            f"{path} is not what is registered as {entry.name}: its SHA-256 is another one; "
            f"{advice}"
        )
    return path


def _download(entry: EncoderEntry, path: Path) -> None:
    pooch = needed("pooch", "weights")
    try:
        web = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)
        pooch.retrieve(entry.url, f"sha256:{entry.sha256}", path.name, path.parent, downloader=web)
    except Exception as error:  # of pooch, requests, or the file system
        why = in_a_line(error, 200)
        raise InputError(f"can't get the weights {entry.name} from {entry.url}: {why}") from error
