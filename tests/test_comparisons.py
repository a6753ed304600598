"""Two groups of runs beside each other: paired by seed, and told in words."""

import math

import pandas as pd
import pytest

from lib.evidence import comparisons, statistics
from lib.evidence.comparisons import Comparison

UP = Comparison(0.1, 0.05, 0.15, 3)
DOWN = Comparison(-0.1, -0.2, -0.05, 3)
UNCLEAR = Comparison(0.0, -0.1, 0.1, 3)
ONE_SEED = Comparison(0.1, math.nan, math.nan, 1)


def runs(*accuracies: float, first_seed: int = 0) -> pd.DataFrame:
    seeds = range(first_seed, first_seed + len(accuracies))
    return pd.DataFrame({"seed": seeds, "accuracy": accuracies})


def test_seeds_are_paired():
    found = comparisons.paired(runs(0.5, 0.6, 0.7), runs(0.4, 0.52, 0.58))
    assert found.interval == pytest.approx(statistics.over_seeds([0.1, 0.08, 0.12]))
    assert found.seeds == 3

    shifted = comparisons.paired(runs(0.5, 0.6), runs(0.4, 0.5, first_seed=1))
    assert shifted.seeds == 1
    assert shifted.value == pytest.approx(0.2)
    assert comparisons.paired(runs(0.5, 0.6), runs(0.4, 0.5, first_seed=7)) is None
    assert comparisons.paired(runs(0.5), runs()) is None


def test_raw_pixels_stand_beside_every_seed_and_nothing_else_does():
    many = runs(0.5, 0.6, first_seed=4)
    assert comparisons.paired(many, runs(0.4).assign(method="ce")) is None
    found = comparisons.paired(many, runs(0.4).assign(method="pixels"))
    assert found.interval == pytest.approx(statistics.over_seeds([0.1, 0.2]))
    assert found.seeds == 2


def test_in_points():
    assert Comparison(0.014, 0.003, 0.025, 5).points() == "+1.4 [0.3, 2.5], 5 seeds"
    assert Comparison(-0.014, -0.025, 0.003, 2).points() == "-1.4 [-2.5, 0.3], 2 seeds"
    assert Comparison(-0.0001, -0.1, 0.1, 3).points() == "+0.0 [-10.0, 10.0], 3 seeds"
    assert ONE_SEED.points() == "+10.0, 1 seed"


def test_in_words():
    assert UP.beside("x") == "10.0 [5.0, 15.0] points above x (n = 3)"
    below = Comparison(-0.1, -0.15, 0.05, 3)
    assert below.beside("x") == "10.0 [-5.0, 15.0] points below x (n = 3)"
    assert ONE_SEED.beside("x") == "10.0 points above x (n = 1)"


def test_a_verdict_names_each_side():
    sure = comparisons.verdict({"a": UP, "b": UP, "c": DOWN})
    assert sure == "better than a and b, and worse than c"
    mixed = comparisons.verdict({"a": UNCLEAR, "b": DOWN})
    assert mixed == "worse than b, and not told apart from a"
    assert comparisons.verdict({"a": ONE_SEED}) == "not told apart from a"
    assert comparisons.verdict({}) == ""


def test_a_comparison_is_clear_where_its_interval_leaves_zero_out():
    assert UP.is_clear
    assert DOWN.is_clear
    assert not UNCLEAR.is_clear
    assert not ONE_SEED.is_clear
