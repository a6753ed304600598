"""What people write is checked, and a wrong value told in one sentence that names its field."""

import datetime
from dataclasses import FrozenInstanceError, replace
from typing import Annotated, Literal

import pytest
from pydantic import AfterValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from lib import InputError
from lib.validation import checked, validated


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
