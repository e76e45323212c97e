"""The rows of a catalogue's tables, each with a checksum, as they are read and written inside a transaction."""

import json
import os
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from indexer.catalog_file import CatalogFile, seal
from indexer.records import Item
from indexer.rows import Embeddings

LIVE, DELETED, GONE = "live", "deleted", "gone"


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


def read_row(file: CatalogFile, columns: tuple[Any, ...]) -> Row:
    """The row of some columns as SQLite gave them; raises CatalogCorrupt."""
    *values, found = columns[:COLUMNS]
    file.check_seal(found, values, f"item {values[0]!r}")
    return Row(*values)


def read_vector(file: CatalogFile, item: str, model: str | None, vector: bytes, found: int) -> Embeddings:
    """An embedding, (D,) float32; raises CatalogCorrupt."""
    file.check_seal(found, (item, model, vector), f"the embedding of item {item!r}")
    return np.frombuffer(vector, "<f4")


def row_of(file: CatalogFile, connection: sqlite3.Connection, item: str) -> Row | None:
    """The row of an item, whatever its state."""
    columns = connection.execute("SELECT * FROM items WHERE item = ?", (item,)).fetchone()
    return None if columns is None else read_row(file, columns)


def put(connection: sqlite3.Connection, row: Row) -> None:
    """Write the row of an item in the place of the one that there was."""
    connection.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, seal(*row)))


def put_vector(connection: sqlite3.Connection, item: str, model: str | None, vector: bytes) -> None:
    """Write an embedding."""
    row = (item, model, vector)
    connection.execute("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?, ?)", (*row, seal(*row)))


def remove_content(connection: sqlite3.Connection, old: Row | None) -> None:
    """Let go of what an item was searched by, after its row was written anew: embeddings, and an image of its own."""
    if old is None:
        return
    connection.execute("DELETE FROM embeddings WHERE item = ?", (old.item,))
    if old.source is None and old.sha256 is not None:
        connection.execute(
            "DELETE FROM images WHERE sha256 = ? "
            "AND NOT EXISTS (SELECT 1 FROM items WHERE source IS NULL AND items.sha256 = images.sha256)",
            (old.sha256,),
        )


def count(connection: sqlite3.Connection, sequence: int) -> None:
    """Write the number of the last change."""
    connection.execute("UPDATE counter SET sequence = ?, seal = ?", (sequence, seal(sequence)))
