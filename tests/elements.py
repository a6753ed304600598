"""A page as small as can be with one of the book's elements, in a browser without a network."""

import shutil
from contextlib import contextmanager

from lib import figures
from tools import chromium
from tools.book import BOOK

STATIC, SCRIPTS = BOOK.source / "_static", BOOK.source / "_play" / "play"
PAGE = """<!doctype html><html lang="en" data-theme="{theme}"><meta charset="utf-8">
<title>An element</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root {{ --pst-color-primary: #0a6577; --pst-color-accent: #8045e5; --pst-color-border: #999;
--pst-color-background: #fff; --pst-color-surface: #eee; --pst-color-text-base: #222;
--pst-color-text-muted: #555; }}
[data-theme=dark] {{ --pst-color-primary: #3fb1c5; --pst-color-background: #121212;
--pst-color-surface: #222; --pst-color-text-base: #ddd; --pst-color-text-muted: #aaa; }}
body {{ font: 16px/1.5 system-ui; margin: 1rem; background: var(--pst-color-background);
color: var(--pst-color-text-base); }}</style>
<link rel="stylesheet" href="_static/play.css"><script src="_static/play.js"></script>
<main id="main-content"><figure id="{id}"><figcaption>The still.</figcaption></figure>{data}</main>
</html>"""


def written(**values):
    """HTML as a chapter's cell gives it to its page: values by their ids."""
    return "".join(figures.page_data(id, value) for id, value in values.items())


def write(path, id, theme="light", data=""):
    """The page, with a figure of that id; beside it, as in the site, the loader and its scripts.

    data: HTML that a chapter's cell gives its page.
    """
    path.write_text(PAGE.format(id=id, theme=theme, data=data), encoding="utf-8")
    for name in ("play.js", "play.css"):
        (path.parent / "_static").mkdir(exist_ok=True)
        shutil.copy(STATIC / name, path.parent / "_static")
    shutil.copytree(SCRIPTS, path.parent / "play", dirs_exist_ok=True)


@contextmanager
def opened(id, folder, width=1280, theme="light", data=""):
    """The page with the element of that id, its button pressed. data: see ``write``.

    Whatever it says on the console is an error.
    """
    said, asked = [], []
    path = folder / f"{id}-{theme}.html"
    write(path, id, theme, data)
    with chromium.opened(asked) as context:
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(error.message))
        page.goto(path.as_uri())
        page.locator(".play-button").first.click()
        page.locator(".play-box > *").first.wait_for()
        yield page
        wide = page.evaluate("document.documentElement.scrollWidth")
    assert said == [] and asked == []
    assert wide <= width, "it scrolls sideways"
