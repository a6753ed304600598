"""How many seeds: interval, power and the least number, beside the package's and scipy's."""

import math

import numpy as np
import pytest
from scipy import stats

from lib.evidence import statistics
from tests.elements import opened, written
from tools import chromium

if not chromium.found():
    pytest.skip("no Chromium found", allow_module_level=True)

ID = "could-so-few-runs-show-one-point"
ACCURACIES = [0.61, 0.602, 0.6174]  # of one method
PAIRS = [-0.0949, -0.0926, -0.0968]  # differences between runs of the same seed


def recorded(label, values, paired):
    spread, low, high = (100 * x for x in statistics.spread_interval(values))
    about = {"label": label, "runs": len(values), "paired": paired}
    return about | {"spread": spread, "low": low, "high": high}


RECORDED = [
    recorded("one method's runs", ACCURACIES, False),
    recorded("pairs of runs", PAIRS, True),
]
DATA = written(**{"recorded-spreads": RECORDED})


@pytest.fixture
def page(tmp_path):
    with opened(ID, tmp_path, data=DATA) as opened_page:
        yield opened_page


def ask(page, spread=None, difference=None, seeds=None, paired=None):
    if spread is not None:
        page.get_by_label("standard deviation").fill(str(spread))
    if difference is not None:
        page.get_by_label("difference to be seen").fill(str(difference))
    if paired is not None:
        page.get_by_label("paired by their seed" if paired else "of seeds of their own").check()
    if seeds is not None:
        slider = page.get_by_role("slider", name="seeds")
        slider.press("Home")
        for _ in range(seeds - 2):
            slider.press("ArrowRight")


def said(page):
    """The half-width, the power and the least number of seeds."""
    return [float(e.get_attribute("value")) for e in page.locator("td data").all()]


def half_width(spread, seeds, paired):
    """As the package has it, of made-up values with that mean and standard deviation."""
    if paired:
        values = np.random.default_rng(0).normal(size=seeds)
        values = spread * (values - values.mean()) / values.std(ddof=1)
        _, low, high = statistics.over_seeds(values)
        return (high - low) / 2
    return stats.t.ppf(0.975, 2 * seeds - 2) * spread * math.sqrt(2 / seeds)


def power(effect, seeds, paired):
    freedom, variance = (seeds - 1, 1 / seeds) if paired else (2 * seeds - 2, 2 / seeds)
    shift = effect / math.sqrt(variance)
    edge = stats.t.ppf(0.975, freedom)
    return stats.nct.sf(edge, freedom, shift) + stats.nct.cdf(-edge, freedom, shift)


CASES = [  # spread, difference, seeds
    (1, 1, 2),
    (1, 1, 5),
    (0.5, 1, 3),
    (2.5, 1, 12),
    (0.08, 0.1, 8),
    (3, 0.2, 40),
    (0.3, 2, 2),
]


@pytest.mark.parametrize("paired", [True, False])
def test_interval_power_and_least_number_are_the_packages(page, paired):
    for spread, difference, seeds in CASES:
        ask(page, spread, difference, seeds, paired)
        width, seen, least = said(page)
        assert width == pytest.approx(half_width(spread, seeds, paired), rel=1e-9)
        assert seen == pytest.approx(power(difference / spread, seeds, paired), abs=1e-7)
        assert least == statistics.seeds_needed(spread, difference, paired)
        text = page.locator(".play-box table").inner_text()
        assert f"± {width:.2f} points" in text and f"{100 * seen:.1f} %" in text


def test_a_hopeless_wish_is_told_so(page):
    ask(page, 50, 0.1)
    assert "more than 10,000" in page.locator("table").inner_text()
    assert said(page)[2] == math.inf


def test_the_records_spreads_can_be_chosen_and_how_little_is_known_of_them(page):
    chooser = page.get_by_label("the spread of")
    for at, record in enumerate(RECORDED):
        chooser.select_option(record["label"])
        numbers = [
            statistics.seeds_needed(record[name] / 100, 0.01, record["paired"])
            for name in ("spread", "low", "high")
        ]
        assert said(page)[2] == numbers[0]
        bounds = [float(e.get_attribute("value")) for e in page.locator("output data").all()]
        assert bounds == numbers[1:]
        kind = "paired by their seed" if record["paired"] else "of seeds of their own"
        assert page.get_by_label(kind).is_checked()
        assert page.get_by_label("standard deviation").input_value() == f"{record['spread']:.2f}"
        assert chooser.input_value() == str(at)

    ask(page, spread=1)
    assert chooser.input_value() == "" and page.locator("output data").count() == 0


def test_the_dot_on_the_curve_is_at_the_power(page):
    ask(page, 1, 1, 9, True)
    _, seen, _ = said(page)
    zero, one = (
        page.locator(".seeds line").nth(place).evaluate("e => Number(e.getAttribute('y1'))")
        for place in (0, 3)
    )
    dot = page.locator(".seeds .chosen").evaluate("e => Number(e.getAttribute('cy'))")
    assert (zero - dot) / (zero - one) == pytest.approx(seen, abs=1e-9)


def test_without_records_it_computes_too(tmp_path):
    with opened(ID, tmp_path, width=390, theme="dark") as page:
        ask(page, 1, 1, 5, True)
        assert said(page)[2] == statistics.seeds_needed(1, 1, True)
        assert page.get_by_label("the spread of").count() == 0
