r"""The filter language of a search: a part of AIP-160 (https://google.aip.dev/160).

    filter      = [expression]                              nothing: every item
    expression  = factor {"AND" factor}
    factor      = term {"OR" term}                          OR binds closer than AND, as in AIP-160
    term        = ["NOT" | "-"] ("(" expression ")" | restriction)
    restriction = field ("=" | "!=" | "<" | "<=" | ">" | ">=") value
                | field "IN" "(" value {"," value} ")"      = one of them; not in AIP-160, which has no such thing
                | field ":" (value | "*")
    field       = name {"." name}                           a.b is b in the object a; item is the item's id
    name        = bare | quoted
    value       = number | "true" | "false" | "null" | bare | quoted
    quoted      = text in " or ', where \ stands before ", ', \ and * that are meant

A text that ends in * is one that begins so. Bare words have no blanks and none of ( ) < > = ! : , " ' and \.

What holds:
- `=` where the field is that value, of that type; `!=` where the field is there and not so.
- `<` and its like between two numbers, or two texts by their code points.
- `f:v` where the field is v or a list that has v; `f:*` where the field is there, be it null.
- Nothing of these where the item lacks the field; NOT of it then holds.
- Numbers are 64-bit floats.
- A comparison that no item can meet, by the types of the field's values, is refused; see `indexer.comparable`.

FilterError             a filter can't be used
├── FilterSyntaxError   it is not of this language, too long or too deep; knows the column
├── UnknownField        no item has a field that it names
└── TypeMismatch        (of `indexer.comparable`) no item has a value of the type that a field is compared with
"""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Literal, NoReturn

MAX_BYTES = 4096  # nobody writes more by hand, and ids by the thousand are no filter
MAX_DEPTH = 50  # of parentheses; far below the depth at which Python's own stack ends

Field = tuple[str, ...]
Operator = Literal["=", "!=", "<", "<=", ">", ">=", ":"]

