"""Times that the pages promise of a GPU follow from one function."""

import json
import re
from functools import cache
from unittest.mock import MagicMock

import pytest

from lib import ROOT, data
from lib.compute.cost import flops
from lib.config import Config
from lib.data.downloads import DOWNLOADS
from lib.encoders import Model
from lib.evidence import estimates
from lib.evidence.ledger import Ledger
from lib.presets import preset
from lib.runs import RUNS, records
from lib.settings import load_profile
from tools import times
from tools.book import BOOK

NOTEBOOKS = BOOK.source / "notebooks"


def on_a_line(text: str) -> str:
    return " ".join(text.split())


@cache
def chapter_text(name: str) -> str:
    """The prose of a chapter."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_bytes())["cells"]
    return on_a_line(" ".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown"))


@cache
def words(profile: str, device: str, chapter: str | None = None) -> str:
    """How long a profile's chapters train, or one of them alone."""
    by_chapter = times.of_profile(profile)
    configs = by_chapter[chapter] if chapter else sum(by_chapter.values(), [])
    return times.in_words(times.minutes(configs, device))


CHAPTERS = sorted(times.of_profile("colab"))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_promises_its_time_on_a_t4(chapter):
    said = re.findall(r"with `colab` (.{,30}?) on a T4 by estimate", chapter_text(chapter))
    assert said == [f"about {words('colab', 'T4', chapter)}"]


def test_the_profiles_and_the_pages_promise_the_time_of_all_chapters():
    colab = f"about {words('colab', 'T4')} of training"
    paper = f"about {words('paper', 'H100')} of training"
    rerun = on_a_line((BOOK.source / "rerun.md").read_text(encoding="utf-8"))
    assert f"one T4 or better, {colab} by estimate" in load_profile("colab").about
    assert f"{paper} on an H100 by estimate" in load_profile("paper").about
    assert f"| a T4, {colab}; an estimate" in rerun
    assert f"| an H100, {paper}; an estimate" in rerun
    full = times.in_words(times.minutes(times.of_experiments("full"), "H100"))
    intro = on_a_line((BOOK.source / "intro.md").read_text(encoding="utf-8"))
    for page in (rerun, intro):
        assert f"the published sizes, about {full} of an H100" in page


def test_no_other_page_tells_a_time_on_these_gpus():
    """Which nobody would compute anew."""
    pages = [ROOT / "README.md", *BOOK.source.glob("*.md"), *BOOK.source.glob("profiles/*.yml")]
    texts = {page.stem: on_a_line(page.read_text(encoding="utf-8")) for page in pages}
    texts |= {path.stem: chapter_text(path.stem) for path in NOTEBOOKS.glob("*.ipynb")}
    timed = r"(?:hours?|minutes?|days?)\b[^.|;]{,30}\b(?:T4|H100)|\b(?:T4|H100),[^.|;]{,30}hours?"
    telling = {name: len(re.findall(timed, text)) for name, text in texts.items()}
    expected = dict.fromkeys(CHAPTERS, 1) | {"rerun": 3, "intro": 1, "colab": 0, "paper": 1}
    for name, count in telling.items():
        assert count <= expected.get(name, 0), name


def named(configs) -> list[str]:
    """The runs in any order, without those that train nothing."""
    return sorted({str(config) for config in configs if config.epochs})


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_runs_of_a_chapter_are_those_that_its_cells_ask_for(chapter, monkeypatch):
    """Its settings, and the cells where it trains, are executed; nothing is trained."""
    asked = []

    def pretrain(config, dataset, folder=RUNS, *_, **__):
        if folder == RUNS:  # not a trial in a temporary folder
            asked.append(config)
        return MagicMock(config=config)

    cells = json.loads((NOTEBOOKS / f"{chapter}.ipynb").read_bytes())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    parameters, begins = code[1:3]
    names: dict = {}
    exec(parameters, names)
    names["profile"] = "quick"
    if "seeds" in names:
        names["seeds"] = 2
    exec(begins, names)
    names["pretrain"] = pretrain
    trains = [place for place, source in enumerate(code) if "pretrain(" in source]
    for source in code[3 : trains[-1] + 1]:
        if "replace(" in source or "pretrain(" in source:
            try:
                exec(source, names)
            except (TypeError, ValueError, KeyError, NameError, AttributeError):
                assert "pretrain(" in source or "trained" in source  # what came out is pretended
    assert named(asked) == named(times.runs(chapter, names["chapter"]))


def test_minutes_are_arithmetic_over_a_share_of_the_peak():
    """The runs that the shares are from take what they took.

    100 epochs on an A100, twenty minutes; on an H100 what its record says.
    """
    config = preset("simclr-cifar10-r18", epochs=100, pool="train+val", drop_last=False)
    assert estimates.minutes(config, "NVIDIA A100-SXM4-40GB") == pytest.approx(20, rel=0.01)
    slower = estimates.minutes(config, "Tesla T4")
    assert slower == pytest.approx(20 * 312 / 65, rel=0.01)

    recorded = records.read(records.RESULTS / "supcon-cifar10-r18-e100-s0-2e25954a3b.json")
    minutes = estimates.minutes(Config(**recorded["config"]), recorded["device"]["name"])
    assert minutes == pytest.approx(recorded["seconds"] / 60, rel=0.05)

    by_hand = 100 * 50_000 * 2 * flops(Model("resnet18", "cifar", "mlp", 128), 32)
    assert slower == pytest.approx(by_hand / (0.089 * 65e12) / 60)


def test_the_plan_estimates_what_no_record_has_measured_on_a_gpu(tmp_path):
    ledger = Ledger(tmp_path, tmp_path, tmp_path, "cpu")
    config = preset("simclr-cifar10-r18")
    assert ledger.minutes(config) is None
    ledger.device = ledger.device | {"type": "cuda", "name": "NVIDIA H100 80GB HBM3"}
    assert ledger.minutes(config) == estimates.minutes(config, "NVIDIA H100 80GB HBM3") > 1


@pytest.mark.parametrize("device", ["AMD EPYC", "NVIDIA GeForce RTX 4090", "Quadro T400"])
def test_of_another_device_nothing_is_told(device):
    assert estimates.minutes(preset("simclr-cifar10-r18"), device) is None


@pytest.mark.parametrize(
    "name, changes, pool",
    [
        ("simclr-cifar10-r18", {"pool": "train+val"}, 50_000),
        ("simclr-cifar10-r18", {"pool": "train"}, 45_000),
        ("simclr-cifar10-slim", {}, 9_000),
        ("simclr-stl10", {}, 100_000),
        ("ce-stl10", {}, 5_000),
        ("simclr-cifar10-r18", {"pool": "unlabeled"}, 50_000),
        ("simclr-cifar10-r18", {"data": "mine"}, None),
    ],
)
def test_how_many_images_a_download_trains_on(name, changes, pool):
    assert estimates.official_pool(preset(name, **changes)) == pool


def test_a_downloads_count_is_that_of_its_images():
    digits = data.load("digits")
    assert len(digits.train) + len(digits.val) == DOWNLOADS["digits"].labelled


@pytest.mark.parametrize(
    "minutes, said",
    [
        (0.3, "5 minutes"),
        (23, "25 minutes"),
        (99, "100 minutes"),
        (112, "2 hours"),
        (251, "4 hours"),
        (265, "4.5 hours"),
        (754, "13 hours"),
    ],
)
def test_minutes_in_words(minutes, said):
    assert times.in_words(minutes) == said
