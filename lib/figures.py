"""One style for every figure. A function takes data, draws on axes, and returns them."""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from pandas.io.formats.style import Styler
from torch import Tensor

from lib.statistics import Interval, Paired, differences, over_seeds, seeds_needed

# Okabe and Ito's palette: told apart by colour-blind readers; a method keeps its colour throughout
# the book
COLOURS = {
    "simclr": "#0072B2",
    "supcon": "#D55E00",
    "ce": "#009E73",
    "untrained": "#999999",
    "pixels": "#CC79A7",
    "kmeans": "#E69F00",
}
HALO = [withStroke(linewidth=3, foreground="white")]  # about a number that a line may cross
NAMES = {
    "simclr": "SimCLR",
    "supcon": "SupCon",
    "ce": "cross-entropy",
    "untrained": "untrained encoder",
    "pixels": "raw pixels",
    "kmeans": "k-means",
}


def name(method: str, encoder: str) -> str:
    """A method's name; that of k-means with its number of features, four a centroid."""
    if method != "kmeans":
        return NAMES[method]
    return f"k-means, {4 * int(encoder.removeprefix('kmeans')):,} features"


def use_style() -> None:
    """Set the book's style for every figure that follows."""
    sns.set_theme(
        style="ticks",
        context="notebook",
        font_scale=0.95,
        rc={
            "figure.dpi": 110,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
        },
    )


