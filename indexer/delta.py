"""What was upserted since a version was made: rows in memory that are searched together with the version's own.

Rows are append-only and shared between states, so a state is made in the time of what changed. All but the newest are
in a copy of the version's codes: one scan finds candidates among both, at the cost of that copy (the bytes of the
codes, again). The newest are compared one by one, until they are many or nothing more comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer import ivfpq
from indexer.ivfpq import Neighbours, Rows
from indexer.records import Change
from indexer.rows import Embeddings

Mask = npt.NDArray[np.bool_]

SEAL_ROWS = 256  # compared one by one until there are so many, or a thousandth of the codes, whose copy takes longer
_SORTED = 256  # so many candidates are sorted as soon as the nearest of them are set apart


@dataclass(frozen=True, eq=False)
class Delta:
    """A state of the rows that were upserted; immutable.

    Attributes:
        vectors: (capacity, D) float32; the first `count` are this state's.
        count: how many rows there are, live or not.
        codes: of the version's rows and, after them, the first `sealed` of these; None where the version is flat, and
            while it is opened.
        sealed: how many rows are in the codes.
    """

    vectors: Embeddings
    count: int
    codes: Any | None
    sealed: int = 0

    @property
    def unsealed(self) -> Embeddings:
        """The rows that are not in the codes, (N, D)."""
        return self.vectors[self.sealed : self.count]

    def appended(self, vectors: Embeddings) -> "Delta":
        """The state with (N, D) more rows; only the newest state may be appended to."""
        store, count = self.vectors, self.count + len(vectors)
        if count > len(store):
            store = np.empty((max(count, 2 * len(store)), store.shape[1]), np.float32)
            store[: self.count] = self.vectors[: self.count]
        store[self.count : count] = vectors
        return replace(self, vectors=store, count=count)._sealed()

    def behind(self, codes: Any | None, *, unhurried: bool) -> "Delta":
        """The state over the codes of a version, None where that is flat; of rows that were appended without any.

        `unhurried` is as of `indexer.ivfpq.extended`.
        """
        return replace(self, codes=codes)._sealed(unhurried=unhurried)

    def settled(self, *, unhurried: bool = True) -> "Delta":
        """The state with all rows in the codes, if there are codes; `unhurried` is as of `indexer.ivfpq.extended`."""
        if self.codes is None or self.sealed == self.count:
            return self
        codes = ivfpq.extended(self.codes, self.unsealed, unhurried=unhurried)
        return replace(self, codes=codes, sealed=self.count)

    def _sealed(self, *, unhurried: bool = True) -> "Delta":
        """The state with all rows in the codes, if so many are not that this is worth a copy."""
        if self.codes is None or self.count - self.sealed < max(SEAL_ROWS, self.codes.ntotal // 1000):
            return self
        return self.settled(unhurried=unhurried)


@dataclass(frozen=True, eq=False)
class Upserted:
    """Which item each row of the delta is: append-only, shared between snapshots.

    Attributes:
        items, payloads: by row; a payload as JSON, None where there is none.
        rows: of each item, the last one.
    """

    items: list[str] = field(default_factory=list)
    payloads: list[str | None] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)

    def extend(self, changes: Sequence[Change]) -> None:
        """Say what the next rows are."""
        self.rows.update((change.item, row) for row, change in enumerate(changes, len(self.items)))
        self.items.extend(change.item for change in changes)
        self.payloads.extend(change.payload for change in changes)


def empty(dim: int) -> Delta:
    """The state before anything was upserted, without codes."""
    return Delta(np.empty((SEAL_ROWS, dim), np.float32), 0, None)


def best(similarities: Embeddings, rows: Rows, k: int) -> Neighbours:
    """The k nearest of at least k candidates (Q, c), nearest first."""
    if k < similarities.shape[1] > _SORTED:
        similarities, rows = _taken(similarities, rows, similarities.argpartition(-k, axis=1)[:, -k:])
    return _taken(similarities, rows, similarities.argsort(axis=1)[:, : -k - 1 : -1])


def _taken(similarities: Embeddings, rows: Rows, places: npt.NDArray[np.intp]) -> Neighbours:
    """The candidates at these (Q, n) places of (Q, c)."""
    if len(places) > 1:  # counted through all queries: NumPy finds a pair of indices more slowly
        places = places + np.arange(len(places))[:, None] * similarities.shape[1]
    return similarities.take(places), rows.take(places)
