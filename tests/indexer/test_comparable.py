"""Filters that compare a field with a value of a type that no item has there."""

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from indexer.comparable import TypeMismatch
from indexer.filters import parse
from tests.indexer.rows import PAYLOADS, Rows, values_of

TYPED = [
    {"year": 2020, "species": "wren", "ringed": True, "tags": ["small"], "place": {"land": "NL"}, "seen": None},
    {"year": None, "species": None, "counts": [1, None], "grid": [[1]], "empty": [], "mixed": 1},
    {"mixed": "1", "both": [2], "seen": None},
    {"both": "2"},
]


@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        ('year = "2020"', 8, '"2020" is a text, and year holds only numbers; write 2020 without quotes'),
        ("year= '20*'", 7, "'20*' is a text, and year holds only numbers; compare it with a number"),
        ("year:recent", 6, "recent is a text, and year holds only numbers; compare it with a number"),
        ("year = true", 8, "true is a boolean, and year holds only numbers; compare it with a number"),
        ("species > 3", 11, '3 is a number, and species holds only texts; write "3" for the text'),
        ("item = 007", 8, '007 is a number, and item holds only texts; write "007" for the text'),
        ("species = true", 11, 'true is a boolean, and species holds only texts; write "true" for the text'),
        ('ringed = "true"', 10, '"true" is a text, and ringed holds only booleans; write true without quotes'),
        ("ringed = 1", 10, "1 is a number, and ringed holds only booleans; compare it with a boolean"),
        ("tags = small", 8, "small is a text, and tags holds only lists; write tags:small for a list that has it"),
        ("tags:3", 6, '3 is a number, and tags holds only lists of texts; write "3" for the text'),
        ("counts:a", 8, "a is a text, and counts holds only lists of numbers; compare it with a number"),
        (
            "both:true",
            6,
            'true is a boolean, and both holds only lists of numbers and texts; write "true" for the text',
        ),
        ("grid:1", 6, "1 is a number, and grid holds only lists of lists; grid:* asks whether there is any"),
        ("empty = a", 9, "a is a text, and empty holds only lists; write empty:a for a list that has it"),
        (
            "place = NL",
            9,
            "NL is a text, and place holds only objects; compare a field of the object, such as place.name",
        ),
        ("place.land = 31", 14, '31 is a number, and place.land holds only texts; write "31" for the text'),
        ("mixed = true", 9, 'true is a boolean, and mixed holds only numbers and texts; write "true" for the text'),
        ("year IN (2020, '2021')", 16, "'2021' is a text, and year holds only numbers; write 2021 without quotes"),
        ("species = wren OR NOT (year > 1 AND year = 2O2O)", 44, "2O2O is a text, and year holds only numbers; comp"),
    ],
)
def test_what_no_item_can_meet_by_its_type_is_refused(text: str, column: int, problem: str) -> None:
    """With the value's column, what the field holds, and what was probably meant."""
    rows = Rows(TYPED)
    with pytest.raises(TypeMismatch) as caught:
        rows.columns.check(parse(text), len(TYPED))
    assert str(caught.value).startswith(f"filter, column {column}: {problem}")
    assert column == caught.value.column


@pytest.mark.parametrize(
    "text",
    [
        "year = 1990 OR year < 5 OR year:7 OR year IN (1, null)",
        'year != "2020" OR tags != small OR place != NL',
        "species = null OR tags = null OR place:null",
        "seen = a OR seen < 3 OR seen:true",
        "empty:a OR empty:1",
        "mixed = 2 AND mixed = a OR mixed < z",
        "both = 7 OR both = a OR both:8",
        "place:* AND grid:*",
    ],
)
def test_what_some_item_could_meet_by_its_type_is_asked(text: str) -> None:
    """Null is of no type and a list without elements of none that is known; `!=` is met by every other type."""
    rows = Rows([*TYPED, {"both": 3}])
    rows.columns.check(parse(text), len(rows.payloads))


COMPARED = {"1": float, '"1"': str, "a*": str, "true": bool}


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(st.lists(PAYLOADS, max_size=6), st.sampled_from("=<:"), st.sampled_from([*COMPARED]))
def test_a_refused_comparison_would_have_found_nothing(payloads: list[Any], operator: str, value: str) -> None:
    """And the others are those for which some item has a value of the type, or none a value of any."""
    text = f"x{operator}{value}"
    assume(operator != "<" or COMPARED[value] is float)
    rows = Rows([*payloads, {"x": None}])
    held = [
        element
        for payload in payloads
        for value in values_of(payload, ("x",))
        for element in looked_at(value, operator)
    ]
    kinds = {float if type(value) is int else type(value) for value in held} - {type(None)}
    if kinds and COMPARED[value] not in kinds:
        assert rows.found(text) == []
        with pytest.raises(TypeMismatch):
            rows.columns.check(parse(text), len(rows.payloads))
    else:
        rows.columns.check(parse(text), len(rows.payloads))


def looked_at(value: Any, operator: str) -> list[Any]:
    return value if operator == ":" and isinstance(value, list) else [value]


def test_a_type_is_known_only_among_the_rows_asked_about() -> None:
    """A search that began before a row was added must not see it, and one that begins then does."""
    rows = Rows([{"a": 1}, {"a": "b"}, {"a": ["c"]}])
    for text, needed in (("a < b", 2), ("a:c", 2), ("a:true", 4)):
        for count in (3, 1, 2):
            if count < needed:
                with pytest.raises(TypeMismatch):
                    rows.columns.check(parse(text), count)
            else:
                rows.columns.check(parse(text), count)
    rows.payloads.append({"a": [True]})
    rows.columns.check(parse("a:true"), 4)
