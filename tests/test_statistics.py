"""Intervals, held against closed forms, scipy and simulation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib import InputError
from lib.evidence import statistics
from lib.evidence.statistics import Interval
from lib.probes.calibration import reliability


def level(accuracies: list[float] | np.ndarray, n: int) -> Interval:
    """The interval of runs with these accuracies on n test images."""
    correct = np.round(np.multiply(accuracies, n))
    return statistics.over_runs(pd.DataFrame({"accuracy": accuracies, "correct": correct, "n": n}))


def interval_of(row: pd.Series) -> Interval:
    return Interval(row["mean"], row["low"], row["high"])


def holds(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high


def test_wilsons_interval_in_closed_form():
    n, k = 8000, 6480
    p = k / n
    z = stats.norm.ppf(0.975)
    shrink = 1 + z**2 / n
    centre = (p + z**2 / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))

    assert statistics.binomial(k, n) == pytest.approx((p, centre - half, centre + half))
    assert half == pytest.approx(0.0086, abs=1e-4)  # 0.86 points at 81 % of 8,000 images
    assert statistics.binomial(5, 5).high == pytest.approx(1)
    assert statistics.binomial(0, 5).low == pytest.approx(0)


def test_the_interval_over_seeds_is_students():
    values = [0.50, 0.52, 0.51, 0.55]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert statistics.over_seeds(values) == pytest.approx((np.mean(values), low, high))


def test_one_seed_tells_nothing_of_the_spread():
    value, low, high = statistics.over_seeds([0.5])
    assert value == 0.5
    assert math.isnan(low)
    assert math.isnan(high)
    assert Interval(0.5, math.nan, math.nan).percent() == "50.0"
    assert Interval(0.813, 0.804, 0.8214).percent() == "81.3 [80.4, 82.1]"


def test_the_interval_over_seeds_covers_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        hits += holds(statistics.over_seeds(random.normal(size=3)), 0)
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)


def test_mcnemar_by_counting():
    first = [True] * 8 + [False] * 2 + [True] * 5
    second = [False] * 8 + [True] * 2 + [True] * 5
    tail = sum(math.comb(10, k) for k in (0, 1, 2)) / 2**10
    assert statistics.mcnemar(first, second) == pytest.approx((6 / 15, 8, 2, 2 * tail))
    assert statistics.mcnemar(first, first) == (0, 0, 0, 1)


def test_seeds_and_test_images_are_both_in_a_levels_interval():
    values = [0.50, 0.52, 0.54]
    found = level(values, 1000)
    seeds = statistics.over_seeds(values)
    images = statistics.binomial(520, 1000)

    assert found.value == pytest.approx(0.52)
    below = math.hypot(seeds.value - seeds.low, images.value - images.low)
    assert found.value - found.low == pytest.approx(below)
    above = math.hypot(seeds.high - seeds.value, images.high - images.value)
    assert found.high - found.value == pytest.approx(above)


def test_equal_seeds_do_not_make_the_test_images_more():
    same = level([0.452, 0.452, 0.452], 3925)
    assert same == pytest.approx(statistics.binomial(1774, 3925), abs=1e-4)
    assert level([0.5], 1000) == statistics.binomial(500, 1000)


def test_what_is_no_share_of_images_has_the_noise_of_seeds_alone():
    values = [0.50, 0.52, 0.54]
    table = pd.DataFrame({"accuracy": values, "correct": None, "n": 1000})
    assert statistics.over_runs(table) == statistics.over_seeds(values)


@pytest.mark.parametrize("seeds, spread", [(3, 0.0), (3, 0.02), (10, 0.01)])
def test_a_level_covers_the_accuracy_on_all_images_over_all_seeds(seeds, spread):
    """By simulation of images of different difficulty, shared by runs of different skill.

    Seeds alone cover too few.
    """
    random, n, draws = np.random.default_rng(seeds), 500, 1500
    hits = hits_of_seeds = 0
    for _ in range(draws):
        easy = random.beta(1.2, 0.8, n)  # how often the seeds get an image right; 0.6 in the mean
        skill = random.normal(0, spread, (seeds, 1))
        values = (random.random((seeds, n)) < np.clip(easy + skill, 0, 1)).mean(1)
        hits += holds(level(values, n), 0.6)
        hits_of_seeds += holds(statistics.over_seeds(values), 0.6)
    assert 0.94 < hits / draws < 1
    assert hits_of_seeds / draws < hits / draws - 0.02


def test_one_more_run_lies_where_it_is_predicted():
    values = [0.50, 0.52, 0.51, 0.55]
    width = stats.t.ppf(0.975, 3) * np.std(values, ddof=1)
    half = width * math.sqrt(1 + 1 / 4)
    assert statistics.one_more(values) == pytest.approx((0.52, 0.52 - half, 0.52 + half))

    third = width * math.sqrt(1 / 3 + 1 / 4)  # of the mean of three
    rounded = statistics.one_more(values, 3, rounding=0.001)
    assert rounded == pytest.approx((0.52, 0.519 - third, 0.521 + third))
    assert math.isnan(statistics.one_more([0.5]).low)


def test_the_spread_of_few_runs_is_hardly_known():
    low = 0.01 * math.sqrt(2 / stats.chi2.ppf(0.975, 2))
    high = 0.01 * math.sqrt(2 / stats.chi2.ppf(0.025, 2))
    assert statistics.spread_interval([0.50, 0.51, 0.52]) == pytest.approx((0.01, low, high))
    assert np.isnan(statistics.spread_interval([0.5])).all()

    random = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        hits += holds(statistics.spread_interval(random.normal(0, 1, 4)), 1)
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def accuracies(**columns) -> pd.DataFrame:
    """Two runs of a and one of b, on ten images, but for the columns given."""
    table = {
        "method": ["a", "a", "b"],
        "accuracy": [0.5, 0.7, 0.9],
        "correct": [5, 7, 9],
        "n": 10,
        "protocol": "x",
        "minutes": [1.0, 2.0, 4.0],
    }
    return pd.DataFrame(table | columns)


def test_summaries_say_which_interval_they_give():
    found = statistics.summarise(accuracies(), ["method"])
    assert list(found["seeds"]) == [2, 1]
    assert list(found["interval"]) == ["seeds and test images", "test images"]
    assert list(found["minutes"]) == [1.5, 4.0]
    assert interval_of(found.iloc[0]) == pytest.approx(level([0.5, 0.7], 10))
    assert interval_of(found.iloc[1]) == pytest.approx(statistics.binomial(9, 10))


def test_two_protocols_are_never_averaged():
    found = statistics.summarise(accuracies(protocol=["x", "y", "x"]), ["method"])
    assert list(found.seeds) == [1, 1, 1]
    assert list(found["mean"]) == [0.5, 0.7, 0.9]


def test_what_is_not_counted_in_images_has_an_interval_over_seeds_or_none():
    found = statistics.summarise(accuracies(correct=np.nan), ["method"])
    assert list(found["interval"]) == ["seeds", "none"]
    assert math.isnan(found["low"][1])


def sweep(run: str, correct: list[int], protocol: str = "p") -> pd.DataFrame:
    """A run's probes fitted on subsets of ten labels a class, read on a hundred images."""
    return pd.DataFrame(
        {
            "id": run,
            "protocol": protocol,
            "probe": "linear",
            "per_class": 10,
            "labels": 100,
            "subset": [f"random {place}" for place in range(len(correct))],
            "accuracy": np.array(correct) / 100,
            "n": 100,
            "data": "toy",
        }
    )


