"""Claims at the size that we can run: the margin decides, marks and the headline follow."""

import math

import numpy as np
import pandas as pd
import pytest
import yaml

from lib import InputError
from lib.evidence import claims, plan, tables, verdicts
from lib.evidence.statistics import Interval
from lib.runs import records

OURS = {
    "claim": "SupCon beats cross-entropy",
    "entry": "duel",
    "like_for_like": {"method": "supcon", "epochs": 60, "features": "h", "probe": "linear"},
    "minus": [{"method": "ce", "epochs": 120}],
    "margin": 1.0,
    "seeds": 3,
}
BEST_OF = OURS | {"minus": [{"method": "ce"}, {"method": "kmeans"}]}
RUN = {
    "measure": "accuracy",
    "entry": "duel",
    "epochs": 60,
    "schedule": "own",
    "features": "h",
    "probe": "linear",
}


def rows(accuracies: list[float], method: str = "supcon", **changes) -> pd.DataFrame:
    """Runs with these accuracies, a seed each, as ``tables.measures`` has them."""
    run = dict.fromkeys(claims.MEASURED, "x") | RUN | {"method": method, "precision": "float32"}
    made = []
    for seed, accuracy in enumerate(accuracies):
        made.append(run | {"seed": seed, "accuracy": accuracy} | changes)
    return pd.DataFrame(made, columns=claims.MEASURED)


def ours(*tables: pd.DataFrame, claim: dict = OURS) -> verdicts.Ours:
    return verdicts.at_our_size(claim, pd.concat(tables, ignore_index=True))


@pytest.mark.parametrize(
    "low, high, verdict",
    [
        (0.011, 0.02, "yes"),
        (0.010, 0.02, "open"),  # on the margin is not above it
        (-0.02, -0.011, "no"),
        (-0.011, 0.009, "not better"),
        (-0.02, -0.010, "not better"),  # surely below zero, and perhaps too little to count
        (-0.02, 0.010, "open"),
        (-0.009, 0.009, "no difference"),
        (-0.009, 0.02, "open"),
        (0.001, 0.009, "no difference"),  # surely above zero, and too small to count
        (-0.02, 0.02, "open"),
        (math.nan, math.nan, "open"),
    ],
)
def test_the_margin_decides(low, high, verdict):
    assert verdicts.against_margin(Interval((low + high) / 2, low, high), 0.01) == verdict


def test_a_difference_over_paired_seeds_is_told_with_its_interval():
    """By hand: differences 2, 3 and 4 points, t of 2 degrees of freedom 4.3027."""
    found = ours(rows([0.72, 0.63, 0.54]), rows([0.70, 0.60, 0.50], "ce", epochs=120))
    half = 4.3027 * 1 / math.sqrt(3)
    assert found.in_words() == f"open: +3.0 [{3 - half:.1f}, {3 + half:.1f}], 3 seeds"

    sure = ours(rows([0.73, 0.631, 0.529]), rows([0.70, 0.60, 0.50], "ce", epochs=120))
    assert sure.verdict == "yes"
    assert sure.in_words().startswith("yes: +3.0 [")


def test_it_stays_open_until_every_planned_seed_is_there():
    """However sure two of three are; and says how many there are."""
    found = ours(rows([0.73, 0.7301]), rows([0.70, 0.70], "ce", epochs=120))
    assert found.verdict == "open"
    assert found.in_words().endswith("2 seeds of 3")
    assert ours(rows([])).in_words() == "open: 0 of 3 seeds"
    assert ours(rows([0.7])).in_words() == "open: 0 of 3 seeds"


def test_a_failed_run_is_counted_and_told():
    failed = rows([math.nan], measure="failed", seed=2, features="x", probe="x")
    found = ours(rows([0.73, 0.7301]), rows([0.70, 0.70, 0.70], "ce", epochs=120), failed)
    assert (found.failed, found.verdict, found.is_complete) == (1, "open", True)
    assert found.in_words().endswith("2 seeds of 3, 1 failed")


def test_a_failed_run_of_a_claim_about_few_labels_is_counted():
    """A run that failed has been read with no number of labels."""
    few = OURS | {"like_for_like": OURS["like_for_like"] | {"per_class": 10}}
    of_few = {"per_class": 10}
    first, second = rows([0.73, 0.731], **of_few), rows([0.70] * 3, "ce", epochs=120, **of_few)
    failed = rows([math.nan], measure="failed", seed=2, features="x", probe="x", per_class=math.nan)
    found = ours(first, second, failed, claim=few)
    assert (found.comparison.seeds, found.failed, found.is_complete) == (2, 1, True)


