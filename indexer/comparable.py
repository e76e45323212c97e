"""Which values of a filter a field can be compared with, by the types of what items have there.

TypeMismatch   (a FilterError) a filter compares a field with a value of a type that no item has there
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from indexer.filters import And, Comparison, Expression, FilterError, Not, Or, Value, Written, shown

Type = Literal["null", "boolean", "number", "text", "list", "object"]

_DECIMAL = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)
_SHOWN = 40  # characters of a value that an error repeats


class TypeMismatch(FilterError):
    """No item of the index has, in a field, a value of the type that the filter compares it with.

    Attributes:
        column: of the value in the filter, counted from 1.
    """

    def __init__(self, column: int, problem: str) -> None:
        super().__init__(f"filter, column {column}: {problem}")
        self.column = column


@dataclass(frozen=True)
class Held:
    """What items have in a field.

    Attributes:
        types: of its values.
        of_elements: of what is in those that are lists.
    """

    types: frozenset[Type]
    of_elements: frozenset[Type]


def comparisons(expression: Expression) -> Iterator[Comparison]:
    """The comparisons of an expression, in their order."""
    match expression:
        case Comparison():
            yield expression
        case Not(part):
            yield from comparisons(part)
        case And(parts) | Or(parts):
            for part in parts:
                yield from comparisons(part)


def check_comparable(comparison: Comparison, held: Held) -> None:
    """Make sure that each value of a comparison can be met, as far as types go.

    `!=` is met by values of every other type. Null is of no type: it may be asked for in every field, and where there
    is nothing else, anything may be asked for.

    Args:
        comparison: of a filter that was parsed.
        held: by its field.

    Raises:
        TypeMismatch: a value can't be met; the message says what the field holds and how to write the value.
    """
    met = _met(comparison, held)
    if comparison.operator == "!=" or not met:
        return
    for value, written in zip(comparison.values, comparison.written, strict=True):
        if value is not None and _type_of(value) not in met:
            field, kind = shown(comparison.field), _type_of(value)
            holds = f"{field} holds only {_holdings(comparison, held)}"
            remedy = _remedy(comparison, value, written, met)
            raise TypeMismatch(written.column, f"{written.text[:_SHOWN]} is a {kind}, and {holds}; {remedy}")


def _met(comparison: Comparison, held: Held) -> frozenset[Type]:
    """The types that a comparison finds something of."""
    if comparison.operator == ":":
        return (held.types - {"list"} | held.of_elements) - {"null"}
    return held.types - {"null"}


def _type_of(value: Value) -> Type:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, float) else "text"


def _holdings(comparison: Comparison, held: Held) -> str:
    """The types that a field holds, in words; those in lists where the comparison looks there."""
    elements = sorted(held.of_elements - {"null"}) if comparison.operator == ":" else []
    lists = "lists" + (f" of {_plurals(elements)}" if elements else "")
    return _plurals(sorted(held.types - {"null"})).replace("lists", lists)


def _plurals(types: list[Type]) -> str:
    return " and ".join(f"{name}s" for name in types)


def _remedy(comparison: Comparison, value: Value, written: Written, met: frozenset[Type]) -> str:
    """How to write what was probably meant."""
    field, text = shown(comparison.field), written.text[:_SHOWN]
    if isinstance(value, str) and (
        ("number" in met and _DECIMAL.fullmatch(value)) or ("boolean" in met and value in ("true", "false"))
    ):
        return f"write {value} without quotes"
    if "text" in met:
        return f'write "{text}" for the text'
    if "list" in met and comparison.operator != ":":
        return f"write {field}:{text} for a list that has it"
    if "object" in met:
        return f"compare a field of the object, such as {field}.name"
    simple = sorted(met - {"list"})
    return f"compare it with a {' or a '.join(simple)}" if simple else f"{field}:* asks whether there is any"