def test_the_label_sweeps_interval_is_over_what_there_is_several_of():
    """Runs before subsets before test images; a run's subsets are averaged first."""
    a, b = sweep("a", [50, 60, 70]), sweep("b", [70, 80, 90])

    one = summarised(a)
    assert (one["interval"], one["runs"], one["subsets"]) == ("subsets", 1, 3)
    assert interval_of(one) == pytest.approx(level([0.5, 0.6, 0.7], 100))

    two = summarised(pd.concat([a, b]))
    assert (two["interval"], two["runs"]) == ("runs", 2)
    assert interval_of(two) == pytest.approx(level([0.6, 0.8], 100))

    single = summarised(a[:1])
    assert single["interval"] == "test images"
    assert interval_of(single) == pytest.approx(statistics.binomial(50, 100))


def summarised(table: pd.DataFrame) -> pd.Series:
    """The only row of its summary."""
    found = statistics.summarise_labels(table, ["data"])
    assert len(found) == 1
    return found.iloc[0]


def test_label_sweeps_of_two_protocols_are_never_averaged():
    both = pd.concat([sweep("a", [50, 60]), sweep("c", [1], protocol="q")])
    assert len(statistics.summarise_labels(both, ["data"])) == 2


def test_runs_without_a_value_in_a_column_are_a_group_of_their_own():
    """As data of unknown size have no view_size: they are not left out."""
    table = pd.concat([sweep("a", [50]), sweep("c", [60])]).assign(view_size=[32, math.nan])
    found = statistics.summarise_labels(table, ["view_size"])
    assert found["mean"].tolist() == pytest.approx([0.5, 0.6])
    assert found["view_size"].isna().tolist() == [False, True]


