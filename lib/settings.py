"""A chapter's settings: its own parameters, and where they are None a profile's.

A chapter is a notebook with flat parameters; a profile, ``book/profiles/NAME.yml``, gives them
values.
"""

import sys
from collections.abc import Container
from dataclasses import field
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, ConfigDict, Field, create_model

from lib import ROOT, InputError, hardware, unknown
from lib.compute import drivers, memory
from lib.config import FIELDS, Config, one_of
from lib.methods import METHODS
from lib.parsing import read_yaml
from lib.presets import PRESETS, preset
from lib.runs import RUNS, backup
from lib.validation import checked, validated

PROFILES = ROOT / "book" / "profiles"
GPU_ON_COLAB = "no GPU: Runtime > Change runtime type > T4 GPU gives one, then run all cells again"


def _preset_of(method: str) -> Any:
    """The kind of a name: of a preset of that method."""
    names = [name for name, config in PRESETS.items() if config.method == method]
    return Annotated[str, one_of(f"preset of {method}", names)]


def _existing_folder(name: str) -> str:
    if not Path(name).expanduser().is_dir():
        raise ValueError(f"must be a folder that is there, got {name!r}")
    return name


Count = Annotated[int, Field(ge=1)]

KINDS: dict[str, Any] = Config.__annotations__ | {
    **{method: _preset_of(method) for method in METHODS},
    "epochs": Count,  # a chapter shows a training: it needs one
    "ce_epochs": Count,
    "seeds": Count,
    "ratio": Annotated[int, Field(ge=2)],
    "maps": Annotated[str, one_of("choice of maps", ("tsne", "both"))],
    "runs": str,
    "backup": str,
    "weights": str,
    "folder": Annotated[str, AfterValidator(_existing_folder)],
    "per_gpu": Count,
}
"""What a parameter must be, by its name: as the field of a Config, or as said here."""

_OPTIONAL: dict[str, Any] = {name: (kind | None, None) for name, kind in KINDS.items()}
_Parameters = create_model(
    "_Parameters", __config__=ConfigDict(strict=True, allow_inf_nan=False), **_OPTIONAL
)


def refuse_wrong(values: dict[str, object], where: str) -> None:
    """Raise InputError for a parameter of the wrong type, unknown or out of range; None is right.

    where: the file or chapter, with which the message begins.
    """
    validated(_Parameters, values, where)


@checked
class Profile:
    """What a profile file says."""

    about: str = ""
    timeout_minutes: Annotated[float, Field(gt=0)] = 10.0  # of a cell
    common: dict[str, object] = field(default_factory=dict)  # parameters of all chapters
    # by chapter, its own parameters
    chapters: dict[str, dict[str, object]] = field(default_factory=dict)


class Settings(SimpleNamespace):
    """A chapter's parameters with every None filled in from the profile, as attributes."""

    @property
    def delta(self) -> dict:
        """Those that are fields of a Config and set: what to change in a preset."""
        changes = {}
        for name, value in vars(self).items():
            if name in FIELDS and value is not None:
                changes[name] = value
        return changes

    @property
    def like(self) -> Config | None:
        """The configuration of the first method that the chapter has a preset of; None: of none."""
        for method in METHODS:
            name = getattr(self, method, None)
            if name is not None:
                return preset(name, **self.delta)
        return None


def found_profile(name: str) -> str:
    """The name itself, but for "auto": "colab" where there is a CUDA device, else "quick"."""
    if name != "auto":
        return name
    return "colab" if torch.cuda.is_available() else "quick"


def load_profile(name: str, folder: Path = PROFILES) -> Profile:
    """A profile ("auto": by the device found).

    Raises InputError for an unknown profile, a file that is not YAML, a field of another name or
    type, or a parameter's wrong value.
    """
    path = folder / f"{found_profile(name)}.yml"
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not there: the book needs its checkout; install with pip install -e . "
            "in it"
        )
    if not path.is_file():
        known = sorted(path.stem for path in folder.glob("*.yml"))
        raise InputError(unknown("profile", name, ["auto", *known]))
    profile = validated(Profile, read_yaml(path), str(path))
    refuse_wrong(profile.common, f"{path}, common")
    for chapter, own in profile.chapters.items():
        refuse_wrong(own, f"{path}, chapter {chapter}")
    return profile


def settings(chapter: str, profile: str, **given) -> Settings:
    """A chapter's parameters: those given, and where they are None the profile's.

    Prints in a line what they are and what will compute (``in_words``). With ``backup``, a folder
    or "drive", runs are fetched from there, and copied there from then on (``runs.backup``).

    given: every parameter of the chapter but ``profile``.

    Parameters that the profile leaves open stay None, which means the preset's own value.
    Raises InputError where a value is wrong, or the profile names a parameter the chapter does not
    have.
    """
    refuse_wrong(given, f"chapter {chapter}")
    chosen = filled_in(load_profile(profile), chapter, found_profile(profile), given)
    print(in_words(chosen))
    unusable = drivers.unusable_gpu()
    if unusable:
        print(f"note: {unusable}")
    place = getattr(chosen, "backup", None)
    if place is not None:
        print(backup.begin(place, chosen.runs or RUNS))
    return chosen


def in_words(chapter: Settings, modules: Container[str] = sys.modules) -> str:
    """What a chapter begins with, in a line: profile, data, device, precision and free memory.

    modules: those imported. In Colab's kernels google.colab is one, and a chapter that trains there
    without a GPU is told how to get one.
    """
    device, like = hardware.choose_device(), chapter.like
    trains = hasattr(chapter, "precision")
    words = f"profile {chapter.profile}"
    if like is not None:
        words += f", {like.data}"
    if like is not None and like.images is not None:
        words += f" (a slice of {like.images:,} images)"
    if like is not None and like.recipe != "none":
        words += f", views by {like.recipe}"
    precision = like.precision if like is not None and trains else None
    words += f"; {hardware.in_words(device, precision)}"
    free = memory.free_memory(device)
    if free is not None:
        words += f", {free / 1e9:.1f} GB of memory free"
    if trains and device.type == "cpu" and "google.colab" in modules:
        words += f"; {GPU_ON_COLAB}"
    return words


def filled_in(values: Profile, chapter: str, profile: str, given: dict[str, object]) -> Settings:
    """``settings`` from a profile that is read: its values, and its name.

    A profile's slice is one of its own data: on other data, which are given, it is not taken.
    """
    own = values.chapters.get(chapter, {})
    for name in own:
        if name not in given:
            raise InputError(
                f"profile {profile}, chapter {chapter}: {unknown('field', name, given)}"
            )
    open_ones = dict.fromkeys(given)
    common = {name: value for name, value in values.common.items() if name in given}
    filled = common | own
    chosen = {name: value for name, value in given.items() if value is not None}
    if "data" in chosen and chosen["data"] != filled.get("data"):
        filled.pop("images", None)
    return Settings(**open_ones | filled | chosen, profile=profile)
