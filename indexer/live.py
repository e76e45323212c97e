"""An index that changes while it is searched: each change makes another snapshot, of a version and what came since.

CatalogCorrupt   (of `indexer.catalog_file`) the catalogue is damaged, or not the one that the version was made of
"""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice

import numpy as np

from indexer import delta
from indexer.catalog import Catalog, CatalogCorrupt
from indexer.catalog_changes import Transaction
from indexer.columns import Columns
from indexer.delta import Upserted
from indexer.live_snapshot import Snapshot
from indexer.records import FLOAT32, Change
from indexer.version import Version

DEAD_ROWS = 16_384  # of the delta, of replaced and deleted items, that are kept in any case
QUIET_S = 0.5  # without a change, after which `refresh` puts the newest rows into the codes too
_CHUNK = 4_096  # changes taken in at a time


class LiveIndex:
    """A version and what its catalogue says changed since; one thread at a time changes it, any may search it.

    Attributes:
        version: that it is based on.
        snapshot: what is searched now; another object after every change.
    """

    def __init__(self, version: Version, catalog: Catalog, *, unhurried: bool = False) -> None:
        """Read what changed since the version was made.

        Args:
            version: what is searched.
            catalog: of its index.
            unhurried: leave cores to those who search something else meanwhile.

        Raises:
            CatalogError: the catalogue is damaged, or older than the version.
        """
        self.version = version
        self._catalog = catalog
        self._changing = threading.Lock()
        self._changed_at_s = time.monotonic()
        if catalog.sequence() < version.manifest.sequence:
            raise CatalogCorrupt(
                f"{catalog.path} ends at change {catalog.sequence():,}, but {version.directory} was made at change "
                f"{version.manifest.sequence:,}: it is not the catalogue of this index; restore it from a snapshot"
            )
        self.snapshot = self._opened(unhurried=unhurried)

    def refresh(self, transaction: Transaction | None = None) -> int:
        """Take in what was committed to the catalogue, by any process, since the last time; call it now and then.

        Args:
            transaction: one that was just committed, to spare reading what it changed.

        Returns:
            How many changes that were.

        Raises:
            CatalogError: the catalogue is damaged; the snapshot is as good as before.
        """
        taken = 0
        with self._changing:
            for chunk in self._changes(self.snapshot.sequence, transaction):
                self.snapshot = self._after(self.snapshot, chunk, chunk[-1].sequence)
                self._changed_at_s = time.monotonic()
                taken += len(chunk)
            if time.monotonic() - self._changed_at_s > QUIET_S:
                self.snapshot = self.snapshot.settled()
            if self.snapshot.dead > max(DEAD_ROWS, self.snapshot.delta.count // 2):
                self.snapshot = self._opened(unhurried=True)
        return taken

    def _opened(self, *, unhurried: bool) -> Snapshot:
        """What the catalogue says now, without what has come and gone since the version was made."""
        version = self.version
        rows, upserted = delta.empty(version.manifest.dim), Upserted()
        payloads = partial(_payloads, version, self._catalog, upserted)
        columns = Columns(payloads, partial(_items, version, upserted))
        live = np.ones(version.count, bool)
        snapshot = Snapshot(version, rows, live, upserted, columns, version.manifest.sequence)
        known = self._catalog.sequence()  # what changes after that may come twice, as it was and as it is
        for chunk in self._changes(snapshot.sequence):
            # Payloads of the version's own rows are read later, and then as they are.
            own = _of_same_images(version, (change for change in chunk if change.sequence <= known))
            news = [change for change in chunk if change.sequence > known or change.item not in own]
            snapshot = self._after(snapshot, news, chunk[-1].sequence)
        rows = snapshot.delta.behind(version.index.codes, unhurried=unhurried)
        return Snapshot(version, rows, snapshot.live, upserted, columns, snapshot.sequence)

    def _changes(self, after: int, transaction: Transaction | None = None) -> Iterator[list[Change]]:
        model = self.version.manifest.model
        known = transaction.changes(after, model) if transaction else []
        changes = chain(known, self._catalog.changes(known[-1].sequence if known else after, model))
        while chunk := list(islice(changes, _CHUNK)):
            yield chunk

    def _after(self, old: Snapshot, changes: Sequence[Change], sequence: int) -> Snapshot:
        """The snapshot after some changes, the last of them this one."""
        last = {change.item: change for change in changes}
        mains = self.version.rows_of(list(last))
        upserted, first = old.upserted, self.version.count
        hidden = [*mains.values(), *(first + upserted.rows[item] for item in last if item in upserted.rows)]
        for item in _of_same_images(self.version, last.values()):
            # A changed payload needs a row of its own: those of the columns never change.
            last[item] = last[item]._replace(vector=self.version.embedding(mains[item]).tobytes())
        added = [change for change in last.values() if change.live and change.vector]
        vectors = np.frombuffer(b"".join([change.vector for change in added if change.vector]), FLOAT32)
        rows = old.delta.appended(vectors.reshape(-1, self.version.manifest.dim))
        live = np.concatenate([old.live, np.ones(len(added), bool)])
        live[hidden] = False
        upserted.extend(added)
        return Snapshot(self.version, rows, live, upserted, old.columns, sequence)


def _of_same_images(version: Version, changes: Iterable[Change]) -> set[str]:
    """Of some items without an embedding, those that the version holds by the image that they have."""
    lacking = {change.item: change for change in changes if change.live and change.vector is None}
    if not lacking:
        return set()
    found = set()
    for item, held in version.images_of([*lacking]).items():
        image = lacking[item].image
        if image is None or image.is_same(held):  # else another was upserted, which this model has not seen
            found.add(item)
    return found


# No methods: columns bound to a LiveIndex would keep a version that was replaced until some late garbage collection.
def _payloads(
    version: Version, catalog: Catalog, upserted: Upserted, first: int, end: int
) -> Iterator[tuple[int, str]]:
    """Row and payload of rows `first` to `end` that have one."""
    count = version.count
    stored = catalog.payloads() if first < count else iter(())
    while chunk := dict(islice(stored, _CHUNK)):
        for item, row in version.rows_of(list(chunk)).items():
            if first <= row < end:
                yield row, chunk[item]
    for row in range(max(first, count), end):
        payload = upserted.payloads[row - count]
        if payload is not None:
            yield row, payload


def _items(version: Version, upserted: Upserted, first: int, end: int) -> Iterator[tuple[int, str]]:
    """Row and item id of rows `first` to `end`."""
    count = version.count
    for start in range(first, min(end, count), _CHUNK):
        rows = range(start, min(start + _CHUNK, end, count))
        yield from zip(rows, version.items_between(rows.start, rows.stop), strict=True)
    for row in range(max(first, count), end):
        yield row, upserted.items[row - count]
