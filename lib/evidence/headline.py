"""The questions of the book's first page and what records answer: for README.md, and for the page.

A question is open until its entry of the plan is complete. Until then the difference that is shown
is that of the plan's largest size whose runs are all there, with its length.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path

import pandas as pd

from lib import ROOT, InputError
from lib.evidence.claims import Claim, OurSize, can_be_decided, claimed, sizes
from lib.evidence.comparisons import Comparison
from lib.evidence.verdicts import PUBLISHED, Ours, at_our_size, decide
from lib.files import write_atomically

README = ROOT / "README.md"
PAGE = ROOT / "book" / "_static" / "headline.html"  # a part of the first page
MARKS = "<!-- headline -->", "<!-- end of headline -->"  # about the part of README.md
STEP = 5  # points between two ticks of the axis
WIDTH, HEIGHT = 180, 22  # of the axis in a row, in pixels
HALF_NUMBER = 12  # of the widest of its numbers


@dataclass(frozen=True)
class Answer:
    """A question, what is claimed, and what records say."""

    mark: str
    verdict: str  # at our size
    question: str
    claimed: str  # in words
    comparison: Comparison | None  # at our size; while that is open, at a smaller one
    size: str  # of that comparison, in words
    standing: str  # in words

    def difference(self) -> str:
        """``+1.4 [0.3, 2.5]``, in points."""
        if self.comparison is None:
            return "no runs of the plan yet"
        return self.comparison.difference()


def answers(claims: Sequence[Claim], table: pd.DataFrame) -> list[Answer]:
    """Of each claim that has a question, in their order. table: ``tables.measures``."""
    return [_answer(claim, table) for claim in claims if "question" in claim]


def _answer(claim: Claim, table: pd.DataFrame) -> Answer:
    row = decide(claim, table)
    planned = at_our_size(claim["ours"], table)
    size, shown = largest_complete(claim["ours"], table)
    standing = planned.verdict
    if standing == "open":
        seeds = planned.comparison.seeds if planned.comparison else 0
        standing = f"open: {seeds} of {planned.seeds} seeds"
        if seeds == planned.seeds:
            standing = f"open after all {seeds} seeds"
        if length(claim["ours"]):
            standing += f" at {length(claim['ours'])}"
        if planned.failed:
            standing += f", {planned.failed} failed"
    if row["mark"] == PUBLISHED:
        standing = f"{row['verdict']} at the published size: {row['ours']}; at ours: {standing}"
    return Answer(
        row["mark"],
        planned.verdict,
        claim["question"],
        claim.get("says", claimed(claim)),
        shown.comparison,
        length(size),
        standing,
    )


def largest_complete(claim: OurSize, table: pd.DataFrame) -> tuple[OurSize, Ours]:
    """The largest size of a claim all of whose pairs are there or failed, and what they say.

    The planned one where none is complete. table: ``tables.measures``.
    """
    for size in sizes(claim):
        ours = at_our_size(size, table)
        if ours.comparison is not None and ours.is_complete:
            return size, ours
    return claim, at_our_size(claim, table)


def length(claim: OurSize) -> str:
    """``500 epochs``, ``60 against 120 epochs``; nothing where the claim is of any length."""
    ours = claim["like_for_like"].get("epochs")
    if ours is None:
        return ""
    other = claim["minus"][0].get("epochs", ours)
    if other in (0, ours):
        return f"{ours} epochs"
    return f"{ours} against {other} epochs"


def _opening(claims: Sequence[Claim], asked: Sequence[Answer], table: pd.DataFrame) -> str:
    """How much is decided, in a sentence."""
    published = [claim for claim in claims if can_be_decided(claim)]
    decided = sum(decide(claim, table)["mark"] == PUBLISHED for claim in published)
    at_ours = sum(answer.verdict != "open" for answer in asked)
    return (
        f"Of {len(published)} published claims that this code could decide, the records decide "
        f"**{decided or 'none'}** so far; of the {len(asked)} questions **{at_ours or 'none'}** at "
        "our size."
    )


def markdown(claims: Sequence[Claim], table: pd.DataFrame) -> str:
    """The sentence and the questions as a Markdown table."""
    asked = answers(claims, table)
    lines = [
        _opening(claims, asked, table),
        "",
        "| | question | the report says | our difference in points | so far |",
        "|---|---|---|---|---|",
    ]
    for answer in asked:
        ours = answer.difference()
        if answer.comparison is not None:
            ours = answer.comparison.points()
        if answer.comparison is not None and answer.size:
            ours += f" ({answer.size})"
        cells = answer.mark, answer.question, answer.claimed, ours, answer.standing
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def html(claims: Sequence[Claim], table: pd.DataFrame) -> str:
    """The questions as an HTML table, our differences as marks on a common axis."""
    asked = answers(claims, table)
    compared = [answer.comparison for answer in asked if answer.comparison]
    low, high = _range(compared)
    ours = "our difference in points"
    if compared:
        ours += _scale(low, high)
    head = "".join(f"<th>{words}</th>" for words in ("", "", "the report says", ours, "so far"))
    lines = ['<table class="headline">', f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    for answer in asked:
        ours = escape(answer.difference())
        if answer.comparison is not None:
            drawn = _drawing(answer, low, high)
            ours = f"{drawn}<b>{ours}</b><small>{escape(answer.size)}</small>"
        cells = (
            ("mark", answer.mark),
            ("question", escape(answer.question)),
            ("claimed", escape(answer.claimed)),
            ("ours", ours),
            ("standing", escape(answer.standing)),
        )
        row = "".join(f'<td class="{name}">{content}</td>' for name, content in cells)
        lines.append(f"<tr>{row}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>", ""])


def _range(comparisons: Sequence[Comparison]) -> tuple[int, int]:
    """Where the common axis begins and ends, in points: whole steps about zero and everything."""
    ends = [0.0]
    for comparison in comparisons:
        ends += [100 * end for end in comparison.interval if math.isfinite(end)]
    low, high = math.floor(min(ends) / STEP), math.ceil(max(ends) / STEP)
    return STEP * low, STEP * max(high, 1)


def _x(points: float, low: int, high: int) -> float:
    """Where so many points lie on the axis, in pixels."""
    return round(6 + (WIDTH - 12) * (points - low) / (high - low), 1)


def _scale(low: int, high: int) -> str:
    """The numbers of the axis, at every second tick but where an end would cut them."""
    numbers = []
    for points in range(low, high + 1, STEP):
        x = _x(points, low, high)
        is_cut = min(x, WIDTH - x) < HALF_NUMBER
        if points % (2 * STEP) == 0 and not is_cut:
            words = f"{points:+d}" if points else "0"
            numbers.append(f'<text x="{x}" y="12">{words}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">{"".join(numbers)}</svg>'


def _drawing(answer: Answer, low: int, high: int) -> str:
    """A row's part of the axis: zero, ticks, the interval, and a dot, hollow while it is open."""
    assert answer.comparison is not None

    x = partial(_x, low=low, high=high)
    middle = HEIGHT / 2
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{answer.difference()} points">'
    ]
    for points in range(low, high + 1, STEP):
        name = "zero" if points == 0 else "tick"
        parts.append(f'<path class="{name}" d="M{x(points)} 2V{HEIGHT - 2}"/>')
    value, least, most = (100 * end for end in answer.comparison.interval)
    if math.isfinite(least):
        parts.append(f'<path class="interval" d="M{x(least)} {middle}H{x(most)}"/>')
    dot = "open" if answer.verdict == "open" else "decided"
    parts.append(f'<circle class="{dot}" cx="{x(value)}" cy="{middle}" r="4.5"/></svg>')
    return "".join(parts)


def write(
    claims: Sequence[Claim], table: pd.DataFrame, readme: Path = README, page: Path = PAGE
) -> None:
    """Put the table between its marks in README.md, and that of the first page into its file.

    Raises InputError where the marks are not there, once each and in order.
    """
    first, last = MARKS
    old = readme.read_text(encoding="utf-8")
    before, _, rest = old.partition(first)
    _, _, after = rest.partition(last)
    if old.count(first) != 1 or rest.count(last) != 1:
        raise InputError(f"{readme} needs {first} and below it {last}, once each, about the table")
    text = f"{before}{first}\n{markdown(claims, table)}\n{last}{after}"
    write_atomically(readme, text.encode())
    write_atomically(page, html(claims, table).encode())