def image_grid(
    rows: list[Tensor],
    row_labels: list[str] = (),
    column_labels: list[str] = (),
    title: str = "",
    scale: float = 0.9,
) -> Figure:
    """Images in rows: each a tensor (K, 3, H, W), uint8 or float in [0, 1], of the same K."""
    height, width = len(rows), max(len(row) for row in rows)
    figure, axes = plt.subplots(
        height, width, figsize=(scale * width + 1, scale * height + 0.4), squeeze=False
    )
    for r, row in enumerate(rows):
        for c in range(width):
            axes[r, c].set(xticks=[], yticks=[])
            sns.despine(ax=axes[r, c], left=True, bottom=True)
            if c < len(row):
                image = row[c] / 255 if not row[c].is_floating_point() else row[c]
                axes[r, c].imshow(
                    image.clamp(0, 1).permute(1, 2, 0).cpu().numpy(), interpolation="nearest"
                )
            if r == 0 and c < len(column_labels):
                axes[r, c].set_title(column_labels[c], fontsize=9)
        if r < len(row_labels):
            axes[r, 0].set_ylabel(row_labels[r], rotation=0, ha="right", va="center", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def pipeline(image: Tensor, pair: Tensor) -> Figure:
    """SimCLR in one diagram. image: (3, H, W), pair: its two views (2, 3, S, S), both float in [0,
    1]."""
    figure, axes = plt.subplots(figsize=(9, 3))
    axes.set(xlim=(0, 9), ylim=(0, 3), aspect="equal")
    axes.axis("off")

    def picture(x, y, side, pixels):
        axes.imshow(
            pixels.permute(1, 2, 0),
            extent=(x - side / 2, x + side / 2, y - side / 2, y + side / 2),
            zorder=2,
        )

    def arrow(start, end, **style):
        axes.annotate(
            "", end, start, arrowprops={"arrowstyle": "->", "color": "0.3", "lw": 1.4} | style
        )

    def box(x, text, colour):
        axes.text(
            x,
            1.5,
            text,
            ha="center",
            va="center",
            color="white",
            fontsize=10,
            linespacing=1.6,
            bbox={"boxstyle": "round,pad=0.6", "color": colour},
        )

    picture(0.75, 1.5, 1.3, image)
    for y, view in zip((2.25, 0.75), pair):
        picture(2.6, y, 1.1, view)
        arrow((1.45, 1.5), (2, y))
        arrow((3.2, y), (3.65, 1.5 + (y - 1.5) / 3))
        for x, letter in ((5.55, "h"), (7.6, "z")):
            axes.text(
                x, y, f"${letter}_{1 if y > 1.5 else 2}$", ha="center", va="center", fontsize=13
            )
        arrow((4.6, 1.5 + (y - 1.5) / 3), (5.35, y))
        arrow((5.75, y), (6.25, 1.5 + (y - 1.5) / 3))
        arrow((6.95, 1.5 + (y - 1.5) / 3), (7.4, y))
    box(4.12, "encoder\n$f$", COLOURS["simclr"])
    box(6.6, "head\n$g$", COLOURS["untrained"])
    for start, end in ((1.95, 1.55), (1.05, 1.45)):
        arrow((7.6, start), (7.6, end), color=COLOURS["simclr"], lw=2)
    for x, y, text in (
        (0.75, 0.6, "an image"),
        (2.6, 2.95, "two views"),
        (5.55, 0.3, "kept for use"),
        (6.6, 0.75, "thrown away"),
        (8.3, 1.5, "pulled together;\naway from those\nof other images"),
    ):
        axes.text(x, y, text, ha="center", va="center", fontsize=9, color="0.3")
    return figure


def loss_curve(
    axes: Axes, curves: list[list[dict]], chance: float, floor: float, colour: str
) -> Axes:
    """Loss over epochs, one line a run, between chance (collapse) and the floor no embedding can
    beat."""
    for rows in curves:
        axes.plot(
            [row["epoch"] for row in rows], [row["loss"] for row in rows], color=colour, alpha=0.8
        )
    axes.axhline(chance, color="0.3", ls="--", lw=1)
    axes.axhline(floor, color="0.3", ls=":", lw=1)
    for y, text in (
        (chance, "chance: all embeddings equal"),
        (floor, "floor: no embedding is better"),
    ):
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


def contrast_curves(
    axes: tuple[Axes, Axes], curves: list[list[dict]], colour: str
) -> tuple[Axes, Axes]:
    """Contrastive accuracy and mean cosines (losses.Contrast) over epochs, on two axes, one pair of
    lines a run."""
    parts = (
        (axes[0], 100, ("top1", "top5"), ("the nearest", "one of the five nearest")),
        (axes[1], 1, ("positive", "negative"), ("positive pairs", "negative pairs")),
    )
    for ax, factor, fields, labels in parts:
        for rows in curves:
            table = pd.DataFrame(
                rows, columns=["epoch", *fields], dtype=float
            )  # NaN where not measured
            for field, label, style in zip(fields, labels, ("-", "--")):
                ax.plot(
                    table["epoch"],
                    factor * table[field],
                    style,
                    color=colour,
                    alpha=0.8,
                    label=label if rows is curves[0] else None,
                )
        ax.set_xlabel("epoch")
        ax.legend()
    axes[0].set(ylabel="anchors (%) whose positive is", ylim=(0, 102))
    axes[1].set(ylabel="mean cosine")
    return axes


def peers(axes: Axes, table: pd.DataFrame, value: str, label: str) -> Axes:
    """A cost by batch size, both logarithmic, a line for each library. table: columns library, m
    and value.

    With columns "seconds min" and "seconds max" and the value "ms", bars span the repetitions. Ours
    is drawn bold.
    """
    for style, (library, rows) in zip(
        ("o-", "s--", "D:", "^-.", "v-"), table.groupby("library", sort=False)
    ):
        bold = library == "this book"
        axes.plot(
            rows["m"],
            rows[value],
            style,
            color="black" if bold else "0.4",
            lw=2.5 if bold else 1.5,
            ms=6,
            mfc="black" if bold else "white",
            label=library,
        )
        if value == "ms":
            axes.vlines(
                rows["m"], 1e3 * rows["seconds min"], 1e3 * rows["seconds max"], color="0.3", lw=1
            )
    axes.set(xscale="log", yscale="log", xlabel="embeddings in a batch, M", ylabel=label)
    ticks = sorted(table["m"].unique())
    axes.set_xticks(ticks, ticks)
    axes.minorticks_off()
    return axes


def spreads(table: pd.DataFrame, name: str, digits: int = 2) -> list[str]:
    """Median and range, as text, from the columns "NAME median", "NAME min" and "NAME max"."""
    return [
        f"{median:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"
        for median, low, high in zip(
            *(table[f"{name} {part}"] for part in ("median", "min", "max"))
        )
    ]


def accuracy_dots(axes: Axes, summary: pd.DataFrame, chance: float | None = None) -> Axes:
    """Accuracies as dots with 95 % intervals. summary: columns label, method, mean, low, high
    (fractions), from top.

    The axis shows the range of the dots, so that differences can be seen; a dotted line marks
    guessing, where given and in that range.
    """
    rows = summary.iloc[::-1].reset_index(drop=True)
    known = 100 * rows[["mean", "low", "high"]].to_numpy(dtype=float)
    for y, (row, (mean, low, high)) in enumerate(zip(rows.itertuples(), known)):
        axes.plot(mean, y, "o", color=COLOURS[row.method], ms=7)
        if np.isfinite(low):
            axes.plot([low, high], [y, y], color=COLOURS[row.method], lw=2)
        axes.annotate(
            f"{mean:.1f}",
            (mean, y),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            path_effects=HALO,
        )
    axes.set_yticks(range(len(rows)), rows["label"])
    axes.set(xlabel="test accuracy (%), 95 % interval", ylim=(-0.6, len(rows) - 0.3))
    if len(rows):
        low, high = np.nanmin(known), np.nanmax(known)
        margin = max(1, 0.15 * (high - low))
        axes.set_xlim(low - margin, high + margin)
    if chance is not None:
        axes.axvline(100 * chance, color="black", ls=":", lw=1)
    return axes


def difference_dots(axes: Axes, table: pd.DataFrame) -> Axes:
    """Differences in points with 95 % intervals about a line at 0. table: columns label, value,
    low, high (fractions).

    Where the interval is unknown (one seed) the dot is hollow.
    """
    axes.axvline(0, color="0.3", lw=1)
    for y, row in enumerate(table.iloc[::-1].itertuples()):
        value, low, high = (100 * x for x in (row.value, row.low, row.high))
        axes.plot([low, high], [y, y], color="black", lw=2)
        axes.plot(value, y, "o", color="black", ms=7, mfc="white" if np.isnan(low) else "black")
        axes.annotate(
            f"{value:+z.1f}",
            (value, y),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            path_effects=HALO,
        )
    axes.set_yticks(range(len(table)), table["label"].iloc[::-1])
    axes.set(
        xlabel="difference (points), 95 % interval over paired seeds", ylim=(-0.6, len(table) - 0.3)
    )
    axes.margins(x=0.15)
    return axes


def accuracy_curves(
    axes: Axes, summary: pd.DataFrame, x: str, by: str, label: str, scale: str = "log"
) -> Axes:
    """Accuracy against a number, with its 95 % interval, a line for each value of the column by.

    summary: columns x, by, method, mean, low, high (fractions). label, scale: of the axis ("log" or
    "linear").
    """
    for style, (name, rows) in zip(
        cycle(("o-", "s--", "^:", "D-.", "v-")), summary.groupby(by, sort=False)
    ):
        rows = rows.sort_values(x)
        ends = 100 * (rows["mean"] - rows["low"]), 100 * (rows["high"] - rows["mean"])
        axes.errorbar(
            rows[x],
            100 * rows["mean"],
            ends,
            fmt=style,
            color=COLOURS[rows["method"].iloc[0]],
            ms=5,
            elinewidth=1,
            capsize=3,
            label=name,
        )
    axes.set(xscale=scale, xlabel=label, ylabel="test accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if scale == "log":
        axes.set_xticks(sorted(summary[x].unique()), sorted(summary[x].unique()))
    axes.minorticks_off()
    if summary.empty:
        axes.annotate("no published record yet", (0.5, 0.5), xycoords="axes fraction", ha="center")
    axes.legend(*axes.get_legend_handles_labels())
    return axes


def compared(first: pd.DataFrame, second: pd.DataFrame) -> dict:
    """Two methods (rows of seed, accuracy) over paired seeds: the difference, and how many seeds
    one point needs."""
    pairs = differences(first, second)
    if pairs.empty:
        return {"difference (points)": "no published record yet"}
    row = {"difference (points)": over_seeds(pairs).percent(), "seeds": len(pairs)}
    if len(pairs) > 1:
        row |= {
            "spread of a run (points)": 100 * first["accuracy"].std(),
            "seeds for 1 point": seeds_needed(first["accuracy"].std()),
            "paired": seeds_needed(pairs.std(), paired=True),
        }
    return row


def embedding_map(
    axes: Axes, points: np.ndarray, labels, classes: tuple[str, ...], title: str = ""
) -> Axes:
    """Points (N, 2) in the colours of their classes, whose names stand at their medians.

    The axes of such a map mean nothing: they are not drawn. Up to ten classes have ten colours that
    are told apart.
    """
    points, labels = np.asarray(points), np.asarray(labels)
    for c, colour in enumerate(
        sns.color_palette("tab10" if len(classes) <= 10 else "husl", len(classes))
    ):
        of_class = points[labels == c]
        axes.scatter(*of_class.T, s=10, color=colour, label=classes[c], lw=0)
        if len(of_class):
            axes.text(
                *np.median(of_class, axis=0),
                classes[c],
                fontsize=9,
                weight="bold",
                ha="center",
                va="center",
                path_effects=HALO,
            )
    axes.set(xticks=[], yticks=[], box_aspect=1)
    axes.set_title(title, fontsize=10)
    sns.despine(ax=axes, left=True, bottom=True)
    return axes


def matrix(
    axes: Axes,
    values: Tensor,
    title: str = "",
    low: float = -1,
    high: float = 1,
    digits: int | None = None,
    cmap: str = "vlag",
) -> Axes:
    """A matrix as colours, with its numbers where digits is given."""
    sns.heatmap(
        np.asarray(values),
        ax=axes,
        vmin=low,
        vmax=high,
        cmap=cmap,
        square=True,
        xticklabels=False,
        yticklabels=False,
        annot=digits is not None,
        fmt=f".{digits or 0}f",
        cbar_kws={"shrink": 0.7},
    )
    axes.set_title(title, fontsize=10)
    return axes


def paired_table(pairs: list[Paired], first: str, second: str, n: int) -> pd.DataFrame:
    """One row per seed: the difference in points, the images that only one gets right, p of
    McNemar's test."""
    names = [f"{first} - {second} (points)", f"right: {first} alone", f"right: {second} alone", "p"]
    table = pd.DataFrame(pairs).set_axis(names, axis=1)
    table[names[0]] *= 100
    table["p"] = ["< 0.0001" if p < 1e-4 else f"{p:.4f}" for p in table["p"]]
    return table.assign(**{"test images": n}).rename_axis("seed").round(2)


def accuracy_table(summary: pd.DataFrame, name: str = "accuracy (%)") -> Styler:
    """``lib.statistics.summarise``'s rows as a table to read: accuracies in percent with their 95 %
    intervals.

    What is the same in every row moves into the caption. name: of what was measured; it comes
    first, in sight even where the table is wider than the page.
    """
    if summary.empty:
        return (
            pd.DataFrame({"": ["no published record yet"]})
            .style.hide(axis="index")
            .hide(axis="columns")
        )
    shown = summary.drop(columns=["mean", "low", "high", "seeds", "interval"]).rename(
        columns={"n": "test images"}
    )
    shown.insert(0, name, [Interval(r.mean, r.low, r.high).percent() for r in summary.itertuples()])
    shown.insert(
        1,
        "interval over",
        [r.interval.replace("seeds", f"{r.seeds} seeds") for r in summary.itertuples()],
    )
    same = {
        field: column.iloc[0]
        for field, column in shown.items()
        if len(shown) > 1 and column.nunique() == 1 and field != name
    }
    caption = "; ".join(
        f"{field}: {value:.3g}" if isinstance(value, float) else f"{field}: {value}"
        for field, value in same.items()
    )
    shown = shown.drop(columns=same.keys())
    digits = {
        field: "{:.1f}" if field == "minutes" else "{:.3g}"
        for field in shown.select_dtypes("float")
    }
    table = shown.style.hide(axis="index").format(digits)
    return table.set_caption(f"In every row: {caption}") if same else table
