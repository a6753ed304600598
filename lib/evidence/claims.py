"""The claims the book is about, as ``book/claims.yml`` has them.

A claim of the report has a second one beside it, for the size that two CPU cores can run, which an
entry of the plan decides: its contrast, metric and margin stood there before the runs. How records
decide them is in ``lib.evidence.verdicts``.
"""

from pathlib import Path
from typing import Annotated, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from lib import ROOT, InputError
from lib.evidence.tables import COLUMNS, OWN_SCHEDULE
from lib.parsing import read_yaml
from lib.validation import labelled_entries, validated

CLAIMS = ROOT / "book" / "claims.yml"
OURSELVES = "this book's question"  # the source of what nobody has published on
MEASURED = (*COLUMNS, "measure", "per_class")  # columns of tables.measures


def _are_columns(conditions: dict) -> dict:
    for column, value in conditions.items():
        if column not in MEASURED:
            raise ValueError(f"records have no column '{column}'")
        if not isinstance(value, str | int | float):
            raise ValueError(f"{column} must be one text or number, got {value}")
    return conditions


Conditions = Annotated[dict, AfterValidator(_are_columns)]


def _are_changes(changes: dict) -> dict:
    minus = changes.get("minus", [])
    if not isinstance(minus, list) or not all(isinstance(other, dict) for other in minus):
        raise ValueError(f"minus must be a list of columns and values, got {minus}")
    for conditions in (_of_the_first(changes), *minus):
        _are_columns(conditions)
    if not isinstance(changes.get("seeds", 1), int):
        raise ValueError(f"seeds must be a whole number, got {changes['seeds']}")
    return changes


def _of_the_first(changes: dict) -> dict:
    """The columns of the first group."""
    return {column: value for column, value in changes.items() if column not in ("minus", "seeds")}


@with_config(ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class OurSize(TypedDict):
    """A claim at the size that two CPU cores can run: one group of the plan's runs less another."""

    claim: str
    entry: str  # of the plan, to which the runs belong
    like_for_like: Conditions  # columns of the first group
    # the columns that differ in the second; of several groups the best by its mean is taken
    minus: Annotated[list[Conditions], Field(min_length=1)]
    margin: Annotated[float, Field(gt=0)]  # points; a smaller difference counts as none
    seeds: Annotated[int, Field(ge=2)]  # how many pairs are planned
    # smaller sizes of the same contrast, for who computes it again: columns of the first group,
    # "minus", those of each second one, and "seeds", where they are other ones
    shorter: NotRequired[list[Annotated[dict, AfterValidator(_are_changes)]]]


@with_config(ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class Claim(TypedDict):
    """What somebody says of a method, and what records decide it.

    The value "any" lifts a condition.
    """

    id: str
    claim: str
    source: str
    # "value": the number lies where one more run of ours would; "at least": it lies there or
    # below; and the difference, with minus, is sure of its sign; "sign": the difference has the
    # number's sign (plus where there is none); "none": nothing to decide
    # a question that nobody has published on has neither this nor the next, but ours
    rule: NotRequired[Literal["value", "sign", "at least", "none"]]
    like_for_like: NotRequired[Conditions]  # columns that a record must have
    number: NotRequired[float]  # percent; points with minus
    # of the number as it was published, where it ends in zeros, which YAML does not keep
    decimals: NotRequired[Annotated[int, Field(ge=0)]]
    runs: NotRequired[Annotated[int, Field(ge=1)]]  # how many the number is the mean of, else one
    minus: NotRequired[Conditions]  # the columns that differ in what is subtracted
    cannot: NotRequired[str]  # why no record can decide it
    question: NotRequired[str]  # what the claim answers; such claims, with ours, are the headline
    says: NotRequired[str]  # the source's answer in a few words, where the number is not enough
    ours: NotRequired[OurSize]  # the same at the size that we can run


def _is_whole(claim: Claim) -> Claim:
    if "ours" not in claim:
        for field in ("rule", "like_for_like"):
            if field not in claim:
                raise ValueError(f"the field '{field}' is missing")
    if ("rule" in claim) != ("like_for_like" in claim):
        raise ValueError("a published claim needs both rule and like_for_like")
    if claim.get("minus") == {}:
        raise ValueError("minus must have a column that differs")
    if claim.get("rule") in ("value", "at least") and "number" not in claim:
        raise ValueError(f"the rule '{claim['rule']}' needs a number")
    if "question" in claim and "ours" not in claim:
        raise ValueError("a question needs ours, the claim at our size")
    ours = claim.get("ours", {})
    for changes in ours.get("shorter", []):
        if "minus" in changes and len(changes["minus"]) != len(ours["minus"]):
            raise ValueError("shorter must have as many minus as ours, or none")
    return claim


_Claim = Annotated[Claim, AfterValidator(_is_whole)]


def read(path: Path = CLAIMS) -> list[Claim]:
    """The claims, in order.

    Raises InputError, naming file and claim, where a field is missing, unknown or wrong.
    """
    claims = []
    content = "claims, each with id, claim, source, rule and like_for_like"
    for label, claim in labelled_entries(read_yaml(path), path, "claim", content, "id"):
        validated(_Claim, claim, label)
        claims.append(claim)  # as written: of a number the digits count
    if not claims:
        raise InputError(f"{path} has no claims")
    return claims


def groups(claim: OurSize) -> list[dict]:
    """The columns of the runs that are compared: of the first group, then of each subtracted one.

    A group belongs to the claim's entry of the plan where it does not name another.
    """
    first = {"entry": claim["entry"]} | columns_of(claim)
    return [first | minus for minus in ({}, *claim["minus"])]


def sizes(claim: OurSize) -> list[OurSize]:
    """The claim and its smaller sizes, the largest first."""
    made = [claim]
    for changes in reversed(claim.get("shorter", [])):
        smaller: OurSize = claim.copy()
        smaller["like_for_like"] = claim["like_for_like"] | _of_the_first(changes)
        smaller["seeds"] = changes.get("seeds", claim["seeds"])
        others = changes.get("minus", [{}] * len(claim["minus"]))
        smaller["minus"] = [one | other for one, other in zip(claim["minus"], others, strict=True)]
        made.append(smaller)
    return made


def decimals(claim: Claim) -> int:
    """Of the claim's number, as it was published."""
    written = str(claim.get("number", 0.0)).partition(".")[2]
    return claim.get("decimals", len(written))


def can_be_decided(claim: Claim) -> bool:
    """Whether it is a published one that records of the published size could decide."""
    is_published = "rule" in claim and claim["source"] != OURSELVES
    return is_published and claim["rule"] != "none" and "cannot" not in claim


def columns_of(claim: Claim | OurSize) -> dict:
    """What a record must have that decides the claim; what goes without saying is added."""
    return {"measure": "accuracy", "schedule": OWN_SCHEDULE} | claim["like_for_like"]


def claimed(claim: Claim) -> str:
    """The number that is claimed, in words."""
    if "number" not in claim:
        number = "no number"
    elif "minus" in claim:
        number = f"{claim['number']:+.{decimals(claim)}f} points"
    else:
        number = f"{claim['number']:.{decimals(claim)}f} %"
    if claim.get("rule") == "at least":
        return f"at least {number}"
    return number


def in_words(conditions: dict) -> str:
    """Conditions in words: texts as they are, numbers with the name of their column."""
    words = []
    for column, value in conditions.items():
        if value == "any":
            continue
        if not isinstance(value, str):
            value = f"{column} {value}"
        words.append(value)
    return ", ".join(words)
