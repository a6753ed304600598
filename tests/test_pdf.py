"""The book on paper."""

import json

import pytest
from pypdfium2 import PdfDocument

from tools import book, chromium, pdf

needs_chromium = pytest.mark.skipif(
    not chromium.found(), reason="no Chromium found; nothing was printed"
)
PAGE = """<html lang="en"><link rel="stylesheet" href="book.css">
<main class="bd-article"><h1>One</h1>
<div class="toctree-wrapper"><section><h2>Two</h2><details><summary>Solution</summary>
<p>opened</p></details></section></div></main></html>"""


def texts(document):
    return [page.get_textpage().get_text_range() for page in document]


def titles(document):
    """Of its outline."""
    return [mark.get_title() for mark in document.get_toc()]


def heading(notebook):
    """The first line of a chapter."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            return "".join(cell["source"]).splitlines()[0].removeprefix("# ")
    raise AssertionError(f"{notebook.name} has no heading")


def test_without_chromium_it_says_so_in_one_line_before_anything_is_run(monkeypatch, capsys):
    monkeypatch.setenv("CHROMIUM", "/no/such/program")
    assert pdf.main([]) == 2

    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: this needs Chromium") and err.count("\n") == 1


@needs_chromium
def test_a_page_is_printed_with_an_outline_and_page_numbers(tmp_path):
    (tmp_path / "page.html").write_text(PAGE, encoding="utf-8")
    style = book.BOOK.source / "_static" / "book.css"
    (tmp_path / "book.css").write_text(style.read_text(encoding="utf-8"), encoding="utf-8")

    pdf.write(tmp_path / "page.html", tmp_path / "out" / "book.pdf")
    with PdfDocument(tmp_path / "out" / "book.pdf") as document:
        first, second = texts(document)  # a chapter begins a page
        assert "One" in first and "opened" in second
        assert "1" in first.split() and "2" in second.split()
        assert titles(document) == ["One", "Two"]


@needs_chromium
def test_the_whole_book_is_one_pdf(site, capsys):
    assert pdf.main([]) == 0
    assert str(pdf.PDF) in capsys.readouterr().out
    with PdfDocument(pdf.PDF) as document:
        pages = texts(document)
        outline = " ".join(titles(document))

    assert len(pages) > 30
    for notebook in book.chapters():
        assert heading(notebook).replace("'", "’") in outline
    for page in pages:
        assert "\\frac" not in page and "\\sum" not in page
