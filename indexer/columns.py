"""Payload fields as columns in memory, and filters evaluated over them a million rows at a time.

A column is made when the first filter uses its field, and goes on where it ended when there are more rows. It holds a
code for each row: which of the field's distinct values it has. A comparison looks at the distinct values and then
takes its answer for every row by code.

Of a million rows, a comparison takes 1 ms, one with a list 11 ms, and with a million distinct texts by their order
15 ms. The first filter on a field takes 4 s of CPU time, nearly all of it to read JSON; a row that is added later,
next to nothing, or 50 ms where arrays of a million distinct values grow (python tests/benchmarks/bench_filters.py).
"""

import json
import operator
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.dtypes import StringDType

from indexer.comparable import Held, Type, check_comparable, comparisons
from indexer.filters import (
    And,
    Comparison,
    Expression,
    Field,
    Not,
    Or,
    Prefix,
    Present,
    UnknownField,
    Value,
    fields,
    shown,
)

Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int32]
Read = Callable[[int, int], Iterable[tuple[int, str]]]

ITEM: Field = ("item",)
MAX_COLUMNS = 64  # of 4 bytes a row and their distinct values; the least recently used one makes room
MAX_NAMED = 20  # fields that an error lists

# The codes of what is no text and no number; those of texts and numbers follow in the order of their first row.
_ABSENT, _NULL, _FALSE, _TRUE, _LIST, _OBJECT, _FIRST = range(7)
# The type of each code but the first, which no value has; _FIRST stands for texts, and the one after it for numbers.
_TYPES: tuple[Type, ...] = ("null", "null", "boolean", "boolean", "list", "object", "text", "number")
_NEVER = np.iinfo(np.int32).max  # the first row of what no row has
_MISSING = object()
_CONSTANTS: dict[Any, int] = {None: _NULL, False: _FALSE, True: _TRUE}
_ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

# Every number a float, as the filter's are: an integer of any length is one too, if need be an infinite one.
_decode = json.JSONDecoder(parse_int=float).decode


class Columns:
    """The payload fields of an index's rows, each a column from its first use on; safe for several threads.

    Rows are only ever added: an item whose payload changes gets a new row.
    """

    def __init__(self, payloads: Read, items: Read) -> None:
        """Nothing is read yet.

        Args:
            payloads: gives row and payload (the JSON text of an object) of rows `first` to `end` (exclusive), in any
                order, those without a payload left out.
            items: gives row and item id of those rows.
        """
        self._payloads = payloads
        self._items = items
        self._columns: dict[Field, _Column] = {}  # the least recently used first
        self._names: set[str] = set()  # of payload fields, as far as they were seen and an error can list them
        self._lock = threading.Lock()

    def mask(self, expression: Expression, count: int) -> Mask:
        """Which rows an expression holds for.

        Args:
            expression: of `filters.parse`.
            count: how many rows there are; those that were not seen yet are read.

        Returns:
            (count,) bool.
        """
        return _evaluate(expression, self._views(fields(expression), count), count)

    def check(self, expression: Expression, count: int) -> None:
        """Make sure that some of `count` rows have each field of an expression, and the types it is compared with.

        Raises:
            UnknownField: none has a field; the message lists fields that there are.
            TypeMismatch: none has a type there; the message says which types there are.
        """
        held = {field: view.held for field, view in self._views(fields(expression), count).items()}
        for field, there in held.items():
            if not there.types:
                names = [shown((name,)) for name in sorted(self._names)[:MAX_NAMED]]
                known = ", ".join(["item", *names]) if names else "item alone, as no item has a payload"
                raise UnknownField(f"no item of the index has a field {shown(field)}; fields are: {known}")
        for comparison in comparisons(expression):
            check_comparable(comparison, held[comparison.field])

    def codes(self, field: Field, count: int) -> Codes:
        """The values of a field as codes to group by: equal for equal values.

        Returns:
            (count,) int32; 0 where a row lacks the field, or it is null, a list or an object, which are no groups.
        """
        codes = self._views({field}, count)[field].codes.copy()
        for ungrouped in (_NULL, _LIST, _OBJECT):
            codes[codes == ungrouped] = _ABSENT
        return codes

    @property
    def nbytes(self) -> int:
        """Bytes of the columns in memory; of texts, what each takes in an array."""
        with self._lock:
            return sum(column.nbytes for column in self._columns.values())

    def _views(self, wanted: set[Field], count: int) -> "dict[Field, _View]":
        with self._lock:
            # Out of the table while they are read, so that a column that failed in the middle is forgotten.
            known = wanted & self._columns.keys()
            columns = {field: self._columns.pop(field) if field in known else _Column() for field in wanted}
            for seen in {column.rows for column in columns.values() if column.rows < count}:
                self._read({field: column for field, column in columns.items() if column.rows == seen}, seen, count)
            self._columns.update(columns)
            while len(self._columns) > MAX_COLUMNS:
                del self._columns[next(iter(self._columns))]
            return {field: column.view(count) for field, column in columns.items()}

    def _read(self, columns: "dict[Field, _Column]", first: int, end: int) -> None:
        """Go through the rows once for all columns that lack the same ones."""
        parts = {field: _Part(column.code_of) for field, column in columns.items()}
        if ITEM in parts:
            for row, item in self._items(first, end):
                parts[ITEM].add(row, item)
        of_payload = [(field, part) for field, part in parts.items() if field != ITEM]
        if of_payload:
            for row, text in self._payloads(first, end):
                payload = _decode(text)
                self._learn_names(payload)
                for field, part in of_payload:
                    part.add(row, _value(payload, field))
        for field, column in columns.items():
            column.append(parts[field], end)

    def _learn_names(self, payload: dict[str, Any]) -> None:
        if len(self._names) < MAX_NAMED:
            self._names.update(payload)


