import json
import os

import numpy as np
import pytest

from lib import InputError, evaluation, records, training
from lib.config import preset
from lib.data import load


@pytest.fixture
def run(toy, tmp_path):
    config = preset("simclr-digits", data="toy", epochs=1, batch_size=32)
    return training.pretrain(config, toy, tmp_path / "runs", device="cpu", progress=False)


def test_publish_wants_an_evaluated_run_and_copies_it_whole(run, toy, tmp_path):
    with pytest.raises(InputError, match="not evaluated yet"):
        records.publish(run.folder, tmp_path / "results")
    training.evaluate(run, toy, "cpu")
    target = records.publish(run.folder, tmp_path / "results")
    assert records.read(target) == run.record and records.load_all(tmp_path / "results") == [
        run.record
    ]
    assert target.stat().st_size < 20_000


def test_the_table_has_a_row_for_each_accuracy(run, toy):
    training.evaluate(run, toy, "cpu")
    table = records.table([run.record])
    assert sorted(zip(table.features, table.probe)) == [
        ("h", "knn"),
        ("h", "linear"),
        ("z", "knn"),
        ("z", "linear"),
    ]
    assert (table.accuracy == table.correct / table.n).all() and set(table.images) == {200}
    assert set(table.trained_on) == {len(toy.take(None).pool(run.config.pool))}
    assert list(records.table([]).columns) == records.COLUMNS


def test_the_side_of_the_views_is_the_configurations_else_the_datas(run):
    table = records.table(records.load_all()).drop_duplicates("data").set_index("data")
    assert table.loc["cifar10", "view_size"] == 32 and table.loc["imagenette96", "view_size"] == 64
    assert load("digits").size == (records.SIDES["digits"],) * 2
    assert np.isnan(records.run_columns(run.record)["view_size"])  # of data nobody knows


def test_the_label_table_ends_with_all_labels(run, toy, monkeypatch):
    monkeypatch.setattr(evaluation, "PER_CLASS", (5,))
    training.evaluate(run, toy, "cpu", ("linear", "uva", "labels"))
    table = records.label_table([run.record])
    everything = table[table.subset == "all"]
    assert (
        list(table[table.subset != "all"].per_class) == [5] * 7
        and list(everything.per_class) == [50] * 3
    )
    assert set(everything.probe) == {"linear", "uva", "uva-last"} and set(everything.labels) == {
        200
    }
    for row in everything.itertuples():
        assert row.correct == run.record["evaluation"]["h"][row.probe]["correct"]
    assert records.label_table([]).empty


def test_an_older_record_and_a_newer_one_of_the_same_protocol_are_averaged(run, toy):
    """A field added to Config later, left at its default, changes no protocol."""
    training.evaluate(run, toy, "cpu")
    older = run.record | {
        "config": {k: v for k, v in run.record["config"].items() if k != "test_every"}
    }
    assert len(set(records.table([run.record, older]).protocol)) == 1
    other = run.record | {"config": run.record["config"] | {"temperature": 0.3}}
    assert len(set(records.table([run.record, other]).protocol)) == 2


def test_baselines_are_not_called_by_the_name_of_a_method(toy, tmp_path):
    for delta, name in (({}, "untrained"), ({"encoder": "pixels", "head": "none"}, "pixels")):
        run = training.pretrain(
            preset("simclr-digits", data="toy", epochs=0, **delta), toy, tmp_path, "cpu", False
        )
        training.evaluate(run, toy, "cpu")
        assert set(records.table([run.record]).method) == {name}


def test_bits_come_back():
    for n in (1, 8, 1001):
        right = np.random.default_rng(n).random(n) < 0.5
        record = {"evaluation": {"h": {"linear": {"n": n, "bits": records.pack_bits(right)}}}}
        assert (records.correct(record, "h", "linear") == right).all()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a record: it holds a list"),
        (b"{}", "is not a record: its field 'schema' is missing"),
    ],
)
def test_what_is_no_record_is_named(content, words, tmp_path):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(InputError, match=f"bad.json {words}"):
        records.read(tmp_path / "bad.json")


def test_a_record_of_another_schema_is_refused(run):
    record = run.record | {"schema": 99}
    (run.folder / "record.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="has the schema 99, this version reads 1"):
        records.read(run.folder / "record.json")
    with pytest.raises(InputError, match="can't read the record"):
        records.read(run.folder / "none.json")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"config": {}}, "TypeError"),
        ({"config": {"batch_size": 1}}, "TypeError"),
        ({"data": {}}, "KeyError"),
        ({"evaluation": {"h": 3}}, "AttributeError"),
        ({"evaluation": {"h": {"knn": {"n": 0, "correct": 0}}}}, "ZeroDivisionError"),
        ({"evaluation": {"h": {"knn": {"n": 2, "correct": 3}}}}, "3 of 2 images correct"),
        (
            {"evaluation": {"h": {"knn": {"n": 2**31, "correct": 3, "bits": "AAAA"}}}},
            "3 bytes of bits for 2147483648",
        ),
        ({"id": "../x"}, "not a file name"),
    ],
)
def test_half_a_record_is_named(run, change, words):
    (run.folder / "record.json").write_text(json.dumps(run.record | change))
    with pytest.raises(InputError, match=f"record.json is not a .*{words}"):
        records.read(run.folder / "record.json")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(step, tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    records.write_atomically(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(InputError, match="can't write .*file.json .No space left"):
        records.write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_published_records_are_whole():
    for record in records.load_all():
        assert record["evaluation"] or record.get("validation") or record["failed"]
        assert record["code"]["commit"] and record["code"]["changed"] is False
        assert (
            record["data"]["fingerprint"]
            and record["versions"]["torch"]
            and record["device"]["name"]
        )
