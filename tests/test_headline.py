"""The first page's questions: what is open shows its largest complete size, in text and drawn."""

import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import pandas as pd
import pytest

from lib import ROOT, InputError
from lib.evidence import claims, comparisons, headline, statistics, tables, verdicts
from lib.evidence.headline import MARKS, PAGE, README
from lib.runs import records
from tests.test_our_size import ASKED, OURS, rows

QUESTION = ASKED | {"question": "Is it so?", "ours": OURS}
SMALLER = OURS | {"shorter": [{"epochs": 10, "minus": [{"epochs": 20}], "seeds": 3}]}
DECIDED = (rows([0.73, 0.731, 0.732]), rows([0.70] * 3, "ce", epochs=120))
SHORT = (rows([0.5, 0.51, 0.52], epochs=10), rows([0.52, 0.535, 0.53], "ce", epochs=20))


def together(*of: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(of, ignore_index=True)


def test_a_row_has_the_difference_its_size_and_how_it_stands():
    first, *_, last = headline.markdown([QUESTION, ASKED], together(*DECIDED)).splitlines()
    assert first == (
        "Of 2 published claims that this code could decide, the records decide **none** so far; of "
        "the 1 questions **1** at our size."
    )
    assert last == (
        "| ◐ | Is it so? | no number | +3.1 [2.9, 3.3], 3 seeds (60 against 120 epochs) | yes |"
    )


def test_what_is_open_shows_its_largest_complete_size():
    asked = QUESTION | {"ours": SMALLER}
    begun = rows([0.73]), rows([0.70], "ce", epochs=120)
    (answer,) = headline.answers([asked], together(*SHORT, *begun))
    assert answer.mark == verdicts.OPEN
    assert answer.size == "10 against 20 epochs"
    assert answer.difference().startswith("-1.8 [")
    assert answer.standing == "open: 1 of 3 seeds at 60 against 120 epochs"

    (answer,) = headline.answers([asked], together(*SHORT, *DECIDED))
    assert (answer.mark, answer.size) == (verdicts.YES, "60 against 120 epochs")


def test_what_all_seeds_leave_open_does_not_look_unfinished():
    undecided = rows([0.72, 0.70, 0.71]), rows([0.70] * 3, "ce", epochs=120)
    (answer,) = headline.answers([QUESTION], together(*undecided))
    assert answer.mark == verdicts.OPEN
    assert answer.standing == "open after all 3 seeds at 60 against 120 epochs"


def test_where_a_run_failed_it_is_open_and_the_rest_is_shown():
    failed = rows([math.nan], measure="failed", seed=2, features="x", probe="x")
    longest = rows([0.73, 0.7301]), rows([0.70] * 3, "ce", epochs=120), failed
    (answer,) = headline.answers([QUESTION | {"ours": SMALLER}], together(*SHORT, *longest))
    assert (answer.mark, answer.size) == (verdicts.OPEN, "60 against 120 epochs")
    assert answer.difference().startswith("+3.0 [")
    assert answer.standing == "open: 2 of 3 seeds at 60 against 120 epochs, 1 failed"


def test_what_is_published_is_not_taken_for_ours():
    """Counted, and drawn, by the verdict at our size alone."""
    decided = replace(headline.answers([QUESTION], together(*DECIDED))[0], mark=verdicts.PUBLISHED)
    assert decided.verdict != "open"
    undecided = replace(decided, verdict="open")
    for answer, dot in ((decided, "decided"), (undecided, "open")):
        assert f'class="{dot}"' in headline._drawing(answer, -5, 5)


def test_a_question_without_runs_says_so():
    (answer,) = headline.answers([QUESTION], tables.measures([]))
    assert answer.difference() == "no runs of the plan yet"
    assert answer.standing == "open: 0 of 3 seeds at 60 against 120 epochs"
    assert "<svg" not in headline.html([QUESTION], tables.measures([]))


def test_the_sources_own_words_go_before_its_number():
    says = QUESTION | {"says": 'it is "not satisfactory"'}
    (answer,) = headline.answers([says], tables.measures([]))
    assert answer.claimed == 'it is "not satisfactory"'
    assert "it is &quot;not satisfactory&quot;" in headline.html([says], tables.measures([]))


def test_a_claim_at_our_size_without_a_question_is_not_on_the_first_page():
    own = {"id": "own", "claim": "c", "source": "this book's question", "ours": OURS}
    page = headline.markdown([own, ASKED], together(*DECIDED))
    assert "Of 1 published claims" in page
    assert "of the 0 questions" in page


@pytest.mark.parametrize(
    "change", [{"rule": "none"}, {"cannot": "no loader"}, {"source": claims.OURSELVES}]
)
def test_what_no_record_can_decide_is_not_counted(change):
    page = headline.markdown([ASKED, ASKED | change], tables.measures([]))
    assert "Of 1 published claims" in page


def test_every_claim_of_our_own_says_so():
    """The count of published claims leaves them out by their source."""
    assert claims.OURSELVES in {claim["source"] for claim in claims.read()}


def test_marks_stand_on_one_axis_where_their_numbers_are():
    """Read back from the drawing: ticks are 5 points apart, the heavy one is zero."""
    open_one = QUESTION | {"question": "Or so?", "ours": SMALLER | {"seeds": 4}}
    table = together(*DECIDED, *SHORT)
    drawn = ET.fromstring(headline.html([QUESTION, open_one], table))

    def place(path: ET.Element) -> float:
        return float(path.get("d").split()[0].lstrip("M"))

    numbers = {text.text: float(text.get("x")) for text in drawn.findall(".//th/svg/text")}
    drawings = drawn.findall(".//td/svg")
    for row, mean, kind in zip(drawings, (3.1, -1.8), ("decided", "open"), strict=True):
        zero = place(row.find("path[@class='zero']"))
        ticks = [place(path) for path in row.findall("path[@class='tick']")]
        point = min(abs(tick - zero) for tick in ticks) / headline.STEP
        assert numbers["0"] == zero
        dot = row.find("circle")
        assert dot.get("class") == kind
        assert (float(dot.get("cx")) - zero) / point == pytest.approx(mean, abs=0.05)
        start, end = row.find("path[@class='interval']").get("d").split()
        low, high = float(start.lstrip("M")), float(end.partition("H")[2])
        assert low < float(dot.get("cx")) < high
        assert (low + high) / 2 == pytest.approx(float(dot.get("cx")), abs=0.11)


def test_it_is_written_between_its_marks_and_into_the_page(tmp_path):
    first, last = MARKS
    readme, page = tmp_path / "README.md", tmp_path / "headline.html"
    readme.write_text(f"before\n{first}\nold\n{last}\nafter", encoding="utf-8")

    headline.write([QUESTION], together(*DECIDED), readme, page)
    before, _, rest = readme.read_text(encoding="utf-8").partition(first)
    between, _, after = rest.partition(last)
    assert (before, after) == ("before\n", "\nafter")
    assert "Is it so?" in between and "old" not in between
    assert "Is it so?" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text", ["no marks", MARKS[0], f"{MARKS[1]} {MARKS[0]}", 2 * " ".join(MARKS)]
)
def test_a_page_without_its_marks_is_left_as_it_is(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="README.md needs"):
        headline.write([QUESTION], together(*DECIDED), readme, tmp_path / "headline.html")
    assert readme.read_text(encoding="utf-8") == text


