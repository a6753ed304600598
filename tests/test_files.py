"""Files are written whole and by one writer, and what people write is checked in one sentence."""

import datetime
import errno
import os
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Literal

import pytest
from filelock import FileLock
from pydantic import AfterValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from lib import InputError, files
from lib.files import checked, claimed, only_writer, parse_json, parse_yaml, read_yaml, validated
from tests.conftest import wait_for


def _even(number: int) -> int:
    if number % 2:
        raise ValueError(f"must be even, got {number}")
    return number


def _known(name: str) -> str:
    if name != "red":
        raise ValueError(f"unknown colour '{name}'; known: red")
    return name


@checked
class Settings:
    """One field of each kind."""

    count: Annotated[int, Field(ge=1, le=9)] = 1
    share: Annotated[float, Field(gt=0, lt=0.5)] = 0.25
    name: str = "a"
    is_on: bool = False
    letters: Annotated[tuple[str, ...], Field(min_length=1)] = ("a",)
    numbers: list[float] = Field(default_factory=list)
    table: dict[str, int] = Field(default_factory=dict)
    side: Literal["left", "right"] = "left"
    even: Annotated[int, AfterValidator(_even)] = 2
    colour: Annotated[str, AfterValidator(_known)] = "red"
    day: datetime.date | None = None


@checked
class Book:
    title: str
    settings: Settings = Field(default_factory=Settings)


@pytest.mark.parametrize(
    "field, value, sentence",
    [
        ("count", 0, "count must be at least 1, got 0"),
        ("count", 10, "count must be at most 9, got 10"),
        ("count", 2.5, "count must be an integer, got 2.5"),
        ("count", "2", "count must be an integer, got '2'"),
        ("count", True, "count must be an integer, got True"),
        ("share", 0.0, "share must be greater than 0, got 0.0"),
        ("share", 0.5, "share must be below 0.5, got 0.5"),
        ("share", "a", "share must be a number, got 'a'"),
        ("share", None, "share must be a number, got None"),
        ("share", float("nan"), "share must be finite, got nan"),
        ("share", float("inf"), "share must be finite, got inf"),
        ("name", 3, "name must be text, got 3"),
        ("is_on", 1, "is_on must be true or false, got 1"),
        ("letters", "a", "letters must be a list, got 'a'"),
        ("letters", (), "letters must have a length of at least 1, got ()"),
        ("letters", ("a", 3), "letters must be text, got 3"),
        ("numbers", 3, "numbers must be a list, got 3"),
        ("numbers", [1, "a"], "numbers must be numbers, got 'a'"),
        ("numbers", [1, float("inf")], "numbers must be finite, got inf"),
        ("table", [], "table must be a mapping, got []"),
        ("table", {"a": "b"}, "table.a must be an integer, got 'b'"),
        ("side", "top", "side must be 'left' or 'right', got 'top'"),
        ("even", 3, "even must be even, got 3"),
        ("colour", "blue", "unknown colour 'blue'; known: red"),
        ("day", 3.5, "day: Input should be a valid date, got 3.5"),  # pydantic's words
        ("name", 10**200, f"name must be text, got 1{'0' * 99} ..."),
    ],
)
def test_a_wrong_value_is_told_in_one_sentence_that_names_its_field(field, value, sentence):
    with pytest.raises(InputError) as raised:
        Settings(**{field: value})
    assert str(raised.value) == sentence
    with pytest.raises(InputError) as raised:
        replace(Settings(), **{field: value})
    assert str(raised.value) == sentence


def test_a_checked_class_is_a_frozen_dataclass_in_which_an_int_serves_as_a_float():
    settings = Settings(numbers=[1, 2.5], even=4)
    assert settings == Settings(numbers=[1.0, 2.5], even=4)
    assert isinstance(settings.numbers[0], float)
    with pytest.raises(FrozenInstanceError):
        settings.count = 3


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({}, "the field 'title' is missing"),
        (
            {"title": "a", "titel": "b"},
            "unknown field 'titel'; did you mean 'title'? known: title, settings",
        ),
        ({"title": "a", "settings": 3}, "settings must be a mapping, got 3"),
        ({"title": "a", "settings": {"count": 0}}, "settings.count must be at least 1, got 0"),
        ({"title": "a", "settings": {"cuont": 3}}, "unknown field 'settings.cuont'"),
        ({"title": "a", "settings": {"even": 3}}, "settings.even must be even, got 3"),
        ([], "it must be a mapping, got []"),
        ("a", "it must be a mapping, got 'a'"),
    ],
)
def test_what_people_write_is_checked_and_the_file_named(given, sentence):
    with pytest.raises(InputError) as raised:
        validated(Book, given, "a.yml")
    assert str(raised.value) == f"a.yml: {sentence}"


