"""The lock of every package, against pip itself, on a package that is made here."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lib import InputError
from tools import lock


def wheel(folder: Path, name: str, needs: str = "") -> Path:
    """A package of one module."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    if needs:
        about += f"Requires-Dist: {needs}\n"
    kind = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{name}-1.0.dist-info/METADATA", about)
        archive.writestr(f"{name}-1.0.dist-info/WHEEL", kind)
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return path


def install(lockfile: Path, packages: Path, target: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--require-hashes"]
    where = ["--no-index", "--find-links", packages, "--target", target]
    return subprocess.run(
        [*command, *where, "-r", lockfile],
        capture_output=True,
        text=True,
        timeout=120,
        encoding="utf-8",
    )


def test_what_is_locked_is_installed_and_nothing_else(tmp_path):
    wheel(tmp_path, "lockedone", needs="lockedtwo")
    wheel(tmp_path, "lockedtwo")
    lockfile = tmp_path / "requirements.lock"
    wanted = ["--no-index", "--find-links", str(tmp_path), "lockedone"]
    assert lock.write(lockfile, wanted) == 2
    assert install(lockfile, tmp_path, tmp_path / "there").returncode == 0
    assert (tmp_path / "there" / "lockedtwo.py").is_file()

    wheel(tmp_path, "lockedtwo", needs="anything")  # another file under the same name
    refused = install(lockfile, tmp_path, tmp_path / "again")
    assert refused.returncode
    assert "DO NOT MATCH THE HASHES" in refused.stderr


def test_what_is_not_to_be_had_is_one_line(tmp_path, capfd):
    wanted = ["--no-index", "--find-links", str(tmp_path), "lockednone"]
    with pytest.raises(InputError, match="pip finds no such packages"):
        lock.write(tmp_path / "requirements.lock", wanted)
    assert "lockednone" in capfd.readouterr().err
    assert not (tmp_path / "requirements.lock").exists()
