"""What people know of a few images: their classes, or pairs that show the same or different things."""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from indexer.sources import Collection, read_table
from trainer.labels import Finder, Labels, LabelsError, read_labels

_RELATIONS = ("same", "different")
_NAMED = 5  # of the contradictions of a table: enough to see what is wrong


@dataclass(frozen=True)
class Known:
    """What is known of a training set.

    Attributes:
        label: (N,) int64, the class of each image, from 0; -1 where unknown. Images of one class show the same thing.
        apart: (C, C) bool, symmetric: which classes are known to be different things; None where all are.
    """

    label: Tensor
    apart: Tensor | None = None

    @property
    def classes(self) -> list[int]:
        """The classes that there are images of, in order."""
        return sorted(set(self.label[self.label >= 0].tolist()))

    def relations(self, of: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
        """Which pairs of images are known to show the same thing, and which different ones.

        Args:
            of: (A,) labels.
            to: (B,) labels.

        Returns:
            Two (A, B) bool; neither holds where nothing is known. An image with a label is the same as itself.
        """
        of = of[:, None]
        known = (of >= 0) & (to >= 0)
        same = known & (of == to)
        if self.apart is None:
            return same, known & ~same
        # Row -1 is the last class: looked up, and thrown away by `known`.
        return same, known & self.apart.to(to.device)[of, to]


@dataclass(frozen=True)
class Taught:
    """A table of labels to learn from.

    Attributes:
        class_of: item to class, 0 to C - 1, of the images to learn from.
        apart: pairs of classes that are known to be different; None where all are.
        judged: the labels to judge on; None where the table has no split but train.
        warnings: what of the table was left out or is of little use, each a sentence.
        unknown: paths of the table that are not in the collection.
    """

    class_of: Mapping[str, int]
    apart: frozenset[tuple[int, int]] | None
    judged: Labels | None
    warnings: tuple[str, ...]
    unknown: tuple[str, ...]

    def known(self, items: Sequence[str]) -> Known:
        """What it says of a training set of these items."""
        label = torch.tensor([self.class_of.get(item, -1) for item in items], dtype=torch.int64)
        if self.apart is None:
            return Known(label)
        classes = 1 + max(self.class_of.values())
        apart = torch.zeros(classes, classes, dtype=torch.bool)
        for a, b in self.apart:
            apart[a, b] = apart[b, a] = True
        return Known(label, apart)


def read_taught(table: Path, collection: Collection) -> Taught:
    """The labels of a table to learn from, of either of two kinds.

    - Columns `path`, `class_id` and, optionally, `split`, as `read_labels` has them: rows of the split `train`, or
      all where there is no split, are learned from, and the others judged on, those of `rest` apart. Rows without a
      class are left out.
    - Columns `path_a`, `path_b` and `relation`, which is `same` or `different`.

    Raises:
        LabelsError: nothing can be learned from the table, or it contradicts itself; the message names the lines.
        SourceError: the table can't be read, or lacks a column.
    """
    if "path_a" in read_table(table, [], optional=["path_a"]):
        return _read_pairs(table, collection)
    return _read_classes(table, collection)


def _read_classes(table: Path, collection: Collection) -> Taught:
    labels = read_labels(table, collection, to_teach=True)
    taught = {
        item: number for item, number in labels.class_of.items() if labels.split_of.get(item) in (None, "train")
    }
    numbers = {number: place for place, number in enumerate(dict.fromkeys(taught.values()))}
    if len(numbers) < 2:
        raise LabelsError(
            f"{table}: its {len(taught):,} images to learn from are of {len(numbers)} class; what differs can only "
            f"be learned from two or more: label some images of another class"
        )
    warnings = labels.warnings
    if len(numbers) == len(taught):
        lonely = f"{table}: no two images share a class, so labels say only what differs; label some classes twice"
        warnings = (*warnings, lonely)
    class_of = {item: numbers[number] for item, number in taught.items()}
    judged = labels if set(labels.split_of.values()) - {"train"} else None
    return Taught(class_of, None, judged, warnings, tuple(labels.unknown))


def _read_pairs(table: Path, collection: Collection) -> Taught:
    columns = read_table(table, ["path_a", "path_b", "relation"])
    find, same, different, unknown = Finder(collection, table), _Links(), _Links(), []
    repeated = 0
    rows = zip(columns["path_a"], columns["path_b"], columns["relation"], strict=True)
    for line, (path_a, path_b, relation) in enumerate(rows, start=2):
        if relation not in _RELATIONS:
            raise LabelsError(f"{table}, line {line}: relation is {relation!r}; it must be same or different")
        a, b = find(path_a), find(path_b)
        unknown += [path for path, item in ((path_a, a), (path_b, b)) if item is None]
        if a is None or b is None:
            continue
        if a == b:
            raise LabelsError(f"{table}, line {line}: {path_a!r} and {path_b!r} are one image; a pair has two")
        repeated += not (same if relation == "same" else different).add(a, b, line)
    if not different.line_of:
        raise LabelsError(
            f"{table}: none of its {len(columns['relation']):,} pairs of images that are there is 'different'; what "
            f"differs can't be learned from pairs that are the same alone: add some that are not"
        )
    class_of = same.components(different.items())
    _check_consistent(table, same, different, class_of)
    apart = frozenset((class_of[a], class_of[b]) for a, b in different.line_of)
    warnings = (f"{table}: {repeated:,} rows repeat an earlier one",) if repeated else ()
    return Taught(class_of, apart, None, warnings, tuple(unknown))


class _Links:
    """Pairs of items that are linked, each with its line; a graph."""

    def __init__(self) -> None:
        self.line_of: dict[tuple[str, str], int] = {}
        self._linked: dict[str, list[str]] = defaultdict(list)

    def add(self, a: str, b: str, line: int) -> bool:
        """Link two items; False where they are already."""
        key = (min(a, b), max(a, b))
        if key in self.line_of:
            return False
        self.line_of[key] = line
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


def _check_consistent(table: Path, same: _Links, different: _Links, class_of: Mapping[str, int]) -> None:
    wrong = [(a, b) for a, b in different.line_of if class_of[a] == class_of[b]]
    if not wrong:
        return
    told = []
    for a, b in wrong[:_NAMED]:
        links = same.chain(a, b)
        chain = ", ".join(f"{x} = {y} (line {same.line_of[min(x, y), max(x, y)]})" for x, y in links)
        told.append(f"{chain}, but {a} ≠ {b} (line {different.line_of[a, b]})")
    more = f"; and {len(wrong) - _NAMED:,} more" if len(wrong) > _NAMED else ""
    raise LabelsError(f"{table} contradicts itself: {'; '.join(told)}{more}")
