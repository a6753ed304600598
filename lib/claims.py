"""The claims the book is about, and the rule by which records decide them.

A claim is decided only like for like: by records of its own data set, encoder, epochs, features and probe. The nearest
records are shown beside it and decide nothing.
"""

from pathlib import Path

import pandas as pd

from lib import ROOT, InputError
from lib.files import read_yaml
from lib.records import COLUMNS
from lib.statistics import Interval, summarise

CLAIMS = ROOT / "book" / "claims.yml"
FIELDS = {"id": str, "claim": str, "source": str, "number": (int, float), "like_for_like": dict, "nearest": dict}
SAME_RUN = ["data", "variant", "images", "encoder", "stem", "head", "recipe", "method", "temperature", "epochs",
            "features", "probe"]
"""What runs have in common that differ in nothing but the seed."""


def read(path: Path = CLAIMS) -> list[dict]:
    """The claims, in order. Raises InputError, naming file and claim, where a field is missing, unknown or wrong."""
    claims = read_yaml(path)
    if not claims or not isinstance(claims, list) or not all(isinstance(claim, dict) for claim in claims):
        raise InputError(f"{path} must be a list of claims, each with {', '.join(FIELDS)}")
    for place, claim in enumerate(claims, start=1):
        name = claim.get("id", f"number {place}")
        for field in claim.keys() | FIELDS.keys():
            if field not in FIELDS or not isinstance(claim.get(field), FIELDS[field]):
                raise InputError(f"{path}: claim {name}: the field '{field}' is missing, unknown or of the wrong type")
        for column, value in [*claim["like_for_like"].items(), *claim["nearest"].items()]:
            if column not in COLUMNS:
                raise InputError(f"{path}: claim {name}: records have no column '{column}'")
            if not isinstance(value, (str, int, float)):
                raise InputError(f"{path}: claim {name}: {column} must be one text or number, got {value}")
    return claims


def matching(table: pd.DataFrame, wanted: dict) -> pd.DataFrame:
    """The rows of the records' table that have all the wanted values."""
    keep = pd.Series(True, index=table.index)
    for column, value in wanted.items():
        keep &= table[column] == value
    return table[keep]


def decide(claim: dict, table: pd.DataFrame) -> dict:
    """One row of the scoreboard: claim, claimed, ours, on which pixels, verdict and source.

    "reproduced" where the claimed number lies in the 95 % interval of the like-for-like records, "above" or "below"
    where ours lies, "not run" where there is no such record. Of several protocols that fit, the one with most seeds
    decides.
    """
    found = summarise(matching(table, claim["like_for_like"]), SAME_RUN)
    row = {"claim": claim["claim"], "claimed (%)": f"{claim['number']:.2f}", "ours (%)": "-", "pixels": "-",
           "verdict": "not run"}
    if len(found):
        chosen = found.sort_values("seeds", kind="stable").iloc[-1]
        ours, number = Interval(chosen["mean"], chosen["low"], chosen["high"]), claim["number"] / 100
        verdict = "above" if ours.low > number else "below" if ours.high < number else "reproduced"
        row |= {"ours (%)": ours.percent(), "pixels": chosen["variant"] or "official", "verdict": verdict}
    return row | {"source": claim["source"]}
