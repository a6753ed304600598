"""One style for every figure. A function takes data, draws on axes, and returns them."""

import base64
import io
import json
import logging
import sys
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from lib.methods import METHODS

# a method keeps its colour throughout the book; those of what is no method are Okabe and Ito's too
COLOURS = {
    **{name: method.colour for name, method in METHODS.items()},
    "untrained": "#707070",
    "pixels": "#CC79A7",
    "kmeans": "#E69F00",
}
NAMES = {
    **{name: method.name for name, method in METHODS.items()},
    "untrained": "untrained encoder",
    "pixels": "raw pixels",
    "kmeans": "k-means",
}
WIDTH = 5.0  # inches: of a figure that can be read on a phone as on a desktop
# what the theme's pages are set in, and what matplotlib measures text by
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "DejaVu Sans"]
PUSH = "#222222"  # no method's colour
Point = tuple[float, float]


def name(method: str, encoder: str) -> str:
    """A method's name; that of k-means with its number of features, four a centroid."""
    if method != "kmeans":
        return NAMES[method]
    return f"k-means, {4 * int(encoder.removeprefix('kmeans')):,} features"


def use_style() -> None:
    """Set the book's style for every figure that follows; notebooks draw them as SVG.

    Text in an SVG stays text, in the first of FONTS that the reader's machine has, as on the page.
    """
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # most fonts are missing
    sns.set_theme(
        style="ticks",
        context="notebook",
        font_scale=0.95,
        rc={
            "font.family": "sans-serif",
            "font.sans-serif": FONTS,
            "figure.figsize": (WIDTH, 3.2),
            "figure.dpi": 96,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
            "svg.fonttype": "none",
            "svg.hashsalt": "the same ids every time",
        },
    )
    if "IPython" not in sys.modules:  # which only a notebook has loaded
        return
    shell = sys.modules["IPython"].get_ipython()
    if shell is not None:
        shell.run_line_magic("config", "InlineBackend.figure_formats = ['svg']")


def rows_of_dots(count: int) -> tuple[Figure, Axes]:
    """A figure for so many rows of ``accuracy_dots`` or ``difference_dots``."""
    return plt.subplots(figsize=(WIDTH, 0.5 * count + 0.6))


def image_grid(
    rows: Sequence[Tensor],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    scale: float = 0.9,
) -> Figure:
    """Images in rows: each a tensor (K, 3, H, W), uint8 or float in [0, 1], of the same K."""
    height, width = len(rows), max(len(row) for row in rows)
    size = scale * width + 1, scale * height + 0.4
    figure, axes = plt.subplots(height, width, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)

    for axes_of_row, images in zip(axes, rows):
        for axis, image in zip(axes_of_row, images):
            axis.imshow(_drawable(image), interpolation="nearest")
    for axis, label in zip(axes[0], column_labels):
        axis.set_title(label, fontsize=9)
    for axis, label in zip(axes[:, 0], row_labels):
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def neighbours(axes: Axes, queries: Tensor, found: Tensor, alike: Tensor, title: str = "") -> Axes:
    """Images in a column, each with its neighbours at its right; a frame marks those not alike.

    queries: (Q, 3, H, W), found: (Q, K, 3, H, W), uint8 or float in [0, 1]; alike: (Q, K) bool.
    """
    rows = torch.cat([queries[:, None], found], dim=1)  # (Q, 1 + K, 3, H, W)
    if not rows.is_floating_point():
        rows = rows / 255
    # enlarged and with a margin, so that no image runs into the next
    tiles = F.interpolate(rows.flatten(0, 1), scale_factor=3, mode="bilinear")
    edge = tiles.shape[-1] // 16
    tiles = F.pad(tiles, [edge] * 4, value=1).unflatten(0, rows.shape[:2])
    picture = tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (Q H, (1 + K) W, 3)

    count, width = rows.shape[:2]
    extent = (0, width, count, 0)
    axes.imshow(picture.clamp(0, 1).cpu().numpy(), extent=extent, interpolation="none")
    for y, x in (~alike).nonzero().tolist():
        look: dict[str, Any] = {"fill": False, "color": COLOURS["supcon"], "lw": 2.5}
        axes.add_patch(Rectangle((x + 1.06, y + 0.06), 0.88, 0.88, **look))
    axes.axvline(1, color="0.3", lw=1)
    axes.set_title(title, fontsize=10)
    axes.axis("off")
    return axes


