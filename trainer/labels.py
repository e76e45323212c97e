"""Labels of images: a table of paths and classes.

LabelsError   a labels table can't be used; the message names the column, the line or the path
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from indexer.finder import Finder
from indexer.sources import Collection, Source, read_table

SPLITS = ("train", "rest", "test", "query", "gallery")
_LEARNED = ("train", "rest")  # rest: as if it had no label, and judged apart


class LabelsError(ValueError):
    """A labels table can't be used; the message names what is wrong."""


@dataclass(frozen=True)
class Labels:
    """What a labels table says of a collection.

    Attributes:
        class_of: item to class, 0 to C - 1, in order of first appearance.
        class_names: what the table calls each class.
        split_of: item to one of `SPLITS`; empty where the table has no split column. Those of `train` and `rest` are
            learned from, those of `rest` as if they had no label, and judged apart; those of the others judge alone.
        unknown: path of the table that is not in the collection, to its split; "" where the table has none.
        warnings: what else of the table was left out, each a sentence.
    """

    class_of: dict[str, int]
    class_names: tuple[str, ...]
    split_of: dict[str, str]
    unknown: dict[str, str]
    warnings: tuple[str, ...] = ()

    def training(self, sources: Sequence[Source]) -> list[Source]:
        """The sources to learn from: all that the table does not keep for judging alone."""
        return [source for source in sources if self.split_of.get(source.item, "train") in _LEARNED]

    def judging(self, sources: Sequence[Source]) -> list[Source]:
        """The labelled sources to judge on: all but those learned from, or all where there is no split."""
        return [s for s in sources if s.item in self.class_of and self.split_of.get(s.item) not in _LEARNED]

    def rest(self, sources: Sequence[Source]) -> list[Source]:
        """The sources of the split rest: learned from without their labels, and judged apart."""
        return [source for source in sources if self.split_of.get(source.item) == "rest"]

    @property
    def missing(self) -> tuple[str, ...]:
        """Paths of the table that would be judged on, were they in the collection."""
        return tuple(path for path, split in self.unknown.items() if split not in _LEARNED)

    def classes(self, items: Sequence[str]) -> Tensor:
        """The classes of items, (N,) int64, -1 where unknown."""
        return torch.tensor([self.class_of.get(item, -1) for item in items], dtype=torch.int64)

    def is_query(self, items: Sequence[str]) -> Tensor | None:
        """Which items to judge on are searched among the others, (N,) bool; None where each is, among all others."""
        if "query" not in self.split_of.values():
            return None
        return torch.tensor([self.split_of[item] == "query" for item in items], dtype=torch.bool)


def read_labels(table: Path, collection: Collection, *, to_teach: bool = False) -> Labels:
    """The labels of a collection: columns `path`, `class_id` and, optionally, `split`; a blank class is none.

    Args:
        table: its paths are as `Finder` takes them.
        collection: the images.
        to_teach: for learning, all rows may be of the split `train`.

    Raises:
        LabelsError: an unknown split, two classes or splits for one image, no path that is in the collection, or
            splits that can't be judged on: neither test alone nor both query and gallery.
        SourceError: the table can't be read or lacks a column.
    """
    columns = read_table(table, ["path", "class_id"], optional=["split"])
    splits = columns.get("split", [""] * len(columns["path"]))
    find = Finder(collection, table)
    numbers: dict[str, int] = {}
    class_of: dict[str, int] = {}
    split_of: dict[str, str] = {}
    unknown: dict[str, str] = {}
    blank = repeated = 0
    for row, (path, name, split) in enumerate(zip(columns["path"], columns["class_id"], splits, strict=True)):
        if not name:
            blank += 1
            continue
        item = find(path)
        if item is None:
            unknown[path] = split
            continue
        repeated += item in class_of
        number = numbers.setdefault(name, len(numbers))
        if class_of.setdefault(item, number) != number:
            both = f"{[*numbers][class_of[item]]!r} and {name!r}"
            raise LabelsError(f"{table}, {columns.place(row)}: {path!r} has two classes, {both}; an image has one")
        if "split" not in columns:
            continue
        if problem := _split_problem(path, split, split_of.get(item)):
            raise LabelsError(f"{table}, {columns.place(row)}: {problem}")
        split_of[item] = split
    if not class_of:
        raise LabelsError(_without_any(table, collection, tuple(unknown), blank))
    _check_judged(table, split_of, to_teach)
    return Labels(class_of, tuple(numbers), split_of, unknown, _left_out(table, blank, repeated))


def _split_problem(path: str, split: str, earlier: str | None) -> str | None:
    """What is wrong with the split of a row, whose image may have had one in an earlier row."""
    if split not in SPLITS:
        return f"split is {split!r}; it must be one of {', '.join(SPLITS)}"
    return (
        None if earlier in (None, split) else f"{path!r} has two splits, {earlier!r} and {split!r}; an image has one"
    )


def _check_judged(table: Path, split_of: Mapping[str, str], to_teach: bool) -> None:
    judged = set(split_of.values()) - set(_LEARNED)
    taught_alone = to_teach and set(split_of.values()) == {"train"}
    if not split_of or taught_alone or judged in ({"test"}, {"query", "gallery"}):
        return
    found = " and ".join(sorted(judged or set(split_of.values())))
    raise LabelsError(
        f"{table}: {found} alone is nothing to judge on; use split test, where "
        f"each image is searched among the others, or query and gallery, the one searched among the other"
    )


def _without_any(table: Path, collection: Collection, unknown: Sequence[str], blank: int) -> str:
    if blank and not unknown:
        return f"{table}: none of its {blank:,} rows has a class_id; write a class into some"
    if not unknown:
        return f"{table} has a header and no row; write a line for each image that you label"
    remedy = f"give paths relative to {collection.root} or to the table's folder, or absolute ones"
    if "\\" in unknown[0]:
        remedy += ", with / between folders, not \\"
    return (
        f"{table}: none of its {len(unknown):,} paths is in {collection.root}, for example {unknown[0]!r}; {remedy}"
    )


def _left_out(table: Path, blank: int, repeated: int) -> tuple[str, ...]:
    told = (
        (blank, "rows have no class_id: their images count as unlabelled"),
        (repeated, "rows repeat an earlier one"),
    )
    return tuple(f"{table}: {count:,} {what}" for count, what in told if count)
