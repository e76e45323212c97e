"""The catalogue of an index: the truth about its items. What a call returned is on the disk.

Every change of an item takes the next number of one counter, its `sequence`. A version holds the items as of its
manifest's sequence; what changed after that is read here (`changes`) and searched beside it.

CatalogError             (of `indexer.catalog_file`, with CatalogCorrupt, CatalogWriteFailed, CatalogBusy)
├── RequestReused        a request id came again with another content
├── UnknownContent       there is no live item, or no image, of that name
└── Refused              (of `indexer.records`) one item of a batch was not taken
"""

import dataclasses
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from indexer import records
from indexer.catalog_file import CatalogBusy, CatalogCorrupt, CatalogError, CatalogFile, CatalogWriteFailed, seal
from indexer.records import (
    Change,
    Content,
    DuplicateItem,
    Item,
    ItemNotFound,
    Mirrored,
    NoContent,
    Outcome,
    Refused,
    Upsert,
)
from indexer.rows import Embeddings

CATALOG = "catalog.sqlite"  # of an index's directory
REMEMBER_REQUESTS_S = 24 * 3600.0

_LIVE, _DELETED, _GONE = "live", "deleted", "gone"
_CHUNK = 1_000  # rows read at a time; in between, others may read

__all__ = [
    "Catalog",
    "CatalogBusy",
    "CatalogCorrupt",
    "CatalogError",
    "CatalogWriteFailed",
    "RequestReused",
    "UnknownContent",
]


class RequestReused(CatalogError):
    """A request id came again with another content."""


class UnknownContent(CatalogError, LookupError):
    """There is no live item, or no image, of that name."""


