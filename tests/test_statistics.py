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
    assert half == pytest.approx(0.0086, abs=1e-4)  # 0.86 points at 81 % of 8,000 images
    assert statistics.binomial(5, 5).high == pytest.approx(1) and statistics.binomial(
        0, 5
    ).low == pytest.approx(0)


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
    hits = sum(
        low <= 0 <= high
        for _, low, high in (statistics.over_seeds(random.normal(size=3)) for _ in range(2000))
    )
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)


def test_mcnemar_by_counting():
    first, second = [True] * 8 + [False] * 2 + [True] * 5, [False] * 8 + [True] * 2 + [True] * 5
    paired = statistics.mcnemar(first, second)
    tail = sum(math.comb(10, k) for k in (0, 1, 2)) / 2**10
    assert paired == pytest.approx((6 / 15, 8, 2, 2 * tail))
    assert statistics.mcnemar(first, first) == (0, 0, 0, 1)


def level(accuracies, n):
    return statistics.over_runs(
        pd.DataFrame(
            {"accuracy": accuracies, "correct": np.round(np.multiply(accuracies, n)), "n": n}
        )
    )


def test_seeds_and_test_images_are_both_in_a_levels_interval():
    values = [0.50, 0.52, 0.54]
    found, seeds, images = (
        level(values, 1000),
        statistics.over_seeds(values),
        statistics.binomial(520, 1000),
    )
    assert found.value == pytest.approx(0.52)
    assert found.value - found.low == pytest.approx(
        math.hypot(seeds.value - seeds.low, images.value - images.low)
    )
    assert found.high - found.value == pytest.approx(
        math.hypot(seeds.high - seeds.value, images.high - images.value)
    )
    same = level([0.452, 0.452, 0.452], 3925)  # equal seeds do not make the test images more
    assert same == pytest.approx(statistics.binomial(1774, 3925), abs=1e-4)
    assert level([0.5], 1000) == statistics.binomial(500, 1000)
    uncounted = statistics.over_runs(pd.DataFrame({"accuracy": values, "correct": None, "n": 1000}))
    assert uncounted == seeds


@pytest.mark.parametrize("seeds, spread", [(3, 0.0), (3, 0.02), (10, 0.01)])
def test_a_level_covers_the_accuracy_on_all_images_over_all_seeds(seeds, spread):
    """By simulation of images of different difficulty, shared by runs of different skill; seeds
    alone cover too few."""
    random, n, draws, hits, of_seeds = np.random.default_rng(seeds), 500, 1500, 0, 0
    for _ in range(draws):
        easy = random.beta(1.2, 0.8, n)  # how often the seeds get an image right; 0.6 in the mean
        skill = random.normal(0, spread, (seeds, 1))
        values = (random.random((seeds, n)) < np.clip(easy + skill, 0, 1)).mean(1)
        hits += level(values, n).low <= 0.6 <= level(values, n).high
        of_seeds += statistics.over_seeds(values).low <= 0.6 <= statistics.over_seeds(values).high
    assert 0.94 < hits / draws < 1 and of_seeds / draws < hits / draws - 0.02


def test_one_more_run_lies_where_it_is_predicted():
    values = [0.50, 0.52, 0.51, 0.55]
    half = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) * math.sqrt(1 + 1 / 4)
    assert statistics.one_more(values)[1:] == pytest.approx((0.52 - half, 0.52 + half))
    third = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) * math.sqrt(1 / 3 + 1 / 4)
    assert statistics.one_more(values, 3, 0.001)[1:] == pytest.approx(
        (0.519 - third, 0.521 + third)
    )
    assert math.isnan(statistics.one_more([0.5]).low)


def test_the_spread_of_few_runs_is_hardly_known():
    low, high = (0.01 * math.sqrt(2 / stats.chi2.ppf(share, 2)) for share in (0.975, 0.025))
    assert statistics.spread_interval([0.50, 0.51, 0.52]) == pytest.approx((0.01, low, high))
    random = np.random.default_rng(0)
    found = [statistics.spread_interval(random.normal(0, 1, 4)) for _ in range(2000)]
    assert sum(low <= 1 <= high for _, low, high in found) / 2000 == pytest.approx(0.95, abs=0.015)
    assert all(math.isnan(part) for part in statistics.spread_interval([0.5]))


