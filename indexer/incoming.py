"""What an import goes through: the images of a collection one after the other, each with its payload.

A table of paths is read while it is gone through, however long it is; of everything else the list is held.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from indexer.parquet import image_column
from indexer.recorded import is_in_archive
from indexer.repeats import Repeats
from indexer.sources import Collection, Wanted, open_collection, read_paths


@dataclass(frozen=True)
class Incoming:
    """The images of a collection.

    Attributes:
        total: how many there are, with what is left out.
        wanted: them, to be gone through once; raises SourceError where a table can't be read any more.
        warnings: what could not be used as a whole, each a sentence.
    """

    total: int
    wanted: Iterator[Wanted]
    warnings: tuple[str, ...] = ()


def open_incoming(images: Path) -> Incoming:
    """Open a collection; arguments and errors as of `indexer.sources.open_collection`."""
    kind = images.suffix.lower()
    if images.is_file() and (kind == ".csv" or (kind == ".parquet" and not image_column(images))):
        survey = _Survey(images)
        if survey.named and not survey.archived:
            return Incoming(survey.total, read_paths(images, survey.is_first))
    # Images in archives are to be read in the order in which they lie there, which takes the whole list.
    collection = open_collection(images)
    return Incoming(len(collection.unused) + len(collection.sources), _listed(collection), collection.warnings)


class _Survey:
    """What there is in a table of paths, which is read for that as a whole."""

    def __init__(self, table: Path) -> None:
        self.total = self.named = self.archived = 0
        self._repeats = Repeats(self._items(table))

    def is_first(self, item: str, number: int) -> bool:
        """Whether no row before names an item; to be asked for every row, in their order."""
        return self._repeats.first(item, number) == number

    def _items(self, table: Path) -> Iterator[str]:
        for one in read_paths(table, lambda *_: True):
            self.total += 1
            if one.source is not None:
                self.named += 1
                self.archived += is_in_archive(one.source.relative)
                yield one.item


def _listed(collection: Collection) -> Iterator[Wanted]:
    for item, reason in collection.unused:
        yield Wanted(item, error=reason)
    for source in collection.sources:
        yield Wanted(source.item, source, collection.payloads.get(source.item, ""))
