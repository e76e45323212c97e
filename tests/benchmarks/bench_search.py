"""Search by embedding over gRPC against the same search in-process: `python tests/benchmarks/bench_search.py`.

100,000 × 128 clustered embeddings, top_k 10, at the first operating point with recall@10 >= 0.99. The clients are
processes of their own, on the same machine as the server. Prints a table and one JSON line; takes about a minute.
"""

import asyncio
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.plan import LADDER
from indexer.store import Store
from indexer.version import Version, open_version
from server.app import serve
from tests.serving import make_model, make_version

Floats = npt.NDArray[np.float32]

COUNT, DIM, CLUSTERS, QUERIES, TOP_K = 100_000, 128, 1_000, 2_000, 10
RECALL = 0.99
SECONDS = float(os.environ.get("BENCH_SECONDS", "5"))  # of each measurement


def main() -> None:
    """Build, measure in-process, measure with 1 and 8 clients, print."""
    embeddings, queries = clustered(np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as root:
        store = Store(Path(root))
        # Searching by embedding never runs the model, but a server refuses an index whose model it lacks.
        model = make_model(store, dim=DIM)
        items = [f"class {row % 1000:04d}/image {row:06d}.jpg" for row in range(COUNT)]
        version = open_version(make_version(store, "clustered", 1, model, items, embeddings))
        nprobe, recall = operating_point(version, queries)
        in_process = measure_in_process(version, queries, nprobe)
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        server = context.Process(target=run_server, args=(root, theirs))
        server.start()
        target = f"127.0.0.1:{mine.recv()}"
        served = {clients: measure_served(target, model, queries, nprobe, clients) for clients in (1, 8)}
        server.terminate()
        server.join()
    report(recall, nprobe, in_process, served)


def clustered(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Embeddings (N, D) and queries (Q, D) around the same 1,000 centres, unit length."""
    centres = rng.normal(size=(CLUSTERS, DIM))
    rows = centres[rng.integers(0, CLUSTERS, COUNT + QUERIES)] + 0.6 * rng.normal(size=(COUNT + QUERIES, DIM))
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit[:COUNT], unit[COUNT:]


def operating_point(version: Version, queries: Floats) -> tuple[int, float]:
    """The least nprobe of the planner's ladder that reaches the recall at this version's k_factor, and its recall."""
    _, exact = version.search(queries, TOP_K, exact=True)
    recall = 0.0
    for nprobe in sorted({point[0] for point in LADDER}):
        _, found = version.search(queries, TOP_K, nprobe=nprobe)
        recall = float(np.mean([len(np.intersect1d(a, b)) / TOP_K for a, b in zip(exact, found, strict=True)]))
        if recall >= RECALL:
            return nprobe, recall
    sys.exit(f"recall@10 is {recall:.4f} at best, below {RECALL}: nothing to compare")


def measure_in_process(version: Version, queries: Floats, nprobe: int) -> dict[str, float]:
    """Queries/s of one thread: the search of one query at a time and of 16, each with the lookup of its items."""
    rates = {}
    for batch in (1, 16):
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < SECONDS / 2:
            first = done % (QUERIES - batch)
            _, rows = version.search(queries[first : first + batch], TOP_K, nprobe=nprobe)
            version.items(rows.ravel())
            done += batch
        rates[f"batch_{batch}"] = done / (time.perf_counter() - start)
    return rates


def measure_served(target: str, model: str, queries: Floats, nprobe: int, clients: int) -> dict[str, float]:
    """Queries/s of all clients together, and the latency that a client sees."""
    context = multiprocessing.get_context("spawn")
    go = context.Barrier(clients)
    with context.Pool(clients, _keep, (go,)) as pool:
        arguments = [(target, model, queries[number::clients], nprobe) for number in range(clients)]
        latencies = [np.array(found) for found in pool.starmap(run_client, arguments, chunksize=1)]
    together = np.concatenate(latencies) * 1000
    return {
        "queries_per_s": len(together) / SECONDS,
        "p50_ms": float(np.percentile(together, 50)),
        "p99_ms": float(np.percentile(together, 99)),
    }


def run_server(root: str, port: Connection) -> None:
    """The server process."""
    logging.disable()
    asyncio.run(serve(Store(Path(root)), listen="127.0.0.1:0", index=None, ready=port.send))


def _keep(go: object) -> None:
    globals()["_go"] = go


def run_client(target: str, model: str, queries: Floats, nprobe: int) -> list[float]:
    """The client process: one search after the other for SECONDS; returns each one's seconds."""
    from kinsight_client import Client, Embedding

    latencies = []
    with Client(target) as client:
        client.search(embedding=Embedding(model, queries[0]))  # connects
        globals()["_go"].wait()
        end, done = time.perf_counter() + SECONDS, 0
        while (start := time.perf_counter()) < end:
            query = Embedding(model, queries[done % len(queries)])
            result = client.search(embedding=query, top_k=TOP_K, nprobe=nprobe)
            latencies.append(time.perf_counter() - start)
            if len(result.hits) != TOP_K:
                raise SystemExit(f"{len(result.hits)} hits instead of {TOP_K}")
            done += 1
    return latencies


def report(recall: float, nprobe: int, in_process: dict[str, float], served: dict[int, dict[str, float]]) -> None:
    """The table and the JSON line."""
    base = in_process["batch_1"]
    print(f"{COUNT:,} x {DIM}, top_k {TOP_K}, nprobe {nprobe}, recall@10 {recall:.4f}, {os.cpu_count()} cores")
    print(f"{'':26}{'queries/s':>10}{'of in-process':>15}{'p50 ms':>8}{'p99 ms':>8}")
    for name, rate in in_process.items():
        print(f"{'in-process, ' + name:26}{rate:10,.0f}{rate / base:15.2f}")
    for clients, row in served.items():
        rate = row["queries_per_s"]
        print(
            f"{f'gRPC, {clients} clients':26}{rate:10,.0f}{rate / base:15.2f}{row['p50_ms']:8.2f}{row['p99_ms']:8.2f}"
        )
    print(json.dumps({"recall_at_10": recall, "nprobe": nprobe, "in_process": in_process, "served": served}))


if __name__ == "__main__":
    main()
