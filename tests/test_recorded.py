import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib import records
from tools import recorded


def test_data_sets_are_strata():
    """The interval of the mean of two means, by regression on the data set with least squares."""
    groups = [pd.Series([1.0, 2.0, 4.0]), pd.Series([-1.0, 0.0, 0.5])]
    design = np.kron(np.eye(2), np.ones((3, 1)))
    values = np.concatenate(groups)
    coefficients, squares, *_ = np.linalg.lstsq(design, values, rcond=None)
    weights = np.array([0.5, 0.5])
    error = np.sqrt(squares[0] / 4 * weights @ np.linalg.inv(design.T @ design) @ weights)
    half = stats.t.ppf(0.975, 4) * error
    expected = (weights @ coefficients, weights @ coefficients - half, weights @ coefficients + half)
    assert recorded.over_strata(groups) == pytest.approx(expected)


def test_the_tables_come_from_the_records(capsys):
    table = records.table(records.load_all())
    for data in recorded.DATA:
        for head in ("mlp", "linear", "none"):
            runs = recorded.slices(recorded.where(table, **recorded.ON_H), data, head)
            assert sorted(runs.seed) == [0, 1, 2] and runs.protocol.nunique() == 1
    recorded.main()
    shown = capsys.readouterr().out
    assert "kmeans400" in shown and "nan" not in shown.lower() and shown.count("\n\n") == 6
