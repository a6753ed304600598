"""Words of the glossary, where a page first uses them: a link, with what they mean as a card."""

import re
from functools import cache
from typing import Any

from bs4 import BeautifulSoup, NavigableString
from docutils import nodes
from sphinx.util.osutil import relative_uri

GLOSSARY = "glossary"
# words that the language has too
TOO_COMMON = {"chance", "floor", "record", "seed", "positive", "negative"}
WITHIN = ("p", "li")  # where words are looked for
NOT_WITHIN = (
    "a",
    "code",
    "pre",
    "figcaption",
    "summary",
    "h1",
    "h2",
    "h3",
    "h4",
    "th",
    "td",
    "nav",
)


@cache  # of a build: the glossary is on disk, and there are many pages
def meanings(environment: Any) -> dict[str, tuple[str, str]]:
    """Of each term of the glossary its anchor and its meaning, the longest terms first."""
    found = {}
    for item in environment.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
        meaning = item.next_node(nodes.definition).astext()
        for term in item.findall(nodes.term):
            if term.astext() not in TOO_COMMON and "," not in term.astext():
                found[term.astext()] = term["ids"][0], " ".join(meaning.split())
    return dict(sorted(found.items(), key=lambda entry: -len(entry[0])))


def with_cards(html: str, terms: dict[str, tuple[str, str]], address: str) -> str:
    """The page with each term's first use as a link to the glossary, at that address."""
    soup = BeautifulSoup(html, "html.parser")
    left = dict(terms)
    for paragraph in soup.find_all(WITHIN):
        for text in paragraph.find_all(string=True):
            if text.find_parent(NOT_WITHIN) or "math" in (text.parent.get("class") or ()):
                continue
            _link_first(soup, text, left, address)
    return str(soup)


def _link_first(
    soup: BeautifulSoup, text: NavigableString, left: dict[str, tuple[str, str]], address: str
) -> None:
    """Link the terms that are left in one piece of text, and take them out of what is left."""
    for term in left:
        match = re.search(rf"(?<![\w-]){re.escape(term)}s?(?![\w-])", text, re.IGNORECASE)
        if match is None:
            continue
        anchor, meaning = left.pop(term)
        link = soup.new_tag("a", href=f"{address}#{anchor}")
        link["class"], link["data-means"] = "term", meaning
        link.string = match[0]
        before, after = NavigableString(text[: match.start()]), NavigableString(text[match.end() :])
        text.replace_with(before, link, after)
        for rest in (before, after):
            _link_first(soup, rest, left, address)
        return


def _add_cards(app: Any, page: str, template: str, context: dict, doctree: object) -> None:
    if not doctree or page in (GLOSSARY, "notation", "references"):
        return
    address = relative_uri(app.builder.get_target_uri(page), app.builder.get_target_uri(GLOSSARY))
    context["body"] = with_cards(context["body"], meanings(app.env), address)


def setup(app: Any) -> dict:
    app.connect("html-page-context", _add_cards, priority=600)  # after tables
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
