"""What a transaction wrote, taken in by a live index without reading it: the state is the one that reading gives."""

import dataclasses
from contextlib import closing

import numpy as np
import pytest

from indexer import live
from indexer.catalog import Catalog
from indexer.live import LiveIndex
from indexer.live_snapshot import Snapshot
from indexer.records import Upsert
from indexer.rows import Embeddings
from indexer.store import Store
from indexer.version import open_version
from tests.serving import make_version

MODEL, DIM = "model", 16


def _vectors(rng: np.random.Generator, count: int) -> Embeddings:
    drawn = rng.standard_normal((count, DIM))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def _upserts(rng: np.random.Generator) -> list[Upsert]:
    """Of every kind, among them such as are refused."""
    upserts = []
    for number, vector in zip(rng.integers(0, 600, 40), _vectors(rng, 40), strict=True):
        item, payload = f"item {number}", {"number": int(number)} if number % 2 else None
        kinds = [
            Upsert(item, vector, MODEL, payload=payload),
            Upsert(item, vector, "other", payload=payload),
            Upsert(item, image=vector.tobytes(), payload=payload),
            Upsert(item, vector[:3], MODEL),
            Upsert(item, payload={"alone": True}),
        ]
        upserts.append(kinds[rng.choice(len(kinds), p=[0.7, 0.1, 0.1, 0.095, 0.005])])
    return upserts


def _assert_alike(one: Snapshot, other: Snapshot) -> None:
    assert (one.sequence, one.delta.count, one.delta.sealed) == (
        other.sequence,
        other.delta.count,
        other.delta.sealed,
    )
    np.testing.assert_array_equal(one.live, other.live)
    np.testing.assert_array_equal(one.delta.vectors[: one.delta.count], other.delta.vectors[: other.delta.count])
    assert dataclasses.asdict(one.upserted) == dataclasses.asdict(other.upserted)


@pytest.mark.parametrize("count", [400, 5_000], ids=["flat", "codes"])
def test_what_was_written_is_taken_in_as_if_it_were_read(
    count: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row for row, whatever was upserted, deleted, refused or repeated, and whoever else wrote before."""
    monkeypatch.setattr(live, "QUIET_S", float("inf"))
    rng = np.random.default_rng(0)
    items = [f"item {row}" for row in range(count)]
    version = open_version(make_version(store, "index", 1, MODEL, items, _vectors(rng, count)))
    with closing(Catalog(store.index("index"))) as catalog, closing(Catalog(store.index("index"))) as other:
        told, reading, requests, known = LiveIndex(version, catalog), LiveIndex(version, catalog), [_upserts(rng)], 0
        for step in range(40):
            if step % 6 == 5:
                other.upsert(_upserts(rng), dim=DIM)
            with catalog.transaction() as transaction:
                for _ in range(rng.integers(1, 4)):
                    requests.append(_upserts(rng))
                    number = int(rng.integers(0, len(requests)))  # of which some come again
                    catalog.upsert(requests[number], dim=DIM, request_id=f"request {number}")
                    catalog.delete([f"item {number}" for number in rng.integers(0, 600, 10)])
            known += bool(transaction.changes(reading.snapshot.sequence, MODEL))
            assert told.refresh(transaction) == reading.refresh()
            _assert_alike(told.snapshot, reading.snapshot)
        assert 10 < known < 35


def test_what_others_wrote_meanwhile_is_taken_in_too(store: Store) -> None:
    """Before the transaction, so that all is read, and after it; what was taken in by then is not taken in again."""
    vectors = _vectors(np.random.default_rng(0), 5)
    version = open_version(make_version(store, "index", 1, MODEL, ["first"], vectors[:1]))
    with closing(Catalog(store.index("index"))) as catalog, closing(Catalog(store.index("index"))) as other:
        index = LiveIndex(version, catalog)
        other.upsert([Upsert("before", vectors[1], MODEL)], dim=DIM)
        for item, vector in (("ours", vectors[2]), ("ours, too", vectors[3])):
            with catalog.transaction() as transaction:
                catalog.upsert([Upsert(item, vector, MODEL)], dim=DIM)
            other.upsert([Upsert("after", vectors[4], MODEL)], dim=DIM)
            assert index.refresh(transaction) == (3 if item == "ours" else 2)
            assert index.refresh(transaction) == 0
        found = {item: index.snapshot.embedding(index.snapshot.row_of(item)).tolist() for item in ("before", "ours")}
        assert found == {"before": vectors[1].tolist(), "ours": vectors[2].tolist()}
        assert index.snapshot.count == 5
