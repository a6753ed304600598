"""Two groups of runs beside each other: the difference over paired seeds, and how it is told."""

from typing import NamedTuple

import pandas as pd

from lib import counted
from lib.evidence.statistics import Interval, differences, over_seeds


class Comparison(NamedTuple):
    """Accuracy of one minus that of another, as fractions, with its 95 % interval over seeds."""

    value: float
    low: float
    high: float
    seeds: int

    @property
    def interval(self) -> Interval:
        return Interval(self.value, self.low, self.high)

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out; one seed has none."""
        return self.low > 0 or self.high < 0

    def difference(self) -> str:
        """``+1.4 [0.3, 2.5]``, in points; one seed has no interval."""
        if self.seeds == 1:
            return f"{100 * self.value:+z.1f}"
        return self.interval.points()

    def points(self) -> str:
        """``+1.4 [0.3, 2.5], 5 seeds``."""
        return f"{self.difference()}, {counted(self.seeds, 'seed')}"

    def beside(self, other: str) -> str:
        """``13.5 [12.4, 14.6] points above other (n = 3)``."""
        if self.value < 0:
            distance = Interval(-self.value, -self.high, -self.low)
            return f"{distance.percent()} points below {other} (n = {self.seeds})"
        return f"{self.interval.percent()} points above {other} (n = {self.seeds})"


def paired(first: pd.DataFrame, second: pd.DataFrame) -> Comparison | None:
    """Compare two groups of runs by the columns seed and accuracy; None where they share no seed.

    Raw pixels have no seed: their one run stands beside every seed of the first.
    """
    methods = list(second.get("method", ()))
    if methods == ["pixels"]:
        return over_pairs(first["accuracy"] - second["accuracy"].iloc[0])
    return over_pairs(differences(first, second))


def over_pairs(pairs: pd.Series) -> Comparison | None:
    """The comparison that differences by seed make (``statistics.differences``); None of none."""
    if pairs.empty:
        return None
    return Comparison(*over_seeds(pairs), len(pairs))


def verdict(comparisons: dict[str, Comparison]) -> str:
    """``better than a and b, and worse than c``: what lies clearly on which side, by name.

    "" for no comparison.
    """
    sides: dict[str, list[str]] = {"better than": [], "worse than": [], "not told apart from": []}
    for name, comparison in comparisons.items():
        if comparison.low > 0:
            sides["better than"].append(name)
        elif comparison.high < 0:
            sides["worse than"].append(name)
        else:
            sides["not told apart from"].append(name)
    return ", and ".join(f"{side} {' and '.join(names)}" for side, names in sides.items() if names)
