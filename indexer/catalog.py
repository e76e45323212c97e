"""The catalogue of an index: the truth about its items. What a call returned is on the disk.

Every change of an item takes the next number of one counter, its `sequence`. A version holds the items as of its
manifest's sequence; what changed after that is read here (`changes`) and searched beside it.

CatalogError             (of `indexer.catalog_file`, with CatalogCorrupt, CatalogWriteFailed, CatalogBusy)
├── RequestReused        (of `indexer.requests`) a request id came again with another content
├── UnknownContent       there is no live item, or no image, of that name
└── Refused              (of `indexer.records`) one item of a batch was not taken
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from indexer import catalog_rows, mirroring, records, requests
from indexer.catalog_changes import Changes, Transaction
from indexer.catalog_file import CatalogBusy, CatalogCorrupt, CatalogError, CatalogFile, CatalogWriteFailed
from indexer.catalog_rows import COLUMNS, Row
from indexer.records import Change, Content, Item, Outcome, Refused, Upsert
from indexer.requests import RequestReused
from indexer.rows import Embeddings

CATALOG = "catalog.sqlite"  # of an index's directory
_CHUNK = 1_000  # rows read at a time; in between, others may read
# Queries say which states they don't want: by `state = 'live'` a row whose state was changed on the disk would not be
# there, and nobody would compare its seal.
_PAGE = "SELECT * FROM items WHERE item > ? AND state NOT IN ('deleted', 'gone') ORDER BY item LIMIT ?"

__all__ = [
    "Catalog",
    "CatalogBusy",
    "CatalogCorrupt",
    "CatalogError",
    "CatalogWriteFailed",
    "RequestReused",
    "UnknownContent",
]


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
        self._transaction: Transaction | None = None  # the one that is open; only who writes may touch it

    def close(self) -> None:
        """Give the file back; nothing can be read or written any more."""
        self._file.close()

    def is_large(self) -> bool:
        """Whether so large that opening it left most of it unread, for `check_pages` to read."""
        return self._file.is_large()

    def check_pages(self) -> None:
        """Read all of the file, and compare SQLite's indexes with the rows; others may read and write meanwhile.

        Raises:
            CatalogCorrupt: they don't agree: what is looked up could be missed.
        """
        self._file.check_pages()

    def check_rows(self) -> None:
        """Read all rows, and compare each with its checksum; raises CatalogCorrupt."""
        catalog_rows.check_all(self._file)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Make all writes of a block one transaction: on the disk together when the block is left, or none of them.

        What the calls inside returned is acknowledged only after that. Raises CatalogError on leaving.
        """
        with self._file.write():
            self._transaction = Transaction()
            try:
                yield self._transaction
            finally:
                self._transaction = None

    def frozen(self) -> AbstractContextManager[None]:
        """Read the state of one moment in a block, whatever is written meanwhile; of a catalogue of one's own."""
        return self._file.frozen()

    def sequence(self) -> int:
        """The number of the last change; 0 before the first."""
        return self._file.sequence()

    def upsert(self, upserts: Sequence[Upsert], *, dim: int, request_id: str = "", digest: str = "") -> list[Outcome]:
        """Add or replace items, each on its own: a refused one does not keep the others out.

        Args:
            upserts: of an id that comes twice, the first is taken and the later ones are refused.
            dim: D of the model's embeddings.
            request_id: makes the call repeatable for a day: the same id with the same content changes nothing and
                gives the first call's outcomes again. "" for a call that is not to be recognised.
            digest: of the content, where the caller's own request had more in it than `upserts`.

        Returns:
            One outcome for each upsert, in their order; on the disk.

        Raises:
            RequestReused: the request id came with another content before.
            CatalogWriteFailed, CatalogBusy, CatalogCorrupt: nothing was taken.
        """

        def change(changes: Changes, place: int) -> int:
            return changes.upsert(upserts[place], dim)

        if request_id and not digest:
            digest = requests.digest_of_upserts(upserts)
        return self._once(request_id, digest, [one.item for one in upserts], change)

    def delete(self, items: Sequence[str], *, request_id: str = "") -> list[Outcome]:
        """Delete items, each on its own; a deleted one stays so through every build until it is upserted again.

        An id that never was is refused with ITEM_NOT_FOUND; one that is deleted already is taken, with sequence 0.
        Arguments, results and errors otherwise as of `upsert`.
        """

        def change(changes: Changes, place: int) -> int:
            return changes.delete(items[place])

        return self._once(request_id, requests.digest_of_deletes(items), items, change)

    def get(self, item: str) -> Item:
        """A live item; raises UnknownContent."""
        found = []
        if _is_text(item):
            found = self._file.read("SELECT * FROM items WHERE item = ? AND state NOT IN ('deleted', 'gone')", item)
        if not found:
            raise UnknownContent(f"there is no item {item!r}")
        return self._read_row(found[0]).known

    def known(self, items: Sequence[str]) -> dict[str, Item]:
        """Those of some items that are live, by their ids."""
        query = (
            "SELECT items.* FROM json_each(?) AS wanted CROSS JOIN items "
            "ON items.item = wanted.value AND state NOT IN ('deleted', 'gone')"
        )
        return {row[0]: self._read_row(row).known for row in self._file.read(query, json.dumps(items))}

    def changed(self, items: Sequence[str], after: int) -> dict[str, Path | None]:
        """Those of some items that were changed after a sequence, deleted ones too, each with its source.

        What a mirrored collection brought is not among them.
        """
        query = (
            "SELECT items.* FROM json_each(?) AS wanted CROSS JOIN items "
            "ON items.item = wanted.value AND quiet = 0 AND sequence > ?"
        )
        rows = self._file.read(query, json.dumps(items), after)
        return {row[0]: self._read_row(row).known.source for row in rows}

    def page(self, after: str = "", limit: int = 100) -> list[Item]:
        """Live items in the order of their ids' UTF-8 bytes: the first `limit` of those after `after`."""
        return [self._read_row(row).known for row in self._file.read(_PAGE, after, limit)]

    def rows(self) -> Iterator[Row]:
        """The row of every live item, in the order of `page`."""
        after = ""
        while found := self._file.read(_PAGE, after, _CHUNK):
            yield from map(self._read_row, found)
            after = found[-1][0]

    def count(self) -> int:
        """How many items are live."""
        return catalog_rows.count_live(self._file)

    def without_image(self, model: str | None) -> int:
        """How many live items have neither an image nor an embedding by `model` (None: one still to come)."""
        return int(self._file.read(catalog_rows.WITHOUT_IMAGE, model)[0][0])

    def contents(self, model: str | None = None) -> Iterator[Content]:
        """Every live item, in the order of `page`, with its embedding by `model` where the catalogue has one."""
        query = (
            "SELECT items.*, vector, embeddings.seal FROM items LEFT JOIN embeddings "
            "ON embeddings.item = items.item AND model = ? "
            "WHERE items.item > ? AND state NOT IN ('deleted', 'gone') ORDER BY items.item LIMIT ?"
        )
        after = ""
        while rows := self._file.read(query, model, after, _CHUNK):
            for row in rows:
                yield Content(self._read_row(row).known, self._vector(row, model))
            after = rows[-1][0]

    def contents_of(self, items: Sequence[str], model: str) -> dict[str, Content]:
        """Those of some items that are live, by their ids, as of `contents`."""
        query = (
            "SELECT items.*, vector, embeddings.seal FROM json_each(?) AS wanted CROSS JOIN items "
            "ON items.item = wanted.value AND state NOT IN ('deleted', 'gone') "
            "LEFT JOIN embeddings ON embeddings.item = items.item AND model = ?"
        )
        rows = self._file.read(query, json.dumps(items), model)
        return {row[0]: Content(self._read_row(row).known, self._vector(row, model)) for row in rows}

    def holding(self, upserts: Sequence[Upsert], model: str) -> set[str]:
        """The items of some upserts that are live with that embedding, by this model, and payload, if one is given.

        No checksums are compared: what is there as it is wanted is not damaged.
        """
        query = (
            "SELECT wanted.key, payload, vector FROM json_each(?) AS wanted CROSS JOIN items "
            "ON items.item = wanted.value AND state NOT IN ('deleted', 'gone') "
            "CROSS JOIN embeddings ON embeddings.item = items.item AND model = ?"
        )
        held = set()
        for place, payload, vector in self._file.read(query, json.dumps([one.item for one in upserts]), model):
            one = upserts[place]
            if (
                one.embedding is not None
                and one.embedding.tobytes() == vector
                and catalog_rows.is_payload(one.payload, payload)
            ):
                held.add(one.item)
        return held

    def embedding(self, item: str, model: str, sha256: str | None) -> Embeddings | None:
        """The embedding of a live item by a model, (D,) float32, unit length.

        Args:
            item: its id.
            model: id of the model.
            sha256: of the image that the item had when the caller looked; None where it had none.

        Returns:
            None where there is none, or the item has another image by now.
        """
        query = (
            "SELECT vector, embeddings.seal FROM embeddings JOIN items USING (item) "
            "WHERE item = ? AND model = ? AND sha256 IS ?"
        )
        found = self._file.read(query, item, model, sha256)
        return catalog_rows.read_vector(self._file, item, model, *found[0]) if found else None

    def payloads(self) -> Iterator[tuple[str, str]]:
        """Item and payload, as JSON text, of every live item that has one."""
        query = (
            "SELECT * FROM items WHERE item > ? AND state NOT IN ('deleted', 'gone') AND payload IS NOT NULL "
            "ORDER BY item LIMIT ?"
        )
        after = ""
        while rows := self._file.read(query, after, _CHUNK):
            for row in rows:
                yield row[0], self._read_row(row).payload or ""
            after = rows[-1][0]

    def changes(self, after: int, model: str) -> Iterator[Change]:
        """The items changed after a sequence, each with its state of now, in the order of their last change.

        What a mirrored collection brought does not come: the version that was built of it holds that.

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
            yield from catalog_rows.read_changes(self._file, rows, model)
            after = rows[-1][1]

    def pending(self, model: str, after: int = 0) -> Iterator[Item]:
        """The upserted live items, changed after a sequence, that `model` has not embedded and could.

        Their image is kept here or has a source. In the order of their last change.
        """
        # All that is upserted is not quiet: saying so lets SQLite read what changed instead of everything.
        query = (
            "SELECT * FROM items WHERE quiet = 0 AND sequence > ? AND state NOT IN ('deleted', 'gone') "
            "AND (source IS NOT NULL OR sha256 IN (SELECT sha256 FROM images)) "
            "AND NOT EXISTS (SELECT 1 FROM embeddings WHERE embeddings.item = items.item AND model = ?) "
            "ORDER BY sequence LIMIT ?"
        )
        while rows := self._file.read(query, after, model, _CHUNK):
            found = map(self._read_row, rows)
            yield from (row.known for row in found if not row.mirrored)
            after = rows[-1][1]

    def deleted(self) -> set[str]:
        """The ids that users deleted: a build leaves them out."""
        return {
            self._read_row(row).item
            for row in self._file.read("SELECT * FROM items WHERE state NOT IN ('live', 'gone')")
        }

    def image(self, sha256: str) -> bytes:
        """The bytes of an upserted image; raises UnknownContent."""
        found = self._file.read("SELECT data FROM images WHERE sha256 = ?", sha256)
        if not found:
            raise UnknownContent(f"the catalogue has no image with SHA-256 {sha256[:12]}…")
        data: bytes = found[0][0]
        catalog_rows.check_image(self._file, sha256, data)
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
            now = catalog_rows.row_of(self._file, connection, item.item)
            if now is None or now.sequence != item.sequence or vector is None:
                return False
            sequence = self._file.counted(connection) + 1
            catalog_rows.put(connection, now._replace(sequence=sequence, quiet=0))
            catalog_rows.put_vectors(connection, (item.item, model, vector))
            catalog_rows.count(connection, sequence)
        return True

    def mirror(self, items: Path, *, complete: bool, still: Callable[[], bool] = lambda: True) -> int | None:
        """Take in what a version has of its collection, in one transaction; what users upserted or deleted stays.

        Args:
            items: the version's items, of `indexer.items`; they never change.
            complete: items of earlier collections that are not among them are gone, but for those that the version
                could not read: they stay as they are known.
            still: whether that is to be done; asked when nobody else can write any more.

        Returns:
            How many items changed; None where it was not to be done any more.

        Raises:
            CatalogError: nothing was taken.
            OSError: the lock that others wait for can't be made.
        """
        return mirroring.mirror(self._file, items, complete=complete, still=still)

    def _once(
        self,
        request_id: str,
        digest: str,
        items: Sequence[str],
        change: Callable[[Changes, int], int],
    ) -> list[Outcome]:
        """Make the change of each place of a new request, which says its sequence."""
        with self._file.write() as connection:
            if request_id:
                known = requests.remembered(self._file, connection, request_id, digest)
                if known is not None:
                    return known
            changes = Changes(self._file, connection, items)
            outcomes = []
            for place, item in enumerate(items):
                try:
                    records.check_item(item)
                    outcomes.append(Outcome(item, change(changes, place)))
                except Refused as refusal:
                    outcomes.append(Outcome(item, 0, refusal.reason, str(refusal)))
            changes.write(connection)
            if self._transaction is not None:
                self._transaction.add(changes)
            if request_id:
                requests.remember(connection, request_id, digest, outcomes)
        return outcomes

    def _read_row(self, columns: tuple[Any, ...]) -> Row:
        return catalog_rows.read_row(self._file, columns)

    def _vector(self, columns: tuple[Any, ...], model: str | None) -> Embeddings | None:
        """The embedding that was joined to an item's columns."""
        vector, its_seal = columns[COLUMNS:]
        return None if vector is None else catalog_rows.read_vector(self._file, columns[0], model, vector, its_seal)


def _is_text(item: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in item)
