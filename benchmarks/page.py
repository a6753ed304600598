"""The encoder that a page of the book runs in plain JavaScript, beside PyTorch on one core.

h and z of one view after the other, by the exported encoder that the page has, in Chromium without
a network. The record says how far h is from the package's, and how large the weights' script is.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from lib import ROOT, InputError
from lib.augmentations import RECIPES, views
from lib.data import load
from lib.weights import load as load_weights
from tools import chromium, page_encoder
from tools.book import BOOK

PEERS = ()
VIEWS = 10  # in a call: to ask the browser takes a millisecond, which is then little
WEIGHTS = ROOT / "weights"
PAGE = """<!doctype html><meta charset="utf-8"><script>
const Play = {{ data: {{}} }};
</script><script>{encoder}</script><script>{weights}</script><script>
const encoder = Encoder.decoded(Play.data.encoder.encoders.trained);
let views;
const give = (given) => {{
  views = given.map((view) => view.map((plane) => Float32Array.from(plane)));
}};
const features = () => views.map((view) => Encoder.features(encoder, view));
</script>"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks page``."""
    parser.add_argument(
        "--weights", type=Path, default=WEIGHTS, metavar="DIR", help="the book's (default weights)"
    )


def seen(size: int) -> Tensor:
    """Views (VIEWS, 3, size, size) in [0, 1], of tinted digits."""
    images = load("tinted-digits").train.images[:VIEWS]
    return views(images, replace(RECIPES["none"], size=size), seed=0, step=0, count=1)[0]


@contextmanager
def in_a_page(script: str, x: Tensor) -> Iterator[Any]:
    """A page with the encoder and the views x, for playwright."""
    encoder = (BOOK.source / "_play" / "play" / "encoder.js").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, chromium.opened() as context:
        path = Path(folder) / "page.html"
        path.write_text(PAGE.format(encoder=encoder, weights=script), encoding="utf-8")
        page = context.new_page()
        page.goto(path.as_uri())
        page.evaluate("(given) => give(given)", x.flatten(2).tolist())
        yield page


def run(args: argparse.Namespace) -> None:
    """Measure, print, keep the record."""
    chosen = page_encoder.pair(args.weights)
    script = page_encoder.script(args.weights)
    if chosen is None or script is None:
        raise InputError(f"{args.weights} has no encoders that a page can run")
    weights = load_weights(chosen.trained, args.weights)
    model = weights.model.eval()
    x = seen(weights.size)
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (weights.recipe.mean, weights.recipe.std))
    normal = (x - mean) / std

    @torch.no_grad()
    def pytorch() -> list[tuple[Tensor, Tensor]]:
        return [model(view[None]) for view in normal]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a page has one
    try:
        with in_a_page(script, x) as page:
            given = page.evaluate("features().map(({ h }) => Array.from(h))")
            seconds = measure.interleaved(
                {"page": lambda: page.evaluate("void features()"), "PyTorch": pytorch},
                args.repetitions,
            )
        expected = torch.cat([h for h, _ in pytorch()])
    finally:
        torch.set_num_threads(threads)

    rows = []
    for library, taken in seconds.items():
        a_view = [one / VIEWS for one in taken]
        row: dict = {"library": library, "seconds_a_view": measure.spread(a_view)}
        if library == "page":
            row["times_pytorch"] = measure.ratios(taken, seconds["PyTorch"])
            row["bytes"] = len(script)
            row["farthest"] = float((torch.tensor(given) - expected).abs().max())
        rows.append(row)
        print(f"{library:<8} {1000 * row['seconds_a_view']['median']:6.1f} ms a view")
    settings = {"weights": chosen.trained.name, "views": VIEWS, "repetitions": args.repetitions}
    print(measure.keep("page", torch.device("cpu"), rows, PEERS, settings, args.results))
