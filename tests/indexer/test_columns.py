"""Filters over columns: against an evaluator of one row at a time, while rows are added, and from several threads."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from indexer import column
from indexer.columns import MAX_COLUMNS
from indexer.filters import (
    And,
    Comparison,
    Expression,
    Not,
    Or,
    Prefix,
    Present,
    UnknownField,
    Value,
    parse,
)
from tests.indexer.rows import PAYLOADS, Rows, values_of

BIRDS = [
    {"species": "wren", "year": 2020, "tags": ["small", "brown"], "place": {"land": "NL", "sea level": -2}},
    {"species": "wheatear", "year": 2021.5, "tags": [], "ringed": True},
    {"species": "Wren", "year": "2020", "tags": "small", "ringed": False},
    None,
    {"species": None, "year": 1e300, "place": "NL", "ringed": 1},
    {"species": ["wren"], "tags": [None, True, 7, ["small"], {"a": 1}]},
    {},
]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", [0, 1, 2, 3, 4, 5, 6]),
        ("species = wren", [0]),
        ("species != wren", [1, 2, 4, 5]),
        ("NOT species = wren", [1, 2, 3, 4, 5, 6]),
        ("species = w*", [0, 1]),
        ("species != w*", [2, 4, 5]),
        ("species = *", [0, 1, 2]),
        ("species IN (wren, Wren, null)", [0, 2, 4]),
        ("species > wren", []),
        ("species >= wren", [0]),
        ("species < wren", [1, 2]),
        ("species:*", [0, 1, 2, 4, 5]),
        ("species:wren", [0, 5]),
        ("year = 2020", [0]),
        ('year = "2020"', [2]),
        ("year > 2020", [1, 4]),
        ("year <= 2021.5", [0, 1]),
        ('year < "3"', [2]),
        ("ringed = true", [1]),
        ("ringed = 1", [4]),
        ("ringed != true", [2, 4]),
        ("tags:small", [0, 2]),
        ("tags:s*", [0, 2]),
        ("-tags:small", [1, 3, 4, 5, 6]),
        ("tags = small", [2]),
        ("tags:null", [5]),
        ("tags:true", [5]),
        ("tags:7", [5]),
        ("tags:*", [0, 1, 2, 5]),
        ("place.land = NL", [0]),
        ('place."sea level" < 0', [0]),
        ("place = NL", [4]),
        ("place:*", [0, 4]),
        ("place.land.x:*", []),
        ("item = dir/00*", [0, 1, 2, 3, 4, 5, 6]),
        ("item IN ('dir/003.jpg', 'dir/005.jpg', nowhere)", [3, 5]),
        ("item >= dir/005", [5, 6]),
        ("species = wren OR year > 2020 AND ringed:*", [1, 4]),
    ],
)
def test_a_filter_finds_its_rows(text: str, rows: list[int]) -> None:
    """Of payloads with every type of value."""
    assert rows == Rows(BIRDS).found(text)


TEXTS = st.sampled_from(["", "a", "ab", "é", "\ud7ff", "\U0010ffff", "a\U0010ffff", "1", "no"])
ORDERED = st.sampled_from([0.0, 1.0, -1.0, 2.5, 7.0, 1e308]) | TEXTS
VALUES = ORDERED | st.sampled_from([None, True, False]) | TEXTS.map(Prefix)
NAMED = st.sampled_from([("x",), ("y",), ("z",), ("x", "x"), ("item",)])
EQUALS = st.builds(Comparison, NAMED, st.just("="), st.lists(VALUES, min_size=1, max_size=3).map(tuple))
OTHERS = st.builds(Comparison, NAMED, st.sampled_from(["!=", ":"]), VALUES.map(lambda value: (value,)))
ORDERS = st.builds(Comparison, NAMED, st.sampled_from(["<", "<=", ">", ">="]), ORDERED.map(lambda value: (value,)))
EXPRESSIONS: st.SearchStrategy[Expression] = st.recursive(
    EQUALS | OTHERS | ORDERS | st.builds(Present, NAMED),
    lambda parts: (
        st.builds(Not, parts)
        | st.builds(And, st.lists(parts, max_size=3).map(tuple))
        | st.builds(Or, st.lists(parts, max_size=3).map(tuple))
    ),
    max_leaves=6,
)


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(EXPRESSIONS, st.lists(PAYLOADS, max_size=8), st.integers(0, 8))
@example(Comparison(("x",), "=", (Prefix("\U0010ffff"),)), [{"x": "\U0010ffff"}, {"x": "\U0010ffffa"}, {"x": 1}], 0)
def test_columns_agree_with_one_row_at_a_time(expression: Expression, payloads: list[Any], half: int) -> None:
    """For random expressions over random payloads, and when the columns were made of the first rows alone."""
    rows = Rows(payloads)
    expected = [holds(expression, f"dir/{row:03d}.jpg", payload) for row, payload in enumerate(payloads)]
    begun = min(half, len(payloads))
    assert expected[:begun] == rows.columns.mask(expression, begun).tolist()
    assert expected == rows.columns.mask(expression, len(payloads)).tolist()
    assert expected[:begun] == rows.columns.mask(expression, begun).tolist()


@pytest.mark.parametrize("several", [3, 40])
def test_prefixes_of_one_field_agree_with_one_row_at_a_time(several: int) -> None:
    """However many there are, within each other, side by side and at the end of the order."""
    rng = random.Random(several)
    letters = "ab\x01\0é\ud7ff\ue000\U0010ffff"
    texts = ["".join(rng.choices(letters, k=rng.randrange(5))) for _ in range(400)]
    payloads = [{"x": rng.choice([text, [text, "b"], 1, None])} for text in texts]
    rows = Rows(payloads)
    for _ in range(60):
        prefixes = [Prefix(text[: rng.randrange(1, 5)]) for text in rng.sample(texts, several)]
        operators = [rng.choice("=:") for _ in prefixes]
        parts = [Comparison(("x",), operator, (value,)) for operator, value in zip(operators, prefixes, strict=True)]  # type: ignore[arg-type]
        expression = Or((*parts, Comparison(("x",), "=", ("ab", 1.0)), Not(Comparison(("x",), ":", (Prefix("b"),)))))
        expected = [holds(expression, "", payload) for payload in payloads]
        assert rows.columns.mask(expression, len(payloads)).tolist() == expected


def test_many_prefixes_take_little_more_than_some() -> None:
    """Each would look at all texts anew; CPU time, the least of several."""
    rows = Rows({"x": f"{row:06d}"} for row in range(30_000))

    def seconds(count: int) -> float:
        expression = parse(" OR ".join(f'x = "{row:04d}*"' for row in range(0, 3 * count, 3)))
        taken = []
        for _ in range(5):
            began = time.process_time()
            found = rows.columns.mask(expression, 30_000)
            taken.append(time.process_time() - began)
        assert found.sum() == 100 * count
        return min(taken)

    assert seconds(90) < 40 * seconds(1)


def holds(expression: Expression, item: str, payload: Any) -> bool:
    match expression:
        case And(parts):
            return all(holds(part, item, payload) for part in parts)
        case Or(parts):
            return any(holds(part, item, payload) for part in parts)
        case Not(part):
            return not holds(part, item, payload)
        case Present(field):
            return bool(values_of({"item": item} if field == ("item",) else payload, field))
        case Comparison(field, operator, values):
            found = values_of({"item": item} if field == ("item",) else payload, field)
            return bool(found) and compares(found[0], operator, values)


def compares(value: Any, operator: str, values: tuple[Value, ...]) -> bool:
    match operator:
        case "=":
            return any(equal(value, other) for other in values)
        case "!=":
            return not equal(value, values[0])
        case ":":
            return any(equal(element, values[0]) for element in (value if isinstance(value, list) else [value]))
    other: Any = values[0]
    kinds = (str,) if isinstance(other, str) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    return bool({"<": value < other, "<=": value <= other, ">": value > other, ">=": value >= other}[operator])


def equal(value: Any, other: Value) -> bool:
    if isinstance(other, Prefix):
        return isinstance(value, str) and value.startswith(other.text)
    if isinstance(value, bool) or isinstance(other, bool) or value is None or other is None:
        return value is other
    return bool(value == other)


def test_a_row_is_read_once_a_field() -> None:
    """Later filters on the field read only what was added since; a filter on two new fields reads both at once."""
    rows = Rows(BIRDS)
    assert rows.found("species = wren AND year > 0") == [0]
    assert rows.found("species = wren OR year < 0") == [0]
    rows.payloads.append({"species": "wren"})
    assert rows.found("species = wren") == [0, 7]
    assert rows.found("year:* AND species:*") == [0, 1, 2, 4]
    assert rows.reads == [(0, 7), (7, 8), (7, 8)]


def test_the_fields_used_least_lately_make_room() -> None:
    """So that filters on ever other fields don't fill the memory."""
    rows = Rows([{"a": 1}])
    for number in range(MAX_COLUMNS - 1):
        rows.found(f"b{number}:*")
    assert rows.found("a = 1") == [0]
    rows.reads.clear()
    rows.found("c:*")
    assert rows.found("a = 1") == [0]
    assert rows.reads == [(0, 1)]
    rows.found("b0:*")
    assert rows.reads == [(0, 1), (0, 1)]


