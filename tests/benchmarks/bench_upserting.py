"""What users' searches wait for while another user upserts.

    python tests/benchmarks/bench_upserting.py [rows [clients]]

A real server process over 100,000 (or so many) clustered rows of 128 dimensions, two clients (or so many) that search
by embedding one query after the other, and one that sends 20 batches of 100 embeddings with payloads a second, each
waited for until it is on the disk and searchable: to the same server, or to another one, which tells what sharing the
machine's cores costs. Every client is a process of its own. Idle, upserting and upserting elsewhere take turns within
one run, so that what else the machine does slows all. Prints each turn and one JSON line with the medians; three
minutes.
"""

import json
import shutil
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from kinsight_client import Client, Embedding, Upsert

from indexer.store import Store
from tests.benchmarks.bench_live import BATCH, DIM, QUERIES, TOP_K, clustered
from tests.benchmarks.turns import start

ROUNDS, TURN_S, UPSERTS_PER_S = 6, 6.0, 2_000

Figures = dict[str, float]


def main(count: int = 100_000, clients: int = 2) -> None:
    """Build, serve, let both take turns, print."""
    from tests.serving import make_model, make_version, server_process

    rows = clustered(np.random.default_rng(0), count)
    with tempfile.TemporaryDirectory() as root:
        store, other = Store(Path(root) / "searched"), Store(Path(root) / "other")
        model = make_model(store, dim=DIM)
        make_version(store, "live", 1, model, [f"image {row:07}.jpg" for row in range(count)], rows)
        shutil.copytree(store.models, other.models)
        shutil.copytree(store.indexes, other.indexes)
        with server_process(store) as (_, target), server_process(other) as (_, elsewhere):
            searchers = [start(search, target, model, seed) for seed in range(clients)]
            upserters = {
                "upserting": start(upsert, target, model),
                "upserting elsewhere": start(upsert, elsewhere, model),
            }
            turns = take_turns(searchers, upserters)
    ratios = {f"p99_ratio {state}": p99_ratio(turns["idle"], turns[state]) for state in upserters}
    medians = {state: middle(of) for state, of in turns.items()}
    print(json.dumps({"rows": count, "clients": clients, **ratios, **medians}))


def p99_ratio(idle: list[Figures], busy: list[Figures]) -> float:
    """The median of the turns' ratios."""
    return float(np.median([b["p99_ms"] / a["p99_ms"] for a, b in zip(idle, busy, strict=True)]))


def middle(turns: list[Figures]) -> Figures:
    """The median of each figure."""
    return {name: float(np.median([turn[name] for turn in turns])) for name in turns[0]}


def take_turns(searchers: list[Connection], upserters: dict[str, Connection]) -> dict[str, list[Figures]]:
    """The figures of each turn, idle and beside each of the upserters."""
    turns: dict[str, list[Figures]] = {"idle": [], **{state: [] for state in upserters}}
    for _ in range(ROUNDS):
        for state, figures in turns.items():
            working = [*searchers, upserters[state]] if state in upserters else searchers
            for client in working:
                client.send("your turn")
            found = [client.recv() for client in working]
            latencies = np.concatenate(found[: len(searchers)]) * 1e3
            turn = {name: float(np.percentile(latencies, at)) for name, at in (("p50_ms", 50), ("p99_ms", 99))}
            turn["searches_per_s"] = len(latencies) / TURN_S
            if state in upserters:
                turn["upserts_per_s"] = found[-1] / TURN_S
            figures.append(turn)
            print(state, *(f"{name} {value:.2f}" for name, value in turn.items()), flush=True)
    return turns


def search(target: str, model: str, seed: int, turns: Connection) -> None:
    """A client's process: for each turn, the seconds of each search of one after the other."""
    queries = clustered(np.random.default_rng(100 + seed), QUERIES)
    with Client(target) as client:
        while _is_told(turns):
            latencies, end = list[float](), time.perf_counter() + TURN_S
            while (started := time.perf_counter()) < end:
                client.search(embedding=Embedding(model, queries[len(latencies) % QUERIES]), top_k=TOP_K)
                latencies.append(time.perf_counter() - started)
            turns.send(latencies)


def upsert(target: str, model: str, turns: Connection) -> None:
    """A client's process: for each turn, how many items it upserted, a batch every 50 ms or as soon as it can."""
    vectors, batches = clustered(np.random.default_rng(200), BATCH), 0  # made once: only the server is to be slowed
    with Client(target) as client:
        while _is_told(turns):
            first, started = batches, time.perf_counter()
            while time.perf_counter() < started + TURN_S:
                batch = [
                    Upsert(f"new {batches} {n}", embedding=Embedding(model, vector), payload={"colour": "green"})
                    for n, vector in enumerate(vectors)
                ]
                client.items.upsert_many(batch)
                batches += 1
                due = started + (batches - first) * BATCH / UPSERTS_PER_S
                time.sleep(max(0.0, due - time.perf_counter()))
            turns.send((batches - first) * BATCH)


def _is_told(turns: Connection) -> bool:
    try:
        turns.recv()
    except EOFError:  # all turns are over
        return False
    return True


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
