"""What a batch of upserts or deletions makes of a catalogue: worked out in memory, then written by a few statements.

The fewer statements, the less often the thread that writes has to get the interpreter lock back from searches: beside
them, 100 upserts of an embedding and a payload take 2 ms of CPU time so, and took 3.4 with statements item by item.
"""

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence

from indexer import catalog_rows, records
from indexer.catalog_file import CatalogFile
from indexer.catalog_rows import DELETED, LIVE, Row
from indexer.records import Change, DuplicateItem, ItemNotFound, Upsert


class Changes:
    """The changes of one batch, in the order of the calls; one that is refused changes nothing.

    Attributes:
        sequence: of the last change.
    """

    def __init__(self, file: CatalogFile, connection: sqlite3.Connection, items: Sequence[str]) -> None:
        """None yet, of these items as they are now, inside a transaction."""
        self.sequence = file.counted(connection)
        self._known = catalog_rows.rows_of(file, connection, items)
        self._asked: set[str] = set()
        self._changed: dict[str, Row] = {}
        self._kept: set[str] = set()  # of the items changed, those whose embeddings stay
        self._replaced: list[Row] = []
        self._images: list[tuple[str, bytes]] = []
        self._vectors: list[tuple[str, str | None, bytes]] = []

    def upsert(self, upsert: Upsert, dim: int) -> int:
        """The sequence of the change; raises Refused."""
        item = upsert.item
        if item in self._asked:
            raise DuplicateItem(f"item {item!r} comes twice in this batch; the first was used")
        self._asked.add(item)
        payload, vector = records.payload_text(upsert.payload), records.vector_bytes(upsert, dim)
        old = self._known.get(item)
        live = old is not None and old.state == LIVE
        if old is not None and live and payload is None:
            payload = old.payload
        if vector is None and upsert.image is None and upsert.source is None:
            if old is None or not live:
                raise ItemNotFound(f"there is no item {item!r}: send its image or embedding along")
            self._kept.add(item)
            return self._put(old._replace(sequence=self.sequence + 1, payload=payload, quiet=0))
        source = None if upsert.source is None else os.fsencode(upsert.source)
        sha256 = upsert.sha256
        if upsert.image is not None:
            sha256 = hashlib.sha256(upsert.image).hexdigest()
            self._images.append((sha256, upsert.image))
        if vector is not None:
            self._vectors.append((item, upsert.model, vector))
        return self._replace(old, Row(item, self.sequence + 1, LIVE, 0, 0, payload, source, sha256))

    def delete(self, item: str) -> int:
        """The sequence of the change; 0 where the item is deleted already; raises Refused."""
        old = self._known.get(item)
        if old is None:
            raise ItemNotFound(f"there is no item {item!r}")
        if old.state == DELETED:
            return 0
        return self._replace(old, Row(item, self.sequence + 1, DELETED, 0, 0, None, None, None))

    def write(self, connection: sqlite3.Connection) -> None:
        """Put them all into the catalogue."""
        catalog_rows.put(connection, *self._changed.values())
        catalog_rows.remove_contents(connection, *self._replaced)  # what the new rows still name stays
        connection.executemany("INSERT OR IGNORE INTO images VALUES (?, ?)", self._images)
        catalog_rows.put_vectors(connection, *self._vectors)
        catalog_rows.count(connection, self.sequence)

    def read_back(self, model: str) -> Iterator[Change]:
        """What `Catalog.changes` would give of them, but for the items of which it would read the embedding."""
        vectors = {item: vector for item, maker, vector in self._vectors if maker == model}
        for item, row in self._changed.items():
            if item not in self._kept:
                yield catalog_rows.change_of(row, vectors.get(item))

    def _replace(self, old: Row | None, new: Row) -> int:
        if old is not None:
            self._replaced.append(old)
        return self._put(new)

    def _put(self, row: Row) -> int:
        self._changed[row.item] = self._known[row.item] = row
        self.sequence = row.sequence
        return row.sequence


class Transaction:
    """What the upserts and deletions of a transaction change: whoever has this need not read it afterwards."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._batches: list[Changes] = []

    def add(self, changes: Changes) -> None:
        """Put what one call changes behind the others."""
        self._batches.append(changes)

    def changes(self, after: int, model: str) -> list[Change]:
        """As of `Catalog.changes`, once it is committed; nothing where that may give more up to its last change."""
        found = [change for batch in self._batches for change in batch.read_back(model)]
        # Every change takes one number: where there are more numbers than changes, some are not known here.
        if not found or len(found) != self._batches[-1].sequence - after:
            return []
        last = {change.item: change for change in found}
        return [change for change in found if change is last[change.item]]
