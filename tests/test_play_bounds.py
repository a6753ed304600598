"""Chance and floor of a reader's batch, beside the package's."""

import pytest

from lib import losses
from tests.elements import opened
from tools import chromium

if not chromium.found():
    pytest.skip("no Chromium found", allow_module_level=True)

ROWS = ("embeddings M", "positives of each", "chance", "floor")
TEMPERATURES = {0.05: 0, 0.07: 2, 0.1: 4, 0.5: 11, 1: 15, 5: 22}  # and their notches on the slider


@pytest.fixture
def page(tmp_path):
    with opened("loss-simplex", tmp_path) as opened_page:
        yield opened_page


def row(page, name):
    cells = page.get_by_role("row", name=name)
    return float(cells.locator("data").get_attribute("value")), cells.locator("td").inner_text()


def ask(page, temperature=None, **fields):
    names = {
        "images": "images N",
        "views": "views of each",
        "positives": "positives of each anchor",
        "loss": "your loss",
    }
    for field, value in fields.items():
        page.get_by_label(names[field]).fill(str(value))
    if temperature:
        slider = page.get_by_role("slider", name="temperature")
        slider.press("Home")
        for _ in range(TEMPERATURES[temperature]):
            slider.press("ArrowRight")
        assert slider.get_attribute("aria-valuetext") == str(temperature)


def check(page, m, positives, temperature):
    """The page's chance and floor are the package's, in its digits and in what is read."""
    assert row(page, "embeddings M")[0] == m and row(page, "positives of each")[0] == positives
    chance, floor = losses.chance(m), losses.floor(m, positives, temperature)
    for name, value in (("chance", chance), ("floor", floor)):
        number, said = row(page, name)
        assert number == pytest.approx(value, abs=1e-9) and said == f"{value:.4f}"
    return chance, floor


def verdict(page):
    return page.locator(".play-box p output").inner_text()


def share(page):
    return float(page.locator("output data").get_attribute("value"))


def place(page):
    """Where the mark is, as a share of the way from chance to floor on the line."""
    return page.evaluate("""() => {
      const at = e => { const box = e.getBoundingClientRect(); return box.x + box.width / 2; };
      const [floor, chance] = [...document.querySelectorAll(".bounds .end")].map(at);
      return (chance - at(document.querySelector(".bounds .mark"))) / (chance - floor);
    }""")


def test_chance_and_floor_are_the_packages_and_the_loss_lies_between(page):
    for images, views, temperature in ((256, 2, 0.5), (4, 2, 0.5), (4096, 2, 0.1), (100, 3, 0.07)):
        ask(page, temperature, images=images, views=views)
        chance, floor = check(page, images * views, views - 1, temperature)
        ask(page, loss=chance - 0.37 * (chance - floor))
        assert share(page) == pytest.approx(0.37, abs=1e-9)
        assert "37.0 % of the way from chance to floor" in verdict(page)
        assert place(page) == pytest.approx(0.37, abs=0.01)


def test_with_labels_the_positives_are_named(page):
    page.get_by_label("its whole class").check()
    check(page, 512, 63, 0.5)  # 8 classes of 32 images
    ask(page, 0.1, positives=100)
    chance, floor = check(page, 512, 100, 0.1)
    ask(page, loss=floor)
    assert share(page) == pytest.approx(1)
    ask(page, loss=chance)
    assert share(page) == pytest.approx(0)

    ask(page, positives=511)
    check(page, 512, 511, 0.1)
    assert "All others are positives" in verdict(page)
    ask(page, positives=512)
    assert "has 511 others" in verdict(page)
    page.get_by_label("other views").check()
    check(page, 512, 1, 0.1)


def test_what_lies_outside_is_said_and_what_is_no_number_is_not_taken(page):
    ask(page, loss=7)
    assert verdict(page).startswith("Above chance") and place(page) < 0
    ask(page, loss=-20)
    assert verdict(page).startswith("Below the floor") and place(page) > 1
    ask(page, loss="")
    ask(page, images=1)
    ask(page, views=2.5)
    for name in ("images N", "views of each", "your loss"):
        assert page.get_by_label(name).get_attribute("aria-invalid") == "true"
    said = page.locator(".wrong").all_inner_texts()
    assert "a whole number from 2 to 1,000,000" in said
    assert not page.locator(".play-box table").is_visible()  # nothing old beside it
    ask(page, images=256, views=2, loss=5)
    assert set(page.locator(".wrong").all_inner_texts()) == {""}
    check(page, 512, 1, 0.5)
