"""The claims the book is about, and the rule by which records decide them.

A claim is decided only like for like: by records of its own data set, encoder, epochs, features and
probe. The nearest records are named beside it, with what they show, and decide nothing.

A published number is mostly one run. It is held against the interval in which *one more run* of
ours would lie (``statistics.one_more``), not against that of our mean over seeds, which shrinks
with every seed until no single run fits: a run of the very same distribution would be called "not
reproduced" in 16 % of cases at 3 seeds, in half of them at 10. With the prediction interval it is 5
%, at any number of seeds. One seed knows no spread, and decides nothing.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, NotRequired

import pandas as pd
from pydantic import AfterValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from lib import ROOT, InputError
from lib.evidence.comparisons import Comparison
from lib.evidence.statistics import Interval, differences, one_more, over_runs, over_seeds
from lib.evidence.tables import COLUMNS, matching
from lib.files import read_yaml, validated, write_atomically

CLAIMS = ROOT / "book" / "claims.yml"
HEADLINE = "<!-- headline -->", "<!-- end of headline -->"  # of the table in README.md
ONE_SEED = "one seed, not assessed"
UNDECIDED = ("not run", "differs in", ONE_SEED, "undecided", "no number")  # how verdicts may begin
MEASURED = (*COLUMNS, "measure", "per_class")  # columns of tables.measures
# what the runs that a claim "differs in" the rest from must have
SHARED = ("measure", "per_class", "method", "data", "images", "encoder", "features")


def _are_columns(conditions: dict) -> dict:
    for column, value in conditions.items():
        if column not in MEASURED:
            raise ValueError(f"records have no column '{column}'")
        if not isinstance(value, str | int | float):
            raise ValueError(f"{column} must be one text or number, got {value}")
    return conditions


Conditions = Annotated[dict, AfterValidator(_are_columns)]


def _are_near(near: dict) -> dict:
    minus = near.get("minus", {})
    if not isinstance(minus, dict):
        raise ValueError(f"minus must be columns and values, got {minus}")
    _are_columns(minus)
    _are_columns(_without_minus(near))
    return near


def _without_minus(near: dict) -> dict:
    return {column: value for column, value in near.items() if column != "minus"}


@with_config(ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class Claim(TypedDict):
    """What somebody says of a method, and what records decide it.

    The value "any" lifts a condition.
    """

    id: str
    claim: str
    source: str
    # "value": the number lies where one more run of ours would; "at least": it lies there or below
    # (and the difference, with minus, is sure of its sign); "sign": the difference has the number's
    # sign (plus where there is none); "none": nothing to decide
    rule: Literal["value", "sign", "at least", "none"]
    like_for_like: Conditions  # columns that a record must have
    number: NotRequired[float]  # percent; points with minus
    runs: NotRequired[Annotated[int, Field(ge=1)]]  # how many the number is the mean of, else one
    minus: NotRequired[Conditions]  # the columns that differ in what is subtracted
    # the columns that differ in runs to name instead, with a minus of their own; differences only,
    # since levels of another scale mislead; the one with most seeds is shown, of equals the first
    nearest: NotRequired[list[Annotated[dict, AfterValidator(_are_near)]]]
    cannot: NotRequired[str]  # why no record can decide it
    question: NotRequired[str]  # what the claim answers; such claims are the headline
    short: NotRequired[str]  # the difference in few words, which a claim with nearest runs has


def _can_be_decided(claim: Claim) -> Claim:
    if claim.get("minus") == {}:
        raise ValueError("minus must have a column that differs")
    if claim["rule"] in ("value", "at least") and "number" not in claim:
        raise ValueError(f"the rule '{claim['rule']}' needs a number")
    for near in claim.get("nearest", []):
        if "minus" not in near and "minus" not in claim:
            raise ValueError("nearest must be differences, with a minus")
        if "short" not in claim:
            raise ValueError("nearest needs the field 'short', the difference in few words")
    return claim


_Claim = Annotated[Claim, AfterValidator(_can_be_decided)]


def read(path: Path = CLAIMS) -> list[Claim]:
    """The claims, in order.

    Raises InputError, naming file and claim, where a field is missing, unknown or wrong.
    """
    claims = read_yaml(path)
    if not isinstance(claims, list) or not claims:
        raise InputError(
            f"{path} must be a list of claims, each with id, claim, source, rule and like_for_like"
        )

    for place, claim in enumerate(claims, start=1):
        name = f"number {place}"
        if isinstance(claim, dict):
            name = claim.get("id", name)
        validated(_Claim, claim, f"{path}: claim {name}")
    return claims  # as written: of a number the digits count


@dataclass(frozen=True)
class Measured:
    """What records say: a level, or a difference over paired seeds."""

    mean: Interval
    values: pd.Series  # of each seed
    runs: pd.DataFrame
    unit: str

    @property
    def columns(self) -> dict:
        """What a row of the scoreboard says of it."""
        return {
            "ours": f"{self.mean.percent()} {self.unit}",
            "n": len(self.runs),
            "minutes": round(self.runs["minutes"].mean(), 1),
            "pixels": self.runs["variant"].iloc[0] or "official",
        }


class Nearest(NamedTuple):
    """The difference between runs that a claim names for want of its own kind."""

    difference: Comparison
    runs: pd.DataFrame  # that it was measured on
    minus: dict  # what differs in the runs that are subtracted


def decide(claim: Claim, table: pd.DataFrame) -> dict:
    """One row of the scoreboard.

    table: ``tables.measures``.

    Its columns, where they don't speak for themselves:
    verdict: "reproduced", "not reproduced" (with where ours lies), "undecided" where the interval
        of a difference holds both, "one seed, not assessed", "differs in" where runs on the claim's
        own data and encoder differ in other columns, else "not run".
    one more run: what the number is held against.
    nearest, show: what the nearest runs are, and what they show; they decide nothing.
    """
    conditions = _conditions(claim)
    minus = claim.get("minus")
    row = {
        "id": claim["id"],
        "claim": claim["claim"],
        "claimed": _claimed(claim),
        "ours": "-",
        "n": 0,
        "one more run": "-",
        "verdict": "not run",
        "minutes": None,
        "pixels": "-",
        "protocol": _in_words(claim["like_for_like"]) + _minus_in_words(minus),
        "nearest": "-",
        "show": "-",
        "source": claim["source"],
    }
    if "cannot" in claim:
        why = {"verdict": f"not run: {claim['cannot']}"}
        return row | _nearest_columns(claim, table) | why

    measured = _measured(conditions, minus, table)
    if measured is not None:
        row |= measured.columns
        _, low, high = _expected(claim, measured.values)
        if not math.isnan(low):
            row["one more run"] = f"[{100 * low:.1f}, {100 * high:.1f}]"
        return row | {"verdict": verdict(claim, measured.mean, measured.values)}

    if minus is None:
        runs, columns = _differing(conditions, table)
        if len(runs):
            return row | _level(runs).columns | {"verdict": f"differs in {', '.join(columns)}"}
    return row | _nearest_columns(claim, table)


def nearest(claim: Claim, table: pd.DataFrame) -> Nearest | None:
    """The difference between the nearest runs, of most seeds; None where there are none."""
    best = None
    for near in claim.get("nearest", []):
        conditions = _conditions(claim) | _without_minus(near)
        minus = near["minus"] if "minus" in near else claim["minus"]
        measured = _measured(conditions, minus, table)
        if measured is None:
            continue

        seeds = len(measured.values)
        if best is None or seeds > best.difference.seeds:
            best = Nearest(Comparison(*measured.mean, seeds), measured.runs, minus)
    return best


def headline(claims: list[Claim], table: pd.DataFrame) -> str:
    """How many claims are decided, and those with a question as a Markdown table.

    Its columns: what is claimed, the verdict, and what the nearest runs show.
    """
    decided = 0
    rows = []
    for claim in claims:
        row = decide(claim, table)
        if not row["verdict"].startswith(UNDECIDED):
            decided += 1
        if "question" in claim:
            rows.append(f"| {claim['question']} | {' | '.join(_answers(row))} |")

    count = f"**{decided or 'none'}** of them"
    lines = [
        f"Of {len(claims)} published claims and questions the records decide {count} so far.",
        "",
        "| question | claimed | verdict, like for like | the nearest runs show |",
        "|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines)


def _answers(row: dict) -> tuple[str, str, str]:
    """Of a claim's row what is claimed, the verdict, and what the nearest runs show."""
    outcome, shown = row["verdict"], row["show"]
    if row["ours"] != "-":
        outcome += f": {row['ours']}, n = {row['n']}"
    if shown != "-":
        shown += f" ({row['nearest']})"
    return row["claimed"], outcome, shown


