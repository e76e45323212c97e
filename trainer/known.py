"""What people know of a few images: their classes, or pairs that show the same or different things."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from indexer.finder import Finder
from indexer.pairs import PAIR_COLUMNS, PairsError, pairs_of
from indexer.sources import Collection, read_table
from trainer.labels import Labels, LabelsError, read_labels


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

    @property
    def paired(self) -> "Known":
        """The same without the classes that have a single image, whose labels say what it is not and nothing else."""
        labelled = self.label >= 0
        count_of = torch.bincount(self.label[labelled], minlength=1)
        single = labelled & (count_of[self.label.clamp_min(0)] == 1)
        return replace(self, label=self.label.masked_fill(single, -1))

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
        # Row -1 is the last class: looked up, and thrown away by `known`. A step on a GPU need not wait for its copy.
        return same, known & self.apart.to(to.device, non_blocking=True)[of, to]


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

    def without(self, items: Iterable[str]) -> "Taught":
        """The same, with nothing known of these items."""
        gone = set(items)
        return replace(self, class_of={item: number for item, number in self.class_of.items() if item not in gone})

    def known(self, items: Sequence[str]) -> Known:
        """What it says of a training set of these items."""
        label = torch.tensor([self.class_of.get(item, -1) for item in items], dtype=torch.int64)
        if self.apart is None:
            return Known(label)
        classes = 1 + max(*self.class_of.values(), *(number for pair in self.apart for number in pair))
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
    kinds = read_table(table, [], optional=["class_id", "path_a"])
    if len(kinds) == 2:
        raise LabelsError(
            f"{table} has both a column class_id and a column path_a; it is of classes or of pairs: make two tables"
        )
    if "path_a" in kinds:
        return _read_pairs(table, collection)
    return _read_classes(table, collection)


def _read_classes(table: Path, collection: Collection) -> Taught:
    labels = read_labels(table, collection, to_teach=True)
    taught = {
        item: number for item, number in labels.class_of.items() if labels.split_of.get(item) in (None, "train")
    }
    numbers = {number: place for place, number in enumerate(dict.fromkeys(taught.values()))}
    if not taught:
        raise LabelsError(
            f"{table}: none of its {len(labels.class_of):,} labelled images is to learn from, as none is of the "
            f"split train; write train into the split of some"
        )
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
    columns = read_table(table, list(PAIR_COLUMNS))
    try:
        pairs = pairs_of(table, columns, Finder(collection, table))
    except PairsError as error:
        raise LabelsError(str(error)) from error
    if not pairs.different:
        raise LabelsError(
            f"{table}: none of its {len(columns['relation']):,} pairs of images that are there is 'different'; what "
            f"differs can't be learned from pairs that are the same alone: add some that are not"
        )
    thing_of = pairs.thing_of
    apart = frozenset((thing_of[a], thing_of[b]) for a, b in pairs.different)
    warnings = (f"{table}: {pairs.repeated:,} rows repeat an earlier one",) if pairs.repeated else ()
    return Taught(thing_of, apart, None, warnings, pairs.unknown)
