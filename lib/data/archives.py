"""Arrays from an .npz file: read with suspicion, and made a data set."""

import math
import zipfile
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np

from lib import InputError, in_a_line
from lib.data.arrays import build
from lib.data.dataset import Dataset

# an .npz holds at most so many bytes, or so many times its own
INFLATED, RATIO = 2**28, 100

NEEDED = {"x_train", "y_train", "x_test", "y_test"}
KNOWN = {"x_unlabeled", "classes", "variant"}


def from_npz(name: str, path: Path) -> Dataset:
    """The data set in an .npz file, see ``arrays.build``. Raises InputError where it is none."""
    arrays: dict[str, Any] = dict(read_npz(path, NEEDED, KNOWN))
    return build(name, **arrays)


def read_npz(path: Path, needed: Set[str], known: Set[str] = frozenset()) -> dict[str, np.ndarray]:
    """The arrays of an .npz that are needed, and those known that it has.

    Raises InputError where it lacks one, or is not whole.
    """
    try:
        return _arrays(path, needed, known)
    except InputError:
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise InputError(f"can't read {path} ({error.strerror})") from error
    except Exception as error:  # numpy, zipfile and its codecs let through whatever they meet
        why = in_a_line(error, 200)
        raise InputError(
            f"{path} is not a whole .npz file ({why}); make or copy it again"
        ) from error


def _arrays(path: Path, needed: Set[str], known: Set[str]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        refuse_bombs(archive, path.stat().st_size)

    with np.load(path, allow_pickle=False) as file:
        missing = sorted(needed - set(file.files))
        if missing:
            kind = "array" if len(missing) == 1 else "arrays"
            raise InputError(f"{path} lacks the {kind} {', '.join(missing)}")

        arrays = {}
        for key in sorted(needed | known):
            if key not in file.files:
                continue
            arrays[key] = file[key]
            if not isinstance(arrays[key], np.ndarray):
                raise ValueError(f"{key} is no array")
        return arrays


def refuse_bombs(archive: zipfile.ZipFile, size: int) -> None:
    """ValueError where arrays claim more than there is: numpy takes the memory before it reads."""
    if sum(member.file_size for member in archive.infolist()) > max(INFLATED, RATIO * size):
        raise ValueError(f"its arrays would take more than {RATIO} times the file")

    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    for member in archive.infolist():
        if not member.filename.endswith(".npy"):
            continue
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            shape, _, dtype = readers[version](file)
            claimed = math.prod(shape) * dtype.itemsize + file.tell()
        negative = min(shape, default=0) < 0
        if not dtype.hasobject and (negative or claimed != member.file_size):
            raise ValueError(
                f"{member.filename} holds {member.file_size} bytes and claims {claimed}"
            )
