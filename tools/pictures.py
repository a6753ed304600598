"""Draw the book's mark (favicon), its social card, SimCLR's picture, the family's and measuring's.

python -m tools.pictures
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch
from sklearn.datasets import load_sample_image

from lib import figures
from lib.augmentations import RECIPES, views
from tools import family, measure
from tools.book import BOOK

STATIC = BOOK.source / "_static"
BLUE, VERMILION = "#0072B2", "#D55E00"  # Okabe and Ito's, as in the book's figures
DOTS = (  # place, radius and colour
    ((10.5, 16), 5, BLUE),
    ((21.5, 16), 5, BLUE),
    ((6.5, 25.5), 3, VERMILION),
    ((25.5, 6.5), 3, VERMILION),
)


def dots(axes: Axes, line: float) -> None:
    """The mark on axes of 32 by 32. line: the width of the bond, in points."""
    axes.set(xlim=(0, 32), ylim=(0, 32), aspect="equal")
    axes.axis("off")
    axes.plot([11, 21], [16, 16], color=BLUE, linewidth=line)
    for place, radius, colour in DOTS:
        axes.add_patch(Circle(place, radius, color=colour))


def mark(path: Path) -> None:
    """A square PNG of 128 pixels: white, round corners, transparent around them."""
    figure = Figure(figsize=(1.28, 1.28), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    square = FancyBboxPatch(
        (5, 5), 22, 22, boxstyle="round,pad=4.5", facecolor="white", edgecolor="none"
    )
    axes.add_patch(square)
    dots(axes, 7)
    figure.savefig(path, transparent=True, metadata={"Software": None})


def card(path: Path) -> None:
    """A PNG of 1200 by 630 pixels, as social networks show: the book's title beside the mark."""
    config = yaml.safe_load((BOOK.source / "_config.yml").read_bytes())
    title, rest = config["title"].split(", ")

    figure = Figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    dots(figure.add_axes((0.66, 0.2, 0.315, 0.6)), 20)
    figure.text(
        0.06, 0.6, f"{title},\n{rest}", size=40, weight="bold", va="center", linespacing=1.3
    )
    figure.text(
        0.06,
        0.33,
        "SimCLR and SupCon: what they are, run again,\nand which published claims hold",
        size=21,
        color="0.3",
        va="center",
        linespacing=1.4,
    )
    figure.savefig(path, metadata={"Software": None})


def overview(path: Path) -> None:
    """SimCLR's pipeline on the two photographs that come with scikit-learn."""
    photos, pairs = [], []
    for name, left in (("flower.jpg", 60), ("china.jpg", 140)):
        pixels = torch.from_numpy(load_sample_image(name).copy())  # (427, 640, 3)
        photo = pixels.permute(2, 0, 1)[None, :, :, left : left + 427]
        pairs.append(views(photo, RECIPES["uva"], seed=3, step=0)[:, 0].clamp(0, 1))
        photos.append(F.interpolate(photo / 255, 160, mode="area")[0])
    first, second = pairs

    with plt.rc_context():
        figures.use_style()
        figure = figures.pipeline(torch.stack(photos), torch.cat([first, second[:1]]))
        figure.savefig(path, dpi=240, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    mark(STATIC / "mark.png")
    card(STATIC / "card.png")
    overview(STATIC / "overview.png")
    (STATIC / "family.svg").write_text(family.wide(), encoding="utf-8")
    (STATIC / "family-narrow.svg").write_text(family.narrow(), encoding="utf-8")
    (STATIC / "labels.svg").write_text(measure.labels(), encoding="utf-8")
    (STATIC / "noise.svg").write_text(measure.noise(), encoding="utf-8")
