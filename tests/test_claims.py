"""Claims: how records decide them, and what the book's own claims are."""

import math

import numpy as np
import pandas as pd
import pytest

from lib import InputError
from lib.evidence import claims, experiments, statistics, tables, verdicts
from lib.runs import records

# a run of the published size, but for the columns that a test names
RUN = {
    "method": "simclr",
    "variant": "",
    "data": "stl10",
    "encoder": "resnet18",
    "images": 5000,
    "trained_on": 5000,
    "view_size": 96,
    "epochs": 500,
    "n": 1000,
    "minutes": 1.0,
    "measure": "accuracy",
    "factor": 1.0,
    "schedule": "own",
    "per_class": None,
}
SLICE = {"data": "cifar10", "images": 100, "encoder": "slim", "epochs": 5}
TOO_FEW = "fewer than 3 seeds, not assessed"
CLAIM = {
    "id": "c",
    "claim": "c",
    "source": "s",
    "rule": "value",
    "number": 80.0,
    "like_for_like": {
        "method": "simclr",
        "data": "stl10",
        "images": 5000,
        "encoder": "resnet18",
        "epochs": 500,
    },
}
LONGER = CLAIM | {
    "rule": "sign",
    "number": 4.0,
    "minus": {"epochs": 100},
}


def table(accuracies: list[float], **changes) -> pd.DataFrame:
    """Runs of one protocol with these accuracies, a seed each, as ``tables.measures`` has them."""
    run = dict.fromkeys(claims.MEASURED, "x") | RUN | changes
    run["protocol"] = repr(changes)

    rows = []
    for seed, accuracy in enumerate(accuracies):
        share = {"accuracy": accuracy, "correct": round(1000 * accuracy)}
        rows.append(run | share | {"seed": seed})
    return pd.DataFrame(rows, columns=claims.MEASURED)


def decide(claim: dict, *rows: pd.DataFrame) -> dict:
    return verdicts.decide(claim, pd.concat(rows, ignore_index=True))


def verdict(claim: dict, *rows: pd.DataFrame) -> str:
    return decide(claim, *rows)["verdict"]


@pytest.mark.parametrize(
    "accuracies, words",
    [
        ([0.79, 0.80, 0.81], "reproduced"),
        ([0.90, 0.901, 0.902], "not reproduced: above"),
        ([0.70, 0.701, 0.699], "not reproduced: below"),
        ([0.8, 0.801], TOO_FEW),
        ([0.8], TOO_FEW),
        ([], "not run"),
    ],
)
def test_a_verdict_follows_from_where_one_more_run_would_lie(accuracies, words):
    assert verdict(CLAIM, table(accuracies)) == words
    if words.endswith("above"):
        words = "reproduced"
    assert verdict(CLAIM | {"rule": "at least"}, table(accuracies)) == words


def test_the_row_names_the_interval_that_decides():
    row = decide(CLAIM, table([0.79, 0.80, 0.81]))
    half = 4.30265 * math.sqrt(4 / 3)  # points; t of 2 degrees of freedom
    assert row["one more run"] == f"[{80 - half - 0.05:.1f}, {80 + half + 0.05:.1f}]"
    assert decide(CLAIM, table([0.8]))["one more run"] == "-"


@pytest.mark.parametrize("seeds, runs", [(3, 1), (10, 1), (5, 3)])
@pytest.mark.parametrize("rule, refused", [("value", 0.05), ("at least", 0.025)])
def test_a_published_run_of_the_same_distribution_is_refused_in_one_case_of_twenty(
    seeds, runs, rule, refused
):
    """By simulation. "At least" refuses half as many: those above."""
    random, count = np.random.default_rng(seeds), 0
    for _ in range(4000):
        theirs = random.normal(0.8, 0.01, runs).mean()
        ours = pd.Series(random.normal(0.8, 0.01, seeds))
        claim = CLAIM | {"rule": rule, "number": round(100 * theirs, 2), "runs": runs}
        answer = verdicts.verdict(claim, statistics.over_seeds(ours), ours)
        count += answer.startswith("not reproduced")

    assert count / 4000 == pytest.approx(refused, abs=0.01)


