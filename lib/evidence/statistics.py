"""Intervals: what a measured accuracy says about the accuracy that would be measured again."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq

from lib import InputError

Values: TypeAlias = Sequence[float] | np.ndarray | pd.Series
Rights: TypeAlias = Sequence[bool] | np.ndarray  # (n,), which images a classifier got right
CONFIDENCE = 0.95  # of every interval
UPPER = (1 + CONFIDENCE) / 2  # the quantile at which an interval ends
POWER = 0.8  # with which a difference is to be seen
STRIPS = 2_000  # by which a power is integrated, to a ten-thousandth


class Interval(NamedTuple):
    """A point with its two-sided interval, all in the same unit."""

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """``81.3 [80.4, 82.1]``: for accuracies given as fractions."""
        decimals = self._decimals()
        value, low, high = (f"{100 * x:z.{decimals}f}" for x in self)
        if math.isnan(self.low):
            return value
        return f"{value} [{low}, {high}]"

    def points(self) -> str:
        """``+1.4 [0.3, 2.5]``: for a difference of accuracies given as fractions."""
        decimals = self._decimals()
        value, low, high = (100 * x for x in self)
        return f"{value:+z.{decimals}f} [{low:z.{decimals}f}, {high:z.{decimals}f}]"

    def _decimals(self) -> int:
        """One, or two where an end would be rounded to zero, so that its side is seen."""
        if any(0 < abs(100 * end) < 0.05 for end in (self.low, self.high)):
            return 2
        return 1


def binomial(correct: int, n: int) -> Interval:
    """Accuracy ``correct / n`` with Wilson's interval.

    It is the noise of having only n test images, for one fixed model.
    """
    low, high = stats.binomtest(correct, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(correct / n, float(low), float(high))


def over_seeds(values: Values) -> Interval:
    """Mean with Student's t interval over independent runs.

    It is the noise of initialisation, order and views. With a single value nothing is known of that
    noise: the interval is (nan, nan), never zero wide.
    """
    numbers = [float(value) for value in values]
    n = len(numbers)
    mean = sum(numbers) / n
    if n < 2:
        return Interval(mean, math.nan, math.nan)

    squares = sum((number - mean) ** 2 for number in numbers)
    error = math.sqrt(squares / (n - 1) / n)
    half = float(stats.t.ppf(UPPER, n - 1)) * error
    return Interval(mean, mean - half, mean + half)


def over_seeds_and_images(first: Rights, second: Rights) -> Interval:
    """The mean difference of paired runs, with the noise of seeds and of the test images.

    first, second: (seeds, n) bool, which of the n shared test images each run got right; a row of
        each makes a pair.

    Of the two-way layout pairs by images without repetition: the error of the mean is that over
    pairs plus that over images, less that of what is left over when both are taken out, which
    either holds. The half-widths, Student's over pairs and the normal one over images, are joined
    by the root of the sum of their squares.
    """
    both = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    pairs, images = both.shape
    mean, low, high = over_seeds(both.mean(axis=1))

    left = both - both.mean(axis=1, keepdims=True) - both.mean(axis=0) + mean
    remainder = (left**2).sum() / ((pairs - 1) * (images - 1))
    of_images = max(0.0, both.mean(axis=0).var(ddof=1) - remainder / pairs) / images
    half = math.hypot(high - mean, float(stats.norm.ppf(UPPER)) * math.sqrt(of_images))
    return Interval(mean, mean - half, mean + half)


def over_strata(groups: list[pd.Series]) -> Interval:
    """The mean of the groups' means, each with the same weight: data sets are strata.

    Each group has its own variance; Student's t has the degrees of freedom of Welch (1947) and
    Satterthwaite (1946). Raises InputError for a group of one value, which has no variance.
    """
    if min(map(len, groups)) < 2:
        raise InputError("each group must have two values or more, to have a variance")
    variances = [group.var() / len(group) for group in groups]  # of the groups' means
    mean = sum(group.mean() for group in groups) / len(groups)
    if not any(variances):
        return Interval(mean, mean, mean)
    parts = [variance**2 / (len(group) - 1) for variance, group in zip(variances, groups)]
    freedom = sum(variances) ** 2 / sum(parts)
    error = math.sqrt(sum(variances)) / len(groups)

    half = float(stats.t.ppf(UPPER, freedom)) * error
    return Interval(mean, mean - half, mean + half)


class Paired(NamedTuple):
    """Two classifiers on the same test images."""

    difference: float  # accuracy of the first minus that of the second
    only_first: int  # images that only the first gets right
    only_second: int
    p: float  # McNemar's exact test: how likely so uneven a split is between two equally good ones


def mcnemar(first: Rights, second: Rights) -> Paired:
    """Compare two classifiers image by image.

    first, second: (n,) bool, which images each got right.
    """
    one, other = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_one = int((one & ~other).sum())
    only_other = int((other & ~one).sum())

    p = 1.0
    if only_one + only_other:
        p = float(stats.binomtest(only_one, only_one + only_other).pvalue)
    return Paired(float(one.mean() - other.mean()), only_one, only_other, p)


def bootstrap(first: Rights, second: Rights, draws: int = 10_000) -> Interval:
    """The difference in accuracy of two classifiers on the same test images, by paired bootstrap.

    first, second: (n,) bool, which images each got right.

    Images are drawn anew, with replacement, in pairs: only how many fall to the first alone, to the
    second alone and to neither matters, which is multinomial. Always the same draws. It is the
    noise of the test images; of other seeds it knows nothing.
    """
    paired = mcnemar(first, second)
    n = len(first)
    alike = n - paired.only_first - paired.only_second
    shares = np.array([paired.only_first, paired.only_second, alike]) / n

    drawn = np.random.default_rng(0).multinomial(n, shares, draws)
    difference = (drawn[:, 0] - drawn[:, 1]) / n
    low, high = np.quantile(difference, [1 - UPPER, UPPER])
    return Interval(paired.difference, float(low), float(high))


def differences(first: pd.DataFrame, second: pd.DataFrame) -> pd.Series:
    """Accuracy of first minus that of second, seed by seed, for the seeds that both have.

    first, second: columns seed and accuracy; of one seed the first row counts.

    Runs of the same seed share test images and split (and, where they can, initialisation and
    order): what is shared cancels. ``over_seeds`` of these values is about the mean difference on
    these test images; of others, and of settings, data and tuning that all the pairs have in
    common, it knows nothing.
    """
    difference = _by_seed(first).sub(_by_seed(second))
    return difference.dropna().sort_index()


def _by_seed(table: pd.DataFrame) -> pd.Series:
    return table.drop_duplicates("seed").set_index("seed")["accuracy"]


def seeds_needed(
    spread: float,
    difference: float = 0.01,
    paired: bool = False,
) -> int:
    """How many runs of each method a two-sided t test needs to see a difference, at POWER.

    spread: the standard deviation over seeds of one method's accuracy, or, where paired, of the
        differences between runs of the same seed.

    The power is that of the noncentral t distribution, integrated here, since scipy's own is not a
    number for many large effects.
    Raises ValueError where difference is 0.
    """
    if not difference:
        raise ValueError("no number of seeds shows a difference of 0")

    effect = abs(difference) / max(spread, 1e-12)
    enough = 2
    while _power(enough, effect, paired) < POWER:
        enough *= 2
    numbers = range(2, enough + 1)
    place = bisect_left(numbers, POWER, key=lambda n: _power(n, effect, paired))
    return numbers[place]


def chances(spread: float, pairs: int, difference: float, margin: float) -> tuple[float, float]:
    """How likely the 95 % interval of a mean over pairs lies above a margin, and how likely below.

    spread: the standard deviation of the pairs' differences.
    difference: the true one.
    """
    return _sides(pairs, (difference - margin) / spread, paired=True)


def detectable(spread: float, pairs: int, margin: float) -> float:
    """The true difference from which on the interval lies above a margin, at POWER."""

    def lacking(effect: float) -> float:
        above, _ = _sides(pairs, effect, paired=True)
        return above - POWER

    return margin + spread * float(brentq(lacking, 0, 100))


def _power(n: int, effect: float, paired: bool) -> float:
    """How likely a t test of n runs a method sees a difference of so many standard deviations."""
    return sum(_sides(n, effect, paired))


def _sides(n: int, effect: float, paired: bool) -> tuple[float, float]:
    """How likely the interval of the difference lies above zero, and how likely below."""
    freedom, variances = 2 * n - 2, 2
    if paired:
        freedom, variances = n - 1, 1
    shift = effect / math.sqrt(variances / n)
    edge = stats.t.ppf(UPPER, freedom)
    middles = (np.arange(STRIPS) + 0.5) / STRIPS  # of equally likely strips of the estimated spread
    spread = np.sqrt(stats.chi2.ppf(middles, freedom) / freedom)
    above, below = stats.norm.sf(edge * spread, shift), stats.norm.cdf(-edge * spread, shift)
    return float(above.mean()), float(below.mean())


def calibration_error(bins: dict) -> float:
    """The expected calibration error, from bins of confidence (``probes.calibration``).

    It is the mean over images of how far confidence and accuracy of their bin differ.
    """
    gaps = np.abs(np.asarray(bins["confidence"]) - np.asarray(bins["correct"]))
    return float(gaps.sum() / np.sum(bins["count"]))


def over_runs(group: pd.DataFrame) -> Interval:
    """A level with its interval: the mean accuracy of runs that differ in the seed alone.

    group: columns accuracy, correct (NaN for what is no share of images: then seeds alone) and n;
        all on the same test images. One run: Wilson's interval.

    What it is about: the accuracy to expect of another seed, on average, over all images that the
    test images are a sample of. Both samples add noise: of seeds Student's half-width, of images
    Wilson's at the mean accuracy. More seeds make the first smaller, never the second, since all
    runs share the images: it is not divided by their number. The half-widths are joined by the root
    of the sum of their squares. That is a little too wide, since the runs' spread holds some of the
    images' noise already; differences of runs (``differences``) are free of what is shared.
    """
    if group["correct"].isna().any():
        return over_seeds(group["accuracy"])
    return _with_images(over_seeds(group["accuracy"]), int(group["n"].iloc[0]))


def _with_images(seeds: Interval, n: int) -> Interval:
    """A mean over seeds, or subsets, with the noise of n shared test images too."""
    mean, low, high = seeds
    images = binomial(round(mean * n), n)
    if math.isnan(low):
        return images

    below = math.hypot(mean - low, images.value - images.low)
    above = math.hypot(high - mean, images.high - images.value)
    return Interval(mean, mean - below, mean + above)


def one_more(values: Values, runs: int = 1, rounding: float = 0.0) -> Interval:
    """The mean of the values with the interval in which one more run will lie.

    runs: or the mean of so many more runs.
    rounding: half a unit of the published number's last digit, added at both ends.

    Student's prediction interval: ``t s sqrt(1 / runs + 1 / n)``, wider than the mean's own, which
    asks where the expectation lies. It is what a published number, mostly a single run, must be
    held against: of numbers that come from the same distribution 95 % lie inside, however many runs
    there are. It is about the same test images. A single value: (nan, nan).
    """
    mean, low, high = over_seeds(values)
    share = math.sqrt(1 + len(values) / runs)  # of the prediction's width by the mean's

    below = share * (mean - low) + rounding
    above = share * (high - mean) + rounding
    return Interval(mean, mean - below, mean + above)


def spread_interval(values: Values) -> Interval:
    """The standard deviation with its chi-square interval.

    Of few runs it is hardly known, of one not at all (nan).
    """
    n = len(values)
    if n < 2:
        return Interval(math.nan, math.nan, math.nan)
    spread = float(np.std(values, ddof=1))

    widest = stats.chi2.ppf(UPPER, n - 1)
    narrowest = stats.chi2.ppf(1 - UPPER, n - 1)
    low = spread * math.sqrt((n - 1) / widest)
    high = spread * math.sqrt((n - 1) / narrowest)
    return Interval(spread, low, high)


def summarise(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean accuracy of each group of runs that differ in the seed alone, with its interval.

    table: columns accuracy, correct, n, protocol, minutes and those in by, one row per run
        (``tables.table``).

    Runs of different protocols (configuration apart from the seed, or data) are never averaged:
    they get a row each. Returns by, mean, low, high (``over_runs``), seeds, n (test images),
    minutes (mean a run) and interval: what the 95 % interval tells of, "seeds and test images"
    where there are several runs, "test images" (Wilson's) for a single one; "seeds" or "none" where
    no images are counted.
    """
    columns = [*by, "mean", "low", "high", "seeds", "n", "minutes", "interval"]
    rows = []
    for (*key, _), group in table.groupby([*by, "protocol"], sort=False, dropna=False):
        mean, low, high = over_runs(group)
        n = int(group["n"].iloc[0])
        minutes = group["minutes"].mean()
        rows.append((*key, mean, low, high, len(group), n, minutes, _noise(group)))
    return pd.DataFrame(rows, columns=columns)


