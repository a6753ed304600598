"""Two groups of runs beside each other: the difference over paired seeds, its notation, and a
verdict in words."""

from typing import NamedTuple

import pandas as pd

from lib.statistics import Interval, differences, over_seeds


class Comparison(NamedTuple):
    """Accuracy of the first minus that of the second, as fractions, with its 95 % interval over
    paired seeds."""

    value: float
    low: float
    high: float
    seeds: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out; one seed has none."""
        return self.low > 0 or self.high < 0

    def beside(self, other: str) -> str:
        """``13.5 [12.4, 14.6] points above other (n = 3)``."""
        if self.value >= 0:
            distance, side = Interval(self.value, self.low, self.high), "above"
        else:
            distance, side = Interval(-self.value, -self.high, -self.low), "below"
        return f"{distance.percent()} points {side} {other} (n = {self.seeds})"


def paired(first: pd.DataFrame, second: pd.DataFrame) -> Comparison | None:
    """Compare two groups of runs by the columns seed and accuracy; None where they share no seed.

    A single run of the second, as raw pixels are, stands beside every seed of the first.
    """
    if len(second) == 1:
        pairs = first["accuracy"] - second["accuracy"].iloc[0]
    else:
        pairs = differences(first, second)
    return Comparison(*over_seeds(pairs), len(pairs)) if len(pairs) else None


def verdict(comparisons: dict[str, Comparison]) -> str:
    """``better than a and b, and worse than c``: what lies clearly on which side, by name; "" for
    no comparison."""
    better = [name for name, found in comparisons.items() if found.low > 0]
    worse = [name for name, found in comparisons.items() if found.high < 0]
    unclear = [name for name, found in comparisons.items() if not found.is_clear]
    sides = {"better than": better, "worse than": worse, "not told apart from": unclear}
    return ", and ".join(f"{side} {' and '.join(names)}" for side, names in sides.items() if names)
