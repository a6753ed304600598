"""What people write, checked: a wrong value is told in one sentence that names its field."""

import functools
import json
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ErrorDetails

from lib import InputError, unknown

T = TypeVar("T")

SHOWN = 100  # characters of a wrong value, at most, in the sentence about it


def labelled_entries(
    written: object, path: Path, kind: str, content: str, key: str = "name"
) -> list[tuple[str, Any]]:
    """The entries of a list, each with the label by which errors name it.

    written: as it stands in the file at path.
    kind: what an entry is, in a word.
    content: what the file is a list of, for the error where it is none.
    key: the field that has an entry's name.

    Raises InputError where it is no list, or two entries have one name.
    """
    if not isinstance(written, list):
        raise InputError(f"{path} must be a list of {content}")

    entries, names = [], []
    for number, entry in enumerate(written, start=1):
        name = f"number {number}"
        if isinstance(entry, dict):
            name = entry.get(key, name)
        label = f"{path}: {kind} {name}"
        if name in names:
            raise InputError(f"{label} is there twice")
        names.append(name)
        entries.append((label, entry))
    return entries


# what a value must be, and what values in a list must be, by pydantic's name for the error
KINDS = {
    "int_type": ("an integer", "integers"),
    "int_from_float": ("an integer", "integers"),
    "float_type": ("a number", "numbers"),
    "string_type": ("text", "text"),
    "bool_type": ("true or false", "true or false"),
    "list_type": ("a list", "lists"),
    "tuple_type": ("a list", "lists"),
    "dict_type": ("a mapping", "mappings"),
    "dataclass_type": ("a mapping", "mappings"),
}
# what a value of the right kind must be, with the limits that pydantic tells
BOUNDS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "finite_number": "must be finite",
    "literal_error": "must be {expected}",
    "too_short": "must have a length of at least {min_length}",
}


@dataclass_transform(frozen_default=True)
def checked(cls: type[T]) -> type[T]:
    """A frozen dataclass whose fields are checked by their annotations, as pydantic reads them.

    Types are strict: an int serves as a float, nothing else as anything else, and no number is
    infinite. Wrong values raise InputError, one sentence that names the field.
    """
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    made: Any = pydantic_dataclass(frozen=True, config=config)(cls)
    check = made.__init__

    @functools.wraps(check)
    def __init__(self, *values: Any, **named: Any) -> None:
        try:
            check(self, *values, **named)
        except ValidationError as error:
            raise InputError(one_sentence(error, made)) from None

    made.__init__ = __init__
    return made


def validated(kind: Any, value: object, where: str) -> Any:
    """What people wrote, as a kind of thing: a type that pydantic knows, ``checked`` classes too.

    where: the file, and what in it; the InputError for a wrong value begins with it.

    The value is checked as JSON, where lists serve as tuples and mappings as objects.
    """
    try:
        return _adapter(kind).validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        raise InputError(f"{where}: {one_sentence(error, kind)}") from None
    except TypeError as error:  # of json.dumps, for a mapping's key: YAML has dates
        raise InputError(f"{where}: {error}") from None


@functools.cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


def one_sentence(error: ValidationError, kind: Any = None) -> str:
    """The first thing that a validation found wrong, by the name of its field.

    kind: what the value should have been, for the names of its fields.
    """
    first = error.errors(include_url=False)[0]
    path = list(first["loc"])
    in_list = bool(path) and isinstance(path[-1], int)
    if in_list:
        path.pop()
    name = ".".join(map(str, path)) or "it"

    match first["type"]:
        case "value_error":  # of a check of ours: a whole sentence, or what the field must be
            reason = str(first["ctx"]["error"])
            if reason.startswith("must "):
                return f"{name} {reason}"
            return reason
        case "missing":
            return f"the field '{name}' is missing"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return _unknown_field(name, kind)

    shown = _shortened(repr(first["input"]))
    demand = _demand(first, in_list)
    if demand is None:
        return f"{name}: {first['msg']}, got {shown}"
    return f"{name} {demand}, got {shown}"


def _unknown_field(name: str, kind: Any) -> str:
    fields = getattr(kind, "__dataclass_fields__", {})
    if "." in name or not fields:  # of a kind within this one
        return f"unknown field '{name}'"
    return unknown("field", name, fields)


def _demand(error: ErrorDetails, in_list: bool) -> str | None:
    """What a value must be, in words; None where pydantic's own words must do."""
    if error["type"] in KINDS:
        one, several = KINDS[error["type"]]
        if in_list:
            return f"must be {several}"
        return f"must be {one}"
    if error["type"] not in BOUNDS:
        return None

    limits = {}
    for name, value in error.get("ctx", {}).items():
        limits[name] = f"{value:g}" if isinstance(value, float) else str(value)
    return BOUNDS[error["type"]].format(**limits)


def _shortened(text: str) -> str:
    if len(text) <= SHOWN:
        return text
    return f"{text[:SHOWN]} ..."
