"""The built site, read as a browser without a network would."""

import importlib.util
import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

import matplotlib.image
import pytest
import yaml

from lib import book
from tools import pictures


def extension(name):
    """A module of book/_ext, which Sphinx finds by itself."""
    spec = importlib.util.spec_from_file_location(name, book.BOOK / "_ext" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REPOSITORY = yaml.safe_load((book.BOOK / "_config.yml").read_text())["repository"]["url"]
HOME = extension("address").pages_url(REPOSITORY)
FOLDER = "/" + HOME.split("/", 3)[3]  # of the site on its host: the 404 page links from there


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.path, self.ids, self.links, self.loads, self.images_without_alt = (
            path,
            set(),
            [],
            [],
            [],
        )
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
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def target_of(page, url):
    """The file that a link leads to, without its anchor."""
    path = unquote(url.split("#")[0].split("?")[0])
    if path.startswith(FOLDER):
        return book.SITE / path.removeprefix(FOLDER)
    return (page.path.parent / path).resolve() if path else page.path


def test_every_chapter_is_a_page(pages):
    for path in book.chapters():
        assert book.SITE / "notebooks" / f"{path.stem}.html" in pages


def test_nothing_is_loaded_from_a_network(pages):
    for page in pages.values():
        for url in page.loads:
            assert "//" not in url.split("?")[0], f"{page.path.name} loads {url}"
            assert target_of(page, url).is_file(), f"{page.path.name}: {url} is missing"
    assert any("mathjax/tex-chtml-full.js" in url for page in pages.values() for url in page.loads)


def test_links_and_anchors_lead_somewhere(pages):
    for page in pages.values():
        for url in page.links:
            target, anchor = urldefrag(url)
            if "://" in target or target.startswith(("mailto:", "javascript:")):
                continue
            there = target_of(page, url)
            assert there.is_file(), f"{page.path.name} links to {url}"
            if (
                anchor
                and there in pages
                and not url.startswith("#")
                or (anchor and there == page.path)
            ):
                assert unquote(anchor) in pages[there].ids, f"{page.path.name} links to {url}"


def test_images_have_a_text(pages):
    for page in pages.values():
        assert not page.images_without_alt, f"{page.path.name}: {page.images_without_alt}"


def test_chapters_have_their_buttons_and_ways_on(pages):
    chapters = book.chapters()
    for path in chapters:
        page = pages[book.SITE / "notebooks" / f"{path.stem}.html"]
        text, source = page.path.read_text(), f"main/book/notebooks/{path.name}"
        owner_and_name = REPOSITORY.removeprefix("https://github.com/")
        assert (
            f"https://colab.research.google.com/github/{owner_and_name}/blob/{source}" in page.links
        ), path
        assert (
            f"https://mybinder.org/v2/gh/{owner_and_name}/main?urlpath=tree/book/notebooks/{path.name}"
            in page.links
        )
        assert f"{REPOSITORY}/edit/{source}" in page.links and REPOSITORY in page.links
        downloads = [url for url in page.links if url.endswith(f"_sources/notebooks/{path.name}")]
        assert downloads and json.loads(target_of(page, downloads[0]).read_text())["cells"]
        for part in (
            "theme-switch-button",
            "search-button",
            'title="previous page"',
            'title="next page"',
        ):
            assert part in text, f"{path.name} lacks {part}"
        article = text[text.index("<article") : text.index("</article>")]
        headings = len(re.findall(r"<h[1-6]", article))
        permalinks = re.findall(
            r'<a class="headerlink" href="#[^"]+" title="Link to this heading', article
        )
        assert headings > 3 and len(permalinks) == headings, path


def test_pages_say_what_they_are_when_shared(pages):
    for path in pages:
        text, name = path.read_text(), path.relative_to(book.SITE).as_posix()
        if path.stem in ("index", "genindex", "search", "404"):
            continue
        tags = dict(
            re.findall(r'<meta (?:property|name)="((?:og|twitter):[^"]+)" content="([^"]*)"', text)
        )
        assert tags["og:url"] == HOME + name and tags["og:title"] and tags["og:description"], name
        assert tags["twitter:card"] == "summary_large_image" and tags["og:image:alt"], name
        assert (book.SITE / tags["og:image"].removeprefix(HOME)).is_file(), name


def test_every_page_has_the_mark(pages):
    for path, page in pages.items():
        if path.name != "index.html":
            assert any(url.endswith("_static/mark.png") for url in page.loads), path


def test_pictures_are_those_that_the_script_draws(tmp_path):
    for name, draw, shape in (
        ("mark.png", pictures.mark, (128, 128)),
        ("card.png", pictures.card, (630, 1200)),
        ("overview.png", pictures.overview, (450, 1350)),
    ):
        draw(tmp_path / name)
        drawn, kept = (
            matplotlib.image.imread(folder / name) for folder in (tmp_path, book.BOOK / "_static")
        )
        assert drawn.shape == kept.shape and kept.shape[:2] == shape
        assert abs(drawn - kept).mean() < 0.02  # fonts are drawn a little differently elsewhere


def test_the_sites_address_follows_from_the_repositorys():
    pages_url = extension("address").pages_url
    assert pages_url("https://github.com/someone/a-book") == "https://someone.github.io/a-book/"
    assert pages_url("https://github.com/someone/a-book/") == "https://someone.github.io/a-book/"
    with pytest.raises(ValueError):
        pages_url("https://github.com/someone")


TABLE = """<p>51.2 [50.1, 52.3]</p><pre>x 3 [1, 2]</pre>
<table><thead><tr><th>method</th><th>accuracy</th><th>n</th></tr></thead>
<tbody><tr><td rowspan="2">SupCon</td><td>51.2 [50.1, 52.3]</td><td>3</td></tr>
<tr><td class="data">-</td><td>%s</td></tr></tbody></table>"""


def test_columns_of_numbers_are_told_from_words_and_intervals_are_kept_on_one_line():
    tidy = extension("tables").tidy
    html = tidy(TABLE % "10,000")
    assert re.findall(r'<t[hd] class="(?:data )?number">([^<]+)<', html) == [
        "accuracy",
        "n",
        "51.2\u00a0[50.1,\u00a052.3]",
        "3",
        "-",
        "10,000",
    ]
    assert "<p>51.2 [50.1, 52.3]</p><pre>x 3 [1, 2]</pre>" in html  # only in tables
    mixed = tidy(TABLE % "no published record yet, nor anything near")
    assert 'class="number">n<' not in mixed and '<td class="long">no published' in mixed
    assert 'role="list"' not in tidy('<div class="citation-list" role="list"></div>')
