"""What a version is to be built from: one entry for each item, from a collection or from the catalogue."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from indexer.catalog import Catalog
from indexer.recorded import recorded
from indexer.records import Item
from indexer.source import Source

_PAGE = 10_000  # items read from the catalogue at a time


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
        entries: images of the collection first, in its order, then what only the catalogue has, by item.
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
    live = {item.item: item for item in _live(catalog)}
    entries = []
    refused = overruled = 0
    for source in sources:
        known = live.get(source.item)
        if source.item in deleted:
            refused += 1
        elif known is not None and not known.mirrored:
            overruled += 1
        else:
            entries.append(Entry(source.item, source))
            live.pop(source.item, None)
    entries += [_catalogued(item) for item in live.values() if not (mirror and item.mirrored)]
    return Listing(tuple(entries), refused, overruled)


def _live(catalog: Catalog) -> Iterator[Item]:
    after = ""
    while page := catalog.page(after, _PAGE):
        yield from page
        after = page[-1].item


def _catalogued(item: Item) -> Entry:
    source = recorded(item.item, item.source) if item.source else None
    return Entry(item.item, source, item.sha256 or "", item.sequence)
