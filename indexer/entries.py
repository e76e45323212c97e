"""What a version is to be built from: one entry for each item, from a collection or from the catalogue."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from indexer.catalog import Catalog
from indexer.catalog_rows import Row
from indexer.recorded import RecordedSource, reading_order
from indexer.source import Source


@dataclass(frozen=True, slots=True)
class Entry:
    """One item that a version is to hold. A million are held at once: slots.

    Attributes:
        item: its id.
        source: where its image lies; None where the catalogue keeps it, or knows only an embedding.
        sha256: of the image, if the catalogue says so; empty for an image that is still to be read, or for none.
        sequence: of the item's last change in the catalogue; 0 for an image of the collection.
    """

    item: str
    source: Source | None
    sha256: str = ""
    sequence: int = 0

    def state(self) -> bytes:
        """What differs once the entry would become another row."""
        known = self.sha256 or (self.source.state() if self.source else "")
        where = str(self.source.path) if self.source else ""
        sequence = str(self.sequence)
        return "\0".join((self.item, where, known, sequence, "")).encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Listing:
    """The entries of a build, and what the catalogue kept out of it.

    Attributes:
        entries: images of the collection first, in its order, then what only the catalogue has: by item, or as
            it lies in Parquet tables.
        deleted: how many images of the collection were deleted by a user, and stay so.
        upserted: how many images of the collection gave way to what was upserted under their ids.
    """

    entries: tuple[Entry, ...]
    deleted: int
    upserted: int


def list_entries(sources: Sequence[Source], catalog: Catalog, *, mirror: bool) -> Listing:
    """The entries of a build.

    What people said of an item by upserting or deleting it holds against the image of that id in a collection.

    Args:
        sources: of the collection.
        catalog: of the index.
        mirror: leave out the items that came from a collection and are not in this one.
    """
    deleted = set(catalog.deleted())
    live, upserted = dict[str, Entry](), set[str]()
    for row in catalog.rows():
        live[row.item] = _catalogued(row)
        if not row.mirrored:
            upserted.add(row.item)
    entries = []
    refused = overruled = 0
    for source in sources:
        if source.item in deleted:
            refused += 1
        elif source.item in upserted:
            overruled += 1
        else:
            entries.append(Entry(source.item, source))
            live.pop(source.item, None)
    order = reading_order()
    left = [entry for entry in live.values() if not mirror or entry.item in upserted]
    entries += sorted(left, key=lambda entry: order(entry.source) if entry.source else ("", 0))
    return Listing(tuple(entries), refused, overruled)


def warn_of_unfindable(catalog: Catalog, model: str | None, warn: Callable[[str], None]) -> None:
    """Tell how many items a version of a model can't hold, as only an embedding of another one is known, if any.

    Args:
        catalog: of the index.
        model: id; None for one that is still to be learned.
        warn: told a sentence.
    """
    if count := catalog.without_image(model):
        which = f"model {model}" if model else "the model that is learned"
        warn(
            f"{count:,} items have no image and no embedding of {which}: this version does not hold them, and no "
            "search finds them while it is active; upsert their images, or embeddings of that model"
        )


def _catalogued(row: Row) -> Entry:
    source = RecordedSource(row.item, "", os.fsdecode(row.source)) if row.source is not None else None
    return Entry(row.item, source, row.sha256 or "", row.sequence)