def test_summaries_say_which_interval_they_give():
    table = pd.DataFrame(
        {
            "method": ["a", "a", "b"],
            "accuracy": [0.5, 0.7, 0.9],
            "correct": [5, 7, 9],
            "n": 10,
            "protocol": "x",
            "minutes": [1.0, 2.0, 4.0],
        }
    )
    a, b = statistics.summarise(table, ["method"]).itertuples()
    assert (a.seeds, a.interval, a.minutes) == (2, "seeds and test images", 1.5)
    assert (a.mean, a.low, a.high) == pytest.approx(level([0.5, 0.7], 10))
    apart = statistics.summarise(
        table.assign(protocol=["x", "y", "x"]), ["method"]
    )  # one seed each of two protocols
    assert list(apart.seeds) == [1, 1, 1] and list(apart["mean"]) == [0.5, 0.7, 0.9]
    assert (b.seeds, b.interval) == (1, "test images") and b.low == pytest.approx(
        statistics.binomial(9, 10).low
    )
    uncounted = statistics.summarise(table.assign(correct=np.nan), ["method"])
    assert list(uncounted["interval"]) == ["seeds", "none"] and math.isnan(uncounted["low"][1])


def sweep(rows):
    columns = ["id", "protocol", "probe", "per_class", "labels", "subset", "correct", "n"]
    return pd.DataFrame(rows, columns=columns).assign(
        accuracy=lambda t: t.correct / t.n, data="toy"
    )


def test_the_label_sweeps_interval_is_over_what_there_is_several_of():
    """Runs before subsets before test images; a run's subsets are averaged first."""
    subsets = [
        ("a", "p", "linear", 10, 100, f"random {i}", c, 100) for i, c in enumerate((50, 60, 70))
    ]
    one = statistics.summarise_labels(sweep(subsets), ["data"]).iloc[0]
    assert (one["interval"], one["runs"], one["subsets"]) == ("subsets", 1, 3)
    assert (one["mean"], one["low"], one["high"]) == pytest.approx(level([0.5, 0.6, 0.7], 100))
    more = subsets + [
        ("b", "p", "linear", 10, 100, f"random {i}", c, 100) for i, c in enumerate((70, 80, 90))
    ]
    two = statistics.summarise_labels(sweep(more), ["data"]).iloc[0]
    assert (two["interval"], two["runs"]) == ("runs", 2)
    assert (two["mean"], two["low"], two["high"]) == pytest.approx(level([0.6, 0.8], 100))
    single = statistics.summarise_labels(sweep(subsets[:1]), ["data"]).iloc[0]
    assert single["interval"] == "test images"
    assert (single["mean"], single["low"], single["high"]) == pytest.approx(
        statistics.binomial(50, 100)
    )
    other = sweep(subsets + [("c", "q", "linear", 10, 100, "random 0", 1, 100)])  # another protocol
    assert len(statistics.summarise_labels(other, ["data"])) == 2


def test_the_bootstrap_of_a_difference_resamples_images_in_pairs():
    random = np.random.default_rng(1)
    first = random.random(1000) < 0.7
    second = np.where(random.random(1000) < 0.8, first, random.random(1000) < 0.5)
    ours = statistics.bootstrap(first, second)
    theirs = stats.bootstrap(
        (first.astype(float) - second,), np.mean, n_resamples=5000, method="percentile", rng=2
    )
    assert ours.value == pytest.approx(first.mean() - second.mean())
    assert ours[1:] == pytest.approx(tuple(theirs.confidence_interval), abs=0.003)
    half = 1.96 * np.std(first.astype(float) - second) / math.sqrt(1000)  # the closed form
    assert ours[1:] == pytest.approx((ours.value - half, ours.value + half), abs=0.003)
    assert half < 1.96 * math.sqrt(
        first.var() / 1000 + second.var() / 1000
    )  # narrower than unpaired
    opposed = statistics.bootstrap(
        first, ~first
    )  # what one loses the other gains: twice as wide as apart
    half = 1.96 * 2 * np.std(first) / math.sqrt(1000)
    assert opposed[1:] == pytest.approx((opposed.value - half, opposed.value + half), abs=0.004)
    assert statistics.bootstrap(first, first) == (0, 0, 0) and ours == statistics.bootstrap(
        first, second
    )


