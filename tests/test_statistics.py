import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib import statistics


def test_wilsons_interval_in_closed_form():
    n, k, z = 8000, 6480, stats.norm.ppf(0.975)
    p = k / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert statistics.binomial(k, n) == pytest.approx((p, centre - half, centre + half))
    assert half == pytest.approx(0.0086, abs=1e-4)                  # 0.86 points at 81 % of 8,000 images
    assert statistics.binomial(5, 5).high == pytest.approx(1) and statistics.binomial(0, 5).low == pytest.approx(0)


def test_the_interval_over_seeds_is_students():
    values = [0.50, 0.52, 0.51, 0.55]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert statistics.over_seeds(values) == pytest.approx((np.mean(values), low, high))


def test_one_seed_tells_nothing_of_the_spread():
    value, low, high = statistics.over_seeds([0.5])
    assert value == 0.5 and math.isnan(low) and math.isnan(high)
    assert statistics.Interval(0.5, math.nan, math.nan).percent() == "50.0"
    assert statistics.Interval(0.813, 0.804, 0.8214).percent() == "81.3 [80.4, 82.1]"


def test_the_interval_over_seeds_covers_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = sum(low <= 0 <= high for _, low, high in (statistics.over_seeds(random.normal(size=3)) for _ in range(2000)))
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)


def test_mcnemar_by_counting():
    first, second = [True] * 8 + [False] * 2 + [True] * 5, [False] * 8 + [True] * 2 + [True] * 5
    paired = statistics.mcnemar(first, second)
    tail = sum(math.comb(10, k) for k in (0, 1, 2)) / 2**10
    assert paired == pytest.approx((6 / 15, 8, 2, 2 * tail))
    assert statistics.mcnemar(first, first) == (0, 0, 0, 1)


def test_summaries_say_which_interval_they_give():
    table = pd.DataFrame({"method": ["a", "a", "b"], "accuracy": [0.5, 0.7, 0.9], "correct": [5, 7, 9], "n": 10,
                          "protocol": "x", "minutes": [1.0, 2.0, 4.0]})
    a, b = statistics.summarise(table, ["method"]).itertuples()
    assert (a.seeds, a.interval, a.minutes) == (2, "seeds", 1.5) and (a.mean, a.low) == pytest.approx(
        statistics.over_seeds([0.5, 0.7])[:2])
    apart = statistics.summarise(table.assign(protocol=["x", "y", "x"]), ["method"])    # one seed each of two protocols
    assert list(apart.seeds) == [1, 1, 1] and list(apart["mean"]) == [0.5, 0.7, 0.9]
    assert (b.seeds, b.interval) == (1, "test images") and b.low == pytest.approx(statistics.binomial(9, 10).low)


def sweep(rows):
    columns = ["id", "protocol", "probe", "per_class", "labels", "subset", "correct", "n"]
    return pd.DataFrame(rows, columns=columns).assign(accuracy=lambda t: t.correct / t.n, data="toy")


def test_the_label_sweeps_interval_is_over_what_there_is_several_of():
    """Runs before subsets before test images; a run's subsets are averaged first."""
    subsets = [("a", "p", "linear", 10, 100, f"random {i}", c, 100) for i, c in enumerate((50, 60, 70))]
    one = statistics.summarise_labels(sweep(subsets), ["data"]).iloc[0]
    assert (one["interval"], one["runs"], one["subsets"]) == ("subsets", 1, 3)
    assert (one["mean"], one["low"], one["high"]) == pytest.approx(statistics.over_seeds([0.5, 0.6, 0.7]))
    more = subsets + [("b", "p", "linear", 10, 100, f"random {i}", c, 100) for i, c in enumerate((70, 80, 90))]
    two = statistics.summarise_labels(sweep(more), ["data"]).iloc[0]
    assert (two["interval"], two["runs"]) == ("runs", 2)
    assert (two["mean"], two["low"], two["high"]) == pytest.approx(statistics.over_seeds([0.6, 0.8]))
    single = statistics.summarise_labels(sweep(subsets[:1]), ["data"]).iloc[0]
    assert single["interval"] == "test images"
    assert (single["mean"], single["low"], single["high"]) == pytest.approx(statistics.binomial(50, 100))
    other = sweep(subsets + [("c", "q", "linear", 10, 100, "random 0", 1, 100)])        # another protocol
    assert len(statistics.summarise_labels(other, ["data"])) == 2
