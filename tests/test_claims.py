import pandas as pd
import pytest

from lib import InputError, claims, records


def table(accuracies, **values):
    row = dict.fromkeys(records.COLUMNS, "x") | {"method": "simclr", "variant": "", "data": "stl10", "epochs": 500,
                                                 "n": 1000, "minutes": 1.0} | values
    rows = [row | {"accuracy": a, "correct": round(1000 * a), "seed": i} for i, a in enumerate(accuracies)]
    return pd.DataFrame(rows, columns=records.COLUMNS)


CLAIM = {"id": "c", "claim": "c", "source": "s", "number": 80.0, "nearest": {},
         "like_for_like": {"method": "simclr", "data": "stl10", "epochs": 500}}


@pytest.mark.parametrize("accuracies, verdict", [
    ([0.79, 0.80, 0.81], "reproduced"), ([0.90, 0.901], "above"), ([0.70, 0.701, 0.699], "below"),
    ([0.8], "reproduced"), ([], "not run")])
def test_a_verdict_follows_from_the_interval(accuracies, verdict):
    assert claims.decide(CLAIM, table(accuracies))["verdict"] == verdict


def test_changed_pixels_are_named_in_the_row():
    assert claims.decide(CLAIM, table([0.8]))["pixels"] == "official"
    assert claims.decide(CLAIM, table([0.8], variant="59907 of 60000 images exact"))["pixels"].startswith("59907")


@pytest.mark.parametrize("other", [{"data": "imagenette96"}, {"epochs": 100}, {"method": "untrained"}])
def test_runs_of_another_protocol_decide_nothing(other):
    assert claims.decide(CLAIM, table([0.8, 0.81], **other))["verdict"] == "not run"


def test_the_reports_claims_are_all_there():
    numbers = {claim["number"] for claim in claims.read()}
    assert {80.06, 75.49, 76.96, 96.0, 95.0} <= numbers


@pytest.mark.parametrize("content, words", [
    ("a: [", "can't be read as YAML"), ("a: 1", "must be a list of claims"),
    ("- {id: c}", "claim c: the field '.*' is missing"),
    ("- {id: c, claim: c, source: s, number: 1, like_for_like: {dataset: x}, nearest: {}}", "no column 'dataset'"),
    ("- {id: c, claim: c, source: s, number: 1, like_for_like: {epochs: [1]}, nearest: {}}", "epochs must be one text"),
    ("[]", "must be a list of claims"),
])
def test_bad_claims_are_named(content, words, tmp_path):
    (tmp_path / "claims.yml").write_text(content)
    with pytest.raises(InputError, match=words):
        claims.read(tmp_path / "claims.yml")
