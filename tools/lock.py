"""requirements.lock: what constraints.txt means on this machine, each package with its hash.

    python -m tools.lock

Of one Python and one platform: pip says which file it would take of each package, and what its
SHA-256 is. Nothing is installed.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lib import ROOT, InputError
from lib.files import write_atomically

LOCK = ROOT / "requirements.lock"
# What make installs, and what builds the package itself
WANTED = ("-c", str(ROOT / "constraints.txt"), f"{ROOT}[book,test]", "setuptools>=70")


def report(wanted: Sequence[str] = WANTED) -> dict:
    """What pip would install. wanted: its options and requirements."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    done = subprocess.run(
        [*command, "--report", "-", *wanted],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise InputError("pip finds no such packages; its own words are above")
    return json.loads(done.stdout)


def lines(found: dict) -> list[str]:
    """A report as requirements with hashes; not the package of this folder, which has none."""
    locked = []
    for package in found["install"]:
        if "archive_info" not in package["download_info"]:
            continue
        name, version = package["metadata"]["name"], package["metadata"]["version"]
        digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
        locked.append(f"{name.lower()}=={version} --hash=sha256:{digest}")
    return sorted(locked)


def write(path: Path = LOCK, wanted: Sequence[str] = WANTED) -> int:
    """Write the lock. Returns how many packages are in it."""
    locked = lines(report(wanted))
    python = ".".join(platform.python_version_tuple()[:2])
    first = f"# Python {python}, {platform.system()} {platform.machine()}; by make lock"
    write_atomically(path, "\n".join([first, *locked, ""]).encode())
    return len(locked)


if __name__ == "__main__":
    try:
        print(f"{LOCK}: {write()} packages")
    except InputError as error:
        sys.exit(f"error: {error}")
