"""What is searched at one moment: a version, less what was deleted or replaced since, and what was upserted since.

Not the copy for a restore, which is `indexer.snapshot`.
"""

from collections.abc import Iterable
from functools import cached_property

import numpy as np

from indexer import ivfpq
from indexer.columns import Columns
from indexer.delta import Delta, Mask, Upserted, best
from indexer.filters import Expression
from indexer.items import UnknownItem
from indexer.ivfpq import Among, Neighbours, Rows
from indexer.rows import Embeddings
from indexer.version import Version

# So many rows that match a mask are compared one by one in any case, in some 0.4 ms for 128 dimensions, and none is
# missed; more of them where scanning codes would take as long (python tests/benchmarks/bench_masks.py).
FEW_ROWS = 8_192
ROW_CODES = 10  # codes scanned in the time of comparing with one row
MOST_REFINED = 4  # times the candidates of a search without a mask are compared at most


class Snapshot:
    """What an index held at one moment; immutable, and safe for searches from several threads at once.

    Its rows are the version's and, counted on, the delta's.

    Attributes:
        version: that it is based on.
        sequence: of the last change that it holds.
        delta: what was upserted since.
        live: (rows,), which may be found.
        upserted: which item each row of the delta is; shared with other snapshots, so it may have more rows.
        columns: payload fields by row; shared likewise.
    """

    def __init__(
        self, version: Version, rows: Delta, live: Mask, upserted: Upserted, columns: Columns, sequence: int
    ) -> None:
        """Take what it is made of, as it is; `rows` are the delta's."""
        self.version = version
        self.delta = rows
        self.live = live
        self.upserted = upserted
        self.columns = columns
        self.sequence = sequence

    @property
    def rows(self) -> int:
        """How many rows there are, hidden ones too."""
        return self.version.count + self.delta.count

    @cached_property
    def count(self) -> int:
        """How many items can be found."""
        return int(np.count_nonzero(self.live))

    @cached_property
    def hidden(self) -> int:
        """How many rows of the version can't be found, because their items were deleted or replaced."""
        return self.version.count - int(np.count_nonzero(self.live[: self.version.count]))

    @property
    def dead(self) -> int:
        """How many rows of the delta can't be found, because their items were deleted or replaced again."""
        return self.delta.count - int(np.count_nonzero(self.live[self.version.count :]))

    def search(
        self,
        embeddings: Embeddings,
        top_k: int,
        *,
        nprobe: int | None = None,
        k_factor: int | None = None,
        exact: bool = False,
        mask: Mask | None = None,
    ) -> Neighbours:
        """Find the nearest live items of each query.

        Args:
            embeddings: (Q, D) float32, unit length, made by the version's model.
            top_k: neighbours wanted, at least 1.
            nprobe: lists to scan, 1 to nlist; None for the measured value. Where fewer rows may be found, more lists
                are scanned, so that as many of those are passed as there are without a mask.
            k_factor: candidates per neighbour, of 10 at least, that are compared in full precision; None for the
                measured value.
            exact: compare with every row.
            mask: (rows,) bool, the rows that may be found; None for all. A few are all compared.

        Returns:
            Similarities (Q, k) float32 in [-1, 1], nearest first, and rows (Q, k) int64, where k is `top_k` or, if
            that is less, the number of live items that match.

        Raises:
            ValueError: an argument is not as said above.
        """
        self.version.check_search(embeddings, top_k, nprobe)
        queries = embeddings if embeddings.flags.carray else np.require(embeddings, np.float32, ["C", "A"])
        live, among, count = self._findable(mask)
        k = min(top_k, count)
        point = self._operating_point(nprobe, k_factor, count)
        if mask is not None and self._are_few(count, point):
            similarities, rows = self._search_few(queries, k, np.flatnonzero(live))
        elif exact or self.version.index.codes is None:
            similarities, rows = self._search_exact(queries, k, live, among)
        elif mask is None and (found := self._search_gpu(queries, k, point)):
            similarities, rows = found
        else:
            similarities, rows = self._search_codes(queries, k, point, live, among)
        # Products of float32 unit vectors exceed 1 by some 1e-7.
        np.minimum(similarities, 1.0, out=similarities)
        return np.maximum(similarities, -1.0, out=similarities), rows

    def settled(self) -> "Snapshot":
        """The same with all rows in the codes, where it has codes: searched faster, made in the time of a copy."""
        rows = self.delta.settled()
        if rows is self.delta:
            return self
        return Snapshot(self.version, rows, self.live, self.upserted, self.columns, self.sequence)

    def matching(self, expression: Expression) -> Mask:
        """The (rows,) that a filter holds for, for `search`; hidden rows may be among them.

        The first filter that uses a field reads the payloads of all items.
        """
        return self.columns.mask(expression, self.rows)

    def items(self, rows: Iterable[int]) -> list[str]:
        """The item ids of rows, in their order; raises IndexError for a row that is not there."""
        wanted = [int(row) for row in rows]
        first = self.version.count
        found = iter(self.version.items(row for row in wanted if row < first))
        upserted = self.upserted.items
        if wanted and max(wanted) >= self.rows:
            raise IndexError(f"row {max(wanted)} is not one of 0 to {self.rows - 1}")
        return [next(found) if row < first else upserted[row - first] for row in wanted]

    def row_of(self, item: str) -> int:
        """The row of a live item; raises UnknownItem."""
        row = self._delta_row(item)
        if row is not None and self.live[self.version.count + row]:
            return self.version.count + row
        main = self.version.row_of(item)
        if not self.live[main]:
            raise UnknownItem(f"no item {item!r} in this index any more")
        return main

    def embedding(self, row: int) -> Embeddings:
        """The embedding of a row, (D,) float32, unit length; raises IndexError."""
        first = self.version.count
        if row < first:
            return self.version.embedding(row)
        if row >= self.rows:
            raise IndexError(f"row {row} is not one of 0 to {self.rows - 1}")
        return np.array(self.delta.vectors[row - first])

    def embeddings(self, rows: Rows) -> Embeddings:
        """A copy of the embeddings of (N,) rows, (N, D) float32, unit length; raises IndexError."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.rows:
            raise IndexError(f"rows {rows.min()} to {rows.max()} are not of 0 to {self.rows - 1}")
        upserted = rows >= self.version.count
        found = np.empty((len(rows), self.version.manifest.dim), np.float32)
        found[~upserted] = self.version.embeddings(rows[~upserted])
        found[upserted] = self.delta.vectors[rows[upserted] - self.version.count]
        return found

    def _delta_row(self, item: str) -> int | None:
        """The last row of the delta that is this item's, as of this snapshot."""
        row = self.upserted.rows.get(item)
        if row is None or row < self.delta.count:
            return row
        # It was upserted again after this snapshot.
        earlier = reversed(range(self.delta.count))
        return next((row for row in earlier if self.upserted.items[row] == item), None)

    @cached_property
    def _among(self) -> Among | None:
        return None if self.count == self.rows else Among(self.live)

    def _findable(self, mask: Mask | None) -> tuple[Mask, Among | None, int]:
        """The live rows that match, in both forms, and how many they are."""
        if mask is None:
            return self.live, self._among, self.count
        if mask.dtype != np.bool_ or mask.shape != (self.rows,):
            raise ValueError(f"the mask is {mask.dtype} {mask.shape}; expected bool ({self.rows},)")
        live = mask & self.live
        return live, Among(live), int(np.count_nonzero(live))

    def _operating_point(self, nprobe: int | None, k_factor: int | None, count: int) -> tuple[int, int]:
        """How many lists and candidates, `nprobe` and `k_factor`, for a search that may find `count` of the rows.

        The nearest of fewer rows than the version had when its point was measured lie further away, in more lists;
        and they lie there more densely, for one whose own cluster may not be found, than the codes can tell apart.
        """
        plan = self.version.manifest.plan
        times = max(1.0, self.version.count / max(count, 1))
        lists = int((nprobe or plan["nprobe"]) * times)
        return min(lists, plan["nlist"]), int((k_factor or plan["k_factor"]) * min(times, MOST_REFINED))

    def _are_few(self, count: int, point: tuple[int, int]) -> bool:
        """Whether comparing with all of `count` rows is as fast as a search of the codes, or fast enough."""
        nlist = int(self.version.manifest.plan["nlist"])
        scanned = self.rows * point[0] // max(nlist, 1)
        return count <= max(FEW_ROWS, scanned // ROW_CODES)

    def _search_few(self, queries: Embeddings, k: int, rows: Rows) -> Neighbours:
        """Compare with these rows alone."""
        first = self.version.count
        split = int(np.searchsorted(rows, first))
        similarities, found = self.version.index.search_some(queries, min(k, split), rows[:split])
        newest = queries @ self.delta.vectors[rows[split:] - first].T
        places = np.broadcast_to(rows[split:], newest.shape)
        return best(np.concatenate([similarities, newest], 1), np.concatenate([found, places], 1), k)

    def _search_exact(self, queries: Embeddings, k: int, live: Mask, among: Among | None) -> Neighbours:
        """Compare with every row that may be found."""
        first = self.version.count
        main = min(k, int(np.count_nonzero(live[:first])))
        # Without rows to find FAISS would be asked for none, which it refuses.
        found = self.version.index.search_exact(queries, main, among) if main else _nothing(len(queries))
        return self._with_newest(queries, k, found, live, 0)

    def _search_codes(
        self, queries: Embeddings, k: int, point: tuple[int, int], live: Mask, among: Among | None
    ) -> Neighbours:
        """Compare with what the codes say is near, and with the rows that are not in the codes."""
        if not k or not self.delta.count:
            return self.version.index.search(queries, k, *point, among) if k else _nothing(len(queries))
        nprobe, k_factor = point
        count = ivfpq.compared(k, k_factor, self.version.count + self.delta.sealed)
        rows = ivfpq.candidates(self.delta.codes, queries, count, nprobe, among)
        near = ivfpq.compare(self.version.index.rows, self.delta.vectors, queries, rows)
        similarities, rows = self._with_newest(queries, k, (near, rows), live, self.delta.sealed)
        if -np.inf in similarities[:, -1].tolist():  # of one query in a tenth of the time that NumPy's `any` takes
            short = similarities[:, -1] == -np.inf
            similarities[short], rows[short] = self._search_exact(queries[short], k, live, among)
        return similarities, rows

    def _search_gpu(self, queries: Embeddings, k: int, point: tuple[int, int]) -> Neighbours | None:
        """As `_search_codes` without a mask, or nearer; None where no GPU searches, or too much changed since."""
        copy, first = self.version.gpu, self.version.count
        if copy is None or not k or self.delta.count > FEW_ROWS:
            return None
        # What is hidden a GPU can't pass over: for as many hidden rows as are wanted, others are fetched.
        near = copy.search(queries, min(2 * k if self.hidden else k, first), point[0])
        if near is None:
            return None
        similarities, rows = near
        live = (rows >= 0) & self.live[rows]
        similarities[~live] = -np.inf
        lacking = (live.sum(axis=1) < k) & (rows[:, -1] >= 0)  # although there was more in the lists
        similarities, rows = self._with_newest(queries, k, (similarities, rows), self.live, 0)
        lacking |= similarities[:, -1] == -np.inf
        if lacking.any():
            searched = self._search_codes(queries[lacking], k, point, self.live, self._among)
            similarities[lacking], rows[lacking] = searched
        return similarities, rows

    def _with_newest(self, queries: Embeddings, k: int, found: Neighbours, live: Mask, start: int) -> Neighbours:
        """The k nearest of what was found and of the delta's rows from `start` on."""
        known, first = found[0].shape[1], self.version.count + start
        if first == self.rows:
            return best(*found, k)
        width = known + self.rows - first
        similarities, rows = np.empty((len(queries), width), np.float32), np.empty((len(queries), width), np.int64)
        similarities[:, :known], rows[:, :known] = found
        np.matmul(queries, self.delta.vectors[start : self.delta.count].T, out=similarities[:, known:])
        similarities[:, known:][:, ~live[first:]] = -np.inf
        rows[:, known:] = np.arange(first, self.rows)
        return best(similarities, rows, k)


def _nothing(queries: int) -> Neighbours:
    return np.empty((queries, 0), np.float32), np.empty((queries, 0), np.int64)
