"""The rules by which records decide claims.

A claim is decided only like for like: by records of its own data set, encoder, epochs, features and
probe.

A published number is mostly one run. It is held against the interval in which *one more run* of
ours would lie (``statistics.one_more``), not against that of our mean over seeds, which shrinks
with every seed until no single run fits: a run of the very same distribution would be called "not
reproduced" in 16 % of cases at 3 seeds, in half of them at 10. With the prediction interval it is 5
%, at any number of seeds. A difference must be sure of its sign besides. One or two seeds hardly
know a spread, and decide nothing.

At our size the interval of the mean difference over paired seeds is held against the margin: "yes"
where it lies wholly above the margin, "no" wholly below minus the margin, "no difference" wholly
between the two, "not better" where it lies below the margin and crosses minus the margin, else
"open". It is open as long as planned seeds are missing, and where one of their runs failed: what
survives is a selection.
"""

import math
from dataclasses import dataclass

import pandas as pd

from lib.evidence.claims import Claim, OurSize, claimed, columns_of, decimals, groups, in_words
from lib.evidence.comparisons import Comparison, over_pairs
from lib.evidence.statistics import Interval, one_more, over_runs, over_seeds
from lib.evidence.tables import matching

LEAST = 3  # seeds that a published claim is decided by
TOO_FEW = f"fewer than {LEAST} seeds, not assessed"
NOT_PUBLISHED = "not published"
OF_SECOND = " of the second"  # of the columns of runs that are subtracted
# how verdicts may begin
UNDECIDED = ("not run", "differs in", TOO_FEW, "undecided", "no number", NOT_PUBLISHED)
# where a question stands: decided at the published size; at ours, with yes and with any other
# verdict; open
PUBLISHED, YES, NOT, OPEN = "●", "◐", "◑", "○"
# what the runs that a claim "differs in" the rest from must have
SHARED = ("measure", "per_class", "method", "data", "images", "encoder", "features")


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


@dataclass(frozen=True)
class Ours:
    """What the plan's runs say of a claim at our size."""

    comparison: Comparison | None  # over the pairs that there are; None of none
    verdict: str  # yes, no, no difference, not better or open
    seeds: int  # pairs that are planned
    failed: int  # of them, because a run failed
    is_complete: bool  # whether every planned pair is there or failed
    precisions: tuple[str, ...]  # of the runs; a pair has one
    pairs: pd.Series  # the differences, as fractions, by seed and precision
    ids: list[tuple[str, str]]  # of the two runs of each pair

    def in_words(self) -> str:
        """``yes: +1.4 [0.9, 1.9], 5 seeds``, in points."""
        if self.comparison is None:
            return f"open: 0 of {self.seeds} seeds"
        words = f"{self.verdict}: {self.comparison.points()}"
        if self.comparison.seeds < self.seeds:
            words += f" of {self.seeds}"
        if self.failed:
            words += f", {self.failed} failed"
        if len(self.precisions) > 1:
            words += f", in {' and '.join(self.precisions)}"
        return words


def decide(claim: Claim, table: pd.DataFrame) -> dict:
    """One row of the scoreboard.

    table: ``tables.measures``.

    Its columns, where they don't speak for themselves:
    verdict: "reproduced", "not reproduced" (with where ours lies), "undecided" where the interval
        of a difference holds both, "fewer than 3 seeds, not assessed", "differs in" where runs on
        the claim's own data and encoder differ in other columns, else "not run".
    one more run: what the number is held against.
    at our size: what the plan's runs say, "-" where the claim has no such size.
    mark: one of PUBLISHED, YES, NOT and OPEN.
    """
    row = _published(claim, table) | {"at our size": "-"}
    verdict = ""
    if "ours" in claim:
        ours = at_our_size(claim["ours"], table)
        row["at our size"] = ours.in_words()
        verdict = ours.verdict
    return row | {"mark": mark(row["verdict"], verdict)}


def mark(published: str, ours: str = "") -> str:
    """Where a question stands, by its verdict at the published size and at ours."""
    if not published.startswith(UNDECIDED):
        return PUBLISHED
    marks = {"yes": YES, "no": NOT, "no difference": NOT, "not better": NOT}
    return marks.get(ours, OPEN)


def at_our_size(claim: OurSize, table: pd.DataFrame) -> Ours:
    """What the runs of a claim's entry of the plan say.

    table: ``tables.measures``.
    """
    conditions, *_ = groups(claim)
    planned = set(range(claim["seeds"]))
    table = table[table["seed"].isin(planned)]  # seeds are not added afterwards
    first = matching(table, conditions)
    of_each: list[pd.DataFrame] = []
    failed: set[int] = set()
    is_complete = True
    for minus in claim["minus"]:
        pairs = _paired(first, matching(table, conditions | minus), minus)
        of_each.append(pairs)
        without_pair = planned - set(pairs["seed"])
        failed_here = without_pair & _failed(conditions, minus, table)
        is_complete &= without_pair == failed_here
        failed |= failed_here
    pairs = min(of_each, key=_mean_or_infinity)  # with the best of the second groups
    differences = _differences(pairs)
    comparison = over_pairs(differences)

    verdict = "open"
    if comparison is not None and is_complete and not failed:
        verdict = against_margin(comparison.interval, claim["margin"] / 100)
    precisions = tuple(sorted(set(differences.index.get_level_values("precision"))))
    return Ours(
        comparison,
        verdict,
        claim["seeds"],
        len(failed),
        is_complete,
        precisions,
        differences,
        ids=list(zip(pairs["id"], pairs["id" + OF_SECOND])),
    )


