"""The book on paper."""

import json

import pytest
from pypdfium2 import PdfDocument

from lib import book
from tools import chromium, pdf

needs_chromium = pytest.mark.skipif(
    not chromium.found(), reason="no Chromium found; nothing was printed"
)


def test_without_chromium_it_says_so_in_one_line_before_anything_is_run(monkeypatch, capsys):
    monkeypatch.setenv("CHROMIUM", "/no/such/program")
    assert pdf.main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: this needs Chromium") and err.count("\n") == 1


@needs_chromium
def test_a_page_is_printed_with_an_outline_and_page_numbers(tmp_path):
    source = tmp_path / "page.html"
    source.write_text(
        '<html lang="en"><link rel="stylesheet" href="book.css">'
        '<main class="bd-article"><h1>One</h1>'
        '<div class="toctree-wrapper"><section><h2>Two</h2><details><summary>Solution</summary>'
        "<p>opened</p></details></section></div></main></html>"
    )
    (tmp_path / "book.css").write_text((book.BOOK / "_static" / "book.css").read_text())
    pdf.write(source, tmp_path / "out" / "book.pdf")
    with PdfDocument(tmp_path / "out" / "book.pdf") as document:
        pages = [page.get_textpage().get_text_range() for page in document]
        assert (
            len(pages) == 2 and "One" in pages[0] and "opened" in pages[1]
        )  # a chapter begins a page
        assert ["1" in pages[0].split(), "2" in pages[1].split()] == [True, True]
        assert [mark.get_title() for mark in document.get_toc()] == ["One", "Two"]


@needs_chromium
def test_the_whole_book_is_one_pdf(site, capsys):
    assert pdf.main([]) == 0
    assert str(pdf.PDF) in capsys.readouterr().out
    with PdfDocument(pdf.PDF) as document:
        text = "".join(page.get_textpage().get_text_range() for page in document)
        titles = " ".join(mark.get_title() for mark in document.get_toc())
        assert len(document) > 30
    for chapter in book.chapters():
        first = next(
            cell
            for cell in json.loads(chapter.read_text())["cells"]
            if cell["cell_type"] == "markdown"
        )
        heading = "".join(first["source"]).splitlines()[0].removeprefix("# ")
        assert heading in titles, heading
    assert "\\frac" not in text and "\\sum" not in text