class Catalog:
    """The open catalogue of an index; any thread may call it, and several processes may have it open.

    One process writes at a time; the others wait for it.
    """

    def __init__(self, index_dir: Path) -> None:
        """Open the catalogue of an index, and create an empty one where there is none.

        Raises:
            CatalogError: the file is damaged, or can't be created.
        """
        self.path = index_dir / CATALOG
        self._file = CatalogFile(self.path)

    def close(self) -> None:
        """Give the file back; nothing can be read or written any more."""
        self._file.close()

    def transaction(self) -> AbstractContextManager[object]:
        """Make all writes of a block one transaction: on the disk together when the block is left, or none of them.

        What the calls inside returned is acknowledged only after that. Raises CatalogError on leaving.
        """
        return self._file.write()

    def sequence(self) -> int:
        """The number of the last change; 0 before the first."""
        return self._sequence(self._file.read("SELECT sequence, seal FROM counter"))

    def upsert(self, upserts: Sequence[Upsert], *, dim: int, request_id: str = "") -> list[Outcome]:
        """Add or replace items, each on its own: a refused one does not keep the others out.

        Args:
            upserts: of an id that comes twice, the first is taken and the later ones are refused.
            dim: D of the model's embeddings.
            request_id: makes the call repeatable for a day: the same id with the same content changes nothing and
                gives the first call's outcomes again. "" for a call that is not to be recognised.

        Returns:
            One outcome for each upsert, in their order; on the disk.

        Raises:
            RequestReused: the request id came with another content before.
            CatalogWriteFailed, CatalogBusy, CatalogCorrupt: nothing was taken.
        """
        seen = set[str]()

        def change(connection: sqlite3.Connection, place: int, sequence: int) -> bool:
            item = upserts[place].item
            if item in seen:
                raise DuplicateItem(f"item {item!r} comes twice in this batch; the first was used")
            seen.add(item)
            self._upsert(connection, upserts[place], dim, sequence)
            return True

        digest = _digest("upsert", (_fingerprint(upsert) for upsert in upserts))
        return self._once(request_id, digest, [one.item for one in upserts], change)

    def delete(self, items: Sequence[str], *, request_id: str = "") -> list[Outcome]:
        """Delete items, each on its own; a deleted one stays so through every build until it is upserted again.

        An id that never was is refused with ITEM_NOT_FOUND; one that is deleted already is taken, with sequence 0.
        Arguments, results and errors otherwise as of `upsert`.
        """

        def change(connection: sqlite3.Connection, place: int, sequence: int) -> bool:
            return self._delete(connection, items[place], sequence)

        digest = _digest("delete", (item.encode("utf-8", "surrogatepass") for item in items))
        return self._once(request_id, digest, items, change)

    def get(self, item: str) -> Item:
        """A live item; raises UnknownContent."""
        found = []
        if _is_text(item):
            found = self._file.read("SELECT * FROM items WHERE item = ? AND state = 'live'", item)
        if not found:
            raise UnknownContent(f"the catalogue has no live item {item!r}")
        return self._item(found[0])

    def page(self, after: str = "", limit: int = 100) -> list[Item]:
        """Live items in the order of their ids' UTF-8 bytes: the first `limit` of those after `after`."""
        query = "SELECT * FROM items WHERE item > ? AND state = 'live' ORDER BY item LIMIT ?"
        return [self._item(row) for row in self._file.read(query, after, limit)]

    def count(self) -> int:
        """How many items are live."""
        return int(self._file.read("SELECT count(*) FROM items WHERE state = 'live'")[0][0])

    def contents(self, model: str | None = None) -> Iterator[Content]:
        """Every live item, in the order of `page`, with its embedding by `model` where the catalogue has one."""
        query = (
            "SELECT items.*, vector, embeddings.seal FROM items LEFT JOIN embeddings "
            "ON embeddings.item = items.item AND model = ? "
            "WHERE items.item > ? AND state = 'live' ORDER BY items.item LIMIT ?"
        )
        after = ""
        while rows := self._file.read(query, model, after, _CHUNK):
            for row in rows:
                yield Content(self._item(row[:9]), self._vector(row[0], model, *row[9:]))
            after = rows[-1][0]

    def embedding(self, item: str, model: str) -> Embeddings | None:
        """The embedding of a live item by a model, (D,) float32, unit length; None where there is none."""
        query = "SELECT vector, seal FROM embeddings WHERE item = ? AND model = ?"
        found = self._file.read(query, item, model)
        return self._vector(item, model, *found[0]) if found else None

    def payloads(self) -> Iterator[tuple[str, str]]:
        """Item and payload, as JSON text, of every live item that has one."""
        query = "SELECT * FROM items WHERE item > ? AND state = 'live' AND payload IS NOT NULL ORDER BY item LIMIT ?"
        after = ""
        while rows := self._file.read(query, after, _CHUNK):
            for row in rows:
                self._check(row)
                yield row[0], row[5]
            after = rows[-1][0]

    def changes(self, after: int, model: str) -> Iterator[Change]:
        """The items changed after a sequence, each with its state of now, in the order of their last change.

        New items of a mirrored collection do not come: the version that was built of it holds them.

        Args:
            after: the sequence of a version, or of the last change seen.
            model: whose embeddings are wanted.

        Raises:
            CatalogCorrupt: a row was changed on the disk.
        """
        query = (
            "SELECT items.*, vector, embeddings.seal FROM items LEFT JOIN embeddings "
            "ON embeddings.item = items.item AND model = ? "
            "WHERE quiet = 0 AND sequence > ? ORDER BY sequence LIMIT ?"
        )
        while rows := self._file.read(query, model, after, _CHUNK):
            for row in rows:
                item = self._item(row[:9])
                vector = self._vector(item.item, model, *row[9:])
                yield Change(item.item, item.sequence, row[2] == _LIVE, vector, row[5])
            after = rows[-1][1]

    def pending(self, model: str) -> Iterator[Item]:
        """The upserted live items that `model` has not embedded, and whose image is kept here or has a source."""
        query = (
            "SELECT * FROM items WHERE item > ? AND state = 'live' AND mirrored = 0 "
            "AND (source IS NOT NULL OR sha256 IN (SELECT sha256 FROM images)) "
            "AND NOT EXISTS (SELECT 1 FROM embeddings WHERE embeddings.item = items.item AND model = ?) "
            "ORDER BY item LIMIT ?"
        )
        after = ""
        while rows := self._file.read(query, after, model, _CHUNK):
            yield from map(self._item, rows)
            after = rows[-1][0]

    def deleted(self) -> set[str]:
        """The ids that users deleted: a build leaves them out."""
        return {item for (item,) in self._file.read("SELECT item FROM items WHERE state = 'deleted'")}

    def image(self, sha256: str) -> bytes:
        """The bytes of an upserted image; raises UnknownContent."""
        found = self._file.read("SELECT data FROM images WHERE sha256 = ?", sha256)
        if not found:
            raise UnknownContent(f"the catalogue has no image with SHA-256 {sha256[:12]}…")
        data: bytes = found[0][0]
        if hashlib.sha256(data).hexdigest() != sha256:
            raise self._file.corrupt(f"image {sha256[:12]}… does not match its checksum")
        return data

    def embed(self, item: Item, model: str, embedding: Embeddings) -> bool:
        """Add another model's embedding of a live item.

        Args:
            item: as it was when it was embedded.
            model: id of the model.
            embedding: (D,) float32, unit length.

        Returns:
            Whether it was added: not where the item was changed meanwhile.

        Raises:
            InvalidEmbedding: see `Upsert`.
        """
        vector = records.vector_bytes(Upsert(item.item, embedding, model), len(embedding))
        with self._file.write() as connection:
            row = self._row(connection, item.item)
            if row is None or row[1] != item.sequence:
                return False
            sequence = self._sequence(connection.execute("SELECT sequence, seal FROM counter").fetchall()) + 1
            _put(connection, (item.item, sequence, row[2], row[3], 0, *row[5:8]))
            _put_vector(connection, item.item, model, vector)
            _count(connection, sequence)
        return True

    def mirror(self, collection: Iterable[Mirrored], *, complete: bool) -> int:
        """Take in what a build found in its collection, in one transaction.

        What users upserted or deleted stays theirs.

        Args:
            collection: its items.
            complete: items of earlier collections that are not in this one are gone.

        Returns:
            How many items changed.

        Raises:
            Refused: a payload is not as it must be; nothing was taken.
        """
        with self._file.write() as connection:
            start = last = self._sequence(connection.execute("SELECT sequence, seal FROM counter").fetchall())
            connection.execute("CREATE TEMP TABLE found (item TEXT NOT NULL PRIMARY KEY) WITHOUT ROWID")
            for entry in collection:
                connection.execute("INSERT OR IGNORE INTO found VALUES (?)", (entry.item,))
                last += self._mirror(connection, entry, last + 1)
            if complete:
                last += self._leave(connection, last)
            connection.execute("DROP TABLE found")
            _count(connection, last)
        return last - start

    def _once(
        self, request_id: str, digest: str, items: Sequence[str], change: Callable[[Any, int, int], bool]
    ) -> list[Outcome]:
        with self._file.write() as connection:
            if request_id and (known := self._remembered(connection, request_id, digest)) is not None:
                return known
            outcomes = self._each(connection, items, change)
            if request_id:
                _remember(connection, request_id, digest, outcomes)
        return outcomes

    def _each(
        self, connection: sqlite3.Connection, items: Sequence[str], change: Callable[[Any, int, int], bool]
    ) -> list[Outcome]:
        """Call `change(connection, place, sequence)`, which says whether anything changed, for each of a batch."""
        sequence = self._sequence(connection.execute("SELECT sequence, seal FROM counter").fetchall())
        outcomes = []
        for place, item in enumerate(items):
            try:
                records.check_item(item)
                changed = change(connection, place, sequence + 1)
                sequence += changed
                outcomes.append(Outcome(item, sequence if changed else 0))
            except Refused as refusal:
                outcomes.append(Outcome(item, 0, refusal.reason, str(refusal)))
        _count(connection, sequence)
        return outcomes

    def _upsert(self, connection: sqlite3.Connection, upsert: Upsert, dim: int, sequence: int) -> None:
        payload, vector = records.payload_text(upsert.payload), records.vector_bytes(upsert, dim)
        if vector is None and upsert.image is None and upsert.source is None:
            raise NoContent(f"item {upsert.item!r} has neither an embedding nor an image")
        old = self._row(connection, upsert.item)
        source = None if upsert.source is None else os.fsencode(upsert.source)
        sha256 = upsert.sha256
        if upsert.image is not None:
            sha256 = hashlib.sha256(upsert.image).hexdigest()
            connection.execute("INSERT OR IGNORE INTO images VALUES (?, ?)", (sha256, upsert.image))
        _put(connection, (upsert.item, sequence, _LIVE, 0, 0, payload, source, sha256))
        connection.execute("DELETE FROM embeddings WHERE item = ?", (upsert.item,))
        _put_vector(connection, upsert.item, upsert.model, vector)
        _release_image(connection, old)

    def _delete(self, connection: sqlite3.Connection, item: str, sequence: int) -> bool:
        old = self._row(connection, item)
        if old is None:
            raise ItemNotFound(f"there is no item {item!r}")
        if old[2] == _DELETED:
            return False
        _put(connection, (item, sequence, _DELETED, 0, 0, None, None, None))
        connection.execute("DELETE FROM embeddings WHERE item = ?", (item,))
        _release_image(connection, old)
        return True

    def _mirror(self, connection: sqlite3.Connection, entry: Mirrored, sequence: int) -> bool:
        """Whether the item changed."""
        old = self._row(connection, entry.item)
        payload, source = records.payload_text(entry.payload), os.fsencode(entry.source)
        if old is None:
            _put(connection, (entry.item, sequence, _LIVE, 1, 1, payload, source, entry.sha256))
            return True
        if not old[3]:
            return False
        payload = old[5] if payload is None else payload
        if (old[2], *old[5:8]) == (_LIVE, payload, source, entry.sha256):
            return False
        _put(connection, (entry.item, sequence, _LIVE, 1, 0, payload, source, entry.sha256))
        if old[7] != entry.sha256:
            connection.execute("DELETE FROM embeddings WHERE item = ?", (entry.item,))
        return True

    def _leave(self, connection: sqlite3.Connection, last: int) -> int:
        """Mark what is no longer in the mirrored collection; how many those are."""
        gone = connection.execute(
            "SELECT items.* FROM items WHERE mirrored = 1 AND state = 'live' "
            "AND item NOT IN (SELECT item FROM found)",
        ).fetchall()
        for sequence, row in enumerate(gone, start=last + 1):
            self._check(row)
            _put(connection, (row[0], sequence, _GONE, 1, 0, *row[5:8]))
        return len(gone)

    def _row(self, connection: sqlite3.Connection, item: str) -> Any | None:
        row = connection.execute("SELECT * FROM items WHERE item = ?", (item,)).fetchone()
        if row is not None:
            self._check(row)
        return row

    def _check(self, row: Sequence[Any]) -> None:
        self._file.check_seal(row[8], row[:8], f"item {row[0]!r}")

    def _item(self, row: Sequence[Any]) -> Item:
        self._check(row)
        item, sequence, _, mirrored, _, payload, source, sha256, _ = row
        where = None if source is None else Path(os.fsdecode(source))
        return Item(item, sequence, bool(mirrored), None if payload is None else json.loads(payload), where, sha256)

    def _vector(self, item: str, model: str | None, vector: bytes | None, found: int | None) -> Embeddings | None:
        if vector is None or found is None:
            return None
        self._file.check_seal(found, (item, model, vector), f"the embedding of item {item!r}")
        return np.frombuffer(vector, "<f4")

    def _sequence(self, counter: Sequence[Any]) -> int:
        if len(counter) != 1:
            raise self._file.corrupt(f"it has {len(counter)} counters")
        sequence, found = counter[0]
        self._file.check_seal(found, (sequence,), "the counter")
        return int(sequence)

    def _remembered(self, connection: sqlite3.Connection, request_id: str, digest: str) -> list[Outcome] | None:
        query = "SELECT digest, outcomes, seal FROM requests WHERE request_id = ?"
        row = connection.execute(query, (request_id,)).fetchone()
        if row is None:
            return None
        self._file.check_seal(row[2], (request_id, *row[:2]), f"request {request_id!r}")
        if row[0] != digest:
            raise RequestReused(
                f"request id {request_id!r} came before, with another content; a new request needs a new id"
            )
        return [Outcome(*outcome) for outcome in json.loads(row[1])]


