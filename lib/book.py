"""The book: profiles, chapters executed by papermill, and the site built from them by Jupyter Book.

A chapter is a notebook with flat parameters; a profile gives them values. What a chapter makes is
kept under ``build/executed/PROFILE`` with a stamp of everything it was made from, so that an
unchanged chapter is not run again.
"""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from lib import ROOT, InputError, records
from lib.config import FIELDS, unknown
from lib.data import data_root
from lib.files import only_writer, read_yaml, write_atomically
from lib.weights import REGISTRY

BOOK = ROOT / "book"
PROFILES = BOOK / "profiles"
BUILD = ROOT / "build"
SITE = BUILD / "html"


def found_profile(name: str) -> str:
    """The name itself, but for "auto": "colab" where there is a CUDA device, else "quick"."""
    return name if name != "auto" else "colab" if torch.cuda.is_available() else "quick"


class Settings(SimpleNamespace):
    """A chapter's parameters with every None filled in from the profile, as attributes."""

    @property
    def delta(self) -> dict:
        """Those that are fields of a Config and set: what to change in a preset."""
        return {
            key: value for key, value in vars(self).items() if key in FIELDS and value is not None
        }


def load_profile(name: str) -> dict:
    """A profile ("auto": by the device found).

    Its fields: ``about``, ``timeout_minutes`` a cell, ``common`` parameters, and ``chapters`` with
    their own. Raises InputError for an unknown profile, a file that is not YAML, or a field of
    another name or type.
    """
    path = PROFILES / f"{found_profile(name)}.yml"
    if not PROFILES.is_dir():
        raise InputError(
            f"{PROFILES} is not there: the book needs its checkout; install with pip install -e . "
            "in it"
        )
    if not path.is_file():
        raise InputError(
            unknown("profile", name, ["auto", *sorted(p.stem for p in PROFILES.glob("*.yml"))])
        )
    profile = read_yaml(path)
    kinds = {"about": str, "timeout_minutes": (int, float), "common": dict, "chapters": dict}
    if not isinstance(profile, dict):
        raise InputError(f"{path} must hold the fields {', '.join(kinds)}")
    for field, value in ({"common": {}, "chapters": {}, "timeout_minutes": 10} | profile).items():
        if field not in kinds:
            raise InputError(f"{path}: {unknown('field', field, kinds)}")
        if not isinstance(value, kinds[field]) or isinstance(value, bool):
            raise InputError(f"{path}: {field} is of the wrong type, {type(value).__name__}")
        profile[field] = value
    if not 0 < profile["timeout_minutes"] < float("inf"):
        raise InputError(
            f"{path}: timeout_minutes must be greater than 0, got {profile['timeout_minutes']}"
        )
    for chapter, own in profile["chapters"].items():
        if not isinstance(own, dict):
            raise InputError(f"{path}: chapters.{chapter} must map parameters to values")
    return profile


def settings(chapter: str, profile: str, **given) -> Settings:
    """A chapter's parameters: those given, and where they are None the profile's.

    given: every parameter of the chapter but ``profile``. Parameters that the profile leaves open
    stay None, which means the preset's own value. Raises InputError where the profile names a
    parameter the chapter does not have.
    """
    values = load_profile(profile)
    own = values["chapters"].get(chapter, {})
    for field in own:
        if field not in given:
            raise InputError(
                f"profile {profile}, chapter {chapter}: {unknown('field', field, given)}"
            )
    common = {key: value for key, value in values["common"].items() if key in given}
    chosen = {key: value for key, value in given.items() if value is not None}
    return Settings(
        **{key: None for key in given} | common | own | chosen, profile=found_profile(profile)
    )


def chapters() -> list[Path]:
    """The notebooks in the order of ``_toc.yml``."""

    def files(node) -> list[str]:
        if isinstance(node, dict):
            return ([node["file"]] if "file" in node else []) + [
                f for v in node.values() for f in files(v)
            ]
        return [f for item in node for f in files(item)] if isinstance(node, list) else []

    paths = [
        BOOK / f"{file}.ipynb"
        for file in files(read_yaml(BOOK / "_toc.yml"))
        if file.startswith("notebooks/")
    ]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"{BOOK / '_toc.yml'} names {missing[0].name}, which is not there")
    return paths


