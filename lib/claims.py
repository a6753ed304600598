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
from pathlib import Path

import pandas as pd

from lib import ROOT, InputError
from lib.files import read_yaml, write_atomically
from lib.records import COLUMNS, corruption_table, label_table, run_columns
from lib.records import table as accuracies
from lib.statistics import Interval, calibration_error, differences, one_more, over_runs, over_seeds

CLAIMS = ROOT / "book" / "claims.yml"
HEADLINE = "<!-- headline -->", "<!-- end of headline -->"  # of the table in README.md
FIELDS = {"id": str, "claim": str, "source": str, "rule": str, "like_for_like": dict}
OPTIONAL = {
    "number": (int, float),
    "runs": int,
    "minus": dict,
    "nearest": list,
    "cannot": str,
    "question": str,
    "short": str,
}
RULES = ("value", "sign", "at least", "none")
ONE_SEED = "one seed, not assessed"
SHARED = (
    "measure",
    "per_class",
    "method",
    "data",
    "images",
    "encoder",
    "features",
)  # the rest may differ


def read(path: Path = CLAIMS) -> list[dict]:
    """The claims, in order. Raises InputError, naming file and claim, where a field is missing,
    unknown or wrong.

    rule: "value", the number (percent; points with minus) lies where one more run of ours would;
    "at least", it lies there or below (and the difference, with minus, is sure of its sign);
    "sign", the difference has the number's sign (plus where there is none); "none", nothing to
    decide. runs: how many runs the number is the mean of, one if not said. like_for_like: columns
    that a record must have. minus: the columns that differ in what is subtracted. nearest: the
    columns that differ in runs to name instead, with a minus of their own, differences only, since
    levels of another scale mislead; the one with most seeds is shown, of equals the first. cannot:
    why no record can decide it. question: what the claim answers; such claims are the headline.
    short: the difference in few words, which a claim with nearest runs has. The value "any" lifts a
    condition.
    """
    claims = read_yaml(path)
    if (
        not claims
        or not isinstance(claims, list)
        or not all(isinstance(claim, dict) for claim in claims)
    ):
        raise InputError(f"{path} must be a list of claims, each with {', '.join(FIELDS)}")
    for place, claim in enumerate(claims, start=1):
        name = claim.get("id", f"number {place}")
        for field in claim.keys() | FIELDS.keys():
            if not isinstance(claim.get(field), (FIELDS | OPTIONAL).get(field, ())):
                raise InputError(
                    f"{path}: claim {name}: the field '{field}' is missing, unknown or of the "
                    "wrong type"
                )
        if claim["rule"] not in RULES or (
            claim["rule"] in ("value", "at least") and "number" not in claim
        ):
            raise InputError(
                f"{path}: claim {name}: the rule must be one of {', '.join(RULES)}, the number "
                "given"
            )
        if claim.get("runs", 1) < 1:
            raise InputError(f"{path}: claim {name}: runs must be at least 1, got {claim['runs']}")
        near = claim.get("nearest", [])
        if not all(
            isinstance(part, dict) and isinstance(part.get("minus", {}), dict) for part in near
        ):
            raise InputError(f"{path}: claim {name}: nearest must be a list of columns and values")
        if (
            not all("minus" in part or "minus" in claim for part in near)
            or near
            and "short" not in claim
        ):
            raise InputError(
                f"{path}: claim {name}: nearest must be differences, with a minus, and told in "
                "short"
            )
        for part in (
            claim["like_for_like"],
            claim.get("minus", {}),
            *near,
            *(n.get("minus", {}) for n in near),
        ):
            for column, value in part.items():
                if column not in (*COLUMNS, "measure", "per_class") and not (
                    column == "minus" and part in near
                ):
                    raise InputError(f"{path}: claim {name}: records have no column '{column}'")
                if column != "minus" and not isinstance(value, (str, int, float)):
                    raise InputError(
                        f"{path}: claim {name}: {column} must be one text or number, got {value}"
                    )
    return claims


def measures(records: list[dict]) -> pd.DataFrame:
    """All that claims can be decided by: ``records.table`` and more rows, told apart by the column
    measure.

    measure: "accuracy"; "few labels", with per_class; "ece", the expected calibration error;
    "corruption error", one minus the accuracy over all corruptions and severities; "lost to
    corruption", how much that is beyond the error on the same images as they are. The value stands
    in the column accuracy, as a fraction; the n images of a corruption error are the same under
    every corruption, and correct is so many images' worth of errors.
    """
    errors = [
        run_columns(record)
        | {key: row[key] for key in ("features", "probe", "n")}
        | {"accuracy": calibration_error(row), "measure": "ece"}
        for record in records
        for row in record.get("calibration", ())
    ]
    few = label_table(records).query("subset != 'all'").assign(measure="few labels")
    parts = [
        accuracies(records).assign(measure="accuracy"),
        few,
        pd.DataFrame(errors),
        *_corruption_errors(records),
    ]
    whole = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    return whole.reindex(columns=[*COLUMNS, "measure", "per_class"])