def _put(connection: sqlite3.Connection, row: tuple[Any, ...]) -> None:
    connection.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, seal(*row)))


def _put_vector(connection: sqlite3.Connection, item: str, model: str | None, vector: bytes | None) -> None:
    if vector is not None:
        row = (item, model, vector)
        connection.execute("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?, ?)", (*row, seal(*row)))


def _count(connection: sqlite3.Connection, sequence: int) -> None:
    connection.execute("UPDATE counter SET sequence = ?, seal = ?", (sequence, seal(sequence)))


def _release_image(connection: sqlite3.Connection, old: Sequence[Any] | None) -> None:
    """Let go of the image that an item had, if no other has the same."""
    if old is not None and old[6] is None and old[7] is not None:
        connection.execute(
            "DELETE FROM images WHERE sha256 = ?1 "
            "AND NOT EXISTS (SELECT 1 FROM items WHERE source IS NULL AND items.sha256 = ?1)",
            (old[7],),
        )


def _remember(connection: sqlite3.Connection, request_id: str, digest: str, outcomes: Sequence[Outcome]) -> None:
    now_s = time.time()
    connection.execute("DELETE FROM requests WHERE at_s < ?", (now_s - REMEMBER_REQUESTS_S,))
    told = json.dumps([dataclasses.astuple(outcome) for outcome in outcomes])
    row = (request_id, digest, told)
    connection.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?)", (*row, now_s, seal(*row)))


def _digest(verb: str, parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256(verb.encode())
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _fingerprint(upsert: Upsert) -> bytes:
    # An image stands for its embedding: embedding it again, perhaps with a newer model, may give other bytes.
    content: object = None if upsert.embedding is None else (upsert.model, upsert.embedding.tobytes())
    if upsert.image is not None:
        content = hashlib.sha256(upsert.image).hexdigest()
    elif upsert.sha256 is not None:
        content = upsert.sha256
    try:
        payload = json.dumps(upsert.payload, sort_keys=True, default=repr)
    except (TypeError, ValueError, RecursionError) as error:  # it will be refused
        payload = repr(error)
    return repr((upsert.item, content, upsert.source, payload)).encode("utf-8", "surrogatepass")


def _is_text(item: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in item)
