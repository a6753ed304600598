"""What was held equal: bars and differences are the records', and what was not run is no choice."""

import math

import pytest

from lib.evidence import experiments, statistics, tables
from tests.elements import opened, written
from tools import chromium

if not chromium.found():
    pytest.skip("no Chromium found", allow_module_level=True)

ID, DATA = "supcon-differences", "recorded-comparisons"
ON_H = {"features": "h", "probe": "linear"}
SUPCON = [360.0, 700.0, 4.0]  # thousands of views, steps, augmentations
RUNS = "9,000 images"


def comparison(runs, held, ce, values):
    value, *ends = statistics.over_seeds(values)
    low, high = (None if math.isnan(end) else end for end in ends)
    difference = {"value": value, "low": low, "high": high}
    about = {"runs": runs, "held": held, "supcon": SUPCON, "ce": ce, "pairs": len(values)}
    return about | {"difference": difference}


@pytest.fixture(scope="module")
def small():
    """Two of the chapter's comparisons, computed from the records anew."""
    names = ("supcon-slice", "ce-slice")
    table = tables.table([record for name in names for record in experiments.published(name)])
    ours = tables.matching(table, ON_H | {"method": "supcon"})

    def minus(**reading):
        theirs = tables.matching(table, ON_H | {"method": "ce", "batch_size": 256} | reading)
        return list(100 * statistics.differences(ours, theirs))

    return [
        comparison(RUNS, [], [90.0, 350.0, 2.0], minus(recipe="crop-flip", epochs=10)),
        comparison(RUNS, ["views"], [360.0, 1400.0, 2.0], minus(recipe="crop-flip", epochs=40)),
        comparison("other runs", [], [90.0, 350.0, 2.0], [1.5]),
        comparison("other runs", ["views", "steps"], [360.0, 700.0, 2.0], [1.5, -1.0, 0.25]),
    ]


@pytest.fixture
def page(tmp_path, small):
    with opened(ID, tmp_path, data=written(**{DATA: small})) as opened_page:
        yield opened_page


def hold(page, words):
    page.get_by_role("radio", name=words, exact=True).check()


def choices(page):
    """What can be held equal, by its words: whether it was run."""
    radios = page.locator(".choice input").all()
    return {radio.get_attribute("value"): radio.is_enabled() for radio in radios}


def verdict(page):
    said = page.locator("output").inner_text()
    return said.replace("\u00a0", " ").replace("\u2212", "-")


def lengths(page, method):
    """Of a method's bars: what they stand for, and how long they are."""
    bars = page.locator(f"rect.{method}").all()
    values = [float(bar.get_attribute("data-value")) for bar in bars]
    return values, [float(bar.get_attribute("width")) for bar in bars]


def interval(page):
    """What the dot and its line stand for on the axis, by the places of zero and of the dot."""
    across = page.evaluate("""() => {
      const at = (selector, name) => Number(document.querySelector(selector)?.getAttribute(name));
      return [at(".axis:nth-child(2)", "x1"), at(".held circle", "cx"), at(".interval", "x1"),
        at(".interval", "x2")];
    }""")
    zero, dot, low, high = across
    value = float(page.locator("output data").get_attribute("value"))
    points = value / (dot - zero)
    return value, points * (low - zero), points * (high - zero)


@pytest.mark.parametrize("at, equal", [(0, "nothing"), (1, "views")])
def test_bars_and_difference_are_those_of_the_records(page, small, at, equal):
    hold(page, equal)
    record, highest = small[at], [360, 1400, 4]
    for method in ("supcon", "ce"):
        values, widths = lengths(page, method)
        assert values == record[method]
        shares = [value / most for value, most in zip(record[method], highest)]
        assert widths == pytest.approx([215 * share for share in shares], abs=1e-9)

    expected = record["difference"]
    assert interval(page) == pytest.approx(tuple(expected.values()), abs=1e-9)
    value, low, high = expected.values()
    leader = "SupCon leads" if low > 0 else "cross-entropy leads"
    words = f"{leader}: SupCon minus cross-entropy is {value:+.1f} points [{low:.1f}, {high:.1f}]"
    assert f"With {equal} held equal {words}" in verdict(page) and "3 pairs" in verdict(page)
    assert page.get_by_text("as published").is_visible() == (equal == "nothing")


def test_other_runs_have_their_own_records_and_what_was_not_run_is_no_choice(page):
    assert verdict(page).startswith("With nothing held equal")  # it opens on a record
    assert choices(page) == {"nothing": True, "views": True, "views and steps": False}

    hold(page, "views")
    page.get_by_role("combobox", name="runs").select_option("other runs")
    assert choices(page) == {"nothing": True, "views": False, "views and steps": True}
    assert page.get_by_text("views (not run)").count() == 1
    assert "SupCon is ahead in the only pair" in verdict(page)  # the first that there is
    assert page.locator(".interval").count() == 0
    hold(page, "views and steps")
    assert "neither is shown to lead" in verdict(page)


def test_without_the_records_it_says_so(tmp_path):
    with opened(ID, tmp_path, width=390, theme="dark") as page:
        assert "not in this page" in page.locator(".play-box").inner_text()
