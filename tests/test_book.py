import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import nbformat
import pytest
import torch
import yaml

from lib import ROOT, InputError, files
from lib.commands.runs import parse
from lib.compute import drivers
from lib.methods import METHODS
from lib.presets import preset
from lib.settings import (
    GPU_ON_COLAB,
    KINDS,
    PROFILES,
    Profile,
    Settings,
    filled_in,
    found_profile,
    in_words,
    load_profile,
    settings,
)
from tests.conftest import wait_for
from tests.pretended import gpu
from tools import book
from tools.book import BOOK, Book

CELLS = {
    "01_good": ["number = 1", "print(number)"],
    "02_fails": ["print('before')", "1 / 0", "print('after')"],
    "03_hangs": ["import time; time.sleep(60)"],
    "04_leaves": ["import sys; sys.exit(0)", "print('never')"],
    "05_dies": ["import os; os._exit(1)"],
}


@pytest.fixture
def small(tmp_path):
    """A book of tiny chapters, each with a parameter cell."""
    made = Book(tmp_path)
    (made.source / "notebooks").mkdir(parents=True)
    made.profiles.mkdir()
    (made.root / "README.md").touch()

    for name, cells in CELLS.items():
        write_chapter(made, name, cells)
    write_contents(made, list(CELLS))
    write_profile(made, "{about: small, timeout_minutes: 0.05, common: {word: a}}")
    return made


def write_contents(small, names):
    chapters = [{"file": f"notebooks/{name}"} for name in names]
    contents = yaml.dump({"root": "intro", "chapters": chapters})
    (small.source / "_toc.yml").write_text(contents, encoding="utf-8")


def write_profile(small, content):
    (small.profiles / "quick.yml").write_text(content, encoding="utf-8")


def write_chapter(small, name, cells):
    kernel = {"name": "python3", "display_name": "", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})

    parameters = 'profile = "quick"\nword = None\nepochs = None\nsize = 32'
    notebook.cells = [
        nbformat.v4.new_markdown_cell(f"# {name}"),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *map(nbformat.v4.new_code_cell, cells),
    ]
    nbformat.write(notebook, small.source / "notebooks" / f"{name}.ipynb")


def executed(small, name):
    return small.built / "executed" / "quick" / name


def test_chapters_that_fail_hang_leave_or_die_are_named_and_take_no_others_work(small):
    with pytest.raises(InputError) as caught:
        book.run("quick", book=small)

    lines = str(caught.value).splitlines()
    expected = [
        "02_fails failed in code cell 4: ZeroDivisionError: division by zero",
        "03_hangs hung",
        "04_leaves skipped 1 of its 4 code cells",
        "05_dies died",
    ]
    for line, words in zip(lines, expected, strict=True):
        assert words in line, line

    assert executed(small, "01_good.stamp").is_file()
    assert not executed(small, "02_fails.stamp").exists()
    kept = nbformat.read(executed(small, "02_fails.ipynb"), as_version=4)  # the executed part
    assert "before" in str([cell.get("outputs") for cell in kept.cells])


def test_a_second_run_starts_with_the_first_chapter_that_is_not_done(small, capsys):
    write_contents(small, ["01_good", "02_fails"])
    with pytest.raises(InputError):
        book.run("quick", book=small)

    write_chapter(small, "02_fails", ["print('mended')"])
    capsys.readouterr()
    done = book.run("quick", book=small)
    assert [path.stem for path in done] == ["01_good", "02_fails"]
    said = capsys.readouterr().out
    assert "01_good: unchanged" in said and "02_fails: running" in said

    book.run("quick", book=small)
    assert capsys.readouterr().out.splitlines() == ["01_good: unchanged", "02_fails: unchanged"]


