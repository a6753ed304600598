from lib import records
from lib.claims import matching
from tools import recorded


def test_the_tables_come_from_the_records(capsys):
    table = records.table(records.load_all())
    for data in recorded.DATA:
        for head in ("mlp", "linear", "none"):
            runs = recorded.slices(matching(table, recorded.ON_H), data, head)
            assert sorted(runs.seed) == [0, 1, 2] and runs.protocol.nunique() == 1
    recorded.main()
    shown = capsys.readouterr().out
    assert "kmeans400" in shown and "nan" not in shown.lower() and shown.count("\n\n") == 6