def write_headline(path: Path, table: pd.DataFrame) -> None:
    """Put the headline of all claims between the marks of a page."""
    opening, closing = HEADLINE
    before, _, rest = path.read_text().partition(opening)
    after = rest.partition(closing)[2]
    text = f"{before}{opening}\n{headline(read(), table)}\n{closing}{after}"
    write_atomically(path, text.encode())


def verdict(claim: Claim, mean: Interval, values: pd.Series) -> str:
    """By the claim's rule, see ``Claim``.

    mean: of the values, with its interval.
    values: of every seed.
    """
    rule, number = claim["rule"], claim.get("number", 0) / 100
    if rule == "none":
        return "no number to compare with"
    if len(values) == 1:
        return ONE_SEED

    sign = _verdict_on_sign(number, mean)
    if rule == "sign":
        return sign

    _, low, high = _expected(claim, values)
    at_least = rule == "at least"
    if low > number:
        if at_least and number >= 0:
            return "reproduced"
        return "not reproduced: above"
    if high < number:
        if at_least and number < 0:
            return "reproduced"
        return "not reproduced: below"

    if at_least and "minus" in claim:
        return sign
    return "reproduced"


def _verdict_on_sign(number: float, mean: Interval) -> str:
    low, high = mean.low, mean.high
    if number < 0:
        low, high = -high, -low
    if low > 0:
        return "reproduced"
    if high < 0:
        return "not reproduced"
    return "undecided"