def _corruption_errors(records: list[dict]) -> list[pd.DataFrame]:
    """The rows of "corruption error" and of "lost to corruption"."""
    table = corruption_table(records)
    over = [
        column
        for column in table
        if column not in ("corruption", "severity", "correct", "accuracy")
    ]
    is_clean = table["corruption"] == "none"
    clean, corrupted = (
        part.groupby(over, dropna=False, as_index=False)["accuracy"].mean()
        for part in (table[is_clean], table[~is_clean])
    )
    errors = corrupted.assign(accuracy=1 - corrupted["accuracy"], measure="corruption error")
    both = corrupted.merge(clean, on=over, suffixes=("", "_clean"))
    lost = both.assign(
        accuracy=both["accuracy_clean"] - both["accuracy"], measure="lost to corruption"
    )
    parts = [errors, lost.drop(columns="accuracy_clean")]
    return [
        part.assign(correct=(part["accuracy"] * part["n"]).astype(float).round()) for part in parts
    ]


def matching(table: pd.DataFrame, wanted: dict) -> pd.DataFrame:
    """The rows of the records' table that have all the wanted values; "any": whatever value."""
    keep = pd.Series(True, index=table.index)
    for column, value in wanted.items():
        if value != "any":
            keep &= table[column] == value
    return table[keep]


def decide(claim: dict, table: pd.DataFrame) -> dict:
    """One row of the scoreboard; table: ``measures``.

    verdict: "reproduced", "not reproduced" (with where ours lies), "undecided" where the interval
    of a difference holds both, "one seed, not assessed", "differs in" where runs on the claim's own
    data and encoder differ in other columns, else "not run". one more run: what the number is held
    against. nearest, show: what the nearest runs are, and what they show; they decide nothing.
    """
    base, minus = {"measure": "accuracy"} | claim["like_for_like"], claim.get("minus")
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
        "protocol": _told(claim["like_for_like"], minus),
        "nearest": "-",
        "show": "-",
        "source": claim["source"],
    }
    if "cannot" in claim:
        return row | _nearest(claim, base, table) | {"verdict": f"not run: {claim['cannot']}"}
    found = _measured(base, minus, table)
    if found:
        ours, values, group = found
        low, high = _expected(claim, values)[1:]
        more = "-" if math.isnan(low) else f"[{100 * low:.1f}, {100 * high:.1f}]"
        return (
            row
            | _ours(ours, group, "minus" in claim)
            | {"verdict": _verdict(claim, ours, values), "one more run": more}
        )
    group, apart = _differing(base, table)
    if len(group) and not minus:
        return row | _ours(over_runs(group), group, False) | {"verdict": f"differs in {apart}"}
    return row | _nearest(claim, base, table)


def nearest(claim: dict, table: pd.DataFrame) -> tuple[Interval, pd.DataFrame, dict] | None:
    """The difference of the nearest runs, of most seeds: its interval, the runs it is from, and
    what is subtracted."""
    base, best = {"measure": "accuracy"} | claim["like_for_like"], None
    for near in claim.get("nearest", ()):
        minus = near.get("minus", claim.get("minus"))
        found = _measured(
            base | {column: value for column, value in near.items() if column != "minus"},
            minus,
            table,
        )
        if found and (best is None or len(found[1]) > len(best[1])):
            best = found[0], found[2], minus
    return best


def headline(claims: list[dict], table: pd.DataFrame) -> str:
    """How many claims are decided, and those with a question as a Markdown table: what is claimed,
    the verdict, and what the nearest runs show."""
    verdicts = [decide(claim, table)["verdict"] for claim in claims]
    waiting = ("not run", "differs in", ONE_SEED, "undecided", "no number")
    decided = sum(not verdict.startswith(waiting) for verdict in verdicts)
    number = f"**{decided or 'none'}** of them"
    rows = [
        f"Of {len(claims)} published claims and questions the records decide {number} so far.",
        "",
        "| question | claimed | verdict, like for like | the nearest runs show |",
        "|---|---|---|---|",
    ]
    for claim in (claim for claim in claims if "question" in claim):
        row = decide(claim, table)
        verdict = (
            row["verdict"]
            if row["ours"] == "-"
            else f"{row['verdict']}: {row['ours']}, n = {row['n']}"
        )
        near = row["show"] if row["show"] == "-" else f"{row['show']} ({row['nearest']})"
        rows.append(f"| {claim['question']} | {row['claimed']} | {verdict} | {near} |")
    return "\n".join(rows)


