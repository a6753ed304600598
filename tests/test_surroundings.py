"""What commands meet where they run: streams, homes, folders, caches."""

import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lib import ROOT, data, weights
from lib.__main__ import main
from lib.augmentations import RECIPES, views
from lib.runs import load, pretrain
from tests.conftest import arrays, small

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def photos(folder, *classes):
    """A folder for each class, with ten pictures of a colour of its own."""
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            colour = (20 + 90 * place, 60 + i, 200 - 90 * place)
            Image.new("RGB", (20, 24), colour).save(folder / name / f"{i}.png")
    return folder


def features(path, *classes):
    """Features as embed writes them, ten pictures of each class."""
    labels = np.repeat(np.arange(len(classes)), 10)
    h = np.eye(len(classes), 8, dtype=np.float32)[labels]
    h += np.random.default_rng(0).normal(0, 0.1, h.shape).astype(np.float32)
    files = [f"{classes[label]}/{place}.png" for place, label in enumerate(labels)]
    np.savez(path, h=h, z=h, files=files, labels=labels, classes=classes, encoder="none")
    return path


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_name_that_stdout_can_not_say_is_escaped(encoding, tmp_path, monkeypatch):
    folder = photos(tmp_path / "photos", "猫", "red")
    known = str(features(tmp_path / "h.npz", "猫", "red"))
    commands = {
        "import": [str(folder), "--size", "8", "--out", str(tmp_path / "mine.npz")],
        "predict": [known, "--train", known],
        "neighbours": [known, "猫/0.png"],
    }
    for name, words in commands.items():
        stdout = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main([name, *words]) == 0
        assert b"\\u732b" in stdout.buffer.getvalue(), name


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_the_library_does_without_streams_and_gives_their_descriptors_to_no_file(closed, tmp_path):
    code = (
        "import lib, subprocess, sys, tempfile, tqdm; list(tqdm.tqdm(range(3))); print('猫'); "
        "print('猫', file=sys.stderr, flush=True); sys.stdin.read(); "
        "done = subprocess.run([sys.executable, '-c', 'import sys; sys.stderr.flush()']); "
        "assert not done.returncode; assert tempfile.TemporaryFile().fileno() > 2; "
        f"open({str(tmp_path / 'done')!r}, 'w')"
    )
    command = f'"$0" -c "$1" {closed}'
    subprocess.run(
        ["bash", "-c", command, sys.executable, code],
        stdin=subprocess.DEVNULL,
        env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii:backslashreplace"},
        timeout=60,
    )
    assert (tmp_path / "done").is_file()


def test_a_command_does_without_streams(tmp_path):
    folder = photos(tmp_path / "photos", "blue", "red")
    command = '"$0" -m lib import photos --size 8 --out mine.npz >&- 2>&-'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable], cwd=folder.parent, env=ENVIRONMENT
    )
    assert done.returncode == 0 and (tmp_path / "mine.npz").is_file()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home, from another folder, which must stay empty."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    yield home
    assert not list(here.iterdir())


def test_commands_know_the_home_where_no_shell_has_told_it(home):
    photos(home / "photos", "blue", "red")
    assert main(["import", "~/photos", "--size", "8", "--out=~/data/mine.npz"]) == 0
    small_run = ["--epochs", "0", "--set", "encoder=pixels", "--set", "head=none"]
    words = ["simclr-digits", "--data", "mine", "--data-root=~/data", "--runs=~/runs", *small_run]
    assert main(["pretrain", *words]) == 0
    (run,) = (home / "runs").iterdir()
    named = f"~/runs/{run.name}"
    assert main(["probe", named, "--data-root", "~/data"]) == 0
    assert main(["export", named, "--out=~/ours", "--data-root=~/data"]) == 0
    words = ["--weights=~/ours", "--out=~/h.npz", "--data-root=~/data"]
    assert main(["embed", "~/photos", *words]) == 0
    assert main(["neighbours", "~/h.npz", "red/0.png"]) == 0
    assert main(["predict", "~/h.npz", "--train", "~/h.npz"]) == 0


def test_the_library_knows_the_home(home, toy, monkeypatch):
    np.savez(home / "toy.npz", **arrays())
    monkeypatch.setenv("DATA_ROOT", "~")
    assert data.load("toy").fingerprint == data.load("toy", "~").fingerprint == toy.fingerprint
    config = small(epochs=0, encoder="pixels", head="none")
    name = pretrain(config, toy, "~/runs", "cpu").folder.name
    assert load(f"~/runs/{name}").folder == home / "runs" / name
    assert weights.run(f"~/runs/{name}").folder == home / "runs" / name


NO_CACHE = """
import os, resource, signal, sys
import torch
from lib.augmentations import RECIPES, views
from lib.compute import views_cpu
from lib.compute.caches import with_a_cache

assert callable(views_cpu._compiled_views())  # no folder can be written
assert with_a_cache("needy").twice(4) == 8    # as umap, which is slow
assert os.path.isdir(os.environ["NUMBA_CACHE_DIR"])

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
before = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
views_cpu._compiled_views.cache_clear()
made = views(torch.load(sys.argv[1]), RECIPES["uva"], 0, 0)  # there is a folder, which is full
resource.setrlimit(resource.RLIMIT_FSIZE, before)
torch.save(made, sys.argv[2])
print(os.environ["NUMBA_CACHE_DIR"])
"""
NEEDY = "from numba import njit\n\n\n@njit(cache=True)\ndef twice(x):\n    return 2 * x\n"


def test_compiled_code_need_not_be_kept(tmp_path):
    """In a checkout, and for a home, that can't be written, and where the disk is full."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "lib", tmp_path / "lib", ignore=ignored)
    (tmp_path / "lib" / "compute" / "__pycache__").touch()
    (tmp_path / "needy.py").write_text(NEEDY, encoding="utf-8")
    (tmp_path / "__pycache__").touch()
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    torch.save(images, tmp_path / "images.pt")

    environment = ENVIRONMENT | {"HOME": "/dev/null", "PYTHONPATH": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)
    environment.pop("XDG_CACHE_HOME", None)
    command = [sys.executable, "-c", NO_CACHE, tmp_path / "images.pt", tmp_path / "made.pt"]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert "no locator available" in done.stderr and "File too large" in done.stderr
    assert done.stderr.count("NUMBA_CACHE_DIR names a folder") == 2
    assert not os.path.exists(done.stdout.strip())
    made = torch.load(tmp_path / "made.pt")
    assert torch.equal(made, views(images, RECIPES["uva"], 0, 0))
