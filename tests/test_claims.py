import numpy as np
import pandas as pd
import pytest

from lib import ROOT, InputError, claims, experiments, records

SLICE = {"data": "cifar10", "images": 100, "encoder": "slim", "epochs": 5}


def table(accuracies, **values):
    row = (
        dict.fromkeys([*records.COLUMNS, "measure"], "x")
        | {
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
            "per_class": None,
        }
        | values
    )
    row |= {
        "protocol": str(
            sorted((key, str(value)) for key, value in row.items() if key != "features")
        )
    }
    rows = [
        row | {"accuracy": a, "correct": round(1000 * a), "seed": i}
        for i, a in enumerate(accuracies)
    ]
    return pd.DataFrame(rows, columns=[*records.COLUMNS, "measure", "per_class"])


def both(*tables):
    return pd.concat(tables, ignore_index=True)


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
    "nearest": [{**SLICE, "epochs": 9}, SLICE | {"minus": {"epochs": 1}}],
}


def verdict(claim, *tables):
    return claims.decide(claim, both(*tables))["verdict"]


@pytest.mark.parametrize(
    "accuracies, words",
    [
        ([0.79, 0.80, 0.81], "reproduced"),
        ([0.90, 0.901], "not reproduced: above"),
        ([0.70, 0.701, 0.699], "not reproduced: below"),
        ([0.8], "one seed, not assessed"),
        ([], "not run"),
    ],
)
def test_a_verdict_follows_from_where_one_more_run_would_lie(accuracies, words):
    assert verdict(CLAIM, table(accuracies)) == words
    lower = "reproduced" if "above" in words else words
    assert verdict(CLAIM | {"rule": "at least"}, table(accuracies)) == lower


def test_the_row_names_the_interval_that_decides():
    row = claims.decide(CLAIM, table([0.79, 0.80, 0.81]))
    half = 4.30265 * 0.01 * np.sqrt(4 / 3)  # t of 2 degrees of freedom
    assert row["one more run"] == f"[{80 - 100 * half - 0.05:.1f}, {80 + 100 * half + 0.05:.1f}]"
    assert claims.decide(CLAIM, table([0.8]))["one more run"] == "-"


@pytest.mark.parametrize("seeds, runs", [(3, 1), (10, 1), (5, 3)])
def test_a_published_run_of_the_same_distribution_is_refused_in_one_case_of_twenty(seeds, runs):
    """By simulation. "At least" refuses half as many: those above."""
    random, counts = np.random.default_rng(seeds), {"value": 0, "at least": 0}
    for _ in range(4000):
        theirs, ours = random.normal(0.8, 0.01, runs).mean(), random.normal(0.8, 0.01, seeds)
        claim = {"number": round(100 * theirs, 2), "runs": runs}
        for rule in counts:
            told = claims._verdict(
                claim | {"rule": rule}, claims.Interval(0.8, 0.79, 0.81), pd.Series(ours)
            )
            counts[rule] += told.startswith("not reproduced")
    assert counts["value"] / 4000 == pytest.approx(0.05, abs=0.012)
    assert counts["at least"] / 4000 == pytest.approx(0.025, abs=0.009)


def test_the_last_digit_of_a_published_number_is_rounded():
    same = [0.80041, 0.80042, 0.80041]
    assert verdict(CLAIM | {"number": 80.0}, table(same)) == "reproduced"
    assert verdict(CLAIM | {"number": 80.01}, table(same)) == "not reproduced: above"


