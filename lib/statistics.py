"""Intervals: what a measured accuracy says about the accuracy that would be measured again."""

import math
from itertools import count
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats


class Interval(NamedTuple):
    """A point with its two-sided interval, all in the same unit."""

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """``81.3 [80.4, 82.1]``: for accuracies given as fractions."""
        value, low, high = (f"{100 * x:z.1f}" for x in self)
        return value if math.isnan(self.low) else f"{value} [{low}, {high}]"


def binomial(correct: int, n: int, confidence: float = 0.95) -> Interval:
    """Accuracy ``correct / n`` with Wilson's interval: the noise of having only n test images, one
    fixed model."""
    low, high = stats.binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return Interval(correct / n, float(low), float(high))


def over_seeds(values, confidence: float = 0.95) -> Interval:
    """Mean with Student's t interval over independent runs: the noise of initialisation, order and
    views.

    With a single value nothing is known of that noise: the interval is (nan, nan), never zero wide.
    """
    values = [float(v) for v in values]
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * spread
    return Interval(mean, mean - half, mean + half)


def over_strata(groups: list[pd.Series], confidence: float = 0.95) -> Interval:
    """The mean of the groups' means, each with the same weight, with one spread within groups: data
    sets are strata.

    The variances within groups are pooled; Student's t has as many degrees of freedom as values
    less groups.
    """
    freedom = sum(len(group) - 1 for group in groups)
    variance = sum(((group - group.mean()) ** 2).sum() for group in groups) / freedom
    mean = sum(group.mean() for group in groups) / len(groups)
    error = math.sqrt(variance * sum(1 / len(group) for group in groups)) / len(groups)
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    return Interval(mean, mean - half, mean + half)


class Paired(NamedTuple):
    """Two classifiers on the same test images."""

    difference: float  # accuracy of the first minus that of the second
    only_first: int  # images that only the first gets right
    only_second: int
    p: float  # McNemar's exact test: how likely so uneven a split is between two equally good ones


def mcnemar(first, second) -> Paired:
    """Compare two classifiers image by image. first, second: (n,) bool, which images each got
    right."""
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    split = only_first + only_second
    p = float(stats.binomtest(only_first, split).pvalue) if split else 1.0
    return Paired(float(first.mean() - second.mean()), only_first, only_second, p)


def bootstrap(first, second, confidence: float = 0.95, draws: int = 10_000) -> Interval:
    """The difference in accuracy of two classifiers on the same test images, with the paired
    bootstrap's interval.

    first, second: (n,) bool, which images each got right. Images are drawn anew, with replacement,
    in pairs: only how many fall to the first alone, to the second alone and to neither matters,
    which is multinomial. Always the same draws. It is the noise of the test images; of other seeds
    it knows nothing.
    """
    paired, n = mcnemar(first, second), len(first)
    shares = (
        np.array(
            [paired.only_first, paired.only_second, n - paired.only_first - paired.only_second]
        )
        / n
    )
    drawn = np.random.default_rng(0).multinomial(n, shares, draws)
    low, high = np.quantile(
        (drawn[:, 0] - drawn[:, 1]) / n, [(1 - confidence) / 2, (1 + confidence) / 2]
    )
    return Interval(paired.difference, float(low), float(high))


def differences(first: pd.DataFrame, second: pd.DataFrame) -> pd.Series:
    """Accuracy of first minus that of second, seed by seed, for the seeds that both have; one row a
    seed in each.

    Runs of the same seed share test images and split (and, where they can, initialisation and
    order): what is shared cancels. ``over_seeds`` of these values is about the mean difference on
    these test images; of others, and of settings, data and tuning that all the pairs have in
    common, it knows nothing.
    """
    pair = (
        table.drop_duplicates("seed").set_index("seed")["accuracy"] for table in (first, second)
    )
    return next(pair).sub(next(pair)).dropna().sort_index()


def seeds_needed(
    spread: float,
    difference: float = 0.01,
    paired: bool = False,
    power: float = 0.8,
    confidence: float = 0.95,
) -> int:
    """How many runs of each method a two-sided t test needs to see a difference with that power.

    spread: the standard deviation over seeds of one method's accuracy, or, where paired, of the
    differences between runs of the same seed. The power is that of the noncentral t distribution.
    Raises ValueError where difference is 0.
    """
    if not difference:
        raise ValueError("no number of seeds shows a difference of 0")

    def reached(n: int) -> float:
        freedom, shift = (n - 1, 1) if paired else (2 * n - 2, 2)
        shift = min(
            abs(difference) / (max(spread, 1e-12) * math.sqrt(shift / n)), 30
        )  # beyond: no doubt is left
        edge = stats.t.ppf((1 + confidence) / 2, freedom)
        return (
            1.0
            if shift == 30
            else stats.nct.sf(edge, freedom, shift) + stats.nct.cdf(-edge, freedom, shift)
        )

    return next(n for n in count(2) if reached(n) >= power)


def reliability(confidence, correct, bins: int = 15) -> dict:
    """How sure and how right a classifier is, by confidence, in bins (0, 1/15], (1/15, 2/15] ... of
    equal width.

    confidence: (n,), the probability given to the class that is predicted; correct: (n,) bool.
    Returns for each bin the count of images, the sum of their confidences and how many are correct
    (Guo et al., arXiv 1706.04599, section 2).
    """
    confidence, correct = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=bool)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return {
        "count": np.bincount(place, minlength=bins).tolist(),
        "confidence": np.bincount(place, confidence, bins).round(4).tolist(),
        "correct": np.bincount(place, correct, bins).astype(int).tolist(),
    }


