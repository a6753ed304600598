"""A question of a reader's own: the worked example of the page on rerunning, as it is printed."""

import re
from pathlib import Path

import pytest

from lib import ROOT
from lib.evidence import claims, plan, tables
from lib.evidence.ledger import Ledger
from lib.evidence.queue import Queue
from lib.runs import records
from tests.plans import COMMITTED

SHORTER = (("seeds: {5: 3}", "seeds: {1: 3}"), ("epochs: 5", "epochs: 1"))  # for the test


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The page's two entries in files of their own."""
    place = tmp_path_factory.mktemp("own")
    page = (ROOT / "book" / "rerun.md").read_text()
    experiment, claim = re.findall("```yaml\n(.*?)```", page, re.DOTALL)
    for old, new in SHORTER:
        assert old in experiment + claim
        experiment, claim = experiment.replace(old, new), claim.replace(old, new)
    (place / "experiments.yml").write_text(experiment)
    (place / "claims.yml").write_text(claim)
    (place / "results").mkdir()
    return place


def test_two_entries_make_runs_a_verdict_and_a_row(place):
    entries = plan.read(place / "experiments.yml")
    ledger = Ledger(place, place / "results", place / "runs", "cpu", download=True)
    queue = Queue(entries, ledger, "cpu", place / "kept")
    (claim,) = claims.read(place / "claims.yml")
    assert claim["ours"]["margin"] == entries[0].margin

    nothing = tables.measures([])
    assert "| ○ | Is a low temperature better on digits? |" in claims.headline([claim], nothing)
    assert list(queue.table()["missing"]) == [6]

    queue.work(package=COMMITTED)
    measured = tables.measures(records.load_all(place / "results"))
    ours = claims.at_our_size(claim["ours"], measured)
    assert ours.comparison.seeds == 3
    row = claims.decide(claim, measured)
    assert (row["verdict"], row["claimed"]) == ("not published", "no number")
    assert row["at our size"] == ours.in_words()
    (account,) = queue.account([]).to_dict("records")
    assert (account["planned"], account["done"]) == (6, 6)
