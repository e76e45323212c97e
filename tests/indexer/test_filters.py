"""The filter language: what is read as what, and that the rest is refused with its column."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from indexer import filters
from indexer.filters import (
    And,
    Comparison,
    Expression,
    FilterError,
    FilterSyntaxError,
    Not,
    Or,
    Prefix,
    Present,
    Written,
    parse,
)

A, B, C = (Comparison((name,), "=", (1.0,)) for name in "abc")

READ: list[tuple[str, Expression]] = [
    ("", And(())),
    (" \t\n", And(())),
    ("a=1", A),
    (" a  =  1 ", A),
    ("a = 1 AND b = 1 OR c = 1", And((A, Or((B, C))))),
    ("(a = 1 AND b = 1) OR c = 1", Or((And((A, B)), C))),
    ("NOT a = 1 OR b = 1", Or((Not(A), B))),
    ("-a=1 AND NOT(b=1)", And((Not(A), Not(B)))),
    ("- (a = 1 OR -b = 1)", Not(Or((A, Not(B))))),
    ("((a = 1))", A),
    ("a != -1.5e3", Comparison(("a",), "!=", (-1500.0,))),
    ("a<=.5", Comparison(("a",), "<=", (0.5,))),
    ("a >= 2026-01-02", Comparison(("a",), ">=", ("2026-01-02",))),
    ("a = true", Comparison(("a",), "=", (True,))),
    ("a = false", Comparison(("a",), "=", (False,))),
    ("a = null", Comparison(("a",), "=", (None,))),
    ('a = "true"', Comparison(("a",), "=", ("true",))),
    ("a = '1'", Comparison(("a",), "=", ("1",))),
    ('a = ""', Comparison(("a",), "=", ("",))),
    ('a = "AND"', Comparison(("a",), "=", ("AND",))),
    ('a = "x \\"y\\" \\\\ \\* \'z"', Comparison(("a",), "=", ('x "y" \\ * \'z',))),
    ("a = é漢😀", Comparison(("a",), "=", ("é漢😀",))),
    ("a = nan", Comparison(("a",), "=", ("nan",))),
    ("a = ٣", Comparison(("a",), "=", ("٣",))),
    ("a = wr*", Comparison(("a",), "=", (Prefix("wr"),))),
    ('a != "wr en*"', Comparison(("a",), "!=", (Prefix("wr en"),))),
    ("a = *", Comparison(("a",), "=", (Prefix(""),))),
    ("a:b", Comparison(("a",), ":", ("b",))),
    ("a:2", Comparison(("a",), ":", (2.0,))),
    ("a:*", Present(("a",))),
    ('a:"*"', Comparison(("a",), ":", (Prefix(""),))),
    ("a:b*", Comparison(("a",), ":", (Prefix("b"),))),
    ("a IN (1)", A),
    ("a IN(1, 'x y',null,w*)", Comparison(("a",), "=", (1.0, "x y", None, Prefix("w")))),
    ("a.b.c = 1", Comparison(("a", "b", "c"), "=", (1.0,))),
    ('a."b c.d".e = 1', Comparison(("a", "b c.d", "e"), "=", (1.0,))),
    ('"NOT" = 1', Comparison(("NOT",), "=", (1.0,))),
    ("ANDa = 1", Comparison(("ANDa",), "=", (1.0,))),
    ("and = 1", Comparison(("and",), "=", (1.0,))),
    ("a-b = c-d", Comparison(("a-b",), "=", ("c-d",))),
]

REFUSED: list[tuple[str, int, str]] = [
    ("a", 2, "expected one of = != < <= > >= : IN after the field a; got the end"),
    ("a=", 3, "expected a value"),
    ("a = ", 5, "got the end"),
    ("a == 1", 4, "got ="),
    ("a ! 1", 3, "expected one of"),
    ("= 1", 1, "expected the name of a field; got ="),
    ("a = 1 b = 2", 7, "expected AND, OR or the end; got b"),
    ("a = 1 and b = 2", 7, "expected AND, OR or the end; got and; write operators in capitals: AND"),
    ("(a = 1 Or b = 2)", 8, "expected AND, OR or ); got Or; write operators in capitals: OR"),
    ("a in (1, 2)", 3, "IN after the field a; got in; write operators in capitals: IN"),
    ("a = 1 AND not b = 2", 11, "not is no operator; write it in capitals: NOT"),
    ("Not(a = 1)", 1, "Not is no operator; write it in capitals: NOT"),
    ("a = 1 not", 7, "expected AND, OR or the end; got not"),
    ("a = 1 AND", 10, "expected the name of a field; got the end"),
    ("a = 1 OR OR b = 1", 10, "got OR"),
    ("NOT NOT a = 1", 5, "got NOT"),
    ("(a = 1", 7, "expected AND, OR or ); got the end"),
    ("a = 1)", 6, "expected AND, OR or the end; got )"),
    ("()", 2, "expected the name of a field; got )"),
    ("a = (1)", 5, "expected a value"),
    ("a = NOT", 5, "got NOT"),
    ('a = "x', 5, 'the text that begins with " has no end'),
    ("a = 'x\\'", 5, "the text that begins with ' has no end"),
    ('"a = 1', 1, "has no end"),
    ('a = "x\\n"', 7, "\\n means nothing"),
    ('a = "x*y"', 7, "* can only end a text"),
    ("a = *y", 5, "* can only end a text"),
    ('"a*" = 1', 1, "the name of a field can't end in *"),
    ("a*=1", 2, "expected one of"),
    ("a. = 1", 4, "expected the name of a field"),
    (".a = 1", 1, "expected the name of a field"),
    ("a < true", 5, "< compares with a number or a whole text only"),
    ("a >= null", 6, ">= compares with a number or a whole text only"),
    ("a > x*", 5, "> compares with a number or a whole text only"),
    ("a = 1e999", 5, "the number 1e999 is beyond the 64-bit floats"),
    ("a IN 1", 6, "expected ( after IN; got 1"),
    ("a IN ()", 7, "expected a value"),
    ("a IN (1", 8, "expected , or ); got the end"),
    ("a IN (1 2)", 9, "expected , or ); got 2"),
    ("IN (1)", 1, "expected the name of a field; got IN"),
    ("(" * 51 + "a=1" + ")" * 51, 51, "parentheses are more than 50 deep"),
    ("a = " + "x" * 4093, 1, "it has 4,097 bytes; at most 4,096 are taken"),
    ("a = " + "é" * 2047, 1, "it has 4,098 bytes"),
]


@pytest.mark.parametrize(("text", "expression"), READ)
def test_a_filter_means_its_expression(text: str, expression: Expression) -> None:
    """By the grammar in the module's docstring."""
    assert expression == parse(text)


