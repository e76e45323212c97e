"""Where an index becomes faster than comparing with every row: the table behind `plan.FLAT_BELOW`.

Run: python tests/benchmarks/bench_plan.py
"""

import json
import time

import faiss
import numpy as np

from indexer import ivfpq
from indexer.ivfpq import Index
from indexer.plan import FLAT_BELOW, LADDER, Plan

QUERIES = 300


def _index(count: int, dim: int) -> tuple[Index, np.ndarray]:
    rows = np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    nlist, train_rows = 64, min(count, 64 * 64)
    codes = ivfpq.train(_plan(nlist, train_rows, dim), rows[:train_rows], use_gpu=False)
    ivfpq.add(codes, rows, lambda done: None)
    flat = faiss.IndexFlatIP(dim)
    flat.add(rows)
    return Index(flat, codes), rows[:QUERIES]


def _plan(nlist: int, train_rows: int, dim: int) -> Plan:
    return Plan(
        kind="ivfpq",
        factory=f"IVF{nlist},PQ{dim // 2}x4fs",
        nlist=nlist,
        nprobe=LADDER[1][0],
        k_factor=LADDER[1][1],
        train_rows=train_rows,
        reason="to compare",
        serving_bytes=0,
        peak_build_bytes=0,
    )


def _ratio(count: int, dim: int) -> float:
    index, queries = _index(count, dim)
    nprobe, k_factor = LADDER[1]
    start = time.perf_counter()
    for query in queries:
        index.search_exact(query[None], 10)
    flat_s = time.perf_counter() - start
    for query in queries:
        index.search(query[None], 10, nprobe, k_factor)
    ivfpq_s = time.perf_counter() - start - flat_s
    print(f"{count:,} × {dim}: flat {QUERIES / flat_s:,.0f}/s, ivfpq {QUERIES / ivfpq_s:,.0f}/s")
    return flat_s / ivfpq_s


def main() -> None:
    """Print both speeds of single queries at, above and far above the threshold."""
    for dim in (128, 512):
        for count in (FLAT_BELOW, 2 * FLAT_BELOW, 4 * FLAT_BELOW):
            print(json.dumps({"count": count, "dim": dim, "ratio": _ratio(count, dim)}))


if __name__ == "__main__":
    main()
