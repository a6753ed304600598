import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import pytest
import torch
import yaml

from lib import ROOT, InputError, book, files
from lib.config import preset
from tests.conftest import wait_for

CELLS = {
    "01_good": ["number = 1", "print(number)"],
    "02_fails": ["print('before')", "1 / 0", "print('after')"],
    "03_hangs": ["import time; time.sleep(60)"],
    "04_leaves": ["import sys; sys.exit(0)", "print('never')"],
    "05_dies": ["import os; os._exit(1)"],
}


@pytest.fixture
def small_book(tmp_path, monkeypatch):
    """A book of tiny chapters, each with a parameter cell, in a folder of its own."""
    home = tmp_path / "book"
    (home / "notebooks").mkdir(parents=True)
    (home / "profiles").mkdir()
    for name, cells in CELLS.items():
        write(home / "notebooks" / f"{name}.ipynb", cells)
    toc(home, CELLS)
    (home / "profiles" / "quick.yml").write_text(
        "{about: small, timeout_minutes: 0.05, common: {word: a}}"
    )
    monkeypatch.setattr(book, "BOOK", home)
    monkeypatch.setattr(book, "PROFILES", home / "profiles")
    monkeypatch.setattr(book, "BUILD", tmp_path / "build")
    return home


def toc(home, names):
    files = [{"file": f"notebooks/{name}"} for name in names]
    (home / "_toc.yml").write_text(yaml.dump({"root": "intro", "chapters": files}))


def write(path, cells):
    kernel = {"name": "python3", "display_name": "", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    parameters = 'profile = "quick"\nword = None\nepochs = None'
    notebook.cells = [
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *map(nbformat.v4.new_code_cell, cells),
    ]
    nbformat.write(notebook, path)


def test_chapters_that_fail_hang_leave_or_die_are_named_and_take_no_others_work(small_book):
    with pytest.raises(InputError) as caught:
        book.run("quick")
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for line, words in zip(
        lines,
        [
            "02_fails failed in code cell 4: ZeroDivisionError: division by zero",
            "03_hangs hung",
            "04_leaves skipped",
            "05_dies died",
        ],
    ):
        assert words in line, line
    out = book.BUILD / "executed" / "quick"
    assert (out / "01_good.stamp").is_file() and not (out / "02_fails.stamp").exists()
    kept = nbformat.read(out / "02_fails.ipynb", as_version=4)  # the executed part
    assert "before" in str([cell.get("outputs") for cell in kept.cells])


def test_a_second_run_starts_with_the_first_chapter_that_is_not_done(small_book, capsys):
    toc(small_book, ["01_good", "02_fails"])
    with pytest.raises(InputError):
        book.run("quick")
    write(small_book / "notebooks" / "02_fails.ipynb", ["print('mended')"])
    capsys.readouterr()
    assert [path.stem for path in book.run("quick")] == ["01_good", "02_fails"]
    said = capsys.readouterr().out
    assert "01_good: unchanged" in said and "02_fails: running" in said
    book.run("quick")
    assert capsys.readouterr().out.splitlines() == ["01_good: unchanged", "02_fails: unchanged"]
    (small_book / "profiles" / "quick.yml").write_text(
        "{common: {word: b}}"
    )  # another profile is another chapter
    book.run("quick", only="01")
    assert "01_good: running" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content, words",
    [
        ("{common: {words: a}}", "unknown field 'words'; did you mean 'word'"),
        (
            "{chapters: {01_good: {epoch: 1}}}",
            "chapter 01_good: unknown field 'epoch'; did you mean 'epochs'",
        ),
        ("{chapters: {01_god: {epochs: 1}}}", "unknown chapter '01_god'; did you mean '01_good'"),
        ("{comon: {}}", "unknown field 'comon'; did you mean 'common'"),
        ("{timeout_minutes: soon}", "timeout_minutes is of the wrong type"),
        ("{timeout_minutes: 0}", "timeout_minutes must be greater than 0"),
        ("{about: 2024-13-45}", "can't be read as YAML"),
        ("{about: &a [x], common: *a}", "common is of the wrong type"),
        ("[" * 5000, "nested too deeply"),
        ("about: " + "x" * 70_000, "larger than 65536 bytes"),
        ("{chapters: {01_good: 3}}", "chapters.01_good must map"),
        ("[1]", "must hold the fields"),
        ("{", "can't be read as YAML"),
        ("", "must hold the fields"),
    ],
)
def test_bad_profiles_are_named_before_anything_runs(small_book, content, words):
    (small_book / "profiles" / "quick.yml").write_text(content)
    with pytest.raises(InputError, match=words):
        book.run("quick")
    assert not book.BUILD.exists()


