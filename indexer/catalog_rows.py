"""The rows of a catalogue's tables, each with a checksum, as they are read and written inside a transaction."""

import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from indexer.catalog_file import CatalogFile, seal
from indexer.items import Image
from indexer.records import FLOAT32, Change, Item, Payload
from indexer.rows import Embeddings

LIVE, DELETED, GONE = "live", "deleted", "gone"
_CHUNK = 1_000  # rows read at a time


class Row(NamedTuple):
    """A row of the table `items`, as its schema in `indexer.catalog_file` says; the seal was checked."""

    item: str
    sequence: int
    state: str
    mirrored: int
    quiet: int
    payload: str | None
    source: bytes | None
    sha256: str | None

    @property
    def known(self) -> Item:
        """What the catalogue tells of it."""
        payload = None if self.payload is None else json.loads(self.payload)
        source = None if self.source is None else Path(os.fsdecode(self.source))
        return Item(self.item, self.sequence, bool(self.mirrored), payload, source, self.sha256)


COLUMNS = len(Row._fields) + 1  # of the table: these and the seal
Values = tuple[str, int, str, int, int, str | None, bytes | None, str | None]  # of a row, in its order

# Counts the live items that a version of a model can't hold.
WITHOUT_IMAGE = (
    "SELECT count(*) FROM items WHERE state NOT IN ('deleted', 'gone') AND source IS NULL AND sha256 IS NULL "
    "AND NOT EXISTS (SELECT 1 FROM embeddings WHERE embeddings.item = items.item AND model = ?)"
)


def read_row(file: CatalogFile, columns: tuple[Any, ...]) -> Row:
    """The row of some columns as SQLite gave them; raises CatalogCorrupt."""
    row = Row._make(columns[: COLUMNS - 1])
    if columns[COLUMNS - 1] != seal_of_row(row):
        raise file.unsealed(f"item {row.item!r}")
    return row


def count_live(file: CatalogFile) -> int:
    """How many items are live; raises CatalogCorrupt where the state of one is none that there is.

    No checksums are compared, but no flipped bit makes one state of another.
    """
    # Not by GROUP BY, which would sort all items.
    query = "SELECT count(*), count(*) FILTER (WHERE state = ?), count(*) FILTER (WHERE state IN (?, ?)) FROM items"
    ((total, live, gone),) = file.read(query, LIVE, DELETED, GONE)
    if unknown := total - live - gone:
        raise file.corrupt(f"{unknown:,} items are in no state that there is")
    return int(live)


def read_changes(file: CatalogFile, found: Sequence[tuple[Any, ...]], model: str) -> Iterator[Change]:
    """What rows say, each with the embedding by a model, and its seal, behind its columns; raises CatalogCorrupt.

    Opening an index reads all that no version holds through this, so it makes nothing of a row but the change.
    """
    for columns in found:
        row, (its_seal, vector, vector_seal) = columns[: COLUMNS - 1], columns[COLUMNS - 1 :]
        if its_seal != seal_of_row(row):
            raise file.unsealed(f"item {row[0]!r}")
        if vector is not None and vector_seal != seal_of_vector(row[0], model, vector):
            raise file.unsealed(f"the embedding of item {row[0]!r}")
        yield change_of(row, vector)


def change_of(row: Values, vector: bytes | None) -> Change:
    """What a row says to who searches by the model of an embedding, which is None where that has made none."""
    item, sequence, state, mirrored, _, payload, source, sha256 = row
    has_image = source is not None or sha256 is not None
    live = state == LIVE and (vector is not None or has_image)
    image = Image(source, sha256 or "") if has_image and not mirrored else None
    return Change(item, sequence, live, vector, payload, image)


def read_vector(file: CatalogFile, item: str, model: str | None, vector: bytes, found: int) -> Embeddings:
    """An embedding, (D,) float32; raises CatalogCorrupt."""
    if found != seal_of_vector(item, model, vector):
        raise file.unsealed(f"the embedding of item {item!r}")
    return np.frombuffer(vector, FLOAT32)


