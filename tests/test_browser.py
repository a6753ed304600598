"""The built site as a browser without a network shows it.

Every page, light and dark, on a laptop and on a phone. Each is loaded once, and put through all of
it; the tests then look at what was found. Links and anchors are checked in test_site.py, which
needs no browser.
"""

import json
import re

import pytest
import yaml
from axe_playwright_python.base import AXE_SCRIPT

from tools import book, chromium
from tools.book import BOOK

if not chromium.found():
    pytest.skip(
        "no Chromium found; what is said in the browser's name was not checked",
        allow_module_level=True,
    )

REDIRECT = 'http-equiv="refresh"'
LAPTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# Rules that the theme itself breaks and that can't be mended from outside: none.
KNOWN_VIOLATIONS: set[str] = set()
WCAG = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
}
BY_THEME = {"runOnly": ["color-contrast", "link-in-text-block"]}
BY_WIDTH = {"runOnly": ["scrollable-region-focusable", "aria-hidden-focus", "target-size"]}

LOOK = r"""() => {
  const main = document.querySelector("#main-content") || document.body, found = {};
  const list = (selector, test) => [...main.querySelectorAll(selector)].filter(test)
    .map(e => e.outerHTML.slice(0, 150));
  const width = document.documentElement;
  found["scrolls sideways"] = width.scrollWidth > width.clientWidth ? [width.scrollWidth] : [];
  found["maths not typeset"] = list(".math", e => !e.querySelector("mjx-container"));
  found["maths with an error"] = list(
    "mjx-merror, [data-mjx-error], [data-mml-node=merror]", e => true);
  found["broken image"] = list("img", e => e.complete && e.naturalWidth === 0);
  found["code cut off"] = innerWidth < 1200 ? [] : list(".cell_input pre", e =>
    e.scrollWidth > e.clientWidth
    && Math.max(...e.textContent.split("\n").map(line => line.length)) <= 100);
  found["figure without a white card"] = list(".cell_output img", e => {
    const style = getComputedStyle(e);
    const drawing = e.src.endsWith(".svg") && !e.classList.contains("photo");
    return (style.filter !== "none" && !drawing) || style.backgroundColor !== "rgb(255, 255, 255)";
  });
  found["interval that may break"] = list("td", e =>
    /\d \[[-+.\d]+, [-+.\d]+\]/.test(e.textContent));
  found["raw TeX"] = [];
  const walk = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.data;
    if (/\\[a-zA-Z]+[{_^]|\\\(|\\\[|\$[^\s$][^$]*\$/.test(text)
        && !walk.currentNode.parentElement.closest("pre, code, script, style, mjx-container"))
      found["raw TeX"].push(text.trim().slice(0, 100));
  }
  return found;
}"""
# What can be measured of how a page reads, before hidden things are opened. What has an icon's size
# is no picture.
LAYOUT = r"""() => {
  const article = document.querySelector("article") || document.body, found = {};
  const box = e => e.getBoundingClientRect();
  const pictures = [...article.querySelectorAll("img, svg")]
    .filter(e => box(e).width > 100 && box(e).height > 60);
  found.first = pictures.length ? Math.round(box(pictures[0]).top + scrollY) : null;
  found.height = Math.round(box(article).height);
  found.cut = [...article.querySelectorAll("img, svg, table, pre, mjx-container[display=true]")]
    .filter(e => {
      for (let outer = e; outer && outer !== article; outer = outer.parentElement) {
        const scrolls = getComputedStyle(outer).overflowX !== "visible";
        if (scrolls && outer.scrollWidth > outer.clientWidth + 2) return true;
      }
      return false;
    })
    .map(e => e.outerHTML.slice(0, 120));
  found.pictures_cut = pictures.filter(e => box(e).width && box(e).right > innerWidth + 1)
    .map(e => e.outerHTML.slice(0, 120));
  found.bars = article.querySelectorAll("details.hide.above-input, .tag_hide-input").length;
  found.figures = [...article.querySelectorAll("figure[id]")].map(e => e.id);
  return found;
}"""
FIRST, HIGHEST = 900, 8000  # pixels at LAPTOP: down to the first picture, and of a chapter
TYPESET = "async () => { if (window.MathJax) await MathJax.startup.promise; }"
# The theme lets boxes that scroll be reached by keyboard 300 ms after a change; openings and
# colours fade in that time.
SETTLED = "() => new Promise(done => setTimeout(done, 400))"
# Solutions and hidden code are looked at too. Contrast takes most of the time, so it is judged on
# one of each kind: of tokens in code, of formulas, and three rows of a table.
PREPARED = """() => {
  document.querySelectorAll("main details").forEach(e => e.open = true);
  const seen = new Set();
  for (const e of document.querySelectorAll("pre span")) {
    const box = e.closest(".cell_input, .cell_output, details");
    const kind = e.className + " in " + (box ? box.className : "");
    if (seen.has(kind)) e.dataset.like = "another"; else seen.add(kind);
  }
  document.querySelectorAll("tbody tr:nth-child(n+4)").forEach(e => e.dataset.like = "another");
  [...document.querySelectorAll("mjx-container")].slice(3).forEach(e => e.dataset.like = "another");
}"""
ONE_OF_A_KIND = "[data-like] { display: none !important; }"
AXE = "async options => (await axe.run(document, options)).violations"


