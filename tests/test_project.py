"""The files around the package agree with each other."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import yaml
from setuptools import find_packages

from lib import ROOT, __version__

CHECKED = ("lib", "book", "tests", "tools", "benchmarks", "stress")
CORE = (
    "data.dataset",
    "augmentations",
    "encoders",
    "losses",
    "methods",
    "config",
    "presets",
    "training",
    "evaluation",
)
UNDER_THE_CORE = ("compute", "hardware", "progress", "validation", "distributed.group")
# Each knows itself and those before it
FLOORS = (
    (
        "compute",
        "hardware",
        "files",
        "parsing",
        "validation",
        "distributed.group",
        "interruptions",
        "progress",
    ),
    CORE,
    ("data", "geometry"),
    ("probes",),
    ("distributed",),
    ("runs",),
    ("evidence",),
    ("weights", "figures", "settings", "exercises"),
    ("commands",),
    ("__main__",),
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements):
    return {re.split(r"[<>=\[ ]", line)[0].lower() for line in requirements}


def test_environment_yml_hands_over_to_pip():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    assert names(conda) == {"python", "pip"}
    constraints, package = pip["pip"]
    assert constraints == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", package).group(1).split(",")
    assert set(extras) <= PROJECT["optional-dependencies"].keys()


def test_every_direct_dependency_is_pinned_exactly_and_within_its_range():
    from packaging.requirements import Requirement

    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and line[0] != "#"
    ]
    pinned = {name.lower(): version for name, version in (line.split("==") for line in lines)}
    optional = PROJECT["optional-dependencies"]
    extras = (
        text
        for extra in ("book", "test", "weights", "onnx", "huggingface")
        for text in optional[extra]
    )
    for text in [*PROJECT["dependencies"], *extras]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), text


def test_ranges_take_what_colab_has():
    """Python 3.13, torch 2.11 and the rest of Colab's list of 2026-08-19."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    colab = {
        "torch": "2.11.0",
        "torchvision": "0.26.0",
        "numpy": "2.1.3",
        "pandas": "2.2.3",
        "matplotlib": "3.10.0",
        "seaborn": "0.13.2",
        "ipykernel": "6.17.1",
        "pydantic": "2.13.4",
        "typer": "0.27.1",
    }
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["book"]:
        requirement = Requirement(text)
        version = colab.pop(requirement.name, None)
        if version is not None:
            assert requirement.specifier.contains(version), text
    assert not colab
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.13.15")


TOOLS = {
    "mypy": ["--no-error-summary"],
    "codespell_lib": [*CHECKED, *map(str, ROOT.glob("*.md"))],
    "ruff format": ["--no-cache", "--check", *CHECKED],
    "ruff check": ["--no-cache", *CHECKED],
}