def test_what_a_chapter_is_made_from_makes_it_run_anew(small, capsys):
    write_contents(small, ["01_good"])
    book.run("quick", book=small)
    changes = {
        small.profiles / "quick.yml": "{common: {word: b}}",
        small.source / "claims.yml": "[]",
        small.source / "experiments.yml": "[]",
    }

    for path, content in changes.items():
        path.write_text(content, encoding="utf-8")
        capsys.readouterr()
        book.run("quick", book=small)
        assert "01_good: done" in capsys.readouterr().out, path.name


def test_what_changes_while_a_chapter_runs_makes_it_run_anew(small, capsys):
    write_contents(small, ["01_good"])
    write_chapter(small, "01_good", ["open('book/claims.yml', 'a').write(' ')"])
    for _ in range(2):
        book.run("quick", book=small)
        assert "01_good: done" in capsys.readouterr().out


def test_another_version_of_what_draws_makes_a_chapter_run_anew(
    small, tmp_path, capsys, monkeypatch
):
    write_contents(small, ["01_good"])
    book.run("quick", book=small)
    other = tmp_path / "packages" / "matplotlib-0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Name: matplotlib\nVersion: 0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(other.parent)

    capsys.readouterr()
    book.run("quick", book=small)
    assert "01_good: done" in capsys.readouterr().out


def test_a_commit_of_the_plan_makes_a_chapter_run_anew(small, capsys):
    """What the chapters say of the plan's history is another thing then."""
    write_contents(small, ["01_good"])
    (small.source / "experiments.yml").write_text("[]", encoding="utf-8")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "the plan"]):
        book.run("quick", book=small)
        subprocess.run(["git", "-C", str(small.root), *arguments], check=True)

    capsys.readouterr()
    book.run("quick", book=small)
    assert "01_good: done" in capsys.readouterr().out
    book.run("quick", book=small)
    assert "01_good: unchanged" in capsys.readouterr().out


def test_a_run_that_fails_forgets_the_one_before(small, capsys):
    write_contents(small, ["01_good"])
    book.run("quick", book=small)
    (notebook,) = book.chapters(small)
    content = notebook.read_bytes()
    write_chapter(small, "01_good", ["1 / 0"])
    with pytest.raises(InputError):
        book.run("quick", book=small)

    notebook.write_bytes(content)
    capsys.readouterr()
    book.run("quick", book=small)
    assert "01_good: done" in capsys.readouterr().out


def test_only_chapters_that_are_asked_for_are_run(small):
    assert [path.stem for path in book.run("quick", only="01", book=small)] == ["01_good"]
    with pytest.raises(InputError, match="unknown chapter '06'"):
        book.run("quick", only="06", book=small)


def test_a_chapter_that_is_not_there_is_named(small):
    write_contents(small, ["01_good", "06_lost"])
    with pytest.raises(InputError, match="_toc.yml names 06_lost.ipynb, which is not there"):
        book.run("quick", book=small)


def test_chapters_are_found_at_any_depth_of_the_contents_in_their_order(small):
    parts = [
        {"caption": "One", "chapters": [{"file": "glossary"}, {"file": "notebooks/03_hangs"}]},
        {"chapters": [{"file": "notebooks/02_fails", "sections": [{"file": "notebooks/01_good"}]}]},
    ]
    (small.source / "_toc.yml").write_text(
        yaml.dump({"root": "intro", "parts": parts}), encoding="utf-8"
    )

    names = [path.stem for path in book.chapters(small)]
    assert names == ["03_hangs", "02_fails", "01_good"]


