"""The built site, read as a browser without a network would."""

import importlib.util
import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

import matplotlib.image
import pytest
import yaml

from tools import book, pictures
from tools.book import BOOK

NO_CHAPTERS = ("index", "genindex", "search", "404")  # pages that Sphinx makes
# the last one leads on, so the book's last page has none
BUTTONS = ("theme-switch-button", "search-button", 'title="previous page"', 'title="next page"')
COLAB = "https://colab.research.google.com/github"
BINDER = "https://mybinder.org/v2/gh"


def extension(name):
    """A module of book/_ext, which Sphinx finds by itself."""
    path = BOOK.source / "_ext" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CONFIG = yaml.safe_load((BOOK.source / "_config.yml").read_text(encoding="utf-8"))
REPOSITORY = CONFIG["repository"]["url"]
MOVED = CONFIG["sphinx"]["config"]["redirects"]
OWNER_AND_NAME = REPOSITORY.removeprefix("https://github.com/")
HOME = extension("address").pages_url(REPOSITORY)
FOLDER = "/" + HOME.split("/", 3)[3]  # of the site on its host: the 404 page links from there


class Page(HTMLParser):
    """What a page of the site links to, loads and shows."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.ids = set()
        self.links = []
        self.loads = []
        self.images_without_alt = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = {key: value for key, value in attributes if value}
        self.ids |= {given[key] for key in ("id", "name") if key in given}

        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "source") and "src" in given:
            self.loads.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon", "shortcut icon"):
            self.loads.append(given["href"])
        if tag == "img" and "alt" not in given:
            self.images_without_alt.append(given.get("src"))

    def file_of(self, url):
        """The file that a link leads to, without its anchor."""
        path = unquote(url.split("#")[0].split("?")[0])
        if path.startswith(FOLDER):
            return BOOK.site() / path.removeprefix(FOLDER)
        if not path:
            return self.path
        return (self.path.parent / path).resolve()


@pytest.fixture(scope="module")
def pages(site):
    """By file."""
    by_file = {}
    for path in site.rglob("*.html"):
        if "_static" not in path.parts and path not in moved():
            by_file[path] = Page(path)
    return by_file


def moved():
    """The pages of the first edition, which have another address now, and where they lead."""
    found = {}
    for old, new in MOVED.items():
        path = BOOK.site() / f"{old}.html"
        found[path] = path.parent / new
    return found


def test_pages_of_the_first_edition_lead_to_where_they_are_now(pages):
    assert len(moved()) == 12
    for old, new in moved().items():
        assert new in pages
        assert f'url={new.name}"' in old.read_text(encoding="utf-8")


def chapter_pages(pages):
    """Each notebook with the page that is made of it."""
    for path in book.chapters():
        yield path, pages[BOOK.site() / "notebooks" / f"{path.stem}.html"]


def test_the_quick_book_runs_and_builds(site):
    """Through papermill, every chapter; strict build: a warning is an error."""
    done = book.run("quick")
    assert len(done) > 10
    assert [path.stem for path in done] == [path.stem for path in book.chapters()]
    assert (site / "index.html").is_file()
    for path in done:
        assert path.stat().st_size < 2_500_000


def test_every_chapter_is_a_page(pages):
    assert len(list(chapter_pages(pages))) > 10


def test_nothing_is_loaded_from_a_network(pages):
    loaded = set()
    for page in pages.values():
        for url in page.loads:
            assert "//" not in url.split("?")[0], f"{page.path.name} loads {url}"
            assert page.file_of(url).is_file(), f"{page.path.name}: {url} is missing"
            loaded.add(page.file_of(url).name)
    assert "tex-chtml-full.js" in loaded


def test_links_and_anchors_lead_somewhere(pages):
    for page in pages.values():
        for url in page.links:
            address, anchor = urldefrag(url)
            if "://" in address or address.startswith(("mailto:", "javascript:")):
                continue

            file = page.file_of(url)
            assert file.is_file(), f"{page.path.name} links to {url}"
            if anchor and file in pages:
                assert unquote(anchor) in pages[file].ids, f"{page.path.name} links to {url}"


def test_images_have_a_text(pages):
    for page in pages.values():
        assert not page.images_without_alt, f"{page.path.name}: {page.images_without_alt}"


def test_chapters_have_their_buttons(pages):
    for path, page in chapter_pages(pages):
        source = f"main/book/notebooks/{path.name}"
        assert f"{COLAB}/{OWNER_AND_NAME}/blob/{source}" in page.links, path
        notebook = f"main?urlpath=tree/book/notebooks/{path.name}"
        assert f"{BINDER}/{OWNER_AND_NAME}/{notebook}" in page.links, path
        assert f"{REPOSITORY}/edit/{source}" in page.links and REPOSITORY in page.links, path

        text = page.path.read_text(encoding="utf-8")
        is_last = path == book.chapters()[-1]
        for button in BUTTONS[:-1] if is_last else BUTTONS:
            assert button in text, f"{path.name} lacks {button}"


def test_chapters_can_be_downloaded(pages):
    for path, page in chapter_pages(pages):
        downloads = [url for url in page.links if url.endswith(f"_sources/notebooks/{path.name}")]
        assert json.loads(page.file_of(downloads[0]).read_text(encoding="utf-8"))["cells"]


def test_headings_can_be_linked_to(pages):
    permalink = r'<a class="headerlink" href="#[^"]+" title="Link to this heading'
    for path, page in chapter_pages(pages):
        text = page.path.read_text(encoding="utf-8")
        article = text[text.index("<article") : text.index("</article>")]

        headings = re.findall(r"<h[1-6]", article)
        assert len(re.findall(permalink, article)) == len(headings) > 3, path


def test_pages_say_what_they_are_when_shared(pages):
    tag = r'<meta (?:property|name)="((?:og|twitter):[^"]+)" content="([^"]*)"'
    for path in pages:
        if path.stem in NO_CHAPTERS:
            continue

        name = path.relative_to(BOOK.site()).as_posix()
        tags = dict(re.findall(tag, path.read_text(encoding="utf-8")))
        assert tags["og:url"] == HOME + name
        assert tags["og:title"] and tags["og:description"], name
        assert tags["twitter:card"] == "summary_large_image" and tags["og:image:alt"], name
        assert (BOOK.site() / tags["og:image"].removeprefix(HOME)).is_file(), name


def test_every_page_has_the_mark(pages):
    for path, page in pages.items():
        if path.name != "index.html":
            assert any(url.endswith("_static/mark.png") for url in page.loads), path


@pytest.mark.parametrize(
    "name, draw, shape",
    [
        ("mark.png", pictures.mark, (128, 128)),
        ("card.png", pictures.card, (630, 1200)),
        ("overview.png", pictures.overview, (864, 1200)),
    ],
)
def test_pictures_are_those_that_the_script_draws(name, draw, shape, tmp_path):
    draw(tmp_path / name)

    drawn = matplotlib.image.imread(tmp_path / name)
    kept = matplotlib.image.imread(pictures.STATIC / name)
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


@pytest.fixture
def tidy():
    return extension("tables").tidy


def test_columns_of_numbers_are_told_from_words(tidy):
    numbers = re.findall(r'<t[hd] class="(?:data )?number">([^<]+)<', tidy(TABLE % "10,000"))
    interval = "51.2\u00a0[50.1,\u00a052.3]"
    assert numbers == ["accuracy", "n", interval, "3", "-", "10,000"]

    mixed = tidy(TABLE % "no published record yet, nor anything near")
    assert 'class="number">n<' not in mixed and '<td class="long">no published' in mixed


def test_intervals_are_kept_on_one_line_in_tables_alone(tidy):
    html = tidy(TABLE % "10,000")
    assert "<p>51.2 [50.1, 52.3]</p><pre>x 3 [1, 2]</pre>" in html


def test_figures_lead_to_themselves(tidy):
    html = tidy('<figure><img src="a.png"/></figure>')
    assert html == '<figure><a href="a.png"><img src="a.png"/></a></figure>'


def test_a_formula_keeps_the_punctuation_after_it(tidy):
    formula = '<span class="math">x</span>'
    assert tidy(f"<p>{formula}, so</p>") == f'<p><span class="unbroken">{formula},</span> so</p>'
    assert tidy(f"<p>{formula} so</p>") == f"<p>{formula} so</p>"
    assert tidy(f"<p>{formula}<b>,</b></p>") == f"<p>{formula}<b>,</b></p>"


def test_references_are_no_list(tidy):
    assert 'role="list"' not in tidy('<div class="citation-list" role="list"></div>')


TERMS = {"linear probe": ("term-1", "Logistic regression."), "encoder": ("term-2", 'It says "h".')}


def test_a_words_first_use_on_a_page_carries_its_meaning():
    page = (
        "<h2>Linear probe</h2><p><code>encoder</code>: Linear probes read it.</p>"
        "<li>a <b>linear probe</b> of the encoder, not of encoders</li><td>encoder</td>"
    )
    shown = extension("terms").with_cards(page, TERMS, "../glossary.html")
    (probe, encoder) = re.findall(r"<a [^>]*>[^<]*</a>", shown)
    assert 'href="../glossary.html#term-1"' in probe and "Logistic regression." in probe
    assert probe.endswith(">Linear probes</a>") and encoder.endswith(">encoder</a>")
    assert re.sub("</?a[^>]*>", "", shown) == page


def test_words_of_the_glossary_have_cards_throughout_the_book(pages):
    text = (BOOK.site() / "family.html").read_text(encoding="utf-8")
    cards = re.findall(r'<a class="term" data-means="([^"]+)" href="glossary.html#([^"]+)"', text)
    assert len(cards) > 5
    assert len({anchor for _, anchor in cards}) == len(cards)
