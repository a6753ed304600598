"""Data sets by name: ``NAME.npz`` under the data root, which wins over a download of that name."""

import os
from pathlib import Path

from lib import HOME, InputError, unknown
from lib.data.archives import from_npz
from lib.data.dataset import Dataset
from lib.data.downloads import DOWNLOADS
from lib.files import as_path


def data_root(root: str | Path | None = None) -> Path:
    """The folder of data sets: the one given, else DATA_ROOT's, else ``data`` at home."""
    return as_path(root or os.environ.get("DATA_ROOT") or HOME / "data")


def load(name: str, root: str | Path | None = None, download: bool = True) -> Dataset:
    """Load a data set by name.

    root: the folder of downloads and NAME.npz files, see ``data_root``.
    download: whether what is not there is fetched.

    Raises InputError for an unknown name, what is not there and not to be fetched, a damaged file,
    arrays of the wrong shape or type, labels out of range, a download that fails, or a root that
    can't be written.
    """
    folder = data_root(root)
    path = folder / f"{name}.npz"
    if path.is_file():
        return from_npz(name, path)
    if name in DOWNLOADS:
        return DOWNLOADS[name].load(folder, download)

    if not download:
        raise InputError(f"{name} is not in {folder}")
    if name.endswith(".npz"):
        raise InputError(
            f"unknown data set '{name}': a data set's name is its file's without .npz, "
            f"'{Path(name).stem}'"
        )
    files = sorted(file.stem for file in folder.glob("*.npz"))
    known = dict.fromkeys([*DOWNLOADS, *files])
    raise InputError(
        f"{unknown('data set', name, known)}; there is no {path} (DATA_ROOT names another folder)"
    )