def against_margin(difference: Interval, margin: float) -> str:
    """Where the interval lies beside the margin on both sides, as a verdict."""
    _, low, high = difference
    if low > margin:
        return "yes"
    if high < -margin:
        return "no"
    if -margin < low and high < margin:
        return "no difference"
    if high < margin:
        return "not better"
    return "open"


def _mean_or_infinity(pairs: pd.DataFrame) -> float:
    return float(_differences(pairs).mean()) if len(pairs) else math.inf


def _paired(first: pd.DataFrame, second: pd.DataFrame, minus: dict) -> pd.DataFrame:
    """A run of the first group beside one of the second, for each seed that both have.

    Of one protocol each, and both in one precision, which is part of it; what is not trained has
    any, and so have all where minus, what sets the second apart, is about precision.
    """
    pairs = _one_protocol(first).merge(_one_protocol(second), on="seed", suffixes=("", OF_SECOND))
    if "precision" not in minus:
        is_alike = pairs["precision"] == pairs["precision" + OF_SECOND]
        are_trained = (pairs["epochs"] > 0) & (pairs["epochs" + OF_SECOND] > 0)
        pairs = pairs[is_alike | ~are_trained]
    return pairs.sort_values(["seed", "precision"], kind="stable").drop_duplicates("seed")


def _differences(pairs: pd.DataFrame) -> pd.Series:
    """Of accuracy, by seed and precision."""
    pairs = pairs.set_index(["seed", "precision"])
    return pairs["accuracy"] - pairs["accuracy" + OF_SECOND]


def _failed(conditions: dict, minus: dict, table: pd.DataFrame) -> set[int]:
    """Seeds of which a run in either group of a pair failed."""
    # by which a run is read; one that failed has been read by none
    readings = dict.fromkeys(("features", "probe", "per_class"), "any")
    of_runs = conditions | readings | {"measure": "failed"}
    differing = {key: minus[key] for key in minus if key not in readings}
    either = [matching(table, of_runs), matching(table, of_runs | differing)]
    return set(pd.concat(either)["seed"])


def _published(claim: Claim, table: pd.DataFrame) -> dict:
    """The columns of a scoreboard's row that are about the published size."""
    minus = claim.get("minus")
    row = {
        "id": claim["id"],
        "claim": claim["claim"],
        "claimed": claimed(claim),
        "ours": "-",
        "n": 0,
        "one more run": "-",
        "verdict": "not run",
        "minutes": None,
        "pixels": "-",
        "protocol": in_words(claim.get("like_for_like", {})) + _minus_in_words(minus),
        "source": claim["source"],
    }
    if "like_for_like" not in claim:
        return row | {"verdict": NOT_PUBLISHED, "protocol": "-"}
    if "cannot" in claim:
        return row | {"verdict": f"not run: {claim['cannot']}"}

    conditions = columns_of(claim)
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
    return row


def verdict(claim: Claim, mean: Interval, values: pd.Series) -> str:
    """By the claim's rule, see ``Claim``.

    mean: of the values, with its interval.
    values: of every seed.
    """
    rule, number = claim["rule"], claim.get("number", 0) / 100
    if rule == "none":
        return "no number to compare with"
    if len(values) < LEAST:
        return TOO_FEW

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

    return sign if "minus" in claim else "reproduced"


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
    rounding = 0.5 / 10 ** decimals(claim) / 100
    return one_more(values, claim.get("runs", 1), rounding)


def _measured(conditions: dict, minus: dict | None, table: pd.DataFrame) -> Measured | None:
    """What runs that fulfil the conditions say, less those that fulfil them but for minus.

    None where there are none, or none of the same seed.
    """
    runs = matching(table, conditions)
    if minus is None:
        runs = _most_seeds(runs)
        return None if runs.empty else _level(runs)

    pairs = _paired(runs, matching(table, conditions | minus), minus)
    if pairs.empty:
        return None
    values = _differences(pairs)
    return Measured(over_seeds(values), values, pairs[runs.columns], "points")


def _level(runs: pd.DataFrame) -> Measured:
    return Measured(over_runs(runs), runs["accuracy"], runs, "%")


def _most_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the one protocol that has most of them; of several the table's last."""
    protocols = [group for _, group in runs.groupby("protocol")]
    return max(protocols, key=lambda group: (len(group), group.index[0]), default=runs)


def _one_protocol(runs: pd.DataFrame) -> pd.DataFrame:
    """The same in each precision, which is part of a protocol."""
    in_each = [_most_seeds(group) for _, group in runs.groupby("precision")]
    return pd.concat(in_each) if in_each else runs


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


def _minus_in_words(minus: dict | None) -> str:
    if minus is None:
        return ""
    return f"; minus {in_words(minus)}"
