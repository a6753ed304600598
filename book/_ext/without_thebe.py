"""Leave Thebe out: Jupyter Book 1 puts it on every page, twice, and browsers report an error.

Its buttons are not in use here; a chapter runs on Colab and on Binder.
"""

from typing import Any


def _silence(app: Any, config: Any) -> None:
    for listeners in app.events.listeners.values():
        listeners[:] = [each for each in listeners if each.handler.__module__ != "sphinx_thebe"]
    styles = app.registry.css_files
    styles[:] = [style for style in styles if style[0] != "sphinx-thebe.css"]


def setup(app: Any) -> dict:
    app.connect("config-inited", _silence)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