def parameters(notebook: Path) -> list[str]:
    """The names in a notebook's cell tagged "parameters"."""
    try:
        import papermill
    except ImportError as error:
        raise InputError(
            "running the book needs papermill; install it with: pip install -e '.[book]'"
        ) from error
    return list(papermill.inspect_notebook(str(notebook)))


def check(profile: str) -> None:
    """Raise InputError where a profile names a chapter or a parameter that does not exist."""
    values = load_profile(profile)
    known = {path.stem: set(parameters(path)) - {"profile"} for path in chapters()}
    for chapter in values["chapters"]:
        if chapter not in known:
            raise InputError(f"profile {profile}: {unknown('chapter', chapter, known)}")
        settings(chapter, profile, **dict.fromkeys(known[chapter]))
    anywhere = set().union(*known.values())
    for field in values["common"]:
        if field not in anywhere:
            raise InputError(f"profile {profile}: {unknown('field', field, sorted(anywhere))}")


def run(profile: str = "quick", only: str | None = None, wait: bool = True) -> list[Path]:
    """Execute the chapters that are not done yet, in order. Returns the executed notebooks.

    only: run just the chapters whose name starts so. wait: for another process that executes this
    profile, instead of an error. Raises InputError after the last chapter where one failed, hung or
    skipped a cell; what was executed of it is kept, and the next call starts with it.
    """
    profile = found_profile(profile)
    check(profile)
    todo = [path for path in chapters() if path.stem.startswith(only or "")]
    if not todo:
        raise InputError(unknown("chapter", only, [path.stem for path in chapters()]))
    done, failed = [], []
    with _only_batch(profile, wait):
        for path in todo:
            out = BUILD / "executed" / profile / path.name
            stamp, mark = _stamp(path, profile), out.with_suffix(".stamp")
            if out.is_file() and mark.is_file() and mark.read_text() == stamp:
                print(f"{path.stem}: unchanged")
            else:
                mark.unlink(missing_ok=True)
                started = time.monotonic()
                print(
                    f"{path.stem}: running ... (progress in {out.with_suffix('.log')})", flush=True
                )
                problem = _execute(path, out, profile)
                if problem:
                    failed.append(f"chapter {path.stem} {problem}; what was executed is in {out}")
                    print(f"{path.stem}: failed", flush=True)
                    continue
                write_atomically(mark, stamp.encode())
                print(f"{path.stem}: done in {time.monotonic() - started:.0f} s", flush=True)
            done.append(out)
    if failed:
        raise InputError("\n".join(failed))
    return done


def _only_batch(profile: str, wait: bool):
    return only_writer(
        BUILD / "executed" / profile / ".lock", f"the chapters of profile {profile}", wait
    )


def _execute(path: Path, out: Path, profile: str) -> str | None:
    """Run one chapter with papermill. Returns what went wrong, in one line, or None."""
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    out.parent.mkdir(parents=True, exist_ok=True)
    minutes = load_profile(profile)["timeout_minutes"]
    try:
        with open(out.with_suffix(".log"), "w") as log:
            papermill.execute_notebook(
                str(path),
                str(out),
                {"profile": profile},
                progress_bar=False,
                cwd=str(ROOT),
                execution_timeout=math.ceil(60 * minutes),
                start_timeout=120,
                stdout_file=log,
                stderr_file=log,
                shutdown_kernel="immediate",  # all it made is saved by then
                extra_arguments=["--log-level=50"],
            )  # chapter 13 interrupts its own kernel
    except papermill.PapermillExecutionError as error:
        why = " ".join(error.evalue.split())
        return f"failed in code cell {error.exec_count}: {error.ename}: {why}"
    except CellTimeoutError:
        return f"hung: a cell ran longer than the profile's timeout_minutes of {minutes}"
    except (DeadKernelError, RuntimeError) as error:
        return f"died: {' '.join(str(error).split())}"
    cells = nbformat.read(out, as_version=4).cells
    cells = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
    skipped = sum(cell.execution_count is None for cell in cells)
    return f"skipped {skipped} of its {len(cells)} code cells without an error" if skipped else None