@pytest.mark.parametrize(
    "content, words",
    [
        ("{common: {words: a}}", "unknown field 'words'; did you mean 'word'"),
        (
            "{chapters: {01_good: {epoch: 1}}}",
            "chapter 01_good: unknown field 'epoch'; did you mean 'epochs'",
        ),
        ("{chapters: {01_god: {epochs: 1}}}", "unknown chapter '01_god'; did you mean '01_good'"),
        (
            "{chapters: {01_good: {size: 8}}}",
            "chapter 01_good: size is 32 in the notebook itself; change it there",
        ),
        ("{comon: {}}", "unknown field 'comon'; did you mean 'common'"),
        ("{timeout_minutes: soon}", "timeout_minutes must be a number, got 'soon'"),
        ("{timeout_minutes: 0}", "timeout_minutes must be greater than 0"),
        ("{about: 2024-13-45}", "can't be read as YAML"),
        ("{common: [x]}", "common must be a mapping"),
        ("[" * 5000, "nested too deeply"),
        ("about: " + "x" * 70_000, "larger than 65536 bytes"),
        ("{chapters: {01_good: 3}}", "chapters.01_good must be a mapping"),
        ("{common: {epochs: '2'}}", "quick.yml, common: epochs must be an integer, got '2'"),
        ("{chapters: {01_good: {epochs: 0}}}", "chapter 01_good: epochs must be at least 1, got 0"),
        ("[1]", "must be a mapping"),
        ("{", "can't be read as YAML"),
        ("", "must be a mapping"),
    ],
)
def test_bad_profiles_are_named_before_anything_runs(small, content, words):
    write_profile(small, content)
    with pytest.raises(InputError, match=words):
        book.run("quick", book=small)
    assert not small.built.exists()


@pytest.mark.parametrize("tags, count", [((), 0), ((1, 2), 2), ((2,), 1)])
def test_a_chapter_that_papermill_would_leave_at_its_defaults_is_named(small, tags, count):
    path = small.source / "notebooks" / "01_good.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for place, cell in enumerate(notebook.cells):
        cell.metadata["tags"] = ["parameters"] if place in tags else []
    nbformat.write(notebook, path)
    with pytest.raises(InputError, match=f"01_good.ipynb must have one cell .* it has {count}"):
        book.run("quick", book=small)
    assert not small.built.exists()


def test_an_unknown_profile_is_named_with_those_there_are(small):
    with pytest.raises(InputError, match="unknown profile 'quik'; did you mean 'quick'"):
        book.run("quik", book=small)


@pytest.mark.parametrize("machine, name", [(nullcontext, "quick"), (gpu, "colab")])
def test_auto_is_chosen_by_the_device_found(machine, name, monkeypatch):
    if machine is nullcontext:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with machine():
        assert found_profile("auto") == name and load_profile("auto") == load_profile(name)
        assert settings("02_loss", "auto", temperature=None).profile == name
        assert found_profile("cpu") == "cpu"


TRAINS = dict.fromkeys(("data", "simclr", "epochs", "images", "precision"))


def test_a_chapter_begins_with_a_line_of_what_will_compute(monkeypatch, capsys):
    monkeypatch.setattr(drivers, "unusable_gpu", lambda: "there is a GPU, and why not")
    with gpu(memory=15_000_000_000):
        settings("03_simclr", "auto", **TRAINS)
    line, note = capsys.readouterr().out.splitlines()
    said = "pretended (cuda), float16, 15.0 GB of memory free"
    assert line == f"profile colab, stl10, views by uva; {said}"
    assert note == "note: there is a GPU, and why not"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(drivers, "unusable_gpu", lambda: None)
    settings("03_simclr", "quick", **TRAINS | {"precision": "bfloat16"})
    settings("02_loss", "quick", temperature=None)
    trains, reads = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"profile quick, tinted-digits \(a slice of 1,000 images\), views by tinted; "
        r".+ \(cpu, .+\), bfloat16(, [\d.]+ GB of memory free)?",
        trains,
    )
    assert reads.startswith("profile quick; ") and "float" not in reads


def test_colab_without_a_gpu_is_told_how_to_get_one_where_it_matters(monkeypatch):
    trains = Settings(profile="quick", simclr="simclr-digits", precision=None)
    reads = Settings(profile="quick", temperature=None)
    on_colab = {"google.colab"}
    with gpu():
        assert GPU_ON_COLAB not in in_words(trains, on_colab)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert in_words(trains, on_colab).endswith(GPU_ON_COLAB)
    assert GPU_ON_COLAB not in in_words(reads, on_colab)
    assert GPU_ON_COLAB not in in_words(trains, set())