def write_headline(path: Path, table: pd.DataFrame) -> None:
    """Put the headline of all claims between the marks of a page."""
    opening, closing = HEADLINE
    before, _, rest = path.read_text().partition(opening)
    text = f"{before}{opening}\n{headline(read(), table)}\n{closing}{rest.partition(closing)[2]}"
    write_atomically(path, text.encode())


def _differing(base: dict, table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The longest runs on the claim's own data and encoder that differ in the fewest columns, and
    in which."""
    others = matching(
        table, {column: base[column] for column in SHARED if column in base}
    ).sort_values("epochs")
    alike = pd.DataFrame(
        {
            column: others.index.isin(matching(others, {column: value}).index)
            for column, value in base.items()
        },
        index=others.index,
    )
    others = others[alike.sum(axis=1) == alike.sum(axis=1).max()]
    if others.empty:
        return others, ""
    return (
        others[others["protocol"] == others["protocol"].iloc[-1]],
        ", ".join(alike.columns[~alike.loc[others.index[-1]]]),
    )


def _nearest(claim: dict, base: dict, table: pd.DataFrame) -> dict:
    """What the nearest runs are, and what they show. Whether that is for the claim or against it is
    not said: they differ from it in length, size or tuning, and those may decide the sign."""
    found = nearest(claim, table)
    if not found:
        return {}
    interval, group, minus = found
    ours, run = _ours(interval, group, True), group.iloc[0]
    seeds = f"n = {ours['n']}" if ours["n"] > 1 else ONE_SEED
    what = (
        "{data}, trained on {trained_on:,} images in {view_size:g}-pixel views, {encoder}, "
        "{epochs} epochs, "
        "{probe} probe on {features}"
    )
    return {"nearest": what.format(**run) + _told({}, minus), "show": f"{ours['ours']}, {seeds}"}


def _measured(
    base: dict, minus: dict | None, table: pd.DataFrame
) -> tuple[Interval, pd.Series, pd.DataFrame] | None:
    """The level, or the difference over paired seeds; its value for each seed; and the runs. Most
    seeds win."""
    fitting = [matching(table, part) for part in (base, *([base | minus] if minus else []))]
    groups = [
        max((of for _, of in fit.groupby("protocol")), key=len, default=fit) for fit in fitting
    ]
    if not all(len(group) for group in groups):
        return None
    if not minus:
        return over_runs(groups[0]), groups[0]["accuracy"], groups[0]
    pairs = differences(*groups)
    return (
        (over_seeds(pairs), pairs, groups[0][groups[0]["seed"].isin(pairs.index)])
        if len(pairs)
        else None
    )


def _expected(claim: dict, values: pd.Series) -> Interval:
    """Where one more run of ours would lie, as fractions; wider by half a unit of the number's last
    digit."""
    digits = len(str(claim.get("number", 0.0)).partition(".")[2])
    return one_more(values, claim.get("runs", 1), rounding=0.5 / 10**digits / 100)


def _verdict(claim: dict, ours: Interval, values: pd.Series) -> str:
    """By the claim's rule, see ``read``. ours: the mean with its interval; values: of every
    seed."""
    rule, number = claim["rule"], claim.get("number", 0) / 100
    if rule == "none":
        return "no number to compare with"
    if len(values) == 1:
        return ONE_SEED
    side = -1 if number < 0 else 1
    low, high = sorted(side * end for end in ours[1:])
    sign = "reproduced" if low > 0 else "not reproduced" if high < 0 else "undecided"
    if rule == "sign":
        return sign
    _, low, high = _expected(claim, values)
    if low > number:
        return "reproduced" if rule == "at least" and side > 0 else "not reproduced: above"
    if high < number:
        return "reproduced" if rule == "at least" and side < 0 else "not reproduced: below"
    return sign if rule == "at least" and "minus" in claim else "reproduced"


def _claimed(claim: dict) -> str:
    number = claim.get("number")
    told = (
        "no number"
        if number is None
        else f"{number:+.2f} points"
        if "minus" in claim
        else f"{number:.2f} %"
    )
    return "at least " * (claim["rule"] == "at least") + told


def _ours(interval: Interval, group: pd.DataFrame, difference: bool) -> dict:
    return {
        "ours": f"{interval.percent()} {'points' if difference else '%'}",
        "n": len(group),
        "minutes": round(group["minutes"].mean(), 1),
        "pixels": group["variant"].iloc[0] or "official",
    }


def _told(columns: dict, minus: dict | None = None) -> str:
    """Conditions in words: texts as they are, numbers with the name of their column."""
    told = ", ".join(
        value if isinstance(value, str) else f"{column} {value}"
        for column, value in columns.items()
        if value != "any"
    )
    return told + (f"; minus {_told(minus)}" if minus else "")
