"""Where compiled code is kept from one process to the next, and what is done where it can't be."""

import atexit
import importlib
import os
import shutil
import tempfile
from types import ModuleType


def with_a_cache(package: str) -> ModuleType:
    """A package whose functions numba compiles, which can't be imported where none can be kept.

    Where no folder for them can be written, it is a temporary one, of this process.
    """
    try:
        return importlib.import_module(package)
    except RuntimeError:
        folder = tempfile.mkdtemp(prefix="numba-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["NUMBA_CACHE_DIR"] = folder
        importlib.import_module("numba.core.config").reload_config()
        return importlib.import_module(package)