def test_differences_are_taken_seed_by_seed():
    a = pd.DataFrame({"seed": [0, 1, 2, 5], "accuracy": [0.60, 0.64, 0.61, 0.9]})
    b = pd.DataFrame({"seed": [2, 1, 0, 3], "accuracy": [0.58, 0.60, 0.59, 0.1]})
    found = statistics.differences(a, b)
    assert found.to_dict() == pytest.approx({0: 0.01, 1: 0.04, 2: 0.03})
    theirs = stats.ttest_rel([0.60, 0.64, 0.61], [0.59, 0.60, 0.58]).confidence_interval(0.95)
    assert statistics.over_seeds(found)[1:] == pytest.approx((theirs.low, theirs.high))


def test_how_many_seeds_a_difference_needs():
    """Cohen's tables (two-sided 5 %, power 80 %), for differences of one and of half a standard
    deviation."""
    assert [statistics.seeds_needed(1.0, d) for d in (1.0, 0.5)] == [17, 64]
    assert [statistics.seeds_needed(1.0, d, paired=True) for d in (1.0, 0.5)] == [10, 34]
    assert statistics.seeds_needed(0.02, 0.01) == 64 and statistics.seeds_needed(0.0, 0.01) == 2
    with pytest.raises(ValueError, match="difference of 0"):
        statistics.seeds_needed(0.01, 0)


def test_so_many_seeds_do_find_it_by_simulation():
    random, n = np.random.default_rng(0), statistics.seeds_needed(0.008)
    found = stats.ttest_ind(
        random.normal(0, 0.008, (4000, n)), random.normal(0.01, 0.008, (4000, n)), axis=1
    ).pvalue
    fewer = stats.ttest_ind(
        random.normal(0, 0.008, (4000, n - 1)), random.normal(0.01, 0.008, (4000, n - 1)), axis=1
    )
    assert (fewer.pvalue < 0.05).mean() < 0.8 + 0.02 and (found < 0.05).mean() > 0.8 - 0.02


def test_the_calibration_error_by_a_loop_over_bins():
    random = np.random.default_rng(0)
    confidence = np.append(random.random(500), [1.0, 1 / 15, 0.0])
    correct = random.random(503) < confidence**2
    bins, total = statistics.reliability(confidence, correct), 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15) | (confidence == 0) & (m == 0)
        assert bins["count"][m] == inside.sum() and bins["correct"][m] == correct[inside].sum()
        if inside.any():
            total += inside.sum() / 503 * abs(correct[inside].mean() - confidence[inside].mean())
    assert statistics.calibration_error(bins) == pytest.approx(total, abs=1e-5) and total > 0.1
    sure = statistics.reliability([1.0, 1.0], [True, False])
    assert statistics.calibration_error(sure) == 0.5


def test_data_sets_are_strata():
    """The interval of the mean of two means, by regression on the data set with least squares."""
    groups = [pd.Series([1.0, 2.0, 4.0]), pd.Series([-1.0, 0.0, 0.5])]
    design = np.kron(np.eye(2), np.ones((3, 1)))
    values = np.concatenate(groups)
    coefficients, squares, *_ = np.linalg.lstsq(design, values, rcond=None)
    weights = np.array([0.5, 0.5])
    error = np.sqrt(squares[0] / 4 * weights @ np.linalg.inv(design.T @ design) @ weights)
    half = stats.t.ppf(0.975, 4) * error
    expected = (
        weights @ coefficients,
        weights @ coefficients - half,
        weights @ coefficients + half,
    )
    assert statistics.over_strata(groups) == pytest.approx(expected)