def _noise(group: pd.DataFrame) -> str:
    """What the interval of ``over_runs`` tells of."""
    sources = []
    if len(group) > 1:
        sources.append("seeds")
    if group["correct"].notna().all():
        sources.append("test images")
    return " and ".join(sources) or "none"


def summarise_labels(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean accuracy by number of labels, over runs where there are several, else over subsets.

    table: ``tables.label_table``.

    A run's subsets of one size are averaged first: what the interval of several runs tells of is
    the noise of runs, each read with its own average subset (the subsets are the same ones for
    every run). The noise of the test images is in every interval (``over_runs``), alone for a
    single run with one subset. Returns by, protocol, probe, per_class, labels, mean, low, high,
    runs, subsets, interval.
    """
    keys = [*by, "protocol", "probe", "per_class", "labels"]
    columns = [*keys, "mean", "low", "high", "runs", "subsets", "interval"]
    rows = []
    for key, group in table.groupby(keys, sort=False, dropna=False):
        values, noise = group["accuracy"], "subsets"
        runs = group.groupby("id")["accuracy"].mean()
        if len(runs) > 1:
            values, noise = runs, "runs"
        elif len(values) == 1:
            noise = "test images"

        mean, low, high = _with_images(over_seeds(values), int(group["n"].iloc[0]))
        rows.append((*key, mean, low, high, len(runs), group["subset"].nunique(), noise))
    return pd.DataFrame(rows, columns=columns)
