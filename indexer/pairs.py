"""Labels that are pairs of images, the same or different: read from a table, and checked against one another.

PairsError   a row is not a pair, or rows contradict each other
"""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from indexer.tables import Table

PAIR_COLUMNS = ("path_a", "path_b", "relation")
_RELATIONS = ("same", "different")
_NAMED = 5  # of the contradictions of a table: enough to see what is wrong
_ENDS = 4  # links at either end of a chain that are named: those of a film's frames are thousands


class PairsError(ValueError):
    """A table of pairs can't be used; the message names it and where in it."""


@dataclass(frozen=True)
class Pairs:
    """What a table of pairs says of items that are there.

    Attributes:
        same, different: pairs of items, each in order, with the first row that has them, from 0.
        thing_of: the number of the thing that each item shows: items linked by `same` share one.
        unknown: paths that are no item's, as often as they stand in the table.
        repeated: rows that say what an earlier one said.
    """

    same: Mapping[tuple[str, str], int]
    different: Mapping[tuple[str, str], int]
    thing_of: Mapping[str, int]
    unknown: tuple[str, ...]
    repeated: int


def pairs_of(table: Path | str, columns: Table, find: Callable[[str], str | None]) -> Pairs:
    """The pairs of a table that was read.

    Args:
        table: its path, or what else to call it in messages.
        columns: what it has of PAIR_COLUMNS.
        find: the item of a path; None where there is none.

    Raises:
        PairsError: see the module's outline.
    """
    same, different, unknown, repeated = _Links(), _Links(), list[str](), 0
    for row, (path_a, path_b, relation) in enumerate(zip(*(columns[name] for name in PAIR_COLUMNS), strict=True)):
        if relation not in _RELATIONS:
            raise PairsError(f"{table}, {columns.place(row)}: relation is {relation!r}; it must be same or different")
        a, b = find(path_a), find(path_b)
        unknown += [path for path, item in ((path_a, a), (path_b, b)) if item is None]
        if a is None or b is None:
            continue
        if a == b:
            where = f"{table}, {columns.place(row)}"
            raise PairsError(f"{where}: {path_a!r} and {path_b!r} are one image; a pair has two")
        repeated += not (same if relation == "same" else different).add(a, b, row)
    thing_of = same.components(different.items())
    _check_consistent(table, columns, same, different, thing_of)
    return Pairs(same.row_of, different.row_of, thing_of, tuple(unknown), repeated)


class _Links:
    """Pairs of items that are linked, each with its row; a graph."""

    def __init__(self) -> None:
        self.row_of: dict[tuple[str, str], int] = {}
        self._linked: dict[str, list[str]] = defaultdict(list)

    def add(self, a: str, b: str, row: int) -> bool:
        """Link two items; False where they are already."""
        key = (min(a, b), max(a, b))
        if key in self.row_of:
            return False
        self.row_of[key] = row
        self._linked[a].append(b)
        self._linked[b].append(a)
        return True

    def items(self) -> list[str]:
        """All that are linked."""
        return list(self._linked)

    def components(self, more: Sequence[str]) -> dict[str, int]:
        """The number of the component of each item that is linked, and of `more`, which else are each one alone."""
        found: dict[str, int] = {}
        count = 0
        for start in dict.fromkeys((*self._linked, *more)):
            if start not in found:
                found |= dict.fromkeys(self._reached(start), count)
                count += 1
        return found

    def chain(self, a: str, b: str) -> list[tuple[str, str]]:
        """The shortest way from one item to another of its component, link by link."""
        reached = self._reached(b)
        way = [a]
        while way[-1] != b:
            way.append(reached[way[-1]])
        return list(pairwise(way))

    def _reached(self, start: str) -> dict[str, str]:
        """Every item of a component, and the next one on its way to `start`."""
        towards = {start: start}
        waiting = deque([start])
        while waiting:
            item = waiting.popleft()
            for other in self._linked.get(item, ()):
                if other not in towards:
                    towards[other] = item
                    waiting.append(other)
        return towards


def _check_consistent(
    table: Path | str, columns: Table, same: _Links, different: _Links, thing_of: Mapping[str, int]
) -> None:
    wrong = [(a, b) for a, b in different.row_of if thing_of[a] == thing_of[b]]
    if not wrong:
        return
    told = []
    for a, b in wrong[:_NAMED]:
        chain = _told(columns, same, same.chain(a, b))
        told.append(f"{chain}, but {a} ≠ {b} ({columns.place(different.row_of[a, b])})")
    more = f"; and {len(wrong) - _NAMED:,} more" if len(wrong) > _NAMED else ""
    raise PairsError(f"{table} contradicts itself: {'; '.join(told)}{more}; correct or remove one row of each chain")


def _told(columns: Table, same: _Links, chain: Sequence[tuple[str, str]]) -> str:
    """The links of a chain, and of a long one those at its ends."""
    links = [f"{x} = {y} ({columns.place(same.row_of[min(x, y), max(x, y)])})" for x, y in chain]
    if len(links) > 2 * _ENDS:
        links[_ENDS:-_ENDS] = [f"{len(links) - 2 * _ENDS:,} more that are the same"]
    return ", ".join(links)
