"""Search where only some rows may be found: recall@10 against exact search among them, and what it costs.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_masks.py [rows]

100,000 (or so many) rows of 128 dimensions in 1,000 clusters, at the plan's first operating point. A mask is random,
or all rows of some clusters, so that most queries have none of their own cluster's rows to find. Queries come one at
a time; their time includes taking in the mask, not making it. Prints JSON lines; takes about 20 CPU seconds.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.catalog import Catalog
from indexer.live import LiveIndex
from indexer.live_snapshot import Snapshot
from indexer.rows import Embeddings
from indexer.store import Store
from indexer.version import open_version
from tests.serving import make_version

DIM, CLUSTERS, SPREAD, QUERIES, TOP_K = 128, 1_000, 0.6, 200, 10
SHARES = (0.0001, 0.001, 0.01, 0.05, 0.2, 0.5, 1.0)
TIE = 1e-6

Mask = npt.NDArray[np.bool_]
Figures = dict[str, str | int | float]


def main(count: int) -> None:
    """Build a version, and print a line for each share and kind of mask."""
    rng = np.random.default_rng(0)
    clusters = rng.integers(0, CLUSTERS, count + QUERIES)
    rows = rng.standard_normal((CLUSTERS, DIM))[clusters] + SPREAD * rng.standard_normal((count + QUERIES, DIM))
    unit = np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
    with tempfile.TemporaryDirectory() as root:
        store = Store(Path(root))
        items = [f"image {row:07}.jpg" for row in range(count)]
        version = open_version(make_version(store, "masks", 1, "model", items, unit[:count]))
        snapshot = LiveIndex(version, Catalog(store.index("masks"))).snapshot
        for share in SHARES:
            for kind, mask in masks(rng, clusters[:count], share):
                print(json.dumps({"share": share, "mask": kind, **measure(snapshot, unit, mask)}), flush=True)


def masks(rng: np.random.Generator, clusters: npt.NDArray[np.int64], share: float) -> Iterator[tuple[str, Mask]]:
    """A random mask, and one of whole clusters, or of a part of one where that is too many."""
    yield "random", rng.random(len(clusters)) < share
    order = rng.permutation(CLUSTERS)
    whole = np.isin(clusters, order[: max(1, round(share * CLUSTERS))])
    yield "clusters", whole & (rng.random(len(clusters)) < share * CLUSTERS)


def measure(snapshot: Snapshot, unit: Embeddings, mask: Mask) -> Figures:
    """Recall and time of a mask, at the operating point of the manifest."""
    queries, matching = unit[snapshot.rows :], np.flatnonzero(mask)
    k = min(TOP_K, len(matching))
    exact = np.sort(queries @ unit[matching].T, axis=1)[:, ::-1][:, :k]
    found, full, started = np.empty_like(exact), True, time.thread_time()
    for place in range(QUERIES):
        similarities, _ = snapshot.search(queries[place : place + 1], TOP_K, mask=mask)
        full &= similarities.shape[1] == k
        found[place] = similarities[0]
    took_s = time.thread_time() - started
    point = snapshot._operating_point(None, None, len(matching))
    return {
        "matching": len(matching),
        "way": "exact" if snapshot._are_few(len(matching), point) else f"nprobe {point[0]}, k_factor {point[1]}",
        "full": full,
        "recall_at_10": round(float((found >= exact[:, -1:] - TIE).mean()), 4),
        "ms": round(took_s / QUERIES * 1e3, 3),
    }


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