def seal_of_row(row: Values) -> int:
    """What `seal` gives of these columns, in less time."""
    item, sequence, state, mirrored, quiet, payload, source, sha256 = row
    text = f"{item!r}{sequence!r}{state!r}{mirrored!r}{quiet!r}{payload!r}"
    if type(source) is not bytes:
        return zlib.crc32(f"{text}{source!r}{sha256!r}".encode())
    return zlib.crc32(repr(sha256).encode(), zlib.crc32(source, zlib.crc32(text.encode())))


def seal_of_vector(item: str, model: str | None, vector: bytes) -> int:
    """What `seal` gives of an embedding's columns, likewise."""
    # Damage can make a text of it.
    stored = vector if type(vector) is bytes else repr(vector).encode()
    return zlib.crc32(stored, zlib.crc32(f"{item!r}{model!r}".encode()))


def row_of(file: CatalogFile, connection: sqlite3.Connection, item: str) -> Row | None:
    """The row of an item, whatever its state."""
    columns = connection.execute("SELECT * FROM items WHERE item = ?", (item,)).fetchone()
    return None if columns is None else read_row(file, columns)


def rows_of(file: CatalogFile, connection: sqlite3.Connection, items: Sequence[str]) -> dict[str, Row]:
    """The rows of those of some items that have one, whatever their state."""
    query = "SELECT items.* FROM json_each(?) AS wanted CROSS JOIN items ON items.item = wanted.value"
    found = connection.execute(query, (json.dumps(items),)).fetchall()
    return {columns[0]: read_row(file, columns) for columns in found}


def put(connection: sqlite3.Connection, *rows: Row) -> None:
    """Write the rows of items in the place of those that there were."""
    sealed = [(*row, seal_of_row(row)) for row in rows]
    connection.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", sealed)


def put_vectors(connection: sqlite3.Connection, *vectors: tuple[str, str | None, bytes]) -> None:
    """Write embeddings: item, model and vector."""
    sealed = [(*row, seal_of_vector(*row)) for row in vectors]
    connection.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?, ?)", sealed)


def remove_contents(connection: sqlite3.Connection, *replaced: Row) -> None:
    """Let go of what items were searched by, after their rows were written anew: embeddings, images of their own."""
    connection.executemany("DELETE FROM embeddings WHERE item = ?", [(old.item,) for old in replaced])
    connection.executemany(
        "DELETE FROM images WHERE sha256 = ? "
        "AND NOT EXISTS (SELECT 1 FROM items WHERE source IS NULL AND items.sha256 = images.sha256)",
        [(old.sha256,) for old in replaced if old.source is None and old.sha256 is not None],
    )


def is_payload(wanted: Payload | None, stored: str | None) -> bool:
    """Whether an upsert with a payload, or without, leaves the stored one as it is."""
    try:
        return wanted is None or (stored is not None and wanted == json.loads(stored))
    except ValueError:  # damaged: whoever reads the row by its checksum says so
        return False


def count(connection: sqlite3.Connection, sequence: int) -> None:
    """Write the number of the last change."""
    connection.execute("UPDATE counter SET sequence = ?, seal = ?", (sequence, seal(sequence)))


def check_all(file: CatalogFile) -> None:
    """Compare every row with its checksum; raises CatalogCorrupt."""
    for columns in _all(file, "SELECT rowid, * FROM items WHERE rowid > ? ORDER BY rowid LIMIT ?"):
        read_row(file, columns)
    for item, model, vector, its_seal in _all(
        file, "SELECT rowid, * FROM embeddings WHERE rowid > ? ORDER BY rowid LIMIT ?"
    ):
        read_vector(file, item, model, vector, its_seal)
    for sha256, data in _all(file, "SELECT rowid, * FROM images WHERE rowid > ? ORDER BY rowid LIMIT ?"):
        check_image(file, sha256, data)
    for request, *told, its_seal in file.read("SELECT * FROM requests"):
        if its_seal != seal(request, *told):
            raise file.unsealed(f"request {request!r}")


def check_image(file: CatalogFile, sha256: str, data: bytes) -> None:
    """Compare the bytes of an image with what they are known by; raises CatalogCorrupt."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise file.unsealed(f"image {sha256[:12]}…")


def _all(file: CatalogFile, query: str) -> Iterator[tuple[Any, ...]]:
    after = 0
    while rows := file.read(query, after, _CHUNK):
        for _, *columns in rows:
            yield tuple(columns)
        after = rows[-1][0]
