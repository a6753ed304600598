"""A notebook opened on Colab: alone in an empty folder, everything there but the package."""

import json
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
            encoding="utf-8",
        )


@pytest.fixture
def machine(tmp_path):
    """With this environment's packages but not the project; git clones this checkout instead."""
    environment = without_project(tmp_path / "env")
    folder = tmp_path / "folder"
    folder.mkdir()

    address = yaml.safe_load((ROOT / "book" / "_config.yml").read_text(encoding="utf-8"))[
        "repository"
    ]["url"]
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
    packages = subprocess.check_output(
        [environment / "bin" / "python", "-c", ask], text=True, encoding="utf-8"
    )
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


def first_cell() -> str:
    """The one that all chapters begin with."""
    cells = set()
    for path in sorted((ROOT / "book" / "notebooks").glob("*.ipynb")):
        cells.add("".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]))
    (cell,) = cells
    return cell


GIT = """#!/bin/sh
for folder; do :; done
echo git >> log; mkdir "$folder" || exit 128
mkdir "$folder/lib"; echo "class InputError(ValueError): pass" > "$folder/lib/__init__.py"
echo "ours = True" > "$folder/lib/data.py"
"""
PIP = """
import os, signal
print("pip", file=open("log", "a"))
if open("log").read().count("pip") == 1:  # the first time
    os.kill(os.getppid(), signal.SIGINT)
"""
OTHERS = {
    "nothing": None,
    "a folder without modules": "",
    "another package": "from lib import data",
}


@pytest.mark.parametrize("other", OTHERS)
def test_the_first_cell_finds_our_package_and_may_be_run_again(other, tmp_path):
    """Interrupted while it installs, and whatever else is named lib there."""
    programs, folder = tmp_path / "programs", tmp_path / "folder"
    programs.mkdir()
    folder.mkdir()
    (programs / "git").write_text(GIT, encoding="utf-8")
    (programs / "git").chmod(0o755)
    (programs / "pip.py").write_text(PIP, encoding="utf-8")
    if OTHERS[other] is not None:
        (folder / "lib").mkdir()
        (folder / "lib" / "data.py").touch()
    if OTHERS[other]:
        (folder / "lib" / "__init__.py").write_text(OTHERS[other], encoding="utf-8")

    again = (
        "cell = open('../cell.py').read()\ntry: exec(cell)\nexcept KeyboardInterrupt: exec(cell)\n"
    )
    found = "exec(cell)\nfrom lib import data\nassert data.ours"  # once more, in vain
    (tmp_path / "cell.py").write_text(first_cell(), encoding="utf-8")
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    environment = {"PATH": path, "PYTHONPATH": str(programs), "HOME": str(tmp_path)}
    command = [sys.executable, "-S", "-c", again + found]  # -S: without what is installed
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "log").read_text(encoding="utf-8").split() == ["git", "pip", "pip"]
