"""A live index: upserts/s with durable acknowledgement, search with a delta and tombstones, search while upserting.

    python tests/benchmarks/bench_live.py [rows]

Builds a version of 100,000 (or so many) clustered rows of 128 dimensions, searches it as it is, then deletes 5 % of
it and upserts 5 %, and searches again: the same queries, one at a time and 16 at a time, in turns, in queries per CPU
second of one thread, at a cheap and at a thorough operating point. Upserts are batches of 100 embeddings with
payloads, each on the disk and searchable before the next. Prints a table and one JSON line; takes about a minute.
"""

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from indexer.adopt import adopt
from indexer.catalog import Catalog
from indexer.live import QUIET_S, LiveIndex
from indexer.live_snapshot import Snapshot
from indexer.records import Upsert
from indexer.rows import Embeddings
from indexer.store import Store
from indexer.version import open_version
from tests.serving import make_version

DIM, CLUSTERS, QUERIES, TOP_K = 128, 1_000, 1_000, 10
MODEL, SHARE, BATCH = "model", 0.05, 100
ROUNDS, TURN_S, UPSERTING_S = 5, 0.2, 6.0
POINTS = ((16, 10), (64, 40))  # nprobe, k_factor


def main(count: int) -> None:
    """Build, measure, print."""
    rng = np.random.default_rng(0)
    rows = clustered(rng, count + QUERIES)
    with tempfile.TemporaryDirectory() as root:
        store = Store(Path(root))
        items = [f"image {row:07}.jpg" for row in range(count)]
        version = open_version(make_version(store, "live", 1, MODEL, items, rows[:count]))
        catalog = Catalog(store.index("live"))
        adopt(catalog, version)
        live = LiveIndex(version, catalog)
        before = live.snapshot
        changed = rng.permutation(count)[: 2 * int(count * SHARE)]
        upserts_per_s = upsert(live, catalog, [f"new {n}" for n in range(len(changed) // 2)], rng)
        catalog.delete([items[row] for row in changed[len(changed) // 2 :]])
        live.refresh()
        time.sleep(2 * QUIET_S)
        live.refresh()  # what a server does now and then
        changes = f"delta {live.snapshot.delta.count:,}, hidden {live.snapshot.hidden:,}"
        speeds = compare(before, live.snapshot, rows[count:])
        latencies = while_upserting(live, catalog, rows[count:], rng)
    print(f"{count:,} x {DIM}, {changes}")
    print(f"upserts/s, durable and searchable, batches of {BATCH}: {upserts_per_s:,.0f}")
    for setting, (as_built, changed_since, ratio) in speeds.items():
        print(f"{setting:28} {as_built:9,.0f} -> {changed_since:9,.0f} queries/CPU s, {ratio:.2f}")
    print(", ".join(f"{name} {value:.2f}" for name, value in latencies.items()))
    print(json.dumps({"upserts_per_s": upserts_per_s, "queries_per_s": speeds, "while_upserting": latencies}))


def clustered(rng: np.random.Generator, count: int) -> Embeddings:
    """(count, DIM) rows around 1,000 centres, unit length."""
    centres = np.random.default_rng(1).normal(size=(CLUSTERS, DIM))
    rows = centres[rng.integers(0, CLUSTERS, count)] + 0.6 * rng.normal(size=(count, DIM))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def upsert(live: LiveIndex, catalog: Catalog, items: list[str], rng: np.random.Generator) -> float:
    """Upsert these items in batches; how many a second."""
    vectors = clustered(rng, len(items))
    start = time.perf_counter()
    for first in range(0, len(items), BATCH):
        part = slice(first, first + BATCH)
        batch = [
            Upsert(item, vector, MODEL, payload={"colour": "green", "place": first})
            for item, vector in zip(items[part], vectors[part], strict=True)
        ]
        catalog.upsert(batch, dim=DIM, request_id=f"request {items[0]} {first}")
        live.refresh()
    return len(items) / (time.perf_counter() - start)


def compare(before: Snapshot, after: Snapshot, queries: Embeddings) -> dict[str, list[float]]:
    """Queries per CPU second before and after, and their ratio, by setting: medians of turns."""
    found = {}
    for point in POINTS:
        for batch in (1, 16):
            rates = [[rate(snapshot, queries, batch, point) for snapshot in (before, after)] for _ in range(ROUNDS)]
            slow = np.median([after_it / before_it for before_it, after_it in rates])
            found[f"nprobe {point[0]}, batches of {batch}"] = [*np.median(rates, axis=0).tolist(), float(slow)]
    return found


def rate(snapshot: Snapshot, queries: Embeddings, batch: int, point: tuple[int, int]) -> float:
    """Queries per CPU second of this thread, over TURN_S of them."""
    done, start = 0, time.thread_time()
    while (spent_s := time.thread_time() - start) < TURN_S:
        first = done % (len(queries) - batch)
        snapshot.search(queries[first : first + batch], TOP_K, nprobe=point[0], k_factor=point[1])
        done += batch
    return done / spent_s


def while_upserting(
    live: LiveIndex, catalog: Catalog, queries: Embeddings, rng: np.random.Generator
) -> dict[str, float]:
    """p99 of single searches, idle and while another thread upserts 2,000 items/s."""
    found = {"idle p99 ms": p99_ms(live, queries)}
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            start = time.perf_counter()
            upsert(live, catalog, [f"while {number} {n}" for n in range(BATCH)], rng)
            number += 1
            stop.wait(max(0.0, BATCH / 2_000 - (time.perf_counter() - start)))
        found["upserts_per_s"] = number * BATCH / UPSERTING_S

    writer = threading.Thread(target=write)
    writer.start()
    found["upserting p99 ms"] = p99_ms(live, queries)
    stop.set()
    writer.join()
    return found


def p99_ms(live: LiveIndex, queries: Embeddings) -> float:
    """Of searches one after the other, on the snapshot of the moment, for UPSERTING_S."""
    latencies, end = list[float](), time.perf_counter() + UPSERTING_S
    while (start := time.perf_counter()) < end:
        first = len(latencies) % len(queries)
        live.snapshot.search(queries[first : first + 1], TOP_K)
        latencies.append(time.perf_counter() - start)
    return float(np.percentile(latencies, 99)) * 1000


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