def _value(payload: Any, field: Field) -> Any:
    for name in field:
        if not isinstance(payload, dict):
            return _MISSING
        payload = payload.get(name, _MISSING)
    return payload


class _Part:
    """Rows that are to be added to a column: their codes, the elements of their lists, the values they bring.

    Attributes:
        rows, codes: of the rows that have the field.
        element_rows, element_codes: the elements of lists, one after the other.
        values: those that `code_of` did not know, in the order of their codes.
    """

    def __init__(self, code_of: dict[str | float, int]) -> None:
        self.rows: list[int] = []
        self.codes: list[int] = []
        self.element_rows: list[int] = []
        self.element_codes: list[int] = []
        self.values: list[str | float] = []
        self._code_of = code_of

    def add(self, row: int, value: Any) -> None:
        if value is _MISSING:
            return
        self.rows.append(row)
        self.codes.append(self._code(value))
        if isinstance(value, list):
            self.element_rows.extend([row] * len(value))
            self.element_codes.extend(map(self._code, value))

    def _code(self, value: Any) -> int:
        if isinstance(value, str | float):
            code = self._code_of.get(value)
            return self._new_code(value) if code is None else code
        if isinstance(value, list):
            return _LIST
        return _OBJECT if isinstance(value, dict) else _CONSTANTS[value]

    def _new_code(self, value: str | float) -> int:
        code = _FIRST + len(self._code_of)
        self._code_of[value] = code
        self.values.append(value)
        return code


@dataclass(frozen=True)
class _View:
    """A column as it was when a search began; what is added later lies behind the ends of these arrays.

    Attributes:
        codes: (count,) of the rows.
        element_rows, element_codes: of the elements of lists.
        numbers: (V,) the distinct values by code - _FIRST; NaN for texts.
        texts: (V,) likewise; empty for numbers.
        code_of: of a text or number.
        first_rows, first_element_rows: of each of _TYPES, the first that has it, and that has it in a list.
    """

    codes: Codes
    element_rows: Codes
    element_codes: Codes
    numbers: npt.NDArray[np.float64]
    texts: npt.NDArray[Any]
    code_of: dict[str | float, int]
    first_rows: Codes
    first_element_rows: Codes

    @property
    def held(self) -> Held:
        count = len(self.codes)
        return Held(_types_before(count, self.first_rows), _types_before(count, self.first_element_rows))


def _types_before(count: int, first_rows: Codes) -> frozenset[Type]:
    return frozenset(one for one, first in zip(_TYPES, first_rows.tolist(), strict=True) if first < count)


class _Column:
    """One field of every row; grows, and never changes what it has. `rows` are seen."""

    def __init__(self) -> None:
        self.rows = 0
        self.code_of: dict[str | float, int] = {}
        self._codes = np.zeros(0, np.int32)
        self._element_rows = np.zeros(0, np.int32)
        self._element_codes = np.zeros(0, np.int32)
        self._numbers = np.zeros(0, np.float64)
        self._texts = np.zeros(0, StringDType())
        self._elements = 0
        self._first_rows = np.full(len(_TYPES), _NEVER, np.int32)
        self._first_element_rows = self._first_rows.copy()

    @property
    def nbytes(self) -> int:
        arrays = (self._codes, self._element_rows, self._element_codes, self._numbers, self._texts)
        return sum(array.nbytes for array in arrays)

    def append(self, part: _Part, rows: int) -> None:
        """Add what was read of the rows from the last one seen to `rows`."""
        elements, values = self._elements + len(part.element_rows), len(self.code_of)
        known = values - len(part.values)
        self._codes = _roomy(self._codes, rows)
        self._codes[part.rows] = part.codes
        self._element_rows = _roomy(self._element_rows, elements)
        self._element_rows[self._elements : elements] = part.element_rows
        self._element_codes = _roomy(self._element_codes, elements)
        self._element_codes[self._elements : elements] = part.element_codes
        self._numbers = _roomy(self._numbers, values)
        self._numbers[known:values] = [np.nan if isinstance(value, str) else value for value in part.values]
        self._texts = _roomy(self._texts, values)
        self._texts[known:values] = [_sound(value) if isinstance(value, str) else "" for value in part.values]
        # Rows only follow, so these say of every view alike what it has, whenever it was made.
        np.minimum.at(self._first_rows, self._types_of(part.codes), part.rows)
        np.minimum.at(self._first_element_rows, self._types_of(part.element_codes), part.element_rows)
        self.rows, self._elements = rows, elements

    def _types_of(self, codes: list[int]) -> Codes:
        """The places in _TYPES of some codes."""
        places = np.array(codes, np.int32)
        valued = places >= _FIRST
        places[valued] = _FIRST + ~np.isnan(self._numbers[places[valued] - _FIRST])
        return places

    def view(self, count: int) -> _View:
        values = len(self.code_of)
        return _View(
            self._codes[:count],
            self._element_rows[: self._elements],
            self._element_codes[: self._elements],
            self._numbers[:values],
            self._texts[:values],
            self.code_of,
            self._first_rows,
            self._first_element_rows,
        )