_KEYWORDS = frozenset({"AND", "OR", "NOT", "IN"})
_CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
_SPACE = re.compile(r"\s*")
_BARE = re.compile(r"[^\s()<>=!:,\"'\\]+")
_NAME = re.compile(r"[^\s()<>=!:,\"'\\.*-][^\s()<>=!:,\"'\\.*]*")
_QUOTED = re.compile(r"([\"'])((?:(?!\1)[^\\]|\\.)*)\1", re.DOTALL)
_PIECE = re.compile(r"\\(?P<escaped>.)|(?P<star>\*)|(?P<plain>[^\\*]+)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_COMPARATOR = re.compile(r"<=|>=|!=|[<>=:]")


class FilterError(ValueError):
    """A filter can't be used; the message says why."""


class FilterSyntaxError(FilterError):
    """A filter is not of the language.

    Attributes:
        column: of the character where it goes wrong, counted from 1.
        problem: what is wrong there.
    """

    def __init__(self, column: int, problem: str) -> None:
        super().__init__(f"filter, column {column}: {problem}")
        self.column = column
        self.problem = problem


class UnknownField(FilterError):
    """No item of the index has a field that the filter names."""


@dataclass(frozen=True)
class Prefix:
    """Stands for every text that begins with `text`."""

    text: str


Value = str | float | bool | None | Prefix


@dataclass(frozen=True)
class Written:
    """How a value stands in a filter.

    Attributes:
        column: of its first character, counted from 1.
        text: its characters, quotes and escapes among them.
    """

    column: int
    text: str


@dataclass(frozen=True)
class Comparison:
    """A field compared with values; holds where it does with one of them.

    Attributes:
        values: one, or several for `=`. Numbers are float.
        written: each of them as the filter has it; of no weight for what the comparison means.
    """

    field: Field
    operator: Operator
    values: tuple[Value, ...]
    written: tuple[Written, ...] = dataclasses.field(default=(), compare=False)


@dataclass(frozen=True)
class Present:
    """The field is there."""

    field: Field


@dataclass(frozen=True)
class And:
    """Every part holds; without parts it holds for every item."""

    parts: "tuple[Expression, ...]"


@dataclass(frozen=True)
class Or:
    """Some part holds."""

    parts: "tuple[Expression, ...]"


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: "Expression"


Expression = Comparison | Present | And | Or | Not


def parse(text: str) -> Expression:
    """The expression that a filter says; of a blank one, what holds for every item.

    Args:
        text: at most 4096 bytes of UTF-8, with parentheses at most 50 deep.

    Raises:
        FilterSyntaxError: it is not of the language of this module.
    """
    return _Parser(_checked(text)).filter()


def parse_field(text: str) -> Field:
    """A field as filters write it, such as `a.b`, and nothing else.

    Raises:
        FilterSyntaxError: it is none.
    """
    return _Parser(_checked(text)).field_alone()


def fields(expression: Expression) -> set[Field]:
    """The fields that an expression names."""
    match expression:
        case Comparison(field=field) | Present(field=field):
            return {field}
        case Not(part):
            return fields(part)
        case And(parts) | Or(parts):
            return set().union(*map(fields, parts))


def shown(field: Field) -> str:
    """A field as filters write it."""
    return ".".join(name if _is_bare_name(name) else _quote(name) for name in field)


def _checked(text: str) -> str:
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_BYTES:
        raise FilterSyntaxError(1, f"it has {size:,} bytes; at most {MAX_BYTES:,} are taken")
    return text


class _Parser:
    """Recursive descent, one method a rule of the grammar; `_at` is the next character's place."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def filter(self) -> Expression:
        if self._ends():
            return And(())
        expression = self._expression()
        if not self._ends():
            self._expected("AND, OR or the end")
        return expression

    def field_alone(self) -> Field:
        field = self._field()
        if not self._ends():
            self._expected(f"the end after the field {shown(field)}")
        return field

    def _expression(self) -> Expression:
        parts = [self._factor()]
        while self._keyword("AND"):
            parts.append(self._factor())
        return And(tuple(parts)) if len(parts) > 1 else parts[0]

    def _factor(self) -> Expression:
        parts = [self._term()]
        while self._keyword("OR"):
            parts.append(self._term())
        return Or(tuple(parts)) if len(parts) > 1 else parts[0]

    def _term(self) -> Expression:
        negated = self._keyword("NOT") or self._character("-")
        simple = self._nested() if self._character("(") else self._restriction()
        return Not(simple) if negated else simple

    def _nested(self) -> Expression:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise FilterSyntaxError(self._at, f"parentheses are more than {MAX_DEPTH} deep")
        expression = self._expression()
        if not self._character(")"):
            self._expected("AND, OR or )")
        self._depth -= 1
        return expression

    def _restriction(self) -> Expression:
        column = self._column()
        field = self._field()
        if self._keyword("IN"):
            found = self._values()
            return Comparison(field, "=", tuple(value for value, _ in found), tuple(written for _, written in found))
        comparator = self._match(_COMPARATOR)
        if comparator is None:
            if shown(field).upper() == "NOT":
                raise FilterSyntaxError(column, f"{field[0]} is no operator; write it in capitals: NOT")
            self._expected(f"one of = != < <= > >= : IN after the field {shown(field)}")
        operator: Operator = comparator[0]  # type: ignore[assignment] # the pattern's alternatives are the operators
        if operator == ":" and self._stands_alone("*"):
            return Present(field)
        value, written = self._value()
        if operator[0] in "<>" and not isinstance(value, str | float):
            raise FilterSyntaxError(written.column, f"{operator} compares with a number or a whole text only")
        return Comparison(field, operator, (value,), (written,))

    def _field(self) -> Field:
        names = [self._name()]
        while self._text.startswith(".", self._at):
            self._at += 1
            names.append(self._name())
        return tuple(names)

    def _name(self) -> str:
        column = self._column()
        quoted = self._match(_QUOTED)
        if quoted:
            name = self._unquoted(quoted)
            if isinstance(name, Prefix):
                raise FilterSyntaxError(column, "the name of a field can't end in *; write \\* for the character")
            return name
        bare = _NAME.match(self._text, self._at)
        if bare is None or bare[0] in _KEYWORDS:
            self._expected("the name of a field")
        self._at = bare.end()
        return bare[0]

    def _values(self) -> list[tuple[Value, Written]]:
        if not self._character("("):
            self._expected("( after IN")
        values = [self._value()]
        while self._character(","):
            values.append(self._value())
        if not self._character(")"):
            self._expected(", or )")
        return values

    def _value(self) -> tuple[Value, Written]:
        column = self._column()
        value = self._constant()
        return value, Written(column, self._text[column - 1 : self._at])

    def _constant(self) -> Value:
        quoted = self._match(_QUOTED)
        if quoted:
            return self._unquoted(quoted)
        bare = _BARE.match(self._text, self._at)
        if bare is None or bare[0] in _KEYWORDS:
            self._expected("a value: a number, true, false, null, a word or a quoted text")
        value = self._word(bare)
        self._at = bare.end()
        return value

    def _word(self, bare: re.Match[str]) -> Value:
        word = bare[0]
        if word in _CONSTANTS:
            return _CONSTANTS[word]
        if not _NUMBER.fullmatch(word):
            return _with_wildcard(word, bare.start())
        number = float(word)
        if not math.isfinite(number):
            raise FilterSyntaxError(self._column(), f"the number {word[:40]} is beyond the 64-bit floats")
        return number

    def _unquoted(self, quoted: re.Match[str]) -> str | Prefix:
        return _with_wildcard(quoted[2], quoted.start(2))

    def _stands_alone(self, character: str) -> bool:
        self._skip()
        bare = _BARE.match(self._text, self._at)
        return bare is not None and bare[0] == character and self._character(character)

    def _keyword(self, word: str) -> bool:
        self._skip()
        bare = _BARE.match(self._text, self._at)
        if bare is None or bare[0] != word:
            return False
        self._at = bare.end()
        return True

    def _character(self, character: str) -> bool:
        self._skip()
        found = self._text.startswith(character, self._at)
        self._at += found
        return found

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self._skip()
        match = pattern.match(self._text, self._at)
        if match:
            self._at = match.end()
        return match

    def _ends(self) -> bool:
        self._skip()
        return self._at == len(self._text)

    def _skip(self) -> None:
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space else self._at

    def _column(self) -> int:
        self._skip()
        return self._at + 1

    def _expected(self, what: str) -> NoReturn:
        column = self._column()
        rest = self._text[self._at :]
        if rest[:1] in ('"', "'") and not _QUOTED.match(rest):
            raise FilterSyntaxError(column, f"the text that begins with {rest[0]} has no end")
        bare = _BARE.match(rest)
        got = bare[0] if bare else rest[:1]
        meant = got.upper() if got.upper() in _KEYWORDS and got.upper() in what else None
        remedy = f"; write operators in capitals: {meant}" if meant else ""
        raise FilterSyntaxError(column, f"expected {what}; got {got[:40] or 'the end'}{remedy}")


def _with_wildcard(written: str, start: int) -> str | Prefix:
    """What a text means as it is written from place `start` of the filter: escapes resolved, a last * as Prefix."""
    text = ""
    for piece in _PIECE.finditer(written):
        column = start + piece.start() + 1
        if piece["star"]:
            if piece.end() < len(written):
                raise FilterSyntaxError(column, "* can only end a text; write \\* in quotes for the character")
            return Prefix(text)
        if piece["escaped"] and piece["escaped"] not in "\"'\\*":
            raise FilterSyntaxError(column, f"\\{piece['escaped']} means nothing; \\ is for \" ' \\ and * alone")
        text += piece["escaped"] or piece["plain"]
    return text


def _is_bare_name(name: str) -> bool:
    return name not in _KEYWORDS and _NAME.fullmatch(name) is not None


def _quote(name: str) -> str:
    return '"' + re.sub(r"([\"\\*])", r"\\\1", name) + '"'
