"""The built site, read as a browser without a network would."""

from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

import pytest

from lib import book


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.path, self.ids, self.links, self.loads, self.images_without_alt = path, set(), [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loads.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon", "shortcut icon"):
            self.loads.append(given["href"])
        if tag == "img" and not given.get("alt"):
            self.images_without_alt.append(given.get("src"))


@pytest.fixture(scope="module")
def pages():
    book.run("quick")
    book.build("quick")
    return {p: Page(p) for p in book.SITE.rglob("*.html") if "_static" not in p.parts}


def test_every_chapter_is_a_page(pages):
    for path in book.chapters():
        assert book.SITE / "notebooks" / f"{path.stem}.html" in pages


def test_nothing_is_loaded_from_a_network(pages):
    for page in pages.values():
        for url in page.loads:
            assert "//" not in url.split("?")[0], f"{page.path.name} loads {url}"
            assert (page.path.parent / unquote(url.split("?")[0])).is_file(), f"{page.path.name}: {url} is missing"
    assert any("mathjax/tex-chtml-full.js" in url for page in pages.values() for url in page.loads)


def test_links_and_anchors_lead_somewhere(pages):
    for page in pages.values():
        for url in page.links:
            target, anchor = urldefrag(url)
            if "://" in target or target.startswith(("mailto:", "javascript:")):
                continue
            there = (page.path.parent / unquote(target)).resolve() if target else page.path
            assert there.is_file(), f"{page.path.name} links to {url}"
            if anchor and there in pages and not url.startswith("#") or (anchor and there == page.path):
                assert unquote(anchor) in pages[there].ids, f"{page.path.name} links to {url}"


def test_images_have_a_text(pages):
    for page in pages.values():
        assert not page.images_without_alt, f"{page.path.name}: {page.images_without_alt}"


def test_chapters_have_launch_buttons(pages):
    for path in book.chapters():
        text = (book.SITE / "notebooks" / f"{path.stem}.html").read_text()
        assert "colab.research.google.com/github/" in text and "mybinder.org" in text