def test_the_first_page_says_what_the_records_say():
    stated, measured = claims.read(), tables.measures(records.load_all())
    first, last = MARKS
    shown = README.read_text(encoding="utf-8").partition(first)[2].partition(last)[0].strip()
    assert shown == headline.markdown(stated, measured), "run: python -m lib headline"
    page = PAGE.read_text(encoding="utf-8")
    assert page == headline.html(stated, measured), "run: python -m lib headline"
    for claim in stated:
        if "question" in claim:
            assert f"| {claim['question']} |" in shown


def test_the_first_pages_two_sentences_are_still_so():
    """Written by hand: what 500 epochs show, and what is open."""
    stated, measured = claims.read(), tables.measures(records.load_all())
    learns, longer, head, kmeans, supcon = headline.answers(stated, measured)
    assert (learns.size, longer.size) == ("500 epochs", "500 against 100 epochs")
    assert learns.mark == longer.mark == verdicts.YES
    assert abs(longer.comparison.value - 0.05) < 0.005  # five points
    assert head.mark == verdicts.OPEN and head.standing.startswith("open after all 3 seeds")
    on_h = tables.table(records.load_all()).query("features == 'h' and probe == 'linear'")
    photographs = on_h[on_h.data == "imagenette96"]
    whole = photographs[photographs.entry == "longer-imagenette"]
    simclr = whole[(whole.method == "simclr") & (whole.epochs == 500)]
    assert comparisons.paired(simclr, whole[whole.method == "ce"]).high < -0.05
    faster = photographs[photographs.entry == "rate-or-schedule"]
    assert abs(comparisons.paired(simclr, faster).value - 0.035) < 0.005  # three and a half
    baselines = photographs[photographs.entry == "kmeans-imagenette"].groupby("encoder")
    beside = {name: comparisons.paired(simclr, of) for name, of in baselines}
    assert beside["kmeans32"].low > 0 and not beside["kmeans400"].is_clear
    assert beside["kmeans400"].high < 0.01  # the margin
    tuned = on_h[(on_h.entry == "supcon-against-ce") & (on_h.recipe == "supcontrast")]
    lags = []
    for epochs in (10, 30, 60):
        pairs = (("supcon", epochs), ("ce", 2 * epochs))
        runs = [tuned[(tuned.method == name) & (tuned.epochs == n)] for name, n in pairs]
        lags.append(comparisons.paired(*runs))
    values = [lag.value for lag in lags]
    assert values == sorted(values) and values[-1] < 0
    assert all(lag.high < 0 for lag in lags) and lags[-1].low > -0.01
    assert (kmeans.mark, supcon.mark) == (verdicts.YES, verdicts.NOT)

    patches = on_h[
        (on_h.encoder == "kmeans400") & (on_h.data == "cifar10") & (on_h.images > 40_000)
    ]
    of_cifar = on_h[(on_h.entry == "simclr-done-well") & (on_h.method == "simclr")]
    beyond = {n: comparisons.paired(runs, patches) for n, runs in of_cifar.groupby("epochs")}
    assert beyond[30].high < 0 and abs(beyond[100].value - 0.02) < 0.005  # two points
    wider = on_h[(on_h.encoder == "kmeans1600") & (on_h.entry == "kmeans-wider")]
    beside = statistics.differences(of_cifar[of_cifar.epochs == 100], wider)
    assert len(beside) and beside.abs().max() < 0.01, "level"

    intro = " ".join((ROOT / "book" / "intro.md").read_text(encoding="utf-8").split())
    for sentence in (
        "After 500 epochs on Imagenette it is far better than the same network untrained, and "
        "better than k-means, a method without a network, with as many features. By a linear probe "
        "it is not told apart from k-means with 1,600 features, and the same network trained with "
        "labels is far ahead",
        "500 epochs are five points better than 100, as the report found, and three and a half "
        "where the 100 have a better rate",
        "**The head stays open** after all planned runs. At a higher temperature a probe reads "
        "more from the layer before it",
        "**SupCon is behind**, by less the longer both train, and by less than a point after our "
        "longest runs, in which cross-entropy takes twice the steps",
        "**SimCLR works on CIFAR-10**, given time: by a linear probe it is behind a wide "
        "k-means after 30 epochs, and two points ahead after 100; one four times as wide has "
        "caught up with it",
    ):
        assert sentence in intro

    by_uva = tables.table(records.load_all()).query("probe == 'uva' and epochs == 500")
    by_uva = by_uva[by_uva.entry == "longer-imagenette"]
    h, z = (by_uva[by_uva.features == kind] for kind in "hz")
    ahead = f"{100 * comparisons.paired(h, z).value:.1f}"
    assert f"the probe of the report's code base finds $h$ ahead by {ahead}," in intro
    by_neighbours = tables.table(records.load_all()).query("features == 'h' and probe == 'knn'")
    patches = by_neighbours[by_neighbours.encoder == "kmeans400"]
    simclr = by_neighbours[by_neighbours.entry == "simclr-done-well"].query("method == 'simclr'")
    simclr = simclr[simclr.epochs == 100]
    on_same = patches[(patches.data == "cifar10") & (patches.images == simclr.images.iloc[0])]
    lead = f"{100 * comparisons.paired(simclr, on_same).value:.1f} points"
    assert f"by nearest neighbours SimCLR leads this k-means by {lead}" in intro
    on_both = tables.table(records.load_all()).query("probe == 'knn' and epochs == 500")
    on_both = on_both[on_both.entry == "longer-imagenette"]
    h, z = (on_both[on_both.features == kind] for kind in "hz")
    behind = f"{-100 * comparisons.paired(h, z).value:.1f}"
    assert f"and neighbours find $z$ ahead by {behind}." in intro