def test_a_field_that_no_item_has_is_told() -> None:
    """With the fields that there are; one that is null somewhere is there."""
    rows = Rows(BIRDS)
    with pytest.raises(
        UnknownField, match="no item of the index has a field specie; fields are: item, place, ringed, species, ta"
    ):
        rows.columns.check(parse("year > 1 OR NOT specie = wren"), len(BIRDS))
    with pytest.raises(UnknownField, match=r"has a field place\.\"sea level\"\.x;"):
        rows.columns.check(parse('place."sea level".x:*'), len(BIRDS))
    rows.columns.check(parse("species = auk AND item = x AND place.land:*"), len(BIRDS))
    with pytest.raises(UnknownField, match="fields are: item alone, as no item has a payload"):
        Rows([None]).columns.check(parse("a:*"), 1)


def test_a_field_is_known_only_among_the_rows_asked_about() -> None:
    """A search that began before a row was added must not see it."""
    rows = Rows([{"a": 1}, {"b": 1}])
    rows.columns.check(parse("b:*"), 2)
    with pytest.raises(UnknownField):
        rows.columns.check(parse("b:*"), 1)


def test_equal_values_have_equal_codes() -> None:
    """And only they; what is no value to group by has code 0: no field, null, lists and objects."""
    values: list[Any] = [1, "1", 1.0, True, "1", None, [], {}]
    rows = Rows([*({"a": value} for value in values), {}, None])
    one, text, same, true, again, *ungrouped = rows.columns.codes(("a",), 10).tolist()
    assert (one, text) == (same, again)
    assert len({0, one, text, true}) == 4
    assert ungrouped == [0, 0, 0, 0, 0]
    assert rows.found("a = null") == [5]


