"""Files that outlive what happens to a process, and settings that people write, checked.

Files are written whole, by one writer at a time, and read with suspicion.
"""

import contextlib
import errno
import functools
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import yaml
from filelock import BaseFileLock, FileLock, Timeout
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ErrorDetails

from lib import InputError, in_a_line, unknown

T = TypeVar("T")

YAML_BYTES = 2**16  # a profile or a list of claims is smaller
YAML_VALUES = 10**5
READ = 5  # seconds that somebody else may read a file
SHOWN = 100  # characters of a wrong value, at most, in the sentence about it
UNLOCKABLE = {errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS}  # what file systems without locks answer


def as_path(text: str | Path) -> Path:
    """A path as people write it: ~ is their home, also where no shell has seen it."""
    return Path(os.path.expanduser(text))


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, flush to disk, rename: the file is the old one or the new one, never a part.

    Raises InputError, naming the path, where it can't be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        moved(beside, path)
    except OSError as error:
        why = error.strerror or error
        raise InputError(
            f"can't write {path} ({why}): free space or name another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()

    # the new name reaches the disk too, where folders can be flushed
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.fsync(folder)
        os.close(folder)


def moved(source: Path, target: Path) -> None:
    """Rename a file, in the place of another.

    Windows refuses as long as somebody reads one of them: then it is tried again, for READ seconds.
    """
    patience = time.monotonic() + READ
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if time.monotonic() > patience:
                raise
            time.sleep(READ / 50)


def remove_leftovers(folder: Path, older_than: float = 0) -> None:
    """Delete what ``write_atomically`` had begun in a folder, in processes that were killed.

    older_than: seconds; where other machines write too, as long as they may take.
    """
    latest = time.time() - older_than
    for path in folder.glob(".*.*.[0-9]*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime <= latest:
                path.unlink()


@contextlib.contextmanager
def only_writer(path: Path, writing: str, wait: bool = True) -> Iterator[None]:
    """Within, no other process holds the lock file at path; the system takes it from one that dies.

    writing: what is written, for the line on stderr that says that this process waits, or the
        error.
    wait: for another process, instead of an error.

    Raises InputError where wait is False and another process holds it, or the file can't be
    written.
    """
    with _locked(path, writing, functools.partial(_acquire, writing=writing, wait=wait)):
        yield


@contextlib.contextmanager
def claimed(path: Path, writing: str, seconds: float) -> Iterator[bool]:
    """Within, where it gives True, no other process holds the lock file at path.

    writing: what is written, for the warning where nothing can be locked.
    seconds: to wait for it.

    Raises InputError where the file can't be written.
    """
    with contextlib.ExitStack() as stack:
        lock = _locked(path, writing, lambda lock: lock.acquire(timeout=seconds))
        try:
            stack.enter_context(lock)
        except Timeout:
            yield False
            return
        yield True


@contextlib.contextmanager
def _locked(path: Path, writing: str, acquire: Callable[[BaseFileLock], Any]) -> Iterator[None]:
    """Within, the lock that acquire has taken is held; where none can be, that is warned of."""
    lock = FileLock(path, mode=0o666)  # whose folder several people share, can all wait for it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        acquire(lock)
    except Timeout:
        raise
    except OSError as error:
        if error.errno not in UNLOCKABLE:
            raise InputError(
                f"can't write {path} ({error.strerror}): free space or name another folder"
            ) from error
        warnings.warn(
            f"{path.parent} can't be locked ({error.strerror}): see that no other process writes "
            f"{writing}",
            stacklevel=5,
        )
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, writing: str, wait: bool) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if not wait:
            raise InputError(
                f"another process is writing {writing}; try again when it is done"
            ) from None
        print(
            f"another process is writing {writing}; waiting until it is done (Ctrl-C leaves)",
            file=sys.stderr,
        )
        lock.acquire()


def parse_json(text: bytes | str) -> Any:
    """JSON as we write it.

    Raises ValueError for anything else, NaN, infinity and endless nesting included.
    """

    def finite(number: str) -> float:
        if math.isfinite(float(number)):
            return float(number)
        raise ValueError(f"{number[:20]} is no finite number")

    try:
        return json.loads(text, parse_constant=finite, parse_float=finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


class _BoundedLoader(yaml.SafeLoader):
    """YAML not too deep, no name twice, whose aliases stand for YAML_VALUES values at most.

    They can stand for a tree of any size; of a name's two values PyYAML would keep the last.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if len(self.states) > 99:
            raise yaml.YAMLError("nested too deeply")
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in names:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"'{key.value}' is there twice, line {line}")
            names.add(key.value)
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _written_out(node, {}) > YAML_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {YAML_VALUES} values")
        return node


def _written_out(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node has with its aliases written out.

    known: what is known of other nodes, by their id.
    """
    if id(node) not in known:
        known[id(node)] = math.inf  # while it is counted: it may be inside of itself
        known[id(node)] = 1 + sum(_written_out(child, known) for child in _children(node))
    return known[id(node)]


def _children(node: yaml.Node) -> list[yaml.Node]:
    """A list's values, a mapping's keys and values."""
    if isinstance(node, yaml.MappingNode):
        return list(chain.from_iterable(node.value))
    if isinstance(node, yaml.SequenceNode):
        return node.value
    return []


def parse_yaml(content: bytes) -> object:
    """YAML of YAML_BYTES and, aliases written out, YAML_VALUES at most.

    Raises ValueError or yaml.YAMLError for anything else.
    """
    if len(content) > YAML_BYTES:
        raise ValueError(f"larger than {YAML_BYTES} bytes")
    return yaml.load(content, _BoundedLoader)


def read_yaml(path: Path) -> object:
    """A small YAML file (``parse_yaml``).

    Raises InputError, naming it, where it is none or too large.
    """
    try:
        with open(path, "rb") as file:
            return parse_yaml(file.read(YAML_BYTES + 1))
    except Exception as error:  # PyYAML lets through whatever its constructors raise
        why = in_a_line(error, 200) or type(error).__name__
        raise InputError(f"{path} can't be read as YAML: {why}") from error


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