@pytest.mark.parametrize(
    "rule, number, first, second, words",
    [
        ("sign", 4, [0.80, 0.81, 0.82], [0.75, 0.755, 0.77], "reproduced"),
        ("sign", 4, [0.75, 0.755, 0.77], [0.80, 0.81, 0.82], "not reproduced"),
        ("sign", -4, [0.75, 0.755, 0.77], [0.80, 0.81, 0.82], "reproduced"),
        ("sign", 4, [0.80, 0.75, 0.82], [0.75, 0.80, 0.77], "undecided"),
        ("sign", 4, [0.80], [0.75], "one seed, not assessed"),
        ("at least", 4, [0.80], [0.75], "one seed, not assessed"),
        ("at least", 4, [0.80, 0.81, 0.82], [0.75, 0.755, 0.77], "reproduced"),
        (
            "at least",
            5.2,
            [0.80, 0.81, 0.82],
            [0.75, 0.755, 0.77],
            "reproduced",
        ),  # as one more run could be
        (
            "at least",
            4,
            [0.80, 0.75, 0.82],
            [0.75, 0.80, 0.77],
            "undecided",
        ),  # nor is it sure to be more than 0
        ("at least", 10, [0.80, 0.81, 0.82], [0.75, 0.755, 0.77], "not reproduced: below"),
        ("at least", -10, [0.75, 0.755, 0.77], [0.80, 0.81, 0.82], "not reproduced: above"),
        ("at least", -4, [0.75, 0.755, 0.77], [0.80, 0.81, 0.82], "reproduced"),
        ("value", 5, [0.80, 0.81, 0.82], [0.75, 0.755, 0.77], "reproduced"),
        ("value", 7.9, [0.80, 0.81, 0.82], [0.75, 0.755, 0.77], "not reproduced: below"),
        ("none", 1, [0.80, 0.81], [0.75, 0.77], "no number to compare with"),
    ],
)
def test_comparisons_are_decided_on_paired_seeds(rule, number, first, second, words):
    claim = LONGER | {"rule": rule, "number": number}
    assert verdict(claim, table(first), table(second, epochs=100)) == words


def test_pairs_take_out_what_seeds_share():
    """Seeds spread by 10 points, the difference hardly at all."""
    first, second = table([0.60, 0.70, 0.80]), table([0.59, 0.688, 0.789], epochs=100)
    row = claims.decide(LONGER, both(first, second))
    assert row["verdict"] == "reproduced" and row["n"] == 3 and row["ours"].startswith("1.1 [")
    assert verdict(LONGER, first, second.assign(seed=[7, 8, 9])) == "not run"  # no seed in both