def test_the_bootstrap_of_a_difference_resamples_images_in_pairs():
    random = np.random.default_rng(1)
    first = random.random(1000) < 0.7
    second = np.where(random.random(1000) < 0.8, first, random.random(1000) < 0.5)
    difference = first.astype(float) - second
    ours = statistics.bootstrap(first, second)
    assert ours.value == pytest.approx(difference.mean())
    assert ours == statistics.bootstrap(first, second)

    theirs = stats.bootstrap(
        (difference,), np.mean, n_resamples=5000, method="percentile", rng=2
    ).confidence_interval
    assert ours[1:] == pytest.approx((theirs.low, theirs.high), abs=0.003)
    half = 1.96 * np.std(difference) / math.sqrt(1000)  # the closed form
    assert ours[1:] == pytest.approx((ours.value - half, ours.value + half), abs=0.003)
    assert half < 1.96 * math.sqrt(first.var() / 1000 + second.var() / 1000)  # as if unpaired


def test_the_bootstrap_knows_what_one_loses_and_the_other_gains():
    first = np.random.default_rng(1).random(1000) < 0.7
    opposed = statistics.bootstrap(first, ~first)
    half = 1.96 * 2 * np.std(first) / math.sqrt(1000)  # twice as wide as apart
    assert opposed[1:] == pytest.approx((opposed.value - half, opposed.value + half), abs=0.004)
    assert statistics.bootstrap(first, first) == (0, 0, 0)


def test_differences_are_taken_seed_by_seed():
    a = pd.DataFrame({"seed": [0, 1, 2, 5], "accuracy": [0.60, 0.64, 0.61, 0.9]})
    b = pd.DataFrame({"seed": [2, 1, 0, 3], "accuracy": [0.58, 0.60, 0.59, 0.1]})
    found = statistics.differences(a, b)
    assert found.to_dict() == pytest.approx({0: 0.01, 1: 0.04, 2: 0.03})

    theirs = stats.ttest_rel([0.60, 0.64, 0.61], [0.59, 0.60, 0.58]).confidence_interval(0.95)
    assert statistics.over_seeds(found)[1:] == pytest.approx((theirs.low, theirs.high))


def test_how_many_seeds_a_difference_needs():
    """Cohen's tables (two-sided 5 %, power 80 %), for one and for half a standard deviation."""
    assert statistics.seeds_needed(1.0, 1.0) == 17
    assert statistics.seeds_needed(1.0, 0.5) == 64
    assert statistics.seeds_needed(1.0, 1.0, paired=True) == 10
    assert statistics.seeds_needed(1.0, 0.5, paired=True) == 34
    assert statistics.seeds_needed(0.02, 0.01) == 64
    assert statistics.seeds_needed(0.0, 0.01) == 2
    with pytest.raises(ValueError, match="difference of 0"):
        statistics.seeds_needed(0.01, 0)


def test_so_many_seeds_do_find_it_by_simulation():
    random, n = np.random.default_rng(0), statistics.seeds_needed(0.008)

    def power(seeds: int) -> float:
        first = random.normal(0, 0.008, (4000, seeds))
        second = random.normal(0.01, 0.008, (4000, seeds))
        return (stats.ttest_ind(first, second, axis=1).pvalue < 0.05).mean()

    assert power(n) > 0.8 - 0.02
    assert power(n - 1) < 0.8 + 0.02


