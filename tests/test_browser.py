"""The built site as a browser without a network shows it: every page, light and dark, on a laptop
and on a phone.

Each page is loaded once, and put through all of it; the tests then look at what was found. Links
and anchors are checked in test_site.py, which needs no browser.
"""

import re

import pytest
from axe_playwright_python.base import AXE_SCRIPT

from tools import chromium

if not chromium.found():
    pytest.skip(
        "no Chromium found; what is said in the browser's name was not checked",
        allow_module_level=True,
    )

LAPTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
KNOWN_ERRORS = {
    "Identifier 'THEBE_JS_URL' has already been declared"
}  # Jupyter Book writes the line twice
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
    return style.filter !== "none" || style.backgroundColor !== "rgb(255, 255, 255)";
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
    """The serious and critical violations on a page, one text an element. rules: axe-core's
    runOnly."""
    asked = {"resultTypes": ["violations"], "preload": False, **rules}
    return [
        f"{violation['id']}: {node['target']}: {node['html'][:150]}"
        for violation in page.evaluate(AXE, asked)
        if violation["impact"] in ("serious", "critical")
        and violation["id"] not in KNOWN_VIOLATIONS
        for node in violation["nodes"]
    ]


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
    (tmp_path / "faults.html").write_text(FAULTS)
    asked, said = [], []
    with chromium.opened(asked) as context:
        page = context.new_page()
        page.set_viewport_size(LAPTOP)
        page.on("console", lambda message: said.append(message.text))
        page.goto((tmp_path / "faults.html").as_uri())
        page.evaluate(AXE_SCRIPT)
        for kind, what in page.evaluate(LOOK).items():
            assert what, f"not seen: {kind}"
        assert "color-contrast" in str(axe(page, BY_THEME))
        assert "scrollable-region-focusable" in str(axe(page, BY_WIDTH))
    assert asked == ["https://example.org/a.png"] and "oh" in said


@pytest.fixture(scope="module")
def files(site):
    """Every page but the start, which only leads to the first one, and the 404 page, which needs
    its site's address."""
    return sorted(
        path
        for path in site.rglob("*.html")
        if "_static" not in path.parts and path.name not in ("index.html", "404.html")
    )


@pytest.fixture(scope="module")
def context():
    asked = []
    with chromium.opened(asked) as opened:
        opened.asked = asked
        yield opened


def show(page, theme):
    """Switch to a theme as the reader's system would."""
    page.emulate_media(color_scheme=theme)
    page.wait_for_function("name => document.documentElement.dataset.theme === name", arg=theme)


@pytest.fixture(scope="module")
def found(context, files):
    """What was found wrong, by kind: lists of (page, theme, width, what)."""
    wrong, page = {}, context.new_page()

    def note(kind, where, what):
        wrong.setdefault(kind, []).extend((*where, one) for one in what)

    said = []
    page.on(
        "console", lambda message: said.append(message.text) if message.type == "error" else None
    )
    page.on("pageerror", lambda error: said.append(error.message))
    for path in files:
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(LAPTOP)
        said.clear()
        page.goto(path.as_uri())
        page.evaluate(TYPESET)
        page.evaluate(AXE_SCRIPT)
        page.evaluate(PREPARED)
        page.evaluate(SETTLED)
        for theme in ("light", "dark"):
            show(page, theme)
            for size in (LAPTOP, PHONE):
                page.set_viewport_size(size)
                for kind, what in page.evaluate(LOOK).items():
                    note(kind, (path.stem, theme, size["width"]), what)
        page.evaluate(SETTLED)
        note("axe", (path.stem, "dark", PHONE["width"]), axe(page, BY_WIDTH))
        page.set_viewport_size(LAPTOP)
        page.add_style_tag(content=ONE_OF_A_KIND)
        note("axe", (path.stem, "dark", LAPTOP["width"]), axe(page, BY_THEME))
        show(page, "light")
        page.evaluate(SETTLED)
        note("axe", (path.stem, "light", LAPTOP["width"]), axe(page, WCAG))
        note("console", (path.stem, "", ""), [text for text in said if text not in KNOWN_ERRORS])
    page.close()
    return wrong


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
def test_no_page_has(found, kind):
    assert kind in found
    assert not found[kind], "\n".join(map(str, found[kind][:20]))


def test_nothing_was_asked_of_a_network(found, context):
    assert context.asked == []


def test_there_is_maths_and_it_is_typeset(context, site):
    page = context.new_page()
    page.goto((site / "notebooks" / "02_loss.html").as_uri())
    page.evaluate(TYPESET)
    assert page.locator("mjx-container").count() > 20
    assert page.locator("mjx-container").first.bounding_box()["width"] > 5
    page.close()


def test_the_theme_can_be_switched(context, site):
    page = context.new_page()
    page.set_viewport_size(LAPTOP)
    page.goto((site / "intro.html").as_uri())
    seen = set()
    for _ in range(3):  # auto, light, dark
        page.locator(".theme-switch-button").first.click()
        seen.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(seen) == 2
    page.close()


def test_search_finds_words_without_a_server(context, site):
    page = context.new_page()
    page.goto((site / "search.html").as_uri() + "?q=temperature")
    page.wait_for_selector("#search-results li a")
    assert any(
        "02_loss" in link.get_attribute("href")
        for link in page.locator("#search-results li a").all()
    )
    page.close()


def test_a_solution_opens_by_keyboard(context, site):
    """What the details element gives, and no script of ours takes away."""
    page = context.new_page()
    page.goto((site / "notebooks" / "02_loss.html").as_uri())
    hidden = page.locator("main details > summary").first
    hidden.focus()
    page.keyboard.press("Enter")
    assert page.locator("main details").first.evaluate("e => e.open")
    page.close()


def test_an_address_that_does_not_exist_shows_the_404_page_with_its_style_and_ways_back(
    context, site
):
    """As GitHub Pages serves it: from a folder of the host, with 404.html in the place of what is
    missing."""
    page, missing = context.new_page(), []
    home = re.search(
        r'<link rel="canonical" href="([^"]+)intro.html"', (site / "intro.html").read_text()
    ).group(1)

    def serve(route):
        path = site / route.request.url.removeprefix(home).split("?")[0].split("#")[0]
        if path.is_file():
            return route.fulfill(path=path)
        missing.append(route.request.url)
        return route.fulfill(path=site / "404.html", status=404)

    page.route(f"{home}**", serve)
    page.goto(f"{home}notebooks/no_such_chapter.html")
    assert page.get_by_role("heading", name="There is no such page").is_visible()
    assert missing == [f"{home}notebooks/no_such_chapter.html"]  # every script and style was found
    page.locator("a", has_text="A loss that pulls and pushes").first.click()
    assert page.url == f"{home}notebooks/02_loss.html"
    page.close()
