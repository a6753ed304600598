"""The family of methods: its two drawings, and the page around them."""

import re
from xml.etree import ElementTree

import pytest

from tools import family
from tools.book import BOOK
from tools.pictures import STATIC

SVG = "{http://www.w3.org/2000/svg}"
DRAWINGS = {
    "family.svg": (family.wide, family.wide_boxes),
    "family-narrow.svg": (family.narrow, family.narrow_boxes),
}


def page():
    return (BOOK.source / "family.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_those_that_the_script_draws(name):
    draw, _ = DRAWINGS[name]
    assert (STATIC / name).read_text(encoding="utf-8") == draw()
    assert f":file: _static/{name}" in page()


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_names_every_method_also_to_those_who_do_not_see_it(name):
    drawing = ElementTree.parse(STATIC / name).getroot()
    assert drawing.get("role") == "img"
    said = " ".join("".join(text.itertext()) for text in drawing.iter(f"{SVG}text"))
    for method in family.METHODS:
        assert method.name in said, method.name
        assert f"{method.name} {method.year}" in drawing.get("aria-label"), method.name


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_method_covers_another_or_leaves_the_drawing(name):
    draw, place = DRAWINGS[name]
    *_, width, height = ElementTree.fromstring(draw()).get("viewBox").split()
    boxes = list(place().values())
    assert len(boxes) == len(family.METHODS)
    for number, box in enumerate(boxes):
        assert 0 <= box.x and box.right <= float(width)
        assert 0 <= box.y and box.bottom <= float(height)
        for other in boxes[:number]:
            beside = box.right <= other.x or other.right <= box.x
            assert beside or box.bottom <= other.y or other.bottom <= box.y


def test_a_drawing_leaves_text_and_ground_to_the_page():
    """So that it follows the theme: no colour but those of the bands."""
    for draw, _ in DRAWINGS.values():
        colours = set(re.findall(r'(?:fill|stroke)="([^"]+)"', draw()))
        assert colours <= {band.colour for band in family.BANDS.values()} | {"currentColor", "none"}


def test_parents_are_no_younger_than_their_children():
    years = {method.name: method.year for method in family.METHODS}
    for method in family.METHODS:
        assert method.band in family.BANDS
        for parent in method.parents:
            assert years[parent] <= method.year, (parent, method.name)


def test_methods_and_years_of_the_table_are_those_of_the_drawing():
    """The first cell holds one or two methods in bold, and their year."""
    years = {method.name: method.year for method in family.METHODS}
    rows = re.findall(r"^\| \*\*(.+?)\*\* (\d{4}),", page(), re.MULTILINE)
    assert 10 <= len(rows) <= 12
    for names, year in rows:
        for name in names.split(", "):
            assert years[name] == int(year), name