def test_a_parameter_given_wins_over_the_chapters_over_the_common():
    profile = Profile(common={"word": "a", "epochs": 1}, chapters={"02_fails": {"word": "b"}})
    open_ones = {"word": None, "epochs": None, "seeds": None}
    common = filled_in(profile, "01_good", "quick", open_ones)
    assert vars(common) == {"word": "a", "epochs": 1, "seeds": None, "profile": "quick"}

    own = filled_in(profile, "02_fails", "quick", {"word": None})
    assert own.word == "b"
    given = filled_in(profile, "02_fails", "quick", {"word": "c", "epochs": None})
    assert given.word == "c" and given.delta == {"epochs": 1}  # word is no field of a Config


@pytest.mark.parametrize(
    "values, words",
    [
        ({"seeds": 0}, "chapter 03_simclr: seeds must be at least 1, got 0"),
        ({"seeds": 1.5}, "seeds must be an integer, got 1.5"),
        ({"seeds": "2"}, "seeds must be an integer, got '2'"),
        ({"seeds": True}, "seeds must be an integer, got True"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"ce_epochs": 0}, "ce_epochs must be at least 1, got 0"),
        ({"temperature": "abc"}, "temperature must be a number, got 'abc'"),
        ({"temperature": 0}, "temperature must be at least 1e-30, got 0"),
        ({"temperature": float("nan")}, "temperature must be finite"),
        ({"ratio": 1}, "ratio must be at least 2, got 1"),
        ({"per_gpu": 0}, "per_gpu must be at least 1, got 0"),
        ({"simclr": "supcon-digits"}, "unknown preset of simclr 'supcon-digits'"),
        ({"recipe": "uvas"}, "unknown recipe 'uvas'; did you mean 'uva'"),
        ({"maps": "umap"}, "unknown choice of maps 'umap'; known: tsne, both"),
        ({"folder": "nowhere"}, "folder must be a folder that is there, got 'nowhere'"),
        ({"data": 10}, "data must be text, got 10"),
        ({"size": "x"}, "size must be an integer, got 'x'"),
    ],
)
def test_wrong_parameters_of_a_chapter_are_named(values, words):
    with pytest.raises(InputError, match=re.escape(words)):
        settings("03_simclr", "quick", **values)


def test_parameters_of_a_chapter_that_are_right_are_kept_as_they_are(tmp_path):
    given = {"ratio": 2, "maps": "tsne", "runs": tmp_path, "temperature": 1, "size": None}
    assert vars(settings("03_simclr", "cpu", **given)) == given | {"profile": "cpu"}


BATCH = ("-m", "lib", "book")
CHAPTERS = "from tools import book; book.run()"
SLEEPS = "import os, time; open('{}', 'w').write(str(os.getpid())); time.sleep(60)"
STATUS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture
def checkout(small):
    """A checkout of the package with the small book in it: the command line finds it by itself."""
    for package in ("lib", "tools"):
        shutil.copytree(ROOT / package, small.root / package)
    return small


@pytest.fixture
def start(checkout):
    """A function that starts a Python of its own in the checkout; none outlives the test."""
    processes = []

    def begin(*arguments):
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=checkout.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[2] != "Z"
    except OSError:
        return False


def has_written(path):
    return path.is_file() and path.read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")
@pytest.mark.parametrize("number", STATUS)
def test_a_kernel_does_not_outlive_its_batch_and_the_next_batch_goes_on(
    checkout, start, number, tmp_path
):
    kernel_file = tmp_path / "kernel"
    write_profile(checkout, "{timeout_minutes: 5}")
    write_chapter(checkout, "02_fails", [SLEEPS.format(kernel_file)])
    write_contents(checkout, ["01_good", "02_fails"])

    process = start(*BATCH)
    wait_for(lambda: has_written(kernel_file))
    kernel = int(kernel_file.read_text(encoding="utf-8"))
    assert is_alive(kernel)

    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == STATUS[number]
    wait_for(lambda: not is_alive(kernel), 15)
    assert executed(checkout, "01_good.stamp").is_file()
    assert not executed(checkout, "02_fails.stamp").exists()

    write_chapter(checkout, "02_fails", ["print('mended')"])
    said, _ = start("-c", CHAPTERS).communicate(timeout=300)
    assert "01_good: unchanged" in said and "02_fails: done" in said


