"""Draw who sees which label, and which noise is in which interval, as SVG.

They have no background; where a page shows them as images their text is black.

python -m tools.pictures
"""

from collections.abc import Iterable
from html import escape

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#808080"  # Okabe and Ito's
WIDTH = 480  # pixels
SPLITS = ("unlabelled", "training", "validation", "test")
# what reads a data set, in order, and what it reads of each split
STEPS = (
    ("SimCLR", ("images", "images", "", "")),
    ("cross-entropy, SupCon", ("", "labels", "", "")),
    ("probe, every penalty", ("", "labels", "", "")),
    ("choice of the penalty", ("", "", "labels", "")),
    ("probe, once more", ("", "labels", "labels", "")),
    ("accuracy, one look", ("", "", "", "labels")),
)
FILLS = {"images": (BLUE, 0.15), "labels": (ORANGE, 0.55)}  # colour and opacity
# from the inside out: what may be other than it was, and what answers for it
NOISES = (
    ("other test images", "in every interval of a level: Wilson's", BLUE),
    ("a few other labels", "one run, several subsets: Student's over these", GREEN),
    ("another seed", "several runs: Student's over the runs", ORANGE),
    ("other data, settings, tuning", "in no interval of this book", GREY),
)


def text(x: float, y: float, words: str, size: int = 13, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}"{more}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, colour: str, opacity: float) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" '
        f'fill="{colour}" fill-opacity="{opacity:g}" stroke="{colour}"/>'
    )


def drawing(height: float, about: str, parts: Iterable[str]) -> str:
    """An SVG of WIDTH by height; about: what it shows, in words."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
        f'viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(about)}" '
        'fill="currentColor" font-family="system-ui, -apple-system, sans-serif">'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def labels() -> str:
    """Who sees which label: a row for each step, a column for each split."""
    left, wide, high = 156, 81, 34
    parts, said = [], []
    for place, split in enumerate(SPLITS):
        x = left + wide * place + (wide - 5) / 2
        parts.append(text(x, 18, split, more=' text-anchor="middle" font-weight="600"'))
    for row, (step, seen) in enumerate(STEPS):
        y = 28 + high * row
        parts.append(text(0, y + 19, step))
        for place, what in enumerate(seen):
            if what:
                x = left + wide * place
                parts.append(box(x, y, wide - 5, high - 6, *FILLS[what]))
                middle = x + (wide - 5) / 2
                parts.append(text(middle, y + 19, what, more=' text-anchor="middle"'))
                said.append(f"{step}: {what} of {SPLITS[place]}")
    return drawing(28 + high * len(STEPS), "; ".join(said), parts)


def noise() -> str:
    """Which noise is in which interval: boxes in each other, the outermost in no interval."""
    step = 44
    total = (step + 12) * len(NOISES)
    parts, said = [], []
    for place, (source, interval, colour) in reversed(list(enumerate(NOISES))):
        inset = 12 * (len(NOISES) - 1 - place)
        top = step * (len(NOISES) - 1 - place)
        parts.append(
            box(inset + 1, top + 1, WIDTH - 2 * inset - 2, total - top - inset - 2, colour, 0.12)
        )
        parts.append(text(inset + 12, top + 19, source, more=' font-weight="600"'))
        parts.append(text(inset + 12, top + 36, interval))
    for source, interval, _ in NOISES:
        said.append(f"{source}: {interval}")
    return drawing(total, "From the inside out. " + "; ".join(said), parts)
