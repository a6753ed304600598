"""Readers on files that are nearly right, and the harness of faults: few cases here, many there."""

import io
import json
import random
import resource
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lib import ROOT, InputError, files
from lib.data import archives, downloads, load
from lib.evidence import claims
from lib.runs import records
from stress import fuzz
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


def claiming(shape, content=b""):
    """An .npy file of bytes that claims a shape."""
    header = str({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def peak_kilobytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


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
    array, words, tmp_path, monkeypatch
):
    monkeypatch.setattr(archives, "INFLATED", 2**20)
    good = {name: npy(value) for name, value in arrays().items()}
    archive(tmp_path / "flat.npz", good)
    assert load("flat", tmp_path).counts["test"] == 60

    archive(tmp_path / "bad.npz", good | {"x_train": array})
    before = peak_kilobytes()
    with pytest.raises(InputError, match=f"bad.npz is not a whole .npz file .*{words}"):
        load("bad", tmp_path)
    assert peak_kilobytes() - before < 200_000


def bomb(depth, width):
    """YAML of a few lines whose aliases stand for width ** depth values."""
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    for level in range(1, depth):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return "\n".join(lines)


@pytest.mark.parametrize("content", [bomb(12, 9), "a: &a [*a]"], ids=["bomb", "endless"])
def test_yaml_that_stands_for_a_tree_of_any_size_is_refused(content, tmp_path):
    (tmp_path / "bomb.yml").write_text(content)
    with pytest.raises(InputError, match="its aliases stand for more than 100000 values"):
        claims.read(tmp_path / "bomb.yml")


def test_yaml_may_have_aliases(tmp_path):
    (tmp_path / "small.yml").write_text("a: &a {b: 1}\nc: {<<: *a}")
    assert files.read_yaml(tmp_path / "small.yml") == {"a": {"b": 1}, "c": {"b": 1}}


def test_json_is_what_we_write():
    for text in (b"NaN", b'{"a": Infinity}', b"[1e999]", b"[" * 10**5, b'"\xff"', b"1" * 5000):
        with pytest.raises(ValueError):
            files.parse_json(text)
    assert files.parse_json(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}


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
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
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
