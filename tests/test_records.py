"""Records: what is no whole one is named, and what whole ones say in tables."""

import copy
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from lib import InputError, data
from lib.compute.bits import pack_bits
from lib.data.dataset import Dataset
from lib.data.downloads import DOWNLOADS
from lib.evaluation import L2_PATH
from lib.evidence import answers, tables
from lib.probes import PROBES, fine_tuning
from lib.runs import Run, load, records
from tests.conftest import arrays, small, trained

OF_A_NEWER_VERSION = "update the package where a newer version wrote it, else restore the file"


@pytest.fixture
def run(toy: Dataset, tmp_path: Path) -> Run:
    """A run that is not evaluated yet."""
    return trained(small(epochs=1), toy, tmp_path / "runs")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The record of an untrained encoder, which all probes were asked about."""
    dataset = data.build("toy", **arrays(n=80))
    untrained = small(epochs=0, head="none")
    run = trained(untrained, dataset, tmp_path_factory.mktemp("runs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tuning, "STEPS", 8)
        patch.setattr(fine_tuning, "EPOCHS", 1)
        run.evaluate(dataset, "cpu", PROBES)
    return records.read(run.folder / "record.json")


def test_what_every_probe_finds_makes_a_whole_record(record):
    on_h = record["evaluation"]["h"]
    for name, probe in PROBES.items():
        assert name in on_h or record[probe.field]


@pytest.mark.parametrize("name", PROBES)
def test_every_probe_has_its_lines(record, name):
    """What was computed for hours must not end in a file alone."""
    fields = {probe.field for probe in PROBES.values()} - {None}
    alone = {key: value for key, value in record.items() if key not in fields} | {"evaluation": {}}
    field = PROBES[name].field
    if field is None:
        alone["evaluation"] = {"h": {name: record["evaluation"]["h"][name]}}
    else:
        alone[field] = record[field]
    first, *others = answers.in_lines(alone)
    name, _, summary = first.partition(": ")
    assert name == record["id"]
    assert summary == "untrained on toy (recipe=supcontrast, batch_size=32, head=none)"
    assert others
    for line in others:
        assert re.match(r"  [hz]  [a-z-]+ +.*\d\.\d", line), line


def test_publish_wants_an_evaluated_run_and_copies_it_whole(run: Run, toy: Dataset, tmp_path: Path):
    results = tmp_path / "results"
    with pytest.raises(InputError, match="not evaluated yet; run: python -m lib probe"):
        records.publish(run.folder, results)

    run.evaluate(toy, "cpu")
    target = records.publish(run.folder, results)
    assert records.read(target) == run.record
    assert target.stat().st_size < 20_000
    assert records.publish(run.folder / "record.json", results) == target
    assert records.load_all(results) == [run.record]

    copy = target.with_name(f"{target.stem} (1).json")  # as file browsers and clouds make them
    copy.write_bytes(target.read_bytes())
    with pytest.raises(InputError, match=f"{target.stem} .1..json holds the record {target.stem}"):
        records.load_all(results)


def test_publishing_loses_nothing(record, tmp_path: Path):
    results = tmp_path / "results"
    path = tmp_path / "record.json"
    records.write(path, record)
    target = records.publish(path, results)

    less = {name: value for name, value in record.items() if name != "corruptions"}
    without_knn = {
        features: {probe: found for probe, found in by_probe.items() if probe != "knn"}
        for features, by_probe in record["evaluation"].items()
    }
    failed = {"evaluation": {}, "failed": "the loss became nan"}
    for changes, lost in (
        ({}, "corruptions"),
        ({"evaluation": without_knn}, "corruptions, knn on h"),
        (failed, "linear on h"),
    ):
        records.write(path, less | changes)
        with pytest.raises(InputError, match=f"has results that .*record.json lacks, .*{lost}"):
            records.publish(path, results)
        assert records.read(target) == record


@pytest.mark.parametrize("field, value", [("failed", "the loss became nan"), ("validation", [])])
def test_a_failure_and_a_choice_on_val_are_published_without_a_look_at_test(
    record, field, value, tmp_path: Path
):
    own = {name: record[name] for name in record if name != "validation"}
    path = tmp_path / "record.json"
    records.write(path, own | {"evaluation": {}, field: value})
    assert records.read(records.publish(path, tmp_path / "results"))[field] == value


def test_text_that_no_file_can_hold_is_spelt_out(record, tmp_path: Path):
    """As names of files have it: whatever comes to be recorded, the record can be read."""
    odd = copy.deepcopy(record)
    odd["data"]["classes"][0] = "gr\udcfcn"
    odd["data"]["variant"] = "half \ud83d"
    odd["delta"] = {"of \udcff": ("\udcff", 1)}
    records.write(tmp_path / "record.json", odd)

    again = records.read(tmp_path / "record.json")
    assert again["data"]["classes"][0] == r"gr\xfcn"
    assert again["data"]["variant"] == r"half \xed\xa0\xbd"
    assert again["delta"] == {r"of \xff": [r"\xff", 1]}


def test_a_missing_record_is_named_with_what_the_folder_is_instead(tmp_path: Path):
    path = tmp_path / "record.json"
    with pytest.raises(InputError, match="can't read the record .*: No such file or directory$"):
        records.read(path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="these are exported weights, and a run is wanted"):
        records.read(path)
    (tmp_path / "checkpoint-before.safetensors").touch()
    with pytest.raises(InputError, match="not finished: the same pretrain command goes on with it"):
        records.read(path)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is not JSON .*; restore the file, or publish its run again$"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON .nested too deeply"),
        (b"[]", r"is not a whole record: it must be a mapping, got \[\]; update the package"),
        (b"{}", "is not a whole record: the field 'schema' is missing; update"),
        (b'{"schema": 99}', "has the schema 99, this version reads 1: update the package$"),
    ],
)
def test_what_is_no_record_is_named(content, words, tmp_path: Path):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(InputError, match=f"bad.json {words}"):
        records.read(tmp_path / "bad.json")


def the_result(**values) -> dict:
    return {"evaluation": {"h": {"knn": values}}}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"id": "../x"}, "id must be a file name, got '../x'"),
        ({"id": 3}, "id must be text, got 3"),
        ({"seconds": "3"}, "seconds must be a number, got '3'"),
        ({"curves": [{}, 3]}, "curves must be mappings, got 3"),
        (
            {"curves": [{"look_precision": "half"}]},
            "unknown precision 'half'; known: float32, bfloat16, float16",
        ),
        (
            the_result(n=2, correct=1, precision="half"),
            "unknown precision 'half'; known: float32, bfloat16, float16",
        ),
        ({"segments": {}}, "segments must be a list, got {}"),
        ({"config": {}}, "config: the field 'name' is missing"),
        ({"config": 3}, "config must be a mapping, got 3"),
        ({"data": {}}, "the field 'data.name' is missing"),
        ({"code": {}}, "the field 'code.commit' is missing"),
        ({"device": {"type": "cpu"}}, "the field 'device.name' is missing"),
        ({"finished": "today"}, "finished must be a time as 2026-01-31T23:59:59Z, got 'today'"),
        ({"evaluation": {"h": 3}}, "evaluation.h must be a mapping, got 3"),
        (the_result(n=2), "the field 'evaluation.h.knn.correct' is missing"),
        (the_result(n=0, correct=0), "evaluation.h.knn.n must be at least 1, got 0"),
        (
            the_result(n=10**400, correct=0, bits=""),
            f"evaluation.h.knn.n must be below {2**53}, got 1{'0' * 99} ...",
        ),
        (the_result(n=2, correct=-1), "evaluation.h.knn.correct must be at least 0, got -1"),
        (
            the_result(n=2, correct=3),
            "evaluation.h.knn must have at most 2 correct images, got 3",
        ),
        (
            the_result(n=2**31, correct=3, bits="AAAA"),
            "evaluation.h.knn must have a bit for each image "
            "(3 bytes of bits for 2147483648 images)",
        ),
        (
            the_result(n=2, correct=1, bits="A"),
            "evaluation.h.knn must have a bit for each image "
            "(Invalid base64-encoded string: number of data characters (1) cannot be 1 more than "
            "a multiple of 4)",
        ),
        ({"label_sweep": [{}]}, "the field 'label_sweep.0.n' is missing"),
        ({"calibration": 3}, "calibration must be a list, got 3"),
        ({"validation": [{}]}, "the field 'validation.0.n' is missing"),
    ],
)
def test_half_a_record_is_named(record, change, words, tmp_path: Path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record | change), encoding="utf-8")
    with pytest.raises(InputError) as raised:
        records.read(path)
    assert str(raised.value) == f"{path} is not a whole record: {words}; {OF_A_NEWER_VERSION}"


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("batch_size", 1, "config: batch_size must be at least 2, got 1"),
        ("method", "byol", "config: unknown method 'byol'; known: simclr, supcon, ce"),
        ("epoch", 1, "config: unknown field 'epoch'; did you mean 'epochs'?"),
    ],
)
def test_a_configuration_that_is_none_is_named(record, field, value, words, tmp_path: Path):
    path = tmp_path / "record.json"
    path.write_text(
        json.dumps(record | {"config": record["config"] | {field: value}}), encoding="utf-8"
    )
    with pytest.raises(InputError) as raised:
        records.read(path)
    assert str(raised.value) == f"{path} is not a whole record: {words}; {OF_A_NEWER_VERSION}"


@pytest.mark.parametrize("field", ["name", "variant", "fingerprint", "classes", "counts"])
def test_a_record_says_what_its_data_were(record, field, tmp_path: Path):
    left = {name: value for name, value in record["data"].items() if name != field}
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record | {"data": left}), encoding="utf-8")
    with pytest.raises(InputError, match=f"the field 'data.{field}' is missing"):
        records.read(path)


def test_other_fields_may_stand_beside_those_that_are_read(record, tmp_path: Path):
    more = record | {"note": "of mine", "data": record["data"] | {"note": 3}}
    records.write(tmp_path / "record.json", more)
    assert records.read(tmp_path / "record.json") == more


@pytest.mark.parametrize("n", [1, 8, 1001])
def test_bits_come_back(n):
    right = np.random.default_rng(n).random(n) < 0.5
    record = {"evaluation": {"h": {"linear": {"n": n, "bits": pack_bits(right)}}}}
    assert (records.correct(record, "h", "linear") == right).all()


def test_published_records_are_whole():
    published = records.load_all()
    assert published
    for record in published:
        assert record["evaluation"] or record.get("validation") or record["failed"]
        assert record["code"]["commit"]
        assert record["code"]["changed"] is False
        assert record["data"]["fingerprint"]
        assert record["versions"]["torch"]
        assert record["device"]["name"]


def test_the_table_has_a_row_for_each_accuracy(run: Run, toy: Dataset):
    run.evaluate(toy, "cpu")
    table = tables.table([run.record])
    assert sorted(zip(table.features, table.probe)) == [
        ("h", "knn"),
        ("h", "linear"),
        ("z", "knn"),
        ("z", "linear"),
    ]
    assert (table.accuracy == table.correct / table.n).all()
    assert set(table.images) == {200}
    assert set(table.trained_on) == {len(toy.pool(run.config.pool))}
    assert list(tables.table([]).columns) == tables.COLUMNS


def test_what_was_read_from_z_with_too_strong_a_penalty_is_left_out(run: Run, toy: Dataset):
    run.evaluate(toy, "cpu")
    older = copy.deepcopy(run.record)
    for by_probe in older["evaluation"].values():
        assert by_probe["linear"].pop("weakest_l2") == L2_PATH[-1]
    rows = {(features, probe) for features, probe, _ in tables.results(older)}
    assert rows == {("h", "linear"), ("h", "knn"), ("z", "knn")}


def test_the_side_of_the_views_is_the_configurations_else_the_datas(record):
    table = tables.table(records.load_all()).drop_duplicates("data").set_index("data")
    assert table.loc["cifar10", "view_size"] == 32
    assert table.loc["imagenette96", "view_size"] == 64
    assert data.load("digits").size == (DOWNLOADS["digits"].side,) * 2
    assert math.isnan(tables.run_columns(record)["view_size"])  # of data nobody knows


def test_the_label_table_ends_with_all_labels(record):
    table = tables.label_table([record])
    few = table[table.subset != "all"]
    everything = table[table.subset == "all"]
    assert list(few.per_class) == [10] * 7  # five subsets, and two results of UvA's probe
    assert list(few.correct) == [row["correct"] for row in record["label_sweep"]]

    assert list(everything.probe) == ["linear", "uva", "uva-last"]
    assert set(everything.per_class) == {20}
    assert set(everything.labels) == {80}
    for row in everything.itertuples():
        assert row.correct == record["evaluation"]["h"][row.probe]["correct"]
    assert tables.label_table([]).empty


def test_an_older_record_and_a_newer_one_of_the_same_protocol_are_averaged(record):
    """A field added to Config later, left at its default, changes no protocol."""
    config = {name: value for name, value in record["config"].items() if name != "test_every"}
    older = record | {"config": config}
    assert len(set(tables.table([record, older]).protocol)) == 1
    other = record | {"config": record["config"] | {"temperature": 0.3}}
    assert len(set(tables.table([record, other]).protocol)) == 2


@pytest.mark.parametrize(
    "encoder, name", [("slim", "untrained"), ("pixels", "pixels"), ("kmeans400", "kmeans")]
)
def test_baselines_are_not_called_by_the_name_of_a_method(record, encoder, name):
    untrained = record | {"config": record["config"] | {"encoder": encoder}}
    assert tables.run_columns(untrained)["method"] == name


def test_a_folder_of_runs_is_named_as_one_and_a_file_of_a_run_is_that_run(run: Run):
    words = f"is a folder of 1 runs; name one, such as .*{run.folder.name}"
    with pytest.raises(InputError, match=words):
        load(run.folder.parent)
    assert load(run.folder / "model.safetensors").record == run.record