def axe(page, rules) -> list[str]:
    """The serious and critical violations on a page, one text an element.

    rules: axe-core's runOnly.
    """
    options = {"resultTypes": ["violations"], "preload": False, **rules}
    said = []
    for violation in page.evaluate(AXE, options):
        known = violation["id"] in KNOWN_VIOLATIONS
        if known or violation["impact"] not in ("serious", "critical"):
            continue
        for node in violation["nodes"]:
            said.append(f"{violation['id']}: {node['target']}: {node['html'][:150]}")
    return said


FAULTS = """<html lang="en"><title>Faults</title><script>console.error("oh")</script>
<main id="main-content" style="background: white">
<div style="width: 2000px">wide</div><span class="math">x</span><mjx-merror></mjx-merror>
<img alt="none" src="none.png">
<div class="cell_input" style="width: 9em">
<pre style="overflow: auto">print("longer than nine ems")</pre></div>
<div class="cell_output"><img alt="" style="filter: brightness(0.8)" src="none.png"></div>
<table><tr><td>51.2 [50.1, 52.3]</td></tr></table>
<p>where $x_i$ is the view, <span style="color: #bbb">hardly seen</span></p>
<img alt="outside" src="https://example.org/a.png"></main></html>"""


def test_a_page_with_every_fault_is_found_at_fault(tmp_path):
    (tmp_path / "faults.html").write_text(FAULTS, encoding="utf-8")
    asked, said = [], []
    with chromium.opened(asked) as context:
        page = context.new_page()
        page.set_viewport_size(LAPTOP)
        page.on("console", lambda message: said.append(message.text))
        page.goto((tmp_path / "faults.html").as_uri())
        page.evaluate(AXE_SCRIPT)

        for kind, faults in page.evaluate(LOOK).items():
            assert faults, f"not seen: {kind}"
        assert "color-contrast" in str(axe(page, BY_THEME))
        assert "scrollable-region-focusable" in str(axe(page, BY_WIDTH))
    assert asked == ["https://example.org/a.png"] and "oh" in said


@pytest.fixture(scope="module")
def files(site):
    """Every page but those that lead to another one, and the 404 page.

    The latter needs its site's address.
    """
    paths = []
    for path in site.rglob("*.html"):
        is_page = "_static" not in path.parts and path.name not in ("index.html", "404.html")
        if is_page and REDIRECT not in path.read_text(encoding="utf-8"):
            paths.append(path)
    return sorted(paths)