def test_a_column_that_could_not_be_read_is_read_again() -> None:
    """What a failed reading had seen does not count."""
    rows = Rows([{"a": "x"}, {"a": "y"}])
    whole = rows.payloads
    rows.payloads = [
        object(),
        {"a": "y"},
    ]  # read from the last row on: y is seen, and then json can't write the other
    with pytest.raises(TypeError, match="not JSON serializable"):
        rows.found("a:*")
    rows.payloads = whole
    assert rows.found("a = x") == [0]
    assert rows.found("a >= y") == [1]


def test_halves_of_surrogate_pairs_are_values_like_others() -> None:
    """JSON can hold them; they equal themselves alone."""
    rows = Rows([{"a": "x\ud800"}, {"a": "x"}, {"a": "x\ud801"}])
    assert rows.found("a = x*") == [0, 1, 2]
    assert rows.found("a = x") == [1]
    assert len(set(rows.columns.codes(("a",), 3).tolist())) == 3


def test_texts_with_nul_are_in_their_order() -> None:
    """NumPy takes one at the end of a text for nothing."""
    rows = Rows({"x": text} for text in ("a", "a\0", "a\0b", "a\x01", "b", ""))
    for text, found in (
        ('x = "a\0*"', [1, 2]),
        ('x = "a\x01*"', [3]),
        ('x = "a*"', [0, 1, 2, 3]),
        ('x <= "a\0"', [0, 1, 5]),
        ('x > "a\0b"', [3, 4]),
    ):
        assert rows.found(text) == found


def test_threads_filter_while_rows_are_added() -> None:
    """Each sees the rows that it asked about, and every one of them."""
    rng = random.Random(5)
    rows = Rows({"a": rng.randrange(50), "b": [f"{rng.randrange(300)}"], "c": f"{row}"} for row in range(3_000))
    counts = [rng.randrange(1, 3_000) for _ in range(200)]

    def matching(count: int) -> tuple[int, ...]:
        masks = (rows.columns.mask(parse(text), count) for text in ("a < 25", "b:'7'", "c = 2*"))
        return tuple(int(mask.sum()) for mask in masks)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(matching, counts))
    for count, got in zip(counts, found, strict=True):
        seen = rows.payloads[:count]
        expected = (lambda p: p["a"] < 25, lambda p: p["b"] == ["7"], lambda p: p["c"].startswith("2"))
        assert tuple(sum(map(test, seen)) for test in expected) == got


def test_a_mask_is_the_callers_own() -> None:
    """What is done to it does not change the next answer."""
    rows = Rows([{"a": 1}, {}])
    for text in ("a = 1", "a:*", "a = 1 AND a = 1"):
        rows.columns.mask(parse(text), 2)[:] = True
        assert rows.found(text) == [0]


def test_the_text_that_follows_a_prefix_is_the_next_there_is() -> None:
    """Across the surrogates, which are no text, and past the last character."""
    assert column._following("ab") == "ac"
    assert column._following("a\ud7ff") == "a\ue000"
    assert column._following("a\U0010ffff") == "b"
    assert column._following("\U0010ffff") is None
    assert column._following("") is None