def _drawable(image: Tensor) -> np.ndarray:
    """An image (3, H, W), uint8 or float, as (H, W, 3) in [0, 1]."""
    if not image.is_floating_point():
        image = image / 255
    return image.clamp(0, 1).permute(1, 2, 0).cpu().numpy()


def sheet(images: Tensor, columns: int = 1, quality: int = 90) -> str:
    """Images (N, 3, H, W), uint8 or float in [0, 1], in rows of so many, as an address of a JPEG.

    Sides that are multiples of eight pixels keep each image out of the next. What is left of the
    last row is black.
    """
    left = -len(images) % columns
    images = torch.cat([images, images.new_zeros(left, *images.shape[1:])])
    rows = [np.hstack([_drawable(image) for image in row]) for row in images.split(columns)]
    pixels = np.rint(255 * np.vstack(rows)).astype(np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode()


def page_data(id: str, value: object) -> str:
    """HTML that shows nothing and gives a page's scripts a value, as JSON under that id."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    return f'<script type="application/json" id="{id}">{text}</script>'


def pipeline(images: Tensor, views: Tensor) -> Figure:
    """SimCLR in one diagram.

    images: two (2, 3, H, W), views: two of the first and one of the second (3, 3, S, S); both float
        in [0, 1].
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 3.6))
    axes.set(xlim=(0, 10), ylim=(-0.2, 7), aspect="equal")
    axes.axis("off")

    for image, y in zip(images, (5, 1.5), strict=True):
        _place(axes, image, 0.9, y, side=1.8)
    rows = ((6, 5.3), (4, 4.7), (1.5, 1.5))  # height of a view, and where the arrow to it begins
    for number, (view, (y, start)) in enumerate(zip(views, rows, strict=True), start=1):
        _place(axes, view, 3, y, side=1.5)
        _arrow(axes, (1.85, start), (2.2, y))
        for left, right in ((3.8, 4.35), (5.25, 5.75), (6.3, 6.75), (7.65, 8.15)):
            _arrow(axes, (left, y), (right, y))
        for x, letter in ((6.02, "h"), (8.4, "z")):
            axes.text(x, y, f"${letter}_{number}$", ha="center", va="center", fontsize=13)

    for x, words, colour in ((4.8, "encoder", "simclr"), (7.2, "head", "untrained")):
        axes.add_patch(Rectangle((x - 0.42, 0.7), 0.84, 6.1, color=COLOURS[colour], lw=0))
        axes.text(x, 3.75, words, color="white", rotation=90, ha="center", va="center")

    _arrow(axes, (8.9, 4.1), (8.9, 5.9), arrowstyle="<->", color=COLOURS["simclr"], lw=2)
    axes.text(9.05, 5, "pull", color=COLOURS["simclr"], va="center", fontsize=10)
    _arrow(axes, (8.9, 3.6), (8.9, 2), arrowstyle="<->", color=PUSH, lw=2)
    axes.text(9.05, 2.8, "push", color=PUSH, va="center", fontsize=10)
    under = ((0.9, "images"), (3, "random\nviews"), (6.02, "kept for\nuse"), (7.6, "thrown\naway"))
    for x, words in under:
        axes.text(x, 0.5, words, ha="center", va="top", fontsize=9, color="0.3")
    return figure


def _place(axes: Axes, image: Tensor, x: float, y: float, side: float) -> None:
    """Draw an image (3, H, W) about a point."""
    left, bottom = x - side / 2, y - side / 2
    extent = (left, left + side, bottom, bottom + side)
    axes.imshow(_drawable(image), extent=extent, zorder=2)


