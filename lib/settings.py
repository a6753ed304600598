"""A chapter's settings: its own parameters, and where they are None a profile's.

A chapter is a notebook with flat parameters; a profile, ``book/profiles/NAME.yml``, gives them
values.
"""

from dataclasses import field
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import torch
from pydantic import Field

from lib import ROOT, InputError, unknown
from lib.config import FIELDS
from lib.files import checked, read_yaml, validated

PROFILES = ROOT / "book" / "profiles"


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


def found_profile(name: str) -> str:
    """The name itself, but for "auto": "colab" where there is a CUDA device, else "quick"."""
    if name != "auto":
        return name
    return "colab" if torch.cuda.is_available() else "quick"


def load_profile(name: str, folder: Path = PROFILES) -> Profile:
    """A profile ("auto": by the device found).

    Raises InputError for an unknown profile, a file that is not YAML, or a field of another name or
    type.
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
    return validated(Profile, read_yaml(path), str(path))


def settings(chapter: str, profile: str, **given) -> Settings:
    """A chapter's parameters: those given, and where they are None the profile's.

    given: every parameter of the chapter but ``profile``.

    Parameters that the profile leaves open stay None, which means the preset's own value.
    Raises InputError where the profile names a parameter the chapter does not have.
    """
    return filled_in(load_profile(profile), chapter, found_profile(profile), given)


def filled_in(values: Profile, chapter: str, profile: str, given: dict[str, object]) -> Settings:
    """``settings`` from a profile that is read: its values, and its name."""
    own = values.chapters.get(chapter, {})
    for name in own:
        if name not in given:
            raise InputError(
                f"profile {profile}, chapter {chapter}: {unknown('field', name, given)}"
            )
    open_ones = dict.fromkeys(given)
    common = {name: value for name, value in values.common.items() if name in given}
    chosen = {name: value for name, value in given.items() if value is not None}
    return Settings(**open_ones | common | own | chosen, profile=profile)
