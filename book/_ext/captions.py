"""Figures have numbers on numbered pages; on others Sphinx would count them across pages."""

from typing import Any


def _unnumber(app: Any, env: Any) -> None:
    for page in env.toc_fignumbers:
        if not env.toc_secnumbers.get(page):
            env.toc_fignumbers[page] = {}


def setup(app: Any) -> dict:
    app.connect("env-check-consistency", _unnumber)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