def test_the_last_digit_of_a_published_number_is_rounded():
    same = [0.80041, 0.80042, 0.80041]
    assert verdict(CLAIM | {"number": 80.0}, table(same)) == "reproduced"
    assert verdict(CLAIM | {"number": 80.01}, table(same)) == "not reproduced: above"
    assert verdict(CLAIM | {"number": 80}, table([0.804, 0.804, 0.804])) == "reproduced"
    exact = CLAIM | {"number": 80.0, "decimals": 2}
    assert verdict(exact, table(same)) == "not reproduced: above"


HIGH, LOW = [0.80, 0.81, 0.82], [0.75, 0.755, 0.77]
MIXED = [0.80, 0.75, 0.82], [0.75, 0.80, 0.77]


@pytest.mark.parametrize(
    "rule, number, first, second, words",
    [
        ("sign", 4, HIGH, LOW, "reproduced"),
        ("sign", 4, LOW, HIGH, "not reproduced"),
        ("sign", -4, LOW, HIGH, "reproduced"),
        ("sign", 4, *MIXED, "undecided"),
        ("sign", 4, HIGH[:2], LOW[:2], TOO_FEW),
        ("at least", 4, [0.80], [0.75], TOO_FEW),
        ("at least", 4, HIGH, LOW, "reproduced"),
        ("at least", 5.2, HIGH, LOW, "reproduced"),  # as one more run could be
        ("at least", 4, *MIXED, "undecided"),  # nor is it sure to be more than 0
        ("at least", 10, HIGH, LOW, "not reproduced: below"),
        ("at least", -10, LOW, HIGH, "not reproduced: above"),
        ("at least", -4, LOW, HIGH, "reproduced"),
        ("value", 5, HIGH, LOW, "reproduced"),
        ("value", 4, *MIXED, "undecided"),
        ("value", 7.9, HIGH, LOW, "not reproduced: below"),
        ("none", 1, HIGH, LOW, "no number to compare with"),
    ],
)
def test_comparisons_are_decided_on_paired_seeds(rule, number, first, second, words):
    claim = LONGER | {"rule": rule, "number": number}
    assert verdict(claim, table(first), table(second, epochs=100)) == words


def test_pairs_take_out_what_seeds_share():
    """Seeds spread by 10 points, the difference hardly at all."""
    first, second = table([0.60, 0.70, 0.80]), table([0.59, 0.688, 0.789], epochs=100)
    row = decide(LONGER, first, second)
    assert (row["verdict"], row["n"]) == ("reproduced", 3)
    assert row["ours"].startswith("1.1 [")
    assert row["ours"].endswith("] points")


def test_pairs_are_of_one_precision():
    """Whichever hash a protocol has."""
    short = {"epochs": 100}
    rows = [
        table(HIGH, precision="bfloat16"),
        table([0.7, 0.7, 0.7], precision="float32", **short),
        table(LOW, precision="bfloat16", **short),
    ]
    wanted = decide(LONGER, rows[0], rows[2])["ours"]
    assert decide(LONGER, *rows)["ours"] == wanted
    for place, protocol in ((1, "z"), (2, "0")):
        renamed = list(rows)
        renamed[place] = rows[place].assign(protocol=protocol)
        assert decide(LONGER, *renamed)["ours"] == wanted
    assert verdict(LONGER, *rows[:2]) == "not run"


def test_only_seeds_of_both_are_compared():
    first, second = table([0.60, 0.70, 0.80]), table([0.59], epochs=100)
    row = decide(LONGER, first, second)
    assert (row["verdict"], row["n"], row["ours"]) == (TOO_FEW, 1, "1.0 points")
    assert verdict(LONGER, first, second.assign(seed=7)) == "not run"


@pytest.mark.parametrize(
    "changes, words",
    [
        (SLICE, "not run"),
        ({"data": "imagenette96"}, "not run"),
        ({"encoder": "slim"}, "not run"),
        ({"images": 100}, "not run"),
        ({"method": "untrained"}, "not run"),
        ({"measure": "ece"}, "not run"),
        ({"epochs": 100}, "differs in epochs"),
    ],
)
def test_runs_of_another_protocol_decide_nothing(changes, words):
    assert verdict(CLAIM, table([0.8, 0.81], **changes)) == words


