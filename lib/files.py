"""Files that outlive what happens to a process: written whole, by one writer at a time, and read
with suspicion."""

import contextlib
import errno
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from lib import InputError

YAML_BYTES = 2**16  # a profile or a list of claims is smaller
YAML_VALUES = 10**5
UNLOCKABLE = {errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS}  # what file systems without locks answer


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
        os.replace(beside, path)
    except OSError as error:
        why = error.strerror or error
        raise InputError(
            f"can't write {path} ({why}): free space or name another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    with contextlib.suppress(
        OSError
    ):  # the new name reaches the disk too, where folders can be flushed
        folder = os.open(path.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.fsync(folder)
        os.close(folder)


@contextlib.contextmanager
def only_writer(path: Path, what: str, wait: bool = True) -> Iterator[None]:
    """Within, no other process holds the lock file at path; the system takes it from one that dies.

    what: for the line on stderr that says that this process waits, or where wait is False the
    InputError, which is raised too where the file can't be written.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if not wait:
                raise InputError(
                    f"another process is writing {what}; try again when it is done"
                ) from None
            print(
                f"another process is writing {what}; waiting until it is done (Ctrl-C leaves)",
                file=sys.stderr,
            )
            lock.acquire()
    except OSError as error:
        if error.errno not in UNLOCKABLE:
            raise InputError(
                f"can't write {path} ({error.strerror}): free space or name another folder"
            ) from error
        warnings.warn(
            f"{path.parent} can't be locked ({error.strerror}): see that no other process writes "
            f"{what}",
            stacklevel=3,
        )
    try:
        yield
    finally:
        lock.release()


def parse_json(text: bytes | str) -> object:
    """JSON as we write it: a ValueError for anything else, NaN, infinity and endless nesting
    included."""

    def finite(text: str) -> float:
        if math.isfinite(float(text)):
            return float(text)
        raise ValueError(f"{text[:20]} is no finite number")

    try:
        return json.loads(text, parse_constant=finite, parse_float=finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


class _BoundedLoader(yaml.SafeLoader):
    """YAML not too deep, whose aliases stand for YAML_VALUES values at most: they can stand for a
    tree of any size."""

    def compose_node(self, parent, index):
        if len(self.states) > 99:
            raise yaml.YAMLError("nested too deeply")
        return super().compose_node(parent, index)

    def get_single_node(self):
        node = super().get_single_node()
        if node is not None and _written_out(node, {}) > YAML_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {YAML_VALUES} values")
        return node


def _written_out(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node has with its aliases written out; endless where it is inside of
    itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        known[id(node)] = 1 + sum(
            _written_out(part, known)
            for entry in parts
            for part in (entry if isinstance(entry, tuple) else (entry,))
        )
    return known[id(node)]


def parse_yaml(content: bytes) -> object:
    """YAML of YAML_BYTES at most: a ValueError or yaml.YAMLError for more, aliases written out, or
    anything else."""
    if len(content) > YAML_BYTES:
        raise ValueError(f"larger than {YAML_BYTES} bytes")
    return yaml.load(content, _BoundedLoader)


def read_yaml(path: Path) -> object:
    """A small YAML file. Raises InputError, naming it, where it is none or too large, aliases
    written out."""
    try:
        with open(path, "rb") as file:
            return parse_yaml(file.read(YAML_BYTES + 1))
    except Exception as error:  # PyYAML lets through whatever its constructors raise
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path} can't be read as YAML: {why}") from error
