"""Which of the nearest items become hits: similar enough, one of each group, no copies of each other, diverse."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.column import Codes
from indexer.filters import Field
from indexer.rows import Embeddings

Positions = npt.NDArray[np.int64]

MAX_CANDIDATES = (
    10_000  # nearest items looked at for one answer; if all are near duplicates, 30 ms (bench_filters.py)
)
POOL = 5  # candidates per hit that diversity chooses from: beyond, what differs is hardly alike any more
TIE = 1e-6  # the similarity of two equal images differs from 1 by some 1e-7


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How hits are chosen among the nearest items; by default, they are the nearest.

    Attributes:
        min_similarity: of each hit to the query, in [-1, 1].
        near_duplicate_threshold: a hit as similar to a better one as this, in (0, 1], is left out.
        group_by: a payload field, of whose every value only the best hit is kept.
        diversity: in [0, 1]; how much hits should differ, at the cost of their similarity to the query.
    """

    min_similarity: float | None = None
    near_duplicate_threshold: float | None = None
    group_by: Field | None = None
    diversity: float = 0.0


def ranked(
    search: Callable[[int], tuple[Embeddings, Positions]],
    embeddings: Callable[[Positions], Embeddings],
    groups: Codes | None,
    top_k: int,
    ranking: Ranking,
) -> tuple[Embeddings, Positions]:
    """Search until there are `top_k` hits by a ranking, or all items or the 10,000 nearest were looked at.

    Args:
        search: gives the similarities and rows of the k nearest items, each (k,), nearest first; fewer than k where
            there are no more. Called again with a larger k where too many were left out.
        embeddings: gives the embeddings of rows, (k, D) float32, unit length.
        groups: (rows,) the codes of the field to group by, 0 where a row lacks it; None where it is not grouped.
        top_k: hits wanted, at least 1.
        ranking: which ones.

    Returns:
        Similarities (k,) and rows (k,), k at most `top_k`: nearest first, or with diversity in the order of choosing.
    """
    wanted = POOL * top_k if ranking.diversity else top_k
    k = min(2 * wanted, MAX_CANDIDATES)
    while True:
        similarities, rows = search(k)
        enough = similar_enough(similarities, ranking.min_similarity)
        last = k == MAX_CANDIDATES or enough < k
        similarities, rows = similarities[:enough], rows[:enough]
        kept = _kept(embeddings, groups, rows, wanted, ranking.near_duplicate_threshold)
        if last or len(kept) == wanted:
            break
        k = min(4 * k, MAX_CANDIDATES)
    if ranking.diversity:
        kept = kept[diverse(similarities[kept], embeddings(rows[kept]), ranking.diversity, top_k)]
    return similarities[kept], rows[kept]


def _kept(
    embeddings: Callable[[Positions], Embeddings],
    groups: Codes | None,
    rows: Positions,
    wanted: int,
    threshold: float | None,
) -> Positions:
    if groups is None and threshold is None:
        return np.arange(min(wanted, len(rows)))
    codes = np.zeros(len(rows), np.int32) if groups is None else groups[rows]
    return distinct(codes, None if threshold is None else embeddings(rows), threshold or 1.0, wanted)


def similar_enough(similarities: Embeddings, min_similarity: float | None) -> int:
    """How many of (k,) similarities, highest first, are at least `min_similarity`."""
    if min_similarity is None:
        return len(similarities)
    return int(np.count_nonzero(similarities >= np.float32(min_similarity)))  # a float on the wire, too


def distinct(groups: Codes, embeddings: Embeddings | None, threshold: float, wanted: int) -> Positions:
    """Go through candidates, best first, and keep each that is of a new group and no near duplicate of a kept one.

    Args:
        groups: (k,) codes; 0 is in no group.
        embeddings: (k, D) float32, unit length; None where near duplicates are kept.
        threshold: the similarity to a kept candidate from which one is left out, in (0, 1].
        wanted: how many to keep at most, at least 1.

    Returns:
        The positions that are kept, ascending.
    """
    kept, seen = list[int](), set[int]()
    chosen = None if embeddings is None else np.empty((min(wanted, len(groups)), embeddings.shape[1]), np.float32)
    for position, group in enumerate(groups.tolist()):
        if len(kept) == wanted:
            break
        if group in seen:
            continue
        if embeddings is not None and chosen is not None:
            if (chosen[: len(kept)] @ embeddings[position] >= threshold - TIE).any():
                continue
            chosen[len(kept)] = embeddings[position]
        kept.append(position)
        if group:
            seen.add(group)
    return np.array(kept, np.int64)


def diverse(similarities: Embeddings, embeddings: Embeddings, diversity: float, wanted: int) -> Positions:
    """Choose by maximal marginal relevance: alike to the query, and unlike what is chosen already.

    Carbonell and Goldstein, "The use of MMR", SIGIR 1998; their lambda is 1 - `diversity`, and both of their
    similarities are the cosine of embeddings.

    Args:
        similarities: (k,) to the query, highest first.
        embeddings: (k, D) float32, unit length.
        diversity: in [0, 1].
        wanted: at least 1.

    Returns:
        Positions in the order of choosing, at most `wanted`.
    """
    if not len(similarities):
        return np.empty(0, np.int64)
    order = [0]
    left = np.ones(len(similarities), bool)
    closest = np.full(len(similarities), -1.0, np.float32)
    while len(order) < min(wanted, len(similarities)):
        left[order[-1]] = False
        np.maximum(closest, embeddings @ embeddings[order[-1]], out=closest)
        scores = (1 - diversity) * similarities - diversity * closest
        order.append(int(np.where(left, scores, -np.inf).argmax()))
    return np.array(order, np.int64)