def test_a_comparison_knows_how_its_values_are_written() -> None:
    """For errors: the column of each, and its characters."""
    either = parse("a = 'é*' OR b.c IN (1.50, \n wren)")
    assert isinstance(either, Or)
    written = [part.written for part in either.parts if isinstance(part, Comparison)]
    assert written == [(Written(5, "'é*'"),), (Written(21, "1.50"), Written(29, "wren"))]


@pytest.mark.parametrize(("text", "column", "problem"), REFUSED)
def test_a_mistake_is_refused_with_its_column(text: str, column: int, problem: str) -> None:
    """Counted from 1, with what was expected and what is there."""
    with pytest.raises(FilterSyntaxError) as caught:
        parse(text)
    assert column == caught.value.column
    assert str(caught.value).startswith(f"filter, column {column}: ")
    assert problem in str(caught.value)


def test_the_deepest_and_longest_filters_are_read() -> None:
    """50 parentheses and 4096 bytes, the limits themselves."""
    assert parse("(" * 50 + "a=1" + ")" * 50) == A
    assert Comparison(("a",), "=", ("x" * 4092,)) == parse("a = " + "x" * 4092)
    assert Or((A,) * 500) == parse(" OR ".join(["a=1"] * 500))


@settings(max_examples=400, derandomize=True, database=None, deadline=None)
@given(
    st.text()
    | st.lists(
        st.sampled_from(
            ["a", "=", " ", "(", ")", "AND", "OR", "NOT", "IN", "-", ":", "*", '"', "'", "\\", ".", ",", "1", "<"]
        ),
        max_size=30,
    ).map("".join)
)
@example("\ud800 = '\ud800'")
@example("\0 = \0")
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    """Never another exception, and a column that lies in the text or right behind it."""
    try:
        parse(text)
        column = 1
    except FilterSyntaxError as error:
        column = error.column
    assert 1 <= column <= len(text) + 1


FIELDS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5), min_size=1, max_size=3)


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(FIELDS.map(tuple))
@example(("a", "b c", "d.e", "AND", "*", '"', "\\", "-x"))
def test_a_field_is_shown_as_a_filter_writes_it(field: filters.Field) -> None:
    """Names that are no bare words come in quotes."""
    assert field == filters.parse_field(filters.shown(field))


@pytest.mark.parametrize("text", ["", "a b", "a = 1", "a.", "AND", '"a'])
def test_what_is_no_field_is_refused(text: str) -> None:
    """As a filter would be."""
    with pytest.raises(FilterSyntaxError):
        filters.parse_field(text)


def test_the_fields_of_an_expression_are_all_that_it_names() -> None:
    """Each once."""
    assert {("a",), ("b", "c"), ("d",)} == filters.fields(parse("a=1 AND (b.c:* OR NOT d IN (1, 2)) AND a<3"))


def test_all_errors_are_value_errors_of_one_tree() -> None:
    """What a server catches."""
    assert issubclass(FilterSyntaxError, FilterError)
    assert issubclass(filters.UnknownField, FilterError)
    assert issubclass(FilterError, ValueError)
