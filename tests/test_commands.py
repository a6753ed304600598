"""Commands that are printed, by the command line, its errors, the pages and the chapters, run."""

import ast
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

import lib
from lib import ROOT, InputError
from lib.__main__ import main
from lib.commands import app
from lib.commands.runs import parse
from lib.data import load
from lib.evidence import claims, experiments, plan
from lib.presets import preset
from lib.runs import pretrain, records
from tests.conftest import arrays
from tests.test_surroundings import features, photos

AWKWARD = "a folder, with 'quotes', $HOME, $(exit 3) and ü"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "weights/registry.yml")),
    *sorted((ROOT / "book").glob("*.md")),
    ROOT / "book" / "experiments.yml",
    *sorted((ROOT / "book" / "notebooks").glob("*.ipynb")),
    *sorted((ROOT / "lib").rglob("*.py")),
]
# who is to fill in what
PLACEHOLDERS = {"NAME", "COMMAND", "..."}
A_READERS_OWN = "cold-digits"  # made on the page "Rerun it"; tests/test_own_question.py runs it
# as bash reads a command: the words after python
WORDS = 'python() {{ printf "%s\\0" "$@"; }}; contrastive() {{ python -m lib "$@"; }}; {}'


def text(path: Path) -> str:
    """A page, of a notebook its sources; a command that goes on in the next line made one line."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(content)["cells"]
        content = "\n".join("".join(cell["source"]) for cell in cells)
    inline = re.compile(r"(?<!`)`[^`]+`(?!`)")
    content = inline.sub(lambda code: code[0].replace("\n", " "), content)
    return re.sub(r"\\\n\s*", "", content)


def stated() -> list[tuple[str, list[str]]]:
    """Every command of the pages, with its page."""
    commands = []
    for path in PAGES:
        for found in re.findall(r"python -m lib +([a-z][^`\"|#&\n]*)", text(path)):
            line = found.partition("  ")[0].partition("[")[0].strip(" );.,")
            words = shlex.split(line)
            if not PLACEHOLDERS & set(words[:2]) and "{" not in line:
                commands.append((path.name, words))
    return commands


COMMANDS = get_command(app).commands


def test_every_command_of_the_pages_is_one():
    """It parses, and what it names is there."""
    known = {entry.name for entry in plan.read()} | {A_READERS_OWN}
    known |= {experiment.name for experiment in experiments.read()}
    asked = {claim["id"] for claim in claims.read() if "ours" in claim} | {A_READERS_OWN}

    seen = set()
    for page, (name, *words) in stated():
        assert name in COMMANDS, (page, name)
        values = COMMANDS[name].make_context(name, words, resilient_parsing=not words).params
        seen.add((name, page))
        if not words:
            continue
        if name == "pretrain" and values["preset"] != "list":
            preset(values["preset"], **parse(values["set"]))
        if name == "experiments":
            assert set(values["only"] or ()) <= known, (page, values)
        if name == "replicate":
            assert values["claim"] in asked, (page, values)
    assert {name for name, page in seen if page == "rerun.md"} >= COMMANDS.keys() - {"book", "tune"}
    assert len(seen) > 30


def imported(code: str) -> dict[str, object]:
    """What a piece of code imports, by its names there."""
    names: dict[str, object] = {}
    for line in ast.walk(ast.parse(code)):
        if isinstance(line, ast.Import | ast.ImportFrom):
            exec(ast.unparse(line), names)
    return names


def test_code_that_pages_show_finds_what_it_names():
    """Solutions of exercises among it: what they import is there, and so are its attributes."""
    seen = 0
    for path in PAGES:
        if path.suffix not in (".md", ".ipynb"):
            continue
        names: dict[str, object] = {}
        if path.suffix == ".ipynb":
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"][1:]:
                if cell["cell_type"] == "code":
                    names |= imported("".join(cell["source"]))
        for block in re.findall(r"```python\n(.*?)```", text(path), re.DOTALL):
            names |= imported(block)
            for use in ast.walk(ast.parse(block)):
                if isinstance(use, ast.Attribute) and isinstance(use.value, ast.Name):
                    if use.value.id in names:
                        assert hasattr(names[use.value.id], use.attr), f"{path}: {use.attr}"
                        seen += 1
    assert seen > 20


def test_the_package_puts_commands_together_in_one_place():
    for path in sorted((ROOT / "lib").rglob("*.py")):
        assert not re.search(r"python -m lib [a-z][^\"\n]*\{", path.read_text(encoding="utf-8")), (
            path
        )


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs a line as bash reads it; what is printed, which names the next one."""
    monkeypatch.setattr(sys, "argv", ["lib"])

    def run_line(line: str, *more: str, status: int = 0) -> str:
        shell = ["bash", "-c", WORDS.format(line)]
        done = subprocess.run(shell, capture_output=True, text=True, timeout=60, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        module, name, *words = done.stdout.split("\0")[:-1]
        assert (module, name) == ("-m", "lib")
        assert main([*words, *more]) == status, (line, capsys.readouterr())
        return "".join(capsys.readouterr())

    return run_line


def following(label: str, said: str) -> str:
    """What stands after the label, to the end of its line."""
    return said.partition(label)[2].partition("\n")[0]


def test_each_step_prints_the_next_in_a_folder_of_an_awkward_name(run, tmp_path, monkeypatch):
    place = tmp_path / AWKWARD
    photos(place / "photos", "blue", "red")
    monkeypatch.chdir(place)

    said = run(f"python -m lib import photos --size 8 --out {shlex.quote(AWKWARD)}.npz")
    small = ["--epochs", "0", "--device", "cpu", "--runs", str(place / "runs")]
    said = run(following("a first try: ", said), *small)
    (folder,) = (place / "runs").iterdir()
    said = run(following("next: ", said))
    assert "n = 4" in said

    where = f"{shlex.quote(str(folder))} --data-root ."
    said = run(f"python -m lib export {where} --out {shlex.quote(AWKWARD)}")
    weights = following("use it as ", said).partition(", or by a name")[0]
    run(f"python -m lib embed photos {weights} --out h.npz --data-root .")
    run("python -m lib predict h.npz --train h.npz")


def test_what_an_error_advises_runs(run, tmp_path, monkeypatch):
    place = tmp_path / AWKWARD
    place.mkdir()
    np.savez(place / "7.npz", **arrays())
    monkeypatch.chdir(place)
    monkeypatch.setenv("DATA_ROOT", str(place))
    monkeypatch.setattr(records.publish, "__defaults__", (place / "results",))
    monkeypatch.setattr(records.load_all, "__defaults__", (place / "results",))

    # another run than the weights are of; a data set named as a number
    pixels = {"epochs": 0, "encoder": "pixels", "head": "none"}
    config = preset("simclr-digits", data="7", images=100, **pixels)
    other = pretrain(replace(config, seed=3), load("7"), place / "others", "cpu")
    with pytest.raises(InputError) as error:
        pretrain(replace(config, epochs=1, encoder="slim"), load("7"), instead=[other])
    words = shlex.split(following("make such weights: ", str(error.value)))
    values = COMMANDS["pretrain"].make_context("pretrain", words[4:]).params
    made = preset(values["preset"], data=values["data"], **parse(values["set"]))
    assert made == replace(config, epochs=1, encoder="slim")

    # not evaluated yet
    said = run("python -m lib records")
    run(following("see: ", said))
    publish = f"python -m lib publish {shlex.quote(str(other.folder / 'record.json'))}"
    said = run(publish, status=2)
    run(following("run: ", said))
    run(publish)

    features("h.npz", "a")
    with np.load("h.npz") as whole:
        np.savez("none.npz", **dict(whole) | {"labels": np.zeros(3)})
    said = run("python -m lib neighbours none.npz a/0.png", status=2)
    run(following("see: ", said))
    for wrong in ("pretrain simclr-digits --epoch 3", "pretrian x"):
        said = run(f"python -m lib {wrong}", status=2)
        run(re.search(r".*\((.*) tells more\)", said)[1])


def test_the_console_script_names_itself(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/contrastive"])
    assert lib.as_command("probe", "a b") == "contrastive probe 'a b'"
    assert main(["pretrain"]) == 2
    assert "(contrastive pretrain --help tells more)" in capsys.readouterr().err