def calibration_error(bins: dict) -> float:
    """The expected calibration error: the mean over images of how far confidence and accuracy of
    their bin differ."""
    gaps = np.abs(np.asarray(bins["confidence"]) - np.asarray(bins["correct"]))
    return float(gaps.sum() / np.sum(bins["count"]))


def over_runs(group: pd.DataFrame) -> Interval:
    """A level with its 95 % interval: the mean accuracy of runs that differ in the seed, on the
    same test images.

    What it is about: the accuracy to expect of another seed, on average, over all images that the
    test images are a sample of. Both samples add noise: of seeds Student's half-width, of images
    Wilson's at the mean accuracy. More seeds make the first smaller, never the second, since all
    runs share the images: it is not divided by their number. The half-widths are joined by the root
    of the sum of their squares. That is a little too wide, since the runs' spread holds some of the
    images' noise already; differences of runs (``differences``) are free of what is shared. group:
    columns accuracy, correct (NaN for what is no share of images: then seeds alone) and n. One run:
    Wilson's.
    """
    return _level(
        group["accuracy"], None if group["correct"].isna().any() else int(group["n"].iloc[0])
    )


def _level(values, n: int | None) -> Interval:
    """Mean of the values with the noise of seeds (or subsets) and of n shared test images; None: of
    seeds alone."""
    mean, low, high = over_seeds(values)
    if n is None:
        return Interval(mean, low, high)
    images = binomial(round(mean * n), n)
    if math.isnan(low):
        return images
    return Interval(
        mean,
        mean - math.hypot(mean - low, images.value - images.low),
        mean + math.hypot(high - mean, images.high - images.value),
    )


def one_more(values, runs: int = 1, rounding: float = 0.0, confidence: float = 0.95) -> Interval:
    """The mean of the values with the interval in which one more run will lie (or the mean of so
    many more runs).

    Student's prediction interval: ``t s sqrt(1 / runs + 1 / n)``, wider than the mean's own, which
    asks where the expectation lies. It is what a published number, mostly a single run, must be
    held against: of numbers that come from the same distribution 95 % lie inside, however many runs
    there are. It is about the same test images. rounding: half a unit of the published number's
    last digit, added at both ends. A single value: (nan, nan).
    """
    mean, low, high = over_seeds(values, confidence)
    share = math.sqrt(1 + len(values) / runs)  # of the prediction's width by the mean's
    return Interval(
        mean, mean - share * (mean - low) - rounding, mean + share * (high - mean) + rounding
    )


def spread_interval(values, confidence: float = 0.95) -> Interval:
    """The standard deviation with its chi-square interval: of few runs it is hardly known, of one
    not at all (nan)."""
    n, spread = len(values), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    low, high = (
        spread * math.sqrt((n - 1) / stats.chi2.ppf(share, n - 1)) if n > 1 else math.nan
        for share in ((1 + confidence) / 2, (1 - confidence) / 2)
    )
    return Interval(spread, low, high)


def summarise(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean accuracy of each group of runs that differ in nothing but the seed, with ``over_runs``'s
    interval.

    table: columns accuracy, correct, n, protocol, minutes and those in by, one row per run
    (``lib.records.table``). Runs of different protocols (configuration apart from the seed, or
    data) are never averaged: they get a row each. Returns by, mean, low, high, seeds, n (test
    images), minutes (mean a run) and interval: what the 95 % interval tells of, "seeds and test
    images" where there are several runs, "test images" (Wilson's) for a single one; "seeds" or
    "none" where no images are counted.
    """
    rows = []
    for (*key, _), group in table.groupby([*by, "protocol"], sort=False, dropna=False):
        mean, low, high = over_runs(group)
        over = ["seeds"] * (len(group) > 1) + ["test images"] * bool(group["correct"].notna().all())
        rows.append(
            dict(zip(by, key))
            | {
                "mean": mean,
                "low": low,
                "high": high,
                "seeds": len(group),
                "n": int(group["n"].iloc[0]),
                "minutes": group["minutes"].mean(),
                "interval": " and ".join(over) or "none",
            }
        )
    return pd.DataFrame(
        rows, columns=[*by, "mean", "low", "high", "seeds", "n", "minutes", "interval"]
    )


def summarise_labels(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean accuracy by number of labels, over runs where there are several, else over subsets of
    the labels.

    table: ``lib.records.label_table``. A run's subsets of one size are averaged first: what the
    interval of several runs tells of is the noise of runs, each read with its own average subset
    (the subsets are the same ones for every run). The noise of the test images is in every interval
    (``over_runs``), alone for a single run with one subset. Returns by, protocol, probe, per_class,
    labels, mean, low, high, runs, subsets, interval.
    """
    rows, keys = [], [*by, "protocol", "probe", "per_class", "labels"]
    for key, group in table.groupby(keys, sort=False):
        runs = group.groupby("id")["accuracy"].mean()
        subsets = group["subset"].nunique()
        over, values = ("runs", runs) if len(runs) > 1 else ("subsets", group["accuracy"])
        mean, low, high = _level(values, int(group["n"].iloc[0]))
        over = over if len(values) > 1 else "test images"
        rows.append(
            dict(zip(keys, key))
            | {
                "mean": mean,
                "low": low,
                "high": high,
                "runs": len(runs),
                "subsets": subsets,
                "interval": over,
            }
        )
    return pd.DataFrame(rows, columns=[*keys, "mean", "low", "high", "runs", "subsets", "interval"])
