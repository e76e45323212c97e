"""Which item is in which row of a version: one SQLite file, which is also the record of progress while it is built.

SQLite's own errors pass through while building; a finished table is only read, and damage is a CorruptFile.
"""

import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from indexer.duplicates import MAX_GROUPS, MAX_NAMED, Duplicates
from indexer.manifest import REMEDY, CorruptFile

_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    row INTEGER PRIMARY KEY,   -- of rows.faiss, counted from 0
    item TEXT NOT NULL UNIQUE,
    path BLOB NOT NULL,        -- Source.path; bytes, because not every path is UTF-8; empty: of the catalogue alone
    sha256 TEXT NOT NULL       -- of the image file; empty where only an embedding was given
);
CREATE TABLE IF NOT EXISTS skipped (item TEXT NOT NULL PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID;
"""
_CHUNK = 10_000  # rows read at a time
_COPIES = "SELECT count(*) - count(DISTINCT sha256) FROM items WHERE sha256 != ''"
_DUPLICATES = """
WITH shared AS (
        SELECT sha256 FROM items WHERE sha256 != '' GROUP BY sha256 HAVING count(*) > 1 ORDER BY min(row) LIMIT ?
    ),
    copies AS (
        SELECT sha256, item, row, row_number() OVER (PARTITION BY sha256 ORDER BY row) AS place
        FROM items JOIN shared USING (sha256)
    )
SELECT sha256, item FROM copies WHERE place <= ? ORDER BY row
"""


class UnknownItem(LookupError):
    """An index version has no item of that id."""


class Image(NamedTuple):
    """Which image an item has.

    Attributes:
        path: of its source, as bytes; none where it has none.
        sha256: of it; empty where that is not known.
    """

    path: bytes | None
    sha256: str

    def is_same(self, other: "Image") -> bool:
        """Whether it is the other one, or at another time what lies at the other's path."""
        return (self.sha256 != "" and self.sha256 == other.sha256) or bool(self.path and self.path == other.path)


class ItemWriter:
    """The items of a version that is being built; what `commit` wrote survives a crash."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path)
        self._connection.executescript(_SCHEMA)

    def add(self, row: int, item: str, path: Path | None, sha256: str) -> None:
        """Record the item of a row; without a path, its image lies nowhere but in the catalogue, if anywhere."""
        source = os.fsencode(path) if path is not None else b""
        self._connection.execute("INSERT INTO items VALUES (?, ?, ?, ?)", (row, item, source, sha256))

    def skip(self, item: str, reason: str) -> None:
        """Record an image that has no row, and why."""
        self._connection.execute("INSERT INTO skipped VALUES (?, ?)", (item, reason))

    def commit(self) -> None:
        """Put everything so far on the disk."""
        self._connection.commit()

    def count(self) -> int:
        """How many rows have an item."""
        (count,) = self._connection.execute("SELECT count(*) FROM items").fetchone()
        return int(count)

    def digests(self) -> Iterator[str]:
        """The SHA-256 of every row's image, by row; empty where there is none."""
        return (sha256 for (sha256,) in self._connection.execute("SELECT sha256 FROM items ORDER BY row"))

    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Every image left out, with the reason, sorted by item."""
        return tuple(self._connection.execute("SELECT item, reason FROM skipped ORDER BY item"))

    def duplicates(self) -> Duplicates:
        """The items whose files are the same, in order of their rows."""
        copies, *_ = self._connection.execute(_COPIES).fetchone()
        groups: dict[str, list[str]] = {}
        for digest, item in self._connection.execute(_DUPLICATES, (MAX_GROUPS, MAX_NAMED)):
            groups.setdefault(digest, []).append(item)
        return Duplicates(copies, tuple(map(tuple, groups.values())))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


class ItemTable:
    """The items of a published version; safe to read from several threads at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # `immutable` needs no locks and no journal, so a read-only file system serves too.
        uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        self._connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        weakref.finalize(self, self._connection.close)  # as for a catalogue: the connection is in a cycle
        self._lock = threading.Lock()

    def close(self) -> None:
        """Give the file back."""
        self._connection.close()

    def count(self) -> int:
        """How many items there are."""
        return int(self._read("SELECT count(*) FROM items")[0][0])

    def items(self, rows: Iterable[int]) -> list[str]:
        """The item ids of rows, in their order; a row may come twice.

        Raises:
            IndexError: a row is not in the version.
        """
        wanted = [int(row) for row in rows]
        found = self._read(
            "SELECT item FROM json_each(?) AS wanted JOIN items ON items.row = wanted.value ORDER BY wanted.key",
            json.dumps(wanted),
        )
        if len(found) != len(wanted):
            raise IndexError(f"a row of {min(wanted)} to {max(wanted)} is not one of the version's")
        return [item for (item,) in found]

    def between(self, first: int, end: int) -> list[str]:
        """The item ids of rows `first` to `end` (exclusive), as far as there are any."""
        query = "SELECT item FROM items WHERE row >= ? AND row < ? ORDER BY row"
        return [item for (item,) in self._read(query, first, end)]

    def row_of(self, item: str) -> int:
        """The row of an item; raises UnknownItem."""
        try:
            found = self._read("SELECT row FROM items WHERE item = ?", item)
        except UnicodeEncodeError:  # a lone surrogate: no item id has one
            found = []
        if not found:
            raise UnknownItem(f"no item {item!r} in this version of the index")
        return int(found[0][0])

    def rows_of(self, items: Iterable[str]) -> dict[str, int]:
        """The rows of those items that there are."""
        query = "SELECT item, row FROM json_each(?) AS wanted CROSS JOIN items ON items.item = wanted.value"
        return dict(self._read(query, json.dumps(list(items))))

    def images_of(self, items: Iterable[str]) -> dict[str, Image]:
        """The images of those items that there are."""
        query = "SELECT items.* FROM json_each(?) AS wanted CROSS JOIN items ON items.item = wanted.value"
        found = self._read(query, json.dumps(list(items)))
        return {item: Image(path, sha256) for _, item, path, sha256 in found}

    def holds(self, item: str, sha256: str) -> bool:
        """Whether there is an item of this id with the image of this digest."""
        return bool(self._read("SELECT 1 FROM items WHERE item = ? AND sha256 = ?", item, sha256))

    def path_of(self, row: int) -> Path | None:
        """Where the image of a row was when it was indexed, below its archive's path if in one.

        None where it came from the catalogue; raises IndexError.
        """
        found = self._read("SELECT path FROM items WHERE row = ?", int(row))
        if not found:
            raise IndexError(f"row {row} is not one of the version's")
        return Path(os.fsdecode(found[0][0])) if found[0][0] else None

    def read_all(self) -> Iterator[tuple[int, str, Path | None, str]]:
        """Row, item, path and SHA-256 of everything, by row; a path and a digest as `ItemWriter.add` takes them."""
        after = -1
        query = "SELECT row, item, path, sha256 FROM items WHERE row > ? ORDER BY row LIMIT ?"
        while found := self._read(query, after, _CHUNK):
            for row, item, path, sha256 in found:
                yield row, item, Path(os.fsdecode(path)) if path else None, sha256
            after = found[-1][0]

    def digests(self) -> Iterator[str]:
        """The SHA-256 of every row's image, by row; empty where there is none."""
        query = "SELECT sha256 FROM items WHERE row >= ? AND row < ? ORDER BY row"
        for first in range(0, self.count(), _CHUNK):
            yield from (sha256 for (sha256,) in self._read(query, first, first + _CHUNK))

    def skipped(self) -> list[tuple[str, str]]:
        """Every image left out of the version, with the reason, sorted by item."""
        return self._read("SELECT item, reason FROM skipped ORDER BY item")

    def _read(self, query: str, *values: object) -> list[Any]:
        try:
            with self._lock:
                return self._connection.execute(query, values).fetchall()
        except sqlite3.ProgrammingError:  # it is closed
            raise
        except sqlite3.DatabaseError as error:  # it was whole when it was opened
            raise CorruptFile(f"{self._path} was damaged since it was opened: {error}{REMEDY}") from error