def _arrow(axes: Axes, start: Point, end: Point, **style) -> None:
    properties = {"arrowstyle": "->", "color": "0.3", "lw": 1.4}
    axes.annotate("", end, start, arrowprops=properties | style)


def write_row(axes: Axes, y: int, label: str, number: str) -> None:
    """Write a row's label and number above its dot, at the left and the right of the axes."""
    for x, text, side, weight in ((0, label, "left", "normal"), (1, number, "right", "bold")):
        axes.annotate(
            text,
            (x, y),
            label=f"row, {side}",  # by which end_rows finds them
            xytext=(0, 7),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha=side,
            weight=weight,
            fontsize=10,
        )


def end_rows(axes: Axes, count: int, xlabel: str) -> None:
    """Make of axes those of so many rows, which ``write_row`` has named."""
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel=xlabel, ylim=(-0.4, count - 0.2))
    _refuse_names_that_reach_their_numbers(axes)


def _refuse_names_that_reach_their_numbers(axes: Axes) -> None:
    """Raise ValueError where a row's name is too long to stand beside its number."""
    figure = axes.get_figure(root=True)
    assert figure is not None  # axes that are drawn on have one
    figure.draw_without_rendering()
    names, numbers = (
        [text for text in axes.texts if text.get_label() == f"row, {side}"]
        for side in ("left", "right")
    )
    for name, number in zip(names, numbers, strict=True):
        if name.get_window_extent().x1 > number.get_window_extent().x0:
            raise ValueError(f"too long to stand beside its number: {name.get_text()!r}")


