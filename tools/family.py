"""Draw the family of contrastive methods by year, for wide pages and for narrow ones.

A method has the colour of what keeps it from collapsing. Its parents are those that its paper says
it takes something over from; the section stands beside them. The SVGs go into the page itself:
they have no background, and their text has the colour of the text around them.

python -m tools.pictures
"""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Band:
    """What keeps methods from collapsing, in a few words. rows: of methods, on a wide page."""

    name: str
    means: str
    colour: str
    rows: int


@dataclass(frozen=True)
class Method:
    """A method, in a row of its band."""

    name: str
    year: int
    band: str
    row: int
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Box:
    """A rectangle: its left upper corner, width and height."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def middle(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2


BANDS = {  # Okabe and Ito's colours, as in the book's figures
    "negatives": Band("Negatives", "other images are pushed away", "#0072B2", 3),
    "clusters": Band(
        "Clusters",
        "one view predicts the other's cluster, and no cluster stays empty",
        "#E69F00",
        1,
    ),
    "predictor": Band(
        "Predictor, stopped gradient",
        "one side predicts the other, which gets no gradient",
        "#D55E00",
        2,
    ),
    "distillation": Band(
        "Self-distillation",
        "a slow copy teaches; its output is centred and sharpened",
        "#009E73",
        2,
    ),
    "decorrelation": Band(
        "Decorrelation", "dimensions must vary, and must not repeat each other", "#CC79A7", 2
    ),
    "masking": Band("Masking", "the other road: rebuild what was hidden", "#808080", 1),
}
METHODS = (
    Method("Contrastive loss", 2006, "negatives", 0),
    Method("NCE", 2010, "negatives", 1),
    Method("word2vec", 2013, "negatives", 0, ("NCE",)),  # section 2.2
    Method("Triplet loss", 2015, "negatives", 0),
    Method("Instance discrimination", 2018, "negatives", 1, ("NCE",)),  # section 3.2
    Method("InfoNCE", 2018, "negatives", 2, ("NCE",)),  # section 2.3
    Method("MoCo", 2019, "negatives", 1, ("InfoNCE", "Instance discrimination")),  # 3.1, 3.2
    Method("SimCLR", 2020, "negatives", 2, ("InfoNCE",)),  # section 2.1
    Method("SupCon", 2020, "negatives", 0, ("Triplet loss", "SimCLR")),  # sections 3.2.3, 3
    Method("MoCo v3", 2021, "negatives", 1, ("MoCo",)),  # section 3
    Method("CLIP", 2021, "negatives", 2, ("InfoNCE",)),  # section 2.3
    Method("SigLIP", 2023, "negatives", 2, ("CLIP",)),  # section 3
    Method("SwAV", 2020, "clusters", 0, ("SimCLR",)),  # section 4
    Method("BYOL", 2020, "predictor", 0, ("SimCLR",)),  # section 3.3
    Method("SimSiam", 2020, "predictor", 1, ("BYOL",)),  # section 1
    Method("DINO", 2021, "distillation", 0, ("BYOL",)),  # section 2
    Method("iBOT", 2021, "distillation", 1, ("DINO",)),  # section 2.2
    Method("DINOv2", 2023, "distillation", 0, ("DINO", "iBOT")),  # section 4
    Method("DINOv3", 2025, "distillation", 0, ("DINOv2",)),  # section 3
    Method("Barlow Twins", 2021, "decorrelation", 0),
    Method("VICReg", 2021, "decorrelation", 1, ("Barlow Twins",)),  # section 4.1
    Method("MAE", 2021, "masking", 0),
)
OURS = ("SimCLR", "SupCon")  # this book's, drawn bolder
YEARS = {  # left edge and width of a year's column on a wide page
    2006: (8, 80),
    2010: (102, 44),
    2013: (160, 70),
    2015: (244, 58),
    2018: (314, 96),
    2019: (425, 48),
    2020: (492, 66),
    2021: (571, 90),
    2023: (675, 54),
    2025: (741, 54),
}
WIDE, NARROW = 800, 358
LEFT, RIGHT = (38, 178), (222, 136)  # left edge and width of a narrow page's columns
LETTER = 7.2  # pixels, on average, in the widest of usual fonts


def bands() -> dict[str, Box]:
    """Where each band lies on a wide page."""
    places, top = {}, 24
    for key, band in BANDS.items():
        height = 14 + 32 * band.rows
        if key == "negatives":  # their words stand above them
            height = 34 + 44 * band.rows
        places[key] = Box(0, top, WIDE, height)
        top += height + 6
    return places


def wide_boxes() -> dict[str, Box]:
    """Where each method stands on a wide page: time runs to the right."""
    places, boxes = bands(), {}
    for method in METHODS:
        left, width = YEARS[method.year]
        top = places[method.band].y
        if method.band == "negatives":
            boxes[method.name] = Box(left, top + 28 + 44 * method.row, width, 36)
        else:
            boxes[method.name] = Box(left, top + 10 + 32 * method.row, width, 26)
    return boxes


def narrow_boxes() -> dict[str, Box]:
    """Where each stands on a narrow page: time runs down, those with negatives to the left."""
    boxes, start = {}, 0
    for year in YEARS:
        ends = []
        for left, width in (LEFT, RIGHT):
            top = start + 5
            for method in METHODS:
                if method.year == year and (method.band == "negatives") == (left == LEFT[0]):
                    height = 11 + 15 * len(lines(method, width))
                    boxes[method.name] = Box(left, top, width, height)
                    top += height + 6
            ends.append(top)
        start = max(ends)
    return boxes


def lines(method: Method, width: float) -> list[str]:
    """A method with its parents behind an arrow, in as many lines as fit into a width."""
    if not method.parents:
        return [name(method)]
    parents = ", ".join(method.parents)
    if LETTER * len(f"{method.name} <- {parents}") < width:
        return [f"{name(method)} {from_parents(parents)}"]
    if LETTER * len(f"<- {parents}") < width:
        return [name(method), from_parents(parents)]
    return [name(method), *map(from_parents, method.parents)]


def from_parents(words: str) -> str:
    return f'<tspan fill-opacity="0.75">\N{LEFTWARDS ARROW} {escape(words)}</tspan>'


def text(x: float, y: float, words: str, more: str = "") -> str:
    """Words on the line y, which begin at x, or lie about it where more says so."""
    return f'<text x="{x:g}" y="{y:g}"{more and " " + more}>{words}</text>'


def name(method: Method) -> str:
    words = escape(method.name)
    return f'<tspan font-weight="bold">{words}</tspan>' if method.name in OURS else words


def rectangle(box: Box, colour: str, opacity: float, more: str = "") -> str:
    place = f'x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}" rx="5"'
    return f'<rect {place} fill="{colour}" fill-opacity="{opacity:g}"{more and " " + more}/>'


def frame(method: Method, box: Box) -> str:
    colour = BANDS[method.band].colour
    width = 3 if method.name in OURS else 1.2
    return rectangle(box, colour, 0.22, f'stroke="{colour}" stroke-width="{width:g}"')


def line(start: Box, end: Box, boxes: Iterable[Box]) -> str:
    """From a parent to its child, past what stands between them in their row or column."""
    (x, y), (u, v) = start.middle, end.middle
    if start.x == end.x:
        low, high = sorted([y, v])
        if any(box.x == start.x and low < box.middle[1] < high for box in boxes):
            path = f"M{start.x:g},{start.bottom - 8:g}h-8V{v:g}h8"
        elif y < v:
            path = f"M{x:g},{start.bottom:g}V{end.y:g}"
        else:
            path = f"M{x:g},{start.y:g}V{end.bottom:g}"
    elif any(box.y == start.y == end.y and start.x < box.x < end.x for box in boxes):
        path = f"M{x:g},{start.bottom:g}v5H{u:g}v-5"
    else:
        half = (start.right + end.x) / 2
        path = f"M{start.right:g},{y:g}C{half:g},{y:g} {half:g},{v:g} {end.x:g},{v:g}"
    return f'<path d="{path}"/>'


def described() -> str:
    """The picture in words, for those who do not see it."""
    sentences = ["The family by year, and by what keeps it from collapsing."]
    for key, band in BANDS.items():
        methods = [f"{method.name} {method.year}" for method in METHODS if method.band == key]
        sentences.append(f"{band.name}: {', '.join(methods)}.")
    return " ".join(sentences)


def svg(kind: str, width: float, height: float, parts: list[str]) -> str:
    """kind: wide or narrow, the class that book.css shows by the page's width."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="family {kind}" role="img"'
    head += f' viewBox="0 0 {width:g} {height:g}" aria-label="{escape(described())}"'
    head += ' font-family="system-ui, sans-serif" font-size="12.5" fill="currentColor">'
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def wide() -> str:
    boxes, parts = wide_boxes(), []
    for year, (left, width) in YEARS.items():
        parts.append(text(left + width / 2, 14, str(year), 'text-anchor="middle"'))

    for key, place in bands().items():
        band = BANDS[key]
        title = f'<tspan font-weight="bold">{escape(band.name)}</tspan>'
        means = escape(band.means)
        parts.append(rectangle(place, band.colour, 0.1))
        if key == "negatives":
            parts.append(text(8, place.y + 18, f"{title}: {means}"))
        else:
            parts.append(text(8, place.middle[1] - 4, title))
            parts.append(text(8, place.middle[1] + 13, means))

    parts.append('<g fill="none" stroke="currentColor" stroke-opacity="0.6" stroke-width="1.3">')
    for method in METHODS:
        for parent in method.parents:
            parts.append(line(boxes[parent], boxes[method.name], boxes.values()))
    parts.append("</g>")

    for method in METHODS:
        box = boxes[method.name]
        parts.append(frame(method, box))
        x, y = box.middle
        if LETTER * len(method.name) < box.width:
            parts.append(text(x, y + 4.5, name(method), 'text-anchor="middle"'))
        else:
            for words, below in zip(method.name.split(), (-3, 12), strict=True):
                parts.append(text(x, y + below, escape(words), 'text-anchor="middle"'))
    return svg("wide", WIDE, list(bands().values())[-1].bottom, parts)


def narrow() -> str:
    boxes, parts = narrow_boxes(), []
    for year in YEARS:
        top = min(boxes[method.name].y for method in METHODS if method.year == year)
        parts.append(text(0, top + 17.5, str(year)))

    for y, words in ((22, "What keeps them"), (37, "from collapsing")):
        parts.append(text(RIGHT[0], y, words, 'font-weight="bold"'))
    y = 47
    for band in BANDS.values():
        stroke = f'stroke="{band.colour}"'
        parts.append(rectangle(Box(RIGHT[0], y, 14, 14), band.colour, 0.22, stroke))
        for words in band.name.replace(", ", ",\n").splitlines():
            parts.append(text(RIGHT[0] + 21, y + 11.5, escape(words)))
            y += 15
        y += 6

    for method in METHODS:
        box = boxes[method.name]
        parts.append(frame(method, box))
        for number, words in enumerate(lines(method, box.width)):
            parts.append(text(box.x + 7, box.y + 17.5 + 15 * number, words))
    return svg("narrow", NARROW, max(box.bottom for box in boxes.values()) + 2, parts)
