"""recall@10 of an index against exact search, with its confidence interval, on rows that it was not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from indexer.ivfpq import MEASURED_K, Index, Neighbours, Rows
from indexer.plan import Plan, more_thorough
from indexer.rows import Embeddings

BEST_RECALL = 0.999  # beyond it no more thorough point is measured, for searches that ask for more than the default
TIE = 1e-6  # similarities this close are one: float32 sums differ by that much from kernel to kernel

_Z = 1.96  # of a two-sided 95 % interval


@dataclass(frozen=True)
class Recall:
    """recall@10 with its 95 % confidence interval; without queries, the 1 of exact search.

    Attributes:
        recall_at_10: mean over the queries, in [0, 1].
        low, high: bounds of the interval.
        queries: how many were measured.
    """

    recall_at_10: float
    low: float
    high: float
    queries: int


EXACT = Recall(1.0, 1.0, 1.0, 0)  # a flat index is exact search itself: there is nothing to measure


@dataclass(frozen=True)
class OperatingPoint:
    """How thoroughly an index searches, and what that finds."""

    nprobe: int
    k_factor: int
    recall: Recall


def measure(index: Index, queries: Embeddings, held: Rows, start: Plan) -> list[OperatingPoint]:
    """The recall@10 of operating points, each more thorough than the one before, up to one that finds 0.999.

    From each point, more lists and more candidates are both tried, and what finds more is the next; where neither
    does, the last point is all that can be found.

    Args:
        index: with codes.
        queries: (Q, D) float32, the embeddings of the rows `held`.
        held: (Q,) rows that are in the index but were not in its training sample.
        start: of the index; its operating point is the first.
    """
    exact = index.search_exact(queries, MEASURED_K + 1)

    def at(nprobe: int, k_factor: int) -> OperatingPoint:
        found = index.search(queries, MEASURED_K + 1, nprobe, k_factor)
        return OperatingPoint(nprobe, k_factor, recall(exact, found, held))

    points = [at(start.nprobe, start.k_factor)]
    while (last := points[-1]).recall.recall_at_10 < BEST_RECALL:
        tried = [at(*point) for point in more_thorough(last.nprobe, last.k_factor, start.nlist)]
        best = max(tried, key=lambda point: point.recall.recall_at_10, default=last)
        if best.recall.recall_at_10 <= last.recall.recall_at_10:
            break
        points.append(best)
    return points


def choose(points: Sequence[OperatingPoint], target_recall: float) -> OperatingPoint:
    """The cheapest point whose recall@10 is at least this, or else the last."""
    return next((point for point in points if point.recall.recall_at_10 >= target_recall), points[-1])


def recall(exact: Neighbours, found: Neighbours, held: Rows) -> Recall:
    """How many of the 10 exact neighbours were found, the query's own row left out of both.

    A found row counts where its similarity is at least that of the exact 10th neighbour less 1e-6: among equal
    images any is as right as another. The interval is Wilson's over the queries; recalls of single queries lie in
    [0, 1], where no distribution varies more than the yes-or-no that Wilson's is for, so it is never too narrow,
    and it does not shrink to a point at recall 1.

    Args:
        exact: similarities and rows of exact search, each (Q, 11), nearest first.
        found: the same of the search that is measured.
        held: (Q,) the queries' own rows.
    """
    tenth = _without_self(exact, held)[:, -1:]
    hits = _without_self(found, held) >= tenth - TIE
    return _wilson(float(hits.mean()), len(held))


def _without_self(neighbours: Neighbours, held: Rows) -> Embeddings:
    similarities, rows = neighbours
    # A stable sort moves the own row behind the others; where it was not found, the last one falls out instead.
    others = np.argsort(rows == held[:, None], axis=1, kind="stable")[:, :-1]
    return np.take_along_axis(similarities, others, axis=1)


def _wilson(mean: float, count: int) -> Recall:
    square = _Z**2 / count
    centre = (mean + square / 2) / (1 + square)
    half = _Z / (1 + square) * np.sqrt(mean * (1 - mean) / count + square / (4 * count))
    return Recall(mean, max(0.0, float(centre - half)), min(1.0, float(centre + half)), count)
