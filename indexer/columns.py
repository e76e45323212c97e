"""Payload fields as columns in memory, and filters evaluated over them a million rows at a time.

A column (`column.py`) is made when the first filter uses its field, and goes on where it ended when there are more
rows.

Of a million rows, a comparison takes 1 ms, one with a list 11 ms, and with a million distinct texts by their order
15 ms. The first filter on a field takes 4 s of CPU time, nearly all of it to read JSON; a row that is added later,
next to nothing, or 50 ms where arrays of a million distinct values grow (python tests/benchmarks/bench_filters.py).
"""

import json
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from indexer.column import MISSING, Codes, Column, Mask, Part, View
from indexer.comparable import check_comparable, comparisons
from indexer.filters import (
    And,
    Comparison,
    Expression,
    Field,
    Not,
    Operator,
    Or,
    Present,
    UnknownField,
    Value,
    fields,
    shown,
)

Read = Callable[[int, int], Iterable[tuple[int, str]]]

ITEM: Field = ("item",)
MAX_COLUMNS = 64  # of 4 bytes a row and their distinct values; the least recently used one makes room
MAX_NAMED = 20  # fields that an error lists

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
        self._columns: dict[Field, Column] = {}  # the least recently used first
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
        return self._views({field}, count)[field].groups()

    @property
    def nbytes(self) -> int:
        """Bytes of the columns in memory; of texts, what each takes in an array."""
        with self._lock:
            return sum(column.nbytes for column in self._columns.values())

    def _views(self, wanted: set[Field], count: int) -> dict[Field, View]:
        with self._lock:
            # Out of the table while they are read, so that a column that failed in the middle is forgotten.
            known = wanted & self._columns.keys()
            columns = {field: self._columns.pop(field) if field in known else Column() for field in wanted}
            for seen in {column.rows for column in columns.values() if column.rows < count}:
                self._read({field: column for field, column in columns.items() if column.rows == seen}, seen, count)
            self._columns.update(columns)
            while len(self._columns) > MAX_COLUMNS:
                del self._columns[next(iter(self._columns))]
            return {field: column.view(count) for field, column in columns.items()}

    def _read(self, columns: dict[Field, Column], first: int, end: int) -> None:
        """Go through the rows once for all columns that lack the same ones."""
        parts = {field: Part(column.code_of) for field, column in columns.items()}
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
            return MISSING
        payload = payload.get(name, MISSING)
    return payload


def _evaluate(expression: Expression, views: dict[Field, View], count: int) -> Mask:
    match expression:
        case Comparison(field, relation, values):
            return views[field].compared(relation, values)
        case Present(field):
            return views[field].present()
        case Not(part):
            return np.logical_not(_evaluate(part, views, count))
        case And(parts):
            return _joined(np.logical_and, np.ones(count, bool), parts, views)
        case Or(parts):
            return _joined(np.logical_or, np.zeros(count, bool), _gathered(parts), views)


def _gathered(parts: tuple[Expression, ...]) -> tuple[Expression, ...]:
    """The parts of an OR, those that compare one field with values in one: it looks at the rows once for all."""
    values: dict[tuple[Field, Operator], list[Value]] = {}
    others: list[Expression] = []
    for part in parts:
        match part:
            case Comparison(field, "=" | ":" as relation, found):
                values.setdefault((field, relation), []).extend(found)
            case _:
                others.append(part)
    return (*(Comparison(*compared, tuple(found)) for compared, found in values.items()), *others)


def _joined(join: np.ufunc, mask: Mask, parts: tuple[Expression, ...], views: dict[Field, View]) -> Mask:
    for part in parts:
        join(mask, _evaluate(part, views, len(mask)), out=mask)
    return mask
