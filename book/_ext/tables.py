"""Tables, figures and formulas as a reader wants them.

Numbers to the right, intervals on one line, pictures that open alone, no line that begins with the
comma after a formula.
"""

import re
from typing import Any

from bs4 import BeautifulSoup, NavigableString, Tag

NUMBER = re.compile(
    r"[-+−±\d.,%x×e /\[\]\u00a0]*\d[-+−±\d.,%x×e /\[\]\u00a0]*(ms|s|MB|GB|k)?|-|–|—|nan|NaN|None|"
)
PUNCTUATION = re.compile(r"[.,:;?!)]+")
LONG = 30  # characters; a longer cell is wrapped
INTERVAL = re.compile(r"(?<=[\d%]) \[([-+−\d.,%]+), ([-+−\d.,%]+)\]")


def tidy(html: str) -> str:
    """The same page, easier to read.

    Class "number" on every column of numbers, "long" on cells of many words, no line break inside
    "51.2 [50.1, 52.3]" and between a formula and its punctuation; a figure's picture leads to
    itself at full size.
    """
    soup = BeautifulSoup(html, "html.parser")
    for table in soup.find_all("table"):
        columns = _columns(table)
        for place, column in columns.items():
            for cell in column:
                _tidy_cell(cell)
            if _is_of_numbers(column):
                for cell in [*column, *_heads(table, place)]:
                    _add_class(cell, "number")

    for image in soup.select("figure > img"):
        image.wrap(soup.new_tag("a", href=image["src"]))

    for formula in soup.select("span.math"):
        _keep_with_punctuation(soup, formula)

    for references in soup.find_all(class_="citation-list"):
        # its items say what they are, and a list may not hold their backlinks
        del references["role"]
    return str(soup)


def _keep_with_punctuation(soup: BeautifulSoup, formula: Tag) -> None:
    """Put a formula and the punctuation after it on one line."""
    after = formula.next_sibling
    marks = PUNCTUATION.match(after) if isinstance(after, NavigableString) else None
    if marks:
        kept = soup.new_tag("span")
        kept["class"] = "unbroken"
        formula.wrap(kept)
        kept.append(NavigableString(marks[0]))
        after.replace_with(NavigableString(after[marks.end() :]))


def _columns(table: Tag) -> dict[int, list[Tag]]:
    """A table's cells by their place from the right, -1, -2, ...

    Those on the left may span rows.
    """
    columns: dict[int, list[Tag]] = {}
    for row in table.select("tbody tr"):
        cells = _cells(row)
        for place, cell in enumerate(cells, start=-len(cells)):
            columns.setdefault(place, []).append(cell)
    return columns


def _cells(row: Tag) -> list[Tag]:
    return row.find_all(["th", "td"], recursive=False)


def _heads(table: Tag, place: int) -> list[Tag]:
    """What stands over a column."""
    heads = []
    for row in table.select("thead tr"):
        cells = _cells(row)
        if len(cells) >= -place:
            heads.append(cells[place])
    return heads


def _tidy_cell(cell: Tag) -> None:
    for text in cell.find_all(string=INTERVAL):
        text.replace_with(INTERVAL.sub("\u00a0[\\1,\u00a0\\2]", text))
    if len(cell.get_text()) > LONG:
        _add_class(cell, "long")


def _is_of_numbers(column: list[Tag]) -> bool:
    texts = [cell.get_text().strip() for cell in column]
    return any(texts) and all(map(NUMBER.fullmatch, texts))


def _add_class(cell: Tag, name: str) -> None:
    cell["class"] = [*cell.get("class", []), name]


def _tidy(app: Any, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    if doctree:
        context["body"] = tidy(context["body"])


def setup(app: Any) -> dict:
    app.connect("html-page-context", _tidy)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
