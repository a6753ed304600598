"""A notebook opened on Colab: alone in an empty folder, the package not installed, everything else
there."""

import os
import shutil
import subprocess
import sys
import sysconfig
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


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A virtual environment with this one's packages but not the project, and an empty folder
    beside it."""
    home = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "env"], check=True)
    python = home / "env" / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    target = subprocess.check_output([python, "-c", ask], text=True)
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "contrastive_learning_book" not in entry.name:
            (Path(target.strip()) / entry.name).symlink_to(entry)
    (home / "folder").mkdir()
    address = yaml.safe_load((ROOT / "book" / "_config.yml").read_text())["repository"]["url"]
    settings = {
        f"url.file://{ROOT}.insteadOf": address,
        "safe.directory": "*",
    }  # git clones this checkout instead
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    for place, (key, value) in enumerate(settings.items()):
        environment |= {f"GIT_CONFIG_KEY_{place}": key, f"GIT_CONFIG_VALUE_{place}": value}
    return python, home / "folder", environment | {"GIT_CONFIG_COUNT": str(len(settings))}


def test_a_notebook_alone_clones_installs_and_runs_and_touches_nothing_else(fresh):
    python, folder, environment = fresh
    shutil.copy(ROOT / "book" / "notebooks" / "02_loss.ipynb", folder / "chapter.ipynb")
    find = [python, "-c", "import lib; print(lib.__file__)"]
    assert subprocess.run(
        find, cwd=folder, env=environment, capture_output=True
    ).returncode  # not there yet
    versions = [python, "-m", "pip", "list", "--format=freeze", "--exclude-editable"]
    before = subprocess.check_output(versions, cwd=folder, env=environment, text=True)
    done = subprocess.run(
        [python, "-c", EXECUTE], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / "executed.ipynb").is_file()
    assert subprocess.check_output(versions, cwd=folder, env=environment, text=True) == before
    where = subprocess.check_output(find, cwd=folder, env=environment, text=True).strip()
    assert Path(where) == folder / "book" / "lib" / "__init__.py"
    for needed in ("book/profiles/colab.yml", "book/claims.yml", "results"):
        assert (folder / "book" / needed).exists()