def test_a_second_batch_can_leave_instead_of_waiting(checkout, start):
    with files.only_writer(executed(checkout, ".lock"), "test"):
        second = start(*BATCH, "--no-wait")
        _, said = second.communicate(timeout=60)
    assert "another process is writing the chapters of profile quick; try again" in said
    assert second.returncode == 2


def test_a_second_batch_waits_and_finds_the_chapters_done(small, capfd):
    write_contents(small, ["01_good"])
    made = []
    with files.only_writer(executed(small, ".lock"), "test"):
        thread = threading.Thread(target=lambda: made.extend(book.run("quick", book=small)))
        thread.start()
        wait_for(lambda: "waiting until it is done" in capfd.readouterr().err)
        assert not made

    thread.join(60)
    assert [path.stem for path in made] == ["01_good"]


def test_chapters_that_the_site_shows_without_outputs_are_named(small, tmp_path, capsys):
    write_contents(small, ["01_good", "02_fails"])
    book.run("quick", only="01", book=small)
    capsys.readouterr()

    book.stage("quick", tmp_path / "stage", small)
    said = capsys.readouterr().out
    assert "02_fails: not run since its last change" in said and "01_good" not in said

    shown = json.loads(
        (tmp_path / "stage" / "notebooks" / "01_good.ipynb").read_text(encoding="utf-8")
    )
    assert shown["cells"][-1]["outputs"]
    hidden = [cell for cell in shown["cells"] if "remove-cell" in cell["metadata"].get("tags", [])]
    assert len(hidden) == 1 and "injected-parameters" in hidden[0]["metadata"]["tags"]

    title, note, *_ = nbformat.read(tmp_path / "stage" / "notebooks" / "02_fails.ipynb", 4).cells
    assert title.source == "# 02_fails" and "has not been run since its last change" in note.source


@pytest.fixture
def old_site(small):
    """A page of a site that was built before, beside what a killed build left."""
    write_contents(small, [])  # a book without its first page
    index = small.site() / "index.html"
    index.parent.mkdir(parents=True)
    index.write_text("old", encoding="utf-8")
    (small.built / "site-1" / "source").mkdir(parents=True)
    return index


def test_a_build_that_fails_leaves_the_old_site(small, old_site):
    with pytest.raises(InputError, match="Jupyter Book found fault"):
        book.build("quick", book=small)
    assert old_site.read_text(encoding="utf-8") == "old" and not list(small.built.glob("site-*"))


def test_a_build_that_is_interrupted_leaves_the_old_site(small, old_site, monkeypatch):
    staged = []

    def interrupted(*_, **__):
        staged.extend(small.built.glob("site-*/source/_toc.yml"))
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        book.build("quick", book=small)
    assert len(staged) == 1  # it was in the midst of it
    assert old_site.read_text(encoding="utf-8") == "old" and not list(small.built.glob("site-*"))
    with files.only_writer(small.built / ".site.lock", "test", wait=False):
        pass  # nobody holds it any more


LETTERS = "für 猫"
WITH_LETTERS = """
import sys
from pathlib import Path
from tools import book
root = Path(sys.argv[1])
book.run("quick", book=book.Book(root))
book.stage("quick", root / "stage", book.Book(root))
"""


