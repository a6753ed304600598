"""The tables of the plan's entry "recorded"."""

import re

import pytest

from lib.evidence import tables
from lib.evidence.tables import matching
from lib.runs import records
from tools import recorded


@pytest.mark.parametrize("data", recorded.DATA)
@pytest.mark.parametrize("head", ["mlp", "linear", "none"])
def test_a_slice_is_one_protocol_with_three_seeds(data, head):
    table = tables.table(records.load_all())
    runs = recorded.slices(matching(table, recorded.ON_H), data, head)
    assert sorted(runs.seed) == [0, 1, 2]
    assert runs.protocol.nunique() == 1


def test_the_tables_come_from_the_records(capsys):
    recorded.main()
    shown = capsys.readouterr().out
    assert "kmeans400" in shown
    # three seeds of each of two data sets
    assert re.search(r"mlp - none( +\+\d\.\d \[.*?\], \d seeds){2} +\+.*, 6 seeds", shown)
    assert "nan" not in shown.lower()
    assert shown.count("\n\n") == 6
