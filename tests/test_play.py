"""The loader of what a reader can touch: it fetches what is asked for, and says what is missing."""

import re

import pytest

from tests import elements
from tools import chromium

if not chromium.found():
    pytest.skip("no Chromium found", allow_module_level=True)

MADE = {"photographs.js"}  # by the build of the site
SCRIPT = 'Play.element("circle.js", box => box.append(Play.node("p", {}, "here I am")));'


@pytest.fixture
def script(tmp_path):
    """An element of the test's own in the circle's place."""
    elements.write(tmp_path / "page.html", "loss-circle")
    (tmp_path / "play" / "circle.js").write_text(SCRIPT, encoding="utf-8")
    return tmp_path / "play" / "circle.js"


@pytest.fixture
def page(tmp_path, script):
    with chromium.opened() as context:
        page = context.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        yield page


def fetched(page) -> list[str]:
    """The scripts that the page has."""
    names = page.evaluate("[...document.scripts].map(script => script.src.split('/').pop())")
    return sorted(names)


def test_an_element_is_fetched_when_it_is_opened_and_closes_again(page):
    opener = page.locator(".play-button")
    assert fetched(page) == ["play.js"]
    assert opener.get_attribute("aria-expanded") == "false"

    opener.focus()
    page.keyboard.press("Enter")
    page.get_by_text("here I am").wait_for()
    assert fetched(page) == ["circle.js", "play.js"]
    assert opener.get_attribute("aria-expanded") == "true"

    page.keyboard.press("Enter")
    assert page.get_by_text("here I am").is_hidden()
    page.keyboard.press("Enter")
    assert page.get_by_text("here I am").count() == 1


def test_a_script_that_is_not_there_is_said_and_can_be_tried_again(page, script):
    script.unlink()
    page.locator(".play-button").click()
    page.get_by_role("alert").wait_for()
    said = page.get_by_role("alert").inner_text()
    assert said == "This can't be shown: circle.js could not be loaded."

    script.write_text(SCRIPT, encoding="utf-8")
    page.locator(".play-button").click()
    page.get_by_text("here I am").wait_for()
    assert page.get_by_role("alert").count() == 0


def test_paper_shows_the_figure_alone(page):
    page.emulate_media(media="print")
    assert page.locator(".play").is_hidden()
    assert page.locator("figure").is_visible()


def test_every_element_has_its_scripts():
    """What play.js names is in the scripts' folder."""
    page = (elements.STATIC / "play.js").read_text(encoding="utf-8")
    named = set()
    for scripts in re.findall(r"scripts: \[(.*?)\]", page):
        named.update(re.findall(r'"(.*?)"', scripts))
    assert named > MADE
    for name in named - MADE:
        assert (elements.SCRIPTS / name).is_file(), name