def test_lists_serve_as_tuples_and_mappings_as_objects():
    given = {"title": "a", "settings": {"letters": ["a", "b"]}}
    assert validated(Book, given, "a.yml") == Book("a", Settings(letters=("a", "b")))


@with_config(ConfigDict(extra="forbid"))
class Entry(TypedDict):
    name: str


def test_other_kinds_than_checked_classes_are_validated_too():
    assert validated(list[Entry], [{"name": "a"}], "a.yml") == [{"name": "a"}]
    with pytest.raises(InputError, match="^a.yml: the field '1.name' is missing$"):
        validated(list[Entry], [{"name": "a"}, {}], "a.yml")
    with pytest.raises(InputError, match="^a.yml: unknown field '0.nmae'$"):
        validated(list[Entry], [{"name": "a", "nmae": "b"}], "a.yml")
    with pytest.raises(InputError, match="^a.yml: unknown field 'nmae'$"):
        validated(Entry, {"name": "a", "nmae": "b"}, "a.yml")


def test_a_date_is_text_where_it_is_a_value_and_refused_where_it_is_a_key():
    """YAML makes one of 2024-01-31."""
    day = datetime.date(2024, 1, 31)
    assert validated(Book, {"title": day}, "a.yml").title == "2024-01-31"
    with pytest.raises(InputError, match="^a.yml: keys must be str, .* not datetime.date$"):
        validated(Book, {"title": "a", day: 3}, "a.yml")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file.json"
    files.write_atomically(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(InputError, match="can't write .*file.json .No space left"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "open"])
def test_a_folder_that_cannot_be_flushed_is_no_trouble(
    step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As on Windows and on some network drives; the file is whole all the same."""
    path = tmp_path / "file.json"
    usual = getattr(os, step)
    refused = []

    def refuse_folders(at: int | Path, *options: int) -> int | None:
        if os.path.isdir(at):
            refused.append(at)
            raise OSError(errno.EINVAL, "Invalid argument")
        return usual(at, *options)

    monkeypatch.setattr(os, step, refuse_folders)
    files.write_atomically(path, b"new")
    assert len(refused) == 1
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_somebody_reads_is_moved_as_soon_as_may_be(tmp_path: Path, monkeypatch):
    """As Windows refuses it meanwhile."""
    rename = os.replace
    refusals = [PermissionError(13, "in use"), PermissionError(13, "in use")]

    def replace(source: Path, target: Path) -> None:
        if refusals:
            raise refusals.pop()
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "new").write_text("new", encoding="utf-8")
    (tmp_path / "file").write_text("old", encoding="utf-8")
    files.moved(tmp_path / "new", tmp_path / "file")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "new"


def test_a_file_is_written_into_folders_that_are_made_and_nothing_else_stays(tmp_path: Path):
    path = tmp_path / "a" / "b" / "file.json"
    files.write_atomically(path, b"one")
    files.write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_one_writer_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture):
    lock = tmp_path / "folder" / ".lock"
    with only_writer(lock, "the run"):
        with pytest.raises(InputError, match="another process is writing the run; try again"):
            with only_writer(lock, "the run", wait=False):
                pass
    with only_writer(lock, "the run", wait=False):
        pass  # it is free again
    assert capsys.readouterr().err == ""


def test_a_writer_that_waits_says_so(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = tmp_path / ".lock"
    written = Event()

    def write() -> None:
        with only_writer(path, "the run"):
            written.set()

    writer = Thread(target=write)
    with FileLock(path):
        writer.start()
        wait_for(lambda: "another process is writing the run; waiting" in capsys.readouterr().err)
        assert not written.is_set()
    writer.join(60)
    assert written.is_set()


def test_a_claim_is_held_by_one_alone(tmp_path):
    path = tmp_path / "claims" / ".lock"
    with claimed(path, "the run", 0) as mine, claimed(path, "the run", 0) as also:
        assert mine and not also
    with claimed(path, "the run", 0) as again:
        assert again


@pytest.mark.parametrize("number, warned", [(errno.ENOLCK, True), (errno.ENOSPC, False)])
def test_a_file_system_without_locks_is_warned_of(
    number, warned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "acquire", fail)
    if warned:
        with pytest.warns(UserWarning, match="can't be locked .*see that no other process writes"):
            with only_writer(tmp_path / ".lock", "the run"):
                pass
        with (
            pytest.warns(UserWarning, match="can't be locked"),
            claimed(tmp_path / ".lock", "the run", 0) as mine,
        ):
            assert mine
    else:
        with pytest.raises(InputError, match="can't write .*.lock .No space left"):
            with only_writer(tmp_path / ".lock", "the run"):
                pass


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
