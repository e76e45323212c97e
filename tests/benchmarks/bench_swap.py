"""Swaps of versions under searching clients: `python tests/benchmarks/bench_swap.py [rows]`.

Two versions of 100,000 (or so many) × 128 clustered embeddings are activated in turn over gRPC, 200 times, while 8
clients search, half of them by calls and half over streams. They have no item in common, so each swap also takes all
items out of the catalogue and others in, which takes most of its time: some 12 s for 100,000 items on two slow cores.
Every answer is compared with what its version alone gives. The server is a process of its own; its memory is read
after each swap; what counts is its growth from the first quarter of the swaps to the last. SWAPS=20 makes it short.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from kinsight.v1.index_service_pb2 import ActivateVersionRequest
from kinsight.v1.search_service_pb2 import Embedding as EmbeddingMessage
from kinsight.v1.search_service_pb2 import SearchRequest
from kinsight_client import Client, Embedding, KinsightError

from indexer.store import Store
from indexer.version import open_version, version_dir
from tests.benchmarks.bench_search import COUNT, DIM, Floats, clustered
from tests.serving import Stubs, make_model, make_version, server_process

SWAPS = int(os.environ.get("SWAPS", "200"))
CLIENTS = 8
QUERIES = 64
Expected = dict[int, list[list[str]]]  # by version: the hits of each query


def main(count: int) -> None:
    """Build both versions, swap under load, print."""
    embeddings, queries = clustered(np.random.default_rng(0))
    embeddings, queries = embeddings[:count], queries[:QUERIES]
    with tempfile.TemporaryDirectory() as root:
        store = Store(Path(root))
        model = make_model(store, dim=DIM)
        expected = {
            number: _publish(store, number, model, np.roll(embeddings, number, axis=0), queries) for number in (2, 1)
        }
        with server_process(store) as (process, target):
            answers: Counter[str] = Counter()
            stop = threading.Event()
            threads = [
                threading.Thread(target=search, args=(target, model, queries, expected, answers, stop))
                for search in [_call, _stream] * (CLIENTS // 2)
            ]
            for thread in threads:
                thread.start()
            resident = _swap(target, process.pid)
            stop.set()
            for thread in threads:
                thread.join()
    _print(answers, resident)


def _publish(store: Store, number: int, model: str, embeddings: Floats, queries: Floats) -> list[list[str]]:
    """Publish a version whose items are other ones at the same places, and say what it answers."""
    items = [f"version {number}/{row:06d}" for row in range(len(embeddings))]
    make_version(store, "swapped", number, model, items, embeddings)
    opened = open_version(version_dir(store.index("swapped"), number))
    return [opened.items(opened.search(query[None], 10)[1][0]) for query in queries]


def _call(target: str, model: str, queries: Floats, *load: Any) -> None:
    """A client that searches by calls."""
    requests = [SearchRequest(embedding=EmbeddingMessage(model=model, values=query.tolist())) for query in queries]
    with Stubs(target) as stubs:
        _search(lambda place: stubs.search.Search(requests[place], timeout=30), *load)


def _stream(target: str, model: str, queries: Floats, *load: Any) -> None:
    """A client that searches over streams, as ours do."""
    with Client(target, timeout_s=30) as client:
        _search(lambda place: client.search(embedding=Embedding(model, queries[place])), *load)


def _search(search: Callable[[int], Any], expected: Expected, answers: Counter[str], stop: threading.Event) -> None:
    while not stop.is_set():
        for place in range(QUERIES):
            try:
                answer = search(place)
            except (grpc.RpcError, KinsightError) as error:
                answers[f"failed: {error}"] += 1
                continue
            whole = [hit.item for hit in answer.hits] == expected[answer.version][place]
            answers[f"version {answer.version}" if whole else "of no version"] += 1


def _swap(target: str, pid: int) -> list[int]:
    """Swap, and read the resident bytes after each time."""
    resident = []
    with Stubs(target) as stubs:
        for number in range(SWAPS):
            stubs.indexes.ActivateVersion(ActivateVersionRequest(version=1 + (number + 1) % 2), timeout=60)
            time.sleep(0.05)
            status = Path(f"/proc/{pid}/status").read_text()
            resident.append(int(status.split("VmRSS:")[1].split()[0]) * 1024)
    return resident


def _print(answers: Counter[str], resident: list[int]) -> None:
    quarters = [float(np.median(part)) for part in np.array_split(np.array(resident), 4)]
    bad = {kind: count for kind, count in answers.items() if not kind.startswith("version")}
    shown = ", ".join(f"{quarter / 2**20:.0f}" for quarter in quarters)
    print(f"{SWAPS} swaps under {CLIENTS} clients: {answers.total():,} answers; not right: {bad or 'none'}")
    print(f"resident MiB, median of each quarter: {shown}; first to last {quarters[-1] / quarters[0] - 1:+.1%}")
    print(json.dumps({"swaps": SWAPS, "answers": answers, "resident_bytes": quarters}))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else COUNT)