@pytest.mark.parametrize(
    "other, words",
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
def test_runs_of_another_protocol_decide_nothing(other, words):
    assert verdict(CLAIM, table([0.8, 0.81], **other)) == words


def test_of_runs_that_differ_the_closest_are_shown():
    claim = CLAIM | {"like_for_like": CLAIM["like_for_like"] | {"recipe": "x", "temperature": "x"}}
    near, far = table([0.7, 0.71], recipe="y"), table([0.9, 0.91], recipe="y", temperature="y")
    row = claims.decide(claim, both(far, near))
    assert row["verdict"] == "differs in recipe" and row["ours"].startswith("70.5")


def test_a_slice_is_named_with_what_it_shows_and_decides_nothing():
    """Its sign is not told as one for or against the claim, however sure it is."""
    for first, second, words in (
        ([0.8, 0.81], [0.7, 0.712], "points, n = 2"),
        ([0.7, 0.712], [0.8, 0.81], "points, n = 2"),
        ([0.8, 0.7], [0.7, 0.8], "points, n = 2"),
        ([0.8], [0.7], "10.0 points, one seed, not assessed"),
    ):
        rows = both(table(first, **SLICE), table(second, **SLICE | {"epochs": 1}))
        row = claims.decide(LONGER, rows)
        assert row["verdict"] == "not run" and row["ours"] == "-" and row["show"].endswith(words)
        assert row["nearest"] == (
            "cifar10, trained on 5,000 images in 96-pixel views, slim, 5 epochs, x probe on x; "
            "minus epochs 1"
        )


def test_of_the_nearest_runs_those_with_most_seeds_are_shown():
    near = [SLICE | {"data": name, "minus": {"epochs": 1}} for name in ("few", "many", "as-many")]
    rows = [
        table([0.8, 0.81, 0.82][:n], **SLICE | {"data": name, "epochs": epochs})
        for name, n in (("few", 2), ("many", 3), ("as-many", 3))
        for epochs in (1, 5)
    ]
    assert claims.decide(LONGER | {"nearest": near}, both(*rows))["nearest"].startswith("many,")


def test_a_claim_that_no_record_can_decide_says_why():
    assert verdict(CLAIM | {"cannot": "too large"}, table([0.8, 0.81])) == "not run: too large"


def test_any_lifts_a_condition():
    rows = both(table([0.8]), table([0.7], factor=2.0))
    assert len(claims.matching(rows, {"factor": 1})) == 1
    assert len(claims.matching(rows, {"factor": "any", "data": "stl10"})) == 2


def test_changed_pixels_are_named_in_the_row():
    assert claims.decide(CLAIM, table([0.8]))["pixels"] == "official"
    assert claims.decide(CLAIM, table([0.8], variant="59907 of 60000 images exact"))[
        "pixels"
    ].startswith("59907")


def test_measures_beyond_accuracy():
    record = next(r for r in records.load_all() if r["id"].startswith("ce-cifar10"))
    bins = {"count": [50, 50], "confidence": [25.0, 45.0], "correct": [20, 40]}
    rows = [
        {"features": "z", "probe": "classifier", "corruption": name, "n": 10, "correct": correct}
        for name, correct in (
            ("none", [9]),
            ("contrast", [9, 8, 7, 6, 5]),
            ("pixelate", [5, 5, 5, 5, 5]),
        )
    ]
    calibration = [{"features": "z", "probe": "classifier", "n": 100} | bins]
    found = claims.measures([record | {"corruptions": rows, "calibration": calibration}]).set_index(
        "measure"
    )
    assert found.loc["ece", "accuracy"] == pytest.approx(0.1)  # (5 + 5) / 100
    assert found.loc["corruption error", "accuracy"] == pytest.approx(0.4)
    assert found.loc["lost to corruption", "accuracy"] == pytest.approx(0.3)
    assert len(found.loc["accuracy"]) == len(records.table([record]))
    one = claims.decide(
        CLAIM | {"like_for_like": {"measure": "ece"}, "number": 10}, found.reset_index()
    )
    assert (one["ours"], one["verdict"]) == (
        "10.0 %",
        "one seed, not assessed",
    )  # nor are there images to count


# --- the book's claims

TREATED = """
simclr-stl10-500 simclr-stl10-100 simclr-stl10-500-head report-learns report-longer report-head
report-simclr-cifar10 report-supcon-100 uva-labels-10 uva-labels-20 uva-labels-50 uva-labels-100
uva-labels-200 uva-labels-500 uva-older-500 uva-jax-500 uva-supervised uva-supervised-jax
supcon-cifar10 ce-cifar10 simclr-cifar10 supcon-over-ce-cifar10 supcon-cifar100 ce-cifar100
simclr-cifar100 supcon-over-ce-cifar100 supcon-over-ce-matched supcon-over-ce-crop-flip
supcon-over-ce-steps simclr-paper-ce-cifar10 supcon-replication-1 supcon-replication-2
supcon-author-1 solo-learn-supcon-r18 dkobak-r18-100 dkobak-r18-1000 dkobak-r50-1000
simclr-paper-cifar10 ce-bar-cifar10 sthalles-stl10-100 spijkervet-stl10-100 simclr-mlp-over-linear
simclr-mlp-over-none simclr-h-over-z simclr-rotation-h simclr-rotation-z simclr-temperature-0.05
simclr-temperature-0.1 simclr-temperature-0.5 simclr-temperature-1 simclr-temperature-0.1-over-0.05
simclr-temperature-0.1-over-0.5 simclr-temperature-0.1-over-1 simclr-large-batches
simclr-large-batches-long supcon-l-out supcon-l-in supcon-l-out-over-l-in supcon-temperature
supcon-positives-1 supcon-positives-3 supcon-positives-5 supcon-positives-7 supcon-positives-9
supcon-positives-13 supcon-mce supcon-ece supcon-relative-mce ce-two-stages
""".split()


def test_no_claim_is_silently_missing():
    """The claims of the report and of the papers that the book treats, by name; each has one row of
    the scoreboard."""
    stated = claims.read()
    assert sorted(claim["id"] for claim in stated) == sorted(TREATED)
    measured = claims.measures(records.load_all())
    rows = [claims.decide(claim, measured) for claim in stated]
    assert all(row["verdict"] and row["protocol"] and row["source"] for row in rows)


def test_the_first_page_says_what_the_records_say():
    """README.md's table, which the book's first page shows too; `python -m lib headline` writes
    it."""
    opening, closing = claims.HEADLINE
    shown = (ROOT / "README.md").read_text().partition(opening)[2].partition(closing)[0].strip()
    assert shown == claims.headline(claims.read(), claims.measures(records.load_all())), (
        "run: python -m lib headline"
    )
    assert shown.startswith(
        f"Of {len(claims.read())} published claims and questions the records decide **none**"
    )
    assert shown.count("\n") > 5 and all(
        f"| {question} |" in shown
        for question in (
            "Does SimCLR learn without labels?",
            "Is the projection head better thrown away?",
        )
    )


def test_the_main_questions_are_shown_at_one_size():
    """On the first page one column is read from top to bottom: no size may stand above another."""
    measured = claims.measures(records.load_all())
    found = [claims.nearest(claim, measured)[1] for claim in claims.read() if "question" in claim]
    assert len(found) > 4 and all(
        set(runs.data) == {"cifar10"} and set(runs.trained_on) == {9_000} for runs in found
    )
    assert {epochs for runs in found for epochs in runs.epochs} == {20}


def test_every_experiment_bears_on_claims_that_there_are():
    for experiment in experiments.read():
        assert experiment.claims and set(experiment.claims) <= set(TREATED), experiment.name


def test_no_slice_and_no_stand_in_decides_a_claim():
    for claim in claims.read():
        wanted = claim["like_for_like"]
        assert wanted["encoder"] != "slim" and wanted["data"] != "imagenette96", claim["id"]
        assert wanted["images"] >= 5000 if wanted["data"] == "stl10" else wanted["images"] >= 50_000


def test_the_reports_claims_are_all_there():
    numbers = {claim.get("number") for claim in claims.read()}
    assert {80.06, 75.49, 76.96, 3.10, 96.0, 95.0} <= numbers


def test_what_has_no_loader_is_said_to_be_undecidable():
    """Else a claim on ImageNet would read as if somebody had only to press a button."""
    assert all(
        "cannot" in claim for claim in claims.read() if claim["like_for_like"]["data"] == "imagenet"
    )


GOOD = "{id: c, claim: c, source: s, rule: value, number: 1, like_for_like: {epochs: 1}}"


@pytest.mark.parametrize(
    "content, words",
    [
        ("a: [", "can't be read as YAML"),
        ("a: 1", "must be a list of claims"),
        ("[]", "must be a list of claims"),
        ("- {id: c}", "claim c: the field '.*' is missing"),
        ("- " + GOOD.replace("epochs: 1", "dataset: x"), "no column 'dataset'"),
        ("- " + GOOD.replace("epochs: 1", "epochs: [1]"), "epochs must be one text"),
        ("- " + GOOD.replace("value", "guess"), "the rule must be one of"),
        ("- " + GOOD.replace("number: 1, ", ""), "the rule must be one of .* the number given"),
        (
            "- " + GOOD.replace("id: c", "id: c, short: s, nearest: [{minus: {epoch: 1}}]"),
            "no column 'epoch'",
        ),
        (
            "- " + GOOD.replace("id: c", "id: c, nearest: [{epochs: 2}]"),
            "nearest must be differences",
        ),
        (
            "- " + GOOD.replace("id: c", "id: c, nearest: [{minus: {epochs: 1}}]"),
            "and told in short",
        ),
        ("- " + GOOD.replace("id: c", "id: c, runs: 0"), "runs must be at least 1"),
        ("- " + GOOD.replace("id: c", "id: c, colour: red"), "the field 'colour'"),
    ],
)
def test_bad_claims_are_named(content, words, tmp_path):
    (tmp_path / "claims.yml").write_text("- " + GOOD)
    assert claims.read(tmp_path / "claims.yml")
    (tmp_path / "claims.yml").write_text(content)
    with pytest.raises(InputError, match=words):
        claims.read(tmp_path / "claims.yml")