def test_a_seed_that_was_not_planned_decides_nothing():
    first, second = rows([0.73, 0.731, 0.732, 0.5]), rows([0.70] * 4, "ce", epochs=120)
    found = ours(first, second)
    assert (found.verdict, found.comparison.seeds) == ("yes", 3)


def test_runs_of_another_protocol_take_no_seeds_place():
    """Of the entry, and alike in all that the claim names: another temperature, say."""
    first, second = rows([0.73, 0.731, 0.732]), rows([0.70] * 3, "ce", epochs=120)
    other = first.assign(protocol="y").query("seed == 2").assign(accuracy=0.9)
    found = ours(first.query("seed < 2"), other, second)
    assert (found.verdict, found.comparison.seeds) == ("open", 2)


def test_a_seed_that_is_missing_is_not_made_up_for_by_one_that_failed_elsewhere():
    """Seed 2 was never run beside k-means; that it failed beside cross-entropy is another pair."""
    first, group = rows([0.73, 0.731, 0.732]), {"measure": "failed", "seed": 2}
    ce = rows([0.70, 0.70], "ce"), rows([math.nan], "ce", **group, features="x", probe="x")
    kmeans = rows([0.70, 0.70], "kmeans")
    found = ours(first, *ce, kmeans, claim=BEST_OF)
    assert (found.verdict, found.failed, found.is_complete) == ("open", 1, False)
    found = ours(first, *ce, rows([0.70] * 3, "kmeans"), claim=BEST_OF)
    assert (found.verdict, found.failed, found.is_complete) == ("open", 1, True)


def test_a_seed_that_failed_once_and_then_succeeded_is_a_pair_and_no_failure():
    failed = rows([math.nan], measure="failed", seed=2, features="x", probe="x")
    found = ours(rows([0.73, 0.731, 0.732]), rows([0.70] * 3, "ce", epochs=120), failed)
    assert (found.comparison.seeds, found.failed) == (3, 0)


@pytest.mark.parametrize(
    "changes",
    [{"entry": "-"}, {"epochs": 59}, {"probe": "knn"}, {"features": "z"}, {"measure": "ece"}],
)
def test_other_runs_decide_nothing(changes):
    """Nor those outside of the plan, however alike."""
    first, second = rows([0.73, 0.731, 0.732]), rows([0.70, 0.70, 0.70], "ce", epochs=120)
    assert ours(first, second).verdict == "yes"
    assert ours(first.assign(**changes), second).comparison is None


def test_pairs_share_seed_and_precision():
    """Averages go over precisions, which are told."""
    first = rows([0.73, 0.731, 0.732]).assign(precision=["float32", "float32", "bfloat16"])
    second = rows([0.70, 0.70, 0.70], "ce", epochs=120)
    assert ours(first, second).comparison.seeds == 2
    second = second.assign(precision=["float32", "float32", "bfloat16"])
    assert ours(first, second).in_words().endswith("3 seeds, in bfloat16 and float32")

    twice = pd.concat([first, first.assign(precision="bfloat16", accuracy=0.9)])
    others = pd.concat([second, second.assign(precision="bfloat16")])
    assert ours(twice, others).comparison.seeds == 3


def test_what_is_not_trained_pairs_with_any_precision():
    """Its features are measured in float32 on every machine."""
    first = rows([0.73, 0.731, 0.732]).assign(precision="bfloat16")
    second = rows([0.70, 0.70, 0.70], "ce", epochs=120)
    assert ours(first, second).comparison is None
    untrained = rows([0.40, 0.40, 0.40], "ce", epochs=0)
    claim = OURS | {"minus": [OURS["minus"][0] | {"epochs": 0}]}
    assert ours(first, untrained, claim=claim).in_words().endswith("3 seeds")


def test_a_claim_about_precision_pairs_over_it():
    first = rows([0.73, 0.731, 0.732])
    second = first.assign(precision="bfloat16", accuracy=[0.70, 0.701, 0.702])
    claim = OURS | {"minus": [{"precision": "bfloat16"}]}
    claim["like_for_like"] = OURS["like_for_like"] | {"precision": "float32"}
    found = ours(first, second, claim=claim)
    assert (found.verdict, found.comparison.seeds) == ("yes", 3)


def test_of_several_groups_the_best_is_subtracted_and_all_must_be_there():
    first = rows([0.73, 0.731, 0.732])
    worse, better = rows([0.60] * 3, "ce"), rows([0.70] * 3, "kmeans")
    found = ours(first, worse, better, claim=BEST_OF)
    assert found.comparison.value == pytest.approx(0.031)
    assert found.verdict == "yes"
    assert ours(first, worse, claim=BEST_OF).verdict == "open"