@pytest.mark.parametrize("tool", TOOLS)
def test_no_tool_finds_fault_with_the_code(tool):
    checked = subprocess.run(
        [sys.executable, "-m", *tool.split(), *TOOLS[tool]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        encoding="utf-8",
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def imported(text, package):
    """Everything that a module's text imports, at its top or within functions, by its whole name.

    package: the one that the module is in, or is.
    """
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = []
            if node.level:  # one dot is the package itself
                parts = package.split(".")
                start = parts[: len(parts) + 1 - node.level]
            if node.module:
                start = [*start, node.module]
            names.update(".".join([*start, alias.name]) for alias in node.names)
    return names


@pytest.mark.parametrize(
    "text, names",
    [
        ("from lib.data import dataset", {"lib.data.dataset"}),
        ("from lib import InputError, files", {"lib.InputError", "lib.files"}),
        ("import lib.runs.session", {"lib.runs.session"}),
        ("import lib.files as f, torch", {"lib.files", "torch"}),
        ("def late():\n    import lib.runs", {"lib.runs"}),
        ("from . import seen", {"lib.probes.seen"}),
        ("from .seen import Seen", {"lib.probes.seen.Seen"}),
        ("from .. import files", {"lib.files"}),
        ("from ..data.dataset import Split", {"lib.data.dataset.Split"}),
    ],
)
def test_an_import_is_seen_in_whatever_way_it_is_written(text, names):
    assert imported(text, "lib.probes") == names


def imports():
    """Which modules of the package each module imports."""
    packages, texts = {}, {}
    for path in (ROOT / "lib").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = name.removesuffix(".__init__")
        packages[module] = name.rpartition(".")[0]
        texts[module] = path.read_text(encoding="utf-8")

    graph = {}
    for module, text in texts.items():
        graph[module] = set()
        for name in imported(text, packages[module]):
            while name and name not in texts:
                name = name.rpartition(".")[0]
            if name:
                graph[module].add(name)
    assert len(graph) > 50
    assert "lib.losses" in graph["lib.methods"]
    return graph


def test_no_modules_import_each_other_in_a_circle():
    graph = imports()
    done, under_way = set(), []

    def visit(name):
        assert name not in under_way, " -> ".join([*under_way[under_way.index(name) :], name])
        if name in done:
            return
        under_way.append(name)
        for other in sorted(graph[name] - {name, "lib"}):
            visit(other)
        under_way.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)


def is_within(name, places):
    return any(name == f"lib.{place}" or name.startswith(f"lib.{place}.") for place in places)


def test_the_core_knows_itself_and_what_is_under_it():
    graph = imports()
    core = [name for name in graph if is_within(name, CORE)]
    assert len(core) >= len(CORE)
    for name in core:
        foreign = [x for x in graph[name] - {"lib"} if not is_within(x, CORE + UNDER_THE_CORE)]
        assert not foreign, f"{name} imports {foreign}"


def test_a_room_knows_those_before_it():
    def floor(name):
        for number, places in enumerate(FLOORS):
            if is_within(name, places):
                return number
        raise AssertionError(f"{name} is on no floor")

    for name, others in imports().items():
        for other in others - {"lib"} if name != "lib" else ():
            assert floor(other) <= floor(name), f"{name} imports {other}"


def is_left_to_the_locale(call):
    """Whether a call reads or writes text in whatever encoding the system's locale has."""
    named = {keyword.arg for keyword in call.keywords}
    if "encoding" in named:
        return False
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text"):
        return True
    if isinstance(call.func, ast.Name) and call.func.id == "open":
        modes = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
        return not modes or "b" not in ast.literal_eval(modes[0])
    return bool(named & {"text", "universal_newlines"})  # of subprocess


@pytest.mark.parametrize(
    "text, expected",
    [
        ("path.read_text()", True),
        ("path.write_text(x)", True),
        ("open(path)", True),
        ("open(path, mode='a')", True),
        ("subprocess.run(command, text=True)", True),
        ("path.read_text(encoding='utf-8')", False),
        ("open(path, 'rb')", False),
        ("open(path, 'w', encoding='utf-8')", False),
        ("archive.open(name)", False),
        ("subprocess.run(command, encoding='utf-8')", False),
    ],
)
def test_what_is_left_to_the_locale_is_seen(text, expected):
    assert is_left_to_the_locale(ast.parse(text).body[0].value) == expected


def test_no_file_or_program_is_read_in_the_locales_encoding():
    """Names, class names and figures in pages hold letters that not every locale's encoding has."""
    paths = []
    for folder in ("lib", "tools", "benchmarks", "stress", "tests", "book/_ext"):
        paths += (ROOT / folder).rglob("*.py")

    seen = 0
    for path in paths:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call):
                seen += 1
                assert not is_left_to_the_locale(node), f"{path}:{node.lineno}"
    assert seen > 10_000


def test_every_room_says_what_it_is_for_and_is_in_the_wheel():
    find = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]["packages"]
    found = find_packages(ROOT, include=find["find"]["include"])
    rooms = {path.parent for path in (ROOT / "lib").rglob("*.py")}
    assert {".".join(room.relative_to(ROOT).parts) for room in rooms} == set(found)
    for room in rooms:
        described = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
        assert len(described.split()) > 20, room


