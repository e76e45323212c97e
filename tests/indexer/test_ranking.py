"""Choosing hits among the nearest: against loops that are written from the definitions."""

import numpy as np
import pytest

from indexer import ranking
from indexer.column import Codes
from indexer.ranking import MAX_CANDIDATES, Positions, Ranking
from indexer.rows import Embeddings

DIM = 4


def drawn(seed: int, count: int = 40) -> tuple[Embeddings, Embeddings, Codes]:
    """Similarities to a query, highest first, the embeddings they are of, and groups; with copies and ties."""
    rng = np.random.default_rng(seed)
    some = rng.standard_normal((count // 2 + 1, DIM))
    rows = some[rng.integers(0, len(some), count)] + rng.choice([0, 0.05], (count, 1)) * rng.standard_normal(
        (count, DIM)
    )
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    rows = rows[np.argsort(-rows[:, 0], kind="stable")]
    return rows[:, 0].copy(), rows, rng.integers(0, 8, count).astype(np.int32)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("threshold", [0.3, 0.99, 1.0])
@pytest.mark.parametrize("wanted", [1, 5, 100])
def test_distinct_hits_are_those_of_the_definition(seed: int, threshold: float, wanted: int) -> None:
    """Each is the best that is of no group before and is like none before."""
    _, rows, groups = drawn(seed)
    expected = naive_distinct(groups.tolist(), rows.tolist(), threshold)[:wanted]
    assert expected == ranking.distinct(groups, rows, threshold, wanted).tolist()
    alone = naive_distinct([0] * len(groups), rows.tolist(), threshold)[:wanted]
    assert alone == ranking.distinct(np.zeros_like(groups), rows, threshold, wanted).tolist()
    grouped = naive_distinct(groups.tolist(), rows.tolist(), 2.0)[:wanted]
    assert grouped == ranking.distinct(groups, None, threshold, wanted).tolist()


def naive_distinct(groups: list[int], rows: list[list[float]], threshold: float) -> list[int]:
    kept: list[int] = []
    for position in range(len(rows)):
        new_group = groups[position] == 0 or all(groups[other] != groups[position] for other in kept)
        if new_group and all(dot(rows[other], rows[position]) < threshold - 1e-6 for other in kept):
            kept.append(position)
    return kept


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_of_equal_images_one_is_kept() -> None:
    """At threshold 1 too, though float32 gives some copies a similarity a little below."""
    rows = np.random.default_rng(0).standard_normal((50, 256)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert ((rows * rows).sum(axis=1) < 1).any()
    for row in rows:
        assert ranking.distinct(np.zeros(3, np.int32), np.tile(row, (3, 1)), 1.0, 3).tolist() == [0]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("diversity", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("wanted", [1, 7, 100])
def test_diverse_hits_maximise_the_marginal_relevance(seed: int, diversity: float, wanted: int) -> None:
    """Each one, given those before it, as Carbonell and Goldstein define it; scores as close as 1e-6 are a tie."""
    similarities, rows, _ = drawn(seed)
    order = ranking.diverse(similarities, rows, diversity, wanted).tolist()
    assert len(order) == len(set(order)) == min(wanted, len(rows))
    assert order[0] == 0
    for place in range(1, len(order)):
        scores = naive_relevance(similarities.tolist(), rows.tolist(), order[:place], diversity)
        assert scores[order[place]] >= max(scores.values()) - 1e-6


def naive_relevance(
    similarities: list[float], rows: list[list[float]], before: list[int], diversity: float
) -> dict[int, float]:
    return {
        position: (1 - diversity) * similarities[position]
        - diversity * max(dot(rows[position], rows[other]) for other in before)
        for position in range(len(rows))
        if position not in before
    }


def test_no_diversity_keeps_the_order() -> None:
    """And nothing is made of nothing."""
    similarities, rows, _ = drawn(3)
    assert ranking.diverse(similarities, rows, 0.0, 10).tolist() == list(range(10))
    assert ranking.diverse(similarities[:0], rows[:0], 0.5, 10).tolist() == []


@pytest.mark.parametrize("limit", [-1.0, -0.2, 0.0, 0.5, 1.0, None])
def test_similar_enough_counts_from_the_best(limit: float | None) -> None:
    """Those equal to the limit among them."""
    similarities = np.array([1.0, 0.5, 0.5, 0.25, 0.0, -0.2, -1.0], np.float32)
    bound = -1.0 if limit is None else np.float32(limit)
    assert sum(value >= bound for value in similarities) == ranking.similar_enough(similarities, limit)


class Gallery:
    """Rows by their similarity to one query, and how many were searched for."""

    def __init__(self, rows: Embeddings) -> None:
        order = np.argsort(-rows[:, 0], kind="stable")
        self.rows = rows
        self.order = order
        self.searched: list[int] = []

    def search(self, k: int) -> tuple[Embeddings, Positions]:
        self.searched.append(k)
        return self.rows[self.order[:k], 0], self.order[:k]

    def embeddings(self, rows: Positions) -> Embeddings:
        return self.rows[rows]

    def ranked(self, top_k: int, wanted: Ranking, groups: Codes | None = None) -> list[int]:
        similarities, rows = ranking.ranked(self.search, self.embeddings, groups, top_k, wanted)
        assert self.rows[rows, 0].tolist() == similarities.tolist()
        return [int(row) for row in rows]


def circle(count: int) -> Embeddings:
    """Unit rows in the plane; row 0 is the query, and the others turn away from it."""
    angles = np.linspace(0, np.pi, count)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_nothing_asked_gives_the_nearest() -> None:
    """Fewer where there are fewer."""
    gallery = Gallery(circle(30))
    assert gallery.ranked(10, Ranking()) == list(range(10))
    assert gallery.ranked(50, Ranking()) == list(range(30))


def test_more_is_searched_until_there_are_enough_groups() -> None:
    """Where the nearest hundreds are all of one."""
    groups = np.repeat(np.arange(1, 11), 300).astype(np.int32)
    gallery = Gallery(circle(3_000))
    assert gallery.ranked(4, Ranking(group_by=("kind",)), groups) == [0, 300, 600, 900]
    assert gallery.searched == [8, 32, 128, 512, 2048]


def test_no_more_than_the_nearest_ten_thousand_are_looked_at() -> None:
    """The answer is then shorter."""
    groups = (np.arange(12_000) // 6_000 + 1).astype(np.int32)
    groups[11_000] = 3
    gallery = Gallery(circle(12_000))
    assert gallery.ranked(3, Ranking(group_by=("kind",)), groups) == [0, 6_000]
    assert gallery.searched[-1] == MAX_CANDIDATES
    assert gallery.ranked(2, Ranking(group_by=("kind",)), groups) == [0, 6_000]


def test_the_search_ends_at_the_least_similarity() -> None:
    """No larger one is made when a hit below it was seen, however few there are."""
    gallery = Gallery(circle(3_000))
    expected = np.flatnonzero(gallery.rows[:, 0] >= np.float32(0.9999))
    assert 0 < len(expected) < 20
    assert gallery.ranked(20, Ranking(min_similarity=0.9999)) == expected.tolist()
    assert gallery.searched == [40]


def test_near_duplicates_of_a_kept_hit_are_left_out() -> None:
    """So that hits are as far from each other as the threshold says, and there are as many as wanted."""
    gallery = Gallery(circle(1_801))  # a tenth of a degree each
    degree = float(np.cos(np.deg2rad(0.95)))
    assert gallery.ranked(5, Ranking(near_duplicate_threshold=degree)) == [0, 10, 20, 30, 40]


def test_a_hit_that_is_left_out_leaves_none_out() -> None:
    """Row 1 is of row 0's group, so that row 2, which is like row 1 alone, is kept."""
    angles = np.deg2rad([0, 8, 16])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    wanted = Ranking(near_duplicate_threshold=float(np.cos(np.deg2rad(10))), group_by=("kind",))
    assert Gallery(rows).ranked(3, wanted, np.array([1, 1, 0], np.int32)) == [0, 2]


def test_diversity_chooses_among_what_the_others_leave() -> None:
    """Here five times as many, of one group each, the best of them first."""
    groups = np.repeat(np.arange(1, 301), 10).astype(np.int32)
    gallery = Gallery(circle(3_000))
    found = gallery.ranked(4, Ranking(group_by=("kind",), diversity=0.8), groups)
    pool = np.arange(0, 200, 10)
    order = ranking.diverse(gallery.rows[pool, 0], gallery.rows[pool], 0.8, 4)
    assert pool[order].tolist() == found
    assert found[:2] == [0, 190]
