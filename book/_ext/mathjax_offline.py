"""Serve MathJax from the book itself, so that the maths can be read without a network."""

from importlib.util import find_spec
from pathlib import Path
from shutil import copy2
from typing import Any

SOURCE = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
SCRIPT = "tex-chtml-full.js"
FONTS = "output/chtml/fonts/woff-v2"


def _set(app: Any, config: Any) -> None:
    config.mathjax_path = f"../mathjax/{SCRIPT}"


def _copy(app: Any, error: Exception | None) -> None:
    if error or app.builder.format != "html":
        return
    target = Path(app.outdir) / "mathjax"
    for path in [SOURCE / SCRIPT, *(SOURCE / FONTS).glob("*.woff")]:
        copy = target / path.relative_to(SOURCE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy2(path, copy)


def setup(app: Any) -> dict:
    app.connect("config-inited", _set)
    app.connect("build-finished", _copy)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
