"""A question of a reader's own: the worked example of the page on rerunning, as it is printed."""

import re
from pathlib import Path

import pytest

from lib import ROOT
from lib.__main__ import main
from lib.evidence import claims, headline, plan, tables, verdicts
from lib.evidence.ledger import Ledger
from lib.evidence.queue import Queue
from lib.probes import few_labels, fine_tuning
from lib.runs import records
from tests.plans import COMMITTED

SHORTER = (  # for the test
    ("seeds: {5: 3}", "seeds: {1: 3}"),
    ("epochs: 5", "epochs: 1"),
    ("delta: {", "delta: {images: 400, "),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The page's two entries in files of their own."""
    place = tmp_path_factory.mktemp("own")
    page = (ROOT / "book" / "rerun.md").read_text(encoding="utf-8")
    experiment, claim = re.findall("```yaml\n(.*?)```", page, re.DOTALL)
    for old, new in SHORTER:
        assert old in experiment + claim
        experiment, claim = experiment.replace(old, new), claim.replace(old, new)
    (place / "experiments.yml").write_text(experiment, encoding="utf-8")
    (place / "claims.yml").write_text(claim, encoding="utf-8")
    (place / "results").mkdir()
    return place


def test_two_entries_make_runs_a_verdict_and_a_row(place):
    entries = plan.read(place / "experiments.yml")
    ledger = Ledger(place, place / "results", place / "runs", "cpu", download=True)
    queue = Queue(entries, ledger, "cpu", place / "kept")
    (claim,) = claims.read(place / "claims.yml")
    assert claim["ours"]["margin"] == entries[0].margin

    nothing = tables.measures([])
    assert "| ○ | Is a low temperature better on digits? |" in headline.markdown([claim], nothing)
    assert list(queue.table()["missing"]) == [6]

    queue.work(package=COMMITTED)
    measured = tables.measures(records.load_all(place / "results"))
    ours = verdicts.at_our_size(claim["ours"], measured)
    assert ours.comparison.seeds == 3
    row = verdicts.decide(claim, measured)
    assert (row["verdict"], row["claimed"]) == ("not published", "no number")
    assert row["at our size"] == ours.in_words()
    (account,) = queue.account([]).to_dict("records")
    assert (account["planned"], account["done"]) == (6, 6)


def test_the_baselines_of_ones_own_pictures(toy_root, tmp_path, monkeypatch, capsys):
    """The page's commands, on small data and shorter: each makes a run, and probe names them."""
    page = (ROOT / "book" / "rerun.md").read_text(encoding="utf-8").replace("\\\n", "")
    section = page.partition("## What must it beat?")[2].partition("\n## ")[0]
    commands = re.findall(r"^python -m lib ([^#\n]+)", section, re.MULTILINE)
    assert len(commands) == 8

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(few_labels, "PER_CLASS", (10,))
    monkeypatch.setattr(fine_tuning, "PER_CLASS", (10,))
    monkeypatch.setattr(few_labels, "SUBSETS", 1)
    monkeypatch.setattr(fine_tuning, "SUBSETS", 1)
    monkeypatch.setattr(fine_tuning, "STEPS", 4)
    monkeypatch.setattr(fine_tuning, "EPOCHS", 1)
    for command in commands[:6]:
        shorter = re.sub(r"--epochs [1-9]\d+", "--epochs 1", command)
        words = shorter.replace("kmeans400", "kmeans100").replace("mine", "toy").split()
        where = ["--runs", "runs", "--data-root", str(toy_root), "--set", "batch_size=32"]
        assert main([*words, *where]) == 0
    made = sorted(map(str, Path("runs").iterdir()))
    assert len(made) == 6

    capsys.readouterr()
    yours = next(run for run in made if "simclr" in run and "-e1-" in run)
    for command in commands[6:]:
        words = command.replace("runs/RUN", yours).replace("runs/*", " ".join(made)).split()
        assert main([*words, "--data-root", str(toy_root)]) == 0
    said = capsys.readouterr().out
    for what in ("pixels on toy", "kmeans on toy", "untrained on toy", "ce, 1 epoch, on toy"):
        assert f": {what}" in said
    for probe in ("linear", "fine-tuned", "from scratch", "probed"):
        assert re.search(rf"h  {probe} +10 labels a class", said), probe