@pytest.mark.parametrize(
    "published, verdict, mark",
    [
        ("reproduced", "", "●"),
        ("not reproduced: above", "yes", "●"),
        ("not run", "yes", "◐"),
        ("not run", "no", "◑"),
        ("not run", "no difference", "◑"),
        ("not run", "not better", "◑"),
        ("undecided", "open", "○"),
        ("fewer than 3 seeds, not assessed", "yes", "◐"),
        ("not run: no loader", "", "○"),
    ],
)
def test_the_mark_says_where_a_question_stands(published, verdict, mark):
    assert verdicts.mark(published, verdict) == mark


ASKED = {
    "id": "c",
    "claim": "c",
    "source": "s",
    "rule": "sign",
    "like_for_like": {"method": "supcon", "epochs": 1000},
    "minus": {"method": "ce"},
}


def test_the_sizes_of_a_claim_are_its_own_and_smaller_ones():
    shorter = [{"epochs": 10, "minus": [{"epochs": 20}], "seeds": 2}, {"epochs": 30}]
    own, *smaller = claims.sizes(OURS | {"shorter": shorter})
    assert own["like_for_like"] == OURS["like_for_like"]
    assert [size["like_for_like"]["epochs"] for size in smaller] == [30, 10]
    assert [size["minus"][0]["epochs"] for size in smaller] == [120, 20]
    assert [size["seeds"] for size in (own, *smaller)] == [3, 3, 2]
    assert all(size["minus"][0]["method"] == "ce" for size in smaller)
    assert OURS["minus"][0]["epochs"] == 120


@pytest.mark.parametrize(
    "change, words",
    [
        ({"margin": 0}, "ours.margin must be greater than 0"),
        ({"seeds": 1}, "ours.seeds must be at least 2"),
        ({"minus": []}, "ours.minus must have a length of at least 1"),
        ({"minus": [{"epoch": 1}]}, "no column 'epoch'"),
        ({"shorter": [{"epoch": 1}]}, "no column 'epoch'"),
        ({"shorter": [{"minus": {"epochs": 1}}]}, "minus must be a list"),
        ({"shorter": [{"minus": [{}, {}]}]}, "as many minus as ours"),
        ({"shorter": [{"seeds": "3"}]}, "seeds must be a whole number"),
        ({"colour": "red"}, "unknown field 'ours.colour'"),
    ],
)
def test_bad_sizes_are_named(tmp_path, change, words):
    path = tmp_path / "claims.yml"
    path.write_text(yaml.dump([ASKED | {"question": "q", "ours": OURS | change}]), encoding="utf-8")
    with pytest.raises(InputError, match=f"claims.yml: claim c: .*{words}"):
        claims.read(path)


def test_a_question_has_both_sizes(tmp_path):
    path = tmp_path / "claims.yml"
    path.write_text(yaml.dump([ASKED | {"question": "q"}]), encoding="utf-8")
    with pytest.raises(InputError, match="claim c: .*a question needs ours"):
        claims.read(path)


def test_a_failed_run_is_a_row_of_the_measures():
    record = next(r for r in records.load_all() if "plan" in r)
    failed = record | {"failed": "the loss became nan", "evaluation": {}}
    (row,) = tables.measures([failed]).query("measure == 'failed'").to_dict("records")
    assert (row["entry"], row["id"]) == (record["plan"]["entry"], record["id"])
    assert np.isnan(row["accuracy"])


# --- the book's own


def test_the_plan_has_the_margins_the_seeds_and_the_runs():
    """A claim and its entry say the same, at every size; and runs of each group are planned."""
    entries = {entry.name: entry for entry in plan.read()}
    asked = [claim["ours"] for claim in claims.read() if "ours" in claim]
    assert len(asked) == 12
    for claim in asked:
        entry = entries[claim["entry"]]
        assert claim["margin"] == entry.margin, claim
        for size in claims.sizes(claim):
            assert min(planned_seeds(entries, size)) == size["seeds"], size


def planned_seeds(entries: dict[str, plan.Entry], size: dict) -> list[int]:
    """How many runs are planned of each group of a claim."""
    counts = []
    for wanted in claims.groups(size):
        name = size["entry"] if wanted["entry"] == "any" else wanted["entry"]
        count = 0
        for run in plan.runs(entries[name], score=lambda config: None):
            columns = tables.config_columns(run.like)
            count += all(columns.get(key, value) == value for key, value in wanted.items())
        counts.append(count)
    return counts
