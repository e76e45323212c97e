"""Labels of items: to judge an index with, and the few that a model is to learn from.

LabelsError   a table of labels can't be used
"""

import csv
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from indexer.pairs import PAIR_COLUMNS, PairsError, pairs_of
from indexer.source import item_of
from indexer.tables import Table, read_table

_SPLITS = ("train", "rest", "test", "query", "gallery")  # `trainer.labels` has the same
_PATHS = ("path", "path_a", "path_b")


class LabelsError(ValueError):
    """A labels table can't be used with an index."""


@dataclass(frozen=True)
class FewLabels:
    """What of a table a model learns from, and what is held out.

    Attributes:
        learned: items that are learned from.
        held_out: item to class of those that are not.
    """

    learned: frozenset[str]
    held_out: Mapping[str, str]


def item_finder(table: Path, paths: Mapping[str, Path | None]) -> Callable[[str], str | None]:
    """Which item a cell of a table means: its id, or where its image lies, absolute or below the table's folder.

    Args:
        table: the table.
        paths: item to where its image lies.
    """
    # Both may go up on their way: ../images of an index that was built in another folder, or of a table beside it.
    by_path = {os.path.normpath(path): item for item, path in paths.items() if path is not None}
    folder = table.parent.absolute()

    def find(cell: str) -> str | None:
        # As a path below the collection's root first: an id with % may look like the path of another item.
        for item in (item_of(cell), cell):
            if item in paths:
                return item
        return by_path.get(os.path.normpath(folder / cell))

    return find


def read_classes(labels: Path, paths: Mapping[str, Path | None]) -> dict[str, str]:
    """The classes of items by a table `path,class_id[,split]`; its split `train` and blank classes are left out.

    Args:
        labels: the table; its paths are as `item_finder` takes them.
        paths: item to where its image lies.

    Raises:
        LabelsError: it gives a class to fewer than two of the items, or two to one of them, or has an unknown split.
        SourceError: it can't be read or lacks a column.
    """
    columns = read_table(labels, ["path", "class_id"], optional=["split"])
    splits = splits_of(labels, columns, "")
    find = item_finder(labels, paths)
    classes: dict[str, str] = {}
    unknown: list[str] = []
    for row, (cell, name, split) in enumerate(zip(columns["path"], columns["class_id"], splits, strict=True)):
        if not name or split == "train":
            continue
        item = find(cell)
        if item is None:
            unknown.append(cell)
        elif classes.setdefault(item, name) != name:
            raise LabelsError(
                f"{labels}, {columns.place(row)}: {cell!r} has two classes, {classes[item]!r} and {name!r}; an image "
                "has one"
            )
    if len(classes) < 2:
        raise LabelsError(
            f"{labels} gives a class to {len(classes)} items of the index to judge on: of its {len(splits):,} rows, "
            f"{splits.count('train'):,} are of the split train, {columns['class_id'].count(''):,} have no class_id, "
            f"and {len(unknown):,} have a path that is no item's{f', as {unknown[0]!r}' if unknown else ''}; paths "
            "must be item ids, or where the images lie"
        )
    return classes


def read_few(labels: Path, paths: Mapping[str, Path | None]) -> FewLabels:
    """What a table of classes or pairs teaches of an index's items, as `trainer.known` reads it.

    Args:
        labels: the table; its paths are as `item_finder` takes them.
        paths: item to where its image lies.

    Raises:
        LabelsError: it teaches nothing of these items, contradicts itself, or has an unknown split.
        SourceError: it can't be read or lacks a column.
    """
    few = _few(labels, paths)
    if not few.learned:
        raise LabelsError(
            f"{labels} has no label to learn from of any item of the index; its paths must be item ids, or where the "
            "images lie, and its class_id filled in"
        )
    return few


def _few(labels: Path, paths: Mapping[str, Path | None]) -> FewLabels:
    find = item_finder(labels, paths)
    if "path_a" in read_table(labels, [], optional=["path_a"]):
        try:
            pairs = pairs_of(labels, read_table(labels, PAIR_COLUMNS), find)
        except PairsError as error:
            raise LabelsError(str(error)) from error
        return FewLabels(frozenset(pairs.thing_of), {})
    columns = read_table(labels, ["path", "class_id"], optional=["split"])
    splits = splits_of(labels, columns, "train")
    known: dict[str, tuple[str, str]] = {}
    for row, (cell, name, split) in enumerate(zip(columns["path"], columns["class_id"], splits, strict=True)):
        item = find(cell)
        if item is None or not name:
            continue
        earlier = known.setdefault(item, (name, split))
        if earlier != (name, split):
            kind, one, other = ("classes", earlier[0], name) if earlier[0] != name else ("splits", earlier[1], split)
            two = f"two {kind}, {one!r} and {other!r}"
            raise LabelsError(f"{labels}, {columns.place(row)}: {cell!r} has {two}; an image has one")
    learned = frozenset(item for item, (_, split) in known.items() if split == "train")
    return FewLabels(learned, {item: name for item, (name, _) in known.items() if item not in learned})


def splits_of(labels: Path, columns: Table, without: str) -> list[str]:
    """The splits of a table's rows, `without` where it has no column of them.

    `Train` would be taken for one that is not learned from, and what was learned would judge; and so would what is
    left blank in a table to learn from.

    Raises:
        LabelsError: that of a row with a class is neither one of those that there are nor `without`.
    """
    splits = columns.get("split", [without] * len(columns["path"]))
    for row, (name, split) in enumerate(zip(columns["class_id"], splits, strict=True)):
        if name and split not in (without, *_SPLITS):
            known = ", ".join(_SPLITS)
            raise LabelsError(f"{labels}, {columns.place(row)}: split is {split!r}; it must be one of {known}")
    return splits


def write_few(labels: Path, target: Path, paths: Mapping[str, Path | None], places: Mapping[str, Path]) -> None:
    """Write a table of few labels anew, naming images by where they lie for the trainer.

    Args:
        labels: the table; its paths are as `item_finder` takes them.
        target: the CSV to write.
        paths: item to where its image lies.
        places: item to where the trainer finds its image; a path that means none of these stays as it is, for the
            trainer to tell of it.

    Raises:
        SourceError: it can't be read.
    """
    columns = read_table(labels, [], optional=[*_PATHS, "class_id", "split", "relation"])
    find = item_finder(labels, paths)

    def placed(cell: str) -> str:
        item = find(cell)
        return str(places[item]) if item is not None and item in places else cell

    shown = {name: [placed(cell) for cell in cells] if name in _PATHS else cells for name, cells in columns.items()}
    with target.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(shown)
        table.writerows(zip(*shown.values(), strict=True))
