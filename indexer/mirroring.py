"""What a version has from a collection, taken into the catalogue: what is new or changed comes, what is missing goes.

SQLite compares the two files by itself, and before anybody is kept from writing: as a rule little differs, and going
through a million items takes seconds. What users change meanwhile is theirs, which is looked at again when the
differences are written; others who mirror wait for their turn.
"""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from indexer import catalog_rows
from indexer.catalog_file import CatalogFile
from indexer.catalog_rows import GONE, LIVE, Row
from indexer.locks import turn

TURN = ".mirroring"  # beside the catalogue; held by who mirrors

_CHUNK = 1_000  # rows looked at by one statement
# Of the version's table `items` (`indexer.items`); an empty path is of what only the catalogue has.
_DIFFERING = """
SELECT held.item, held.path, held.sha256 FROM version.items AS held LEFT JOIN main.items AS known USING (item)
WHERE held.path != x'' AND (known.item IS NULL OR (
    mirrored = 1 AND (state != 'live' OR known.source IS NOT held.path OR known.sha256 IS NOT held.sha256)
))
"""
# What the version could not read stays as it is known.
_MISSING = """
SELECT item FROM main.items AS known WHERE mirrored = 1 AND state = 'live'
AND NOT EXISTS (SELECT 1 FROM version.items AS held WHERE held.item = known.item AND held.path != x'')
AND NOT EXISTS (SELECT 1 FROM version.skipped AS unread WHERE unread.item = known.item)
"""


def mirror(file: CatalogFile, items: Path, *, complete: bool, still: Callable[[], bool]) -> int | None:
    """As of `Catalog.mirror`."""
    notes = {"differing": _DIFFERING, "missing": _MISSING} if complete else {"differing": _DIFFERING}
    with turn(file.path.with_name(TURN)), file.compared(items, notes), file.write() as connection:
        if not still():
            return None
        start = last = file.counted(connection)
        for found in _noted(connection, "differing"):
            last += _take_in(file, connection, last, found)
        for found in _noted(connection, "missing") if complete else ():
            last += _let_go(file, connection, last, [item for (item,) in found])
        catalog_rows.count(connection, last)
    return last - start


def _noted(connection: sqlite3.Connection, table: str) -> Iterator[list[tuple[Any, ...]]]:
    """The rows of a temporary table, a chunk at a time."""
    last = 0
    query = f"SELECT rowid, * FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT ?"  # noqa: S608  ours
    while rows := connection.execute(query, (last, _CHUNK)).fetchall():
        yield [columns for _, *columns in rows]
        last = rows[-1][0]


def _take_in(file: CatalogFile, connection: sqlite3.Connection, last: int, found: list[tuple[Any, ...]]) -> int:
    """Write what is new or changed after the change `last`; how many items that are."""
    known = catalog_rows.rows_of(file, connection, [item for item, *_ in found])
    written, replaced = list[Row](), list[Row]()
    for item, source, sha256 in found:
        old = known.get(item)
        # New files, and new bytes of old ones, show in the version that is built of them; no other need hear of it.
        quiet = old is None or old.state == LIVE
        payload = None if old is None else old.payload
        new = Row(item, last + len(written) + 1, LIVE, 1, int(quiet), payload, source, sha256)
        if old is not None and not old.mirrored:
            continue  # a user's by now
        written.append(new)
        if old is not None and old.sha256 != new.sha256:
            replaced.append(old)
    catalog_rows.put(connection, *written)
    catalog_rows.remove_contents(connection, *replaced)
    return len(written)


def _let_go(file: CatalogFile, connection: sqlite3.Connection, last: int, items: list[str]) -> int:
    """Mark what is not in the collection any more; how many items that are."""
    known = catalog_rows.rows_of(file, connection, items).values()
    gone = [row for row in known if row.mirrored and row.state == LIVE]
    places = range(last + 1, last + 1 + len(gone))
    # Quiet: the version that is active by now lacks them, and the one before answers whole until that is open.
    marked = (row._replace(sequence=place, state=GONE, quiet=1) for place, row in zip(places, gone, strict=True))
    catalog_rows.put(connection, *marked)
    return len(gone)
