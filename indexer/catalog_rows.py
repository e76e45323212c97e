"""The rows of a catalogue's tables, each with a checksum, as they are read and written inside a transaction."""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from indexer.catalog_file import CatalogFile, seal
from indexer.items import Image
from indexer.records import Change, Item, Payload
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

# Counts the live items that a version of a model can't hold.
WITHOUT_IMAGE = (
    "SELECT count(*) FROM items WHERE state NOT IN ('deleted', 'gone') AND source IS NULL AND sha256 IS NULL "
    "AND NOT EXISTS (SELECT 1 FROM embeddings WHERE embeddings.item = items.item AND model = ?)"
)


def read_row(file: CatalogFile, columns: tuple[Any, ...]) -> Row:
    """The row of some columns as SQLite gave them; raises CatalogCorrupt."""
    row = Row._make(columns[: COLUMNS - 1])
    if columns[COLUMNS - 1] != seal(*row):
        raise file.unsealed(f"item {row.item!r}")
    return row


def change_of(row: Row, vector: Embeddings | None) -> Change:
    """What a row says to who searches by the model of an embedding, which is None where that has made none."""
    has_image = row.source is not None or row.sha256 is not None
    live = row.state == LIVE and (vector is not None or has_image)
    image = Image(row.source, row.sha256 or "") if has_image and not row.mirrored else None
    return Change(row.item, row.sequence, live, vector, row.payload, image)


def read_vector(file: CatalogFile, item: str, model: str | None, vector: bytes, found: int) -> Embeddings:
    """An embedding, (D,) float32; raises CatalogCorrupt."""
    if found != seal(item, model, vector):
        raise file.unsealed(f"the embedding of item {item!r}")
    return np.frombuffer(vector, "<f4")


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
    sealed = [(*row, seal(*row)) for row in rows]
    connection.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", sealed)


def put_vectors(connection: sqlite3.Connection, *vectors: tuple[str, str | None, bytes]) -> None:
    """Write embeddings: item, model and vector."""
    sealed = [(*row, seal(*row)) for row in vectors]
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