def loss_curve(
    axes: Axes, curves: list[list[dict]], chance: float, floor: float, colour: str
) -> Axes:
    """Loss over epochs, one line a run, between chance and floor.

    chance: where all embeddings are alike (collapse).
    floor: no embedding can be better.
    """
    for rows in curves:
        epochs = [row["epoch"] for row in rows]
        losses = [row["loss"] for row in rows]
        axes.plot(epochs, losses, color=colour, alpha=0.8)

    bounds = (
        (chance, "--", "chance: all embeddings equal"),
        (floor, ":", "floor: no embedding is better"),
    )
    for y, style, text in bounds:
        axes.axhline(y, color="0.3", ls=style, lw=1)
        axes.annotate(
            text,
            (0.99, y),
            xytext=(0, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=9,
        )
    axes.set(xlabel="epoch", ylabel="loss (nats)")
    axes.margins(y=0.12)
    return axes


def spreads(table: pd.DataFrame, name: str, digits: int = 2) -> list[str]:
    """Median and range, as text, from the columns "NAME median", "NAME min" and "NAME max"."""
    columns = [f"{name} {end}" for end in ("median", "min", "max")]
    texts = []
    for row in table[columns].itertuples(index=False):
        median, low, high = (f"{value:,.{digits}f}" for value in row)
        texts.append(f"{median} [{low}, {high}]")
    return texts


def accuracy_dots(axes: Axes, summary: pd.DataFrame, chance: float | None = None) -> Axes:
    """Accuracies as dots with 95 % intervals.

    summary: columns label, method, mean, low, high (fractions), from top.

    The axis shows the range of the dots, so that differences can be seen; a dotted line marks
    guessing, where given and in that range. A dot whose interval is unknown (published) is hollow.
    """
    rows = summary.iloc[::-1].reset_index(drop=True)
    percent = 100 * rows[["mean", "low", "high"]].to_numpy(dtype=float)
    for y, (mean, low, high) in enumerate(percent):
        colour = COLOURS[rows["method"][y]]
        axes.plot(mean, y, "o", color=colour, ms=7, mfc="white" if np.isnan(low) else colour)
        if np.isfinite(low):
            axes.plot([low, high], [y, y], color=colour, lw=2)
        write_row(axes, y, rows["label"][y], f"{mean:.1f}")

    end_rows(axes, len(rows), "test accuracy (%), 95 % interval")
    if len(rows):
        least, most = np.nanmin(percent), np.nanmax(percent)
        margin = max(1, 0.15 * (most - least))
        axes.set_xlim(least - margin, most + margin)
    if chance is not None:
        axes.axvline(100 * chance, color="black", ls=":", lw=1)
    return axes


def difference_dots(axes: Axes, table: pd.DataFrame) -> Axes:
    """Differences in points with 95 % intervals about a line at 0.

    table: columns label, and value, low and high of a ``comparisons.Comparison`` (fractions).

    Where the interval is unknown (one seed) the dot is hollow.
    """
    # light, since it goes through the words; axes.lines are the rows' alone
    axes.vlines(0, 0, 1, color="0.7", lw=1.2, zorder=0, transform=axes.get_xaxis_transform())
    for y, row in enumerate(table.iloc[::-1].itertuples()):
        value, low, high = 100 * row.value, 100 * row.low, 100 * row.high
        fill = "white" if np.isnan(low) else "black"
        axes.plot([low, high], [y, y], color="black", lw=2)
        axes.plot(value, y, "o", color="black", ms=7, mfc=fill)
        write_row(axes, y, row.label, f"{value:+z.1f}")

    end_rows(axes, len(table), "difference (points), 95 % interval over paired seeds")
    axes.margins(x=0.15)
    return axes


def accuracy_curves(
    axes: Axes,
    summary: pd.DataFrame,
    x: str,
    by: str,
    label: str,
    scale: str = "log",
    bands: bool = False,
) -> Axes:
    """Accuracy against a number, with its 95 % interval, a line for each value of a column.

    summary: columns x, by, method, mean, low, high (fractions).
    x: the column of the number.
    by: the column whose values have a line each.
    label, scale: of the axis ("log" or "linear").
    bands: draw the intervals as bands instead of bars.
    """
    styles = cycle(("o-", "s--", "^:", "D-.", "v-"))
    for style, (name, rows) in zip(styles, summary.groupby(by, sort=False)):
        rows = rows.sort_values(x)
        colour = COLOURS[rows["method"].iloc[0]]
        mean, low, high = (100 * rows[column] for column in ("mean", "low", "high"))
        if bands:
            axes.plot(rows[x], mean, style, color=colour, ms=5, label=name)
            axes.fill_between(rows[x], low, high, color=colour, alpha=0.2, lw=0)
            continue
        axes.errorbar(
            rows[x],
            mean,
            (mean - low, high - mean),
            fmt=style,
            color=colour,
            ms=5,
            elinewidth=1,
            capsize=3,
            label=name,
        )

    axes.set(xscale=scale, xlabel=label, ylabel="test accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if scale == "log":
        ticks = sorted(summary[x].unique())
        axes.set_xticks(ticks, ticks)
    axes.minorticks_off()
    if summary.empty:
        axes.annotate("no published record yet", (0.5, 0.5), xycoords="axes fraction", ha="center")
    axes.legend(*axes.get_legend_handles_labels())
    return axes


def embedding_map(
    axes: Axes,
    points: np.ndarray,
    labels: Sequence[int],
    classes: tuple[str, ...],
    title: str = "",
) -> Axes:
    """Points (N, 2) in the colours of their classes, whose names stand at their medians.

    The axes of such a map mean nothing: they are not drawn. Up to ten classes have ten colours that
    are told apart.
    """
    places = np.asarray(points)
    palette = "tab10" if len(classes) <= 10 else "husl"
    for c, colour in enumerate(sns.color_palette(palette, len(classes))):
        members = places[np.asarray(labels) == c]
        axes.scatter(members[:, 0], members[:, 1], s=10, color=colour, label=classes[c], lw=0)
        if len(members):
            x, y = np.median(members, axis=0)
            axes.text(
                x,
                y,
                classes[c],
                fontsize=9,
                weight="bold",
                ha="center",
                va="center",
                bbox={"boxstyle": "round,pad=0.15", "color": "white", "alpha": 0.8, "lw": 0},
            )

    axes.set(xticks=[], yticks=[], box_aspect=1)
    axes.set_title(title, fontsize=10)
    sns.despine(ax=axes, left=True, bottom=True)
    return axes