def test_auto_is_chosen_by_the_device_found(monkeypatch):
    for there, name in ((False, "quick"), (True, "colab")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert book.found_profile("auto") == name and book.load_profile(
            "auto"
        ) == book.load_profile(name)
        assert book.settings("02_loss", "auto", temperature=None).profile == name
    assert book.found_profile("cpu") == "cpu"


def test_a_parameter_given_wins_over_the_chapters_over_the_common(small_book):
    (small_book / "profiles" / "quick.yml").write_text(
        "{common: {word: a, epochs: 1}, chapters: {02_fails: {word: b}}}"
    )
    assert vars(book.settings("01_good", "quick", word=None, epochs=None, seeds=None)) == {
        "word": "a",
        "epochs": 1,
        "seeds": None,
        "profile": "quick",
    }
    assert book.settings("02_fails", "quick", word=None).word == "b"
    given = book.settings("02_fails", "quick", word="c", epochs=None)
    assert given.word == "c" and given.delta == {"epochs": 1}  # word is no field of a Config


BATCH = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from pathlib import Path
from lib import book
from lib.__main__ import main
home = Path(sys.argv[1])
book.BOOK, book.PROFILES, book.BUILD = home, home / "profiles", home.parent / "build"
book.build = lambda *_: "the site"
sys.exit(main(["book", *sys.argv[2:]]))
"""
SLEEPS = "import os, time; open('{}', 'w').write(str(os.getpid())); time.sleep(60)"


def batch(home, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", BATCH, home, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_kernel_does_not_outlive_its_batch_and_the_next_batch_goes_on(
    small_book, number, tmp_path, capsys
):
    told = tmp_path / "kernel"
    (small_book / "profiles" / "quick.yml").write_text("{timeout_minutes: 5}")
    write(small_book / "notebooks" / "02_fails.ipynb", [SLEEPS.format(told)])
    toc(small_book, ["01_good", "02_fails"])
    process = batch(small_book)
    wait_for(lambda: told.is_file() and told.read_text())
    kernel, out = int(told.read_text()), tmp_path / "build" / "executed" / "quick"
    assert is_alive(kernel)
    if number == signal.SIGTERM:  # once is enough: it takes seconds
        left = batch(small_book, "--no-wait")
        assert (
            "another process is writing the chapters of profile quick; try again"
            in left.communicate()[1]
        )
        assert left.returncode == 2
    process.send_signal(number)
    process.communicate(timeout=60)
    assert (
        process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    )
    wait_for(lambda: not is_alive(kernel), 15)
    assert (out / "01_good.stamp").is_file() and not (out / "02_fails.stamp").exists()
    write(small_book / "notebooks" / "02_fails.ipynb", ["print('mended')"])
    assert [path.stem for path in book.run("quick")] == ["01_good", "02_fails"]
    said = capsys.readouterr().out
    assert "01_good: unchanged" in said and "02_fails: done" in said


def test_a_second_batch_waits_and_finds_the_chapters_done(small_book, capfd):
    toc(small_book, ["01_good"])
    made = []
    with files.only_writer(book.BUILD / "executed" / "quick" / ".lock", "test"):
        thread = threading.Thread(target=lambda: made.extend(book.run("quick")))
        thread.start()
        wait_for(lambda: "waiting until it is done" in capfd.readouterr().err)
        assert not made
    thread.join(60)
    assert [path.stem for path in made] == ["01_good"]


def test_chapters_that_the_site_shows_without_outputs_are_named(
    small_book, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(book, "ROOT", tmp_path)
    (tmp_path / "README.md").touch()
    toc(small_book, ["01_good", "02_fails"])
    book.run("quick", only="01")
    capsys.readouterr()
    book._stage_all("quick", tmp_path / "stage")
    said = capsys.readouterr().out
    assert "02_fails: not run since its last change" in said and "01_good" not in said
    assert json.loads((tmp_path / "stage" / "notebooks" / "01_good.ipynb").read_text())["cells"][
        -1
    ]["outputs"]


def test_an_interrupted_build_leaves_the_old_site(small_book, monkeypatch):
    monkeypatch.setattr(book, "SITE", book.BUILD / "html")
    toc(small_book, [])
    book.SITE.mkdir(parents=True)
    (book.SITE / "index.html").write_text("old")
    (book.BUILD / "site-1" / "source").mkdir(parents=True)  # of a build that was killed

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        book.build("quick")
    assert (book.SITE / "index.html").read_text() == "old" and not list(book.BUILD.glob("site-*"))


# --- the real book


def test_the_quick_book_runs_and_builds():
    """Through papermill, every chapter; strict build: a warning is an error."""
    done = book.run("quick")
    assert [path.stem for path in done] == [path.stem for path in book.chapters()]
    assert book.build("quick").is_file()
    for path in done:
        assert path.stat().st_size < 1_000_000


def test_profiles_fit_the_chapters():
    for path in book.PROFILES.glob("*.yml"):
        book.check(path.stem)


@pytest.mark.parametrize("profile", sorted(path.stem for path in book.PROFILES.glob("*.yml")))
def test_every_chapters_configurations_can_be_built_from_every_profile(profile):
    built = 0
    for path in book.chapters():
        chapter = book.settings(
            path.stem, profile, **dict.fromkeys(set(book.parameters(path)) - {"profile"})
        )
        for name in {"simclr", "supcon", "ce"} & vars(chapter).keys():
            config = preset(getattr(chapter, name), **chapter.delta)
            assert config.method == name and config.data == chapter.data
            if "pretrain(" in path.read_text():
                assert vars(chapter).keys() >= {"epochs", "precision", "runs"}, (
                    f"{path.stem} drops what a profile says"
                )
            built += 1
    assert built > 8


def test_plain_papermill_takes_parameters(tmp_path):
    program = Path(sys.executable).with_name("papermill")
    out = tmp_path / "out.ipynb"
    command = [
        program,
        "book/notebooks/02_loss.ipynb",
        out,
        "-p",
        "profile",
        "cpu",
        "-p",
        "temperature",
        "1.0",
        "--no-progress-bar",
    ]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert "4.628" not in out.read_text() and "log(2.151" in out.read_text()  # exp(cos 40 degrees)


@pytest.mark.parametrize("path", book.chapters(), ids=lambda path: path.stem)
def test_notebooks_are_committed_clean(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    parameters = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert len(parameters) == 1 and "".join(parameters[0]["source"]).startswith('profile = "auto"')
    config = yaml.safe_load((book.BOOK / "_config.yml").read_text())
    assert config["repository"]["url"] in "".join(code[0]["source"])  # the clone on Colab
    figures = [cell for cell in code if "figure" in cell["metadata"].get("mystnb", {})]
    assert all(cell["metadata"]["mystnb"]["image"]["alt"] for cell in figures)
