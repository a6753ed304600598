"""Anchors within a page, written ``<a id="NAME"></a>``, that links from other pages may name.

As HTML they are not seen on Colab and GitHub, where MyST's own targets would be text.
"""

import re
from typing import Any

from docutils import nodes

ANCHOR = re.compile(r'<a id="([\w-]+)">')


def _collect(app: Any, doctree: nodes.document) -> None:
    """Add a page's anchors to those of its headings, in which MyST looks for a link's end."""
    slugs = app.env.metadata[app.env.docname].setdefault("myst_slugs", {})
    for node in doctree.findall(nodes.raw):
        for name in ANCHOR.findall(node.astext()):
            slugs[name] = (node.line, name, name)


def setup(app: Any) -> dict:
    app.connect("doctree-read", _collect)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
