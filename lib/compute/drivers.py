"""Why PyTorch can't use a GPU that is there: its driver, and the builds that run on it."""

import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from lib import in_a_line

# PyTorch's builds: of which CUDA, at which index, and the oldest driver of NVIDIA's that they run
# on (docs.nvidia.com/deploy/cuda-compatibility, "minor version compatibility")
BUILDS = ((13, "cu130", 580), (12, "cu126", 525))
INDEX = "https://download.pytorch.org/whl"


def unusable_gpu(
    root: Path = Path("/"),
    built_for: str | None = torch.version.cuda,
    begin: Callable[[], None] = torch.cuda.init,
) -> str | None:
    """Why PyTorch can't use a GPU of NVIDIA's that is here, and what to do, in one line; else None.

    root: where /proc and /dev are.
    built_for: the version of CUDA that PyTorch is built for; None: for the CPU alone.
    begin: raises RuntimeError or AssertionError, with its reason, where no GPU can be used.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, of an old driver: the line below says more
        if torch.cuda.is_available():
            return None
    driver = nvidia_driver(root)
    if driver is None:
        return None
    try:
        begin()
        return None
    except (RuntimeError, AssertionError) as error:
        why = in_a_line(error, 200)

    build = _another_build(driver)
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        why = "CUDA_VISIBLE_DEVICES hides it"
    elif built_for is None:
        advice = build or "update the driver"
        why = f"torch {torch.__version__} is built for the CPU alone; {advice}"
    else:
        advice = f", or {build}" if build else ""
        for cuda, _, oldest in BUILDS:
            if built_for.startswith(f"{cuda}.") and 0 < _major(driver) < oldest:
                why = (
                    f"its driver, {driver}, is older than {oldest}, which torch "
                    f"{torch.__version__} needs; update it{advice}"
                )
    return f"there is an NVIDIA GPU, and PyTorch can't use it: {why}"


def _another_build(driver: str) -> str | None:
    """How to install the newest PyTorch that runs on a driver; None where it is too old for any."""
    known = _major(driver) or BUILDS[-1][2]  # the build for older drivers runs on all
    for _, name, oldest in BUILDS:
        if known >= oldest:
            return (
                "run: pip install -U -c constraints.txt torch torchvision --extra-index-url "
                f"{INDEX}/{name}"
            )
    return None


def _major(driver: str) -> int:
    """A driver's first number; 0 where it is not known."""
    return int(driver.partition(".")[0] or 0)


def nvidia_driver(root: Path = Path("/")) -> str | None:
    """The version of NVIDIA's driver, as "580.65.06"; None where there is no sign of a GPU.

    "" where there is a GPU and the version is not told.
    """
    told = root / "proc/driver/nvidia/version"
    if told.is_file():
        return _version_in(told.read_text(encoding="utf-8", errors="replace"))
    if (root / "dev/nvidia0").exists():
        return ""
    return _told_by_nvidia_smi()


def _told_by_nvidia_smi() -> str | None:
    """The driver's version by NVIDIA's own program: all there is to ask on Windows and in WSL.

    It is also on machines without a GPU, where it fails.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode or not done.stdout.strip():
        return None
    return _version_in(done.stdout)


def _version_in(text: str) -> str:
    """The first version that a text names, "" where it names none."""
    version = re.search(r"\d+\.\d[\d.]*", text)
    return version[0] if version else ""
