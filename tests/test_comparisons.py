import math

import pandas as pd
import pytest

from lib import comparisons, statistics
from lib.comparisons import Comparison


def runs(*accuracies, first_seed=0):
    return pd.DataFrame(
        {"seed": range(first_seed, first_seed + len(accuracies)), "accuracy": accuracies}
    )


def test_seeds_are_paired():
    found = comparisons.paired(runs(0.5, 0.6, 0.7), runs(0.4, 0.52, 0.58))
    assert found[:3] == pytest.approx(statistics.over_seeds([0.1, 0.08, 0.12])) and found.seeds == 3
    assert comparisons.paired(runs(0.5, 0.6), runs(0.4, 0.5, first_seed=1)).seeds == 1
    assert comparisons.paired(runs(0.5, 0.6), runs(0.4, 0.5, first_seed=7)) is None
    assert comparisons.paired(runs(0.5), runs()) is None


def test_a_single_run_stands_beside_every_seed():
    found = comparisons.paired(runs(0.5, 0.6, first_seed=4), runs(0.4))
    assert found[:3] == pytest.approx(statistics.over_seeds([0.1, 0.2])) and found.seeds == 2


def test_in_words():
    assert Comparison(0.1, 0.05, 0.15, 3).beside("x") == "10.0 [5.0, 15.0] points above x (n = 3)"
    assert (
        Comparison(-0.1, -0.15, 0.05, 3).beside("x") == "10.0 [-5.0, 15.0] points below x (n = 3)"
    )
    assert Comparison(0.1, math.nan, math.nan, 1).beside("x") == "10.0 points above x (n = 1)"


def test_a_verdict_names_each_side():
    up, down, unclear = (
        Comparison(0.1, 0.05, 0.15, 3),
        Comparison(-0.1, -0.2, -0.05, 3),
        Comparison(0, -0.1, 0.1, 3),
    )
    assert (
        comparisons.verdict({"a": up, "b": up, "c": down})
        == "better than a and b, and worse than c"
    )
    assert (
        comparisons.verdict({"a": unclear, "b": down}) == "worse than b, and not told apart from a"
    )
    assert (
        comparisons.verdict({"a": Comparison(0.1, math.nan, math.nan, 1)})
        == "not told apart from a"
    )
    assert comparisons.verdict({}) == "" and up.is_clear and down.is_clear and not unclear.is_clear
