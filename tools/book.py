"""The book: chapters executed by papermill, and the site built from them by Jupyter Book.

What a chapter makes is kept under ``build/executed/PROFILE`` with a stamp of everything it was made
from, so that an unchanged chapter is not run again.
"""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from lib import ROOT, InputError, in_a_line, needed, unknown
from lib.data import data_root
from lib.files import only_writer, write_atomically
from lib.parsing import read_yaml
from lib.runs import provenance, records
from lib.settings import filled_in, found_profile, load_profile
from lib.weights import REGISTRY
from tools import page_encoder, photographs

# what draws figures and tables, beside what the numbers depend on
DRAWN_BY = ("matplotlib", "pandas", "seaborn", "umap-learn")
WITHOUT_OUTPUTS = """:::{warning}
This chapter has not been run since its last change, so the figures and numbers that it makes are
missing here. `make book` runs it.
:::"""


@dataclass(frozen=True)
class Book:
    """A checkout's book: what it is written in, and what is made of it."""

    root: Path

    @property
    def source(self) -> Path:
        return self.root / "book"

    @property
    def profiles(self) -> Path:
        return self.source / "profiles"

    @property
    def built(self) -> Path:
        """The folder of all that is made."""
        return self.root / "build"

    def site(self, builder: str = "html") -> Path:
        """The folder of a form of the site, by Sphinx's name for it."""
        return self.built / builder


BOOK = Book(ROOT)


@dataclass(frozen=True)
class Chapter:
    """A chapter with a profile: its notebook, and what is kept of an execution."""

    notebook: Path
    profile: str
    book: Book

    @property
    def name(self) -> str:
        return self.notebook.stem

    @property
    def executed(self) -> Path:
        return self.book.built / "executed" / self.profile / self.notebook.name

    @property
    def mark(self) -> Path:
        """Holds the stamp of what was executed, once that is whole."""
        return self.executed.with_suffix(".stamp")

    def is_done(self, stamp: str) -> bool:
        """Whether it was executed to the end from what the stamp is of."""
        if not self.executed.is_file() or not self.mark.is_file():
            return False
        return self.mark.read_bytes() == stamp.encode()

    def stamp(self) -> str:
        """A hash of all that it is made from.

        Its text, the profile, the package, versions, records, claims, the plan and when it was
        committed, data, weights.
        """
        large = sorted([*data_root().glob("*.npz"), *REGISTRY.parent.rglob("*")])
        data = []
        for file in large:
            about = file.stat()
            data.append((file.name, about.st_size, about.st_mtime_ns))
        drawn_by = [version(name) for name in DRAWN_BY]
        plans = _commits(self.book.source / "experiments.yml")
        others = [provenance.code()["source"], provenance.versions(), drawn_by, plans, data]
        digest = hashlib.sha256(json.dumps(others).encode())

        inputs = [
            self.notebook,
            self.book.profiles / f"{self.profile}.yml",
            self.book.source / "claims.yml",
            self.book.source / "experiments.yml",
            *sorted(records.RESULTS.rglob("*.json")),
        ]
        for file in filter(Path.is_file, inputs):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
        return digest.hexdigest()


def _commits(path: Path) -> str | None:
    """The commits that changed a file, as git tells them; None where it does not."""
    command = ["git", "-C", str(path.parent), "log", "--format=%H", "--", path.name]
    try:
        return subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout
    except (OSError, subprocess.SubprocessError):
        return None


def chapters(book: Book = BOOK) -> list[Path]:
    """The notebooks in the order of ``_toc.yml``."""
    contents = book.source / "_toc.yml"
    paths = []
    for name in _files(read_yaml(contents)):
        if name.startswith("notebooks/"):
            paths.append(book.source / f"{name}.ipynb")

    for path in paths:
        if not path.is_file():
            raise InputError(f"{contents} names {path.name}, which is not there")
    return paths


def _files(node: object) -> Iterator[str]:
    """What a table of contents, or a part of it, names as files, in order."""
    if isinstance(node, list):
        for item in node:
            yield from _files(item)
    elif isinstance(node, dict):
        if "file" in node:
            yield node["file"]
        for value in node.values():
            yield from _files(value)