def test_one_version_and_one_address():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["version"] == __version__ == str(citation["version"])
    config = yaml.safe_load((ROOT / "book" / "_config.yml").read_text(encoding="utf-8"))
    assert (
        config["repository"]["url"] == PROJECT["urls"]["Repository"] == citation["repository-code"]
    )


def test_workflows_call_make_and_pin_every_action_to_a_major_version():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, re.M))
    workflows = {
        path.name: yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in (ROOT / ".github/workflows").glob("*.yml")
    }
    assert workflows.keys() == {"test.yml", "book.yml", "lock.yml"}
    for name, workflow in workflows.items():
        assert workflow["permissions"] == {"contents": "read"}, name
        for job in workflow["jobs"].values():
            assert job["timeout-minutes"] <= 30, name
            for step in job["steps"]:
                if "uses" in step:
                    assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]), step
                else:
                    make, assignment, target = step["run"].split()
                    assert (
                        make == "make"
                        and assignment.split("=")[0] in variables
                        and target in targets
                    ), step
                    assert f"# CPU-only torch: make {assignment} " in makefile, step


def test_every_make_target_is_told_by_make_help_and_the_pages_name_no_other():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.+)", makefile, re.M).group(1).split())
    told = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        encoding="utf-8",
    ).stdout
    assert {line.split()[0] for line in told.splitlines()} == targets
    for page in ("README.md", "CONTRIBUTING.md", "book/intro.md", "book/rerun.md"):
        named = re.findall(
            r"(?:^|`)make (?:[A-Z_]+=\S+ )*([a-z]+)",
            (ROOT / page).read_text(encoding="utf-8"),
            re.M,
        )
        assert named and set(named) <= targets, page


def test_make_asks_which_chapter():
    def make(*words):
        command = ["make", "-o", ".venv/done", *words]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=60, encoding="utf-8"
        )

    for target in ("chapter", "watch"):
        asked = make(target)
        assert asked.returncode and f"make {target} N=03" in asked.stdout
        plan = make("-n", target, "N=07").stdout
        assert "-m lib book --profile quick --only 07" in plan


def test_pre_commit_uses_the_pinned_versions_and_the_makefiles_options():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))[
        "repos"
    ]
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = {"ruff-pre-commit": "ruff", "nbstripout": "nbstripout", "codespell": "codespell"}
    *repositories, own = repositories
    assert own["repo"] == "local" and own["hooks"][0]["entry"].endswith("-m mypy")
    for repository in repositories:
        name = names.pop(repository["repo"].rsplit("/", 1)[1])
        assert f"{name}=={repository['rev'].removeprefix('v')}" in pinned
    assert not names
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    assert repositories[1]["hooks"][0]["args"] == shlex.split(
        re.search(r"^STRIP := (.+)", makefile, re.M).group(1)
    )


def test_binder_installs_the_package_in_the_pinned_versions():
    """As Binder calls pip: in the checkout, where -e . points; -c starts from the file's own
    folder."""
    from packaging.specifiers import SpecifierSet

    binder = ROOT / "binder"
    lines = [
        line
        for line in (binder / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if line[0] != "#"
    ]
    options = dict(line.split() for line in lines)
    assert options.keys() == {"--extra-index-url", "-c", "-e"} and options["-e"] == "."
    assert (binder / options["-c"]).resolve() == ROOT / "constraints.txt"
    assert f"TORCH_INDEX={options['--extra-index-url']} " in (ROOT / "Makefile").read_text(
        encoding="utf-8"
    )
    version = (binder / "runtime.txt").read_text(encoding="utf-8").strip().removeprefix("python-")
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    assert f"(Python {version}, Linux)" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_training_needs_neither_papermill_nor_jupyter():
    code = (
        "import sys; import lib.runs, lib.weights, lib.data.pictures, lib.__main__\n"
        "unwanted = {'papermill', 'nbformat', 'jupyter_client', 'matplotlib', 'pooch', 'onnx', "
        "'datasets'}\n"
        "assert not unwanted & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)
