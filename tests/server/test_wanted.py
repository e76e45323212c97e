"""What a search asks for, and how thoroughly it is then searched."""

import numpy as np
import pytest
from kinsight.v1.search_service_pb2 import SearchRequest

from indexer.store import Store
from server.indexes import Indexes
from server.wanted import group_of
from tests.serving import make_model, make_version

MEASURED = (
    {"nprobe": 1, "k_factor": 2, "recall_at_10": 0.6},
    {"nprobe": 2, "k_factor": 4, "recall_at_10": 0.9},
    {"nprobe": 4, "k_factor": 8, "recall_at_10": 0.97},
)


@pytest.mark.parametrize(
    ("target", "expected"), [(0.1, (1, 2)), (0.6, (1, 2)), (0.61, (2, 4)), (0.95, (4, 8)), (1, (4, 8))]
)
def test_the_cheapest_way_that_was_measured_to_reach_a_recall_is_taken(
    target: float, expected: tuple[int, int], store: Store
) -> None:
    """Or else the most thorough one."""
    rows = np.random.default_rng(0).normal(size=(5_000, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    items = [str(row) for row in range(len(rows))]
    make_version(store, "random", 1, make_model(store), items, rows, measured=MEASURED)
    indexes = Indexes(store)
    indexes.refresh()
    group = group_of(SearchRequest(params={"target_recall": target}), indexes.get(""))
    assert (group.nprobe, group.k_factor, group.exact) == (*expected, False)


def test_what_compares_with_every_row_has_any_recall(store: Store) -> None:
    """A flat index was not measured, and is searched as ever."""
    make_version(store, "flat", 1, make_model(store), ["a"], np.eye(1, 32, dtype=np.float32))
    indexes = Indexes(store)
    indexes.refresh()
    group = group_of(SearchRequest(params={"target_recall": 1}), indexes.get(""))
    assert (group.nprobe, group.k_factor, group.exact) == (None, None, False)
