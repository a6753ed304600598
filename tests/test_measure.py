"""How we measure: the page's two drawings, and what it says in words of the code."""

import re
from xml.etree import ElementTree

import pandas as pd
import pytest

from lib import evaluation
from lib.evidence import statistics, verdicts
from lib.probes import few_labels
from tools import measure
from tools.book import BOOK
from tools.pictures import STATIC

SVG = "{http://www.w3.org/2000/svg}"
DRAWINGS = {"labels.svg": measure.labels, "noise.svg": measure.noise}
PAGE = " ".join((BOOK.source / "measure.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_those_that_the_script_draws(name):
    assert (STATIC / name).read_text(encoding="utf-8") == DRAWINGS[name]()
    assert f"{{figure}} _static/{name}" in PAGE


@pytest.mark.parametrize("name", DRAWINGS)
def test_nothing_leaves_a_drawing_and_all_of_it_is_said_in_words_too(name):
    root = ElementTree.fromstring(DRAWINGS[name]())
    width, height = float(root.get("width")), float(root.get("height"))
    for box in root.iter(f"{SVG}rect"):
        x, y, wide, high = (float(box.get(key)) for key in ("x", "y", "width", "height"))
        assert 0 < x + 1 and x + wide < width and 0 < y and y + high < height
    shown = {text.text for text in root.iter(f"{SVG}text")} - measure.FILLS.keys()
    assert len(shown) >= 8
    for words in shown:
        assert words in root.get("aria-label"), words


def test_no_label_of_test_is_seen_before_the_last_step():
    *before, (_, last) = measure.STEPS
    assert last == ("", "", "", "labels")
    assert not any(test for _, (*_, test) in before)
    choosing = [seen for _, seen in before if seen[2]]
    assert choosing == [("", "", "labels", ""), ("", "labels", "labels", "")]


def test_what_the_page_says_of_the_readers_is_so():
    k, temperature = evaluation.knn.__defaults__
    assert f"The {k} training images with the highest cosine" in PAGE
    assert rf"$\exp(\cos / {temperature:g})$" in PAGE
    assert (
        len(evaluation.L2_PATH) == 13
        and "one of thirteen strengths from 1 down to $10^{-12}$" in PAGE
    )
    assert (evaluation.L2_PATH[0], evaluation.L2_PATH[-1]) == (1, pytest.approx(1e-12))
    assert few_labels.PER_CLASS[:3] == (10, 20, 50) and "means 10, 20, 50, ... labels" in PAGE
    assert few_labels.SUBSETS == evaluation.FOLDS == 5
    assert "five times at random" in PAGE and "five-fold cross-validation" in PAGE


def test_the_worked_interval_is_what_the_package_makes_of_these_runs():
    correct = [5_000, 5_050, 5_100]
    runs = pd.DataFrame({"correct": correct, "n": 10_000}).assign(
        accuracy=[count / 10_000 for count in correct]
    )
    assert statistics.over_runs(runs).percent().replace("\xa0", " ") == "50.5 [48.9, 52.1]"
    assert PAGE.count("50.5 [48.9, 52.1] %") == 2


def test_the_marks_are_those_of_the_code():
    marks = re.findall(r"\| ([●◐◑○]) \|", PAGE)
    assert marks == [verdicts.PUBLISHED, verdicts.YES, verdicts.NOT, verdicts.OPEN]