def parameters(notebook: Path) -> dict[str, str]:
    """The names in a notebook's cell tagged "parameters", each with its default as written.

    Raises InputError where there is not one such cell, or no ``profile`` in it: papermill would
    leave the chapter at its defaults.
    """
    cells = json.loads(notebook.read_bytes())["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    found = needed("papermill", "book").inspect_notebook(str(notebook))
    if len(tagged) != 1 or "profile" not in found:
        raise InputError(
            f"{notebook} must have one cell tagged 'parameters', which sets profile; it has "
            f"{len(tagged)} tagged so"
        )
    return {name: parameter["default"] for name, parameter in found.items()}


def check(profile: str, book: Book = BOOK) -> None:
    """Raise InputError where a profile names a chapter or a parameter that does not exist.

    Or a parameter of a chapter that has a value of its own there: the profile's is never read.
    """
    values = load_profile(profile, book.profiles)
    known: dict[str, dict[str, str]] = {}
    for path in chapters(book):
        known[path.stem] = parameters(path)
        known[path.stem].pop("profile")

    for chapter, own in values.chapters.items():
        if chapter not in known:
            raise InputError(f"profile {profile}: {unknown('chapter', chapter, known)}")
        filled_in(values, chapter, profile, dict.fromkeys(known[chapter]))
        for name in own:
            default = known[chapter][name]
            if default != "None":
                raise InputError(
                    f"profile {profile}, chapter {chapter}: {name} is {default} in the notebook "
                    "itself; change it there, or write None there"
                )

    anywhere = sorted(set().union(*known.values()))
    for field in values.common:
        if field not in anywhere:
            raise InputError(f"profile {profile}: {unknown('field', field, anywhere)}")


def run(
    profile: str = "quick", only: str | None = None, wait: bool = True, book: Book = BOOK
) -> list[Path]:
    """Execute the chapters that are not done yet, in order. Returns the executed notebooks.

    only: run just the chapters whose name starts so.
    wait: for another process that executes this profile, instead of an error.

    Raises InputError after the last chapter where one failed, hung or skipped a cell; what was
    executed of it is kept, and the next call starts with it.
    """
    profile = found_profile(profile)
    check(profile, book)
    every = chapters(book)
    wanted = [path for path in every if path.stem.startswith(only or "")]
    if not wanted:
        raise InputError(unknown("chapter", only, [path.stem for path in every]))

    executed, failed = [], []
    with _only_batch(profile, wait, book):
        for path in wanted:
            chapter = Chapter(path, profile, book)
            problem = _bring_up_to_date(chapter)
            if problem is None:
                executed.append(chapter.executed)
            else:
                failed.append(
                    f"chapter {chapter.name} {problem}; what was executed is in {chapter.executed}"
                )
    if failed:
        raise InputError("\n".join(failed))
    return executed


def _only_batch(profile: str, wait: bool, book: Book) -> AbstractContextManager[None]:
    lock = book.built / "executed" / profile / ".lock"
    return only_writer(lock, f"the chapters of profile {profile}", wait)


def _bring_up_to_date(chapter: Chapter) -> str | None:
    """Execute a chapter where it has changed. Returns what went wrong, in one line, or None."""
    stamp = chapter.stamp()
    if chapter.is_done(stamp):
        print(f"{chapter.name}: unchanged")
        return None

    chapter.mark.unlink(missing_ok=True)
    log = chapter.executed.with_suffix(".log")
    started = time.monotonic()
    print(f"{chapter.name}: running ... (progress in {log})", flush=True)
    problem = _execute(chapter, log)
    if problem:
        print(f"{chapter.name}: failed", flush=True)
        return problem

    write_atomically(chapter.mark, stamp.encode())
    print(f"{chapter.name}: done in {time.monotonic() - started:.0f} s", flush=True)
    return None


def _execute(chapter: Chapter, log: Path) -> str | None:
    """Run a chapter with papermill. Returns what went wrong, in one line, or None."""
    papermill = needed("papermill", "book")
    client = needed("nbclient.exceptions", "book")

    chapter.executed.parent.mkdir(parents=True, exist_ok=True)
    minutes = load_profile(chapter.profile, chapter.book.profiles).timeout_minutes
    try:
        with open(log, "w", encoding="utf-8") as printed:
            papermill.execute_notebook(
                str(chapter.notebook),
                str(chapter.executed),
                {"profile": chapter.profile},
                progress_bar=False,
                cwd=str(chapter.book.root),
                execution_timeout=math.ceil(60 * minutes),
                start_timeout=120,
                kernel_name="python3",
                kernel_manager_class=_manager_of_own_kernels(),
                stdout_file=printed,
                stderr_file=printed,
                shutdown_kernel="immediate",  # all it made is saved by then
                extra_arguments=["--log-level=50"],  # 17_survival interrupts its own kernel
            )
    except papermill.PapermillExecutionError as error:
        why = in_a_line(error.evalue)
        return f"failed in code cell {error.exec_count}: {error.ename}: {why}"
    except client.CellTimeoutError:
        return f"hung: a cell ran longer than the profile's timeout_minutes of {minutes}"
    except (client.DeadKernelError, RuntimeError) as error:
        return f"died: {in_a_line(error)}"
    return _skipped(chapter.executed)


def _manager_of_own_kernels() -> type:
    """The class of what starts a kernel of this very Python, whatever kernels are installed."""
    jupyter_client = needed("jupyter_client", "book")
    usual: Any = jupyter_client.AsyncKernelManager
    no_installed_ones = jupyter_client.kernelspec.KernelSpecManager(kernel_dirs=[])

    class Manager(usual):
        def __init__(self, **options: object) -> None:
            super().__init__(kernel_spec_manager=no_installed_ones, **options)

    return Manager


def _skipped(executed: Path) -> str | None:
    """How many cells of a notebook were not run, in words; None where all were."""
    cells = skipped = 0
    for cell in json.loads(executed.read_bytes())["cells"]:
        if cell["cell_type"] == "code" and "".join(cell["source"]).strip():
            cells += 1
            skipped += cell["execution_count"] is None
    if not skipped:
        return None
    return f"skipped {skipped} of its {cells} code cells without an error"


def build(
    profile: str = "quick", wait: bool = True, builder: str = "html", book: Book = BOOK
) -> Path:
    """Build the site from the executed chapters, and return the index in it.

    wait: for another process that builds or executes this profile, instead of an error.
    builder: Sphinx's name for a form, "singlehtml" being one long page; each has its folder in
        build/.

    Chapters not executed, or not since a change, appear without outputs. Strict: a warning is an
    error. Raises InputError where Jupyter Book is missing or finds fault.
    """
    profile = found_profile(profile)
    with only_writer(book.built / ".site.lock", "the site", wait):
        for left in book.built.glob("site-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)

        work = book.built / f"site-{os.getpid()}"
        try:
            with _only_batch(profile, wait, book):
                stage(profile, work / "source", book)
            return _build(work, builder, book)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def stage(profile: str, target: Path, book: Book = BOOK) -> None:
    """Copy the book with its executed chapters; say which ones are shown without outputs."""
    ignored = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
    shutil.copytree(book.source, target, ignore=ignored)
    shutil.copy(book.root / "README.md", target)  # rerun.md shows a part of it
    play = target / "_play" / "play"
    if play.is_dir():
        photographs.write(play)
        page_encoder.write(play, book.root / "weights")

    for path in chapters(book):
        chapter = Chapter(path, profile, book)
        if chapter.is_done(chapter.stamp()):
            _stage_executed(chapter.executed, target / "notebooks" / path.name)
        else:
            _stage_without_outputs(path, target / "notebooks" / path.name)
            print(
                f"{chapter.name}: not run since its last change; the site shows it without outputs",
                flush=True,
            )


def _stage_without_outputs(path: Path, target: Path) -> None:
    """Copy a chapter as it is written, with a note below its title that results are missing."""
    notebook = json.loads(path.read_bytes())
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    note = {"cell_type": "markdown", "id": "without-outputs", "metadata": {}}
    below_title = kinds.index("markdown") + 1
    notebook["cells"].insert(below_title, note | {"source": WITHOUT_OUTPUTS})
    target.write_bytes(json.dumps(notebook).encode())


def _stage_executed(executed: Path, target: Path) -> None:
    """Copy an executed chapter and hide papermill's own cell, which repeats its parameters."""
    notebook = json.loads(executed.read_bytes())
    for cell in notebook["cells"]:
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["metadata"]["tags"].append("remove-cell")
    target.write_bytes(json.dumps(notebook).encode())


def _build(work: Path, builder: str, book: Book) -> Path:
    """The site from work/source, where that or a package differs from the last build's."""
    site = book.site(builder)
    index = site / "index.html"
    mark = book.built / f"{builder}.stamp"
    packages = sorted(f"{package.name} {package.version}" for package in distributions())
    stamp = hashlib.sha256(json.dumps([_tree_hash(work / "source"), packages]).encode()).hexdigest()
    if index.is_file() and mark.is_file() and mark.read_bytes() == stamp.encode():
        print("site: unchanged")
        return index

    made = _by_jupyter_book(work / "source", work / "out", builder)
    mark.unlink(missing_ok=True)
    if site.exists():
        site.rename(work / "old")
    made.rename(site)
    write_atomically(mark, stamp.encode())
    return index


def _by_jupyter_book(source: Path, out: Path, builder: str) -> Path:
    """The folder of a form of the site, below out."""
    program = Path(sys.executable).with_name("jupyter-book")
    if not program.is_file():
        raise InputError(
            "jupyter-book is not installed beside this Python; run: pip install -e '.[book]'"
        )
    command = [str(program), "build", str(source), "--path-output", str(out), "--builder", builder]
    command += ["-W", "-n", "--keep-going", "-q"]  # strict, and short
    finished = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    made = out / "_build" / builder
    if finished.returncode or not (made / "index.html").is_file():
        raise InputError(f"Jupyter Book found fault:\n{finished.stdout}{finished.stderr}")
    return made


def _tree_hash(folder: Path) -> str:
    """A hash of every file below a folder, and of its path there."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
