"""Tables and figures as a reader wants them: numbers to the right, intervals on one line, pictures
that open alone."""

import re

from bs4 import BeautifulSoup

NUMBER = re.compile(
    r"[-+−±\d.,%x×e /\[\]\u00a0]*\d[-+−±\d.,%x×e /\[\]\u00a0]*(ms|s|MB|GB|k)?|-|–|—|nan|NaN|None|"
)
LONG = 30  # characters; a longer cell is wrapped
INTERVAL = re.compile(r"(?<=[\d%]) \[([-+−\d.,%]+), ([-+−\d.,%]+)\]")


def tidy(html: str) -> str:
    """The same page: class "number" on every column of numbers, "long" on cells of many words, and
    no line break inside "51.2 [50.1, 52.3]". A figure's picture leads to itself at full size.
    """
    soup = BeautifulSoup(html, "html.parser")
    for table in soup.find_all("table"):
        columns = {}
        for row in table.select("tbody tr"):
            cells = row.find_all(["th", "td"], recursive=False)
            for place, cell in enumerate(
                cells, -len(cells)
            ):  # from the right: those on the left may span rows
                for text in cell.find_all(string=INTERVAL):
                    text.replace_with(INTERVAL.sub("\u00a0[\\1,\u00a0\\2]", text))
                columns.setdefault(place, []).append(cell)
                if len(cell.get_text()) > LONG:
                    cell["class"] = [*cell.get("class", []), "long"]
        for place, cells in columns.items():
            texts = [cell.get_text().strip() for cell in cells]
            if any(texts) and all(map(NUMBER.fullmatch, texts)):
                heads = [
                    row.find_all(["th", "td"], recursive=False) for row in table.select("thead tr")
                ]
                for cell in cells + [head[place] for head in heads if len(head) >= -place]:
                    cell["class"] = [*cell.get("class", []), "number"]
    for image in soup.select("figure > img"):
        image.wrap(soup.new_tag("a", href=image["src"]))
    for references in soup.find_all(class_="citation-list"):
        del references[
            "role"
        ]  # its items say what they are, and a list may not hold their backlinks
    return str(soup)


def _tidy(app, pagename, templatename, context, doctree) -> None:
    if doctree:
        context["body"] = tidy(context["body"])


def setup(app) -> dict:
    app.connect("html-page-context", _tidy)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
