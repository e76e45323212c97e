"""One payload field of every row: a code, which of the field's distinct values the row has.

A comparison looks at the distinct values and then takes its answer for every row by code. A column grows in parts, as
rows are read, and is searched in views, which growing never changes.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.dtypes import StringDType

from indexer.comparable import Held, Type
from indexer.filters import Prefix, Value

Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int32]

# The codes of what is no text and no number; those of texts and numbers follow in the order of their first row.
_ABSENT, _NULL, _FALSE, _TRUE, _LIST, _OBJECT, _FIRST = range(7)
# The type of each code but the first, which no value has; _FIRST stands for texts, and the one after it for numbers.
_TYPES: tuple[Type, ...] = ("null", "null", "boolean", "boolean", "list", "object", "text", "number")
_NEVER = np.iinfo(np.int32).max  # the first row of what no row has
_FEW_RANGES = 4  # up to here, comparing all texts with each costs less than finding each its place
MISSING = object()  # the value of a field that a payload lacks
_CONSTANTS: dict[Any, int] = {None: _NULL, False: _FALSE, True: _TRUE}
_ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Part:
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
        """Take in the value of a row, or that it lacks the field."""
        if value is MISSING:
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


class Column:
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
        """Bytes of its arrays; of texts, what each takes there."""
        arrays = (self._codes, self._element_rows, self._element_codes, self._numbers, self._texts)
        return sum(array.nbytes for array in arrays)

    def append(self, part: Part, rows: int) -> None:
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

    def view(self, count: int) -> "View":
        """It as it is now, of the first `count` rows."""
        values = len(self.code_of)
        return View(
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


@dataclass(frozen=True)
class View:
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
        """Which types the rows have."""
        count = len(self.codes)
        return Held(_types_before(count, self.first_rows), _types_before(count, self.first_element_rows))

    def present(self) -> Mask:
        """Which rows have the field, (count,) bool."""
        return np.not_equal(self.codes, _ABSENT)

    def compared(self, relation: str, values: tuple[Value, ...]) -> Mask:
        """Which rows a comparison with any of some values holds for, (count,) bool."""
        table = _table(self, relation, values)
        # Every code is in the table; "clip" only spares NumPy the check, and half the time.
        mask = table.take(self.codes, mode="clip")
        if relation == ":":
            found = self.element_rows[table.take(self.element_codes, mode="clip")]
            mask[found[found < len(mask)]] = True
        return mask

    def groups(self) -> Codes:
        """A copy of the codes in which 0 stands for null, a list or an object too, which are no groups."""
        codes = self.codes.copy()
        for ungrouped in (_NULL, _LIST, _OBJECT):
            codes[codes == ungrouped] = _ABSENT
        return codes


def _types_before(count: int, first_rows: Codes) -> frozenset[Type]:
    return frozenset(one for one, first in zip(_TYPES, first_rows.tolist(), strict=True) if first < count)


def _table(view: View, relation: str, values: tuple[Value, ...]) -> Mask:
    """Whether a comparison holds, by code; never for code 0, which rows without the field have."""
    table = np.zeros(_FIRST + len(view.numbers), bool)
    if relation in _ORDERS:
        for value in values:
            _mark_ordered(table[_FIRST:], view, relation, value)
    else:
        _mark_equal(table, view, values)
    if relation == "!=":
        np.logical_not(table, out=table)
        table[_ABSENT] = False
    return table


def _mark_equal(table: Mask, view: View, values: tuple[Value, ...]) -> None:
    prefixes = [value.text for value in values if isinstance(value, Prefix)]
    if prefixes:
        table[_FIRST:] = _begins(view, prefixes)
    for value in values:
        if isinstance(value, Prefix):
            continue
        code = view.code_of.get(value, _ABSENT) if isinstance(value, str | float) else _CONSTANTS[value]
        if _ABSENT < code < len(table):  # a code behind the table was given to a row that came after the view
            table[code] = True


def _mark_ordered(table: Mask, view: View, relation: str, value: Value) -> None:
    holds = _ORDERS[relation]
    if isinstance(value, float):
        table |= holds(view.numbers, value)  # NaN, which texts are there, is in no order to anything
    elif isinstance(value, str):  # as of every order that was parsed
        table |= holds(view.texts, _ordered(value)) & np.isnan(view.numbers)


def _begins(view: View, prefixes: list[str]) -> Mask:
    """Which distinct values are texts that begin with one of some prefixes, found without looking at beginnings."""
    ranges = _ranges(prefixes)
    if len(ranges) > _FEW_RANGES:
        bounds = [bound for limits in ranges for bound in limits if bound is not None]
        # As many bounds are at most the text as there are ranges before it, twice, and one more where it is in one.
        begins = np.searchsorted(np.array(bounds, StringDType()), view.texts, side="right") % 2 == 1
    else:
        begins = np.zeros(len(view.texts), bool)
        for start, end in ranges:
            begins |= (view.texts >= start) if end is None else (view.texts >= start) & (view.texts < end)
    mask: Mask = begins & np.isnan(view.numbers)
    return mask


def _ranges(prefixes: list[str]) -> list[tuple[str, str | None]]:
    """What texts that begin with one of some prefixes are in their order: from which, to before which; ascending."""
    ranges: list[tuple[str, str | None]] = []
    covering = None
    for prefix in sorted(map(_ordered, prefixes)):
        if covering is None or not prefix.startswith(covering):
            covering = prefix
            ranges.append((prefix, _following(prefix)))
    return ranges


def _following(prefix: str) -> str | None:
    """The first text after all that begin with `prefix`; None where there is none."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return None
    after = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if after == 0xD800 else after)  # what lies between is no text