def test_of_runs_that_differ_the_closest_are_shown():
    claim = CLAIM | {"like_for_like": CLAIM["like_for_like"] | {"recipe": "x", "temperature": "x"}}
    near = table([0.7, 0.71], recipe="y")
    far = table([0.9, 0.91], recipe="y", temperature="y")

    row = decide(claim, far, near)
    assert row["verdict"] == "differs in recipe"
    assert row["ours"].startswith("70.5")


def test_of_runs_that_are_as_close_the_longest_are_shown():
    row = decide(CLAIM, table([0.7], epochs=100), table([0.6], epochs=400), table([0.5], epochs=50))
    assert row["verdict"] == "differs in epochs"
    assert row["ours"].startswith("60.0")


def test_a_run_that_left_a_longer_schedule_early_is_not_of_its_length():
    early = table([0.7], schedule="of 1000 epochs")
    assert decide(CLAIM, early)["verdict"] == "differs in schedule"
    claim = CLAIM | {"like_for_like": CLAIM["like_for_like"] | {"schedule": "of 1000 epochs"}}
    assert decide(claim, early)["ours"].startswith("70.0")


def test_a_claim_that_no_record_can_decide_says_why():
    assert verdict(CLAIM | {"cannot": "too large"}, table([0.8, 0.81])) == "not run: too large"


def test_any_lifts_a_condition():
    rows = pd.concat([table([0.8]), table([0.7], factor=2.0)], ignore_index=True)
    assert len(tables.matching(rows, {"factor": 1})) == 1
    assert len(tables.matching(rows, {"factor": "any", "data": "stl10"})) == 2


def test_changed_pixels_are_named_in_the_row():
    assert decide(CLAIM, table([0.8]))["pixels"] == "official"
    changed = table([0.8], variant="59907 of 60000 images exact")
    assert decide(CLAIM, changed)["pixels"].startswith("59907")


@pytest.mark.parametrize(
    "claim, words",
    [
        (CLAIM, "80.0 %"),
        (CLAIM | {"decimals": 2}, "80.00 %"),
        (CLAIM | {"number": 80}, "80 %"),
        (LONGER, "+4.0 points"),
        (LONGER | {"number": -1.25}, "-1.25 points"),
        (CLAIM | {"rule": "at least"}, "at least 80.0 %"),
        ({key: value for key, value in CLAIM.items() if key != "number"}, "no number"),
    ],
)
def test_what_is_claimed_is_told_in_its_unit(claim, words):
    assert decide(claim, table([]))["claimed"] == words


def test_measures_beyond_accuracy():
    record = next(r for r in records.load_all() if r["id"].startswith("ce-cifar10-slim"))
    reader = {"features": "z", "probe": "classifier"}
    bins = {"count": [50, 50], "confidence": [25.0, 45.0], "correct": [20, 40]}
    correct = {"none": [9], "contrast": [9, 8, 7, 6, 5], "pixelate": [5, 5, 5, 5, 5]}
    rows = [reader | {"corruption": name, "n": 10, "correct": correct[name]} for name in correct]

    asked = {"corruptions": rows, "calibration": [reader | {"n": 100} | bins]}
    found = tables.measures([record | asked])

    by_measure = found.set_index("measure")
    assert by_measure.loc["ece", "accuracy"] == pytest.approx(0.1)  # (5 + 5) / 100
    assert by_measure.loc["corruption error", "accuracy"] == pytest.approx(0.4)
    assert by_measure.loc["lost to corruption", "accuracy"] == pytest.approx(0.3)
    assert len(by_measure.loc["accuracy"]) == len(tables.table([record]))

    row = decide(CLAIM | {"like_for_like": {"measure": "ece"}, "number": 10}, found)
    assert row["ours"] == "10.0 %"  # nor are there images to count
    assert row["verdict"] == TOO_FEW