def test_a_chapter_says_the_same_where_the_systems_letters_are_ascii(small):
    """As in containers without a locale, or on Windows with the few letters of its own."""
    write_profile(small, f"{{about: {LETTERS}, timeout_minutes: 1}}")
    write_contents(small, ["01_good"])
    write_chapter(small, "01_good", [f"print('{LETTERS}')"])

    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = os.environ | ascii_alone | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITH_LETTERS, str(small.root)]
    subprocess.run(command, env=environment, check=True, timeout=300)

    assert executed(small, "01_good.log").read_text(encoding="utf-8").strip() == LETTERS
    shown = json.loads((small.root / "stage" / "notebooks" / "01_good.ipynb").read_bytes())
    assert LETTERS in str(shown["cells"][-1]["outputs"])


def test_a_chapter_runs_in_this_python_whatever_kernel_has_the_name(small, tmp_path, monkeypatch):
    """As where another environment installed its kernel for the user."""
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = ["/nowhere/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    specification = {"argv": argv, "display_name": "of another Python", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(specification), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))

    write_contents(small, ["01_good"])
    write_chapter(small, "01_good", ["import sys; print(sys.executable)"])
    (notebook,) = book.run("quick", book=small)
    assert sys.executable in str(json.loads(notebook.read_bytes())["cells"][-1]["outputs"])


# --- the real book


PROFILE_NAMES = sorted(path.stem for path in PROFILES.glob("*.yml"))


@pytest.mark.parametrize("profile", PROFILE_NAMES)
def test_profiles_fit_the_chapters(profile):
    book.check(profile)


@pytest.mark.parametrize("profile", PROFILE_NAMES)
def test_every_chapters_configurations_can_be_built_from_every_profile(profile):
    built = 0
    for path in book.chapters():
        names = set(book.parameters(path)) - {"profile"}
        chapter = settings(path.stem, profile, **dict.fromkeys(names))
        for method in METHODS.keys() & names:
            config = preset(getattr(chapter, method), **chapter.delta)
            assert config.method == method and config.data == chapter.data
            if "pretrain(" in path.read_text(encoding="utf-8"):
                dropped = {"epochs", "precision", "runs"} - names
                assert not dropped, f"{path.stem} drops what a profile says"
            built += 1
    assert built > 8


def test_every_chapter_has_its_parameters_checked():
    for path in book.chapters():
        names = set(book.parameters(path)) - {"profile"}
        assert names <= KINDS.keys(), path.stem
        cells = json.loads(path.read_bytes())["cells"]
        code = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        for name in names:
            assert f"{name}={name}" in code.partition("settings(")[2], f"{path.stem}: {name}"


@pytest.mark.parametrize("seconds", [0, 0.1])
def test_chapter_13_interrupts_the_same_step_on_fast_disks_and_slow_ones(
    seconds, monkeypatch, capsys
):
    flush = os.fsync

    def flush_slowly(file):
        time.sleep(seconds)
        flush(file)

    monkeypatch.setattr(os, "fsync", flush_slowly)
    notebook = json.loads((BOOK.source / "notebooks" / "17_survival.ipynb").read_bytes())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names = {}
    for cell in cells[:5]:  # to the interruption
        exec(cell, names)
    assert "pretrain(config" in cells[4]
    assert "stopped after step 10" in capsys.readouterr().out
    names["folder"].cleanup()


def test_plain_papermill_takes_parameters(tmp_path):
    out = tmp_path / "out.ipynb"
    command = [
        str(Path(sys.executable).with_name("papermill")),
        "book/notebooks/02_loss.ipynb",
        str(out),
        "--no-progress-bar",
    ]
    command += ["-p", "profile", "cpu", "-p", "temperature", "1.0"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=600).returncode == 0

    # what the cells say; papermill's own notes hold seconds, which may be any number
    said = [
        cell.get("outputs", []) for cell in json.loads(out.read_text(encoding="utf-8"))["cells"]
    ]
    assert "4.628" not in str(said) and "log(2.151" in str(said)  # exp(cos 40 degrees)


def without_empty(notebook: dict) -> dict:
    """Without the empty mapping that nbstripout leaves where it took all that Colab wrote."""
    if notebook["metadata"].get("colab") == {}:
        del notebook["metadata"]["colab"]
    return notebook


ON_A_GPU = {"accelerator": "GPU", "colab": {"gpuType": "T4"}}  # what Colab opens a notebook on


@pytest.mark.parametrize("path", book.chapters(), ids=lambda path: path.stem)
def test_a_chapter_that_trains_a_profiles_preset_opens_on_a_gpu_on_colab(path):
    """And nothing else of a run is in its metadata."""
    notebook = without_empty(json.loads(path.read_text(encoding="utf-8")))
    metadata = notebook["metadata"]
    del metadata["kernelspec"]
    code = "".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code")
    trains = "pretrain(" in code and METHODS.keys() & book.parameters(path).keys()
    assert metadata == (ON_A_GPU if trains else {})


WHAT_COLAB_WRITES = {
    "name": "03_simclr.ipynb",
    "provenance": [],
    "toc_visible": True,
    "include_colab_link": True,
    "machine_shape": "hm",
    "collapsed_sections": ["x"],
    "authorship_tag": "ABX9TyM",
}


def test_strip_takes_what_colab_writes_of_a_run_and_leaves_the_gpu(tmp_path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    options = shlex.split(re.search(r"^STRIP := (.+)", makefile, re.M).group(1))
    copies = {path: tmp_path / path.name for path in book.chapters()}
    for path, copy in copies.items():
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata.setdefault("colab", {}).update(WHAT_COLAB_WRITES)
        notebook.metadata["language_info"] = {"name": "python"}
        notebook.cells[0].metadata["colab"] = {"base_uri": "https://localhost:8080/"}
        notebook.cells[1].metadata["id"] = "abc"
        nbformat.write(notebook, copy)

    program = Path(sys.executable).with_name("nbstripout")
    subprocess.run([program, *options, *copies.values()], check=True, timeout=300)
    for path, copy in copies.items():
        stripped = without_empty(json.loads(copy.read_bytes()))
        assert stripped == json.loads(path.read_bytes()), path.name


@pytest.mark.parametrize("path", book.chapters(), ids=lambda path: path.stem)
def test_notebooks_are_committed_clean(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in code:
        assert not cell["outputs"] and not cell["execution_count"]
        if "figure" in cell["metadata"].get("mystnb", {}):
            assert cell["metadata"]["mystnb"]["image"]["alt"]

    parameters = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert len(parameters) == 1
    assert "".join(parameters[0]["source"]).startswith('profile = "auto"')
    config = yaml.safe_load((BOOK.source / "_config.yml").read_text(encoding="utf-8"))
    assert config["repository"]["url"] in "".join(code[0]["source"])  # the clone on Colab


def test_a_profiles_slice_is_one_of_its_own_data_alone():
    given = dict.fromkeys(("data", "images", "simclr"))
    assert filled_in(load_profile("quick"), "03_simclr", "quick", given).images == 1000
    for data, images in (("tinted-digits", 1000), ("imagenette96", None)):
        chapter = filled_in(load_profile("quick"), "03_simclr", "quick", given | {"data": data})
        assert (chapter.data, chapter.images) == (data, images)
    asked = given | {"data": "imagenette96", "images": 500}
    assert filled_in(load_profile("quick"), "03_simclr", "quick", asked).images == 500


def test_the_documented_command_makes_the_very_run_that_a_chapter_takes():
    text = (ROOT / "book" / "rerun.md").read_text(encoding="utf-8")
    (block,) = [
        block for block in re.findall("```bash\n(.+?)```", text, re.S) if "-p weights" in block
    ]
    train, _, chapter_run = block.splitlines()
    _, _, _, _, name, *options = train.split()
    assert options[0] == "--set" and len(options) == 2
    made = preset(name, **parse([options[1]]))

    profile = re.search("-p profile ([a-z]+)", chapter_run)[1]
    names = set(book.parameters(BOOK.source / "notebooks" / "03_simclr.ipynb")) - {"profile"}
    chapter = settings("03_simclr", profile, **dict.fromkeys(names))
    assert made == preset(chapter.simclr, **chapter.delta)
