"""Serve MathJax from the book itself, so that the maths can be read without a network."""

from importlib.util import find_spec
from pathlib import Path
from shutil import copy2

SOURCE = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
FILES = ("tex-chtml-full.js", "output/chtml/fonts/woff-v2")


def _copy(app, error) -> None:
    if error or app.builder.format != "html":
        return
    target = Path(app.outdir) / "mathjax"
    for path in [SOURCE / FILES[0], *(SOURCE / FILES[1]).glob("*.woff")]:
        copy = target / path.relative_to(SOURCE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy2(path, copy)


def setup(app) -> dict:
    app.connect(
        "config-inited",
        lambda app, config: setattr(config, "mathjax_path", "../mathjax/tex-chtml-full.js"),
    )
    app.connect("build-finished", _copy)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