@pytest.mark.parametrize("effect", [3.0, 5.0, 7.9, 9.1, 12.0, 15.0])
def test_so_many_pairs_do_find_a_large_difference_by_simulation(effect):
    """Two pairs have one degree of freedom, an edge of 12.7 standard errors."""
    random, n = np.random.default_rng(0), statistics.seeds_needed(1.0, effect, paired=True)

    def power(pairs: int) -> float:
        found = random.normal(effect, 1, (20_000, pairs))
        return (stats.ttest_1samp(found, 0, axis=1).pvalue < 0.05).mean()

    assert power(n) > 0.8 - 0.01
    if n > 2:
        assert power(n - 1) < 0.8 + 0.01


@pytest.mark.parametrize("pairs, spread, difference", [(3, 1.59, 3.1), (5, 0.5, 0.5), (3, 0.7, 0)])
def test_the_chances_of_a_verdict_by_simulation(pairs, spread, difference):
    found = np.random.default_rng(0).normal(difference, spread, (40_000, pairs))
    low, high = stats.ttest_1samp(found, 0, axis=1).confidence_interval(0.95)
    above, below = statistics.chances(spread, pairs, difference, margin=1.0)
    assert above == pytest.approx((low > 1.0).mean(), abs=0.01)
    assert below == pytest.approx((high < 1.0).mean(), abs=0.01)


def test_from_the_detectable_difference_on_it_is_seen_four_times_in_five():
    least = statistics.detectable(0.7, 3, margin=1.0)
    above, _ = statistics.chances(0.7, 3, least, margin=1.0)
    assert above == pytest.approx(0.8, abs=1e-6)


def test_the_calibration_error_by_a_loop_over_bins():
    random = np.random.default_rng(0)
    confidence = np.append(random.random(500), [1.0, 1 / 15, 0.0])
    correct = random.random(503) < confidence**2
    bins = reliability(confidence, correct)

    total = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if m == 0:
            inside |= confidence == 0
        assert bins["count"][m] == inside.sum()
        assert bins["correct"][m] == correct[inside].sum()
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            total += inside.sum() / 503 * gap
    assert statistics.calibration_error(bins) == pytest.approx(total, abs=1e-5)
    assert total > 0.1
    assert statistics.calibration_error(reliability([1.0, 1.0], [True, False])) == 0.5


def test_data_sets_are_strata():
    """The mean of two means is half the difference of one and the other with its sign turned."""
    groups = [pd.Series([1.0, 2.0, 4.0]), pd.Series([-1.0, 0.0, 0.5, 0.3])]
    welch = stats.ttest_ind(groups[0], -groups[1], equal_var=False).confidence_interval(0.95)
    mean = (groups[0].mean() + groups[1].mean()) / 2
    wanted = (mean, welch.low / 2, welch.high / 2)
    assert statistics.over_strata(groups) == pytest.approx(wanted)
    with pytest.raises(InputError, match="two values or more"):
        statistics.over_strata([groups[0], groups[1][:1]])


def test_the_noise_of_images_is_what_pairs_have_in_common():
    """The mean covariance of two pairs over the images, which other pairs of runs would share."""
    rng = np.random.default_rng(0)
    hard = rng.random(300)  # images that all runs find hard, the first arm less so
    first = rng.random((4, 300)) > hard**2
    second = rng.random((4, 300)) > hard
    differences = first.astype(float) - second
    covariances = np.cov(differences)
    common = covariances[~np.eye(4, dtype=bool)].mean()
    assert common > 0

    value, low, high = statistics.over_seeds_and_images(first, second)
    mean, of_seeds, _ = statistics.over_seeds(differences.mean(1))
    assert value == pytest.approx(mean)
    half = math.hypot(mean - of_seeds, 1.959964 * math.sqrt(common / 300))
    assert (value - low, high - value) == pytest.approx((half, half))


def test_images_without_a_noise_of_their_own_add_none():
    """Whatever image it is, one run of each pair is right by chance."""
    first = np.array([[True, False] * 50, [False, True] * 50, [True] * 100])
    second = np.zeros((3, 100), dtype=bool)
    assert statistics.over_seeds_and_images(first, second) == pytest.approx(
        statistics.over_seeds([0.5, 0.5, 1.0])
    )


def test_an_end_that_would_round_to_zero_has_another_digit():
    assert Interval(0.004, -0.0001, 0.0075).percent() == "0.40 [-0.01, 0.75]"
    assert Interval(0.004, 0.0004, 0.0075).points() == "+0.40 [0.04, 0.75]"
    assert Interval(0.004, 0.0, 0.0075).points() == "+0.4 [0.0, 0.8]"