def test_the_accuracies_beside_few_labels_are_those_of_h():
    swept = [record for record in records.load_all() if "label_sweep" in record]
    by_both = [record for record in swept if "uva" in record["evaluation"]["h"]]
    record = next(record for record in by_both if "z" in record["evaluation"])
    probes = {row["probe"] for row in record["label_sweep"]}
    everything = tables.label_table([record]).query("subset == 'all'").set_index("probe")
    assert set(everything.index) == probes
    for probe, row in everything.iterrows():
        assert row["correct"] == record["evaluation"]["h"][probe]["correct"]


# --- the book's claims


@pytest.fixture(scope="module")
def stated() -> list[dict]:
    return claims.read()


@pytest.fixture(scope="module")
def measured() -> pd.DataFrame:
    return tables.measures(records.load_all())


def test_every_claim_has_an_id_of_its_own(stated):
    assert len({claim["id"] for claim in stated}) == len(stated)


def test_every_claim_has_a_row_of_the_scoreboard_that_says_what_it_was_held_against(
    stated, measured
):
    for claim in stated:
        row = verdicts.decide(claim, measured)
        assert row["id"] == claim["id"]
        for column in ("verdict", "protocol", "source"):
            assert row[column], f"{claim['id']} has no {column}"


def test_every_experiment_bears_on_claims_that_there_are(stated):
    known = {claim["id"] for claim in stated}
    listed = experiments.read()
    assert listed
    for experiment in listed:
        assert experiment.claims, experiment.name
        assert set(experiment.claims) <= known, experiment.name


def test_no_slice_and_no_stand_in_decides_a_claim(stated):
    for claim in stated:
        if "rule" not in claim:  # nobody published on it
            continue
        wanted = claim["like_for_like"]
        assert wanted["encoder"] != "slim", claim["id"]
        assert wanted["data"] != "imagenette96", claim["id"]

        least = 5_000 if wanted["data"] == "stl10" else 50_000
        assert wanted["images"] >= least, claim["id"]


def test_the_reports_claims_are_all_there(stated):
    assert {80.06, 75.49, 76.96, 3.10, 96.0, 95.0} <= {claim.get("number") for claim in stated}


def test_what_has_no_loader_is_said_to_be_undecidable(stated):
    """Else a claim on ImageNet would read as if somebody had only to press a button."""
    published = [claim for claim in stated if "rule" in claim]
    without = [claim for claim in published if claim["like_for_like"]["data"] == "imagenet"]
    assert without
    for claim in without:
        assert "cannot" in claim, claim["id"]


GOOD = "id: c, claim: c, source: s, rule: value, number: 1, like_for_like: {epochs: 1}"


@pytest.mark.parametrize(
    "content, words",
    [
        ("a: [", "can't be read as YAML"),
        ("a: 1", "must be a list of claims"),
        ("[]", "has no claims"),
        (f"- {{{GOOD}}}\n- {{{GOOD}}}", "claim c is there twice"),
        ("- 3", "claim number 1: it must be a mapping"),
        ("- {id: c}", "claim c: the field '.*' is missing"),
        (f"- {{{GOOD}, colour: red}}", "claim c: unknown field 'colour'"),
        (f"- {{{GOOD}, runs: 0}}", "runs must be at least 1"),
        (f"- {{{GOOD}, minus: 3}}", "minus must be a mapping"),
        ("- {" + GOOD.replace("epochs: 1", "dataset: x") + "}", "no column 'dataset'"),
        ("- {" + GOOD.replace("epochs: 1", "epochs: [1]") + "}", "epochs must be one text"),
        ("- {" + GOOD.replace("value", "guess") + "}", "rule must be 'value', 'sign', 'at least'"),
        ("- {" + GOOD.replace("number: 1, ", "") + "}", "the rule 'value' needs a number"),
        (f"- {{{GOOD}, minus: {{}}}}", "minus must have a column that differs"),
    ],
)
def test_bad_claims_are_named(content, words, tmp_path):
    path = tmp_path / "claims.yml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=f"claims.yml.*{words}"):
        claims.read(path)


def test_a_good_claim_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "claims.yml"
    path.write_text(f"- {{{GOOD}, minus: {{method: any}}}}", encoding="utf-8")

    (claim,) = claims.read(path)
    assert claim["minus"] == {"method": "any"}
    assert isinstance(claim["number"], int)  # its digits are the published ones
