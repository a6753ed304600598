"""Where a number is from: code, versions, device, speed and cost."""

import calendar
import hashlib
import platform
import subprocess
import time
from functools import cache
from importlib.metadata import version

import torch

from lib import ROOT, InputError, hardware
from lib.augmentations import views_cpu
from lib.compute import memory
from lib.compute.cost import flops
from lib.config import Config
from lib.distributed.group import world
from lib.encoders import Model

TIME = "%Y-%m-%dT%H:%M:%SZ"  # how records write it, in UTC


@cache
def code(*others: str) -> dict:
    """The commit of the checkout, whether its code differs from it, and a hash of the code.

    Of ``lib`` with everything below, and of the other folders named.
    """
    folders = ("lib", *others)
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT / folder).as_posix()
            digest.update(name.encode() + b"\0" + path.read_bytes())

    changed = _git("status", "--porcelain", "--", *folders)
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changed": None if changed is None else bool(changed),
        "source": digest.hexdigest(),
    }


def _git(*arguments: str) -> str | None:
    """What git says of the checkout; None where there is no git, or no checkout."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def refuse_uncommitted(package: dict | None = None) -> None:
    """Raise InputError where the package differs from its commit, which a record names.

    package: what ``code`` says of it; None: it is asked.
    """
    if (package or code())["changed"]:
        raise InputError(
            "lib/ differs from its commit, which a record could not name: commit the change first"
        )


def now() -> str:
    """The time in UTC, as records have it."""
    return time.strftime(TIME, time.gmtime())


def seconds_since_1970(recorded: str) -> int:
    """Of a time as records have it. Raises ValueError for any other text."""
    return calendar.timegm(time.strptime(recorded, TIME))


def versions() -> dict:
    """Versions of Python and of the packages that numbers depend on."""
    names = ["torch", "torchvision", "numpy", "scipy", "scikit-learn"]
    if views_cpu is not None:
        names.append("numba")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def device(device: torch.device) -> dict:
    """What the run ran on: type, name, CPU threads, operating system."""
    return {
        "type": device.type,
        "name": hardware.device_name(device),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def rate(curves: list[dict]) -> float | None:
    """Views a second over all epochs; None for a run without any."""
    seconds = sum(row["seconds"] for row in curves)
    if not seconds:
        return None
    return sum(row["views_per_second"] * row["seconds"] for row in curves) / seconds


def cost(config: Config, size: int, model: Model, curves: list[dict]) -> dict:
    """What a view of size x size pixels costs, and how near the run came to its devices' limit.

    FLOPs: floating-point operations. curves: of one epoch at least.
    """
    device = next(model.parameters()).device
    peak = memory.peak_memory(device)  # before the matrices below
    per_view = flops(model, size)
    best = hardware.matrix_rate(device, config.precision)
    return {
        "flops_per_view": per_view,
        "matrix_flops_per_second": best,
        "share_of_matrix_rate": per_view * (rate(curves) or 0) / best / world(),
        "peak_bytes": peak,
    }
