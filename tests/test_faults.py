"""Readers on files that are nearly right, and the harness of faults: few cases here, many in
benchmarks/faults.py."""

import io
import json
import random
import resource
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from lib import ROOT, InputError, claims, data, downloads, files, records
from tests.conftest import arrays

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


@pytest.mark.parametrize("reader", READERS)
@few
@given(seed=st.integers(0, 2**32))
def test_a_file_that_is_nearly_right_is_read_or_refused_in_a_sentence(
    readers, tmp_path, reader, seed
):
    name, whole, read = readers[reader]
    assert fuzz.try_one(tmp_path, name, whole, read) is None
    assert fuzz.try_one(tmp_path, name, fuzz.bent(name, whole, random.Random(seed)), read) is None


@pytest.mark.parametrize("reader", READERS)
@few
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused_in_a_sentence(readers, tmp_path, reader, content):
    name, _, read = readers[reader]
    assert fuzz.try_one(tmp_path, name, content, read) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
)


@few
@given(
    values=st.dictionaries(
        st.sampled_from([*records.REQUIRED, "label_sweep", "segments", "recipe"]), JSON
    )
)
def test_a_record_with_any_fields_is_read_or_refused_in_a_sentence(readers, tmp_path, values):
    name, whole, read = readers["record"]
    content = json.dumps(json.loads(whole) | values).encode()
    assert fuzz.try_one(tmp_path, name, content, read) is None


def test_the_fuzzers_own_judgement(readers, tmp_path):
    """A reader that fails is told from one that refuses."""

    def fails(path):
        raise KeyError("deep")

    assert fuzz.try_one(tmp_path, "x", b"", fails) == "KeyError: 'deep'"
    refused = [
        fuzz.bent(name, whole, random.Random(0)) != whole for name, whole, _ in readers.values()
    ]
    assert all(refused)


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)


def claiming(shape, dtype="|u1", content=b""):
    header = str({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def test_an_array_that_claims_terabytes_or_a_bomb_is_refused_before_it_takes_memory(
    tmp_path, monkeypatch
):
    good = {key: io.BytesIO() for key in arrays()}
    for key, value in arrays().items():
        np.save(good[key], value)
    good = {key: buffer.getvalue() for key, buffer in good.items()}
    monkeypatch.setattr(data, "INFLATED", 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bad, words in (
        (claiming((2**42, 8, 8, 3)), "x_train.npy holds .* and claims"),
        (claiming((-1, 8)), "x_train.npy holds .* and claims"),
        (claiming((2**31,), content=bytes(2**20)), "x_train.npy holds .* and claims"),
        (claiming((2**22,), content=bytes(2**22)), "would take more than 100 times the file"),
    ):
        archive(tmp_path / "bad.npz", **good | {"x_train": bad})
        with pytest.raises(InputError, match=f"bad.npz is not a whole .npz file .*{words}"):
            data.load("bad", tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
    archive(tmp_path / "flat.npz", **good)
    assert data.load("flat", tmp_path).counts["test"] == 60


def test_yaml_that_stands_for_a_tree_of_any_size_is_refused(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    for bomb in ("\n".join(lines), "a: &a [*a]"):
        (tmp_path / "bomb.yml").write_text(bomb)
        with pytest.raises(InputError, match="its aliases stand for more than 100000 values"):
            claims.read(tmp_path / "bomb.yml")
    (tmp_path / "small.yml").write_text("a: &a {b: 1}\nc: {<<: *a}")
    assert files.read_yaml(tmp_path / "small.yml") == {"a": {"b": 1}, "c": {"b": 1}}


def test_json_is_what_we_write():
    for text in (b"NaN", b'{"a": Infinity}', b"[1e999]", b"[" * 10**5, b'"\xff"', b"1" * 5000):
        with pytest.raises(ValueError):
            files.parse_json(text)
    assert files.parse_json(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}


@pytest.mark.parametrize("size", [(1, 5000), (6000, 6000)])
def test_an_image_of_a_strange_shape_is_refused(size, tmp_path):
    from PIL import Image

    Image.new("1", size).save(tmp_path / "image.png")
    with pytest.raises(
        InputError, match=f"image.png is not a whole image .{size[0]} x {size[1]} pixels"
    ):
        downloads._shrink(tmp_path / "image.png")


HARNESS = """
import sys
from pathlib import Path
from benchmarks.__main__ import main
from lib import records
benchmarks, records.BENCHMARKS = records.BENCHMARKS, Path(sys.argv[1])
from benchmarks import fuzz
(records.BENCHMARKS / "loss-cpu.json").write_bytes((benchmarks / "loss-cpu.json").read_bytes())
sys.exit(main([
    "faults", "--kills", "6", "--damages", "24", "--writes", "2", "--pairs", "2", "--cases", "70"
]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the faults are made on Linux only")
def test_the_harness_from_end_to_end(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "faults-cpu.json").read_bytes())["rows"]
    assert {row["fault"] for row in rows} == {"kill", "damage", "full disk", "race", "fuzz"}
    assert sum(row["cases"] for row in rows if row["fault"] == "kill") >= 6
    assert not [row for row in rows if row["wrong"]], done.stdout


def test_the_published_counts_are_as_many_as_promised():
    rows = records.benchmark("faults-cpu")["rows"]
    cases = {
        fault: sum(row["cases"] for row in rows if row["fault"] == fault)
        for fault in ("kill", "damage", "full disk", "race", "fuzz")
    }
    assert (
        cases["kill"] >= 200
        and cases["damage"] >= 500
        and cases["race"] >= 20
        and cases["fuzz"] >= 100_000
    )
    assert (
        cases["full disk"] >= 20
        and sum(row["in_a_write"] for row in rows if row["fault"] == "kill") >= 50
    )
    assert all(row["wrong"] == 0 for row in rows)
