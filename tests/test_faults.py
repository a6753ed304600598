"""Readers on files that are nearly right, and the harness of faults: few cases here, many there."""

import io
import json
import random
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lib import ROOT, InputError
from lib.data import archives, build, downloads, load
from lib.runs import records
from stress import fuzz, inputs
from tests.conftest import arrays

KINDS = ("kill", "damage", "full disk", "race", "fuzz")
READERS = ("npz", "record", "benchmark", "checkpoint", "profile", "claims", "image")
few = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    return fuzz.readers(tmp_path_factory.mktemp("whole"))


def test_every_reader_takes_its_whole_file(readers, tmp_path):
    """But for other projects' weights, whose smallest are too large."""
    for name, reader in readers.items():
        (tmp_path / name).mkdir()
        path = tmp_path / name / reader.file
        path.write_bytes(reader.whole)
        if name != "foreign":
            reader.read(path)


@pytest.mark.parametrize("name", READERS)
@few
@given(seed=st.integers(0, 2**32))
def test_a_file_that_is_nearly_right_is_read_or_refused_in_a_sentence(
    readers, tmp_path, name, seed
):
    reader = readers[name]
    assert fuzz.try_one(tmp_path, reader, fuzz.bent(reader, random.Random(seed))) is None


@pytest.mark.parametrize("name", READERS)
@few
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused_in_a_sentence(readers, tmp_path, name, content):
    assert fuzz.try_one(tmp_path, readers[name], content) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
)


@few
@given(data=st.data())
def test_a_record_with_any_fields_is_read_or_refused_in_a_sentence(readers, tmp_path, data):
    reader = readers["record"]
    record = json.loads(reader.whole)
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(record)), JSON))
    content = json.dumps(record | changes).encode()
    assert fuzz.try_one(tmp_path, reader, content) is None


def test_the_fuzzers_own_judgement(readers, tmp_path):
    """A reader that fails is told from one that refuses, and from one that dies."""

    def fails(path):
        raise KeyError("deep")

    def refuses_without_a_word(path):
        raise InputError("")

    reader = readers["claims"]
    assert fuzz.try_one(tmp_path, replace(reader, read=fails), b"") == "KeyError: 'deep'"
    silent = replace(reader, read=refuses_without_a_word)
    assert fuzz.try_one(tmp_path, silent, b"") == "an InputError that says nothing"


def test_files_are_bent(readers):
    """By their bytes and, where they have any, by their tree or headers."""
    for name, reader in readers.items():
        bent = {fuzz.bent(reader, random.Random(seed)) for seed in range(40)}
        assert len(bent - {reader.whole}) > 30, name


def archive(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


WHOLE = {name: npy(value) for name, value in arrays().items()}


def claiming(shape, content=b""):
    """An .npy file of bytes that claims a shape."""
    header = str({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


@pytest.fixture
def peak_memory():
    """A function: the most bytes that Python and numpy held at a time since it was called last."""

    def since_the_last_call():
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        return peak

    tracemalloc.start()
    yield since_the_last_call
    tracemalloc.stop()


@pytest.mark.parametrize(
    "array, words",
    [
        (claiming((2**42, 8, 8, 3)), "x_train.npy holds .* and claims"),
        (claiming((-1, 8)), "x_train.npy holds .* and claims"),
        (claiming((2**31,), content=bytes(2**20)), "x_train.npy holds .* and claims"),
        (claiming((2**22,), content=bytes(2**22)), "would take more than 100 times the file"),
    ],
    ids=["terabytes", "negative", "more than it holds", "bomb"],
)
def test_an_array_that_claims_terabytes_or_a_bomb_is_refused_before_it_takes_memory(
    array, words, tmp_path, monkeypatch, peak_memory
):
    monkeypatch.setattr(archives, "INFLATED", 2**20)
    archive(tmp_path / "bad.npz", WHOLE | {"x_train": array})
    peak_memory()
    with pytest.raises(InputError, match=f"bad.npz is not a whole .npz file .*{words}"):
        load("bad", tmp_path)
    assert peak_memory() < 2**18


def test_the_memory_that_a_whole_file_takes_is_seen(tmp_path, peak_memory):
    """By the same measurement."""
    archive(tmp_path / "flat.npz", WHOLE)
    peak_memory()
    assert load("flat", tmp_path).counts["test"] == 60
    assert peak_memory() > 2**18


@pytest.mark.parametrize("size", [(1, 5000), (8200, 8200)])
def test_an_image_of_a_strange_shape_is_refused(size, tmp_path):
    width, height = size
    Image.new("1", size).save(tmp_path / "image.png")
    words = f"image.png is not a whole image .{width} x {height} pixels"
    with pytest.raises(InputError, match=words):
        downloads.shrink(tmp_path / "image.png")


@pytest.mark.skipif(sys.platform != "linux", reason="the faults are made on Linux only")
def test_the_harness_from_end_to_end(tmp_path):
    command = [sys.executable, "-m", "stress", "faults", "--results", str(tmp_path)]
    command += ["--kills", "6", "--damages", "24", "--writes", "2", "--pairs", "2"]
    command += ["--cases", "70"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=900, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr

    rows = records.benchmark("faults-cpu", tmp_path)["rows"]
    count = Counter()
    for row in rows:
        count[row["fault"]] += row["cases"]
        assert row["wrong"] == 0, done.stdout
    assert count.keys() == set(KINDS) and count["kill"] >= 6


def test_the_published_counts_are_as_many_as_promised():
    rows = records.benchmark("faults-cpu")["rows"]
    count = Counter()
    for row in rows:
        count[row["fault"]] += row["cases"]
        count["kill in a write"] += row.get("in_a_write", 0)
        assert row["wrong"] == 0
    promised = {
        "kill": 200,
        "kill in a write": 50,
        "damage": 500,
        "full disk": 20,
        "race": 20,
        "fuzz": 100_000,
    }
    for fault, least in promised.items():
        assert count[fault] >= least, fault


@pytest.mark.parametrize("kind", inputs.KINDS)
def test_odd_inputs_are_refused_or_taken_rightly(kind, tmp_path):
    taken = 0
    for number in range(25):
        outcome = inputs.tried(kind, random.Random(f"1 {kind} {number}"), tmp_path)
        assert outcome.wrong is None, f"case {number}: {outcome.wrong}"
        taken += not outcome.refused
    assert taken > 2  # else nothing would have been looked at


def test_the_judgement_of_odd_inputs(tmp_path):
    """What lacks a class, and what is read twice, is seen."""
    x, y = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 2
    dataset = build("odd", x, y, x, y)
    assert inputs._lacks_a_class(dataset) is None
    only = replace(dataset, val=dataset.val[dataset.val.labels == 0])
    assert "val" in inputs._lacks_a_class(only)

    (tmp_path / "cats").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "cats" / "1.png")
    gone = [tmp_path / "cats" / "3.png"]
    assert inputs._listed_rightly(tmp_path, gone) == "not read and not told of: cats/3.png"