def _stamp(path: Path, profile: str) -> str:
    """A hash of all that a chapter is made from: text, profile, package, versions, records, claims,
    data, weights."""
    large = sorted([*data_root().glob("*.npz"), *REGISTRY.parent.rglob("*")])
    data = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in large]
    digest = hashlib.sha256(
        json.dumps([records.code()["source"], records.versions(), data]).encode()
    )
    inputs = [
        path,
        PROFILES / f"{profile}.yml",
        BOOK / "claims.yml",
        BOOK / "experiments.yml",
        *sorted(records.RESULTS.rglob("*.json")),
    ]
    for file in filter(Path.is_file, inputs):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def build(profile: str = "quick", wait: bool = True, builder: str = "html") -> Path:
    """Build the site from the executed chapters; those not executed, or not since a change, appear
    without outputs.

    wait: for another process that builds or executes this profile, instead of an error. builder:
    Sphinx's name for a form, "singlehtml" being one long page; each has its folder in build/.
    Returns the index in it. Strict: a warning is an error. Raises InputError where Jupyter Book is
    missing or finds fault.
    """
    profile = found_profile(profile)
    with only_writer(BUILD / ".site.lock", "the site", wait):
        for left in BUILD.glob("site-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        work = BUILD / f"site-{os.getpid()}"
        try:
            with _only_batch(profile, wait):
                _stage_all(profile, work / "source")
            return _build(work, builder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _stage_all(profile: str, stage: Path) -> None:
    """Copy the book with its executed chapters; say which ones are shown without outputs."""
    shutil.copytree(BOOK, stage, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__"))
    shutil.copy(ROOT / "README.md", stage)  # rerun.md shows a part of it
    for path in chapters():
        executed = BUILD / "executed" / profile / path.name
        mark = executed.with_suffix(".stamp")
        if mark.is_file() and mark.read_text() == _stamp(path, profile):
            _stage(executed, stage / "notebooks" / path.name)
        else:
            print(
                f"{path.stem}: not run since its last change; the site shows it without outputs",
                flush=True,
            )


def _build(work: Path, builder: str) -> Path:
    """The site from what is staged in work/source, if that differs from what it was last built
    from."""
    site = SITE.with_name(builder)
    stage, mark, index = work / "source", BUILD / f"{builder}.stamp", site / "index.html"
    stamp = _tree_hash(stage)
    if index.is_file() and mark.is_file() and mark.read_text() == stamp:
        print("site: unchanged")
        return index
    program = Path(sys.executable).with_name("jupyter-book")
    if not program.is_file():
        raise InputError(
            "jupyter-book is not installed beside this Python; run: pip install -e '.[book]'"
        )
    command = [
        program,
        "build",
        stage,
        "--path-output",
        work / "out",
        "--builder",
        builder,
        "-W",
        "-n",
        "--keep-going",
        "-q",
    ]
    finished = subprocess.run(command, capture_output=True, text=True)
    html = work / "out" / "_build" / builder
    if finished.returncode or not (html / "index.html").is_file():
        raise InputError(f"Jupyter Book found fault:\n{finished.stdout}{finished.stderr}")
    mark.unlink(missing_ok=True)
    if site.exists():
        site.rename(work / "old")
    html.rename(site)
    write_atomically(mark, stamp.encode())
    return index


def _stage(executed: Path, target: Path) -> None:
    """Copy an executed chapter, without papermill's own cell: its parameters stand in the
    chapter's."""
    notebook = json.loads(executed.read_text())
    for cell in notebook["cells"]:
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["metadata"]["tags"].append("remove-cell")
    target.write_text(json.dumps(notebook))


def _tree_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
