"""A notebook opened on Colab: alone in an empty folder, everything there but the package."""

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from lib import ROOT

EXECUTE = """
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read("chapter.ipynb", as_version=4)
NotebookClient(notebook, timeout=300, extra_arguments=["--log-level=40"]).execute()
nbformat.write(notebook, "executed.ipynb")
"""
FIND = ["-c", "import lib; print(lib.__file__)"]
VERSIONS = ["-m", "pip", "list", "--format=freeze", "--exclude-editable"]


@dataclass(frozen=True)
class Machine:
    """A virtual environment, and an empty folder beside it."""

    python: Path
    folder: Path
    environment: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        """Its Python, in the folder."""
        return subprocess.run(
            [str(self.python), *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=900,
        )


@pytest.fixture
def machine(tmp_path):
    """With this environment's packages but not the project; git clones this checkout instead."""
    environment = without_project(tmp_path / "env")
    folder = tmp_path / "folder"
    folder.mkdir()

    address = yaml.safe_load((ROOT / "book" / "_config.yml").read_text())["repository"]["url"]
    variables = os.environ | git_settings(
        {f"url.file://{ROOT}.insteadOf": address, "safe.directory": "*"}
    )
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        variables.pop(name, None)
    return Machine(environment / "bin" / "python", folder, variables)


def without_project(environment: Path) -> Path:
    """A virtual environment made of links to this one's packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.check_output([environment / "bin" / "python", "-c", ask], text=True)
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "contrastive_learning_book" not in entry.name:
            (Path(packages.strip()) / entry.name).symlink_to(entry)
    return environment


def git_settings(settings: dict[str, str]) -> dict[str, str]:
    """As variables of the environment."""
    variables = {"GIT_CONFIG_COUNT": str(len(settings))}
    for place, (key, value) in enumerate(settings.items()):
        variables[f"GIT_CONFIG_KEY_{place}"] = key
        variables[f"GIT_CONFIG_VALUE_{place}"] = value
    return variables


def test_a_notebook_alone_clones_installs_and_runs_and_touches_nothing_else(machine):
    shutil.copy(ROOT / "book" / "notebooks" / "02_loss.ipynb", machine.folder / "chapter.ipynb")
    assert machine.run(*FIND).returncode  # not there yet
    before = machine.run(*VERSIONS)
    assert before.returncode == 0 and before.stdout

    done = machine.run("-c", EXECUTE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (machine.folder / "executed.ipynb").is_file()
    assert machine.run(*VERSIONS).stdout == before.stdout
    clone = machine.folder / "book"
    assert Path(machine.run(*FIND).stdout.strip()) == clone / "lib" / "__init__.py"
    for needed in ("book/profiles/colab.yml", "book/claims.yml", "results"):
        assert (clone / needed).exists()
