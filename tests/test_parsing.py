"""JSON and YAML that are none, ambiguous or too large are refused."""

from pathlib import Path

import pytest

from lib import InputError
from lib.parsing import parse_json, parse_yaml, read_yaml


@pytest.mark.parametrize(
    "text", [b"NaN", b'{"a": Infinity}', b"[1e999]", b"[" * 10**5, b'"\xff"', b"1" * 5000, b"{"]
)
def test_what_we_never_write_is_no_json(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_json_is_what_we_write():
    assert parse_json(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def bomb() -> str:
    """Eleven lists, each of nine of the one before."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 12):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "expected the node content"),
        ("a: &a [*a]", "its aliases stand for more than 100000 values"),
        ("a: &a {b: *a}", "its aliases stand for more than 100000 values"),
        (bomb(), "its aliases stand for more than 100000 values"),
        (nested(200), "nested too deeply"),
        ("x" * 2**16 + "x", "larger than 65536 bytes"),
        ("2024-13-45", "month must be in 1..12"),
        ("seeds: 3\nepochs: 1\nseeds: 5", "'seeds' is there twice, line 1"),
        ("a:\n  - {b: 1, c: 2, b: 1}", "'b' is there twice, line 2"),
    ],
)
def test_yaml_that_is_none_or_too_large_is_named(text, words, tmp_path: Path):
    path = tmp_path / "bad.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"bad.yml can't be read as YAML: .*{words}"):
        read_yaml(path)


def test_yaml_with_aliases_is_read(tmp_path: Path):
    path = tmp_path / "small.yml"
    path.write_text("a: &a {b: 1}\nc: {<<: *a}\nd: [*a, *a]\ne: {<<: *a, b: 2}", encoding="utf-8")
    expected = {"a": {"b": 1}, "c": {"b": 1}, "d": [{"b": 1}, {"b": 1}], "e": {"b": 2}}
    assert read_yaml(path) == expected
    assert parse_yaml(b"") is None
    assert parse_yaml(nested(50).encode())


def test_a_missing_yaml_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="none.yml can't be read as YAML: .*No such file"):
        read_yaml(tmp_path / "none.yml")