@pytest.fixture(scope="module")
def asked():
    """What was asked of a network."""
    return []


@pytest.fixture(scope="module")
def context(asked):
    with chromium.opened(asked) as opened:
        yield opened


@pytest.fixture
def page(context):
    """A new page on a laptop."""
    opened = context.new_page()
    opened.set_viewport_size(LAPTOP)
    yield opened
    opened.close()


def show(page, theme):
    """Switch to a theme as the reader's system would."""
    page.emulate_media(color_scheme=theme)
    page.wait_for_function("name => document.documentElement.dataset.theme === name", arg=theme)


class Inspection:
    """What is found wrong on the pages that are put through it, by kind."""

    def __init__(self, page):
        self.page = page
        self.wrong = {}  # lists of (page, theme, width, fault)
        self.said = []  # by the page at hand
        self.layout = {}  # by page and width, what LAYOUT measures
        page.on("console", self.note_message)
        page.on("pageerror", lambda error: self.said.append(error.message))

    def note_message(self, message):
        if message.type == "error":
            self.said.append(message.text)

    def note(self, kind, where, faults):
        self.wrong.setdefault(kind, []).extend((*where, fault) for fault in faults)

    def inspect(self, path):
        """Both themes and both widths of a page; axe once for each, and on the whole in light."""
        page, name = self.page, path.stem
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(LAPTOP)
        self.said.clear()

        page.goto(path.as_uri())
        page.evaluate(TYPESET)
        for size in (PHONE, LAPTOP):
            page.set_viewport_size(size)
            page.evaluate(SETTLED)
            self.layout[name, size["width"]] = page.evaluate(LAYOUT)
        for script in (AXE_SCRIPT, PREPARED, SETTLED):
            page.evaluate(script)

        for theme in ("light", "dark"):
            show(page, theme)
            for size in (LAPTOP, PHONE):
                page.set_viewport_size(size)
                for kind, faults in page.evaluate(LOOK).items():
                    self.note(kind, (name, theme, size["width"]), faults)

        page.evaluate(SETTLED)
        self.note("axe", (name, "dark", PHONE["width"]), axe(page, BY_WIDTH))
        page.set_viewport_size(LAPTOP)
        page.add_style_tag(content=ONE_OF_A_KIND)
        self.note("axe", (name, "dark", LAPTOP["width"]), axe(page, BY_THEME))
        show(page, "light")
        page.evaluate(SETTLED)
        self.note("axe", (name, "light", LAPTOP["width"]), axe(page, WCAG))

        self.note("console", (name, "", ""), self.said)


@pytest.fixture(scope="module")
def inspection(context, files):
    """Of every page."""
    page = context.new_page()
    inspection = Inspection(page)

    for path in files:
        inspection.inspect(path)
    page.close()
    return inspection


@pytest.fixture(scope="module")
def wrong(inspection):
    """What was found wrong on every page, by kind."""
    return inspection.wrong


def main_pages() -> list[str]:
    """The first page, and the chapters that have a number."""
    contents = yaml.safe_load((BOOK.source / "_toc.yml").read_text(encoding="utf-8"))
    names = [contents["root"]]
    for part in contents["parts"]:
        if part.get("numbered"):
            names += [chapter["file"].removeprefix("notebooks/") for chapter in part["chapters"]]
    return names


@pytest.mark.parametrize("name", main_pages())
def test_a_chapter_has_a_picture_on_its_first_screen_and_an_end(inspection, name):
    layout = inspection.layout[name, LAPTOP["width"]]
    assert layout["first"] is not None and layout["first"] <= FIRST
    assert layout["height"] <= HIGHEST


@pytest.mark.parametrize("name", main_pages())
def test_nothing_is_cut_off_on_a_laptop_and_no_picture_on_a_phone(inspection, name):
    assert inspection.layout[name, LAPTOP["width"]]["cut"] == []
    assert inspection.layout[name, PHONE["width"]]["pictures_cut"] == []