def _expected(claim: Claim, values: pd.Series) -> Interval:
    """Where one more run of ours would lie, as fractions.

    It is wider by half a unit of the number's last digit.
    """
    digits = len(str(claim.get("number", 0.0)).partition(".")[2])
    return one_more(values, claim.get("runs", 1), rounding=0.5 / 10**digits / 100)


def _conditions(claim: Claim) -> dict:
    return {"measure": "accuracy"} | claim["like_for_like"]


def _measured(conditions: dict, minus: dict | None, table: pd.DataFrame) -> Measured | None:
    """What runs that fulfil the conditions say, less those that fulfil them but for minus.

    None where there are none, or none of the same seed.
    """
    runs = _most_seeds(matching(table, conditions))
    if runs.empty:
        return None
    if minus is None:
        return _level(runs)

    pairs = differences(runs, _most_seeds(matching(table, conditions | minus)))
    if pairs.empty:
        return None
    return Measured(over_seeds(pairs), pairs, runs[runs["seed"].isin(pairs.index)], "points")


def _level(runs: pd.DataFrame) -> Measured:
    return Measured(over_runs(runs), runs["accuracy"], runs, "%")


def _most_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the one protocol that has most of them."""
    protocols = [group for _, group in runs.groupby("protocol")]
    return max(protocols, key=len, default=runs)


def _differing(conditions: dict, table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The longest runs on a claim's own data and encoder that differ in the fewest columns.

    Returns the runs, and the columns.
    """
    shared = {column: conditions[column] for column in SHARED if column in conditions}
    others = matching(table, shared).sort_values("epochs")
    if others.empty:
        return others, []

    alike = pd.DataFrame(index=others.index)
    for column, value in conditions.items():
        alike[column] = others.index.isin(matching(others, {column: value}).index)
    columns_alike = alike.sum(axis=1)
    closest = others[columns_alike == columns_alike.max()]
    longest = closest.iloc[-1]

    differing = alike.columns[~alike.loc[longest.name]]
    return closest[closest["protocol"] == longest["protocol"]], list(differing)


def _nearest_columns(claim: Claim, table: pd.DataFrame) -> dict:
    """What the nearest runs are, and what they show.

    Whether that is for the claim or against it is not said: they differ from it in length, size or
    tuning, and those may decide the sign.
    """
    near = nearest(claim, table)
    if near is None:
        return {}

    about = (
        "{data}, trained on {trained_on:,} images in {view_size:g}-pixel views, {encoder}, "
        "{epochs} epochs, {probe} probe on {features}"
    ).format(**near.runs.iloc[0])

    seeds = ONE_SEED
    if len(near.runs) > 1:
        seeds = f"n = {len(near.runs)}"
    return {
        "nearest": about + _minus_in_words(near.minus),
        "show": f"{near.difference.interval.percent()} points, {seeds}",
    }


def _claimed(claim: Claim) -> str:
    if "number" not in claim:
        number = "no number"
    elif "minus" in claim:
        number = f"{claim['number']:+.2f} points"
    else:
        number = f"{claim['number']:.2f} %"
    if claim["rule"] == "at least":
        return f"at least {number}"
    return number


def _in_words(conditions: dict) -> str:
    """Conditions in words: texts as they are, numbers with the name of their column."""
    words = []
    for column, value in conditions.items():
        if value == "any":
            continue
        if not isinstance(value, str):
            value = f"{column} {value}"
        words.append(value)
    return ", ".join(words)


def _minus_in_words(minus: dict | None) -> str:
    if minus is None:
        return ""
    return f"; minus {_in_words(minus)}"