def _roomy(array: Any, size: int) -> Any:
    """An array of at least `size` that begins as `array` does: a larger one has room for as many again."""
    if size <= len(array):
        return array
    larger = np.zeros(max(size, 2 * len(array)), array.dtype)
    larger[: len(array)] = array
    return larger


def _sound(text: str) -> str:
    """A text as NumPy compares it.

    JSON can hold halves of surrogate pairs, which UTF-8 and so NumPy's texts and every filter can't.
    """
    return _ordered(text.encode(errors="replace").decode())


def _ordered(text: str) -> str:
    """A text without NUL, which NumPy takes for the end, of the same order among others and the same beginnings."""
    return text.replace("\x01", "\x01\x02").replace("\0", "\x01\x01")


def _evaluate(expression: Expression, views: dict[Field, _View], count: int) -> Mask:
    match expression:
        case Comparison(field, relation, values):
            return _compared(views[field], relation, values)
        case Present(field):
            return np.not_equal(views[field].codes, _ABSENT)
        case Not(part):
            return np.logical_not(_evaluate(part, views, count))
        case And(parts):
            return _joined(np.logical_and, np.ones(count, bool), parts, views)
        case Or(parts):
            return _joined(np.logical_or, np.zeros(count, bool), parts, views)


def _joined(join: np.ufunc, mask: Mask, parts: tuple[Expression, ...], views: dict[Field, _View]) -> Mask:
    for part in parts:
        join(mask, _evaluate(part, views, len(mask)), out=mask)
    return mask


def _compared(view: _View, relation: str, values: tuple[Value, ...]) -> Mask:
    table = _table(view, relation, values)
    # Every code is in the table; "clip" only spares NumPy the check, and half the time.
    mask = table.take(view.codes, mode="clip")
    if relation == ":":
        found = view.element_rows[table.take(view.element_codes, mode="clip")]
        mask[found[found < len(mask)]] = True
    return mask


def _table(view: _View, relation: str, values: tuple[Value, ...]) -> Mask:
    """Whether a comparison holds, by code; never for code 0, which rows without the field have."""
    table = np.zeros(_FIRST + len(view.numbers), bool)
    for value in values:
        if relation in _ORDERS:
            _mark_ordered(table[_FIRST:], view, relation, value)
        else:
            _mark_equal(table, view, value)
    if relation == "!=":
        np.logical_not(table, out=table)
        table[_ABSENT] = False
    return table


def _mark_equal(table: Mask, view: _View, value: Value) -> None:
    if isinstance(value, Prefix):
        table[_FIRST:] |= _begins(view, value.text)
        return
    code = view.code_of.get(value, _ABSENT) if isinstance(value, str | float) else _CONSTANTS[value]
    if _ABSENT < code < len(table):  # a code behind the table was given to a row that came after the view
        table[code] = True


def _mark_ordered(table: Mask, view: _View, relation: str, value: Value) -> None:
    holds = _ORDERS[relation]
    if isinstance(value, float):
        table |= holds(view.numbers, value)  # NaN, which texts are there, is in no order to anything
    elif isinstance(value, str):  # as of every order that was parsed
        table |= holds(view.texts, _ordered(value)) & np.isnan(view.numbers)


def _begins(view: _View, prefix: str) -> Mask:
    """Which distinct values are texts that begin so: a range of their order, found without looking at beginnings."""
    prefix = _ordered(prefix)
    mask: Mask = np.isnan(view.numbers) & (view.texts >= prefix)
    end = _following(prefix)
    return mask if end is None else mask & (view.texts < end)


def _following(prefix: str) -> str | None:
    """The first text after all that begin with `prefix`; None where there is none."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return None
    after = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if after == 0xD800 else after)  # what lies between is no text