@pytest.mark.parametrize("path", book.chapters(), ids=lambda path: path.stem)
def test_every_named_figure_of_a_chapter_is_on_its_page(inspection, path):
    named = []
    for cell in json.loads(path.read_bytes())["cells"]:
        figure = cell["metadata"].get("mystnb", {}).get("figure", {})
        if "name" in figure:
            named.append(figure["name"])
    assert set(named) <= set(inspection.layout[path.stem, LAPTOP["width"]]["figures"])


def test_figures_have_numbers_on_numbered_pages_alone(files):
    chapters = main_pages()[1:]
    for path in files:
        text = path.read_text(encoding="utf-8")
        numbers = re.findall(r'class="caption-number">Fig\. ([\d.]+)', text)
        if path.stem in chapters:
            place = 1 + chapters.index(path.stem)
            assert numbers == [f"{place}.{n + 1}" for n in range(text.count("<figcaption>"))]
        else:
            assert numbers == [], path


@pytest.mark.parametrize("name", main_pages())
def test_a_chapter_has_two_bars_of_hidden_code_at_most(inspection, name):
    assert inspection.layout[name, LAPTOP["width"]]["bars"] <= 2


@pytest.mark.parametrize(
    "kind",
    [
        "scrolls sideways",
        "maths not typeset",
        "maths with an error",
        "raw TeX",
        "broken image",
        "code cut off",
        "figure without a white card",
        "interval that may break",
        "console",
        "axe",
    ],
)
def test_no_page_has(wrong, kind):
    assert kind in wrong
    assert not wrong[kind], "\n".join(map(str, wrong[kind][:20]))


def test_nothing_was_asked_of_a_network(wrong, asked):
    assert asked == []


def test_there_is_maths_and_it_is_typeset(page, site):
    page.goto((site / "notebooks" / "02_loss.html").as_uri())
    page.evaluate(TYPESET)
    assert page.locator("mjx-container").count() > 20
    assert page.locator("mjx-container").first.bounding_box()["width"] > 5


def test_the_theme_can_be_switched(page, site):
    page.goto((site / "intro.html").as_uri())

    seen = set()
    for _ in range(3):  # auto, light, dark
        page.locator(".theme-switch-button").first.click()
        seen.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(seen) == 2


def test_search_finds_words_without_a_server(page, site):
    page.goto((site / "search.html").as_uri() + "?q=temperature")
    page.wait_for_selector("#search-results li a")
    links = page.locator("#search-results li a").all()
    assert any("02_loss" in link.get_attribute("href") for link in links)


def test_a_solution_opens_by_keyboard(page, site):
    """What the details element gives, and no script of ours takes away."""
    page.goto((site / "notebooks" / "02_loss.html").as_uri())

    hidden = page.locator("main details > summary").first
    hidden.focus()
    page.keyboard.press("Enter")
    assert page.locator("main details").first.evaluate("e => e.open")


def test_an_address_that_does_not_exist_shows_the_404_page_with_its_style_and_ways_back(page, site):
    """As GitHub Pages serves it: from a folder of the host, 404.html for what is missing."""
    canonical = r'<link rel="canonical" href="([^"]+)intro.html"'
    home = re.search(canonical, (site / "intro.html").read_text(encoding="utf-8")).group(1)
    missing = []

    def serve(route):
        path = site / route.request.url.removeprefix(home).split("?")[0].split("#")[0]
        if path.is_file():
            route.fulfill(path=path)
        else:
            missing.append(route.request.url)
            route.fulfill(path=site / "404.html", status=404)

    page.route(f"{home}**", serve)
    page.goto(f"{home}notebooks/no_such_chapter.html")

    assert page.get_by_role("heading", name="There is no such page").is_visible()
    assert missing == [f"{home}notebooks/no_such_chapter.html"]  # every script and style was found
    page.locator("a", has_text="Why push?").first.click()
    assert page.url == f"{home}notebooks/02_loss.html"
